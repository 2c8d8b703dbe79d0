-- How many runs of a flow and a project agents have: each claim reads it where that is limited. The lease stands in
-- it so that no run has to be looked up.
CREATE INDEX flow_run_held ON flow_run (flow_id, project_id, lease_until) WHERE lease_until IS NOT NULL;

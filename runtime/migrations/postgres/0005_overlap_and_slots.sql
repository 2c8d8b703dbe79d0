-- Slots: how many runs of a flow, or of a project, agents may have at one time; null is as many as there are.
ALTER TABLE project ADD COLUMN slots BIGINT;
ALTER TABLE flow ADD COLUMN slots BIGINT;

-- Since when the schedule of a flow rests that was active before; null if nothing is to be caught up.
ALTER TABLE flow ADD COLUMN rests_since BIGINT;
-- How instants that were missed are caught up this once, in the place of what the schedule says.
ALTER TABLE schedule ADD COLUMN catch_up TEXT;

-- What a schedule says about runs that overlap, on every run of its flow; null where all may run.
ALTER TABLE flow_run ADD COLUMN overlap TEXT;
CREATE INDEX flow_run_exclusive ON flow_run (flow_id, scheduled_at)
    WHERE overlap IS NOT NULL AND ended_at IS NULL AND (clock IS NOT NULL OR epoch > 0);
CREATE INDEX flow_run_queued ON flow_run (requirement_id, flow_id, rank, scheduled_at) WHERE state = 'Queued';
CREATE INDEX flow_slots ON flow (id) WHERE slots IS NOT NULL;
CREATE INDEX project_slots ON project (id) WHERE slots IS NOT NULL;

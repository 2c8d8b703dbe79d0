-- Which `WAFT_HOME` an agent is of, as a word that its processes share with nobody, and when its process began.
ALTER TABLE agent ADD COLUMN home TEXT;
ALTER TABLE agent ADD COLUMN begun_at BIGINT NOT NULL DEFAULT 0;

-- What was said of a run as a whole is found past all that its tasks have said.
CREATE INDEX log_line_of_run ON log_line (flow_run_id, number) WHERE task IS NULL;

-- Runs that wait for a person. `left_ms` is how long a paused run may still take; `decision` is what a person has
-- decided since the task run was paused last, and `is_heard` whether its agent knows.
ALTER TABLE flow_run ADD COLUMN left_ms BIGINT;
ALTER TABLE task_run ADD COLUMN decision TEXT;
ALTER TABLE task_run ADD COLUMN is_heard BOOLEAN NOT NULL DEFAULT TRUE;
CREATE INDEX task_run_unheard ON task_run (flow_run_id) WHERE NOT is_heard;
-- The run that a run retries.
ALTER TABLE flow_run ADD COLUMN retry_of BYTEA;

-- Runs that wait for a later attempt are nobody's meanwhile. `due_at` is when a run may be claimed (`scheduled_at` is
-- when it was due at first), `rests` how often it was handed back so, `deadline_at` when it will have taken as long as
-- it may; null before it has begun.
ALTER TABLE flow_run ADD COLUMN due_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE flow_run ADD COLUMN rests BIGINT NOT NULL DEFAULT 0;
ALTER TABLE flow_run ADD COLUMN deadline_at BIGINT;
UPDATE flow_run SET due_at = scheduled_at, deadline_at = started_at + timeout_ms * 1000;
DROP INDEX flow_run_waiting;
CREATE INDEX flow_run_waiting ON flow_run (requirement_id, rank, due_at) WHERE state = 'Scheduled';
CREATE INDEX flow_run_overdue ON flow_run (deadline_at)
    WHERE deadline_at IS NOT NULL AND lease_until IS NULL AND ended_at IS NULL;

-- Segments of results: when a reference to them was last reported. One that was not used for longer than
-- results are kept is doomed, is asked of an agent that offers its root, and goes when it is deleted.
CREATE TABLE segment (
    root TEXT NOT NULL,
    "key" TEXT NOT NULL,
    used_at BIGINT NOT NULL,
    doomed_at BIGINT,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (root, "key")
) WITHOUT ROWID;
CREATE INDEX segment_used ON segment (used_at) WHERE doomed_at IS NULL;
CREATE INDEX segment_doomed ON segment (root, asked_at) WHERE doomed_at IS NOT NULL;

-- What was reported before this table counts as used now.
INSERT INTO segment (root, "key", used_at, asked_at)
SELECT DISTINCT json_extract(result, '$.root'), json_extract(result, '$.segment'),
    CAST(strftime('%s', 'now') AS INTEGER) * 1000000, 0
FROM task_run WHERE result IS NOT NULL;

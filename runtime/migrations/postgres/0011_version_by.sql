-- Who registered a version: the name of a token; empty where nobody wrote it down.
ALTER TABLE flow_version ADD COLUMN by_whom TEXT NOT NULL DEFAULT '';

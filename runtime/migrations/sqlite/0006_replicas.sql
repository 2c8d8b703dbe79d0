-- What other servers of this database must know of an agent: whether it takes no more runs, and when it was
-- last there, in lease time.
ALTER TABLE agent ADD COLUMN has_left BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE agent ADD COLUMN heard_at BIGINT NOT NULL DEFAULT 0;

-- Links that log a browser in and were not used yet, and the browsers that are logged in.
CREATE TABLE login (
    hash BLOB NOT NULL PRIMARY KEY,
    is_link BOOLEAN NOT NULL,
    ends_at BIGINT NOT NULL
);

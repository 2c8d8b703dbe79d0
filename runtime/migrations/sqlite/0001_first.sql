-- Times are microseconds since 1970 in UTC, ids 16 bytes, JSON is text, states and events are their words.
-- Tables and columns are named as the nouns of the model. Forward only: a released file is never changed.

CREATE TABLE fact (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE project (
    id BLOB NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE flow (
    id BLOB NOT NULL PRIMARY KEY,
    project_id BLOB NOT NULL REFERENCES project (id),
    name TEXT NOT NULL,
    flow_version_id BLOB NOT NULL,
    is_paused BOOLEAN NOT NULL,
    is_archived BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (project_id, name)
) WITHOUT ROWID;
CREATE INDEX flow_name ON flow (name);

CREATE TABLE requirement (
    id INTEGER NOT NULL PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE flow_version (
    id BLOB NOT NULL PRIMARY KEY,
    flow_id BLOB NOT NULL REFERENCES flow (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    artifact BLOB NOT NULL,
    artifact_size BIGINT NOT NULL,
    definition TEXT NOT NULL,
    definition_hash BLOB NOT NULL,
    labels TEXT NOT NULL,
    requirement_id BIGINT NOT NULL REFERENCES requirement (id),
    created_at BIGINT NOT NULL,
    archived_at BIGINT,
    UNIQUE (flow_id, version)
);

-- Where the bytes of an artifact lie; no part of the version, so that they can move.
CREATE TABLE location (
    project_id BLOB NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    artifact BLOB NOT NULL,
    root TEXT NOT NULL,
    "key" TEXT NOT NULL,
    PRIMARY KEY (project_id, artifact, root)
) WITHOUT ROWID;

-- `rank` is the priority with its sign turned, so that every index is ascending. `transition` counts the
-- history of the run and of its task runs; `reported` is the number of the last report under `epoch`.
CREATE TABLE flow_run (
    id BLOB NOT NULL PRIMARY KEY,
    project_id BLOB NOT NULL,
    flow_id BLOB NOT NULL,
    flow_version_id BLOB NOT NULL REFERENCES flow_version (id) ON DELETE CASCADE,
    requirement_id BIGINT NOT NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    code TEXT,
    parameters TEXT NOT NULL,
    rank BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    scheduled_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    timeout_ms BIGINT NOT NULL,
    transition BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    lost BIGINT NOT NULL,
    reported BIGINT NOT NULL,
    lines BIGINT NOT NULL,
    open_tasks BIGINT NOT NULL,
    agent_id BLOB,
    session_id BLOB,
    claimed_at BIGINT,
    lease_until BIGINT,
    result TEXT,
    clock TEXT,
    nominal_at BIGINT,
    idempotency_key TEXT,
    request_digest BLOB
) WITHOUT ROWID;
CREATE INDEX flow_run_waiting ON flow_run (requirement_id, rank, scheduled_at) WHERE state = 'Scheduled';
CREATE INDEX flow_run_leased ON flow_run (agent_id, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX flow_run_lapsing ON flow_run (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX flow_run_live ON flow_run (id) WHERE ended_at IS NULL;
CREATE INDEX flow_run_of_version ON flow_run (flow_version_id);
CREATE INDEX flow_run_of_flow ON flow_run (flow_id, id);
CREATE INDEX flow_run_of_project ON flow_run (project_id, id);
CREATE INDEX flow_run_ahead ON flow_run (flow_id, nominal_at) WHERE clock IS NOT NULL AND state = 'Scheduled';
CREATE UNIQUE INDEX flow_run_clock ON flow_run (flow_id, clock, nominal_at) WHERE clock IS NOT NULL;
CREATE UNIQUE INDEX flow_run_idempotency ON flow_run (flow_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- A task is kept by its place in the definition; `map_index` is -1 where there is none.
CREATE TABLE task_run (
    flow_run_id BLOB NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    task BIGINT NOT NULL,
    map_index BIGINT NOT NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    code TEXT,
    attempts BIGINT NOT NULL,
    loop_count BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    "usage" TEXT NOT NULL,
    result TEXT,
    denials TEXT NOT NULL,
    failures BIGINT NOT NULL,
    retry_at BIGINT,
    PRIMARY KEY (flow_run_id, task, map_index)
) WITHOUT ROWID;

-- The history. `task` is null for the flow run itself.
CREATE TABLE transition (
    flow_run_id BLOB NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    task BIGINT,
    map_index BIGINT,
    event TEXT,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    by_whom TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (flow_run_id, number)
) WITHOUT ROWID;

CREATE TABLE log_line (
    flow_run_id BLOB NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    level BIGINT NOT NULL,
    task BIGINT,
    map_index BIGINT,
    attempt BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (flow_run_id, number)
) WITHOUT ROWID;

CREATE TABLE card (
    flow_run_id BLOB NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    task BIGINT NOT NULL,
    map_index BIGINT NOT NULL,
    title TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (flow_run_id, task, map_index, title)
) WITHOUT ROWID;

CREATE TABLE token (
    id BLOB NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    hash BLOB NOT NULL,
    scope TEXT NOT NULL,
    projects TEXT,
    created_at BIGINT NOT NULL,
    used_at BIGINT
) WITHOUT ROWID;

-- `realm` keeps apart agents of the same name and host whose tokens are bound to other projects.
CREATE TABLE agent (
    id BLOB NOT NULL PRIMARY KEY,
    realm TEXT NOT NULL,
    name TEXT NOT NULL,
    hostname TEXT NOT NULL,
    session_id BLOB NOT NULL UNIQUE,
    version TEXT NOT NULL,
    protocol BIGINT NOT NULL,
    offer TEXT NOT NULL,
    slots BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    UNIQUE (realm, name, hostname)
) WITHOUT ROWID;

-- One row for each flow whose schedule is active; `refill_at` is when the next run becomes due, null when
-- there are no more instants.
CREATE TABLE schedule (
    flow_id BLOB NOT NULL PRIMARY KEY REFERENCES flow (id) ON DELETE CASCADE,
    refill_at BIGINT
) WITHOUT ROWID;
CREATE INDEX schedule_refill ON schedule (refill_at) WHERE refill_at IS NOT NULL;

-- Times are microseconds since 1970 in UTC, ids 16 bytes, JSON is text, states and events are their words.
-- Tables and columns are named as the nouns of the model. Forward only: a released file is never changed.

CREATE TABLE fact (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE project (
    id BYTEA NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE flow (
    id BYTEA NOT NULL PRIMARY KEY,
    project_id BYTEA NOT NULL REFERENCES project (id),
    name TEXT COLLATE "C" NOT NULL,
    flow_version_id BYTEA NOT NULL,
    is_paused BOOLEAN NOT NULL,
    is_archived BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (project_id, name)
);
CREATE INDEX flow_name ON flow (name);

CREATE TABLE requirement (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest BYTEA NOT NULL UNIQUE,
    body TEXT NOT NULL
);

CREATE TABLE flow_version (
    id BYTEA NOT NULL PRIMARY KEY,
    flow_id BYTEA NOT NULL REFERENCES flow (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    artifact BYTEA NOT NULL,
    artifact_size BIGINT NOT NULL,
    definition TEXT NOT NULL,
    definition_hash BYTEA NOT NULL,
    labels TEXT NOT NULL,
    requirement_id BIGINT NOT NULL REFERENCES requirement (id),
    created_at BIGINT NOT NULL,
    archived_at BIGINT,
    UNIQUE (flow_id, version)
);

-- Where the bytes of an artifact lie; no part of the version, so that they can move.
CREATE TABLE location (
    project_id BYTEA NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    artifact BYTEA NOT NULL,
    root TEXT COLLATE "C" NOT NULL,
    "key" TEXT NOT NULL,
    PRIMARY KEY (project_id, artifact, root)
);

-- `rank` is the priority with its sign turned, so that every index is ascending. `transition` counts the
-- history of the run and of its task runs; `reported` is the number of the last report under `epoch`.
CREATE TABLE flow_run (
    id BYTEA NOT NULL PRIMARY KEY,
    project_id BYTEA NOT NULL,
    flow_id BYTEA NOT NULL,
    flow_version_id BYTEA NOT NULL REFERENCES flow_version (id) ON DELETE CASCADE,
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
    agent_id BYTEA,
    session_id BYTEA,
    claimed_at BIGINT,
    lease_until BIGINT,
    result TEXT,
    clock TEXT COLLATE "C",
    nominal_at BIGINT,
    idempotency_key TEXT COLLATE "C",
    request_digest BYTEA
);
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
    flow_run_id BYTEA NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
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
);

-- The history. `task` is null for the flow run itself.
CREATE TABLE transition (
    flow_run_id BYTEA NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
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
);

CREATE TABLE log_line (
    flow_run_id BYTEA NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    level BIGINT NOT NULL,
    task BIGINT,
    map_index BIGINT,
    attempt BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (flow_run_id, number)
);

CREATE TABLE card (
    flow_run_id BYTEA NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    task BIGINT NOT NULL,
    map_index BIGINT NOT NULL,
    title TEXT COLLATE "C" NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (flow_run_id, task, map_index, title)
);

CREATE TABLE token (
    id BYTEA NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    hash BYTEA NOT NULL,
    scope TEXT NOT NULL,
    projects TEXT,
    created_at BIGINT NOT NULL,
    used_at BIGINT
);

-- `realm` keeps apart agents of the same name and host whose tokens are bound to other projects.
CREATE TABLE agent (
    id BYTEA NOT NULL PRIMARY KEY,
    realm TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    hostname TEXT COLLATE "C" NOT NULL,
    session_id BYTEA NOT NULL UNIQUE,
    version TEXT NOT NULL,
    protocol BIGINT NOT NULL,
    offer TEXT NOT NULL,
    slots BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    UNIQUE (realm, name, hostname)
);

-- One row for each flow whose schedule is active; `refill_at` is when the next run becomes due, null when
-- there are no more instants.
CREATE TABLE schedule (
    flow_id BYTEA NOT NULL PRIMARY KEY REFERENCES flow (id) ON DELETE CASCADE,
    refill_at BIGINT
);
CREATE INDEX schedule_refill ON schedule (refill_at) WHERE refill_at IS NOT NULL;
-- Instants to come whose runs somebody has deleted: clocks make none for them again.
CREATE TABLE left_out (
    flow_id BYTEA NOT NULL REFERENCES flow (id) ON DELETE CASCADE,
    clock TEXT COLLATE "C" NOT NULL,
    nominal_at BIGINT NOT NULL,
    PRIMARY KEY (flow_id, clock, nominal_at)
);
-- Segments of results: when a reference to them was last reported. One that was not used for longer than
-- results are kept is doomed, is asked of an agent that offers its root, and goes when it is deleted.
CREATE TABLE segment (
    root TEXT COLLATE "C" NOT NULL,
    "key" TEXT NOT NULL,
    used_at BIGINT NOT NULL,
    doomed_at BIGINT,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (root, "key")
);
CREATE INDEX segment_used ON segment (used_at) WHERE doomed_at IS NULL;
CREATE INDEX segment_doomed ON segment (root, asked_at) WHERE doomed_at IS NOT NULL;

-- Slots of tags: how many task runs with a tag may run at one time in a project; null is as many as there are. A row
-- stays when its number is taken away, so that the newest change is always there.
CREATE TABLE tag (
    project_id BYTEA NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    slots BIGINT,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (project_id, name)
);

-- Task runs in line for a slot of each of their tags, by priority and by when they asked. Since `given_at` they have
-- them, for the attempt after `attempts` under the claim `epoch`: for as long as that claim is good and the attempt goes
-- on, which the rows of both say. `called_at` is when a run that nobody has was made due for them.
CREATE TABLE tag_slot (
    flow_run_id BYTEA NOT NULL REFERENCES flow_run (id) ON DELETE CASCADE,
    task BIGINT NOT NULL,
    map_index BIGINT NOT NULL,
    project_id BYTEA NOT NULL,
    tags TEXT NOT NULL,
    rank BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    asked_at BIGINT NOT NULL,
    called_at BIGINT,
    given_at BIGINT,
    PRIMARY KEY (flow_run_id, task, map_index)
);
CREATE INDEX tag_slot_line ON tag_slot (project_id, tags, rank, asked_at) WHERE given_at IS NULL AND called_at IS NULL;
CREATE INDEX tag_slot_called ON tag_slot (project_id, called_at) WHERE called_at IS NOT NULL;
CREATE INDEX tag_slot_given ON tag_slot (project_id) WHERE given_at IS NOT NULL;

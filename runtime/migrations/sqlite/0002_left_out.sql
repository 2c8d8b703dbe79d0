-- Instants to come whose runs somebody has deleted: clocks make none for them again.
CREATE TABLE left_out (
    flow_id BLOB NOT NULL REFERENCES flow (id) ON DELETE CASCADE,
    clock TEXT NOT NULL,
    nominal_at BIGINT NOT NULL,
    PRIMARY KEY (flow_id, clock, nominal_at)
) WITHOUT ROWID;

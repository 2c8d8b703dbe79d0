-- The newest change of a number of slots, which agents ask for at each wake.
CREATE INDEX tag_change ON tag (changed_at);

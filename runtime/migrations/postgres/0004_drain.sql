-- What an agent was told from afar: `finish` or `now`, until a process of its name begins anew.
ALTER TABLE agent ADD COLUMN drain TEXT;

-- Whether the machines in a domain are those of the network's vendor.
ALTER TABLE domain ADD COLUMN vendor INTEGER NOT NULL DEFAULT 0 CHECK (vendor IN (0, 1));

-- Super-nodes that are, or were, kept away from everybody. Without a reference to the node: one that leaves and joins
-- again is still kept away.
CREATE TABLE quarantine (
    domain   INTEGER NOT NULL,
    node     BLOB NOT NULL CHECK (length(node) = 32),
    began_at INTEGER NOT NULL,
    ended_at INTEGER,
    evidence TEXT NOT NULL,
    PRIMARY KEY (domain, node)
) STRICT, WITHOUT ROWID;

-- Times are milliseconds since 1970-01-01 UTC. Ids and keys are byte strings of fixed size.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE domain (
    id            INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
    name          TEXT NOT NULL UNIQUE,
    created_at    INTEGER NOT NULL,
    location_key  BLOB NOT NULL CHECK (length(location_key) = 32),
    offline_hours INTEGER CHECK (offline_hours BETWEEN 0 AND 65535),
    revoked_at    INTEGER
) STRICT;

-- The newest epoch key of each domain, and the one before.
CREATE TABLE epoch (
    domain     INTEGER NOT NULL REFERENCES domain (id),
    number     INTEGER NOT NULL CHECK (number BETWEEN 1 AND 4294967295),
    key        BLOB NOT NULL CHECK (length(key) = 32),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (domain, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    id          BLOB PRIMARY KEY CHECK (length(id) = 8),
    domain      INTEGER NOT NULL REFERENCES domain (id),
    secret_hash BLOB NOT NULL CHECK (length(secret_hash) = 32),
    uses        INTEGER NOT NULL CHECK (uses >= 1),
    used        INTEGER NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND uses),
    roles       INTEGER NOT NULL,
    approval    INTEGER NOT NULL CHECK (approval IN (0, 1)),
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    closed_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX token_of_domain ON token (domain, created_at);

CREATE TABLE node (
    domain     INTEGER NOT NULL REFERENCES domain (id),
    hash       BLOB NOT NULL CHECK (length(hash) = 32),
    identity   BLOB NOT NULL CHECK (length(identity) = 32),
    receiving  BLOB NOT NULL CHECK (length(receiving) = 32),
    name       TEXT NOT NULL,
    roles      INTEGER NOT NULL,
    token      BLOB NOT NULL REFERENCES token (id),
    -- 0 waits for approval, 1 member, 2 revoked, 3 has left.
    state      INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
    joined_at  INTEGER NOT NULL,
    -- When the newest Node record ends; absent if there never was one.
    expires_at INTEGER,
    seen_at    INTEGER,
    seen_from  TEXT,
    revoked_at INTEGER,
    reason     INTEGER,
    PRIMARY KEY (domain, hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX node_of_token ON node (token);
CREATE INDEX node_of_key ON node (hash);

CREATE TABLE device (
    domain     INTEGER NOT NULL REFERENCES domain (id),
    id         BLOB NOT NULL CHECK (length(id) = 32),
    record_key BLOB NOT NULL CHECK (length(record_key) = 32),
    name       TEXT NOT NULL,
    mac        BLOB NOT NULL CHECK (length(mac) = 6),
    -- All that is known about it, as the private body of its record.
    body       BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    removed_at INTEGER,
    PRIMARY KEY (domain, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX device_name ON device (domain, name) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX device_mac ON device (domain, mac) WHERE removed_at IS NULL;
CREATE INDEX device_record ON device (domain, record_key);

-- Which node first reported a device at which location.
CREATE TABLE sighting (
    domain   INTEGER NOT NULL,
    device   BLOB NOT NULL,
    location BLOB NOT NULL CHECK (length(location) = 32),
    node     BLOB NOT NULL CHECK (length(node) = 32),
    at       INTEGER NOT NULL,
    PRIMARY KEY (domain, device, location),
    FOREIGN KEY (domain, device) REFERENCES device (domain, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- The newest record of each id, tombstones included.
CREATE TABLE record (
    kind       INTEGER NOT NULL,
    domain     INTEGER NOT NULL,
    key        BLOB NOT NULL CHECK (length(key) = 32),
    version    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    removed    INTEGER NOT NULL CHECK (removed IN (0, 1)),
    bytes      BLOB NOT NULL,
    PRIMARY KEY (kind, domain, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX record_by_age ON record (kind, removed, version);
CREATE INDEX record_by_end ON record (expires_at);

CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_by_action ON audit (action, at);

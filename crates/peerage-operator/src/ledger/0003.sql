-- Identities of the operator inside real domains. Each has a row in node like any member; here is its key.
CREATE TABLE spy (
    domain INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    secret BLOB NOT NULL CHECK (length(secret) = 32),
    PRIMARY KEY (domain, hash),
    FOREIGN KEY (domain, hash) REFERENCES node (domain, hash) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

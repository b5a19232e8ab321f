//! The form of the database, and reading it.

use std::path::Path;

use bytes::Bytes;
use peerage_wire::record::UnverifiedRecord;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Contents, StoreError};

/// The number in the file's header that tells ours from others' ("PeeN").
const APPLICATION_ID: i64 = 0x5065_654e;

/// The format of the tables below; raised with every change that an older program would misread.
const FORMAT: i64 = 1;

/// Unused bytes in the file with which it is written anew at the start: those of a part of the table that was held for others
/// and is no more. Lower, ordinary changes would cause it; higher, a small disk stays full.
const MAX_UNUSED_BYTES: i64 = 16 << 20;

const TABLES: &str = "
    CREATE TABLE record (
        tbl INTEGER NOT NULL,
        domain INTEGER NOT NULL,
        key BLOB NOT NULL,
        version INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        PRIMARY KEY (tbl, domain, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE fact (
        name TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Opens the file and makes the tables if it is new. Judges before it writes.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error| classify(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    // The data directory's lock keeps others out, and without others no shared memory is needed beside the file.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
    let is_new = judge(&connection, path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        tracing::warn!(mode, "the file system does not support write-ahead logging; writes will be slower");
    }
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    // macOS keeps what `fsync` wrote in the disk's own cache unless told otherwise.
    connection.pragma_update(None, "fullfsync", true).map_err(failed)?;
    if is_new {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(TABLES).map_err(failed)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    } else {
        give_back_unused(&connection);
    }
    Ok(connection)
}

/// Gives the disk back what is unused. That takes as much of it for a moment as the file has used; without it all works the same.
fn give_back_unused(connection: &Connection) {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let unused = number("freelist_count").unwrap_or(0).saturating_mul(number("page_size").unwrap_or(0));
    if unused > MAX_UNUSED_BYTES
        && let Err(error) = connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
    {
        tracing::warn!(%error, unused, "the database keeps space that it does not use");
    }
}

/// Returns whether the database is empty.
fn judge(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    let failed = |error| classify(path, error);
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let application = number("application_id").map_err(failed)?;
    let format = number("user_version").map_err(failed)?;
    let count = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection.query_row(count, [], |row| row.get(0)).map_err(failed)?;
    if tables == 0 && application == 0 && format == 0 {
        return Ok(true);
    }
    if application != APPLICATION_ID {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    let check = "PRAGMA quick_check(1)";
    let verdict: String = connection.query_row(check, [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt { path: path.to_owned(), reason: verdict });
    }
    Ok(false)
}

/// Reads everything.
pub(super) fn load(connection: &Connection, path: &Path) -> Result<Contents, StoreError> {
    let failed = |error| classify(path, error);
    let mut contents = Contents::default();
    let mut records =
        connection.prepare("SELECT bytes FROM record ORDER BY tbl, domain, key").map_err(failed)?;
    for bytes in records.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(failed)? {
        match UnverifiedRecord::parse(&Bytes::from(bytes.map_err(failed)?)) {
            Ok(record) => contents.records.push(record.trust_own_store()),
            Err(error) => {
                return Err(StoreError::Corrupt {
                    path: path.to_owned(),
                    reason: format!("a record: {error}"),
                });
            }
        }
    }
    let mut facts = connection.prepare("SELECT name, value FROM fact").map_err(failed)?;
    for fact in facts.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)? {
        let (name, value) = fact.map_err(failed)?;
        contents.facts.insert(name, value);
    }
    Ok(contents)
}

fn classify(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, reason: error.to_string() }
        }
        _ => StoreError::Sqlite { path, source: error },
    }
}

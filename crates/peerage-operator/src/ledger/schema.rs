//! The tables of the ledger, and how an older ledger becomes a newer one.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::LedgerError;

/// What turns a ledger of version N into one of version N + 1. Entries are never altered, only added: ledgers in the
/// field have run them.
const MIGRATIONS: &[&str] = &[include_str!("0001.sql"), include_str!("0002.sql"), include_str!("0003.sql")];

/// How long to wait for another process, such as a backup, that reads the ledger. Longer only delays the error.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a ledger that exists, which may be an empty file, and brings it to the newest version.
pub(super) fn open(path: &Path) -> Result<Connection, LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // What was acknowledged must survive a loss of power, so each commit waits for the disk.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // The keys of past epochs must not stay in free pages.
    connection.pragma_update(None, "secure_delete", true)?;
    migrate(&mut connection)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), LedgerError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version).map_err(|_| LedgerError::Newer(version))?;
    let missing = MIGRATIONS.get(done..).ok_or(LedgerError::Newer(version))?;
    let mut version = version;
    for sql in missing {
        transaction.execute_batch(sql)?;
        version += 1;
        transaction.pragma_update(None, "user_version", version)?;
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_file() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().unwrap()
    }

    #[test]
    fn a_new_ledger_waits_for_the_disk_and_keeps_references() {
        let file = empty_file();
        let connection = open(file.path()).unwrap();
        let pragma = |name: &str| -> String {
            connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .map(|value| format!("{value:?}"))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
        assert_eq!(pragma("synchronous"), "Integer(2)");
        assert_eq!(pragma("foreign_keys"), "Integer(1)");
        assert_eq!(pragma("user_version"), format!("Integer({})", MIGRATIONS.len()));
    }

    #[test]
    fn a_ledger_is_opened_again_as_it_was() {
        let file = empty_file();
        open(file.path()).unwrap().execute("INSERT INTO meta VALUES ('a', 1)", []).unwrap();
        let kept: i64 =
            open(file.path()).unwrap().query_row("SELECT value FROM meta", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 1);
    }

    /// A ledger of the first release, with a domain and a setting in it, becomes a present one.
    #[test]
    fn a_ledger_of_the_first_version_keeps_everything_and_gets_what_is_new() {
        let file = empty_file();
        let old = Connection::open(file.path()).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch(
            "INSERT INTO meta VALUES ('last_version', 7);
             INSERT INTO domain VALUES (5, 'acme', 1, zeroblob(32), 24, NULL);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(old);
        for _start in 0..2 {
            let connection = open(file.path()).unwrap();
            let select = "SELECT name, offline_hours, vendor, revoked_at FROM domain WHERE id = 5";
            let domain: (String, u16, bool, Option<i64>) = connection
                .query_row(select, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
                .unwrap();
            assert_eq!(domain, ("acme".to_owned(), 24, false, None));
            let kept: i64 = connection.query_row("SELECT value FROM meta", [], |row| row.get(0)).unwrap();
            let quarantined: i64 =
                connection.query_row("SELECT count(*) FROM quarantine", [], |row| row.get(0)).unwrap();
            let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
            assert_eq!((kept, quarantined), (7, 0));
            assert_eq!(usize::try_from(version).unwrap(), MIGRATIONS.len());
        }
    }

    #[test]
    fn a_ledger_of_a_newer_version_is_refused() {
        let file = empty_file();
        open(file.path()).unwrap().pragma_update(None, "user_version", 999).unwrap();
        assert!(matches!(open(file.path()), Err(LedgerError::Newer(999))));
    }

    #[test]
    fn a_file_that_is_no_ledger_is_refused() {
        let file = empty_file();
        std::fs::write(file.path(), b"this is a letter to a friend, and not a database at all".repeat(20))
            .unwrap();
        assert!(matches!(open(file.path()), Err(LedgerError::Database(_))));
    }
}

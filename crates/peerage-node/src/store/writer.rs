//! The thread that writes.

use std::sync::mpsc;

use peerage_proto::node::Change;
use rusqlite::{Connection, Transaction, params};

use super::{Batch, NotWritten, Waiting};

/// The most batches in one transaction. Raised, the first waits longer for the last; lowered, a burst costs more
/// trips to the disk, each of some milliseconds.
const MAX_GROUP: usize = 256;

/// Writes what comes, until the other end is gone and nothing waits any more.
pub(super) fn run(mut connection: Connection, waiting: &mpsc::Receiver<Waiting>) {
    let mut group: Vec<Waiting> = Vec::new();
    while let Ok(first) = waiting.recv() {
        group.push(first);
        group.extend(waiting.try_iter().take(MAX_GROUP - 1));
        let result = write(&mut connection, group.iter().map(|(batch, _)| batch)).map_err(|error| {
            tracing::error!(%error, "the database could not be written");
            NotWritten
        });
        for (_, answer) in group.drain(..) {
            // Whoever asked may be gone; the batch is written all the same.
            let _ = answer.send(result);
        }
    }
}

fn write<'a>(
    connection: &mut Connection,
    batches: impl Iterator<Item = &'a Batch>,
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    for batch in batches {
        for change in &batch.changes {
            apply(&transaction, change)?;
        }
        for (name, value) in &batch.facts {
            match value {
                Some(value) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO fact (name, value) VALUES (?1, ?2)")?
                    .execute(params![name, value])?,
                None => transaction.prepare_cached("DELETE FROM fact WHERE name = ?1")?.execute([name])?,
            };
        }
    }
    transaction.commit()
}

fn apply(transaction: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    match change {
        Change::Put(record) => {
            let header = record.header();
            let sql = "INSERT OR REPLACE INTO record (tbl, domain, key, version, expires, bytes)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            transaction.prepare_cached(sql)?.execute(params![
                header.table.number(),
                header.domain.0,
                &header.key.0[..],
                saturating(header.version),
                saturating(header.expires.as_millis()),
                &record.bytes()[..],
            ])?;
        }
        Change::Delete { table, domain, key } => {
            transaction
                .prepare_cached("DELETE FROM record WHERE tbl = ?1 AND domain = ?2 AND key = ?3")?
                .execute(params![table.number(), domain.0, &key.0[..]])?;
        }
    }
    Ok(())
}

/// The columns are for people who look into the file; the truth is in the bytes.
fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

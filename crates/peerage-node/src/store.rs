//! What a node keeps on disk: records and a few facts, in SQLite.
//!
//! One thread owns the database and nobody else touches it. Batches that wait are written in one transaction, so that
//! they share the cost of reaching the disk; each is answered only when it is safe there. Reads happen once, at
//! the start: afterwards memory is the truth that the state machine works on, and the database its log.
//!
//! Invariants: a batch is on disk whole or not at all; what was answered with success survives a crash at any instant
//! (`synchronous = FULL`); a database that cannot be understood is never written to.

mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::thread;

use peerage_proto::node::Change;
use peerage_wire::record::{Record, Table};
use peerage_wire::time::UnixTime;
use rusqlite::Connection;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// The most batches that wait to be written; further ones are refused at once. The state machine has a few
/// dozen under way at most. Raised, a dead disk is noticed later; lowered, a slow one refuses work it could do.
pub const MAX_WAITING: usize = 1_024;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is damaged, or not a database.
    #[error(
        "the database {} is damaged ({reason}); move it away and join with a new token, or restore it from a backup",
        .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// A newer version wrote it.
    #[error(
        "the database {} was written by a newer version of Peerage (format {found}, this one knows {known}); install that version",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format that this version knows.
        known: i64,
    },
    /// It is a database of another program.
    #[error("the database {} belongs to another program; choose another data directory", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed otherwise: most likely the disk.
    #[error("cannot use the database {}: {source}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The system does not give another thread.
    #[error("cannot start the thread of the database: {0}")]
    Thread(#[from] std::io::Error),
}

/// A batch was not written: the disk refused, or too many wait. Nothing of it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database could not be written; the log says why")]
pub struct NotWritten;

/// What is written together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Changes of records, in this order.
    pub changes: Vec<Change>,
    /// Facts to be set, or forgotten.
    pub facts: Vec<(&'static str, Option<Vec<u8>>)>,
}

/// What the database held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The records, by table, domain and key; expired ones included.
    pub records: Vec<Record>,
    /// The facts, by name.
    pub facts: std::collections::BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Returns the records of a table.
    pub fn of(&self, table: Table) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.header().table == table)
    }

    /// Forgets what has expired.
    pub fn retain_valid(&mut self, time: UnixTime) {
        self.records.retain(|record| record.is_valid_at(time));
    }
}

type Waiting = (Batch, oneshot::Sender<Result<(), NotWritten>>);

/// The handle to the thread that owns the database. When it is dropped, what waits is still written.
#[derive(Debug)]
pub struct Store {
    queue: Option<mpsc::SyncSender<Waiting>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Store {
    /// Opens the database, or makes it, and returns what is in it. Blocks; call it before the node serves.
    ///
    /// # Errors
    /// If the file is damaged, foreign, newer than this program, or cannot be read. It is then left as it was.
    pub fn open(path: &Path) -> Result<(Self, Contents), StoreError> {
        let connection = schema::open(path)?;
        let contents = schema::load(&connection, path)?;
        let (queue, waiting) = mpsc::sync_channel(MAX_WAITING);
        let thread = spawn_writer(connection, waiting)?;
        Ok((Self { queue: Some(queue), thread: Some(thread) }, contents))
    }

    /// Hands a batch over to be written, without waiting; the receiver gets the answer once it is safe on disk.
    pub fn submit(&self, batch: Batch) -> oneshot::Receiver<Result<(), NotWritten>> {
        let (answer, receiver) = oneshot::channel();
        if let Some(queue) = &self.queue
            && let Err(mpsc::TrySendError::Full((_, answer)) | mpsc::TrySendError::Disconnected((_, answer))) =
                queue.try_send((batch, answer))
        {
            tracing::error!("the database does not keep up; a batch was refused");
            // The receiver may not care any more.
            let _ = answer.send(Err(NotWritten));
        }
        receiver
    }

    /// Writes a batch and waits until it is safe on disk.
    ///
    /// # Errors
    /// If the disk refused it, or too many batches wait.
    pub async fn write(&self, batch: Batch) -> Result<(), NotWritten> {
        self.submit(batch).await.unwrap_or(Err(NotWritten))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the database has panicked");
        }
    }
}

fn spawn_writer(
    connection: Connection,
    waiting: mpsc::Receiver<Waiting>,
) -> Result<thread::JoinHandle<()>, StoreError> {
    let name = "peerage-store".to_owned();
    Ok(thread::Builder::new().name(name).spawn(move || writer::run(connection, &waiting))?)
}

#[cfg(test)]
mod tests;

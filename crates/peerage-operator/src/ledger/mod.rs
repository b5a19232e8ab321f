//! The ledger: what the operator must never forget, in one SQLite file.
//!
//! Every action is one transaction, [`Ledger::act`]. The records that an action makes are signed inside it, with a
//! version that is taken inside it, so that a version is never used twice and nothing is signed that is not kept.
//! What was committed comes back as a [`Change`], for the state machine that answers the network.
//!
//! [`Ledger`] blocks. [`LedgerHandle`] is its asynchronous side: one thread owns the ledger and does one action after
//! the other.
//!
//! Invariants:
//! - versions of records rise over the whole life of the ledger, even if the clock goes back;
//! - a token has admitted at most as many nodes as it allows, and each admission is a row;
//! - after the revocation of a node no record is sealed in an epoch whose key it was given;
//! - keys of nodes are never deleted once revoked.

mod admit;
mod audit;
mod devices;
mod domains;
mod nodes;
mod records;
mod schema;
mod sightings;
mod spies;
mod super_nodes;
#[cfg(test)]
mod tests;
mod thread;
mod tokens;
mod upkeep;

use std::fmt;
use std::path::Path;

use getrandom::SysRng;
use peerage_proto::operator::{DomainFacts, SpyIdentity};
use peerage_wire::cbor::Malformed;
use peerage_wire::crypto::{CryptoError, Real};
use peerage_wire::id::{Domain, NetworkId, NodeId};
use peerage_wire::keys::IdentityKey;
use peerage_wire::record::{DraftError, Record, RecordError};
use peerage_wire::time::UnixTime;
use rand_core::UnwrapErr;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

pub(crate) use admit::Enrolment;
pub(crate) use audit::Actor;
pub(crate) use devices::{DeviceError, DeviceRow, NewDevice};
pub(crate) use domains::{DomainError, DomainRow, NewDomain};
pub(crate) use nodes::{Membership, NodeError, NodeRow, Reason};
pub(crate) use records::OperatorDraft;
pub use records::OperatorRecordError;
pub(crate) use super_nodes::SuperNodeRow;
pub(crate) use thread::{LedgerHandle, LedgerThread, MAX_CHANGES};
pub(crate) use tokens::{MAX_TOKEN_LIFE, MAX_TOKEN_USES, NewToken, TokenError, TokenRow};
pub(crate) use upkeep::Upkeep;

/// Why the ledger could not do something, although what was asked for is right.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite failed: the disk is full or broken, or the file is no ledger.
    #[error("the ledger: {0}")]
    Database(#[from] rusqlite::Error),
    /// The ledger was made by a newer version of the program.
    #[error("the ledger has version {0}, which is newer than this program; install the version that made it")]
    Newer(i64),
    /// A row does not hold what it should.
    #[error("the ledger is damaged: {0}")]
    Damaged(&'static str),
    /// A kept record cannot be read.
    #[error("the ledger is damaged: a record is {0}")]
    Record(#[from] RecordError),
    /// A kept body cannot be read.
    #[error("the ledger is damaged: a body is {0}")]
    Body(#[from] Malformed),
    /// A record could not be made.
    #[error("a record cannot be made: {0}")]
    Draft(#[from] DraftError),
    /// A key is not usable.
    #[error("a key is not usable: {0}")]
    Crypto(#[from] CryptoError),
    /// Too many actions wait, or the ledger's thread has ended.
    #[error("the ledger does not take any more just now")]
    Busy,
}

/// What signs records: everything about this operator that does not change while it runs.
#[derive(Clone)]
pub(crate) struct Signer {
    pub(crate) network: NetworkId,
    pub(crate) id: NodeId,
    pub(crate) identity: IdentityKey,
    /// Present only while the root key file is.
    pub(crate) root: Option<IdentityKey>,
}

impl Signer {
    pub(crate) fn new(network: NetworkId, identity: IdentityKey, root: Option<IdentityKey>) -> Self {
        Self { network, id: identity.node_id(Domain::OPERATORS), identity, root }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a transaction has committed: domains that are new or have a new epoch, then the new records, then the
/// super-nodes that are kept away from now on, or no longer, then the spies.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) facts: Vec<DomainFacts>,
    pub(crate) records: Vec<Record>,
    pub(crate) quarantine: Vec<(NodeId, bool)>,
    /// New spies.
    pub(crate) spies: Vec<SpyIdentity>,
}

impl Change {
    pub(crate) const fn is_empty(&self) -> bool {
        self.facts.is_empty()
            && self.records.is_empty()
            && self.quarantine.is_empty()
            && self.spies.is_empty()
    }
}

/// The ledger, owned by one thread.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: Connection,
    signer: Signer,
}

impl Ledger {
    /// Opens the ledger in a file that exists; an empty one becomes a new ledger.
    pub(crate) fn open(path: &Path, signer: Signer) -> Result<Self, LedgerError> {
        Ok(Self { connection: schema::open(path)?, signer })
    }

    /// Runs an action as one transaction: all of it is committed, or none of it if it returns an error.
    pub(crate) fn act<T, E: From<LedgerError>>(
        &mut self,
        now: UnixTime,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<(T, Change), E> {
        let mut tx = Tx::begin(&mut self.connection, &self.signer, now)?;
        let value = action(&mut tx)?;
        Ok((value, tx.commit()?))
    }
}

/// One action while it runs. Dropped without [`commit`](Self::commit) it has done nothing.
pub(crate) struct Tx<'l> {
    sql: Transaction<'l>,
    signer: &'l Signer,
    now: UnixTime,
    /// The version of the records that this transaction makes.
    version: u64,
    /// The highest version before, and so far.
    last: u64,
    newest: u64,
    change: Change,
}

impl<'l> Tx<'l> {
    fn begin(connection: &'l mut Connection, signer: &'l Signer, now: UnixTime) -> Result<Self, LedgerError> {
        let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let last: Option<i64> = sql
            .query_row("SELECT value FROM meta WHERE name = 'last_version'", [], |row| row.get(0))
            .optional()?;
        let last = last.map_or(Ok(0), unsigned)?;
        let version = now.as_millis().max(last.saturating_add(1));
        Ok(Self { sql, signer, now, version, last, newest: last, change: Change::default() })
    }

    fn commit(self) -> Result<Change, LedgerError> {
        // A transaction that only reads must not make the disk write.
        if self.newest > self.last {
            self.sql
                .execute("INSERT OR REPLACE INTO meta VALUES ('last_version', ?1)", [signed(self.newest)])?;
        }
        self.sql.commit()?;
        Ok(self.change)
    }

    /// The time at which the action happens.
    pub(crate) const fn now(&self) -> UnixTime {
        self.now
    }

    /// Reads a setting that `init` has written.
    pub(crate) fn meta(&self, name: &str) -> Result<Option<String>, LedgerError> {
        let read = self.sql.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0));
        Ok(read.optional()?)
    }

    /// Writes a setting.
    pub(crate) fn set_meta(&mut self, name: &str, value: &str) -> Result<(), LedgerError> {
        self.sql.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![name, value])?;
        Ok(())
    }
}

/// The random generator of the operating system, of which everything secret here is made.
pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// Draws random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    use rand_core::Rng as _;
    let mut bytes = [0; N];
    rng().fill_bytes(&mut bytes);
    bytes
}

static CRYPTO: Real = Real;

/// SQLite's integers are signed; every number kept here is far below their middle.
const fn signed(n: u64) -> i64 {
    if n > i64::MAX as u64 { i64::MAX } else { n.cast_signed() }
}

fn unsigned(n: i64) -> Result<u64, LedgerError> {
    u64::try_from(n).map_err(|_| LedgerError::Damaged("a number is negative"))
}

/// A time as SQLite keeps it.
const fn millis(time: UnixTime) -> i64 {
    signed(time.as_millis())
}

/// A time as it was kept; one before 1970 can only be damage and counts as the beginning.
fn time(millis: i64) -> UnixTime {
    UnixTime::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A count as SQLite gives it.
fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

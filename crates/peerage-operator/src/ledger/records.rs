//! Making, keeping and reading records.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::cbor::MapWriter;
use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::keys::{DomainKeys, IdentityKey};
use peerage_wire::record::{Draft, Header, OperatorBody, OperatorState, Record, Table, UnverifiedRecord};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, params};

use super::{CRYPTO, LedgerError, Tx, millis, random, signed};

/// Most OperatorNode records that an admission carries: those of one network fit into one list.
const MAX_OPERATORS: u32 = 16;

/// A record about to be made by this operator.
#[derive(Debug)]
pub(super) struct NewRecord {
    pub(super) table: Table,
    pub(super) domain: Domain,
    pub(super) key: RecordKey,
    /// `None` for as long as the table allows.
    pub(super) expires: Option<UnixTime>,
    pub(super) removed: bool,
    pub(super) public: MapWriter,
    pub(super) private: Option<(DomainKeys, MapWriter)>,
}

impl NewRecord {
    pub(super) fn new(table: Table, domain: Domain, key: RecordKey, public: MapWriter) -> Self {
        Self { table, domain, key, expires: None, removed: false, public, private: None }
    }
}

/// What the OperatorNode record says that the keys do not.
#[derive(Clone, Debug)]
pub(crate) struct OperatorDraft {
    /// The X25519 key to which enrolments are sealed.
    pub(crate) enrolment: [u8; 32],
    /// Where the operator is reached.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Why there is no OperatorNode record.
#[derive(Debug, thiserror::Error)]
pub enum OperatorRecordError {
    /// Only the root signs it.
    #[error("the root key is not here")]
    NoRoot,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Tx<'_> {
    /// Makes, signs and keeps a record, in place of the one with the same id.
    pub(super) fn make(&mut self, new: NewRecord) -> Result<Record, LedgerError> {
        let header = self.header(&new)?;
        let mut draft = Draft { header, public: new.public, private: None };
        if let Some((keys, body)) = new.private {
            draft = draft.with_private(&keys, random(), body);
        }
        let signer = self.signer;
        self.keep(draft.sign(&signer.identity, &signer.network, &CRYPTO)?)
    }

    fn header(&self, new: &NewRecord) -> Result<Header, LedgerError> {
        let before = self.record(new.table, new.domain, new.key)?.map_or(0, |record| record.header().version);
        let version = self.version.max(before.saturating_add(1));
        let longest = UnixTime::from_millis(version).after(new.table.max_life());
        let expires = new.expires.map_or(longest, |expires| expires.min(longest));
        Ok(Header {
            table: new.table,
            domain: new.domain,
            key: new.key,
            version,
            expires,
            signer: self.signer.id,
            removed: new.removed,
        })
    }

    fn keep(&mut self, record: Record) -> Result<Record, LedgerError> {
        let header = record.header();
        self.newest = self.newest.max(header.version);
        let mut insert =
            self.sql.prepare_cached("INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
        insert.execute(params![
            header.table.number(),
            header.domain.0,
            header.key.0,
            signed(header.version),
            millis(header.expires),
            header.removed,
            record.bytes().as_ref(),
        ])?;
        drop(insert);
        self.change.records.push(record.clone());
        Ok(record)
    }

    /// Replaces a record by a tombstone that lives until the record would have ended: a higher
    /// version wins, so nobody who still has the record can bring it back.
    pub(super) fn bury(&mut self, table: Table, domain: Domain, key: RecordKey) -> Result<(), LedgerError> {
        let Some(record) = self.record(table, domain, key)? else { return Ok(()) };
        let expires = record.header().expires;
        if record.header().removed || expires <= self.now {
            return Ok(());
        }
        let tomb = NewRecord::new(table, domain, key, MapWriter::new());
        self.make(NewRecord { expires: Some(expires), removed: true, ..tomb })?;
        Ok(())
    }

    /// Returns the newest record of an id, which may have expired or be a tombstone.
    pub(super) fn record(
        &self,
        table: Table,
        domain: Domain,
        key: RecordKey,
    ) -> Result<Option<Record>, LedgerError> {
        let mut select = self
            .sql
            .prepare_cached("SELECT bytes FROM record WHERE kind = ?1 AND domain = ?2 AND key = ?3")?;
        let bytes: Option<Vec<u8>> =
            select.query_row(params![table.number(), domain.0, key.0], |row| row.get(0)).optional()?;
        bytes.map(own).transpose()
    }

    /// Returns every record that has not expired, tombstones included: what the state machine starts with.
    pub(crate) fn records(&self) -> Result<Vec<Record>, LedgerError> {
        let mut select = self.sql.prepare("SELECT bytes FROM record WHERE expires_at > ?1")?;
        let rows = select.query_map([millis(self.now)], |row| row.get::<_, Vec<u8>>(0))?;
        rows.map(|row| own(row?)).collect()
    }

    /// Returns the keys of up to `most` records that are no tombstones, not expired and `age` old, oldest first.
    pub(super) fn aged(
        &self,
        table: Table,
        age: Duration,
        most: u32,
    ) -> Result<Vec<(Domain, RecordKey)>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT domain, key FROM record
             WHERE kind = ?1 AND removed = 0 AND version <= ?2 AND expires_at > ?3 ORDER BY version LIMIT ?4",
        )?;
        let bounds = params![table.number(), millis(self.now.before(age)), millis(self.now), most];
        let rows = select.query_map(bounds, |row| Ok((Domain(row.get(0)?), RecordKey(row.get(1)?))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the OperatorNode records that have not expired.
    pub(crate) fn operators(&self) -> Result<Vec<Bytes>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT bytes FROM record WHERE kind = ?1 AND removed = 0 AND expires_at > ?2 ORDER BY key LIMIT ?3",
        )?;
        let limits = params![Table::OperatorNode.number(), millis(self.now), MAX_OPERATORS];
        let rows = select.query_map(limits, |row| row.get::<_, Vec<u8>>(0))?;
        rows.map(|row| Ok(Bytes::from(row?))).collect()
    }

    /// Returns this operator's own record, if it has not expired.
    pub(crate) fn own_operator_record(&self) -> Result<Option<Record>, LedgerError> {
        let record = self.record(Table::OperatorNode, Domain::OPERATORS, self.signer.id.record_key())?;
        Ok(record.filter(|record| record.is_valid_at(self.now)))
    }

    /// Makes this operator's own record, which the root signs.
    pub(crate) fn make_operator_record(
        &mut self,
        draft: &OperatorDraft,
    ) -> Result<Record, OperatorRecordError> {
        let signer = self.signer;
        let root = signer.root.as_ref().ok_or(OperatorRecordError::NoRoot)?;
        let body = OperatorBody {
            identity: signer.identity.public(),
            enrolment: draft.enrolment,
            addresses: draft.addresses.clone(),
            state: OperatorState::Active,
        };
        Ok(self.make_by_root(root, body.write())?)
    }

    fn make_by_root(&mut self, root: &IdentityKey, public: MapWriter) -> Result<Record, LedgerError> {
        let key = self.signer.id.record_key();
        let new = NewRecord::new(Table::OperatorNode, Domain::OPERATORS, key, public);
        let mut header = self.header(&new)?;
        header.signer = root.node_id(Domain::OPERATORS);
        let draft = Draft { header, public: new.public, private: None };
        let record = draft.sign(root, &self.signer.network, &CRYPTO).map_err(LedgerError::from)?;
        self.keep(record)
    }

    /// Deletes records that have ended: nobody takes them any more.
    pub(super) fn forget_ended_records(&mut self) -> Result<(), LedgerError> {
        self.sql.execute("DELETE FROM record WHERE expires_at <= ?1", [millis(self.now)])?;
        Ok(())
    }
}

fn own(bytes: Vec<u8>) -> Result<Record, LedgerError> {
    Ok(UnverifiedRecord::parse(&bytes.into())?.trust_own_store())
}

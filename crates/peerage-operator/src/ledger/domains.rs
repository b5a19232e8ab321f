//! Domains and their keys.

use std::fmt;

use peerage_proto::operator::DomainFacts;
use peerage_wire::id::Domain;
use peerage_wire::keys::{DomainKeys, SecretKey};
use peerage_wire::record::{RevocationBody, RevocationKind, Table};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, Row, params};

use super::records::NewRecord;
use super::{Actor, LedgerError, Reason, Tx, count, millis, random, rng, time};

/// Most domains of one operator. Each costs the state machine one Head every 20 seconds; this many are still under a
/// tenth of one core.
const MAX_DOMAINS: u64 = 10_000;

/// How often to draw a number before giving up; with [`MAX_DOMAINS`] of 2^32 numbers taken, twice is rare.
const MAX_DRAWS: usize = 16;

/// A domain as it is kept, with what can be counted about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainRow {
    pub(crate) id: Domain,
    pub(crate) name: String,
    pub(crate) created_at: UnixTime,
    pub(crate) revoked_at: Option<UnixTime>,
    /// Whether its machines are those of the network's vendor.
    pub(crate) vendor: bool,
    pub(crate) epoch: u32,
    /// Members whose records are valid, without spies.
    pub(crate) nodes: u64,
    pub(crate) devices: u64,
}

/// Asks for a domain.
#[derive(Clone, Debug)]
pub(crate) struct NewDomain {
    pub(crate) name: String,
    /// After how many hours without an operator its members stop opening tunnels.
    pub(crate) offline_hours: Option<u16>,
    /// Whether its machines are those of the network's vendor.
    pub(crate) vendor: bool,
}

/// Why something about a domain cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DomainError {
    /// There is none of this name or number.
    #[error("there is no domain {0:?}")]
    Unknown(String),
    /// The name is in use.
    #[error("there is already a domain of this name")]
    NameTaken,
    /// There are as many as there may be.
    #[error("there are already {MAX_DOMAINS} domains")]
    TooMany,
    /// It is excluded for good.
    #[error("the domain {0:?} was revoked")]
    Revoked(String),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<rusqlite::Error> for DomainError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

const SELECT: &str = "SELECT d.id, d.name, d.created_at, d.revoked_at,
    (SELECT max(number) FROM epoch e WHERE e.domain = d.id),
    (SELECT count(*) FROM node n WHERE n.domain = d.id AND n.state = 1 AND n.expires_at > ?1
        AND NOT EXISTS (SELECT 1 FROM spy s WHERE s.domain = n.domain AND s.hash = n.hash)),
    (SELECT count(*) FROM device v WHERE v.domain = d.id AND v.removed_at IS NULL),
    d.vendor
    FROM domain d";

fn row(row: &Row<'_>) -> rusqlite::Result<DomainRow> {
    Ok(DomainRow {
        id: Domain(row.get(0)?),
        name: row.get(1)?,
        created_at: time(row.get(2)?),
        revoked_at: row.get::<_, Option<i64>>(3)?.map(time),
        epoch: row.get(4)?,
        nodes: count(row.get(5)?),
        devices: count(row.get(6)?),
        vendor: row.get(7)?,
    })
}

impl Tx<'_> {
    /// Makes a domain with its location key and first epoch.
    pub(crate) fn add_domain(&mut self, new: &NewDomain, actor: Actor) -> Result<DomainRow, DomainError> {
        let taken: bool =
            self.sql.query_row("SELECT EXISTS (SELECT 1 FROM domain WHERE name = ?1)", [&new.name], |r| {
                r.get(0)
            })?;
        if taken {
            return Err(DomainError::NameTaken);
        }
        if count(self.sql.query_row("SELECT count(*) FROM domain", [], |r| r.get(0))?) >= MAX_DOMAINS {
            return Err(DomainError::TooMany);
        }
        let id = self.free_number()?;
        let location_key = SecretKey::generate(&mut rng());
        self.sql.execute(
            "INSERT INTO domain (id, name, created_at, location_key, offline_hours, vendor)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id.0, new.name, millis(self.now), location_key.0, new.offline_hours, new.vendor],
        )?;
        self.begin_epoch(id)?;
        self.audit(actor, "domain add", &format!("{} {id}", new.name))?;
        self.domain(id)
    }

    fn free_number(&self) -> Result<Domain, DomainError> {
        for _ in 0..MAX_DRAWS {
            let number = u32::from_be_bytes(random());
            let exists = "SELECT EXISTS (SELECT 1 FROM domain WHERE id = ?1)";
            let taken: bool = self.sql.query_row(exists, [number], |row| row.get(0))?;
            if number != Domain::OPERATORS.0 && !taken {
                return Ok(Domain(number));
            }
        }
        Err(DomainError::TooMany)
    }

    /// Returns all domains by name.
    pub(crate) fn domains(&self) -> Result<Vec<DomainRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} ORDER BY d.name"))?;
        let rows = select.query_map([millis(self.now)], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns one domain.
    pub(crate) fn domain(&self, id: Domain) -> Result<DomainRow, DomainError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} WHERE d.id = ?2"))?;
        let found = select.query_row(params![millis(self.now), id.0], row).optional()?;
        found.ok_or_else(|| DomainError::Unknown(id.0.to_string()))
    }

    /// Returns the domain of a name, or of a number in decimal digits.
    pub(crate) fn find_domain(&self, text: &str) -> Result<DomainRow, DomainError> {
        let mut select = self
            .sql
            .prepare_cached(&format!("{SELECT} WHERE d.name = ?2 OR d.id = ?3 ORDER BY d.name <> ?2"))?;
        // No domain has the number 0.
        let number: u32 = text.parse().unwrap_or(0);
        let found = select.query_row(params![millis(self.now), text, number], row).optional()?;
        found.ok_or_else(|| DomainError::Unknown(text.to_owned()))
    }

    /// Returns the domain of a name or number that may still grow.
    pub(crate) fn find_open_domain(&self, text: &str) -> Result<DomainRow, DomainError> {
        let row = self.find_domain(text)?;
        if row.revoked_at.is_some() { Err(DomainError::Revoked(row.name)) } else { Ok(row) }
    }

    /// Excludes a whole domain for good: its tokens are closed, its super-nodes hold nothing any more, and nobody
    /// answers its members.
    pub(crate) fn revoke_domain(
        &mut self,
        text: &str,
        reason: Reason,
        actor: Actor,
    ) -> Result<DomainRow, DomainError> {
        let row = self.find_domain(text)?;
        if row.revoked_at.is_some() {
            return Ok(row);
        }
        let now = millis(self.now);
        self.sql.execute("UPDATE domain SET revoked_at = ?2 WHERE id = ?1", params![row.id.0, now])?;
        self.sql.execute(
            "UPDATE token SET closed_at = ?2 WHERE domain = ?1 AND closed_at IS NULL",
            params![row.id.0, now],
        )?;
        self.bury_super_nodes_of(row.id)?;
        // It lives as long as the last of what it revokes.
        let last = "SELECT max(expires_at) FROM record WHERE domain = ?1 AND expires_at > ?2";
        let end: Option<i64> = self.sql.query_row(last, params![row.id.0, now], |r| r.get(0))?;
        if let Some(end) = end {
            let kind = RevocationKind::Domain(row.id);
            let body = RevocationBody { kind, at: self.now, reason: reason.number() };
            let new = NewRecord::new(Table::Revocation, row.id, body.record_key(), body.write());
            self.make(NewRecord { expires: Some(time(end)), ..new })?;
        }
        self.audit(actor, "domain revoke", &row.to_string())?;
        self.domain(row.id)
    }

    /// Returns what the Heads of all domains say besides their records.
    pub(crate) fn facts(&self) -> Result<Vec<DomainFacts>, LedgerError> {
        let mut select = self.sql.prepare(
            "SELECT id, offline_hours, (SELECT max(number) FROM epoch WHERE domain = id), vendor FROM domain ORDER BY id",
        )?;
        let rows = select.query_map([], |row| {
            Ok(DomainFacts {
                domain: Domain(row.get(0)?),
                offline_hours: row.get(1)?,
                epoch: row.get(2)?,
                vendor: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns a domain's keys.
    pub(super) fn domain_keys(&self, domain: Domain) -> Result<DomainKeys, LedgerError> {
        let mut select = self.sql.prepare_cached("SELECT location_key FROM domain WHERE id = ?1")?;
        let location_key = SecretKey(select.query_row([domain.0], |row| row.get(0))?);
        let mut select = self
            .sql
            .prepare_cached("SELECT number, key FROM epoch WHERE domain = ?1 ORDER BY number DESC LIMIT 2")?;
        let mut epochs = select
            .query_map([domain.0], |row| Ok((row.get::<_, u32>(0)?, SecretKey(row.get(1)?))))?
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let (epoch, epoch_key) = epochs.next().ok_or(LedgerError::Damaged("a domain has no epoch"))?;
        Ok(DomainKeys { epoch, epoch_key, previous: epochs.next().map(|(_, key)| key), location_key })
    }

    /// Draws a new epoch key; keys older than the one before are forgotten.
    pub(super) fn begin_epoch(&mut self, domain: Domain) -> Result<(), LedgerError> {
        let last: Option<u32> =
            self.sql
                .query_row("SELECT max(number) FROM epoch WHERE domain = ?1", [domain.0], |row| row.get(0))?;
        let number = last.unwrap_or(0).checked_add(1).ok_or(LedgerError::Damaged("epochs are used up"))?;
        let key = SecretKey::generate(&mut rng());
        self.sql.execute(
            "INSERT INTO epoch VALUES (?1, ?2, ?3, ?4)",
            params![domain.0, number, key.0, millis(self.now)],
        )?;
        let oldest = number.saturating_sub(1);
        self.sql.execute("DELETE FROM epoch WHERE domain = ?1 AND number < ?2", [domain.0, oldest])?;
        let (offline_hours, vendor) = self.sql.query_row(
            "SELECT offline_hours, vendor FROM domain WHERE id = ?1",
            [domain.0],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        self.change.facts.retain(|facts| facts.domain != domain);
        self.change.facts.push(DomainFacts { domain, epoch: number, offline_hours, vendor });
        Ok(())
    }

    /// Begins a new epoch, and seals the domain's keys to its members and its devices anew.
    pub(super) fn reseal(&mut self, domain: Domain) -> Result<(), LedgerError> {
        self.begin_epoch(domain)?;
        let keys = self.domain_keys(domain)?;
        for (node, receiving) in self.members(domain)? {
            self.give_keys(&keys, node, &receiving)?;
        }
        for device in self.device_ids(domain)? {
            self.publish_device(&keys, domain, &device)?;
        }
        Ok(())
    }
}

impl fmt::Display for DomainRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.id)
    }
}

//! Domains and their keys.

use std::fmt;

use peerage_proto::operator::DomainFacts;
use peerage_wire::id::Domain;
use peerage_wire::keys::{DomainKeys, SecretKey};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{Actor, LedgerError, Tx, count, millis, random, rng, time};

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
    pub(crate) epoch: u32,
    /// Members whose records are valid.
    pub(crate) nodes: u64,
    pub(crate) devices: u64,
}

/// Asks for a domain.
#[derive(Clone, Debug)]
pub(crate) struct NewDomain {
    pub(crate) name: String,
    /// After how many hours without an operator its members stop opening tunnels.
    pub(crate) offline_hours: Option<u16>,
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
    (SELECT count(*) FROM node n WHERE n.domain = d.id AND n.state = 1 AND n.expires_at > ?1),
    (SELECT count(*) FROM device v WHERE v.domain = d.id AND v.removed_at IS NULL)
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
            "INSERT INTO domain (id, name, created_at, location_key, offline_hours) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.0, new.name, millis(self.now), location_key.0, new.offline_hours],
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

    /// Returns what the Heads of all domains say besides their records.
    pub(crate) fn facts(&self) -> Result<Vec<DomainFacts>, LedgerError> {
        let mut select = self.sql.prepare(
            "SELECT id, offline_hours, (SELECT max(number) FROM epoch WHERE domain = id) FROM domain ORDER BY id",
        )?;
        let rows = select.query_map([], |row| {
            Ok(DomainFacts { domain: Domain(row.get(0)?), offline_hours: row.get(1)?, epoch: row.get(2)? })
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
        let offline_hours =
            self.sql
                .query_row("SELECT offline_hours FROM domain WHERE id = ?1", [domain.0], |row| row.get(0))?;
        self.change.facts.retain(|facts| facts.domain != domain);
        self.change.facts.push(DomainFacts { domain, epoch: number, offline_hours });
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

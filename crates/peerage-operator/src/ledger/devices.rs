//! Registered devices.

use peerage_wire::cbor::Map;
use peerage_wire::codec::Service;
use peerage_wire::id::{DeviceId, Domain, Mac, NodeId, RecordKey};
use peerage_wire::keys::DomainKeys;
use peerage_wire::limits::{MAX_LIST, MAX_NAME, MAX_PINS, MAX_PRIVATE_BODY, MAX_SERVICES};
use peerage_wire::record::{EndDevice, LocalPolicy, Record, Table};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, Row, params};

use super::records::NewRecord;
use super::{Actor, LedgerError, Tx, count, millis, time};

/// Most devices of one domain, which is what the thesis asks for.
const MAX_DOMAIN_DEVICES: u64 = 10_000;

/// Longest kind of a device, in bytes.
const MAX_KIND: usize = 32;

/// A device as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRow {
    pub(crate) body: EndDevice,
    pub(crate) created_at: UnixTime,
    pub(crate) removed: bool,
    /// The version of its newest record.
    pub(crate) version: u64,
    pub(crate) expires_at: UnixTime,
}

/// Asks for a device.
#[derive(Clone, Debug)]
pub(crate) struct NewDevice {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) mac: Mac,
    /// A text that names a node.
    pub(crate) via: Option<String>,
    pub(crate) services: Vec<Service>,
    pub(crate) pins: Vec<[u8; 32]>,
    /// Texts that name nodes; `None` for every member.
    pub(crate) users: Option<Vec<String>>,
}

/// Why something about a device cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// The domain has none of this name or id.
    #[error("the domain has no device {0:?}; `peerage device list` shows them")]
    Unknown(String),
    /// The name is in use.
    #[error("the domain already has a device of this name")]
    NameTaken,
    /// The address is in use.
    #[error("the domain already has a device with this MAC address")]
    MacTaken,
    /// There are as many as there may be.
    #[error("the domain already has {MAX_DOMAIN_DEVICES} devices")]
    TooMany,
    /// The list of services is not usable.
    #[error(
        "a device has 1 to {MAX_SERVICES} services, each with a name of its own and a port that is not 0"
    )]
    Services,
    /// Too many pins.
    #[error("a device has at most {MAX_PINS} certificate pins, each only once")]
    Pins,
    /// The list of users is not usable.
    #[error("between 1 and {MAX_LIST} nodes can be allowed; without any, every node of the domain is")]
    Users,
    /// The text is too long.
    #[error("the kind of a device has at most {MAX_KIND} bytes")]
    Kind,
    /// All of it together is too much.
    #[error("all that is said of the device does not fit into one record; name fewer services or nodes")]
    TooLong,
    /// A node that was named is not there.
    #[error(transparent)]
    Node(#[from] super::NodeError),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<rusqlite::Error> for DeviceError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

const SELECT: &str = "SELECT v.body, v.created_at, v.removed_at IS NOT NULL, r.version, r.expires_at
    FROM device v LEFT JOIN record r ON r.kind = 5 AND r.domain = v.domain AND r.key = v.record_key";

type Raw = (Vec<u8>, i64, bool, Option<i64>, Option<i64>);

fn row(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn device((body, created_at, removed, version, expires_at): Raw) -> Result<DeviceRow, LedgerError> {
    Ok(DeviceRow {
        body: EndDevice::read(Map::parse(&body)?)?,
        created_at: time(created_at),
        removed,
        version: count(version.unwrap_or(0)),
        expires_at: time(expires_at.unwrap_or(0)),
    })
}

impl Tx<'_> {
    /// Registers a device.
    pub(crate) fn add_device(
        &mut self,
        domain: Domain,
        new: NewDevice,
        actor: Actor,
    ) -> Result<DeviceRow, DeviceError> {
        check(&new)?;
        self.check_free(domain, &new)?;
        let via = new.via.map(|text| self.find_node(domain, &text)).transpose()?.map(|node| node.id);
        let users = self.find_users(domain, new.users)?;
        let body = EndDevice {
            device: DeviceId::new(new.mac, new.pins.first()),
            name: new.name,
            kind: new.kind,
            mac: new.mac,
            pins: new.pins,
            services: new.services,
            site: Vec::new(),
            via,
            users,
            servers: Vec::new(),
            local: LocalPolicy::WithProof,
        };
        let keys = self.domain_keys(domain)?;
        self.write_device(&keys, domain, &body)?;
        self.publish_device(&keys, domain, &body.device)?;
        self.audit(actor, "device add", &format!("{domain} {} {}", body.name, body.device))?;
        self.device(domain, &body.device)?.ok_or_else(|| DeviceError::Unknown(body.name))
    }

    fn check_free(&self, domain: Domain, new: &NewDevice) -> Result<(), DeviceError> {
        let taken = |column: &str, value: &dyn rusqlite::ToSql| -> Result<bool, DeviceError> {
            let sql = format!(
                "SELECT EXISTS (SELECT 1 FROM device WHERE domain = ?1 AND {column} = ?2 AND removed_at IS NULL)"
            );
            Ok(self.sql.query_row(&sql, params![domain.0, value], |row| row.get(0))?)
        };
        if taken("name", &new.name)? {
            return Err(DeviceError::NameTaken);
        }
        if taken("mac", &new.mac.0)? {
            return Err(DeviceError::MacTaken);
        }
        let sql = "SELECT count(*) FROM device WHERE domain = ?1 AND removed_at IS NULL";
        let devices = count(self.sql.query_row(sql, [domain.0], |row| row.get(0))?);
        if devices >= MAX_DOMAIN_DEVICES { Err(DeviceError::TooMany) } else { Ok(()) }
    }

    fn find_users(&self, domain: Domain, users: Option<Vec<String>>) -> Result<Vec<NodeId>, DeviceError> {
        let mut ids = Vec::new();
        for text in users.unwrap_or_default() {
            let id = self.find_node(domain, &text)?.id;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    pub(super) fn write_device(
        &mut self,
        keys: &DomainKeys,
        domain: Domain,
        body: &EndDevice,
    ) -> Result<(), DeviceError> {
        let bytes = body.write().finish();
        if bytes.len() > MAX_PRIVATE_BODY {
            return Err(DeviceError::TooLong);
        }
        // A device that was removed and comes back has the same id, and so the same row.
        self.sql.execute(
            "INSERT INTO device (domain, id, record_key, name, mac, body, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (domain, id) DO UPDATE SET name = ?4, body = ?6, removed_at = NULL,
                 created_at = iif(removed_at IS NULL, created_at, ?7)",
            params![
                domain.0,
                body.device.0,
                keys.device_record_key(&body.device).0,
                body.name,
                body.mac.0,
                bytes,
                millis(self.now),
            ],
        )?;
        Ok(())
    }

    /// Signs a device's record, sealed in the newest epoch.
    pub(super) fn publish_device(
        &mut self,
        keys: &DomainKeys,
        domain: Domain,
        id: &DeviceId,
    ) -> Result<Record, LedgerError> {
        let sql = "SELECT body FROM device WHERE domain = ?1 AND id = ?2";
        let bytes: Vec<u8> =
            self.sql.prepare_cached(sql)?.query_row(params![domain.0, id.0], |row| row.get(0))?;
        let body = EndDevice::read(Map::parse(&bytes)?)?;
        let key = keys.device_record_key(id);
        let new = NewRecord::new(Table::EndDevice, domain, key, EndDevice::public());
        self.make(NewRecord { private: Some((keys.clone(), body.write())), ..new })
    }

    /// Returns the devices of a domain by name, without those that were removed.
    pub(crate) fn devices(&self, domain: Domain) -> Result<Vec<DeviceRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!(
            "{SELECT} WHERE v.domain = ?1 AND v.removed_at IS NULL ORDER BY v.name"
        ))?;
        let rows = select.query_map([domain.0], row)?;
        rows.map(|raw| device(raw?)).collect()
    }

    pub(super) fn device_ids(&self, domain: Domain) -> Result<Vec<DeviceId>, LedgerError> {
        let mut select =
            self.sql.prepare_cached("SELECT id FROM device WHERE domain = ?1 AND removed_at IS NULL")?;
        let rows = select.query_map([domain.0], |row| Ok(DeviceId(row.get(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn device(&self, domain: Domain, id: &DeviceId) -> Result<Option<DeviceRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} WHERE v.domain = ?1 AND v.id = ?2"))?;
        select.query_row(params![domain.0, id.0], row).optional()?.map(device).transpose()
    }

    /// Returns the device whose record has this key, unless it was removed.
    pub(super) fn device_of_record(
        &self,
        domain: Domain,
        key: RecordKey,
    ) -> Result<Option<DeviceRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!(
            "{SELECT} WHERE v.domain = ?1 AND v.record_key = ?2 AND v.removed_at IS NULL"
        ))?;
        select.query_row(params![domain.0, key.0], row).optional()?.map(device).transpose()
    }

    /// Returns the device that a name or id names.
    pub(crate) fn find_device(&self, domain: Domain, text: &str) -> Result<DeviceRow, DeviceError> {
        let id = text.to_ascii_lowercase().parse().unwrap_or(DeviceId([0; 32]));
        let mut select = self.sql.prepare_cached(&format!(
            "{SELECT} WHERE v.domain = ?1 AND (v.name = ?2 OR v.id = ?3) AND v.removed_at IS NULL"
        ))?;
        let raw = select.query_row(params![domain.0, text, id.0], row).optional()?;
        raw.map(device).transpose()?.ok_or_else(|| DeviceError::Unknown(text.to_owned()))
    }

    /// Removes a device: its record becomes a tombstone.
    pub(crate) fn remove_device(
        &mut self,
        domain: Domain,
        text: &str,
        actor: Actor,
    ) -> Result<DeviceRow, DeviceError> {
        let found = self.find_device(domain, text)?;
        let id = found.body.device;
        self.sql.execute(
            "UPDATE device SET removed_at = ?3 WHERE domain = ?1 AND id = ?2",
            params![domain.0, id.0, millis(self.now)],
        )?;
        self.sql
            .execute("DELETE FROM sighting WHERE domain = ?1 AND device = ?2", params![domain.0, id.0])?;
        let key = self.domain_keys(domain)?.device_record_key(&id);
        self.bury(Table::EndDevice, domain, key)?;
        self.audit(actor, "device remove", &format!("{domain} {} {id}", found.body.name))?;
        self.device(domain, &id)?.ok_or_else(|| DeviceError::Unknown(text.to_owned()))
    }

    /// Notes that an administrator has devices offered again.
    pub(crate) fn note_push(
        &mut self,
        domain: Domain,
        device: Option<&str>,
        actor: Actor,
    ) -> Result<(), LedgerError> {
        self.audit(actor, "device push", &format!("{domain} {}", device.unwrap_or("all")))
    }
}

fn check(new: &NewDevice) -> Result<(), DeviceError> {
    let services = &new.services;
    let distinct = |at: usize, name: &str| services.iter().skip(at + 1).all(|other| other.name != name);
    let named = |name: &str| !name.is_empty() && name.len() <= MAX_NAME;
    let fine =
        services.iter().enumerate().all(|(at, s)| s.port != 0 && named(&s.name) && distinct(at, &s.name));
    if services.is_empty() || services.len() > MAX_SERVICES || !fine {
        return Err(DeviceError::Services);
    }
    let pins = &new.pins;
    if pins.len() > MAX_PINS
        || pins.iter().enumerate().any(|(at, pin)| pins.iter().skip(at + 1).any(|p| p == pin))
    {
        return Err(DeviceError::Pins);
    }
    if new.users.as_ref().is_some_and(|users| users.is_empty() || users.len() > MAX_LIST) {
        return Err(DeviceError::Users);
    }
    if new.kind.len() > MAX_KIND { Err(DeviceError::Kind) } else { Ok(()) }
}

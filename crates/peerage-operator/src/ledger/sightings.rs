//! Where devices are: what members report, and which of it is believed.

use peerage_wire::id::{DeviceId, Domain, LocationId, NodeId, RecordKey};
use peerage_wire::limits::MAX_SITE_LOCATIONS;
use peerage_wire::record::EndDevice;
use rusqlite::params;

use super::{Actor, DeviceError, LedgerError, Tx, millis};

impl Tx<'_> {
    /// Takes a member's report that it sees a device at a location. Returns whether the location belongs to the
    /// device's site now.
    ///
    /// Whoever can add a location can have users sent there, so a report is believed only
    /// - from the node that the administrator named for the device;
    /// - or, if none was named, from the first member that may serve it;
    /// - or from a member whose own earlier report made the site: its router was replaced;
    /// - or, once none of those who made the site is a member any more, from any that may serve it.
    ///
    /// What is full is not cleared by reports: an administrator has to.
    pub(crate) fn device_seen(
        &mut self,
        node: NodeId,
        key: RecordKey,
        location: LocationId,
    ) -> Result<bool, LedgerError> {
        let Some(found) = self.device_of_record(node.domain, key)? else { return Ok(false) };
        let mut body = found.body;
        let may_serve = body.servers.is_empty() || body.servers.contains(&node);
        let permitted = |row: &super::NodeRow| row.roles.tunnel && row.is_valid_at(self.now);
        if !may_serve || !self.node(node)?.as_ref().is_some_and(permitted) {
            return Ok(false);
        }
        if body.site.contains(&location) {
            return Ok(true);
        }
        // Without the location, which the reporter could vary at will.
        let subject = format!("{} {}", node.domain, body.device);
        let believed = body.site.len() < MAX_SITE_LOCATIONS && self.is_believed(node, &body)?;
        if !believed {
            self.audit_once_a_day(Actor::Node(node), "device seen elsewhere", &subject)?;
            return Ok(false);
        }
        body.site.push(location);
        self.note_sighting(node, &body.device, location)?;
        let keys = self.domain_keys(node.domain)?;
        match self.write_device(&keys, node.domain, &body) {
            Ok(()) => {}
            Err(DeviceError::Ledger(error)) => return Err(error),
            // With one more location the body would be too long for a record.
            Err(_) => {
                self.audit_once_a_day(Actor::Node(node), "device seen elsewhere", &subject)?;
                return Ok(false);
            }
        }
        self.publish_device(&keys, node.domain, &body.device)?;
        self.audit(Actor::Node(node), "device seen", &format!("{subject} {location}"))?;
        Ok(true)
    }

    fn is_believed(&self, node: NodeId, device: &EndDevice) -> Result<bool, LedgerError> {
        if device.via == Some(node) {
            return Ok(true);
        }
        if device.site.is_empty() {
            return Ok(device.via.is_none());
        }
        let reporters = self.reporters(node.domain, &device.device)?;
        if reporters.contains(&node) {
            return Ok(true);
        }
        for reporter in reporters.into_iter().chain(device.via) {
            if self.node(reporter)?.is_some_and(|row| row.is_valid_at(self.now)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn reporters(&self, domain: Domain, device: &DeviceId) -> Result<Vec<NodeId>, LedgerError> {
        let sql = "SELECT DISTINCT node FROM sighting WHERE domain = ?1 AND device = ?2";
        let mut select = self.sql.prepare_cached(sql)?;
        let rows =
            select.query_map(params![domain.0, device.0], |row| Ok(NodeId { domain, hash: row.get(0)? }))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn note_sighting(&mut self, node: NodeId, device: &DeviceId, at: LocationId) -> Result<(), LedgerError> {
        self.sql.execute(
            "INSERT OR REPLACE INTO sighting VALUES (?1, ?2, ?3, ?4, ?5)",
            params![node.domain.0, device.0, at.0, node.hash, millis(self.now)],
        )?;
        Ok(())
    }
}

//! Devices: what is registered about each, and what was.

use peerage_wire::crypto::CryptoError;
use peerage_wire::id::{DeviceId, Domain, LocationId, NodeId, RecordKey};
use peerage_wire::limits::MAX_SITE_LOCATIONS;
use peerage_wire::record::{DraftError, EndDevice, Record, Table};
use peerage_wire::time::{Instant, Now};

use super::{Ledger, Written};

impl Ledger {
    /// Registers a device, or changes one.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn put_device(&mut self, domain: Domain, device: EndDevice, now: Now) -> Written {
        let record = self.sign_device(domain, &device, now)?;
        if let Some(organisation) = self.organisations.get_mut(&domain) {
            organisation.devices.entry(device.device).or_default().push((now.mono, Some(device)));
        }
        Ok(vec![record])
    }

    pub(super) fn sign_device(
        &mut self,
        domain: Domain,
        device: &EndDevice,
        now: Now,
    ) -> Result<Record, DraftError> {
        let Some(keys) = self.keys(domain).cloned() else { return Err(DraftError::Crypto(CryptoError)) };
        let key = keys.device_record_key(&device.device);
        let (salt, body) = (self.chance.bytes(), device.write());
        self.sign((Table::EndDevice, domain, key), now, |draft| draft.with_private(&keys, salt, body))
    }

    /// Takes a device out.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn remove_device(&mut self, domain: Domain, device: DeviceId, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&domain) else { return Ok(Vec::new()) };
        let Some(states) = organisation.devices.get_mut(&device) else { return Ok(Vec::new()) };
        if states.last().is_none_or(|(_, state)| state.is_none()) {
            return Ok(Vec::new());
        }
        states.push((now.mono, None));
        let key = organisation.keys.device_record_key(&device);
        let tombstone = self.sign((Table::EndDevice, domain, key), now, |mut draft| {
            draft.header.removed = true;
            draft
        })?;
        Ok(vec![tombstone])
    }

    /// A member says where it sees a device: believed of the node that was named to look for it.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn device_seen(
        &mut self,
        node: NodeId,
        key: RecordKey,
        location: LocationId,
        now: Now,
    ) -> Result<(bool, Vec<Record>), DraftError> {
        let Some(organisation) = self.organisations.get(&node.domain) else { return Ok((false, Vec::new())) };
        let current = organisation.devices.values().filter_map(|states| states.last()?.1.as_ref());
        let found = current.into_iter().find(|device| {
            organisation.keys.device_record_key(&device.device) == key && device.via == Some(node)
        });
        let Some(mut device) = found.cloned() else { return Ok((false, Vec::new())) };
        if device.site.contains(&location) {
            return Ok((true, Vec::new()));
        }
        if device.site.len() >= MAX_SITE_LOCATIONS {
            return Ok((false, Vec::new()));
        }
        device.site.push(location);
        Ok((true, self.put_device(node.domain, device, now)?))
    }

    /// Returns the registered devices of a domain.
    pub fn devices(&self, domain: Domain) -> impl Iterator<Item = &EndDevice> {
        let states = self.organisations.get(&domain).into_iter().flat_map(|o| o.devices.values());
        states.filter_map(|states| states.last()?.1.as_ref())
    }

    /// Returns what a device was at any time since `since`, removed states left out.
    pub fn device_since(
        &self,
        domain: Domain,
        device: &DeviceId,
        since: Instant,
    ) -> impl Iterator<Item = &EndDevice> {
        let states = self.organisations.get(&domain).and_then(|o| o.devices.get(device));
        let states = states.map_or(&[][..], Vec::as_slice);
        // The state that held at `since` is the last one that began before.
        let first = states.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        states.iter().skip(first).filter_map(|(_, state)| state.as_ref())
    }
}

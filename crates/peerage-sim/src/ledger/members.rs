//! Organisations and their members: who is admitted, renewed, revoked, or leaves.

use std::collections::BTreeMap;

use peerage_wire::crypto::CryptoError;
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::keys::{DomainKeys, SecretKey};
use peerage_wire::record::{
    DomainKeyBody, Draft, DraftError, NodeBody, Record, RevocationBody, RevocationKind, Roles, Table,
};
use peerage_wire::time::{Instant, Now};

use super::{Ledger, Membership, Organisation, Written};

impl Ledger {
    /// Makes a domain.
    pub fn add_domain(&mut self, domain: Domain) {
        let keys = DomainKeys {
            epoch: 1,
            epoch_key: SecretKey::generate(self.chance.rng()),
            previous: None,
            location_key: SecretKey::generate(self.chance.rng()),
        };
        let (members, devices) = (BTreeMap::new(), BTreeMap::new());
        let organisation =
            Organisation { keys, is_vendor: false, epoch_began: Instant::default(), members, devices };
        self.organisations.insert(domain, organisation);
    }

    /// Admits a member: its Node and DomainKey records.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn admit(&mut self, id: NodeId, identity: [u8; 32], receiving: [u8; 32], now: Now) -> Written {
        let membership = Membership { identity, receiving, revoked_at: None, has_left: false };
        if let Some(organisation) = self.organisations.get_mut(&id.domain) {
            organisation.members.insert(id, membership);
        }
        self.renew(id, now)
    }

    /// Signs a member's records anew; nothing for whom it does not know or has revoked.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn renew(&mut self, id: NodeId, now: Now) -> Written {
        let Some(member) = self.member(&id).filter(|member| member.is_valid()).cloned() else {
            return Ok(Vec::new());
        };
        let roles = Roles { tunnel: true, super_node: true };
        let body = NodeBody { identity: member.identity, receiving: member.receiving, roles };
        let node = self.sign((Table::Node, id.domain, id.record_key()), now, |draft| Draft {
            public: body.write(),
            ..draft
        })?;
        Ok(vec![node, self.domain_key(id, &member, now)?])
    }

    pub(super) fn domain_key(
        &mut self,
        id: NodeId,
        member: &Membership,
        now: Now,
    ) -> Result<Record, DraftError> {
        let Some(keys) = self.keys(id.domain).cloned() else { return Err(DraftError::Crypto(CryptoError)) };
        let to = (&self.network, id, &member.receiving);
        let sealed = DomainKeyBody::seal(&keys, to, self.chance.rng()).map_err(DraftError::Crypto)?;
        self.sign((Table::DomainKey, id.domain, id.record_key()), now, |draft| Draft {
            public: sealed.write(),
            ..draft
        })
    }

    /// Revokes a member: a new epoch for the others, as one transaction (Rule 6.21).
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn revoke(&mut self, id: NodeId, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&id.domain) else { return Ok(Vec::new()) };
        match organisation.members.get_mut(&id) {
            Some(member) if member.is_valid() => member.revoked_at = Some(now.mono),
            Some(_) | None => return Ok(Vec::new()),
        }
        let body = RevocationBody { kind: RevocationKind::Node(id), at: now.unix, reason: 1 };
        let revocation = self.sign((Table::Revocation, id.domain, body.record_key()), now, |draft| {
            Draft { public: body.write(), ..draft }
        })?;
        self.records.remove(&(Table::DomainKey, id.domain, id.record_key()));
        let mut written = vec![revocation];
        written.extend(self.bury_super_node(id, now)?);
        written.extend(self.begin_epoch(id.domain, now)?);
        Ok(written)
    }

    /// Gives a domain new keys, and signs with them what is sealed with the old ones.
    pub(super) fn begin_epoch(&mut self, domain: Domain, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&domain) else { return Ok(Vec::new()) };
        organisation.epoch_began = now.mono;
        self.news.insert(domain);
        organisation.keys = DomainKeys {
            epoch: organisation.keys.epoch.saturating_add(1),
            previous: Some(organisation.keys.epoch_key.clone()),
            epoch_key: SecretKey::generate(self.chance.rng()),
            location_key: organisation.keys.location_key.clone(),
        };
        let remaining = organisation.members.iter().filter(|(_, member)| member.is_valid());
        let remaining: Vec<_> = remaining.map(|(id, member)| (*id, member.clone())).collect();
        let devices: Vec<_> =
            organisation.devices.values().filter_map(|states| states.last()?.1.clone()).collect();
        let mut written = Vec::new();
        for (id, member) in remaining {
            written.push(self.domain_key(id, &member, now)?);
        }
        for device in devices {
            written.push(self.sign_device(domain, &device, now)?);
        }
        Ok(written)
    }

    /// A member has left: its records are buried.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn leave(&mut self, id: NodeId, now: Now) -> Written {
        let member = self.organisations.get_mut(&id.domain).and_then(|o| o.members.get_mut(&id));
        let Some(member) = member.filter(|member| member.is_valid()) else { return Ok(Vec::new()) };
        member.has_left = true;
        let mut written = self.bury_super_node(id, now)?;
        for table in [Table::Node, Table::DomainKey] {
            written.push(self.sign((table, id.domain, id.record_key()), now, |mut draft| {
                draft.header.removed = true;
                draft
            })?);
        }
        Ok(written)
    }
}

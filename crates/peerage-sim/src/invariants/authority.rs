//! No tunnel without a valid member of the same domain, a registered device and service, and the device itself at the address.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{DeviceId, NodeId};

use super::revoked::IN_FORCE_WITHIN;
use super::{Fact, Invariant};
use crate::world::World;

/// See the module.
#[derive(Debug, Default)]
pub struct Authority {}

impl Authority {
    /// Says why a tunnel may not stand.
    fn objection(
        world: &World,
        index: usize,
        (peer, device, service): (NodeId, DeviceId, &str),
        address: SocketAddr,
    ) -> Option<String> {
        let host = world.hosts.get(index)?;
        let domain = host.domain;
        // What a revoked node does is its own affair: those who keep the rules have nothing to do with it.
        world.ledger.member(&host.id).filter(|own| own.revoked_at.is_none())?;
        if peer.domain != domain {
            return Some(format!("{peer:?} is of another domain than {domain:?}"));
        }
        let Some(member) = world.ledger.member(&peer) else {
            return Some(format!("{peer:?} is no member"));
        };
        // What was decided lately may not have come through; without contact to an operator nothing does.
        let known_since = host.in_contact_since.unwrap_or_default();
        let slack = world.now() - known_since.max(member.revoked_at.unwrap_or_default());
        if member.revoked_at.is_some() && host.in_contact_since.is_some() && slack > IN_FORCE_WITHIN {
            return Some(format!("{peer:?} was revoked {slack:?} ago"));
        }
        let back = if host.in_contact_since.is_some() && world.now() - known_since > IN_FORCE_WITHIN {
            IN_FORCE_WITHIN
        } else {
            Duration::MAX
        };
        let micros = u64::try_from(back.as_micros()).unwrap_or(u64::MAX);
        let since = peerage_wire::time::Instant::from_micros(world.now().as_micros().saturating_sub(micros));
        let permits = |registered: &peerage_wire::record::EndDevice| {
            let port = registered.service(service).map(|service| service.port);
            let allowed = registered.users.is_empty() || registered.users.contains(&peer);
            allowed && port == Some(address.port())
        };
        if !world.ledger.device_since(domain, &device, since).any(permits) {
            return Some(format!("{device:?} {service} is not registered for {peer:?}"));
        }
        let is_there = world.devices.iter().any(|there| {
            let same = there.site == host.site && there.registered.device == device;
            same && there.was_lately_at(address.ip(), world.now())
        });
        (!is_there).then(|| format!("{device:?} is not at {address}"))
    }
}

impl Invariant for Authority {
    fn name(&self) -> &'static str {
        "no tunnel without authority"
    }

    fn observe(&mut self, fact: &Fact<'_>, world: &World) -> Option<String> {
        match fact {
            Fact::Served { host, peer, device, service, address } => {
                let what = Self::objection(world, *host, (*peer, *device, service), *address)?;
                Some(format!("computer {host} serves {peer:?}: {what}"))
            }
            Fact::UsedHere { host, device, address } => {
                let own = world.hosts.get(*host)?;
                let is_there = world.devices.iter().any(|there| {
                    let same = there.registered.device == *device && there.domain == own.domain;
                    same && there.site == own.site && there.was_lately_at(address.ip(), world.now())
                });
                (!is_there).then(|| format!("computer {host} is sent to {address}, where {device:?} is not"))
            }
            Fact::Sent { .. }
            | Fact::Deed { .. }
            | Fact::Asked { .. }
            | Fact::Acknowledged { .. }
            | Fact::Started { .. }
            | Fact::Restored { .. } => None,
        }
    }
}

//! Once faults are over, everything comes right within a stated time: whoever may reach a device reaches it, tunnels that nothing
//! excuses are complete, and everybody who serves is in contact.

use std::time::Duration;

use peerage_proto::election::DEFAULT_SEATS;
use peerage_proto::session;

use super::Invariant;
use crate::app::End;
use crate::host::Host;
use crate::ledger::Membership;
use crate::world::World;

/// Within which time after the last fault. A tunnel-node that lost its device looks again every five minutes, a node that stands by asks
/// every five minutes, both up to a fifth later; one after the other they make twelve, and three are for retries.
pub const CONVERGED_WITHIN: Duration = Duration::from_secs(15 * 60);

/// See the module.
#[derive(Debug, Default)]
pub struct Liveness {}

fn is_member(world: &World, host: &Host) -> bool {
    world.ledger.member(&host.id).is_some_and(Membership::is_valid) && !host.has_left
}

/// Returns whether a user should be able to reach a device, all faults being over.
pub fn may_reach(world: &World, user: usize, device: usize) -> bool {
    let (Some(host), Some(device)) = (world.hosts.get(user), world.devices.get(device)) else { return false };
    let registered =
        world.ledger.devices(device.domain).find(|known| known.device == device.registered.device);
    let Some(registered) = registered else { return false };
    let is_permitted = registered.users.is_empty() || registered.users.contains(&host.id);
    let servers: Vec<_> = world
        .hosts
        .iter()
        .enumerate()
        .filter(|(index, other)| {
            let is_named = registered.via == Some(other.id);
            let knows =
                is_named || !registered.site.is_empty() && has_been_seen_here(world, registered, device.site);
            let is_good = other.domain == device.domain && other.serves && is_member(world, other);
            *index != user && other.site == device.site && is_good && knows
        })
        .map(|(_, other)| {
            let is_public = world.network.sites.get(other.site).is_some_and(|site| site.nat.is_none());
            // Behind a router only a port that is forwarded at home, or the LAN itself, leads to it.
            is_public || other.site == other.home.0 || other.site == host.site
        })
        .collect();
    // Where more could serve than are elected, it may be those whom only a relay would reach.
    let all_are_elected = servers.len() <= DEFAULT_SEATS;
    let is_reachable = |is_reachable: &bool| *is_reachable;
    let serves = servers.iter().any(is_reachable) && (all_are_elected || servers.iter().all(is_reachable));
    host.domain == device.domain && is_member(world, host) && is_permitted && serves
}

fn has_been_seen_here(world: &World, registered: &peerage_wire::record::EndDevice, site: usize) -> bool {
    let Some(via) = registered.via.and_then(|via| world.hosts.iter().find(|host| host.id == via)) else {
        return false;
    };
    // Devices do not move, so where it was seen is where it is.
    via.site == site
}

impl Liveness {
    fn check_errands(world: &World) -> Option<String> {
        for (id, errand) in world.errands().filter(|(id, _)| world.is_probe(*id)) {
            let tunnel = errand.session.and_then(|session| world.model.tunnel(&session));
            let is_done = errand.is_local || tunnel.is_some_and(crate::model::Tunnel::is_complete);
            if !is_done {
                let (host, device, failure) = (errand.host, errand.device, errand.failure);
                let ends = tunnel.map(|tunnel| tunnel.ends);
                return Some(format!(
                    "{id:?}: computer {host} does not reach device {device}: {failure:?}, {ends:?}"
                ));
            }
        }
        None
    }

    fn check_tunnels(world: &World) -> Option<String> {
        for (session, tunnel) in world.model.tunnels().filter(|(_, tunnel)| !tunnel.is_excused) {
            let ends = End::BOTH.map(|end| tunnel.end(end));
            let is_complete = tunnel.is_complete() && ends == [Some(session::End::Complete); 2];
            // An opening may be refused, given up, or break with its first carrier; but then it ends wherever it began.
            let [here, there] = ends.map(|end| end.is_some_and(|end| end.code().is_some()));
            let was_refused = !tunnel.was_opened && here && (there || tunnel.server.is_none());
            if !is_complete && !was_refused {
                return Some(format!("{session:?} ended as {ends:?} without a reason: {tunnel:?}"));
            }
        }
        None
    }

    fn check_contact(world: &World) -> Option<String> {
        for (index, host) in world.hosts.iter().enumerate() {
            let Some(node) = host.node.as_ref().filter(|_| host.serves && is_member(world, host)) else {
                continue;
            };
            if !node.status(host.now(world.now())).online {
                return Some(format!("computer {index} thinks that it is offline"));
            }
        }
        None
    }
}

impl Invariant for Liveness {
    fn name(&self) -> &'static str {
        "all comes right in the end"
    }

    fn conclude(&mut self, world: &World) -> Option<String> {
        Self::check_errands(world)
            .or_else(|| Self::check_tunnels(world))
            .or_else(|| Self::check_contact(world))
    }
}

//! Who has nothing to do says next to nothing: the quietness budget.

use std::collections::BTreeSet;

use peerage_wire::id::NodeId;

use super::Invariant;
use crate::host::{Host, true_time};
use crate::world::World;

/// For how long datagrams are counted, in minutes.
pub(super) const COUNTED_MINUTES: u64 = 10;

/// A node that only uses devices: nothing, but for what a tunnel a moment ago left behind.
const USER: u64 = 4;

/// A node that may serve asks for the Head every five minutes, of two servers. Where it was not elected, or hears nobody, it looks its location
/// up at least every two and a half minutes, and may ask those whom it finds whether they are there (Rule 6.27).
const STANDING_BY: u64 = 60;

/// Beacons of one computer on a LAN that loses nothing: one every ten seconds of those who are elected, and those of an election.
const BEACONS: u64 = 80;

/// How many times as many where a tenth or more is lost (Rule 6.27).
const BEACONS_WITH_LOSS: u64 = 7;

/// A node that serves keeps two attachments (every 25 s), two Heads fresh (every 20 s), announces itself twice, and answers Notifies.
const SERVING: u64 = 170;

/// A node that offers itself as a super-node: one request every ten seconds at most (Rule 6.50), of two operators if the first is silent.
const OFFERING: u64 = 150;

/// A super-node offers itself as well, compares what it has with another every ten minutes, and answers where it is called back.
const HOLDING: u64 = SERVING + OFFERING + 200;

/// It fetches the Head of every domain that somebody asks about, every fifteen seconds at most, of an operator that may have to be
/// asked twice.
const PER_DOMAIN: u64 = 100;

/// Whoever nobody answers any more has two attachments, each asked three times every 88 s (Rule 6.10), of three datagrams each.
const SILENT: u64 = 120;

/// And asks each operator and super-node, three times each, for its Head every 32 s at most, and with it who else is a super-node
/// (Rule 6.8); for the time every 80 s (Rule 6.1), for its location every two minutes, and whether it takes an announcement every
/// five (Rule 6.6).
const PER_SILENT: u64 = 150;

/// See the module.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Computers that were seen to be attached since counting began: where beacons are lost, a seat changes its owner now and then.
    served: BTreeSet<usize>,
    /// Super-nodes that there were: who was revoked hears no more of others that are none any longer, asks them as well, and is
    /// answered by some.
    super_nodes: BTreeSet<NodeId>,
}

impl Quiet {
    /// What a super-node may say: for itself, for each domain, and the answers to everybody.
    fn of_holder(world: &World) -> u64 {
        let of = |host: &Host| if host.serves { SERVING } else { USER };
        let answers: u64 = world.hosts.iter().map(of).sum();
        HOLDING + world.setup().domains as u64 * PER_DOMAIN + answers
    }

    /// What a node may say that has been revoked: it is not answered, and asks again as one that is cut off does.
    fn of_revoked(&self, world: &World, lends: bool) -> u64 {
        let servers = world.setup().operators as u64 + self.super_nodes.len() as u64;
        SILENT + servers * PER_SILENT + if lends { HOLDING } else { 0 }
    }

    /// How many answers a node may give to those who were revoked, and were never told that it is a super-node no longer. Once it has
    /// restarted it knows of no revocation in other domains, and tells the time to whoever asks with a wrong one, each time (Rule 3.11).
    /// One of the two attachments of each may be sought there.
    fn to_revoked(&self, world: &World, host: &Host) -> u64 {
        let revoked =
            world.hosts.iter().filter(|other| other.id != host.id && is_revoked(world, other)).count();
        if self.super_nodes.contains(&host.id) { revoked as u64 * (SILENT / 2 + PER_SILENT) } else { 0 }
    }
}

fn is_revoked(world: &World, host: &Host) -> bool {
    world.ledger.member(&host.id).is_some_and(|member| member.revoked_at.is_some())
}

impl Invariant for Quiet {
    fn name(&self) -> &'static str {
        "quiet within the budget"
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        let super_nodes = world.ledger.super_nodes(true_time(world.now()).unix);
        self.super_nodes.extend(super_nodes.map(|(node, _)| node));
        if world.is_counting() {
            let hosts = world.hosts.iter().enumerate().filter(|(_, host)| host.serves);
            let is_attached = |host: &Host| {
                let node = host.node.as_ref();
                node.is_some_and(|node| !node.status(host.now(world.now())).attachments.is_empty())
            };
            self.served.extend(hosts.filter(|(_, host)| is_attached(host)).map(|(index, _)| index));
        }
        None
    }

    fn conclude(&mut self, world: &World) -> Option<String> {
        for (index, host) in world.hosts.iter().enumerate() {
            let Some(node) = host.node.as_ref().filter(|_| world.was_idle(index)) else { continue };
            let status = node.status(host.now(world.now()));
            let has_served = self.served.contains(&index) || !status.attachments.is_empty();
            let budget = match (has_served, host.serves) {
                _ if is_revoked(world, host) => self.of_revoked(world, host.lends),
                _ if status.super_role.from.is_some() => Self::of_holder(world),
                _ if host.lends => SERVING + OFFERING,
                (true, _) => SERVING,
                (false, true) => STANDING_BY,
                (false, false) => USER,
            };
            let counts = world.counts(index);
            // What a super-node answers is in its budget.
            let excused = if status.super_role.from.is_some() { 0 } else { self.to_revoked(world, host) };
            let sent = counts.datagrams - counts.answers.min(excused);
            if sent > budget {
                return Some(format!(
                    "computer {index} sent {sent} datagrams in {COUNTED_MINUTES} idle minutes, {budget} are allowed"
                ));
            }
            let loses = world.network.sites.get(host.site).is_some_and(|site| site.lan.loss > 0);
            let beacons = if loses { BEACONS * BEACONS_WITH_LOSS } else { BEACONS };
            let said = counts.multicasts;
            if said > beacons {
                return Some(format!(
                    "computer {index} said {said} things to its LAN in {COUNTED_MINUTES} idle minutes, {beacons} are allowed"
                ));
            }
        }
        None
    }
}

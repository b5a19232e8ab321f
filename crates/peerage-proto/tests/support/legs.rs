//! The relay of the operator's computer in a world of no sockets: legs that open at once, and who was joined with whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use peerage_proto::node::{self, LegNews, LegOrder, OwnLeg};
use peerage_proto::operator;
use peerage_proto::relay::{self, LegId};

use super::{OPERATOR_ADDRESS, World, shifted};

/// Who has which leg.
#[derive(Default)]
pub struct Legs {
    next: u64,
    /// The hosts' legs, by the relay's name for them.
    hosts: BTreeMap<LegId, (SocketAddr, LegId)>,
    /// Legs that belong to nobody in this world but the test.
    pub own: BTreeMap<LegId, Vec<relay::Output>>,
    /// What was dialled, by whom.
    pub dialled: Vec<(SocketAddr, OwnLeg)>,
    /// What hosts were told to hand to a link.
    pub joined: Vec<(SocketAddr, OwnLeg)>,
    what: BTreeMap<(SocketAddr, LegId), OwnLeg>,
    /// Whether relays refuse connections.
    pub refuse: bool,
    /// Relays that neither take nor refuse one.
    pub mute: BTreeSet<SocketAddr>,
}

impl World {
    /// Makes a leg that the test speaks for.
    pub fn new_leg(&mut self) -> LegId {
        self.legs.next += 1;
        let leg = LegId(self.legs.next);
        self.legs.own.insert(leg, Vec::new());
        leg
    }

    /// Lets the operator read a datagram from a leg.
    pub fn say_on_leg(&mut self, leg: LegId, remote: SocketAddr, payload: Bytes) {
        let input = relay::Input::Datagram { leg, remote, payload };
        self.operator.handle(operator::Input::Leg(input), self.now);
        self.pump();
    }

    pub(super) fn leg_ordered(&mut self, address: SocketAddr, own: LegId, order: LegOrder) {
        let relay_leg =
            self.legs.hosts.iter().find(|(_, host)| **host == (address, own)).map(|(leg, _)| *leg);
        match order {
            LegOrder::Dial(what, _) => {
                // A node that has started anew counts its legs anew; those of before went with it.
                if let Some(lost) = relay_leg {
                    self.legs.hosts.remove(&lost);
                    self.operator.handle(operator::Input::Leg(relay::Input::Closed(lost)), self.now);
                }
                self.legs.dialled.push((address, what));
                self.legs.what.insert((address, own), what);
                let stands = self.operator_up
                    && !self.legs.refuse
                    && what.address == OPERATOR_ADDRESS.parse().unwrap();
                if stands {
                    self.legs.next += 1;
                    self.legs.hosts.insert(LegId(self.legs.next), (address, own));
                }
                if !self.legs.mute.contains(&what.address) {
                    self.tell_host(address, own, if stands { LegNews::Opened } else { LegNews::Closed });
                }
            }
            LegOrder::Send(payload) => {
                let leg = relay_leg.expect("only an open leg is spoken on");
                let input = relay::Input::Datagram { leg, remote: address, payload };
                self.operator.handle(operator::Input::Leg(input), self.now);
            }
            LegOrder::Joined => {
                let what = self.legs.what[&(address, own)];
                self.legs.joined.push((address, what));
            }
            LegOrder::Close | LegOrder::Full => {
                if let Some(leg) = relay_leg {
                    self.legs.hosts.remove(&leg);
                    self.operator.handle(operator::Input::Leg(relay::Input::Closed(leg)), self.now);
                }
            }
        }
    }

    pub(super) fn relay_ordered(&mut self, output: relay::Output) {
        let legs = match &output {
            relay::Output::Send { leg, payload } => vec![(*leg, Some(payload.clone()))],
            relay::Output::Join(legs) => legs.iter().map(|(leg, last)| (*leg, Some(last.clone()))).collect(),
            relay::Output::Close { leg, last } => vec![(*leg, last.clone())],
        };
        for (leg, payload) in legs {
            if let Some(seen) = self.legs.own.get_mut(&leg) {
                seen.push(output.clone());
            } else if let Some((address, own)) = self.legs.hosts.get(&leg).copied() {
                if let Some(payload) = payload {
                    self.tell_host(address, own, LegNews::Datagram(payload));
                }
                if matches!(output, relay::Output::Close { .. }) {
                    self.legs.hosts.remove(&leg);
                    self.tell_host(address, own, LegNews::Closed);
                }
            }
        }
    }

    fn tell_host(&mut self, address: SocketAddr, leg: LegId, news: LegNews) {
        let host = self.hosts.get_mut(&address).expect("it has dialled");
        host.node.handle(node::Input::OwnLeg { leg, news }, shifted(self.now, host.clock_error));
    }
}

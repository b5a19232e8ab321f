//! By which carrier servers are reached: what [`Carriers`](crate::carrier::Carriers) decides, done (Rules 6.100 to 6.109).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use peerage_wire::id::{LocationId, NodeId};
use peerage_wire::message::Request;
use peerage_wire::time::Now;

use super::places::Places;
use super::servers::sendable;
use super::{Node, Output, Purpose};
use crate::carrier::{Carrier, Order, StreamId, StreamNews, StreamOrder};
use crate::lan::{Gateway, Interface};

/// Most networks of which is remembered what has worked there instead of UDP. A traveller sees a few a day; what is forgotten costs a second
/// or two.
pub const MAX_REMEMBERED: usize = 64;

/// By what messages travel in networks without UDP.
pub type KnownCarriers = BTreeMap<LocationId, Carrier>;

impl Node {
    /// Notes that a server was asked, so that it can be missed.
    pub(super) fn note_asked(&mut self, server: NodeId, now: Now) {
        if self.carriers.has_choice() && self.is_server(&server) {
            let addresses = self.addresses_of(&server);
            self.carriers.asked(server, &addresses, now.mono);
        }
    }

    /// Returns all addresses of a server to which this computer can send, that which is used now first.
    pub(super) fn addresses_of(&self, node: &NodeId) -> Vec<SocketAddr> {
        let mut operators = self.trust.operators();
        let operator = operators.find_map(|(id, body)| (id == *node).then(|| body.addresses.clone()));
        let stated = self.servers.addresses(node).or(operator).unwrap_or_default();
        let mut all = sendable(&stated, &self.interfaces);
        let current = self.server(*node).map(|server| server.address);
        all.sort_by_key(|address| Some(*address) != current);
        all
    }

    /// Takes what has happened to a connection that carries messages.
    pub(super) fn stream_news(&mut self, news: StreamNews, now: Now) {
        match news {
            StreamNews::Opened(stream) => self.carriers.opened(stream),
            StreamNews::Datagram { stream, remote, payload } => {
                self.endpoint.handle_stream_datagram((stream, remote), &payload, &self.trust, now);
            }
            StreamNews::Closed(stream @ StreamId::Made(_)) => self.carriers.closed(stream, now.mono),
            StreamNews::Closed(stream @ StreamId::Accepted(_)) => {
                for node in self.endpoint.stream_closed(stream) {
                    self.forget_contact(&node);
                }
            }
        }
    }

    /// The computer's networks are these now: if they are others, nothing that stood before may still do, and what has worked here before is
    /// tried first.
    pub(super) fn review_carriers(&mut self, interfaces: &[Interface], now: Now) {
        let here = Places::find(interfaces, &self.keys, self.place.as_deref());
        let known = here.all().find_map(|location| self.known_carriers.get(&location).copied());
        if is_elsewhere(&self.interfaces, interfaces) {
            self.carriers.network_changed(known, now.mono);
        } else {
            self.carriers.recall(known);
        }
    }

    /// Keeps what has worked here.
    pub(super) fn remember_carrier(&mut self, carrier: Option<Carrier>) {
        let Some(location) = self.places.all().next() else { return };
        let before = self.known_carriers.clone();
        match carrier {
            Some(carrier) => {
                let is_full = self.known_carriers.len() >= MAX_REMEMBERED;
                if is_full && !self.known_carriers.contains_key(&location) {
                    self.known_carriers.pop_first();
                }
                self.known_carriers.insert(location, carrier);
            }
            None => self.known_carriers.retain(|known, _| self.places.interface_at(known).is_none()),
        }
        if self.known_carriers != before {
            self.outputs.push_back(Output::KeepCarriers(self.known_carriers.clone()));
        }
    }

    /// Does what the choice of carriers has decided.
    pub(super) fn settle_carriers(&mut self, now: Now) {
        // What was asked just now may have made something due.
        if self.carriers.next_at().is_some_and(|at| at <= now.mono) {
            self.carriers.handle_timeout(now.mono);
        }
        while let Some(order) = self.carriers.poll_order() {
            match order {
                Order::Open { stream, carrier, address } => {
                    let open = StreamOrder::Open { stream, carrier, address };
                    self.outputs.push_back(Output::Stream(open));
                }
                Order::Close(stream) => {
                    self.outputs.push_back(Output::Stream(StreamOrder::Close(stream)));
                }
                Order::Probe { server, address, stream } => {
                    self.acquaint(server, now);
                    let ping = Request::Ping;
                    let id = match stream {
                        Some(stream) => {
                            self.endpoint.request_on_stream((stream, address), server, &ping, now)
                        }
                        None => self.endpoint.request_as_check(server, address, &ping, now),
                    };
                    self.purposes.insert(id, Purpose::Carrier);
                }
                Order::Remember(carrier) => self.remember_carrier(carrier),
                Order::Use { server, stream } => {
                    self.endpoint.carry(server, stream, now);
                    // Its server learns by this where it is reached from now on.
                    self.renew_attachment_at(&server, now);
                }
            }
        }
    }

    /// Hands out what goes on connections.
    pub(super) fn send_on_streams(&mut self) {
        while let Some((stream, payload)) = self.endpoint.poll_stream_transmit() {
            self.outputs.push_back(Output::Stream(StreamOrder::Send { stream, payload }));
        }
    }
}

/// Returns whether a computer stands in other networks than before. A router whose hardware address was not known before is the same.
fn is_elsewhere(before: &[Interface], now: &[Interface]) -> bool {
    let up = |all: &'_ [Interface]| all.iter().filter(|interface| interface.up).cloned().collect::<Vec<_>>();
    let is_same_router = |(a, b): (&Gateway, &Gateway)| {
        a.address == b.address && (a.mac.is_none() || b.mac.is_none() || a.mac == b.mac)
    };
    let is_same = |a: &Interface, b: &Interface| {
        a.index == b.index
            && a.addresses == b.addresses
            && a.gateways.len() == b.gateways.len()
            && a.gateways.iter().zip(&b.gateways).all(is_same_router)
    };
    let (before, now) = (up(before), up(now));
    before.len() != now.len() || !before.iter().zip(&now).all(|(a, b)| is_same(a, b))
}

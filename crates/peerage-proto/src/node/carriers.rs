//! By which carrier servers are reached: what [`Carriers`](crate::carrier::Carriers) decides, done (Rules 6.100 to 6.109).

use std::net::SocketAddr;

use peerage_wire::id::NodeId;
use peerage_wire::message::Request;
use peerage_wire::time::Now;

use super::servers::sendable;
use super::{Node, Output, Purpose};
use crate::carrier::{Order, StreamId, StreamNews, StreamOrder};
use crate::lan::Interface;

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

    /// The computer's networks are others: nothing that stood before may still do.
    pub(super) fn review_carriers(&mut self, interfaces: &[Interface]) {
        let place = |all: &[Interface]| {
            let up = all.iter().filter(|interface| interface.up);
            up.map(|i| (i.index, i.addresses.clone(), i.gateways.clone())).collect::<Vec<_>>()
        };
        if place(&self.interfaces) != place(interfaces) {
            self.carriers.network_changed(None);
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

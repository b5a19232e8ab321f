//! Datagrams on streams: for peers that UDP does not reach (Rules 6.100 to 6.105).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::NodeId;
use peerage_wire::message::Request;
use peerage_wire::time::Now;

use super::back::Back;
use super::way::Way;
use super::{Endpoint, RequestId};
use crate::carrier::StreamId;
use crate::sizes::TableSize;
use crate::trust::Trust;

/// Most peers that are reached on streams. A shell has fewer streams; several members may share one.
const MAX_CARRIED: usize = 20_000;

/// Which peers are reached on streams rather than over UDP.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    by_node: BTreeMap<NodeId, StreamId>,
}

impl Carried {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("peers on streams", self.by_node.len(), MAX_CARRIED)
    }

    pub(super) fn of(&self, node: &NodeId) -> Option<StreamId> {
        self.by_node.get(node).copied()
    }

    /// Notes by what way a member's request has come: what is sent to it takes the same (Rule 6.103). A stream that this node has
    /// made is used as long as this node wants.
    pub(super) fn heard(&mut self, node: NodeId, back: &Back) {
        let is_own = matches!(self.of(&node), Some(StreamId::Made(_)));
        match back {
            Back::Stream(stream @ StreamId::Accepted(_)) if !is_own => {
                if self.by_node.len() < MAX_CARRIED || self.by_node.contains_key(&node) {
                    self.by_node.insert(node, *stream);
                }
            }
            Back::Straight if !is_own => {
                self.by_node.remove(&node);
            }
            Back::Straight | Back::Stream(_) | Back::Forwarded(_) | Back::Leg(_) => {}
        }
    }
}

impl Endpoint {
    /// Takes a datagram that came on a stream, whose other end is at `remote`.
    pub fn handle_stream_datagram(
        &mut self,
        (stream, remote): (StreamId, SocketAddr),
        datagram: &[u8],
        trust: &Trust,
        now: Now,
    ) {
        self.observe_clock(now);
        if let Err(reason) = self.receive((remote, &Back::Stream(stream)), datagram, trust, now) {
            self.discard(reason);
        }
    }

    /// Returns the next datagram to send on a stream.
    pub fn poll_stream_transmit(&mut self) -> Option<(StreamId, Bytes)> {
        self.stream_transmits.pop_front()
    }

    /// Sends what goes to a peer on this stream from now on, or over UDP again; what waits for an answer of it is sent once more
    /// at once.
    pub fn carry(&mut self, node: NodeId, stream: Option<StreamId>, now: Now) {
        match stream {
            Some(stream) => self.carried.by_node.insert(node, stream),
            None => self.carried.by_node.remove(&node),
        };
        self.hasten_to(&node, now);
    }

    /// Returns on which stream a peer is reached, if not over UDP.
    pub fn carried_on(&self, node: &NodeId) -> Option<StreamId> {
        self.carried.of(node)
    }

    /// Forgets a stream that has ended. Returns who was reached on it.
    pub fn stream_closed(&mut self, stream: StreamId) -> Vec<NodeId> {
        let on_it = self.carried.by_node.iter().filter(|(_, on)| **on == stream);
        let nodes: Vec<_> = on_it.map(|(node, _)| *node).collect();
        self.carried.by_node.retain(|_, on| *on != stream);
        nodes
    }

    /// Sends a request once on a stream, whichever its receiver is reached on otherwise, to see whether it answers there.
    pub fn request_on_stream(
        &mut self,
        (stream, remote): (StreamId, SocketAddr),
        to: NodeId,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin_on((remote, Way::Stream(stream)), to, request, now)
    }
}

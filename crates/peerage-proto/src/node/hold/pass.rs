//! What a super-node does for those who cannot reach each other: it passes messages on to the nodes that are attached to it, and
//! joins legs (Rules 6.28 to 6.32). Legs and bytes are the shell's.

use std::net::SocketAddr;

use peerage_wire::id::NodeId;
use peerage_wire::message::{RefusedReason, Reply, Request};
use peerage_wire::record::Table;
use peerage_wire::time::{Now, UnixTime};

use super::part::Part;
use crate::discard::Discard;
use crate::endpoint::Incoming;
use crate::node::{Node, Output};
use crate::relay::{self, Desk, Limits};
use crate::trust::Trust;

impl Node {
    /// Returns an empty relay with the limits that the owner has set.
    pub(super) fn new_desk(&mut self) -> Desk {
        let tunnels = self.hold.role.max_tunnels();
        // A domain has a part of them, so that none pushes out the others.
        let share = u32::try_from(tunnels).unwrap_or(u32::MAX).div_ceil(4);
        let limits = Limits::default();
        let limits = Limits { tunnels, per_domain: share.min(limits.per_domain).max(1), ..limits };
        Desk::new(limits, self.endpoint.rng())
    }

    /// Takes what happens to the legs that others have made to this computer.
    pub(in crate::node) fn leg(&mut self, input: relay::Input, now: Now) {
        if let Some(part) = &mut self.hold.part {
            part.desk.handle(input, &mut self.endpoint, &self.trust, now);
        } else if let relay::Input::Datagram { leg, .. } = input {
            self.outputs.push_back(Output::Leg(relay::Output::Close { leg, last: None }));
        }
    }

    /// Takes note of how many bytes the shell has relayed since the start.
    pub(in crate::node) const fn relayed(&mut self, bytes: u64) {
        self.hold.relayed_bytes = bytes;
    }

    /// Passes on what a member asks somebody else, or joins its leg.
    pub(super) fn pass(&mut self, mut incoming: Incoming, now: Now) -> Result<(), Discard> {
        incoming.from = self.admit(incoming.from, now)?;
        let time = self.hold_time(now);
        let part = self.hold.part.as_mut().ok_or(Discard::UnknownCommand)?;
        // Of another domain no revocation would ever come here.
        if !part.touches(incoming.from.id.domain) {
            return Err(Discard::OutOfRange);
        }
        let attached = if let Request::ForwardedTunnelRequest { to, .. } = &incoming.request {
            part.reachable(to, &self.trust, time, now)
        } else {
            None
        };
        part.desk.asked(incoming, attached, &mut self.endpoint, now)
    }

    /// Takes the answer to a request that was made for somebody else.
    pub(in crate::node) fn pass_back(&mut self, from: NodeId, reply: Reply, now: Now) {
        if let Some(part) = &mut self.hold.part {
            part.desk.answered(from, reply, &mut self.endpoint, now);
        }
    }

    /// Ends what is relayed for those who are no members any more, or of whom that would not be heard here.
    pub(super) fn review_legs(&mut self, now: Now) {
        let time = self.hold_time(now);
        let Some(part) = &mut self.hold.part else { return };
        let (records, trust) = (&part.records, &self.trust);
        let places: Vec<_> = part.places().collect();
        part.desk.review(|node| {
            let is_near = places.iter().any(|places| places.touches(node.domain));
            let record = records.get(Table::Node, node.domain, node.record_key());
            let has_left = record.is_some_and(|r| r.header().removed || !r.is_valid_at(time));
            is_near && !has_left && !trust.is_revoked(node)
        });
    }

    /// Hands out what the relay has decided.
    pub(super) fn pump_legs(&mut self) {
        let Some(part) = &mut self.hold.part else { return };
        while let Some(output) = part.desk.poll_output(&mut self.endpoint) {
            self.outputs.push_back(Output::Leg(output));
        }
        for (domain, count) in part.desk.take_refusals() {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.hold.refused = self.hold.refused.saturating_add(u64::from(count));
            self.hold.refusals.add(domain, RefusedReason::RelayQuota, count);
        }
    }
}

impl Part {
    /// Returns where a node is that is attached here, valid and not revoked.
    fn reachable(&self, node: &NodeId, trust: &Trust, time: UnixTime, now: Now) -> Option<SocketAddr> {
        let record = self.records.get(Table::Node, node.domain, node.record_key());
        let has_left = record.is_some_and(|r| r.header().removed || !r.is_valid_at(time));
        self.contacts.address(node, now.mono).filter(|_| !has_left && !trust.is_revoked(node))
    }
}

//! The operator's spies: their ports, and the ledger that notes what they find.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::operator::{self, Evidence, SpyIdentity, VisitId};
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::record::Roles;

use super::World;

/// What a world with spies has besides.
#[derive(Default)]
pub struct Spies {
    pub all: Vec<SpyIdentity>,
    /// The ports of visits under way.
    pub ports: BTreeMap<VisitId, SocketAddr>,
    /// Every port that was ever used.
    pub used: Vec<SocketAddr>,
    /// Whom the ledger has put in quarantine, and why.
    pub convicted: BTreeMap<NodeId, Vec<Evidence>>,
    /// Whether nothing reaches the ports of spies.
    pub is_cut: bool,
}

impl World {
    /// Gives the operator spies in a domain, which visit each super-node once in `interval` on average.
    pub fn send_spies(&mut self, domain: Domain, count: usize, interval: Duration) {
        self.operator_config.spy_interval = Some(interval);
        for _ in 0..count {
            let roles = Roles { tunnel: true, super_node: false };
            let (identity, ..) = self.admit(domain, roles);
            self.spies.all.push(SpyIdentity { node: identity.node_id(domain), identity });
        }
        self.restart_operator();
        self.tell_spies();
    }

    /// Tells an operator that was started of its spies.
    pub fn tell_spies(&mut self) {
        self.operator.handle(operator::Input::Spies(self.spies.all.clone()), self.now);
        self.pump();
    }

    pub(super) fn spy_port(&mut self, visit: VisitId) -> SocketAddr {
        let [.., a, b] = u32::try_from(visit.0).unwrap().to_be_bytes();
        let port = SocketAddr::from(([77, 1, a, b], 50_000));
        if self.spies.ports.insert(visit, port).is_none() {
            assert!(!self.spies.used.contains(&port), "a port is used by one visit");
            self.spies.used.push(port);
        }
        port
    }

    pub(super) fn visit_ended(&mut self, visit: VisitId) {
        assert!(self.spies.ports.remove(&visit).is_some(), "a visit ends once");
    }

    pub(super) fn convicted(&mut self, node: NodeId, evidence: Vec<Evidence>) {
        self.spies.convicted.insert(node, evidence);
        self.operator.handle(operator::Input::Quarantine { node, on: true }, self.now);
    }

    /// Hands a datagram to a visiting spy. Returns whether it was for one.
    pub(super) fn deliver_to_spy(&mut self, from: SocketAddr, to: SocketAddr, payload: &Bytes) -> bool {
        if let Some((visit, _)) = self.spies.ports.iter().find(|(_, port)| **port == to)
            && !self.spies.is_cut
        {
            let input =
                operator::Input::SpyDatagram { visit: *visit, remote: from, payload: payload.clone() };
            self.operator.handle(input, self.now);
            return true;
        }
        self.spies.used.contains(&to)
    }
}

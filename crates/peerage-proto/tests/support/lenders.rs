//! Members that lend their machines, and the ledger that signs which part of the table they hold.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use peerage_proto::node::SuperConfig;
use peerage_proto::operator::{self, Assignment, DomainFacts};
use peerage_wire::id::{Domain, Segment};
use peerage_wire::record::{Draft, Record, SuperNodeBody, Table};

use super::{World, lan};

/// What a world with lenders has besides.
#[derive(Default)]
pub struct Lending {
    /// Whether the ledger signs what the operator's map asks for.
    pub signs_maps: bool,
    /// Nodes that nobody can connect to.
    pub closed: BTreeSet<SocketAddr>,
    /// Domains besides [`DOMAIN`](super::DOMAIN).
    pub domains: BTreeSet<Domain>,
}

/// The organisation of a lender.
pub fn lender_domain(n: u8) -> Domain {
    Domain(0x1000_0000 + u32::from(n) * 0x0100_0000)
}

/// Where a lender is.
pub fn lender_address(n: u8) -> SocketAddr {
    format!("46.{n}.0.1:7400").parse().unwrap()
}

impl World {
    pub(super) fn tell_facts(&mut self) {
        let others = self.lending.domains.iter().map(|domain| DomainFacts { domain: *domain, ..self.facts });
        for facts in others.chain([self.facts]).collect::<Vec<_>>() {
            self.operator.handle(operator::Input::Domain(facts), self.now);
        }
    }

    /// Adds a node of an organisation of its own whose owner lends it.
    pub fn add_lender(&mut self, n: u8) -> SocketAddr {
        self.lending.signs_maps = true;
        let domain = lender_domain(n);
        self.lending.domains.insert(domain);
        self.tell_facts();
        let (address, lan) = (lender_address(n).to_string(), lan(&format!("10.7.{n}.1"), 100 + n));
        self.join_in(domain, &address, lan, 0, |config| {
            config.super_role = SuperConfig { on: true, ..SuperConfig::default() };
        })
    }

    /// Returns whether whoever connects there meets this node.
    pub(super) fn takes_connection(&self, address: SocketAddr, identity: &[u8; 32]) -> bool {
        let is_open = !self.cut.contains(&address) && !self.lending.closed.contains(&address);
        let is_host = self.hosts.get(&address).is_some_and(|host| host.identity.public() == *identity);
        is_open && (is_host || self.holders.get(&address).is_some_and(|holder| holder.has_key(identity)))
    }

    /// Signs what the map asks for, as one transaction.
    pub(super) fn sign_map(&mut self, map_version: u64, changes: Vec<Assignment>) {
        if !self.lending.signs_maps {
            return;
        }
        let records = changes.into_iter().map(|change| self.sign_assignment(map_version, change)).collect();
        self.commit(records);
    }

    fn sign_assignment(&mut self, map_version: u64, change: Assignment) -> Record {
        let Assignment { node, identity, addresses, range } = change;
        self.sign(Table::SuperNode, node.domain, node.record_key(), |mut draft| {
            draft.header.removed = range.is_none();
            let segment = range.unwrap_or(Segment::ALL);
            let body = SuperNodeBody { segment, map_version, identity, addresses };
            if range.is_some() { Draft { public: body.write(), ..draft } } else { draft }
        })
    }

    /// Returns the super-nodes of the ledger that are no tombstones, with their ranges.
    pub fn map(&self) -> Vec<(peerage_wire::id::NodeId, Segment)> {
        let records = self.ledger.values().filter(|record| record.header().table == Table::SuperNode);
        let live = records.filter(|record| !record.header().removed);
        live.map(|record| {
            let node = peerage_wire::record::subject(record.header());
            (node, SuperNodeBody::read(record).unwrap().segment)
        })
        .collect()
    }
}

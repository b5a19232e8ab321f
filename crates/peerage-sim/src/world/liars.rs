//! Computers whose program lies.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use peerage_proto::endpoint;
use peerage_wire::id::NodeId;
use peerage_wire::message::{Page, Reply};
use peerage_wire::record::{NodeInfoPublic, Table};

use super::{Bug, Due, World};
use crate::chance::Chance;
use crate::invariants::Violation;
use crate::liar::{Betrayal, Liar, Manner, Offer, Subjects, Target};
use crate::network::Party;

impl World {
    /// A program that lies takes the place of a computer's node.
    pub(super) fn begin_lying(&mut self, index: usize, manner: Manner) {
        if self.hosts.get(index).is_none_or(|host| !host.is_awake()) {
            return;
        }
        self.stop_host(index, 0);
        let (subjects, statements) = self.subjects(index);
        let (network, root, crypto) = (self.ledger.network(), self.ledger.root(), Arc::clone(&self.crypto));
        let chance = Chance::new(self.attacker.below(u64::MAX), "liar");
        let now = self.now;
        let operators = self.operators.iter().map(|host| &host.identity);
        let operators = operators.map(|operator| Target { node: operator.id, address: operator.address });
        let operators: Vec<_> = operators.collect();
        let Some(host) = self.hosts.get_mut(index) else { return };
        let key = host.id.record_key();
        let own = subjects.new.iter().find(|record| {
            let header = record.header();
            header.table == Table::Node && header.key == key && header.domain == host.domain
        });
        let Some(record) = own.map(|record| record.bytes().clone()) else { return };
        let config = endpoint::Config {
            network,
            crypto,
            identity: host.identity.clone(),
            id: host.id,
            record,
            asks_introduction: true,
        };
        host.boot += 1;
        let at = host.now(now);
        let mut liar = Liar::new((config, root), manner, (subjects, &statements), (chance, at));
        if host.lends {
            let own = if host.advertise.is_empty() { vec![host.inner] } else { host.advertise.clone() };
            liar.offer(Offer { operators, addresses: own });
        }
        host.liar = Some(liar);
        let boot = host.boot;
        self.schedule(now, Due::Liar { host: index, boot });
    }

    /// Gathers what a liar may know: everybody's address and key, and more of the past than it could have seen.
    fn subjects(&self, index: usize) -> (Subjects, Vec<peerage_wire::intro::KeyStatement>) {
        let mut subjects = Subjects::default();
        let mut statements = Vec::new();
        for host in self.operators.iter() {
            let Some(machine) = &host.machine else { continue };
            statements.push(*machine.statement());
            subjects.targets.push(Target { node: host.identity.id, address: host.identity.address });
        }
        let operator = self.operators.iter().find_map(|host| host.machine.as_ref());
        for host in &self.hosts {
            subjects.members.push(host.id);
            let info = operator
                .and_then(|operator| operator.record(Table::NodeInfo, host.domain, host.id.record_key()));
            if let Some(body) = info.and_then(|record| NodeInfoPublic::read(record).ok()) {
                statements.push(body.statement);
                let address = host.advertise.first().copied().unwrap_or(host.inner);
                subjects.targets.push(Target { node: host.id, address });
            }
        }
        subjects.new = self.ledger.records().cloned().collect();
        subjects.old = self.ledger.superseded().cloned().collect();
        let devices = subjects.new.iter().filter(|record| record.header().table == Table::EndDevice);
        // Whoever is named to find a device is believed where it stands; a liar among them is no test of anything else.
        let id = self.hosts.get(index).map(|host| host.id);
        let is_via = self.devices.iter().any(|device| device.registered.via == id);
        subjects.devices =
            if is_via { Vec::new() } else { devices.map(|record| record.header().key).collect() };
        (subjects, statements)
    }

    pub(super) fn liar_hears(&mut self, index: usize, from: SocketAddr, payload: &Bytes) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index) else { return };
        let at = host.now(now);
        if let Some(liar) = &mut host.liar {
            liar.handle_datagram(from, payload, at);
        }
        self.drain_liar(index);
    }

    pub(super) fn liar_wakes(&mut self, index: usize, boot: u32) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.boot == boot) else { return };
        let at = host.now(now);
        let Some(liar) = &mut host.liar else { return };
        liar.handle_timeout(at);
        let due = host.clock.when(liar.poll_timeout()).max(now.after(std::time::Duration::from_millis(1)));
        self.trace.note(now, 9, index as u64, &[]);
        self.drain_liar(index);
        self.schedule(due, Due::Liar { host: index, boot });
    }

    fn drain_liar(&mut self, index: usize) {
        while let Some(host) = self.hosts.get_mut(index) {
            let (inner, id) = (host.inner, host.id);
            let Some(liar) = &mut host.liar else { return };
            if self.setup.planted == Some(Bug::Betrays)
                && let Some(record) =
                    self.ledger.records().find(|record| record.header().table == Table::EndDevice)
            {
                let page = Page { records: vec![record.bytes().clone()], more: false };
                liar.look_at(self.ledger.root_id(), &Reply::Devices(page));
            }
            let betrayed = liar.betrayed.take();
            let transmit = liar.poll_transmit();
            // What liars tell each other is their own affair.
            let is_honest = |by: NodeId| self.hosts.iter().all(|host| host.id != by || host.node.is_some());
            // Whoever holds a part of the table is told what belongs there, by those who hold it too.
            let is_due = |place| self.ledger.was_assigned(&id, place);
            let honest = betrayed.filter(|betrayed| is_honest(betrayed.by) && !is_due(betrayed.place));
            if let Some(Betrayal { what, .. }) = honest {
                let violation = Violation { invariant: "no domain hears of another", what, at: self.now };
                self.violation.get_or_insert(violation);
            }
            let Some((to, payload)) = transmit else { return };
            self.send(Party::Host(index), inner, to, payload);
        }
    }
}

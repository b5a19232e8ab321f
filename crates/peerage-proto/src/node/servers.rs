//! Whom this node can ask: the super-nodes that hold the places of its domain, and the operators (Rule 6.4).
//!
//! A super-node is presumed to be hostile. Nothing here makes one believed; it decides who is asked first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::id::{NodeId, PlacementKey, Segment};
use peerage_wire::message::Request;
use peerage_wire::record::{Record, SetSummary, SuperNodeBody, subject};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::lookup::{self, REDUNDANCY, Server};
use super::{Change, Event, Node, Output, Purpose};
use crate::lan::Interface;
use crate::segments::{Coverage, Holder};
use crate::sizes::TableSize;
use crate::table::Inserted;
use crate::trust::{Member, Trust};
use crate::wall::{AGREEING_SUPER_NODES, OPERATOR_STANDS};

/// Most super-nodes of which a node knows; a domain is cut over so many only if it has millions of records.
const MAX_SUPER_NODES: usize = 4_096;

/// How long a failure or a lie sends a server to the end of the list. Longer keeps the load on the others after an outage that
/// is over; shorter asks the same liar again within one piece of work.
const HEALTH_MEMORY: Duration = Duration::from_secs(600);

/// How many servers must be silent, with none answering in between, before this node calls itself offline: two rounds of a
/// look-up, or all that it knows.
const OFFLINE_AFTER: usize = 6;

/// How often operators are asked for what no super-node has, although they do not stand in: so many look-ups at once, and one
/// more in each interval. Without a limit every member of a network whose super-nodes fail would move to the operators together.
const LAST_RESORT_BURST: u32 = 8;
/// See [`LAST_RESORT_BURST`].
const LAST_RESORT_INTERVAL: Duration = Duration::from_secs(5);

/// How many servers are asked for a sign of life at once while the time is not known: one of each of so many domains, and one
/// that may be down.
const TIME_SOURCES: usize = AGREEING_SUPER_NODES + 1;

/// How long operators are silent, although others answer, before a node asks over HTTPS whether it was revoked. Shorter asks for losses
/// and restarts; longer leaves the revoked in doubt.
const WONDER_AFTER: Duration = Duration::from_secs(600);

/// How soon it asks that again. Sooner has every node of a network ask more often while operators are down.
const WONDER_INTERVAL: Duration = Duration::from_secs(3_600);

/// How soon they are asked again while something depends on the time.
const TIME_INTERVAL: Duration = Duration::from_secs(10);

/// How often that is doubled while all are silent and nobody waits. More leaves a node without the time for longer after an outage,
/// fewer has one that nobody answers any more ask all day.
const MAX_TIME_DOUBLINGS: u32 = 3;

/// What is remembered of an operator or super-node that was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    pub(super) answered_at: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    failures: u32,
    failed_at: Option<Instant>,
    /// Whether it lets a look-up wait, and has neither answered nor failed since.
    is_suspect: bool,
    /// At which of its addresses it is tried now: silence moves to the next.
    turn: usize,
    marks: u32,
    marked_at: Option<Instant>,
}

impl Health {
    /// Returns how bad it is: lies count before silence, and both are forgotten after a while.
    fn penalty(&self, now: Instant) -> (u32, u32) {
        let recent = |at: Option<Instant>| at.is_some_and(|at| now - at < HEALTH_MEMORY);
        let marks = if recent(self.marked_at) { self.marks } else { 0 };
        let failures = if recent(self.failed_at) { self.failures } else { 0 };
        (marks, failures.saturating_add(u32::from(self.is_suspect)))
    }
}

/// What servers have shown of one family of addresses on the present networks.
#[derive(Clone, Copy, Debug, Default)]
struct Family {
    /// One has answered there.
    is_heard: bool,
    /// One was silent there.
    is_silent: bool,
}

/// A super-node that holds places of the own domain.
#[derive(Clone, Debug)]
struct SuperNode {
    record: Record,
    /// Of the record: with each Head all of them are summed up.
    hash: [u8; 32],
    member: Member,
    body: SuperNodeBody,
}

/// What is known of those who can be asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Servers {
    super_nodes: BTreeMap<NodeId, SuperNode>,
    /// What they hold; none if that has changed and was not asked for since.
    coverage: Option<Coverage>,
    health: BTreeMap<NodeId, Health>,
    /// Who was silent since anybody answered.
    silent: BTreeSet<NodeId>,
    ipv4: Family,
    ipv6: Family,
    pub(super) online: bool,
    /// When the budget of last resorts will be full again.
    budget_full_at: Instant,
    /// When servers were asked last for nothing but to confirm the time.
    timed_at: Option<Instant>,
    /// When an operator was asked last because somebody else gave another time.
    doubted_at: Option<Instant>,
    /// Nobody has answered lately, or since the start.
    is_alone: bool,
    /// How often they were asked in vain since the time was last learned: whoever answers without telling it has not helped.
    time_silences: u32,
    /// From when on the next silence of an operator is asked about over HTTPS; none if one has answered since the last silence.
    wonders_at: Option<Instant>,
}

impl Servers {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("super-nodes", self.super_nodes.len(), MAX_SUPER_NODES)
    }

    pub(super) fn health(&self, node: &NodeId) -> Option<&Health> {
        self.health.get(node)
    }

    /// Returns the super-nodes that hold places of the own domain, with their addresses.
    pub(super) fn super_nodes(&self) -> impl Iterator<Item = (NodeId, &[SocketAddr])> + '_ {
        self.super_nodes.iter().map(|(node, known)| (*node, known.body.addresses.as_slice()))
    }

    pub(super) fn is_super_node(&self, node: &NodeId) -> bool {
        self.super_nodes.contains_key(node)
    }

    /// Returns where a super-node says that it is.
    pub(super) fn addresses(&self, node: &NodeId) -> Option<Vec<SocketAddr>> {
        self.super_nodes.get(node).map(|known| known.body.addresses.clone())
    }

    pub(super) fn record(&self, node: &NodeId) -> Option<&Record> {
        self.super_nodes.get(node).map(|known| &known.record)
    }

    /// Returns the SuperNode records held.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.super_nodes.values().map(|known| &known.record)
    }

    /// Summarises the SuperNode records held that are valid at a time (Rule 2.18).
    pub(super) fn summary(&self, time: UnixTime) -> SetSummary {
        let mut summary = SetSummary::default();
        let valid = self.super_nodes.values().filter(|known| known.record.is_valid_at(time));
        valid.for_each(|known| summary.add(&known.hash));
        summary
    }

    /// Returns how bad a server is; the smallest is asked first.
    pub(super) fn penalty(&self, node: &NodeId, now: Instant) -> (u32, u32) {
        self.health.get(node).map_or((0, 0), |health| health.penalty(now))
    }

    /// Returns how long a look-up that is to be eager waits for the first of these.
    pub(super) fn patience(&self, servers: &[Server]) -> Duration {
        let first = servers.iter().take(REDUNDANCY);
        lookup::patience(first.filter_map(|server| self.health.get(&server.node)?.rtt))
    }

    /// Notes that servers let a look-up wait: until they have answered or failed the next ones turn to others.
    pub(super) fn suspect(&mut self, late: impl Iterator<Item = NodeId>) {
        for node in late {
            self.health.entry(node).or_default().is_suspect = true;
        }
    }

    /// Notes that a server has handed out what does not hold while another had what does.
    pub(super) fn mark(&mut self, node: NodeId, now: Instant) {
        let health = self.health.entry(node).or_default();
        health.marks = health.marks.saturating_add(1);
        health.marked_at = Some(now);
    }

    /// Notes that something has failed for which a server may be to blame; its next answer makes up for it.
    pub(super) fn doubt(&mut self, node: NodeId, now: Instant) {
        let health = self.health.entry(node).or_default();
        health.failures = health.failures.saturating_add(1);
        health.failed_at = Some(now);
        health.is_suspect = false;
    }

    /// Returns whether nobody answers in one family of addresses, though in the other one somebody does.
    const fn is_deaf(&self, is_ipv4: bool) -> bool {
        let (own, other) = if is_ipv4 { (self.ipv4, self.ipv6) } else { (self.ipv6, self.ipv4) };
        own.is_silent && !own.is_heard && other.is_heard
    }

    /// Changes what is known of the family of an address. If another family comes first now, all servers are tried anew.
    fn note_family(&mut self, address: &SocketAddr, note: impl FnOnce(&mut Family)) {
        let before = (self.is_deaf(true), self.is_deaf(false));
        note(if address.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 });
        if (self.is_deaf(true), self.is_deaf(false)) != before {
            self.health.values_mut().for_each(|health| health.turn = 0);
        }
    }

    /// Notes from where a server has answered.
    pub(super) fn heard_at(&mut self, address: &SocketAddr) {
        self.note_family(address, |family| family.is_heard = true);
    }

    /// The networks have changed: either family may get through.
    pub(super) fn forget_families(&mut self) {
        (self.ipv4, self.ipv6) = (Family::default(), Family::default());
    }

    /// Takes one of the few look-ups that may go to an operator as the last resort.
    pub(super) fn take_last_resort(&mut self, now: Instant) -> bool {
        let full_at = self.budget_full_at.max(now).after(LAST_RESORT_INTERVAL);
        let allowed = full_at - now <= LAST_RESORT_INTERVAL * LAST_RESORT_BURST;
        if allowed {
            self.budget_full_at = full_at;
        }
        allowed
    }

    /// Takes a verified SuperNode record. Returns what became of it; a tombstone ends what is held.
    fn insert(&mut self, record: &Record) -> Inserted {
        let Some((member, body)) = Trust::super_node(record) else { return Inserted::Full };
        if let Some(held) = self.super_nodes.get(&member.id) {
            if held.record.bytes() == record.bytes() {
                return Inserted::Same;
            }
            if !record.supersedes(&held.record) {
                return Inserted::Older(held.record.header().version);
            }
        } else if self.super_nodes.len() >= MAX_SUPER_NODES {
            return Inserted::Full;
        }
        let known = SuperNode { record: record.clone(), hash: record.hash(), member, body };
        self.super_nodes.insert(known.member.id, known);
        self.coverage = None;
        Inserted::New
    }

    /// Forgets a super-node and returns its record.
    fn remove(&mut self, node: &NodeId) -> Option<Record> {
        self.health.remove(node);
        self.silent.remove(node);
        self.coverage = None;
        self.super_nodes.remove(node).map(|known| known.record)
    }

    /// Returns who holds which places.
    fn coverage(&mut self) -> &Coverage {
        let segments = self.super_nodes.values();
        let segments = segments.map(|known| (Holder::new(known.member.id, &known.body), known.body.segment));
        self.coverage.get_or_insert_with(|| Coverage::new(segments))
    }
}

impl Node {
    // ---- the set of super-nodes -------------------------------------------------------------

    /// Takes a verified SuperNode record, if it concerns the own domain, without writing it to disk.
    pub(super) fn learn_super_node(&mut self, record: &Record) -> Inserted {
        let domain = self.me.id.domain;
        let concerns = Trust::super_node(record).is_some_and(|(_, body)| body.segment.touches(domain));
        if concerns { self.servers.insert(record) } else { Inserted::Full }
    }

    /// Keeps a verified SuperNode record, in memory and on disk.
    pub(super) fn keep_super_node(&mut self, record: Record) -> Inserted {
        let node = subject(record.header());
        let held = self.servers.record(&node);
        if record.header().removed && held.is_some_and(|held| record.supersedes(held)) {
            self.forget_super_nodes(&[node]);
            return Inserted::New;
        }
        let inserted = self.learn_super_node(&record);
        if inserted == Inserted::New {
            self.write(vec![Change::Put(record)]);
        }
        inserted
    }

    /// Forgets all super-nodes but these: they are the set that the Head states, and who lost its part of the table cannot be
    /// recognised in any other way (Rule 6.8).
    pub(super) fn retain_super_nodes(&mut self, stated: &BTreeSet<NodeId>) {
        let gone = self.servers.super_nodes.keys().filter(|node| !stated.contains(node));
        self.forget_super_nodes(&gone.copied().collect::<Vec<_>>());
    }

    /// Forgets the super-nodes whose records have expired.
    pub(super) fn expire_super_nodes(&mut self, time: UnixTime) {
        let all = self.servers.super_nodes.iter();
        let gone = all.filter(|(_, known)| known.record.header().expires <= time).map(|(node, _)| *node);
        self.forget_super_nodes(&gone.collect::<Vec<_>>());
    }

    fn forget_super_nodes(&mut self, gone: &[NodeId]) {
        let records = gone.iter().filter_map(|node| self.servers.remove(node));
        let changes = records.map(|record| {
            let (table, domain, key) = record.header().id();
            Change::Delete { table, domain, key }
        });
        let changes: Vec<_> = changes.collect();
        if !changes.is_empty() {
            self.write(changes);
        }
    }

    // ---- whom to ask ------------------------------------------------------------------------

    /// Returns the own domain's places in stretches that the same super-nodes hold.
    pub(super) fn own_segments(&mut self) -> Vec<Segment> {
        let domain = self.me.id.domain;
        self.servers.coverage().segments_of(domain).map(|(segment, _)| segment).collect()
    }

    /// Returns the stretch in which a place of the own domain lies.
    pub(super) fn segment_of(&mut self, place: PlacementKey) -> Segment {
        let domain = self.me.id.domain;
        let mut own = self.servers.coverage().segments_of(domain).map(|(segment, _)| segment);
        own.find(|segment| segment.contains(place)).unwrap_or(Segment { from: place, to: place })
    }

    /// Returns the holders of a stretch of the own domain, or of any place of the domain if it is all of it: super-nodes, and
    /// operators while they stand in (Rule 6.23).
    fn holder_ids(&mut self, range: &Segment) -> (BTreeSet<NodeId>, bool) {
        let domain = self.me.id.domain;
        let coverage = self.servers.coverage();
        if *range == Segment::of_domain(domain) {
            return (coverage.holders_in(domain), coverage.operator_stands_in_for(domain));
        }
        let holders = coverage.holders_of(range.from).iter().copied().collect();
        (holders, coverage.operator_stands_in(range.from, domain))
    }

    /// Returns whether operators are holders of a stretch of the own domain (Rule 6.23).
    pub(super) fn operators_stand_in(&mut self, range: &Segment) -> bool {
        self.holder_ids(range).1
    }

    /// Returns whom to ask about a stretch of the own domain: its holders in random order, those that were silent or lied
    /// lately last.
    pub(super) fn holders(&mut self, range: &Segment, now: Now) -> Vec<Server> {
        let (mut holders, operators) = self.holder_ids(range);
        holders.retain(|node| *node != self.me.id && !self.trust.is_revoked(node));
        let mut all: Vec<_> = holders.into_iter().filter_map(|node| self.server(node)).collect();
        if operators {
            all.extend(self.operators());
        }
        self.in_order(all, now)
    }

    /// Returns the operators in random order, those that were silent lately last.
    pub(super) fn shuffled_operators(&mut self, now: Now) -> Vec<Server> {
        let all = self.operators();
        self.in_order(all, now)
    }

    fn operators(&self) -> Vec<Server> {
        let all = self.trust.operators();
        all.filter_map(|(node, body)| self.server_at(node, &body.addresses)).collect()
    }

    fn in_order(&mut self, mut all: Vec<Server>, now: Now) -> Vec<Server> {
        for at in (1..all.len()).rev() {
            let other = usize::try_from(self.endpoint.below(at as u64 + 1)).unwrap_or(0);
            all.swap(at, other);
        }
        all.sort_by_key(|server| self.servers.penalty(&server.node, now.mono));
        all
    }

    /// Returns where a super-node or operator is reached.
    pub(super) fn server(&self, node: NodeId) -> Option<Server> {
        let known = self.servers.super_nodes.get(&node);
        known.and_then(|known| self.server_at(node, &known.body.addresses)).or_else(|| {
            let (_, body) = self.trust.operators().find(|(id, _)| *id == node)?;
            self.server_at(node, &body.addresses)
        })
    }

    /// Returns a server with that of its addresses that is tried now (Rule 6.4).
    pub(in crate::node) fn server_at(&self, node: NodeId, addresses: &[SocketAddr]) -> Option<Server> {
        let turn = self.servers.health(&node).map_or(0, |health| health.turn);
        let mut sendable = sendable(addresses, &self.interfaces);
        // A network may let one family through alone, whatever addresses it gives; not each server is to be missed there.
        sendable.sort_by_key(|address| self.servers.is_deaf(address.is_ipv4()));
        let address = sendable.get(turn % sendable.len().max(1)).copied()?;
        Some(Server { node, address })
    }

    /// Makes sure that a server can be asked: of one that was never heard of only its record is known, which is enough to
    /// learn its sealing key (Rule 6.3).
    pub(super) fn acquaint(&mut self, node: NodeId, now: Now) {
        if self.endpoint.peer(&node).is_some() {
            return;
        }
        let super_node = self.servers.super_nodes.get(&node).map(|known| known.member);
        if let Some(member) = super_node.or_else(|| self.trust.operator(&node)) {
            self.endpoint.learn_identity(member, now);
        }
    }

    // ---- what time it is --------------------------------------------------------------------

    /// Returns when servers are asked to confirm the time: at the start, then while something depends on it. Where operators
    /// stand in, their first answer does.
    pub(super) fn time_due_at(&self) -> Option<Instant> {
        let is_open = !self.endpoint.clock().is_learned() && !self.servers.super_nodes.is_empty();
        let doublings = if self.is_head_awaited() { 0 } else { self.servers.time_silences };
        let pause = TIME_INTERVAL * (1 << doublings.min(MAX_TIME_DOUBLINGS));
        let again = |at: Instant| self.needs_head().then(|| at.after(pause));
        if is_open { self.servers.timed_at.map_or(Some(Instant::default()), again) } else { None }
    }

    /// Asks servers of different domains for a sign of life, whose acceptance or correction of the own time is what matters
    /// (Rule 6.1). If that did not help, an operator is asked too.
    pub(super) fn seek_time(&mut self, now: Now) {
        if self.time_due_at().is_none_or(|at| at > now.mono) {
            return;
        }
        let is_first = self.servers.timed_at.replace(now.mono).is_none();
        self.servers.time_silences = self.servers.time_silences.saturating_add(u32::from(!is_first));
        let own = Segment::of_domain(self.me.id.domain);
        let mut domains = BTreeSet::new();
        let mut sources = self.holders(&own, now);
        sources.retain(|server| domains.insert(server.node.domain));
        sources.truncate(TIME_SOURCES);
        if !is_first || sources.len() < AGREEING_SUPER_NODES {
            sources.extend(self.shuffled_operators(now).into_iter().take(1));
        }
        for server in sources {
            self.ask(server, &Request::Ping, Purpose::Time, now);
        }
    }

    /// The time is known: the next time that it is not, it is asked for without a long pause.
    pub(super) const fn time_found(&mut self) {
        self.servers.time_silences = 0;
    }

    /// Asks an operator whether the own time is right, because somebody whose word does not count gave another one. That may be a liar, or
    /// wrong itself: it costs the operators no more than one request in the time for which the answer holds (Rule 6.1).
    pub(super) fn clock_doubted(&mut self, now: Now) {
        if self.servers.doubted_at.is_some_and(|at| now.mono - at < OPERATOR_STANDS) {
            return;
        }
        self.servers.doubted_at = Some(now.mono);
        if let Some(server) = self.shuffled_operators(now).first().copied() {
            self.ask(server, &Request::Ping, Purpose::Time, now);
        }
    }

    // ---- how they are -----------------------------------------------------------------------

    pub(super) fn is_server(&self, node: &NodeId) -> bool {
        self.trust.is_operator(node) || self.servers.is_super_node(node)
    }

    pub(super) fn heard_from(&mut self, node: NodeId, rtt: Duration, now: Now) {
        if !self.is_server(&node) {
            return;
        }
        let health = self.servers.health.entry(node).or_default();
        health.answered_at = Some(now.mono);
        health.rtt = Some(rtt);
        health.failures = 0;
        health.is_suspect = false;
        self.servers.silent.clear();
        self.servers.is_alone = false;
        if self.trust.is_operator(&node) {
            self.servers.wonders_at = None;
        }
        if !std::mem::replace(&mut self.servers.online, true) {
            self.event(Event::Online);
            self.freshness.forget_silence();
            self.hasten_attachments(now);
            self.hasten_catch_up(now);
        }
    }

    pub(super) fn silent(&mut self, node: NodeId, now: Now) {
        if !self.is_server(&node) {
            return;
        }
        self.servers.doubt(node, now.mono);
        let tried = self.server(node).map(|server| server.address);
        let health = self.servers.health.entry(node).or_default();
        health.turn = health.turn.wrapping_add(1);
        if let Some(address) = tried {
            self.servers.note_family(&address, |family| family.is_silent = true);
        }
        self.servers.silent.insert(node);
        // A super-node does not hear itself.
        let others = self.servers.super_nodes.keys().filter(|other| **other != self.me.id);
        let all = others.count() + self.trust.operators().count();
        let is_alone = self.servers.silent.len() >= all.min(OFFLINE_AFTER);
        if is_alone && !std::mem::replace(&mut self.servers.is_alone, true) {
            if std::mem::replace(&mut self.servers.online, false) {
                self.event(Event::Offline);
            }
            // Servers are silent towards the revoked as well, also if that came about while this computer was off; over HTTPS an
            // operator says so.
            self.outputs.push_back(Output::Renew);
        } else if self.trust.is_operator(&node) {
            self.wonder(now);
        }
    }

    /// Asks over HTTPS why operators are silent although others answer: super-nodes that were revoked while they were off answer each
    /// other, and whoever else was.
    fn wonder(&mut self, now: Now) {
        let is_due = self.servers.wonders_at.is_some_and(|at| at <= now.mono);
        if is_due {
            self.outputs.push_back(Output::Renew);
        }
        if is_due || self.servers.wonders_at.is_none() {
            let pause = self.jittered(if is_due { WONDER_INTERVAL } else { WONDER_AFTER });
            self.servers.wonders_at = Some(now.mono.after(pause));
        }
    }
}

/// Returns those of a server's addresses to which this computer can send: of a family in which it has an address that leads beyond
/// its link. Where it has none, as while its networks are not known, all of them.
pub(super) fn sendable(addresses: &[SocketAddr], interfaces: &[Interface]) -> Vec<SocketAddr> {
    let up = interfaces.iter().filter(|interface| interface.up);
    let own: Vec<IpAddr> = up.flat_map(|i| &i.addresses).map(|own| own.address).collect();
    let leads = |own: &IpAddr, to: &IpAddr| match (own, to) {
        (IpAddr::V4(own), IpAddr::V4(to)) => !own.is_link_local() && own.is_loopback() == to.is_loopback(),
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            !own.is_unicast_link_local()
                && own.is_loopback() == to.is_loopback()
                // A site's own addresses lead to others of sites.
                && (!own.is_unique_local() || to.is_unique_local())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    let can = |to: &&SocketAddr| own.iter().any(|own| leads(own, &to.ip()));
    let found: Vec<_> = addresses.iter().filter(can).copied().collect();
    if found.is_empty() { addresses.to_vec() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 6.4: not each server is to be missed at the addresses that a network does not let through.
    #[test]
    fn the_family_in_which_nobody_answers_comes_last_until_somebody_does_or_the_networks_change() {
        let [v4, v6]: [SocketAddr; 2] = ["45.0.0.2:443", "[2a03::2]:443"].map(|a| a.parse().unwrap());
        let mut servers = Servers::default();
        let deaf = |servers: &Servers| [servers.is_deaf(true), servers.is_deaf(false)];
        servers.note_family(&v4, |family| family.is_silent = true);
        assert_eq!(deaf(&servers), [false, false], "the other one may be no better");
        servers
            .health
            .entry(NodeId { domain: peerage_wire::id::Domain(7), hash: [1; 32] })
            .or_default()
            .turn = 1;
        servers.heard_at(&v6);
        assert_eq!(deaf(&servers), [true, false]);
        assert!(servers.health.values().all(|health| health.turn == 0));
        servers.heard_at(&v4);
        assert_eq!(deaf(&servers), [false, false]);
        servers.note_family(&v6, |family| family.is_silent = true);
        assert_eq!(deaf(&servers), [false, false], "it has answered before");
        servers.forget_families();
        servers.note_family(&v4, |family| family.is_silent = true);
        servers.heard_at(&v6);
        assert_eq!(deaf(&servers), [true, false]);
    }
    use crate::lan::{InterfaceAddress, InterfaceKind};

    fn interface(own: &[&str]) -> Interface {
        let addresses = own.iter().map(|own| InterfaceAddress {
            address: own.split('/').next().unwrap().parse().unwrap(),
            prefix: own.parse().unwrap(),
        });
        Interface {
            index: 2,
            name: "eth0".to_owned(),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: addresses.collect(),
            gateways: Vec::new(),
        }
    }

    /// Rule 6.4: a computer with IPv6 alone would never hear from an operator whose first address is of IPv4.
    #[test]
    fn a_server_is_tried_at_addresses_of_families_that_the_computer_has() {
        let both: Vec<SocketAddr> = ["45.0.0.2:443", "[2a03::2]:443"].map(|a| a.parse().unwrap()).to_vec();
        let tried = |own: &[&str]| sendable(&both, &[interface(own)]);
        assert_eq!(tried(&["192.168.1.10/24", "fe80::1/64"]), both[..1]);
        assert_eq!(tried(&["fe80::1/64", "2a05::9/64"]), both[1..]);
        assert_eq!(tried(&["fd00::9/64", "fe80::1/64", "192.168.1.10/24"]), both[..1]);
        assert_eq!(tried(&["192.168.1.10/24", "2a05::9/64"]), both);
        assert_eq!(tried(&["127.0.0.1/8", "::1/128"]), both, "nothing is known");
    }
}

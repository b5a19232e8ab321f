//! The nodes attached to a super-node, and those of them that are to be told something (Rules 6.55 and 6.57).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId};
use peerage_wire::time::Instant;

use crate::sizes::TableSize;

/// How long an attached node is remembered after it was last heard: three attachment intervals (Rule 4.3).
const CONTACT_LIFETIME: Duration = Duration::from_secs(75);

/// Most nodes attached here, some 150 bytes each; an attachment costs a request every 25 s.
const MAX_CONTACTS: usize = 16_384;

/// Most of them of one domain, so that none takes the place of all others.
const MAX_CONTACTS_PER_DOMAIN: usize = 4_096;

/// Notices under way at once: a large domain is told within seconds, and the line is not filled at once.
const MAX_NOTICES: usize = 256;

/// The nodes attached here, and those of them that are to be told something.
#[derive(Clone, Debug, Default)]
pub(super) struct Contacts {
    all: BTreeMap<Domain, BTreeMap<NodeId, (SocketAddr, Instant)>>,
    count: usize,
    to_tell: BTreeMap<Domain, VecDeque<NodeId>>,
    /// The domain of which somebody was told last: domains take turns, so that a small one does not wait for a large one.
    told_last: Option<Domain>,
    /// How many are being told.
    pub(super) telling: usize,
}

impl Contacts {
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) fn sizes(&self) -> [TableSize; 4] {
        let most = self.all.values().map(BTreeMap::len).max().unwrap_or(0);
        [
            TableSize::new("attached nodes", self.count, MAX_CONTACTS),
            TableSize::new("attached nodes of one domain", most, MAX_CONTACTS_PER_DOMAIN),
            TableSize::new("attached nodes to be told", self.to_be_told(), MAX_CONTACTS),
            TableSize::new("attached nodes that are told", self.telling, MAX_NOTICES),
        ]
    }

    /// Remembers an attached node. Returns false if there is no room.
    pub(super) fn insert(&mut self, node: NodeId, remote: SocketAddr, now: Instant) -> bool {
        let own = self.all.entry(node.domain).or_default();
        if !own.contains_key(&node) {
            if self.count >= MAX_CONTACTS || own.len() >= MAX_CONTACTS_PER_DOMAIN {
                return false;
            }
            self.count += 1;
        }
        own.insert(node, (remote, now));
        true
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        let Some(own) = self.all.get_mut(&node.domain) else { return };
        self.count -= usize::from(own.remove(node).is_some());
        if own.is_empty() {
            self.all.remove(&node.domain);
        }
    }

    pub(super) fn of(&self, domain: Domain) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let own = self.all.get(&domain).into_iter().flatten();
        own.map(|(node, (remote, _))| (*node, *remote))
    }

    /// Returns where a node is that is attached.
    pub(super) fn address(&self, node: &NodeId, now: Instant) -> Option<SocketAddr> {
        let (remote, heard_at) = self.all.get(&node.domain)?.get(node)?;
        (now - *heard_at <= CONTACT_LIFETIME).then_some(*remote)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for own in self.all.values_mut() {
            own.retain(|_, (_, heard_at)| now - *heard_at <= CONTACT_LIFETIME);
        }
        self.recount();
    }

    pub(super) fn retain_domains(&mut self, keeps: impl Fn(Domain) -> bool) {
        self.all.retain(|domain, _| keeps(*domain));
        self.recount();
    }

    fn recount(&mut self) {
        self.all.retain(|_, own| !own.is_empty());
        self.count = self.all.values().map(BTreeMap::len).sum();
    }

    /// Plans to tell every attached node of a domain. Who was to be told before is told once.
    pub(super) fn tell_all(&mut self, domain: Domain) {
        let nodes: VecDeque<_> = self.of(domain).map(|(node, _)| node).collect();
        if !nodes.is_empty() {
            self.to_tell.insert(domain, nodes);
        }
    }

    fn to_be_told(&self) -> usize {
        self.to_tell.values().map(VecDeque::len).sum()
    }

    pub(super) fn next_to_tell(&mut self) -> Option<NodeId> {
        if self.telling >= MAX_NOTICES {
            return None;
        }
        let after = self.told_last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.to_tell.range((after, Bound::Unbounded)).next();
        let domain = later.or_else(|| self.to_tell.first_key_value()).map(|(domain, _)| *domain)?;
        let waiting = self.to_tell.get_mut(&domain)?;
        let node = waiting.pop_front()?;
        if waiting.is_empty() {
            self.to_tell.remove(&domain);
        }
        self.told_last = Some(domain);
        self.telling += 1;
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(domain: u32, n: usize) -> NodeId {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&(n as u64).to_be_bytes());
        NodeId { domain: Domain(domain), hash }
    }

    /// Rule 6.55: no domain takes the attachments of all others, and all together have a limit.
    #[test]
    fn one_domain_attaches_so_many_nodes_and_no_more() {
        let (mut contacts, now) = (Contacts::default(), Instant::from_micros(0));
        let remote = SocketAddr::from(([192, 0, 2, 1], 7400));
        let taken = |contacts: &mut Contacts, domain| {
            (0..2 * MAX_CONTACTS_PER_DOMAIN)
                .filter(|n| contacts.insert(node(domain, *n), remote, now))
                .count()
        };
        for domain in 0..4 {
            assert_eq!(taken(&mut contacts, domain), MAX_CONTACTS_PER_DOMAIN);
        }
        assert_eq!(taken(&mut contacts, 9), 0);
        assert_eq!(contacts.len(), MAX_CONTACTS);
        assert!(contacts.insert(node(3, 0), remote, now), "who is attached stays so");
        contacts.expire(now.after(CONTACT_LIFETIME * 2));
        assert_eq!(contacts.len(), 0);
        assert!(contacts.insert(node(9, 0), remote, now));
    }

    /// Rule 6.57: notices go out a few at a time, and a domain that is told anew is told once.
    #[test]
    fn so_many_notices_are_under_way_and_no_more() {
        let (mut contacts, now) = (Contacts::default(), Instant::from_micros(0));
        for n in 0..1_000 {
            contacts.insert(node(1, n), SocketAddr::from(([192, 0, 2, 1], 7400)), now);
        }
        contacts.tell_all(Domain(1));
        contacts.tell_all(Domain(1));
        assert_eq!(std::iter::from_fn(|| contacts.next_to_tell()).count(), MAX_NOTICES);
        contacts.telling -= 1;
        assert!(contacts.next_to_tell().is_some());
        assert_eq!(contacts.to_be_told(), 1_000 - MAX_NOTICES - 1);
    }

    /// Rule 6.57: a small domain does not wait for a large one.
    #[test]
    fn domains_are_told_in_turn() {
        let (mut contacts, now) = (Contacts::default(), Instant::from_micros(0));
        for (domain, count) in [(1, 1_000), (2, 3), (3, 3)] {
            for n in 0..count {
                contacts.insert(node(domain, n), SocketAddr::from(([192, 0, 2, 1], 7400)), now);
            }
            contacts.tell_all(Domain(domain));
        }
        let told: Vec<_> = std::iter::from_fn(|| contacts.next_to_tell()).take(9).collect();
        for domain in 1..=3 {
            assert_eq!(told.iter().filter(|node| node.domain == Domain(domain)).count(), 3);
        }
    }
}

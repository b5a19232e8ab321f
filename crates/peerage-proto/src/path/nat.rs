//! What the routers on the way do to this node's addresses, as far as the answers of others show it (Rule 6.90).
//!
//! Every answer that states from where its request came is an observation. Two observations by two places tell whether the router
//! maps by the remote address; in which order the places were first written to tells whether it numbers its ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::time::Instant;

/// Most places whose observation is remembered, and most to which something was sent.
const MAX_OBSERVERS: usize = 16;
const MAX_CONTACTS: usize = 128;

/// How long an observation counts. Standing contacts renew it every 25 s; others show it when a way is looked for.
const OBSERVATION_LIFETIME: Duration = Duration::from_secs(120);

/// After how much silence towards a place a router has probably forgotten it, and maps it anew: what RFC 4787 wants (REQ-5).
const MAPPING_LIFETIME: Duration = Duration::from_secs(120);

/// How many ports between two mappings a router may have given to others while it still counts as one that numbers them.
const MAX_STRANGERS: u64 = 8;

/// How a router maps (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// It does not: others see the computer's own address.
    None,
    /// All places see the same address and port.
    EndpointIndependent,
    /// Each address sees another.
    AddressDependent,
    /// Each port of an address sees another.
    AddressAndPortDependent,
}

/// Whom a router lets in (RFC 4787, section 5), as far as it has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Whoever was written to, from whatever port; it may let in others as well.
    AddressDependent,
    /// The very ports that were written to.
    AddressAndPortDependent,
}

/// How a router chooses ports (RFC 4787, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortChoice {
    /// It keeps the computer's own.
    Preserved,
    /// It gives each new mapping the port after that of the one before.
    Sequential,
    /// In no way that can be told.
    Other,
}

/// What is known of the routers on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatBehaviour {
    /// How they map; `None` as long as fewer than two places have shown it.
    pub mapping: Option<Mapping>,
    /// How they choose ports.
    pub ports: Option<PortChoice>,
    /// Whom they let in; `None` as long as nothing has shown it.
    pub filtering: Option<Filtering>,
    /// Whether they turn packets round that are sent from inside to an outer address; `None` as long as that was not tried.
    pub hairpinning: Option<bool>,
    /// How others see this node over IPv4 and IPv6, the newest first.
    pub observed: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Observation {
    observed: SocketAddr,
    /// When, among all mappings, the router made this one.
    order: u64,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Contact {
    order: u64,
    at: Instant,
}

/// What was observed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nat {
    port: u16,
    observations: BTreeMap<SocketAddr, Observation>,
    contacts: BTreeMap<SocketAddr, Contact>,
    next_order: u64,
    filtering: Option<Filtering>,
    hairpinning: Option<bool>,
    /// Since when all to whom something was sent are among the contacts.
    watched_since: Option<Instant>,
}

impl Nat {
    /// Begins for a node that sends from this port.
    pub(crate) fn new(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// The networks have changed: nothing holds any more.
    pub(crate) fn forget(&mut self) {
        self.observations.clear();
        self.contacts.clear();
        (self.filtering, self.hairpinning, self.watched_since) = (None, None, None);
    }

    /// An answer was asked for from a port that was not written to, and came or did not.
    pub(crate) fn note_elsewhere(&mut self, came_from: Option<SocketAddr>) {
        let shown = match came_from {
            Some(place) if self.contacts.contains_key(&place) => return,
            Some(_) => Filtering::AddressDependent,
            None => Filtering::AddressAndPortDependent,
        };
        let known = self.filtering.filter(|known| *known == Filtering::EndpointIndependent);
        self.filtering = known.or(Some(shown));
    }

    /// Somebody who has proven itself was let in, whom nobody may have asked.
    pub(crate) fn note_let_in(&mut self, remote: SocketAddr, now: Instant) {
        // Before that something may have been sent of which nothing is remembered.
        let is_sure = self.watched_since.is_some_and(|since| now - since > MAPPING_LIFETIME);
        let is_known = self.contacts.keys().any(|place| place.ip() == remote.ip());
        if is_sure && !is_known && self.contacts.len() < MAX_CONTACTS && remote.is_ipv4() {
            self.filtering = Some(Filtering::EndpointIndependent);
        }
    }

    /// What was sent to the own outer address came back, or did not.
    pub(crate) const fn note_hairpin(&mut self, came: bool) {
        self.hairpinning = Some(came);
    }

    /// Something is sent to a place beyond the own links: its router may have to make a mapping for that.
    pub(crate) fn note_sent(&mut self, remote: SocketAddr, now: Instant) {
        if let Some(contact) = self.contacts.get_mut(&remote).filter(|c| now - c.at <= MAPPING_LIFETIME) {
            contact.at = now;
            return;
        }
        if self.contacts.len() >= MAX_CONTACTS {
            let oldest = self.contacts.iter().min_by_key(|(_, contact)| contact.at).map(|(place, _)| *place);
            self.contacts.retain(|place, _| Some(*place) != oldest);
        }
        self.watched_since = self.watched_since.or(Some(now));
        // What goes to the router's own outer address ends or turns there (Rule 6.98), and IPv6 is not translated: neither takes a port.
        let is_outer = self.observations.values().any(|known| known.observed.ip() == remote.ip());
        let order = if is_outer || remote.is_ipv6() { self.next_order } else { self.new_order() };
        self.contacts.insert(remote, Contact { order, at: now });
    }

    const fn new_order(&mut self) -> u64 {
        self.next_order = self.next_order.saturating_add(1);
        self.next_order
    }

    /// Somebody says from where this node's request came.
    pub(crate) fn observe(&mut self, by: SocketAddr, observed: SocketAddr, now: Instant) {
        let known = self.observations.get(&by).filter(|known| now - known.at <= OBSERVATION_LIFETIME);
        let order = match known {
            Some(known) if known.observed == observed => known.order,
            // The router has forgotten the old mapping and made a new one.
            Some(_) => self.new_order(),
            None => self.contacts.get(&by).map_or(self.next_order, |contact| contact.order),
        };
        if self.observations.len() >= MAX_OBSERVERS && !self.observations.contains_key(&by) {
            let oldest = self.observations.iter().min_by_key(|(_, known)| known.at).map(|(place, _)| *place);
            self.observations.retain(|place, _| Some(*place) != oldest);
        }
        self.observations.insert(by, Observation { observed, order, at: now });
    }

    fn fresh(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, Observation)> + '_ {
        let all = self.observations.iter().map(|(by, known)| (*by, *known));
        all.filter(move |(_, known)| now - known.at <= OBSERVATION_LIFETIME)
    }

    /// Returns the observations over IPv4, in the order in which the router made the mappings.
    fn in_order(&self, now: Instant) -> Vec<(SocketAddr, Observation)> {
        let mut all: Vec<_> = self.fresh(now).filter(|(_, known)| known.observed.is_ipv4()).collect();
        all.sort_by_key(|(_, known)| known.order);
        all
    }

    /// Returns whether the router is known to give different places different ports.
    pub(crate) fn is_dependent(&self, own: &dyn Fn(IpAddr) -> bool, now: Instant) -> bool {
        matches!(self.mapping(own, now), Some(Mapping::AddressDependent | Mapping::AddressAndPortDependent))
    }

    /// Returns how the router chooses where others see this node, if two of them have said it.
    pub(crate) fn mapping(&self, own: &dyn Fn(IpAddr) -> bool, now: Instant) -> Option<Mapping> {
        let all = self.in_order(now);
        let (_, first) = all.first()?;
        if all.iter().all(|(_, known)| own(known.observed.ip())) {
            return Some(Mapping::None);
        }
        let differ = |one: &(SocketAddr, Observation), other: &(SocketAddr, Observation)| {
            one.1.observed != other.1.observed
        };
        let pairs = || {
            all.iter()
                .enumerate()
                .flat_map(|(at, one)| all.iter().skip(at + 1).map(move |other| (one, other)))
        };
        if pairs().any(|(one, other)| one.0.ip() == other.0.ip() && differ(one, other)) {
            return Some(Mapping::AddressAndPortDependent);
        }
        if all.iter().any(|(_, known)| known.observed != first.observed) {
            return Some(Mapping::AddressDependent);
        }
        // Two ports of one address cannot tell the first two apart.
        pairs().any(|(one, other)| one.0.ip() != other.0.ip()).then_some(Mapping::EndpointIndependent)
    }

    fn is_sequential(all: &[(SocketAddr, Observation)]) -> bool {
        let steps = all.iter().zip(all.iter().skip(1)).filter(|(a, b)| a.1.observed != b.1.observed);
        let fits = |(a, b): (&(SocketAddr, Observation), &(SocketAddr, Observation))| {
            let ports = u64::from(b.1.observed.port()).checked_sub(u64::from(a.1.observed.port()));
            let own = b.1.order.saturating_sub(a.1.order);
            let is_same = a.1.observed.ip() == b.1.observed.ip();
            is_same && ports.is_some_and(|ports| ports > 0 && ports <= own.saturating_add(MAX_STRANGERS))
        };
        let mut steps = steps.peekable();
        steps.peek().is_some() && steps.all(fits)
    }

    /// Returns the port that the router gave last, if it numbers its mappings: the next new place is seen from the one after it.
    pub(crate) fn base(&self, own: &dyn Fn(IpAddr) -> bool, now: Instant) -> Option<SocketAddr> {
        let all = self.in_order(now);
        if !self.is_dependent(own, now) || !Self::is_sequential(&all) {
            return None;
        }
        let (_, last) = all.last()?;
        let since = self.next_order.saturating_sub(last.order);
        let port = last.observed.port().checked_add(u16::try_from(since).ok()?)?;
        Some(SocketAddr::new(last.observed.ip(), port))
    }

    /// Returns how others see this node, each address once, the newest first; own addresses are left out.
    pub(crate) fn reflexive(&self, own: &dyn Fn(IpAddr) -> bool, now: Instant) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.fresh(now).map(|(_, known)| known).collect();
        all.sort_by_key(|known| std::cmp::Reverse((known.at, known.order)));
        let mut seen = Vec::new();
        for address in all.into_iter().map(|known| known.observed) {
            if !own(address.ip()) && !seen.contains(&address) {
                seen.push(address);
            }
        }
        seen
    }

    /// Returns whom the routers let in, if that is known.
    pub(crate) const fn filtering(&self) -> Option<Filtering> {
        self.filtering
    }

    /// Returns what is known; `own` says whether an address is one of this computer's.
    pub(crate) fn behaviour(&self, own: &dyn Fn(IpAddr) -> bool, now: Instant) -> NatBehaviour {
        let all = self.in_order(now);
        let mapping = self.mapping(own, now);
        let keeps = all.iter().all(|(_, known)| known.observed.port() == self.port);
        let ports = if all.is_empty() || mapping == Some(Mapping::None) {
            None
        } else if keeps {
            Some(PortChoice::Preserved)
        } else if Self::is_sequential(&all) {
            Some(PortChoice::Sequential)
        } else {
            // One mapping alone does not show how the next is chosen.
            mapping.map(|_| PortChoice::Other)
        };
        let mut observed = Vec::new();
        let mut newest: Vec<_> = self.fresh(now).map(|(_, known)| known).collect();
        newest.sort_by_key(|known| std::cmp::Reverse((known.at, known.order)));
        for known in newest {
            if !observed.contains(&known.observed) {
                observed.push(known.observed);
            }
        }
        NatBehaviour { mapping, ports, filtering: self.filtering, hairpinning: self.hairpinning, observed }
    }
}

#[cfg(test)]
mod tests;

//! A router that translates addresses, with the knobs of RFC 4787.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::time::Instant;

/// Most mappings of one router; a home router has some thousands. At the limit the one unused for longest gives way.
const MAX_MAPPINGS: usize = 4_096;

/// The lowest port that is given out.
const FIRST_PORT: u16 = 1_024;

/// What a mapping or a filter looks at (RFC 4787, sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// At the inner address alone.
    EndpointIndependent,
    /// At the remote address too.
    AddressDependent,
    /// At the remote address and port too.
    AddressAndPortDependent,
}

impl Behaviour {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::EndpointIndependent, Self::AddressDependent, Self::AddressAndPortDependent];

    fn part(self, remote: SocketAddr) -> (Option<IpAddr>, Option<u16>) {
        match self {
            Self::EndpointIndependent => (None, None),
            Self::AddressDependent => (Some(remote.ip()), None),
            Self::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }
}

/// How outer ports are chosen (RFC 4787, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The inner port if it is free.
    Preserved,
    /// The next free one.
    Sequential,
    /// Scattered.
    Scattered,
}

/// What a router is like.
#[derive(Clone, Copy, Debug)]
pub struct NatConfig {
    /// How it maps.
    pub mapping: Behaviour,
    /// Whom it lets in.
    pub filtering: Behaviour,
    /// How long a mapping lives without a packet from inside.
    pub lifetime: Duration,
    /// Whether inner computers reach each other by outer addresses.
    pub hairpinning: bool,
    /// How it chooses ports.
    pub ports: Ports,
}

type Key = (SocketAddr, (Option<IpAddr>, Option<u16>));

#[derive(Clone, Debug)]
struct Mapping {
    port: u16,
    used_at: Instant,
    /// Whom it has sent to, and when last.
    remotes: BTreeMap<(Option<IpAddr>, Option<u16>), Instant>,
}

/// A router's state.
#[derive(Clone, Debug)]
pub struct Nat {
    config: NatConfig,
    /// The outer address.
    pub public: IpAddr,
    /// Forwarded ports lead nowhere for the time being.
    pub is_closed: bool,
    /// Forwards a port to whoever asks for one.
    pub can_be_asked: bool,
    mappings: BTreeMap<Key, Mapping>,
    by_port: BTreeMap<u16, Key>,
    /// Ports that the owner has forwarded, UDP and TCP alike.
    forwards: BTreeMap<u16, SocketAddr>,
    next_port: u16,
}

impl Nat {
    /// Makes a router.
    pub const fn new(config: NatConfig, public: IpAddr) -> Self {
        Self {
            config,
            public,
            is_closed: false,
            can_be_asked: false,
            mappings: BTreeMap::new(),
            by_port: BTreeMap::new(),
            forwards: BTreeMap::new(),
            next_port: FIRST_PORT,
        }
    }

    /// Returns what it is like.
    pub const fn config(&self) -> &NatConfig {
        &self.config
    }

    /// Forwards an outer port to an inner address, as an owner does; a mapping that has it gives way.
    pub fn forward(&mut self, port: u16, to: SocketAddr) {
        if let Some(key) = self.by_port.get(&port).copied() {
            self.remove(&key);
        }
        self.forwards.insert(port, to);
    }

    /// Forwards nothing to an inner address any more.
    pub fn take_back(&mut self, from: SocketAddr) {
        self.forwards.retain(|_, to| *to != from);
    }

    /// Returns to whom an outer port is forwarded.
    pub fn forwarded(&self, port: u16) -> Option<SocketAddr> {
        self.forwards.get(&port).filter(|_| !self.is_closed).copied()
    }

    /// Forgets all mappings, as after a power cut.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.by_port.clear();
    }

    /// Returns how many mappings there are.
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Translates a datagram on its way out; returns the outer source address.
    pub fn outbound(&mut self, inner: SocketAddr, remote: SocketAddr, now: Instant) -> SocketAddr {
        let forward = self.forwards.iter().find(|(_, to)| **to == inner && !self.is_closed);
        let forward = forward.map(|(port, _)| *port);
        if let Some(port) = forward {
            return SocketAddr::new(self.public, port);
        }
        let key = (inner, self.config.mapping.part(remote));
        let lifetime = self.config.lifetime;
        if self.mappings.get(&key).is_some_and(|mapping| now - mapping.used_at > lifetime) {
            self.remove(&key);
        }
        if !self.mappings.contains_key(&key) {
            self.make_room();
            let port = self.choose_port(inner);
            self.by_port.insert(port, key);
            self.mappings.insert(key, Mapping { port, used_at: now, remotes: BTreeMap::new() });
        }
        let part = self.config.filtering.part(remote);
        let Some(mapping) = self.mappings.get_mut(&key) else { return inner };
        mapping.used_at = now;
        mapping.remotes.retain(|_, at| now - *at <= lifetime);
        mapping.remotes.insert(part, now);
        SocketAddr::new(self.public, mapping.port)
    }

    /// Translates a datagram on its way in; returns the inner address, none if it is filtered.
    pub fn inbound(&self, port: u16, remote: SocketAddr, now: Instant) -> Option<SocketAddr> {
        if let Some(inner) = self.forwarded(port) {
            return Some(inner);
        }
        let key = self.by_port.get(&port)?;
        let mapping = self.mappings.get(key)?;
        if now - mapping.used_at > self.config.lifetime {
            return None;
        }
        let at = mapping.remotes.get(&self.config.filtering.part(remote))?;
        (now - *at <= self.config.lifetime).then_some(key.0)
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mapping) = self.mappings.remove(key) {
            self.by_port.remove(&mapping.port);
        }
    }

    fn make_room(&mut self) {
        if self.mappings.len() < MAX_MAPPINGS {
            return;
        }
        let oldest = self.mappings.iter().min_by_key(|(_, mapping)| mapping.used_at).map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            self.remove(&oldest);
        }
    }

    fn choose_port(&mut self, inner: SocketAddr) -> u16 {
        let first = match self.config.ports {
            Ports::Preserved => inner.port(),
            Ports::Sequential => self.next_port,
            // A multiplication scatters without another source of chance.
            Ports::Scattered => self.next_port.wrapping_mul(40_503),
        };
        let mut port = first.max(FIRST_PORT);
        while self.by_port.contains_key(&port) || self.forwards.contains_key(&port) {
            port = port.checked_add(1).unwrap_or(FIRST_PORT);
        }
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(mapping: Behaviour, filtering: Behaviour) -> Nat {
        let lifetime = Duration::from_secs(30);
        let config = NatConfig { mapping, filtering, lifetime, hairpinning: false, ports: Ports::Sequential };
        Nat::new(config, "45.1.0.1".parse().unwrap())
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(secs: u64) -> Instant {
        Instant::from_micros(secs * 1_000_000)
    }

    #[test]
    fn the_mapping_depends_on_what_the_behaviour_says() {
        let inner = address("192.168.1.2:7400");
        let remotes = ["46.0.0.1:1", "46.0.0.1:2", "46.0.0.2:1"].map(address);
        let different = |behaviour| {
            let mut nat = nat(behaviour, Behaviour::EndpointIndependent);
            let mut outer = remotes.map(|remote| nat.outbound(inner, remote, at(0)).port()).to_vec();
            outer.dedup();
            outer.len()
        };
        assert_eq!(Behaviour::ALL.map(different), [1, 2, 3]);
    }

    #[test]
    fn the_filter_lets_in_whom_the_behaviour_says() {
        let inner = address("192.168.1.2:7400");
        let from = ["46.0.0.1:1", "46.0.0.1:2", "46.0.0.2:1"].map(address);
        let let_in = |behaviour| {
            let mut nat = nat(Behaviour::EndpointIndependent, behaviour);
            let port = nat.outbound(inner, from[0], at(0)).port();
            from.iter().filter(|from| nat.inbound(port, **from, at(1)) == Some(inner)).count()
        };
        assert_eq!(Behaviour::ALL.map(let_in), [3, 2, 1]);
    }

    #[test]
    fn an_unused_mapping_ends_and_a_forwarded_port_does_not() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let (inner, other) = (address("192.168.1.2:7400"), address("192.168.1.3:7400"));
        let remote = address("46.0.0.1:1");
        let port = nat.outbound(inner, remote, at(0)).port();
        nat.forward(7_400, other);
        assert_eq!(nat.inbound(port, remote, at(30)), Some(inner));
        assert_eq!(nat.inbound(port, remote, at(31)), None);
        assert_eq!(nat.inbound(7_400, remote, at(9_999)), Some(other));
        assert_eq!(nat.outbound(other, remote, at(9_999)), address("45.1.0.1:7400"));
    }

    #[test]
    fn a_forwarded_port_is_nobody_elses() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let (inner, other) = (address("192.168.1.2:7400"), address("192.168.1.3:7400"));
        let remote = address("46.0.0.1:1");
        let port = nat.outbound(inner, remote, at(0)).port();
        nat.forward(port, other);
        assert_ne!(nat.outbound(inner, remote, at(1)).port(), port);
    }

    #[test]
    fn a_reboot_forgets_the_mappings() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let (inner, remote) = (address("192.168.1.2:7400"), address("46.0.0.1:1"));
        let port = nat.outbound(inner, remote, at(0)).port();
        nat.reboot();
        assert_eq!((nat.inbound(port, remote, at(1)), nat.mappings()), (None, 0));
    }
}

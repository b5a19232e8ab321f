//! Sites and the Internet between them: who reaches whom, how late, and how much is lost.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use peerage_proto::lan::{Gateway, Interface, InterfaceAddress, InterfaceKind, Prefix};
use peerage_wire::id::Mac;
use peerage_wire::time::Instant;

use crate::chance::Chance;
use crate::nat::{Nat, NatConfig};

/// The port of every node, for messages and links.
pub const PORT: u16 = 7_400;

/// The port from which operators call super-nodes back.
pub const PROBE_PORT: u16 = 7_401;

/// How good a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// How long a datagram takes to or from the Internet's core.
    pub delay: Duration,
    /// How much longer at most; more than the interval between datagrams makes them overtake each other.
    pub jitter: Duration,
    /// How many of a thousand are lost.
    pub loss: u32,
    /// How many of a thousand arrive twice.
    pub duplicated: u32,
}

impl Quality {
    /// A good line.
    pub const GOOD: Self =
        Self { delay: Duration::from_millis(10), jitter: Duration::from_millis(2), loss: 0, duplicated: 0 };
}

/// What a LAN does with datagrams for a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Multicast {
    /// It brings them to everybody.
    #[default]
    Works,
    /// It loses them and says nothing, as access points do.
    Blocked,
    /// Nobody can join the group.
    Refused,
}

/// What a LAN is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lan {
    /// What becomes of datagrams for a group.
    pub multicast: Multicast,
    /// How many of a thousand of them are lost, for each receiver.
    pub loss: u32,
}

/// A place with one LAN.
#[derive(Clone, Debug)]
pub struct Site {
    /// The router that translates, none where every computer has a public address.
    pub nat: Option<Nat>,
    /// The hardware address of the gateway.
    pub gateway: Mac,
    /// The LAN's prefix.
    pub prefix: Prefix,
    /// The line to the Internet.
    pub quality: Quality,
    /// The LAN.
    pub lan: Lan,
    /// Only who is in the same group can be reached; 0 is everybody's.
    pub group: u64,
    next_host: u16,
}

impl Site {
    /// Makes the site number `index`.
    pub fn new(index: usize, nat: Option<NatConfig>, quality: Quality, lan: Lan) -> Self {
        let [.., high, low] = index.to_be_bytes();
        let public = Ipv4Addr::new(45, high, low, 1);
        // Prefixes repeat everywhere, as in life.
        let (inner, length) =
            if nat.is_some() { (Ipv4Addr::new(192, 168, low % 3 * 4, 0), 22) } else { (public, 24) };
        let prefix = Prefix::new(inner.into(), length).unwrap_or_else(|_| Prefix::host(inner.into()));
        Self {
            nat: nat.map(|config| Nat::new(config, public.into())),
            gateway: Mac([2, 0, 0, 1, high, low]),
            prefix,
            quality,
            lan,
            group: 0,
            next_host: 10,
        }
    }

    fn address(&self, host: u16) -> IpAddr {
        match self.prefix.network() {
            IpAddr::V4(network) => {
                let [a, b, c, _] = network.octets();
                let [further, last] = host.to_be_bytes();
                Ipv4Addr::new(a, b, c.saturating_add(further), last).into()
            }
            other @ IpAddr::V6(_) => other,
        }
    }

    /// Gives out an address of the LAN.
    pub fn new_address(&mut self) -> IpAddr {
        let address = self.address(self.next_host);
        let end = if self.nat.is_some() { 1_000 } else { 250 };
        self.next_host = self.next_host.checked_add(1).filter(|next| *next < end).unwrap_or(10);
        address
    }

    /// Returns the networks of a computer here.
    pub fn interfaces(&self, address: IpAddr) -> Vec<Interface> {
        let gateway = Gateway { metric: 0, address: self.address(1), mac: Some(self.gateway) };
        vec![Interface {
            index: 2,
            name: "eth0".to_owned(),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: vec![InterfaceAddress { address, prefix: self.prefix }],
            gateways: vec![gateway],
        }]
    }
}

/// Somebody who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A computer.
    Host(usize),
    /// An operator.
    Operator(usize),
    /// An attacker on the way.
    Stranger,
}

/// Where a datagram has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A site's LAN, and the address there.
    Lan(usize, SocketAddr),
    /// An operator.
    Operator(usize),
}

/// All sites.
#[derive(Debug)]
pub struct Network {
    /// The sites.
    pub sites: Vec<Site>,
    /// Who has which public address.
    public: BTreeMap<IpAddr, usize>,
    operators: BTreeMap<SocketAddr, usize>,
    /// The operators' groups.
    pub operator_groups: Vec<u64>,
    chance: Chance,
}

impl Network {
    /// Makes a network of these sites and operators.
    pub fn new(seed: u64, sites: Vec<Site>, operators: &[SocketAddr]) -> Self {
        let outer = |(index, site): (usize, &Site)| site.nat.as_ref().map(|nat| (nat.public, index));
        let public = sites.iter().enumerate().filter_map(outer).collect();
        let operator_groups = vec![0; operators.len()];
        let ports = |(index, address): (usize, &SocketAddr)| {
            [(*address, index), (SocketAddr::new(address.ip(), PROBE_PORT), index)]
        };
        let operators = operators.iter().enumerate().flat_map(ports).collect();
        Self { sites, public, operators, operator_groups, chance: Chance::new(seed, "network") }
    }

    /// Notes that an address of a site without translation is in use.
    pub fn publish(&mut self, address: IpAddr, site: usize) {
        if self.sites.get(site).is_some_and(|site| site.nat.is_none()) {
            self.public.insert(address, site);
        }
    }

    fn group(&self, place: Place) -> Option<u64> {
        match place {
            Place::Lan(site, _) => self.sites.get(site).map(|site| site.group),
            Place::Operator(index) => self.operator_groups.get(index).copied(),
        }
    }

    /// Returns whether a site and a place can talk at the moment.
    pub fn reaches(&self, site: usize, place: Place) -> bool {
        if matches!(place, Place::Lan(other, _) if other == site) {
            return true;
        }
        let group = self.sites.get(site).map(|site| site.group);
        group.is_some() && group == self.group(place)
    }

    /// Translates on the way out of a site: the source as the world sees it, or none within the LAN.
    pub fn outbound(
        &mut self,
        site: usize,
        inner: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        let is_own = self.public.get(&to.ip()) == Some(&site);
        let site = self.sites.get_mut(site)?;
        if site.prefix.contains(to.ip()) {
            return None;
        }
        Some(match &mut site.nat {
            // What a router does not turn round ends there, and takes no port.
            Some(nat) if is_own && !nat.config().hairpinning => inner,
            Some(nat) => nat.outbound(inner, to, now),
            None => inner,
        })
    }

    /// Finds where an address leads, seen from the Internet. `from` is the source as the world sees it.
    pub fn inbound(
        &self,
        (from_site, from): (Option<usize>, SocketAddr),
        to: SocketAddr,
        now: Instant,
    ) -> Option<Place> {
        if let Some(operator) = self.operators.get(&to) {
            return Some(Place::Operator(*operator));
        }
        let index = *self.public.get(&to.ip())?;
        let site = self.sites.get(index)?;
        let Some(nat) = &site.nat else { return Some(Place::Lan(index, to)) };
        if from_site == Some(index) && !nat.config().hairpinning {
            return None;
        }
        nat.inbound(to.port(), from, now).map(|inner| Place::Lan(index, inner))
    }

    /// Finds the computer behind an address that takes connections, seen from an operator.
    pub fn public_listener(&self, to: SocketAddr) -> Option<Place> {
        let index = *self.public.get(&to.ip())?;
        let inner = match &self.sites.get(index)?.nat {
            None => to,
            Some(nat) => nat.forwarded(to.port())?,
        };
        Some(Place::Lan(index, inner))
    }

    /// Finds the computer behind an address that takes connections, seen from a site.
    pub fn listener(&self, site: usize, to: SocketAddr) -> Option<Place> {
        if self.sites.get(site)?.prefix.contains(to.ip()) {
            return Some(Place::Lan(site, to));
        }
        let index = *self.public.get(&to.ip())?;
        match &self.sites.get(index)?.nat {
            None => Some(Place::Lan(index, to)),
            Some(nat) if index == site && !nat.config().hairpinning => None,
            Some(nat) => nat.forwarded(to.port()).map(|inner| Place::Lan(index, inner)),
        }
    }

    /// Draws when the copies of a datagram arrive; none if it is lost.
    pub fn arrivals(&mut self, from: Option<usize>, to: Option<usize>) -> Vec<Duration> {
        let of = |site: Option<usize>| {
            site.and_then(|site| self.sites.get(site)).map_or(Quality::GOOD, |site| site.quality)
        };
        let (a, b) = (of(from), of(to));
        let is_local = from.is_some() && from == to;
        let lost = self.chance.happens(a.loss) | self.chance.happens(b.loss);
        let doubled = self.chance.happens(a.duplicated.max(b.duplicated));
        let mut draw = || {
            let jitter = self.chance.duration(a.jitter.saturating_add(b.jitter));
            if is_local { Duration::from_micros(300) } else { a.delay + b.delay + jitter }
        };
        let (first, second) = (draw(), draw());
        match (lost && !is_local, doubled) {
            (true, _) => Vec::new(),
            (false, false) => vec![first],
            (false, true) => vec![first, second],
        }
    }

    /// Draws whether a datagram for a group reaches one of its members.
    pub fn is_heard(&mut self, site: usize) -> bool {
        let loss = self.sites.get(site).map_or(1_000, |site| site.lan.loss);
        !self.chance.happens(loss)
    }

    /// Draws how long bytes of a connection take between two sites; what is lost is sent again and only late.
    pub fn latency(&mut self, from: usize, to: usize) -> Duration {
        let of = |site: usize| self.sites.get(site).map_or(Quality::GOOD, |site| site.quality);
        let (a, b) = (of(from), of(to));
        if from == to {
            return Duration::from_micros(300);
        }
        let again = self.chance.happens(a.loss) | self.chance.happens(b.loss);
        let penalty = if again { Duration::from_millis(250) } else { Duration::ZERO };
        a.delay + b.delay + self.chance.duration(a.jitter.saturating_add(b.jitter)) + penalty
    }

    /// Makes everything good again.
    pub fn heal(&mut self) {
        for site in &mut self.sites {
            site.group = 0;
            site.quality = Quality::GOOD;
            if let Some(nat) = &mut site.nat {
                nat.is_closed = false;
            }
        }
        self.operator_groups.fill(0);
    }
}

//! Where the ports of one end cannot be known: many of them meet many guesses (Rule 6.99).
//!
//! A router that gives each place another port at random, and lets in only that place, has no port at which the other end could aim. If
//! its node writes to the other end from many ports, it has as many; and the other end tries ports of the router's address, in an order that
//! looks like chance, until it finds one of them. That is what firewalls call a scan, so both ends must have been told that they may.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::id::{NodeId, SessionId};
use peerage_wire::time::Instant;

use super::PathRole;
use crate::sizes::TableSize;

/// From how many ports a node writes. With *n* of the 64,512 that a router may choose, *t* tries find one with a chance of 1 − (1 − *n* / 64,512)^*t*.
/// More are more descriptors, and mappings of a router that may have room for a few thousand; fewer need more tries.
const MAX_PORTS: usize = 256;

/// How many of them are opened at a time, and how far apart in time: so many packets at once survive most queues.
pub(crate) const WIDE_STEP: usize = 16;
const STEP_PACE: Duration = Duration::from_millis(20);

/// How many ports are tried, and how far apart in time. With 256 ports the chance is 99.7 % in 15 s. Faster is what firewalls look for, slower
/// makes people wait beyond a router's memory.
const MAX_TRIES: usize = 1_500;
const TRY_PACE: Duration = Duration::from_millis(10);

/// How long ordinary checks have before ports are opened, and before they are tried: longer than a round trip through a forwarder, and so
/// much later that the first tries find open ports.
const OPEN_AFTER: Duration = Duration::from_millis(500);
const TRY_AFTER: Duration = Duration::from_secs(1);

/// How long an end does its part: all tries, and the way. Its ports are kept open as long.
pub const WIDE_LIFETIME: Duration = Duration::from_secs(20);

/// How soon ports are tried with the same peer again. Shorter costs both routers more while a relay serves.
const WIDE_INTERVAL: Duration = Duration::from_secs(600);

/// Most peers whose last time is remembered; with further ones nothing is tried.
const MAX_REMEMBERED: usize = 64;

/// The lowest port that routers give out, as a rule: those below are for servers.
const FIRST_PORT: u16 = 1_024;

/// What an end does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It writes to this place from many ports.
    Open(SocketAddr),
    /// It tries ports of this address.
    Try(IpAddr),
}

/// The next packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WideCheck {
    pub(crate) peer: NodeId,
    pub(crate) remote: SocketAddr,
    /// Whether it leaves from each of [`WIDE_STEP`] ports of its own.
    pub(crate) is_from_many: bool,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    peer: NodeId,
    role: PathRole,
    part: Part,
    /// What the order of the tries follows from.
    seed: u64,
    done: usize,
    next_at: Instant,
    ends_at: Instant,
}

/// What is under way, with one peer at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Wide {
    current: Option<Current>,
    began_at: BTreeMap<NodeId, Instant>,
}

impl Wide {
    pub(super) fn sizes(&self) -> TableSize {
        TableSize::new("peers with wide checks", self.began_at.len(), MAX_REMEMBERED)
    }

    /// Returns whether this node can do its part with a peer, or is doing it.
    pub(super) fn may_begin(&self, peer: &NodeId, now: Instant) -> bool {
        match self.current.filter(|current| current.ends_at > now) {
            Some(current) => current.peer == *peer,
            None => {
                let is_lately = |at: &Instant| now - *at < WIDE_INTERVAL;
                let lately = self.began_at.values().filter(|at| is_lately(at)).count();
                lately < MAX_REMEMBERED && !self.began_at.get(peer).is_some_and(is_lately)
            }
        }
    }

    /// Begins, unless it is under way or may not be.
    pub(super) fn begin(
        &mut self,
        (peer, role): (NodeId, PathRole),
        part: Part,
        id: SessionId,
        now: Instant,
    ) {
        let is_under_way = self.current.is_some_and(|current| current.ends_at > now);
        if is_under_way || !self.may_begin(&peer, now) {
            return;
        }
        self.began_at.retain(|_, at| now - *at < WIDE_INTERVAL);
        self.began_at.insert(peer, now);
        let seed = id.0.iter().fold(0_u64, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte));
        let after = if matches!(part, Part::Open(_)) { OPEN_AFTER } else { TRY_AFTER };
        let (next_at, ends_at) = (now.after(after), now.after(WIDE_LIFETIME));
        self.current = Some(Current { peer, role, part, seed, done: 0, next_at, ends_at });
    }

    /// Returns until when places of a peer are of use, if anything is under way.
    pub(super) fn ends_at(&self, (peer, role): (NodeId, PathRole)) -> Option<Instant> {
        let current = self.current.filter(|current| (current.peer, current.role) == (peer, role))?;
        Some(current.ends_at)
    }

    /// There is a path to a peer, or none is wanted.
    pub(super) fn end(&mut self, peer: &NodeId) {
        self.current.take_if(|current| current.peer == *peer);
    }

    /// The networks have changed: what was in vain may not be now.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Returns the next packet that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<WideCheck> {
        self.current.take_if(|current| current.ends_at <= now);
        let current = self.current.as_mut().filter(|current| current.next_at <= now && !current.is_done())?;
        current.done += 1;
        let (remote, pace, is_from_many) = match current.part {
            Part::Open(place) => (place, STEP_PACE, true),
            Part::Try(address) => {
                let number = mixed(current.seed.wrapping_add(current.done as u64));
                let port = number % u64::from(u16::MAX - FIRST_PORT + 1);
                let port = u16::try_from(port).unwrap_or_default().saturating_add(FIRST_PORT);
                (SocketAddr::new(address, port), TRY_PACE, false)
            }
        };
        // Not all at once, if the computer was busy.
        current.next_at = now.after(pace);
        Some(WideCheck { peer: current.peer, remote, is_from_many })
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let current = self.current?;
        Some(if current.is_done() { current.ends_at } else { current.next_at.min(current.ends_at) })
    }
}

impl Current {
    const fn is_done(&self) -> bool {
        let most = match self.part {
            Part::Open(_) => MAX_PORTS / WIDE_STEP,
            Part::Try(_) => MAX_TRIES,
        };
        self.done >= most
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use peerage_wire::id::Domain;

    use super::*;

    const ID: SessionId = SessionId([7; 16]);

    fn peer(number: u8) -> NodeId {
        NodeId { domain: Domain(1), hash: [number; 32] }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    /// Lets it run to its end; returns what is sent when.
    fn run(wide: &mut Wide) -> Vec<(Instant, WideCheck)> {
        let mut all = Vec::new();
        while let Some(now) = wide.next_at() {
            match wide.poll(now) {
                Some(check) => all.push((now, check)),
                None => assert_eq!(wide.next_at(), None),
            }
        }
        all
    }

    #[test]
    fn ports_are_opened_a_few_at_a_time_and_never_more_than_the_limit() {
        let mut wide = Wide::default();
        let place = "46.0.0.1:4242".parse().unwrap();
        wide.begin((peer(1), PathRole::Dial), Part::Open(place), ID, at(0));
        let all = run(&mut wide);
        assert!(all.iter().all(|(_, check)| check.is_from_many && check.remote == place));
        assert_eq!(all.len() * WIDE_STEP, MAX_PORTS);
        assert!(all.windows(2).all(|pair| pair[1].0 - pair[0].0 >= STEP_PACE));
    }

    #[test]
    fn ports_are_tried_one_after_the_other_until_the_limit_or_a_path_is_there() {
        let mut wide = Wide::default();
        let address = "46.0.0.1".parse().unwrap();
        wide.begin((peer(1), PathRole::Await), Part::Try(address), ID, at(0));
        let first = wide.next_at().unwrap();
        assert_eq!(wide.poll(at(999)), None);
        let all = run(&mut wide);
        assert_eq!((first, all.len()), (at(1_000), MAX_TRIES));
        assert!(all.iter().all(|(at, _)| *at - Instant::default() < WIDE_LIFETIME));
        let ports: BTreeSet<_> = all.iter().map(|(_, check)| check.remote.port()).collect();
        assert!(ports.len() > MAX_TRIES * 95 / 100 && ports.first().is_some_and(|port| *port >= FIRST_PORT));

        wide.begin((peer(2), PathRole::Await), Part::Try(address), ID, at(30_000));
        assert!(wide.poll(at(31_000)).is_some());
        wide.end(&peer(2));
        assert_eq!((wide.poll(at(31_010)), wide.next_at()), (None, None));
    }

    #[test]
    fn one_peer_has_it_at_a_time_and_again_only_later_or_on_other_networks() {
        let mut wide = Wide::default();
        let part = Part::Try("46.0.0.1".parse().unwrap());
        wide.begin((peer(1), PathRole::Await), part, ID, at(0));
        assert!(wide.may_begin(&peer(1), at(1)) && !wide.may_begin(&peer(2), at(1)));
        wide.begin((peer(2), PathRole::Await), part, ID, at(1));
        assert_eq!(wide.ends_at((peer(1), PathRole::Await)), Some(at(20_000)));
        assert!(wide.may_begin(&peer(2), at(20_000)) && !wide.may_begin(&peer(1), at(20_000)));
        assert!(wide.may_begin(&peer(1), at(600_000)));
        wide.forget();
        assert!(wide.may_begin(&peer(1), at(20_000)));
        for number in 0..=u8::try_from(MAX_REMEMBERED).unwrap() {
            wide.begin((peer(number), PathRole::Await), part, ID, at(u64::from(number)));
            wide.end(&peer(number));
        }
        assert_eq!(wide.sizes(), TableSize::new("peers with wide checks", MAX_REMEMBERED, MAX_REMEMBERED));
    }
}

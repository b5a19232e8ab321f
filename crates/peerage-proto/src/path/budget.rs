//! How much may be sent to places that somebody else has named (Rule 6.92).
//!
//! A member may name any place as its own, so that a node sends there. What that is worth to an attacker is bounded in four ways: a
//! few packets for each place; a rate for each computer or site that the place may be; a rate for each member that has named them;
//! and the number of attempts. A place from which something sealed came lies behind none of these: whoever holds a member's keys is
//! there, or at least can see what is sent there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::attempt::MAX_UNANSWERED;
use super::candidates::Target;
use crate::limiter::{Limiter, NodeLimiter, Rate};
use crate::sizes::TableSize;

/// Checks that one peer can cause to places where nobody has answered. An attempt needs some twenty, at most a hundred.
const PER_PEER: Rate = Rate { per_second: 10, burst: 200 };

/// The same for what may be one computer or site, whoever has named it: the ports of a router that numbers them, five times each,
/// and some more.
const PER_SITE: Rate = Rate { per_second: 5, burst: 60 };

/// The same where a forwarder has seen a peer: behind one address of an office there are many.
const PER_OBSERVED_SITE: Rate = Rate { per_second: 20, burst: 200 };

/// For how long a place is remembered, with or without an answer.
const MEMORY: Duration = Duration::from_secs(60);

/// Most places that are remembered. Without room there is no check.
const MAX_PLACES: usize = 8_192;

#[derive(Clone, Copy, Debug)]
struct Place {
    /// How many packets went there without an answer.
    sent: usize,
    is_proven: bool,
    forgotten_at: Instant,
}

/// What was sent to whom.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    places: BTreeMap<SocketAddr, Place>,
    per_peer: NodeLimiter,
    per_site: Limiter,
    per_observed_site: Limiter,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            places: BTreeMap::new(),
            per_peer: NodeLimiter::new(PER_PEER),
            per_site: Limiter::new(PER_SITE),
            per_observed_site: Limiter::new(PER_OBSERVED_SITE),
        }
    }
}

impl Budget {
    pub(super) fn sizes(&self) -> [TableSize; 4] {
        [
            TableSize::new("checked places", self.places.len(), MAX_PLACES),
            self.per_peer.size("checks of peers"),
            self.per_site.size("checks of sites"),
            self.per_observed_site.size("checks of observed sites"),
        ]
    }

    /// Takes one packet to a place that a peer has named. Returns false if none may go there.
    pub(super) fn take(&mut self, peer: &NodeId, target: Target, now: Instant) -> bool {
        let address = target.address;
        if self.places.len() >= MAX_PLACES {
            self.places.retain(|_, place| place.forgotten_at > now);
        }
        let known = self.places.get(&address).filter(|place| place.forgotten_at > now).copied();
        if known.is_some_and(|place| place.is_proven) {
            return true;
        }
        let sent = known.map_or(0, |place| place.sent);
        let has_room = known.is_some() || self.places.len() < MAX_PLACES;
        if sent >= MAX_UNANSWERED || !has_room {
            return false;
        }
        let site = if target.is_observed { &mut self.per_observed_site } else { &mut self.per_site };
        if !self.per_peer.take(peer, now) || !site.take(address, now) {
            return false;
        }
        // The memory runs from the first packet: a place that never answers may be tried again a minute later.
        let forgotten_at = known.map_or_else(|| now.after(MEMORY), |place| place.forgotten_at);
        self.places.insert(address, Place { sent: sent + 1, is_proven: false, forgotten_at });
        true
    }

    /// Something sealed has come from a place.
    pub(super) fn proven(&mut self, address: SocketAddr, now: Instant) {
        if self.places.contains_key(&address) || self.places.len() < MAX_PLACES {
            let place = Place { sent: 0, is_proven: true, forgotten_at: now.after(MEMORY) };
            self.places.insert(address, place);
        }
    }
}

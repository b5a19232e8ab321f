//! Every table that can be seen from outside stays within its limit.

use std::collections::BTreeMap;

use peerage_proto::link::MAX_STREAMS;
use peerage_proto::node::{MAX_SERVED, MAX_SERVED_PER_PEER};
use peerage_proto::session::{State, WINDOW_MIN};

use super::Invariant;
use crate::app::End;
use crate::world::World;

/// See the module.
#[derive(Debug)]
pub struct Limits {
    per_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of_peer(MAX_SERVED_PER_PEER)
    }
}

impl Limits {
    /// Makes the invariant with another limit of the tunnels of one peer, for a test that cannot open a thousand.
    pub const fn of_peer(per_peer: usize) -> Self {
        Self { per_peer }
    }
}

impl Invariant for Limits {
    fn name(&self) -> &'static str {
        "tables within their limits"
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        for (index, host) in world.hosts.iter().enumerate() {
            let streams = host.shell.streams().max().unwrap_or(0);
            if streams > MAX_STREAMS {
                return Some(format!("computer {index} has a link with {streams} streams"));
            }
            let mut per_peer: BTreeMap<_, usize> = BTreeMap::new();
            let served = host.shell.tunnels().filter(|(_, tunnel)| {
                tunnel.end == End::Device && matches!(tunnel.session.state(), State::Open)
            });
            for (_, tunnel) in served {
                *per_peer.entry(tunnel.peer).or_default() += 1;
            }
            let (all, most) = (per_peer.values().sum::<usize>(), per_peer.values().max().copied());
            if all > MAX_SERVED || most.is_some_and(|most| most > self.per_peer) {
                return Some(format!("computer {index} serves {all} tunnels, {most:?} of one peer"));
            }
            let sessions = host.shell.tunnels().count() as u64;
            let (used, budget) = host.shell.budget();
            // A receive window and a send buffer of two windows are each session's own.
            if used > budget.saturating_add(sessions.saturating_mul(3 * WINDOW_MIN)) {
                return Some(format!("computer {index} promises {used} bytes to {sessions} sessions"));
            }
        }
        None
    }
}

//! Every table stays within its limit: those of the shell, and those that machines tell of.

use std::collections::BTreeMap;

use peerage_proto::link::MAX_STREAMS;
use peerage_proto::node::{MAX_SERVED, MAX_SERVED_PER_PEER};
use peerage_proto::session::{State, WINDOW_MIN};
use peerage_proto::sizes::TableSize;

use super::Invariant;
use crate::app::End;
use crate::world::World;

/// See the module.
#[derive(Debug)]
pub struct Limits {
    per_peer: usize,
    /// Another limit of a table inside of machines, for a test.
    planted: Option<(&'static str, usize)>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of_peer(MAX_SERVED_PER_PEER)
    }
}

impl Limits {
    /// Makes the invariant with another limit of the tunnels of one peer, for a test that cannot open a thousand.
    pub const fn of_peer(per_peer: usize) -> Self {
        Self { per_peer, planted: None }
    }

    /// Makes the invariant with another limit of a table inside of machines, for a test that cannot fill it.
    pub const fn of_table(name: &'static str, limit: usize) -> Self {
        Self { per_peer: MAX_SERVED_PER_PEER, planted: Some((name, limit)) }
    }

    /// Says which table of a machine is too full.
    fn exceeded(&self, sizes: Vec<TableSize>) -> Option<String> {
        let judged = sizes.into_iter().map(|size| match self.planted {
            Some((name, limit)) if name == size.name => TableSize { limit, ..size },
            _ => size,
        });
        let full = judged.into_iter().find(TableSize::is_exceeded)?;
        Some(format!("{} {}, {} are allowed", full.len, full.name, full.limit))
    }
}

impl Invariant for Limits {
    fn name(&self) -> &'static str {
        "tables within their limits"
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        for (index, operator) in world.operators() {
            if let Some(what) = self.exceeded(operator.table_sizes()) {
                return Some(format!("operator {index} has {what}"));
            }
        }
        for (index, host) in world.hosts.iter().enumerate() {
            if let Some(what) = host.node.as_ref().and_then(|node| self.exceeded(node.table_sizes())) {
                return Some(format!("computer {index} has {what}"));
            }
            let streams = host.shell.streams().max().unwrap_or(0);
            if streams > MAX_STREAMS {
                return Some(format!("computer {index} has a link with {streams} streams"));
            }
            let mut per_peer: BTreeMap<_, usize> = BTreeMap::new();
            let served = host
                .shell
                .tunnels()
                .filter(|(_, tunnel)| tunnel.end == End::Device && matches!(tunnel.state, State::Open));
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

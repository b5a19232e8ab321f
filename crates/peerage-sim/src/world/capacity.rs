//! Computers that can take in so many datagrams a second and no more.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::{Due, World};
use crate::operations::Operation;

/// How long a computer takes to be back that has fallen over.
const RESTART: Duration = Duration::from_secs(30);

/// What becomes of one that has more to do than it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// It drops what is too much.
    Sheds,
    /// It falls over, and is started again.
    Crashes,
}

/// How much a computer can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Datagrams that it can take in within a second.
    pub per_second: u64,
    /// What becomes of it if there are more.
    pub overload: Overload,
}

/// How much those had to do whose capacity is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// Datagrams in the busiest second of the busiest.
    pub busiest: u64,
    /// How many computers had too much to do.
    pub overloaded: usize,
    /// How often one fell over.
    pub crashes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    second: u64,
    count: u64,
    is_overloaded: bool,
}

/// Whose capacity is limited.
#[derive(Debug)]
pub(super) struct Limits {
    capacity: Capacity,
    loads: BTreeMap<usize, Load>,
    strain: Strain,
}

impl World {
    /// Limits what these computers can take in.
    pub fn limit(&mut self, hosts: Range<usize>, capacity: Capacity) {
        let loads = hosts.map(|host| (host, Load::default())).collect();
        self.limits = Some(Limits { capacity, loads, strain: Strain::default() });
    }

    /// Returns how much those had to do whose capacity is limited.
    pub fn strain(&self) -> Strain {
        self.limits.as_ref().map_or_else(Strain::default, |limits| Strain {
            overloaded: limits.loads.values().filter(|load| load.is_overloaded).count(),
            ..limits.strain
        })
    }

    /// Returns whether a computer can take in one more datagram now.
    pub(super) fn takes_in(&mut self, host: usize) -> bool {
        let second = self.now.as_micros() / 1_000_000;
        let Some(limits) = &mut self.limits else { return true };
        let Some(load) = limits.loads.get_mut(&host) else { return true };
        if load.second != second {
            (load.second, load.count) = (second, 0);
        }
        load.count += 1;
        limits.strain.busiest = limits.strain.busiest.max(load.count);
        if load.count <= limits.capacity.per_second {
            return true;
        }
        load.is_overloaded = true;
        if limits.capacity.overload == Overload::Crashes {
            limits.strain.crashes += 1;
            self.stop_host(host, 0);
            self.schedule_in(RESTART, Due::Operation(Operation::Start { host }));
        }
        false
    }
}

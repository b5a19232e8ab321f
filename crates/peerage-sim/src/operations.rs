//! What may happen in a world besides time: the wishes of users, the decisions of administrators, and every fault.
//!
//! An operation names computers, sites and devices by number, counted from zero and modulo how many there are, so that a
//! shortened list still makes sense. What cannot be done at the moment is left undone.

use std::time::Duration;

use crate::app::Script;
use crate::liar::Manner;
use crate::network::Quality;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A user opens a tunnel to a device of the same domain.
    Open {
        /// Which computer.
        host: usize,
        /// Which device of its domain.
        device: usize,
        /// What happens in the tunnel.
        script: Script,
    },
    /// A computer asks a tunnel-node directly for a device of any domain, as a program that keeps no rules would.
    Intrude {
        /// Which computer.
        host: usize,
        /// Which computer it asks.
        target: usize,
        /// Which of all devices.
        device: usize,
    },
    /// A computer loses power.
    Crash {
        /// Which.
        host: usize,
        /// How many of the writes under way are on the disk all the same.
        survivors: usize,
    },
    /// A computer is switched on.
    Start {
        /// Which.
        host: usize,
    },
    /// A computer sleeps.
    Sleep {
        /// Which.
        host: usize,
        /// For how long.
        span: Duration,
        /// Whether its monotonic clock counts the time.
        counts: bool,
    },
    /// Somebody sets a computer's date.
    SetDate {
        /// Which.
        host: usize,
        /// Beyond the true one, in milliseconds.
        error_millis: i64,
    },
    /// A computer's disk becomes slow, or good again.
    SlowDisk {
        /// Which.
        host: usize,
        /// How long a write takes from now on.
        delay: Duration,
    },
    /// A computer's disk refuses writes.
    FullDisk {
        /// Which.
        host: usize,
    },
    /// A computer's disk is copied.
    Backup {
        /// Which.
        host: usize,
    },
    /// A computer loses power and begins again with the copy of its disk.
    Restore {
        /// Which.
        host: usize,
    },
    /// A computer moves to another site.
    Roam {
        /// Which.
        host: usize,
        /// Where to.
        site: usize,
    },
    /// A site is cut off from all others.
    Cut {
        /// Which.
        site: usize,
    },
    /// Sites talk among themselves alone: those in this set of bits, and the others with the operators.
    Split {
        /// Bit n stands for site n.
        sites: u64,
    },
    /// Cuts and splits end.
    Join,
    /// A site's network becomes better or worse.
    Degrade {
        /// Which.
        site: usize,
        /// How it is from now on.
        quality: Quality,
    },
    /// A router forgets its mappings, and connections through it die without a word.
    RebootRouter {
        /// Whose.
        site: usize,
    },
    /// The connections of a computer are reset.
    ResetConnections {
        /// Which.
        host: usize,
    },
    /// The connections of a computer carry nothing for a while.
    StallConnections {
        /// Which.
        host: usize,
        /// For how long.
        span: Duration,
    },
    /// An operator loses power; what was in its memory is gone.
    StopOperator {
        /// Which.
        operator: usize,
    },
    /// An operator is started again.
    StartOperator {
        /// Which.
        operator: usize,
    },
    /// All operators lose power, and are back after a while.
    Outage {
        /// After what time.
        span: Duration,
    },
    /// The ledger loses the segment map, as if it came from a backup of the time before.
    ForgetHolders,
    /// Super-nodes lose power at once.
    LoseHolders {
        /// Bit n stands for the super-node number n.
        which: u64,
    },
    /// The owner of a computer lends it to the network as a super-node, or no longer.
    Lend {
        /// Which.
        host: usize,
        /// Whether.
        on: bool,
    },
    /// A computer comes to a metered network or runs on battery, or does so no longer.
    Tire {
        /// Which.
        host: usize,
        /// Whether it may be a super-node all the same.
        ok: bool,
    },
    /// A router forwards no port any more, or does again.
    CloseRouter {
        /// Whose.
        site: usize,
        /// Whether it is closed.
        is_closed: bool,
    },
    /// A member is revoked.
    Revoke {
        /// Which computer's.
        host: usize,
    },
    /// A member leaves the network.
    Leave {
        /// Which computer's.
        host: usize,
    },
    /// From now on a computer runs a program that lies, until it is started anew.
    Lie {
        /// Which.
        host: usize,
        /// How.
        manner: Manner,
    },
    /// The root retires an operator, unless it is the last.
    Retire {
        /// Which.
        operator: usize,
    },
    /// An operator is started anew with a date that is off.
    SetOperatorDate {
        /// Which.
        operator: usize,
        /// Beyond the true one, in milliseconds.
        error_millis: i64,
    },
    /// Somebody on a LAN says again what was said to its group, or to another's.
    ReplayGroups {
        /// On which site's LAN.
        site: usize,
        /// How many.
        count: usize,
    },
    /// A device gets another address from its router.
    Readdress {
        /// Which of all devices.
        device: usize,
    },
    /// A device is unplugged.
    Unplug {
        /// Which of all devices.
        device: usize,
    },
    /// A device is plugged in again.
    Plug {
        /// Which of all devices.
        device: usize,
    },
    /// An administrator takes a device out of the network.
    Unregister {
        /// Which of all devices.
        device: usize,
    },
    /// An administrator registers a device, again if it was taken out.
    Register {
        /// Which of all devices.
        device: usize,
    },
    /// An administrator lets only one computer use a device.
    Restrict {
        /// Which of all devices.
        device: usize,
        /// Which computer.
        host: usize,
    },
    /// Somebody on the way sends datagrams again that he saw, to whom they were for and to others.
    Replay {
        /// How many.
        count: usize,
    },
    /// Somebody on the way sends datagrams with a bit altered.
    Alter {
        /// How many.
        count: usize,
    },
    /// Somebody floods a computer with bytes.
    Flood {
        /// Which.
        host: usize,
        /// How many datagrams.
        count: usize,
    },
    /// Somebody floods an operator with bytes.
    FloodOperator {
        /// Which.
        operator: usize,
        /// How many datagrams.
        count: usize,
    },
}

//! How a request gets to its receiver, and what is to be expected of each way.

use std::time::Duration;

use peerage_wire::id::NodeId;

use super::{LEG_TIMEOUT, ONCE_TIMEOUT, RETRANSMIT};
use crate::relay::LegId;

/// How a request gets to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::endpoint) enum Way {
    /// As a datagram, again and again.
    Straight,
    /// As a datagram, once, because this node has asked for it.
    Once(NodeId),
    /// As a datagram, once, to see whether it gets there; its sender repeats it as it likes.
    Check,
    /// As a datagram from a second port, again and again.
    Probe,
    /// Inside a request to this node, which passes it on.
    Through(NodeId),
    /// On a TCP connection of this node's own.
    Leg(LegId),
}

impl Way {
    /// Returns how long an answer is waited for after the first sending.
    pub(super) const fn patience(self) -> Duration {
        match self {
            Self::Straight | Self::Probe | Self::Through(_) => RETRANSMIT[0],
            Self::Once(_) | Self::Check => ONCE_TIMEOUT,
            Self::Leg(_) => LEG_TIMEOUT,
        }
    }

    /// Returns the wait before the next sending, after so many; `None` if there is none.
    pub(super) fn wait_after(self, sent: usize) -> Option<Duration> {
        match self {
            Self::Straight | Self::Probe | Self::Through(_) => RETRANSMIT.get(sent).copied(),
            Self::Once(_) | Self::Check | Self::Leg(_) => None,
        }
    }
}

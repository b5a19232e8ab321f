//! How a request gets to its receiver, and how long its answer is waited for.

use std::time::Duration;

use peerage_wire::id::NodeId;

use crate::carrier::StreamId;
use crate::relay::LegId;

/// When a request that was not answered is sent again, counted from when it was last sent; after the last it has
/// failed (Rule 6.2). RFC 8489 starts at the same 500 ms; three packets survive 10 % loss in 99.9 of 100 cases.
pub(super) const RETRANSMIT: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(1_000), Duration::from_millis(2_000)];

/// How long a request on a leg may take: as long as the relay waits for the other leg, and the way there and back.
const LEG_TIMEOUT: Duration = Duration::from_secs(12);

/// How long the answer to a request that is sent only once is waited for; whoever caused it repeats it if it is lost.
const ONCE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a request gets to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As a datagram, again and again: over UDP, or on the stream on which the receiver is reached.
    Straight,
    /// The same, once, because this node has asked for it.
    Once(NodeId),
    /// Over UDP, once, to see whether it gets there; its sender repeats it as it likes.
    Check,
    /// The same, once from each of some ports that are there for it alone.
    Widely,
    /// On this stream, once, to see whether it gets there.
    Stream(StreamId),
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
            Self::Once(_) | Self::Check | Self::Widely | Self::Stream(_) => ONCE_TIMEOUT,
            Self::Leg(_) => LEG_TIMEOUT,
        }
    }

    /// Returns the wait before the next sending, after so many; `None` if there is none.
    pub(super) fn wait_after(self, sent: usize) -> Option<Duration> {
        match self {
            Self::Straight | Self::Probe | Self::Through(_) => RETRANSMIT.get(sent).copied(),
            Self::Once(_) | Self::Check | Self::Widely | Self::Stream(_) | Self::Leg(_) => None,
        }
    }
}

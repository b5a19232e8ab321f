//! What goes into an election and what comes out of it.

use std::time::Duration;

use peerage_wire::beacon::{Ballot, Beacon, Kind};
use peerage_wire::id::NodeId;

/// Who this node is, and what is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The own id.
    pub node: NodeId,
    /// About what.
    pub ballot: Ballot,
    /// How many are to be elected, at least one.
    pub seats: usize,
    /// Whether beacons can be sent and heard, as far as is known.
    pub multicast: bool,
    /// Over how long candidates are spread; [`SPREAD`](super::SPREAD), or zero where nobody else can be.
    pub spread: Duration,
}

/// Everything that can happen to an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening<'a> {
    /// A deadline may have passed.
    Timeout,
    /// A beacon about this ballot came, opened and made less than a minute ago.
    Heard(&'a Beacon),
    /// A beacon could not be sent, or the interface carries none.
    MulticastFailed,
    /// Whether a server confirms that this node is attached: told when it is elected, and when that changes.
    Attached(bool),
    /// Answers [`Order::LookUp`]: which others have announced themselves, or nothing if nobody answered.
    LookedUp(Option<&'a [NodeId]>),
    /// The node stops or the computer is about to sleep.
    Stop,
}

/// Everything that an election asks of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send a beacon.
    Send {
        /// What it says.
        kind: Kind,
        /// For how long this node has been elected.
        seated: Duration,
    },
    /// Find out who else has announced itself for this ballot, lately and verified.
    LookUp {
        /// Whether to count only those who also answer whoever asks them for a tunnel.
        answering: bool,
    },
    /// This node is elected from now on, or no longer.
    Elected(bool),
}

//! An election as its owner and people look at it.

use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::{Election, State};

impl Election {
    /// Returns whether this node is to serve.
    pub const fn is_elected(&self) -> bool {
        matches!(self.state, State::Seated { .. })
    }

    /// Returns how many others are elected, as far as can be heard.
    pub fn others(&self) -> usize {
        self.heard.seated().count()
    }

    /// Returns for how long this node has been elected; none if it is not.
    pub fn elected_for(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Seated { since, .. } => Some(now - since),
            State::Watching | State::Standing { .. } => None,
        }
    }

    /// Returns whether this node serves beside those who are elected, because they do not.
    pub const fn is_additional(&self) -> bool {
        matches!(self.state, State::Seated { additional: true, .. })
    }

    /// Returns the others who say that they serve, and for how long they have; for people, since any member can say so.
    pub fn serving(&self, now: Instant) -> impl Iterator<Item = (NodeId, Duration)> + '_ {
        self.heard.serving(now)
    }

    /// Returns whether the announcements of the location are looked up because no beacon is heard.
    pub const fn is_deaf(&self) -> bool {
        self.is_deaf
    }
}

//! Ports of routers that lead to this node (Rules 6.80 to 6.82): when they are wanted, and what comes of them.

use std::time::Duration;

use peerage_wire::codec::Candidate;
use peerage_wire::time::{Instant, Now};

use super::{Event, Node, Output};
use crate::mapping::{MAX_ROUTERS, Ports, RouterMapping};

/// How long a user-node keeps a port of its router after it last had need of it. Longer leaves doors open for nothing; shorter asks
/// again for each tunnel.
const NEED_LIFETIME: Duration = Duration::from_secs(600);

/// What routers were asked for, and what they have given.
#[derive(Clone, Debug, Default)]
pub(super) struct PortMapping {
    wanted: Ports,
    /// Until when this node needs a port as a user-node (Rule 6.80).
    needed_until: Option<Instant>,
    routers: Vec<RouterMapping>,
}

impl PortMapping {
    pub(super) fn routers(&self) -> &[RouterMapping] {
        &self.routers
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate> {
        self.routers.iter().flat_map(|router| router.mapping.candidates())
    }

    /// Returns when the need of a user-node is looked at again.
    pub(super) const fn next_at(&self) -> Option<Instant> {
        self.needed_until
    }
}

impl Node {
    /// Asks for mappings as soon as others are to reach this node, and gives them back when nobody is: who only uses devices keeps
    /// no door open, except as long as no other way leads past its router.
    pub(super) fn review_mapping(&mut self) {
        let serves = !self.serving.served.is_empty();
        let wanted = match self.mapping.needed_until {
            _ if self.is_revoked() => Ports::None,
            _ if serves || self.is_lent() => Ports::All,
            Some(_) => Ports::Udp,
            None => Ports::None,
        };
        if std::mem::replace(&mut self.mapping.wanted, wanted) != wanted {
            self.outputs.push_back(Output::MapPorts(wanted));
        }
    }

    /// Checks of this node as user-node find nobody, or cannot: a port of its router would let the peer's pass.
    pub(super) fn need_mapping(&mut self, now: Now) {
        self.mapping.needed_until = Some(now.mono.after(NEED_LIFETIME));
    }

    pub(super) fn mapping_timeout(&mut self, now: Now) {
        if self.mapping.needed_until.is_some_and(|until| until <= now.mono) {
            self.mapping.needed_until = None;
            // It may be what a path in use stands on.
            if self.uses_paths() {
                self.need_mapping(now);
            }
        }
    }

    pub(super) fn mapped(&mut self, mut routers: Vec<RouterMapping>, now: Now) {
        routers.truncate(MAX_ROUTERS);
        let before: Vec<_> = self.mapping.candidates().collect();
        self.mapping.routers = routers;
        if before != self.mapping.candidates().collect::<Vec<_>>() {
            self.announce_soon(now);
            self.readdress_role(now);
            if self.mapping.candidates().next().is_some() {
                self.event(Event::Reachable);
            }
        }
    }
}

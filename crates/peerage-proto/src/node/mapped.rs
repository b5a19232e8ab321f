//! Ports of routers that lead to this node (Rules 6.80 to 6.82): when they are wanted, and what comes of them.

use peerage_wire::codec::Candidate;
use peerage_wire::time::Now;

use super::{Node, Output};
use crate::mapping::{MAX_ROUTERS, RouterMapping};

/// What routers were asked for, and what they have given.
#[derive(Clone, Debug, Default)]
pub(super) struct PortMapping {
    is_wanted: bool,
    routers: Vec<RouterMapping>,
}

impl PortMapping {
    pub(super) fn routers(&self) -> &[RouterMapping] {
        &self.routers
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate> {
        self.routers.iter().flat_map(|router| router.mapping.candidates())
    }
}

impl Node {
    /// Asks for mappings as soon as others are to reach this node, and gives them back when nobody is: who only uses devices keeps no
    /// door open.
    pub(super) fn review_mapping(&mut self) {
        let serves = !self.serving.served.is_empty();
        let is_wanted = (serves || self.is_lent()) && !self.is_revoked();
        if std::mem::replace(&mut self.mapping.is_wanted, is_wanted) != is_wanted {
            self.outputs.push_back(Output::MapPorts(is_wanted));
        }
    }

    pub(super) fn mapped(&mut self, mut routers: Vec<RouterMapping>, now: Now) {
        routers.truncate(MAX_ROUTERS);
        let before: Vec<_> = self.mapping.candidates().collect();
        self.mapping.routers = routers;
        if before != self.mapping.candidates().collect::<Vec<_>>() {
            self.announce_soon(now);
            self.readdress_role(now);
        }
    }
}

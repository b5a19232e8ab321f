//! How much a set of holders is worth to each domain of a segment.

use std::collections::BTreeSet;

use peerage_wire::id::{Domain, NodeId, Segment};

use super::SuperNode;
use crate::segments::diversity::{Prefix, Replica, replicas};

/// A super-node by its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) id: NodeId,
    pub(super) node: &'a SuperNode,
}

impl Replica for Member<'_> {
    fn organisation(&self) -> Domain {
        self.id.domain
    }

    fn prefixes(&self) -> &[Prefix] {
        &self.node.prefixes
    }
}

/// Returns the members but for one.
pub(super) fn without<'a>(members: &[Member<'a>], id: &NodeId) -> Vec<Member<'a>> {
    members.iter().filter(|member| member.id != *id).copied().collect()
}

/// Returns how many replicas even the worst-off of the segment's domains has: to a domain of which a member is,
/// that member is an extra and does not count.
pub(super) fn strength(members: &[Member<'_>], segment: &Segment) -> usize {
    let own: BTreeSet<Domain> =
        members.iter().map(|member| member.id.domain).filter(|domain| segment.touches(*domain)).collect();
    let all = replicas(members);
    if all == members.len() {
        // Nothing is in conflict, so a domain lacks nobody but its own.
        return all.saturating_sub(usize::from(!own.is_empty()));
    }
    let others = |domain: Domain| -> Vec<Member<'_>> {
        members.iter().filter(|member| member.id.domain != domain).copied().collect()
    };
    own.into_iter().map(|domain| replicas(&others(domain))).min().unwrap_or(all)
}

#[cfg(test)]
mod tests {
    use super::super::Standing;
    use super::*;

    #[test]
    fn a_member_of_a_domain_in_the_segment_is_an_extra_for_it() {
        let nodes: Vec<_> = (1..=4).map(|domain| member(domain, &[domain])).collect();
        let members: Vec<_> = nodes.iter().map(|(id, node)| Member { id: *id, node }).collect();
        assert_eq!(strength(&members, &Segment::ALL), 3);
        assert_eq!(strength(&members, &Segment::of_domain(Domain(2))), 3);
        assert_eq!(strength(&members, &Segment::of_domain(Domain(9))), 4);
    }

    fn member(domain: u32, prefixes: &[u32]) -> (NodeId, SuperNode) {
        let prefixes = prefixes.iter().map(|n| Prefix::V4([10, 0, u8::try_from(*n).unwrap()])).collect();
        let standing = Standing::Live;
        let node = SuperNode { prefixes, vendor: false, standing, ready: true, capacity: u64::MAX };
        (NodeId { domain: Domain(domain), hash: [0; 32] }, node)
    }
}

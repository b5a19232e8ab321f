//! How much a set of holders is worth: replicas that do not fail, or lie, together.
//!
//! Two super-nodes of one organisation, or of one address prefix, count as one replica. Of several sets of holders
//! that could be counted the largest counts, so that one more holder never makes a place poorer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use peerage_wire::id::Domain;

/// Most holders of which the diversity is worked out, in the order of their ids: no segment is given more. Each
/// costs a bit of a mask; the search is quick while few prefixes are shared.
const MAX_COUNTED: usize = 32;

/// The part of the Internet that an address is in: what one provider, or one attacker, usually has for little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Prefix {
    /// The first 24 bits of an IPv4 address.
    V4([u8; 3]),
    /// The first 48 bits of an IPv6 address.
    V6([u16; 3]),
}

impl Prefix {
    /// Returns the prefixes of a super-node's addresses, each once. Loopback has none: whoever is reached there
    /// runs on the operator's own machine, in a demonstration or a test, where prefixes tell nothing.
    pub(crate) fn of_all(addresses: &[SocketAddr]) -> Vec<Self> {
        let prefixes: BTreeSet<_> = addresses.iter().filter_map(|address| Self::of(address.ip())).collect();
        prefixes.into_iter().collect()
    }

    fn of(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            address if address.is_loopback() => None,
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Some(Self::V4([a, b, c]))
            }
            IpAddr::V6(v6) => {
                let [a, b, c, ..] = v6.segments();
                Some(Self::V6([a, b, c]))
            }
        }
    }
}

/// What decides whether two holders may fail, or lie, together.
pub(crate) trait Replica {
    /// Returns whose computer it is.
    fn organisation(&self) -> Domain;

    /// Returns the prefixes of its addresses.
    fn prefixes(&self) -> &[Prefix];

    /// Returns whether two count once.
    fn conflicts(&self, other: &Self) -> bool {
        self.organisation() == other.organisation()
            || self.prefixes().iter().any(|prefix| other.prefixes().contains(prefix))
    }
}

impl<R: Replica> Replica for &R {
    fn organisation(&self) -> Domain {
        (*self).organisation()
    }

    fn prefixes(&self) -> &[Prefix] {
        (*self).prefixes()
    }
}

/// Returns how many replicas the members count for: the most of them that are pairwise of distinct organisations
/// and prefixes.
pub(crate) fn replicas<R: Replica>(members: &[R]) -> usize {
    let members = members.get(..MAX_COUNTED).unwrap_or(members);
    let conflicts: Vec<u32> = members
        .iter()
        .enumerate()
        .map(|(n, member)| {
            let others = members.iter().enumerate().filter(|(m, other)| *m != n && member.conflicts(other));
            others.fold(0, |mask, (m, _)| mask | bit(m))
        })
        .collect();
    let everybody = (0..members.len()).fold(0, |mask, n| mask | bit(n));
    most_without_conflict(everybody, &conflicts)
}

/// The size of the largest set within `left` of which no two are in conflict.
fn most_without_conflict(mut left: u32, conflicts: &[u32]) -> usize {
    let mut taken = 0;
    while left != 0 {
        let within = |n: usize| conflicts.get(n).copied().unwrap_or(0) & left;
        let indices = || (0..conflicts.len()).filter(|n| left & bit(*n) != 0);
        // Whose rivals are all rivals of each other can be taken without loss: at most one of them could be. That
        // alone settles organisations; only prefixes that are shared crosswise leave something to try.
        let safe = indices().find(|n| {
            let rivals = within(*n);
            let mut each = indices().filter(|m| rivals & bit(*m) != 0);
            each.all(|m| (rivals & !bit(m)) & !within(m) == 0)
        });
        if let Some(n) = safe {
            taken += 1;
            left &= !(within(n) | bit(n));
            continue;
        }
        let Some(most) = indices().max_by_key(|n| within(*n).count_ones()) else { break };
        let with = 1 + most_without_conflict(left & !(within(most) | bit(most)), conflicts);
        return taken + with.max(most_without_conflict(left & !bit(most), conflicts));
    }
    taken
}

fn bit(n: usize) -> u32 {
    u32::try_from(n).ok().and_then(|n| 1_u32.checked_shl(n)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    struct Holder(Domain, Vec<Prefix>);

    impl Holder {
        fn of(domain: u32, prefixes: &[u32]) -> Self {
            let prefixes = prefixes.iter().map(|n| Prefix::V4([10, 0, u8::try_from(*n).unwrap()]));
            Self(Domain(domain), prefixes.collect())
        }
    }

    impl Replica for Holder {
        fn organisation(&self) -> Domain {
            self.0
        }

        fn prefixes(&self) -> &[Prefix] {
            &self.1
        }
    }

    #[test]
    fn a_prefix_is_24_bits_of_ipv4_and_48_of_ipv6_and_none_of_loopback() {
        let of = |text: &str| Prefix::of_all(&[text.parse().unwrap()]);
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.250:9"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.3.1:1"));
        assert_eq!(of("[2001:db8:1:2::3]:1"), of("[2001:db8:1:ffff::9]:1"));
        assert_ne!(of("[2001:db8:1::]:1"), of("[2001:db8:2::]:1"));
        assert_eq!(of("[::ffff:192.0.2.1]:1"), of("192.0.2.1:1"));
        assert_eq!(of("127.0.0.1:1"), []);
        assert_eq!(of("[::1]:1"), []);
    }

    #[test]
    fn two_of_one_organisation_or_prefix_count_once() {
        assert_eq!(count(&[(1, &[1]), (2, &[2]), (3, &[3])]), 3);
        assert_eq!(count(&[(1, &[1]), (1, &[2]), (3, &[3])]), 2);
        assert_eq!(count(&[(1, &[1]), (2, &[1]), (3, &[3])]), 2);
        assert_eq!(count(&[]), 0);
    }

    #[test]
    fn whoever_shares_with_two_others_gives_way_to_them() {
        assert_eq!(count(&[(1, &[1, 2]), (2, &[1]), (3, &[2])]), 2);
    }

    proptest! {
        /// The search finds what trying every subset finds.
        #[test]
        fn the_largest_set_without_conflict_is_found(
            shape in vec((0..6_u32, vec(0..6_u32, 0..3)), 0..10),
        ) {
            let members: Vec<_> = shape.iter().map(|(domain, prefixes)| Holder::of(*domain, prefixes)).collect();
            let best = (0..1_u32 << members.len()).filter_map(|mask| {
                let chosen: Vec<_> = (0..members.len()).filter(|n| mask & bit(*n) != 0).map(|n| &members[n]).collect();
                let free = |n: usize, a: &&Holder| chosen[n + 1..].iter().all(|b| !a.conflicts(b));
                chosen.iter().enumerate().all(|(n, a)| free(n, a)).then_some(chosen.len())
            });
            prop_assert_eq!(replicas(&members), best.max().unwrap());
        }
    }

    fn count(shape: &[(u32, &[u32])]) -> usize {
        replicas(&shape.iter().map(|(domain, prefixes)| Holder::of(*domain, prefixes)).collect::<Vec<_>>())
    }
}

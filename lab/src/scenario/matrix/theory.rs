//! What surrounds the two ends of a pair, and whether theory allows a direct path between them.
//!
//! Nothing here knows of the program: the answer follows from how translators and firewalls behave (RFC 4787) alone.

use crate::device::MappingProtocol;
use crate::netns::Behaviour::{AddressAndPortDependent, EndpointIndependent};
use crate::netns::{Behaviour, Egress, Nat, PortAssignment, Translation};

/// What is around one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) name: &'static str,
    /// What the site's router does.
    pub(super) nat: Nat,
    /// What the carrier's translator does, between the router and the Internet.
    pub(super) carrier: Option<Nat>,
    pub(super) egress: Egress,
    pub(super) has_ipv6: bool,
    /// How the router lets itself be asked for ports.
    pub(super) mapping: Option<MappingProtocol>,
}

impl Side {
    pub(super) const fn new(name: &'static str, nat: Nat) -> Self {
        Self { name, nat, carrier: None, egress: Egress::Open, has_ipv6: false, mapping: None }
    }

    const fn behind(self, carrier: Nat) -> Self {
        Self { carrier: Some(carrier), ..self }
    }

    const fn with_egress(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    const fn with_ipv6(self) -> Self {
        Self { has_ipv6: true, ..self }
    }

    const fn with_mapping(self, protocol: MappingProtocol) -> Self {
        Self { mapping: Some(protocol), ..self }
    }

    /// Returns whether datagrams leave the site.
    fn has_udp(&self) -> bool {
        matches!(self.egress, Egress::Open | Egress::Ipv6Only)
    }

    fn has_ipv4(&self) -> bool {
        !matches!(self.egress, Egress::Ipv6Only | Egress::Ipv6NoUdp)
    }

    /// Returns whether everybody can connect from outside, without a word from inside to him.
    fn is_open(&self) -> bool {
        self.has_ipv4() && self.carrier.is_none() && (self.nat == Nat::None || self.mapping.is_some())
    }

    /// Returns whether the firewall of IPv6 lets in whoever connects, having been asked to (RFC 6887).
    fn is_open_to_ipv6(&self) -> bool {
        self.has_ipv6 && self.mapping == Some(MappingProtocol::Pcp)
    }

    /// Returns whether a peer can know in advance at which port it has to aim, and whether only the exact endpoint that was
    /// spoken to is let in.
    fn udp(&self) -> (bool, bool) {
        if self.is_open() {
            return (true, false);
        }
        let translators = [Some(self.nat), self.carrier].into_iter().flatten();
        let behaviours: Vec<_> = translators.map(behaviour).collect();
        // One after the other, the less permissive of both shows.
        let is_known = behaviours.iter().all(|(mapping, _, ports)| {
            *mapping == EndpointIndependent || *ports == PortAssignment::Sequential
        });
        let filters = behaviours.iter().any(|(_, filtering, _)| *filtering == AddressAndPortDependent);
        (is_known, filters)
    }
}

/// Returns mapping, filtering and choice of ports.
fn behaviour(nat: Nat) -> (Behaviour, Behaviour, PortAssignment) {
    match nat {
        Nat::None => (EndpointIndependent, EndpointIndependent, PortAssignment::Preserving),
        // As long as no two hosts use the same port.
        Nat::Masquerade => (EndpointIndependent, AddressAndPortDependent, PortAssignment::Preserving),
        Nat::Translation(Translation { mapping, filtering, ports, .. }) => (mapping, filtering, ports),
    }
}

/// How the two ends' networks are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// Two sites with different prefixes.
    Apart,
    /// Two sites whose hosts have the same addresses.
    EqualPrefixes,
    /// One LAN.
    SameLan,
    /// Two sites that are customers of one carrier, whose translator is this.
    SameCarrier(Nat),
}

/// A user's side and a tunnel-node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) user: Side,
    pub(super) node: Side,
    pub(super) together: Together,
}

impl Pair {
    const fn apart(user: Side, node: Side) -> Self {
        Self { user, node, together: Together::Apart }
    }

    /// Returns whether a direct path is possible.
    ///
    /// Over UDP it is if each end's port can be known to the other, because its mapping is endpoint-independent or its ports are
    /// counted up by nobody else; or if one cannot be known, but the other filters by address at most, so that the unknown port is
    /// learnt from the first packet. Over TCP it is if one end is open and the other may connect to any port.
    pub(super) fn is_direct_possible(&self) -> bool {
        match self.together {
            Together::SameLan => true,
            // Their inner addresses are known to nobody outside; their outer ones lead back if the carrier turns packets round.
            Together::SameCarrier(carrier) => carrier.hairpins(),
            Together::Apart | Together::EqualPrefixes => {
                self.is_possible_by_udp() || self.is_possible_by_tcp()
            }
        }
    }

    /// Returns whether a direct path is likely where many ports are tried: the user's end writes from many random ones to the one port of the
    /// other end, which tries random ones in turn.
    pub(super) fn is_likely_widely(&self) -> bool {
        let Self { user, node, together } = self;
        let is_one_port = [Some(node.nat), node.carrier]
            .into_iter()
            .flatten()
            .all(|nat| behaviour(nat).0 == EndpointIndependent);
        let has_both = |side: &Side| side.has_udp() && side.has_ipv4();
        *together == Together::Apart && has_both(user) && has_both(node) && !user.udp().0 && is_one_port
    }

    fn is_possible_by_udp(&self) -> bool {
        let Self { user, node, .. } = self;
        if !user.has_udp() || !node.has_udp() {
            return false;
        }
        // Stateful firewalls, and nothing that translates.
        if user.has_ipv6 && node.has_ipv6 {
            return true;
        }
        if !user.has_ipv4() || !node.has_ipv4() {
            return false;
        }
        match (user.udp(), node.udp()) {
            ((true, _), (true, _)) => true,
            ((false, _), (_, filters)) | ((_, filters), (false, _)) if !filters => true,
            _ => false,
        }
    }

    fn is_possible_by_tcp(&self) -> bool {
        let connects = |from: &Side, to: &Side| {
            let is_let_in = (to.is_open() && from.has_ipv4()) || (to.is_open_to_ipv6() && from.has_ipv6);
            is_let_in && !matches!(from.egress, Egress::WebOnly | Egress::Closed)
        };
        connects(&self.user, &self.node) || connects(&self.node, &self.user)
    }
}

const fn preserving(filtering: Behaviour) -> Nat {
    Nat::Translation(Translation::new(EndpointIndependent, filtering).ports(PortAssignment::Preserving))
}

/// The classes of which all ordered pairs are played.
const CLASSES: [Side; 10] = [
    NONE,
    MASQUERADE,
    EIM_EIF,
    Side::new("eim-adf", Nat::EIM_ADF),
    Side::new("eim-apdf", Nat::EIM_APDF),
    Side::new("adm-apdf", Nat::ADM_APDF),
    SYMMETRIC,
    Side::new("sequential", Nat::SYMMETRIC_SEQUENTIAL),
    Side::new("preserving-eif", preserving(EndpointIndependent)),
    Side::new("preserving-adf", preserving(Behaviour::AddressDependent)),
];

const NONE: Side = Side::new("none", Nat::None);
const MASQUERADE: Side = Side::new("masquerade", Nat::Masquerade);
const EIM_EIF: Side = Side::new("eim-eif", Nat::EIM_EIF);
const SYMMETRIC: Side = Side::new("symmetric", Nat::SYMMETRIC);

/// A carrier's translator as RFC 6888 asks for it, but without hairpinning.
const CARRIER: Nat = Nat::EIM_APDF;

/// The same with hairpinning.
const HAIRPINNING_CARRIER: Nat =
    Nat::Translation(Translation::new(EndpointIndependent, AddressAndPortDependent).hairpinning());

/// Returns all pairs.
pub(super) fn pairs() -> Vec<Pair> {
    let classes = CLASSES.iter().flat_map(|user| CLASSES.iter().map(|node| Pair::apart(*user, *node)));
    classes.chain(special_pairs()).collect()
}

fn special_pairs() -> Vec<Pair> {
    let carrier = Side::new("carrier", Nat::Masquerade).behind(CARRIER);
    let symmetric_carrier = Side::new("carrier-symmetric", Nat::Masquerade).behind(Nat::SYMMETRIC);
    let no_udp = Side::new("no-udp", Nat::Masquerade).with_egress(Egress::NoUdp);
    let web_only = Side::new("web-only", Nat::Masquerade).with_egress(Egress::WebOnly);
    let dual = Side::new("symmetric-ipv6", Nat::SYMMETRIC).with_ipv6();
    let ipv6_only = Side::new("ipv6-only", Nat::Masquerade).with_ipv6().with_egress(Egress::Ipv6Only);
    let upnp = Side::new("upnp", Nat::SYMMETRIC).with_mapping(MappingProtocol::Upnp);
    let nat_pmp = Side::new("nat-pmp", Nat::SYMMETRIC).with_mapping(MappingProtocol::NatPmp);
    let pcp = Side::new("pcp", Nat::SYMMETRIC).with_mapping(MappingProtocol::Pcp);
    let ipv6_no_udp = Side { name: "ipv6-no-udp", ..ipv6_only }.with_egress(Egress::Ipv6NoUdp);
    let pcp_ipv6 = Side { name: "pcp-ipv6", mapping: Some(MappingProtocol::Pcp), ..ipv6_only };
    let apart = [
        (carrier, NONE),
        (carrier, MASQUERADE),
        (MASQUERADE, carrier),
        (carrier, carrier),
        (symmetric_carrier, EIM_EIF),
        (symmetric_carrier, MASQUERADE),
        (MASQUERADE, symmetric_carrier),
        (no_udp, NONE),
        (no_udp, MASQUERADE),
        (MASQUERADE, no_udp),
        (web_only, NONE),
        (web_only, MASQUERADE),
        (MASQUERADE, web_only),
        (dual, dual),
        (dual, SYMMETRIC),
        (ipv6_only, dual),
        (dual, ipv6_only),
        (ipv6_only, ipv6_only),
        (ipv6_only, MASQUERADE),
        (ipv6_no_udp, ipv6_only),
        (ipv6_no_udp, pcp_ipv6),
        (SYMMETRIC, upnp),
        (SYMMETRIC, nat_pmp),
        (SYMMETRIC, pcp),
        (upnp, SYMMETRIC),
        (nat_pmp, SYMMETRIC),
        (pcp, SYMMETRIC),
    ];
    let twice = |name, nat, together| {
        let side = Side::new(name, nat);
        Pair { user: side, node: side, together }
    };
    let together = [
        twice("equal-prefixes", Nat::Masquerade, Together::EqualPrefixes),
        twice("equal-prefixes-symmetric", Nat::SYMMETRIC, Together::EqualPrefixes),
        twice("same-lan", Nat::Masquerade, Together::SameLan),
        twice("same-carrier", Nat::Masquerade, Together::SameCarrier(CARRIER)),
        twice("same-carrier-hairpin", Nat::Masquerade, Together::SameCarrier(HAIRPINNING_CARRIER)),
    ];
    apart.into_iter().map(|(user, node)| Pair::apart(user, node)).chain(together).collect()
}

/// Names of the few pairs that stand for all: each kind of path, and a translator of each sort on either side.
pub(super) const QUICK: [[&str; 2]; 5] = [
    ["none", "none"],
    ["symmetric", "none"],
    ["masquerade", "masquerade"],
    ["symmetric", "symmetric"],
    ["same-lan", "same-lan"],
];

#[cfg(test)]
mod tests {
    use super::*;

    fn is_possible(user: &str, node: &str) -> bool {
        let is = |pair: &Pair| pair.user.name == user && pair.node.name == node;
        pairs().iter().find(|pair| is(pair)).unwrap().is_direct_possible()
    }

    #[test]
    fn endpoint_independent_mappings_on_both_sides_always_suffice() {
        let names =
            ["none", "masquerade", "eim-eif", "eim-adf", "eim-apdf", "preserving-eif", "preserving-adf"];
        for user in names {
            assert!(names.iter().all(|node| is_possible(user, node)), "{user}");
        }
    }

    #[test]
    fn an_unknown_port_needs_a_peer_that_does_not_filter_by_port() {
        for unknown in ["symmetric", "adm-apdf"] {
            for open in ["none", "eim-eif", "eim-adf", "preserving-eif", "preserving-adf"] {
                assert!(is_possible(unknown, open) && is_possible(open, unknown), "{unknown} {open}");
            }
            for closed in ["masquerade", "eim-apdf", "symmetric", "adm-apdf", "sequential"] {
                assert!(!is_possible(unknown, closed) && !is_possible(closed, unknown), "{unknown} {closed}");
            }
        }
    }

    #[test]
    fn many_random_ports_of_the_user_are_found_from_one_port_and_not_from_another_random_one() {
        let is_likely = |user: &str, node: &str| {
            let is = |pair: &Pair| pair.user.name == user && pair.node.name == node;
            pairs().iter().find(|pair| is(pair)).unwrap().is_likely_widely()
        };
        assert!(is_likely("symmetric", "eim-apdf") && is_likely("adm-apdf", "masquerade"));
        assert!(!is_likely("symmetric", "symmetric") && !is_likely("symmetric", "sequential"));
        assert!(!is_likely("eim-apdf", "symmetric") && !is_likely("no-udp", "masquerade"));
    }

    #[test]
    fn ports_that_are_counted_up_are_known() {
        assert!(is_possible("sequential", "masquerade") && is_possible("sequential", "sequential"));
    }

    #[test]
    fn two_translators_in_a_row_behave_as_the_worse_of_both() {
        assert!(is_possible("carrier", "masquerade") && is_possible("carrier", "carrier"));
        assert!(!is_possible("carrier-symmetric", "masquerade"));
        assert!(is_possible("carrier-symmetric", "eim-eif"));
    }

    #[test]
    fn blocked_datagrams_leave_tcp_to_whoever_is_open() {
        assert!(is_possible("no-udp", "none"));
        assert!(!is_possible("no-udp", "masquerade") && !is_possible("masquerade", "no-udp"));
        assert!(!is_possible("web-only", "masquerade"));
    }

    #[test]
    fn ipv6_goes_round_translators_and_needs_both_ends() {
        assert!(
            is_possible("symmetric-ipv6", "symmetric-ipv6") && is_possible("ipv6-only", "symmetric-ipv6")
        );
        assert!(!is_possible("symmetric-ipv6", "symmetric") && !is_possible("ipv6-only", "masquerade"));
    }

    #[test]
    fn a_mapped_port_is_open() {
        for protocol in ["upnp", "nat-pmp", "pcp"] {
            assert!(is_possible("symmetric", protocol) && is_possible(protocol, "symmetric"));
        }
    }

    #[test]
    fn a_firewall_of_ipv6_that_was_asked_lets_connections_in() {
        assert!(is_possible("ipv6-no-udp", "pcp-ipv6") && !is_possible("ipv6-no-udp", "ipv6-only"));
    }

    #[test]
    fn customers_of_one_carrier_meet_only_where_it_turns_packets_round() {
        assert!(is_possible("same-carrier-hairpin", "same-carrier-hairpin"));
        assert!(!is_possible("same-carrier", "same-carrier"));
        assert!(is_possible("same-lan", "same-lan"));
    }

    #[test]
    fn every_pair_has_a_name_of_its_own() {
        let mut names: Vec<_> = pairs().iter().map(|pair| (pair.user.name, pair.node.name)).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(QUICK.iter().all(|[user, node]| names.contains(&(*user, *node))));
    }
}

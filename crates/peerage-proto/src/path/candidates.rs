//! Which places of a peer are checked, and in which order (Rules 6.91, 6.92 and 6.96).

use std::net::{IpAddr, SocketAddr};

use peerage_wire::codec::{Candidate, CandidateKind, Transport};

use super::PathKind;

/// Most places of one peer that an attempt checks. Eight of them may be predicted.
pub(crate) const MAX_TARGETS: usize = 20;

/// How many ports above the last known one a router may have come to meanwhile. More are more packets to a router where others
/// live too; fewer find a busy one less often.
const PREDICTED_PORTS: u16 = 8;

/// A place to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) kind: PathKind,
    /// Whether a forwarder has seen the peer at this address.
    pub(crate) is_observed: bool,
}

/// Orders what a peer has said of itself, and where a forwarder saw it, for an attempt. `is_near` says whether a place is on an own
/// link, `may_check` whether anything may be sent there. `is_dependent` says that the own router gives each place another port.
pub(crate) fn targets(
    candidates: &[Candidate],
    observed: Option<SocketAddr>,
    is_dependent: bool,
    is_near: &dyn Fn(IpAddr) -> bool,
    may_check: &dyn Fn(IpAddr) -> bool,
) -> Vec<Target> {
    let udp = candidates.iter().filter(|candidate| candidate.transport == Transport::Udp);
    // These stand for others, which follow from them.
    let is_place = |kind| !matches!(kind, CandidateKind::Sequential | CandidateKind::Scattered);
    let said = udp.clone().filter(|candidate| is_place(candidate.kind));
    let mut plain: Vec<_> = said.map(|candidate| (candidate.kind, candidate.address)).collect();
    plain.extend(observed.map(|address| (CandidateKind::Reflexive, address)));
    plain.sort_by_key(|(kind, address)| (rank(*kind, *address, is_near), *kind));
    let plain = plain.into_iter().map(|(kind, address)| (address, kind_of(kind)));
    let bases = udp.filter(|candidate| candidate.kind == CandidateKind::Sequential);
    let predicted = bases.map(|candidate| candidate.address).take(1).flat_map(predicted);
    // The own router takes the next port for each new place: the first check has to leave from the first port after the base that
    // this node has stated, as the first check of the peer does from its own.
    let all: Vec<_> =
        if is_dependent { predicted.chain(plain).collect() } else { plain.chain(predicted).collect() };
    let mut chosen = Vec::<Target>::new();
    for (address, kind) in all {
        let is_known = chosen.iter().any(|known| known.address == address);
        if !is_known && address.port() != 0 && may_check(address.ip()) {
            let is_observed = observed.is_some_and(|observed| observed.ip() == address.ip());
            chosen.push(Target { address, kind, is_observed });
        }
    }
    chosen.truncate(MAX_TARGETS);
    chosen
}

/// Returns the ports after a base, in their order.
fn predicted(base: SocketAddr) -> impl Iterator<Item = (SocketAddr, PathKind)> {
    let ports = (1..=PREDICTED_PORTS).filter_map(move |step| base.port().checked_add(step));
    ports.map(move |port| (SocketAddr::new(base.ip(), port), PathKind::Punched))
}

/// Returns how soon a place is checked: what is near first, then IPv6, which mostly is not translated.
fn rank(kind: CandidateKind, address: SocketAddr, is_near: &dyn Fn(IpAddr) -> bool) -> u8 {
    match kind {
        _ if is_near(address.ip()) => 0,
        CandidateKind::Reflexive | CandidateKind::Sequential | CandidateKind::Scattered => 3,
        CandidateKind::Mapped => 2,
        CandidateKind::Ethernet | CandidateKind::Wifi | CandidateKind::Vpn | CandidateKind::Configured => {
            if address.is_ipv6() {
                1
            } else {
                2
            }
        }
    }
}

/// Returns what people would call a path to a candidate.
pub(crate) const fn kind_of(kind: CandidateKind) -> PathKind {
    match kind {
        CandidateKind::Ethernet | CandidateKind::Wifi | CandidateKind::Vpn | CandidateKind::Configured => {
            PathKind::Direct
        }
        CandidateKind::Mapped => PathKind::Mapped,
        CandidateKind::Reflexive | CandidateKind::Sequential | CandidateKind::Scattered => PathKind::Punched,
    }
}

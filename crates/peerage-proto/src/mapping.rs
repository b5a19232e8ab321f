//! What routers were asked to forward to this computer, as plain data.
//!
//! The shell asks them by PCP, NAT-PMP or UPnP and tells here what came of it. A router's word is a hint: a mapped port is one more
//! [candidate](peerage_wire::codec::Candidate), and whether it leads anywhere shows when somebody dials it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use peerage_wire::codec::{Candidate, CandidateKind, Transport};

use crate::dial::forbidden;
use crate::node::is_private;

/// Most routers that are asked: one for IPv4, and one for the firewall of IPv6.
pub const MAX_ROUTERS: usize = 2;

/// Which of this node's ports routers are to forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// None.
    #[default]
    None,
    /// That of messages and QUIC alone: this node dials, and wants to be heard.
    Udp,
    /// That of links over TCP as well: others dial this node.
    All,
}

impl Ports {
    /// Returns the transports for which a port is wanted.
    pub const fn transports(self) -> &'static [Transport] {
        match self {
            Self::None => &[],
            Self::Udp => &[Transport::Udp],
            Self::All => &[Transport::Udp, Transport::Tcp],
        }
    }
}

/// By which protocol a router was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MappingProtocol {
    /// The Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT-PMP (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl fmt::Display for MappingProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        })
    }
}

/// One router, and what came of asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterMapping {
    /// The router's address on the LAN.
    pub router: IpAddr,
    /// What came of it.
    pub mapping: Mapping,
}

/// What came of asking one router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// It is being asked.
    Asking,
    /// It speaks none of the protocols, or does not answer.
    Silent,
    /// It has refused.
    Refused {
        /// By which protocol.
        protocol: MappingProtocol,
        /// Why, for people.
        why: String,
    },
    /// It forwards, or for IPv6 lets through, what comes to these addresses.
    Held {
        /// By which protocol.
        protocol: MappingProtocol,
        /// For messages and QUIC.
        udp: Option<SocketAddr>,
        /// For links.
        tcp: Option<SocketAddr>,
    },
}

impl Mapping {
    /// Returns whether the router that forwards stands behind another one, so that what it gives leads nowhere.
    pub fn is_double_nat(&self) -> bool {
        self.addresses().any(|(_, address)| leads_nowhere(address.ip()))
    }

    /// Returns the candidates that come of it: those of an IPv4 router. Of an IPv6 firewall the computer's own addresses are, which are
    /// candidates already.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Candidate> {
        let useful = self.addresses().filter(|(_, a)| a.is_ipv4() && !leads_nowhere(a.ip()));
        useful.map(|(transport, address)| Candidate { kind: CandidateKind::Mapped, transport, address })
    }

    fn addresses(&self) -> impl Iterator<Item = (Transport, SocketAddr)> {
        let (udp, tcp) = if let Self::Held { udp, tcp, .. } = self { (*udp, *tcp) } else { (None, None) };
        let tcp = tcp.map(|address| (Transport::Tcp, address));
        tcp.into_iter().chain(udp.map(|address| (Transport::Udp, address)))
    }
}

/// Returns whether nobody on the Internet can reach an address.
fn leads_nowhere(address: IpAddr) -> bool {
    is_private(address) || forbidden(address, &[]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(udp: &str, tcp: &str) -> Mapping {
        let (udp, tcp) = (udp.parse().ok(), tcp.parse().ok());
        Mapping::Held { protocol: MappingProtocol::Pcp, udp, tcp }
    }

    #[test]
    fn what_a_router_on_the_internet_gives_is_a_candidate_for_each_transport() {
        let all: Vec<_> = held("198.20.0.7:7000", "198.20.0.7:7001").candidates().collect();
        assert!(all.iter().all(|candidate| candidate.kind == CandidateKind::Mapped));
        let all: Vec<_> = all.iter().map(|c| (c.transport, c.address.to_string())).collect();
        let expected =
            [(Transport::Tcp, "198.20.0.7:7001".to_owned()), (Transport::Udp, "198.20.0.7:7000".to_owned())];
        assert_eq!(all, expected);
    }

    /// A router behind another router, or behind a carrier's (RFC 6598), maps to an address that nobody can dial.
    #[test]
    fn a_router_behind_another_is_recognised_and_gives_no_candidate() {
        for address in ["192.168.1.7:7000", "100.64.3.7:7000", "127.0.0.1:7000", "0.0.0.0:7000"] {
            let mapping = held(address, address);
            assert!(mapping.is_double_nat(), "{address}");
            assert_eq!(mapping.candidates().count(), 0, "{address}");
        }
        assert!(!held("198.20.0.7:7000", "").is_double_nat());
        assert!(!Mapping::Asking.is_double_nat());
    }

    /// What a firewall of IPv6 lets through is this computer's own address, announced as such.
    #[test]
    fn an_opened_firewall_adds_no_candidate() {
        assert_eq!(held("[2a03::7]:7000", "[2a03::7]:7000").candidates().count(), 0);
    }
}

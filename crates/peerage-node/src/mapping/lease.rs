//! What a router grants, and why it does not.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::mapping::{Mapping, MappingProtocol};
use peerage_wire::codec::Transport;

/// The ports of a node, as a router forwards them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) protocol: MappingProtocol,
    pub(super) udp: Option<SocketAddr>,
    pub(super) tcp: Option<SocketAddr>,
    /// For how long, as the router says.
    pub(super) lifetime: Duration,
}

impl Lease {
    pub(super) const fn of(&self, transport: Transport) -> Option<SocketAddr> {
        match transport {
            Transport::Udp => self.udp,
            Transport::Tcp => self.tcp,
        }
    }

    pub(super) const fn set(&mut self, transport: Transport, external: SocketAddr) {
        match transport {
            Transport::Udp => self.udp = Some(external),
            Transport::Tcp => self.tcp = Some(external),
        }
    }

    pub(super) const fn mapping(&self) -> Mapping {
        Mapping::Held { protocol: self.protocol, udp: self.udp, tcp: self.tcp }
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLease {
    /// The router does not speak the protocol, or does not answer.
    #[error("the router does not answer")]
    Silent,
    /// It has refused.
    #[error("{why}")]
    Refused {
        /// By which protocol.
        protocol: MappingProtocol,
        /// Why, for people.
        why: String,
    },
    /// The system does not let this computer ask.
    #[error("the router cannot be asked: {0}")]
    Io(io::Error),
}

impl From<io::Error> for NoLease {
    fn from(error: io::Error) -> Self {
        // Nobody listens there: the ICMP message comes as an error of the next call.
        if error.kind() == io::ErrorKind::ConnectionRefused { Self::Silent } else { Self::Io(error) }
    }
}

impl NoLease {
    pub(super) fn mapping(self) -> Mapping {
        match self {
            Self::Silent | Self::Io(_) => Mapping::Silent,
            Self::Refused { protocol, why } => Mapping::Refused { protocol, why },
        }
    }
}

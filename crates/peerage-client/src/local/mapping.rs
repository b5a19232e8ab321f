//! Ports of routers that lead to a node, as the local API tells them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A router that was asked to forward the node's port, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The router's address on the LAN.
    pub router: IpAddr,
    /// What came of it.
    pub state: PortMappingState,
    /// By which protocol it was asked, once it has answered: `pcp`, `nat-pmp` or `upnp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The address that leads to the node's UDP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<SocketAddr>,
    /// The address that leads to its TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    /// Why it refuses, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What came of asking a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PortMappingState {
    /// It is being asked.
    Asking,
    /// It speaks none of the protocols, or does not answer.
    Silent,
    /// It has refused.
    Refused,
    /// It forwards what comes to these addresses, or lets it through.
    Held,
    /// It forwards, but stands behind another router itself, so that nobody outside reaches it.
    DoubleNat,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for PortMappingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asking => "is being asked",
            Self::Silent => "does not answer",
            Self::Refused => "refuses",
            Self::Held => "forwards",
            Self::DoubleNat => "forwards, but is itself behind another router",
            Self::Unknown => "unknown",
        })
    }
}

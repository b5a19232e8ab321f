//! How others see a node.

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// What the routers between a node and the others do to its addresses, as far as the others' answers show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Whether different places see the node at different addresses and ports.
    pub mapping: NatMapping,
    /// How the ports are chosen.
    pub ports: NatPorts,
    /// Whom the routers let in.
    #[serde(default)]
    pub filtering: NatFiltering,
    /// Whether they turn packets round that are sent from inside to an outer address; absent as long as that was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hairpinning: Option<bool>,
    /// Whether the owner permits many ports to be opened or tried where those of one end cannot be known.
    #[serde(default)]
    pub wide_checks: bool,
    /// How others see the node, the newest first.
    pub observed: Vec<SocketAddr>,
}

/// How a router maps addresses (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NatMapping {
    /// Not at all: others see the computer's own address.
    None,
    /// All places see the same address and port.
    EndpointIndependent,
    /// Each address sees another.
    AddressDependent,
    /// Each port of an address sees another.
    AddressAndPortDependent,
    /// Fewer than two places have told, or this version of the client does not know it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NatMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::Unknown => "unknown",
        })
    }
}

/// How a router chooses ports (RFC 4787, section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NatPorts {
    /// It keeps the computer's own.
    Preserved,
    /// It numbers its mappings.
    Sequential,
    /// In no way that can be told.
    Other,
    /// Nobody has told, there is no router that maps, or this version of the client does not know it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preserved => "preserved",
            Self::Sequential => "sequential",
            Self::Other => "other",
            Self::Unknown => "unknown",
        })
    }
}

/// Whom a router lets in (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NatFiltering {
    /// Everybody.
    EndpointIndependent,
    /// Whoever was written to, from whatever port, and perhaps others.
    AddressDependent,
    /// The very ports that were written to.
    AddressAndPortDependent,
    /// Nothing has shown it, or this version of the client does not know it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NatFiltering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent or less",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::Unknown => "unknown",
        })
    }
}

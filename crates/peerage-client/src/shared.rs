//! What the local API and the admin API both speak of.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// One TCP or UDP port of a device that may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Service {
    /// The name that users give, such as `ipp`; unique within the device.
    pub name: String,
    /// The port on the device, 1 to 65535.
    pub port: u16,
    /// Whether the service is reached by TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether the device speaks TLS on this port, so that its certificate can be checked through the tunnel.
    #[serde(default)]
    pub tls: bool,
}

/// Reads services in a request, where a misspelt field must not be taken for an absent one: a forgotten `tls` would
/// have the device's certificate go unchecked.
pub(crate) fn strict_services<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Service>, D::Error> {
    #[derive(Deserialize)]
    #[serde(remote = "Service", deny_unknown_fields)]
    struct Strict {
        name: String,
        port: u16,
        #[serde(default)]
        protocol: Protocol,
        #[serde(default)]
        tls: bool,
    }
    #[derive(Deserialize)]
    struct Element(#[serde(with = "Strict")] Service);
    let elements = Vec::<Element>::deserialize(deserializer)?;
    Ok(elements.into_iter().map(|Element(service)| service).collect())
}

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A byte stream.
    #[default]
    Tcp,
    /// Datagrams: neither buffered nor sent again.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A role that a node has, or that an operator permits it to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opens tunnels for the applications of its computer.
    User,
    /// Serves the devices of its own network to others of the domain.
    Tunnel,
    /// Stores records and relays tunnels for others.
    Super,
    /// Signs keys and registers devices.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Tunnel => "tunnel",
            Self::Super => "super",
            Self::Operator => "operator",
        })
    }
}

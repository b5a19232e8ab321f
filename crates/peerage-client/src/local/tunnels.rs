//! Tunnels: local ports that lead to services of devices.

use crate::shared::Protocol;
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// Asks for a local port that leads to a service of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenTunnel {
    /// The device's name or id.
    pub device: String,
    /// The service's name; may be absent if the device has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The loopback address to listen on; port 0, or absent: any free port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether `listen` may be an address that other computers can reach. Everyone who can reach it can then use
    /// the device with this node's rights.
    #[serde(default)]
    pub expose: bool,
}

impl OpenTunnel {
    /// Asks for any free loopback port that leads to the only service of a device, given by its name or id.
    pub fn new(device: impl Into<String>) -> Self {
        Self { device: device.into(), service: None, listen: None, expose: false }
    }
}

/// A local port that leads to a service of a device, and what has gone through it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Its id, for this run of the node.
    pub id: String,
    /// The device's name.
    pub device: String,
    /// The service's name.
    pub service: String,
    /// Whether the port is TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The local address that applications connect to.
    pub local: SocketAddr,
    /// What it is doing.
    pub state: TunnelState,
    /// The way that bytes take now, or took last while no connection is open; absent until one is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// How many bytes applications have sent to the device.
    pub bytes_sent: u64,
    /// How many bytes the device has sent to applications.
    pub bytes_received: u64,
    /// How many connections of applications are open.
    pub connections: u32,
    /// When it was opened.
    pub opened_at_ms: u64,
    /// Who can read what goes through it.
    pub privacy: Privacy,
}

/// What a tunnel is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TunnelState {
    /// It looks for a path.
    Connecting,
    /// It has one: connections work.
    Ready,
    /// It had one and looks for another; open connections wait.
    Interrupted,
    /// It is gone.
    Closed,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for TunnelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Interrupted => "interrupted",
            Self::Closed => "closed",
            Self::Unknown => "unknown",
        })
    }
}

/// A way for bytes between two nodes, or from this node straight to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// What kind of way.
    pub kind: PathKind,
    /// The address at the other end: of the device if local, of the relay if relayed, else of the tunnel-node.
    pub remote: SocketAddr,
    /// The id of the tunnel-node; absent if local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_node: Option<String>,
}

/// What kind of way a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PathKind {
    /// Straight to the device, on a network of this computer.
    Local,
    /// To the tunnel-node's own address.
    Direct,
    /// Through a port that the tunnel-node's router forwards to it.
    Mapped,
    /// Through the NATs of both sides.
    Punched,
    /// Through a super-node, which sees ciphertext only.
    Relayed,
    /// A kind that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Direct => "direct",
            Self::Mapped => "mapped",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
            Self::Unknown => "unknown",
        })
    }
}

/// Who can read what goes through a tunnel; its [`Display`](fmt::Display) is a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Privacy {
    /// Nobody but the application and the device, whose certificate this node has checked through the tunnel.
    DeviceVerified,
    /// The device speaks TLS, but this node has not checked its certificate: the application must.
    DeviceTls,
    /// The tunnel-node and the device's network, because the device has no TLS.
    TunnelNodeCanRead,
    /// The networks between this computer and the device, because there is no tunnel.
    LocalNetwork,
    /// Not known.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Privacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceVerified => "end-to-end, device certificate verified",
            Self::DeviceTls => "device speaks TLS, its certificate is not verified here",
            Self::TunnelNodeCanRead => "the tunnel-node can read (device has no TLS)",
            Self::LocalNetwork => "no tunnel: the device is on this network",
            Self::Unknown => "unknown",
        })
    }
}

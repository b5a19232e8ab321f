//! The node as a whole.

use crate::shared::Role;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::SocketAddr};

use super::{Nat, PortMapping, Proxy, SuperNode};

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who the node is.
    pub node: NodeIdentity,
    /// Whether it is part of the network now.
    pub state: NodeState,
    /// The operators that it knows.
    pub operators: Vec<Operator>,
    /// How messages reach the operators and super-nodes that have answered.
    #[serde(default)]
    pub carriers: Vec<Carrier>,
    /// What it knows about the time.
    pub clock: Clock,
    /// Where its interfaces are.
    pub locations: Vec<Location>,
    /// The operator's latest statement about the domain; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Who serves the devices at its locations; empty where there are none, or it may not serve them.
    #[serde(default)]
    pub elections: Vec<Election>,
    /// The super-nodes and operators through which it can be asked; empty unless it serves devices.
    pub attachments: Vec<Attachment>,
    /// How many devices of the domain it knows.
    pub devices: u64,
    /// The names of the devices that it serves to others.
    pub serves: Vec<String>,
    /// How many tunnels are open here, at either end.
    pub tunnels: u64,
    /// The addresses on which it listens for messages (UDP) and tunnels (TCP).
    pub listen: Vec<SocketAddr>,
    /// The addresses that it was told to give to others, if any.
    #[serde(default)]
    pub advertised: Vec<SocketAddr>,
    /// When its records end.
    pub records: Records,
    /// What the routers between it and the others do to its addresses.
    #[serde(default)]
    pub nat: Nat,
    /// The routers that were asked to forward its port; empty where others need not reach it.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// The HTTP proxy that its TCP connections go through; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// What it lends to the network, and has given.
    #[serde(default)]
    pub super_node: SuperNode,
    /// Datagrams that were dropped, counted by reason.
    pub discards: BTreeMap<String, u64>,
    /// What somebody should look at, one sentence each.
    pub warnings: Vec<String>,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Its id.
    pub id: String,
    /// The number of its domain.
    pub domain: u32,
    /// The name of its domain, if the operator told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    /// The name that its owner gave it.
    pub name: String,
    /// The roles that it has now.
    pub roles: Vec<Role>,
    /// The version of the program.
    pub version: String,
}

/// Whether a node is part of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeState {
    /// Nobody answers; what is known and unexpired is still used.
    Offline,
    /// It looks for operators and super-nodes, renews its record, or learns the time.
    Joining,
    /// It has had a valid answer lately.
    Online,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offline => "offline",
            Self::Joining => "joining",
            Self::Online => "online",
            Self::Unknown => "unknown",
        })
    }
}

/// An operator that a node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Its node id.
    pub id: String,
    /// The address used last, or the first known.
    pub address: SocketAddr,
    /// How long ago it last answered; absent if not since this node started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_answer_ms_ago: Option<u64>,
    /// The latest round-trip time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u64>,
}

/// How messages reach an operator or super-node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// Its node id.
    pub node: String,
    /// Its address.
    pub address: SocketAddr,
    /// What moves the messages.
    pub carrier: CarrierKind,
    /// Why they do not travel over UDP; absent where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<CarrierReason>,
}

/// What moves messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CarrierKind {
    /// Datagrams.
    Udp,
    /// TLS over TCP.
    Tls,
    /// A WebSocket inside TLS.
    Wss,
    /// A WebSocket.
    Ws,
    /// Requests of HTTP inside TLS.
    Https,
    /// Requests of HTTP.
    Http,
    /// A carrier that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tls => "TLS",
            Self::Wss => "WebSocket in TLS",
            Self::Ws => "WebSocket",
            Self::Https => "HTTPS",
            Self::Http => "HTTP",
            Self::Unknown => "a carrier unknown to this version",
        })
    }
}

/// Why messages do not travel over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CarrierReason {
    /// Nothing that is sent over UDP is answered.
    UdpSilent,
    /// Too much of what is sent over UDP is lost.
    UdpLossy,
    /// A reason that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for CarrierReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UdpSilent => "UDP is not answered",
            Self::UdpLossy => "UDP loses too much",
            Self::Unknown => "for a reason unknown to this version",
        })
    }
}

/// What a node knows about the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// What must be added to this computer's clock to get the network's time; may be negative.
    pub offset_ms: i64,
    /// The id of the node that the offset was learned from; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_from: Option<String>,
}

/// Where one interface of a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The name that the system gives the interface.
    pub interface: String,
    /// What kind of interface it is.
    pub kind: InterfaceKind,
    /// The MAC address of its gateway; absent if there is none, and then there is no location either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_mac: Option<String>,
    /// The prefix of the network, as in `192.168.1.0/24`.
    pub prefix: String,
    /// The first 16 hexadecimal digits of the location's keyed hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

/// What kind of interface a location belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum InterfaceKind {
    /// A cable.
    Ethernet,
    /// Wireless LAN.
    Wifi,
    /// A virtual private network.
    Vpn,
    /// A bridge or an interface of virtual machines or containers.
    Virtual,
    /// Anything else.
    #[serde(other)]
    Other,
}

impl fmt::Display for InterfaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "Ethernet",
            Self::Wifi => "Wi-Fi",
            Self::Vpn => "VPN",
            Self::Virtual => "virtual",
            Self::Other => "other",
        })
    }
}

/// The operator's latest signed statement about the domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How old it is by the network's time; above 60,000 a revocation may not be known here yet.
    pub age_ms: u64,
    /// Its number.
    pub sequence: u64,
    /// The number of the domain's key epoch.
    pub epoch: u64,
    /// How many revocations it counts.
    pub revocations: u64,
}

/// Who serves the devices at a location. Nodes say so themselves: it is a reason to look, not to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// The short form of the location, as in [`Location`].
    pub location: String,
    /// The interface that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The nodes that an administrator has named for its devices; empty if any member may serve them.
    #[serde(default)]
    pub candidates: Vec<String>,
    /// Who serves, this node first if it does.
    pub serving: Vec<Elected>,
    /// Whether this node serves only because it found that those who are elected do not.
    #[serde(default)]
    pub stands_in: bool,
    /// Whether others can be heard here; if not, only this node is named.
    pub hears_others: bool,
}

/// One that serves the devices at a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elected {
    /// Its id.
    pub node: String,
    /// Since when, as it says.
    pub since_at_ms: u64,
}

/// The standing contact with a node through which this one can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The id of the super-node or operator.
    pub node: String,
    /// Its address.
    pub address: SocketAddr,
    /// Since when.
    pub since_at_ms: u64,
}

/// When the records of a node end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// When the operator's statement that it is a member ends, unless renewed before.
    pub node_expires_at_ms: u64,
    /// When its announced addresses end; absent if it announces none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_expires_at_ms: Option<u64>,
}

//! The local API of a node: HTTP and JSON over the Unix socket [`SOCKET_FILE`] in the node's data directory.
//!
//! Only the user who runs the node, and root, may connect. The server refuses a request with an `Origin` header or
//! with a `Host` other than [`HOST`] ([`ProblemKind::ForeignOrigin`](crate::ProblemKind::ForeignOrigin)), so that a
//! web page cannot be made to speak to it.
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/devices` | | list of [`Device`] |
//! | `POST /v1/devices/refresh` | | list of [`Device`], asked of the network now |
//! | `GET /v1/tunnels` | | list of [`Tunnel`] |
//! | `POST /v1/tunnels` | [`OpenTunnel`] | 201 [`Tunnel`] |
//! | `DELETE /v1/tunnels/{id}` | | 204 |
//! | `GET /v1/super` | | [`SuperNode`] |
//! | `POST /v1/super/on` | [`SuperOn`] | [`SuperNode`] |
//! | `POST /v1/super/off` | | [`SuperOff`], once what was held is handed over: up to a minute later |
//! | `GET /v1/events` | query `hold={id}` | server-sent events, each an [`Event`] |
//! | `POST /v1/shutdown` | | 202 |

use crate::{
    route::Route,
    shared::{Protocol, Role, Service},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::SocketAddr};

/// The name of the socket in the node's data directory.
pub const SOCKET_FILE: &str = "api.sock";

/// The `Host` that a request names; a socket has no host of its own.
pub const HOST: &str = "localhost";

/// Every route of the local API, version 1.
pub const ROUTES: &[Route] = &[
    Route::get("/v1/status"),
    Route::get("/v1/devices"),
    Route::post("/v1/devices/refresh"),
    Route::get("/v1/tunnels"),
    Route::post("/v1/tunnels"),
    Route::delete("/v1/tunnels/{id}"),
    Route::get("/v1/super"),
    Route::post("/v1/super/on"),
    Route::post("/v1/super/off"),
    Route::get("/v1/events"),
    Route::post("/v1/shutdown"),
];

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who the node is.
    pub node: NodeIdentity,
    /// Whether it is part of the network now.
    pub state: NodeState,
    /// The operators that it knows.
    pub operators: Vec<Operator>,
    /// What it knows about the time.
    pub clock: Clock,
    /// Where its interfaces are.
    pub locations: Vec<Location>,
    /// The operator's latest statement about the domain; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
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

/// What a node lends to the network as a super-node, and has given since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperNode {
    /// What it is now.
    pub state: SuperState,
    /// Why it is paused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_because: Option<String>,
    /// What its owner lends at most.
    pub limits: SuperLimits,
    /// The part of the table that it holds; absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<SuperRange>,
    /// How many records it holds.
    pub records: u64,
    /// The memory that these take, in bytes.
    pub bytes_held: u64,
    /// How many nodes are in standing contact with it.
    pub attached: u64,
    /// How many requests it has answered for others.
    pub served_requests: u64,
    /// How many bytes it has relayed between others.
    pub relayed_bytes: u64,
    /// How many tunnels it relays now.
    pub relayed_tunnels: u64,
    /// How many requests it has refused for want of room, rate or permission.
    pub refusals: u64,
}

/// What a node is as a super-node; its [`Display`](fmt::Display) is for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SuperState {
    /// Its owner lends nothing.
    #[default]
    Off,
    /// Its owner lends something, but the administrator does not permit it.
    NotPermitted,
    /// It has offered itself and holds nothing; it may not be needed now.
    Asking,
    /// An operator finds out whether others can reach it.
    Checking,
    /// Others cannot reach it over both UDP and TCP.
    Unreachable,
    /// It holds a part of the table and relays.
    Serving,
    /// It goes on serving until others hold what it holds.
    HandingOver,
    /// It is on a metered network or on battery.
    Paused,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for SuperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::NotPermitted => "not permitted by the operator",
            Self::Asking => "offered, holds nothing yet",
            Self::Checking => "offered, an operator checks whether others reach it",
            Self::Unreachable => "offered, but others cannot reach it over both UDP and TCP",
            Self::Serving => "serving",
            Self::HandingOver => "handing over",
            Self::Paused => "paused",
            Self::Unknown => "unknown",
        })
    }
}

/// What the owner of a super-node lends at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperLimits {
    /// Memory, and disk, for records of others, in bytes.
    pub max_memory_bytes: u64,
    /// Pairs of nodes whose tunnels are relayed at once.
    pub max_tunnels: u32,
    /// Relayed bytes a second.
    pub max_bytes_per_second: u64,
    /// Relayed bytes in 24 hours.
    pub max_bytes_per_day: u64,
}

/// A range of the table, both ends included; each is 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperRange {
    /// The first place.
    pub from: String,
    /// The last place.
    pub to: String,
}

/// Lends a part of the computer to the network. What is absent stays as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuperOn {
    /// Most memory, and disk, for records of others, in bytes; at least 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_bytes: Option<u64>,
    /// Most pairs of nodes whose tunnels are relayed at once; 0: none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tunnels: Option<u32>,
    /// Most relayed bytes a second; at least 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<u64>,
    /// Most relayed bytes in 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_day: Option<u64>,
}

/// What came of lending nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperOff {
    /// Whether an operator has confirmed that others hold what was held here; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<bool>,
    /// What the node is now, and has given.
    pub super_node: SuperNode,
}

/// A device of the domain, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its name, unique in the domain.
    pub name: String,
    /// What it is, such as `printer`.
    pub kind: String,
    /// What of it may be reached.
    pub services: Vec<Service>,
    /// The ways to it that are known now.
    pub reachable_via: ReachableVia,
    /// Whether this node serves it to others.
    pub served_here: bool,
    /// Whether a tunnel to it can be opened now, as far as is known without trying.
    pub state: DeviceState,
}

/// The ways to a device that are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachableVia {
    /// How many tunnel-nodes offer it.
    pub tunnel_nodes: u32,
    /// Whether it is on a network of this computer.
    pub local: bool,
}

/// Whether a device can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceState {
    /// Somebody serves it, or it is on a network of this computer.
    Reachable,
    /// Nobody serves it.
    Unreachable,
    /// It has not been asked for yet.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        })
    }
}

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
    /// The way that bytes take now; absent until one is proven.
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

/// Something that happened in the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at_ms: u64,
    /// What; in JSON its fields stand beside `at_ms`, with `kind` telling which.
    #[serde(flatten)]
    pub detail: EventDetail,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventDetail {
    /// The node went online or offline.
    StateChanged {
        /// The new state.
        state: NodeState,
    },
    /// The network of this computer changed.
    NetworkChanged {
        /// Where the interfaces are now.
        locations: Vec<Location>,
    },
    /// A device was added, changed or removed.
    DevicesChanged {
        /// How many there are now.
        devices: u64,
    },
    /// This node began to serve a device.
    ServingStarted {
        /// The device's name.
        device: String,
    },
    /// This node no longer serves a device.
    ServingStopped {
        /// The device's name.
        device: String,
        /// Why, in plain words.
        reason: String,
    },
    /// A tunnel was opened.
    TunnelOpened {
        /// As it is.
        tunnel: Tunnel,
    },
    /// A tunnel's state, path or privacy changed. Bytes that flow are not an event.
    TunnelChanged {
        /// As it is now.
        tunnel: Tunnel,
    },
    /// A tunnel was closed.
    TunnelClosed {
        /// Its id.
        id: String,
        /// Why, in plain words.
        reason: String,
    },
    /// The node's part as a super-node changed.
    SuperChanged {
        /// What it is now.
        state: SuperState,
    },
    /// Somebody should look at something.
    Warning {
        /// One sentence.
        text: String,
    },
    /// This reader was too slow and some events were left out; what there is now must be asked for anew.
    Missed {
        /// How many.
        events: u64,
    },
    /// The node is shutting down; no event follows.
    ShuttingDown,
    /// A kind that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

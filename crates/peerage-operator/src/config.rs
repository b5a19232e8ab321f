//! What the operator is told when it is made and when it is started, and what it tells.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use peerage_node::relay::Caps;
use peerage_proto::relay::Limits;
use peerage_wire::id::{NetworkId, NodeId};

/// What [`init`](fn@crate::init) needs.
#[derive(Clone, Debug)]
pub struct InitConfig {
    /// The data directory; made if it does not exist. It must not hold an operator yet.
    pub data: PathBuf,
    /// The address for messages (UDP) and joining (TCP), kept for [`run`](fn@crate::run). Port 0 is replaced by one that
    /// is free for both now.
    pub listen: SocketAddr,
    /// The addresses at which nodes reach the operator, at most [`MAX_ADDRESSES`](peerage_wire::limits::MAX_ADDRESSES);
    /// empty: `listen`, which then must not be an unspecified address.
    pub advertise: Vec<SocketAddr>,
    /// A certificate for the port where nodes join; `None`: one is made, which no browser trusts and no node needs.
    pub certificate: Option<CertificateFiles>,
}

/// Where a certificate is. The files are read at each start, so a renewed certificate needs a restart only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain in PEM, the operator's own certificate first.
    pub chain: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// What [`init`](fn@crate::init) has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitReport {
    /// The operator's node id.
    pub id: NodeId,
    /// The network id.
    pub network: NetworkId,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// Where nodes will look for it.
    pub advertised: Vec<SocketAddr>,
}

/// What [`run`](fn@crate::run) needs.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The data directory that [`init`](fn@crate::init) has made.
    pub data: PathBuf,
    /// Where to listen this time; `None`: as `init` was told. Port 0 is replaced by a free one. If nothing but the
    /// old address was advertised, the new one is from now on.
    pub listen: Option<SocketAddr>,
    /// Where else to take TCP connections of nodes, such as the web's ports, which firewalls leave open.
    pub also_listen: Vec<SocketAddr>,
    /// Where nodes reach the operator; empty: as before. A change is signed with the root key, which must be in the
    /// data directory then.
    pub advertise: Vec<SocketAddr>,
    /// The loopback address of the admin API; `None`: any free port of 127.0.0.1.
    pub admin_listen: Option<SocketAddr>,
    /// A certificate instead of the one that `init` was told of or has made.
    pub certificate: Option<CertificateFiles>,
    /// How much it relays for members who cannot reach each other, while it stands in for super-nodes.
    pub relay: RelayConfig,
    /// How its spies look at super-nodes.
    pub spies: SpyConfig,
}

/// How much an operator relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Bytes, of all tunnels together.
    pub caps: Caps,
    /// Pairs of nodes whose links are relayed at once, at most; 0 relays none. The computer's descriptors may allow fewer.
    pub tunnels: usize,
}

impl Default for RelayConfig {
    /// What a small virtual machine has to give away.
    fn default() -> Self {
        Self { caps: Caps::default(), tunnels: Limits::default().tunnels }
    }
}

/// Most addresses from which spies come. An attentive super-node would have to see that many before it knows all.
pub const MAX_SPY_ADDRESSES: usize = 256;

/// How spies look at super-nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpyConfig {
    /// The mean time between two visits to one super-node; zero: there are none, and no spies are made. Shorter finds a liar sooner;
    /// longer is less that a super-node could notice, and costs less.
    pub interval: Duration,
    /// From which addresses of this computer they come, at most [`MAX_SPY_ADDRESSES`]; empty: from that of the operator, by which a super-node
    /// that lies on purpose knows them.
    pub addresses: Vec<IpAddr>,
}

impl Default for SpyConfig {
    /// A quarter of an hour: some hundred visits a day, each of them a few datagrams.
    fn default() -> Self {
        Self { interval: Duration::from_secs(900), addresses: Vec::new() }
    }
}

impl RunConfig {
    /// Runs the operator as `init` was told.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            listen: None,
            also_listen: Vec::new(),
            advertise: Vec::new(),
            admin_listen: None,
            certificate: None,
            relay: RelayConfig::default(),
            spies: SpyConfig::default(),
        }
    }
}

/// What [`run`](fn@crate::run) says when it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The operator's node id.
    pub id: NodeId,
    /// The network id.
    pub network: NetworkId,
    /// Where it listens, for messages over UDP and for joining over TCP.
    pub listen: SocketAddr,
    /// Where nodes look for it.
    pub advertised: Vec<SocketAddr>,
    /// Where the admin API is.
    pub admin: SocketAddr,
}

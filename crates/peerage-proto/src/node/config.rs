//! What a node is told at its start.

use std::net::{IpAddr, SocketAddr};

use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, DomainKeys};
use peerage_wire::record::Record;

use super::carriers::KnownCarriers;
use super::elect::Elections;
use crate::carrier::Carrier;
use crate::endpoint;
use crate::table::DEFAULT_MAX_BYTES;

/// What a node is, and what it remembered when it last stopped.
#[derive(Clone, Debug)]
pub struct Config {
    /// The message layer's part.
    pub endpoint: endpoint::Config,
    /// The root key of the network.
    pub root: [u8; 32],
    /// The key to which the domain's keys are sealed.
    pub receiving: AgreementKey,
    /// The domain's keys, as opened from the newest DomainKey record.
    pub keys: DomainKeys,
    /// What the operators' sealing keys were when they were last heard of; old ones are mended by a hint.
    pub statements: Vec<KeyStatement>,
    /// The records of the own store: the own Node and NodeInfo, operators, super-nodes, devices, revocations, domain keys, the
    /// last Head.
    pub records: Vec<Record>,
    /// The port on which messages and links are received, the same for both.
    pub port: u16,
    /// Addresses at which the owner says that this node can be reached from outside, as a forwarded port.
    pub advertise: Vec<SocketAddr>,
    /// Whether the owner lets this node serve devices, if the operator permits it too.
    pub serves: bool,
    /// How it agrees with others on the LAN which of them do.
    pub elections: Elections,
    /// Whether a look-up asks others when an answer has not come after a quarter of a second, rather than when the request has
    /// failed after 3.5 s: people wait less where super-nodes have died, for more traffic where round trips are long.
    pub eager: bool,
    /// How the administrator calls the place where this node stands, where no gateway tells it.
    pub place: Option<String>,
    /// Set for a network that lives on one machine, as a demonstration or a test: then loopback addresses
    /// may be dialled, which are never dialled otherwise.
    pub one_machine: bool,
    /// The address by which this computer is bound to one interface, if it is; candidates are made from it alone.
    pub bound: Option<IpAddr>,
    /// Whether many ports may be opened, or tried, where those of one end cannot be known (Rule 6.99). Firewalls take it for a scan.
    pub wide_checks: bool,
    /// By what messages may travel; UDP alone: no connection is ever made for them.
    pub carriers: Vec<Carrier>,
    /// What has worked in networks without UDP, as kept by [`Output::KeepCarriers`](super::Output::KeepCarriers).
    pub known_carriers: KnownCarriers,
    /// What the owner lends to the network as a super-node.
    pub super_role: SuperConfig,
}

/// What the owner of a computer lets it do as a super-node, if the operator permits it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperConfig {
    /// Whether it may be one at all.
    pub on: bool,
    /// Most memory for records, in bytes with what they cost in indices.
    pub max_bytes: u64,
    /// Most pairs of nodes whose links are relayed at once.
    pub max_tunnels: u32,
    /// Most bytes a second that are relayed.
    pub max_rate: u64,
    /// Most bytes a day that are relayed.
    pub max_daily: u64,
}

impl Default for SuperConfig {
    /// Not lent; and what is lent when the owner only says yes: 64 MiB of memory, 256 relayed pairs, 10 MB a second, 10 GB a day.
    fn default() -> Self {
        Self {
            on: false,
            max_bytes: DEFAULT_MAX_BYTES as u64,
            max_tunnels: 256,
            max_rate: 10_000_000,
            max_daily: 10_000_000_000,
        }
    }
}

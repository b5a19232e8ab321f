//! What a node is told at its start.

use std::net::{IpAddr, SocketAddr};

use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, DomainKeys};
use peerage_wire::record::Record;

use crate::endpoint;

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
    /// The records of the own store: the own Node and NodeInfo, operators, devices, revocations, domain keys.
    pub records: Vec<Record>,
    /// The port on which messages and links are received, the same for both.
    pub port: u16,
    /// Addresses at which the owner says that this node can be reached from outside, as a forwarded port.
    pub advertise: Vec<SocketAddr>,
    /// Whether the owner lets this node serve devices, if the operator permits it too.
    pub serves: bool,
    /// How the administrator calls the place where this node stands, where no gateway tells it.
    pub place: Option<String>,
    /// Set for a network that lives on one machine, as a demonstration or a test: then loopback addresses
    /// may be dialled, which are never dialled otherwise.
    pub one_machine: bool,
    /// The address by which this computer is bound to one interface, if it is; candidates are made from it alone.
    pub bound: Option<IpAddr>,
}

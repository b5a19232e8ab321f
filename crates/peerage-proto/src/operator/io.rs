//! Everything that can happen to an operator, and everything that it asks of its caller.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::{CommandId, Domain, LocationId, NodeId, RecordKey, Segment};
use peerage_wire::record::Record;

use super::spies::{Evidence, SpyIdentity, VisitId};
use crate::carrier::{StreamNews, StreamOrder};
use crate::relay;

/// Everything that can happen to an operator.
#[derive(Clone, Debug)]
pub enum Input {
    /// A deadline given by `poll_timeout` may have passed.
    Timeout,
    /// A datagram arrived.
    Datagram {
        /// Who sent it, as seen here.
        remote: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
    /// Something has happened to a connection that carries messages.
    Stream(StreamNews),
    /// Something happened on a TCP connection that a member has made to be relayed.
    Leg(relay::Input),
    /// The ledger has committed these records; each takes the place of an older one.
    Committed(Vec<Record>),
    /// What the ledger says about a domain; comes before the domain's records and after each change.
    Domain(DomainFacts),
    /// Offers the devices of a domain, or of all, to every node that is in contact, now.
    Push(Option<Domain>),
    /// The transaction for [`Output::DeviceSeen`] or [`Output::Left`] has ended.
    Noted {
        /// Which.
        id: CommandId,
        /// False if the ledger refused; nothing is answered then, and the node asks again.
        ok: bool,
    },
    /// What [`Output::CheckTcp`] has found.
    TcpChecked {
        /// Which check.
        task: CheckId,
        /// Whether the node itself answered there.
        ok: bool,
    },
    /// The administrator, or the ledger at start, says whether a super-node is kept away from everybody (Rule 6.78).
    Quarantine {
        /// Which.
        node: NodeId,
        /// Whether it is, from now on.
        on: bool,
    },
    /// More spies, whose Node records come as [`Input::Committed`].
    Spies(Vec<SpyIdentity>),
    /// A datagram arrived at the port of a visit.
    SpyDatagram {
        /// Which.
        visit: VisitId,
        /// Who sent it, as seen here.
        remote: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
}

/// Names one connection that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(pub u64);

/// From which of its UDP ports an operator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The one that everybody knows.
    Main,
    /// One of which nobody knows, so that what comes from it passes no NAT that would not let everybody pass. What arrives there
    /// is an ordinary [`Input::Datagram`].
    Probe,
    /// One that this visit alone uses, opened when it sends first. What arrives there is an [`Input::SpyDatagram`].
    Spy(VisitId),
}

/// The part of the table that a super-node is to hold from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which node.
    pub node: NodeId,
    /// Its identity key.
    pub identity: [u8; 32],
    /// Where it was reached.
    pub addresses: Vec<SocketAddr>,
    /// What it holds; `None` for a tombstone.
    pub range: Option<Segment>,
}

/// What a Head says of a domain besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainFacts {
    /// Which.
    pub domain: Domain,
    /// The newest epoch of its keys.
    pub epoch: u32,
    /// After how many hours without an operator its members stop opening tunnels.
    pub offline_hours: Option<u16>,
    /// Whether the machines in it are the network vendor's own.
    pub vendor: bool,
}

/// Everything that an operator asks of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Transmit {
        /// Where to.
        remote: SocketAddr,
        /// What.
        payload: Bytes,
        /// From which port.
        port: Port,
    },
    /// Do something with a connection that carries messages; none is ever to be made.
    Stream(StreamOrder),
    /// Do something with the TCP connections of the relay.
    Leg(relay::Output),
    /// A member reports where it sees a device; answered by [`Input::Noted`].
    DeviceSeen {
        /// By which a repetition is recognised.
        id: CommandId,
        /// Who.
        node: NodeId,
        /// The key of the device's record.
        key: RecordKey,
        /// Where.
        location: LocationId,
    },
    /// A member leaves; answered by [`Input::Noted`].
    Left {
        /// By which a repetition is recognised.
        id: CommandId,
        /// Who.
        node: NodeId,
    },
    /// A member was in contact; at most once a minute for each.
    Contact {
        /// Who.
        node: NodeId,
        /// From where.
        remote: SocketAddr,
    },
    /// Connect, see whether the TLS handshake proves this identity, and close; a time-out of 5 s. Answered by
    /// [`Input::TcpChecked`].
    CheckTcp {
        /// Which check.
        task: CheckId,
        /// Whose certificate it must be.
        identity: [u8; 32],
        /// Where.
        address: SocketAddr,
    },
    /// Have the ledger sign these SuperNode records in one transaction; they come back as [`Input::Committed`]. If the ledger
    /// refuses, nothing has to be said: the map is planned anew.
    AssignSegments {
        /// The version of the segment map that they make.
        map_version: u64,
        /// What changes.
        changes: Vec<Assignment>,
    },
    /// Close the port of this visit.
    VisitEnded(VisitId),
    /// Have the ledger note that a super-node is kept away from everybody, and why. It comes back as [`Input::Quarantine`]; if the
    /// ledger refuses, it is found out again.
    Quarantined {
        /// Which.
        node: NodeId,
        /// What spies have seen.
        evidence: Vec<Evidence>,
    },
}

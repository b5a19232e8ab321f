//! Everything that can happen to an operator, and everything that it asks of its caller.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::{CommandId, Domain, LocationId, NodeId, RecordKey};
use peerage_wire::record::Record;

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
    },
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
}

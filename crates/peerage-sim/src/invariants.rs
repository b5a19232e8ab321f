//! What must hold whatever happens, each in a file of its own.
//!
//! An invariant sees facts as they happen, looks at the whole now and then, and is asked once more when faults are long over. What
//! it says is what is wrong, for people.

mod authority;
mod beliefs;
mod bytes;
mod holders;
mod limits;
mod liveness;
mod quiet;
mod records;
mod replies;
mod revoked;

use std::fmt::Debug;
use std::net::SocketAddr;

use peerage_proto::node::Change;
use peerage_wire::id::{DeviceId, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use crate::app::{Deed, End};
use crate::network::Party;
use crate::world::World;

pub use self::authority::Authority;
pub use self::beliefs::Beliefs;
pub use self::bytes::Bytes;
pub use self::holders::Holders;
pub use self::limits::Limits;
pub use self::liveness::{CONVERGED_WITHIN, Liveness, may_reach};
pub use self::quiet::Quiet;
pub use self::records::Records;
pub use self::replies::Replies;
pub use self::revoked::Revoked;

/// Something that happened.
#[derive(Debug)]
pub enum Fact<'a> {
    /// A party has sent a datagram.
    Sent {
        /// Who.
        from: Party,
        /// What.
        payload: &'a [u8],
    },
    /// An application acted.
    Deed {
        /// On which computer.
        host: usize,
        /// In which tunnel.
        session: SessionId,
        /// At which end.
        end: End,
        /// What it did.
        deed: &'a Deed,
    },
    /// A tunnel-node was asked for a tunnel.
    Asked {
        /// The tunnel-node's computer.
        host: usize,
        /// Who asks.
        peer: NodeId,
        /// For what.
        open: &'a Open,
    },
    /// A tunnel-node has connected somebody to an address.
    Served {
        /// The tunnel-node's computer.
        host: usize,
        /// Whom.
        peer: NodeId,
        /// As which device.
        device: DeviceId,
        /// As which service.
        service: &'a str,
        /// To what.
        address: SocketAddr,
    },
    /// A node has told its user to use a device without a tunnel.
    UsedHere {
        /// On which computer.
        host: usize,
        /// Which device.
        device: DeviceId,
        /// Where.
        address: SocketAddr,
    },
    /// A disk has acknowledged a write.
    Acknowledged {
        /// Whose.
        host: usize,
        /// What.
        changes: &'a [Change],
    },
    /// A computer was started.
    Started {
        /// Which.
        host: usize,
    },
    /// A computer's disk was set back to a copy.
    Restored {
        /// Whose.
        host: usize,
    },
}

/// Something that must hold.
pub trait Invariant: Debug {
    /// Returns its name.
    fn name(&self) -> &'static str;

    /// Hears of a fact; says what is wrong with it.
    fn observe(&mut self, _fact: &Fact<'_>, _world: &World) -> Option<String> {
        None
    }

    /// Looks at the whole; says what is wrong.
    fn sample(&mut self, _world: &World) -> Option<String> {
        None
    }

    /// Looks at the whole long after the last fault; says what did not come right.
    fn conclude(&mut self, _world: &World) -> Option<String> {
        None
    }
}

/// An invariant that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub what: String,
    /// When.
    pub at: Instant,
}

/// Returns all invariants.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(Authority::default()),
        Box::new(Beliefs::default()),
        Box::new(Bytes::default()),
        Box::new(Holders::default()),
        Box::new(Limits::default()),
        Box::new(Liveness::default()),
        Box::new(Quiet::default()),
        Box::new(Records::default()),
        Box::new(Replies::default()),
        Box::new(Revoked::default()),
    ]
}

//! What happens in the node, as it happens.

use serde::{Deserialize, Serialize};

use super::{Location, NodeState, SuperState, Tunnel};

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

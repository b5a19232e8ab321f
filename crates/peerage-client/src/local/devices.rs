//! The devices of the domain, as the node sees them.

use crate::shared::Service;
use serde::{Deserialize, Serialize};
use std::fmt;

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

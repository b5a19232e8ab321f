//! What a node lends to the network as a super-node.

use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// Of how many domains it cannot hold everything for want of memory; it says nothing about their sets.
    #[serde(default)]
    pub lacking: u64,
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

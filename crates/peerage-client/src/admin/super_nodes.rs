//! What the admin API says of super-nodes and of the segments that they hold.

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// A node that holds a part of the table for everybody, or offers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperNode {
    /// Its id.
    pub id: String,
    /// The name that its owner gave it when it joined.
    pub name: String,
    /// The name of its domain.
    pub domain: String,
    /// Whether that domain is the network vendor's own.
    pub vendor: bool,
    /// How it stands.
    pub state: SuperNodeState,
    /// The places that it holds; absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PlaceRange>,
    /// Where it was reached; where it says that it can be, if that is not known yet.
    pub addresses: Vec<SocketAddr>,
    /// How long ago it was heard; absent if not since the operator started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard_ms_ago: Option<u64>,
    /// How much it says that it does.
    pub load: SuperNodeLoad,
    /// Since when and why it is kept away from everybody; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// What the operator's spies have found.
    pub spied: Spied,
}

/// How a super-node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SuperNodeState {
    /// The operator is finding out whether it can be reached from outside.
    Checking,
    /// It cannot be reached from outside.
    Unreachable,
    /// It can be reached, and is not needed now.
    Spare,
    /// It holds a part of the table.
    Serving,
    /// It holds a part, and wants to stop.
    Leaving,
    /// It holds a part, and was not heard for longer than it may be silent.
    Lost,
    /// It is kept away from everybody.
    Quarantined,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for SuperNodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checking => "checking",
            Self::Unreachable => "unreachable",
            Self::Spare => "spare",
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Lost => "lost",
            Self::Quarantined => "quarantined",
            Self::Unknown => "unknown",
        })
    }
}

/// How much a super-node says that it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperNodeLoad {
    /// Bytes that it has relayed since it was started.
    pub relayed_bytes: u64,
    /// Tunnels that it relays now.
    pub relayed_tunnels: u32,
    /// Records that it holds.
    pub records: u32,
    /// Bytes of these.
    pub held_bytes: u64,
    /// Bytes of records that its owner lends at most.
    pub max_bytes: u64,
    /// Domains of which it holds not everything, because its memory does not suffice.
    pub lacking: u32,
}

/// What the operator's spies have found about a super-node since the operator started, or since it was released.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spied {
    /// How often it was visited in the last day.
    pub visits: u64,
    /// What it was seen to do that an honest one does not, with dates, oldest first; not enough yet to keep it away.
    pub evidence: Vec<String>,
}

/// Since when a super-node is kept away from everybody, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since when.
    pub since_at_ms: u64,
    /// What was seen, or what the administrator has said; may be empty.
    pub evidence: Vec<String>,
}

/// Asks that a super-node be kept away from everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantineSuperNode {
    /// Why; kept with it. At most 1,000 bytes.
    #[serde(default)]
    pub why: String,
}

/// A range of places in the table, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRange {
    /// The first place: 16 hexadecimal digits, of which the first 8 are the number of a domain.
    pub from: String,
    /// The last place.
    pub to: String,
}

impl fmt::Display for PlaceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

/// Who holds which part of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentMap {
    /// The version of the map; 0 before the first super-node.
    pub version: u64,
    /// The parts, in ascending order and without gaps.
    pub segments: Vec<Segment>,
}

/// A part of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The places.
    #[serde(flatten)]
    pub range: PlaceRange,
    /// Who holds it.
    pub holders: Vec<SegmentHolder>,
    /// Whether the operator answers for it as well, since fewer organisations hold it than should. A domain that has a
    /// holder of its own may be answered even if not: its own does not count for it.
    pub stands_in: bool,
}

/// A super-node that holds a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHolder {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The name of its domain.
    pub domain: String,
}

//! What the admin API sends and receives.

use crate::shared::{Role, Service, strict_services};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::SocketAddr};

/// The content of the file that tells local programs where the admin API is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminFile {
    /// The loopback address on which the operator listens.
    pub address: SocketAddr,
    /// The bearer token: at least 128 random bits, of characters that may stand in a header.
    pub token: String,
}

impl fmt::Debug for AdminFile {
    /// Leaves the token out, so that it cannot end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminFile").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The operator as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorStatus {
    /// The version of the program.
    pub version: String,
    /// The node id of this operator.
    pub id: String,
    /// The network id: SHA-256 of the root operator key, in hexadecimal.
    pub network: String,
    /// The addresses on which it listens for messages (UDP) and for joining nodes (TCP).
    pub listen: Vec<SocketAddr>,
    /// The addresses that it tells others.
    pub advertised: Vec<SocketAddr>,
    /// When this process began to serve.
    pub started_at_ms: u64,
    /// How many domains there are.
    pub domains: u64,
    /// How many valid nodes there are, in all domains.
    pub nodes: u64,
    /// How many devices are registered, in all domains.
    pub devices: u64,
    /// Datagrams that were dropped, counted by reason.
    #[serde(default)]
    pub discards: BTreeMap<String, u64>,
    /// What somebody should look at, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Asks for a new domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDomain {
    /// The name, unique at this operator: 1 to 63 characters of `a-z`, `0-9` and `-`.
    pub name: String,
    /// Whether the machines in it are the network vendor's own, of which each part of the table is to have one.
    #[serde(default)]
    pub vendor: bool,
}

/// Asks that a whole domain be excluded for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeDomain {
    /// Why; kept in the revocation record.
    #[serde(default)]
    pub reason: RevocationReason,
}

/// One organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The number, chosen at random by the operator; never 0.
    pub id: u32,
    /// The name, unique at this operator.
    pub name: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// How many valid nodes it has.
    pub nodes: u64,
    /// How many devices it has.
    pub devices: u64,
    /// The number of the domain's present key epoch; each revocation of a node begins a new one.
    pub epoch: u64,
    /// Whether the machines in it are the network vendor's own.
    #[serde(default)]
    pub vendor: bool,
    /// When it was excluded for good; absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
    /// How often super-nodes have refused something to its members since the operator started, by reason: `quota`,
    /// `rate`, `bad-records`, `relay-quota`, `not-member`. Only told of one domain, not in lists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refusals: BTreeMap<String, u64>,
}

/// Asks for a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddToken {
    /// How many nodes may join with it, from 1; absent means one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// For how many seconds it is good, from 1; absent means seven days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// What the nodes may do; absent means [`Role::User`] and [`Role::Tunnel`]. [`Role::Operator`] is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<Role>>,
    /// Whether each node that joins must first be approved.
    #[serde(default)]
    pub approval: bool,
}

/// A token just made: the only time that its secret is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// What `peerage join` takes. It cannot be shown again.
    pub token: String,
    /// What is known about it from now on.
    #[serde(flatten)]
    pub info: Token,
}

impl fmt::Debug for NewToken {
    /// Leaves the secret out, so that it cannot end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What is known about a join token; never its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id: 16 hexadecimal digits.
    pub id: String,
    /// Whether a node can join with it now.
    pub state: TokenState,
    /// How many nodes may join with it in all.
    pub uses: u32,
    /// How many nodes have joined with it.
    pub used: u32,
    /// What the nodes may do.
    pub roles: Vec<Role>,
    /// Whether each node that joins must first be approved.
    pub approval: bool,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
}

/// Whether a node can join with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TokenState {
    /// Yes.
    Open,
    /// No: as many nodes as it allows have joined.
    UsedUp,
    /// No: its time is over.
    Expired,
    /// No: it was revoked, or a node that had joined with it was.
    Revoked,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for TokenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::UsedUp => "used up",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        })
    }
}

/// Asks that a token be closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Whether the nodes that have joined with it are revoked as well.
    #[serde(default)]
    pub with_nodes: bool,
}

/// What the revocation of a token has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedToken {
    /// The token as it is now.
    pub token: Token,
    /// The ids of the nodes that were revoked with it.
    pub revoked_nodes: Vec<String>,
}

/// Asks that a device be registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// The name, unique in the domain: 1 to 63 characters of `a-z`, `0-9` and `-`.
    pub name: String,
    /// What it is, such as `printer` or `camera`, for people and programs that choose by it; up to 32 characters.
    #[serde(default)]
    pub kind: String,
    /// The MAC address, as in `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// The node that sees the device now; the device's location is taken from it. Absent: the device waits until
    /// a node of the domain reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// What of it may be reached: at least one.
    #[serde(deserialize_with = "strict_services")]
    pub services: Vec<Service>,
    /// SHA-256 of the certificates (DER) that it may show, each 64 hexadecimal digits; empty means not checked.
    #[serde(default)]
    pub tls_pins: Vec<String>,
    /// The ids of the nodes that may use it; absent means every node of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<String>>,
}

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its id, fixed at registration, in hexadecimal.
    pub id: String,
    /// Its name, unique in the domain.
    pub name: String,
    /// What it is, such as `printer`.
    pub kind: String,
    /// Its MAC address, in lower case with colons.
    pub mac: String,
    /// What of it may be reached.
    pub services: Vec<Service>,
    /// SHA-256 of the certificates that it may show; empty means not checked.
    pub tls_pins: Vec<String>,
    /// The ids of the nodes that may use it; absent means every node of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<String>>,
    /// Whether it can be used.
    pub state: DeviceState,
    /// At how many locations it is known to be; 0 until a node has seen it.
    pub sites: u32,
    /// The version of its record.
    pub version: u64,
    /// When it was registered.
    pub registered_at_ms: u64,
    /// When its record ends, unless it is signed anew before.
    pub expires_at_ms: u64,
}

/// Whether a registered device can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceState {
    /// Not yet: no node has seen it, so its location is not known.
    Waiting,
    /// Yes: its location is known.
    Located,
    /// No longer: it is removed, and the tombstone is kept until all have it.
    Removed,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Located => "located",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        })
    }
}

/// Asks that device records be sent to those who hold them now, rather than at the next interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// The device's name or id; absent means all devices of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What a push has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// How many device records were sent.
    pub devices: u64,
    /// To how many holders each was sent; the operator itself, where it stands in, is one.
    pub holders: u64,
}

/// A node of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// The name that its owner gave it when it joined.
    pub name: String,
    /// The SHA-256 of its identity key in groups, for two people to compare.
    pub fingerprint: String,
    /// Whether it belongs to the domain now.
    pub state: NodeState,
    /// What it may do.
    pub roles: Vec<Role>,
    /// The id of the token with which it joined.
    pub token: String,
    /// When it joined.
    pub joined_at_ms: u64,
    /// When its record ends, unless it renews it before.
    pub expires_at_ms: u64,
    /// When it was last heard of; absent if not since the operator started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at_ms: Option<u64>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
    /// Why it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_reason: Option<RevocationReason>,
    /// Whether it is one of the operator's own spies, which look whether super-nodes answer the truth. No member is shown that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spy: bool,
}

/// Whether a node belongs to its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeState {
    /// It waits for approval and has received nothing.
    Pending,
    /// It is a member.
    Valid,
    /// It has not renewed its record in time.
    Expired,
    /// It was revoked.
    Revoked,
    /// It has left by itself.
    Left,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Left => "left",
            Self::Unknown => "unknown",
        })
    }
}

/// Asks that a node be revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeNode {
    /// Why; kept in the ledger and in the revocation record.
    #[serde(default)]
    pub reason: RevocationReason,
}

/// Why a node or domain was revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    /// No reason given.
    #[default]
    Unspecified,
    /// The computer is lost or stolen, or its key is known to others.
    KeyCompromise,
    /// The computer or its owner no longer belongs to the organisation.
    Retired,
    /// It behaves against the rules of the network.
    Misbehaviour,
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::Retired => "retired",
            Self::Misbehaviour => "misbehaviour",
        })
    }
}

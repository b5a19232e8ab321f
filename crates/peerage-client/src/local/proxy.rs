//! The proxy through which a node connects, as the local API tells it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The HTTP proxy that a node's TCP connections go through, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Its host and port; never a user name or password.
    pub address: String,
    /// Who names it: the configuration file, or a variable of the environment.
    pub source: String,
    /// What came of it when it was asked last.
    pub state: ProxyState,
    /// Why it does not connect, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What came of a proxy when it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProxyState {
    /// It was not asked yet.
    Unused,
    /// It has connected.
    Works,
    /// It has not.
    Fails,
    /// A state that this version of the client does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for ProxyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unused => "was not needed yet",
            Self::Works => "works",
            Self::Fails => "does not connect",
            Self::Unknown => "unknown",
        })
    }
}

//! Whole stories, played by the real `peerage` program in simulated networks.

mod binary;
mod camera;
mod firewalls;
mod flowing;
mod matrix;
mod player;
mod print;
mod program;
mod quotas;
mod round_trips;
mod super_nodes;
mod survival;
mod tunnels;
mod village;
mod web_ports;

pub use binary::{Profile, Programs};
pub use camera::{Watched, camera};
pub use firewalls::{NETWORKS, firewalls};
pub use matrix::{Selection, matrix};
pub use print::{Reach, print};
pub use program::{Daemon, Peerage};
pub use quotas::quotas;
pub use round_trips::round_trips;
pub use super_nodes::{Size, companies, super_nodes};
pub use survival::{Extent, survival};
pub use tunnels::{Crowd, tunnels};
pub use web_ports::web_ports;

use serde_json::{Map, Value};

/// How a story went: facts gathered until it ended, and why it ended early if it did.
#[derive(Debug, Default)]
pub struct Report {
    facts: Map<String, Value>,
    error: Option<anyhow::Error>,
}

impl Report {
    /// Notes a fact; one of the same name is replaced.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Returns a fact.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.facts.get(name)
    }

    /// Returns whether everything went as it should.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.error.is_none()
    }

    /// Returns why the story ended early.
    #[must_use]
    pub fn error(&self) -> Option<&anyhow::Error> {
        self.error.as_ref()
    }

    /// Returns the report as one JSON object: `ok`, the facts, and `error` if there was one.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = self.facts.clone();
        object.insert("ok".to_owned(), self.is_ok().into());
        if let Some(error) = &self.error {
            object.insert("error".to_owned(), format!("{error:#}").into());
        }
        object.into()
    }
}

//! A small network with somebody in it, or between its nodes, who does not keep to the rules.

mod actor;
mod chaos;
mod datagrams;
mod domain;
mod flood;
mod hints;
mod impostor;
mod membership;
mod quiet;
#[path = "../support/mod.rs"]
mod support;

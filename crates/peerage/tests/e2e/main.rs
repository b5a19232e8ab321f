//! The real program from end to end: operators, nodes and a device as separate processes on loopback.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod crashes;
mod doctor;
mod joining;
mod nodes;
#[cfg(target_os = "linux")]
mod secrets;
mod super_nodes;
mod support;
mod tunnels;

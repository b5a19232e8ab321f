//! Whole Peerage networks in virtual time, with every fault, from one seed.
//!
//! The machines are the real ones of `peerage-proto`; simulated is only what surrounds them: [`network`] and [`nat`], clocks and disks of
//! each [`host`], connections that [`shell`] puts links and sessions on, the [`app`]lications at both ends, the [`ledger`] that
//! operators share. A [`world`] puts them together. A [`plan`] is drawn from a seed: a setup, and a list of [`operations`]. While it
//! [`run`]s, [`invariants`] look at everything that happens. [`swarm`] does that for many seeds, and [`shrink`] makes a failure
//! short. `docs/SIMULATOR.md` says how to use all that. [`experiments`] measure what is claimed of such networks, and draw [`chart`]s.

pub mod app;
pub mod chance;
pub mod chart;
pub mod crypto;
pub mod experiments;
pub mod host;
pub mod idle;
pub mod invariants;
pub mod ledger;
pub mod liar;
pub mod model;
pub mod nat;
pub mod network;
pub mod operations;
pub mod plan;
pub mod report;
pub mod run;
pub mod sessions;
pub mod shell;
pub mod shrink;
pub mod store;
pub mod swarm;
pub mod trace;
pub mod wide;
pub mod world;

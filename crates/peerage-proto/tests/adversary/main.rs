//! A small network with somebody in it, or between its nodes, who does not keep to the rules.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, in its helpers too"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whoever lies about one thing tells the truth about the rest"
)]

mod actor;
mod chaos;
mod datagrams;
mod domain;
mod excluded;
mod flood;
mod hints;
mod impostor;
mod membership;
mod passing;
mod paths;
mod quiet;
#[path = "../support/mod.rs"]
mod support;

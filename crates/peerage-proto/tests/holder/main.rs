//! Super-nodes in a network of several organisations: an operator of a few lines, real holders, members that ask what they like.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one thing")]

mod catching_up;
mod flood;
mod heads;
mod role;
mod secrets;
mod serving;
mod world;

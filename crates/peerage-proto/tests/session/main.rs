//! Lives of a session, from opening to end, with carriers that fail in every way.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, in its helpers too"
)]

mod hostile;
mod lives;
mod overtaken;
mod properties;
mod world;

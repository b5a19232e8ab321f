//! Links: their own frames and timers, and sessions that share them or move between them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, in its helpers too"
)]

mod node;
mod rules;
mod sharing;

//! The fingerprint of a run: two runs that did the same in the same order have the same.

use peerage_wire::time::Instant;

use crate::crypto::Mix;

/// A hash of everything that happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    mix: Mix,
    events: u64,
}

impl Trace {
    /// Notes an event: when, what kind, where, and bytes that tell it from its like.
    pub fn note(&mut self, at: Instant, kind: u64, place: u64, bytes: &[u8]) {
        self.events += 1;
        self.mix.number(at.as_micros());
        self.mix.number(kind);
        self.mix.number(place);
        self.mix.take(bytes);
    }

    /// Returns the hash.
    pub fn hash(&self) -> u64 {
        u64::from_le_bytes(self.mix.out())
    }

    /// Returns how many events were noted.
    pub const fn events(&self) -> u64 {
        self.events
    }
}

//! The own sealing keys: one of the day, and the one before for a while.

use chacha20::ChaCha20Rng;
use peerage_wire::id::KeyHint;
use peerage_wire::intro::{Introduction, KeyStatement};
use peerage_wire::keys::AgreementKey;
use peerage_wire::limits::{SEALING_KEY_LIFETIME, SEALING_KEY_OVERLAP, TIME_WINDOW};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::Config;

#[derive(Clone, Debug)]
struct SealingKey {
    key: AgreementKey,
    statement: KeyStatement,
}

impl SealingKey {
    fn generate(config: &Config, time: UnixTime, rng: &mut ChaCha20Rng) -> Self {
        let key = AgreementKey::generate(rng);
        // The receiver's clock may be behind by as much as messages may be off.
        let validity = time.before(TIME_WINDOW)..time.after(SEALING_KEY_LIFETIME + SEALING_KEY_OVERLAP);
        let statement = KeyStatement::sign(
            &config.identity,
            &config.network,
            config.id,
            *key.public(),
            validity,
            &*config.crypto,
        );
        Self { key, statement }
    }
}

/// The sealing keys; they live in memory only, so a stolen disk does not open what was sent before (Rule 3.7).
#[derive(Clone, Debug)]
pub(super) struct SealingKeys {
    current: SealingKey,
    previous: Option<SealingKey>,
    rotate_at: Instant,
}

impl SealingKeys {
    pub(super) fn new(config: &Config, now: Now, rng: &mut ChaCha20Rng) -> Self {
        let current = SealingKey::generate(config, now.unix, rng);
        Self { current, previous: None, rotate_at: now.mono.after(SEALING_KEY_LIFETIME) }
    }

    /// Makes a new key; the old one is kept for those who have not heard of it yet.
    pub(super) fn rotate(&mut self, config: &Config, time: UnixTime, now: Instant, rng: &mut ChaCha20Rng) {
        let new = SealingKey::generate(config, time, rng);
        self.previous = Some(std::mem::replace(&mut self.current, new));
        self.rotate_at = now.after(SEALING_KEY_LIFETIME);
    }

    pub(super) const fn rotate_at(&self) -> Instant {
        self.rotate_at
    }

    pub(super) const fn current(&self) -> &AgreementKey {
        &self.current.key
    }

    pub(super) const fn statement(&self) -> &KeyStatement {
        &self.current.statement
    }

    /// Returns the key that a message names, if it is still accepted.
    pub(super) fn named(&self, hint: KeyHint, time: UnixTime) -> Option<&AgreementKey> {
        if self.current.statement.hint() == hint {
            return Some(&self.current.key);
        }
        let previous = self.previous.as_ref().filter(|old| old.statement.hint() == hint)?;
        (time < previous.statement.not_after).then_some(&previous.key)
    }

    pub(super) fn introduction(&self, config: &Config) -> Introduction {
        Introduction { record: config.record.to_vec(), statement: self.current.statement }
    }
}

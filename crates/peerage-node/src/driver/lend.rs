//! What the loop does for a computer that is lent to the network: who is let in, what is relayed, and handing over before it ends.

use std::time::Duration;

use peerage_proto::node::{Answer, Command, Input, SuperConfig, SuperState};
use peerage_wire::time::Instant;
use tokio::sync::oneshot;
use tokio::time;

use super::{Driver, Inbox, Request, Watch};
use crate::carrier::TlsIntake;
use crate::door::Door;
use crate::lending;
use crate::relay::Legs;

/// How long a node that ends goes on for the sake of what it holds. Others hold the same, so less only leaves them more to
/// copy; service managers kill after 90 s.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(25);

/// How often it is written down, while anything is relayed, how much of the day's bytes is used up. More seldom lets a computer
/// that crashes give more than its owner lends, by what it relays meanwhile; more often writes for nothing.
const KEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What the shell has to know about lending.
pub(crate) struct Lent {
    door: Door,
    /// The connections that others have made to be relayed.
    legs: Legs,
    /// Whether links are let in for the sake of devices here.
    serves_devices: bool,
    config: SuperConfig,
    /// Whether a part of the table is held.
    holds: bool,
    /// What the machine knows of relayed bytes.
    told_bytes: u64,
    /// How many of them are accounted for on disk, and since when.
    kept: (u64, Instant),
}

impl Lent {
    pub(crate) fn new(legs: Legs, intake: TlsIntake, serves_devices: bool, config: SuperConfig) -> Self {
        let lent = Self {
            door: Door::new(intake),
            legs,
            serves_devices,
            config,
            holds: false,
            told_bytes: 0,
            kept: (0, Instant::default()),
        };
        lent.apply();
        lent
    }

    /// Returns the door, open for whom there is something.
    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Returns what is lent.
    pub(crate) const fn config(&self) -> SuperConfig {
        self.config
    }

    /// Takes what is lent from now on.
    pub(super) fn set(&mut self, config: SuperConfig) {
        self.config = config;
        self.apply();
    }

    /// Takes what the machine is now.
    pub(super) fn changed(&mut self, state: SuperState) {
        self.holds = matches!(state, SuperState::Serving { .. } | SuperState::HandingOver);
        self.apply();
    }

    pub(super) const fn legs(&self) -> &Legs {
        &self.legs
    }

    fn apply(&self) {
        self.legs.set_caps(lending::caps(&self.config));
        // An operator dials whoever offers itself, before it holds anything.
        self.door.set(self.serves_devices || self.config.on || self.holds, self.holds);
    }
}

impl Driver {
    /// Lets the machine know what was relayed since it was told last.
    pub(super) fn count_relayed(&mut self) {
        let bytes = self.lent.legs.bytes();
        if bytes != self.lent.told_bytes {
            self.lent.told_bytes = bytes;
            self.handle(Input::Relayed { bytes });
        }
        let (kept, at) = self.lent.kept;
        if bytes != kept && self.clock.mono() - at >= KEEP_INTERVAL {
            self.keep_relayed();
        }
    }

    /// Writes down how much of the day's bytes is used up, so that a restart does not give them again.
    pub(super) fn keep_relayed(&mut self) {
        let bytes = self.lent.legs.bytes();
        if bytes != self.lent.kept.0 {
            self.lent.kept = (bytes, self.clock.mono());
            // Should it fail, the store has said so; the next one is a minute away.
            drop(self.store.submit(lending::keep_relay_day(self.lent.legs.day())));
        }
    }

    /// Hands over what is held for others, while everything else goes on; without effect if nothing is held.
    pub(super) async fn hand_over(&mut self, inbox: &mut Inbox, changes: &mut Watch) {
        if !self.lent.holds {
            return;
        }
        let (answer, receiver) = oneshot::channel();
        self.on_request(Request::Command(Command::SuperOff, answer));
        let mut handed_over = false;
        let until = async {
            let answer = time::timeout(HANDOVER_TIMEOUT, receiver).await;
            handed_over = matches!(answer, Ok(Ok(Answer::SuperOff { handed_over: true })));
        };
        self.turn(inbox, changes, until).await;
        if handed_over {
            tracing::info!("others hold now what this super-node held");
        } else {
            tracing::warn!(
                "no operator has confirmed that others hold what this super-node held; they will fetch it from each other"
            );
        }
    }
}

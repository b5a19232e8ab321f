//! When a link that is missing is dialled again (Rule 7.26).

use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::{Dial, Purpose};

/// The time from the beginning of a failed dial to the next at the least. Shorter burdens a network that is coming up, longer adds to the
/// pause that people notice.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The same at the most. Longer saves the batteries and tunnel-nodes that nobody answers; shorter finds a network sooner that came
/// back without this computer being told.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// The pause is this part of the outage: who has been without a network for half a minute waits two seconds more at the most.
const PAUSE_PART: u32 = 16;

/// How long a dial may take at first. A packet lost at its beginning is sent again by the system after 1, 3 and 7 s, so beyond three
/// seconds another dial is sooner.
const TIMEOUT_MIN: Duration = Duration::from_secs(3);

/// The same once the outage is long, and of dials that nobody waits for: for paths so slow that the shorter one never is enough.
const TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// After this time of an outage, dials may take longer.
const PATIENT_AFTER: Duration = Duration::from_secs(60);

/// The time from one search for the peer to the next in an outage, at first; it doubles each time. Shorter asks those who are busy starting
/// again, longer adds to the pause that people notice.
const SEEK_MIN: Duration = Duration::from_millis(100);

/// The same in the first seconds of an outage at the most; later it is as long as the pause between dials.
const SEEK_MAX: Duration = Duration::from_secs(1);

/// How often a better path is looked for after a change of the networks before the old one is good enough.
const MAX_LOOKS: u32 = 5;

/// The state of dialling a shared link.
#[derive(Debug)]
pub(super) struct Redial {
    /// Differs between the nodes that lost the same peer at the same time.
    salt: u64,
    /// Since when a link is wanted.
    since: Option<Instant>,
    /// When the last dial began.
    began_at: Option<Instant>,
    under_way: Option<u64>,
    failures: u32,
    next_id: u64,
    /// When the peer was looked for last, and how often in this outage.
    sought_at: Option<Instant>,
    searches: u32,
}

impl Redial {
    pub(super) fn new(local: NodeId) -> Self {
        let salt = local.hash.iter().fold(0_u64, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte));
        Self {
            salt,
            since: None,
            began_at: None,
            under_way: None,
            failures: 0,
            next_id: 0,
            sought_at: None,
            searches: 0,
        }
    }

    pub(super) fn want(&mut self, now: Instant) {
        self.since = self.since.or(Some(now));
    }

    /// Returns when to begin the next dial; none while one is under way.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        Some(self.began_at.map_or(Instant::default(), |at| at.after(self.pause())))
    }

    fn pause(&self) -> Duration {
        self.after_outage(self.began_at, (PAUSE_MIN, self.failures))
    }

    /// Returns when the peer is to be looked for: it may be elsewhere, or where only a relay leads to it.
    pub(super) fn seek_at(&self) -> Instant {
        let pause = SEEK_MAX.min(SEEK_MIN * 2_u32.saturating_pow(self.searches.saturating_sub(1).min(10)));
        let pause = self.after_outage(self.sought_at, (pause, self.searches));
        self.sought_at.map_or(Instant::default(), |at| at.after(pause))
    }

    pub(super) const fn sought(&mut self, now: Instant) {
        self.sought_at = Some(now);
        self.searches = self.searches.saturating_add(1);
    }

    /// Returns a pause that is a part of the outage when it began, within limits.
    fn after_outage(&self, at: Option<Instant>, (least, attempt): (Duration, u32)) -> Duration {
        let (Some(since), Some(at)) = (self.since, at) else { return least };
        let pause = ((at - since) / PAUSE_PART).clamp(least, PAUSE_MAX);
        // Up to a quarter more, so that those who lost the same peer do not come back all at once.
        let drawn = mixed(self.salt ^ u64::from(attempt)) % 256;
        pause + pause * u32::try_from(drawn).unwrap_or(0) / 1_024
    }

    pub(super) fn begin(&mut self, purpose: Purpose, round_trip: Duration, now: Instant) -> Dial {
        self.next_id = self.next_id.saturating_add(1);
        let id = self.next_id;
        let is_patient = self.since.is_none_or(|since| now - since > PATIENT_AFTER);
        let timeout = match purpose {
            Purpose::Shared => {
                self.under_way = Some(id);
                self.began_at = Some(now);
                if is_patient { TIMEOUT_MAX } else { TIMEOUT_MIN.max(round_trip * 8).min(TIMEOUT_MAX) }
            }
            Purpose::Own(_) => TIMEOUT_MAX,
        };
        Dial { id, purpose, timeout, failures: self.failures, is_awaited: true, serving: None }
    }

    /// Notes a failed dial; returns whether it was the one that was waited for.
    pub(super) fn failed(&mut self, id: u64) -> bool {
        let is_current = self.under_way == Some(id);
        if is_current {
            self.under_way = None;
            self.note_failure();
        }
        is_current
    }

    pub(super) const fn note_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A link stands; whether it is of use shows later.
    pub(super) const fn succeeded(&mut self) {
        self.under_way = None;
    }

    /// A link that was of use has failed, or nothing is wanted any more: the next outage is a new one.
    pub(super) const fn begin_anew(&mut self) {
        self.failures = 0;
        self.since = None;
        self.sought_at = None;
        self.searches = 0;
    }

    /// What was tried is out of date.
    pub(super) const fn retry_now(&mut self) {
        self.begin_anew();
        self.under_way = None;
        self.began_at = None;
    }

    /// Returns whether a better path should be looked for once more.
    pub(super) const fn may_go_on_looking(&self) -> bool {
        self.failures < MAX_LOOKS
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

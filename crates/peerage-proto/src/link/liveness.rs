//! Whether the other side is still there, and how far away it is.
//!
//! A link is *unconfirmed* from the first frame sent that wants an answer until a probe comes back that was
//! sent after the last such frame. It is *active* for some seconds after bytes of a session have come, because
//! more may be under way to where nothing arrives any more, and the receiver is the one who can dial. While it
//! is either, silence means something: after one second it is probed, each second; after three it is suspect;
//! suspect for thirty, it is dead. Any other link is asked only now and then, so that NATs keep its mapping.
//!
//! A PROBE ends no silence: whoever hears nothing sends them, so they do not show that anything arrives there.

use std::time::Duration;

use peerage_wire::time::Instant;

/// Silence after which an unconfirmed or active link is probed, and the time between such probes (Rule 7.8). Shorter
/// disturbs slow paths, longer delays all that follows from silence.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Silence after which such a link is suspect (Rule 7.11): three lost probes. Shorter gives false
/// alarms on mobile networks, which cost a resend; longer makes people wait.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// How long a link is active after bytes of a session have come. Longer sends more probes for those who have
/// paused, shorter misses the end of a path in the pauses of a sender who makes some.
const ACTIVE_FOR: Duration = Duration::from_secs(10);

/// How long a suspect link is kept: what TCP needs to recover from a short outage.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// How often a busy link is probed although it is not silent, to keep its round trip up to date.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Liveness {
    consent_interval: Duration,
    last_received_at: Instant,
    /// The same, PROBE left out.
    last_word_at: Instant,
    /// When bytes of a session came last; none if no session would get more.
    last_data_at: Option<Instant>,
    /// Since when an answer is wanted.
    unconfirmed_at: Option<Instant>,
    suspect_at: Option<Instant>,
    /// It was suspect, and no probe has come back since: bytes that arrive prove one direction only.
    is_unproven: bool,
    last_probe_at: Instant,
    probe: Option<Probe>,
    probes: u64,
    round_trip: Option<Duration>,
}

/// The probe whose answer is awaited; older ones are forgotten.
#[derive(Debug)]
struct Probe {
    echo: [u8; 8],
    sent_at: Instant,
    /// Nothing that wants an answer was sent after it.
    is_newest: bool,
}

/// What became due.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) is_probe: bool,
    pub(super) is_suspect: bool,
    pub(super) is_dead: bool,
}

impl Liveness {
    pub(super) const fn new(consent_interval: Duration, now: Instant) -> Self {
        Self {
            consent_interval,
            last_received_at: now,
            last_word_at: now,
            last_data_at: None,
            unconfirmed_at: None,
            suspect_at: None,
            is_unproven: false,
            last_probe_at: now,
            probe: None,
            probes: 0,
            round_trip: None,
        }
    }

    pub(super) const fn is_suspect(&self) -> bool {
        self.suspect_at.is_some()
    }

    /// Returns whether both directions work, as far as is known.
    pub(super) const fn is_proven(&self) -> bool {
        !self.is_unproven
    }

    pub(super) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Returns whether something has been received so lately that the path must work.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now - self.last_received_at < PROBE_INTERVAL
    }

    /// Takes note of received bytes, and whether they are more than PROBE; returns whether that ends a suspicion.
    pub(super) const fn on_received(&mut self, is_word: bool, now: Instant) -> bool {
        self.last_received_at = now;
        if is_word {
            self.last_word_at = now;
        }
        is_word && self.suspect_at.take().is_some()
    }

    /// Takes note that bytes of a session have come: there may be more.
    pub(super) const fn on_data(&mut self, now: Instant) {
        self.last_data_at = Some(now);
    }

    /// Takes note that no session is left that would get bytes.
    pub(super) const fn on_unused(&mut self) {
        self.last_data_at = None;
    }

    /// Takes note that a frame was sent that an honest peer answers.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.unconfirmed_at = self.unconfirmed_at.or(Some(now));
        if let Some(probe) = &mut self.probe {
            probe.is_newest = false;
        }
    }

    pub(super) fn make_probe(&mut self, now: Instant) -> [u8; 8] {
        self.probes += 1;
        let echo = self.probes.to_be_bytes();
        self.probe = Some(Probe { echo, sent_at: now, is_newest: true });
        self.last_probe_at = now;
        self.unconfirmed_at = self.unconfirmed_at.or(Some(now));
        echo
    }

    pub(super) fn on_probed(&mut self, echo: [u8; 8], now: Instant) {
        let Some(probe) = self.probe.take_if(|probe| probe.echo == echo) else { return };
        if probe.is_newest {
            self.unconfirmed_at = None;
        }
        self.is_unproven = false;
        let sample = now - probe.sent_at;
        // The usual smoothing (RFC 6298, section 2).
        self.round_trip = Some(self.round_trip.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8));
    }

    /// Makes the link suspect at once; returns whether it was not so before.
    pub(super) fn doubt(&mut self, now: Instant) -> bool {
        let was_suspect = self.suspect_at.is_some();
        self.suspect_at = self.suspect_at.or(Some(now));
        self.is_unproven = true;
        !was_suspect
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        let is_probe = self.probe_at() <= now;
        let is_suspect = self.becomes_suspect_at().is_some_and(|at| at <= now);
        if is_suspect {
            self.suspect_at = Some(now);
            self.is_unproven = true;
        }
        let is_dead = self.dies_at().is_some_and(|at| at <= now);
        Due { is_probe, is_suspect, is_dead }
    }

    pub(super) fn next_at(&self) -> Instant {
        let others = [self.becomes_suspect_at(), self.dies_at()];
        others.into_iter().flatten().fold(self.probe_at(), Instant::min)
    }

    /// Since when silence means something.
    fn silent_since(&self) -> Option<Instant> {
        if self.last_data_at.is_some_and(|at| self.last_word_at < at.after(ACTIVE_FOR)) {
            return Some(self.last_word_at);
        }
        self.unconfirmed_at.map(|at| at.max(self.last_word_at))
    }

    fn probe_at(&self) -> Instant {
        match self.silent_since() {
            None => self.last_received_at.max(self.last_probe_at).after(self.consent_interval),
            Some(since) => {
                let silence = since.max(self.last_probe_at).after(PROBE_INTERVAL);
                silence.min(self.last_probe_at.after(MEASURE_INTERVAL))
            }
        }
    }

    fn becomes_suspect_at(&self) -> Option<Instant> {
        let since = self.silent_since().filter(|_| self.suspect_at.is_none())?;
        Some(since.after(SUSPECT_AFTER))
    }

    fn dies_at(&self) -> Option<Instant> {
        self.suspect_at.map(|at| at.after(DEAD_AFTER))
    }
}

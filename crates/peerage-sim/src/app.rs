//! The applications at both ends of a tunnel: what they write, how fast they read, when they give up.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::session::{Read, Session};
use peerage_wire::frame::Code;
use peerage_wire::id::SessionId;
use peerage_wire::time::Instant;

/// How often a slow application reads.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Most bytes that an application offers to a session at once.
const PIECE: u64 = 32 * 1_024;

/// Which end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The application of the user.
    User,
    /// The device.
    Device,
}

impl End {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::User, Self::Device];

    /// Returns the one opposite.
    pub const fn other(self) -> Self {
        match self {
            Self::User => Self::Device,
            Self::Device => Self::User,
        }
    }
}

/// How an application reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Everything that is there.
    Eager,
    /// At most so many pieces every tenth of a second; with 0 it hangs.
    Slow(u32),
}

/// What happens in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// Bytes that the user sends.
    pub up: u64,
    /// Bytes that the device sends.
    pub down: u64,
    /// Whether the device waits for the end of what the user sends, as a printer does.
    pub answers_last: bool,
    /// How the user reads.
    pub user: Pace,
    /// How the device reads.
    pub device: Pace,
    /// Who breaks off, after having read so many bytes.
    pub breaks: Option<(End, u64)>,
}

impl Script {
    /// A short question and its answer.
    pub const PROBE: Self = Self {
        up: 100,
        down: 2_000,
        answers_last: true,
        user: Pace::Eager,
        device: Pace::Eager,
        breaks: None,
    };

    const fn sends(&self, end: End) -> u64 {
        match end {
            End::User => self.up,
            End::Device => self.down,
        }
    }

    const fn pace(&self, end: End) -> Pace {
        match end {
            End::User => self.user,
            End::Device => self.device,
        }
    }
}

/// Returns what an end writes from an offset on: different for each session and end, and nowhere repeating.
pub fn pattern(session: SessionId, end: End, from: u64, length: u64) -> Bytes {
    let mut seed = u64::from_le_bytes(session.0.first_chunk().copied().unwrap_or_default());
    seed ^= match end {
        End::User => 0x5555_5555_5555_5555,
        End::Device => 0,
    };
    let word = |index: u64| {
        // The finaliser of splitmix64.
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let skip = usize::try_from(from % 8).unwrap_or(0);
    let words = (from / 8)..=from.saturating_add(length) / 8;
    let bytes: Vec<u8> = words.flat_map(word).skip(skip).take(usize::try_from(length).unwrap_or(0)).collect();
    bytes.into()
}

/// What an application did or saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It gave the session so many bytes more.
    Wrote(u64),
    /// It will write no more.
    Finished,
    /// It was given these bytes.
    Read(Bytes),
    /// It saw the end of what the other end wrote.
    SawEnd,
    /// Its connection was broken off.
    SawReset(Code),
    /// It broke the connection off.
    Broke,
}

/// One application.
#[derive(Clone, Debug)]
pub struct App {
    session: SessionId,
    end: End,
    script: Script,
    written: u64,
    read: u64,
    has_finished: bool,
    has_seen_end: bool,
    reads_at: Instant,
}

impl App {
    /// Makes the application at one end.
    pub const fn new(session: SessionId, end: End, script: Script, now: Instant) -> Self {
        let (written, read) = (0, 0);
        Self { session, end, script, written, read, has_finished: false, has_seen_end: false, reads_at: now }
    }

    /// Returns whether nothing more is to be seen.
    pub const fn has_seen_end(&self) -> bool {
        self.has_seen_end
    }

    /// Returns when it acts by itself.
    pub fn wakes_at(&self) -> Option<Instant> {
        let is_slow = matches!(self.script.pace(self.end), Pace::Slow(pieces) if pieces > 0);
        (is_slow && !self.has_seen_end).then_some(self.reads_at)
    }

    /// Lets it do what it can.
    pub fn drive(&mut self, session: &mut Session, now: Instant) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.take(session, now, &mut deeds);
        self.give(session, &mut deeds);
        deeds
    }

    fn take(&mut self, session: &mut Session, now: Instant, deeds: &mut Vec<Deed>) {
        let mut pieces = match self.script.pace(self.end) {
            Pace::Eager => u32::MAX,
            Pace::Slow(_) if now < self.reads_at => 0,
            Pace::Slow(pieces) => {
                self.reads_at = now.after(SLOW_INTERVAL);
                pieces
            }
        };
        while pieces > 0 && !self.has_seen_end {
            pieces -= 1;
            match session.read(now) {
                Read::Bytes(bytes) => {
                    self.read = self.read.saturating_add(bytes.len() as u64);
                    deeds.push(Deed::Read(bytes));
                    let breaks = self.script.breaks;
                    if breaks.is_some_and(|(end, after)| end == self.end && self.read >= after) {
                        session.reset(Code::ApplicationReset);
                        self.has_seen_end = true;
                        deeds.push(Deed::Broke);
                    }
                }
                Read::Pending => return,
                Read::Finished => {
                    self.has_seen_end = true;
                    deeds.push(Deed::SawEnd);
                }
                Read::Reset(code) => {
                    self.has_seen_end = true;
                    deeds.push(Deed::SawReset(code));
                }
            }
        }
    }

    fn give(&mut self, session: &mut Session, deeds: &mut Vec<Deed>) {
        if self.end == End::Device && self.script.answers_last && !self.has_seen_end {
            return;
        }
        let total = self.script.sends(self.end);
        while self.written < total {
            let piece = PIECE.min(total - self.written).min(session.writable() as u64);
            if piece == 0 {
                return;
            }
            let mut bytes = pattern(self.session, self.end, self.written, piece);
            let Ok(taken) = session.write(&mut bytes) else { return };
            if taken == 0 {
                return;
            }
            self.written = self.written.saturating_add(taken as u64);
            deeds.push(Deed::Wrote(taken as u64));
        }
        if !self.has_finished {
            self.has_finished = true;
            session.finish();
            deeds.push(Deed::Finished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_pattern_is_the_same_as_in_the_whole() {
        let id = SessionId([3; 16]);
        let whole = pattern(id, End::User, 0, 1_000);
        assert_ne!(whole, pattern(id, End::Device, 0, 1_000));
        for (from, length) in [(0, 7), (3, 64), (8, 8), (991, 9), (500, 0)] {
            let part = pattern(id, End::User, from, length);
            assert_eq!(part, whole[usize::try_from(from).unwrap()..][..usize::try_from(length).unwrap()]);
        }
    }
}

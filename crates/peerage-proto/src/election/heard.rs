//! Who was heard lately, and what they said last.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::beacon::{Beacon, Kind};
use peerage_wire::id::NodeId;
use peerage_wire::time::{Instant, UnixTime};

use super::GONE_AFTER;

/// Most nodes that are remembered; of a LAN only those who stand or serve are heard more than once. A member that
/// invents more makes others count too many seats as taken, which checks find out.
pub(super) const MAX_HEARD: usize = 64;

/// How long the time of a node's last beacon is remembered: longer than an old beacon can be replayed (Rule 6.25).
const REMEMBERED: Duration = Duration::from_secs(150);

#[derive(Clone, Copy, Debug)]
struct Voice {
    time: UnixTime,
    at: Instant,
    /// What it holds or wants; none once it is silent or has said goodbye.
    kind: Option<Kind>,
    /// For how long it had been elected then, as it says.
    elected_for: Duration,
    rank: u64,
}

/// What was heard, by node.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    voices: BTreeMap<NodeId, Voice>,
}

impl Heard {
    /// Takes a beacon. Returns whether it is news: neither older than the sender's last, nor from one too many.
    pub(super) fn take(&mut self, beacon: &Beacon, now: Instant) -> bool {
        let known = self.voices.get(&beacon.node).copied();
        if known.is_some_and(|voice| beacon.time <= voice.time) {
            return false;
        }
        // Whoever only asks need not be remembered: answers are limited in time.
        if known.is_none() && beacon.kind == Kind::Who {
            return true;
        }
        if known.is_none() && self.voices.len() >= MAX_HEARD && !self.make_room() {
            return false;
        }
        let kind = match beacon.kind {
            Kind::Elected | Kind::Standing | Kind::Additional => Some(beacon.kind),
            Kind::Goodbye | Kind::Who => None,
            Kind::Checked => known.and_then(|voice| voice.kind),
        };
        let rank = known.map_or_else(|| beacon.ballot.rank(&beacon.node), |voice| voice.rank);
        let elected_for = match beacon.kind {
            Kind::Checked => known.map_or(Duration::ZERO, |voice| voice.elected_for),
            Kind::Elected | Kind::Standing | Kind::Additional | Kind::Goodbye | Kind::Who => {
                Duration::from_secs(beacon.seated_secs.into())
            }
        };
        self.voices.insert(beacon.node, Voice { time: beacon.time, at: now, kind, elected_for, rank });
        true
    }

    /// Forgets the one that was silent for longest among those who hold nothing.
    fn make_room(&mut self) -> bool {
        let idle = self.voices.iter().filter(|(_, voice)| voice.kind.is_none());
        let oldest = idle.min_by_key(|(_, voice)| voice.at).map(|(node, _)| *node);
        oldest.is_some_and(|node| self.voices.remove(&node).is_some())
    }

    /// Takes the seats of those who are gone, and forgets who was long silent.
    pub(super) fn sweep(&mut self, now: Instant) {
        for voice in self.voices.values_mut().filter(|voice| voice.at.after(GONE_AFTER) <= now) {
            voice.kind = None;
        }
        self.voices.retain(|_, voice| voice.kind.is_some() || voice.at.after(REMEMBERED) > now);
    }

    /// Forgets who is elected, not what has been said.
    pub(super) fn forget_seats(&mut self) {
        for voice in self.voices.values_mut() {
            voice.kind = None;
        }
    }

    /// Returns when the next one is gone, if it stays silent.
    pub(super) fn next_gone(&self) -> Option<Instant> {
        let holding = self.voices.values().filter(|voice| voice.kind.is_some());
        holding.map(|voice| voice.at.after(GONE_AFTER)).min()
    }

    /// Returns those who hold a seat.
    pub(super) fn seated(&self) -> impl Iterator<Item = NodeId> + '_ {
        let elected = self.voices.iter().filter(|(_, voice)| voice.kind == Some(Kind::Elected));
        elected.map(|(node, _)| *node)
    }

    /// Returns those who serve, in a seat or beside those, and for how long they say that they have.
    pub(super) fn serving(&self, now: Instant) -> impl Iterator<Item = (NodeId, Duration)> + '_ {
        let serving = self.voices.iter().filter(|(node, _)| self.is_seated(node));
        serving.map(move |(node, voice)| (*node, voice.elected_for.saturating_add(now - voice.at)))
    }

    /// Returns whether somebody serves, in a seat or beside those.
    pub(super) fn is_seated(&self, node: &NodeId) -> bool {
        let voice = self.voices.get(node);
        voice.is_some_and(|voice| matches!(voice.kind, Some(Kind::Elected | Kind::Additional)))
    }

    /// Returns those who come before somebody of this rank: seated ones with a lower number; for one who only
    /// stands, all who are seated and those with a lower number who stand too.
    pub(super) fn before(&self, rank: u64, stands: bool) -> impl Iterator<Item = NodeId> + '_ {
        let comes_before = move |voice: &Voice| match voice.kind {
            Some(Kind::Elected) => stands || voice.rank < rank,
            Some(Kind::Standing) => stands && voice.rank < rank,
            _ => false,
        };
        self.voices.iter().filter(move |(_, voice)| comes_before(voice)).map(|(node, _)| *node)
    }
}

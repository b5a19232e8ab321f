//! The segment map: which super-node holds which part of the table, and what to change about it.
//!
//! The map is nothing but the SuperNode records in the ledger: a **segment** is a range of places that the records
//! of its holders state, and the planner works it out from them each time, so an operator that starts anew goes on
//! where the last one stopped. [`plan`] is a pure function from what is known now to the records to sign; called
//! again when they are signed and nothing else has happened, it has nothing to say.
//!
//! What it strives for, most urgent first: no segment below two live holders; three replicas of distinct
//! organisations and address prefixes for each domain of a segment, to which its own super-nodes are extras; a
//! super-node of the vendor in each; as many segments as that allows. What it avoids: moving records. A split moves
//! none, a replacement moves a segment's records once, and only joining two segments, when there is nobody else,
//! moves more. Changes come in whole steps, each of which leaves a good map, and no more than [`MAX_CHANGES`] at
//! once.

mod diversity;
mod draft;
mod shape;
mod staff;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, Segment};
use peerage_wire::time::Instant;
use rand_core::Rng;

use crate::segments::REPLICAS;
use crate::segments::diversity::Prefix;
use draft::Draft;

/// How long a super-node counts as live after it was last heard: three reports of one every 25 s. Shorter
/// takes a lost datagram for a lost super-node, or has all of them report more often, which every operator pays for; longer leaves
/// the table thin for longer.
pub(super) const LEASE: Duration = Duration::from_secs(75);

/// How long an operator that has started waits for the super-nodes of the map before it takes those unheard of for
/// lost. They back off while no operator answers; shorter would re-divide the table before they are back.
pub(super) const RETURN_TIME: Duration = Duration::from_secs(300);

/// How old a loss must be before a segment below two holders is mended at once. It exceeds the 30 s between two
/// reports: when the operator itself loses its network all leases run out within that, and nothing must be
/// re-divided among those whose leases happen to run out last. Longer leaves a single copy for longer.
const SETTLE_TIME: Duration = Duration::from_secs(35);

/// How long a lost super-node keeps its place, and its records: most are back after a restart. Shorter moves
/// records for nothing; longer leaves a segment with two replicas for longer.
const REPLACE_AFTER: Duration = Duration::from_secs(600);

/// How long a super-node that leaves waits at the most until another has taken over. It may go away anyway, so
/// longer gains little.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(600);

/// Fewer live replicas than this are mended at once, not only after [`REPLACE_AFTER`]: one more loss could take the
/// last.
const FEWEST: usize = 2;

/// Most super-nodes that a segment is given: every announcement goes to each of them. Four times the replicas
/// leaves room to find a split where it wants twice as many.
const MAX_HOLDERS: usize = 4 * REPLICAS;

/// Most super-nodes of a segment that was joined from two.
const MAX_JOINED: usize = 2 * MAX_HOLDERS;

/// Most super-nodes of the vendor in a segment, of which one counts and the others wait for splits.
const MAX_VENDOR: usize = REPLICAS;

/// Most records that one plan changes, but for a single step that is larger by itself. More would be a burst of
/// transfers and of notifications; with fewer, mending after a large loss takes longer.
const MAX_CHANGES: usize = 64;

/// Most super-nodes without a segment for which one plan seeks a place; the others wait for the next.
const MAX_NEWCOMERS: usize = 256;

/// Among how many of the poorest segments a newcomer's is drawn. With one, whoever brings many super-nodes could
/// tell where the next will go; with more, poor segments wait longer.
const POOREST: usize = 3;

/// Whether a super-node can be relied on, and since when not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its lease holds and it can be reached.
    Live,
    /// Its lease ran out, or it cannot be reached from outside any more.
    Lost {
        /// Since when; a time in the future has no effect yet.
        since: Instant,
    },
    /// It has asked to stop.
    Leaving {
        /// When it first asked.
        since: Instant,
    },
    /// It was caught lying or withholding: nobody is to be sent to it.
    Quarantined,
}

impl Standing {
    /// Returns the standing of a super-node by its lease alone: when it last reported, if it has since the operator
    /// started.
    pub(super) fn by_lease(heard_at: Option<Instant>, started_at: Instant, now: Instant) -> Self {
        let since = heard_at.map_or_else(|| started_at.after(RETURN_TIME), |at| at.after(LEASE));
        if heard_at.is_some() && now <= since { Self::Live } else { Self::Lost { since } }
    }
}

/// What is known of a super-node, besides its id, which names its organisation.
#[derive(Clone, Debug)]
pub(super) struct SuperNode {
    /// The prefixes of the addresses at which it was reached, see [`Prefix::of_all`].
    pub(super) prefixes: Vec<Prefix>,
    /// Whether the vendor runs it.
    pub(super) vendor: bool,
    /// Whether it can be relied on.
    pub(super) standing: Standing,
    /// Whether it holds what its present SuperNode record says, and not only part of it yet. Means nothing without
    /// one.
    pub(super) ready: bool,
    /// How many records it is prepared to hold.
    pub(super) capacity: u64,
}

/// Everything that a plan depends on, but for time and chance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    /// Every super-node that wants a segment, or has one and is still a member.
    pub(super) nodes: &'a BTreeMap<NodeId, SuperNode>,
    /// The map: the ranges in the valid SuperNode records.
    pub(super) held: &'a BTreeMap<NodeId, Segment>,
    /// How many records each domain has; one that is missing has none.
    pub(super) load: &'a BTreeMap<Domain, u64>,
}

/// Why a super-node's range changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// It is no member any more.
    Gone,
    /// It is in quarantine.
    Quarantined,
    /// It was lost for too long, or all of its segment at once.
    Lost,
    /// It wanted to leave, and has been replaced as well as can be.
    HandedOver,
    /// Its range overlapped others only in part.
    Healed,
    /// It is new, and was given a segment.
    Assigned,
    /// It was moved here because this segment has too few holders.
    Moved,
    /// It was moved here because the vendor had none here.
    VendorFloor,
    /// Its segment and the next became one.
    Joined,
    /// Its segment became two.
    Split,
    /// Others make it unnecessary here.
    Surplus,
}

/// A SuperNode record to sign: with a new range, or a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Whose record.
    pub(super) node: NodeId,
    /// Its new range, if it keeps or gets one.
    pub(super) segment: Option<Segment>,
    /// Why. Of several reasons the last that is about this super-node and not about its segment.
    pub(super) reason: Reason,
}

/// What is to be done about the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The records to sign, in the order of their ids, in one transaction. Empty if the map is as good as it gets.
    pub(super) changes: Vec<Change>,
    /// When there may be something to do merely because time has passed.
    pub(super) next_at: Option<Instant>,
}

/// Says what to change about the segment map. Chance decides only where a newcomer goes and which of several equals
/// moves.
pub(super) fn plan(situation: Situation<'_>, rng: &mut impl Rng, now: Instant) -> Plan {
    let mut draft = Draft::new(situation, now);
    draft.place_newcomers(rng);
    draft.mend_poor(rng);
    draft.join_poor();
    draft.release_leaving();
    draft.split_large();
    draft.spread_vendor();
    draft.release_surplus();
    Plan { changes: draft.into_changes(situation.held), next_at: next_at(situation, now) }
}

fn next_at(situation: Situation<'_>, now: Instant) -> Option<Instant> {
    let standings = situation.held.keys().filter_map(|id| Some(situation.nodes.get(id)?.standing));
    let times = standings.flat_map(|standing| match standing {
        Standing::Lost { since } => [Some(since.after(SETTLE_TIME)), Some(since.after(REPLACE_AFTER))],
        Standing::Leaving { since } => [Some(since.after(HANDOVER_TIMEOUT)), None],
        Standing::Live | Standing::Quarantined => [None, None],
    });
    times.flatten().filter(|at| *at > now).min()
}

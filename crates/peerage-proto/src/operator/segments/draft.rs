//! The map while it is being planned: segments that cover every place once, and what has been changed so far.

use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::id::{Domain, NodeId, PlacementKey, Segment};
use peerage_wire::time::Instant;

use super::diversity::{Member, strength};
use super::{Change, MAX_CHANGES, REPLACE_AFTER, Reason, SETTLE_TIME, Situation, Standing, SuperNode};
use crate::segments::diversity::replicas;

/// A segment with its holders; without any it is the operator's alone.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) segment: Segment,
    pub(super) holders: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) nodes: &'a BTreeMap<NodeId, SuperNode>,
    pub(super) load: &'a BTreeMap<Domain, u64>,
    pub(super) now: Instant,
    /// By first place.
    pub(super) parts: BTreeMap<PlacementKey, Part>,
    /// The part that each holder is in, by its first place.
    pub(super) homes: BTreeMap<NodeId, PlacementKey>,
    changes: BTreeMap<NodeId, Change>,
    /// Those that were given places in this plan which they do not hold yet.
    fetching: BTreeSet<NodeId>,
    /// A step was put off because the plan is long enough.
    pub(super) full: bool,
}

impl<'a> Draft<'a> {
    /// Reads the map from the records, without those that are certainly gone.
    pub(super) fn new(situation: Situation<'a>, now: Instant) -> Self {
        let mut draft = Self {
            nodes: situation.nodes,
            load: situation.load,
            now,
            parts: BTreeMap::new(),
            homes: BTreeMap::new(),
            changes: BTreeMap::new(),
            fetching: BTreeSet::new(),
            full: false,
        };
        let mut held = situation.held.clone();
        let mut gone: Vec<_> = held.keys().filter_map(|id| Some((draft.gone(id)?, *id))).collect();
        gone.sort_unstable();
        // Records of those who are gone do no harm: after a large loss they must not keep others from being mended.
        for (reason, id) in gone.into_iter().take(MAX_CHANGES / 2) {
            held.remove(&id);
            draft.note(id, None, reason);
        }
        draft.divide(&held);
        draft
    }

    /// Returns why a holder loses its record whatever becomes of its segment.
    fn gone(&self, id: &NodeId) -> Option<Reason> {
        match self.nodes.get(id).map(|node| node.standing) {
            None => Some(Reason::Gone),
            Some(Standing::Quarantined) => Some(Reason::Quarantined),
            Some(Standing::Lost { since }) if self.is_due(since.after(REPLACE_AFTER)) => Some(Reason::Lost),
            Some(Standing::Lost { .. } | Standing::Live | Standing::Leaving { .. }) => None,
        }
    }

    /// Divides all places into segments. Ranges that overlap in part, as after restoring a backup, are put in
    /// order: a range that more live super-nodes state stands, and whoever overlaps it takes the one that it
    /// overlaps most. What then nobody holds is a segment without holders.
    fn divide(&mut self, held: &BTreeMap<NodeId, Segment>) {
        let mut ranges: BTreeMap<Segment, (usize, usize)> = BTreeMap::new();
        for (id, segment) in held {
            let votes = ranges.entry(*segment).or_default();
            votes.0 += usize::from(self.is_live(id));
            votes.1 += 1;
        }
        let mut ranges: Vec<_> = ranges.into_iter().filter(|(range, _)| range.from <= range.to).collect();
        ranges.sort_by_key(|(range, votes)| (std::cmp::Reverse(*votes), *range));
        for (range, _) in ranges {
            if self.touching(range).next().is_none() {
                self.parts.insert(range.from, Part { segment: range, holders: BTreeSet::new() });
            }
        }
        for (id, range) in held {
            let shared = |part: &Part| {
                let (from, to) = (part.segment.from.max(range.from), part.segment.to.min(range.to));
                to.0.saturating_sub(from.0)
            };
            // Of equal overlaps the first; a range upside down overlaps nothing and is dropped.
            let best = self.touching(*range).rev().max_by_key(|part| shared(part)).map(|part| part.segment);
            // Who leaves answers for what it has until the others have fetched it, even if that is part of a
            // segment.
            let may_stay = self.is_leaving(id) && best.is_some_and(|best| best.covers(range));
            if best != Some(*range) && !may_stay {
                self.fetching.insert(*id);
                if self.room_for([id]) {
                    self.note(*id, best, Reason::Healed);
                }
            }
            let Some(best) = best else { continue };
            self.homes.insert(*id, best.from);
            if let Some(part) = self.parts.get_mut(&best.from) {
                part.holders.insert(*id);
            }
        }
        self.fill_gaps();
    }

    /// Makes a segment without holders of every stretch that none covers.
    fn fill_gaps(&mut self) {
        let mut next = Some(PlacementKey::MIN);
        let mut gaps = Vec::new();
        for part in self.parts.values() {
            let Some(from) = next else { break };
            if from < part.segment.from {
                gaps.push(Segment { from, to: PlacementKey(part.segment.from.0.saturating_sub(1)) });
            }
            next = part.segment.to.0.checked_add(1).map(PlacementKey);
        }
        gaps.extend(next.map(|from| Segment { from, to: PlacementKey::MAX }));
        for segment in gaps {
            self.parts.insert(segment.from, Part { segment, holders: BTreeSet::new() });
        }
    }

    /// Returns the changes against the map as it is, in the order of the ids.
    pub(super) fn into_changes(self, held: &BTreeMap<NodeId, Segment>) -> Vec<Change> {
        let changes = self.changes.into_values();
        changes.filter(|change| held.get(&change.node).copied() != change.segment).collect()
    }

    pub(super) fn is_due(&self, at: Instant) -> bool {
        at <= self.now
    }

    pub(super) fn is_live(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.standing == Standing::Live)
    }

    pub(super) fn is_leaving(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| matches!(node.standing, Standing::Leaving { .. }))
    }

    /// Returns whether somebody is there, or was a moment ago.
    fn is_present(&self, member: &Member<'_>) -> bool {
        match member.node.standing {
            Standing::Live => true,
            Standing::Lost { since } => !self.is_due(since.after(SETTLE_TIME)),
            Standing::Leaving { .. } | Standing::Quarantined => false,
        }
    }

    pub(super) fn is_ready(&self, member: &Member<'_>) -> bool {
        member.node.standing == Standing::Live && member.node.ready && !self.fetching.contains(&member.id)
    }

    fn members(&self, part: &Part) -> impl Iterator<Item = Member<'a>> {
        let nodes = self.nodes;
        part.holders.iter().filter_map(move |id| Some(Member { id: *id, node: nodes.get(id)? }))
    }

    /// Returns the holders that the segment can count on before long: all but those that leave or are in
    /// quarantine. One that is lost is expected back until it is replaced.
    pub(super) fn expected(&self, part: &Part) -> Vec<Member<'a>> {
        let is_expected =
            |member: &Member<'_>| matches!(member.node.standing, Standing::Live | Standing::Lost { .. });
        self.members(part).filter(is_expected).collect()
    }

    /// Returns the holders that are there, whether they have fetched everything yet or not.
    pub(super) fn present(&self, part: &Part) -> Vec<Member<'a>> {
        self.members(part).filter(|member| self.is_present(member)).collect()
    }

    /// Returns the holders that are there and hold everything.
    pub(super) fn ready(&self, part: &Part) -> Vec<Member<'a>> {
        self.members(part).filter(|member| self.is_ready(member)).collect()
    }

    /// Returns how poor a segment is; the poorest comes first.
    pub(super) fn rank(&self, part: &Part) -> Rank {
        let expected = self.expected(part);
        Rank {
            bearable: replicas(&self.present(part)) >= super::FEWEST,
            strength: strength(&expected, &part.segment),
            replicas: replicas(&expected),
            holders: part.holders.len(),
        }
    }

    /// Returns the parts that hold any place of a range, in ascending order.
    pub(super) fn touching(&self, range: Segment) -> impl DoubleEndedIterator<Item = &Part> {
        let first = self.parts.range(..=range.from).next_back().map_or(range.from, |(from, _)| *from);
        self.parts
            .range(first..=range.to.max(first))
            .map(|(_, part)| part)
            .filter(move |p| p.segment.overlaps(&range))
    }

    pub(super) fn is_vendor(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.vendor)
    }

    pub(super) fn fits(&self, id: &NodeId, segment: &Segment) -> bool {
        let capacity = self.nodes.get(id).map_or(0, |node| node.capacity);
        self.records_in(segment) <= capacity
    }

    /// Returns whether a step that changes these records fits into the plan; a step alone always does.
    pub(super) fn room_for<'n>(&mut self, nodes: impl IntoIterator<Item = &'n NodeId>) -> bool {
        let more = nodes.into_iter().filter(|id| !self.changes.contains_key(*id)).count();
        let room = self.changes.is_empty() || self.changes.len() + more <= MAX_CHANGES;
        self.full |= !room;
        room
    }

    pub(super) fn note(&mut self, node: NodeId, segment: Option<Segment>, reason: Reason) {
        // Whoever has just been given a segment was not split or joined with it.
        let before = self.changes.get(&node).map(|change| change.reason);
        let reason = before.filter(|_| matches!(reason, Reason::Split | Reason::Joined)).unwrap_or(reason);
        self.changes.insert(node, Change { node, segment, reason });
    }

    /// Gives a super-node a segment, and takes it out of the one it had.
    pub(super) fn assign(&mut self, id: NodeId, to: PlacementKey, reason: Reason) -> bool {
        if !self.room_for([&id]) {
            return false;
        }
        self.take_out(&id);
        let Some(part) = self.parts.get_mut(&to) else { return false };
        part.holders.insert(id);
        let segment = part.segment;
        self.homes.insert(id, to);
        self.fetching.insert(id);
        self.note(id, Some(segment), reason);
        true
    }

    /// Takes a super-node's segment away.
    pub(super) fn release(&mut self, id: NodeId, reason: Reason) -> bool {
        let room = self.room_for([&id]);
        if room {
            self.take_out(&id);
            self.note(id, None, reason);
        }
        room
    }

    fn take_out(&mut self, id: &NodeId) {
        let home = self.homes.remove(id);
        if let Some(part) = home.and_then(|home| self.parts.get_mut(&home)) {
            part.holders.remove(id);
        }
    }

    /// Replaces segments by others that cover the same places. The caller has made sure that there is room.
    pub(super) fn reshape(&mut self, old: &[PlacementKey], new: Vec<Part>, reason: Reason) {
        let mut before = BTreeMap::new();
        for from in old {
            let Some(part) = self.parts.remove(from) else { continue };
            before.extend(part.holders.into_iter().map(|id| (id, part.segment)));
        }
        for part in new {
            for id in &part.holders {
                self.homes.insert(*id, part.segment.from);
                let had = before.remove(id);
                let may_stay = self.is_leaving(id) && had.is_some_and(|had| part.segment.covers(&had));
                if had == Some(part.segment) || may_stay {
                    continue;
                }
                if !had.is_some_and(|had| had.covers(&part.segment)) {
                    self.fetching.insert(*id);
                }
                self.note(*id, Some(part.segment), reason);
            }
            self.parts.insert(part.segment.from, part);
        }
        for id in before.into_keys() {
            self.homes.remove(&id);
            self.note(id, None, Reason::Lost);
        }
    }
}

/// How poor a segment is, in the order in which segments are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// False: fewer than two live replicas, to be mended at once.
    pub(super) bearable: bool,
    /// Replicas of the worst-off domain.
    pub(super) strength: usize,
    pub(super) replicas: usize,
    holders: usize,
}

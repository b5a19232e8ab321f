//! Who holds a segment: newcomers, replacements, those who leave, and the vendor's own.

use std::collections::BTreeSet;

use peerage_wire::id::{NodeId, PlacementKey, Segment};
use rand_core::Rng;

use super::diversity::{Member, strength, without};
use super::draft::{Draft, Part, Rank};
use super::{HANDOVER_TIMEOUT, MAX_HOLDERS, MAX_NEWCOMERS, MAX_VENDOR, POOREST, Reason, Standing};
use crate::segments::REPLICAS;
use crate::segments::diversity::{Replica as _, replicas};

/// The segments, the poorest first.
type Ranking = BTreeSet<(Rank, PlacementKey)>;

impl Draft<'_> {
    /// Gives a segment to whoever has none and is of use somewhere. The others stand by: more of one organisation
    /// than are counted would only give it a larger voice.
    pub(super) fn place_newcomers(&mut self, rng: &mut impl Rng) {
        let waiting: Vec<NodeId> = self
            .nodes
            .keys()
            .filter(|id| self.is_live(id) && !self.homes.contains_key(*id))
            .copied()
            .collect();
        self.cut_to_fit(&waiting);
        // Where there are more than one plan looks at, each gets its turn in the end.
        let skipped = if waiting.len() > MAX_NEWCOMERS { below(rng, waiting.len()) } else { 0 };
        let waiting = waiting.iter().cycle().skip(skipped).take(waiting.len().min(MAX_NEWCOMERS));
        let mut ranking: Ranking = self.parts.iter().map(|(from, part)| (self.rank(part), *from)).collect();
        for id in waiting {
            let Some(to) = self.place_for(id, &ranking, rng) else { continue };
            let before = self.parts.get(&to).map(|part| self.rank(part));
            if !self.assign(*id, to, Reason::Assigned) {
                return;
            }
            if let (Some(before), Some(part)) = (before, self.parts.get(&to)) {
                ranking.remove(&(before, to));
                ranking.insert((self.rank(part), to));
            }
        }
    }

    /// Returns the segment for a newcomer: one that is in need at once; if it is the vendor's, one without any of
    /// the vendor; one with its own domain; one of the poorest; and where it does not count as a replica, one
    /// without anybody better.
    fn place_for(&self, id: &NodeId, ranking: &Ranking, rng: &mut impl Rng) -> Option<PlacementKey> {
        let member = Member { id: *id, node: self.nodes.get(id)? };
        let is_open = |part: &Part| part.holders.len() < MAX_HOLDERS && self.fits(id, &part.segment);
        let ranked = || {
            let parts = ranking.iter().filter_map(|(rank, from)| Some((rank, self.parts.get(from)?)));
            parts.filter(|(_, part)| is_open(part))
        };
        let in_need = ranked().take_while(|(rank, _)| !rank.bearable);
        let is_needed = |part: &Part| self.counts(member, part) || self.helps(member, part);
        let drawn = draw(in_need.filter(|(_, part)| is_needed(part)), rng);
        if drawn.is_some() {
            return drawn;
        }
        let without_vendor = ranked().filter(|(_, part)| member.node.vendor && self.vendors(part) == 0);
        let own = self.touching(Segment::of_domain(id.domain)).filter(|part| is_open(part));
        let own = own.filter(|part| self.is_missing_own(member, part)).min_by_key(|part| self.rank(part));
        let drawn = draw(without_vendor, rng)
            .or_else(|| own.map(|part| part.segment.from))
            .or_else(|| draw(ranked().filter(|(_, part)| self.counts(member, part)), rng))
            .or_else(|| self.for_vendor(member, ranked()));
        drawn.or_else(|| {
            let poor = ranked().take_while(|(rank, _)| !rank.bearable || rank.strength < REPLICAS);
            let mut few = poor.filter(|(_, part)| self.expected(part).len() < REPLICAS);
            few.next().map(|(_, part)| part.segment.from)
        })
    }

    /// Returns whether a segment has the newcomer's domain, but none of its organisation.
    fn is_missing_own(&self, newcomer: Member<'_>, part: &Part) -> bool {
        let domain = newcomer.id.domain;
        part.segment.touches(domain) && self.expected(part).iter().all(|member| member.id.domain != domain)
    }

    /// Returns whether a segment has more replicas with the newcomer than without.
    fn counts(&self, newcomer: Member<'_>, part: &Part) -> bool {
        let mut members = self.expected(part);
        if !members.iter().any(|member| member.conflicts(&newcomer)) {
            return true;
        }
        let before = (strength(&members, &part.segment), replicas(&members));
        members.push(newcomer);
        let after = (strength(&members, &part.segment), replicas(&members));
        after.0 > before.0 || after.1 > before.1
    }

    fn vendors(&self, part: &Part) -> usize {
        self.expected(part).iter().filter(|member| member.node.vendor).count()
    }

    /// Returns where another super-node of the vendor waits for the next split.
    fn for_vendor<'p>(
        &self,
        newcomer: Member<'_>,
        open: impl Iterator<Item = (&'p Rank, &'p Part)>,
    ) -> Option<PlacementKey> {
        let counted = open.map(|(rank, part)| (self.vendors(part), *rank, part.segment.from));
        let fewest = counted.filter(|(vendors, ..)| newcomer.node.vendor && *vendors < MAX_VENDOR).min();
        fewest.map(|(.., from)| from)
    }

    /// Moves super-nodes from segments that can spare them to those that have too few, the poorest first and from
    /// the richest.
    pub(super) fn mend_poor(&mut self, rng: &mut impl Rng) {
        let mut ranking: Vec<_> = self.parts.iter().map(|(from, part)| (self.rank(part), *from)).collect();
        ranking.sort_unstable();
        let rich = ranking.iter().rev().map(|(_, from)| (*from, self.spare_in(from)));
        let mut rich: Vec<_> = rich.filter(|(_, spare)| !spare.is_empty()).collect();
        ranking.retain(|(rank, _)| rank.strength < REPLICAS || !rank.bearable);
        for (mut rank, to) in ranking {
            // One with each plan, unless there is danger: each has to fetch everything.
            while let Some(id) = self.spare_for(&to, &rich, rng) {
                let home = self.homes.get(&id).copied();
                if !self.assign(id, to, Reason::Moved) {
                    return;
                }
                if let Some((from, spare)) = rich.iter_mut().find(|(from, _)| Some(*from) == home) {
                    *spare = self.spare_in(from);
                }
                let Some(part) = self.parts.get(&to) else { break };
                let before = std::mem::replace(&mut rank, self.rank(part));
                if rank.bearable || rank <= before {
                    break;
                }
            }
        }
    }

    /// Returns the holders of a segment, any one of which could go and it would still keep the rule.
    fn spare_in(&self, from: &PlacementKey) -> Vec<NodeId> {
        let Some(part) = self.parts.get(from) else { return Vec::new() };
        let ready = self.ready(part);
        if ready.len() <= REPLICAS {
            return Vec::new();
        }
        let only_vendor = self.vendors(part) < 2;
        let is_spare = |member: &&Member<'_>| {
            let others = without(&ready, &member.id);
            !(member.node.vendor && only_vendor) && strength(&others, &part.segment) >= REPLICAS
        };
        ready.iter().filter(is_spare).map(|member| member.id).collect()
    }

    /// Returns a super-node that is spare in its own segment and makes this one stronger.
    fn spare_for(
        &self,
        to: &PlacementKey,
        rich: &[(PlacementKey, Vec<NodeId>)],
        rng: &mut impl Rng,
    ) -> Option<NodeId> {
        let poor = self.parts.get(to)?;
        rich.iter().filter(|(from, _)| from != to).find_map(|(from, spare)| {
            let home = self.parts.get(from)?.segment;
            let members = spare.iter().filter_map(|id| Some(Member { id: *id, node: self.nodes.get(id)? }));
            let helpful =
                members.filter(|member| self.fits(&member.id, &poor.segment) && self.helps(*member, poor));
            // Rather one that is not with its own domain.
            let (own, strangers): (Vec<_>, Vec<_>) =
                helpful.partition(|member| home.touches(member.id.domain));
            let choice = if strangers.is_empty() { own } else { strangers };
            choice.get(below(rng, choice.len())).map(|member| member.id)
        })
    }

    /// Returns whether a poor segment gets closer to the rule by this one.
    fn helps(&self, newcomer: Member<'_>, part: &Part) -> bool {
        let worth = |members: &[Member<'_>]| {
            let all = replicas(members);
            (strength(members, &part.segment).min(REPLICAS), all.min(REPLICAS))
        };
        let with = |mut members: Vec<_>| {
            members.push(newcomer);
            worth(&members)
        };
        let (expected, present) = (self.expected(part), self.present(part));
        let in_danger = replicas(&present) < super::FEWEST;
        with(expected.clone()) > worth(&expected)
            || (in_danger && with(present.clone()).1 > worth(&present).1)
    }

    /// Lets those go who leave, as soon as the others hold what they held, or nobody is there to take over.
    pub(super) fn release_leaving(&mut self) {
        let leaving: Vec<_> = self.homes.iter().map(|(id, home)| (*id, *home)).collect();
        for (id, home) in leaving {
            let Some(Standing::Leaving { since }) = self.nodes.get(&id).map(|node| node.standing) else {
                continue;
            };
            let Some(part) = self.parts.get(&home) else { continue };
            let ready = self.ready(part);
            let replaced = strength(&ready, &part.segment) >= REPLICAS;
            let on_the_way = self.present(part).len() > ready.len();
            let waited = self.is_due(since.after(HANDOVER_TIMEOUT));
            // While the plan is full, somebody may be found for it in the next.
            if replaced || waited || (!on_the_way && !self.full) {
                self.release(id, Reason::HandedOver);
            }
        }
    }

    /// Moves super-nodes of the vendor to where it has none, then to where nothing but its second prevents a split.
    pub(super) fn spread_vendor(&mut self) {
        let parts: Vec<_> = self.parts.keys().copied().collect();
        let has_two = |draft: &Self, from: &PlacementKey| {
            draft.parts.get(from).is_some_and(|part| draft.vendors(part) >= 2)
        };
        let mut homes: Vec<_> = parts.iter().copied().filter(|from| has_two(self, from)).collect();
        for wanting in [0, 1] {
            for to in &parts {
                let Some(part) = self.parts.get(to).filter(|_| !homes.is_empty()) else { continue };
                let is_wanting = self.vendors(part) == wanting;
                if !is_wanting || (wanting > 0 && !self.is_crowded(part, replicas(&self.ready(part)))) {
                    continue;
                }
                let others = homes.iter().filter_map(|from| self.parts.get(from));
                let mut movable =
                    others.filter_map(|home| self.vendor_for(&part.segment, home, wanting == 0));
                let Some(id) = movable.next() else { continue };
                drop(movable);
                if !self.assign(id, *to, Reason::VendorFloor) {
                    return;
                }
                homes.retain(|from| has_two(self, from));
            }
        }
    }

    /// Returns a super-node of the vendor whose segment keeps another one and is no poorer without it.
    fn vendor_for(&self, segment: &Segment, home: &Part, from_crowded: bool) -> Option<NodeId> {
        let ready = self.ready(home);
        if !from_crowded && self.is_crowded(home, replicas(&ready)) {
            // It wants to split, too.
            return None;
        }
        let is_movable = |member: &&Member<'_>| {
            let before = strength(&ready, &home.segment);
            let after = strength(&without(&ready, &member.id), &home.segment);
            let harmless = after >= before.min(REPLICAS);
            member.node.vendor && harmless && self.fits(&member.id, segment)
        };
        ready.iter().find(is_movable).map(|member| member.id)
    }

    /// Takes one super-node a segment back that counts for nothing there, once the segment has enough without it.
    /// It was given the segment when there was nobody better.
    pub(super) fn release_surplus(&mut self) {
        let parts: Vec<_> = self.parts.values().cloned().collect();
        for part in parts {
            let ready = self.ready(&part);
            if strength(&ready, &part.segment) < REPLICAS {
                continue;
            }
            let expected = self.expected(&part);
            let surplus =
                expected.iter().rev().find(|member| self.is_surplus(**member, &part, &expected, &ready));
            if let Some(member) = surplus {
                self.release(member.id, Reason::Surplus);
            }
        }
    }

    fn is_surplus(
        &self,
        member: Member<'_>,
        part: &Part,
        expected: &[Member<'_>],
        ready: &[Member<'_>],
    ) -> bool {
        let others = without(expected, &member.id);
        let only_own = part.segment.touches(member.id.domain)
            && others.iter().all(|other| other.id.domain != member.id.domain);
        let kept_for_vendor = member.node.vendor && self.vendors(part) <= MAX_VENDOR;
        !only_own
            && !kept_for_vendor
            && replicas(&others) == replicas(expected)
            && strength(&others, &part.segment) == strength(expected, &part.segment)
            && strength(&without(ready, &member.id), &part.segment) >= REPLICAS
    }
}

/// Draws one of the first few.
fn draw<'p>(parts: impl Iterator<Item = (&'p Rank, &'p Part)>, rng: &mut impl Rng) -> Option<PlacementKey> {
    let few: Vec<_> = parts.take(POOREST).map(|(_, part)| part.segment.from).collect();
    if few.is_empty() {
        return None;
    }
    few.get(below(rng, few.len())).copied()
}

/// A number below a bound; 0 if there is none.
fn below(rng: &mut impl Rng, bound: usize) -> usize {
    let bound = u64::try_from(bound).unwrap_or(u64::MAX);
    let drawn = rng.next_u64().checked_rem(bound).unwrap_or(0);
    usize::try_from(drawn).unwrap_or(0)
}

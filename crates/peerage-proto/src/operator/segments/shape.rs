//! Where one segment ends and the next begins: splitting what has many holders, joining what has too few.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use peerage_wire::id::{Domain, NodeId, PlacementKey, Segment};

use super::diversity::{Member, strength};
use super::draft::{Draft, Part};
use super::{MAX_CHANGES, MAX_JOINED, Reason};
use crate::segments::REPLICAS;
use crate::segments::diversity::replicas;

/// A split leaves at least one part in so many of the weight on either side. Larger would let slivers be cut off,
/// for which the holders do not make up; with 2 there would hardly ever be a place to cut.
const SMALLEST_SHARE: u128 = 4;

/// What is cut to fit leaves one part in so many of its holders' room. Larger has it cut again soon, which takes twice as many
/// holders; smaller makes more segments than are needed.
const ROOM_TO_GROW: u64 = 4;

/// Nothing is cut to fit whoever has room for fewer records. So few do not lie evenly: that of 64 a quarter too many lie in one part is two
/// standard deviations away. More leaves the little that somebody lends unused.
const LEAST_ROOM: u64 = 64;

/// Weight of a record, where a place without records weighs 1: what 2^14 records weigh, spread over all places, is
/// added to what there is, so that an empty table is divided evenly and a handful of records does not cut a domain
/// in two.
const RECORD_WEIGHT_BITS: u32 = 18;

/// One side of a possible split.
struct Half<'a> {
    segment: Segment,
    members: Vec<Member<'a>>,
}

impl<'a> Half<'a> {
    const fn new(segment: Segment) -> Self {
        Self { segment, members: Vec::new() }
    }

    fn worth(&self) -> (usize, usize) {
        (strength(&self.members, &self.segment), replicas(&self.members))
    }

    fn is_better_with(&self, member: Member<'a>) -> bool {
        let members = self.members.iter().copied().chain([member]).collect();
        Self { segment: self.segment, members }.worth() > self.worth()
    }

    fn keeps_the_rule(&self, with_vendor: bool) -> bool {
        let has_vendor = self.members.iter().any(|member| member.node.vendor);
        strength(&self.members, &self.segment) >= REPLICAS && (has_vendor || !with_vendor)
    }
}

impl Draft<'_> {
    /// Returns how many records are in a segment, as far as domains are spread evenly.
    pub(super) fn records_in(&self, segment: &Segment) -> u64 {
        u64::try_from(self.record_places_in(segment) >> 32).unwrap_or(u64::MAX)
    }

    /// Records times the 2^32 places of a domain.
    fn record_places_in(&self, segment: &Segment) -> u128 {
        let domains = self.load.range(segment.from.domain()..=segment.to.domain().max(segment.from.domain()));
        domains.fold(0, |sum, (domain, records)| {
            let whole = Segment::of_domain(*domain);
            let part = Segment { from: whole.from.max(segment.from), to: whole.to.min(segment.to) };
            u128::from(*records).saturating_mul(places(&part)).saturating_add(sum)
        })
    }

    fn weight(&self, segment: &Segment) -> u128 {
        self.record_places_in(segment).saturating_mul(1 << RECORD_WEIGHT_BITS).saturating_add(places(segment))
    }

    /// Cuts segments without holders into parts for which those who wait have room. Where a network has grown while the operator was
    /// alone, nobody has room for the whole.
    pub(super) fn cut_to_fit(&mut self, waiting: &[NodeId]) {
        let capacity = |id: &NodeId| Some(Reverse(self.nodes.get(id)?.capacity));
        let mut rooms: Vec<_> = waiting.iter().filter_map(capacity).collect();
        rooms.sort_unstable();
        let Some(Reverse(room)) = rooms.iter().take(REPLICAS).next_back().copied() else { return };
        if room < LEAST_ROOM {
            return;
        }
        // One may be of a domain in its part, where it does not count. A part for which too few are left would only draw away those
        // who are enough for another; those who come one by one are enough for one after the other.
        let is_poor = |part: &Part| !part.holders.is_empty() && replicas(&self.expected(part)) < REPLICAS;
        let next = usize::from(!self.parts.values().any(is_poor));
        let mut left = (waiting.len().min(MAX_CHANGES) / (REPLICAS + 1)).max(next);
        let empty = self.parts.values().filter(|part| part.holders.is_empty()).map(|part| part.segment);
        for segment in empty.filter(|segment| self.records_in(segment) > room).collect::<Vec<_>>() {
            self.parts.remove(&segment.from);
            for segment in self.pieces(segment, room - room / ROOM_TO_GROW, &mut left) {
                self.parts.insert(segment.from, Part { segment, holders: BTreeSet::new() });
            }
        }
    }

    /// Cuts so many pieces with no more than so many records off a segment; the last is what remains.
    fn pieces(&self, segment: Segment, room: u64, left: &mut usize) -> Vec<Segment> {
        let (mut pieces, mut rest) = (Vec::new(), vec![segment]);
        while let Some(piece) = rest.pop() {
            if *left == 0 {
                pieces.push(Segment { from: piece.from, to: segment.to });
                break;
            }
            let fits = self.records_in(&piece) <= room;
            let cuts = || self.cuts(&Part { segment: piece, holders: BTreeSet::new() }, true);
            if let Some(cut) = (!fits).then(cuts).and_then(|cuts| cuts.first().copied()) {
                let (low, high) = sides(&piece, cut);
                rest.extend([high, low]);
            } else {
                *left -= 1;
                pieces.push(piece);
            }
        }
        pieces
    }

    /// Joins segments that have too few holders, and nobody to be given them, with a neighbour. Where all holders
    /// of one were lost, this is the division anew among the others; if those have no room either, the operator is
    /// left.
    pub(super) fn join_poor(&mut self) {
        if self.full || !self.nodes.keys().any(|id| self.is_live(id)) {
            // There may be somebody to be given it after all; or it is the operator that is cut off.
            return;
        }
        let parts: Vec<_> = self.parts.keys().copied().collect();
        for from in parts {
            let Some(part) = self.parts.get(&from).cloned() else { continue };
            let lost = self.present(&part).is_empty();
            if !lost && replicas(&self.expected(&part)) >= REPLICAS {
                continue;
            }
            if let Some(neighbour) = self.cheapest_neighbour(&part) {
                self.join(&part, &neighbour);
            } else if lost {
                self.give_up(&part);
            }
        }
    }

    /// Returns the neighbour with which joining moves the fewest records, if joining helps and there is room at the
    /// holders.
    fn cheapest_neighbour(&self, part: &Part) -> Option<Part> {
        let before = self.parts.range(..part.segment.from).next_back();
        let after = self.parts.range(part.segment.from..).nth(1);
        let helpful = [before, after].into_iter().flatten().filter_map(|(_, other)| {
            let joined = self.joined(part, other);
            let (here, there) = (self.present(part).len(), self.present(other).len());
            let fits = self.present(&joined).iter().all(|member| self.fits(&member.id, &joined.segment));
            let before = if here == 0 { 0 } else { replicas(&self.expected(part)) };
            let helps = replicas(&self.expected(&joined)) > before;
            let is_possible = there > 0 && helps && fits && joined.holders.len() <= MAX_JOINED;
            let moved = |holders: usize, part: &Part| {
                u128::try_from(holders).unwrap_or(u128::MAX).saturating_mul(self.weight(&part.segment))
            };
            is_possible.then(|| (moved(here, other).saturating_add(moved(there, part)), other.clone()))
        });
        helpful.min_by_key(|(cost, _)| *cost).map(|(_, other)| other)
    }

    fn joined(&self, part: &Part, other: &Part) -> Part {
        let segment = Segment {
            from: part.segment.from.min(other.segment.from),
            to: part.segment.to.max(other.segment.to),
        };
        let lost = self.present(part).is_empty();
        // Of a segment that was lost with all holders, those who come back begin anew.
        let mut holders: BTreeSet<NodeId> =
            part.holders.iter().filter(|id| !lost || self.is_leaving(id)).copied().collect();
        holders.extend(&other.holders);
        Part { segment, holders }
    }

    fn join(&mut self, part: &Part, other: &Part) {
        let joined = self.joined(part, other);
        if self.room_for(part.holders.iter().chain(&other.holders)) {
            self.reshape(&[part.segment.from, other.segment.from], vec![joined], Reason::Joined);
        }
    }

    /// Takes the records of a segment's lost holders back, so that everybody sees that the operator has it.
    fn give_up(&mut self, part: &Part) {
        for id in part.holders.iter().filter(|id| !self.is_leaving(id)).copied().collect::<Vec<_>>() {
            self.release(id, Reason::Lost);
        }
    }

    /// Splits every segment whose holders are enough for two. Nobody is given a place that it did not hold.
    pub(super) fn split_large(&mut self) {
        let parts: Vec<_> = self.parts.keys().copied().collect();
        let vendors = self.homes.keys().filter(|id| self.is_vendor(id) && self.is_live(id)).count();
        for from in parts {
            let Some(part) = self.parts.get(&from).cloned() else { continue };
            if part.holders.iter().any(|id| self.is_leaving(id)) {
                continue;
            }
            let Some(halves) = self.best_split(&part, vendors) else { continue };
            if self.room_for(&part.holders) {
                self.reshape(&[from], halves, Reason::Split);
            }
        }
    }

    /// Returns the most even split that keeps the rule on both sides.
    ///
    /// From twice the replicas on a segment is split where everybody can stay with its own domain. One that is
    /// **crowded**, with three times as many or more records than a holder has room for, is split anyway, and if
    /// the vendor has too few super-nodes for every segment, also without.
    fn best_split(&self, part: &Part, vendors: usize) -> Option<Vec<Part>> {
        let ready = self.ready(part);
        let enough = replicas(&ready);
        if enough < 2 * REPLICAS {
            return None;
        }
        let crowded = self.is_crowded(part, enough);
        let with_vendor = vendors > if crowded { self.parts.len() } else { 0 };
        let cuts = self.cuts(part, self.is_too_large(part));
        let split = |stay| cuts.iter().find_map(|cut| self.halves(part, *cut, stay, with_vendor));
        split(true).or_else(|| if crowded { split(false) } else { None })
    }

    pub(super) fn is_crowded(&self, part: &Part, enough: usize) -> bool {
        let is_too_large = || self.is_too_large(part);
        (enough >= 2 * REPLICAS && is_too_large())
            || (enough >= 3 * REPLICAS && !self.cuts(part, false).is_empty())
    }

    /// Returns whether somebody holds more of a segment than there is room for.
    fn is_too_large(&self, part: &Part) -> bool {
        self.present(part).iter().any(|member| !self.fits(&member.id, &part.segment))
    }

    /// Returns where a segment could be cut, the most even first: at the bounds of the domain in the middle and of
    /// its holders' domains. If one domain has most of the records it is cut itself where that is for room, and else kept whole, for its
    /// members have to know everybody who holds any place of it.
    fn cuts(&self, part: &Part, for_room: bool) -> Vec<PlacementKey> {
        let Segment { from, to } = part.segment;
        let middle = self.middle(&part.segment);
        let own = part.holders.iter().map(|id| id.domain).filter(|domain| part.segment.touches(*domain));
        let domains: BTreeSet<Domain> = own.chain([middle.domain()]).collect();
        let bounds = domains.into_iter().flat_map(|domain| {
            let Segment { from, to } = Segment::of_domain(domain);
            [Some(from), to.0.checked_add(1).map(PlacementKey)]
        });
        let bounds: BTreeSet<_> = bounds.flatten().filter(|cut| from < *cut && *cut <= to).collect();
        let total = self.weight(&part.segment);
        let smaller = |cut: PlacementKey| {
            let (left, right) = sides(&part.segment, cut);
            self.weight(&left).min(self.weight(&right))
        };
        let mut cuts: Vec<_> = bounds.into_iter().map(|cut| (smaller(cut), cut)).collect();
        let is_even = |(weight, _): &(u128, _)| weight.saturating_mul(SMALLEST_SHARE) >= total;
        if for_room || cuts.iter().any(is_even) {
            cuts.retain(is_even);
        }
        if cuts.is_empty() && for_room && from < middle {
            cuts.push((smaller(middle), middle));
        }
        cuts.sort_by_key(|(weight, cut)| (Reverse(*weight), *cut));
        cuts.into_iter().map(|(_, cut)| cut).collect()
    }

    /// Returns the first place of the right side, if both sides are to weigh the same.
    fn middle(&self, segment: &Segment) -> PlacementKey {
        let half = self.weight(segment) / 2;
        let (mut low, mut high) = (segment.from.0, segment.to.0);
        while low < high {
            let cut = low + (high - low) / 2;
            let left = Segment { from: segment.from, to: PlacementKey(cut) };
            if self.weight(&left) >= half {
                high = cut;
            } else {
                low = cut + 1;
            }
        }
        PlacementKey(low.saturating_add(1).min(segment.to.0))
    }

    /// Divides the holders, if both sides then keep the rule.
    fn halves(
        &self,
        part: &Part,
        cut: PlacementKey,
        stay_with_own: bool,
        with_vendor: bool,
    ) -> Option<Vec<Part>> {
        let (left, right) = sides(&part.segment, cut);
        let own = |id: &NodeId| own_side(id.domain, &left, &right);
        let (mut left, mut right) = (Half::new(left), Half::new(right));
        let (mut free, mut served) = (Vec::new(), BTreeSet::new());
        for member in self.ready(part) {
            // One of each organisation is enough to stay.
            let stays = stay_with_own && served.insert(member.id.domain);
            match own(&member.id).filter(|_| stays) {
                Some(true) => left.members.push(member),
                Some(false) => right.members.push(member),
                None => free.push(member),
            }
        }
        free.sort_by_key(|member| (!member.node.vendor, member.id));
        for member in free {
            let vendors = |half: &Half<'_>| half.members.iter().filter(|other| other.node.vendor).count();
            let wanting = if member.node.vendor { vendors(&left).cmp(&vendors(&right)) } else { 0.cmp(&0) };
            let better = right.is_better_with(member).cmp(&left.is_better_with(member));
            let poorer = left.worth().cmp(&right.worth());
            let owner = own(&member.id).map_or(0.cmp(&0), |is_left| true.cmp(&!is_left).reverse());
            let fewer = left.members.len().cmp(&right.members.len());
            let order = wanting.then(better).then(poorer).then(owner).then(fewer);
            if order.is_le() { left.members.push(member) } else { right.members.push(member) }
        }
        if !left.keeps_the_rule(with_vendor) || !right.keeps_the_rule(with_vendor) {
            return None;
        }
        let part_of = |half: &Half<'_>| Part {
            segment: half.segment,
            holders: half.members.iter().map(|member| member.id).collect(),
        };
        let (mut left, mut right) = (part_of(&left), part_of(&right));
        for id in &part.holders {
            if left.holders.contains(id) || right.holders.contains(id) {
                continue;
            }
            let fewer = left.holders.len() <= right.holders.len();
            if own(id).unwrap_or(fewer) {
                left.holders.insert(*id)
            } else {
                right.holders.insert(*id)
            };
        }
        Some(vec![left, right])
    }
}

/// The sides of a cut, which is the first place of the right one.
fn sides(segment: &Segment, cut: PlacementKey) -> (Segment, Segment) {
    let last = PlacementKey(cut.0.saturating_sub(1));
    (Segment { from: segment.from, to: last }, Segment { from: cut, to: segment.to })
}

/// Returns whether a domain lies on the left side alone, or on the right alone.
fn own_side(domain: Domain, left: &Segment, right: &Segment) -> Option<bool> {
    match (left.touches(domain), right.touches(domain)) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        (true, true) | (false, false) => None,
    }
}

fn places(segment: &Segment) -> u128 {
    u128::from(segment.to.0.saturating_sub(segment.from.0)) + 1
}

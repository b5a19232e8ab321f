//! Fetching a whole range of one table in several pieces at once, as whoever has nothing does (Rule 4.7).

use std::collections::BTreeMap;

use bytes::Bytes;
use peerage_wire::id::{PlacementKey, Segment};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::Table;

use crate::reconcile::{MAX_IN_FLIGHT, Transfer};
use crate::table::Inserted;

/// Requests without an answer after which the counterpart counts as gone; each was repeated before.
const MAX_FAILURES: u32 = 3;

/// Names a request of a [`Bulk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) struct PieceId(u32);

/// One range of one table on its way.
#[derive(Clone, Debug)]
pub(super) struct Bulk {
    waiting: Vec<Transfer>,
    asked: BTreeMap<PieceId, Transfer>,
    next_id: u32,
    failures: u32,
    is_whole: bool,
}

impl Bulk {
    /// Cuts the range into as many pieces as may be under way at once.
    pub(super) fn new(table: Table, segment: Segment) -> Self {
        let waiting = pieces(segment).map(|piece| Transfer::of_segment(table, piece)).collect();
        Self { waiting, asked: BTreeMap::new(), next_id: 0, failures: 0, is_whole: true }
    }

    /// Returns whether everything was fetched, `None` while there is something to do or to wait for.
    pub(super) fn ended(&self) -> Option<bool> {
        (self.waiting.is_empty() && self.asked.is_empty()).then_some(self.is_whole)
    }

    /// Returns the next request, if there is one to make now.
    pub(super) fn poll(&mut self) -> Option<(PieceId, Request)> {
        if self.asked.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let transfer = self.waiting.pop()?;
        let (id, request) = (PieceId(self.next_id), transfer.request());
        self.next_id = self.next_id.wrapping_add(1);
        self.asked.insert(id, transfer);
        Some((id, request))
    }

    /// Takes the reply to a request, and hands out each record in it, as [`Transfer::answered`] does.
    pub(super) fn answered(
        &mut self,
        id: PieceId,
        reply: Reply,
        take: impl FnMut(Bytes) -> Option<Inserted>,
    ) {
        let Some(mut transfer) = self.asked.remove(&id) else { return };
        let Reply::Partition(page) = reply else {
            self.is_whole = false;
            return;
        };
        transfer.answered(page, take);
        self.is_whole &= !transfer.is_broken_off();
        if !transfer.is_done() {
            self.waiting.push(transfer);
        }
    }

    /// Takes note that a request was not answered, although it was repeated.
    pub(super) fn failed(&mut self, id: PieceId) {
        if self.asked.remove(&id).is_none() {
            return;
        }
        self.is_whole = false;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= MAX_FAILURES {
            self.waiting.clear();
        }
    }
}

/// Cuts a range into at most [`MAX_IN_FLIGHT`] pieces of about the same size.
fn pieces(segment: Segment) -> impl Iterator<Item = Segment> {
    let Segment { from, to } = segment;
    let step = ((to.0 - from.0) / MAX_IN_FLIGHT as u64).max(1);
    let mut next = Some(from);
    std::iter::from_fn(move || {
        let from = next?;
        // What is left over after the last step belongs to the last piece.
        let end = from.0.checked_add(step).filter(|end| to.0 - *end.min(&to.0) >= step);
        let piece = Segment { from, to: end.map_or(to, PlacementKey) };
        next = end.and_then(|end| end.checked_add(1)).map(PlacementKey);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Rule 4.7: every place is asked for once, whatever the range.
        #[test]
        fn the_pieces_of_a_range_are_its_places_each_once(a: u64, b: u64) {
            let segment = Segment { from: PlacementKey(a.min(b)), to: PlacementKey(a.max(b)) };
            let pieces: Vec<_> = pieces(segment).collect();
            prop_assert!(pieces.len() <= MAX_IN_FLIGHT + 1);
            prop_assert_eq!(pieces.first().unwrap().from, segment.from);
            prop_assert_eq!(pieces.last().unwrap().to, segment.to);
            prop_assert!(pieces.windows(2).all(|pair| pair[0].to.0 + 1 == pair[1].from.0));
            prop_assert!(pieces.iter().all(|piece| piece.from <= piece.to));
        }
    }

    #[test]
    fn the_smallest_and_the_largest_range_are_cut() {
        let one = Segment { from: PlacementKey(7), to: PlacementKey(7) };
        assert_eq!(pieces(one).collect::<Vec<_>>(), [one]);
        let all: Vec<_> = pieces(Segment::ALL).collect();
        assert_eq!(
            (all.first().unwrap().from, all.last().unwrap().to),
            (PlacementKey::MIN, PlacementKey::MAX)
        );
        assert!(all.len() <= MAX_IN_FLIGHT);
    }
}

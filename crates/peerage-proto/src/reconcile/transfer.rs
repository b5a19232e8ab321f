//! Fetching a stretch of the table page by page (Rule 4.7).

use bytes::Bytes;
use peerage_wire::id::{PlaceKey, PlacementKey, Segment};
use peerage_wire::message::{Page, Request};
use peerage_wire::record::{Table, UnverifiedRecord};

use crate::table::{Inserted, stretch};

/// Pages in a row of which no record could be taken, after which the rest is left. An honest holder's records expire or are
/// revoked while they are on the way, a few at a time.
pub const MAX_VAIN_PAGES: u32 = 8;

/// A stretch of one table that is fetched in ascending order, one page after the other.
#[derive(Clone, Debug)]
pub struct Transfer {
    table: Table,
    range: Segment,
    from: PlaceKey,
    to: PlaceKey,
    after: Option<PlaceKey>,
    vain: u32,
    is_done: bool,
    is_broken_off: bool,
}

impl Transfer {
    /// Fetches what belongs to a segment. Of NodeInfo that is also what stands at the places of its look-up tags.
    pub fn of_segment(table: Table, segment: Segment) -> Self {
        let (from, to) = match table {
            // They belong where their nodes hold something, wherever they lie themselves.
            Table::SuperNode => (PlaceKey::MIN, PlaceKey::last_at(PlacementKey::MAX)),
            Table::Node
            | Table::NodeInfo
            | Table::OperatorNode
            | Table::EndDevice
            | Table::DomainKey
            | Table::Revocation
            | Table::Head => stretch(table, segment),
        };
        Self { range: segment, ..Self::new(table, from, to) }
    }

    /// Fetches from one position to another, both included.
    pub(super) fn of_stretch(table: Table, from: PlaceKey, to: PlaceKey) -> Self {
        Self { after: predecessor(&from), ..Self::new(table, from, to) }
    }

    fn new(table: Table, from: PlaceKey, to: PlaceKey) -> Self {
        let range = Segment { from: from.place, to: to.place };
        Self { table, range, from, to, after: None, vain: 0, is_done: false, is_broken_off: false }
    }

    /// Returns which table is fetched.
    pub const fn table(&self) -> Table {
        self.table
    }

    /// Returns whether there is nothing more to ask for.
    pub const fn is_done(&self) -> bool {
        self.is_done
    }

    /// Returns whether it ended before its end, because the pages were not those of an honest holder.
    pub const fn is_broken_off(&self) -> bool {
        self.is_broken_off
    }

    /// Returns the place from which on it goes on.
    pub(super) fn next_place(&self) -> PlacementKey {
        let next = self.after.map_or(Some(self.from), |after| after.successor());
        next.unwrap_or(self.to).place
    }

    /// Leaves out everything up to a place.
    pub(super) fn skip_to(&mut self, place: PlacementKey) {
        let after = PlaceKey::last_at(place);
        self.after = self.after.max(Some(after));
        self.is_done |= after >= self.to;
    }

    /// Returns the request for the next page.
    pub const fn request(&self) -> Request {
        Request::TransferPartition { table: self.table, range: self.range, after: self.after }
    }

    /// Takes a page. Each record is handed to `take`, which verifies it, offers it to the table, and returns what became of it;
    /// `None` if it cannot be taken. Returns what became of those that lie in the stretch.
    pub fn answered(
        &mut self,
        page: Page,
        mut take: impl FnMut(Bytes) -> Option<Inserted>,
    ) -> Vec<(PlaceKey, Inserted)> {
        let mut outcomes = Vec::new();
        let mut is_vain = true;
        for bytes in page.records {
            // Where the page ends is read from the records as they came: asking from there on trusts nobody.
            let next = self.position_of(&bytes).filter(|at| self.after.is_none_or(|after| *at > after));
            let Some(at) = next else {
                // A page that does not go on where the one before ended would never come to an end.
                self.break_off();
                return outcomes;
            };
            self.after = Some(at);
            if at > self.to {
                break;
            }
            if let Some(outcome) = take(bytes) {
                outcomes.push((at, outcome));
                is_vain = false;
            }
        }
        self.vain = if is_vain { self.vain.saturating_add(1) } else { 0 };
        if !page.more || self.after.is_some_and(|after| after >= self.to) {
            self.is_done = true;
        } else if self.vain >= MAX_VAIN_PAGES {
            self.break_off();
        }
        outcomes
    }

    fn position_of(&self, bytes: &Bytes) -> Option<PlaceKey> {
        let record = UnverifiedRecord::parse(bytes).ok()?;
        let header = record.header();
        let at = PlaceKey { place: header.placement(), key: header.key };
        (header.table == self.table && at >= self.from).then_some(at)
    }

    const fn break_off(&mut self) {
        self.is_done = true;
        self.is_broken_off = true;
    }
}

/// Returns the position before this one, `None` before the first.
fn predecessor(at: &PlaceKey) -> Option<PlaceKey> {
    let mut bytes = at.to_bytes();
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            return Some(PlaceKey::from_bytes(&bytes));
        }
    }
    None
}

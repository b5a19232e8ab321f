//! Places in the distributed table: one number for each record, ranges of them, and a total order of the records.

use std::fmt;

use super::{Domain, RecordKey, prefix, sha256};

/// Where a record lives in the distributed table: its domain, then the hash of its key (Rule 1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementKey(pub u64);

impl PlacementKey {
    /// The size in bytes on the wire.
    pub const SIZE: usize = 8;
    /// The first place of all.
    pub const MIN: Self = Self(u64::MIN);
    /// The last place of all.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the place of a record, or of a look-up tag, of this domain.
    pub fn new(domain: Domain, key: &[u8]) -> Self {
        let low = u32::from_be_bytes(prefix(&sha256(&[key])));
        Self((u64::from(domain.0) << 32) | u64::from(low))
    }

    /// Returns the domain whose records live here.
    pub fn domain(self) -> Domain {
        Domain(u32::from_be_bytes(prefix(&self.to_bytes())))
    }

    /// Returns the eight bytes, big end first.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        self.0.to_be_bytes()
    }
}

impl TryFrom<&[u8]> for PlacementKey {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(|bytes| Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for PlacementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A range of places, both ends included (Rule 2.14). Read from the wire it has at least one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The first place.
    pub from: PlacementKey,
    /// The last place.
    pub to: PlacementKey,
}

impl Segment {
    /// Every place that there is.
    pub const ALL: Self = Self { from: PlacementKey::MIN, to: PlacementKey::MAX };

    /// Returns the places of a domain.
    pub const fn of_domain(domain: Domain) -> Self {
        let [a, b, c, d] = domain.to_bytes();
        let from = u64::from_be_bytes([a, b, c, d, 0, 0, 0, 0]);
        Self { from: PlacementKey(from), to: PlacementKey(from | 0xffff_ffff) }
    }

    /// Returns whether the place lies in the range.
    pub fn contains(&self, place: PlacementKey) -> bool {
        self.from <= place && place <= self.to
    }

    /// Returns whether there are places in both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.from.max(other.from) <= self.to.min(other.to)
    }

    /// Returns whether any place of the domain lies in the range.
    pub fn touches(&self, domain: Domain) -> bool {
        self.overlaps(&Self::of_domain(domain))
    }

    /// Returns all places of the domains that the range touches.
    #[must_use]
    pub const fn whole_domains(&self) -> Self {
        let (from, to) = (PlacementKey(self.from.0 & !0xffff_ffff), PlacementKey(self.to.0 | 0xffff_ffff));
        Self { from, to }
    }

    /// Returns whether every place of `other` lies in this range.
    pub fn covers(&self, other: &Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

/// The position of an entry among all entries of its table, over all domains: its place, then its record key. Holders
/// page through the table and compare parts of it in this order (Rules 4.7 and 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceKey {
    /// Where the entry is kept.
    pub place: PlacementKey,
    /// What it is about.
    pub key: RecordKey,
}

impl PlaceKey {
    /// The size in bytes on the wire.
    pub const SIZE: usize = PlacementKey::SIZE + RecordKey::SIZE;
    /// The first position of all.
    pub const MIN: Self = Self { place: PlacementKey::MIN, key: RecordKey([0; RecordKey::SIZE]) };
    /// The last position of all.
    pub const MAX: Self = Self { place: PlacementKey::MAX, key: RecordKey([0xff; RecordKey::SIZE]) };

    /// Returns the first position at a place.
    pub const fn first_at(place: PlacementKey) -> Self {
        Self { place, ..Self::MIN }
    }

    /// Returns the last position at a place.
    pub const fn last_at(place: PlacementKey) -> Self {
        Self { place, ..Self::MAX }
    }

    /// Returns the position that follows, `None` after the last.
    pub fn successor(&self) -> Option<Self> {
        let mut bytes = self.to_bytes();
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Some(Self::from_bytes(&bytes));
            }
        }
        None
    }

    /// Returns place and record key, one after the other.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        let (place, key) = out.split_at_mut(PlacementKey::SIZE);
        place.copy_from_slice(&self.place.to_bytes());
        key.copy_from_slice(&self.key.0);
        out
    }

    /// Reads a position from its forty bytes.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (place, key) = bytes.split_at(PlacementKey::SIZE);
        Self { place: PlacementKey(u64::from_be_bytes(prefix(place))), key: RecordKey(prefix(key)) }
    }
}

impl TryFrom<&[u8]> for PlaceKey {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        <&[u8; Self::SIZE]>::try_from(bytes).map(Self::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rule 1.8: records of one domain stand together, and within it by the hash of their key.
    #[test]
    fn placement_keys_of_a_domain_are_a_range() {
        let key = PlacementKey::new(Domain(5), &[1; 32]);
        assert_eq!(key.domain(), Domain(5));
        assert_eq!(key.to_bytes()[4..], sha256(&[&[1; 32]])[..4]);
        assert!(Segment::of_domain(Domain(5)).contains(key));
        assert!(!Segment::of_domain(Domain(4)).contains(key));
        assert!(!Segment::of_domain(Domain(6)).contains(key));
    }

    /// Rule 2.14: both ends belong to the range.
    #[test]
    fn a_segment_touches_the_domains_at_its_ends() {
        let segment = Segment { from: PlacementKey(0x1_ffff_ffff), to: PlacementKey(0x3_0000_0000) };
        let touched: Vec<_> = (0..5).filter(|domain| segment.touches(Domain(*domain))).collect();
        assert_eq!(touched, [1, 2, 3]);
        assert!(segment.covers(&Segment::of_domain(Domain(2))));
        assert!(!segment.covers(&Segment::of_domain(Domain(1))));
        assert!(Segment::ALL.covers(&Segment::of_domain(Domain(u32::MAX))));
        assert!(!segment.overlaps(&Segment { from: PlacementKey(0x3_0000_0001), to: PlacementKey::MAX }));
    }

    #[test]
    fn after_the_last_position_comes_none() {
        assert_eq!(PlaceKey::MAX.successor(), None);
        let next = PlaceKey::last_at(PlacementKey(7)).successor();
        assert_eq!(next, Some(PlaceKey::first_at(PlacementKey(8))));
    }

    proptest! {
        /// Rule 4.8: the order of positions is that of their bytes, and there is nothing between neighbours.
        #[test]
        fn positions_are_ordered_like_their_bytes(a: ([u8; 8], [u8; 32]), b: ([u8; 8], [u8; 32])) {
            let of = |(place, key)| PlaceKey { place: PlacementKey(u64::from_be_bytes(place)), key: RecordKey(key) };
            let (a, b) = (of(a), of(b));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(PlaceKey::from_bytes(&a.to_bytes()), a);
            if let Some(next) = a.successor() {
                prop_assert!(a < next);
                prop_assert!(b <= a || b >= next);
            }
        }
    }
}

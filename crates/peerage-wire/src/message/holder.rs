//! What passes between super-nodes and operators: the role, the comparison of what two hold, and refusals.

use std::net::SocketAddr;

use crate::cbor::{Element, Malformed, Map, MapWriter};
use crate::codec::{read_addresses, write_addresses};
use crate::id::{CommandId, Domain, PlaceKey, PlacementKey, prefix};
use crate::limits::{MAX_ADDRESSES, MAX_ENTRIES, MAX_PARTS};
use crate::record::{Record, SetSummary};

/// What a node says that wants to be, or is, a super-node (Rule 4.9). It is its lease as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// So that it is noted once.
    pub id: CommandId,
    /// Where anybody reaches it: messages over UDP, links and relays over TCP on the same port.
    pub addresses: Vec<SocketAddr>,
    /// The version of the SuperNode record that it holds about itself, 0 for none.
    pub version: u64,
    /// Whether it wants to hand over what it holds and stop.
    pub leaving: bool,
    /// How much it does.
    pub load: Load,
}

/// How much a super-node does, for administrators and for the choice of who gets more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes that it has relayed since it was started.
    pub relayed_bytes: u64,
    /// Tunnels that it relays now.
    pub relayed_tunnels: u32,
    /// Records that it holds now.
    pub records: u32,
    /// Bytes of these.
    pub held_bytes: u64,
    /// Bytes of records that its owner lends at most, counted like `held_bytes`.
    pub max_bytes: u64,
    /// Domains of which it holds not everything, because its memory does not suffice.
    pub lacking: u32,
}

impl Submission {
    pub(super) fn write(&self, map: &mut MapWriter) {
        map.bytes(1, &self.id.0);
        write_addresses(map, 2, &self.addresses);
        map.uint(3, self.version)
            .flag(4, self.leaving)
            .uint(5, self.load.relayed_bytes)
            .uint(6, self.load.relayed_tunnels)
            .uint(7, self.load.records)
            .uint(8, self.load.held_bytes)
            .uint(9, self.load.max_bytes)
            .uint(10, self.load.lacking);
    }

    pub(super) fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: map.id(1)?,
            addresses: read_addresses(map, 2, MAX_ADDRESSES)?,
            version: map.uint(3)?,
            leaving: map.flag(4)?,
            load: Load {
                relayed_bytes: map.uint(5)?,
                relayed_tunnels: map.uint(6)?,
                records: map.uint(7)?,
                held_bytes: map.uint(8)?,
                max_bytes: map.uint(9)?,
                lacking: map.uint(10)?,
            },
        })
    }
}

/// What an operator makes of a [`Submission`] (Rule 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SuperNodeState {
    /// It may not be a super-node.
    Refused,
    /// The operator is finding out whether its addresses can be reached.
    Checking,
    /// It holds the part that its SuperNode record names.
    Assigned,
    /// None of its addresses could be reached.
    Unreachable,
    /// Others hold what it held: it may stop.
    HandedOver,
    /// The network has enough; it may ask again.
    NotNeeded,
}

impl SuperNodeState {
    /// All states with their numbers on the wire.
    const ALL: [(Self, u8); 6] = [
        (Self::Refused, 0),
        (Self::Checking, 1),
        (Self::Assigned, 2),
        (Self::Unreachable, 3),
        (Self::HandedOver, 4),
        (Self::NotNeeded, 5),
    ];

    pub(super) fn number(self) -> u8 {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or(0, |(_, n)| *n)
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| u64::from(*n) == number).map(|(state, _)| *state)
    }
}

/// How two holders compare in a stretch of a table (Rule 4.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// They hold the same.
    Same,
    /// What the answerer holds in each part of the stretch: one to [`MAX_PARTS`], in ascending order.
    Parts(Vec<Part>),
    /// Everything that the answerer holds there, at most [`MAX_ENTRIES`], in ascending order.
    Entries(Vec<Entry>),
}

/// A part of a stretch, which begins where the part before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its last position.
    pub to: PlaceKey,
    /// What is held there.
    pub summary: SetSummary,
}

/// One record that is held. The version tells who has to fetch and who to store; the whole key would say hardly more than the
/// place, and cost a round of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Its place.
    pub place: PlacementKey,
    /// Its version.
    pub version: u64,
    /// The first bytes of SHA-256 of the record: two of the same version are rare, and must not stay unnoticed.
    pub hash: [u8; 4],
}

impl Entry {
    /// The size in bytes on the wire.
    pub const SIZE: usize = PlacementKey::SIZE + 8 + 4;

    /// Makes the entry of a record.
    pub fn of(record: &Record) -> Self {
        let header = record.header();
        Self { place: header.placement(), version: header.version, hash: prefix(&record.hash()) }
    }

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        let parts = self.place.to_bytes().into_iter().chain(self.version.to_be_bytes()).chain(self.hash);
        for (to, from) in out.iter_mut().zip(parts) {
            *to = from;
        }
        out
    }

    fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (place, rest) = bytes.split_at(PlacementKey::SIZE);
        let (version, hash) = rest.split_at(8);
        let [place, version] = [place, version].map(|bytes| u64::from_be_bytes(prefix(bytes)));
        Self { place: PlacementKey(place), version, hash: prefix(hash) }
    }
}

impl Reconciled {
    pub(super) fn write(&self, map: &mut MapWriter) {
        match self {
            Self::Same => map.flag(1, true),
            Self::Parts(parts) => map.list_of_maps(2, parts, Part::write),
            Self::Entries(entries) => {
                let bytes: Vec<_> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
                map.bytes(3, &bytes)
            }
        };
    }

    pub(super) fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        let same = map.flag(1)?;
        let parts = map.list(2, MAX_PARTS, Part::read)?;
        match (same, parts.is_empty(), map.optional_bytes(3)?) {
            (true, true, None) => Ok(Self::Same),
            (false, false, None) if is_ascending(parts.iter().map(|part| part.to)) => Ok(Self::Parts(parts)),
            (false, true, Some(bytes)) => read_entries(bytes).map(Self::Entries).ok_or(Malformed::Type(3)),
            _ => Err(Malformed::Type(2)),
        }
    }
}

impl Part {
    fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.bytes(1, &self.to.to_bytes()).uint(2, self.summary.count).bytes(3, &self.summary.sum);
        map
    }

    fn read(element: Element<'_>) -> Result<Self, Malformed> {
        let mut map = element.map()?;
        let part = Self { to: map.id(1)?, summary: SetSummary { count: map.uint(2)?, sum: map.id(3)? } };
        map.finish()?;
        Ok(part)
    }
}

fn read_entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (chunks, rest) = bytes.as_chunks::<{ Entry::SIZE }>();
    if !rest.is_empty() || chunks.len() > MAX_ENTRIES {
        return None;
    }
    let entries: Vec<_> = chunks.iter().map(Entry::from_bytes).collect();
    is_ascending(entries.iter().copied()).then_some(entries)
}

/// Returns whether each item is greater than the one before it.
fn is_ascending<T: Copy + Ord>(mut items: impl Iterator<Item = T>) -> bool {
    let Some(mut last) = items.next() else { return true };
    items.all(|next| std::mem::replace(&mut last, next) < next)
}

/// How often a super-node refused something to a domain since it last told (Rule 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whose members were refused.
    pub domain: Domain,
    /// Why.
    pub reason: RefusedReason,
    /// How often.
    pub count: u32,
}

/// Why a super-node refuses something to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedReason {
    /// The domain has as many records as it may.
    Quota,
    /// It asks for more in a second than it may.
    Rate,
    /// What it stores is not valid.
    BadRecords,
    /// It relays more than it may.
    RelayQuota,
    /// Who asks is not a member, or no longer.
    NotMember,
}

impl RefusedReason {
    /// All reasons with their numbers on the wire.
    pub const ALL: [(Self, u8); 5] = [
        (Self::Quota, 1),
        (Self::Rate, 2),
        (Self::BadRecords, 3),
        (Self::RelayQuota, 4),
        (Self::NotMember, 5),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(reason, _)| *reason == self).map_or(0, |(_, n)| *n)
    }

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| u64::from(*n) == number).map(|(reason, _)| *reason)
    }
}

impl Refused {
    pub(super) fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.uint(1, self.domain.0).uint(2, self.reason.number()).uint(3, self.count);
        map
    }

    /// Reads an element; `None` for a reason that this version does not know.
    pub(super) fn read(element: Element<'_>) -> Result<Option<Self>, Malformed> {
        let mut map = element.map()?;
        let (domain, reason, count) = (Domain(map.uint(1)?), map.uint(2)?, map.uint(3)?);
        map.finish()?;
        Ok(RefusedReason::from_number(reason).map(|reason| Self { domain, reason, count }))
    }
}

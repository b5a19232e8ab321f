//! Super-nodes keep what they have taken, have in the end all that they should have, and read nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerage_proto::node::{Change, SuperState};
use peerage_wire::id::{Domain, RecordKey, Segment};
use peerage_wire::limits::MAX_VERSION_AHEAD;
use peerage_wire::record::{NodeInfoPublic, Record, SuperNodeBody, Table};
use peerage_wire::time::{Instant, UnixTime};

use super::{Fact, Invariant};
use crate::host::{Clock, Host, true_time};
use crate::ledger::Membership;
use crate::world::World;

/// How old an acknowledgement can be when it arrives: what was asked is asked again for some seconds.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// What a super-node is for as long as it keeps what it has taken: in one run, in one term with one part of the table, its date left
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    boot: u32,
    term: u32,
    segment: Segment,
    clock: Clock,
}

/// A super-node as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Holder {
    standing: Standing,
    since: Instant,
    /// What it adds to its clock, if it has learned that.
    offset_millis: Option<i64>,
}

impl Holder {
    fn look(index: usize, world: &World, before: Option<&Self>) -> Option<Self> {
        let host = world.hosts.get(index).filter(|host| host.terms > 0)?;
        let status = host.node.as_ref()?.status(host.now(world.now()));
        let SuperState::Serving { from, to } = status.super_role.state else { return None };
        let segment = Segment { from, to };
        let standing = Standing { boot: host.boot, term: host.terms, segment, clock: host.clock };
        let since = before.filter(|before| before.standing == standing).map(|before| before.since);
        let since = since.unwrap_or_else(|| world.now());
        Some(Self { standing, since, offset_millis: status.clock_offset_millis })
    }

    /// Returns the latest time that it can have judged by; none if it cannot judge.
    fn judging_time(&self, before: &Self, now: Instant) -> Option<UnixTime> {
        let unix = self.standing.clock.now(now).unix;
        let offset = self.offset_millis.into_iter().chain(before.offset_millis).max()?;
        Some(unix.shifted(offset))
    }

    /// Returns whether it keeps a version only until the next one of the same node, because it took it while it could not judge
    /// (Rule 6.55).
    fn is_provisional(&self, version: u64, world: &World) -> bool {
        let Some(offset) = self.offset_millis else { return false };
        let unix = self.standing.clock.now(world.now()).unix.shifted(offset);
        let earliest = unix.before(world.setup().sample_interval);
        version > earliest.after(MAX_VERSION_AHEAD).as_millis()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holders {
    holders: BTreeMap<usize, Holder>,
    /// Version and expiry of what somebody announced (the first) and a super-node (the second) was seen to hold at a place of its
    /// part.
    held: BTreeMap<(usize, usize), (u64, UnixTime)>,
    /// Who has acknowledged which version of somebody's announcement.
    acknowledged: BTreeMap<usize, (u64, BTreeSet<usize>)>,
}

fn held_by<'a>(host: &'a Host, owner: &Host) -> Option<&'a Record> {
    host.node.as_ref()?.held_record(Table::NodeInfo, owner.domain, owner.id.record_key())
}

fn has_place_in(record: &Record, segment: &Segment) -> bool {
    let header = record.header();
    let tags = NodeInfoPublic::read(record).map(|body| body.placements(header.domain)).unwrap_or_default();
    tags.into_iter().chain([header.placement()]).any(|place| segment.contains(place))
}

impl Holders {
    /// What a super-node has taken or acknowledged of somebody's announcement it does not lose before that expires by its clock,
    /// unless it stops, its part changes, or somebody is no member any more.
    fn check_kept(&mut self, world: &World) -> Option<String> {
        let seen = |index: usize| Some((index, Holder::look(index, world, self.holders.get(&index))?));
        let holders: BTreeMap<_, _> = (0..world.hosts.len()).filter_map(seen).collect();
        let before = std::mem::replace(&mut self.holders, holders);
        let was_held = std::mem::take(&mut self.held);
        if self.holders.is_empty() {
            self.acknowledged.clear();
            return None;
        }
        for (index, owner) in world.hosts.iter().enumerate() {
            if !world.ledger.member(&owner.id).is_some_and(Membership::is_valid) {
                continue;
            }
            let acknowledged = self.newly_acknowledged(index, world);
            for (at, holder) in &self.holders {
                let Some(host) = world.hosts.get(*at) else { continue };
                let record = held_by(host, owner);
                let version = record.map_or(0, |record| record.header().version);
                let is_forgotten = acknowledged.as_ref().is_some_and(|(least, by)| {
                    version < *least && by.contains(at) && !holder.is_provisional(*least, world)
                });
                if is_forgotten {
                    return Some(format!(
                        "computer {at} has forgotten what computer {index} was told it has"
                    ));
                }
                let same = before.get(at).filter(|before| before.standing == holder.standing);
                let kept = was_held.get(&(index, *at)).zip(same);
                let is_lost = kept.is_some_and(|((least, expires), before)| {
                    let time = holder.judging_time(before, world.now());
                    let is_kept = time.is_none_or(|time| *expires > time);
                    version < *least && is_kept && !holder.is_provisional(*least, world)
                });
                if is_lost {
                    return Some(format!("computer {at} has lost what computer {index} announced"));
                }
                let kept = record.filter(|record| has_place_in(record, &holder.standing.segment));
                if let Some(header) = kept.map(Record::header) {
                    self.held.insert((index, *at), (header.version, header.expires));
                }
            }
        }
        None
    }

    /// Returns which version of a computer's announcement was acknowledged since the last look, by which super-nodes that still
    /// are what they were then.
    fn newly_acknowledged(&mut self, index: usize, world: &World) -> Option<(u64, BTreeSet<usize>)> {
        let (version, by) = world.hosts.get(index)?.node.as_ref()?.acknowledged()?;
        let has = |at: &&usize| world.hosts.get(**at).is_some_and(|host| by.contains(&host.id));
        let (seen_version, seen) = self.acknowledged.entry(index).or_default();
        if *seen_version != version {
            (*seen_version, *seen) = (version, BTreeSet::new());
        }
        let new: Vec<_> = self.holders.keys().filter(has).copied().filter(|at| seen.insert(*at)).collect();
        let earliest = world.setup().sample_interval + ACKNOWLEDGED_WITHIN;
        let is_same = |at: &usize| {
            let holder = self.holders.get(at);
            holder.is_some_and(|holder| world.now() - holder.since >= earliest)
        };
        Some((version, new.into_iter().filter(is_same).collect()))
    }

    /// Whoever is in the segment map holds all that belongs there.
    fn check_whole(world: &World) -> Option<String> {
        let time = true_time(world.now()).unix;
        for (index, host) in world.hosts.iter().enumerate() {
            let Some(segment) = world.ledger.segment(&host.id, time) else { continue };
            let Some(node) = host.node.as_ref().filter(|_| host.lends) else { continue };
            let role = node.status(host.now(world.now())).super_role;
            let serves = role.state == SuperState::Serving { from: segment.from, to: segment.to };
            if !serves || !node.is_caught_up() {
                return Some(format!("computer {index} should serve {segment:?}, but {role:?}"));
            }
            let belongs = |record: &&Record| {
                let header = record.header();
                match header.table {
                    Table::Node | Table::EndDevice | Table::DomainKey => segment.contains(header.placement()),
                    Table::Revocation => segment.touches(header.domain),
                    Table::SuperNode => {
                        let body = SuperNodeBody::read(record);
                        body.is_ok_and(|body| body.segment.overlaps(&segment.whole_domains()))
                    }
                    Table::OperatorNode => true,
                    Table::NodeInfo | Table::Head => false,
                }
            };
            let missing = world.ledger.records().filter(belongs).find(|record| {
                let (table, domain, key) = record.header().id();
                let held = node.held_record(table, domain, key).map_or(0, |held| held.header().version);
                record.header().expires > time && held < record.header().version && !record.header().removed
            });
            if let Some(record) = missing {
                let header = record.header();
                let held = node.held_record(header.table, header.domain, header.key);
                let held = held.map(|held| held.header().version);
                return Some(format!("computer {index} lacks {header:?} of {segment:?}, it has {held:?}"));
            }
        }
        None
    }

    /// What belongs to others is sealed: neither names nor addresses of devices lie open on a super-node's disk.
    fn check_sealed(index: usize, changes: &[Change], world: &World) -> Option<String> {
        let host = world.hosts.get(index)?;
        for change in changes {
            let Change::Put(record) = change else { continue };
            let id: (Table, Domain, RecordKey) = record.header().id();
            if id.1 == host.domain || id.0 != Table::EndDevice {
                continue;
            }
            let bytes = record.bytes();
            let shows = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
            let open = world.devices.iter().find(|device| {
                let registered = &device.registered;
                shows(&registered.mac.0) || shows(registered.name.as_bytes()) || shows(b"printer")
            });
            if open.is_some() {
                return Some(format!("computer {index} can read {id:?}"));
            }
        }
        None
    }
}

impl Invariant for Holders {
    fn name(&self) -> &'static str {
        "super-nodes keep what they hold, and read none of it"
    }

    fn observe(&mut self, fact: &Fact<'_>, world: &World) -> Option<String> {
        let Fact::Acknowledged { host, changes } = fact else { return None };
        Self::check_sealed(*host, changes, world)
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        self.check_kept(world)
    }

    fn conclude(&mut self, world: &World) -> Option<String> {
        Self::check_whole(world)
    }
}

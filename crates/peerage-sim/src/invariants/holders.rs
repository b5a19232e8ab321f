//! Super-nodes keep what they have taken, have in the end all that they should have, and read nothing of it.

use std::collections::BTreeMap;

use peerage_proto::node::{Change, SuperState};
use peerage_wire::id::{Domain, PlacementKey, RecordKey, Segment};
use peerage_wire::record::{NodeInfoPublic, Record, Table};
use peerage_wire::time::UnixTime;

use super::{Fact, Invariant};
use crate::host::{Host, true_time};
use crate::ledger::Membership;
use crate::world::World;

/// A computer in one of its runs, and in one of its terms as a super-node.
type Term = (usize, u32, u32);

/// An announcement, and the super-nodes that were seen to hold it, each with the part of the table that it held then.
#[derive(Debug)]
struct Announced {
    version: u64,
    expires: UnixTime,
    places: Vec<PlacementKey>,
    holders: BTreeMap<Term, Segment>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holders {
    announced: BTreeMap<usize, Announced>,
}

fn segment_of(host: &Host, world: &World) -> Option<Segment> {
    let role = host.node.as_ref()?.status(host.now(world.now())).super_role;
    let SuperState::Serving { from, to } = role.state else { return None };
    Some(Segment { from, to })
}

fn places_of(record: &Record) -> Vec<PlacementKey> {
    let header = record.header();
    let tags = NodeInfoPublic::read(record).map(|body| body.placements(header.domain)).unwrap_or_default();
    tags.into_iter().chain([header.placement()]).collect()
}

impl Holders {
    /// What a super-node took of somebody's announcement it does not lose before that expires, unless it stops or its part changes.
    fn check_kept(&mut self, world: &World) -> Option<String> {
        let time = true_time(world.now()).unix;
        for (index, announced) in &self.announced {
            let Some(owner) = world.hosts.get(*index).filter(|_| announced.expires > time) else { continue };
            if !world.ledger.member(&owner.id).is_some_and(Membership::is_valid) {
                continue;
            }
            let (table, domain, key) = (Table::NodeInfo, owner.domain, owner.id.record_key());
            for ((holder, boot, term), segment) in &announced.holders {
                let is_same = |host: &&Host| (host.boot, host.terms) == (*boot, *term);
                let Some(host) = world.hosts.get(*holder).filter(is_same) else { continue };
                let is_same = segment_of(host, world) == Some(*segment);
                let held = host.node.as_ref().and_then(|node| node.held_record(table, domain, key));
                let version = held.map_or(0, |record| record.header().version);
                // Who has a wrong date may think that it has expired.
                if is_same && host.clock.error_millis.abs() < 5_000 && version < announced.version {
                    let at = announced.places.len();
                    return Some(format!(
                        "computer {holder} has lost what computer {index} announced at {at} places"
                    ));
                }
            }
        }
        None
    }

    fn look(&mut self, world: &World) {
        let members = world.hosts.iter().enumerate();
        let serving: Vec<_> = members
            .clone()
            .filter_map(|(index, host)| Some((index, host, segment_of(host, world)?)))
            .filter(|(_, host, _)| host.is_awake())
            .collect();
        if serving.is_empty() {
            self.announced.clear();
            return;
        }
        for (index, owner) in members {
            let (table, domain, key) = (Table::NodeInfo, owner.domain, owner.id.record_key());
            let is_valid = world.ledger.member(&owner.id).is_some_and(Membership::is_valid);
            let Some(record) = owner.node.as_ref().and_then(|node| node.record(table, domain, key)) else {
                continue;
            };
            let (version, expires) = (record.header().version, record.header().expires);
            let holds = |host: &Host| {
                let held = host.node.as_ref().and_then(|node| node.held_record(table, domain, key));
                held.is_some_and(|record| record.header().version >= version)
            };
            let places = places_of(record);
            let holders = serving
                .iter()
                .filter(|(_, host, segment)| {
                    places.iter().any(|place| segment.contains(*place)) && holds(host)
                })
                .map(|(holder, host, segment)| ((*holder, host.boot, host.terms), *segment));
            let holders = if is_valid { holders.collect() } else { BTreeMap::new() };
            self.announced.insert(index, Announced { version, expires, places, holders });
        }
    }

    /// Whoever is in the segment map holds all that belongs there.
    fn check_whole(world: &World) -> Option<String> {
        let time = true_time(world.now()).unix;
        for (index, host) in world.hosts.iter().enumerate() {
            let Some(segment) = world.ledger.segment(&host.id, time) else { continue };
            let Some(node) = host.node.as_ref().filter(|_| host.lends) else { continue };
            if segment_of(host, world) != Some(segment) || !node.is_caught_up() {
                let role = node.status(host.now(world.now())).super_role;
                return Some(format!("computer {index} should serve {segment:?}, but {role:?}"));
            }
            let belongs = |record: &&Record| {
                let header = record.header();
                match header.table {
                    Table::Node | Table::EndDevice | Table::DomainKey => segment.contains(header.placement()),
                    Table::Revocation => segment.touches(header.domain),
                    Table::SuperNode | Table::OperatorNode => true,
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
        let lost = self.check_kept(world);
        self.look(world);
        lost
    }

    fn conclude(&mut self, world: &World) -> Option<String> {
        Self::check_whole(world)
    }
}

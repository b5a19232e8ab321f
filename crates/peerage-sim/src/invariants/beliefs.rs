//! Long after the last fault everybody believes what the vendor decided: the same devices, the same members, the same revocations. What
//! was decided is in the model, which knows nothing of records.

use peerage_wire::id::{Domain, NodeId};
use peerage_wire::record::{EndDevice, RevocationBody, RevocationKind, Table};

use super::Invariant;
use crate::host::{Host, true_time};
use crate::ledger::Membership;
use crate::model::Standing;
use crate::world::World;

/// See the module.
#[derive(Debug, Default)]
pub struct Beliefs {}

/// A device as it was decided on: where it is seen is learned.
fn as_decided(device: &EndDevice) -> EndDevice {
    EndDevice { site: Vec::new(), ..device.clone() }
}

impl Beliefs {
    fn of_node(index: usize, host: &Host, world: &World) -> Option<String> {
        let is_member = world.ledger.member(&host.id).is_some_and(Membership::is_valid);
        let node = host.node.as_ref().filter(|_| host.serves && is_member)?;
        let status = node.status(host.now(world.now()));
        let known: Vec<_> = status.devices.iter().map(|device| as_decided(&device.device)).collect();
        let decided: Vec<_> = world.model.vendor.devices(host.domain).cloned().collect();
        if known != decided {
            let (known, all) = (known.len(), decided.len());
            return Some(format!("computer {index} knows {known} devices, other than the {all} decided on"));
        }
        let revoked = world
            .model
            .vendor
            .members()
            .filter(|(id, standing)| id.domain == host.domain && **standing == Standing::Revoked);
        let (revoked, stated) = (revoked.count(), status.head.map_or(0, |head| head.revocations));
        (u32::try_from(revoked) != Ok(stated))
            .then(|| format!("computer {index} knows of {stated} revocations, there are {revoked}"))
    }

    fn of_operator(index: usize, world: &World) -> Option<String> {
        let (_, operator) = world.operators().find(|(up, _)| *up == index)?;
        let time = true_time(world.now()).unix;
        let is_held = |table, domain: Domain, key| {
            let record = operator.record(table, domain, key);
            record.is_some_and(|record| !record.header().removed && record.header().expires > time)
        };
        let wrong = world.model.vendor.members().find(|(id, standing)| {
            let id: &NodeId = id;
            let body = RevocationBody { kind: RevocationKind::Node(*id), at: time, reason: 1 };
            let is_revoked = is_held(Table::Revocation, id.domain, body.record_key());
            let has_left = !is_held(Table::Node, id.domain, id.record_key());
            match standing {
                Standing::Member => is_revoked,
                Standing::Revoked => !is_revoked,
                Standing::Left => is_revoked || !has_left,
            }
        });
        wrong.map(|(id, standing)| format!("operator {index} does not know that {id:?} is {standing:?}"))
    }
}

impl Invariant for Beliefs {
    fn name(&self) -> &'static str {
        "everybody believes what was decided"
    }

    fn conclude(&mut self, world: &World) -> Option<String> {
        let up: Vec<_> = world.operators().map(|(index, _)| index).collect();
        let of_operators = up.into_iter().find_map(|index| Self::of_operator(index, world));
        let mut hosts = world.hosts.iter().enumerate();
        of_operators.or_else(|| hosts.find_map(|(index, host)| Self::of_node(index, host, world)))
    }
}

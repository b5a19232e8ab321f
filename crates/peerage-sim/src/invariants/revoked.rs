//! A revoked node is shut out of every tunnel, at every computer that can talk to an operator, within the bound.

use std::time::Duration;

use peerage_proto::session::State;

use super::Invariant;
use crate::world::World;

/// Within which time a decision is in force at every computer in contact (Rule 6.9): 60 s, and what an unlucky look-up on a line with
/// losses takes besides. Lower: false alarms on bad lines; higher: slow revocation goes unnoticed.
pub(super) const IN_FORCE_WITHIN: Duration = Duration::from_secs(90);

/// See the module.
#[derive(Debug, Default)]
pub struct Revoked {}

impl Invariant for Revoked {
    fn name(&self) -> &'static str {
        "revoked nodes are shut out"
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        for (index, host) in world.hosts.iter().enumerate() {
            let Some(contact) = host.in_contact_since else { continue };
            for (_, tunnel) in host.shell.tunnels() {
                let is_open = matches!(tunnel.state, State::Open);
                let revoked_at = world.ledger.member(&tunnel.peer).and_then(|member| member.revoked_at);
                // A revoked user-node may well go on believing; the tunnel-node must not.
                let own_revoked = world.ledger.member(&host.id).is_some_and(|own| own.revoked_at.is_some());
                let Some(revoked_at) = revoked_at.filter(|_| is_open && !own_revoked) else { continue };
                let span = world.now() - revoked_at.max(contact);
                if span > IN_FORCE_WITHIN {
                    let peer = tunnel.peer;
                    return Some(format!("computer {index} keeps a tunnel with {peer:?} after {span:?}"));
                }
            }
        }
        None
    }
}

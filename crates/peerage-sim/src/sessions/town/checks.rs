//! What is looked at while a life goes on, and in the end.

use peerage_proto::link::bundle::{MAX_OWN, MAX_SHARED};
use peerage_proto::session::{self, WINDOW_MIN};
use peerage_wire::id::SessionId;

use super::super::life::Bug;
use super::{LIAR, Town};
use crate::app::End;
use crate::model::Tunnel;
use crate::shell::Shell;

/// Most links with one peer: those of the bundle's own limits, and one that came of a dial at the same time.
const MAX_LINKS: usize = MAX_SHARED + MAX_OWN + 1;

/// Returns whether what one end says about how a tunnel ended follows from what the other says: nobody hears of a reset that nobody
/// made, or of another reason than was given.
fn agree(tunnel: &Tunnel) -> bool {
    let [user, device] = tunnel.ends;
    let follows = |here: Option<session::End>, there: Option<session::End>| match here {
        Some(session::End::ResetByPeer(code)) => there == Some(session::End::ResetHere(code)),
        Some(session::End::ResetHere(_) | session::End::Complete) => there.is_some(),
        Some(session::End::Violated(_) | session::End::Expired) | None => false,
    };
    !tunnel.was_opened || (follows(user, device) && follows(device, user))
}

impl Town {
    pub(super) fn is_with_liar(&self, session: &SessionId) -> bool {
        self.parties.get(session).is_some_and(|parties| parties.contains(&LIAR))
    }

    /// Returns the tunnels between honest computers.
    pub(super) fn honest(&self) -> impl Iterator<Item = (&SessionId, &Tunnel)> {
        self.model.tunnels().filter(|(id, _)| !self.is_with_liar(id))
    }

    /// Returns a session of which bytes go over a connection between others than those whose it is, which must never be.
    fn stolen(&self, index: usize) -> Option<SessionId> {
        let carried = self.shells.get(index).into_iter().flat_map(Shell::carried);
        let mut stolen = carried.filter(|(session, _, carrier)| {
            let ends = self.wires.get(carrier).map(|wire| wire.ends);
            ends.is_some_and(|ends| self.parties.get(session) != Some(&ends))
        });
        stolen.next().map(|(session, ..)| session)
    }

    pub(super) fn check_tables(&mut self) {
        let spare = if self.life.planted == Some(Bug::PromisesMore) { 0 } else { 3 * WINDOW_MIN };
        for index in 0..self.shells.len() {
            let Some(shell) = self.shells.get(index) else { continue };
            let sessions = shell.tunnels().count() as u64;
            let (used, budget) = shell.budget();
            let links = shell.links().max().unwrap_or(0);
            // A receive window and a send buffer of two windows are each session's own.
            if used > budget.saturating_add(sessions.saturating_add(1).saturating_mul(spare)) {
                self.fail("memory within its limit", format!("computer {index} promises {used} bytes"));
            } else if let Some(session) = self.stolen(index) {
                self.fail("a session is its peer's alone", format!("computer {index}: {session:?}"));
            } else if links > MAX_LINKS {
                self.fail("tables within their limits", format!("computer {index} has {links} links"));
            }
        }
    }

    pub(super) fn check_complete(&mut self) {
        let broken = self.honest().find(|(_, tunnel)| {
            let ends = End::BOTH.map(|end| tunnel.end(end));
            let is_complete = tunnel.is_complete() && ends == [Some(session::End::Complete); 2];
            // The first connection may break before the other end has heard of the tunnel.
            let was_refused = !tunnel.was_opened && ends[0].is_some_and(|end| end.code().is_some());
            !is_complete && !was_refused && !tunnel.is_excused
        });
        if let Some((session, tunnel)) = broken {
            let what = format!("{session:?} ended as {:?} without a reason: {tunnel:?}", tunnel.ends);
            return self.fail("sessions come to their end", what);
        }
        let apart = self.honest().find(|(_, tunnel)| !agree(tunnel));
        if let Some((session, tunnel)) = apart {
            let what = format!("{session:?} has ended as {:?}", tunnel.ends);
            self.fail("both ends agree", what);
        }
    }

    pub(super) fn check_memory(&mut self) {
        for index in 0..self.shells.len() {
            let Some(shell) = self.shells.get(index) else { continue };
            let (left, used) = (shell.tunnels().count(), shell.budget().0);
            if left > 0 && index != LIAR {
                self.fail("sessions come to their end", format!("computer {index} keeps {left} sessions"));
            } else if left == 0 && used > 0 {
                self.fail("memory is given back", format!("computer {index} keeps {used} bytes"));
            }
        }
    }
}

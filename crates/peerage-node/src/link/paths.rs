//! Paths over UDP that the node has found by checks: what is dialled there, and from where others are expected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::link::bundle::{PathKind, Purpose};
use peerage_proto::path::{self, Path, PathRole};
use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::id::NodeId;
use tokio::time::{self, Instant};

use super::dial::{CANDIDATE_TIMEOUT, DialError};
use super::peer::Peer;
use super::{Connected, Inner, LinkEvent, Links, lock, quic, standing};

/// The most paths that are remembered. Further ones are found again when they are needed.
const MAX_FOUND: usize = 1_024;

/// The most addresses from which members are expected at a time. Beyond, they are strangers until their handshake.
const MAX_EXPECTED: usize = 1_024;

/// How long a member is expected: as long as the node keeps a path that is not used (Rule 6.97).
const EXPECTED_FOR: Duration = Duration::from_secs(15);

/// Where members are expected from: they have proven their addresses by sealed messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    until: Arc<Mutex<BTreeMap<SocketAddr, Instant>>>,
}

impl Expected {
    pub(super) fn add(&self, remote: SocketAddr, now: Instant) {
        let mut until = lock(&self.until);
        until.retain(|_, until| *until > now);
        if until.len() < MAX_EXPECTED {
            until.insert(remote, now + EXPECTED_FOR);
        }
    }

    /// Returns whether somebody is expected there now.
    pub(super) fn contains(&self, remote: SocketAddr, now: Instant) -> bool {
        lock(&self.until).get(&remote).is_some_and(|until| *until > now)
    }
}

impl Links {
    /// Takes note of a path that the node has found. Where this node dials and has nothing better to the peer, it does so at once.
    pub(crate) fn path_found(&self, path: &Path) {
        let Some(quic) = self.inner.quic.get() else { return };
        if path.role == PathRole::Await {
            return quic.expected.add(path.remote, Instant::now());
        }
        let candidate = candidate(path);
        let mut found = lock(&self.inner.found);
        if found.len() < MAX_FOUND || found.contains_key(&path.peer) {
            found.insert(path.peer, candidate);
        }
        drop(found);
        let known = lock(&self.inner.peers).get(&path.peer).cloned();
        if let Some(peer) = known.filter(wants_path) {
            self.inner.pursue(peer, path.identity, candidate);
        }
    }

    /// Has paths looked for anew to all peers to whom only a relay leads.
    pub(crate) fn look_again(&self) {
        for peer in self.inner.all() {
            if peer.act(|state, _| state.bundle.serving()) == Some(Some(PathKind::Relayed)) {
                peer.ask_for_path(&self.inner);
            }
        }
    }

    /// Forgets a path that is none any more.
    pub(crate) fn path_lost(&self, path: &Path) {
        let mut found = lock(&self.inner.found);
        if found.get(&path.peer).is_some_and(|candidate| candidate.address == path.remote) {
            found.remove(&path.peer);
        }
    }
}

impl Inner {
    /// Returns where a peer can be dialled over UDP as far as checks have found out.
    pub(super) fn found(&self, peer: NodeId) -> Option<Candidate> {
        lock(&self.found).get(&peer).copied()
    }

    /// Dials a path that was found before there was anything with the peer: the first checks may be faster than the forwarder.
    pub(super) fn pursue_found(self: &Arc<Self>, peer: &Arc<Peer>) {
        let identity = peer.act(|state, _| state.reach.identity).flatten();
        if let (Some(identity), Some(candidate)) = (identity, self.found(peer.id)) {
            self.pursue(Arc::clone(peer), identity, candidate);
        }
    }

    /// Dials a path beside whatever else is tried.
    fn pursue(self: &Arc<Self>, peer: Arc<Peer>, identity: [u8; 32], candidate: Candidate) {
        let inner = Arc::downgrade(self);
        lock(&self.helpers).spawn(async move {
            let Some(inner) = inner.upgrade() else { return };
            if let Err(error) = inner.dial_path(&peer, identity, candidate).await {
                tracing::debug!(peer = ?peer.id, %error, "a path that was found did not work");
                let remote = candidate.address;
                inner.notifier.notify(LinkEvent::PathUnused { peer: peer.id, remote });
            }
        });
    }

    async fn dial_path(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        identity: [u8; 32],
        candidate: Candidate,
    ) -> Result<(), DialError> {
        let Some(quic) = self.quic.get() else { return Ok(()) };
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| DialError::TooManyLinks)?;
        let remote = candidate.address;
        let connecting = quic.connect(&self.config.tls, identity, remote);
        let connected =
            time::timeout(CANDIDATE_TIMEOUT, connecting).await.map_err(|_| DialError::TimedOut)?;
        let connection = connected.map_err(|source| DialError::Failed { address: remote, source })?;
        // Another dial may have come first; one connection is enough.
        if wants_path(peer) {
            let standing = standing(Side::Client, Purpose::Shared, PathKind::Quic);
            let ends = (quic::local(&connection, remote), remote, candidate.kind.into());
            self.start(peer, standing, Connected::Quic(connection), ends, (permit, None));
        }
        Ok(())
    }
}

/// Whether nothing as good as QUIC leads to a peer.
fn wants_path(peer: &Arc<Peer>) -> bool {
    peer.act(|state, _| state.bundle.serving() < Some(PathKind::Quic)).unwrap_or(false)
}

/// Whether a link on QUIC to this address of a peer is left.
pub(super) fn is_used(peer: &Weak<Peer>, remote: SocketAddr) -> bool {
    let used = peer.upgrade().and_then(|peer| {
        peer.act(|state, _| {
            let mut links = state.links.iter();
            links.any(|(id, ends)| ends.remote == remote && state.bundle.path(*id) == Some(PathKind::Quic))
        })
    });
    used.unwrap_or(false)
}

const fn candidate(path: &Path) -> Candidate {
    let kind = match path.kind {
        path::PathKind::Direct => CandidateKind::Configured,
        path::PathKind::Mapped => CandidateKind::Mapped,
        path::PathKind::Punched => CandidateKind::Reflexive,
    };
    Candidate { kind, transport: Transport::Udp, address: path.remote }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn members_are_expected_for_a_while_and_in_bounded_number() {
        let expected = Expected::default();
        let place = |port: usize| SocketAddr::from(([192, 0, 2, 1], u16::try_from(port).unwrap()));
        let began_at = Instant::now();
        for port in 1..=MAX_EXPECTED + 1 {
            expected.add(place(port), began_at);
        }
        assert!(expected.contains(place(MAX_EXPECTED), began_at));
        assert!(!expected.contains(place(MAX_EXPECTED + 1), began_at));
        assert!(!expected.contains(place(1), began_at + EXPECTED_FOR));
        expected.add(place(MAX_EXPECTED + 1), began_at + EXPECTED_FOR);
        assert!(expected.contains(place(MAX_EXPECTED + 1), began_at + EXPECTED_FOR), "the others have left");
    }
}

//! The nodes that this one has dealt with lately: bounded, and forgotten when unused.

use peerage_wire::id::NodeId;
use peerage_wire::intro::KeyStatement;
use peerage_wire::packet::COOKIE_SIZE;
use peerage_wire::seal::SendContext;
use peerage_wire::time::{Instant, UnixTime};

use crate::indexed::Indexed;
use crate::sizes::TableSize;
use crate::trust::Member;

/// Most peers that are remembered; an operator hears of every node of the network now and then. About 700 bytes each.
/// Beyond it the one unused for longest is forgotten, and introduces itself again.
pub(super) const MAX_PEERS: usize = 20_000;

/// A context opened to a peer.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) context: SendContext,
    /// Whether an answer has shown that the peer has the context, so that the short form will do.
    pub(super) confirmed: bool,
    /// What the peer wants to see in the long form.
    pub(super) cookie: Option<[u8; COOKIE_SIZE]>,
}

/// A node that can be asked, and whose requests can be opened.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) member: Member,
    pub(super) statement: KeyStatement,
    /// Hash of the introduction that was verified, so that it need not be again.
    pub(super) introduction: Option<[u8; 32]>,
    pub(super) opened: Option<Opened>,
    used_at: Instant,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    all: Indexed<NodeId, Peer>,
}

impl Peers {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("peers", self.all.len(), MAX_PEERS)
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.all.get(node)
    }

    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.all.get_mut(node)
    }

    /// Takes a verified member with its statement. An older statement than the known one changes nothing: somebody may be
    /// showing around an introduction of yesterday. One that is valid at `time` replaces one that is not: the sender has
    /// corrected its clock.
    pub(super) fn learn(
        &mut self,
        member: Member,
        statement: KeyStatement,
        time: Option<UnixTime>,
        now: Instant,
    ) {
        if let Some(peer) = self.all.get_mut(&member.id) {
            peer.used_at = now;
            if member.expires >= peer.member.expires {
                peer.member = member;
            }
            let usable = |statement: &KeyStatement| time.is_none_or(|time| statement.is_valid_at(time));
            let newer = statement.not_before > peer.statement.not_before;
            let better = (usable(&statement), newer) > (usable(&peer.statement), false);
            if better {
                peer.statement = statement;
                peer.opened = None;
            }
            return;
        }
        self.make_room();
        let peer = Peer { member, statement, introduction: None, opened: None, used_at: now };
        self.all.insert(member.id, peer);
    }

    fn make_room(&mut self) {
        if self.all.len() < MAX_PEERS {
            return;
        }
        // A sixteenth at once, so that a flood of strangers does not search the whole table for each.
        let mut by_age: Vec<_> = self.all.iter().map(|(id, peer)| (peer.used_at, *id)).collect();
        by_age.sort_unstable();
        for (_, id) in by_age.into_iter().take(MAX_PEERS / 16) {
            self.all.remove(&id);
        }
    }

    /// Takes the introduction of a member that has just shown that it holds the stated key. That counts whatever its date
    /// says: a clock that was set back dates a new key earlier than the old one.
    pub(super) fn introduced(
        &mut self,
        member: Member,
        statement: KeyStatement,
        fingerprint: [u8; 32],
        now: Instant,
    ) {
        self.restate(member, statement, now);
        if let Some(peer) = self.all.get_mut(&member.id) {
            peer.introduction = Some(fingerprint);
        }
    }

    /// Takes a member's statement in place of the known one.
    pub(super) fn restate(&mut self, member: Member, statement: KeyStatement, now: Instant) {
        self.learn(member, statement, None, now);
        if let Some(peer) = self.all.get_mut(&member.id)
            && peer.statement != statement
        {
            peer.statement = statement;
            peer.opened = None;
        }
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        self.all.remove(node);
    }

    pub(super) fn drop_contexts(&mut self) {
        self.all.for_each_mut(|peer| peer.opened = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_wire::id::Domain;
    use peerage_wire::record::Roles;

    fn member(n: u32) -> (Member, KeyStatement) {
        let mut identity = [0; 32];
        identity[..4].copy_from_slice(&n.to_be_bytes());
        let id = NodeId::new(Domain(1), &identity);
        let expires = UnixTime::from_secs(1);
        let member = Member { id, identity, roles: Roles::default(), is_operator: false, expires };
        let statement = KeyStatement {
            node: id,
            key: identity,
            not_before: UnixTime::from_secs(u64::from(n)),
            not_after: UnixTime::from_secs(9),
            signature: [0; 64],
        };
        (member, statement)
    }

    #[test]
    fn the_peers_unused_for_longest_are_forgotten() {
        let mut peers = Peers::default();
        for n in 0..u32::try_from(MAX_PEERS).unwrap() + 5 {
            let (member, statement) = member(n);
            peers.learn(member, statement, None, Instant::from_micros(u64::from(n)));
            assert!(peers.all.len() <= MAX_PEERS);
        }
        assert!(peers.get(&member(0).0.id).is_none());
        assert!(peers.get(&member(20_000).0.id).is_some());
    }

    #[test]
    fn an_older_key_statement_does_not_replace_a_newer_one() {
        let mut peers = Peers::default();
        let (member, newer) = member(5);
        let older = KeyStatement { key: [9; 32], not_before: UnixTime::from_secs(4), ..newer };
        let time = Some(UnixTime::from_secs(8));
        peers.learn(member, newer, time, Instant::default());
        peers.learn(member, older, time, Instant::default());
        assert_eq!(peers.get(&member.id).unwrap().statement, newer);
    }

    /// A node whose clock was ahead states a key of the future first; once corrected, its earlier date is the right one.
    #[test]
    fn a_valid_key_statement_replaces_one_of_the_future() {
        let mut peers = Peers::default();
        let (member, ahead) = member(7);
        let corrected = KeyStatement { key: [9; 32], not_before: UnixTime::from_secs(3), ..ahead };
        let time = Some(UnixTime::from_secs(4));
        peers.learn(member, ahead, time, Instant::default());
        peers.learn(member, corrected, time, Instant::default());
        assert_eq!(peers.get(&member.id).unwrap().statement, corrected);
    }
}

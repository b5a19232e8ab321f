//! Handshakes that peers have begun by message, kept until their connections come (Rule 7.29).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{HandshakeId, NodeId};
use peerage_wire::prepared::name_of;
use peerage_wire::time::Instant;
use rustls::Connection;

use crate::tls::Tls;

/// How long a handshake is kept, and repeated to a request that is repeated. Longer keeps keys for connections that do not come; shorter fails
/// those whose first packets are lost.
const LIFETIME: Duration = Duration::from_secs(30);

/// The most handshakes that are kept; each has some kilobytes. Only members of the own domain have any, so this is the domain's share as well.
const MAX_PREPARED: usize = 256;

/// The most for one peer that wait for their connection: one member must not take all. A page opens as many connections at once.
const MAX_PREPARED_PER_PEER: usize = 8;

/// The handshakes of a tunnel-node that wait for their connections.
#[derive(Default)]
pub(super) struct Prepared {
    kept: BTreeMap<HandshakeId, Half>,
}

/// What this side has of a handshake.
struct Half {
    peer: NodeId,
    made_at: Instant,
    flight: Bytes,
    /// Taken by the connection that goes on with it.
    tls: Option<Connection>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("kept", &self.kept.len()).finish()
    }
}

impl Prepared {
    /// Answers what a peer has begun, with the same flight each time; `None` if it is no hello, or there is no room.
    pub(super) fn answer(
        &mut self,
        tls: &Tls,
        (peer, identity): (NodeId, [u8; 32]),
        hello: &[u8],
        now: Instant,
    ) -> Option<Bytes> {
        self.kept.retain(|_, half| now - half.made_at < LIFETIME);
        let name = name_of(hello);
        if let Some(half) = self.kept.get(&name) {
            return (half.peer == peer).then(|| half.flight.clone());
        }
        if self.kept.len() >= MAX_PREPARED {
            // Those that have gone on are kept for repetitions alone.
            self.kept.retain(|_, half| half.tls.is_some());
        }
        let of_peer = self.kept.values().filter(|half| half.peer == peer && half.tls.is_some()).count();
        if self.kept.len() >= MAX_PREPARED || of_peer >= MAX_PREPARED_PER_PEER {
            return None;
        }
        let (connection, flight) = tls.prepare(identity, hello).ok()?;
        let flight = Bytes::from(flight);
        let half = Half { peer, made_at: now, flight: flight.clone(), tls: Some(connection) };
        self.kept.insert(name, half);
        Some(flight)
    }

    /// Takes the handshake with which a connection goes on, once.
    pub(super) fn take(&mut self, name: HandshakeId, now: Instant) -> Option<Connection> {
        let half = self.kept.get_mut(&name).filter(|half| now - half.made_at < LIFETIME)?;
        half.tls.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_wire::id::Domain;
    use peerage_wire::keys::IdentityKey;

    const NOW: Instant = Instant::from_micros(1_000_000_000);

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    /// A tunnel-node that answers users.
    struct Site {
        tls: Tls,
        prepared: Prepared,
    }

    impl Site {
        fn new() -> Self {
            Self { tls: Tls::new(&key(0)).unwrap(), prepared: Prepared::default() }
        }

        fn answer(&mut self, user: &IdentityKey, hello: &[u8], now: Instant) -> Option<Bytes> {
            let asker = (user.node_id(Domain(7)), user.public());
            self.prepared.answer(&self.tls, asker, hello, now)
        }
    }

    fn hello(user: &IdentityKey) -> Vec<u8> {
        Tls::new(user).unwrap().begin(key(0).public()).unwrap().1
    }

    #[test]
    fn a_request_that_is_repeated_has_the_same_answer_for_half_a_minute() {
        let (mut site, user) = (Site::new(), key(1));
        let hello = hello(&user);
        let flight = site.answer(&user, &hello, NOW).unwrap();
        let later = |millis| NOW.after(Duration::from_millis(millis));
        assert_eq!(site.answer(&user, &hello, later(29_999)), Some(flight.clone()));
        assert!(site.prepared.take(name_of(&hello), later(29_999)).is_some());
        // It has gone on: the flight is still the same, but nothing goes on with it again.
        assert_eq!(site.answer(&user, &hello, later(29_999)), Some(flight.clone()));
        assert!(site.prepared.take(name_of(&hello), later(29_999)).is_none());
        let other = site.answer(&user, &hello, later(30_000)).unwrap();
        assert_ne!(other, flight);
        assert!(site.prepared.take(name_of(&hello), later(60_000)).is_none());
    }

    #[test]
    fn the_hello_of_another_node_is_not_answered_a_second_time() {
        let (mut site, user) = (Site::new(), key(1));
        let hello = hello(&user);
        assert!(site.answer(&user, &hello, NOW).is_some());
        assert_eq!(site.answer(&key(2), &hello, NOW), None);
    }

    #[test]
    fn no_node_has_more_than_its_share_and_all_together_no_more_than_there_is() {
        let mut site = Site::new();
        let greedy = key(1);
        for n in 0..=MAX_PREPARED_PER_PEER {
            let answered = site.answer(&greedy, &hello(&greedy), NOW).is_some();
            assert_eq!(answered, n < MAX_PREPARED_PER_PEER, "{n}");
        }
        for n in 0..MAX_PREPARED {
            let user = IdentityKey::from_seed(&peerage_wire::id::sha256(&[&n.to_be_bytes()]));
            site.answer(&user, &hello(&user), NOW);
        }
        assert_eq!(site.prepared.kept.len(), MAX_PREPARED);
        let (late, hello) = (key(2), hello(&key(2)));
        assert_eq!(site.answer(&late, &hello, NOW), None);
        assert!(site.answer(&late, &hello, NOW.after(LIFETIME)).is_some());
    }

    #[test]
    fn what_is_no_hello_is_not_answered_and_takes_no_room() {
        let mut site = Site::new();
        for wrong in [vec![], vec![22; 5], vec![0xff; 256], hello(&key(1))[..100].to_vec()] {
            assert_eq!(site.answer(&key(1), &wrong, NOW), None);
        }
        assert!(site.prepared.kept.is_empty());
    }
}

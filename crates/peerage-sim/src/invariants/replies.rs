//! A reply is never longer than its request, and no datagram longer than the protocol allows (Rules 3.9 and 4.6).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::packet::Packet;
use peerage_wire::time::Instant;

use super::{Fact, Invariant};
use crate::network::Party;
use crate::world::World;

/// For how long requests are remembered: no answer comes later.
const MEMORY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub struct Replies {
    /// The size of requests by their nonces and by their last bytes, by which replies and hints name them.
    asked: BTreeMap<Vec<u8>, usize>,
    order: VecDeque<(Instant, Vec<u8>)>,
}

impl Replies {
    fn remember(&mut self, name: &[u8], size: usize, at: Instant) {
        let longest = self.asked.entry(name.to_vec()).or_default();
        *longest = size.max(*longest);
        self.order.push_back((at, name.to_vec()));
        while self.order.front().is_some_and(|(then, _)| at - *then > MEMORY) {
            if let Some((_, name)) = self.order.pop_front() {
                self.asked.remove(&name);
            }
        }
    }
}

impl Invariant for Replies {
    fn name(&self) -> &'static str {
        "replies no longer than requests"
    }

    fn observe(&mut self, fact: &Fact<'_>, world: &World) -> Option<String> {
        let Fact::Sent { from, payload } = fact else { return None };
        if *from == Party::Stranger {
            return None;
        }
        let size = payload.len();
        if size > MAX_DATAGRAM {
            return Some(format!("{from:?} sends {size} bytes"));
        }
        let name = match Packet::parse(payload) {
            Ok(Packet::Short { header, .. }) => Some(header.nonce.0),
            Ok(Packet::Long { header, .. }) => Some(header.nonce.0),
            Ok(Packet::Reply { .. } | Packet::Hint { .. }) | Err(_) => None,
        };
        if let Some(nonce) = name {
            let tail = payload.get(size.saturating_sub(16)..).unwrap_or_default();
            self.remember(&nonce, size, world.now());
            self.remember(tail, size, world.now());
            return None;
        }
        let about = match payload.first() {
            Some(9) => payload.get(1..13)?,
            Some(0x0b) => payload.get(2..18)?,
            _ => return None,
        };
        match self.asked.get(about) {
            Some(asked) if size <= *asked => None,
            Some(asked) => Some(format!("{from:?} answers {asked} bytes with {size}")),
            // An altered request names what nobody has sent; then its size is not known.
            None => None,
        }
    }
}

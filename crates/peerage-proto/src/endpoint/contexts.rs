//! Contexts that others opened: a cache, so that a known sender costs one decryption a message (Rule 3.5).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use peerage_wire::id::{ContextId, NodeId, Nonce};
use peerage_wire::seal::ReceiveContext;
use peerage_wire::time::UnixTime;

use crate::indexed::Indexed;
use crate::sizes::TableSize;

/// Most contexts of one sender: its threads, and one it has just replaced.
pub(super) const MAX_PER_SENDER: usize = 4;

/// Most contexts in all; about 400 bytes each. The oldest is forgotten first, and asked for again by a hint.
pub(super) const MAX_CONTEXTS: usize = 20_000;

/// How many messages may overtake each other before an early one counts as replayed (compare RFC 4303, section 3.4.3).
const WINDOW: u32 = 128;

/// Which counters of a context were seen: the highest, and one bit for each of those just below.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    highest: u32,
    bits: u128,
}

impl Seen {
    /// Notes a counter. Returns false if it was seen before or is too old to tell.
    fn first_time(&mut self, counter: u32) -> bool {
        if self.bits == 0 || counter > self.highest {
            let shift = if self.bits == 0 { WINDOW } else { counter - self.highest };
            self.bits = self.bits.checked_shl(shift).unwrap_or(0) | 1;
            self.highest = counter;
            return true;
        }
        let back = self.highest - counter;
        if back >= WINDOW {
            return false;
        }
        let bit = 1_u128 << back;
        let new = self.bits & bit == 0;
        self.bits |= bit;
        new
    }
}

#[derive(Clone, Debug)]
struct Entry {
    context: Arc<ReceiveContext>,
    seen: Seen,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Contexts {
    all: Indexed<ContextId, Entry>,
    by_sender: BTreeMap<NodeId, VecDeque<ContextId>>,
    oldest: VecDeque<ContextId>,
}

impl Contexts {
    pub(super) fn sizes(&self) -> [TableSize; 3] {
        let of_one = self.by_sender.values().map(VecDeque::len).max().unwrap_or(0);
        [
            TableSize::new("contexts", self.all.len(), MAX_CONTEXTS),
            TableSize::new("contexts by age", self.oldest.len(), 2 * MAX_CONTEXTS),
            TableSize::new("contexts of one sender", of_one, MAX_PER_SENDER),
        ]
    }

    pub(super) fn get(&self, id: ContextId) -> Option<Arc<ReceiveContext>> {
        self.all.get(&id).map(|entry| Arc::clone(&entry.context))
    }

    /// Remembers a context from which a message was opened, and the message's nonce. Returns false if it arrived before (Rule 3.12).
    pub(super) fn first_time(&mut self, context: &Arc<ReceiveContext>, nonce: &Nonce) -> bool {
        if let Some(entry) = self.all.get_mut(&context.id()) {
            return entry.seen.first_time(nonce.counter());
        }
        let mut entry = Entry { context: Arc::clone(context), seen: Seen::default() };
        let is_first = entry.seen.first_time(nonce.counter());
        self.insert(entry);
        is_first
    }

    fn insert(&mut self, entry: Entry) {
        let (id, sender) = (entry.context.id(), entry.context.sender());
        let own = self.by_sender.entry(sender).or_default();
        own.push_back(id);
        let surplus = if own.len() > MAX_PER_SENDER { own.pop_front() } else { None };
        if let Some(surplus) = surplus {
            self.all.remove(&surplus);
        }
        self.all.insert(id, entry);
        self.oldest.push_back(id);
        while self.all.len() > MAX_CONTEXTS || self.oldest.len() > 2 * MAX_CONTEXTS {
            let Some(oldest) = self.oldest.pop_front() else { break };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, id: ContextId) {
        let Some(entry) = self.all.remove(&id) else { return };
        let sender = entry.context.sender();
        if let Some(own) = self.by_sender.get_mut(&sender) {
            own.retain(|other| *other != id);
            if own.is_empty() {
                self.by_sender.remove(&sender);
            }
        }
    }

    pub(super) fn forget_expired(&mut self, time: UnixTime) {
        let spent = self.all.iter().filter(|(_, entry)| !entry.context.covers(time));
        let spent: Vec<_> = spent.map(|(id, _)| *id).collect();
        for id in spent {
            self.remove(id);
        }
        self.oldest.retain(|id| self.all.get(id).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 3.12: each counter passes once, in any order within the window.
    #[test]
    fn a_counter_passes_once() {
        let mut seen = Seen::default();
        for counter in [5, 3, 4, 9, 8, 200] {
            assert!(seen.first_time(counter), "{counter}");
            assert!(!seen.first_time(counter), "{counter}");
        }
        assert!(seen.first_time(100));
        assert!(!seen.first_time(72), "further back than the window");
        assert!(!seen.first_time(9));
        assert!(seen.first_time(0x00ff_ffff));
        assert!(!seen.first_time(200));
    }

    #[test]
    fn the_first_counter_may_be_zero() {
        let mut seen = Seen::default();
        assert!(seen.first_time(0));
        assert!(!seen.first_time(0));
        assert!(seen.first_time(1));
    }
}

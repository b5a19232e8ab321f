//! Commands that the ledger executes: each once, answered when it is safe (Rule 3.12).

use std::collections::BTreeMap;

use peerage_wire::id::CommandId;
use peerage_wire::limits::REPLAY_MEMORY;
use peerage_wire::message::Reply;
use peerage_wire::time::Instant;

use crate::endpoint::ReplyTo;
use crate::sizes::TableSize;

/// Most commands that are remembered; beyond that new ones wait for the asker's repetition.
const MAX_NOTES: usize = 10_000;

/// What kind of command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    DeviceSeen,
    Leave,
    Refusals,
}

impl Note {
    pub(super) const fn reply(self, id: CommandId) -> Reply {
        match self {
            Self::DeviceSeen => Reply::DeviceNoted(id),
            Self::Leave => Reply::Left(id),
            Self::Refusals => Reply::RefusalsNoted(id),
        }
    }
}

#[derive(Clone, Debug)]
enum State {
    /// The ledger works on it; the newest repetition is answered.
    Begun(Box<ReplyTo>),
    Done,
}

#[derive(Clone, Debug)]
struct Entry {
    note: Note,
    state: State,
    since: Instant,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    all: BTreeMap<CommandId, Entry>,
}

impl Notes {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("notes", self.all.len(), MAX_NOTES)
    }

    pub(super) fn is_done(&self, note: Note, id: &CommandId) -> bool {
        self.all.get(id).is_some_and(|entry| entry.note == note && matches!(entry.state, State::Done))
    }

    /// Remembers a command. Returns whether the ledger has not heard of it yet.
    pub(super) fn begin(&mut self, note: Note, id: CommandId, reply_to: ReplyTo, now: Instant) -> bool {
        if let Some(entry) = self.all.get_mut(&id) {
            if matches!(entry.state, State::Begun(_)) {
                entry.state = State::Begun(Box::new(reply_to));
            }
            return false;
        }
        if self.all.len() >= MAX_NOTES {
            return false;
        }
        let state = State::Begun(Box::new(reply_to));
        self.all.insert(id, Entry { note, state, since: now });
        true
    }

    /// Remembers a command that needs no ledger and was executed at once. Returns false if there is no room, or it is another's.
    pub(super) fn done(&mut self, note: Note, id: CommandId, now: Instant) -> bool {
        if self.all.contains_key(&id) || self.all.len() >= MAX_NOTES {
            return false;
        }
        self.all.insert(id, Entry { note, state: State::Done, since: now });
        true
    }

    /// The ledger has committed or refused. Returns whom to answer; a refused command is forgotten, so that its
    /// repetition is tried again.
    pub(super) fn end(&mut self, id: &CommandId, ok: bool, now: Instant) -> Option<(Note, ReplyTo)> {
        if !ok {
            self.all.remove(id);
            return None;
        }
        let entry = self.all.get_mut(id)?;
        entry.since = now;
        match std::mem::replace(&mut entry.state, State::Done) {
            State::Begun(reply_to) => Some((entry.note, *reply_to)),
            State::Done => None,
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.all.retain(|_, entry| now - entry.since <= REPLAY_MEMORY);
    }
}

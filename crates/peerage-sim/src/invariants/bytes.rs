//! Every byte of a tunnel arrives once and in order, and the end after all of them.

use std::collections::BTreeMap;

use peerage_wire::id::SessionId;

use super::{Fact, Invariant};
use crate::app::{Deed, End, pattern};
use crate::model::Model;
use crate::world::World;

/// See the module.
#[derive(Debug, Default)]
pub struct Bytes {
    /// How far each reader has come, and whether it has seen the end.
    readers: BTreeMap<(SessionId, End), (u64, bool)>,
}

impl Bytes {
    /// Compares what an application saw with what the one at the other end did; says what is wrong.
    pub fn check(&mut self, (session, end): (SessionId, End), deed: &Deed, model: &Model) -> Option<String> {
        let (read, has_ended) = self.readers.entry((session, end)).or_default();
        let written = model.tunnel(&session)?.written_by(end.other());
        match deed {
            Deed::Read(bytes) => {
                let expected = pattern(session, end.other(), *read, bytes.len() as u64);
                if *has_ended {
                    return Some(format!("{session:?}: {end:?} reads after the end"));
                }
                if *bytes != expected {
                    return Some(format!(
                        "{session:?}: {end:?} reads other bytes than were written at {read}"
                    ));
                }
                *read = read.saturating_add(bytes.len() as u64);
                let beyond = *read > written.written;
                beyond.then(|| format!("{session:?}: {end:?} reads {read} bytes of {}", written.written))
            }
            Deed::SawEnd => {
                *has_ended = true;
                let early = !written.is_finished || *read != written.written;
                early.then(|| format!("{session:?}: {end:?} sees the end at {read} of {}", written.written))
            }
            Deed::Wrote(_) | Deed::Finished | Deed::SawReset(_) | Deed::Broke => None,
        }
    }
}

impl Invariant for Bytes {
    fn name(&self) -> &'static str {
        "bytes once and in order"
    }

    fn observe(&mut self, fact: &Fact<'_>, world: &World) -> Option<String> {
        let Fact::Deed { session, end, deed, .. } = fact else { return None };
        self.check((*session, *end), deed, &world.model)
    }
}

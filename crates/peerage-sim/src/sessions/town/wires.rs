//! Connections: made, delayed, stalled and cut at any byte.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::Side;
use peerage_proto::link::bundle::{Dial, PathKind};
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::super::life::Bug;
use super::{Due, LIAR, Town, claimed, node};
use crate::shell::CarrierId;

/// How long bytes wait on a connection that carries nothing before they are tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) last_at: Instant,
    pub(super) stalled_until: Instant,
    pub(super) is_dead: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    /// Who dialled, and who answered.
    pub(super) ends: [usize; 2],
    /// Towards the first, towards the second.
    pub(super) pipes: [Pipe; 2],
    delay: Duration,
    is_cut: bool,
    has_noticed: [bool; 2],
}

impl Town {
    pub(super) fn draw_delay(&mut self) -> Duration {
        let (least, most) = self.life.delay;
        least + self.chance.duration(most.saturating_sub(least))
    }

    /// Somebody wants a connection. Where the direct path does not work, only those that wait for a link are given a relay.
    pub(super) fn dial(&mut self, from: usize, peer: NodeId, dial: Option<Dial>) {
        let to = (0..self.shells.len()).find(|other| node(*other) == peer);
        let is_again = dial.is_some();
        let Some(to) = to.filter(|_| !(is_again && self.life.planted == Some(Bug::NeverRedials))) else {
            return;
        };
        let fails = !self.is_calm && self.chance.happens(100);
        let timeout = dial.filter(|_| fails).map(|dial| dial.timeout);
        let span = timeout.unwrap_or_else(|| self.draw_delay() * 4);
        self.schedule_in(span, Due::Dialled { from, to, dial, fails });
    }

    pub(super) fn dialled(&mut self, (from, to): (usize, usize), dial: Option<Dial>, fails: bool) {
        // In the end the liar is off, and nobody answers.
        let is_off = self.is_calm && [from, to].contains(&LIAR);
        let is_vain = !self.is_direct && dial.is_some_and(|dial| !dial.is_awaited);
        if fails || is_off || is_vain {
            let now = self.now;
            if let Some(shell) = self.shells.get_mut(from) {
                shell.dial_failed(node(to), dial, now);
            }
            return self.drain(from);
        }
        let path = if self.is_direct { PathKind::Direct } else { PathKind::Relayed };
        // A relay may have been asked at the same time, and be there first.
        let is_raced = dial.is_none() && self.is_direct && self.chance.happens(300);
        if is_raced {
            self.connect((from, to), None, PathKind::Relayed);
        }
        self.connect((from, to), dial, path);
    }

    fn connect(&mut self, (from, to): (usize, usize), dial: Option<Dial>, path: PathKind) {
        let now = self.now;
        let longer = if path == PathKind::Relayed { 2 } else { 1 };
        let delay = self.draw_delay() * longer;
        self.order += 1;
        let id = CarrierId(self.order);
        let pipe = || Pipe { last_at: now, ..Pipe::default() };
        let pipes = [pipe(), pipe()];
        let wire = Wire { ends: [from, to], pipes, delay, is_cut: false, has_noticed: [false; 2] };
        self.wires.insert(id, wire);
        let planted = self.life.planted;
        for (index, peer, side, dial) in [(from, to, Side::Client, dial), (to, from, Side::Server, None)] {
            if let Some(shell) = self.shells.get_mut(index) {
                shell.connected(id, node(claimed(peer, planted)), (side, dial, path), now);
            }
        }
        self.drain(to);
        self.drain(from);
    }

    pub(super) fn write(&mut self, id: CarrierId, index: usize, bytes: &Bytes) {
        let mut rest = if index == LIAR { self.tamper.alter(bytes) } else { bytes.clone() };
        // What a liar makes up does not count as sent by its honest machine, what it withholds does.
        if index == LIAR
            && let Some(shell) = self.shells.get_mut(index)
        {
            shell.delivered(id, bytes.len().saturating_sub(rest.len()));
        }
        let Some(wire) = self.wires.get(&id).filter(|wire| !wire.is_cut) else { return };
        let (delay, towards) = (wire.delay, usize::from(wire.ends[0] == index));
        while !rest.is_empty() {
            let longest = if self.chance.happens(100) { 40 } else { 20_000 };
            let length = usize::try_from(self.chance.between(1, longest)).unwrap_or(1).min(rest.len());
            let chunk = rest.split_to(length);
            let late = self.chance.duration(delay / 4);
            let now = self.now;
            let Some(pipe) = self.wires.get_mut(&id).and_then(|wire| wire.pipes.get_mut(towards)) else {
                return;
            };
            pipe.chunks.push_back(chunk);
            pipe.last_at = pipe.last_at.max(now.after(delay + late));
            let at = pipe.last_at;
            self.schedule(at, Due::Chunk { carrier: id, towards });
        }
    }

    pub(super) fn chunk(&mut self, id: CarrierId, towards: usize) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let [Some(near), Some(far)] = [1 - towards, towards].map(|end| wire.ends.get(end).copied()) else {
            return;
        };
        let Some(pipe) = wire.pipes.get_mut(towards) else { return };
        if pipe.is_dead {
            pipe.chunks.clear();
            return;
        }
        if pipe.stalled_until > now {
            let at = pipe.stalled_until.max(now.after(TRY_AGAIN));
            return self.schedule(at, Due::Chunk { carrier: id, towards });
        }
        let Some(bytes) = pipe.chunks.pop_front() else { return };
        self.trace.note(now, 2, far as u64, &bytes);
        if let Some(shell) = self.shells.get_mut(near) {
            shell.delivered(id, bytes.len());
        }
        if let Some(shell) = self.shells.get_mut(far) {
            shell.received(id, &bytes, now);
        }
        self.drain(far);
        if let Some(shell) = self.shells.get_mut(near) {
            shell.pump(now);
        }
        self.drain(near);
    }

    /// An end closes: the other notices after what was sent.
    pub(super) fn close(&mut self, id: CarrierId, index: usize) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let near = usize::from(wire.ends[0] != index);
        if let Some(noticed) = wire.has_noticed.get_mut(near) {
            *noticed = true;
        }
        let at = wire.pipes.get(1 - near).map_or(self.now, |pipe| pipe.last_at);
        self.schedule(at.after(Duration::from_micros(1)), Due::Lost { carrier: id, end: 1 - near });
    }

    pub(super) fn lost(&mut self, id: CarrierId, end: usize) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Some(index) = wire.ends.get(end).copied() else { return };
        let was_noticed =
            wire.has_noticed.get_mut(end).is_some_and(|noticed| std::mem::replace(noticed, true));
        if wire.has_noticed == [true; 2] {
            self.wires.remove(&id);
        }
        if !was_noticed && let Some(shell) = self.shells.get_mut(index) {
            shell.lost(id, now);
            self.report.cuts += 1;
        }
        self.drain(index);
    }

    /// Returns a connection, counted from the newest.
    fn nth(&self, carrier: usize) -> Option<CarrierId> {
        self.wires.iter().rev().filter(|(_, wire)| !wire.is_cut).map(|(id, _)| *id).nth(carrier)
    }

    pub(super) fn disturb(&mut self, carrier: usize, towards: usize, how: impl Fn(&mut Pipe)) {
        let Some(wire) = self.nth(carrier).and_then(|id| self.wires.get_mut(&id)) else { return };
        self.report.cuts += 1;
        for (_, pipe) in wire.pipes.iter_mut().enumerate().filter(|(end, _)| towards == 2 || *end == towards)
        {
            how(pipe);
        }
    }

    /// Cuts a connection: of what is under way, some arrives, up to any byte.
    pub(super) fn cut(&mut self, carrier: usize, noticed_within: Duration) {
        let Some(id) = self.nth(carrier) else { return };
        let Some(wire) = self.wires.get_mut(&id) else { return };
        wire.is_cut = true;
        for pipe in &mut wire.pipes {
            let left = self.chance.index(pipe.chunks.len().saturating_add(1));
            pipe.chunks.truncate(left);
            if let Some(last) = pipe.chunks.back_mut() {
                let bytes = self.chance.index(last.len()).saturating_add(1);
                last.truncate(bytes);
            }
        }
        for end in 0..2 {
            let delay = self.chance.duration(noticed_within);
            self.schedule_in(delay, Due::Lost { carrier: id, end });
        }
    }
}

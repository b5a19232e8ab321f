//! The computers of a life, the connections between them, and what is looked at while it goes on.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::Side;
use peerage_proto::node::TunnelId;
use peerage_proto::session::{self, CARRIERLESS_LIFETIME, Session, WINDOW_MIN};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Domain, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use super::life::{Bug, Liar, Life, Step};
use super::start;
use super::tamper::Tamper;
use crate::app::{App, Deed, End, Script};
use crate::chance::Chance;
use crate::host::ErrandId;
use crate::invariants::{self, Violation};
use crate::model::{Direction, Model, Tunnel};
use crate::shell::{CarrierId, Shell, Want};
use crate::trace::Trace;

/// The honest computers and the liar, by their place in the list.
const USER: usize = 0;
const SERVER: usize = 1;
const LIAR: usize = 2;

/// Within which time after the last fault every session must be over.
const OVER_WITHIN: Duration = Duration::from_secs(300);

/// How long bytes wait on a connection that carries nothing before they are tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Most things that happen in one life; more is a machine that does not come to rest.
const MAX_EVENTS: u64 = 2_000_000;

/// What became of a life.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// Sessions that were begun.
    pub sessions: u64,
    /// Sessions between honest computers that are complete.
    pub complete: u64,
    /// Bytes that applications read.
    pub bytes: u64,
    /// Connections that were disturbed.
    pub cuts: u64,
    /// Times that a session got another connection.
    pub moves: u64,
    /// Lies.
    pub lies: u64,
    /// The fingerprint.
    pub trace: u64,
}

#[derive(Debug)]
enum Due {
    Chunk { carrier: CarrierId, towards: usize },
    Lost { carrier: CarrierId, end: usize },
    Dialled { from: usize, to: usize, moves: bool },
    Granted { shell: usize, tunnel: TunnelId, session: SessionId },
    Wake(usize),
    Step(Step),
    Calm,
}

#[derive(Debug, Default)]
struct Pipe {
    chunks: VecDeque<Bytes>,
    last_at: Instant,
    stalled_until: Instant,
    is_dead: bool,
}

#[derive(Debug)]
struct Wire {
    /// Who dialled, and who answered.
    ends: [usize; 2],
    /// Towards the first, towards the second.
    pipes: [Pipe; 2],
    delay: Duration,
    is_cut: bool,
    has_noticed: [bool; 2],
}

#[derive(Debug)]
struct Town {
    life: Life,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Due>,
    order: u64,
    chance: Chance,
    shells: Vec<Shell>,
    wakes: Vec<Option<Instant>>,
    wires: BTreeMap<CarrierId, Wire>,
    model: Model,
    bytes_check: invariants::Bytes,
    /// Sessions with the liar: what it says in them is its own affair.
    with_liar: std::collections::BTreeSet<SessionId>,
    tamper: Tamper,
    is_calm: bool,
    /// Of the planted bug: a session that is kept.
    kept: Option<Session>,
    report: Report,
    trace: Trace,
}

fn node(index: usize) -> NodeId {
    let byte = u8::try_from(index).unwrap_or(0).saturating_add(1);
    NodeId { domain: Domain(7), hash: [byte; 32] }
}

/// Runs a life to its end.
pub fn run(life: &Life) -> Report {
    let mut town = Town::new(life.clone());
    town.live();
    let Town { mut report, trace, model, tamper, with_liar, .. } = town;
    let honest = |(id, _): &(&SessionId, &Tunnel)| !with_liar.contains(*id);
    report.complete =
        model.tunnels().filter(honest).filter(|(_, tunnel)| tunnel.is_complete()).count() as u64;
    report.lies = tamper.lies;
    report.trace = trace.hash();
    report
}

impl Town {
    fn new(life: Life) -> Self {
        let shell = |index: usize| {
            let mut shell = Shell::with_memory(node(index), 0, (life.max_window, life.budget));
            shell.trusts_anybody = life.planted == Some(Bug::TrustsAnybody);
            shell
        };
        let count = if life.liar.is_some() { 3 } else { 2 };
        let (seed, now) = (life.seed, start());
        let mut town = Self {
            now,
            queue: BTreeMap::new(),
            order: 0,
            chance: Chance::new(seed, "town"),
            shells: (0..count).map(shell).collect(),
            wakes: vec![None; count],
            wires: BTreeMap::new(),
            model: Model::default(),
            bytes_check: invariants::Bytes::default(),
            with_liar: std::collections::BTreeSet::new(),
            tamper: Tamper::new(seed),
            is_calm: false,
            kept: None,
            report: Report::default(),
            trace: Trace::default(),
            life,
        };
        for (at, step) in town.life.steps.clone() {
            town.schedule(now.after(at), Due::Step(step));
        }
        town.schedule(now.after(town.life.calm_at), Due::Calm);
        if town.life.planted == Some(Bug::KeepsSession)
            && let Some(shell) = town.shells.first()
        {
            town.kept = Session::open(SessionId([1; 16]), Bytes::from_static(b"x"), shell.memory(), now).ok();
        }
        town
    }

    fn schedule(&mut self, at: Instant, due: Due) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), due);
    }

    fn schedule_in(&mut self, after: Duration, due: Due) {
        self.schedule(self.now.after(after), due);
    }

    fn fail(&mut self, invariant: &'static str, what: String) {
        let at = self.now;
        self.report.violation.get_or_insert(Violation { invariant, what, at });
    }

    fn live(&mut self) {
        // A session that the liar does not end is over when it has had no carrier for so long.
        let end = self.now.after(self.life.calm_at + OVER_WITHIN + CARRIERLESS_LIFETIME * 2);
        let honest_end = self.now.after(self.life.calm_at + OVER_WITHIN);
        let mut was_asked = false;
        while self.report.violation.is_none() {
            if !was_asked && self.now >= honest_end {
                was_asked = true;
                self.check_complete();
            }
            let is_over = self.is_calm && self.shells.iter().all(|shell| shell.tunnels().next().is_none());
            let Some(entry) = self.queue.first_entry().filter(|_| !is_over) else { break };
            if entry.key().0 > end {
                break;
            }
            let ((at, _), due) = entry.remove_entry();
            self.now = at;
            self.happen(due);
            self.check_tables();
            if self.trace.events() > MAX_EVENTS {
                self.fail("timers advance", "the life does not come to rest".to_owned());
            }
        }
        if self.report.violation.is_none() {
            self.check_complete();
            self.check_memory();
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Chunk { carrier, towards } => self.chunk(carrier, towards),
            Due::Lost { carrier, end } => self.lost(carrier, end),
            Due::Dialled { from, to, moves } => self.connect(from, to, moves),
            Due::Granted { shell, tunnel, session } => self.grant(shell, tunnel, session),
            Due::Wake(shell) => self.wake(shell),
            Due::Step(step) => self.step(step),
            Due::Calm => self.calm(),
        }
    }

    // ---- what is looked at ------------------------------------------------------------------

    fn check_tables(&mut self) {
        let spare = if self.life.planted == Some(Bug::PromisesMore) { 0 } else { 3 * WINDOW_MIN };
        for index in 0..self.shells.len() {
            let Some(shell) = self.shells.get(index) else { continue };
            let sessions = shell.tunnels().count() as u64;
            let (used, budget) = shell.budget();
            // A receive window and a send buffer of two windows are each session's own.
            if used > budget.saturating_add(sessions.saturating_add(1).saturating_mul(spare)) {
                self.fail("memory within its limit", format!("computer {index} promises {used} bytes"));
            } else if let Some(session) = shell.stolen() {
                self.fail("a session is its peer's alone", format!("computer {index}: {session:?}"));
            }
        }
    }

    fn check_complete(&mut self) {
        let honest = |(id, _): &(&SessionId, &Tunnel)| !self.with_liar.contains(*id);
        let broken = self.model.tunnels().filter(honest).find(|(_, tunnel)| {
            let ends = End::BOTH.map(|end| tunnel.end(end));
            let is_complete = tunnel.is_complete() && ends == [Some(session::End::Complete); 2];
            // The first connection may break before the other end has heard of the tunnel.
            let was_refused = !tunnel.was_opened && ends[0].is_some_and(|end| end.code().is_some());
            !is_complete && !was_refused && !tunnel.is_excused
        });
        if let Some((session, tunnel)) = broken {
            let what = format!("{session:?} ended as {:?} without a reason: {tunnel:?}", tunnel.ends);
            self.fail("sessions come to their end", what);
        }
    }

    fn check_memory(&mut self) {
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

    // ---- computers --------------------------------------------------------------------------

    fn wake(&mut self, index: usize) {
        let now = self.now;
        if self.wakes.get(index).copied().flatten().is_none_or(|at| at > now) {
            return;
        }
        if let Some(wake) = self.wakes.get_mut(index) {
            *wake = None;
        }
        let ignores = self.life.planted == Some(Bug::IgnoresTimeouts);
        let Some(shell) = self.shells.get_mut(index) else { return };
        if !ignores {
            shell.handle_timeout(now);
        }
        let due = if ignores { shell.poll_timeout().filter(|due| *due <= now) } else { shell.overdue() };
        if let Some(due) = due {
            return self.fail("timers advance", format!("computer {index} at {now:?} wants {due:?}"));
        }
        self.trace.note(now, 1, index as u64, &[]);
        self.drain(index);
    }

    fn drain(&mut self, index: usize) {
        while let Some(want) = self.shells.get_mut(index).and_then(Shell::poll_want) {
            self.want(index, want);
        }
        let Some(due) = self.shells.get(index).and_then(Shell::poll_timeout) else { return };
        let Some(wake) = self.wakes.get_mut(index) else { return };
        if wake.is_none_or(|at| due < at) {
            *wake = Some(due);
            self.schedule(due, Due::Wake(index));
        }
    }

    fn want(&mut self, index: usize, want: Want) {
        match want {
            Want::Send(carrier, bytes) => self.write(carrier, index, &bytes),
            Want::Close(carrier) => self.close(carrier, index),
            Want::Dial(peer, _) => {
                let to = (0..self.shells.len()).find(|other| node(*other) == peer);
                let span = self.draw_delay() * 4;
                if let Some(to) = to.filter(|_| self.life.planted != Some(Bug::NeverRedials)) {
                    self.schedule_in(span, Due::Dialled { from: index, to, moves: false });
                }
            }
            Want::Deed(session, end, deed) => self.deed(session, end, &deed),
            Want::Asked(tunnel, _, open) => {
                self.model.asked(open.session, index);
                let span = self.chance.duration(Duration::from_millis(100));
                self.schedule_in(span, Due::Granted { shell: index, tunnel, session: open.session });
            }
            Want::Opened(session) => self.model.opened(session),
            Want::Ended(session, end, how) => self.model.end(session, end, how),
            Want::Tell(_) => {}
        }
    }

    fn deed(&mut self, session: SessionId, end: End, deed: &Deed) {
        if let Deed::Read(bytes) = deed {
            self.report.bytes += bytes.len() as u64;
        }
        let doubles = self.life.planted == Some(Bug::DoublesBytes) && matches!(deed, Deed::Read(_));
        for _ in 0..if doubles { 2 } else { 1 } {
            self.model.act(session, end, deed);
            if self.with_liar.contains(&session) {
                continue;
            }
            if let Some(what) = self.bytes_check.check((session, end), deed, &self.model) {
                self.fail("bytes once and in order", what);
            }
        }
    }

    fn grant(&mut self, index: usize, tunnel: TunnelId, session: SessionId) {
        let now = self.now;
        let script = self.model.tunnel(&session).map(|tunnel| tunnel.script);
        let refuses = self.chance.happens(30);
        let Some(shell) = self.shells.get_mut(index) else { return };
        match script.filter(|_| !refuses) {
            Some(script) => shell.confirm(tunnel, App::new(session, End::Device, script, now), now),
            None => shell.close_tunnel(tunnel, Code::NotAllowed, now),
        }
        self.drain(index);
    }

    fn open(&mut self, (from, to): (usize, usize), script: Script) {
        let now = self.now;
        let session = SessionId(self.chance.bytes());
        let device = DeviceId(self.chance.bytes());
        self.report.sessions += 1;
        let lies = from == LIAR || to == LIAR;
        if lies {
            self.with_liar.insert(session);
        } else {
            self.tamper.others.push(session);
        }
        let tunnel = Tunnel {
            errand: ErrandId(self.report.sessions),
            user: from,
            server: None,
            device,
            script,
            directions: [Direction::default(); 2],
            was_opened: false,
            ends: [None; 2],
            is_excused: lies,
            apart_since: None,
        };
        self.model.begin(session, tunnel);
        let open = Open { session, device, service: "raw".to_owned() };
        let anywhere = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1))];
        if let Some(shell) = self.shells.get_mut(from) {
            shell.open((node(to), anywhere), &open, App::new(session, End::User, script, now), now);
        }
        self.drain(from);
    }

    // ---- connections ------------------------------------------------------------------------

    fn draw_delay(&mut self) -> Duration {
        let (least, most) = self.life.delay;
        least + self.chance.duration(most.saturating_sub(least))
    }

    fn connect(&mut self, from: usize, to: usize, moves: bool) {
        // In the end the liar is off, and nobody answers.
        if self.is_calm && [from, to].contains(&LIAR) {
            let now = self.now;
            if let Some(shell) = self.shells.get_mut(from) {
                shell.dial_failed(node(to), now);
            }
            return self.drain(from);
        }
        let (now, delay) = (self.now, self.draw_delay());
        self.order += 1;
        let id = CarrierId(self.order);
        let pipe = || Pipe { last_at: now, ..Pipe::default() };
        let pipes = [pipe(), pipe()];
        let wire = Wire { ends: [from, to], pipes, delay, is_cut: false, has_noticed: [false; 2] };
        self.wires.insert(id, wire);
        for (index, peer, side) in [(from, to, Side::Client), (to, from, Side::Server)] {
            if let Some(shell) = self.shells.get_mut(index) {
                shell.connected(id, node(peer), side, now);
            }
        }
        if moves && let Some(shell) = self.shells.get_mut(from) {
            self.report.moves += shell.move_to(id, now);
        }
        self.drain(to);
        self.drain(from);
    }

    fn write(&mut self, id: CarrierId, index: usize, bytes: &Bytes) {
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

    fn chunk(&mut self, id: CarrierId, towards: usize) {
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
    fn close(&mut self, id: CarrierId, index: usize) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let near = usize::from(wire.ends[0] != index);
        if let Some(noticed) = wire.has_noticed.get_mut(near) {
            *noticed = true;
        }
        let at = wire.pipes.get(1 - near).map_or(self.now, |pipe| pipe.last_at);
        self.schedule(at.after(Duration::from_micros(1)), Due::Lost { carrier: id, end: 1 - near });
    }

    fn lost(&mut self, id: CarrierId, end: usize) {
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

    // ---- steps ------------------------------------------------------------------------------

    fn step(&mut self, step: Step) {
        self.trace.note(self.now, 3, 0, format!("{step:?}").as_bytes());
        match step {
            Step::Open(script) => self.open((USER, SERVER), script),
            Step::OpenWithLiar(script) => match self.life.liar {
                Some(Liar::User) => self.open((LIAR, SERVER), script),
                Some(Liar::TunnelNode) => self.open((USER, LIAR), script),
                None => {}
            },
            Step::Cut(carrier) => self.cut(carrier, Duration::from_secs(3)),
            Step::Reset(carrier) => self.cut(carrier, Duration::ZERO),
            Step::Stall { carrier, towards, span } => {
                let until = self.now.after(span);
                self.disturb(carrier, towards, |pipe| pipe.stalled_until = pipe.stalled_until.max(until));
            }
            Step::HalfClose { carrier, towards } => {
                self.disturb(carrier, towards, |pipe| pipe.is_dead = true)
            }
            Step::Move => {
                let span = self.draw_delay() * 4;
                self.schedule_in(span, Due::Dialled { from: USER, to: SERVER, moves: true });
            }
            Step::Doubt => {
                let now = self.now;
                for shell in &mut self.shells {
                    shell.doubt(now);
                }
                (0..self.shells.len()).for_each(|index| self.drain(index));
            }
        }
    }

    /// Returns a connection, counted from the newest.
    fn nth(&self, carrier: usize) -> Option<CarrierId> {
        self.wires.iter().rev().filter(|(_, wire)| !wire.is_cut).map(|(id, _)| *id).nth(carrier)
    }

    fn disturb(&mut self, carrier: usize, towards: usize, how: impl Fn(&mut Pipe)) {
        let Some(wire) = self.nth(carrier).and_then(|id| self.wires.get_mut(&id)) else { return };
        self.report.cuts += 1;
        for (_, pipe) in wire.pipes.iter_mut().enumerate().filter(|(end, _)| towards == 2 || *end == towards)
        {
            how(pipe);
        }
    }

    /// Cuts a connection: of what is under way, some arrives, up to any byte.
    fn cut(&mut self, carrier: usize, noticed_within: Duration) {
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

    /// Ends all faults; the liar is switched off, its connections are reset.
    fn calm(&mut self) {
        self.is_calm = true;
        for wire in self.wires.values_mut() {
            for pipe in &mut wire.pipes {
                pipe.stalled_until = Instant::default();
            }
        }
        let of_liar = self.wires.iter().filter(|(_, wire)| wire.ends.contains(&LIAR));
        for id in of_liar.map(|(id, _)| *id).collect::<Vec<_>>() {
            for end in 0..2 {
                self.schedule_in(Duration::ZERO, Due::Lost { carrier: id, end });
            }
        }
    }
}

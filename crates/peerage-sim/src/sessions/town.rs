//! The computers of a life, the connections between them, and what is looked at while it goes on.

mod checks;
mod wires;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::bundle::Dial;
use peerage_proto::node::TunnelId;
use peerage_proto::session::{self, CARRIERLESS_LIFETIME, Session};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Domain, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use self::wires::Wire;
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
    Dialled { from: usize, to: usize, dial: Option<Dial>, fails: bool },
    Granted { shell: usize, tunnel: TunnelId, session: SessionId },
    Wake(usize),
    Step(Step),
    Calm,
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
    /// Between whom each session is. What the liar says in its own is its own affair.
    parties: BTreeMap<SessionId, [usize; 2]>,
    /// Whether the user reaches others without a relay.
    is_direct: bool,
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

/// A planted bug: a liar that says that it is the user is believed without a proof. Returns whom a computer says it is.
fn claimed(index: usize, planted: Option<Bug>) -> usize {
    if index == LIAR && planted == Some(Bug::TrustsAnybody) { USER } else { index }
}

/// Runs a life to its end.
pub fn run(life: &Life) -> Report {
    let mut town = Town::new(life.clone());
    town.live();
    let honest = town.honest().filter(|(_, tunnel)| tunnel.is_complete());
    let (complete, moves) = (honest.count() as u64, town.shells.iter().map(Shell::moves).sum());
    let Town { mut report, trace, tamper, .. } = town;
    (report.complete, report.moves, report.lies) = (complete, moves, tamper.lies);
    report.trace = trace.hash();
    report
}

impl Town {
    fn new(life: Life) -> Self {
        let shell = |index: usize| {
            let id = node(claimed(index, life.planted));
            Shell::with_memory(id, 0, (life.max_window, life.budget))
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
            parties: BTreeMap::new(),
            is_direct: true,
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
            let is_over = self.is_calm && self.shells.iter().all(Shell::is_idle);
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
            Due::Dialled { from, to, dial, fails } => self.dialled((from, to), dial, fails),
            Due::Granted { shell, tunnel, session } => self.grant(shell, tunnel, session),
            Due::Wake(shell) => self.wake(shell),
            Due::Step(step) => self.step(step),
            Due::Calm => self.calm(),
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
            Want::Dial(peer, _, dial) => self.dial(index, peer, dial),
            Want::Deed(session, end, deed) => self.deed(session, end, &deed),
            Want::Asked(tunnel, _, open) => {
                self.model.asked(open.session, index);
                let span = self.chance.duration(Duration::from_millis(100));
                self.schedule_in(span, Due::Granted { shell: index, tunnel, session: open.session });
            }
            Want::Opened(session) => self.model.opened(session),
            Want::Ended(session, end, how) => {
                let is_mistaken = self.life.planted == Some(Bug::MistakesReasons)
                    && matches!(how, session::End::ResetByPeer(_));
                let how = if is_mistaken { session::End::ResetByPeer(Code::Expired) } else { how };
                self.model.end(session, end, how);
            }
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
            if self.is_with_liar(&session) {
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
        self.parties.insert(session, [from, to]);
        let lies = self.is_with_liar(&session);
        if !lies {
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
            Step::Path { is_direct } => self.is_direct = is_direct,
            Step::Move => {
                let now = self.now;
                if let Some(shell) = self.shells.get_mut(USER) {
                    shell.replace(node(SERVER), now);
                }
                self.drain(USER);
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

    /// Ends all faults; the liar is switched off, its connections are reset.
    fn calm(&mut self) {
        (self.is_calm, self.is_direct) = (true, true);
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

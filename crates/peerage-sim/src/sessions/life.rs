//! What happens in one life: drawn from a seed.

use std::time::Duration;

use crate::app::{End, Pace, Script};
use crate::chance::Chance;

/// A bug that is planted, so that a check can be seen to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Now and then an application is given the same bytes twice.
    DoublesBytes,
    /// A session that nobody needs is never given back.
    KeepsSession,
    /// Whoever names a session may go on with it.
    TrustsAnybody,
    /// No connection is made again.
    NeverRedials,
    /// More is promised to sessions than there is.
    PromisesMore,
    /// A time-out changes nothing.
    IgnoresTimeouts,
    /// Who is told that a tunnel was broken off mistakes the reason.
    MistakesReasons,
}

/// Something that happens. Connections are counted from the newest, tunnels are those of the user to the honest tunnel-node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The user opens a tunnel.
    Open(Script),
    /// The user opens a tunnel to the liar, or the liar one to the tunnel-node.
    OpenWithLiar(Script),
    /// A connection breaks at any byte of what is under way; its ends notice later.
    Cut(usize),
    /// A connection is reset: its ends notice at once.
    Reset(usize),
    /// A connection carries nothing for a while, towards one end or both.
    Stall {
        /// Which connection.
        carrier: usize,
        /// Towards which end: 0, 1, or 2 for both.
        towards: usize,
        /// For how long.
        span: Duration,
    },
    /// A connection carries nothing any more towards one end, and nobody says so.
    HalfClose {
        /// Which connection.
        carrier: usize,
        /// Towards which end.
        towards: usize,
    },
    /// The user would reach the tunnel-node another way now: its tunnels move to a new connection, while the old one stands.
    Move,
    /// From then on, new connections are made directly, or over a relay.
    Path {
        /// Whether the direct path works.
        is_direct: bool,
    },
    /// A computer has slept: both ends doubt their connections.
    Doubt,
}

/// One life.
#[derive(Clone, Debug)]
pub struct Life {
    /// All chance comes from it.
    pub seed: u64,
    /// The largest window, in bytes.
    pub max_window: u64,
    /// What all windows of a computer may take together, in bytes.
    pub budget: u64,
    /// How long bytes take at the least and at the most; each connection draws its own.
    pub delay: (Duration, Duration),
    /// Whether there is a liar, and whether it is the one that dials.
    pub liar: Option<Liar>,
    /// What happens, in the order of time.
    pub steps: Vec<(Duration, Step)>,
    /// When faults end.
    pub calm_at: Duration,
    /// A bug that is planted.
    pub planted: Option<Bug>,
}

/// The role of the computer that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liar {
    /// It dials the honest tunnel-node.
    User,
    /// The honest user dials it.
    TunnelNode,
}

impl Life {
    /// Draws a life.
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "life");
        let longest = if chance.happens(700) { 4_000 } else { 60_000 };
        let span = Duration::from_millis(chance.between(200, longest));
        let liar =
            chance.happens(250).then(|| if chance.happens(600) { Liar::User } else { Liar::TunnelNode });
        let slowest = if chance.happens(300) { 800 } else { 60 };
        let least = Duration::from_micros(chance.between(50, 20_000));
        let most = least + Duration::from_millis(chance.between(0, slowest));
        let max_window = 1_u64 << chance.between(16, 20);
        // In some lives there is hardly room for the first windows.
        let budget = if chance.happens(250) { 1 << chance.between(17, 19) } else { 32 << 20 };
        let mut steps = Vec::new();
        for _ in 0..chance.between(1, 4) {
            steps.push((chance.duration(span / 4), Step::Open(draw_script(&mut chance))));
        }
        if liar.is_some() {
            for _ in 0..chance.between(1, 3) {
                steps.push((chance.duration(span / 4), Step::OpenWithLiar(draw_script(&mut chance))));
            }
        }
        for _ in 0..chance.below(16) {
            steps.push((chance.duration(span), draw_step(&mut chance)));
        }
        steps.sort_by_key(|(at, _)| *at);
        let calm_at = span + Duration::from_secs(1);
        Self { seed, max_window, budget, delay: (least, most), liar, steps, calm_at, planted: None }
    }
}

fn draw_script(chance: &mut Chance) -> Script {
    let size = |chance: &mut Chance| match chance.below(20) {
        0 | 1 => 0,
        2..=7 => chance.between(1, 5_000),
        8..=18 => chance.between(5_000, 200_000),
        _ => chance.between(200_000, 1_500_000),
    };
    // Slow readers make a tunnel last until something happens to it.
    let pace = |chance: &mut Chance| {
        let pieces = u32::try_from(chance.between(1, 6)).unwrap_or(1);
        if chance.happens(500) { Pace::Eager } else { Pace::Slow(pieces) }
    };
    let breaks = chance.happens(100).then(|| {
        let end = chance.pick(&End::BOTH).copied().unwrap_or(End::User);
        (end, chance.between(1, 100_000))
    });
    let (up, down, answers_last) = (size(chance), size(chance), chance.happens(400));
    Script { up, down, answers_last, user: pace(chance), device: pace(chance), breaks }
}

fn draw_step(chance: &mut Chance) -> Step {
    let carrier = chance.index(3);
    let towards = chance.index(2);
    match chance.below(12) {
        0..=2 => Step::Cut(carrier),
        3 => Step::Reset(carrier),
        4 | 5 => {
            let span = Duration::from_millis(chance.between(50, 40_000));
            Step::Stall { carrier, towards: chance.index(3), span }
        }
        6 => Step::HalfClose { carrier, towards },
        7 | 8 => Step::Move,
        9 | 10 => Step::Path { is_direct: chance.happens(500) },
        _ => Step::Doubt,
    }
}

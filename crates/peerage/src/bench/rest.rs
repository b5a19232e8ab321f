//! A node that has nothing to do: how soon it is ready, what it occupies, and how much time it takes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    How,
    machine::{busy, milliseconds, resident},
    network::Network,
    report::{Case, Report, Run},
};

const MIB: f64 = 1_048_576.0;

/// Processor time that a program at rest may take without anybody noticing: one part in a hundred, in seconds an hour.
const NOTICED_SECONDS: f64 = 36.0;

/// The goal for the time until a node is ready.
const READY_TARGET_MS: f64 = 50.0;

/// Measures a node that has joined, beside a process of the same program that binds one socket.
pub(super) fn rest(how: &How) -> Result<Report> {
    let network = Network::start()?;
    let mut computer = network.node("node", None)?.end();
    let (mut starts, mut memory, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..how.runs() {
        let began_at = Instant::now();
        let plain = network.part("plain", &["echo"])?;
        let plain_took = began_at.elapsed();
        let began_at = Instant::now();
        let node = Network::up(computer, None)?;
        starts.push(Run::new(milliseconds(began_at.elapsed()), milliseconds(plain_took)));
        let (before, began_at) = (busy(node.process()), Instant::now());
        thread::sleep(how.length());
        let spent = busy(node.process()).saturating_sub(before);
        times.push(Run::new(an_hour(spent, began_at.elapsed()), NOTICED_SECONDS));
        let occupied = |process| resident(process).max(1) as f64 / MIB;
        memory.push(Run::new(occupied(node.process()), occupied(plain.process())));
        computer = node.end();
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let size = program.metadata().context("cannot look at this program")?.len();
    let cases = vec![
        Case::new("ms until a node is ready", starts).with("target_ms", READY_TARGET_MS),
        Case::new("MiB that it occupies", memory).with("program_file_mib", size as f64 / MIB),
        Case::new("s of processor time an hour, against 1 % of a processor", times),
    ];
    Report::new("rest", "ms", "a process of the same program that binds a socket", cases)
}

/// Returns what was spent in some time as seconds an hour; never quite nothing, so that it can be a figure of a report.
fn an_hour(spent: Duration, of: Duration) -> f64 {
    (spent.as_secs_f64() / of.as_secs_f64().max(1e-9) * 3_600.0).max(1e-6)
}

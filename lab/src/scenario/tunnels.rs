//! Hundreds of tunnels at once through one relay, each with numbered bytes in both directions.
//!
//! Users behind one NAT cannot reach the office directly, so that the operator relays everything. All tunnels are open at the same
//! time; what the relay needs of its machine is read before, and while bytes flow through all.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::Report;
use super::binary::Programs;
use super::flowing::{self, now};
use super::program::Daemon;
use super::village::{Cast, More, Stage};
use crate::netns::Usage;

/// How long bytes flow through all.
const FLOWING: Duration = Duration::from_secs(5);

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowd {
    /// 500 tunnels of five users.
    Full,
    /// 20 tunnels of two users.
    Small,
}

impl Crowd {
    fn users(self) -> usize {
        match self {
            Self::Full => 5,
            Self::Small => 2,
        }
    }

    fn tunnels_of_each(self) -> usize {
        match self {
            Self::Full => 100,
            Self::Small => 10,
        }
    }
}

/// Plays the story with these programs and tells `progress` about each step.
pub fn tunnels(programs: &Programs, crowd: Crowd, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    report.error = play(programs, crowd, &mut report, &mut say).err();
    report
}

fn play(programs: &Programs, crowd: Crowd, report: &mut Report, say: &mut dyn FnMut(&str)) -> Result<()> {
    say(&format!(
        "building an office and a home, each behind NAT; starting an operator, two nodes and {} users",
        crowd.users()
    ));
    let stage = Stage::build(More { users: crowd.users() - 1, ..More::default() })?;
    let mut cast = Cast::start(&stage, programs)?;
    let mut holders = Vec::new();
    let result = crowd_in(&mut cast, &mut holders, crowd, report, say);
    if result.is_err() {
        say(&cast.logs());
    }
    result?;
    say("ending all programs in order");
    holders.into_iter().try_for_each(Daemon::stop)?;
    cast.stop()
}

fn crowd_in(
    cast: &mut Cast<'_>,
    holders: &mut Vec<Daemon>,
    crowd: Crowd,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    cast.stage.let_pass(false)?;
    let before = cast.operator.process()?.usage()?;
    say("opening all tunnels");
    let (began_at, mut flows) = (Instant::now(), Vec::new());
    for user in std::iter::once(&cast.user).chain(&cast.more_users) {
        let (local, holder) = user.connect("device:raw")?;
        holders.push(holder);
        flows.push(flowing::launch(cast, user, &local, crowd.tunnels_of_each())?);
        say(&format!("    a port of {} leads to the device", user.peerage.host().name()));
    }
    for (flow, open) in flows.iter_mut().zip(1..) {
        flowing::wait(flow)?;
        say(&format!("    bytes have come through all tunnels of {open} users"));
    }
    report.note("tunnels", crowd.users() * crowd.tunnels_of_each());
    report.note("open_ms", u64::try_from(began_at.elapsed().as_millis()).unwrap_or(u64::MAX));
    say("bytes flow through all");
    let since = now()?;
    thread::sleep(FLOWING);
    let during = cast.operator.process()?.usage()?;
    note_usage(report, before, during);
    for user in std::iter::once(&cast.user).chain(&cast.more_users) {
        let (kind, remote) = user.path()?;
        ensure!(kind == "relayed", "a tunnel leads to {remote} and is {kind}");
    }
    let passed = flowing::end(cast, &mut flows, since)?;
    for (name, number) in [("bytes", passed.bytes), ("lost", passed.lost), ("stall_ms", passed.stall_ms)] {
        report.note(name, number);
    }
    if let Some(error) = passed.error {
        bail!("a tunnel broke: {error}");
    }
    ensure!(passed.lost == 0, "{} bytes were lost", passed.lost);
    Ok(())
}

fn note_usage(report: &mut Report, before: Usage, during: Usage) {
    let shown = |usage: Usage| {
        json!({
            "resident_bytes": usage.resident_bytes, "peak_bytes": usage.peak_bytes,
            "descriptors": usage.descriptors,
        })
    };
    report.note("relay_before", shown(before));
    report.note("relay", shown(during));
}

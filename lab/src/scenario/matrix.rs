//! Every pair of networks between a user and a tunnel-node: is the path direct wherever theory allows it?
//!
//! All networks are parts of one Internet with an operator and three super-nodes. For each pair a tunnel is opened, numbered bytes flow
//! through it both ways, and it is watched which path they take. Where theory allows a direct path it has some seconds to come about;
//! where not, the relay must do. What is theory is told by `theory` alone.

mod places;
mod theory;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::flowing;
use super::player::Player;
use crate::flow::End;
use crate::netns::Process;
use places::{Cast, Ends, Stage};
use theory::{Pair, QUICK};

/// How long a direct path may take to come about, where it is possible.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same where many ports have to be tried for it.
const WIDE_TIMEOUT: Duration = Duration::from_secs(25);

/// How long it is watched that none comes about, where it is not.
const RELAYED_TIME: Duration = Duration::from_secs(3);

/// What may come on top of round trips, in milliseconds.
const MARGIN_MS: f64 = 20.0;

/// How often it is looked which path is taken; half of it is added to what is measured.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long a user's node may take to know a way to a device.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

/// How often that is looked for.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(250);

/// How long a tunnel may take to carry its first byte, and to carry its last.
const FLOW_TIMEOUT: Duration = Duration::from_secs(30);

/// Which pairs are played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All.
    All,
    /// A few that stand for all.
    Quick,
    /// The one with the user's side first.
    Pair(String, String),
}

impl Selection {
    fn pairs(&self) -> Vec<Pair> {
        let is = |pair: &Pair, user: &str, node: &str| pair.user.name == user && pair.node.name == node;
        let is_chosen = |pair: &Pair| match self {
            Self::All => true,
            Self::Quick => QUICK.iter().any(|[user, node]| is(pair, user, node)),
            Self::Pair(user, node) => is(pair, user, node),
        };
        theory::pairs().into_iter().filter(is_chosen).collect()
    }
}

/// Plays the pairs with these programs and tells `progress` about each.
///
/// With `is_wide` all owners permit many ports to be tried where those of one end cannot be known. With a `round_trip` that long are those between two sites, and those through a relay; it is rounded to 4 ms.
pub fn matrix(
    programs: &Programs,
    (selection, is_wide): (&Selection, bool),
    round_trip: Duration,
    progress: &mut dyn FnMut(&str),
) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    let mut outcomes = Vec::new();
    // Both ends have a line, and a packet goes there and back.
    let delay = Duration::from_millis(u64::try_from(round_trip.as_millis() / 4).unwrap_or(0));
    let result = play(programs, (&selection.pairs(), is_wide), delay, &mut outcomes, &mut say);
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| is(outcome)).count();
    let failed = count(Outcome::is_failed);
    let is_possible = |outcome: &Outcome| outcome.is_possible(is_wide);
    let of = |is: fn(&Outcome) -> bool, possible: bool| {
        outcomes.iter().filter(|outcome| is(outcome) && is_possible(outcome) == possible).count()
    };
    let against_theory = of(Outcome::is_relayed, true);
    let round_trip_ms = 4.0 * delay.as_secs_f64() * 1_000.0;
    let is_late = |outcome: &&Outcome| outcome.is_late(round_trip_ms);
    report.note("round_trip_ms", round_trip_ms);
    report.note("late", outcomes.iter().filter(is_late).count());
    report.note("pairs", outcomes.len());
    report.note("direct", count(Outcome::is_direct));
    report.note("relayed", count(Outcome::is_relayed));
    report.note("failed", failed);
    report.note("against_theory", against_theory);
    report.note("beyond_theory", of(Outcome::is_direct, false));
    report.note("results", outcomes.iter().map(|outcome| outcome.to_json(is_wide)).collect::<Vec<_>>());
    report.error = match result {
        Ok(()) if failed + against_theory == 0 => None,
        Ok(()) => Some(anyhow::anyhow!(
            "{failed} pairs failed, and {against_theory} were relayed although a direct path is possible"
        )),
        Err(error) => Some(error),
    };
    report
}

/// What came of a pair.
#[derive(Debug)]
struct Outcome {
    pair: Pair,
    result: Result<Passed>,
}

/// What a tunnel did.
#[derive(Debug)]
struct Passed {
    /// The kind of the last path, and its far end.
    path: (String, String),
    /// From the wish for a tunnel until a byte came back from the device.
    first_byte_ms: f64,
    /// The part of that until the way was found.
    found_ms: f64,
    /// From the wish for a tunnel until the path was direct.
    direct_ms: Option<f64>,
}

impl Outcome {
    fn is_failed(&self) -> bool {
        self.result.is_err()
    }

    fn is_relayed(&self) -> bool {
        self.result.as_ref().is_ok_and(|passed| passed.direct_ms.is_none())
    }

    fn is_direct(&self) -> bool {
        self.result.as_ref().is_ok_and(|passed| passed.direct_ms.is_some())
    }

    /// Returns whether the first byte took longer than two round trips, or the direct path longer than three, and the margin.
    fn is_late(&self, round_trip_ms: f64) -> bool {
        let Ok(Passed { first_byte_ms, direct_ms, .. }) = self.result else { return false };
        first_byte_ms > 2.0 * round_trip_ms + MARGIN_MS
            || direct_ms.is_some_and(|direct_ms| direct_ms > 3.0 * round_trip_ms + MARGIN_MS)
    }

    fn is_possible(&self, is_wide: bool) -> bool {
        self.pair.is_direct_possible() || (is_wide && self.pair.is_likely_widely())
    }

    fn to_json(&self, is_wide: bool) -> Value {
        let possible = self.is_possible(is_wide);
        let (user, node) = (self.pair.user.name, self.pair.node.name);
        match &self.result {
            Ok(Passed { path: (kind, remote), first_byte_ms, found_ms, direct_ms }) => json!({
                "user": user, "node": node, "possible": possible, "path": kind, "remote": remote,
                "first_byte_ms": first_byte_ms, "found_ms": found_ms, "direct_ms": direct_ms,
            }),
            Err(error) => {
                json!({ "user": user, "node": node, "possible": possible, "error": format!("{error:#}") })
            }
        }
    }
}

fn play(
    programs: &Programs,
    (pairs, is_wide): (&[Pair], bool),
    delay: Duration,
    outcomes: &mut Vec<Outcome>,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    ensure!(!pairs.is_empty(), "there is no such pair");
    say("building the networks");
    let (stage, ends) = Stage::build(pairs, delay)?;
    say(&format!("starting an operator, three super-nodes and {} nodes", stage.places.len()));
    let mut cast = Cast::start(&stage, programs, is_wide)?;
    for (pair, ends) in pairs.iter().zip(ends) {
        let patience = match (pair.is_direct_possible(), is_wide && pair.is_likely_widely()) {
            (true, _) => DIRECT_TIMEOUT,
            (false, true) => WIDE_TIMEOUT,
            (false, false) => RELAYED_TIME,
        };
        let result = play_pair(programs, &stage, &mut cast, (ends, patience));
        let outcome = Outcome { pair: *pair, result };
        say(&outcome.to_json(is_wide).to_string());
        outcomes.push(outcome);
    }
    let is_odd = |one: &Outcome| one.is_failed() || (one.is_relayed() && one.is_possible(is_wide));
    if outcomes.iter().any(is_odd) {
        say(&cast.logs());
    }
    Ok(())
}

fn play_pair(
    programs: &Programs,
    stage: &Stage,
    cast: &mut Cast<'_>,
    (ends, patience): (Ends, Duration),
) -> Result<Passed> {
    for end in [ends.user, ends.node] {
        let (player, error) = cast.nodes.get(end).context("there is no such node")?;
        if let Some(error) = error {
            bail!("{} does not run: {error}", player.peerage.host().name());
        }
    }
    let (user, _) = cast.nodes.get(ends.user).context("there is no such user")?;
    let device =
        stage.places.get(ends.node).and_then(|place| place.device()).context("there is no device")?;
    find(user, device)?;
    let asked_at = Instant::now();
    let tunnel = user.peerage.open_tunnel(device, "raw")?;
    let opened_ms = milliseconds(asked_at);
    let local = tunnel.get("local").and_then(Value::as_str).context("the tunnel has no address")?;
    let watching = Watching { user, device, asked_at, until: asked_at + patience };
    let (flow, watched) = thread::scope(|scope| {
        let watched = scope.spawn(|| watching.watch());
        (start(programs, user, local), watched.join())
    });
    let (mut flow, first_ms) = flow?;
    let (path, direct_ms) = watched.map_err(|_| anyhow::anyhow!("watching panicked"))??;
    let device = cast.devices.get_mut(ends.node).and_then(Option::as_mut).context("the device is off")?;
    compare(&mut flow, device)?;
    user.peerage.close_tunnel(&tunnel)?;
    // Between the tunnel and the application's connection a program had to be started, which counts for nothing.
    let (first_byte_ms, found_ms) = (tenths(opened_ms + first_ms), tenths(opened_ms));
    Ok(Passed { path, first_byte_ms, found_ms, direct_ms: direct_ms.map(tenths) })
}

/// Begins to send numbered bytes both ways; returns how long the first one took.
fn start(programs: &Programs, user: &Player<'_>, local: &str) -> Result<(Process, f64)> {
    let mut flow = user.peerage.host().command(&programs.agent).args(["flow", local, "1"]).spawn()?;
    let first_ms = flow.wait_for_line("the first byte came", FLOW_TIMEOUT, |line| {
        line.strip_prefix("first ")?.parse::<f64>().ok().map(|microseconds| microseconds / 1_000.0)
    })?;
    Ok((flow, first_ms))
}

/// Somebody who looks which way a tunnel takes.
struct Watching<'a> {
    user: &'a Player<'a>,
    device: &'a str,
    asked_at: Instant,
    until: Instant,
}

impl Watching<'_> {
    /// Returns the kind and the far end of the way, and when it was direct, once it is or will not be any more.
    fn watch(&self) -> Result<((String, String), Option<f64>)> {
        loop {
            let path = path(self.user, self.device)?;
            if !["relayed", "none"].contains(&path.0.as_str()) {
                return Ok((path, Some(milliseconds(self.asked_at))));
            }
            if Instant::now() > self.until {
                return Ok((path, None));
            }
            thread::sleep(INTERVAL);
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Waits until a user's node knows a way to the device, so that what is measured is free of look-ups.
fn find(user: &Player<'_>, device: &str) -> Result<()> {
    let began_at = Instant::now();
    loop {
        let devices = user.peerage.call(&["devices", "--refresh"])?;
        let mut listed = devices.as_array().into_iter().flatten();
        let found = listed.find(|one| one.get("name") == Some(&json!(device)));
        if found.and_then(|device| device.get("state")) == Some(&json!("reachable")) {
            return Ok(());
        }
        ensure!(began_at.elapsed() < LOOKUP_TIMEOUT, "the user's node knows no way to {device}: {found:?}");
        thread::sleep(LOOKUP_INTERVAL);
    }
}

/// Returns the kind and the far end of the way that the tunnel to a device takes.
fn path(user: &Player<'_>, device: &str) -> Result<(String, String)> {
    let tunnels = user.peerage.tunnels()?;
    let mut tunnels = tunnels.as_array().into_iter().flatten();
    let tunnel = tunnels.find(|tunnel| tunnel.get("device") == Some(&json!(device)));
    let path = tunnel.and_then(|tunnel| tunnel.get("path"));
    let text = |name| path.and_then(|path| path.get(name)).and_then(Value::as_str).unwrap_or("none");
    Ok((text("kind").to_owned(), text("remote").to_owned()))
}

/// Ends the flow, and makes sure that every byte came.
fn compare(flow: &mut Process, device: &mut Process) -> Result<()> {
    flow.feed(&[]);
    let client: End = flow.wait_for_line("all had come", FLOW_TIMEOUT, flowing::read)?;
    let find = |line: &str| flowing::read(line).filter(|device| device.id == client.id);
    let far = device.wait_for_line("the device had all", FLOW_TIMEOUT, find)?;
    let lost = client.lost_from(&far) + far.lost_from(&client);
    ensure!(lost == 0, "{lost} bytes were lost");
    match client.error.or(far.error) {
        Some(error) => bail!("the tunnel broke: {error}"),
        None => Ok(()),
    }
}

//! An open tunnel outlives what happens to its networks and programs.
//!
//! Numbered bytes flow through it in both directions, from before an event until some seconds after it. Nothing may be
//! lost, and they flow again soon after the event has passed.

mod events;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::flowing::{self, Passed};
use super::village::{Cast, Entrance, More, Stage};

/// How long nothing may flow once there is a way again, and after the death of a path could be noticed, in milliseconds.
const MAX_STALL_MS: u64 = 3_000;

/// How long bytes flow before and after an event.
const BEFORE: Duration = Duration::from_secs(1);

/// The same after it: longer than any stall that is allowed.
const AFTER: Duration = Duration::from_secs(5);

/// Tunnels that are open at once in one of the events.
const MANY: usize = 500;

/// Which events happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All.
    Whole,
    /// Those of less than ten seconds.
    Quick,
    /// Those that happen to a path which was punched through two translators.
    Punched,
}

/// Plays the story with these programs and tells `progress` about each step.
///
/// With `only`, just the events happen whose names contain it, or one of several between commas.
pub fn survival(
    programs: &Programs,
    extent: Extent,
    only: Option<&str>,
    progress: &mut dyn FnMut(&str),
) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut events = Vec::new();
    let result = play(programs, (extent, only), &mut events, &mut |text| {
        progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    });
    report.note("events", events.iter().map(Outcome::to_json).collect::<Vec<_>>());
    let bad: Vec<&str> = events.iter().filter(|event| !event.is_ok()).map(|event| event.name).collect();
    report.error = match result {
        Ok(()) if bad.is_empty() => None,
        Ok(()) => Some(anyhow::anyhow!("not as it should be: {}", bad.join(", "))),
        Err(error) => Some(error),
    };
    report
}

/// What came of an event.
#[derive(Debug)]
struct Outcome {
    name: &'static str,
    /// Bytes that came, in both directions.
    bytes: u64,
    lost: u64,
    stall_ms: u64,
    error: Option<String>,
}

impl Outcome {
    fn is_ok(&self) -> bool {
        self.error.is_none() && self.lost == 0 && self.stall_ms < MAX_STALL_MS
    }

    fn to_json(&self) -> Value {
        let mut value =
            json!({ "name": self.name, "bytes": self.bytes, "lost": self.lost, "stall_ms": self.stall_ms });
        if let (Some(error), Some(object)) = (&self.error, value.as_object_mut()) {
            object.insert("error".to_owned(), json!(error));
        }
        value
    }
}

fn play(
    programs: &Programs,
    (extent, only): (Extent, Option<&str>),
    outcomes: &mut Vec<Outcome>,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut result = Ok(());
    for (more, events) in events::ACTS {
        let is_chosen = |event: &&events::Event| {
            (extent == Extent::Punched) == (more.entrance == Entrance::PunchedForAMoment)
                && (extent != Extent::Quick || event.is_quick)
                && only.is_none_or(|only| only.split(',').any(|part| event.name.contains(part)))
        };
        let chosen: Vec<_> = events.iter().filter(is_chosen).collect();
        if !chosen.is_empty() {
            // What ends badly is told at the end, and hides nothing of the next.
            result = result.and(play_act(programs, more, &chosen, outcomes, say));
        }
    }
    result?;
    ensure!(!outcomes.is_empty(), "there is no such event");
    Ok(())
}

/// Plays events that happen in the same networks, one after the other.
fn play_act(
    programs: &Programs,
    more: More,
    events: &[&events::Event],
    outcomes: &mut Vec<Outcome>,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    say(&format!(
        "building an office, a home and a café, each behind NAT; starting an operator, {} super-nodes and three nodes",
        more.lenders
    ));
    let stage = Stage::build(more)?;
    let mut cast = Cast::start(&stage, programs)?;
    cast.connect()?;
    for event in events {
        say(event.name);
        let outcome = happen(&mut cast, event);
        say(&format!("    {}", outcome.to_json()));
        if !outcome.is_ok() {
            say(&cast.logs());
        }
        outcomes.push(outcome);
    }
    say("ending all programs in order");
    cast.stop()
}

/// Lets an event happen to a tunnel through which bytes flow.
fn happen(cast: &mut Cast<'_>, event: &events::Event) -> Outcome {
    let (bytes, lost, stall_ms) = (0, 0, 0);
    let failed = |error: anyhow::Error| {
        let error = Some(format!("{error:#}"));
        Outcome { name: event.name, bytes, lost, stall_ms, error }
    };
    match (event.play)(cast) {
        Ok(Passed { bytes, lost, stall_ms, error }) => {
            Outcome { name: event.name, bytes, lost, stall_ms, error }
        }
        Err(error) => failed(error),
    }
}

/// Lets bytes flow through `count` connections of the tunnel while something happens, which tells when there was a way
/// again, on the clock of [`flowing::now`].
fn while_flowing(
    cast: &mut Cast<'_>,
    count: usize,
    act: impl FnOnce(&mut Cast<'_>) -> Result<u64>,
) -> Result<Passed> {
    let mut flow = flowing::start(cast, count)?;
    thread::sleep(BEFORE);
    let since = act(cast)?;
    thread::sleep(AFTER);
    flowing::end(cast, std::slice::from_mut(&mut flow), since)
}

//! How long an application waits for the first byte of a device's answer, on lines with a known delay.
//!
//! Each site's line has a round trip of 20 ms, and the operator has none. So the round trip between the ends, R, is 40 ms, and that
//! of a message through the relay, L, is 40 ms as well. An application connects, says a byte and gets one back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::village::{Cast, More, Stage};
use crate::wire::Manner;

/// What a packet takes on a site's line, in each direction.
const LINE_DELAY: Duration = Duration::from_millis(10);

/// The round trip between the ends, and that through the relay.
const ROUND_TRIP_MS: f64 = 40.0;

/// What may come on top of the round trips.
const MARGIN_MS: f64 = 20.0;

/// How often each is measured; the median counts.
const TURNS: usize = 9;

/// How long one measurement may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A case, with the round trips that it may take.
struct Case {
    name: &'static str,
    round_trips: f64,
    is_relayed: bool,
    is_warm: bool,
}

const CASES: [Case; 4] = [
    Case { name: "warm", round_trips: 1.0, is_relayed: false, is_warm: true },
    Case { name: "warm, relayed", round_trips: 1.0, is_relayed: true, is_warm: true },
    Case { name: "reachable, cold", round_trips: 2.0, is_relayed: false, is_warm: false },
    Case { name: "relayed, cold", round_trips: 2.0, is_relayed: true, is_warm: false },
];

/// Measures with these programs and tells `progress` about each step.
pub fn round_trips(programs: &Programs, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut cases = Vec::new();
    let result = measure_all(programs, &mut cases, &mut |text| {
        progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    });
    let is_bad = |case: &&Value| case.get("ok") != Some(&json!(true));
    let bad: Vec<String> = cases.iter().filter(is_bad).map(ToString::to_string).collect();
    report.note("round_trip_ms", ROUND_TRIP_MS);
    report.note("cases", cases);
    report.error = match result {
        Ok(()) if bad.is_empty() => None,
        Ok(()) => Some(anyhow::anyhow!("too slow: {}", bad.join(", "))),
        Err(error) => Some(error),
    };
    report
}

fn measure_all(programs: &Programs, cases: &mut Vec<Value>, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("building an office and a home on lines of 20 ms, and starting an operator and three nodes");
    let stage = Stage::build(More::default())?;
    let mut cast = Cast::start(&stage, programs)?;
    cast.set_wires(Manner { delay: LINE_DELAY, ..Manner::default() })?;
    cast.connect()?;
    for case in &CASES {
        say(case.name);
        if case.is_relayed {
            stage.let_pass(false)?;
        } else {
            stage.let_only_tcp_pass()?;
        }
        drop_links(&stage)?;
        // What comes first pays for look-ups, and notices a dead link.
        first_byte(&cast)?;
        cast.wait_for_path(if case.is_relayed { "relayed" } else { "direct" })?;
        let mut times = Vec::new();
        for _turn in 0..TURNS {
            if !case.is_warm {
                drop_links(&stage)?;
            }
            times.push(first_byte(&cast)?);
        }
        let result = judge(case, times);
        say(&format!("    {result}"));
        cases.push(result);
    }
    say("ending all programs in order");
    cast.stop()
}

/// Ends all connections that leave the user's computer, as a router's restart would.
fn drop_links(stage: &Stage) -> Result<()> {
    stage.user.script(&format!("ss --kill --tcp src {} >/dev/null\n", stage.user.address()))?;
    Ok(())
}

/// Returns how long one connection took to its first byte, in milliseconds.
fn first_byte(cast: &Cast<'_>) -> Result<f64> {
    let mut process = cast.agent(&["first-byte", &cast.local()?, "1"])?;
    process.feed(&[]);
    let output = process.finish(TIMEOUT)?.success("waiting for a first byte")?.stdout;
    let microseconds: f64 = output.trim().parse().context("unexpected output")?;
    Ok(microseconds / 1_000.0)
}

fn judge(case: &Case, mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |index: usize| times.get(index).copied().unwrap_or(f64::INFINITY);
    let (median, slowest) = (at(times.len() / 2), at(times.len().saturating_sub(1)));
    let target = case.round_trips * ROUND_TRIP_MS + MARGIN_MS;
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    json!({
        "name": case.name, "target_ms": target, "median_ms": rounded(median), "fastest_ms": rounded(at(0)),
        "slowest_ms": rounded(slowest), "ok": median <= target,
    })
}

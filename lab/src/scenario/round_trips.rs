//! How long an application waits for the first byte of a device's answer, on lines with a known delay.
//!
//! Each site's line has a round trip of 20 ms, and the operator has none. So the round trip between the ends, R, is 40 ms, and that
//! of a message through the relay, L, is 40 ms as well. An application connects, says a byte and gets one back: on a link that
//! stands, and where none does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::player::wait_until;
use super::village::{Cast, Entrance, More, Stage};
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

/// Which way the bytes take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over TCP, to a port that the router forwards or has given.
    Tcp,
    /// Over a relay, since nothing passes between the ends.
    Relay,
    /// Over QUIC, through both routers.
    Quic,
}

/// A case, with the round trips that it may take.
struct Case {
    name: &'static str,
    /// What the user's node calls the path.
    kind: &'static str,
    way: Way,
    round_trips: f64,
    is_warm: bool,
}

const fn warm(name: &'static str, kind: &'static str, way: Way) -> Case {
    Case { name, kind, way, round_trips: 1.0, is_warm: true }
}

const fn cold(name: &'static str, kind: &'static str, way: Way) -> Case {
    Case { name, kind, way, round_trips: 2.0, is_warm: false }
}

/// The cases, by the networks in which they are.
const ACTS: [(Entrance, &[Case]); 3] = [
    (
        Entrance::Forwarded,
        &[
            warm("warm", "direct", Way::Tcp),
            warm("warm, relayed", "relayed", Way::Relay),
            cold("reachable, cold", "direct", Way::Tcp),
            cold("relayed, cold", "relayed", Way::Relay),
        ],
    ),
    (Entrance::Mapped, &[warm("warm, mapped", "mapped", Way::Tcp), cold("mapped, cold", "mapped", Way::Tcp)]),
    (
        Entrance::Punched,
        &[warm("warm, punched", "punched", Way::Quic), cold("punched, cold", "punched", Way::Quic)],
    ),
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

fn measure_all(programs: &Programs, results: &mut Vec<Value>, say: &mut dyn FnMut(&str)) -> Result<()> {
    for (entrance, cases) in &ACTS {
        say("building an office and a home on lines of 20 ms, and starting an operator and three nodes");
        let stage = Stage::build(More { entrance: *entrance, ..More::NONE })?;
        let mut cast = Cast::start(&stage, programs)?;
        cast.set_wires(Manner { delay: LINE_DELAY, ..Manner::default() })?;
        cast.connect()?;
        for case in *cases {
            say(case.name);
            let times = measure(&mut cast, case).inspect_err(|_| say(&cast.logs()))?;
            let result = judge(case, times);
            say(&format!("    {result}"));
            results.push(result);
        }
        say("ending all programs in order");
        cast.stop()?;
    }
    Ok(())
}

/// Returns how long each connection took to its first byte, in milliseconds.
fn measure(cast: &mut Cast<'_>, case: &Case) -> Result<Vec<f64>> {
    match case.way {
        Way::Tcp => cast.stage.let_only_tcp_pass()?,
        Way::Relay => cast.stage.let_pass(false)?,
        Way::Quic => cast.stage.let_pass(true)?,
    }
    drop_connections(cast)?;
    // What comes first pays for look-ups, and notices a dead link.
    use_until(cast, &cast.local()?, case.kind)?;
    let mut times = Vec::new();
    for _turn in 0..TURNS {
        times.push(match (case.is_warm, case.way) {
            (true, _) => first_byte(cast, &cast.local()?)?,
            (false, Way::Tcp | Way::Relay) => {
                drop_connections(cast)?;
                first_byte(cast, &cast.local()?)?
            }
            (false, Way::Quic) => first_byte_since_start(cast, case.kind)?,
        });
    }
    Ok(times)
}

/// Ends all connections that leave the user's computer, as a router's restart would.
fn drop_connections(cast: &Cast<'_>) -> Result<()> {
    let user = &cast.stage.user;
    user.script(&format!("ss --kill --tcp src {} >/dev/null\n", user.address())).map(drop)
}

/// Starts the user's node anew, since a link on QUIC cannot be ended from outside, has it list the devices, and returns how long it takes from the
/// wish for a tunnel to the first byte.
fn first_byte_since_start(cast: &mut Cast<'_>, kind: &str) -> Result<f64> {
    cast.restart_user()?;
    let asked_at = Instant::now();
    let tunnel = cast.user.peerage.open_tunnel("device", "raw")?;
    let opened_ms = asked_at.elapsed().as_secs_f64() * 1_000.0;
    let local = tunnel.get("local").and_then(Value::as_str).context("the tunnel has no address")?;
    // Between the two a program has to be started, which counts for nothing.
    let first_ms = first_byte(cast, local)?;
    use_until(cast, local, kind)?;
    Ok(opened_ms + first_ms)
}

/// Makes connections to a tunnel until it takes a path of this kind.
fn use_until(cast: &Cast<'_>, local: &str, wanted: &str) -> Result<()> {
    wait_until(&format!("the path is {wanted}"), || {
        first_byte(cast, local)?;
        let (kind, remote) = cast.path()?;
        Ok(if kind == wanted { Ok(()) } else { Err(json!([kind, remote])) })
    })
}

/// Returns how long one connection to a tunnel took to its first byte, in milliseconds.
fn first_byte(cast: &Cast<'_>, local: &str) -> Result<f64> {
    let mut process = cast.agent(&["first-byte", local, "1"])?;
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

//! Watching a camera on another network for a minute, while its path changes and one of its relays dies.
//!
//! A camera is in an office, its user behind another NAT, and super-nodes relay between them: at first nobody reaches the other
//! directly. Then the relaying super-node dies; then the direct path opens; then that dies without a word. Or the path is punched at
//! first, and dies, and then the relay that took its place. The user's player must not notice: one connection, every picture, in order.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::village::{Cast, Entrance, More, Stage};
use crate::device::{CAMERA_PORT, Camera, FRAMES_PER_SECOND};
use crate::netns::Process;
use crate::watch::Seen;

/// How long the camera is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// How long each of the four paths is taken.
const QUARTER: Duration = Duration::from_secs(15);

/// How often it is looked which path is taken. A path that is taken for less may go unseen.
const INTERVAL: Duration = Duration::from_millis(100);

/// The longest time between two pictures, in milliseconds: three seconds in which the death of a path that says nothing is noticed
/// (Rule 7.11), and three in which the tunnel goes on elsewhere.
const MAX_GAP_MS: u64 = 6_000;

/// How long the player may take to show the first picture, and to end.
const PLAYER_TIMEOUT: Duration = Duration::from_secs(60);

/// The camera's hardware address; of the block that RFC 7042 keeps for examples, made a local one.
const CAMERA_MAC: &str = "02:00:5e:00:53:09";

/// Host number of the camera in the office.
const CAMERA_HOST: u8 = 60;

/// Which path the picture takes while neither end is shut off from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// To a port that the office's router forwards.
    Directly,
    /// Through both routers, in which nobody has configured anything.
    Punched,
}

impl Watched {
    /// Returns what the user's node calls it.
    const fn kind(self) -> &'static str {
        match self {
            Self::Directly => "direct",
            Self::Punched => "punched",
        }
    }

    const fn entrance(self) -> Entrance {
        match self {
            Self::Directly => Entrance::Forwarded,
            Self::Punched => Entrance::PunchedForAMoment,
        }
    }
}

/// Plays the story with these programs and tells `progress` about each step.
pub fn camera(programs: &Programs, watched: Watched, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    report.error = play(programs, watched, &mut report, &mut say).err();
    report
}

fn play(programs: &Programs, watched: Watched, report: &mut Report, say: &mut dyn FnMut(&str)) -> Result<()> {
    say(
        "building an office and a home, each behind NAT; starting an operator, three super-nodes and three nodes",
    );
    // Three super-nodes hold the whole table without the operator, and one of them dies.
    let stage = Stage::build(More { lenders: 3, entrance: watched.entrance(), ..More::NONE })?;
    let host = stage.office.plug("camera", Some(CAMERA_MAC))?;
    host.set_address(stage.office.address(CAMERA_HOST))?;
    let camera = Camera::start(&host)?;
    let mut cast = Cast::start(&stage, programs)?;
    say("registering the camera");
    cast.add_device("camera", CAMERA_MAC, &format!("rtsp={CAMERA_PORT}"))?;
    let result = watch(&mut cast, watched, report, say);
    if result.is_err() {
        say(&cast.logs());
    }
    result?;
    camera.stop()?;
    say("ending all programs in order");
    cast.stop()
}

fn watch(
    cast: &mut Cast<'_>,
    watched: Watched,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    cast.stage.let_pass(watched == Watched::Punched)?;
    cast.connect_to("camera:rtsp")?;
    let mut player = cast.agent(&["watch", &format!("rtsp://{}/live", cast.local()?), "-"])?;
    player.wait_for_line("the first picture came", PLAYER_TIMEOUT, |line| (line == "plays").then_some(()))?;
    let mut paths = Paths { began_at: Instant::now(), taken: Vec::new() };
    match watched {
        Watched::Directly => relayed_first(cast, &mut paths, say)?,
        Watched::Punched => punched_first(cast, &mut paths, say)?,
    }
    paths.follow(cast, WATCHED.saturating_sub(paths.began_at.elapsed()))?;
    let seen = end(player)?;
    paths.note(report);
    note(report, &seen);
    judge(&seen, &paths, watched)
}

/// The relay dies, another one takes its place, and then the direct path for a while.
fn relayed_first(cast: &mut Cast<'_>, paths: &mut Paths, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("the camera plays through a relay");
    paths.follow(cast, QUARTER)?;
    kill_relay(cast, say)?;
    paths.follow(cast, QUARTER)?;
    say("the direct path opens");
    cast.stage.let_pass(true)?;
    paths.follow(cast, QUARTER)?;
    say("the direct path dies");
    cast.stage.let_pass(false)
}

/// The path is punched soon, and dies for good; then the relay does that has taken its place. That it opens again is not waited for: it
/// would be looked for after up to a minute (Rule 7.26).
fn punched_first(cast: &mut Cast<'_>, paths: &mut Paths, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("the camera plays, and the path is punched");
    cast.wait_for_path("punched")?;
    paths.follow(cast, QUARTER * 2)?;
    say("the punched path dies");
    cast.stage.let_pass(false)?;
    paths.follow(cast, QUARTER)?;
    kill_relay(cast, say)
}

fn kill_relay(cast: &mut Cast<'_>, say: &mut dyn FnMut(&str)) -> Result<()> {
    let relay = cast.relay()?.context("the operator relays, although there are super-nodes")?;
    say("the relaying super-node is killed");
    cast.lenders.get_mut(relay).context("no such lender")?.kill()
}

fn end(mut player: Process) -> Result<Seen> {
    player.feed(&[]);
    let output = player.finish(PLAYER_TIMEOUT)?.success("watching the camera")?.stdout;
    let last: Value = serde_json::from_str(output.lines().last().unwrap_or_default())?;
    Seen::from_json(&last).with_context(|| format!("unexpected output: {output}"))
}

/// The paths that were taken, each with when that began.
struct Paths {
    began_at: Instant,
    taken: Vec<(Duration, String, String)>,
}

impl Paths {
    fn follow(&mut self, cast: &Cast<'_>, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let (kind, remote) = cast.path()?;
            // Between two paths there is none.
            let is_new = self.taken.last().is_none_or(|last| (&last.1, &last.2) != (&kind, &remote));
            if is_new && kind != "none" {
                self.taken.push((self.began_at.elapsed(), kind, remote));
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    fn note(&self, report: &mut Report) {
        let path = |(at, kind, remote): &(Duration, String, String)| json!({ "from_ms": milliseconds(*at), "kind": kind, "remote": remote });
        report.note("path_changes", self.taken.len().saturating_sub(1));
        report.note("paths", self.taken.iter().map(path).collect::<Vec<_>>());
    }
}

fn note(report: &mut Report, seen: &Seen) {
    report.note("seconds", seen.watched_ms / 1_000);
    for (name, number) in
        [("frames", seen.frames), ("missing_frames", seen.missing), ("largest_gap_ms", seen.largest_gap_ms)]
    {
        report.note(name, number);
    }
}

fn judge(seen: &Seen, paths: &Paths, watched: Watched) -> Result<()> {
    if let Some(complaint) = &seen.complaint {
        anyhow::bail!("the player complained: {complaint}");
    }
    ensure!(seen.missing == 0, "{} pictures did not come", seen.missing);
    ensure!(
        seen.largest_gap_ms <= MAX_GAP_MS,
        "no picture came for {} ms, which is more than {MAX_GAP_MS} ms",
        seen.largest_gap_ms
    );
    let wanted = FRAMES_PER_SECOND * (WATCHED.as_secs() - MAX_GAP_MS.div_ceil(1_000));
    ensure!(seen.frames >= wanted, "only {} pictures came instead of {wanted}", seen.frames);
    let kinds: Vec<&str> = paths.taken.iter().map(|(_, kind, _)| kind.as_str()).collect();
    ensure!(
        kinds.contains(&watched.kind())
            && (watched == Watched::Punched || kinds.first() == Some(&"relayed"))
            && kinds.last() == Some(&"relayed"),
        "the paths were {kinds:?}"
    );
    Ok(())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

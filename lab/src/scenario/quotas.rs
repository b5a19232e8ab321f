//! What a relay is lent for is what it gives: tunnels, bytes of a second, and bytes of a day. Beyond, it refuses, and what is open goes on.
//!
//! Nothing passes directly between the users and the office. First the operator relays, then three super-nodes.

use std::slice::from_mut;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Report;
use super::binary::Programs;
use super::flowing::{self, Passed};
use super::player::{Player, wait_until};
use super::village::{Cast, More, Stage};
use crate::netns::Process;

/// One pair of nodes, and less in a second than a flow would take.
const OPERATOR: [&str; 4] = ["--relay-tunnels", "1", "--relay-rate", "1500kB/s"];

/// What [`OPERATOR`] lets pass in a second.
const RATE: f64 = 1_500_000.0;

/// An operator whose day is over soon: what has passed before it was started counts too.
const SHORT_DAY: [&str; 4] = ["operator", "run", "--relay-daily", "40MB"];

/// A super-node that relays for one pair of nodes.
const LENDER: [&str; 2] = ["--max-tunnels", "1"];

/// How long bytes flow.
const FLOWING: Duration = Duration::from_secs(5);

/// How long a first byte may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// To what tunnels lead.
const SERVICE: &str = "device:raw";

/// Plays the story with these programs and tells `progress` about each step.
pub fn quotas(programs: &Programs, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    let result = act(programs, More { users: 1, relays: &OPERATOR, ..More::NONE }, &mut say, |cast, say| {
        of_the_operator(cast, &mut report, say)
    });
    let more = More { lenders: 3, users: 1, lends: &LENDER, ..More::NONE };
    report.error = result.and_then(|()| act(programs, more, &mut say, of_super_nodes)).err();
    report
}

fn act(
    programs: &Programs,
    more: More,
    say: &mut dyn FnMut(&str),
    play: impl FnOnce(&mut Cast<'_>, &mut dyn FnMut(&str)) -> Result<()>,
) -> Result<()> {
    say(&format!(
        "building an office and a home, each behind NAT; starting an operator, {} super-nodes and four nodes",
        more.lenders
    ));
    let stage = Stage::build(more)?;
    let mut cast = Cast::start(&stage, programs)?;
    stage.let_pass(false)?;
    let result = play(&mut cast, say);
    if result.is_err() {
        say(&cast.logs());
    }
    result?;
    say("ending all programs in order");
    cast.stop()
}

fn of_the_operator(cast: &mut Cast<'_>, report: &mut Report, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("a tunnel takes what the operator gives");
    let began_at = Instant::now();
    cast.connect()?;
    let mut flow = flowing::start(cast, 1)?;
    say("another one is refused");
    ensure!(is_refused(cast)?, "a second pair was relayed where one may be");
    say("it was; the first goes on");
    thread::sleep(FLOWING);
    let passed = end(cast, &mut flow)?;
    let seconds = began_at.elapsed().as_secs_f64();
    report.note("bytes_per_second", (passed.bytes as f64 / seconds).round());
    // What the relay lets pass at once when it has rested comes on top.
    ensure!(
        (passed.bytes as f64) < RATE * (seconds + 1.0),
        "{} bytes passed in {seconds:.1} s",
        passed.bytes
    );

    say("the bytes of a day are used up");
    cast.operator.start_again(&SHORT_DAY)?;
    let mut flow = flowing::start(cast, 1)?;
    wait_until("the relay takes nobody any more", || {
        Ok(if is_refused(cast)? { Ok(()) } else { Err("it takes them".into()) })
    })?;
    say("what is open goes on when the operator gives more");
    cast.operator.start_again(&["operator", "run"])?;
    let passed = end(cast, &mut flow)?;
    report.note("bytes_across_days", passed.bytes);
    Ok(())
}

fn of_super_nodes(cast: &mut Cast<'_>, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("a tunnel takes what one of them gives");
    cast.connect()?;
    let (kind, first) = cast.path()?;
    say("another one goes through the next");
    let user = second(cast)?;
    let (local, holder) = user.connect(SERVICE)?;
    let (other_kind, other) = user.path()?;
    ensure!(kind == "relayed" && other_kind == "relayed", "the paths are {kind} and {other_kind}");
    ensure!(first != other, "{first} relays for two pairs where one may be");
    for (player, local) in [(user, local), (&cast.user, cast.local()?)] {
        ensure!(
            first_byte(cast, player, &local)?,
            "nothing comes through a tunnel of {}",
            player.peerage.host().name()
        );
    }
    holder.stop()
}

fn second<'a, 'b>(cast: &'a Cast<'b>) -> Result<&'a Player<'b>> {
    cast.more_users.first().context("there is one user only")
}

/// Returns whether a tunnel of the second user leads nowhere.
fn is_refused(cast: &Cast<'_>) -> Result<bool> {
    let user = second(cast)?;
    // Whether a relay joins the two may show only when an application connects.
    let Ok((local, holder)) = user.connect(SERVICE) else { return Ok(true) };
    let has_come = first_byte(cast, user, &local)?;
    holder.stop()?;
    Ok(!has_come)
}

/// Returns whether a byte comes back through a tunnel.
fn first_byte(cast: &Cast<'_>, user: &Player<'_>, local: &str) -> Result<bool> {
    let mut process = cast.agent_of(user, &["first-byte", local, "1"])?;
    process.feed(&[]);
    Ok(process.finish(TIMEOUT)?.status.success())
}

/// Ends a flow; nothing of it may be lost.
fn end(cast: &mut Cast<'_>, flow: &mut Process) -> Result<Passed> {
    let passed = flowing::end(cast, from_mut(flow), flowing::now()?)?;
    ensure!(passed.lost == 0, "{} bytes were lost", passed.lost);
    if let Some(error) = &passed.error {
        bail!("the tunnel broke: {error}");
    }
    Ok(passed)
}

//! The events. Each lets bytes flow and something happen, and leaves everything as it was, except that a dead node stays dead.

use std::slice::from_mut;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::super::flowing::{self, Passed, now};
use super::super::village::{Cast, Entrance, More};
use super::{MANY, while_flowing};
use crate::wire::Manner;

/// How long an outage lasts, in the longest events.
const OUTAGE: Duration = Duration::from_secs(30);

/// How long processes are frozen.
const FREEZE: Duration = Duration::from_secs(20);

/// How long a bad line is endured.
const BAD_LINE: Duration = Duration::from_secs(10);

/// When the death of a path that says nothing can be noticed (Rule 7.11), in milliseconds.
const NOTICED_MS: u64 = 3_000;

/// How often the path changes from relayed to direct and back.
const CHANGES: usize = 20;

/// Has a router lose all mappings, and take up no connection from its middle.
const FORGET: &str = "\
echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose
for list in 'map ip nat external' 'map ip nat internal' 'set ip nat peers'; do
  nft flush $list 2>/dev/null || true
done
conntrack -F 2>/dev/null
";

/// Something that happens.
pub(super) struct Event {
    pub(super) name: &'static str,
    /// Whether it takes less than ten seconds.
    pub(super) is_quick: bool,
    pub(super) play: fn(&mut Cast<'_>) -> Result<Passed>,
}

/// All events, in the order in which they happen, by the networks in which they do.
pub(super) const ACTS: [(More, &[Event]); 3] = [
    (More::NONE, &EVENTS),
    (More { lenders: 3, ..More::NONE }, &EVENTS_AMONG_SUPER_NODES),
    (More { lenders: 3, entrance: Entrance::PunchedForAMoment, ..More::NONE }, &EVENTS_OF_PUNCHED_PATHS),
];

/// The events where the operator alone relays.
const EVENTS: [Event; 14] = [
    Event { name: "another network", is_quick: true, play: another_network },
    Event { name: "30 s offline", is_quick: false, play: offline },
    Event { name: "30 s of silence", is_quick: false, play: silence },
    Event { name: "user frozen for 20 s", is_quick: false, play: frozen_user },
    Event { name: "tunnel-node frozen for 20 s", is_quick: false, play: frozen_node },
    Event { name: "NAT restarts", is_quick: true, play: nat_restarts },
    Event { name: "relayed and direct, 20 times", is_quick: false, play: relayed_and_direct },
    Event { name: "relay killed", is_quick: false, play: relay_killed },
    Event { name: "500 tunnels through one relay", is_quick: false, play: many_tunnels },
    Event { name: "loss of 5 %", is_quick: false, play: loss },
    Event { name: "reordering", is_quick: false, play: reordering },
    Event { name: "black hole above 1,280 bytes", is_quick: false, play: black_hole },
    Event { name: "tunnel-node vanishes", is_quick: false, play: node_vanishes },
    Event { name: "tunnel-node dies", is_quick: false, play: node_dies },
];

/// The events where super-nodes relay.
const EVENTS_AMONG_SUPER_NODES: [Event; 2] = [
    Event { name: "relaying super-node killed", is_quick: false, play: super_node_killed },
    Event { name: "direct path dies, one super-node being dead", is_quick: false, play: direct_dies },
];

/// The events where a path is punched through translators that forget a mapping after 20 s.
const EVENTS_OF_PUNCHED_PATHS: [Event; 4] = [
    Event { name: "mappings live for 20 s, and nothing flows for 30 s", is_quick: false, play: idle },
    Event { name: "another network, the path being punched", is_quick: false, play: punched_moves },
    Event { name: "NAT restarts, the path being punched", is_quick: false, play: punched_nat_restarts },
    Event { name: "the punched path is cut for 30 s", is_quick: false, play: punched_is_cut },
];

/// The user carries the computer to another LAN with other addresses, and home again afterwards.
fn another_network(cast: &mut Cast<'_>) -> Result<Passed> {
    let passed = while_flowing(cast, 1, |cast| {
        cast.stage.cafe.take_in(&cast.stage.user)?;
        now()
    });
    cast.stage.home.take_in(&cast.stage.user)?;
    passed
}

/// The user's interface goes down, and comes back.
fn offline(cast: &mut Cast<'_>) -> Result<Passed> {
    while_flowing(cast, 1, |cast| {
        let user = &cast.stage.user;
        user.script("ip link set eth0 down\n")?;
        thread::sleep(OUTAGE);
        user.script("ip link set eth0 up\n")?;
        user.set_address(user.address())?;
        now()
    })
}

/// Nothing gets through, and nobody is told.
fn silence(cast: &mut Cast<'_>) -> Result<Passed> {
    while_flowing(cast, 1, |cast| {
        cast.stage.silence(true)?;
        thread::sleep(OUTAGE);
        cast.stage.silence(false)?;
        now()
    })
}

fn frozen_user(cast: &mut Cast<'_>) -> Result<Passed> {
    while_flowing(cast, 1, |cast| {
        cast.user.process()?.signal(Signal::SIGSTOP)?;
        cast.holder()?.signal(Signal::SIGSTOP)?;
        thread::sleep(FREEZE);
        cast.user.process()?.signal(Signal::SIGCONT)?;
        cast.holder()?.signal(Signal::SIGCONT)?;
        now()
    })
}

fn frozen_node(cast: &mut Cast<'_>) -> Result<Passed> {
    while_flowing(cast, 1, |cast| {
        cast.wait_for_path("direct")?;
        let serving = cast.serving()?;
        let node = cast.nodes.get_mut(serving).context("no such node")?.process()?;
        node.signal(Signal::SIGSTOP)?;
        thread::sleep(FREEZE);
        node.signal(Signal::SIGCONT)?;
        now()
    })
}

/// Both routers lose all mappings and take up no connection from its middle, so that the old ones lead nowhere.
fn nat_restarts(cast: &mut Cast<'_>) -> Result<Passed> {
    while_flowing(cast, 1, |cast| {
        for site in [&cast.stage.home, &cast.stage.office] {
            site.router().script(FORGET)?;
        }
        Ok(now()? + NOTICED_MS)
    })
}

/// The direct path dies and comes back, again and again; the tunnel changes to the relay's each time, and back.
fn relayed_and_direct(cast: &mut Cast<'_>) -> Result<Passed> {
    let mut flow = flowing::start(cast, 1)?;
    let since = now()?;
    for _change in 0..CHANGES {
        cast.wait_for_path("direct")?;
        cast.stage.let_pass(false)?;
        cast.wait_for_path("relayed")?;
        cast.stage.let_pass(true)?;
    }
    cast.wait_for_path("direct")?;
    let passed = flowing::end(cast, from_mut(&mut flow), since)?;
    Ok(Passed { stall_ms: passed.stall_ms.saturating_sub(NOTICED_MS), ..passed })
}

/// The relay dies through which the tunnel goes, and is started again.
fn relay_killed(cast: &mut Cast<'_>) -> Result<Passed> {
    cast.stage.let_pass(false)?;
    let passed = while_flowing(cast, 1, |cast| {
        cast.wait_for_path("relayed")?;
        cast.operator.kill()?;
        cast.operator.start()?;
        now()
    });
    cast.stage.let_pass(true)?;
    passed
}

/// The super-node dies through which the tunnel goes, and stays dead.
fn super_node_killed(cast: &mut Cast<'_>) -> Result<Passed> {
    cast.stage.let_pass(false)?;
    let passed = while_flowing(cast, 1, |cast| {
        cast.wait_for_path("relayed")?;
        let relay = cast.relay()?.context("the operator relays, although there are super-nodes")?;
        cast.lenders.get_mut(relay).context("no such lender")?.kill()?;
        now()
    });
    cast.stage.let_pass(true)?;
    passed
}

/// The direct path dies without a word, after a super-node did that may be the one that both ends know best.
fn direct_dies(cast: &mut Cast<'_>) -> Result<Passed> {
    let passed = while_flowing(cast, 1, |cast| {
        cast.wait_for_path("direct")?;
        cast.stage.let_pass(false)?;
        Ok(now()? + NOTICED_MS)
    });
    cast.stage.let_pass(true)?;
    passed
}

/// Nothing flows for longer than a mapping lives: what keeps the path alive must keep its mappings, too.
fn idle(cast: &mut Cast<'_>) -> Result<Passed> {
    let mut flow = flowing::start(cast, 1)?;
    cast.wait_for_path("punched")?;
    flowing::end(cast, from_mut(&mut flow), now()?)?;
    thread::sleep(OUTAGE);
    let began_at = now()?;
    let mut flow = flowing::start(cast, 1)?;
    let begins_ms = now()? - began_at;
    let path = cast.path()?.0;
    ensure!(path == "punched", "the path is {path} by now");
    thread::sleep(super::AFTER);
    let passed = flowing::end(cast, from_mut(&mut flow), began_at)?;
    Ok(Passed { stall_ms: passed.stall_ms.max(begins_ms), ..passed })
}

fn punched_moves(cast: &mut Cast<'_>) -> Result<Passed> {
    punched(cast, another_network)
}

fn punched_nat_restarts(cast: &mut Cast<'_>) -> Result<Passed> {
    punched(cast, nat_restarts)
}

/// Both ends go on by a relay for longer than a mapping lives, and find the path again when there is one.
fn punched_is_cut(cast: &mut Cast<'_>) -> Result<Passed> {
    punched(cast, |cast| {
        while_flowing(cast, 1, |cast| {
            cast.stage.let_pass(false)?;
            let since = now()? + NOTICED_MS;
            cast.wait_for_path("relayed")?;
            thread::sleep(OUTAGE);
            cast.stage.let_pass(true)?;
            Ok(since)
        })
    })
}

/// Lets something happen to a punched path, which has to be there again afterwards.
fn punched(cast: &mut Cast<'_>, event: fn(&mut Cast<'_>) -> Result<Passed>) -> Result<Passed> {
    let mut flow = flowing::start(cast, 1)?;
    cast.wait_for_path("punched")?;
    let passed = event(cast)?;
    cast.wait_for_path("punched")?;
    flowing::end(cast, from_mut(&mut flow), now()?)?;
    Ok(passed)
}

fn many_tunnels(cast: &mut Cast<'_>) -> Result<Passed> {
    cast.stage.let_pass(false)?;
    let passed = while_flowing(cast, MANY, |cast| {
        cast.wait_for_path("relayed")?;
        now()
    });
    cast.stage.let_pass(true)?;
    passed
}

fn loss(cast: &mut Cast<'_>) -> Result<Passed> {
    bad_line(cast, Manner { delay: Duration::from_millis(10), lost_per_mille: 50, ..Manner::default() }, 0)
}

fn reordering(cast: &mut Cast<'_>) -> Result<Passed> {
    bad_line(cast, Manner { delay: Duration::from_millis(10), late_per_mille: 100, ..Manner::default() }, 0)
}

/// Long packets vanish, and no router says so.
fn black_hole(cast: &mut Cast<'_>) -> Result<Passed> {
    bad_line(cast, Manner { mtu: 1_280, ..Manner::default() }, NOTICED_MS)
}

fn bad_line(cast: &mut Cast<'_>, manner: Manner, allowance_ms: u64) -> Result<Passed> {
    let passed = while_flowing(cast, 1, |cast| {
        cast.set_wires(manner)?;
        let since = now()? + allowance_ms;
        thread::sleep(BAD_LINE);
        Ok(since)
    });
    cast.set_wires(Manner::default())?;
    passed
}

/// The computer of the node that the tunnel leads to loses its network, and nobody is told: new connections go through the other node.
fn node_vanishes(cast: &mut Cast<'_>) -> Result<Passed> {
    let mut flow = flowing::start(cast, 1)?;
    cast.wait_for_path("direct")?;
    let serving = cast.serving()?;
    let host = cast.stage.nodes.get(serving).context("no such node")?;
    host.script("ip link set eth0 down\n")?;
    let vanished_at = now()?;
    flow.kill()?;
    let mut later = flowing::start(cast, 1)?;
    let begins_ms = (now()? - vanished_at).saturating_sub(NOTICED_MS);
    ensure!(cast.serving()? != serving, "the tunnel still leads to the node that has vanished");
    thread::sleep(super::AFTER);
    let passed = flowing::end(cast, from_mut(&mut later), vanished_at + NOTICED_MS)?;
    host.script("ip link set eth0 up\n")?;
    host.set_address(host.address())?;
    Ok(Passed { stall_ms: passed.stall_ms.max(begins_ms), ..passed })
}

/// The node dies that the tunnel leads to: its connections are gone, as they would be if the device died, but new ones
/// go through the other node.
fn node_dies(cast: &mut Cast<'_>) -> Result<Passed> {
    let mut flow = flowing::start(cast, 1)?;
    cast.wait_for_path("direct")?;
    let serving = cast.serving()?;
    cast.nodes.get_mut(serving).context("no such node")?.kill()?;
    let died_at = now()?;
    flow.kill()?;
    let mut later = flowing::start(cast, 1)?;
    let begins_ms = now()? - died_at;
    ensure!(cast.serving()? != serving, "the tunnel still leads to the dead node");
    thread::sleep(super::AFTER);
    let passed = flowing::end(cast, from_mut(&mut later), died_at)?;
    Ok(Passed { stall_ms: passed.stall_ms.max(begins_ms), ..passed })
}

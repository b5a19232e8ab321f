//! Throughput where there is no direct TCP connection: through a relay, and over QUIC on a UDP path.
//!
//! Both run in a network namespace with nothing but a loopback interface, in which a firewall keeps the two nodes apart; so they need
//! `unshare`, `ip` and `nft`, and a kernel that allows user namespaces.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    How,
    machine::cpu,
    network::Running,
    peers,
    report::{Case, Report, median},
    tcp::{self, Direction},
    tunnel::{Scene, Way, compare},
};

/// What is missing where a program cannot be started.
pub(super) const NO_UNSHARE: &str = "simulated networks need the program `unshare` (package util-linux)";
pub(super) const NO_IP: &str = "simulated networks need the program `ip` (package iproute2)";

/// What is kept from passing between the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    Tcp,
    TcpAndUdp,
}

/// Runs this command once more in a network namespace of its own, and ends with it.
///
/// # Errors
/// When there are no namespaces to be had.
pub(super) fn go_inside() -> Result<std::process::ExitStatus> {
    let mut command = unshared()?;
    command.args(std::env::args_os().skip(1)).arg("--inside");
    command.status().context(NO_UNSHARE)
}

/// Returns the command that runs this program in a network namespace of its own, and ends with it; its arguments follow.
pub(super) fn unshared() -> Result<Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--kill-child", "--fork", "--"]).arg(program);
    Ok(command)
}

/// Keeps users and sites apart: each user from each site.
pub(super) fn block<'a>(
    what: Blocked,
    users: impl IntoIterator<Item = &'a Running>,
    sites: impl IntoIterator<Item = &'a Running>,
) -> Result<()> {
    let (users, sites) = (ports(users)?, ports(sites)?);
    let mut rules = format!(
        "add table inet bench\n\
         add chain inet bench out {{ type filter hook output priority 0; }}\n\
         add rule inet bench out tcp dport {{ {users}, {sites} }} tcp flags & (syn | ack) == syn reject with tcp reset\n"
    );
    if what == Blocked::TcpAndUdp {
        for (from, to) in [(&users, &sites), (&sites, &users)] {
            rules += &format!("add rule inet bench out udp sport {{ {from} }} udp dport {{ {to} }} drop\n");
        }
    }
    let mut firewall = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
    let firewall = firewall.as_mut().ok().context("a firewall needs the program `nft` (package nftables)")?;
    if let Some(mut input) = firewall.stdin.take() {
        input.write_all(rules.as_bytes())?;
    }
    ensure!(firewall.wait()?.success(), "the firewall does not take its rules");
    Ok(())
}

/// Returns the ports of nodes as a firewall takes them.
fn ports<'a>(nodes: impl IntoIterator<Item = &'a Running>) -> Result<String> {
    let ports = nodes.into_iter().map(|node| Ok(node.port()?.to_string())).collect::<Result<Vec<_>>>()?;
    Ok(ports.join(", "))
}

/// Starts an interface of the namespace.
pub(super) fn interface_up(name: &str) -> Result<()> {
    let status = Command::new("ip").args(["link", "set", name, "up"]).status().context(NO_IP)?;
    ensure!(status.success(), "the interface {name} of the namespace does not start");
    Ok(())
}

/// Sets up two scenes: one where nothing is blocked, and one where this is.
fn scenes(what: Blocked) -> Result<[Scene; 2]> {
    interface_up("lo")?;
    let open = Scene::set_up()?;
    open.network.settle(&open.user, &open.tunnel, |kind| kind == "direct")?;
    let blocked = Scene::set_up_behind(|user, site| block(what, [user], [site]))?;
    let is_relayed = what == Blocked::TcpAndUdp;
    let told = blocked.network.settle(&blocked.user, &blocked.tunnel, |kind| {
        !kind.is_empty() && (kind == "relayed") == is_relayed
    })?;
    if told == "local" {
        bail!("the user's node takes itself to be beside the device");
    }
    Ok([open, blocked])
}

/// Through the operator's relay, against the direct tunnel.
pub(super) fn relay(how: &How) -> Result<Report> {
    let [open, blocked] = scenes(Blocked::TcpAndUdp)?;
    let (direct, mut relayed) = (open.tunnelled(), blocked.tunnelled());
    let relay = blocked.network.operator.process();
    relayed.processes.push(relay);
    let mut cases = Vec::new();
    for streams in [1, 8] {
        for way in Direction::BOTH {
            let case = compare(how, (&direct, &relayed), way, streams)?;
            cases.push(case.with("relay_cpu_s_per_gib", relay_cost(how, &relayed, relay, way, streams)?));
        }
    }
    Report::new("relay", "GB/s", "the direct tunnel", cases)
}

/// What a GiB costs the relay alone.
fn relay_cost(how: &How, relayed: &Way, relay: u32, way: Direction, streams: u64) -> Result<f64> {
    let bytes: u64 = if how.is_instant() { 8 << 20 } else { 256 << 20 };
    let mut costs = Vec::new();
    for _ in 0..how.runs() {
        let before = cpu(relay);
        tcp::transfer(relayed.at, way, bytes, streams)?;
        let spent = cpu(relay).saturating_sub(before).as_secs_f64();
        costs.push(spent * f64::from(1 << 30) / bytes as f64);
    }
    Ok(median(costs))
}

/// Over QUIC on a UDP path between the nodes' own ports, against two plain hops over TCP; and against dumbpipe, if it is told where that is.
pub(super) fn punched(how: &How, programs: Option<&Path>) -> Result<Report> {
    let [open, blocked] = scenes(Blocked::Tcp)?;
    let (plain, punched) = (open.plain()?, blocked.tunnelled());
    let mut cases = both_ways(how, (&plain, &punched))?;
    if let Some(programs) = programs {
        let other = peers::start_dumbpipe(programs, blocked.device.listen()?)?;
        let beside = both_ways(how, (&peers::way(&other), &punched))?;
        cases.extend(beside.into_iter().map(|case| case.against("dumbpipe")));
    }
    Report::new("punched", "GB/s", "two plain copying hops with buffers of 64 KiB, over TCP", cases)
}

/// Compares two ways with one stream and with several, in both directions.
fn both_ways(how: &How, ways: (&Way, &Way)) -> Result<Vec<Case>> {
    let cases = [1, 8].into_iter().flat_map(|streams| Direction::BOTH.map(|way| (way, streams)));
    cases.map(|(way, streams)| compare(how, ways, way, streams)).collect()
}

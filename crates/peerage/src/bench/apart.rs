//! An operator and one who asks it, in two network namespaces that a pair of virtual interfaces connects.
//!
//! The operator runs in the namespace of this process; the thread that asks goes to another. So this needs `unshare` and `ip`, and a kernel
//! that allows user namespaces.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use peerage_wire::message::Request;
use serde::{Deserialize, Serialize};

use super::{How, crowd::Operator, network::Network, paths};

/// Where the two are: addresses that are kept for measuring (RFC 2544).
const OPERATOR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ASKER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Answers a second, of each run.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Rates {
    pub(super) pings: Vec<f64>,
    pub(super) get_nodes: Vec<f64>,
}

/// Measures in namespaces of its own.
///
/// # Errors
/// When there are none to be had.
pub(super) fn rates(how: &How) -> Result<Rates> {
    let (runs, seconds) = (how.runs().to_string(), how.length().as_secs_f64().to_string());
    let mut command = paths::unshared()?;
    command.args(["bench", "part", "apart", "--runs", &runs, "--seconds", &seconds, "--json"]);
    let output = command.stderr(Stdio::piped()).output().context(paths::NO_UNSHARE)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", told.lines().last().unwrap_or("no namespaces can be had"));
    serde_json::from_slice(&output.stdout).context("the process in the namespace said something else")
}

/// Measures, as a process that has a namespace to itself.
pub(super) fn inside(how: How) -> Result<Rates> {
    paths::interface_up("lo")?;
    ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"])?;
    take("near", OPERATOR)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let network = Network::start_with(program, OPERATOR)?;
    let (operator, process) = (Operator::find(&network)?, network.operator.process());
    let ((tell, told), (hand_over, handed_over)) = (mpsc::channel(), mpsc::channel());
    let asker = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("another namespace cannot be had")?;
        tell.send(gettid())?;
        handed_over.recv()?;
        take("far", ASKER)?;
        let rate = |request: &Request| -> Result<f64> {
            // Each time another member: a context serves a limited number of messages.
            let count = operator.crowd(1, process)?.flood_openly(how.length(), request)?;
            ensure!(count.answers > 0, "the operator does not answer");
            Ok(count.per_second())
        };
        let rates = |request: &Request| (0..how.runs()).map(|_| rate(request)).collect::<Result<Vec<f64>>>();
        Ok(Rates { pings: rates(&Request::Ping)?, get_nodes: rates(&Request::GetNode(operator.id))? })
    });
    // Without a word from it, its result says why.
    if let Ok(thread) = told.recv() {
        ip(&["link", "set", "far", "netns", &thread.to_string()])?;
        _ = hand_over.send(());
    }
    asker.join().map_err(|_| anyhow!("the thread that asks has failed"))?
}

/// Gives an interface of the namespace of this thread its address.
fn take(interface: &str, address: Ipv4Addr) -> Result<()> {
    ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
    paths::interface_up(interface)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context(paths::NO_IP)?;
    ensure!(status.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}

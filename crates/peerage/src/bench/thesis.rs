//! The measurements of the thesis (Ynddal 2016, section 6.2), with its figures beside.
//!
//! They were taken in 2013 on a laptop, without encryption and signatures; here everything is sealed. The ratios therefore compare two
//! machines as well, and say only that the successor is not slower than what was once good enough.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{
    How, apart,
    crowd::Operator,
    many,
    network::Network,
    report::{Case, Report, Run},
    scp,
    tcp::{self, Direction},
    tunnel::Scene,
};
use peerage_wire::message::Request;

/// Answers to Pings and to GetNode a second, on the loopback interface.
const PINGS: f64 = 121_288.0;
const GET_NODES: f64 = 72_125.0;

/// The same between two computers; of the Pings it says that they were 89 % of those on the loopback interface.
const PINGS_APART: f64 = 0.89 * PINGS;
const GET_NODES_APART: f64 = 74_048.0;

/// How much more a build with optimisation answered.
const OPTIMISED: f64 = 1.26;

/// Millions of bytes a second of a file copied through a tunnel.
const TUNNELLED: f64 = 10.56;

/// Tunnels that were open when the next failed for want of descriptors.
const TUNNELS: f64 = 750.0;

/// Most tunnels that are tried: more than a node takes of one other.
const MAX_TRIED: u32 = 1_200;

/// Bytes that are copied.
pub(super) const FILE_BYTES: u64 = 1 << 30;

/// Measures what the thesis measured.
pub(super) fn thesis(how: &How, debug_build: Option<&Path>) -> Result<Report> {
    let (mut cases, mut absent) = asked(how, debug_build)?;
    let scene = Scene::set_up()?;
    scene.network.settle(&scene.user, &scene.tunnel, |kind| kind == "direct")?;
    let bytes = if how.is_instant() { 8 << 20 } else { FILE_BYTES };
    let (mut copied, mut plainly) = (Vec::new(), Vec::new());
    for _ in 0..how.runs() {
        let rate = |took: std::time::Duration| bytes as f64 / 1e6 / took.as_secs_f64();
        let plain = rate(tcp::transfer(scene.device.listen()?, Direction::Down, bytes, 1)?);
        let own = rate(tcp::transfer(scene.tunnel.at, Direction::Down, bytes, 1)?);
        copied.push(Run::new(own, TUNNELLED));
        plainly.push(own / plain);
    }
    let part = super::report::median(plainly);
    cases.push(Case::new("MB/s of 1 GiB through a tunnel", copied).with("part_of_the_plain_copy", part));
    match scp::copied(how, TUNNELLED) {
        Ok(case) => cases.push(case),
        Err(error) => absent.push(format!("scp: {error:#}")),
    }
    let tried = if how.is_instant() { 8 } else { MAX_TRIED };
    let (open, goes_on) = many::until_refused(&scene, tried)?;
    ensure!(goes_on, "the tunnels that are open do not go on when others are refused");
    let open = Case::new("tunnels until the next was refused", vec![Run::new(open as f64, TUNNELS)]);
    cases.push(open.with("those_that_are_open_go_on", goes_on));
    if let Some(first) = cases.first_mut()
        && !absent.is_empty()
    {
        first.note("not_measured", absent);
    }
    Report::new("thesis", "answers a second, MB/s, tunnels", "what the thesis measured in 2013", cases)
}

/// Has one member ask an operator in an open loop: on the loopback interface, with a build without optimisation if there is one, and between
/// two network namespaces. Returns also what could not be measured.
fn asked(how: &How, debug_build: Option<&Path>) -> Result<(Vec<Case>, Vec<String>)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let own = Asking::start(&program)?;
    let slow = debug_build.map(Asking::start).transpose()?;
    let get_node = Request::GetNode(own.operator.id);
    let kinds =
        [("Ping", Request::Ping, PINGS, PINGS_APART), ("GetNode", get_node, GET_NODES, GET_NODES_APART)];
    let (mut cases, mut on_loopback) = (Vec::new(), Vec::new());
    for (name, request, reference, _) in &kinds {
        let (mut runs, mut slower) = (Vec::new(), Vec::new());
        for _ in 0..how.runs() {
            let rate = own.rate(how, request)?;
            runs.push(Run::new(rate, *reference));
            if let Some(slow) = &slow {
                // A record that the other operator holds.
                let request =
                    if *name == "Ping" { Request::Ping } else { Request::GetNode(slow.operator.id) };
                slower.push(Run::new(rate, slow.rate(how, &request)?));
            }
        }
        let case = Case::new(format!("{name}, answers a second"), runs);
        on_loopback.push(case.value);
        cases.push(case);
        if !slower.is_empty() {
            let name = format!("{name}, answers a second, against a build without optimisation");
            cases.push(Case::new(name, slower).with("ratio_of_the_thesis", OPTIMISED));
        }
    }
    let apart = match apart::rates(how) {
        Ok(apart) => apart,
        Err(error) => return Ok((cases, vec![format!("two namespaces: {error:#}")])),
    };
    for (((name, _, _, reference), rates), near) in
        kinds.iter().zip([apart.pings, apart.get_nodes]).zip(on_loopback)
    {
        let runs = rates.into_iter().map(|rate| Run::new(rate, *reference)).collect();
        let case = Case::new(format!("{name}, answers a second between two namespaces"), runs);
        let part = case.value / near;
        cases.push(case.with("part_of_that_on_loopback", part));
    }
    Ok((cases, Vec::new()))
}

/// One member that asks an operator on this computer.
struct Asking {
    operator: Operator,
    network: Network,
}

impl Asking {
    fn start(program: &Path) -> Result<Self> {
        let network = Network::start_with(program.to_owned(), Ipv4Addr::LOCALHOST)?;
        let operator = Operator::find(&network)?;
        Ok(Self { operator, network })
    }

    fn rate(&self, how: &How, request: &Request) -> Result<f64> {
        // Each time another member: a context serves a limited number of messages.
        let mut crowd = self.operator.crowd(1, self.network.operator.process())?;
        let count = crowd.flood_openly(how.length(), request)?;
        ensure!(count.answers > 0, "the operator does not answer");
        Ok(count.per_second())
    }
}

//! The measurements of the thesis (Ynddal 2016, section 6.2), with its figures beside.
//!
//! They were taken in 2013 on a laptop, without encryption and signatures; here everything is sealed. The ratios therefore compare two
//! machines as well, and say only that the successor is not slower than what was once good enough.

use anyhow::{Result, ensure};

use super::{
    How, many,
    messages::Responder,
    report::{Case, Report, Run},
    scp,
    tcp::{self, Direction},
    tunnel::Scene,
};
use peerage_wire::message::Request;

/// Answers to Pings and to GetNode a second, on the loopback interface.
const PINGS: f64 = 121_288.0;
const GET_NODES: f64 = 72_125.0;

/// Millions of bytes a second of a file copied through a tunnel.
const TUNNELLED: f64 = 10.56;

/// Tunnels that were open when the next failed for want of descriptors.
const TUNNELS: f64 = 750.0;

/// Most tunnels that are tried: more than a node takes of one other.
const MAX_TRIED: u32 = 1_200;

/// Bytes that are copied.
pub(super) const FILE_BYTES: u64 = 1 << 30;

/// Measures what the thesis measured.
pub(super) fn thesis(how: &How) -> Result<Report> {
    let mut cases = asked(how)?;
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
    let absent = match scp::copied(how, TUNNELLED) {
        Ok(case) => {
            cases.push(case);
            None
        }
        Err(error) => Some(format!("scp: {error:#}")),
    };
    let tried = if how.is_instant() { 8 } else { MAX_TRIED };
    let (open, goes_on) = many::until_refused(&scene, tried)?;
    ensure!(goes_on, "the tunnels that are open do not go on when others are refused");
    let open = Case::new("tunnels until the next was refused", vec![Run::new(open as f64, TUNNELS)]);
    cases.push(open.with("those_that_are_open_go_on", goes_on));
    if let (Some(absent), Some(first)) = (absent, cases.first_mut()) {
        first.note("not_measured", absent);
    }
    Report::new("thesis", "answers a second, MB/s, tunnels", "what the thesis measured in 2013", cases)
}

fn asked(how: &How) -> Result<Vec<Case>> {
    let mut responder = Responder::start(1)?;
    let get_node = Request::GetNode(responder.id());
    let mut cases = Vec::new();
    for (name, request, reference) in [("Ping", Request::Ping, PINGS), ("GetNode", get_node, GET_NODES)] {
        let mut runs = Vec::new();
        for _ in 0..how.runs() {
            runs.push(Run::new(responder.flood(how.length(), &request)?, reference));
        }
        cases.push(Case::new(format!("{name}, answers a second"), runs));
    }
    Ok(cases)
}

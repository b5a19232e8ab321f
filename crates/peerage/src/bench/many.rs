//! Many tunnels at once, and what the thesis did.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    How,
    machine::{milliseconds, resident},
    network::{Running, Tunnel},
    report::{Case, Report, Run, median, quantile},
    tcp,
    tunnel::Scene,
};

/// What an open tunnel may take in each node, in KiB.
const TARGET_KIB: f64 = 24.0;

/// Nodes that have a part of each tunnel.
const ENDS: f64 = 2.0;

/// Most connections through the plain hops: each takes two descriptors of a hop, and some systems allow no more than 20,000.
const MAX_PLAIN: u32 = 8_000;

/// Threads that open tunnels.
pub(super) const OPENERS: usize = 8;

/// Tunnels of each user's node: one that serves takes a few more of another.
const TUNNELS_OF_A_USER: u32 = 1_000;

/// Users beside the first.
const MORE_USERS: [&str; 9] =
    ["user-2", "user-3", "user-4", "user-5", "user-6", "user-7", "user-8", "user-9", "user-10"];

/// What a whole measurement has left for the tunnels.
#[derive(Debug, Default)]
struct Opened {
    streams: Vec<TcpStream>,
    milliseconds: Vec<f64>,
    refused: u32,
}

/// Opens so many tunnels from several threads, through each of these ports in turn, and stops where nothing opens any more.
fn open_all(at: &[SocketAddr], count: u32) -> Result<Opened> {
    let ports: Vec<_> = at.iter().copied().cycle().take(count as usize).collect();
    let each = ports.len().div_ceil(OPENERS).max(1);
    let open = |ports: Vec<SocketAddr>| {
        let mut opened = Opened::default();
        for at in ports {
            match tcp::first_byte(at) {
                Ok((stream, took)) => {
                    opened.streams.push(stream);
                    opened.milliseconds.push(milliseconds(took));
                }
                Err(_refused) => {
                    opened.refused += 1;
                    break;
                }
            }
        }
        opened
    };
    let threads: Vec<_> =
        ports.chunks(each).map(<[_]>::to_vec).map(|ports| thread::spawn(move || open(ports))).collect();
    let mut all = Opened::default();
    for thread in threads {
        let Ok(opened) = thread.join() else { continue };
        all.streams.extend(opened.streams);
        all.milliseconds.extend(opened.milliseconds);
        all.refused += opened.refused;
    }
    Ok(all)
}

/// Opens many tunnels and keeps them open: how fast, at what price in memory, and whether all of them still work.
pub(super) fn tunnels(how: &How, count: u32) -> Result<Report> {
    let scene = Scene::set_up()?;
    scene.network.settle(&scene.user, &scene.tunnel, |kind| kind == "direct")?;
    let more = more_users(&scene, count)?;
    let mut tunnels = vec![scene.tunnel.at];
    tunnels.extend(more.iter().map(|(_, tunnel)| tunnel.at));
    let mut nodes = vec![scene.user.process(), scene.site.process()];
    nodes.extend(more.iter().map(|(user, _)| user.process()));
    let (case, grown) = turns(how, count, (scene.plain()?.at, &tunnels), &nodes)?;
    Report::new("tunnels", UNIT, REFERENCE, vec![case, memory_case(grown)])
}

/// What the benches of many tunnels count, and with what they compare it.
pub(super) const UNIT: &str = "tunnels a second";
pub(super) const REFERENCE: &str = "connections through two plain copying hops";

/// Returns the case of how much memory a tunnel takes in each node, of what it takes in all.
pub(super) fn memory_case(kib_in_all: f64) -> Case {
    let each = kib_in_all / ENDS;
    Case::new("KiB a tunnel and node, against the target of 24", vec![Run::new(each, TARGET_KIB)])
}

/// Opens so many connections through the plain port and through these tunnels, in turns; returns how that went, and by how many KiB for
/// each tunnel these processes have grown.
pub(super) fn turns(
    how: &How,
    count: u32,
    (plain, tunnels): (SocketAddr, &[SocketAddr]),
    processes: &[u32],
) -> Result<(Case, f64)> {
    // What a run of each kind needs once is not counted to those that follow.
    drop((open_all(&[plain], 64)?, open_all(tunnels, 64)?));
    let (mut rates, mut first, mut again) = (Vec::new(), [Vec::new(), Vec::new()], Vec::new());
    let (mut most, mut refused, mut memory) = (0, 0, None);
    for _ in 0..how.runs() {
        let began_at = Instant::now();
        let reference = open_all(&[plain], count.min(MAX_PLAIN))?;
        let plain_rate = reference.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        let before = occupied(processes);
        let [of_reference, of_own] = &mut first;
        of_reference.extend(reference.milliseconds);
        drop(reference.streams);
        let began_at = Instant::now();
        let mut own = open_all(tunnels, count)?;
        let rate = own.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        ensure!(!own.streams.is_empty(), "no tunnel opens");
        // Only the first turn takes memory that nobody has used before.
        memory = memory.or_else(|| Some((occupied(processes) - before).max(1.0) / own.streams.len() as f64));
        rates.push(Run::new(rate, plain_rate));
        of_own.extend(own.milliseconds);
        most = most.max(own.streams.len());
        refused += own.refused;
        again.extend(all_again(&mut own.streams)?);
    }
    let [of_reference, of_own] = first;
    let case = Case::new("tunnels opened a second", rates)
        .with("open_at_once", most)
        .with("all_of_them_answered", again.len() / how.runs() as usize)
        .with("refused", refused)
        .with("first_byte_p50_ms", median(of_own.clone()))
        .with("reference_first_byte_p50_ms", median(of_reference.clone()))
        .with("first_byte_p99_ms", quantile(of_own, 0.99))
        .with("reference_first_byte_p99_ms", quantile(of_reference, 0.99))
        .with("round_trip_with_all_open_p99_ms", quantile(again, 0.99));
    Ok((case, memory.unwrap_or_default()))
}

/// Returns how many KiB these processes occupy together.
pub(super) fn occupied(processes: &[u32]) -> f64 {
    processes.iter().copied().map(resident).sum::<u64>() as f64 / 1_024.0
}

/// Sends a byte on each and waits for it to come back; returns how many milliseconds each took.
///
/// # Errors
/// When one does not answer.
fn all_again(streams: &mut [TcpStream]) -> Result<Vec<f64>> {
    let of = streams.len();
    let took: Vec<f64> =
        streams.iter_mut().filter_map(|stream| tcp::again(stream).ok()).map(milliseconds).collect();
    ensure!(took.len() == of, "{} of {of} tunnels are dead", of - took.len());
    Ok(took)
}

/// Starts as many more users as so many tunnels need, each with a port that leads to the device.
fn more_users(scene: &Scene, count: u32) -> Result<Vec<(Running, Tunnel)>> {
    let more = count.div_ceil(TUNNELS_OF_A_USER).saturating_sub(1) as usize;
    let start = |name: &&'static str| {
        let user = scene.network.node(name, None)?;
        let tunnel = scene.network.connect(&user, "device")?;
        scene.network.settle(&user, &tunnel, |kind| kind == "direct")?;
        Ok((user, tunnel))
    };
    MORE_USERS.iter().take(more).map(start).collect()
}

/// Opens tunnels until one is refused, then looks whether those that are open go on.
pub(super) fn until_refused(scene: &Scene, most: u32) -> Result<(usize, bool)> {
    let mut open = Vec::new();
    while open.len() < most as usize {
        match tcp::first_byte(scene.tunnel.at) {
            Ok((stream, _)) => open.push(stream),
            Err(_refused) => break,
        }
    }
    let last = open.last_mut().context("no tunnel opens")?;
    let goes_on = tcp::again(last).is_ok() && open.first_mut().is_some_and(|first| tcp::again(first).is_ok());
    Ok((open.len(), goes_on))
}

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
    report::{Case, Report, Run, quantile},
    tcp,
    tunnel::Scene,
};

/// What an open tunnel may take in each node, in KiB.
const TARGET_KIB: f64 = 24.0;

/// Nodes that have a part of each tunnel.
const ENDS: f64 = 2.0;

/// Threads that open tunnels.
const OPENERS: usize = 8;

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
    let plain = [scene.plain()?.at];
    let mut nodes = vec![scene.user.process(), scene.site.process()];
    nodes.extend(more.iter().map(|(user, _)| user.process()));
    let memory_of_all = || nodes.iter().copied().map(resident).sum::<u64>();
    // What a run of each kind needs once is not counted to those that follow.
    drop((open_all(&plain, 64)?, open_all(&tunnels, 64)?));
    let (mut rates, mut memory, mut slow) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    let (mut most, mut refused, mut alive) = (0, 0, 0);
    for _ in 0..how.runs() {
        let began_at = Instant::now();
        let reference = open_all(&plain, count)?;
        let plain_rate = reference.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        slow.1.push(quantile(reference.milliseconds.clone(), 0.99));
        drop(reference);
        let before = memory_of_all();
        let began_at = Instant::now();
        let mut own = open_all(&tunnels, count)?;
        let rate = own.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        ensure!(!own.streams.is_empty(), "no tunnel opens");
        let grown = memory_of_all().saturating_sub(before);
        // Only the first turn takes memory that nobody has used before.
        if memory.is_empty() {
            let each = grown.max(1) as f64 / 1_024.0 / own.streams.len() as f64 / ENDS;
            memory.push(Run::new(each, TARGET_KIB));
        }
        rates.push(Run::new(rate, plain_rate));
        slow.0.push(quantile(own.milliseconds.clone(), 0.99));
        most = most.max(own.streams.len());
        refused += own.refused;
        alive = own.streams.iter_mut().filter_map(|stream| tcp::again(stream).ok()).count();
        ensure!(
            alive == own.streams.len(),
            "{} of {} tunnels are dead",
            own.streams.len() - alive,
            own.streams.len()
        );
    }
    let case = Case::new("tunnels opened a second", rates)
        .with("open_at_once", most)
        .with("all_of_them_answered", alive)
        .with("refused", refused)
        .with("first_byte_p99_ms", super::report::median(slow.0))
        .with("reference_first_byte_p99_ms", super::report::median(slow.1));
    let memory = Case::new("KiB a tunnel and node, against the target of 24", memory);
    Report::new(
        "tunnels",
        "tunnels a second",
        "connections through two plain copying hops",
        vec![case, memory],
    )
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

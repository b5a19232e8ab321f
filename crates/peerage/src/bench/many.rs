//! Many tunnels at once, and what the thesis did.

use std::{net::TcpStream, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    How,
    machine::resident,
    report::{Case, Report, Run, quantile},
    tcp,
    tunnel::Scene,
};

/// What an open tunnel may take in each node, in KiB.
const TARGET_KIB: f64 = 24.0;

/// Threads that open tunnels.
const OPENERS: u32 = 8;

/// What a whole measurement has left for the tunnels.
#[derive(Debug, Default)]
struct Opened {
    streams: Vec<TcpStream>,
    milliseconds: Vec<f64>,
    refused: u32,
}

/// Opens so many tunnels from several threads, and stops where nothing opens any more.
fn open_all(at: std::net::SocketAddr, count: u32) -> Result<Opened> {
    let each = count.div_ceil(OPENERS);
    let threads: Vec<_> = (0..OPENERS.min(count))
        .map(|_| {
            thread::spawn(move || {
                let mut opened = Opened::default();
                for _ in 0..each {
                    match tcp::first_byte(at) {
                        Ok((stream, took)) => {
                            opened.streams.push(stream);
                            opened.milliseconds.push(took.as_secs_f64() * 1e3);
                        }
                        Err(_refused) => {
                            opened.refused += 1;
                            break;
                        }
                    }
                }
                opened
            })
        })
        .collect();
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
    let plain = scene.plain()?;
    let nodes = [scene.user.process(), scene.site.process()];
    // What a run of each kind needs once is not counted to those that follow.
    drop((open_all(plain.at, 64)?, open_all(scene.tunnel.at, 64)?));
    let (mut rates, mut memory, mut slow) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    let (mut most, mut refused, mut alive) = (0, 0, 0);
    for _ in 0..how.runs() {
        let began_at = Instant::now();
        let reference = open_all(plain.at, count)?;
        let plain_rate = reference.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        slow.1.push(quantile(reference.milliseconds.clone(), 0.99));
        drop(reference);
        let before = nodes.map(resident);
        let began_at = Instant::now();
        let mut own = open_all(scene.tunnel.at, count)?;
        let rate = own.streams.len() as f64 / began_at.elapsed().as_secs_f64();
        ensure!(!own.streams.is_empty(), "no tunnel opens");
        let grown: u64 =
            nodes.map(resident).iter().zip(before).map(|(after, before)| after.saturating_sub(before)).sum();
        // Only the first turn takes memory that nobody has used before.
        if memory.is_empty() {
            let each = grown.max(1) as f64 / 1_024.0 / own.streams.len() as f64 / nodes.len() as f64;
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

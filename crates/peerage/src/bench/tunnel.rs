//! Throughput: through a direct tunnel, through a relay, and over a punched path.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result};

use super::{
    How,
    machine::{cpu_of, milliseconds},
    network::{Network, Running, Tunnel},
    report::{Case, Report, Run, median},
    tcp::{self, Direction},
};

/// Bytes that are moved to find out how many a run of the wanted length takes.
const TRIAL_BYTES: u64 = 32 << 20;

/// Fewest bytes of a run: all buffers on the way several times over.
const MIN_BYTES: u64 = 8 << 20;

/// Most streams at once.
const STREAMS: [u64; 2] = [1, 8];

/// The MAC address of the device, of the block that RFC 7042 keeps for examples, made a local one.
pub(super) const DEVICE_MAC: &str = "02:00:5e:00:53:01";

/// Something that bytes go through, and who works for it.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) at: SocketAddr,
    pub(super) processes: Vec<u32>,
}

/// The usual scene: a device, a node beside it, a user's node, and two plain hops to the same device.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) tunnel: Tunnel,
    pub(super) user: Running,
    pub(super) site: Running,
    hops: Hops,
    pub(super) device: Running,
    /// The last, because what runs has its data there.
    pub(super) network: Network,
}

/// Two plain hops to a device.
#[derive(Debug)]
pub(super) struct Hops {
    far: Running,
    near: Running,
}

impl Hops {
    pub(super) fn start(network: &Network, device: SocketAddr) -> Result<Self> {
        let near = network.part("hop near the device", &["hop", &device.to_string()])?;
        let far = network.part("hop near the user", &["hop", &near.listen()?.to_string()])?;
        Ok(Self { far, near })
    }

    /// Returns the way through them.
    pub(super) fn way(&self) -> Result<Way> {
        Ok(Way { at: self.far.listen()?, processes: vec![self.far.process(), self.near.process()] })
    }
}

impl Scene {
    /// Starts all of it.
    pub(super) fn set_up() -> Result<Self> {
        Self::set_up_behind(|_, _| Ok(()))
    }

    /// The same, where something is done to the network between the user's node and that beside the device before they meet.
    pub(super) fn set_up_behind(between: impl FnOnce(&Running, &Running) -> Result<()>) -> Result<Self> {
        let network = Network::start()?;
        let device = network.part("device", &["device"])?;
        let behind = device.listen()?;
        let hops = Hops::start(&network, behind)?;
        let site = network.node("site", Some(DEVICE_MAC))?;
        let user = network.node("user", None)?;
        between(&user, &site)?;
        network.register("device", DEVICE_MAC, &site, behind)?;
        let tunnel = network.connect(&user, "device")?;
        Ok(Self { tunnel, user, site, hops, device, network })
    }

    /// Returns the way through the tunnel.
    pub(super) fn tunnelled(&self) -> Way {
        Way { at: self.tunnel.at, processes: vec![self.user.process(), self.site.process()] }
    }

    /// Returns the way through the plain hops.
    pub(super) fn plain(&self) -> Result<Way> {
        self.hops.way()
    }
}

/// The direct tunnel against two plain copying hops.
pub(super) fn tunnel(how: &How) -> Result<Report> {
    let scene = Scene::set_up()?;
    scene.network.settle(&scene.user, &scene.tunnel, |kind| kind == "direct")?;
    let (plain, tunnelled) = (scene.plain()?, scene.tunnelled());
    let mut cases = Vec::new();
    for streams in STREAMS {
        for way in Direction::BOTH {
            cases.push(compare(how, (&plain, &tunnelled), way, streams)?);
        }
    }
    Report::new("tunnel", "GB/s", "two plain copying hops with buffers of 64 KiB", cases)
}

/// Measures two ways in turns; the first is the reference.
pub(super) fn compare(
    how: &How,
    (reference, subject): (&Way, &Way),
    way: Direction,
    streams: u64,
) -> Result<Case> {
    let bytes = [sized(how, reference, way, streams)?, sized(how, subject, way, streams)?];
    let (mut runs, mut costs) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..how.runs() {
        let mut rates = Vec::new();
        for ((way_through, bytes), costs) in [reference, subject].into_iter().zip(bytes).zip(&mut costs) {
            let (rate, cost) = measure(way_through, way, bytes, streams)?;
            rates.push(rate);
            costs.push(cost);
        }
        if let [reference, subject] = *rates {
            runs.push(Run::new(subject, reference));
        }
    }
    let [plain, own] = costs.map(median);
    let name = format!("{streams} {}, {}", if streams == 1 { "stream" } else { "streams" }, way.name());
    Ok(Case::new(name, runs).with("cpu_s_per_gib", own).with("reference_cpu_s_per_gib", plain))
}

/// Returns how many bytes take as long as a run is to take.
fn sized(how: &How, through: &Way, way: Direction, streams: u64) -> Result<u64> {
    let trial = if how.is_instant() { MIN_BYTES } else { TRIAL_BYTES };
    let took = tcp::transfer(through.at, way, trial, streams)?.as_secs_f64().max(1e-6);
    let wanted = trial as f64 / took * how.length().as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some gigabytes at most, and never negative"
    )]
    Ok((wanted as u64).max(MIN_BYTES))
}

/// Returns the rate in GB/s and the processor time in seconds a GiB.
fn measure(through: &Way, way: Direction, bytes: u64, streams: u64) -> Result<(f64, f64)> {
    let before = cpu_of(&through.processes);
    let took = tcp::transfer(through.at, way, bytes, streams);
    let took = took.with_context(|| format!("{} {streams} streams through {}", way.name(), through.at))?;
    let cost = cpu_of(&through.processes).saturating_sub(before).as_secs_f64();
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    Ok((bytes as f64 / 1e9 / took.as_secs_f64(), cost / gibibytes))
}

/// How long it takes from connecting to the local port until a byte has come back from the device, while the link stands.
pub(super) fn open(how: &How) -> Result<Report> {
    let scene = Scene::set_up()?;
    scene.network.settle(&scene.user, &scene.tunnel, |kind| kind == "direct")?;
    let (plain, tunnelled) = (scene.plain()?, scene.tunnelled());
    let mut first = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut again = Vec::new();
    for _ in 0..how.runs() {
        let began_at = Instant::now();
        let mut taken = [Vec::new(), Vec::new()];
        let mut later = [Vec::new(), Vec::new()];
        while began_at.elapsed() < how.length() || taken.iter().any(Vec::is_empty) {
            for ((way, taken), later) in [&plain, &tunnelled].into_iter().zip(&mut taken).zip(&mut later) {
                let (mut stream, took) = tcp::first_byte(way.at)?;
                taken.push(milliseconds(took));
                later.push(milliseconds(tcp::again(&mut stream)?));
            }
        }
        let [plain, own] = taken.clone().map(median);
        first.0.push(Run::new(own, plain));
        let [plain, own] = later.map(median);
        again.push(Run::new(own, plain));
        for (all, of_run) in first.1.iter_mut().zip(taken) {
            all.extend(of_run);
        }
    }
    let (runs, [plain, own]) = first;
    let slow = |values: &[f64]| super::report::quantile(values.to_vec(), 0.99);
    let case = Case::new("first byte on a warm link, p50", runs)
        .with("p99_ms", slow(&own))
        .with("reference_p99_ms", slow(&plain))
        .with("opened", own.len());
    let cases = vec![case, Case::new("round trip in an open tunnel, p50", again)];
    Report::new("open", "ms (less is better)", "the same through two plain copying hops", cases)
}

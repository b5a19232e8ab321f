//! What the members of a network do while super-nodes die: they look up, connect and announce.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::Report;
use super::super::binary::Programs;
use super::cast::{Member, Network, Place, Stage, device, list, mac, text};

/// How long finding a device may take, whoever is dead: two look-ups, of the devices and then of who serves them, for each of
/// which one request may go unanswered (3.5 s), and a second for programs that start on a busy machine.
const LOOKUP_LIMIT: Duration = Duration::from_secs(8);

/// How long it may take until a page has come through a new tunnel, whose carrier may have to be sought anew.
const TUNNEL_LIMIT: Duration = Duration::from_secs(20);

/// How soon something that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Host numbers that the node of a site moves among.
const ADDRESSES: [u8; 2] = [150, 151];

/// What is done, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Work {
    lookup_times: Vec<Duration>,
    tunnel_times: Vec<Duration>,
    failures: Vec<String>,
    errors: usize,
    moves: usize,
    /// Every device that the operator has confirmed: its organisation and its name.
    devices: Vec<(String, String)>,
}

impl Work {
    /// Knows the devices with which a network begins.
    pub(super) fn new(network: &Network<'_>) -> Self {
        let devices =
            network.sites.iter().zip(1..).map(|(site, number)| (site.domain.clone(), device(number)));
        Self { devices: devices.collect(), ..Self::default() }
    }

    /// Looks the devices of a site's organisation up, from there, until those with which the network began are found, with a
    /// way to each, or the limit has passed.
    pub(super) fn look_up(&mut self, network: &Network<'_>, from: usize) -> Result<()> {
        let site = network.sites.get(from).context("no such site")?;
        let expected: Vec<String> = network
            .sites
            .iter()
            .zip(1..)
            .filter(|(other, _)| other.domain == site.domain)
            .map(|(_, n)| device(n))
            .collect();
        let began_at = Instant::now();
        let instead = loop {
            let outcome = site.peerage.call(&["devices", "--refresh"]);
            let missing = match &outcome {
                Ok(devices) => expected.iter().find(|name| !is_reachable(devices, name)),
                Err(_) => expected.first(),
            };
            let is_late = began_at.elapsed() > LOOKUP_LIMIT;
            let Some(missing) = missing else {
                break is_late
                    .then(|| format!("{} finds its devices after {:?}", site.name, began_at.elapsed()));
            };
            self.errors += 1;
            if is_late {
                break Some(format!("{} does not find {missing}: {outcome:?}", site.name));
            }
            thread::sleep(RETRY_INTERVAL);
        };
        self.lookup_times.push(began_at.elapsed());
        self.failures.extend(instead);
        Ok(())
    }

    /// Opens a tunnel from a site to the device of another of its organisation, and fetches a page through it.
    pub(super) fn fetch(&mut self, network: &Network<'_>, programs: &Programs, from: usize) -> Result<()> {
        let site = network.sites.get(from).context("no such site")?;
        let Some((_, number)) = network
            .sites
            .iter()
            .zip(1..)
            .find(|(other, _)| other.domain == site.domain && other.id != site.id)
        else {
            return self.look_up(network, from);
        };
        let began_at = Instant::now();
        let instead = loop {
            let Err(error) = page_through_tunnel(site, programs, &device(number)) else { break None };
            self.errors += 1;
            if began_at.elapsed() > TUNNEL_LIMIT {
                break Some(format!("{} does not reach {}: {error:#}", site.name, device(number)));
            }
            thread::sleep(RETRY_INTERVAL);
        };
        self.tunnel_times.push(began_at.elapsed());
        self.failures.extend(instead);
        Ok(())
    }

    /// Registers one more device at a site.
    pub(super) fn register(&mut self, network: &Network<'_>, at: usize) -> Result<()> {
        let site = network.sites.get(at).context("no such site")?;
        let number = self.devices.len();
        let name = format!("later-{number}");
        network.add_device(&site.domain, &name, &mac(0x54, number), &site.id)?;
        self.devices.push((site.domain.clone(), name));
        Ok(())
    }

    /// Gives the node of a site another address in its LAN, so that it has to announce itself again.
    pub(super) fn move_node(&mut self, stage: &Stage, at: usize) -> Result<()> {
        let Place { site, node, .. } = stage.places.get(at).context("no such site")?;
        let [first, second] = ADDRESSES.map(|host| site.address(host));
        self.moves += 1;
        node.set_address(if node.address() == first { second } else { first })
    }

    /// Returns which of the devices that the operator has confirmed some node of their organisation does not know.
    pub(super) fn lost(&self, network: &Network<'_>) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for site in &network.sites {
            let known = list(&site.peerage.call(&["devices", "--refresh"])?)?;
            let known: Vec<&str> = known.iter().map(|device| text(device, "name")).collect::<Result<_>>()?;
            let of_site = self.devices.iter().filter(|(domain, _)| *domain == site.domain);
            lost.extend(
                of_site
                    .filter(|(_, name)| !known.contains(&name.as_str()))
                    .map(|(_, name)| format!("{name} at {}", site.name)),
            );
        }
        Ok(lost)
    }

    /// Notes in the report what was done so far.
    pub(super) fn note(&self, report: &mut Report) {
        report.note("lookups", self.lookup_times.len() + self.tunnel_times.len());
        report.note("failed", self.failures.len());
        report.note("failures", self.failures.clone());
        report.note("retried", self.errors);
        report.note("moves", self.moves);
        report.note("devices", self.devices.len());
        report.note("lookup_ms", statistics(&self.lookup_times));
        report.note("tunnel_ms", statistics(&self.tunnel_times));
    }

    /// Makes sure that nothing has failed for longer than its limit.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.failures.is_empty(),
            "{} look-ups failed: {}",
            self.failures.len(),
            self.failures.join("; ")
        );
        Ok(())
    }
}

fn is_reachable(devices: &Value, name: &str) -> bool {
    let device = devices
        .as_array()
        .and_then(|list| list.iter().find(|device| text(device, "name").ok() == Some(name)));
    device.is_some_and(|device| text(device, "state").ok() == Some("reachable"))
}

fn page_through_tunnel(site: &Member<'_>, programs: &Programs, device: &str) -> Result<()> {
    let target = format!("{device}:web");
    let tunnel = site.peerage.start(&["connect", &target, "--listen", "127.0.0.1:0"], "listening")?;
    let local = text(tunnel.first(), "local")?.to_owned();
    let page = site.host.command(&programs.agent).args(["fetch", &local, "10000"]).output(TUNNEL_LIMIT)?;
    ensure!(page.contains("Sample printer"), "the page is another: {page}");
    tunnel.stop()
}

/// Returns the smallest, the middle, the 95th of hundred, and the largest of some times, in milliseconds.
fn statistics(times: &[Duration]) -> Value {
    let mut sorted: Vec<u64> =
        times.iter().map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    let at = |percent: usize| sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied();
    serde_json::json!({ "min": at(0), "median": at(50), "p95": at(95), "max": at(100) })
}

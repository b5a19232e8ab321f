//! A large network in which next to nothing happens: how many computers fit, and what they cost.

use std::time::Duration;

use peerage_wire::record::DraftError;

use crate::nat::{Behaviour, NatConfig, Ports};
use crate::network::{Lan, Quality};
use crate::world::{DeviceSetup, HostSetup, Setup, SiteSetup, World};

/// Computers at one site.
const PER_SITE: usize = 20;

/// Computers of one organisation.
const PER_DOMAIN: usize = 200;

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// How many events there were.
    pub events: u64,
    /// How many datagrams computers have sent.
    pub datagrams: u64,
    /// The fingerprint.
    pub trace: u64,
}

/// Returns a setup of so many computers: each organisation has ten sites, one device, a tunnel-node that is attached and others that
/// stand by; nine of ten computers only use devices.
pub fn setup(nodes: usize) -> Setup {
    let nat = NatConfig {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressAndPortDependent,
        lifetime: Duration::from_secs(120),
        hairpinning: false,
        ports: Ports::Preserved,
    };
    let host = |index: usize| HostSetup {
        domain: index / PER_DOMAIN,
        site: index / PER_SITE,
        serves: index.is_multiple_of(10),
        error_millis: 0,
        lends: false,
        drift_ppm: 20,
    };
    let domains = nodes.div_ceil(PER_DOMAIN);
    let device = |domain: usize| {
        let via = domain * PER_DOMAIN;
        DeviceSetup { domain, site: via / PER_SITE, via, has_tls: false }
    };
    Setup {
        seed: 1,
        real_crypto: false,
        operators: 1,
        domains,
        sites: vec![
            SiteSetup { nat: Some(nat), quality: Quality::GOOD, lan: Lan::default() };
            nodes.div_ceil(PER_SITE)
        ],
        hosts: (0..nodes).map(host).collect(),
        devices: (0..domains).map(device).collect(),
        sample_interval: Duration::from_secs(3_600),
        start_within: Duration::from_secs(600),
        planted: None,
        eager: true,
        is_told: false,
    }
}

/// Runs it.
///
/// # Errors
/// If a record of the setup would be too long.
pub fn run(nodes: usize, span: Duration) -> Result<Report, DraftError> {
    let mut world = World::new(setup(nodes), Vec::new())?;
    world.run(span);
    let datagrams = (0..nodes).map(|host| world.counts(host).datagrams).sum();
    Ok(Report { events: world.events(), datagrams, trace: world.trace() })
}

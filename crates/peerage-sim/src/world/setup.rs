//! How a world begins.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::node::SuperConfig;
use peerage_wire::codec::{Protocol, Service};
use peerage_wire::crypto::{Crypto, Real};
use peerage_wire::id::{DeviceId, Domain, Mac};
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::record::{DraftError, EndDevice, LocalPolicy};
use peerage_wire::time::Instant;

use super::{Counts, Device, Due, World};
use crate::chance::Chance;
use crate::crypto::Cheap;
use crate::host::{Clock, Host, true_time};
use crate::invariants::Invariant;
use crate::ledger::Ledger;
use crate::model::{Model, Standing};
use crate::nat::NatConfig;
use crate::network::{Lan, Network, PORT, Quality, Site};
use crate::shell::Shell;
use crate::store::Store;
use crate::trace::Trace;
use crate::wide::WidePorts;

/// A bug that is planted, so that an invariant can be seen to catch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Now and then an application is given the same bytes twice.
    DoublesBytes,
    /// Tunnels that the node refuses are served all the same.
    ServesAnybody,
    /// Open tunnels are not closed when the node says so.
    KeepsTunnels,
    /// Disks acknowledge what they do not write.
    ForgetsWrites,
    /// Operators do not write down what they are told was committed.
    ForgetsRecords,
    /// Replies are longer than they should be.
    PadsReplies,
    /// Computers say something whenever the invariants look.
    Chatters,
    /// After its first minute a node hears nothing any more.
    GoesDeaf,
    /// A time-out changes nothing.
    IgnoresTimeouts,
    /// A time-out changes nothing at operators.
    OperatorIgnoresTimeouts,
    /// What administrators decide about devices is lost on the way to the ledger.
    LosesDecisions,
    /// What is sealed can be read by everybody.
    LeavesOpen,
    /// A liar is told what belongs to another domain.
    Betrays,
    /// From then on, computers lose what they hold in memory whenever the invariants look.
    LosesMemory(Duration),
}

/// A site of a setup.
#[derive(Clone, Copy, Debug)]
pub struct SiteSetup {
    /// Its router, none for public addresses.
    pub nat: Option<NatConfig>,
    /// Its line.
    pub quality: Quality,
    /// Its LAN.
    pub lan: Lan,
}

/// A computer of a setup.
#[derive(Clone, Copy, Debug)]
pub struct HostSetup {
    /// Which domain.
    pub domain: usize,
    /// Which site.
    pub site: usize,
    /// Whether it may serve devices; its router forwards a port then.
    pub serves: bool,
    /// Whether its owner lends it as a super-node. Behind a router, nobody reaches one that does not serve.
    pub lends: bool,
    /// What its date is beyond the true one, in milliseconds.
    pub error_millis: i64,
    /// How much too fast its date runs, in millionths.
    pub drift_ppm: i64,
}

/// A device of a setup.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSetup {
    /// Which domain.
    pub domain: usize,
    /// Which site.
    pub site: usize,
    /// The computer that is named to find it.
    pub via: usize,
    /// Whether it has a certificate.
    pub has_tls: bool,
}

/// How a world begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// All chance comes from it.
    pub seed: u64,
    /// Whether the real cryptography is used.
    pub real_crypto: bool,
    /// How many operators.
    pub operators: usize,
    /// How many domains.
    pub domains: usize,
    /// The sites.
    pub sites: Vec<SiteSetup>,
    /// The computers.
    pub hosts: Vec<HostSetup>,
    /// The devices.
    pub devices: Vec<DeviceSetup>,
    /// How often invariants look at the whole.
    pub sample_interval: Duration,
    /// Within which time everybody is switched on.
    pub start_within: Duration,
    /// A bug that is planted.
    pub planted: Option<Bug>,
    /// Whether nodes look things up eagerly, as those that ship do.
    pub eager: bool,
    /// Whether what happens is written to the terminal.
    pub is_told: bool,
}

fn domain_of(seed: u64, index: usize) -> Domain {
    let drawn: [u8; 4] = Chance::new(seed, &format!("domain {index}")).bytes();
    // 0 is the operators' own.
    Domain(u32::from_be_bytes(drawn).max(1))
}

/// Returns the domain of an organisation of a setup.
pub(super) fn domain_at(setup: &Setup, index: usize) -> Option<Domain> {
    (index < setup.domains).then(|| domain_of(setup.seed, index))
}

pub(super) fn build(setup: Setup, checkers: Vec<Box<dyn Invariant>>) -> Result<World, DraftError> {
    let cheap = Cheap { leaves_open: setup.planted == Some(Bug::LeavesOpen) };
    let crypto: Arc<dyn Crypto> = if setup.real_crypto { Arc::new(Real) } else { Arc::new(cheap) };
    let seed = setup.seed;
    let addresses: Vec<SocketAddr> = (1..=setup.operators)
        .map(|n| SocketAddr::from((Ipv4Addr::new(46, 0, 0, u8::try_from(n).unwrap_or(1)), PORT)))
        .collect();
    let now = Instant::from_micros(1_000_000);
    let mut ledger = Ledger::found(seed, Arc::clone(&crypto), &addresses, true_time(now))?;
    for domain in 0..setup.domains {
        ledger.add_domain(domain_of(seed, domain));
    }
    let site = |(index, site): (usize, &SiteSetup)| Site::new(index, site.nat, site.quality, site.lan);
    let sites = setup.sites.iter().enumerate().map(site).collect();
    let mut world = World {
        now,
        queue: std::collections::BTreeMap::new(),
        order: 0,
        crypto,
        chance: Chance::new(seed, "world"),
        attacker: Chance::new(seed, "attacker"),
        network: Network::new(seed, sites, &addresses),
        hosts: Vec::new(),
        operators: Vec::new(),
        ledger,
        devices: Vec::new(),
        devices_at: std::collections::BTreeMap::new(),
        model: Model::default(),
        places: std::collections::BTreeMap::new(),
        errands: std::collections::BTreeMap::new(),
        probes: std::collections::BTreeSet::new(),
        carriers: std::collections::BTreeMap::new(),
        next_id: 0,
        overheard: Vec::new(),
        overheard_groups: Vec::new(),
        checkers,
        violation: None,
        counts: Vec::new(),
        paths: Vec::new(),
        busy: std::collections::BTreeSet::new(),
        is_counting: false,
        limits: None,
        stopwatch: None,
        trace: Trace::default(),
        setup,
    };
    world.found_operators();
    for index in 0..world.setup.hosts.len() {
        world.add_host(index)?;
    }
    for index in 0..world.setup.devices.len() {
        world.add_device(index)?;
    }
    for operator in 0..world.operators.len() {
        world.start_operator(operator);
    }
    for host in 0..world.hosts.len() {
        let start = world.chance.duration(world.setup.start_within);
        let operation = crate::operations::Operation::Start { host };
        world.schedule_in(start, Due::Operation(operation));
    }
    world.schedule_in(world.setup.sample_interval, Due::Sample);
    world.schedule_in(super::UPKEEP_INTERVAL, Due::Upkeep);
    Ok(world)
}

impl World {
    fn add_host(&mut self, index: usize) -> Result<(), DraftError> {
        let Some(setup) = self.setup.hosts.get(index).copied() else { return Ok(()) };
        let mut chance = Chance::new(self.setup.seed, &format!("host {index}"));
        let domain = domain_of(self.setup.seed, setup.domain);
        let identity = IdentityKey::generate(chance.rng());
        let receiving = AgreementKey::generate(chance.rng());
        let id = identity.node_id(domain);
        let now = self.true_now();
        self.model.vendor.decide_member(id, Standing::Member);
        let mut records = self.ledger.admit(id, identity.public(), *receiving.public(), now)?;
        records.extend(self.ledger.operators().iter().map(|operator| operator.record.clone()));
        let (inner, advertise) = self.place(setup.site, setup.serves);
        let clock = Clock { zero: self.now, error_millis: setup.error_millis, drift_ppm: setup.drift_ppm };
        self.hosts.push(Host {
            domain,
            id,
            identity,
            receiving,
            home: (setup.site, inner),
            site: setup.site,
            inner,
            advertise,
            serves: setup.serves,
            wide_checks: false,
            wide_ports: WidePorts::default(),
            lends: setup.lends,
            lent_bytes: SuperConfig::default().max_bytes,
            clock,
            store: Store::new(records),
            node: None,
            boot: 0,
            terms: 0,
            shell: Shell::new(id, 0),
            asleep_until: None,
            stopped_since: None,
            in_contact_since: None,
            torn_since: None,
            statements: Vec::new(),
            wake_at: None,
            next_task: 0,
            errands: std::collections::BTreeMap::new(),
            leaving: None,
            has_left: false,
            liar: None,
        });
        self.places.insert((setup.site, inner), index);
        self.counts.push(Counts::default());
        Ok(())
    }

    /// Gives a computer an address at a site, and a forwarded port if it serves.
    pub(super) fn place(&mut self, index: usize, serves: bool) -> (SocketAddr, Vec<SocketAddr>) {
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let Some(site) = self.network.sites.get_mut(index) else { return (unknown, Vec::new()) };
        let address = site.new_address();
        let inner = SocketAddr::new(address, PORT);
        let mut advertise = Vec::new();
        if let Some(nat) = site.nat.as_mut().filter(|_| serves) {
            let outer = (PORT..).find(|port| nat.forwarded(*port).is_none()).unwrap_or(PORT);
            nat.forward(outer, inner);
            advertise.push(SocketAddr::new(nat.public, outer));
        }
        self.network.publish(address, index);
        (inner, advertise)
    }

    fn add_device(&mut self, index: usize) -> Result<(), DraftError> {
        let Some(setup) = self.setup.devices.get(index).copied() else { return Ok(()) };
        let domain = domain_of(self.setup.seed, setup.domain);
        let [.., high, low] = index.to_be_bytes();
        let mac = Mac([0xaa, 0xbb, 0xcc, 0, high, low]);
        let pins = if setup.has_tls { vec![[low; 32]] } else { Vec::new() };
        let service =
            |name: &str, port, tls| Service { name: name.to_owned(), port, protocol: Protocol::Tcp, tls };
        let registered = EndDevice {
            device: DeviceId::new(mac, pins.first()),
            name: format!("device {index}"),
            kind: "printer".to_owned(),
            mac,
            pins,
            services: vec![service("ipp", 631, setup.has_tls), service("http", 80, false)],
            site: Vec::new(),
            via: self.hosts.get(setup.via).map(|host| host.id),
            users: Vec::new(),
            servers: Vec::new(),
            local: LocalPolicy::WithProof,
        };
        let now = self.true_now();
        self.ledger.put_device(domain, registered.clone(), now)?;
        self.model.vendor.decide_device(domain, registered.device, Some(registered.clone()));
        let site = self.network.sites.get_mut(setup.site);
        let address = site.map_or_else(|| Ipv4Addr::UNSPECIFIED.into(), Site::new_address);
        self.devices_at.entry(setup.site).or_default().push(index);
        self.devices.push(Device {
            registered,
            domain,
            site: setup.site,
            address,
            moved: None,
            is_present: true,
        });
        Ok(())
    }
}

//! The networks of the experiments: organisations with offices, printers, people, and computers that are lent.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{count, quantile};
use crate::app::Script;
use crate::chance::Chance;
use crate::nat::{Behaviour, NatConfig, Ports};
use crate::network::{Lan, Quality};
use crate::operations::Operation;
use crate::world::{DeviceSetup, Errand, HostSetup, Setup, SiteSetup, World};

/// Most computers of one site: its LAN has no more addresses, and some are for printers.
const MAX_PER_SITE: usize = 900;

/// What organisations are like.
#[derive(Clone, Copy, Debug)]
pub struct Town {
    /// How many organisations.
    pub domains: usize,
    /// People in each, one computer each.
    pub users: usize,
    /// Offices of each.
    pub offices: usize,
    /// Printers of each; they are spread over the offices.
    pub printers: usize,
    /// How many computers at the office of a printer may serve it.
    pub servers: usize,
    /// Computers that each lends to the network, at a public address each.
    pub lent: usize,
    /// Super-nodes of the vendor: an organisation of its own, after the others.
    pub vendor: usize,
    /// People of one more organisation, which is large, has a printer in each of its offices and lends nothing, after all others; none if
    /// there is no such one.
    pub large: usize,
    /// Within which time everybody is switched on.
    pub start_within: Duration,
}

/// A router as most homes and offices have it.
const ROUTER: NatConfig = NatConfig {
    mapping: Behaviour::EndpointIndependent,
    filtering: Behaviour::AddressAndPortDependent,
    lifetime: Duration::from_secs(120),
    hairpinning: false,
    ports: Ports::Preserved,
};

impl Town {
    /// Returns how many computers there are, without the vendor's.
    pub const fn nodes(&self) -> usize {
        self.domains * (self.users + self.lent) + self.large
    }

    /// Returns the offices of an organisation, at most so full as a LAN can be.
    fn offices(&self) -> usize {
        self.offices_for(self.users)
    }

    /// Returns how many offices the large organisation has, each with a printer.
    pub fn large_offices(&self) -> usize {
        if self.large > 0 { self.offices_for(self.large) } else { 0 }
    }

    fn offices_for(&self, users: usize) -> usize {
        self.offices.max(users.div_ceil(MAX_PER_SITE)).max(1)
    }

    /// Returns the setup: first the people of all organisations, then what they lend, then what the vendor has, then the people of the
    /// large one.
    pub fn setup(&self, seed: u64) -> Setup {
        let host = |domain, site, serves, lends| HostSetup {
            domain,
            site,
            serves,
            lends,
            error_millis: 0,
            drift_ppm: 20,
        };
        let offices = self.offices();
        let mut sites = vec![office(); self.domains * offices];
        let mut hosts = Vec::new();
        let mut devices = Vec::new();
        for domain in 0..self.domains {
            for user in 0..self.users {
                hosts.push(host(domain, domain * offices + user % offices, self.may_serve(user), false));
            }
            for printer in 0..self.printers {
                let office = printer % offices;
                let (site, via) = (domain * offices + office, domain * self.users + office);
                devices.push(DeviceSetup { domain, site, via, has_tls: false });
            }
        }
        let lenders = (0..self.domains).flat_map(|domain| (0..self.lent).map(move |_| domain));
        for domain in lenders.chain((0..self.vendor).map(|_| self.domains)) {
            hosts.push(host(domain, sites.len(), false, true));
            sites.push(public_site());
        }
        let smaller = self.domains + usize::from(self.vendor > 0);
        if self.large > 0 {
            let (offices, first, at) = (self.large_offices(), hosts.len(), sites.len());
            sites.extend((0..offices).map(|_| office()));
            let people = 0..self.large;
            hosts.extend(
                people.map(|user| host(smaller, at + user % offices, self.serves_large(user), false)),
            );
            devices.extend((0..offices).map(|office| DeviceSetup {
                domain: smaller,
                site: at + office,
                via: first + office,
                has_tls: false,
            }));
        }
        Setup {
            seed,
            real_crypto: false,
            operators: 1,
            domains: smaller + usize::from(self.large > 0),
            sites,
            hosts,
            devices,
            sample_interval: Duration::from_secs(3_600),
            start_within: self.start_within,
            planted: None,
            eager: true,
            is_told: false,
        }
    }

    /// Makes a world of it, in which the operators know which organisation is the vendor.
    ///
    /// # Errors
    /// If a record of the setup would be too long.
    pub fn found(&self, setup: Setup) -> Result<World, DraftError> {
        let mut world = World::new(setup, Vec::new())?;
        if self.vendor > 0 {
            world.make_vendor(self.domains);
        }
        Ok(world)
    }

    /// Returns whether a person's computer may serve a printer.
    pub fn may_serve(&self, host: usize) -> bool {
        let large = self.large_people();
        if large.contains(&host) {
            return self.serves_large(host - large.start);
        }
        let (user, offices) = (host % self.users.max(1), self.offices());
        user / offices < self.servers && user % offices < self.printers
    }

    fn serves_large(&self, user: usize) -> bool {
        user / self.large_offices() < self.servers
    }

    /// Returns the computers that may serve a printer, which is counted over all organisations.
    pub fn servers_of(&self, printer: usize) -> impl Iterator<Item = usize> {
        let (domain, printer) = (printer / self.printers.max(1), printer % self.printers.max(1));
        let (users, offices) = (self.users, self.offices());
        let office = printer % offices;
        (domain * users..(domain + 1) * users)
            .filter(move |host| host % users % offices == office && self.may_serve(*host))
    }

    /// Returns the people, without those of the large organisation.
    pub const fn people(&self) -> std::ops::Range<usize> {
        0..self.domains * self.users
    }

    /// Returns the computers that organisations lend.
    pub const fn lenders(&self) -> std::ops::Range<usize> {
        self.domains * self.users..self.domains * (self.users + self.lent)
    }

    /// Returns the people of the large organisation.
    pub const fn large_people(&self) -> std::ops::Range<usize> {
        let first = self.domains * (self.users + self.lent) + self.vendor;
        first..first + self.large
    }

    /// Lets everybody use a printer of theirs so often between two moments, at random times.
    pub fn work(&self, world: &mut World, chance: &mut Chance, times: usize, span: (Duration, Duration)) {
        for host in self.people() {
            for _ in 0..times {
                let at = span.0 + chance.duration(span.1.saturating_sub(span.0));
                let device = chance.index(self.printers.max(1));
                world.plan(at, Operation::Open { host, device, script: Script::PROBE });
            }
        }
    }
}

/// Returns a site where every computer has a public address.
pub fn public_site() -> SiteSetup {
    SiteSetup { nat: None, quality: Quality::GOOD, lan: Lan::default() }
}

fn office() -> SiteSetup {
    SiteSetup { nat: Some(ROUTER), quality: Quality::GOOD, lan: Lan::default() }
}

/// How users fared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fortune {
    /// Wishes.
    pub wishes: usize,
    /// The share that was fulfilled.
    pub reached: f64,
    /// How long that took in the middle, in milliseconds.
    pub median_millis: f64,
    /// How long it took at most for 99 of a hundred, in milliseconds.
    pub slow_millis: f64,
}

/// Returns how those fared who began within a time, those who needed a tunnel apart from those who did not.
pub fn fortune(world: &World, span: (Instant, Instant), through_tunnels: bool) -> Fortune {
    fortune_where(world, span, |errand| !through_tunnels || !errand.is_local)
}

/// Returns how those fared who began within a time, and whose wishes are of a kind.
pub fn fortune_where(world: &World, span: (Instant, Instant), is_meant: impl Fn(&Errand) -> bool) -> Fortune {
    let begun = world.errands().map(|(_, errand)| errand);
    let begun: Vec<_> = begun
        .filter(|errand| span.0 <= errand.begun_at && errand.begun_at < span.1)
        .filter(|errand| is_meant(errand))
        .collect();
    let took: Vec<f64> =
        begun.iter().filter_map(|errand| errand.took()).map(|took| took.as_secs_f64() * 1_000.0).collect();
    Fortune {
        wishes: begun.len(),
        reached: if begun.is_empty() { f64::NAN } else { count(took.len()) / count(begun.len()) },
        median_millis: quantile(&took, 0.5),
        slow_millis: quantile(&took, 0.99),
    }
}

//! A plan: how a world begins and what happens in it, drawn from a seed.

use std::time::Duration;

use crate::app::{End, Pace, Script};
use crate::chance::Chance;
use crate::liar::Manner;
use crate::nat::{Behaviour, NatConfig, Ports};
use crate::network::{Lan, Multicast, Quality};
use crate::operations::Operation;
use crate::world::{DeviceSetup, HostSetup, Setup, SiteSetup};

/// When the first operation happens at the earliest: everybody is on, and has found its place.
const SETTLED: Duration = Duration::from_secs(20);

/// Most computers of a world that are lent as super-nodes: enough for two segments, each held three times and more.
const MAX_LENDERS: usize = 12;

/// Most organisations that have nothing but super-nodes.
const MAX_LENDING_DOMAINS: usize = 6;

/// How often the invariants look at the whole.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How large a world is, and how long it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Some computers for some minutes: rare combinations are likely, and failures short.
    Small,
    /// Up to 150 computers.
    Large,
    /// Hundreds to thousands of computers for a few minutes.
    Huge,
    /// A few computers for weeks: renewals, new epochs, expiry.
    Long,
}

impl Size {
    fn draw(chance: &mut Chance) -> Self {
        match chance.below(1_000) {
            0..=2 => Self::Long,
            3..=17 => Self::Huge,
            18..=47 => Self::Large,
            _ => Self::Small,
        }
    }

    /// The most sites and computers, and the fewest.
    const fn bounds(self) -> (usize, (u64, u64)) {
        match self {
            Self::Small => (6, (2, 12)),
            Self::Large => (20, (2, 150)),
            Self::Huge => (120, (200, 3_000)),
            Self::Long => (3, (2, 5)),
        }
    }
}

/// A setup, and operations with their times.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the world begins.
    pub setup: Setup,
    /// What happens, in the order of time.
    pub operations: Vec<(Duration, Operation)>,
    /// When faults end.
    pub calm_at: Duration,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "plan");
        let size = Size::draw(&mut chance);
        Self::of_size(seed, size, chance)
    }

    /// Draws a plan of a given size.
    pub fn sized(seed: u64, size: Size) -> Self {
        Self::of_size(seed, size, Chance::new(seed, "plan"))
    }

    fn of_size(seed: u64, size: Size, mut chance: Chance) -> Self {
        let mut setup = draw_setup(seed, size, &mut chance);
        let minutes = match size {
            Size::Small | Size::Large => chance.between(2, 40),
            Size::Huge => chance.between(2, 4),
            Size::Long => 45 * 24 * 60,
        };
        if size == Size::Long {
            setup.sample_interval = SAMPLE_INTERVAL * 60;
        }
        let span = Duration::from_secs(minutes * 60);
        let count = chance.between(5, 60);
        // Some runs concentrate on few kinds of operations: rare combinations become likely.
        let kinds: Vec<u64> = (0..chance.between(3, 12)).map(|_| chance.below(KINDS)).collect();
        let mut operations = Vec::new();
        for _ in 0..count {
            let at = SETTLED + chance.duration(span);
            let kind = if chance.happens(450) { 0 } else { chance.pick(&kinds).copied().unwrap_or(0) };
            operations.push((at, draw_operation(kind, &setup, &mut chance)));
        }
        operations.sort_by_key(|(at, _)| *at);
        let calm_at = SETTLED + span + Duration::from_secs(5);
        Self { setup, operations, calm_at }
    }
}

fn draw_quality(chance: &mut Chance) -> Quality {
    let is_good = chance.happens(500);
    let millis = |most: u64, chance: &mut Chance| Duration::from_millis(chance.between(1, most));
    Quality {
        delay: millis(if is_good { 20 } else { 150 }, chance),
        jitter: millis(if is_good { 5 } else { 200 }, chance),
        loss: u32::try_from(chance.below(if is_good { 5 } else { 200 })).unwrap_or(0),
        duplicated: u32::try_from(chance.below(if is_good { 2 } else { 100 })).unwrap_or(0),
    }
}

fn draw_lan(chance: &mut Chance) -> Lan {
    let multicast = match chance.below(10) {
        0 | 1 => Multicast::Blocked,
        2 => Multicast::Refused,
        _ => Multicast::Works,
    };
    let loss = if chance.happens(300) { u32::try_from(chance.below(300)).unwrap_or(0) } else { 0 };
    Lan { multicast, loss }
}

fn draw_nat(chance: &mut Chance) -> NatConfig {
    let behaviour =
        |chance: &mut Chance| chance.pick(&Behaviour::ALL).copied().unwrap_or(Behaviour::EndpointIndependent);
    let ports = [Ports::Preserved, Ports::Sequential, Ports::Scattered];
    NatConfig {
        mapping: behaviour(chance),
        filtering: behaviour(chance),
        lifetime: Duration::from_secs(chance.between(15, 300)),
        hairpinning: chance.happens(500),
        ports: chance.pick(&ports).copied().unwrap_or(Ports::Preserved),
    }
}

fn draw_setup(seed: u64, size: Size, chance: &mut Chance) -> Setup {
    let site = |chance: &mut Chance| SiteSetup {
        nat: chance.happens(800).then(|| draw_nat(chance)),
        quality: draw_quality(chance),
        lan: draw_lan(chance),
    };
    let (most_sites, (fewest, most)) = size.bounds();
    let count = usize::try_from(chance.between(fewest, most)).unwrap_or(2);
    // A LAN has addresses for some two hundred.
    let fewest_sites = (count / 100).max(2);
    let site_count = fewest_sites + chance.index(most_sites.max(fewest_sites) - fewest_sites + 1);
    let sites: Vec<_> = (0..site_count).map(|_| site(chance)).collect();
    let domains = chance.index(2) + 1 + count / 300;
    let hosts: Vec<_> = (0..count)
        .map(|_| HostSetup {
            domain: chance.index(domains),
            site: chance.index(sites.len()),
            serves: chance.happens(600),
            lends: false,
            error_millis: draw_error(chance),
            drift_ppm: i64::try_from(chance.below(101)).unwrap_or(50) - 50,
        })
        .collect();
    let device = |chance: &mut Chance| {
        let via = chance.index(hosts.len());
        let (domain, site) = hosts.get(via).map_or((0, 0), |host| (host.domain, host.site));
        DeviceSetup { domain, site, via, has_tls: chance.happens(300) }
    };
    let devices: Vec<_> = (0..chance.between(1, 6)).map(|_| device(chance)).collect();
    let mut setup = Setup {
        seed,
        real_crypto: false,
        operators: chance.index(3) + 1,
        domains,
        sites,
        hosts,
        devices,
        sample_interval: SAMPLE_INTERVAL,
        start_within: Duration::from_secs(5),
        planted: None,
        // Those that ship are eager; the patient ones find what needs time.
        eager: chance.happens(700),
        is_told: false,
    };
    add_lenders(&mut setup, chance);
    setup
}

/// Adds computers that are lent as super-nodes: most of organisations that have nothing else, and at sites of their own.
fn add_lenders(setup: &mut Setup, chance: &mut Chance) {
    let count = chance.index(MAX_LENDERS + 1);
    let others = chance.index(count.min(MAX_LENDING_DOMAINS) + 1);
    for _ in 0..count {
        let site = if chance.happens(200) {
            chance.index(setup.sites.len())
        } else {
            let nat = chance.happens(300).then(|| draw_nat(chance));
            setup.sites.push(SiteSetup { nat, quality: draw_quality(chance), lan: draw_lan(chance) });
            setup.sites.len() - 1
        };
        setup.hosts.push(HostSetup {
            domain: chance.index(setup.domains + others),
            site,
            serves: chance.happens(500),
            lends: true,
            error_millis: draw_error(chance),
            drift_ppm: 0,
        });
    }
    setup.domains += others;
}

/// Most computers' dates are right within seconds, some are hours off.
fn draw_error(chance: &mut Chance) -> i64 {
    let widest: u64 = if chance.happens(800) { 3_000 } else { 12 * 3_600_000 };
    i64::try_from(chance.below(2 * widest)).unwrap_or(0) - i64::try_from(widest).unwrap_or(0)
}

fn draw_script(chance: &mut Chance) -> Script {
    let size = |chance: &mut Chance| match chance.below(10) {
        0 => 0,
        1..=5 => chance.between(1, 5_000),
        6..=8 => chance.between(5_000, 200_000),
        _ => chance.between(200_000, 3_000_000),
    };
    let pace = |chance: &mut Chance| {
        if chance.happens(700) {
            Pace::Eager
        } else {
            Pace::Slow(u32::try_from(chance.between(1, 20)).unwrap_or(1))
        }
    };
    let breaks = chance.happens(150).then(|| {
        let end = chance.pick(&End::BOTH).copied().unwrap_or(End::User);
        (end, chance.between(1, 100_000))
    });
    Script {
        up: size(chance),
        down: size(chance),
        answers_last: chance.happens(500),
        user: pace(chance),
        device: pace(chance),
        breaks,
    }
}

/// How many kinds of operations [`draw_operation`] knows.
const KINDS: u64 = 42;

fn draw_operation(kind: u64, setup: &Setup, chance: &mut Chance) -> Operation {
    let host = chance.index(setup.hosts.len());
    let site = chance.index(setup.sites.len());
    let device = chance.index(setup.devices.len());
    let operator = chance.index(setup.operators);
    let count = chance.index(300);
    let span = Duration::from_millis(chance.between(500, 200_000));
    match kind {
        1 => Operation::Intrude { host, target: chance.index(setup.hosts.len()), device },
        2 => Operation::Crash { host, survivors: chance.index(4) },
        3 | 4 => Operation::Start { host },
        5 => Operation::Sleep { host, span: span * 5, counts: chance.happens(500) },
        6 => Operation::SetDate { host, error_millis: draw_error(chance) },
        7 => Operation::SlowDisk { host, delay: span / 20 },
        8 => Operation::FullDisk { host },
        9 => Operation::Backup { host },
        10 => Operation::Restore { host },
        11 => Operation::Roam { host, site },
        12 => Operation::Cut { site },
        13 => Operation::Split { sites: chance.below(1 << setup.sites.len().min(63)) },
        14 | 15 => Operation::Join,
        16 => Operation::Degrade { site, quality: draw_quality(chance) },
        17 => Operation::RebootRouter { site },
        18 => Operation::ResetConnections { host },
        19 => Operation::StallConnections { host, span },
        20 => Operation::StopOperator { operator },
        21 => Operation::StartOperator { operator },
        22 => Operation::Revoke { host },
        23 => Operation::Readdress { device },
        24 => Operation::Unplug { device },
        25 => Operation::Plug { device },
        26 => Operation::Unregister { device },
        27 => Operation::Register { device },
        28 => Operation::Restrict { device, host },
        29 => match chance.below(4) {
            0 => Operation::Replay { count },
            1 => Operation::Alter { count },
            2 => Operation::Flood { host, count },
            _ => Operation::FloodOperator { operator, count },
        },
        30 => Operation::Leave { host },
        31 => {
            let manner = chance.pick(&Manner::ALL).copied().unwrap_or(Manner::Forge);
            Operation::Lie { host, manner }
        }
        32 => Operation::Retire { operator },
        33 => {
            let back = i64::try_from(chance.below(120_000)).unwrap_or(0);
            Operation::SetOperatorDate { operator, error_millis: -back }
        }
        34 => Operation::ReplayGroups { site, count },
        35 => Operation::Outage { span: span * 10 },
        36 => Operation::LoseHolders { which: chance.below(u64::MAX) },
        37 | 38 => draw_lender_operation(chance.pick(&lenders(setup)).copied().unwrap_or(host), chance),
        39 => Operation::Tire { host, ok: chance.happens(500) },
        41 => Operation::ForgetHolders,
        40 => Operation::CloseRouter { site, is_closed: chance.happens(700) },
        _ => Operation::Open { host, device, script: draw_script(chance) },
    }
}

fn lenders(setup: &Setup) -> Vec<usize> {
    setup.hosts.iter().enumerate().filter(|(_, host)| host.lends).map(|(index, _)| index).collect()
}

/// What befalls a super-node, so that it is not only now and then one that it befalls.
fn draw_lender_operation(host: usize, chance: &mut Chance) -> Operation {
    match chance.below(7) {
        0 => Operation::Crash { host, survivors: chance.index(4) },
        1 => Operation::Sleep { host, span: Duration::from_secs(chance.between(5, 2_000)), counts: false },
        2 => Operation::Backup { host },
        3 => Operation::Restore { host },
        4 => {
            let manner = chance.pick(&Manner::ALL).copied().unwrap_or(Manner::Forge);
            Operation::Lie { host, manner }
        }
        5 => Operation::Revoke { host },
        _ => Operation::Lend { host, on: chance.happens(500) },
    }
}

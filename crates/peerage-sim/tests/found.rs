//! What the swarm has found, made short: each a named test with its operations written out.

use std::time::Duration;

use peerage_sim::nat::{Behaviour, NatConfig, Ports};
use peerage_sim::network::Quality;
use peerage_sim::operations::Operation;
use peerage_sim::plan::Plan;
use peerage_sim::run::run;
use peerage_sim::world::{DeviceSetup, HostSetup, Setup, SiteSetup};

fn host(site: usize, serves: bool) -> HostSetup {
    HostSetup { domain: 0, site, serves, error_millis: 0, drift_ppm: 0 }
}

const OPEN_SITE: SiteSetup = SiteSetup { nat: None, quality: Quality::GOOD };

const HOME: SiteSetup = SiteSetup {
    nat: Some(NatConfig {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressDependent,
        lifetime: Duration::from_secs(120),
        hairpinning: false,
        ports: Ports::Preserved,
    }),
    quality: Quality::GOOD,
};

/// A printer at the first site, where the first computer is named to find it.
fn setup(sites: &[SiteSetup], hosts: &[HostSetup]) -> Setup {
    Setup {
        seed: 1,
        real_crypto: false,
        operators: 1,
        domains: 1,
        sites: sites.to_vec(),
        hosts: hosts.to_vec(),
        devices: vec![DeviceSetup { domain: 0, site: 0, via: 0, has_tls: false }],
        sample_interval: Duration::from_secs(5),
        start_within: Duration::from_secs(1),
        planted: None,
        is_told: false,
    }
}

fn check(setup: Setup, operations: &[(u64, Operation)], calm: u64) {
    let operations = operations.iter().map(|(at, operation)| (Duration::from_secs(*at), *operation));
    let plan = Plan { setup, operations: operations.collect(), calm_at: Duration::from_secs(calm) };
    let violation = run(&plan).map(|report| report.violation);
    assert!(matches!(violation, Ok(None)), "{violation:?}");
}

/// A set that a time-out completed made an attachment due at the moment of that time-out, after attachments had been looked at.
#[test]
fn an_attachment_that_a_timeout_brings_about_is_not_due_at_that_timeout() {
    // The second answer of a look-up is lost often enough that its time-out completes the set.
    for seed in 0..20 {
        let poor = SiteSetup { quality: Quality { loss: 200, ..Quality::GOOD }, ..OPEN_SITE };
        let mut setup = setup(&[poor], &[host(0, true)]);
        setup.operators = 2;
        setup.seed = seed;
        check(setup, &[], 30);
    }
}

/// Rule 6.8: a node to which nobody answers any more asked for its Head, and for every set that it lacked, every five seconds.
#[test]
fn a_revoked_tunnel_node_does_not_hammer_the_operators() {
    let setup = setup(&[OPEN_SITE; 2], &[host(0, true), host(1, false)]);
    check(setup, &[(60, Operation::Revoke { host: 0 })], 70);
}

/// Rule 6.12: the daily limit of reports held back the first report of a device that was registered anew.
#[test]
fn a_device_that_is_registered_again_is_found_again() {
    let setup = setup(&[OPEN_SITE; 2], &[host(0, true), host(1, false)]);
    check(setup, &[(60, Operation::Unregister { device: 0 }), (120, Operation::Register { device: 0 })], 130);
}

/// Rule 6.15: a laptop that came to the printer's site, behind a router that forwards nothing to it, was chosen first and for ever.
#[test]
fn a_tunnel_node_that_cannot_be_reached_does_not_stand_before_one_that_can() {
    for seed in 0..8 {
        let mut setup = setup(&[HOME, OPEN_SITE, HOME], &[host(0, true), host(1, true), host(2, false)]);
        setup.seed = seed;
        check(setup, &[(60, Operation::Roam { host: 1, site: 0 })], 70);
    }
}

/// Rule 6.8: a tunnel-node that missed the key of a new epoch could read no device any more; when the key came with a renewal, it read
/// the devices but did not serve them again.
#[test]
fn a_tunnel_node_that_gets_the_key_of_a_new_epoch_by_a_renewal_serves_again() {
    for seed in 0..30 {
        let poor = SiteSetup { quality: Quality { loss: 400, ..Quality::GOOD }, ..OPEN_SITE };
        let mut setup = setup(&[OPEN_SITE; 2], &[host(0, true), host(1, false), host(1, false)]);
        setup.seed = seed;
        let operations = [
            (50, Operation::Degrade { site: 0, quality: poor.quality }),
            (60, Operation::Revoke { host: 2 }),
        ];
        check(setup, &operations, 80);
    }
}

/// Rule 6.1: an answer to a request from before the date was set confirmed the date that was set, and the tunnel-node announced itself in
/// the future, where no operator believed it for hours.
#[test]
fn an_answer_from_before_the_date_was_set_does_not_confirm_the_date() {
    for millis in 0..40 {
        let slow = SiteSetup {
            quality: Quality { delay: Duration::from_millis(400), ..Quality::GOOD },
            ..OPEN_SITE
        };
        let setup = setup(&[slow, OPEN_SITE], &[host(0, true), host(1, false)]);
        let set = Operation::SetDate { host: 0, error_millis: 9 * 3_600_000 };
        let operations = vec![(Duration::from_secs(30) + Duration::from_millis(500 * millis), set)];
        let plan = Plan { setup, operations, calm_at: Duration::from_secs(60) };
        let violation = run(&plan).map(|report| report.violation);
        assert!(matches!(violation, Ok(None)), "{violation:?}");
    }
}

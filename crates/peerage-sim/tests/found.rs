//! What the swarm has found, made short: each a named test with its operations written out.

use std::time::Duration;

use peerage_sim::app::{Pace, Script};
use peerage_sim::liar::Manner;
use peerage_sim::nat::{Behaviour, NatConfig, Ports};
use peerage_sim::network::{Lan, Multicast, Quality};
use peerage_sim::operations::Operation;
use peerage_sim::plan::Plan;
use peerage_sim::run::run;
use peerage_sim::sessions::life::Liar;
use peerage_sim::sessions::{self, Life, Step};
use peerage_sim::world::{DeviceSetup, HostSetup, Setup, SiteSetup};

const LAN: Lan = Lan { multicast: Multicast::Works, loss: 0 };

fn host(site: usize, serves: bool) -> HostSetup {
    HostSetup { domain: 0, site, serves, lends: false, error_millis: 0, drift_ppm: 0 }
}

const OPEN_SITE: SiteSetup = SiteSetup { nat: None, quality: Quality::GOOD, lan: LAN };

const HOME: SiteSetup = SiteSetup {
    nat: Some(NatConfig {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressDependent,
        lifetime: Duration::from_secs(120),
        hairpinning: false,
        ports: Ports::Preserved,
    }),
    quality: Quality::GOOD,
    lan: LAN,
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
        eager: false,
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

/// Rule 6.22: who has left was forgotten as a peer and not as a contact, so the operator went on notifying it, and woke for nothing.
#[test]
fn a_member_that_has_left_is_notified_no_more() {
    let setup = setup(&[OPEN_SITE; 2], &[host(0, true), host(1, false), host(0, true)]);
    check(setup, &[(60, Operation::Leave { host: 0 }), (61, Operation::Register { device: 0 })], 70);
}

/// Rule 6.10: the servers that were chosen when a measurement timed out were due at that time-out, after attachments had been looked at.
#[test]
fn servers_that_a_timeout_chooses_are_not_due_at_that_timeout() {
    for seed in 0..30 {
        let poor = SiteSetup { quality: Quality { loss: 300, ..Quality::GOOD }, ..OPEN_SITE };
        let mut setup = setup(&[poor], &[host(0, true)]);
        setup.operators = 3;
        setup.seed = seed;
        check(setup, &[], 30);
    }
}

/// A holder whose date is three seconds ahead dropped what had expired by its own clock, and was said to have lost it.
#[test]
fn what_has_expired_by_the_clock_of_its_holder_is_not_lost() {
    let lent = |site, error_millis| HostSetup { lends: true, error_millis, ..host(site, true) };
    let mut setup = setup(&[OPEN_SITE; 3], &[host(0, true), lent(1, 0), lent(2, 2_900)]);
    setup.sample_interval = Duration::from_secs(1);
    // It announces itself no more.
    check(setup, &[(60, Operation::Lend { host: 1, on: false })], 70);
}

/// A seat that changed its owner while datagrams were counted: who had served was held to what those say who stand by.
#[test]
fn a_tunnel_node_that_loses_its_seat_to_another_may_have_said_what_it_said() {
    for seed in 0..6 {
        let lossy = SiteSetup { lan: Lan { multicast: Multicast::Works, loss: 290 }, ..OPEN_SITE };
        let mut setup =
            setup(&[lossy, OPEN_SITE], &[host(0, true), host(0, true), host(0, true), host(1, false)]);
        setup.seed = seed;
        check(setup, &[], 30);
    }
}

/// Rule 6.10: a super-node that cannot be reached was asked again every ten seconds, because the operator beside it answered.
#[test]
fn a_server_that_nobody_reaches_is_asked_seldom_although_another_answers() {
    // Both stand behind the same router, which does not turn round what is sent to its own address.
    let lent = HostSetup { domain: 1, lends: true, ..host(0, true) };
    let mut setup = setup(&[HOME, OPEN_SITE], &[host(0, true), host(1, false), lent]);
    setup.domains = 2;
    check(setup, &[], 30);
}

/// Rule 6.8: a look-up of the super-nodes that nobody answered was taken for one that differs from nothing, and the pause until the
/// Head was asked for again became short.
#[test]
fn a_revoked_tunnel_node_does_not_hammer_the_super_nodes() {
    let lent = |site| HostSetup { domain: 1, lends: true, ..host(site, false) };
    let mut setup = setup(&[OPEN_SITE; 4], &[host(0, true), host(1, false), lent(2), lent(3)]);
    setup.domains = 2;
    check(setup, &[(120, Operation::Revoke { host: 0 })], 130);
}

/// Rule 6.8: a computer that was revoked before super-nodes were asks those as well, of which it cannot hear, and was held to those that
/// were left.
#[test]
fn a_revoked_computer_asks_those_too_that_were_revoked_after_it() {
    let lent = |site| HostSetup { domain: 1, lends: true, ..host(site, false) };
    let mut hosts = vec![host(0, true), host(1, false)];
    hosts.extend((2..9).map(lent));
    let mut setup = setup(&[OPEN_SITE; 9], &hosts);
    setup.domains = 2;
    setup.eager = true;
    let mut operations = vec![(120, Operation::Revoke { host: 0 })];
    operations.extend((2..8).map(|host| (180, Operation::Revoke { host })));
    check(setup, &operations, 190);
}

/// Rule 3.11: a computer that was revoked, and restarted with a wrong date, goes on to ask who was a super-node when it last heard. That one
/// has restarted too, knows of no revocation in other domains, and tells it the time as often as it asks; it was held to what a user says.
#[test]
fn who_was_a_super_node_tells_the_revoked_the_time() {
    let lent = HostSetup { domain: 1, lends: true, ..host(2, false) };
    let wrong = HostSetup { error_millis: 4 * 3_600_000, ..host(0, true) };
    let mut setup = setup(&[OPEN_SITE; 3], &[wrong, host(1, false), lent]);
    setup.domains = 2;
    let operations = [
        (120, Operation::Revoke { host: 0 }),
        (130, Operation::Crash { host: 0, survivors: 3 }),
        (140, Operation::Lend { host: 2, on: false }),
        (150, Operation::Crash { host: 2, survivors: 3 }),
    ];
    check(setup, &operations, 160);
}

/// A computer that slept when it was no longer to be lent went on to offer itself, and was held to what a user says.
#[test]
fn a_computer_that_sleeps_goes_on_to_be_lent() {
    let lent = HostSetup { lends: true, ..host(1, false) };
    let setup = setup(&[OPEN_SITE, HOME], &[host(0, true), lent]);
    let sleep = Operation::Sleep { host: 1, span: Duration::from_secs(60), counts: false };
    check(setup, &[(60, sleep), (90, Operation::Lend { host: 1, on: false })], 130);
}

/// Rule 6.55: what a liar announced from the future, while a holder did not know the time, gave way to the liar's next word, and was
/// said to have been lost.
#[test]
fn what_was_announced_from_the_future_gives_way() {
    for seed in 0..3 {
        let lent = HostSetup { lends: true, ..host(1, true) };
        let mut setup = setup(&[OPEN_SITE; 3], &[host(0, true), lent, host(2, true)]);
        setup.seed = seed;
        let set = |error_millis| Operation::SetDate { host: 1, error_millis };
        let lie = Operation::Lie { host: 2, manner: Manner::Flood };
        check(setup, &[(60, lie), (90, set(2_000)), (130, set(-2_000)), (170, set(2_000))], 210);
    }
}

/// Rule 6.8: who stands by had asked in vain during an outage, then heard from the elected that its Head is still the newest, and took that for
/// its own: it thought for half an hour that it is offline.
#[test]
fn a_neighbours_word_does_not_keep_who_asked_in_vain_from_asking_again() {
    for seed in 0..4 {
        let mut hosts = vec![host(0, true); 6];
        hosts.push(host(1, false));
        let mut setup = setup(&[OPEN_SITE; 2], &hosts);
        setup.seed = seed;
        // They may not use the printer, so that no probe has them ask.
        let operations = [
            (50, Operation::Restrict { device: 0, host: 6 }),
            (60, Operation::Outage { span: Duration::from_secs(600) }),
        ];
        check(setup, &operations, 660);
    }
}

/// Rule 6.1: an operator that alone was back dated 62 s back, and a tunnel-node followed it. Super-nodes whose clocks run behind went on to take
/// its word, others told it the time, which it did not believe, and no operator was asked any more.
#[test]
fn who_is_told_another_time_by_a_super_node_asks_an_operator() {
    for seed in 0..4 {
        let lent =
            |domain, error_millis| HostSetup { domain, lends: true, error_millis, ..host(domain + 1, false) };
        let hosts = [host(0, true), host(1, false), lent(1, -2_500), lent(2, -2_500), lent(3, 0), lent(4, 0)];
        let mut setup = setup(&[OPEN_SITE; 6], &hosts);
        setup.domains = 5;
        setup.operators = 2;
        setup.seed = seed;
        let operations = [
            (240, Operation::Outage { span: Duration::from_secs(300) }),
            (320, Operation::SetOperatorDate { operator: 1, error_millis: -62_155 }),
        ];
        check(setup, &operations, 355);
    }
}

/// Rule 6.1: a super-node that was revoked goes on to answer whoever was revoked after it, and has restarted since. Each of its answers counted as
/// the end of a silence, so that the time was asked for every ten seconds.
#[test]
fn who_is_answered_and_not_told_the_time_asks_more_and_more_seldom() {
    let ms = Duration::from_millis;
    let quality =
        |delay, jitter, loss| Quality { delay: ms(delay), jitter: ms(jitter), loss, ..Quality::GOOD };
    let router = |mapping, filtering, lifetime, hairpinning, ports| {
        let lifetime = Duration::from_secs(lifetime);
        Some(NatConfig { mapping, filtering, lifetime, hairpinning, ports })
    };
    let site = |nat, quality| SiteSetup { nat, quality, lan: LAN };
    let (any, address, port) =
        (Behaviour::EndpointIndependent, Behaviour::AddressDependent, Behaviour::AddressAndPortDependent);
    let sites = [
        site(router(any, any, 23, false, Ports::Sequential), quality(12, 5, 0)),
        site(router(port, port, 57, true, Ports::Scattered), quality(27, 28, 128)),
        site(router(port, address, 100, true, Ports::Preserved), quality(98, 179, 60)),
        site(router(address, any, 156, true, Ports::Scattered), quality(97, 164, 136)),
        site(None, quality(106, 158, 178)),
        site(None, quality(147, 141, 157)),
    ];
    let off = |error_millis, host: HostSetup| HostSetup { error_millis, ..host };
    let lent = |site| HostSetup { lends: true, ..host(site, false) };
    let hosts = [
        off(-2_551, host(1, true)),
        off(-909, host(3, true)),
        off(1_167, host(2, false)),
        off(-666, lent(4)),
        off(-1_092, lent(5)),
    ];
    let mut setup = setup(&sites, &hosts);
    (setup.seed, setup.operators) = (1_795_455_969_000_062, 2);
    setup.start_within = Duration::from_secs(5);
    let device = |site, via| DeviceSetup { domain: 0, site, via, has_tls: false };
    setup.devices =
        [(3, 1), (3, 1), (2, 2), (3, 1), (2, 2), (2, 2)].map(|(site, via)| device(site, via)).to_vec();
    let operations = [
        (149, Operation::Crash { host: 1, survivors: 1 }),
        (286, Operation::Roam { host: 1, site: 0 }),
        (348, Operation::Revoke { host: 4 }),
        (490, Operation::Revoke { host: 1 }),
    ];
    check(setup, &operations, 625);
}

// ---- sessions by themselves ---------------------------------------------------------------------------

const SCRIPT: Script = Script {
    up: 100_000,
    down: 100_000,
    answers_last: false,
    user: Pace::Eager,
    device: Pace::Slow(2),
    breaks: None,
};

/// Runs the same steps with many delays and cuts at other bytes.
fn check_lives(lives: u64, liar: Option<Liar>, steps: &[(u64, Step)], budget: u64) {
    for seed in 0..lives {
        let steps = steps.iter().map(|(at, step)| (Duration::from_millis(*at), *step)).collect();
        let life = Life {
            seed,
            max_window: 1 << 17,
            budget,
            delay: (Duration::from_millis(10), Duration::from_millis(60)),
            liar,
            steps,
            calm_at: Duration::from_secs(5),
            planted: None,
        };
        let violation = sessions::run(&life).violation;
        assert_eq!(violation, None, "seed {seed}");
    }
}

/// Rule 7.20: LEAVE was said on a connection that had lost its bytes without a word; both ends forgot it, and nobody sent them again.
#[test]
fn a_session_does_not_leave_a_connection_before_its_bytes_have_arrived() {
    let half_closed = Step::HalfClose { carrier: 0, towards: 1 };
    check_lives(30, None, &[(100, Step::Open(SCRIPT)), (500, half_closed), (900, Step::Move)], 32 << 20);
}

/// Rule 7.21: the last acknowledgement was lost with a connection that was in doubt, and the peer took the LEAVE on the other for the end.
#[test]
fn a_session_that_is_complete_says_so_wherever_it_leaves() {
    let steps = [
        (59, Step::Open(Script { up: 165_461, down: 860, answers_last: true, ..SCRIPT })),
        (134, Step::Open(Script { up: 0, down: 97_663, answers_last: true, user: Pace::Slow(1), ..SCRIPT })),
        (634, Step::Move),
        (749, Step::Doubt),
        (797, Step::HalfClose { carrier: 1, towards: 1 }),
    ];
    check_lives(60, None, &steps, 32 << 20);
}

/// Rule 7.20: a connection that was to take the place of another was lost before its answer came; the tunnel-node would use neither, and
/// the user-node knew nothing of it.
#[test]
fn a_connection_is_used_again_when_the_one_in_its_place_is_lost() {
    let steps = [
        (92, Step::Open(Script { up: 950_828, down: 168_779, device: Pace::Eager, ..SCRIPT })),
        (684, Step::Stall { carrier: 0, towards: 2, span: Duration::from_millis(7_776) }),
        (933, Step::Move),
        (1_143, Step::Cut(0)),
    ];
    check_lives(20, None, &steps, 1 << 18);
    let steps = [
        (111, Step::Move),
        (304, Step::Open(Script { up: 115_162, down: 160_174, ..SCRIPT })),
        (537, Step::Doubt),
        (593, Step::Move),
        (599, Step::Stall { carrier: 0, towards: 1, span: Duration::from_secs(16) }),
        (867, Step::Doubt),
        (871, Step::Stall { carrier: 0, towards: 0, span: Duration::from_secs(20) }),
        (1_013, Step::Move),
        (1_135, Step::Move),
        (1_316, Step::Move),
        (1_347, Step::Cut(0)),
        (1_399, Step::Move),
        (1_417, Step::Stall { carrier: 1, towards: 1, span: Duration::from_secs(25) }),
    ];
    check_lives(20, None, &steps, 1 << 19);
}

/// Rule 7.24: after a LEAVE that was not allowed, the session waited on its connection for a last frame that had come, and was kept for ever.
#[test]
fn a_session_that_a_liar_ended_is_not_kept() {
    let opened = Step::OpenWithLiar(Script { up: 5_000, down: 29_283, answers_last: true, ..SCRIPT });
    check_lives(200, Some(Liar::TunnelNode), &[(100, opened), (150, opened), (200, opened)], 32 << 20);
}

/// A connection that was left for long became busy again when the one in its place fell silent: it was to be measured at once, which the
/// simulator took for a time-out that changes nothing.
#[test]
fn an_idle_connection_that_a_timeout_makes_busy_may_be_measured_at_once() {
    for seed in 0..40 {
        let steps = [
            (7_079, Step::Open(Script { up: 180_293, down: 156_128, device: Pace::Eager, ..SCRIPT })),
            (7_572, Step::HalfClose { carrier: 0, towards: 1 }),
            (17_826, Step::HalfClose { carrier: 0, towards: 0 }),
        ];
        let life = Life {
            seed,
            max_window: 1 << 20,
            budget: 32 << 20,
            delay: (Duration::from_millis(12), Duration::from_millis(58)),
            liar: None,
            steps: steps.map(|(at, step)| (Duration::from_millis(at), step)).to_vec(),
            calm_at: Duration::from_secs(40),
            planted: None,
        };
        assert_eq!(sessions::run(&life).violation, None, "seed {seed}");
    }
}

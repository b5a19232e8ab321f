//! The experiments at small size: what they find has the shape that `docs/EXPERIMENTS.md` states.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::time::Duration;

use peerage_sim::experiments::{Experiment, Outcome, Scale, Terms, quiet, run};

/// Does an experiment, and checks that all it found can be read: no empty table, no chart without points.
fn small(experiment: Experiment) -> Outcome {
    let terms =
        Terms { scale: Scale::Small, seed: 1, least: 0, most: usize::MAX, stopwatch: None, told: None };
    let outcome = run(experiment, terms).unwrap();
    for table in &outcome.tables {
        assert!(!table.rows.is_empty(), "{}", table.title);
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{}", table.title);
    }
    for chart in &outcome.charts {
        assert!(chart.curves.iter().all(|curve| !curve.points.is_empty()), "{}", chart.title);
        assert!(chart.svg().ends_with("</svg>\n"));
        assert!(chart.png().starts_with(b"\x89PNG"));
    }
    let object = outcome.json(experiment, Scale::Small);
    assert!(outcome.findings.iter().all(|(name, _)| object.get(*name).is_some()));
    outcome
}

#[test]
fn the_operator_hears_little_of_each_further_computer_and_everybody_is_served() {
    let outcome = small(Experiment::Figure2);
    assert_eq!(outcome.finding("reached_lowest"), Some(1.0));
    assert!(outcome.finding("slope_heard").unwrap() < 0.02);
    // Where one computer in ten is lent, and not one in fifty, leases outweigh what is saved: it is only said that they do not cost more.
    assert!(outcome.finding("share_of_the_centre").unwrap() < 1.1);
}

#[test]
fn nine_of_ten_lie_and_the_truth_is_found_where_they_are_no_majority_of_organisations() {
    let outcome = small(Experiment::Malicious);
    assert_eq!(outcome.finding("one_liar_of_ten_with_two_requests"), Some(0.0));
    assert_eq!(outcome.finding("reached_lowest_with_diversity"), Some(1.0));
    assert_eq!(outcome.finding("reached_lowest_with_the_vendor"), Some(1.0));
    // Nine organisations that conspire may hold whole segments, or not: with one seed nothing follows from it.
    let by_chance = outcome.finding("nine_liars_of_ten_with_two_requests").unwrap();
    assert!((by_chance - 0.8).abs() < 1e-9, "(9 / 10) × (8 / 9), but {by_chance}");
    assert!(outcome.finding("slowest_millis").unwrap() < 30_000.0);
}

#[test]
fn super_nodes_that_die_in_a_rush_pull_no_other_down_and_every_wish_is_fulfilled() {
    let outcome = small(Experiment::Snowball);
    assert_eq!(outcome.finding("opened_lowest"), Some(1.0));
    assert_eq!(outcome.finding("crashes_most"), Some(0.0), "none is pulled down");
}

#[test]
fn computers_that_come_and_go_leave_nearly_every_wish_fulfilled() {
    let outcome = small(Experiment::Churn);
    // Where they stay for ten minutes, a tunnel-node may have gone a moment ago.
    assert!(outcome.finding("opened_lowest").unwrap() > 0.95);
    assert_eq!(outcome.finding("opened_lowest_where_tunnel_nodes_stay"), Some(1.0));
    assert_eq!(outcome.finding("opened_with_the_longest"), Some(1.0));
}

#[test]
fn everybody_who_arrives_in_the_morning_prints() {
    let outcome = small(Experiment::Morning);
    assert_eq!(outcome.finding("opened_lowest"), Some(1.0));
    assert_eq!(outcome.finding("segments_of_one_organisation"), Some(1.0), "all of it fits into any memory");
    assert!(outcome.finding("slowest_millis").unwrap() < 1_000.0, "also beside the printer");
}

#[test]
fn without_operators_the_network_goes_on() {
    let outcome = small(Experiment::OperatorOff);
    assert_eq!(outcome.finding("reached_in_the_first_hour"), Some(1.0));
    assert_eq!(outcome.finding("reached_later"), Some(1.0));
    // One look-up that ends in silence, at the user's end; the tunnel-node has made its own already.
    assert!(outcome.finding("slowest_median_millis").unwrap() < 1_600.0);
}

#[test]
fn a_lan_of_many_sends_hardly_more_than_a_lan_of_few() {
    let outcome = small(Experiment::Quiet);
    assert!(outcome.finding("internet_datagrams_per_further_computer_and_hour").unwrap() < 30.0);
    assert!(outcome.finding("group_datagrams_per_hour_of_the_largest").unwrap() <= 800.0);
}

/// Rule 6.27: the budget for 300, of whole nodes with routers that turn nothing round, so that checks take long.
#[test]
fn three_hundred_computers_on_one_lan_keep_the_quietness_budget() {
    let (settling, counted) = (Duration::from_secs(900), Duration::from_secs(2_700));
    let noise = quiet::measure(300, 1, (settling, counted)).unwrap();
    assert!(noise.multicasts <= 800 * 3 / 4, "{noise:?}");
    // Each of the three super-nodes is asked by all, and the operator by some.
    assert!(noise.datagrams <= 3 * 1_900 * 3 / 4, "{noise:?}");
    assert!(noise.bytes <= 3 * 1_200_000 * 3 / 4, "{noise:?}");
}

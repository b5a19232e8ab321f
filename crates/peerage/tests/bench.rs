//! Every bench for an instant: that it runs, and that what it reports is whole. How fast anything is, nobody judges here.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use std::process::Command;

use serde_json::Value;

/// Runs a bench for an instant and returns its report.
fn report(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.arg("bench").args(arguments).args(["--runs", "1", "--seconds", "0.02", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Checks a report with so many cases.
fn check(report: &Value, cases: usize) {
    let all = report["cases"].as_array().unwrap();
    assert_eq!(all.len(), cases, "{report}");
    for object in all.iter().chain([report]) {
        for field in ["value", "reference", "ratio"] {
            assert!(object[field].as_f64().unwrap() > 0.0, "{field}: {object}");
        }
        assert_eq!(object["runs"].as_array().unwrap().len(), 1, "{object}");
    }
    for field in ["bench", "unit", "reference_name"] {
        assert!(!report[field].as_str().unwrap().is_empty(), "{report}");
    }
    assert!(report["machine"]["processors"].as_u64().unwrap() > 0);
}

#[test]
fn sealed_messages_are_counted_beside_a_plain_echo() {
    let report = report(&["messages", "--peers", "20"]);
    check(&report, 3);
    assert!(report["cases"][1]["strangers_a_second"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["cases"][0]["wrong"], 0, "{report}");
    assert!(report["cases"][0]["first_contacts_a_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn look_ups_are_counted_beside_pings() {
    check(&report(&["lookups"]), 2);
}

#[test]
fn bytes_and_openings_through_a_tunnel_are_measured_beside_plain_hops() {
    check(&report(&["tunnel"]), 4);
    check(&report(&["open"]), 2);
}

#[test]
fn a_relay_and_a_udp_path_are_measured_where_a_firewall_leaves_nothing_else() {
    check(&report(&["relay"]), 4);
    check(&report(&["punched"]), 4);
}

#[test]
fn all_tunnels_that_open_still_answer() {
    let report = report(&["tunnels", "--count", "16"]);
    check(&report, 2);
    assert_eq!(report["cases"][0]["open_at_once"], 16);
    assert_eq!(report["cases"][0]["all_of_them_answered"], 16);
}

#[test]
fn many_pairs_of_nodes_go_through_one_relay_and_one_pair_more_is_told_why_not() {
    let report = report(&["tunnels", "--relayed", "--pairs", "4", "--count", "16"]);
    check(&report, 3);
    let case = &report["cases"][0];
    assert_eq!(
        (&case["pairs"], &case["open_at_once"], &case["all_of_them_answered"]),
        (&4.into(), &16.into(), &16.into())
    );
    assert!(case["refused_with"].as_str().unwrap().contains("give no more"), "{report}");
}

#[test]
fn records_and_enrolments_are_measured_beside_plain_writes() {
    check(&report(&["table", "--records", "200"]), 4);
    check(&report(&["operator"]), 2);
}

#[test]
fn a_node_at_rest_is_measured_beside_a_plain_process() {
    let report = report(&["rest"]);
    check(&report, 3);
    assert!(report["cases"][1]["program_file_mib"].as_f64().unwrap() > 1.0, "{report}");
}

#[test]
fn what_the_thesis_measured_is_measured_again() {
    // That the other build is this one makes no difference to what is reported.
    let report = report(&["thesis", "--debug-build", env!("CARGO_BIN_EXE_peerage")]);
    check(&report, 9);
    assert!(report["cases"][4]["part_of_that_on_loopback"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["cases"][7]["plainly_mb_s"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["cases"][8]["those_that_are_open_go_on"], true, "{report}");
}

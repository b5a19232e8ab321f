//! A few pairs of networks with the real program; `cargo xtask lab matrix` plays all.

use peerage_lab::scenario::{Programs, Selection, matrix};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_tunnel_works_between_networks_of_each_sort_and_takes_no_path_that_theory_forbids() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report =
        matrix(&programs, (&Selection::Quick, false), Duration::ZERO, &mut |line| log.push(line.to_owned()));
    let shown = format!("{:#}\n{}", report.to_json(), log.join("\n"));
    for (fact, value) in [("pairs", 5), ("failed", 0), ("beyond_theory", 0)] {
        assert_eq!(report.fact(fact), Some(&value.into()), "{shown}");
    }
    let results = report.fact("results").and_then(Value::as_array).unwrap();
    for [user, node] in [["none", "none"], ["symmetric", "none"], ["same-lan", "same-lan"]] {
        let is = |pair: &&Value| pair["user"] == user && pair["node"] == node;
        let pair = results.iter().find(is).unwrap();
        assert_ne!(pair["direct_ms"], json!(null), "{shown}");
    }
}

//! Super-nodes with the real program: they take over from the operator, and one of them dies.

use peerage_lab::scenario::{Programs, Size, super_nodes};

#[test]
fn members_find_their_devices_while_one_of_three_super_nodes_dies_and_returns() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report = super_nodes(&programs, Size::Small, &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
    for (fact, value) in [("failed", 0), ("records_lost", 0), ("killed", 1), ("devices", 3), ("moves", 1)] {
        assert_eq!(report.fact(fact), Some(&value.into()), "{fact} in {:#}", report.to_json());
    }
    let lookups = report.fact("lookups").and_then(|count| count.as_u64());
    assert!(lookups >= Some(18), "{:#}", report.to_json());
}

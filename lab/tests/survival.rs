//! An open tunnel of the real program outlives a change of networks and the loss of all mappings.

use peerage_lab::scenario::{Extent, Programs, survival};
use serde_json::Value;

#[test]
fn a_tunnel_loses_nothing_when_the_network_changes_or_a_router_forgets_it() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report = survival(&programs, Extent::Quick, None, &mut |line| log.push(line.to_owned()));
    // How long it stalls is for `cargo xtask lab survival` to judge: here other tests use the machine as well.
    let events = report.fact("events").and_then(Value::as_array).unwrap();
    assert_eq!(events.len(), 2, "{:?}\n{}", report.error(), log.join("\n"));
    for event in events {
        assert_eq!(event.get("lost"), Some(&0.into()), "{event}");
        assert!(event.get("bytes").and_then(Value::as_u64).unwrap() > 0, "{event}");
        assert_eq!(event.get("error"), None, "{event}");
    }
}

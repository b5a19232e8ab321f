//! Many tunnels of the real program at once, all through one relay.

use peerage_lab::scenario::{Crowd, Programs, tunnels};

#[test]
fn twenty_tunnels_of_two_users_through_one_relay_lose_nothing() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report = tunnels(&programs, Crowd::Small, &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
    assert_eq!(report.fact("tunnels"), Some(&20.into()));
    assert_eq!(report.fact("lost"), Some(&0.into()));
}

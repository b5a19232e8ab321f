//! Relays of the real program give what they are lent for, and no more.

use peerage_lab::scenario::{Programs, quotas};

#[test]
fn beyond_its_quotas_a_relay_refuses_and_what_is_open_goes_on() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report = quotas(&programs, &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
}

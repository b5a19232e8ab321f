//! The whole chain, with the real program, a real printer and CUPS' own client.

use peerage_lab::scenario::{Programs, print};

#[test]
fn a_user_behind_nat_prints_to_an_office_with_the_same_prefix_also_after_the_printer_moved() {
    let programs = Programs::with_agent(env!("CARGO_BIN_EXE_peerage-lab-agent")).unwrap();
    let mut log = Vec::new();
    let report = print(&programs, &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
    assert_eq!(report.fact("jobs"), Some(&2.into()));
    assert_eq!(report.fact("identical"), Some(&2.into()));
}

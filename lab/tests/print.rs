//! The whole chain, with the real program, a real printer and CUPS' own client.

use peerage_lab::device::MappingProtocol;
use peerage_lab::scenario::{Programs, Reach, print};

const AGENT: &str = env!("CARGO_BIN_EXE_peerage-lab-agent");

#[test]
fn a_user_behind_nat_prints_to_an_office_with_the_same_prefix_also_after_the_printer_moved() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Forwarded);
}

#[test]
fn a_user_behind_nat_prints_to_an_office_where_nobody_has_configured_anything() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Punched);
}

#[test]
fn a_user_behind_nat_prints_through_the_relay_where_no_hole_can_be_punched() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Relayed);
}

#[test]
fn a_user_behind_nat_prints_to_an_office_whose_router_gives_ports_by_pcp() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Mapped(MappingProtocol::Pcp));
}

#[test]
fn a_user_behind_nat_prints_to_an_office_whose_router_gives_ports_by_nat_pmp() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Mapped(MappingProtocol::NatPmp));
}

#[test]
fn a_user_behind_nat_prints_to_an_office_whose_router_gives_ports_by_upnp() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::Mapped(MappingProtocol::Upnp));
}

#[test]
fn a_user_prints_to_an_office_where_both_networks_drop_all_udp() {
    play(&Programs::with_agent(AGENT).unwrap(), Reach::NoUdp);
}

fn play(programs: &Programs, reach: Reach) {
    let mut log = Vec::new();
    let report = print(programs, reach, &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
    assert_eq!(report.fact("jobs"), Some(&2.into()));
    assert_eq!(report.fact("identical"), Some(&2.into()));
}

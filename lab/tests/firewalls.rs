//! The real program gets through what firewalls leave: messages, legs of tunnels and joining inside TLS, or in WebSockets. What needs
//! mitmproxy is played by `cargo xtask lab firewalls` alone.

use peerage_lab::scenario::{Programs, firewalls, web_ports};

const AGENT: &str = env!("CARGO_BIN_EXE_peerage-lab-agent");

/// Plays the story of one network: joining, finding the printer of an office elsewhere, printing, 64 MiB both ways, and the doctor.
fn visit(programs: &Programs, network: &str) {
    let mut log = Vec::new();
    let report = firewalls(programs, Some(network), &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
    let printed = report.fact("networks").and_then(|networks| networks.get(network)?.get("printed"));
    assert_eq!(printed, Some(&true.into()));
}

#[test]
fn where_only_tls_passes_messages_and_tunnels_go_inside_it() {
    visit(&Programs::with_agent(AGENT).unwrap(), "tls-only");
}

#[test]
fn where_udp_dies_tunnels_go_on_and_messages_find_another_way() {
    visit(&Programs::with_agent(AGENT).unwrap(), "udp-dies");
}

#[test]
fn where_only_http_passes_joining_messages_and_tunnels_go_without_tls() {
    visit(&Programs::with_agent(AGENT).unwrap(), "http-only");
}

#[test]
fn where_port_443_alone_leads_out_super_nodes_there_carry_messages_and_tunnels() {
    let mut log = Vec::new();
    let report = web_ports(&Programs::with_agent(AGENT).unwrap(), &mut |line| log.push(line.to_owned()));
    assert!(report.is_ok(), "{:?}\n{}", report.error(), log.join("\n"));
}

//! Each kind of NAT does what its name says, measured with real packets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerage_lab::device::{MappingDaemon, MappingProtocol};
use peerage_lab::netns::Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
use peerage_lab::netns::{Behaviour, Nat, PortAssignment, Translation};
use peerage_lab::probe::Report;
use peerage_lab::{Lab, SiteConfig};

const AGENT: &str = env!("CARGO_BIN_EXE_peerage-lab-agent");
const TIMEOUT: Duration = Duration::from_secs(30);

/// Puts a host behind a router of this kind and measures from there; also returns the router's public address.
fn measure(nat: Nat) -> Result<(Report, String)> {
    measure_behind(None, nat)
}

/// Does the same with a carrier's translator between the router and the Internet, whose address is the public one then.
fn measure_behind(carrier: Option<Nat>, nat: Nat) -> Result<(Report, String)> {
    let lab = Lab::new()?;
    let public = lab.public_host("stun")?;
    let (first, second) = (public.address().to_string(), public.second_address().to_string());
    let mut config = SiteConfig::new("home").nat(nat);
    if nat == Nat::None {
        config = config.lan([45, 77, 0, 0].into());
    }
    let (site, public_address) = match carrier {
        None => {
            let site = lab.site(config)?;
            let public_address = site.public_address();
            (site, public_address)
        }
        Some(carrier) => {
            let carrier = lab.site(SiteConfig::new("carrier").lan([100, 64, 0, 0].into()).nat(carrier))?;
            (carrier.site(config)?, carrier.public_address())
        }
    };
    let host = site.host("pc")?;
    let mut server = public.command(AGENT).args(["nat-server", &first, &second]).spawn()?;
    server.wait_for_line("it served", TIMEOUT, |line| (line == "ready").then_some(()))?;
    let report = host.command(AGENT).args(["nat-probe", &first, &second]).output(TIMEOUT)?;
    let report = Report::from_json(&serde_json::from_str(&report)?).context("unexpected report")?;
    Ok((report, public_address.to_string()))
}

/// Measures as [`measure`] does, and checks the result.
fn check(nat: Nat, mapping: Behaviour, filtering: Behaviour) -> Result<Report> {
    let (report, public_address) = measure(nat)?;
    ensure!((report.mapping, report.filtering) == (mapping, filtering), "{nat:?} gave {report:?}");
    ensure!(report.external.iter().all(|seen| seen.ip().to_string() == public_address), "{report:?}");
    Ok(report)
}

#[test]
fn without_nat_a_host_is_seen_under_its_own_endpoint_and_reached_by_all() {
    let (report, _) = measure(Nat::None).unwrap();
    assert!(report.external.iter().all(|seen| *seen == report.local), "{report:?}");
    assert_eq!(report.filtering, EndpointIndependent, "{report:?}");
}

#[test]
fn masquerade_preserves_the_port_and_filters_by_address_and_port() {
    let report = check(Nat::Masquerade, EndpointIndependent, AddressAndPortDependent).unwrap();
    assert!(report.preserves_port, "{report:?}");
    assert!(!report.hairpins, "{report:?}");
}

#[test]
fn endpoint_independent_mapping_can_come_with_each_kind_of_filtering() {
    check(Nat::EIM_EIF, EndpointIndependent, EndpointIndependent).unwrap();
    check(Nat::EIM_ADF, EndpointIndependent, AddressDependent).unwrap();
    check(Nat::EIM_APDF, EndpointIndependent, AddressAndPortDependent).unwrap();
}

#[test]
fn address_dependent_mapping_uses_one_port_for_each_remote_address() {
    let report = check(Nat::ADM_APDF, AddressDependent, AddressAndPortDependent).unwrap();
    let ports: Vec<u16> = report.external.iter().map(|seen| seen.port()).collect();
    assert_eq!(ports[2], ports[3], "{report:?}");
}

#[test]
fn a_symmetric_translator_uses_another_port_for_each_remote_endpoint() {
    let report = check(Nat::SYMMETRIC, AddressAndPortDependent, AddressAndPortDependent).unwrap();
    let mut ports: Vec<u16> = report.external.iter().map(|seen| seen.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4, "{report:?}");
}

#[test]
fn a_sequential_translator_counts_its_ports_up() {
    let report = check(Nat::SYMMETRIC_SEQUENTIAL, AddressAndPortDependent, AddressAndPortDependent).unwrap();
    let ports: Vec<u16> = report.external.iter().map(|seen| seen.port()).collect();
    assert!(ports.windows(2).all(|pair| pair[1] == pair[0] + 1), "{report:?}");
}

#[test]
fn the_port_can_be_preserved_under_any_filtering() {
    for filtering in [EndpointIndependent, AddressDependent, AddressAndPortDependent] {
        let nat = Translation::new(EndpointIndependent, filtering).ports(PortAssignment::Preserving);
        let report = check(Nat::Translation(nat), EndpointIndependent, filtering).unwrap();
        assert!(report.preserves_port, "{report:?}");
    }
}

#[test]
fn a_symmetric_translator_can_admit_strangers() {
    let nat = Translation::new(AddressAndPortDependent, EndpointIndependent);
    check(Nat::Translation(nat), AddressAndPortDependent, EndpointIndependent).unwrap();
}

#[test]
fn hairpinning_shows_the_external_endpoint_of_the_sender() {
    let nat = Translation::new(EndpointIndependent, AddressAndPortDependent).hairpinning();
    let report = check(Nat::Translation(nat), EndpointIndependent, AddressAndPortDependent).unwrap();
    assert!(report.hairpins, "{report:?}");
}

#[test]
fn behind_a_carriers_translator_the_less_permissive_behaviour_of_both_is_seen() {
    let (report, public_address) = measure_behind(Some(Nat::SYMMETRIC), Nat::Masquerade).unwrap();
    assert_eq!((report.mapping, report.filtering), (AddressAndPortDependent, AddressAndPortDependent));
    assert!(report.external.iter().all(|seen| seen.ip().to_string() == public_address), "{report:?}");

    let (report, _) = measure_behind(Some(Nat::EIM_EIF), Nat::EIM_ADF).unwrap();
    assert_eq!((report.mapping, report.filtering), (EndpointIndependent, AddressDependent));
}

#[test]
fn customers_of_one_carrier_reach_each_other_only_if_it_turns_packets_round() {
    let carrier = Translation::new(EndpointIndependent, AddressAndPortDependent);
    for nat in [carrier, carrier.hairpinning()] {
        // The customer's own router lets everybody in, so that what is seen is the carrier's.
        let (report, _) = measure_behind(Some(Nat::Translation(nat)), Nat::EIM_EIF).unwrap();
        assert_eq!(report.hairpins, nat.hairpinning, "{report:?}");
        assert_eq!(report.mapping, EndpointIndependent, "{report:?}");
    }
}

#[test]
fn a_mapping_is_gone_when_its_lifetime_has_passed() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("stun").unwrap();
    let (first, second) = (public.address().to_string(), public.second_address().to_string());
    let nat = Translation::new(EndpointIndependent, EndpointIndependent).lifetime(Duration::from_secs(1));
    let site = lab.site(SiteConfig::new("home").nat(Nat::Translation(nat))).unwrap();
    let host = site.host("pc").unwrap();
    let mut server = public.command(AGENT).args(["nat-server", &first, &second]).spawn().unwrap();
    server.wait_for_line("it served", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    host.command(AGENT).args(["nat-probe", &first, &second]).output(TIMEOUT).unwrap();
    // Well before the 30 s and 120 s of the kernel: this gives up after ten.
    site.router().wait_until("! conntrack -L -p udp 2>/dev/null | grep -q .").unwrap();
    for list in ["map ip nat external", "map ip nat internal"] {
        site.router().wait_until(&format!("! nft list {list} | grep -q elements")).unwrap();
    }
}

#[test]
fn a_router_maps_a_port_for_whom_asks_by_its_protocol_and_no_other() {
    let lab = Lab::new().unwrap();
    let stranger = lab.public_host("stranger").unwrap();
    for protocol in MappingProtocol::ALL {
        let name = protocol.name();
        let site = lab.site(SiteConfig::new(name).nat(Nat::SYMMETRIC)).unwrap();
        let _daemon = MappingDaemon::start(&lab, &site, protocol).unwrap();
        let host = site.host("pc").unwrap();
        let mut device = host.command(AGENT).args(["device", "0.0.0.0:8080", "0.0.0.0:0"]).spawn().unwrap();
        device.wait_for_line("it served", TIMEOUT, |line| line.starts_with("ready").then_some(())).unwrap();
        let fetches = || {
            let from = format!("{}:8080", site.public_address());
            stranger.command(AGENT).args(["fetch", &from, "1000"]).run(TIMEOUT).unwrap().status.success()
        };
        let gateway = site.gateway().to_string();
        let asks = |name: &str| host.command(AGENT).args(["map-port", name, &gateway]).run(TIMEOUT).unwrap();
        for other in MappingProtocol::ALL.into_iter().filter(|other| *other != protocol) {
            assert!(!asks(other.name()).status.success(), "{other:?} on a router with {name}");
        }
        assert_eq!((fetches(), MappingDaemon::given(&site).unwrap()), (false, 0), "{name}");
        let granted = asks(name);
        assert_eq!(granted.stdout.trim(), "8080", "{name}: {granted:?}");
        assert_eq!((fetches(), MappingDaemon::given(&site).unwrap()), (true, 1), "{name}");
    }
}

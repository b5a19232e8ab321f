//! The devices work inside their own LAN, before any tunnel comes into play.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerage_lab::device::{DhcpServer, PRINTER_PORT, Printer, document, print};
use peerage_lab::{Host, Lab, SiteConfig};

const TIMEOUT: Duration = Duration::from_secs(60);
const MAC: &str = "02:00:5e:00:53:01";

fn print_and_compare(lab: &Lab, from: &Host, to: &Host, printer: &Printer, number: u64) -> Result<()> {
    let (inside, outside) = lab.directory("documents")?;
    let (name, content) = (format!("document-{number}.pdf"), document(number, 1_000_003));
    fs::write(outside.join(&name), &content)?;
    let before = printer.jobs()?.len();
    print(from, &format!("ipp://{}:{PRINTER_PORT}/ipp/print", to.address()), &inside.join(&name), TIMEOUT)?;
    let jobs = printer.jobs()?;
    ensure!(jobs.len() == before + 1, "{} jobs after {before}", jobs.len());
    printer.wait_until_idle(to)?;
    ensure!(jobs.last().context("no job")? == &content, "the job differs from the document");
    Ok(())
}

#[test]
fn a_printer_prints_within_its_lan_and_goes_on_after_its_dhcp_address_changed() {
    let lab = Lab::new().unwrap();
    let office = lab.site(SiteConfig::new("office")).unwrap();
    let clerk = office.host("clerk").unwrap();
    let host = office.plug("printer", Some(MAC)).unwrap();
    let first = DhcpServer::start(&lab, &office, office.address(210)).unwrap();
    first.lease(&host).unwrap();
    assert_eq!(host.address().to_string(), "192.168.1.210");
    assert_eq!(host.mac().unwrap(), MAC);

    let mut printer = Printer::start(&lab, &host).unwrap();
    print_and_compare(&lab, &clerk, &host, &printer, 1).unwrap();

    drop(first);
    let second = DhcpServer::start(&lab, &office, office.address(220)).unwrap();
    second.lease(&host).unwrap();
    assert_eq!(host.address().to_string(), "192.168.1.220");
    assert_eq!(host.mac().unwrap(), MAC);
    print_and_compare(&lab, &clerk, &host, &printer, 2).unwrap();
    assert!(printer.is_running());
}

//! Addresses by DHCP: dnsmasq on the router, udhcpc on the device.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Process;
use crate::topology::{Host, Lab, Site};

/// How long the server may take to start, and the client to get an address.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What the client does with a lease: it becomes the only address of the interface.
const CLIENT_SCRIPT: &str = r#"#!/bin/sh
case $1 in
  deconfig) ip -4 addr flush dev "$interface" ;;
  bound|renew)
    ip -4 addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    ip route replace default via "$router" ;;
esac
"#;

/// A DHCP server on a site's router that knows one device; it stops when this value is dropped.
#[derive(Debug)]
pub struct DhcpServer {
    process: Process,
    address: Ipv4Addr,
    client_script: String,
}

impl DhcpServer {
    /// Starts a server that gives `address` to whoever asks.
    ///
    /// Its leases are kept in memory of this server alone, so a later one with another address gives that one, as a
    /// router does that lost its table or whose pool was changed.
    ///
    /// # Errors
    /// When dnsmasq does not start.
    pub fn start(lab: &Lab, site: &Site, address: Ipv4Addr) -> Result<Self> {
        let (inside, outside) = lab.directory("dhcp")?;
        let client_script = inside.join("client").to_string_lossy().into_owned();
        fs::write(outside.join("client"), CLIENT_SCRIPT).context("cannot write the client's script")?;
        site.router().command("chmod").args(["755", &client_script]).output(TIMEOUT)?;
        let mut process = site
            .router()
            .command("dnsmasq")
            // Otherwise it would change its groups, which an ordinary user's namespace forbids.
            .args(["--no-daemon", "--conf-file=/dev/null", "--pid-file"])
            .args(["--port=0", "--interface=lan", "--bind-interfaces", "--dhcp-authoritative"])
            // Nobody else has the address, so the three seconds in which the server would ask for it are saved.
            .args(["--leasefile-ro", "--no-ping"])
            .arg(format!("--dhcp-range={address},{address},2m"))
            .arg(format!("--dhcp-option=option:router,{}", site.gateway()))
            .spawn()?;
        process.wait_for_error_line("it serves addresses", TIMEOUT, |line| {
            line.contains("DHCP, IP range").then_some(())
        })?;
        Ok(Self { process, address, client_script })
    }

    /// Lets a host ask for an address; the one it had is gone.
    ///
    /// # Errors
    /// When it gets none, or another than the one this server gives.
    pub fn lease(&self, host: &Host) -> Result<Ipv4Addr> {
        host.command("udhcpc")
            .args(["-i", "eth0", "-f", "-q", "-n", "-t", "10", "-T", "1", "-s", &self.client_script])
            .output(TIMEOUT)
            .with_context(|| format!("no address from the server, which says:\n{}", self.process.stderr()))?;
        let shown = host.command("ip").args(["-4", "-brief", "address", "show", "eth0"]).output(TIMEOUT)?;
        ensure!(
            shown.split_whitespace().any(|word| word.starts_with(&format!("{}/", self.address))),
            "the host has the address {shown} instead of {}",
            self.address
        );
        host.note_address(self.address);
        Ok(self.address)
    }
}

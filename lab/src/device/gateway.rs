//! Port mapping on request by a router: `miniupnpd`, for UPnP IGD, NAT-PMP and PCP.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::netns::Process;
use crate::topology::{Lab, Site};

/// What a router lets hosts of its LAN ask for ports with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MappingProtocol {
    /// UPnP Internet Gateway Device.
    Upnp,
    /// NAT-PMP (RFC 6886).
    NatPmp,
    /// PCP (RFC 6887).
    Pcp,
}

impl MappingProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Upnp, Self::NatPmp, Self::Pcp];

    /// Returns the protocol's short name, as nodes use it, too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upnp => "upnp",
            Self::NatPmp => "nat-pmp",
            Self::Pcp => "pcp",
        }
    }

    /// Returns the rules that let in the requests of this protocol alone.
    ///
    /// The daemon serves NAT-PMP and PCP at one port and cannot have one without the other, but they differ in their first byte.
    fn filter(self) -> &'static str {
        match self {
            Self::Upnp => "udp dport 5351 drop",
            Self::NatPmp => "udp dport 5351 @th,64,8 != 0 drop",
            Self::Pcp => "udp dport 5351 @th,64,8 != 2 drop",
        }
    }
}

/// The tables in which the daemon works. Its mappings come before the router's own translation, and what it has let in leaves
/// under the mapped port. For IPv6 it opens the router's firewall, so there it has a chain in the router's own table.
const CHAINS: &str = "\
table inet mapping {
 chain pre { type nat hook prerouting priority dstnat - 20; jump prerouting_miniupnpd; }
 chain post { type nat hook postrouting priority srcnat - 20; jump postrouting_miniupnpd; }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
}
add chain inet filter miniupnpd
insert rule inet filter forward jump miniupnpd
";

/// The daemon on a site's router; it stops when this value is dropped.
#[derive(Debug)]
pub struct MappingDaemon {
    _process: Process,
}

impl MappingDaemon {
    /// Has a site's router map ports for its LAN, by one protocol.
    ///
    /// # Errors
    /// When the daemon does not start, with what it said.
    pub fn start(lab: &Lab, site: &Site, protocol: MappingProtocol) -> Result<Self> {
        let router = site.router();
        let (inside, outside) = lab.directory(&format!("mapping-{}", router.name()))?;
        let lan = site.address(0);
        let yes_no = |is: bool| if is { "yes" } else { "no" };
        let settings = format!(
            "ext_ifname=wan\next_ifname6=wan\nlistening_ip=lan\nhttp_port=5000\nenable_upnp={}\nenable_natpmp={}\n\
             min_lifetime=2\nmax_lifetime=86400\nsecure_mode=yes\nlease_file={}\n\
             uuid=3505f326-b53f-40cf-a3d4-2118853aa001\nupnp_table_name=filter\nupnp_nat_table_name=mapping\n\
             upnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\n\
             upnp_nat_postrouting_chain=postrouting_miniupnpd\n\
             allow 1024-65535 {lan}/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes_no(protocol == MappingProtocol::Upnp),
            yes_no(protocol != MappingProtocol::Upnp),
            inside.join("leases").display(),
        );
        fs::write(outside.join("settings"), settings).context("cannot write the daemon's settings")?;
        router.load_nft(CHAINS)?;
        router.load_nft(&format!(
            "table inet requests {{\n chain input {{\n  type filter hook input priority filter - 10;\n  {}\n }}\n}}\n",
            protocol.filter()
        ))?;
        let mut process = router
            .command("miniupnpd")
            .arg("-d")
            .arg("-f")
            .arg(inside.join("settings"))
            .arg("-P")
            .arg(inside.join("pid"))
            .spawn()
            .context("cannot start miniupnpd")?;
        let port = if protocol == MappingProtocol::Upnp {
            "-ltn | grep -q ':5000 '"
        } else {
            "-lun | grep -q ':5351 '"
        };
        let is_ready = router.wait_until(&format!("ss {port}"));
        ensure!(
            is_ready.is_ok() && process.is_running(),
            "miniupnpd does not serve:\n{}{}",
            process.stdout(),
            process.stderr()
        );
        Ok(Self { _process: process })
    }

    /// Returns how many ports a site's router has given away.
    ///
    /// # Errors
    /// When its rules cannot be read.
    pub fn given(site: &Site) -> Result<usize> {
        let rules = site.router().script("nft list chain inet mapping prerouting_miniupnpd\n")?;
        Ok(rules.lines().filter(|line| line.contains("dnat")).count())
    }
}

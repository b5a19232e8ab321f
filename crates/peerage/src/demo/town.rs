//! Where the demonstration happens: simulated networks, or, where those cannot be made, this computer alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use peerage_client::local::PathKind;
use peerage_lab::{
    Host, Lab, Site, SiteConfig,
    netns::{Doorway, Nat, Process},
};

use super::computer::{Computer, Daemon};

/// The port of the office's router that leads to its node.
const FORWARDED_PORT: u16 = 4242;

/// The operator's port.
const OPERATOR_PORT: u16 = 4240;

/// Host number of the printer in the office.
const PRINTER_HOST: u8 = 50;

/// The printer's MAC address: of the block that RFC 7042 keeps for examples, made a local one.
pub(super) const PRINTER_MAC: &str = "02:00:5e:00:53:01";

/// The MAC address of the plotter at home.
pub(super) const PLOTTER_MAC: &str = "02:00:5e:00:53:02";

/// The MAC address of the mill in the workshop.
const MILL_MAC: &str = "02:00:5e:00:53:03";

/// The MAC address of the camera in the cabin.
const CAMERA_MAC: &str = "02:00:5e:00:53:04";

/// How long a router may take until it gives ports.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports on this computer that are tried first, so that the address is the same each time.
const USUAL_PORTS: [u16; 3] = [8631, 8632, 9100];

/// Programs that simulated networks are made with, and the Debian packages that have them.
const NEEDED: [(&str, &str); 8] = [
    ("hostname", "hostname"),
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("sed", "sed"),
    ("sh", "dash"),
    ("unshare", "util-linux"),
];

/// Where programs of the system are, beside what the user's path says: an ordinary user's may lack `sbin`.
const SYSTEM_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// All that takes part; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Town {
    pub(super) operator: Computer,
    /// The office's node.
    pub(super) office: Computer,
    /// Another computer in the office.
    pub(super) colleague: Computer,
    /// The user's computer, elsewhere.
    pub(super) user: Computer,
    pub(super) printer: Computer,
    /// A device at home, where no port is forwarded; only in simulated networks, because on one computer all is reachable.
    pub(super) plotter: Option<Computer>,
    /// Sites with a node beside a device; in simulated networks alone.
    pub(super) branches: Vec<Branch>,
    pub(super) addresses: Addresses,
    /// Last, because what runs in it must end first.
    ground: Ground,
}

/// A site in whose router nobody has configured anything.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) node: Computer,
    pub(super) device: Computer,
    pub(super) mac: &'static str,
    /// What its router does, for the reader.
    pub(super) router: &'static str,
}

/// A tunnel of the demonstration: who opens it, to which device, and what path it takes once both ends know each other; unknown where all is one network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) user: &'a Computer,
    pub(super) device: &'a str,
    pub(super) path: Option<PathKind>,
}

/// What is told to the programs, and to the reader.
#[derive(Debug)]
pub(super) struct Addresses {
    /// Where the operator listens.
    pub(super) operator: SocketAddr,
    /// Where the office's node listens.
    pub(super) office_listen: SocketAddr,
    /// Where others reach it, if not there.
    pub(super) office_advertise: Option<SocketAddr>,
    /// Where the other nodes listen.
    pub(super) listen: SocketAddr,
    /// Where a device's page, the page over TLS, and its raw port are: at the same addresses in the office and at home.
    pub(super) printer: [SocketAddr; 3],
    /// The drawing of the networks; empty without them.
    pub(super) map: String,
}

#[derive(Debug)]
enum Ground {
    /// The router's program ends before what it runs on.
    Simulated {
        _router: Box<Process>,
        lab: Box<Lab>,
        _sites: Box<[Site; 4]>,
    },
    This {
        _directory: tempfile::TempDir,
    },
}

impl Town {
    /// Makes simulated networks and the computers in them.
    ///
    /// # Errors
    /// When this system does not let it.
    pub(super) fn simulated(program: &Path) -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        let office = lab.site(SiteConfig::new("office"))?;
        // Nobody outside can guess what port such a router will use, so nothing but a relay leads to the home.
        let home = lab.site(SiteConfig::new("home").nat(Nat::SYMMETRIC))?;
        let workshop = lab.site(SiteConfig::new("workshop"))?;
        // It lets in only what answers, and gives each computer one port for all, so two that send at the same time meet.
        let cabin = lab.site(SiteConfig::new("cabin").nat(Nat::EIM_APDF))?;
        let (node, colleague) = (office.host("front-desk")?, office.host("back-desk")?);
        let user = home.host("laptop")?;
        let printer = office.plug("printer", Some(PRINTER_MAC))?;
        printer.set_address(office.address(PRINTER_HOST))?;
        let plotter = home.plug("plotter", Some(PLOTTER_MAC))?;
        plotter.set_address(home.address(PRINTER_HOST))?;
        office.forward(FORWARDED_PORT, &node)?;
        let router = give_ports(program, &workshop)?;
        let (bench, mill) = branch(&workshop, ["bench", "mill"], MILL_MAC)?;
        let (attic, camera) = branch(&cabin, ["attic", "camera"], CAMERA_MAC)?;

        let any = Ipv4Addr::UNSPECIFIED;
        let public = office.public_address();
        let addresses = Addresses {
            operator: (operator.address(), OPERATOR_PORT).into(),
            office_listen: (any, FORWARDED_PORT).into(),
            office_advertise: Some((public, FORWARDED_PORT).into()),
            listen: (any, 0).into(),
            printer: [80, 443, 9100].map(|port| (printer.address(), port).into()),
            map: map(
                &operator,
                &[
                    (&office, [vec![&node, &colleague], vec![&printer]]),
                    (&home, [vec![&user], vec![&plotter]]),
                    (&workshop, [vec![&bench], vec![&mill]]),
                    (&cabin, [vec![&attic], vec![&camera]]),
                ],
            )?,
        };
        let place = |name, host| -> Result<Computer> {
            Ok(Computer::simulated(name, program, host, lab.directory(&format!("demo/{name}"))?))
        };
        Ok(Self {
            operator: place("operator", operator)?,
            office: place("front-desk", node)?,
            colleague: place("back-desk", colleague)?,
            user: place("laptop", user)?,
            printer: place("printer", printer)?,
            plotter: Some(place("plotter", plotter)?),
            branches: vec![
                Branch {
                    node: place("bench", bench)?,
                    device: place("mill", mill)?,
                    mac: MILL_MAC,
                    router: "gives ports to those who ask for them",
                },
                Branch {
                    node: place("attic", attic)?,
                    device: place("camera", camera)?,
                    mac: CAMERA_MAC,
                    router: "lets in nothing but answers",
                },
            ],
            addresses,
            ground: Ground::Simulated {
                _router: Box::new(router),
                lab: Box::new(lab),
                _sites: Box::new([office, home, workshop, cabin]),
            },
        })
    }

    /// Lets everything run on this computer, on loopback addresses.
    ///
    /// # Errors
    /// When no temporary directory can be made.
    pub(super) fn on_this_computer(program: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("peerage-demo-").tempdir();
        let directory = directory.context("cannot make a temporary directory")?;
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let addresses = Addresses {
            operator: any,
            office_listen: any,
            office_advertise: None,
            listen: any,
            printer: [any; 3],
            map: String::new(),
        };
        let place = |name| -> Result<Computer> {
            let own = directory.path().join(name);
            fs::DirBuilder::new().mode(0o700).create(&own)?;
            Ok(Computer::this(name, program, own))
        };
        Ok(Self {
            operator: place("operator")?,
            office: place("front-desk")?,
            colleague: place("back-desk")?,
            user: place("laptop")?,
            printer: place("printer")?,
            plotter: None,
            branches: Vec::new(),
            addresses,
            ground: Ground::This { _directory: directory },
        })
    }

    /// Returns a pair of computers for each kind of path that there is.
    pub(super) fn pairs(&self) -> Vec<Pair<'_>> {
        let (user, colleague) = (&self.user, &self.colleague);
        let pair = |user, device, path| Pair { user, device, path: self.is_simulated().then_some(path) };
        let here = [pair(colleague, "printer", PathKind::Local), pair(user, "printer", PathKind::Direct)];
        let elsewhere = [
            pair(user, "mill", PathKind::Mapped),
            pair(colleague, "camera", PathKind::Punched),
            pair(colleague, "plotter", PathKind::Relayed),
        ];
        here.into_iter().chain(elsewhere.into_iter().filter(|_| self.is_simulated())).collect()
    }

    /// Returns the name of the node that serves a device.
    pub(super) fn serving(&self, device: &str) -> &str {
        let branch = self.branches.iter().find(|branch| branch.device.name() == device);
        match branch {
            Some(branch) => branch.node.name(),
            None if device == "plotter" => self.user.name(),
            None => self.office.name(),
        }
    }

    /// Says whether the networks are simulated, or all runs on this computer's loopback interface.
    pub(super) fn is_simulated(&self) -> bool {
        matches!(self.ground, Ground::Simulated { .. })
    }

    /// Makes a port of the user's computer reachable from this one, and returns where.
    ///
    /// # Errors
    /// When the program that leads there does not start.
    pub(super) fn door(&self, name: &str, inner: &str, usual: usize) -> Result<(SocketAddr, Option<Daemon>)> {
        let Ground::Simulated { lab, .. } = &self.ground else { return Ok((inner.parse()?, None)) };
        let (inside, outside) = lab.directory("demo/doors")?;
        let (inside, outside) = (inside.join(name), outside.join(name));
        let daemon = self.user.start(&["demo", "door", &inside.to_string_lossy(), inner])?;
        let usual = USUAL_PORTS.get(usual).copied().unwrap_or(0);
        let doorway = Doorway::open(usual, &outside).or_else(|_| Doorway::open(0, &outside))?;
        Ok((doorway.address(), Some(daemon)))
    }
}

/// Returns the packages that simulated networks would need, each once; empty if all are there.
pub(super) fn missing_packages() -> Vec<&'static str> {
    let user_path = std::env::var_os("PATH").unwrap_or_default();
    let paths: Vec<PathBuf> =
        std::env::split_paths(&user_path).chain(SYSTEM_PATH.iter().map(PathBuf::from)).collect();
    let is_missing = |program: &str| !paths.iter().any(|path| path.join(program).is_file());
    let mut packages: Vec<_> =
        NEEDED.iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Adds a node and a device to a site.
fn branch(site: &Site, [node, device]: [&str; 2], mac: &str) -> Result<(Host, Host)> {
    let node = site.host(node)?;
    let device = site.plug(device, Some(mac))?;
    device.set_address(site.address(PRINTER_HOST))?;
    Ok((node, device))
}

/// Has a site's router give ports to computers of its LAN that ask for them.
fn give_ports(program: &Path, site: &Site) -> Result<Process> {
    let public = site.public_address().to_string();
    let command = site.router().command(program).args(["demo", "router", &public, "--json"]);
    let mut router = command.spawn().context("cannot start the workshop's router")?;
    router.wait_for_line("the workshop's router gave ports", ROUTER_TIMEOUT, |line| {
        (line == "\"ready\"").then_some(())
    })?;
    Ok(router)
}

/// Draws the networks: each site with its nodes and its devices.
fn map(operator: &Host, sites: &[(&Site, [Vec<&Host>; 2])]) -> Result<String> {
    let mut lines =
        vec!["the Internet".to_owned(), format!("│   operator     {}", operator.address()), "│".to_owned()];
    for (index, (site, [nodes, devices])) in sites.iter().enumerate() {
        let is_last = index + 1 == sites.len();
        let (corner, edge) = if is_last { ("└", " ") } else { ("├", "│") };
        let (lan, router) = (site.address(0), site.public_address());
        lines.push(format!("{corner}── {}, {lan}/24 behind the router {router}", site.name()));
        for node in nodes {
            lines.push(format!("{edge}   {:<12} {}   node", short(node, site), node.address()));
        }
        for device in devices {
            let (name, mac) = (short(device, site), device.mac()?);
            lines.push(format!("{edge}   {name:<12} {}   {mac}, not a node", device.address()));
        }
        if !is_last {
            lines.push("│".to_owned());
        }
    }
    Ok(lines.join("\n") + "\n")
}

/// Returns a host's name without that of its site.
fn short<'a>(host: &'a Host, site: &Site) -> &'a str {
    let name = host.name();
    name.strip_prefix(site.name()).and_then(|rest| rest.strip_prefix('-')).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_that_is_needed_has_a_package_that_the_laboratory_names_or_that_is_always_there() {
        for (program, package) in NEEDED {
            let is_known = peerage_lab::PACKAGES.contains(&package) || ["sed", "dash"].contains(&package);
            assert!(is_known, "{program}: {package}");
        }
    }
}

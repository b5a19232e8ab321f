//! Where the demonstration happens: simulated networks, or, where those cannot be made, this computer alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use peerage_lab::{
    Host, Lab, Site, SiteConfig,
    netns::{Doorway, Nat},
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
    pub(super) addresses: Addresses,
    /// Last, because what runs in it must end first.
    ground: Ground,
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
    Simulated { lab: Box<Lab>, _sites: Box<[Site; 2]> },
    This { _directory: tempfile::TempDir },
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
        let (node, colleague) = (office.host("front-desk")?, office.host("back-desk")?);
        let user = home.host("laptop")?;
        let printer = office.plug("printer", Some(PRINTER_MAC))?;
        printer.set_address(office.address(PRINTER_HOST))?;
        let plotter = home.plug("plotter", Some(PLOTTER_MAC))?;
        plotter.set_address(home.address(PRINTER_HOST))?;
        office.forward(FORWARDED_PORT, &node)?;

        let any = Ipv4Addr::UNSPECIFIED;
        let public = office.public_address();
        let addresses = Addresses {
            operator: (operator.address(), OPERATOR_PORT).into(),
            office_listen: (any, FORWARDED_PORT).into(),
            office_advertise: Some((public, FORWARDED_PORT).into()),
            listen: (any, 0).into(),
            printer: [80, 443, 9100].map(|port| (printer.address(), port).into()),
            map: map([&operator, &node, &colleague, &printer, &user, &plotter], [&office, &home]),
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
            addresses,
            ground: Ground::Simulated { lab: Box::new(lab), _sites: Box::new([office, home]) },
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
            addresses,
            ground: Ground::This { _directory: directory },
        })
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

fn map(
    [operator, node, colleague, printer, user, plotter]: [&Host; 6],
    [office, home]: [&Site; 2],
) -> String {
    let lan = |site: &Site| format!("{}/24", site.address(0));
    format!(
        "the Internet\n\
         │   operator     {}\n\
         │\n\
         ├── office, {} behind the router {}\n\
         │   front-desk   {}   node\n\
         │   back-desk    {}   node\n\
         │   printer      {}   {PRINTER_MAC}, not a node\n\
         │\n\
         └── home, {} behind the router {}\n    \
         laptop       {}   node\n    \
         plotter      {}   {PLOTTER_MAC}, not a node\n",
        operator.address(),
        lan(office),
        office.public_address(),
        node.address(),
        colleague.address(),
        printer.address(),
        lan(home),
        home.public_address(),
        user.address(),
        plotter.address(),
    )
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

//! Simulated networks on one Linux machine: an Internet with sites behind routers, and real devices in them.
//!
//! Everything runs in user namespaces, for root and for an ordinary user alike, and ends with the process that made it.
//!
//! - [`netns`]: computers and cables; translators and firewalls.
//! - [`topology`]: the Internet, public hosts, sites, hosts.
//! - [`device`]: a real IPP printer, a real camera, addresses by DHCP, a small device of our own.
//! - [`mapping`]: asks a router for a port.
//! - [`probe`]: measures what a NAT does.
//! - [`capture`]: tells whether something readable crossed a network.
//! - [`flow`]: numbered bytes in both directions; tells what was lost and when nothing moved.
//! - [`echo`]: sends back what it gets, and compares.
//! - [`watch`]: counts the pictures of a camera.
//! - [`wire`]: delays, loses and reorders.
//! - [`scenario`]: whole stories played with the real `peerage` program.

pub mod capture;
pub mod device;
pub mod echo;
pub mod flow;
pub mod mapping;
pub mod netns;
pub mod pcp;
pub mod probe;
pub mod scenario;
pub mod topology;
pub mod watch;
pub mod wire;

pub use topology::{Host, Lab, Site, SiteConfig};

/// Packages of Debian that bring the programs used here.
pub const PACKAGES: &[&str] = &[
    "avahi-daemon",
    "conntrack",
    "cups-ipp-utils",
    "dbus",
    "dnsmasq-base",
    "hostname",
    "iproute2",
    "miniupnpd-nftables",
    "mount",
    "nftables",
    "openssh-client",
    "openssh-server",
    "udhcpc",
    "util-linux",
];

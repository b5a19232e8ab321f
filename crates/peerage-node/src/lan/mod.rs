//! Facts about this computer's networks, and where on them a device is; all without privileges.
//!
//! [`Lan::snapshot`] reads interfaces, addresses, default gateways and the gateways' hardware addresses.
//! [`Lan::watch`] says when any of that changed. [`Lan::find`] looks for a device by its MAC, since DHCP may have given it
//! another IP address. What all of them send on the LAN are empty UDP datagrams to the discard port (9): the system
//! asks for the hardware address (ARP, or neighbour discovery in IPv6) before it can send one, and its answer can be read
//! by everybody.
//!
//! Invariants: no more than one datagram per interface and snapshot; no datagram leaves the link (its hop limit is 1);
//! no more than [`MAX_SWEPT_PER_HOUR`] addresses are tried per hour that nobody named; a search sends nothing to an
//! address that `peerage_proto::dial` forbids for devices. Everything found is a hint: a LAN can lie.
//!
//! Deliberately absent: mDNS, raw sockets, ICMP echo, sweeps of IPv6 networks (2^64 addresses), routing tables other
//! than the main one.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use peerage_proto::dial::Forbidden;
use peerage_proto::lan::Mac;

mod beacon;
#[cfg(target_os = "linux")]
mod codec;
#[cfg(target_os = "linux")]
mod facts;
#[cfg(target_os = "linux")]
mod find;
#[cfg(target_os = "linux")]
mod handle;
#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod sweep;
#[cfg(target_os = "linux")]
mod watch;

pub use beacon::{Beacons, Received};
#[cfg(target_os = "linux")]
pub use handle::Lan;
#[cfg(target_os = "linux")]
pub use watch::LanChanges;

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub use unsupported::{Lan, LanChanges};

/// The longest that a search takes: the kernel's verdict on old entries (9 s), a sweep of a /22 (10.3 s),
/// the last answers (3.5 s), and as much again for a crowded neighbour table, which makes sweeps wait.
pub const MAX_FIND: Duration = Duration::from_secs(45);

/// How long the first of several changes waits for the others. A cable that is plugged in makes a dozen within some
/// hundred milliseconds. Raised, a new location is found later (2 s are promised, of which the gateway's answer takes
/// up to 1 s); lowered, the location is looked for several times.
pub const CHANGE_DELAY: Duration = Duration::from_millis(300);

/// How many addresses sweeps may try in any hour, all searches together.
///
/// Every address costs the LAN up to three broadcasts of 60 bytes. A /22 fits once, a /24 four times. Raised, absent devices
/// make a node noisy, and administrators take it for malware; lowered, a moved device stays lost for longer.
pub const MAX_SWEPT_PER_HOUR: usize = 1024;

/// Why facts about the networks could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// The kernel's routing socket could not be opened or read.
    #[error("cannot read networks from the kernel: {0} (a sandbox must permit AF_NETLINK sockets)")]
    Netlink(#[from] io::Error),
    /// The kernel began an answer and did not finish it.
    #[error("the kernel did not finish its list of networks in time")]
    Timeout,
    /// There is no implementation for this operating system.
    #[error(
        "networks can be read on Linux only; name the location and the device's address in the configuration"
    )]
    Unsupported,
}

/// What to look for, and what may be done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindDevice {
    /// The device's hardware address.
    pub mac: Mac,
    /// The index of the interface of the device's location; none looks on all.
    pub interface: Option<u32>,
    /// Where it was the last time.
    pub last_address: Option<IpAddr>,
    /// An address that a dial has just failed at: believed only if the device answers there now.
    pub suspect: Option<IpAddr>,
    /// The largest IPv4 network, in addresses, that may be swept; 0 forbids sweeping.
    pub max_swept_prefix: u32,
}

impl FindDevice {
    /// The default of `max_swept_prefix`: a /22, which a sweep passes in some ten seconds and within one hour's budget.
    pub const DEFAULT_MAX_SWEPT_PREFIX: u32 = 1024;

    /// Returns a search for `mac` on all interfaces, with sweeps of networks up to [`Self::DEFAULT_MAX_SWEPT_PREFIX`].
    pub const fn new(mac: Mac) -> Self {
        Self {
            mac,
            interface: None,
            last_address: None,
            suspect: None,
            max_swept_prefix: Self::DEFAULT_MAX_SWEPT_PREFIX,
        }
    }
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address now.
    pub address: IpAddr,
    /// The index of the interface whose link it is on.
    pub interface: u32,
}

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The device is there.
    Found(Found),
    /// No sign of it.
    Absent {
        /// How many addresses were swept. 0 if sweeping is off, the networks are too large, or the hour's budget is spent.
        swept: u32,
    },
    /// This hardware address is no device's: the router's, this computer's, or a group's. Nothing was sent.
    Refused(Forbidden),
}

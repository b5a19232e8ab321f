//! The Internet in small: a core, public hosts, and sites behind routers.
//!
//! Addresses: public host number *k* is `45.0.k.2`, the router of site number *i* `45.1.i.2` on its outer side. They
//! look global, because documentation and private prefixes would be left out by software that tells them apart. A LAN
//! is `192.168.1.0/24` unless told otherwise, at every site, with the router at `.1` and the hosts from `.10` on.
//!
//! With IPv6, if asked for: `2a01:0:k::2`, `2a02:0:i::2`, and in the LAN `2a03:0:i::/64` with the same host numbers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};

use crate::netns::{Egress, Forward, Machine, Nat, Protocol, Router, SHARED_DIR, Sandbox};
use crate::wire::CUT_FRAMES;

/// Public hosts or sites of one lab, at most: each has one value of the third byte of its address.
const MAX_NETWORKS: u8 = 250;

/// Host number of the first host in a LAN.
const FIRST_HOST: u8 = 10;

/// Hosts of one LAN, at most; the numbers from 200 on are left to address pools of tests.
const MAX_HOSTS: u8 = 190;

/// Turns a computer into a router.
const FORWARD: &str =
    "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n";

/// The first two bytes of the addresses of IPv6 of public hosts.
const PUBLIC_IPV6: u16 = 0x2a01;

/// The same of routers on their outer side.
const OUTER_IPV6: u16 = 0x2a02;

/// The same of LANs.
const LAN_IPV6: u16 = 0x2a03;

/// The interfaces of the computer that [`Site::wire`] returns, for [`crate::wire::Wire`].
pub const WIRE: [&str; 2] = ["net", "site"];

/// A simulated Internet; it ends when it and everything made from it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Lab {
    core: Arc<Machine>,
    public_hosts: AtomicU8,
    sites: AtomicU8,
}

impl Lab {
    /// Makes an Internet without any host.
    ///
    /// # Errors
    /// When the kernel does not allow user namespaces, or a program of [`crate::PACKAGES`] is missing.
    pub fn new() -> Result<Self> {
        let sandbox = Arc::new(Sandbox::new()?);
        let core = Arc::new(Machine::new(&sandbox, "core")?);
        core.script(FORWARD)?;
        Ok(Self { core, public_hosts: AtomicU8::new(0), sites: AtomicU8::new(0) })
    }

    /// Returns the sandbox all of it lives in.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        self.core.sandbox()
    }

    /// Returns the router of the Internet, through which all sites and public hosts talk.
    #[must_use]
    pub fn core(&self) -> &Machine {
        &self.core
    }

    /// Makes a directory that every machine sees under the first path, and this process under the second.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let inside = PathBuf::from(SHARED_DIR).join(name);
        let outside = self.sandbox().outside(&inside)?;
        self.core.command("mkdir").arg("-p").arg(&inside).output(std::time::Duration::from_secs(10))?;
        Ok((inside, outside))
    }

    /// Adds a host that sits on the core, without any NAT or firewall, with two public addresses.
    ///
    /// # Errors
    /// When the name is taken, longer than 11 bytes, or there are too many.
    pub fn public_host(&self, name: &str) -> Result<Host> {
        let index = next(&self.public_hosts, MAX_NETWORKS).context("too many public hosts in one lab")?;
        let machine = Machine::new(self.sandbox(), name)?;
        let port = format!("pub-{name}");
        self.core.connect(&port, &machine, "eth0")?;
        self.core.script(&format!("ip addr add 45.0.{index}.1/24 dev {port}\n"))?;
        machine.script(&format!(
            "ip addr add 45.0.{index}.2/24 dev eth0\nip addr add 45.0.{index}.3/24 dev eth0\n\
             ip route add default via 45.0.{index}.1\n"
        ))?;
        let address = |number| Ipv4Addr::new(45, 0, index, number);
        Ok(Host::new(machine, address(2), address(1), vec![Arc::clone(&self.core)]))
    }

    /// Gives a public host an address of IPv6, too.
    ///
    /// # Errors
    /// When the kernel refuses, or the host is not a public one.
    pub fn add_ipv6(&self, host: &Host) -> Result<Ipv6Addr> {
        let [_, _, index, _] = host.address().octets();
        let (gateway, own) = (ipv6(PUBLIC_IPV6, index, 1), ipv6(PUBLIC_IPV6, index, 2));
        self.core.script(&format!("ip addr add {gateway}/64 dev pub-{}\n", host.name()))?;
        host.set_ipv6(own, gateway)?;
        Ok(own)
    }

    /// Adds a LAN behind a router.
    ///
    /// # Errors
    /// When the name is taken, longer than 10 bytes, or there are too many sites.
    pub fn site(&self, config: SiteConfig) -> Result<Site> {
        let index = next(&self.sites, MAX_NETWORKS).context("too many sites in one lab")?;
        let port = format!("site-{}", config.name);
        let [gateway, public_address] = [1, 2].map(|number| Ipv4Addr::new(45, 1, index, number));
        let machine = Machine::new(self.sandbox(), &format!("{}-router", config.name))?;
        let wire = if config.is_wired {
            Some(self.lay_wire(&config.name, &port, &machine)?)
        } else {
            self.core.connect(&port, &machine, "wan")?;
            None
        };
        self.core.script(&format!("ip addr add {gateway}/24 dev {port}\n"))?;
        if config.nat == Nat::None {
            self.core.script(&format!("ip route add {}/24 via {public_address}\n", config.lan))?;
        }
        let has_ipv6 = config.has_ipv6;
        let upstream = vec![Arc::clone(&self.core)];
        let site = Site { wire, ..Site::new(config, machine, public_address, gateway, upstream)? };
        if !has_ipv6 {
            return Ok(site);
        }
        let [gateway, outer] = [1, 2].map(|number| ipv6(OUTER_IPV6, index, number));
        self.core.script(&format!(
            "ip addr add {gateway}/64 dev {port}\nip route add {}/64 via {outer}\n",
            ipv6(LAN_IPV6, index, 0)
        ))?;
        site.machine.script(&format!(
            "ip addr add {outer}/64 dev wan\nip route add default via {gateway}\nip addr add {}/64 dev lan\n",
            ipv6(LAN_IPV6, index, 1)
        ))?;
        Ok(Site { ipv6: Some(index), ..site })
    }

    /// Puts a computer between the core and a router that shall carry the frames of both.
    fn lay_wire(&self, name: &str, port: &str, router: &Machine) -> Result<Machine> {
        let wire = Machine::new(self.sandbox(), &format!("{name}-wire"))?;
        self.core.connect(port, &wire, WIRE[0])?;
        wire.connect(WIRE[1], router, "wan")?;
        self.core.script(&format!("ip link set {port} {CUT_FRAMES}\n"))?;
        router.script(&format!("ip link set wan {CUT_FRAMES}\n"))?;
        Ok(wire)
    }
}

/// Takes the next number, unless `limit` of them are taken.
fn next(counter: &AtomicU8, limit: u8) -> Option<u8> {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < limit).then_some(taken + 1))
        .ok()
}

/// Returns host number `host` of a network whose prefix has 24 bits.
fn address(lan: Ipv4Addr, host: u8) -> Ipv4Addr {
    let [first, second, third, _] = lan.octets();
    Ipv4Addr::new(first, second, third, host)
}

/// Returns an address of network number `index` of this kind.
fn ipv6(kind: u16, index: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(kind, 0, index.into(), 0, 0, 0, 0, host.into())
}

/// What a site is like.
#[derive(Debug, Clone)]
pub struct SiteConfig {
    name: String,
    nat: Nat,
    egress: Egress,
    lan: Ipv4Addr,
    is_wired: bool,
    has_ipv6: bool,
}

impl SiteConfig {
    /// Returns a site with `192.168.1.0/24` behind a masquerading router without restrictions for outgoing traffic.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let lan = Ipv4Addr::new(192, 168, 1, 0);
        Self {
            name: name.into(),
            nat: Nat::Masquerade,
            egress: Egress::Open,
            lan,
            is_wired: false,
            has_ipv6: false,
        }
    }

    /// Sets what the router does with addresses.
    #[must_use]
    pub fn nat(self, nat: Nat) -> Self {
        Self { nat, ..self }
    }

    /// Sets what the LAN may open.
    #[must_use]
    pub fn egress(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    /// Sets the network of the LAN, whose prefix has 24 bits.
    #[must_use]
    pub fn lan(self, lan: Ipv4Addr) -> Self {
        Self { lan: address(lan, 0), ..self }
    }

    /// Gives router and hosts addresses of IPv6, too, behind a firewall that lets in nothing that nobody asked for. Only for
    /// sites right at the Internet.
    #[must_use]
    pub fn with_ipv6(self) -> Self {
        Self { has_ipv6: true, ..self }
    }

    /// Puts a computer between the Internet and the router; nothing passes until that runs a [`crate::wire::Wire`]. Only
    /// for sites right at the Internet.
    #[must_use]
    pub fn wired(self) -> Self {
        Self { is_wired: true, ..self }
    }
}

/// A LAN behind a router.
#[derive(Debug)]
pub struct Site {
    name: String,
    lan: Ipv4Addr,
    gateway: Ipv4Addr,
    router: Router,
    machine: Arc<Machine>,
    upstream: Vec<Arc<Machine>>,
    hosts: AtomicU8,
    wire: Option<Machine>,
    /// The number of its networks of IPv6, if it has them.
    ipv6: Option<u8>,
}

impl Site {
    /// Makes a router of a machine whose interface `wan` is connected but has no address yet.
    fn new(
        config: SiteConfig,
        machine: Machine,
        public_address: Ipv4Addr,
        wan_gateway: Ipv4Addr,
        upstream: Vec<Arc<Machine>>,
    ) -> Result<Self> {
        let SiteConfig { name, nat, egress, lan, is_wired: _, has_ipv6: _ } = config;
        let gateway = address(lan, 1);
        machine.script(&format!(
            "ip link add lan type bridge mcast_snooping 0\nip link set lan up\nip addr add {gateway}/24 dev lan\n\
             ip addr add {public_address}/24 dev wan\nip route add default via {wan_gateway}\n"
        ))?;
        let router = Router { nat, egress, public_address, lan: format!("{lan}/24") };
        router.install(&machine)?;
        let machine = Arc::new(machine);
        Ok(Self {
            name,
            lan,
            gateway,
            router,
            machine,
            upstream,
            hosts: AtomicU8::new(0),
            wire: None,
            ipv6: None,
        })
    }

    /// Returns the site's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the router as a computer, to run a DHCP server on it or to look at its tables.
    #[must_use]
    pub fn router(&self) -> &Machine {
        &self.machine
    }

    /// Returns the computer between the Internet and the router, if there is one.
    #[must_use]
    pub fn wire(&self) -> Option<&Machine> {
        self.wire.as_ref()
    }

    /// Returns the router's address on the outer side.
    #[must_use]
    pub fn public_address(&self) -> Ipv4Addr {
        self.router.public_address
    }

    /// Returns the router's address in the LAN.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Returns the address with this host number in the LAN, whether or not a host has it.
    #[must_use]
    pub fn address(&self, host: u8) -> Ipv4Addr {
        address(self.lan, host)
    }

    /// Adds a host with the next free address.
    ///
    /// # Errors
    /// When the name is taken, longer than 13 bytes, or the LAN is full.
    pub fn host(&self, name: &str) -> Result<Host> {
        let address = self.next_address()?;
        let host = self.plug(name, None)?;
        host.set_address(address)?;
        if let Some(index) = self.ipv6 {
            let [_, _, _, number] = address.octets();
            host.set_ipv6(ipv6(LAN_IPV6, index, number), ipv6(LAN_IPV6, index, 1))?;
        }
        Ok(host)
    }

    /// Adds a LAN behind a router that is itself a host of this LAN.
    ///
    /// With a LAN of 100.64.0.0 here this is a carrier-grade NAT (RFC 6598) and one of its customers.
    ///
    /// # Errors
    /// When the name is taken, longer than 13 bytes, or the LAN is full.
    pub fn site(&self, config: SiteConfig) -> Result<Self> {
        let address = self.next_address()?;
        let machine = Machine::new(self.machine.sandbox(), &format!("{}-router", config.name))?;
        self.plug_in(&machine, &config.name, "wan")?;
        if config.nat == Nat::None {
            self.machine.script(&format!("ip route add {}/24 via {address}\n", config.lan))?;
        }
        Self::new(config, machine, address, self.gateway, self.chain())
    }

    /// Carries a host here from where it was: another cable, the next free address.
    ///
    /// # Errors
    /// When the kernel refuses, or the LAN is full.
    pub fn take_in(&self, host: &Host) -> Result<()> {
        let address = self.next_address()?;
        host.script("ip link delete eth0\n")?;
        self.plug_in(host, host.name(), "eth0")?;
        *host.gateway.lock().unwrap_or_else(PoisonError::into_inner) = self.gateway;
        host.set_address(address)
    }

    /// Takes the next free address of the LAN.
    fn next_address(&self) -> Result<Ipv4Addr> {
        let index =
            next(&self.hosts, MAX_HOSTS).with_context(|| format!("too many hosts at {}", self.name))?;
        Ok(self.address(FIRST_HOST + index))
    }

    /// Returns the router and all that it depends on.
    fn chain(&self) -> Vec<Arc<Machine>> {
        std::iter::once(&self.machine).chain(&self.upstream).map(Arc::clone).collect()
    }

    /// Lays a cable from a machine to the LAN, and waits until packets pass.
    fn plug_in(&self, machine: &Machine, name: &str, interface: &str) -> Result<()> {
        let port = format!("p-{name}");
        self.machine.connect(&port, machine, interface)?;
        // A port of a bridge comes up late, and what is sent before is lost: 3 is the state "forwarding".
        self.machine.script(&format!("ip link set {port} master lan\n"))?;
        self.machine.wait_until(&format!("[ \"$(cat /sys/class/net/{port}/brport/state)\" = 3 ]"))?;
        self.machine.wait_for_link("lan")
    }

    /// Adds a host without address, to be given one by DHCP or [`Host::set_address`], with this MAC address if any.
    ///
    /// # Errors
    /// When the name is taken, longer than 13 bytes, or the MAC address is not one.
    pub fn plug(&self, name: &str, mac: Option<&str>) -> Result<Host> {
        let machine = Machine::new(self.machine.sandbox(), &format!("{}-{name}", self.name))?;
        self.plug_in(&machine, name, "eth0")?;
        if let Some(mac) = mac {
            machine.script(&format!("ip link set eth0 address {mac}\n"))?;
        }
        Ok(Host::new(machine, Ipv4Addr::UNSPECIFIED, self.gateway, self.chain()))
    }

    /// Makes a port of the router's public address lead to the same port of a host, for TCP and UDP.
    ///
    /// # Errors
    /// When the kernel rejects the rule.
    pub fn forward(&self, port: u16, host: &Host) -> Result<()> {
        let to = SocketAddrV4::new(host.address(), port);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.router.forward(&self.machine, Forward { protocol, port, to })?;
        }
        Ok(())
    }
}

/// A computer with the interface `eth0` on a LAN or on the core.
#[derive(Debug)]
pub struct Host {
    machine: Machine,
    address: Mutex<Ipv4Addr>,
    gateway: Mutex<Ipv4Addr>,
    ipv6: OnceLock<Ipv6Addr>,
    /// Kept so that the host stays connected when the site or the lab is dropped before it.
    _upstream: Vec<Arc<Machine>>,
}

impl Host {
    fn new(machine: Machine, address: Ipv4Addr, gateway: Ipv4Addr, upstream: Vec<Arc<Machine>>) -> Self {
        let (address, gateway, ipv6) = (Mutex::new(address), Mutex::new(gateway), OnceLock::new());
        Self { machine, address, gateway, ipv6, _upstream: upstream }
    }

    /// Returns the IPv4 address, `0.0.0.0` while it has none.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the global IPv6 address, if the host has one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6.get().copied()
    }

    fn set_ipv6(&self, own: Ipv6Addr, gateway: Ipv6Addr) -> Result<()> {
        self.machine
            .script(&format!("ip addr add {own}/64 dev eth0\nip route add default via {gateway}\n"))?;
        self.ipv6.set(own).map_err(|old| anyhow::anyhow!("{} has the address {old} already", self.name()))
    }

    /// Returns the second address of a public host, in the same network.
    #[must_use]
    pub fn second_address(&self) -> Ipv4Addr {
        address(self.address(), 3)
    }

    /// Returns the hardware address of `eth0`, in lower case with colons.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn mac(&self) -> Result<String> {
        Ok(self.machine.script("cat /sys/class/net/eth0/address\n")?.trim().to_owned())
    }

    /// Gives the host another address, as an administrator would: the old one is gone at once.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_address(&self, new: Ipv4Addr) -> Result<()> {
        self.machine.script(&format!(
            "ip -4 addr flush dev eth0\nip addr add {new}/24 dev eth0\nip route add default via {}\n",
            *self.gateway.lock().unwrap_or_else(PoisonError::into_inner)
        ))?;
        self.note_address(new);
        Ok(())
    }

    /// Notes the address that the host got from a server.
    pub(crate) fn note_address(&self, new: Ipv4Addr) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

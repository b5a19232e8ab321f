//! The firewall of a router and its port forwarding.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;

use super::machine::Machine;
use super::nat::Nat;

/// Which connections a LAN may open to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// All.
    Open,
    /// All but UDP, which vanishes.
    NoUdp,
    /// TCP to ports 80 and 443 alone; the rest is rejected.
    WebOnly,
    /// IPv6 alone; of IPv4 it is told that there is no way.
    Ipv6Only,
    /// The same without UDP, which vanishes.
    Ipv6NoUdp,
    /// None.
    Closed,
}

impl Egress {
    fn rules(self) -> &'static str {
        match self {
            Self::Open => "accept",
            Self::NoUdp => "meta l4proto udp drop\n  accept",
            Self::WebOnly => "tcp dport { 80, 443 } accept\n  reject",
            Self::Ipv6Only => "meta nfproto ipv4 reject\n  accept",
            Self::Ipv6NoUdp => "meta nfproto ipv4 reject\n  meta l4proto udp drop\n  accept",
            Self::Closed => "drop",
        }
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the router's public address that leads to a host of the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the public address.
    pub port: u16,
    /// Where it leads.
    pub to: SocketAddrV4,
}

/// What turns a [`Machine`] with interfaces `wan` and `lan` into a router.
#[derive(Debug, Clone)]
pub struct Router {
    /// The translation.
    pub nat: Nat,
    /// What the LAN may open.
    pub egress: Egress,
    /// The address on the side of `wan`.
    pub public_address: Ipv4Addr,
    /// The network on the side of `lan`, such as `192.168.1.0/24`.
    pub lan: String,
}

impl Router {
    /// Turns on forwarding, the firewall and the translation.
    ///
    /// # Errors
    /// When the kernel rejects a rule.
    pub fn install(&self, machine: &Machine) -> Result<()> {
        let mut sysctls = String::from(
            "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n",
        );
        if let Some(lifetime) = self.nat.kernel_lifetime() {
            for file in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                sysctls.push_str(&format!(
                    "echo {} > /proc/sys/net/netfilter/{file}\n",
                    lifetime.as_secs().max(1)
                ));
            }
        }
        machine.script(&sysctls)?;
        machine.load_nft(&self.firewall())?;
        machine.load_nft(&self.nat.ruleset(self.public_address, &self.lan))
    }

    /// Adds a port forwarding to a router on which [`Router::install`] ran.
    ///
    /// # Errors
    /// When the kernel rejects the rule.
    pub fn forward(&self, machine: &Machine, forward: Forward) -> Result<()> {
        let Forward { protocol, port, to } = forward;
        let protocol = protocol.name();
        let from = if self.nat.hairpins() { "{ \"wan\", \"lan\" }" } else { "\"wan\"" };
        machine.load_nft(&format!(
            "add rule ip forwards pre iifname {from} ip daddr {} {protocol} dport {port} dnat to {to}\n",
            self.public_address
        ))
    }

    /// Returns the filter rules.
    ///
    /// What nobody asked for is dropped on the outer side, not rejected and not accepted: an answer, or a socket of
    /// the router, would leave a connection entry that holds the port which a host inside is about to use.
    fn firewall(&self) -> String {
        let inbound = if self.nat == Nat::None {
            "meta nfproto ipv4 iifname \"wan\" oifname \"lan\" accept"
        } else {
            ""
        };
        format!(
            "table inet filter {{\n \
             chain input {{\n  type filter hook input priority filter; policy accept;\n  \
             ct state established,related accept\n  iifname {{ \"lo\", \"lan\" }} accept\n  \
             meta l4proto {{ icmp, ipv6-icmp }} accept\n  drop\n }}\n \
             chain egress {{\n  {}\n }}\n \
             chain forward {{\n  type filter hook forward priority filter; policy drop;\n  \
             ct state established,related accept\n  iifname \"lan\" oifname \"wan\" jump egress\n  \
             iifname \"lan\" oifname \"lan\" accept\n  ct status dnat accept\n  {inbound}\n }}\n}}\n\
             table ip forwards {{\n chain pre {{\n  type nat hook prerouting priority dstnat - 10;\n }}\n}}\n",
            self.egress.rules()
        )
    }
}

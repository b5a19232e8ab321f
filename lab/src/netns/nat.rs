//! Network address translation in the terms of RFC 4787, made from nftables rules.
//!
//! The kernel alone knows two kinds: port-preserving and random masquerade, both with address-and-port-dependent
//! filtering. For the others a chain behind the translation, where packets already carry their external port, learns
//! two maps with a lifetime: from internal endpoint (and destination address, when the mapping depends on it) to
//! external port, and from external port to internal endpoint. The translation then looks up the first to use a
//! mapping again, and the second to let in packets from senders that the kernel does not know yet.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

/// What a mapping or a filter depends on (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behaviour {
    /// Nothing but the internal endpoint.
    EndpointIndependent,
    /// Also the address of the remote endpoint.
    AddressDependent,
    /// Also the address and the port of the remote endpoint.
    AddressAndPortDependent,
}

/// How the external port of a new mapping is chosen (RFC 4787, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortAssignment {
    /// The internal port where it is free.
    Preserving,
    /// Any port.
    Random,
    /// The port after that of the mapping before, from 40000 on.
    Sequential,
}

/// A translator of UDP; TCP is masqueraded, with random ports unless they are preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// When a mapping is used again.
    pub mapping: Behaviour,
    /// From whom packets are let in.
    pub filtering: Behaviour,
    /// How the external port is chosen.
    pub ports: PortAssignment,
    /// Whether a host of the LAN reaches another by its external endpoint, seen under its own (RFC 4787, REQ-9).
    pub hairpinning: bool,
    /// How long a mapping lives without traffic from inside, in whole seconds; at least one.
    pub lifetime: Duration,
}

/// What a router does with addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Nothing: the LAN has public addresses.
    None,
    /// What a Linux router does by default: ports preserved while they are free, address-and-port-dependent filtering.
    Masquerade,
    /// One of the behaviours of RFC 4787.
    Translation(Translation),
}

/// The lifetime of a mapping unless told otherwise: the smallest that RFC 4787 REQ-5 allows for arbitrary ports.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(120);

/// Ports that a sequential translator runs through; a power of two keeps the ruleset small and is ample for a test.
const SEQUENTIAL_PORTS: u16 = 512;

/// The first port of a sequential translator.
const SEQUENTIAL_BASE: u16 = 40_000;

impl Translation {
    /// Returns a translator with random ports, without hairpinning, with a lifetime of two minutes.
    #[must_use]
    pub const fn new(mapping: Behaviour, filtering: Behaviour) -> Self {
        Self {
            mapping,
            filtering,
            ports: PortAssignment::Random,
            hairpinning: false,
            lifetime: DEFAULT_LIFETIME,
        }
    }

    /// Returns the same translator with another choice of ports.
    #[must_use]
    pub const fn ports(self, ports: PortAssignment) -> Self {
        Self { ports, ..self }
    }

    /// Returns the same translator with hairpinning.
    #[must_use]
    pub const fn hairpinning(self) -> Self {
        Self { hairpinning: true, ..self }
    }

    /// Returns the same translator with another lifetime of mappings.
    #[must_use]
    pub const fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// Returns the part of an outgoing packet that decides whether a mapping is used again, as nftables expression.
    /// A mapping that depends on everything is the kernel's own connection entry and needs none.
    fn mapping_key(&self) -> Option<&'static str> {
        match self.mapping {
            Behaviour::EndpointIndependent => Some("ip saddr . udp sport"),
            Behaviour::AddressDependent => Some("ip saddr . udp sport . ip daddr"),
            Behaviour::AddressAndPortDependent => None,
        }
    }

    /// Returns the statement that makes a new mapping.
    fn assign(&self) -> String {
        match self.ports {
            PortAssignment::Preserving => "masquerade".to_owned(),
            PortAssignment::Random => "masquerade fully-random".to_owned(),
            // The number generator counts in host byte order, and a port is in network byte order: hence the map.
            PortAssignment::Sequential => {
                let ports: Vec<String> = (0..SEQUENTIAL_PORTS)
                    .map(|index| format!("{index} : {}", SEQUENTIAL_BASE + index))
                    .collect();
                format!("masquerade to :numgen inc mod {SEQUENTIAL_PORTS} map {{ {} }}", ports.join(", "))
            }
        }
    }
}

impl Nat {
    /// Endpoint-independent mapping and filtering ("full cone").
    pub const EIM_EIF: Self =
        Self::Translation(Translation::new(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent));
    /// Endpoint-independent mapping, address-dependent filtering ("restricted cone").
    pub const EIM_ADF: Self =
        Self::Translation(Translation::new(Behaviour::EndpointIndependent, Behaviour::AddressDependent));
    /// Endpoint-independent mapping, address-and-port-dependent filtering ("port-restricted cone").
    pub const EIM_APDF: Self = Self::Translation(Translation::new(
        Behaviour::EndpointIndependent,
        Behaviour::AddressAndPortDependent,
    ));
    /// Address-dependent mapping, address-and-port-dependent filtering.
    pub const ADM_APDF: Self =
        Self::Translation(Translation::new(Behaviour::AddressDependent, Behaviour::AddressAndPortDependent));
    /// Address-and-port-dependent mapping and filtering with random ports ("symmetric").
    pub const SYMMETRIC: Self = Self::Translation(Translation::new(
        Behaviour::AddressAndPortDependent,
        Behaviour::AddressAndPortDependent,
    ));
    /// Address-and-port-dependent mapping and filtering with predictable ports.
    pub const SYMMETRIC_SEQUENTIAL: Self = Self::Translation(
        Translation::new(Behaviour::AddressAndPortDependent, Behaviour::AddressAndPortDependent)
            .ports(PortAssignment::Sequential),
    );

    /// Returns whether a host of the LAN can reach the router's public address and be translated back.
    #[must_use]
    pub const fn hairpins(&self) -> bool {
        matches!(self, Self::Translation(Translation { hairpinning: true, .. }))
    }

    /// Returns the mapping lifetime that the kernel has to be told, if it differs from its own.
    pub(crate) const fn kernel_lifetime(&self) -> Option<Duration> {
        match self {
            Self::None | Self::Masquerade => None,
            Self::Translation(translation) => Some(translation.lifetime),
        }
    }

    /// Returns the nftables table for a router whose interfaces are called `wan` and `lan`.
    pub(crate) fn ruleset(&self, public_address: Ipv4Addr, lan: &str) -> String {
        match self {
            Self::None => String::new(),
            Self::Masquerade => {
                "table ip nat {\n chain post {\n  type nat hook postrouting priority srcnat;\n  \
                                 oifname \"wan\" masquerade\n }\n}\n"
                    .to_owned()
            }
            Self::Translation(translation) => translation.ruleset(public_address, lan),
        }
    }
}

impl Translation {
    fn ruleset(&self, public_address: Ipv4Addr, lan: &str) -> String {
        let key_type = match self.mapping {
            Behaviour::AddressDependent => "ipv4_addr . inet_service . ipv4_addr",
            Behaviour::EndpointIndependent | Behaviour::AddressAndPortDependent => "ipv4_addr . inet_service",
        };
        let timeout = self.lifetime.as_secs().max(1);
        let mut text = String::from("table ip nat {\n");
        let mut declare = |kind: &str, types: &str| {
            let _ = writeln!(text, " {kind} {{ type {types}; flags dynamic,timeout; timeout {timeout}s; }}");
        };
        declare("map external", &format!("{key_type} : inet_service"));
        declare("map internal", "inet_service : ipv4_addr . inet_service");
        declare("set peers", "inet_service . ipv4_addr");
        let chains = [
            ("learn", "filter hook postrouting priority 110", self.learning()),
            ("pre", "nat hook prerouting priority dstnat", self.inbound(public_address)),
            ("post", "nat hook postrouting priority srcnat", self.outbound(public_address, lan)),
        ];
        for (name, hook, rules) in chains {
            let _ = writeln!(text, " chain {name} {{\n  type {hook};\n  {}\n }}", rules.join("\n  "));
        }
        text.push_str("}\n");
        text
    }

    /// The rules that see a packet after its translation and remember it.
    fn learning(&self) -> Vec<String> {
        let udp = "oifname \"wan\" meta l4proto udp";
        let inside = "ct original ip saddr . ct original proto-src";
        let mut rules = Vec::new();
        if self.mapping_key().is_some() {
            let key = match self.mapping {
                Behaviour::AddressDependent => format!("{inside} . ip daddr"),
                Behaviour::EndpointIndependent | Behaviour::AddressAndPortDependent => inside.to_owned(),
            };
            rules.push(format!("{udp} ct direction original update @external {{ {key} : udp sport }}"));
        }
        if self.admits_strangers() {
            rules.push(format!("{udp} ct direction original update @internal {{ udp sport : {inside} }}"));
            // Answers on a connection that a stranger began keep the mapping alive as well.
            let inside = "ct reply ip saddr . ct reply proto-src";
            rules.push(format!("{udp} ct direction reply update @internal {{ udp sport : {inside} }}"));
            rules.push(format!("{udp} update @peers {{ udp sport . ip daddr }}"));
        }
        rules
    }

    /// The rules for packets that belong to no known connection.
    fn inbound(&self, public_address: Ipv4Addr) -> Vec<String> {
        let mut rules = Vec::new();
        if self.hairpinning {
            rules.push(format!(
                "iifname \"lan\" ip daddr {public_address} meta l4proto udp dnat ip to udp dport map @internal"
            ));
        }
        let filter = match self.filtering {
            Behaviour::EndpointIndependent => Some(""),
            Behaviour::AddressDependent => Some("udp dport . ip saddr @peers "),
            Behaviour::AddressAndPortDependent => None,
        };
        if let Some(filter) = filter {
            rules
                .push(format!("iifname \"wan\" meta l4proto udp {filter}dnat ip to udp dport map @internal"));
        }
        rules
    }

    /// The rules that translate what leaves.
    fn outbound(&self, public_address: Ipv4Addr, lan: &str) -> Vec<String> {
        let mut rules = Vec::new();
        if self.hairpinning {
            // The input interface is unknown after routing, so the source tells that the packet turned round.
            let turned = format!("ip saddr {lan} oifname \"lan\" ct status dnat");
            if self.mapping == Behaviour::EndpointIndependent {
                rules.push(format!(
                    "{turned} meta l4proto udp snat to {public_address}:ip saddr . udp sport map @external"
                ));
            }
            rules.push(format!("{turned} snat to {public_address}"));
        }
        if let Some(key) = self.mapping_key() {
            // No mapping yet: the look-up fails, and with it this rule, and the next one makes a mapping.
            rules.push(format!("oifname \"wan\" meta l4proto udp masquerade to :{key} map @external"));
        }
        rules.push(format!("oifname \"wan\" meta l4proto udp {}", self.assign()));
        let other = if self.ports == PortAssignment::Preserving { "" } else { " fully-random" };
        rules.push(format!("oifname \"wan\" masquerade{other}"));
        rules
    }

    /// Returns whether packets from senders unknown to the kernel can be let in.
    fn admits_strangers(&self) -> bool {
        self.hairpinning || self.filtering != Behaviour::AddressAndPortDependent
    }
}

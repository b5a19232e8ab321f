//! The few messages of the kernel's routing socket that are needed here (rtnetlink(7)), read and written byte by byte.
//!
//! Four kinds of messages and a dozen attributes do not need a library. What is not known, or shorter than
//! it should be, is skipped: newer kernels add attributes, and never change old ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use peerage_proto::lan::{Mac, Prefix};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// The length of `struct nlmsghdr`, in bytes.
const HEADER_SIZE: usize = 16;

/// What to ask the kernel for all of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dump {
    Links,
    Addresses,
    Routes,
    Neighbours,
}

impl Dump {
    const fn message_type(self) -> u16 {
        // Each kind's GET is two above its NEW.
        match self {
            Self::Links => RTM_NEWLINK + 2,
            Self::Addresses => RTM_NEWADDR + 2,
            Self::Routes => RTM_NEWROUTE + 2,
            Self::Neighbours => RTM_NEWNEIGH + 2,
        }
    }

    /// The size of the kind's own header, all zero in the request: any family, any interface.
    const fn body_size(self) -> usize {
        match self {
            Self::Links => 16,
            Self::Addresses => 8,
            Self::Routes | Self::Neighbours => 12,
        }
    }

    /// Writes the request.
    pub(super) fn request(self, sequence: u32) -> Vec<u8> {
        let length = HEADER_SIZE + self.body_size();
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        out.extend_from_slice(&self.message_type().to_ne_bytes());
        out.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.resize(length, 0);
        out
    }
}

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Link(Link),
    Address(Address),
    /// A default route; its next hops, of which there may be several.
    DefaultRoute(Vec<NextHop>),
    Neighbour(Neighbour),
    /// Something of these is gone, which is all that matters of it.
    Removed,
    Done,
    /// A request failed with this errno.
    Error(i32),
    /// Nothing of interest.
    Other,
}

/// A message with what its header says about the dump it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) sequence: u32,
    /// The kernel's lists changed while it wrote them: read again.
    pub(super) interrupted: bool,
    pub(super) message: Message,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The `ARPHRD_…` type.
    pub(super) hardware: u16,
    /// The `IFF_…` flags.
    pub(super) flags: u32,
    pub(super) mac: Option<Mac>,
    /// What made it, such as `veth`; empty for hardware.
    pub(super) made_by: String,
    /// The bridge or bond that it is a port of.
    pub(super) master: Option<u32>,
}

impl Link {
    pub(super) const UP: u32 = 0x1;
    pub(super) const LOOPBACK: u32 = 0x8;
    pub(super) const LOWER_UP: u32 = 0x1_0000;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) interface: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: Prefix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    pub(super) interface: u32,
    pub(super) gateway: IpAddr,
    pub(super) metric: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) interface: u32,
    pub(super) address: IpAddr,
    /// None while it is being asked for, and after nobody answered.
    pub(super) mac: Option<Mac>,
    pub(super) state: NeighbourState,
    /// How long ago the kernel last had proof that it is there, in milliseconds.
    pub(super) confirmed_ms: Option<u64>,
}

/// The `NUD_…` states (RFC 4861, section 7.3.2, which Linux also uses for ARP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NeighbourState {
    /// Being asked for; no hardware address yet.
    Incomplete,
    /// Proven within the last half minute or so.
    Reachable,
    /// Known, and not proven lately: STALE, DELAY and PROBE. The last two are on the way to a decision.
    Unproven,
    /// Nobody answered.
    Failed,
    /// Set by the administrator.
    Permanent,
    /// The link has no hardware addresses.
    NoArp,
}

/// Reads all messages of one datagram from the kernel.
pub(super) fn parse(mut bytes: &[u8]) -> Vec<Framed> {
    let mut out = Vec::new();
    while let Some((framed, rest)) = parse_one(bytes) {
        out.push(framed);
        bytes = rest;
    }
    out
}

fn parse_one(bytes: &[u8]) -> Option<(Framed, &[u8])> {
    let length = usize::try_from(read_u32(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER_SIZE..length)?;
    let flags = read_u16(bytes, 6)?;
    let framed = Framed {
        sequence: read_u32(bytes, 8)?,
        interrupted: flags & NLM_F_DUMP_INTR != 0,
        message: parse_body(read_u16(bytes, 4)?, body).unwrap_or(Message::Other),
    };
    Some((framed, bytes.get(align(length)..).unwrap_or(&[])))
}

fn parse_body(message_type: u16, body: &[u8]) -> Option<Message> {
    match message_type {
        NLMSG_ERROR => read_i32(body, 0).map(Message::Error),
        // A dump that fails half-way says so in its last message.
        NLMSG_DONE => match read_i32(body, 0) {
            Some(code) if code < 0 => Some(Message::Error(code)),
            Some(_) | None => Some(Message::Done),
        },
        RTM_NEWLINK => parse_link(body).map(Message::Link),
        RTM_NEWADDR => parse_address(body).map(Message::Address),
        RTM_NEWROUTE => parse_default_route(body).map(Message::DefaultRoute),
        RTM_NEWNEIGH => parse_neighbour(body).map(Message::Neighbour),
        RTM_DELLINK | RTM_DELADDR => Some(Message::Removed),
        RTM_DELROUTE => parse_default_route(body).map(|_| Message::Removed),
        RTM_DELNEIGH => Some(Message::Other),
        _ => None,
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;

    let mut link = Link {
        hardware: read_u16(body, 2)?,
        index: read_u32(body, 4)?,
        flags: read_u32(body, 8)?,
        ..Link::default()
    };
    for (kind, value) in Attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = read_mac(value),
            IFLA_IFNAME => link.name = read_text(value),
            IFLA_MASTER => link.master = read_u32(value, 0),
            IFLA_LINKINFO => {
                let made_by = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.made_by = made_by.map(|(_, value)| read_text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    const IFA_F_OPTIMISTIC: u32 = 0x04;
    const IFA_F_DADFAILED: u32 = 0x08;
    const IFA_F_TENTATIVE: u32 = 0x40;

    let family = read_u8(body, 0)?;
    let length = read_u8(body, 1)?;
    let mut flags = u32::from(read_u8(body, 2)?);
    let interface = read_u32(body, 4)?;
    let (mut local, mut peer) = (None, None);
    for (kind, value) in Attributes(body.get(8..)?) {
        match kind {
            IFA_ADDRESS => peer = read_ip(family, value),
            IFA_LOCAL => local = read_ip(family, value),
            IFA_FLAGS => flags = read_u32(value, 0)?,
            _ => {}
        }
    }
    // Until it is known that nobody else has the address, it cannot be used.
    let tentative = flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0;
    if tentative || flags & IFA_F_DADFAILED != 0 {
        return None;
    }
    // The range belongs to the far end where there is one; IPv6 addresses without one have no IFA_LOCAL.
    let range = peer.or(local)?;
    Some(Address { interface, address: local.or(peer)?, prefix: Prefix::new(range, length).ok()? })
}

/// Reads a unicast default route of the main table that goes through a gateway.
fn parse_default_route(body: &[u8]) -> Option<Vec<NextHop>> {
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_PRIORITY: u16 = 6;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_VIA: u16 = 18;
    const RT_TABLE_MAIN: u8 = 254;
    const RTN_UNICAST: u8 = 1;

    let family = read_u8(body, 0)?;
    let (prefix_length, source_length) = (read_u8(body, 1)?, read_u8(body, 2)?);
    let (table, kind) = (read_u8(body, 4)?, read_u8(body, 7)?);
    if prefix_length != 0 || source_length != 0 || table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let (mut interface, mut gateway, mut metric, mut hops) = (None, None, 0, Vec::new());
    for (kind, value) in Attributes(body.get(12..)?) {
        match kind {
            RTA_OIF => interface = read_u32(value, 0),
            RTA_GATEWAY => gateway = read_ip(family, value),
            RTA_VIA => gateway = read_via(value),
            RTA_PRIORITY => metric = read_u32(value, 0)?,
            RTA_MULTIPATH => hops = parse_hops(family, value),
            _ => {}
        }
    }
    hops.extend(interface.zip(gateway));
    Some(hops.into_iter().map(|(interface, gateway)| NextHop { interface, gateway, metric }).collect())
}

/// Reads the next hops of a route over several, as interface and gateway.
fn parse_hops(family: u8, mut bytes: &[u8]) -> Vec<(u32, IpAddr)> {
    const RTA_GATEWAY: u16 = 5;
    const RTA_VIA: u16 = 18;
    /// The length of `struct rtnexthop`.
    const HOP_SIZE: usize = 8;

    let mut hops = Vec::new();
    while let (Some(length), Some(interface)) = (read_u16(bytes, 0), read_u32(bytes, 4)) {
        let length = usize::from(length);
        let Some(attributes) = bytes.get(HOP_SIZE..length) else { break };
        let gateway = Attributes(attributes).find_map(|(kind, value)| match kind {
            RTA_GATEWAY => read_ip(family, value),
            RTA_VIA => read_via(value),
            _ => None,
        });
        hops.extend(gateway.map(|gateway| (interface, gateway)));
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
    }
    hops
}

fn parse_neighbour(body: &[u8]) -> Option<Neighbour> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    const NDA_CACHEINFO: u16 = 3;
    /// The kernel tells ages in hundredths of a second to all programs (`USER_HZ`).
    const MS_PER_TICK: u64 = 10;

    let family = read_u8(body, 0)?;
    let interface = read_u32(body, 4)?;
    let state = read_state(read_u16(body, 8)?)?;
    let (mut address, mut mac, mut confirmed_ms) = (None, None, None);
    for (kind, value) in Attributes(body.get(12..)?) {
        match kind {
            NDA_DST => address = read_ip(family, value),
            NDA_LLADDR => mac = read_mac(value),
            NDA_CACHEINFO => confirmed_ms = read_u32(value, 0).map(|ticks| u64::from(ticks) * MS_PER_TICK),
            _ => {}
        }
    }
    // A failed entry still shows the address that no longer answers.
    if matches!(state, NeighbourState::Incomplete | NeighbourState::Failed) {
        mac = None;
    }
    Some(Neighbour { interface, address: address?, mac, state, confirmed_ms })
}

const fn read_state(bits: u16) -> Option<NeighbourState> {
    Some(match bits {
        0x01 => NeighbourState::Incomplete,
        0x02 => NeighbourState::Reachable,
        0x04 | 0x08 | 0x10 => NeighbourState::Unproven,
        0x20 => NeighbourState::Failed,
        0x40 => NeighbourState::NoArp,
        0x80 => NeighbourState::Permanent,
        _ => return None,
    })
}

/// The attributes (type, value) that follow a message's own header.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// Flags in the type: nested, and network byte order.
        const TYPE_MASK: u16 = 0x3fff;
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// Everything in a message begins at a multiple of four bytes.
const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn read_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    read(bytes, at).map(u16::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    read(bytes, at).map(u32::from_ne_bytes)
}

fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    read(bytes, at).map(i32::from_ne_bytes)
}

fn read_mac(value: &[u8]) -> Option<Mac> {
    value.try_into().ok().map(Mac)
}

fn read_text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or(&[])).into_owned()
}

fn read_ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(value).ok().map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        AF_INET6 => <[u8; 16]>::try_from(value).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        _ => None,
    }
}

/// Reads a gateway of another family than its route's: `struct rtvia`.
fn read_via(value: &[u8]) -> Option<IpAddr> {
    let family = u8::try_from(read_u16(value, 0)?).ok()?;
    read_ip(family, value.get(2..)?)
}

#[cfg(test)]
mod tests;

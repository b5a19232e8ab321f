//! Pieces that records and messages have in common: addresses, ranges, candidates, services.

use std::net::{IpAddr, SocketAddr};

use crate::cbor::{Element, Malformed, Map, MapWriter};
use crate::id::Segment;
use crate::limits::MAX_NAME;

/// Returns an address and port as 6 or 18 bytes, big end first (Rule 2.5). IPv4 mapped into IPv6 is written as IPv4.
pub fn address_bytes(address: SocketAddr) -> Vec<u8> {
    let mut out = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    out.extend_from_slice(&address.port().to_be_bytes());
    out
}

/// Reads what [`address_bytes`] wrote. IPv4 mapped into IPv6 would be a second form of one address and is refused.
pub fn address_from(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    if let Ok(v4) = <[u8; 4]>::try_from(ip) {
        return Some(SocketAddr::new(IpAddr::from(v4), port));
    }
    let v6 = IpAddr::from(<[u8; 16]>::try_from(ip).ok()?);
    (v6 == v6.to_canonical()).then(|| SocketAddr::new(v6, port))
}

/// Reads a list of addresses.
///
/// # Errors
/// If there are more than `most`, or one is not an address.
pub fn read_addresses(map: &mut Map<'_>, key: u64, most: usize) -> Result<Vec<SocketAddr>, Malformed> {
    map.list(key, most, |e| address_from(e.bytes()?).ok_or(Malformed::Type(key)))
}

/// Writes a list of addresses.
pub fn write_addresses(map: &mut MapWriter, key: u64, addresses: &[SocketAddr]) {
    let bytes: Vec<_> = addresses.iter().copied().map(address_bytes).collect();
    map.list_of_bytes(key, &bytes);
}

/// Reads the two ends of a range of places, which stand under `key` and the key after it (Rule 2.14).
///
/// # Errors
/// If one is missing or no place, or if the last comes before the first.
pub fn read_segment(map: &mut Map<'_>, key: u64) -> Result<Segment, Malformed> {
    let (from, to) = (map.id(key)?, map.id(key + 1)?);
    if from > to { Err(Malformed::Type(key + 1)) } else { Ok(Segment { from, to }) }
}

/// Writes the two ends of a range of places under `key` and the key after it.
pub fn write_segment(map: &mut MapWriter, key: u64, segment: &Segment) {
    map.bytes(key, &segment.from.to_bytes()).bytes(key + 1, &segment.to.to_bytes());
}

/// How bytes travel to a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Datagrams: messages, and QUIC on the same port.
    Udp,
    /// TLS over TCP.
    Tcp,
}

/// What kind of place a candidate is; better ones come first (compare RFC 8445, section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of a wired interface.
    Ethernet,
    /// An address of a wireless interface.
    Wifi,
    /// An address of a virtual private network's interface.
    Vpn,
    /// An address that the owner configured as reachable.
    Configured,
    /// An address that a router gave by PCP, NAT-PMP or UPnP.
    Mapped,
    /// An address as others see it (server-reflexive).
    Reflexive,
    /// The last port of a router that numbers its mappings: the next place to which the node writes sees the port after it.
    Sequential,
    /// Where one end's ports cannot be known (Rule 6.99): the address of a router that gives each place another port, with port 0, or
    /// the place from which the other end tries ports there.
    Scattered,
}

impl CandidateKind {
    const ALL: [(Self, u64); 8] = [
        (Self::Ethernet, 1),
        (Self::Wifi, 2),
        (Self::Vpn, 3),
        (Self::Configured, 4),
        (Self::Mapped, 5),
        (Self::Reflexive, 6),
        (Self::Sequential, 7),
        (Self::Scattered, 8),
    ];
}

/// An address at which a node may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// What kind of place it is.
    pub kind: CandidateKind,
    /// How bytes travel to it.
    pub transport: Transport,
    /// The address and port.
    pub address: SocketAddr,
}

impl Candidate {
    /// Writes the candidate as a map.
    pub fn write(&self) -> MapWriter {
        let kind = CandidateKind::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or(0, |(_, n)| *n);
        let transport = match self.transport {
            Transport::Udp => 1_u64,
            Transport::Tcp => 2,
        };
        let mut map = MapWriter::new();
        map.bytes(1, &address_bytes(self.address)).uint(2, transport).uint(3, kind);
        map
    }

    /// Reads a candidate; `None` for a kind or transport that this version does not know.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(element: Element<'_>) -> Result<Option<Self>, Malformed> {
        let mut map = element.map()?;
        let address = address_from(map.bytes(1)?).ok_or(Malformed::Type(1))?;
        let transport = match map.uint::<u64>(2)? {
            1 => Some(Transport::Udp),
            2 => Some(Transport::Tcp),
            _ => None,
        };
        let number = map.uint::<u64>(3)?;
        map.finish()?;
        let kind = CandidateKind::ALL.iter().find(|(_, n)| *n == number).map(|(kind, _)| *kind);
        Ok(transport.zip(kind).map(|(transport, kind)| Self { kind, transport, address }))
    }
}

/// Reads a list of candidates, leaving out those of unknown kinds.
///
/// # Errors
/// If there are too many, or one is malformed.
pub fn read_candidates(map: &mut Map<'_>, key: u64) -> Result<Vec<Candidate>, Malformed> {
    let all = map.list(key, crate::limits::MAX_CANDIDATES, Candidate::read)?;
    Ok(all.into_iter().flatten().collect())
}

/// What a service speaks below its own protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One port of a device that may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// How users name it, as `ipp` or `rtsp`.
    pub name: String,
    /// The port.
    pub port: u16,
    /// Stream or datagrams.
    pub protocol: Protocol,
    /// Whether TLS begins with the first byte, so that certificate pins can be checked.
    pub tls: bool,
}

impl Service {
    /// Writes the service as a map.
    pub fn write(&self) -> MapWriter {
        let protocol = match self.protocol {
            Protocol::Tcp => 1_u64,
            Protocol::Udp => 2,
        };
        let mut map = MapWriter::new();
        map.text(1, &self.name).uint(2, self.port).uint(3, protocol).flag(4, self.tls);
        map
    }

    /// Reads a service.
    ///
    /// # Errors
    /// If it is malformed or speaks a protocol that this version does not know.
    pub fn read(element: Element<'_>) -> Result<Self, Malformed> {
        let mut map = element.map()?;
        let name = map.text(1, MAX_NAME)?;
        let port = map.uint(2)?;
        let protocol = match map.uint::<u64>(3)? {
            1 => Protocol::Tcp,
            2 => Protocol::Udp,
            _ => return Err(Malformed::Type(3)),
        };
        let tls = map.flag(4)?;
        map.finish()?;
        Ok(Self { name, port, protocol, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 2.5: addresses of both families.
    #[test]
    fn addresses_are_read_back_as_written() {
        for text in ["192.0.2.1:631", "[2001:db8::1]:65535"] {
            let address = text.parse().unwrap();
            assert_eq!(address_from(&address_bytes(address)), Some(address));
        }
        assert_eq!(address_from(&[1; 7]), None);
        assert_eq!(address_from(&[]), None);
    }
}

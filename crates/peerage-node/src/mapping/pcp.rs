//! The datagrams of the Port Control Protocol (RFC 6887) and of its predecessor NAT-PMP (RFC 6886), which share a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use peerage_wire::codec::Transport;

/// Where routers listen for both protocols (RFC 6887, section 19.1).
pub(super) const PORT: u16 = 5351;

/// The longest answer, in bytes (RFC 6887, section 7).
pub(super) const MAX_ANSWER: usize = 1_100;

const PCP_VERSION: u8 = 2;
const NAT_PMP_VERSION: u8 = 0;
/// Set in the opcode of every answer.
const ANSWER: u8 = 0x80;
const PCP_ANNOUNCE: u8 = 0;
const PCP_MAP: u8 = 1;
const NAT_PMP_ADDRESS: u8 = 0;
const NAT_PMP_UDP: u8 = 1;
const NAT_PMP_TCP: u8 = 2;
/// The length of a PCP header, and with what MAP adds to it.
const PCP_HEADER: usize = 24;
const PCP_MAP_LENGTH: usize = 60;

/// What makes a mapping the own one (RFC 6887, section 11.1): nobody else can renew or delete it.
pub(super) type Nonce = [u8; 12];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) transport: Transport,
    /// The port of this computer.
    pub(super) internal: u16,
    /// The port of the router that would be best; 0 is any.
    pub(super) external: u16,
    /// For how long, in seconds; 0 deletes.
    pub(super) lifetime: u32,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    NatPmp,
    Pcp,
}

/// What a router says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) version: Version,
    /// 0: granted; anything else is why not, as [`refusal`] tells.
    pub(super) result: u8,
    /// Seconds since the router forgot its mappings last.
    pub(super) epoch: u32,
    pub(super) what: What,
}

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A mapping of PCP, which tells all.
    Pcp { nonce: Nonce, transport: Transport, internal: u16, external: SocketAddr, lifetime: u32 },
    /// A mapping of NAT-PMP.
    NatPmp { transport: Transport, internal: u16, external: u16, lifetime: u32 },
    /// The router's own address, which NAT-PMP tells apart.
    Address(Ipv4Addr),
    /// Nothing that is of use here: an error, an announcement.
    Nothing,
}

/// Returns a MAP request of PCP for this computer's address.
pub(super) fn pcp_map(wish: &Wish, own: IpAddr, nonce: Nonce) -> Vec<u8> {
    let any: Ipv6Addr =
        if own.is_ipv4() { Ipv4Addr::UNSPECIFIED.to_ipv6_mapped() } else { Ipv6Addr::UNSPECIFIED };
    let mut out = Vec::with_capacity(PCP_MAP_LENGTH);
    out.extend([PCP_VERSION, PCP_MAP, 0, 0]);
    out.extend(wish.lifetime.to_be_bytes());
    out.extend(v6(own).octets());
    out.extend(nonce);
    out.extend([protocol(wish.transport), 0, 0, 0]);
    out.extend(wish.internal.to_be_bytes());
    out.extend(wish.external.to_be_bytes());
    out.extend(any.octets());
    out
}

/// Returns a request of PCP that changes nothing (RFC 6887, section 14.1): its answer tells that the router speaks PCP, and its epoch.
pub(super) fn pcp_announce(own: IpAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(PCP_HEADER);
    out.extend([PCP_VERSION, PCP_ANNOUNCE, 0, 0, 0, 0, 0, 0]);
    out.extend(v6(own).octets());
    out
}

/// Returns a mapping request of NAT-PMP.
pub(super) fn nat_pmp_map(wish: &Wish) -> Vec<u8> {
    let code = match wish.transport {
        Transport::Udp => NAT_PMP_UDP,
        Transport::Tcp => NAT_PMP_TCP,
    };
    let mut out = vec![NAT_PMP_VERSION, code, 0, 0];
    out.extend(wish.internal.to_be_bytes());
    out.extend(wish.external.to_be_bytes());
    out.extend(wish.lifetime.to_be_bytes());
    out
}

/// Returns a request of NAT-PMP for the router's own address.
pub(super) const fn nat_pmp_address() -> [u8; 2] {
    [NAT_PMP_VERSION, NAT_PMP_ADDRESS]
}

/// Reads what came from a router; `None` if it is no answer.
pub(super) fn read(datagram: &[u8]) -> Option<Answer> {
    match datagram.first_chunk::<2>()? {
        [PCP_VERSION, code] if code & ANSWER != 0 => read_pcp(datagram, code & !ANSWER),
        [NAT_PMP_VERSION, code] if code & ANSWER != 0 => read_nat_pmp(datagram, code & !ANSWER),
        _ => None,
    }
}

fn read_pcp(datagram: &[u8], opcode: u8) -> Option<Answer> {
    if datagram.len() < PCP_HEADER || datagram.len() > MAX_ANSWER || !datagram.len().is_multiple_of(4) {
        return None;
    }
    let mut fields = Fields(datagram.get(3..)?);
    let [result] = fields.take()?;
    let lifetime = u32::from_be_bytes(fields.take()?);
    let epoch = u32::from_be_bytes(fields.take()?);
    let [..] = fields.take::<12>()?;
    let what = if opcode == PCP_MAP { read_map(&mut fields, lifetime) } else { None };
    // Routers answer what they do not understand without the part of the opcode.
    let what = what.unwrap_or(What::Nothing);
    Some(Answer { version: Version::Pcp, result, epoch, what })
}

fn read_map(fields: &mut Fields<'_>, lifetime: u32) -> Option<What> {
    let nonce = fields.take()?;
    let [protocol, ..] = fields.take::<4>()?;
    let transport = transport_of(protocol)?;
    let internal = u16::from_be_bytes(fields.take()?);
    let port = u16::from_be_bytes(fields.take()?);
    let address = IpAddr::from(fields.take::<16>()?).to_canonical();
    let external = SocketAddr::new(address, port);
    Some(What::Pcp { nonce, transport, internal, external, lifetime })
}

fn read_nat_pmp(datagram: &[u8], code: u8) -> Option<Answer> {
    let mut fields = Fields(datagram.get(2..)?);
    let result = u16::from_be_bytes(fields.take()?);
    // An error may end here (RFC 6886, section 3.5).
    let epoch = fields.take().map(u32::from_be_bytes);
    let what = match code {
        _ if result != 0 => What::Nothing,
        NAT_PMP_ADDRESS => What::Address(Ipv4Addr::from(fields.take::<4>()?)),
        NAT_PMP_UDP | NAT_PMP_TCP => {
            let transport = if code == NAT_PMP_UDP { Transport::Udp } else { Transport::Tcp };
            let internal = u16::from_be_bytes(fields.take()?);
            let external = u16::from_be_bytes(fields.take()?);
            let lifetime = u32::from_be_bytes(fields.take()?);
            What::NatPmp { transport, internal, external, lifetime }
        }
        _ => What::Nothing,
    };
    let result = u8::try_from(result).unwrap_or(u8::MAX);
    Some(Answer { version: Version::NatPmp, result, epoch: epoch.unwrap_or(0), what })
}

/// Returns why a router has refused, for people.
pub(super) fn refusal(version: Version, result: u8) -> String {
    let why = match (version, result) {
        (_, 2) => "the router does not allow it",
        (_, 3) if version == Version::NatPmp => "the router has no connection",
        (_, 4) if version == Version::NatPmp => "the router has no room for more mappings",
        (_, 7) if version == Version::Pcp => "the router has no connection",
        (_, 8 | 10) if version == Version::Pcp => "the router has no room for more mappings",
        (_, 11) if version == Version::Pcp => "the router cannot give the port to this computer",
        (_, 12) if version == Version::Pcp => "another router is in between",
        _ => return format!("the router refuses with code {result}"),
    };
    why.to_owned()
}

/// Bytes that are read from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
}

/// Returns the number of IANA's registry of protocols.
const fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

const fn transport_of(protocol: u8) -> Option<Transport> {
    match protocol {
        6 => Some(Transport::Tcp),
        17 => Some(Transport::Udp),
        _ => None,
    }
}

const fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISH: Wish = Wish { transport: Transport::Tcp, internal: 8_000, external: 18_000, lifetime: 7_200 };

    /// RFC 6887, sections 7.1 and 11.1: field by field.
    #[test]
    fn a_map_request_of_pcp_is_laid_out_as_the_rfc_says() {
        let out = pcp_map(&WISH, "192.168.1.10".parse().unwrap(), [7; 12]);
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x1c, 0x20];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 10]);
        expected.extend([7; 12]);
        expected.extend([6, 0, 0, 0, 0x1f, 0x40, 0x46, 0x50]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(out, expected);
    }

    /// RFC 6886, section 3.3.
    #[test]
    fn a_request_of_nat_pmp_is_laid_out_as_the_rfc_says() {
        assert_eq!(nat_pmp_map(&WISH), [0, 2, 0, 0, 0x1f, 0x40, 0x46, 0x50, 0, 0, 0x1c, 0x20]);
    }

    #[test]
    fn an_answer_of_pcp_tells_the_mapping() {
        let mut datagram = pcp_map(&WISH, "192.168.1.10".parse().unwrap(), [7; 12]);
        datagram[1] |= ANSWER;
        datagram[8..24].fill(0);
        datagram[8..12].copy_from_slice(&99_u32.to_be_bytes());
        let external: Ipv6Addr = "::ffff:203.0.114.7".parse().unwrap();
        datagram[44..60].copy_from_slice(&external.octets());
        let answer = read(&datagram).unwrap();
        let expected = What::Pcp {
            nonce: [7; 12],
            transport: Transport::Tcp,
            internal: 8_000,
            external: "203.0.114.7:18000".parse().unwrap(),
            lifetime: 7_200,
        };
        assert_eq!(answer, Answer { version: Version::Pcp, result: 0, epoch: 99, what: expected });
    }

    #[test]
    fn an_answer_of_nat_pmp_tells_the_port_and_another_the_address() {
        let mapping = [0, 130, 0, 0, 0, 0, 0, 9, 0x1f, 0x40, 0x46, 0x51, 0, 0, 0, 60];
        let what =
            What::NatPmp { transport: Transport::Tcp, internal: 8_000, external: 18_001, lifetime: 60 };
        assert_eq!(read(&mapping), Some(Answer { version: Version::NatPmp, result: 0, epoch: 9, what }));
        let address = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 114, 7];
        assert_eq!(read(&address).map(|answer| answer.what), Some(What::Address([203, 0, 114, 7].into())));
    }

    /// RFC 6887, section 9: what a router that knows only NAT-PMP says to PCP.
    #[test]
    fn a_router_without_pcp_is_recognised_by_the_version_of_its_answer() {
        let answer = read(&[0, 129, 0, 1, 0, 0, 0, 9]).unwrap();
        assert_eq!((answer.version, answer.result, answer.what), (Version::NatPmp, 1, What::Nothing));
    }

    #[test]
    fn what_is_cut_off_or_no_answer_is_left_alone() {
        let mut datagram = pcp_map(&WISH, "192.168.1.10".parse().unwrap(), [7; 12]);
        assert_eq!(read(&datagram), None, "a request");
        datagram[1] |= ANSWER;
        for length in 0..PCP_HEADER {
            assert_eq!(read(&datagram[..length]), None, "{length}");
        }
        assert_eq!(read(&datagram[..56]).map(|answer| answer.what), Some(What::Nothing));
        assert_eq!(read(&[1, 0x80, 0, 0]), None);
        assert_eq!(read(&[0, 130, 0, 0, 0, 0, 0, 9, 0x1f]), None);
    }
}

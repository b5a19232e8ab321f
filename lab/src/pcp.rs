//! A router that gives its LAN ports on request, by the Port Control Protocol (RFC 6887): MAP for IPv4, and nothing else.
//!
//! What real routers run is `miniupnpd`, and the tests have that. This is for where nothing may have to be installed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Where routers listen (RFC 6887, section 19.1).
const PORT: u16 = 5351;

/// The longest message, in bytes (section 7).
const MAX_MESSAGE: usize = 1_100;

/// The length of a header, and with what MAP adds to it.
const HEADER: usize = 24;
const MAP_LENGTH: usize = 60;

const VERSION: u8 = 2;
const ANSWER: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;

/// The most ports that are given at a time.
const MAX_GIVEN: usize = 64;

/// The longest time for which a port is given, in seconds.
const MAX_LIFETIME: u32 = 7_200;

/// The first port that is given to whoever asks for one that is taken.
const FIRST_FREE: u16 = 40_000;

/// Why a port is not given (section 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Version = 1,
    NotAuthorized = 2,
    Malformed = 3,
    Opcode = 4,
    NoResources = 8,
    Protocol = 9,
    AddressMismatch = 12,
}

/// A protocol's number, and the address of a computer of the LAN.
type Inner = (u8, SocketAddrV4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    external: u16,
    nonce: [u8; 12],
    /// Since the router began.
    ends_at: Duration,
}

/// The ports that are given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    public: Ipv4Addr,
    leases: BTreeMap<Inner, Lease>,
}

/// Serves the LAN of the router on which this runs until the process ends; `public` is the router's outer address.
///
/// # Errors
/// When the port is taken, or the kernel's rules cannot be changed.
pub fn serve(public: Ipv4Addr, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot serve requests for ports")?;
    let (mut given, began_at) = (Given { public, leases: BTreeMap::new() }, Instant::now());
    ready()?;
    let mut message = [0; MAX_MESSAGE + 1];
    loop {
        let (length, from) = socket.recv_from(&mut message)?;
        let before = given.clone();
        let request = message.get(..length).unwrap_or_default();
        let Some(answer) = given.answer(request, from, began_at.elapsed()) else { continue };
        if given != before {
            load(&given.rules())?;
        }
        // Whoever has gone meanwhile needs no answer.
        _ = socket.send_to(&answer, from);
    }
}

fn load(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("nft has no input")?.write_all(rules.as_bytes())?;
    let status = nft.wait()?;
    ensure!(status.success(), "nft ended with {status} on\n{rules}");
    Ok(())
}

impl Given {
    /// Answers a request; `None` if it is none.
    fn answer(&mut self, request: &[u8], from: SocketAddr, now: Duration) -> Option<Vec<u8>> {
        let [version, opcode] = *request.first_chunk::<2>()?;
        // What NAT-PMP would have is not spoken here, and what is an answer gets none.
        if version == 0 || opcode & ANSWER != 0 || request.len() > MAX_MESSAGE {
            return None;
        }
        self.leases.retain(|_, lease| lease.ends_at > now);
        let done = self.judge(request, from, now);
        let (result, lifetime) = match done {
            Ok((lifetime, _)) => (0, lifetime),
            // For how long the refusal holds.
            Err(refusal) => (refusal as u8, 30),
        };
        let mut answer = vec![VERSION, opcode | ANSWER, 0, result];
        answer.extend(lifetime.to_be_bytes());
        answer.extend(u32::try_from(now.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        answer.extend([0; 12]);
        if let Some(map) = request.get(HEADER..MAP_LENGTH).filter(|_| opcode == MAP) {
            // Nonce, protocol and internal port are said back.
            answer.extend(map.get(..18)?);
            let external = done.map_or(0, |(_, external)| external);
            answer.extend(external.to_be_bytes());
            answer.extend(self.public.to_ipv6_mapped().octets());
        }
        Some(answer)
    }

    /// Returns for how long which port is given.
    fn judge(&mut self, request: &[u8], from: SocketAddr, now: Duration) -> Result<(u32, u16), Refusal> {
        if request.first() != Some(&VERSION) {
            return Err(Refusal::Version);
        }
        let header = request.first_chunk::<HEADER>().ok_or(Refusal::Malformed)?;
        let [_, opcode, _, _, first, second, third, fourth, client @ ..] = *header;
        let IpAddr::V4(own) = from.ip().to_canonical() else { return Err(Refusal::AddressMismatch) };
        if Ipv6Addr::from(client) != own.to_ipv6_mapped() {
            return Err(Refusal::AddressMismatch);
        }
        match opcode {
            ANNOUNCE => return Ok((0, 0)),
            MAP => {}
            _ => return Err(Refusal::Opcode),
        }
        let map = request.get(HEADER..MAP_LENGTH).ok_or(Refusal::Malformed)?;
        let (nonce, rest) = map.split_first_chunk::<12>().ok_or(Refusal::Malformed)?;
        let [protocol, _, _, _, inside @ ..] = *rest.first_chunk::<6>().ok_or(Refusal::Malformed)?;
        let [.., high, low] = *rest.first_chunk::<8>().ok_or(Refusal::Malformed)?;
        if ![6, 17].contains(&protocol) {
            return Err(Refusal::Protocol);
        }
        let inner = (protocol, SocketAddrV4::new(own, u16::from_be_bytes(inside)));
        let lifetime = u32::from_be_bytes([first, second, third, fourth]).min(MAX_LIFETIME);
        self.give(inner, (*nonce, u16::from_be_bytes([high, low])), (lifetime, now))
    }

    fn give(
        &mut self,
        inner: Inner,
        (nonce, suggested): ([u8; 12], u16),
        (lifetime, now): (u32, Duration),
    ) -> Result<(u32, u16), Refusal> {
        let known = self.leases.get(&inner).copied();
        if known.is_some_and(|lease| lease.nonce != nonce) {
            return Err(Refusal::NotAuthorized);
        }
        if lifetime == 0 {
            self.leases.remove(&inner);
            return Ok((0, 0));
        }
        let external = match known {
            Some(lease) => lease.external,
            None if self.leases.len() >= MAX_GIVEN => return Err(Refusal::NoResources),
            None => self.free(inner.0, suggested).ok_or(Refusal::NoResources)?,
        };
        let ends_at = now + Duration::from_secs(lifetime.into());
        self.leases.insert(inner, Lease { external, nonce, ends_at });
        Ok((lifetime, external))
    }

    /// Returns the port that is suggested, or one beside those that are given.
    fn free(&self, protocol: u8, suggested: u16) -> Option<u16> {
        let is_free = |port: &u16| {
            let mut taken = self.leases.iter().filter(|((other, _), _)| *other == protocol);
            *port >= 1_024 && taken.all(|(_, lease)| lease.external != *port)
        };
        std::iter::once(suggested).chain(FIRST_FREE..).find(is_free)
    }

    /// Returns what the kernel has to do, in place of what it did before.
    fn rules(&self) -> String {
        let one = |((protocol, inner), lease): (&Inner, &Lease)| {
            let name = if *protocol == 6 { "tcp" } else { "udp" };
            format!("  ip daddr {} {name} dport {} dnat to {inner}\n", self.public, lease.external)
        };
        let rules: String = self.leases.iter().map(one).collect();
        format!(
            "table ip given {{}}\ndelete table ip given\ntable ip given {{\n chain pre {{\n  \
             type nat hook prerouting priority dstnat - 20;\n{rules} }}\n}}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);

    fn given() -> Given {
        Given { public: Ipv4Addr::new(45, 1, 2, 2), leases: BTreeMap::new() }
    }

    fn request(protocol: u8, ports: [u16; 2], lifetime: u32, nonce: u8) -> Vec<u8> {
        let mut request = vec![2, 1, 0, 0];
        request.extend(lifetime.to_be_bytes());
        request.extend(OWN.to_ipv6_mapped().octets());
        request.extend([nonce; 12]);
        request.extend([protocol, 0, 0, 0]);
        request.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
        request
    }

    /// Returns the result, the lifetime and the external port of an answer.
    fn ask(given: &mut Given, request: &[u8], now: u64) -> (u8, u32, u16) {
        let answer = given.answer(request, (OWN, 40_000).into(), Duration::from_secs(now)).unwrap();
        assert_eq!(answer.len(), request.len());
        let number = |at: usize| u16::from_be_bytes(answer[at..at + 2].try_into().unwrap());
        (answer[3], u32::from_be_bytes(answer[4..8].try_into().unwrap()), number(42))
    }

    #[test]
    fn a_port_is_given_renewed_and_given_back() {
        let mut given = given();
        assert_eq!(ask(&mut given, &request(17, [4242, 4242], 9_999, 1), 0), (0, MAX_LIFETIME, 4242));
        assert!(given.rules().contains("ip daddr 45.1.2.2 udp dport 4242 dnat to 192.168.1.10:4242"));
        assert_eq!(ask(&mut given, &request(17, [4242, 5555], 60, 1), 10), (0, 60, 4242));
        assert_eq!(ask(&mut given, &request(17, [4242, 4242], 0, 1), 20), (0, 0, 0));
        assert!(!given.rules().contains("dnat"));
    }

    #[test]
    fn one_that_is_taken_is_given_to_nobody_else_until_its_time_is_over() {
        let mut given = given();
        ask(&mut given, &request(6, [1_111, 4242], 60, 1), 0);
        assert_eq!(ask(&mut given, &request(6, [2_222, 4242], 60, 2), 0), (0, 60, FIRST_FREE));
        assert_eq!(ask(&mut given, &request(17, [2_222, 4242], 60, 2), 0), (0, 60, 4242), "of UDP");
        assert_eq!(ask(&mut given, &request(6, [1_111, 4242], 60, 3), 0).0, Refusal::NotAuthorized as u8);
        assert_eq!(ask(&mut given, &request(6, [3_333, 4242], 60, 3), 61), (0, 60, 4242));
    }

    #[test]
    fn what_is_no_request_for_the_own_port_is_refused_or_not_answered() {
        let good = request(6, [1_111, 4242], 60, 1);
        let changed = |at: usize, to: u8| {
            let mut request = good.clone();
            request[at] = to;
            request
        };
        let refused = [
            (changed(0, 3), Refusal::Version),
            (changed(1, 2), Refusal::Opcode),
            (changed(23, 11), Refusal::AddressMismatch),
            (changed(36, 1), Refusal::Protocol),
            (good[..40].to_vec(), Refusal::Malformed),
        ];
        for (request, refusal) in refused {
            let answer = given().answer(&request, (OWN, 1).into(), Duration::ZERO).unwrap();
            assert_eq!(answer[3], refusal as u8, "{refusal:?}");
        }
        for silent in [vec![], changed(0, 0), changed(1, 0x81), vec![2; MAX_MESSAGE + 1]] {
            assert_eq!(given().answer(&silent, (OWN, 1).into(), Duration::ZERO), None);
        }
    }

    #[test]
    fn no_more_ports_are_given_than_there_is_room_for() {
        let mut given = given();
        for port in 0..u16::try_from(MAX_GIVEN).unwrap() {
            assert_eq!(ask(&mut given, &request(6, [port, 4242], 60, 1), 0).0, 0);
        }
        assert_eq!(ask(&mut given, &request(6, [9_999, 4242], 60, 1), 0).0, Refusal::NoResources as u8);
    }
}

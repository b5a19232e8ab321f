//! Asks a router for a port, by the smallest possible client of each protocol, to prove that the router grants it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::device::MappingProtocol;

/// The port of NAT-PMP and PCP.
const REQUEST_PORT: u16 = 5351;

/// The port of the router's descriptions in UPnP, as [`crate::device::MappingDaemon`] sets it.
const UPNP_PORT: u16 = 5000;

/// How long an answer may take. A router that does not speak the protocol says nothing.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long the port is wanted for, in seconds.
const LIFETIME: u32 = 120;

/// The number of TCP among protocols.
const TCP: u8 = 6;

/// Asks `gateway` to lead TCP connections to its public address to `port` here, and returns the port outside.
///
/// # Errors
/// When it does not answer or refuses.
pub fn ask(protocol: MappingProtocol, gateway: Ipv4Addr, port: u16) -> Result<u16> {
    match protocol {
        MappingProtocol::Upnp => ask_by_upnp(gateway, port),
        MappingProtocol::NatPmp => ask_by_nat_pmp(gateway, port),
        MappingProtocol::Pcp => ask_by_pcp(gateway, port),
    }
}

/// RFC 6886, section 3.3.
fn ask_by_nat_pmp(gateway: Ipv4Addr, port: u16) -> Result<u16> {
    let mut request = vec![0, 2, 0, 0];
    request.extend([port, port].iter().flat_map(|port| port.to_be_bytes()));
    request.extend(LIFETIME.to_be_bytes());
    let answer = exchange(gateway, |_| request)?;
    ensure!(answer.get(..4) == Some(&[0, 130, 0, 0]), "the router refuses: {answer:?}");
    number(&answer, 10)
}

/// RFC 6887, sections 7 and 11.
fn ask_by_pcp(gateway: Ipv4Addr, port: u16) -> Result<u16> {
    let request = |own: Ipv4Addr| {
        let mut request = vec![2, 1, 0, 0];
        request.extend(LIFETIME.to_be_bytes());
        request.extend(own.to_ipv6_mapped().octets());
        request.extend(*b"a lab's word");
        request.extend([TCP, 0, 0, 0]);
        request.extend([port, port].iter().flat_map(|port| port.to_be_bytes()));
        request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
        request
    };
    let answer = exchange(gateway, request)?;
    ensure!(
        answer.get(..2) == Some(&[2, 129]) && answer.get(3) == Some(&0),
        "the router refuses: {answer:?}"
    );
    number(&answer, 42)
}

/// Sends a request that may depend on the own address, and returns the answer.
fn exchange(gateway: Ipv4Addr, request: impl FnOnce(Ipv4Addr) -> Vec<u8>) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((gateway, REQUEST_PORT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let IpAddr::V4(own) = socket.local_addr()?.ip() else { bail!("the way to {gateway} is not by IPv4") };
    socket.send(&request(own))?;
    let mut answer = vec![0; 1_100];
    let length = socket.recv(&mut answer).context("the router does not answer")?;
    answer.truncate(length);
    Ok(answer)
}

fn number(answer: &[u8], at: usize) -> Result<u16> {
    let bytes = answer.get(at..at + 2).context("the answer is too short")?;
    Ok(u16::from_be_bytes(bytes.try_into()?))
}

/// UPnP Internet Gateway Device, WANIPConnection:1, without looking for the router first.
fn ask_by_upnp(gateway: Ipv4Addr, port: u16) -> Result<u16> {
    let to = SocketAddr::from((gateway, UPNP_PORT));
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).context("the router does not answer")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let own = stream.local_addr()?.ip();
    let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let body = format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:AddPortMapping xmlns:u=\"{service}\">\
         <NewRemoteHost></NewRemoteHost><NewExternalPort>{port}</NewExternalPort><NewProtocol>TCP</NewProtocol>\
         <NewInternalPort>{port}</NewInternalPort><NewInternalClient>{own}</NewInternalClient>\
         <NewEnabled>1</NewEnabled><NewPortMappingDescription>lab</NewPortMappingDescription>\
         <NewLeaseDuration>{LIFETIME}</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>"
    );
    write!(
        stream,
        "POST /ctl/IPConn HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Type: text/xml\r\n\
         SOAPAction: \"{service}#AddPortMapping\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "the router refuses:\n{answer}");
    Ok(port)
}

//! Finds out by measurement what a NAT does, in the manner of RFC 5780, with packets of its own.
//!
//! The server answers on two addresses with two ports each: endpoint 0 is the first address and port, 1 the same
//! address with the other port, 2 the other address with the first port, 3 the other address and port. A request names
//! the endpoints that shall answer; the endpoint that was asked always answers last, so that its answer tells that the
//! others were sent before.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::netns::Behaviour;

/// The ports of the server, those of STUN; it runs in a network of its own, where they are free.
const PORTS: [u16; 2] = [3478, 3479];

/// Endpoints of the server.
const ENDPOINTS: usize = 4;

/// How often a request is sent before the server counts as unreachable.
const MAX_ATTEMPTS: u8 = 10;

/// How long an answer may take before the request is sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// How long packets that were sent before an answer may arrive after it; the kernel may carry them on two processors.
const REORDERING: Duration = Duration::from_millis(100);

/// What was measured from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The own endpoint of the first socket.
    pub local: SocketAddr,
    /// The external endpoints that the server's endpoints 0 to 3 saw for that one socket, in this order.
    pub external: Vec<SocketAddr>,
    /// What a mapping depends on.
    pub mapping: Behaviour,
    /// From whom packets are let in.
    pub filtering: Behaviour,
    /// Whether the external port is the internal one.
    pub preserves_port: bool,
    /// Whether a second socket is reached by its external endpoint, from the external endpoint of the first.
    pub hairpins: bool,
}

impl Report {
    /// Returns the report as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "local": self.local.to_string(),
            "external": self.external.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "mapping": name(self.mapping),
            "filtering": name(self.filtering),
            "preserves_port": self.preserves_port,
            "hairpins": self.hairpins,
        })
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// When a field is missing or not as expected.
    pub fn from_json(value: &Value) -> Result<Self> {
        let field = |key: &str| value.get(key).with_context(|| format!("the report has no {key}"));
        let endpoint = |value: &Value| -> Result<SocketAddr> {
            value.as_str().context("an endpoint is not a string")?.parse().context("not an endpoint")
        };
        let external = field("external")?.as_array().context("external is not a list")?;
        Ok(Self {
            local: endpoint(field("local")?)?,
            external: external.iter().map(endpoint).collect::<Result<_>>()?,
            mapping: behaviour(field("mapping")?)?,
            filtering: behaviour(field("filtering")?)?,
            preserves_port: field("preserves_port")?.as_bool().context("not a truth value")?,
            hairpins: field("hairpins")?.as_bool().context("not a truth value")?,
        })
    }
}

fn name(behaviour: Behaviour) -> &'static str {
    match behaviour {
        Behaviour::EndpointIndependent => "endpoint-independent",
        Behaviour::AddressDependent => "address-dependent",
        Behaviour::AddressAndPortDependent => "address-and-port-dependent",
    }
}

fn behaviour(value: &Value) -> Result<Behaviour> {
    [Behaviour::EndpointIndependent, Behaviour::AddressDependent, Behaviour::AddressAndPortDependent]
        .into_iter()
        .find(|candidate| value == name(*candidate))
        .with_context(|| format!("{value} is not a behaviour"))
}

/// Returns the endpoints of a server with these addresses.
fn endpoints(first: Ipv4Addr, second: Ipv4Addr) -> [SocketAddrV4; ENDPOINTS] {
    let [port, other_port] = PORTS;
    [
        SocketAddrV4::new(first, port),
        SocketAddrV4::new(first, other_port),
        SocketAddrV4::new(second, port),
        SocketAddrV4::new(second, other_port),
    ]
}

/// A server that tells who asked, from the endpoints asked for.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<UdpSocket>,
}

impl Server {
    /// Binds the server to both addresses of this host.
    ///
    /// # Errors
    /// When an address is not of this host or a port is taken.
    pub fn bind(first: Ipv4Addr, second: Ipv4Addr) -> Result<Self> {
        let bind = |endpoint: SocketAddrV4| {
            UdpSocket::bind(endpoint).with_context(|| format!("cannot bind {endpoint}"))
        };
        Ok(Self { sockets: endpoints(first, second).into_iter().map(bind).collect::<Result<_>>()? })
    }

    /// Answers until a socket fails, with one thread for each endpoint.
    ///
    /// # Errors
    /// When receiving fails.
    pub fn run(&self) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.sockets.len())
                .map(|index| scope.spawn(move || self.serve_endpoint(index)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })
    }

    fn serve_endpoint(&self, index: usize) -> Result<()> {
        let own = self.sockets.get(index).context("no such endpoint")?;
        let mut request = [0; 16];
        loop {
            let (length, client) = own.recv_from(&mut request)?;
            let (Some([transaction, wanted]), 2) = (request.first_chunk::<2>(), length) else { continue };
            let others = self
                .sockets
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index && wanted >> other & 1 == 1);
            for (other, socket) in others.chain([(index, own)]) {
                // A client that is gone, or behind a filter, is no reason to stop serving.
                let _ = socket.send_to(&answer(*transaction, other, client), client);
            }
        }
    }
}

fn answer(transaction: u8, endpoint: usize, client: SocketAddr) -> Vec<u8> {
    let mut packet = vec![transaction, u8::try_from(endpoint).unwrap_or(u8::MAX)];
    packet.extend(client.to_string().into_bytes());
    packet
}

/// Measures the NAT between this host and a [`Server`] with these addresses.
///
/// # Errors
/// When the server does not answer.
pub fn measure(first: Ipv4Addr, second: Ipv4Addr) -> Result<Report> {
    let server = endpoints(first, second);
    let socket = client()?;
    // Connecting another socket tells which local address leads there, without sending anything.
    let route = client()?;
    route.connect(SocketAddr::V4(SocketAddrV4::new(first, 9)))?;
    let local = SocketAddr::new(route.local_addr()?.ip(), socket.local_addr()?.port());

    let mut external = Vec::new();
    for (index, _) in (0_u8..).zip(server) {
        external.push(external_of(&socket, &server, index)?);
    }
    let mapping = match external.as_slice() {
        [a, b, c, _] if a == b && a == c => Behaviour::EndpointIndependent,
        [a, b, ..] if a == b => Behaviour::AddressDependent,
        _ => Behaviour::AddressAndPortDependent,
    };
    // A socket that spoke to endpoint 0 alone, or earlier packets would have opened the filter for the others.
    let fresh = client()?;
    let answers = ask(&fresh, &server, 0, 0b1110)?;
    let filtering = match (answers.contains_key(&1), answers.contains_key(&3)) {
        (_, true) => Behaviour::EndpointIndependent,
        (true, false) => Behaviour::AddressDependent,
        (false, false) => Behaviour::AddressAndPortDependent,
    };
    let preserves_port = external.iter().all(|seen| seen.port() == local.port());
    Ok(Report { local, mapping, filtering, preserves_port, hairpins: hairpins(&server)?, external })
}

fn client() -> Result<UdpSocket> {
    Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
}

/// Asks endpoint number `asked`, naming others that shall answer too, and returns what each saw.
///
/// A request that is sent again carries another transaction number, so that late answers are not mixed up.
fn ask(
    socket: &UdpSocket,
    server: &[SocketAddrV4],
    asked: u8,
    others: u8,
) -> Result<BTreeMap<u8, SocketAddr>> {
    let endpoint = server.get(usize::from(asked)).context("no such endpoint")?;
    let mut answers = BTreeMap::new();
    for attempt in 0..MAX_ATTEMPTS {
        let transaction = asked * MAX_ATTEMPTS + attempt;
        socket.send_to(&[transaction, others], endpoint)?;
        let mut deadline = Instant::now() + ANSWER_TIMEOUT;
        while let Some((packet, _)) = receive(socket, deadline)? {
            let Some(([answered, from], text)) = packet.split_first_chunk::<2>() else { continue };
            if *answered != transaction {
                continue;
            }
            answers.insert(*from, std::str::from_utf8(text).context("the answer is no text")?.parse()?);
            if *from == asked {
                deadline = if others == 0 { Instant::now() } else { Instant::now() + REORDERING };
            }
        }
        if answers.contains_key(&asked) {
            return Ok(answers);
        }
    }
    bail!("{endpoint} does not answer")
}

/// Returns the next packet, or `None` when none came before `deadline`.
fn receive(socket: &UdpSocket, deadline: Instant) -> Result<Option<(Vec<u8>, SocketAddr)>> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Ok(None);
    }
    socket.set_read_timeout(Some(remaining))?;
    let mut buffer = [0; 128];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Ok(Some((buffer.get(..length).unwrap_or_default().to_vec(), from))),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the external endpoint that endpoint number `asked` sees.
fn external_of(socket: &UdpSocket, server: &[SocketAddrV4], asked: u8) -> Result<SocketAddr> {
    ask(socket, server, asked, 0)?.remove(&asked).context("the server answered from elsewhere")
}

/// Tests whether one socket reaches another by its external endpoint, and is seen under its own external endpoint.
fn hairpins(server: &[SocketAddrV4]) -> Result<bool> {
    let (one, other) = (client()?, client()?);
    let (one_outside, other_outside) = (external_of(&one, server, 0)?, external_of(&other, server, 0)?);
    for _ in 0..3 {
        one.send_to(b"hairpin", other_outside)?;
        if let Some((packet, from)) = receive(&other, Instant::now() + REORDERING)? {
            return Ok(packet == b"hairpin" && from == one_outside);
        }
    }
    Ok(false)
}

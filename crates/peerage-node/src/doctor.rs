//! What a network lets through: small probes to the servers that a node knows, and what a running node has found out.
//!
//! Each probe is one or a few packets, and each result says what was sent and what came back, so that an administrator can check it. What is
//! heard here is believed by nobody: the answers of a captive portal or of an intercepting proxy are what is looked for.

mod issuer;
mod probe;
mod reply;
mod verdict;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use peerage_client::local::{NatMapping, Status};
use peerage_proto::lan::Interface;
use peerage_wire::id::to_hex;
use serde::Serialize;

use self::probe::{Heard, HttpsFault, Tcp};
use crate::carrier::Carrier;
use crate::connect::Connector;
use crate::data::DataDir;
use crate::lan::Lan;
use crate::mapping;
use crate::membership::Pending;
use crate::run::{RunError, operators};
use crate::store::Store;

/// The most servers that are probed: each costs some twenty packets, and more than four tell nothing new.
const MAX_SERVERS: usize = 4;

/// The ports that firewalls leave open most often, for HTTPS and HTTP.
const WEB_PORTS: [u16; 2] = [443, 80];

/// A clock that is off by more than this is worth a word, in milliseconds: what servers say has a resolution of one second.
const CLOCK_TOLERANCE_MS: u64 = 3_000;

/// What is examined.
#[derive(Clone, Debug)]
pub struct Patient {
    /// The servers that are to be reached.
    pub servers: Vec<SocketAddr>,
    /// How the node connects, with the proxy if there is one.
    pub connector: Connector,
    /// What the node of this computer says, if one runs.
    pub node: Option<Status>,
}

/// What came of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What keeps messages and tunnels from taking the best way, or that nothing does.
    pub cause: Cause,
    /// The same in a sentence.
    pub summary: String,
    /// What was looked at, in order.
    pub checks: Vec<Check>,
    /// What a firewall's administrator would have to allow; empty if nothing is missing.
    pub rules: Vec<Rule>,
}

/// What is in the way, the worst that explains the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing.
    None,
    /// UDP does not come back; TCP to the servers' own ports passes.
    UdpBlocked,
    /// Only the web's ports pass.
    OnlyWebPorts,
    /// Only port 80 passes.
    OnlyHttp,
    /// Only the proxy leads out.
    OnlyProxy,
    /// The proxy wants credentials that it was not given.
    ProxyCredentials,
    /// The proxy does not connect to the servers.
    ProxyRefuses,
    /// Somebody between here and the servers shows certificates of his own.
    TlsIntercepted,
    /// A page that wants a login answers in the servers' place.
    CaptivePortal,
    /// Nothing passes.
    Offline,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: Name,
    /// To which address, if to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What came of it.
    pub outcome: Outcome,
    /// What was sent and what came back, for people.
    pub evidence: String,
    /// How long it took until the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// Messages by UDP.
    Udp,
    /// A connection by TCP.
    Tcp,
    /// HTTPS with an operator.
    Https,
    /// Whether TLS is the server's own.
    Tls,
    /// HTTP without TLS.
    Http,
    /// Messages inside TLS.
    Messages,
    /// Messages in a WebSocket.
    Websocket,
    /// Messages in requests of HTTP and their answers.
    Requests,
    /// The proxy.
    Proxy,
    /// IP version 6.
    Ipv6,
    /// How the router translates addresses.
    Nat,
    /// Whether the router leads back what is sent to its own outer address.
    Hairpin,
    /// Whether the router opens a port when it is asked.
    PortMapping,
    /// Whether the clock is right.
    Clock,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It works.
    Passes,
    /// It does not.
    Blocked,
    /// It works with a restriction, or is not as it should be.
    Limited,
    /// There is none here, or nobody offers it.
    Absent,
    /// It could not be found out.
    Unknown,
}

/// One line for the firewall's administrator; always for connections from the inside to the outside, and what comes back on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// Where to.
    pub to: IpAddr,
    /// To which port.
    pub port: u16,
    /// What for, and what must not be done with it.
    pub why: &'static str,
}

impl Check {
    fn new(name: Name, address: Option<SocketAddr>, outcome: Outcome, evidence: impl Into<String>) -> Self {
        Self { name, address, outcome, evidence: evidence.into(), ms: None }
    }

    fn after(self, took: Duration) -> Self {
        Self { ms: u64::try_from(took.as_millis()).ok(), ..self }
    }
}

/// Returns the servers that the data directory of a node that does not run names: those of its membership, or of its token while it waits.
///
/// # Errors
/// If there is none, or a node uses it.
pub fn known_servers(data: &Path) -> Result<Vec<SocketAddr>, RunError> {
    let data = DataDir::open(data)?;
    let (_store, contents) = Store::open(&data.store_path())?;
    let known = operators(&contents);
    let pending = || Pending::load(&contents).and_then(|pending| pending.token.parse().ok());
    let awaited = |token: peerage_wire::token::JoinToken| token.addresses;
    Ok(if known.is_empty() { pending().map(awaited).unwrap_or_default() } else { known })
}

/// Examines the network; takes up to some ten seconds where packets vanish.
pub async fn examine(patient: &Patient) -> Report {
    let servers: Vec<SocketAddr> = patient.servers.iter().copied().take(MAX_SERVERS).collect();
    let interfaces = Lan::new().snapshot().await.unwrap_or_default();
    let (outside, mapping, hairpin) = tokio::join!(
        join_all(servers.iter().map(|server| examine_server(*server, &patient.connector))),
        port_mapping(patient, &interfaces),
        hairpin(patient.node.as_ref()),
    );
    let (checks, offsets): (Vec<_>, Vec<_>) = outside.into_iter().unzip();
    let mut checks: Vec<Check> = checks.into_iter().flatten().collect();
    checks.push(ipv6(&interfaces));
    checks.push(nat(patient.node.as_ref()));
    checks.push(hairpin);
    checks.extend(mapping);
    checks.push(clock(patient.node.as_ref(), offsets.into_iter().flatten().next()));
    verdict::judge(&servers, checks)
}

/// Probes one server. Returns what was found, and by how much this computer's clock is off by the server's.
async fn examine_server(server: SocketAddr, connector: &Connector) -> (Vec<Check>, Option<i64>) {
    let [https_port, http_port] = WEB_PORTS.map(|port| SocketAddr::new(server.ip(), port));
    let (udp, own, https, http, proxy) = tokio::join!(
        udp(server),
        own_port(server),
        web_port(https_port, server),
        plain_http(http_port, server),
        proxy(server, connector),
    );
    let (own, offset) = own;
    let mut checks = vec![udp];
    checks.extend(own);
    checks.extend(https);
    checks.extend(http);
    let (proxied, proxied_offset) = proxy;
    checks.extend(proxied);
    (checks, offset.or(proxied_offset))
}

async fn udp(server: SocketAddr) -> Check {
    let check = |outcome, evidence: String| Check::new(Name::Udp, Some(server), outcome, evidence);
    match probe::udp(server).await {
        Ok(took) => check(Outcome::Passes, "a datagram was answered".to_owned()).after(took),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => check(
            Outcome::Blocked,
            format!("{} datagrams were sent, none was answered", probe::UDP_TRIES.len()),
        ),
        Err(error) => check(Outcome::Blocked, format!("datagrams are refused on the way: {error}")),
    }
}

/// Connects to the port on which a server lets nodes join, and asks it over HTTPS.
async fn own_port(server: SocketAddr) -> (Vec<Check>, Option<i64>) {
    let (tcp, stream) = tcp(server).await;
    let Some(stream) = stream else { return (vec![tcp], None) };
    let (mut checks, offset) = https(server, probe::https(stream, server).await);
    checks.insert(0, tcp);
    checks.push(carried(&Connector::default(), (Carrier::Tls, server)).await);
    (checks, offset)
}

async fn tcp(address: SocketAddr) -> (Check, Option<tokio::net::TcpStream>) {
    let check = |outcome, evidence: String| Check::new(Name::Tcp, Some(address), outcome, evidence);
    match probe::tcp(address).await {
        Tcp::Open(stream, took) => (check(Outcome::Passes, "connected".to_owned()).after(took), Some(stream)),
        Tcp::Refused(took) => {
            let evidence = "refused, by the server or by a firewall that rejects".to_owned();
            (check(Outcome::Blocked, evidence).after(took), None)
        }
        Tcp::Silent => (check(Outcome::Blocked, "nothing came back".to_owned()), None),
        Tcp::Failed(error) => (check(Outcome::Blocked, format!("cannot connect: {error}")), None),
    }
}

/// Says what an operator's answer over HTTPS shows, also of who is in between.
fn https(server: SocketAddr, result: Result<(Heard, Duration), HttpsFault>) -> (Vec<Check>, Option<i64>) {
    let check = |name, outcome, evidence: String| Check::new(name, Some(server), outcome, evidence);
    let (heard, took) = match result {
        Ok(heard) => heard,
        Err(fault) => return (vec![check(Name::Https, Outcome::Blocked, fault.to_string())], None),
    };
    let issuer = heard.issuer.as_deref().unwrap_or("somebody unnamed");
    let certificate = to_hex(heard.certificate.get(..8).unwrap_or_default());
    let mut checks = Vec::new();
    if heard.is_operator {
        checks.push(check(Name::Https, Outcome::Passes, "an operator answered".to_owned()).after(took));
    } else if heard.is_portal {
        let evidence = format!("a page for browsers came back (HTTP {}): a captive portal", heard.status);
        checks.push(check(Name::Https, Outcome::Limited, evidence).after(took));
    } else {
        let evidence = format!("what answers is no operator (HTTP {})", heard.status);
        checks.push(check(Name::Https, Outcome::Absent, evidence).after(took));
    }
    checks.push(match heard.claimed {
        Some(claimed) if claimed == heard.certificate => {
            check(Name::Tls, Outcome::Passes, format!("the certificate {certificate}… is the server's own"))
        }
        Some(_) => check(
            Name::Tls,
            Outcome::Limited,
            format!("intercepted: the certificate {certificate}… is not the server's, but issued by {issuer}"),
        ),
        None => check(
            Name::Tls,
            Outcome::Unknown,
            format!("the certificate {certificate}… is issued by {issuer}; the server does not say which is its own"),
        ),
    });
    (checks, heard.clock_offset_ms)
}

/// Asks whether messages can be exchanged inside something where they do not pass by UDP.
async fn carried(connector: &Connector, (carrier, address): (Carrier, SocketAddr)) -> Check {
    let (name, inside) = match carrier {
        Carrier::Udp | Carrier::Tls => (Name::Messages, "inside TLS"),
        Carrier::Wss => (Name::Websocket, "in a WebSocket inside TLS"),
        Carrier::Ws => (Name::Websocket, "in a WebSocket without TLS"),
        Carrier::Https => (Name::Requests, "in requests of HTTP inside TLS"),
        Carrier::Http => (Name::Requests, "in requests of HTTP without TLS"),
    };
    let check = |outcome, evidence: String| Check::new(name, Some(address), outcome, evidence);
    match probe::carried(connector, (carrier, address)).await {
        Ok(took) => check(Outcome::Passes, format!("a message {inside} was answered")).after(took),
        Err(fault) => check(Outcome::Blocked, format!("{inside}: {fault}")),
    }
}

/// Tries the first of two carriers, and the second where the first does not pass.
async fn either(connector: &Connector, [first, second]: [Carrier; 2], address: SocketAddr) -> Vec<Check> {
    let check = carried(connector, (first, address)).await;
    if check.outcome == Outcome::Passes {
        return vec![check];
    }
    vec![check, carried(connector, (second, address)).await]
}

/// Connects to the port for HTTPS, unless it is the server's own, and asks for a WebSocket there, or else makes requests.
async fn web_port(address: SocketAddr, server: SocketAddr) -> Vec<Check> {
    let mut checks = Vec::new();
    if address != server {
        let (tcp, stream) = tcp(address).await;
        checks.push(tcp);
        if stream.is_none() {
            return checks;
        }
    }
    checks.extend(either(&Connector::default(), [Carrier::Wss, Carrier::Https], address).await);
    checks
}

/// Connects to the port for HTTP and asks in the clear, which shows captive portals; then for a WebSocket, or else makes requests.
async fn plain_http(address: SocketAddr, server: SocketAddr) -> Vec<Check> {
    let dialler = Connector::default();
    let carriers = || either(&dialler, [Carrier::Ws, Carrier::Http], address);
    if address == server {
        return carriers().await;
    }
    let (tcp, stream) = tcp(address).await;
    let Some(stream) = stream else { return vec![tcp] };
    let check = |outcome, evidence: String| Check::new(Name::Http, Some(address), outcome, evidence);
    let http = match probe::http(stream, address).await {
        Ok((answer, took)) if answer.is_portal() => {
            let place = answer.location().map_or_else(String::new, |place| format!(" to {place}"));
            let evidence =
                format!("a page for browsers came back (HTTP {}{place}): a captive portal", answer.status);
            check(Outcome::Limited, evidence).after(took)
        }
        Ok((answer, took)) => check(Outcome::Passes, format!("HTTP {} came back", answer.status)).after(took),
        Err(fault) => check(Outcome::Blocked, fault.to_string()),
    };
    [vec![tcp, http], carriers().await].concat()
}

/// Asks the proxy for the server, and the server through it.
async fn proxy(server: SocketAddr, connector: &Connector) -> (Vec<Check>, Option<i64>) {
    let Some((settings, _)) = connector.proxy() else { return (Vec::new(), None) };
    let check = |outcome, evidence: String| Check::new(Name::Proxy, Some(server), outcome, evidence);
    let name = format!("{} (from {})", settings.proxy, settings.source);
    if settings.exceptions.contain(server) {
        return (vec![check(Outcome::Absent, format!("{name} is not used for this address"))], None);
    }
    match probe::proxy(&settings.proxy, server).await {
        Ok((stream, took)) => {
            let (mut checks, offset) = https(server, probe::https(stream, server).await);
            checks.insert(0, check(Outcome::Passes, format!("{name} connects")).after(took));
            checks.push(carried(connector, (Carrier::Tls, server)).await);
            checks.extend(either(connector, [Carrier::Wss, Carrier::Https], server).await);
            (checks, offset)
        }
        Err(fault) => (vec![check(verdict::of_proxy(&fault), format!("{name}: {fault}"))], None),
    }
}

fn ipv6(interfaces: &[Interface]) -> Check {
    let is_global = |address: &IpAddr| match address {
        IpAddr::V6(v6) => v6.segments().first().is_some_and(|first| first & 0xe000 == 0x2000),
        IpAddr::V4(_) => false,
    };
    let up = interfaces.iter().filter(|interface| interface.up);
    let with_route =
        up.filter(|interface| interface.gateways.iter().any(|gateway| gateway.address.is_ipv6()));
    let mut own =
        with_route.flat_map(|interface| &interface.addresses).map(|own| own.address).filter(is_global);
    match own.next() {
        Some(address) => {
            Check::new(Name::Ipv6, None, Outcome::Passes, format!("{address} is global and has a router"))
        }
        None => {
            Check::new(Name::Ipv6, None, Outcome::Absent, "no interface has a global address and a router")
        }
    }
}

fn nat(node: Option<&Status>) -> Check {
    let check = |outcome, evidence: String| Check::new(Name::Nat, None, outcome, evidence);
    let Some(nat) = node.map(|status| &status.nat) else {
        return check(
            Outcome::Unknown,
            "the node finds it out while it runs; start it with `peerage up`".to_owned(),
        );
    };
    let seen = nat.observed.first().map_or_else(String::new, |seen| format!("; others see {seen}"));
    if nat.mapping == NatMapping::Unknown {
        return check(Outcome::Unknown, format!("it takes answers from two servers by UDP{seen}"));
    }
    let wide = if nat.wide_checks { "; many ports are tried where it must be" } else { "" };
    let (mapping, ports) = (nat.mapping, nat.ports);
    let evidence = format!("mapping {mapping}, ports {ports}, filtering {}{seen}{wide}", nat.filtering);
    let is_good = matches!(nat.mapping, NatMapping::None | NatMapping::EndpointIndependent);
    check(if is_good { Outcome::Passes } else { Outcome::Limited }, evidence)
}

/// Sends a datagram from another port to where others see the node, which answers if the router leads it back.
async fn hairpin(node: Option<&Status>) -> Check {
    let seen = node.filter(|status| status.nat.mapping != NatMapping::None);
    let Some(seen) = seen.and_then(|status| status.nat.observed.first()) else {
        return Check::new(Name::Hairpin, None, Outcome::Unknown, "no running node is seen through a router");
    };
    let check = |outcome, evidence: String| Check::new(Name::Hairpin, Some(*seen), outcome, evidence);
    match node.and_then(|status| status.nat.hairpinning) {
        Some(true) => return check(Outcome::Passes, "the node has tried it".to_owned()),
        Some(false) => {
            return check(Outcome::Absent, "the node has tried it, and nothing came back".to_owned());
        }
        None => {}
    }
    match probe::udp(*seen).await {
        Ok(took) => check(Outcome::Passes, "the node answered at its outer address".to_owned()).after(took),
        Err(_) => check(Outcome::Absent, "nothing comes back from the node's outer address".to_owned()),
    }
}

/// Asks the routers, unless the node does; gives back what they open.
async fn port_mapping(patient: &Patient, interfaces: &[Interface]) -> Vec<Check> {
    let check = |outcome, evidence: String| Check::new(Name::PortMapping, None, outcome, evidence);
    let asked = patient.node.iter().flat_map(|status| &status.port_mappings);
    let told: Vec<Check> = asked
        .map(|mapping| {
            let protocol = mapping.protocol.as_deref().map_or_else(String::new, |by| format!(" by {by}"));
            let why = mapping.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
            let is_held = mapping.state == peerage_client::local::PortMappingState::Held;
            let outcome = if is_held { Outcome::Passes } else { Outcome::Absent };
            check(outcome, format!("{} {}{protocol}{why}", mapping.router, mapping.state))
        })
        .collect();
    if !told.is_empty() {
        return told;
    }
    let asked = mapping::try_routers(interfaces).await;
    if asked.is_empty() {
        return vec![check(Outcome::Absent, "there is no router of a private network to ask".to_owned())];
    }
    let tried = asked.into_iter().map(|tried| match tried.granted {
        Ok(protocol) => {
            check(Outcome::Passes, format!("{} opens a port by {protocol}; given back", tried.router))
        }
        Err(why) => check(Outcome::Absent, format!("{}: {why} (PCP, NAT-PMP, UPnP)", tried.router)),
    });
    tried.collect()
}

fn clock(node: Option<&Status>, by_server: Option<i64>) -> Check {
    let by_node =
        node.filter(|status| status.clock.learned_from.is_some()).map(|status| status.clock.offset_ms);
    let check = |outcome, evidence: String| Check::new(Name::Clock, None, outcome, evidence);
    match by_node.or(by_server) {
        None => check(Outcome::Unknown, "no server has said what time it is".to_owned()),
        Some(offset) if offset.unsigned_abs() <= CLOCK_TOLERANCE_MS => {
            check(Outcome::Passes, format!("right within {} s", CLOCK_TOLERANCE_MS / 1_000))
        }
        Some(offset) => {
            let way = if offset > 0 { "slow" } else { "fast" };
            check(
                Outcome::Limited,
                format!("{} s {way}; Peerage goes by the network's time", offset.unsigned_abs() / 1_000),
            )
        }
    }
}

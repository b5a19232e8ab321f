//! `peerage status` and `peerage devices`.

use super::super_node;
use crate::{
    Context,
    args::Devices,
    failure::Result,
    output::{bytes, duration, list, now_ms, pairs, short, table, when, yes_no},
};
use peerage_client::local::{PortMapping, Proxy};
use peerage_client::{
    Client, Service,
    local::{Carrier, Device, Election, Head, Nat, NatFiltering, NatMapping, Operator, Status, Tunnel},
};
use serde::Serialize;

/// From when on a Head is too old to prove that a revocation would be known, in milliseconds.
const FRESH_HEAD_MS: u64 = 60_000;

/// What `status` shows: the node, and each tunnel that was opened from here.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    open_tunnels: Vec<Tunnel>,
}

pub(crate) async fn status(context: &Context) -> Result {
    let client = Client::new(&context.data);
    let shown = Shown { status: client.status().await?, open_tunnels: client.tunnels().await? };
    context.output.result(&shown, |shown| {
        let mut text = describe(&shown.status, now_ms());
        if !shown.open_tunnels.is_empty() {
            text.push_str("\n\n");
            text.push_str(&tunnels(&shown.open_tunnels));
        }
        text
    })
}

pub(crate) async fn devices(args: &Devices, context: &Context) -> Result {
    let client = Client::new(&context.data);
    let devices = if args.refresh { client.refresh_devices().await? } else { client.devices().await? };
    context.output.result(&devices, |devices| {
        let row = |device: &Device| {
            [
                device.name.clone(),
                device.kind.clone(),
                services(&device.services),
                device.state.to_string(),
                device.reachable_via.tunnel_nodes.to_string(),
                yes_no(device.reachable_via.local),
                yes_no(device.served_here),
            ]
        };
        let rows: Vec<_> = devices.iter().map(row).collect();
        let heads = ["DEVICE", "KIND", "SERVICES", "STATE", "NODES", "LOCAL", "SERVED HERE"];
        table(heads, &rows, "No devices are known. `peerage devices --refresh` asks the network.")
    })
}

/// Writes services as they are given on the command line.
pub(crate) fn services(services: &[Service]) -> String {
    list(services.iter().map(|service| {
        let flag = match (service.protocol, service.tls) {
            (peerage_client::Protocol::Udp, _) => "/udp",
            (peerage_client::Protocol::Tcp, true) => "/tls",
            (peerage_client::Protocol::Tcp, false) => "",
        };
        format!("{}={}{flag}", service.name, service.port)
    }))
}

fn describe(status: &Status, now_ms: u64) -> String {
    let node = &status.node;
    let domain = node
        .domain_name
        .clone()
        .map_or_else(|| node.domain.to_string(), |n| format!("{n} ({})", node.domain));
    let locations = status.locations.iter().map(|l| {
        let place =
            l.location.as_deref().map_or_else(|| "no location".to_owned(), |id| format!("location {id}"));
        let gateway = l.gateway_mac.as_deref().map_or_else(String::new, |mac| format!(", gateway {mac}"));
        format!("{} ({}) {}{gateway}, {place}", l.interface, l.kind, l.prefix)
    });
    let attachments = status
        .attachments
        .iter()
        .map(|a| format!("{} at {}, since {}", short(&a.node), a.address, when(a.since_at_ms, now_ms)));
    let discards =
        status.discards.iter().filter(|(_, count)| **count > 0).map(|(why, count)| format!("{why} {count}"));
    pairs(&[
        ("node", format!("{} ({})", node.name, node.id)),
        ("domain", domain),
        ("state", status.state.to_string()),
        ("roles", list(&node.roles)),
        ("version", node.version.clone()),
        ("listens on", list(&status.listen)),
        ("advertises", list(&status.advertised)),
        ("operators", lines(status.operators.iter().map(operator))),
        ("messages", lines(status.carriers.iter().map(carrier))),
        ("head", status.head.as_ref().map_or_else(|| "none yet".to_owned(), head)),
        ("clock", clock(status)),
        ("networks", lines(locations)),
        ("attached to", lines(attachments)),
        ("router", lines(status.port_mappings.iter().map(port_mapping))),
        ("proxy", status.proxy.as_ref().map_or_else(String::new, proxy)),
        ("seen from outside", nat(&status.nat)),
        ("devices", status.devices.to_string()),
        ("serves", list(&status.serves)),
        ("served at", lines(status.elections.iter().map(|place| election(place, &node.id, now_ms)))),
        ("tunnels", status.tunnels.to_string()),
        ("super-node", super_node::describe(&status.super_node)),
        ("membership", format!("ends {} unless renewed", when(status.records.node_expires_at_ms, now_ms))),
        ("discarded", list(discards)),
        ("warnings", status.warnings.join("\n")),
    ])
}

fn carrier(carrier: &Carrier) -> String {
    let why = carrier.why.map_or_else(String::new, |why| format!(", because {why}"));
    format!("to {} by {}{why}", short(&carrier.node), carrier.carrier)
}

fn port_mapping(mapping: &PortMapping) -> String {
    let protocol = mapping.protocol.as_deref().map_or_else(String::new, |protocol| format!(" by {protocol}"));
    let ports = [("UDP", mapping.udp), ("TCP", mapping.tcp)].into_iter();
    let ports = ports.filter_map(|(name, address)| Some(format!(", {name} {}", address?)));
    let why = mapping.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    format!("{} {}{protocol}{}{why}", mapping.router, mapping.state, ports.collect::<String>())
}

fn proxy(proxy: &Proxy) -> String {
    let why = proxy.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    format!("{} (from {}) {}{why}", proxy.address, proxy.source, proxy.state)
}

fn nat(nat: &Nat) -> String {
    if nat.observed.is_empty() {
        return "nobody has told yet".to_owned();
    }
    let seen = format!("at {}", list(&nat.observed));
    let filtering = if nat.filtering == NatFiltering::Unknown {
        String::new()
    } else {
        format!(", filtering {}", nat.filtering)
    };
    let hairpinning = match nat.hairpinning {
        None => "",
        Some(true) => ", hairpinning",
        Some(false) => ", no hairpinning",
    };
    let seen_as = if nat.mapping == NatMapping::Unknown {
        seen
    } else if nat.mapping == NatMapping::None {
        format!("{seen}, without translation")
    } else {
        format!("{seen}, mapping {}, ports {}", nat.mapping, nat.ports)
    };
    let wide = if nat.wide_checks { ", trying many ports where it must" } else { "" };
    format!("{seen_as}{filtering}{hairpinning}{wide}")
}

/// Writes who serves the devices at a location.
fn election(election: &Election, own: &str, now_ms: u64) -> String {
    let place = election.interface.as_ref().map_or_else(String::new, |name| format!("{name}, "));
    let serving = election.serving.iter().map(|elected| {
        let who = if elected.node == own { "this computer".to_owned() } else { short(&elected.node) };
        format!("{who} (elected {})", when(elected.since_at_ms, now_ms))
    });
    let serving = match (serving.collect::<Vec<_>>(), election.hears_others) {
        (some, true) if !some.is_empty() => some.join(" and "),
        (_, true) => "nobody yet".to_owned(),
        (none, false) if none.is_empty() => "others, as far as announced; none is heard here".to_owned(),
        (some, false) => format!("{}; no other is heard here", some.join(" and ")),
    };
    let note = if election.stands_in { ", because those elected do not serve" } else { "" };
    let among = match election.candidates.len() {
        0 => String::new(),
        count => format!(", of {count} named nodes"),
    };
    format!("{place}location {}: by {serving}{note}{among}", election.location)
}

fn operator(operator: &Operator) -> String {
    let answer = operator
        .last_answer_ms_ago
        .map_or_else(|| "no answer yet".to_owned(), |ago| format!("answered {} ago", duration(ago)));
    let rtt = operator.rtt_ms.map_or_else(String::new, |ms| format!(", round trip {ms} ms"));
    format!("{} at {}, {answer}{rtt}", short(&operator.id), operator.address)
}

fn head(head: &Head) -> String {
    let age = if head.age_ms > FRESH_HEAD_MS {
        format!("revocation freshness: {}", duration(head.age_ms))
    } else {
        format!("fresh, {} old", duration(head.age_ms))
    };
    format!("{age}; number {}, epoch {}, {} revoked", head.sequence, head.epoch, head.revocations)
}

fn clock(status: &Status) -> String {
    let Some(source) = &status.clock.learned_from else {
        return "not compared with the network yet".to_owned();
    };
    let offset = status.clock.offset_ms;
    let state = match offset {
        0 => "right".to_owned(),
        1.. => format!("{} slow", duration(offset.unsigned_abs())),
        _ => format!("{} fast", duration(offset.unsigned_abs())),
    };
    format!("{state}, learned from {}", short(source))
}

fn tunnels(tunnels: &[Tunnel]) -> String {
    let row = |tunnel: &Tunnel| {
        let path =
            tunnel.path.as_ref().map_or_else(String::new, |path| format!("{} {}", path.kind, path.remote));
        [
            format!("{}:{}", tunnel.device, tunnel.service),
            tunnel.local.to_string(),
            tunnel.state.to_string(),
            path,
            bytes(tunnel.bytes_sent),
            bytes(tunnel.bytes_received),
            tunnel.connections.to_string(),
            tunnel.privacy.to_string(),
        ]
    };
    let rows: Vec<_> = tunnels.iter().map(row).collect();
    table(
        ["TUNNEL", "LOCAL PORT", "STATE", "PATH", "SENT", "RECEIVED", "CONNECTIONS", "WHO CAN READ"],
        &rows,
        "",
    )
}

fn lines(values: impl IntoIterator<Item = String>) -> String {
    values.into_iter().collect::<Vec<_>>().join("\n")
}

//! `peerage explain`: each decision on the way to a device, from what the node says of itself.

use crate::{
    Context,
    args::Explain,
    failure::{Failure, Result},
    output::{duration, list, pairs, short},
};
use peerage_client::{
    Client,
    local::{
        Carrier, CarrierKind, Device, NatMapping, NodeState, Path, PathKind, ProxyState, Status, Tunnel,
    },
};
use serde::Serialize;

/// What is shown.
#[derive(Debug, Serialize)]
struct Explanation {
    device: Device,
    /// In the order in which a tunnel comes about.
    decisions: Vec<Decision>,
    /// The open tunnels to it.
    tunnels: Vec<Tunnel>,
}

/// One decision.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Decision {
    about: &'static str,
    /// Whether it helps the way along.
    favourable: bool,
    why: String,
}

pub(crate) async fn run(args: &Explain, context: &Context) -> Result {
    let client = Client::new(&context.data);
    let status = client.status().await?;
    // As new as the network has it, if somebody answers.
    let devices = match client.refresh_devices().await {
        Ok(devices) => devices,
        Err(_unanswered) => client.devices().await?,
    };
    let is_meant = |device: &Device| device.name == args.device || device.id == args.device;
    let Some(device) = devices.into_iter().find(is_meant) else {
        return Err(Failure::new(format!("there is no device \"{}\" that this node knows", args.device))
            .why("`peerage devices --refresh` lists them; a new one is known within a minute."));
    };
    let mut tunnels = client.tunnels().await?;
    tunnels.retain(|tunnel| tunnel.device == device.name);
    let decisions = decisions(&status, &device, &tunnels);
    let explanation = Explanation { device, decisions, tunnels };
    context.output.result(&explanation, describe)
}

fn describe(explanation: &Explanation) -> String {
    let marked = |decision: &Decision| {
        let mark = if decision.favourable { "+" } else { "-" };
        format!("{mark} {}", decision.why)
    };
    let rows: Vec<_> =
        explanation.decisions.iter().map(|decision| (decision.about, marked(decision))).collect();
    let device = &explanation.device;
    format!("{} ({}) is {}.\n\n{}", device.name, device.kind, device.state, pairs(&rows))
}

/// Returns what was decided, and why.
fn decisions(status: &Status, device: &Device, tunnels: &[Tunnel]) -> Vec<Decision> {
    let paths: Vec<&Path> = tunnels.iter().filter_map(|tunnel| tunnel.path.as_ref()).collect();
    let mut decisions = vec![membership(status), revocations(status)];
    decisions.extend(status.carriers.first().map(messages));
    decisions.extend(proxy(status));
    decisions.push(local(status, device));
    if !device.reachable_via.local {
        decisions.push(tunnel_nodes(device));
    }
    decisions.push(path(&paths));
    decisions.extend(paths.iter().copied().find_map(|path| better_path(path, status)));
    decisions
}

fn decision(about: &'static str, favourable: bool, why: impl Into<String>) -> Decision {
    Decision { about, favourable, why: why.into() }
}

fn membership(status: &Status) -> Decision {
    let answered = status.operators.iter().filter_map(|operator| operator.last_answer_ms_ago).min();
    let answered = answered.map_or_else(
        || "no operator has answered since it started; `peerage doctor` finds out why".to_owned(),
        |ago| format!("an operator answered {} ago", duration(ago)),
    );
    decision(
        "membership",
        status.state == NodeState::Online,
        format!("the node is {}: {answered}", status.state),
    )
}

fn revocations(status: &Status) -> Decision {
    let stale = status.warnings.iter().find(|warning| warning.starts_with("revocation freshness"));
    match (&status.head, stale) {
        (None, _) => {
            decision("revocations", false, "nobody has stated them yet, and no tunnel is opened before")
        }
        (Some(_), Some(warning)) => decision("revocations", false, warning.clone()),
        (Some(head), None) => {
            decision("revocations", true, format!("known as they were {} ago", duration(head.age_ms)))
        }
    }
}

fn messages(carrier: &Carrier) -> Decision {
    let why = carrier.why.map_or_else(String::new, |why| format!(", because {why}"));
    let to = short(&carrier.node);
    let text = format!("what is said to {to} goes by {} to {}{why}", carrier.carrier, carrier.address);
    decision("messages", carrier.carrier == CarrierKind::Udp, text)
}

fn proxy(status: &Status) -> Option<Decision> {
    let proxy = status.proxy.as_ref()?;
    let why = proxy.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    let text = format!(
        "connections by TCP go through {} (from {}), which {}{why}",
        proxy.address, proxy.source, proxy.state
    );
    Some(decision("proxy", proxy.state != ProxyState::Fails, text))
}

fn local(status: &Status, device: &Device) -> Decision {
    let here = list(status.locations.iter().map(|location| &location.interface));
    if device.reachable_via.local {
        let text = format!(
            "this computer is where the device is ({here}): it is used without a tunnel if it proves to be the one"
        );
        decision("local", true, text)
    } else if here.is_empty() {
        decision(
            "local",
            false,
            "this computer is on no network with a router, so that it is at no place; a tunnel is needed",
        )
    } else {
        decision(
            "local",
            false,
            format!("none of this computer's places ({here}) is the device's; a tunnel is needed"),
        )
    }
}

fn tunnel_nodes(device: &Device) -> Decision {
    match device.reachable_via.tunnel_nodes {
        0 => decision(
            "tunnel-nodes",
            false,
            "no computer at the device's place has announced that it serves; is one there switched on and `peerage up`?",
        ),
        1 => decision("tunnel-nodes", true, "one has announced itself at the device's place"),
        some => {
            decision("tunnel-nodes", true, format!("{some} have announced themselves at the device's place"))
        }
    }
}

fn path(paths: &[&Path]) -> Decision {
    let [path, ..] = paths else {
        return decision(
            "path",
            false,
            "no tunnel is open; `peerage connect` opens one, and then its path is explained",
        );
    };
    let via = path.tunnel_node.as_deref().map_or_else(String::new, |node| format!(" to {}", short(node)));
    decision("path", true, format!("{}{via} at {}", path.kind, path.remote))
}

/// Says why a path is not better than it is; nothing of one that cannot be.
fn better_path(path: &Path, status: &Status) -> Option<Decision> {
    let why = match path.kind {
        PathKind::Relayed => match status.nat.mapping {
            NatMapping::AddressDependent | NatMapping::AddressAndPortDependent => {
                "this side's router gives every destination another port, so that a hole can be made only if the other side's does \
                 not; port mapping here or there would help"
            }
            NatMapping::Unknown if status.nat.observed.is_empty() => {
                "nobody has answered by UDP, without which no direct path is found; `peerage doctor` says what a firewall would have \
                 to allow"
            }
            NatMapping::None | NatMapping::EndpointIndependent | NatMapping::Unknown => {
                "this side's router would let a direct path be; the other side's does not, or the checks are still under way"
            }
            _ => return None,
        },
        PathKind::Mapped | PathKind::Punched => {
            "it is direct; only on one network, or without routers in between, would it be shorter"
        }
        PathKind::Local | PathKind::Direct | PathKind::Unknown | _ => return None,
    };
    Some(decision("better path", path.kind != PathKind::Relayed, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_client::local::{CarrierReason, Nat, NatPorts, Proxy};
    use serde_json::json;

    fn status() -> Status {
        serde_json::from_value(json!({
            "node": { "id": "n1", "domain": 7, "name": "pc", "roles": ["user"], "version": "1" },
            "state": "online",
            "operators": [{ "id": "o1", "address": "45.0.0.2:4240", "last_answer_ms_ago": 2000 }],
            "clock": { "offset_ms": 0 },
            "locations": [],
            "head": { "age_ms": 3000, "sequence": 1, "epoch": 1, "revocations": 0 },
            "attachments": [], "devices": 1, "serves": [], "tunnels": 0, "listen": [],
            "records": { "node_expires_at_ms": 1 }, "discards": {}, "warnings": []
        }))
        .unwrap()
    }

    fn device(tunnel_nodes: u32, local: bool) -> Device {
        serde_json::from_value(json!({
            "id": "d1", "name": "hp", "kind": "printer", "services": [], "state": "reachable", "served_here": false,
            "reachable_via": { "tunnel_nodes": tunnel_nodes, "local": local }
        }))
        .unwrap()
    }

    fn path(kind: PathKind) -> Path {
        Path { kind, remote: "45.0.0.2:4240".parse().unwrap(), tunnel_node: Some("t1".to_owned()) }
    }

    fn unfavourable(status: &Status, device: &Device) -> Vec<&'static str> {
        decisions(status, device, &[]).iter().filter(|it| !it.favourable).map(|it| it.about).collect()
    }

    #[test]
    fn what_stands_in_the_way_is_marked() {
        assert_eq!(unfavourable(&status(), &device(2, false)), ["local", "path"]);
        assert_eq!(unfavourable(&status(), &device(0, false)), ["local", "tunnel-nodes", "path"]);
        assert_eq!(unfavourable(&status(), &device(0, true)), ["path"]);
        let proxy = Proxy {
            address: "web:3128".to_owned(),
            source: "HTTPS_PROXY".to_owned(),
            state: ProxyState::Fails,
            why: Some("it wants a user name and password (407)".to_owned()),
        };
        let offline = Status { state: NodeState::Joining, head: None, proxy: Some(proxy), ..status() };
        let marked = unfavourable(&offline, &device(1, false));
        assert_eq!(marked, ["membership", "revocations", "proxy", "local", "path"]);
    }

    #[test]
    fn what_carries_messages_is_told_with_the_reason() {
        let carrier = Carrier {
            node: "o1".to_owned(),
            address: "45.0.0.2:80".parse().unwrap(),
            carrier: CarrierKind::Ws,
            why: Some(CarrierReason::UdpSilent),
        };
        let status = Status { carriers: vec![carrier], ..status() };
        let all = decisions(&status, &device(1, false), &[]);
        let found = all.iter().find(|decision| decision.about == "messages").unwrap();
        assert_eq!(
            found.why,
            "what is said to o1 goes by WebSocket to 45.0.0.2:80, because UDP is not answered"
        );
        assert!(!found.favourable);
    }

    #[test]
    fn a_relayed_path_says_why_it_is_not_direct() {
        let seen = |mapping| {
            let observed = vec!["45.1.0.2:7000".parse().unwrap()];
            Status { nat: Nat { mapping, ports: NatPorts::Other, observed, ..Nat::default() }, ..status() }
        };
        for (status, word) in [
            (status(), "nobody has answered by UDP"),
            (seen(NatMapping::AddressAndPortDependent), "another port"),
            (seen(NatMapping::EndpointIndependent), "the other side's does not"),
        ] {
            let why = better_path(&path(PathKind::Relayed), &status).unwrap();
            assert!(why.why.contains(word) && !why.favourable, "{}", why.why);
        }
        assert_eq!(better_path(&path(PathKind::Direct), &status()), None);
        assert!(better_path(&path(PathKind::Punched), &status()).unwrap().favourable);
    }
}

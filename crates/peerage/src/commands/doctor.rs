//! `peerage doctor`.

use crate::{
    Context,
    args::Doctor,
    failure::{Failure, Result},
    output::table,
    proxy,
};
use peerage_client::{Client, Error};
use peerage_node::doctor::{self, Name, Outcome, Patient, Report};

pub(crate) async fn run(args: Doctor, context: &Context) -> Result {
    let node = match Client::new(&context.data).status().await {
        Ok(status) => Some(status),
        Err(Error::NodeNotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let servers = match &node {
        _ if !args.operators.is_empty() => args.operators,
        Some(status) => status.operators.iter().map(|operator| operator.address).collect(),
        None => doctor::known_servers(&context.data).unwrap_or_default(),
    };
    if servers.is_empty() {
        return Err(Failure::usage("there is no server that could be reached")
            .why("Join a network first, or name an operator with --operator IP:PORT."));
    }
    let patient = Patient { servers, connector: proxy::connector(&context.config.network)?, node };
    let report = doctor::examine(&patient).await;
    context.output.result(&report, describe)
}

fn describe(report: &Report) -> String {
    let rows = report.checks.iter().map(|check| {
        [
            name(check.name).to_owned(),
            check.address.map_or_else(String::new, |address| address.to_string()),
            outcome(check.outcome).to_owned(),
            check.ms.map_or_else(String::new, |ms| format!("{ms} ms")),
            check.evidence.clone(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut text = table(["CHECK", "ADDRESS", "RESULT", "TIME", "WHAT WAS SEEN"], &rows, "");
    text.push_str("\n\n");
    text.push_str(&report.summary);
    if !report.rules.is_empty() {
        text.push_str("\n\nFor the administrator of the firewall, from the inside to the outside:");
        for rule in &report.rules {
            let protocol = rule.protocol.to_uppercase();
            text.push_str(&format!("\n  allow {protocol} to {} port {}: {}", rule.to, rule.port, rule.why));
        }
    }
    text
}

const fn name(name: Name) -> &'static str {
    match name {
        Name::Udp => "UDP",
        Name::Tcp => "TCP",
        Name::Https => "HTTPS",
        Name::Tls => "TLS",
        Name::Http => "HTTP",
        Name::Messages => "messages",
        Name::Websocket => "WebSocket",
        Name::Requests => "requests",
        Name::Proxy => "proxy",
        Name::Ipv6 => "IPv6",
        Name::Nat => "NAT",
        Name::Hairpin => "hairpin",
        Name::PortMapping => "port mapping",
        Name::Clock => "clock",
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passes => "works",
        Outcome::Blocked => "blocked",
        Outcome::Limited => "limited",
        Outcome::Absent => "none",
        Outcome::Unknown => "unknown",
    }
}

//! The commands that administer: `domain`, `token`, `device`, `node`, `segment`, and a part of `super`.

use crate::{
    Context,
    args::{
        DeviceAdd, DeviceCommand, DomainCommand, InDomain, NodeCommand, SegmentCommand, SuperAdminCommand,
        TokenCommand,
    },
    commands::show::services,
    failure::{Failure, Result},
    output::{bytes, duration, list, now_ms, pairs, short, table, when, yes_no},
};
use peerage_client::{
    AdminClient, Role,
    admin::{
        AddDevice, AddDomain, AddToken, Device, Domain, NewToken, Node, Push, QuarantineSuperNode,
        RevokeDomain, RevokeNode, RevokeToken, Segment, SegmentHolder, SegmentMap, Spied, SuperNode, Token,
    },
};

pub(crate) async fn domain(command: DomainCommand, context: &Context) -> Result {
    let client = AdminClient::from_data_dir(&context.data)?;
    match command {
        DomainCommand::Add { name, vendor } => {
            let domain = client.add_domain(&AddDomain { name, vendor }).await?;
            context.output.result(&domain, describe_domain)
        }
        DomainCommand::Show { domain } => {
            let domain = client.domain(&domain).await?;
            context.output.result(&domain, describe_domain)
        }
        DomainCommand::Revoke { domain, reason } => {
            let domain = client.revoke_domain(&domain, &RevokeDomain { reason: reason.into() }).await?;
            context.output.result(&domain, describe_domain)
        }
        DomainCommand::List => {
            let domains = client.domains().await?;
            context.output.result(&domains, |domains| {
                let row = |d: &Domain| {
                    [d.name.clone(), d.id.to_string(), d.nodes.to_string(), d.devices.to_string()]
                };
                let rows: Vec<_> = domains.iter().map(row).collect();
                table(
                    ["DOMAIN", "NUMBER", "NODES", "DEVICES"],
                    &rows,
                    "No domains. Make one: peerage domain add NAME",
                )
            })
        }
    }
}

pub(crate) async fn token(command: TokenCommand, context: &Context) -> Result {
    match command {
        TokenCommand::Add { domain, uses, expires, roles, approval } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let request = AddToken {
                uses: Some(uses),
                expires_s: Some(expires.as_secs()),
                roles: Some(roles.into_iter().map(Role::from).collect()),
                approval,
            };
            let token = client.add_token(&domain, &request).await?;
            context.output.result(&token, describe_new_token)
        }
        TokenCommand::List { domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let tokens = client.tokens(&domain).await?;
            context.output.result(&tokens, |tokens| tokens_table(tokens))
        }
        TokenCommand::Revoke { token, domain, with_nodes } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let revoked = client.revoke_token(&domain, &token, &RevokeToken { with_nodes }).await?;
            context.output.result(&revoked, |revoked| {
                let nodes = revoked.revoked_nodes.len();
                format!("Token {} is closed; {nodes} nodes were revoked with it.", revoked.token.id)
            })
        }
    }
}

pub(crate) async fn device(command: DeviceCommand, context: &Context) -> Result {
    match command {
        DeviceCommand::Add(args) => {
            let DeviceAdd { domain, name, kind, mac, via, services, tls_pins, allowed } = args;
            let (client, domain) = client_and_domain(domain, context)?;
            let allowed = (!allowed.is_empty()).then_some(allowed);
            let request =
                AddDevice { name, kind: kind.unwrap_or_default(), mac, via, services, tls_pins, allowed };
            let device = client.add_device(&domain, &request).await?;
            context.output.result(&device, describe_device)
        }
        DeviceCommand::List { domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let devices = client.devices(&domain).await?;
            context.output.result(&devices, |devices| devices_table(devices))
        }
        DeviceCommand::Remove { device, domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let device = client.remove_device(&domain, &device).await?;
            context.output.result(&device, |device| format!("{} is removed.", device.name))
        }
        DeviceCommand::Push { device, domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let pushed = client.push(&domain, &Push { device }).await?;
            context.output.result(&pushed, |pushed| {
                format!("Sent {} device records to {} holders.", pushed.devices, pushed.holders)
            })
        }
    }
}

pub(crate) async fn node(command: NodeCommand, context: &Context) -> Result {
    match command {
        NodeCommand::List { domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let nodes = client.nodes(&domain).await?;
            context.output.result(&nodes, |nodes| nodes_table(nodes))
        }
        NodeCommand::Show { node, domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let node = client.node(&domain, &node).await?;
            context.output.result(&node, describe_node)
        }
        NodeCommand::Approve { node, domain } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let node = client.approve_node(&domain, &node).await?;
            context.output.result(&node, describe_node)
        }
        NodeCommand::Revoke { node, domain, reason } => {
            let (client, domain) = client_and_domain(domain, context)?;
            let node = client.revoke_node(&domain, &node, &RevokeNode { reason: reason.into() }).await?;
            context.output.result(&node, describe_node)
        }
    }
}

pub(crate) async fn super_node(command: SuperAdminCommand, context: &Context) -> Result {
    let client = AdminClient::from_data_dir(&context.data)?;
    match command {
        SuperAdminCommand::List => {
            let super_nodes = client.super_nodes().await?;
            context.output.result(&super_nodes, |super_nodes| super_nodes_text(super_nodes))
        }
        SuperAdminCommand::Quarantine { node, why } => {
            let super_node = client.quarantine(&node, &QuarantineSuperNode { why }).await?;
            context.output.result(&super_node, describe_super_node)
        }
        SuperAdminCommand::Release { node } => {
            let super_node = client.release(&node).await?;
            context.output.result(&super_node, describe_super_node)
        }
    }
}

pub(crate) async fn segment(command: SegmentCommand, context: &Context) -> Result {
    let SegmentCommand::Map = command;
    let map = AdminClient::from_data_dir(&context.data)?.segments().await?;
    context.output.result(&map, segments_table)
}

fn client_and_domain(given: InDomain, context: &Context) -> Result<(AdminClient, String)> {
    let Some(domain) = given.domain.or_else(|| context.config.admin.domain.clone()) else {
        return Err(Failure::usage("there is no domain").why(
            "Name one with --domain, PEERAGE_DOMAIN, or `domain` under [admin] in the configuration file.",
        ));
    };
    Ok((AdminClient::from_data_dir(&context.data)?, domain))
}

fn describe_domain(domain: &Domain) -> String {
    let refusals: Vec<_> =
        domain.refusals.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    pairs(&[
        ("domain", domain.name.clone()),
        ("number", domain.id.to_string()),
        ("made", when(domain.created_at_ms, now_ms())),
        ("nodes", domain.nodes.to_string()),
        ("devices", domain.devices.to_string()),
        ("key epoch", domain.epoch.to_string()),
        ("vendor", if domain.vendor { yes_no(true) } else { String::new() }),
        ("revoked", domain.revoked_at_ms.map_or_else(String::new, |at| when(at, now_ms()))),
        ("refused", refusals.join("\n")),
    ])
}

fn describe_new_token(new: &NewToken) -> String {
    let info = &new.info;
    let facts = pairs(&[
        ("token", info.id.clone()),
        ("uses", info.uses.to_string()),
        ("expires", when(info.expires_at_ms, now_ms())),
        ("roles", list(&info.roles)),
        ("approval", if info.approval { "needed".to_owned() } else { String::new() }),
    ]);
    format!(
        "{facts}\n\nOn the computer that is to join (the token is not shown again):\n\n  peerage join {}",
        new.token
    )
}

fn tokens_table(tokens: &[Token]) -> String {
    let row = |token: &Token| {
        [
            token.id.clone(),
            token.state.to_string(),
            format!("{}/{}", token.used, token.uses),
            when(token.expires_at_ms, now_ms()),
            list(&token.roles),
            yes_no(token.approval),
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    table(["TOKEN", "STATE", "USED", "EXPIRES", "ROLES", "APPROVAL"], &rows, "No tokens.")
}

fn describe_device(device: &Device) -> String {
    let allowed =
        device.allowed.as_ref().map_or_else(|| "every node of the domain".to_owned(), |ids| ids.join("\n"));
    pairs(&[
        ("device", device.name.clone()),
        ("id", device.id.clone()),
        ("kind", device.kind.clone()),
        ("MAC", device.mac.clone()),
        ("services", services(&device.services)),
        ("TLS pins", device.tls_pins.join("\n")),
        ("allowed", allowed),
        ("state", device.state.to_string()),
        ("locations", device.sites.to_string()),
        ("record", format!("version {}, ends {}", device.version, when(device.expires_at_ms, now_ms()))),
    ])
}

fn devices_table(devices: &[Device]) -> String {
    let row = |device: &Device| {
        [
            device.name.clone(),
            device.kind.clone(),
            device.mac.clone(),
            services(&device.services),
            device.state.to_string(),
            device.sites.to_string(),
        ]
    };
    let rows: Vec<_> = devices.iter().map(row).collect();
    table(["DEVICE", "KIND", "MAC", "SERVICES", "STATE", "LOCATIONS"], &rows, "No devices.")
}

fn describe_node(node: &Node) -> String {
    let ago = |at: Option<u64>| at.map_or_else(String::new, |at| when(at, now_ms()));
    pairs(&[
        ("node", node.name.clone()),
        ("id", node.id.clone()),
        ("fingerprint", node.fingerprint.clone()),
        ("state", node.state.to_string()),
        ("roles", list(&node.roles)),
        ("spy", if node.spy { "yes, the operator's own".to_owned() } else { String::new() }),
        ("token", node.token.clone()),
        ("joined", when(node.joined_at_ms, now_ms())),
        ("ends", when(node.expires_at_ms, now_ms())),
        ("last seen", ago(node.last_seen_at_ms)),
        ("revoked", ago(node.revoked_at_ms)),
        ("reason", node.revocation_reason.map_or_else(String::new, |reason| reason.to_string())),
    ])
}

fn nodes_table(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        [
            node.name.clone(),
            short(&node.id),
            if node.spy { format!("{}, spy", node.state) } else { node.state.to_string() },
            list(&node.roles),
            node.last_seen_at_ms.map_or_else(|| "never".to_owned(), |at| when(at, now_ms())),
            when(node.expires_at_ms, now_ms()),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(["NODE", "ID", "STATE", "ROLES", "LAST SEEN", "ENDS"], &rows, "No nodes.")
}

fn describe_super_node(super_node: &SuperNode) -> String {
    let quarantine = super_node.quarantine.as_ref().map_or_else(String::new, |quarantine| {
        let since = format!("since {}", when(quarantine.since_at_ms, now_ms()));
        std::iter::once(since).chain(quarantine.evidence.iter().cloned()).collect::<Vec<_>>().join("\n")
    });
    pairs(&[
        ("node", super_node.name.clone()),
        ("id", super_node.id.clone()),
        ("domain", super_node.domain.clone()),
        ("vendor", if super_node.vendor { yes_no(true) } else { String::new() }),
        ("state", super_node.state.to_string()),
        ("places", super_node.range.as_ref().map_or_else(String::new, ToString::to_string)),
        ("addresses", list(&super_node.addresses)),
        ("last heard", last_heard(super_node)),
        ("holds", holds(super_node)),
        ("relays", relays(super_node)),
        ("spies", spied(&super_node.spied)),
        ("quarantine", quarantine),
    ])
}

fn last_heard(super_node: &SuperNode) -> String {
    super_node.last_heard_ms_ago.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", duration(ms)))
}

fn spied(spied: &Spied) -> String {
    if spied.visits == 0 {
        return String::new();
    }
    let visits = format!("{} visits", spied.visits);
    std::iter::once(visits).chain(spied.evidence.iter().cloned()).collect::<Vec<_>>().join("\n")
}

fn holds(super_node: &SuperNode) -> String {
    let load = &super_node.load;
    let held = format!("{} records, {} of {}", load.records, bytes(load.held_bytes), bytes(load.max_bytes));
    if load.lacking == 0 { held } else { format!("{held}; no room for all of {} domains", load.lacking) }
}

fn relays(super_node: &SuperNode) -> String {
    format!("{} tunnels, {}", super_node.load.relayed_tunnels, bytes(super_node.load.relayed_bytes))
}

/// A table, and below it the evidence against those who are kept away.
fn super_nodes_text(super_nodes: &[SuperNode]) -> String {
    let row = |super_node: &SuperNode| {
        [
            super_node.name.clone(),
            short(&super_node.id),
            super_node.domain.clone(),
            super_node.state.to_string(),
            super_node.range.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string),
            list(&super_node.addresses),
            last_heard(super_node),
            holds(super_node),
            relays(super_node),
        ]
    };
    let rows: Vec<_> = super_nodes.iter().map(row).collect();
    let heads = ["NODE", "ID", "DOMAIN", "STATE", "PLACES", "ADDRESSES", "LAST HEARD", "HOLDS", "RELAYS"];
    let mut text = table(heads, &rows, "No super-nodes. Nodes become some with: peerage super on");
    for super_node in super_nodes.iter().filter(|super_node| !super_node.spied.evidence.is_empty()) {
        text.push_str(&format!("\n\n{} was not right in the last visits of spies", super_node.name));
        super_node.spied.evidence.iter().for_each(|line| text.push_str(&format!("\n  {line}")));
    }
    for super_node in super_nodes {
        let Some(quarantine) = &super_node.quarantine else { continue };
        text.push_str(&format!(
            "\n\n{} is in quarantine since {}",
            super_node.name,
            when(quarantine.since_at_ms, now_ms())
        ));
        quarantine.evidence.iter().for_each(|line| text.push_str(&format!("\n  {line}")));
    }
    text
}

fn segments_table(map: &SegmentMap) -> String {
    let holder = |holder: &SegmentHolder| format!("{} ({})", holder.name, holder.domain);
    let row = |segment: &Segment| {
        [
            segment.range.from.clone(),
            segment.range.to.clone(),
            yes_no(segment.stands_in),
            list(segment.holders.iter().map(holder)),
        ]
    };
    let rows: Vec<_> = map.segments.iter().map(row).collect();
    table(["FROM", "TO", "OPERATOR", "HOLDERS"], &rows, "No segments.")
}

//! The commands that administer: `domain`, `token`, `device`, `node`.

use crate::{
    Context,
    args::{DeviceAdd, DeviceCommand, DomainCommand, InDomain, NodeCommand, TokenCommand},
    commands::show::services,
    failure::{Failure, Result},
    output::{list, now_ms, pairs, short, table, when, yes_no},
};
use peerage_client::{
    AdminClient, Role,
    admin::{
        AddDevice, AddDomain, AddToken, Device, Domain, NewToken, Node, Push, RevokeNode, RevokeToken, Token,
    },
};

pub(crate) async fn domain(command: DomainCommand, context: &Context) -> Result {
    let client = AdminClient::from_data_dir(&context.data)?;
    match command {
        DomainCommand::Add { name } => {
            let domain = client.add_domain(&AddDomain { name }).await?;
            context.output.result(&domain, describe_domain)
        }
        DomainCommand::Show { domain } => {
            let domain = client.domain(&domain).await?;
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

fn client_and_domain(given: InDomain, context: &Context) -> Result<(AdminClient, String)> {
    let Some(domain) = given.domain.or_else(|| context.config.admin.domain.clone()) else {
        return Err(Failure::usage("there is no domain").why(
            "Name one with --domain, PEERAGE_DOMAIN, or `domain` under [admin] in the configuration file.",
        ));
    };
    Ok((AdminClient::from_data_dir(&context.data)?, domain))
}

fn describe_domain(domain: &Domain) -> String {
    pairs(&[
        ("domain", domain.name.clone()),
        ("number", domain.id.to_string()),
        ("made", when(domain.created_at_ms, now_ms())),
        ("nodes", domain.nodes.to_string()),
        ("devices", domain.devices.to_string()),
        ("key epoch", domain.epoch.to_string()),
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
            node.state.to_string(),
            list(&node.roles),
            node.last_seen_at_ms.map_or_else(|| "never".to_owned(), |at| when(at, now_ms())),
            when(node.expires_at_ms, now_ms()),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(["NODE", "ID", "STATE", "ROLES", "LAST SEEN", "ENDS"], &rows, "No nodes.")
}

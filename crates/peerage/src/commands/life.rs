//! The life of a node: `join`, `up`, `down`, `leave`.

use crate::{
    Context,
    args::{Join, Up},
    config::first,
    failure::{Failure, Result},
    output::{list, now_ms, pairs, when},
    parse, proxy,
    service::{self, JoinOptions, Joined, NodeOptions, NodeReady, OneMachine},
    signals::EndSignals,
};
use peerage_client::{Client, Error, Role};
use serde::Serialize;
use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

/// The largest token that is read from a file or standard input, in bytes; a token is a few hundred.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// How long `down` waits for the node to end. Longer than a node takes to hand over what it holds as a super-node (25 s),
/// and to close its tunnels and its database.
const DOWN_TIMEOUT: Duration = Duration::from_secs(55);

pub(crate) async fn join(args: Join, context: Context) -> Result {
    let Context { data, config, output } = context;
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) if token == "-" => read_token(io::stdin().lock(), "standard input")?,
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            let file =
                fs::File::open(path).map_err(|error| unreadable(&path.display().to_string(), &error))?;
            read_token(file, &path.display().to_string())?
        }
        (None, None) => return Err(Failure::usage("there is no join token")),
    };
    let name = match args.name.or(config.node.name) {
        Some(name) => parse::name(&name)
            .map_err(|error| Failure::usage(format!("\"{name}\" cannot be a name")).why(error.to_string()))?,
        None => host_name(),
    };
    let connector = proxy::connector(&config.network)?;
    let joined = service::join(JoinOptions { data: data.clone(), token, name, connector }).await?;
    output.result(&joined, |joined| describe(joined, &data))
}

fn describe(joined: &Joined, data: &Path) -> String {
    let domain = joined.domain_name.clone().unwrap_or_else(|| joined.domain.to_string());
    let next = if joined.pending {
        "have the operator approve the fingerprint, then peerage up".to_owned()
    } else {
        format!("peerage up --data {}", data.display())
    };
    pairs(&[
        (if joined.already { "already in" } else { "joined" }, domain),
        ("name", joined.name.clone()),
        ("node", joined.id.clone()),
        ("fingerprint", joined.fingerprint.clone()),
        ("roles", list(&joined.roles)),
        ("expires", joined.expires_at_ms.map_or_else(String::new, |at| when(at, now_ms()))),
        ("next", next),
    ])
}

pub(crate) async fn leave(context: Context) -> Result {
    #[derive(Serialize)]
    struct Left {
        left: bool,
    }
    let client = Client::new(&context.data);
    match end_node(&client).await {
        Ok(()) | Err(Error::NodeNotRunning { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    service::leave(context.data).await?;
    context.output.result(&Left { left: true }, |_| {
        "This computer has left the domain; its keys are erased.".to_owned()
    })
}

pub(crate) async fn up(args: Up, context: Context) -> Result {
    #[derive(Serialize)]
    struct Ready<'a> {
        event: &'static str,
        #[serde(flatten)]
        ready: &'a NodeReady,
    }
    let Context { data, config, output } = context;
    let carriers = config.node.carriers();
    let roles = first(args.roles, config.node.roles);
    let options = NodeOptions {
        data,
        listen: args.listen.or(config.node.listen),
        also_listen: config.node.also_listen,
        advertise: first(args.advertise, config.node.advertise),
        roles: (!roles.is_empty()).then(|| roles.into_iter().map(Role::from).collect()),
        lending: config.super_node.lending(),
        circumstances: config.super_node.circumstances(),
        lan: config.lan.settings(),
        port_mapping: config.node.port_mapping.unwrap_or(true),
        wide_checks: config.node.wide_checks.unwrap_or(false),
        carriers,
        one_machine: args.one_machine.map(|place| OneMachine { place, neighbours: args.neighbours }),
        connector: proxy::connector(&config.network)?,
    };
    let mut signals = EndSignals::catch()?;
    let mut told = Ok(());
    let ready = |ready: NodeReady| {
        told = output.result(&Ready { event: "ready", ready: &ready }, |_| {
            format!("ready: {} ({}) on {}", ready.name, ready.id, list(&ready.listen))
        });
    };
    service::run_node(options, ready, async move { signals.received().await }).await?;
    told
}

pub(crate) async fn down(context: &Context) -> Result {
    #[derive(Serialize)]
    struct Ended {
        ended: bool,
    }
    end_node(&Client::new(&context.data)).await?;
    context.output.result(&Ended { ended: true }, |_| "The node has ended.".to_owned())
}

/// Tells the node to end, and waits until it has.
async fn end_node(client: &Client) -> std::result::Result<(), Error> {
    // The stream of events ends with the node. Without one, when all places are taken, the order to end must do.
    let events = match client.events().await {
        Ok(events) => Some(events),
        Err(Error::Problem(_)) => None,
        Err(error) => return Err(error),
    };
    client.shutdown().await?;
    if let Some(mut events) = events {
        let ended = async { while let Some(Ok(_)) = events.next().await {} };
        if tokio::time::timeout(DOWN_TIMEOUT, ended).await.is_err() {
            return Err(Error::TimedOut { seconds: DOWN_TIMEOUT.as_secs() });
        }
    }
    // It answers no more a moment before it lets go of the directory, which the next command may want.
    let free = service::until_free(client.data());
    let waited = tokio::time::timeout(DOWN_TIMEOUT, free).await;
    waited.map_err(|_| Error::TimedOut { seconds: DOWN_TIMEOUT.as_secs() })
}

fn read_token(source: impl io::Read, name: &str) -> Result<String> {
    let mut text = String::new();
    source.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(|error| unreadable(name, &error))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::new(format!("there is no join token in {name}")));
    }
    Ok(token.to_owned())
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read the join token from {name}")).why(error.to_string())
}

/// Makes a name of the computer's host name, which may have capitals and dots.
fn host_name() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    to_name(&host)
}

fn to_name(host: &str) -> String {
    let first_label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String = first_label
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(63)
        .collect();
    let name = plain.trim_matches('-');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_name_becomes_a_name() {
        for (host, name) in
            [("Front_Desk.acme.example", "front-desk"), ("", "node"), ("---", "node"), ("büro", "b-ro")]
        {
            assert_eq!(to_name(host), name);
        }
        let long = to_name(&"x".repeat(300));
        assert!(parse::name(&long).is_ok());
    }

    #[test]
    fn a_token_is_read_without_the_line_end_and_not_without_end() {
        assert_eq!(read_token(&b" token\n"[..], "x").unwrap(), "token");
        assert!(read_token(&b" \n"[..], "the file").unwrap_err().to_text().contains("the file"));
        let endless = read_token(io::repeat(b'a'), "x").unwrap();
        assert_eq!(endless.len() as u64, MAX_TOKEN_BYTES);
    }
}

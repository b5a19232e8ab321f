//! `peerage operator`.

use crate::{
    Context,
    args::{OperatorCommand, OperatorInit, OperatorRun},
    config::{OperatorConfig, first},
    failure::{Failure, Result},
    output::{list, pairs},
    service::{self, InitOptions, OperatorOptions, OperatorReady},
    signals::EndSignals,
};
use peerage_node::relay::Caps;
use peerage_operator::{MAX_SPY_ADDRESSES, RelayConfig, SpyConfig};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

pub(crate) async fn run(command: OperatorCommand, context: Context) -> Result {
    match command {
        OperatorCommand::Init(args) => init(args, context).await,
        OperatorCommand::Run(args) => serve(args, context).await,
    }
}

async fn init(args: OperatorInit, context: Context) -> Result {
    let Context { data, config, output } = context;
    let Some(listen) = args.addresses.listen.or(config.operator.listen) else {
        return Err(Failure::usage("there is no address to listen on")
            .why("Give one with --listen, such as --listen 0.0.0.0:4433."));
    };
    let certificate = match (args.certificate, args.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => certificate_of(config.operator.certificate, config.operator.key)?,
    };
    let advertise = first(args.addresses.advertise, config.operator.advertise);
    let options = InitOptions { data: data.clone(), listen, advertise, certificate };
    let made = service::init_operator(options).await?;
    output.result(&made, |made| {
        pairs(&[
            ("operator", made.id.clone()),
            ("network", made.network.clone()),
            ("listens on", made.listen.to_string()),
            ("advertises", list(&made.advertised)),
            ("data", data.display().to_string()),
            ("next", format!("peerage operator run --data {}", data.display())),
        ])
    })
}

async fn serve(args: OperatorRun, context: Context) -> Result {
    #[derive(Serialize)]
    struct Ready<'a> {
        event: &'static str,
        #[serde(flatten)]
        ready: &'a OperatorReady,
    }
    let Context { data, config, output } = context;
    let (relay, spies) = (relay(&args, &config.operator), spies(&args, &config.operator)?);
    let OperatorConfig { listen, also_listen, advertise, admin_listen, certificate, key, .. } =
        config.operator;
    let options = OperatorOptions {
        data,
        also_listen,
        listen: args.addresses.listen.or(listen),
        advertise: first(args.addresses.advertise, advertise),
        admin_listen: args.admin_listen.or(admin_listen),
        certificate: certificate_of(certificate, key)?,
        relay,
        spies,
    };
    if let Some(address) = options.admin_listen.filter(|address| !address.ip().is_loopback()) {
        return Err(Failure::usage(format!("the admin API cannot listen on {address}"))
            .why("It has no encryption of its own: choose a loopback address, such as 127.0.0.1:0."));
    }
    let mut signals = EndSignals::catch()?;
    let mut told = Ok(());
    let ready = |ready: OperatorReady| {
        told = output.result(&Ready { event: "ready", ready: &ready }, |_| {
            format!("ready: operator {} on {}, admin API on {}", ready.id, list(&ready.listen), ready.admin)
        });
    };
    service::run_operator(options, ready, async move { signals.received().await }).await?;
    told
}

/// Merges what the command line and the file say about relaying.
fn relay(args: &OperatorRun, config: &OperatorConfig) -> RelayConfig {
    let RelayConfig { caps, tunnels } = config.relay();
    let caps = Caps {
        bytes_per_second: args.relay_rate.or(caps.bytes_per_second),
        bytes_per_day: args.relay_daily.or(caps.bytes_per_day),
    };
    let flag = args.relay_tunnels.and_then(|most| usize::try_from(most).ok());
    RelayConfig { caps, tunnels: flag.unwrap_or(tunnels) }
}

/// Merges what the command line and the file say about spies.
fn spies(args: &OperatorRun, config: &OperatorConfig) -> Result<SpyConfig> {
    let default = SpyConfig::default();
    let flag = if args.no_spies { Some(Duration::ZERO) } else { args.spy_interval };
    let interval = flag.or_else(|| config.spy_interval()).unwrap_or(default.interval);
    let addresses = first(args.spy_addresses.clone(), config.spy_addresses.clone());
    if addresses.len() > MAX_SPY_ADDRESSES {
        return Err(Failure::usage(format!("there are {} addresses for spies", addresses.len()))
            .why(format!("At most {MAX_SPY_ADDRESSES} are used; name fewer.")));
    }
    Ok(SpyConfig { interval, addresses })
}

fn certificate_of(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<(PathBuf, PathBuf)>> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(Failure::usage("the configuration file has only one of `certificate` and `key`")),
    }
}

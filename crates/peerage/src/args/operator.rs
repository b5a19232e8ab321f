//! The command line of an operator.

use crate::parse;
use clap::{Args, Subcommand, ValueHint};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Make the keys, the ledger and the certificate of a new operator
    Init(OperatorInit),
    /// Run the operator until it is told to end
    Run(OperatorRun),
}

#[derive(Args, Debug)]
pub(crate) struct OperatorInit {
    #[command(flatten)]
    pub(crate) addresses: OperatorAddresses,
    /// Certificate chain (PEM) for the port where nodes join; without it one is made
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    pub(crate) certificate: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "certificate", value_hint = ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct OperatorRun {
    #[command(flatten)]
    pub(crate) addresses: OperatorAddresses,
    /// Loopback address of the admin API; without it any free port of 127.0.0.1
    #[arg(long, env = "PEERAGE_OPERATOR_ADMIN_LISTEN", hide_env_values = true, value_name = "IP:PORT")]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Most bytes a second that it relays while there are too few super-nodes, as in 12MB/s
    #[arg(long, value_name = "RATE", value_parser = parse::rate)]
    pub(crate) relay_rate: Option<u64>,
    /// Most bytes that it relays in 24 hours, as in 200GB
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) relay_daily: Option<u64>,
    /// Most pairs of nodes whose tunnels it relays at once; 0 relays none
    #[arg(long, value_name = "N")]
    pub(crate) relay_tunnels: Option<u32>,
    /// Mean time between two visits of the operator's spies to one super-node, as in 15m
    #[arg(long, value_name = "TIME", value_parser = parse::duration, conflicts_with = "no_spies")]
    pub(crate) spy_interval: Option<Duration>,
    /// Send no spies to super-nodes, and make none
    #[arg(long)]
    pub(crate) no_spies: bool,
    /// Address of this computer from which spies come, best not one of the operator's own; may be repeated
    #[arg(long = "spy-address", value_name = "IP")]
    pub(crate) spy_addresses: Vec<IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct OperatorAddresses {
    /// Address for messages (UDP) and joining nodes (TCP), the same port for both; port 0: any
    #[arg(long, env = "PEERAGE_OPERATOR_LISTEN", hide_env_values = true, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address under which others reach it, if not the one it listens on; may be repeated
    #[arg(
        long,
        env = "PEERAGE_OPERATOR_ADVERTISE",
        hide_env_values = true,
        value_name = "IP:PORT",
        value_delimiter = ','
    )]
    pub(crate) advertise: Vec<SocketAddr>,
}

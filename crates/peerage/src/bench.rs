//! `peerage bench`: how fast it is on this machine, always beside a reference of the same run.
//!
//! All that is measured is this very program as separate processes on loopback addresses, started with the commands that a user would
//! give; only the load, and what it is compared with, are parts of the bench itself. Reference and subject take turns, so that what
//! else the machine does disturbs both alike, and what counts is the median of their ratios.

mod agree;
mod apart;
mod crowd;
mod ledger;
mod machine;
mod many;
mod messages;
mod network;
mod operator;
mod other;
mod pairs;
mod paths;
mod peers;
mod report;
mod rest;
mod scp;
mod ssh;
mod strangers;
mod table;
mod tcp;
mod thesis;
mod tunnel;
mod udp;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{failure::Result, output::Output};

/// Members that look up at the same time: enough that none waits for its own answer.
const LOOKUP_PEERS: usize = 64;

#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// What is measured
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Sealed Pings that the operator answers, against a plain echo
    Messages {
        #[command(flatten)]
        how: How,
        /// How many members ask, each from a port of its own
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        peers: u32,
    },
    /// Look-ups in the operator's table, against Pings
    Lookups {
        #[command(flatten)]
        how: How,
        /// How many members' records the operator holds
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
        records: u32,
    },
    /// Bytes through a direct tunnel, against two plain hops that copy
    Tunnel(How),
    /// Bytes through a relay, against the direct tunnel
    Relay(Apart),
    /// Bytes over QUIC on a UDP path, against plain hops over TCP
    Punched {
        #[command(flatten)]
        apart: Apart,
        /// Where dumbpipe is, to be measured in the same turns
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Time to the first byte through a tunnel on a standing link, against the same hops
    Open(How),
    /// Many open tunnels: how fast they open, what memory each takes, and whether all still work
    Tunnels {
        #[command(flatten)]
        how: How,
        /// How many are to be open at once; each takes a descriptor here, and every thousand a user's node
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// Through the operator's relay, in a namespace whose firewall leaves nothing else
        #[arg(long)]
        relayed: bool,
        /// Between how many pairs of nodes; the relay has room for just these
        #[arg(long, value_name = "N", default_value_t = 1_024, requires = "relayed", value_parser = clap::value_parser!(u32).range(1..=2_000))]
        pairs: u32,
        /// This is the process in the network namespace
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Records on disk and in memory, against plain writes
    Table {
        #[command(flatten)]
        how: How,
        /// How many records there are
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
        records: u32,
    },
    /// Computers that join, against plain writes, and members that ask for their domain's Head, against Pings
    Operator(How),
    /// A node with nothing to do: how soon it is ready, what it occupies, how much time it takes
    Rest(How),
    /// The direct tunnel, against those of other programs that are installed: socat, bore, rathole, ssh, dumbpipe
    Peers {
        #[command(flatten)]
        how: How,
        /// Where to look for them first, before the search path
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// What the thesis measured in 2013, with its figures beside
    Thesis {
        #[command(flatten)]
        how: How,
        /// A build of this program without optimisation, to be compared with this one
        #[arg(long, value_name = "PROGRAM")]
        debug_build: Option<PathBuf>,
    },
    /// What other processes of a bench do
    #[command(hide = true, subcommand)]
    Part(Part),
}

/// How long and how often.
#[derive(Args, Clone, Copy, Debug)]
struct How {
    /// How often reference and subject take turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// How long each turn takes, about, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
}

/// The same, where two nodes are kept apart.
#[derive(Args, Clone, Copy, Debug)]
struct Apart {
    #[command(flatten)]
    how: How,
    /// This is the process in the network namespace
    #[arg(long, hide = true)]
    inside: bool,
}

impl How {
    const fn runs(&self) -> u32 {
        self.runs
    }

    const fn length(&self) -> Duration {
        Duration::from_millis(self.milliseconds())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be between 0 and 3,600 when it was read"
    )]
    const fn milliseconds(&self) -> u64 {
        (self.seconds * 1e3) as u64
    }

    /// Returns whether only the bench itself is tried.
    const fn is_instant(&self) -> bool {
        self.milliseconds() < 100
    }
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.0..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("it must be 0 to 3600".to_owned()) }
}

/// What other processes of a bench do.
#[derive(Debug, Subcommand)]
enum Part {
    /// Be a device that takes, gives and echoes bytes
    Device,
    /// Answer datagrams with themselves
    Echo,
    /// Ask an operator from another network namespace
    Apart(How),
    /// Pass connections on, plainly
    Hop { target: SocketAddr },
}

/// Says where a part listens.
#[derive(Serialize)]
struct Ready {
    listen: SocketAddr,
}

/// Runs a bench; called before any runtime exists.
pub(crate) fn run(args: &Bench, output: Output) -> Result {
    let report = match &args.what {
        What::Messages { how, peers } => messages::messages(how, *peers as usize)?,
        What::Lookups { how, records } => messages::lookups(how, LOOKUP_PEERS, *records)?,
        What::Tunnel(how) => tunnel::tunnel(how)?,
        What::Relay(apart) | What::Punched { apart, .. } if !apart.inside => return go_inside(),
        What::Tunnels { relayed: true, inside: false, .. } => return go_inside(),
        What::Relay(Apart { how, .. }) => paths::relay(how)?,
        What::Punched { apart, programs } => paths::punched(&apart.how, programs.as_deref())?,
        What::Open(how) => tunnel::open(how)?,
        What::Tunnels { how, count, relayed: true, pairs, .. } => pairs::tunnels(how, *count, *pairs)?,
        What::Tunnels { how, count, .. } => many::tunnels(how, *count)?,
        What::Table { how, records } => table::table(how, *records)?,
        What::Operator(how) => operator::operator(how)?,
        What::Rest(how) => rest::rest(how)?,
        What::Peers { how, programs } => peers::peers(how, programs.as_deref())?,
        What::Thesis { how, debug_build } => thesis::thesis(how, debug_build.as_deref())?,
        What::Part(part) => return Ok(serve(part, output)?),
    };
    output.result(&report, report::Report::to_text)
}

/// Runs this bench in a namespace.
fn go_inside() -> Result {
    let status = paths::go_inside()?;
    // The process inside has said what there is to say.
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

fn serve(part: &Part, output: Output) -> anyhow::Result<()> {
    let unheard = |_| anyhow::anyhow!("nobody listens");
    let ready = |listen| output.json(&Ready { listen }).map_err(unheard);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match part {
        Part::Echo => udp::echo(ready),
        Part::Apart(how) => output.json(&apart::inside(*how)?).map_err(unheard),
        Part::Device => runtime.block_on(tcp::device(ready)),
        Part::Hop { target } => runtime.block_on(tcp::hop(*target, ready)),
    }
}

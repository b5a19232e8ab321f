//! The command line.

mod operator;

pub(crate) use self::operator::{OperatorCommand, OperatorInit, OperatorRun};
use crate::parse::{self, Target};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use peerage_client::{Role, Service, admin::RevocationReason};
use peerage_wire::id::Mac;
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Reaches registered devices on private networks from anywhere, without network configuration.
#[derive(Debug, Parser)]
#[command(
    name = "peerage",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 it worked, 1 it failed, 2 the command or the configuration is wrong.\n\
                  Results go to standard output, logs and errors to standard error.\n\
                  A flag goes before its environment variable, that before the configuration file."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Debug)]
pub(crate) struct Globals {
    /// Directory with keys, records and the socket of the node or operator
    ///
    /// Without it: the directory in PEERAGE_DATA for a node, in PEERAGE_OPERATOR_DATA for an operator, else
    /// `peerage/node` or `peerage/operator` in the directory for state (XDG_STATE_HOME, or ~/.local/state).
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Global options")]
    pub(crate) data: Option<PathBuf>,
    /// Configuration file; without it `peerage.toml` in the data directory, if there is one
    #[arg(long, global = true, env = "PEERAGE_CONFIG", hide_env_values = true, value_name = "FILE",
        value_hint = ValueHint::FilePath, help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Write the result as JSON, an object or array on one line
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,peerage_node=debug`
    #[arg(
        long,
        global = true,
        env = "PEERAGE_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    pub(crate) log: Option<String>,
    /// How to write logs
    #[arg(
        long,
        global = true,
        env = "PEERAGE_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) log_format: Option<LogFormat>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole network on this machine and explain it
    Demo(Demo),
    /// Create and run an operator
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Manage domains at the operator
    #[command(subcommand)]
    Domain(DomainCommand),
    /// Manage join tokens at the operator
    #[command(subcommand)]
    Token(TokenCommand),
    /// Manage devices at the operator
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Manage nodes at the operator
    #[command(subcommand)]
    Node(NodeCommand),
    /// Lend this computer to the network as a super-node, and manage super-nodes at the operator
    #[command(subcommand)]
    Super(SuperCommand),
    /// Show at the operator who holds which part of the table
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// Join this computer to a domain
    Join(Join),
    /// Leave the domain and erase this computer's keys
    Leave,
    /// Run the node of this computer until it is told to end
    Up(Up),
    /// End the node that runs on this computer
    Down,
    /// Show how the node is
    Status,
    /// Find out what this network lets through, and what its administrator would have to allow
    ///
    /// It needs no running node. Each server gets some twenty packets; where packets vanish it takes up to ten seconds.
    Doctor(Doctor),
    /// Explain each decision on the way from here to a device
    Explain(Explain),
    /// List the devices of the domain
    Devices(Devices),
    /// Open a local port that leads to a device, until Ctrl-C
    Connect(Connect),
    /// Measure on this computer how fast Peerage is, beside a reference
    Bench(crate::bench::Bench),
    /// Write a completion script for a shell
    Completions(Completions),
    /// Write the manual
    Man(Man),
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Transfer and verify data on each kind of path, then end
    #[arg(long)]
    pub(crate) once: bool,
    /// Use this computer's loopback interface alone, even where networks could be simulated
    #[arg(long)]
    pub(crate) loopback: bool,
    /// What a program of the demonstration itself does
    #[command(subcommand)]
    pub(crate) part: Option<crate::demo::Part>,
}

/// Which domain a command is about.
#[derive(Args, Debug)]
pub(crate) struct InDomain {
    /// Name or number of the domain
    #[arg(long, env = "PEERAGE_DOMAIN", hide_env_values = true, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// Make a domain
    Add {
        /// Name, unique at this operator: a-z, 0-9 and -
        #[arg(value_parser = parse::name)]
        name: String,
        /// Take the machines in it for the network vendor's own, of which each part of the table is to have one
        #[arg(long)]
        vendor: bool,
    },
    /// List the domains
    List,
    /// Show one domain, and what super-nodes have refused to its members
    Show {
        /// Name or number
        domain: String,
    },
    /// Exclude a whole domain for good; nobody answers its members any more
    Revoke {
        /// Name or number
        domain: String,
        /// Why
        #[arg(long, value_name = "REASON", default_value = "unspecified")]
        reason: ReasonName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token and show it, this once
    Add {
        #[command(flatten)]
        domain: InDomain,
        /// How many nodes may join with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is good, as in 12h or 7d
        #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = parse::duration)]
        expires: Duration,
        /// What the nodes may do; may be repeated
        #[arg(long = "role", value_name = "ROLE", value_delimiter = ',', default_values = ["user", "tunnel"])]
        roles: Vec<RoleName>,
        /// Let each node that joins wait until it is approved
        #[arg(long)]
        approval: bool,
    },
    /// List the join tokens of a domain
    List {
        #[command(flatten)]
        domain: InDomain,
    },
    /// Close a join token
    Revoke {
        /// Id of the token, as `token list` shows it
        token: String,
        #[command(flatten)]
        domain: InDomain,
        /// Revoke the nodes that joined with it as well
        #[arg(long)]
        with_nodes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Register a device
    Add(DeviceAdd),
    /// List the devices of a domain
    List {
        #[command(flatten)]
        domain: InDomain,
    },
    /// Remove a device; its tunnels are closed
    Remove {
        /// Name or id
        device: String,
        #[command(flatten)]
        domain: InDomain,
    },
    /// Send device records to those who hold them now
    Push {
        /// Name or id; without it all devices of the domain
        device: Option<String>,
        #[command(flatten)]
        domain: InDomain,
    },
}

#[derive(Args, Debug)]
pub(crate) struct DeviceAdd {
    #[command(flatten)]
    pub(crate) domain: InDomain,
    /// Name, unique in the domain: a-z, 0-9 and -
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    pub(crate) name: String,
    /// What it is, such as printer or camera
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// MAC address
    #[arg(long, value_name = "MAC", value_parser = parse::mac)]
    pub(crate) mac: String,
    /// Node that sees the device now, from which its location is taken; without it the device waits for a node
    /// that reports it
    #[arg(long, value_name = "NODE")]
    pub(crate) via: Option<String>,
    /// What of it may be reached, as in ipp=631, snmp=161/udp or https=443/tls; may be repeated
    #[arg(long = "service", value_name = "NAME=PORT", required = true, value_parser = parse::service)]
    pub(crate) services: Vec<Service>,
    /// SHA-256 fingerprint of the TLS certificate that it shows; may be repeated
    #[arg(long = "tls-pin", value_name = "SHA256", value_parser = parse::pin)]
    pub(crate) tls_pins: Vec<String>,
    /// Id of a node that may use it; may be repeated; without it every node of the domain may
    #[arg(long = "allow", value_name = "NODE")]
    pub(crate) allowed: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes of a domain
    List {
        #[command(flatten)]
        domain: InDomain,
    },
    /// Show one node
    Show {
        /// Id, the beginning of one, or a name
        node: String,
        #[command(flatten)]
        domain: InDomain,
    },
    /// Let a node in that waits for approval
    Approve {
        /// Id, the beginning of one, or a name
        node: String,
        #[command(flatten)]
        domain: InDomain,
    },
    /// Revoke a node; it and its tunnels are out within a minute
    Revoke {
        /// Id, the beginning of one, or a name
        node: String,
        #[command(flatten)]
        domain: InDomain,
        /// Why
        #[arg(long, value_name = "REASON", default_value = "unspecified")]
        reason: ReasonName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SuperCommand {
    /// Lend a part of this computer: it holds records for others and relays between them, if the operator permits it
    ///
    /// It is remembered until `super off`. A limit that is not given stays as it was.
    On(SuperOn),
    /// Hand over what others hold here, and lend nothing any more
    Off,
    /// Show what this computer lends, and what it has given
    Status,
    #[command(flatten)]
    Admin(SuperAdminCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SuperAdminCommand {
    /// List at the operator the super-nodes of all domains
    List,
    /// Keep a super-node away from everybody, at the operator
    Quarantine {
        /// Id, the beginning of one, or a name
        node: String,
        /// Why, for those who look at it later
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        why: String,
    },
    /// Let a super-node serve again that was kept away, at the operator
    Release {
        /// Id, the beginning of one, or a name
        node: String,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum SegmentCommand {
    /// Show the parts of the table, their holders, and where the operator stands in
    Map,
}

#[derive(Args, Debug)]
pub(crate) struct SuperOn {
    /// Most memory, and disk, for the records of others, as in 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) max_memory: Option<u64>,
    /// Most pairs of nodes whose tunnels are relayed at once; 0 relays none
    #[arg(long, value_name = "N")]
    pub(crate) max_tunnels: Option<u32>,
    /// Most bytes a second that are relayed, as in 10MB/s
    #[arg(long, value_name = "RATE", value_parser = parse::rate)]
    pub(crate) max_rate: Option<u64>,
    /// Most bytes that are relayed in 24 hours, as in 20GB
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) max_daily: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Join {
    /// The join token, or - to read it from standard input, so that it is not seen in the list of processes
    #[arg(required_unless_present = "token_file")]
    pub(crate) token: Option<String>,
    /// File with the join token
    #[arg(long, value_name = "FILE", conflicts_with = "token", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// Name of this computer in the domain; without it its host name
    #[arg(long, env = "PEERAGE_NAME", hide_env_values = true, value_name = "NAME", value_parser = parse::name)]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Address for messages (UDP) and tunnels (TCP), the same port for both; port 0: any
    #[arg(long, env = "PEERAGE_LISTEN", hide_env_values = true, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address under which others reach it, such as a port that the router forwards; may be repeated
    #[arg(
        long,
        env = "PEERAGE_ADVERTISE",
        hide_env_values = true,
        value_name = "IP:PORT",
        value_delimiter = ','
    )]
    pub(crate) advertise: Vec<SocketAddr>,
    /// Role to have, if the operator permits it; may be repeated; without it user and tunnel. To be a super-node takes
    /// --role super or `peerage super on`
    #[arg(
        long = "role",
        env = "PEERAGE_ROLES",
        hide_env_values = true,
        value_name = "ROLE",
        value_delimiter = ','
    )]
    pub(crate) roles: Vec<RoleName>,
    /// Take the whole network to be on this computer, and this node to be at the place of this name
    #[arg(long, hide = true, value_name = "PLACE")]
    pub(crate) one_machine: Option<String>,
    /// With --one-machine: where a device at this place is
    #[arg(long = "neighbour", hide = true, value_name = "MAC=IP", requires = "one_machine",
        value_parser = parse::neighbour)]
    pub(crate) neighbours: Vec<(Mac, IpAddr)>,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Operator to reach, rather than those of the network that this computer has joined; may be repeated
    #[arg(long = "operator", value_name = "IP:PORT")]
    pub(crate) operators: Vec<SocketAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// Name or id of the device
    pub(crate) device: String,
}

#[derive(Args, Debug)]
pub(crate) struct Devices {
    /// Ask the network now, rather than show what is known
    #[arg(long)]
    pub(crate) refresh: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Connect {
    /// Name of the device, and of a service if it has several
    #[arg(value_name = "DEVICE[:SERVICE]", value_parser = parse::target)]
    pub(crate) target: Target,
    /// Local address to listen on; without it any free port of 127.0.0.1
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Allow an address that other computers can reach, which can then use the device in your name
    #[arg(long, requires = "listen")]
    pub(crate) expose: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// For which shell
    pub(crate) shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Write a page for every command into this directory, rather than the first to standard output
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

/// A role that can be asked for; that of an operator cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoleName {
    /// Open tunnels for applications of this computer
    User,
    /// Serve devices of this network to others of the domain
    Tunnel,
    /// Store records and relay for others
    Super,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::User => Self::User,
            RoleName::Tunnel => Self::Tunnel,
            RoleName::Super => Self::Super,
        }
    }
}

/// Why a node is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReasonName {
    /// No reason given
    Unspecified,
    /// The computer is lost or stolen, or its key is known to others
    KeyCompromise,
    /// The computer or its owner no longer belongs to the organisation
    Retired,
    /// It behaves against the rules of the network
    Misbehaviour,
}

impl From<ReasonName> for RevocationReason {
    fn from(name: ReasonName) -> Self {
        match name {
            ReasonName::Unspecified => Self::Unspecified,
            ReasonName::KeyCompromise => Self::KeyCompromise,
            ReasonName::Retired => Self::Retired,
            ReasonName::Misbehaviour => Self::Misbehaviour,
        }
    }
}

impl Command {
    /// Says whether the command concerns an operator rather than the node of this computer.
    pub(crate) fn is_operators(&self) -> bool {
        match self {
            Self::Operator(_)
            | Self::Domain(_)
            | Self::Token(_)
            | Self::Device(_)
            | Self::Node(_)
            | Self::Segment(_) => true,
            Self::Super(command) => command.is_operators(),
            Self::Demo(_)
            | Self::Bench(_)
            | Self::Join(_)
            | Self::Leave
            | Self::Up(_)
            | Self::Down
            | Self::Status
            | Self::Doctor(_)
            | Self::Explain(_)
            | Self::Devices(_)
            | Self::Connect(_)
            | Self::Completions(_)
            | Self::Man(_) => false,
        }
    }

    /// Says whether the command serves until it is ended, so that its log is worth more.
    pub(crate) fn is_long_running(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Operator(OperatorCommand::Run(_)))
    }
}

impl SuperCommand {
    /// Says whether the command concerns an operator rather than the node of this computer.
    pub(crate) const fn is_operators(&self) -> bool {
        match self {
            Self::On(_) | Self::Off | Self::Status => false,
            Self::Admin(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use std::fmt::Write as _;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_reference_of_the_command_line_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let mut reference = String::from(
            "# The command line\n\nWhat `--help` says of each command; the global options, which all take, stand with the \
             first. A test compares it, and `PEERAGE_UPDATE_DOCS=1 cargo test -p peerage` writes it anew.\n",
        );
        let mut command = Cli::command().term_width(100);
        command.build();
        append(&mut command, &mut reference);
        if std::env::var_os("PEERAGE_UPDATE_DOCS").is_some() {
            std::fs::write(path, &reference).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == reference,
            "docs/cli.md is out of date: run PEERAGE_UPDATE_DOCS=1 cargo test -p peerage"
        );
    }

    fn append(command: &mut clap::Command, reference: &mut String) {
        let name = command.get_bin_name().unwrap_or("peerage").to_owned();
        let help = command.render_long_help().to_string();
        // Every command takes the global options; they are told once.
        let is_root = name == "peerage";
        let own = help.lines().map(str::trim_end).take_while(|line| is_root || *line != "Global options:");
        let help: Vec<&str> = own.collect();
        write!(reference, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
        for subcommand in command.get_subcommands_mut().filter(|subcommand| !subcommand.is_hide_set()) {
            append(subcommand, reference);
        }
    }
}

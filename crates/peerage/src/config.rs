//! The configuration file, and how it is merged with flags and environment.
//!
//! clap has already put flags before environment variables; the file fills in what neither gives.

use crate::{
    args::{LogFormat, RoleName},
    failure::{Failure, Result},
    parse,
};
use peerage_node::{carrier::Carrier, fitness::Circumstances, lending::Lending, relay::Caps};
use peerage_operator::RelayConfig;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU8, NonZeroU16},
    path::{Path, PathBuf},
    time::Duration,
};

/// The name of the file in the data directory.
pub(crate) const CONFIG_FILE: &str = "peerage.toml";

/// The whole file. Every key may be absent; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) log: Option<String>,
    pub(crate) log_format: Option<LogFormat>,
    #[serde(default)]
    pub(crate) node: NodeConfig,
    #[serde(default)]
    pub(crate) lan: LanConfig,
    #[serde(default)]
    pub(crate) network: NetworkConfig,
    #[serde(default, rename = "super")]
    pub(crate) super_node: SuperConfig,
    #[serde(default)]
    pub(crate) operator: OperatorConfig,
    #[serde(default)]
    pub(crate) admin: AdminConfig,
}

/// For `join` and `up`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeConfig {
    pub(crate) name: Option<String>,
    pub(crate) listen: Option<SocketAddr>,
    #[serde(default)]
    pub(crate) also_listen: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) advertise: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) roles: Vec<RoleName>,
    pub(crate) port_mapping: Option<bool>,
    pub(crate) wide_checks: Option<bool>,
    #[serde(default)]
    pub(crate) carriers: Vec<CarrierName>,
}

impl NodeConfig {
    /// Returns by what messages may travel: all carriers, unless some are named.
    pub(crate) fn carriers(&self) -> Vec<Carrier> {
        let named: Vec<_> = self.carriers.iter().map(|name| name.0).collect();
        if named.is_empty() { Carrier::ALL.to_vec() } else { named }
    }
}

/// A carrier, as in `udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CarrierName(Carrier);

impl<'de> Deserialize<'de> for CarrierName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = Carrier::ALL.into_iter().find(|carrier| carrier.name() == text);
        let all = Carrier::ALL.map(Carrier::name).join(", ");
        let unknown = || D::Error::custom(format!("there is no carrier {text:?}; there are {all}"));
        found.map(Self).ok_or_else(unknown)
    }
}

/// For `join` and `up`: how other computers of the network are connected to.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkConfig {
    pub(crate) proxy: Option<String>,
    pub(crate) no_proxy: Option<Vec<String>>,
}

/// For `up`: how nodes on one LAN agree which of them serve.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LanConfig {
    pub(crate) multicast: Option<bool>,
    pub(crate) port: Option<NonZeroU16>,
    pub(crate) tunnel_nodes: Option<NonZeroU8>,
}

/// For `up`: what the computer lends as a super-node.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SuperConfig {
    pub(crate) on: Option<bool>,
    pub(crate) max_memory: Option<Size>,
    pub(crate) max_tunnels: Option<u32>,
    pub(crate) max_rate: Option<Rate>,
    pub(crate) max_daily: Option<Size>,
    pub(crate) metered: Option<bool>,
    pub(crate) battery: Option<bool>,
}

/// A number of bytes, as in `64MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse::size(&text).map(Self).map_err(D::Error::custom)
    }
}

/// Bytes a second, as in `10MB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(u64);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse::rate(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A time, as in `15m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse::duration(&text).map(Self).map_err(D::Error::custom)
    }
}

impl OperatorConfig {
    /// Returns how much the operator relays; what is not set is as usual.
    pub(crate) fn relay(&self) -> RelayConfig {
        let usual = RelayConfig::default();
        let caps = Caps {
            bytes_per_second: self.relay_rate.map(|rate| rate.0).or(usual.caps.bytes_per_second),
            bytes_per_day: self.relay_daily.map(|size| size.0).or(usual.caps.bytes_per_day),
        };
        let tunnels = self.relay_tunnels.and_then(|most| usize::try_from(most).ok());
        RelayConfig { caps, tunnels: tunnels.unwrap_or(usual.tunnels) }
    }

    /// Returns how long spies wait between two visits to one super-node; zero if there are to be none.
    pub(crate) fn spy_interval(&self) -> Option<Duration> {
        if self.spies == Some(false) { Some(Duration::ZERO) } else { self.spy_interval.map(|span| span.0) }
    }
}

/// For `operator init` and `operator run`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperatorConfig {
    pub(crate) listen: Option<SocketAddr>,
    #[serde(default)]
    pub(crate) also_listen: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) admin_listen: Option<SocketAddr>,
    pub(crate) relay_rate: Option<Rate>,
    pub(crate) relay_daily: Option<Size>,
    pub(crate) relay_tunnels: Option<u32>,
    pub(crate) spies: Option<bool>,
    pub(crate) spy_interval: Option<Span>,
    #[serde(default)]
    pub(crate) spy_addresses: Vec<IpAddr>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// For the commands that administer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdminConfig {
    pub(crate) domain: Option<String>,
}

impl SuperConfig {
    /// Returns what is lent, as far as it is set.
    pub(crate) fn lending(&self) -> Lending {
        Lending {
            on: self.on,
            max_bytes: self.max_memory.map(|size| size.0),
            max_tunnels: self.max_tunnels,
            max_rate: self.max_rate.map(|rate| rate.0),
            max_daily: self.max_daily.map(|size| size.0),
        }
    }

    /// Returns what the owner says about battery and network.
    pub(crate) fn circumstances(&self) -> Circumstances {
        Circumstances { metered: self.metered, battery: self.battery }
    }
}

impl LanConfig {
    /// Returns what is set, with the defaults for what is not.
    pub(crate) fn settings(&self) -> peerage_node::run::LanConfig {
        let usual = peerage_node::run::LanConfig::default();
        peerage_node::run::LanConfig {
            multicast: self.multicast.unwrap_or(usual.multicast),
            port: self.port.map_or(usual.port, NonZeroU16::get),
            tunnel_nodes: self.tunnel_nodes.map_or(usual.tunnel_nodes, |count| usize::from(count.get())),
        }
    }
}

impl Config {
    /// Reads the file that was named, which must exist, or else that in the data directory, if it does.
    pub(crate) fn load(named: Option<&Path>, data: &Path) -> Result<Self> {
        let path = named.map_or_else(|| data.join(CONFIG_FILE), Path::to_owned);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(Failure::usage(format!("cannot read the configuration file {}", path.display()))
                    .why(error.to_string()));
            }
            Ok(text) => text,
        };
        let mut config = Self::parse(&text).map_err(|error| {
            // Its message has the line, the place in it and the keys that are known.
            Failure::usage(format!("the configuration file {} is not valid", path.display()))
                .why(error.to_string())
        })?;
        // What the file names is relative to the file, wherever the command is run.
        let base = path.parent().unwrap_or(Path::new(""));
        for file in [&mut config.operator.certificate, &mut config.operator.key].into_iter().flatten() {
            *file = base.join(&*file);
        }
        Ok(config)
    }

    fn parse(text: &str) -> std::result::Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

/// Takes what was given before, if anything was.
pub(crate) fn first<T>(given: Vec<T>, configured: Vec<T>) -> Vec<T> {
    if given.is_empty() { configured } else { given }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../docs/peerage.example.toml");

    #[test]
    fn the_example_is_valid_as_it_is_and_with_every_key_in_use() {
        Config::parse(EXAMPLE).unwrap();
        let in_use: Vec<&str> = EXAMPLE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect();
        let settings: Vec<&str> = in_use
            .into_iter()
            .filter(|line| !line.starts_with(' ') && (line.contains('=') || line.starts_with('[')))
            .collect();
        let config = Config::parse(&settings.join("\n")).unwrap();
        let Config { log, log_format, node, lan, network, super_node, operator, admin } = config;
        assert!(log.is_some() && log_format.is_some() && admin.domain.is_some());
        let NodeConfig { name, listen, also_listen, advertise, roles, port_mapping, wide_checks, carriers } =
            node;
        assert_eq!(also_listen.len(), 2);
        assert!(name.is_some() && listen.is_some() && !advertise.is_empty() && !roles.is_empty());
        assert!(port_mapping.is_some() && wide_checks == Some(false) && !carriers.is_empty());
        let LanConfig { multicast, port, tunnel_nodes } = lan;
        assert!(multicast.is_some() && port.is_some() && tunnel_nodes.is_some());
        assert!(network.proxy.is_some() && network.no_proxy.is_some_and(|listed| listed.len() == 2));
        let Lending { on, max_bytes, max_tunnels, max_rate, max_daily } = super_node.lending();
        assert_eq!((on, max_bytes, max_tunnels), (Some(true), Some(64 << 20), Some(256)));
        assert_eq!((max_rate, max_daily), (Some(10_000_000), Some(10_000_000_000)));
        let Circumstances { metered, battery } = super_node.circumstances();
        assert!(metered.is_some() && battery.is_some());
        assert_eq!(operator.spy_interval(), Some(Duration::from_secs(900)));
        assert!(operator.spies.is_some() && operator.spy_addresses.len() == 2);
        assert!(operator.relay_rate.is_some() && operator.relay_daily.is_some());
        assert_eq!((operator.relay_tunnels, operator.relay()), (Some(2_048), RelayConfig::default()));
        let OperatorConfig { listen, also_listen, advertise, admin_listen, certificate, key, .. } = operator;
        assert_eq!(also_listen.len(), 2);
        assert!(listen.is_some() && !advertise.is_empty() && admin_listen.is_some());
        assert!(certificate.is_some() && key.is_some());
    }

    #[test]
    fn spies_are_switched_off_by_a_key_of_their_own() {
        let config = Config::parse("[operator]\nspies = false\nspy_interval = \"15m\"\n").unwrap();
        assert_eq!(config.operator.spy_interval(), Some(Duration::ZERO));
    }

    #[test]
    fn a_wrong_key_or_value_is_shown_with_its_line() {
        for (text, line, word) in [
            ("log = \"info\"\nlogformat = \"text\"\n", "line 2", "logformat"),
            ("[node]\nlisten = \"0.0.0.0:1\"\n\nadvertize = []\n", "line 4", "advertize"),
            ("[node]\nlisten = \"localhost\"\n", "line 2", "socket address"),
            ("[node]\nroles = [\"operator\"]\n", "line 2", "operator"),
            ("[super]\nmax_memory = \"64\"\n", "line 2", "64MiB"),
            ("[super]\non = true\nmax_rate = \"10MB\"\n", "line 3", "10MB/s"),
            ("[node]\ncarriers = [\"udp\", \"icmp\"]\n", "line 2", "icmp"),
            ("[nodes]\n", "line 1", "nodes"),
        ] {
            let message = Config::parse(text).unwrap_err().to_string();
            assert!(message.contains(line) && message.contains(word), "{message}");
        }
    }

    #[test]
    fn files_are_found_beside_the_configuration_file() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(CONFIG_FILE), "[operator]\ncertificate = \"c.pem\"\nkey = \"/k.pem\"\n")
            .unwrap();
        let config = Config::load(None, data.path()).unwrap();
        assert_eq!(config.operator.certificate.unwrap(), data.path().join("c.pem"));
        assert_eq!(config.operator.key.unwrap(), Path::new("/k.pem"));
    }

    #[test]
    fn only_a_file_that_was_named_must_exist() {
        let data = tempfile::tempdir().unwrap();
        assert!(Config::load(None, data.path()).is_ok());
        let named = data.path().join("other.toml");
        assert!(Config::load(Some(&named), data.path()).unwrap_err().to_text().contains("other.toml"));
    }
}

//! `cargo xtask lab`: plays a story in simulated networks with the real program.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use peerage_lab::device::{CAMERA_PACKAGES, MappingProtocol, PROXY_PACKAGES};
use peerage_lab::scenario::{
    self, Crowd, Extent, Profile, Programs, Reach, Report, Selection, Size, Watched,
};

use crate::{packages, run::say};

/// How the task is called.
const USAGE: &str = "\
usage: cargo xtask lab print [--relayed | --no-udp | --punched | --pcp | --nat-pmp | --upnp] [--json] [--release]
       cargo xtask lab super-nodes [--small | --companies | --web] [--json] [--release]
       cargo xtask lab survival [--quick | --punched | EVENT[,EVENT]] [--json] [--release]
       cargo xtask lab tunnels [--small] [--json] [--release]
       cargo xtask lab matrix [--quick | --pair USER,NODE] [--wide] [--round-trip MS] [--json] [--release]
       cargo xtask lab firewalls [NETWORK] [--json] [--release]
       cargo xtask lab camera [--punched] [--json] [--release]
       cargo xtask lab quotas [--json] [--release]
       cargo xtask lab round-trips [--json] [--release]";

/// A story.
type Story = Box<dyn Fn(&Programs, &mut dyn FnMut(&str)) -> Report>;

/// Plays the story that `words` name; the report goes to standard output and everything else to standard error.
///
/// With `print --relayed` nothing is configured in the office's router and no hole can be made, so that both nodes meet at the operator's
/// relay; with `--no-udp` UDP does not even reach the operator; with `--punched` there can; with `--pcp`,
/// `--nat-pmp` or `--upnp` the router gives a port to the node that asks. With
/// `survival` only those events happen whose names contain one EVENT. With `super-nodes --small` only what the tests play is
/// played, with `super-nodes --companies` only the two smaller stories, and with `super-nodes --web` a story of super-nodes at the web's ports.
/// With `--json` the report is exactly one object, also when the story failed.
pub(crate) fn lab(words: &[&str]) -> Result<()> {
    let (mut json, mut profile) = (false, Profile::Dev);
    let Some((name, options)) = words.split_first() else { bail!("{USAGE}") };
    let mut own = Vec::new();
    for option in options {
        match *option {
            "--json" => json = true,
            "--release" => profile = Profile::Release,
            other => own.push(other),
        }
    }
    let story = story(name, &own)?;
    packages::install(match *name {
        "camera" => CAMERA_PACKAGES,
        "firewalls" => PROXY_PACKAGES,
        _ => &[],
    })?;
    let report = story(&Programs::find(profile)?, &mut |line| say(line));
    let text = if json { report.to_json().to_string() } else { format!("{:#}", report.to_json()) };
    writeln!(std::io::stdout(), "{text}").context("nobody reads the report")?;
    match report.error() {
        None => Ok(()),
        Some(error) => bail!("the story failed: {error:#}"),
    }
}

fn mapped(protocol: MappingProtocol) -> Story {
    Box::new(move |programs, say| scenario::print(programs, Reach::Mapped(protocol), say))
}

/// Returns the story of this name with the options that are its own.
fn story(name: &str, options: &[&str]) -> Result<Story> {
    Ok(match (name, options) {
        ("print", []) => Box::new(|programs, say| scenario::print(programs, Reach::Forwarded, say)),
        ("print", ["--punched"]) => Box::new(|programs, say| scenario::print(programs, Reach::Punched, say)),
        ("print", ["--relayed"]) => Box::new(|programs, say| scenario::print(programs, Reach::Relayed, say)),
        ("print", ["--no-udp"]) => Box::new(|programs, say| scenario::print(programs, Reach::NoUdp, say)),
        ("print", ["--pcp"]) => mapped(MappingProtocol::Pcp),
        ("print", ["--nat-pmp"]) => mapped(MappingProtocol::NatPmp),
        ("print", ["--upnp"]) => mapped(MappingProtocol::Upnp),
        ("super-nodes", []) => Box::new(|programs, say| scenario::super_nodes(programs, Size::Full, say)),
        ("super-nodes", ["--small"]) => {
            Box::new(|programs, say| scenario::super_nodes(programs, Size::Small, say))
        }
        ("super-nodes", ["--companies"]) => Box::new(scenario::companies),
        ("super-nodes", ["--web"]) => Box::new(scenario::web_ports),
        ("firewalls", only @ ([] | [_])) => {
            let only = only.first().map(|only| (*only).to_owned());
            if let Some(name) = only.as_deref().filter(|name| !scenario::NETWORKS.contains(name)) {
                bail!("{name} is none of the networks {}", scenario::NETWORKS.join(", "));
            }
            Box::new(move |programs, say| scenario::firewalls(programs, only.as_deref(), say))
        }
        ("quotas", []) => Box::new(scenario::quotas),
        ("camera", []) => Box::new(|programs, say| scenario::camera(programs, Watched::Directly, say)),
        ("camera", ["--punched"]) => {
            Box::new(|programs, say| scenario::camera(programs, Watched::Punched, say))
        }
        ("tunnels", []) => Box::new(|programs, say| scenario::tunnels(programs, Crowd::Full, say)),
        ("tunnels", ["--small"]) => Box::new(|programs, say| scenario::tunnels(programs, Crowd::Small, say)),
        ("matrix", options) => {
            let (selection, is_wide, round_trip) = selection(options)?;
            Box::new(move |programs, say| scenario::matrix(programs, (&selection, is_wide), round_trip, say))
        }
        ("round-trips", []) => Box::new(scenario::round_trips),
        ("survival", ["--quick"]) => {
            Box::new(|programs, say| scenario::survival(programs, Extent::Quick, None, say))
        }
        ("survival", ["--punched"]) => {
            Box::new(|programs, say| scenario::survival(programs, Extent::Punched, None, say))
        }
        ("survival", only @ ([] | [_])) => {
            let only = only.first().map(|only| (*only).to_owned());
            Box::new(move |programs, say| scenario::survival(programs, Extent::Whole, only.as_deref(), say))
        }
        _ => bail!("unknown story or option: {name} {}\n{USAGE}", options.join(" ")),
    })
}

/// Reads which pairs of networks are to be played, whether many ports may be tried, and how long a round trip between them takes.
fn selection(options: &[&str]) -> Result<(Selection, bool, Duration)> {
    let (mut selection, mut is_wide, mut round_trip) = (Selection::All, false, Duration::ZERO);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().with_context(|| format!("{option} needs a value\n{USAGE}"));
        match *option {
            "--quick" => selection = Selection::Quick,
            "--wide" => is_wide = true,
            "--pair" => {
                let pair = value()?;
                let (user, node) =
                    pair.split_once(',').with_context(|| format!("{pair} is no pair\n{USAGE}"))?;
                selection = Selection::Pair(user.to_owned(), node.to_owned());
            }
            "--round-trip" => {
                let milliseconds = value()?;
                let number = milliseconds.parse();
                round_trip = Duration::from_millis(
                    number.with_context(|| format!("{milliseconds} is no number of milliseconds"))?,
                );
            }
            other => bail!("unknown option: {other}\n{USAGE}"),
        }
    }
    Ok((selection, is_wide, round_trip))
}

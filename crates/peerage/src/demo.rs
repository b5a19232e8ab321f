//! `peerage demo`: a whole network on this machine, explained on screen.
//!
//! Everything is done by this very program as separate processes, with the commands that a user would give: an
//! operator, nodes, tunnels. Where the kernel allows it they run in simulated networks ([`town`]); else on loopback.
//! Only the device, and what moves test data, are parts of the demonstration itself ([`device`], [`transfer`]).

pub(crate) mod computer;
mod device;
mod screen;
mod story;
mod town;
mod transfer;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use peerage_client::{Client, local::Tunnel};
use peerage_lab::{netns, pcp};
use serde::Serialize;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

use crate::{
    args::Demo,
    failure::{Failure, Result},
    output::Output,
    signals::EndSignals,
};
use computer::Computer;
use device::{Ports, Ready};
use screen::Screen;
use story::{PathReport, Story};
use town::Town;

/// What programs of the demonstration do, beside those that a user would start.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Serve the sample device
    #[command(hide = true)]
    Device(DevicePart),
    /// Move data to the sample device and back
    #[command(hide = true)]
    Transfer { raw: SocketAddr, web: SocketAddr, bytes: u64 },
    /// Give the ports of a router with this outer address to those who ask for them
    #[command(hide = true)]
    Router { public: Ipv4Addr },
    /// Lead a Unix socket to a port
    #[command(hide = true)]
    Door { socket: PathBuf, target: SocketAddr },
    /// Become another command that ends with the process that started it
    #[command(hide = true)]
    Child {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct DevicePart {
    web: SocketAddr,
    tls: SocketAddr,
    raw: SocketAddr,
    #[arg(long)]
    one_machine: bool,
}

/// Runs the demonstration; called before any thread or runtime exists.
pub(crate) fn run(args: &Demo, output: Output) -> Result {
    match &args.part {
        Some(part) => Ok(run_part(part, output)?),
        None => demonstrate(args, output),
    }
}

fn run_part(part: &Part, output: Output) -> anyhow::Result<()> {
    match part {
        Part::Device(DevicePart { web, tls, raw, one_machine }) => {
            let ready = |it: Ready| output.json(&it).map_err(|_| anyhow::anyhow!("nobody listens"));
            runtime()?.block_on(device::serve(Ports { web: *web, tls: *tls, raw: *raw }, *one_machine, ready))
        }
        Part::Transfer { raw, web, bytes } => {
            let transfer = transfer::run(*raw, *web, *bytes)?;
            output.json(&transfer).map_err(|_| anyhow::anyhow!("nobody listens"))
        }
        Part::Router { public } => {
            let ready = || output.json(&"ready").map_err(|_| anyhow::anyhow!("nobody listens"));
            pcp::serve(*public, ready)
        }
        Part::Door { socket, target } => {
            let ready = || output.json(&"ready").map_err(|_| anyhow::anyhow!("nobody listens"));
            netns::serve_door(socket, *target, ready)
        }
        Part::Child { arguments } => computer::become_child(arguments),
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")
}

/// Whether the demonstration was told to end, and a way to ask nodes meanwhile.
#[derive(Debug)]
struct Ended {
    runtime: Runtime,
    asked: watch::Receiver<bool>,
}

impl Ended {
    /// Begins to catch Ctrl-C. The second one ends the process at once, in case the first is not heard.
    fn catch() -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let (ask, asked) = watch::channel(false);
        let mut signals = {
            let _inside = runtime.enter();
            EndSignals::catch().map_err(|_| anyhow::anyhow!("cannot catch signals"))?
        };
        runtime.spawn(async move {
            signals.received().await;
            ask.send_replace(true);
            signals.received().await;
            std::process::exit(EXIT_INTERRUPTED);
        });
        Ok(Self { runtime, asked })
    }

    fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Waits for so long, or until it is told to end; returns whether it was.
    fn wait(&self, time: Duration) -> bool {
        let mut asked = self.asked.clone();
        let end = async { _ = asked.wait_for(|asked| *asked).await };
        // Either end of the wait is one.
        _ = self.runtime.block_on(async { tokio::time::timeout(time, end).await });
        self.is_asked()
    }

    /// Asks a node for its tunnels.
    fn ask(&self, node: &Computer) -> anyhow::Result<Vec<Tunnel>> {
        let client = Client::new(node.data());
        self.runtime.block_on(client.tunnels()).with_context(|| format!("{} does not answer", node.name()))
    }
}

/// What a shell reports of a program that Ctrl-C has ended.
const EXIT_INTERRUPTED: i32 = 130;

/// What `--once` reports.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    mode: Mode,
    /// Why the networks are not simulated, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    paths: Vec<PathReport>,
    total_ms: u128,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Where the demonstration happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Namespaces,
    Loopback,
}

fn demonstrate(args: &Demo, output: Output) -> Result {
    let began_at = std::time::Instant::now();
    let ended = Ended::catch()?;
    let mut screen = Screen::new(output.is_json());
    screen.lines("Peerage demonstration\n=====================");
    let (town, reason) = build(args.loopback)?;
    if let Some(reason) = &reason {
        screen.tell(reason);
    }
    let mode = if town.is_simulated() { Mode::Namespaces } else { Mode::Loopback };
    if !args.once {
        let result = explain(&mut screen, &ended, &town, output);
        return if ended.is_asked() { Ok(()) } else { Ok(result?) };
    }
    let mut story = Story::new(&mut screen, &ended, &town);
    let result = story.begin().and_then(|()| story.transfer());
    drop(story);
    drop(town);
    match result {
        Ok(paths) => {
            let total_ms = began_at.elapsed().as_millis();
            let report = Report { ok: true, mode, reason, paths, total_ms, error: None };
            output.result(&report, |_| "\nAll of it arrived as it was sent.".to_owned())
        }
        Err(error) if output.is_json() => {
            let total_ms = began_at.elapsed().as_millis();
            let error = Some(format!("{error:#}"));
            output.json(&Report { ok: false, mode, reason, paths: Vec::new(), total_ms, error })?;
            // The failure is told in the one object that was promised, so nothing may follow it.
            drop(ended);
            std::process::exit(1);
        }
        Err(error) => Err(error.into()),
    }
}

/// Plays it for a reader, who looks at the printer's page.
fn explain(screen: &mut Screen, ended: &Ended, town: &Town, output: Output) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Open {
        event: &'static str,
        mode: Mode,
        web: String,
        raw: SocketAddr,
    }
    let mode = if town.is_simulated() { Mode::Namespaces } else { Mode::Loopback };
    let mut story = Story::new(screen, ended, town);
    story.begin()?;
    story.stay(|web, raw| {
        let ready = Open { event: "ready", mode, web: format!("http://{web}/"), raw };
        if output.is_json() {
            output.json(&ready).map_err(|_| anyhow::anyhow!("nobody listens"))?;
        }
        Ok(())
    })
}

/// What is said when the networks are not simulated.
const PLAINLY: &str =
    "Everything runs on this computer's loopback interface: as separate programs, but in one network.";

/// Makes simulated networks if it can, else takes this computer and says why.
fn build(on_loopback: bool) -> Result<(Town, Option<String>)> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new("cannot find this program").why(error.to_string()))?;
    if on_loopback {
        return Ok((Town::on_this_computer(&program)?, Some(PLAINLY.to_owned())));
    }
    let missing = town::missing_packages();
    let reason = if missing.is_empty() {
        match Town::simulated(&program) {
            Ok(town) => return Ok((town, None)),
            Err(error) => refusal(&error),
        }
    } else {
        format!(
            "With the packages {} (apt install {}) this would show really separate networks.",
            missing.join(", "),
            missing.join(" ")
        )
    };
    let plainly =
        "Everything runs on this computer's loopback interface, as separate programs but in one network. ";
    Ok((Town::on_this_computer(&program)?, Some(format!("{plainly}{reason}"))))
}

fn refusal(error: &anyhow::Error) -> String {
    // The last line is what the program that makes them said.
    let cause = error.root_cause().to_string();
    let said = cause.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    format!(
        "Simulated networks need user namespaces, which this system did not grant ({said}). As root it may; on \
         Ubuntu also after `sysctl kernel.apparmor_restrict_unprivileged_userns=0`."
    )
}

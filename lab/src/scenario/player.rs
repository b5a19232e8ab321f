//! A computer with the program: the operator, a super-node, a tunnel-node or a user.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::binary::Programs;
use super::program::{Daemon, Peerage};
use crate::netns::Process;
use crate::topology::{Host, Lab};

/// The port of the operator and of super-nodes, for messages by UDP and for HTTPS and relays by TCP.
pub(super) const RELAY_PORT: u16 = 4240;

/// How long a step before the story itself may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether something has come about.
const INTERVAL: Duration = Duration::from_millis(50);

/// A computer with the program.
pub(super) struct Player<'a> {
    pub(super) peerage: Peerage<'a>,
    run: Vec<String>,
    pub(super) daemon: Option<Daemon>,
    /// What earlier processes wrote.
    log: String,
}

impl<'a> Player<'a> {
    pub(super) fn new(lab: &Lab, programs: &Programs, host: &'a Host, run: &[&str]) -> Result<Self> {
        let peerage = Peerage::new(lab, &programs.peerage, host)?;
        let run = run.iter().copied().map(str::to_owned).collect();
        Ok(Self { peerage, run, daemon: None, log: String::new() })
    }

    /// Starts what runs here, for the first time or again.
    pub(super) fn start(&mut self) -> Result<()> {
        let run: Vec<&str> = self.run.iter().map(String::as_str).collect();
        self.daemon = Some(self.peerage.start(&run, "ready")?);
        Ok(())
    }

    /// Ends what runs here in order, and starts it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.daemon.take().context("it does not run")?.stop()?;
        self.start()
    }

    /// Ends what runs here in order, and starts it again with other options.
    pub(super) fn start_again(&mut self, run: &[&str]) -> Result<()> {
        self.run = run.iter().copied().map(str::to_owned).collect();
        self.restart()
    }

    /// Waits until it knows a way to a device.
    pub(super) fn wait_for_device(&self, name: &str) -> Result<()> {
        wait_until("the user's node knows a way to the device", || {
            let devices = self.peerage.call(&["devices", "--refresh"])?;
            let mut listed = devices.as_array().into_iter().flatten();
            let found = listed.find(|device| device.get("name") == Some(&json!(name)));
            let is_known = found.and_then(|device| device.get("state")) == Some(&json!("reachable"));
            Ok(if is_known { Ok(()) } else { Err(devices) })
        })
    }

    /// Joins a domain with a token of the operator's, under the host's name, and starts.
    pub(super) fn join(&mut self, operator: &Peerage<'_>, domain: &str, roles: &str) -> Result<()> {
        let token = operator.call(&["token", "add", "--domain", domain, "--role", roles])?;
        let token = token.get("token").and_then(Value::as_str).context("no token")?;
        self.peerage.call(&["join", token, "--name", self.peerage.host().name()])?;
        self.start()
    }

    /// Opens a local port that leads to a service; returns its address, and the process that holds it.
    pub(super) fn connect(&self, service: &str) -> Result<(String, Daemon)> {
        let daemon = self.peerage.start(&["connect", service, "--listen", "127.0.0.1:0"], "listening")?;
        let local = daemon.first().get("local").and_then(Value::as_str).context("no local address")?;
        Ok((local.to_owned(), daemon))
    }

    /// Returns the kind of the way that its oldest tunnel takes, and its far end, as the node tells.
    pub(super) fn path(&self) -> Result<(String, String)> {
        let tunnels = self.peerage.tunnels()?;
        let path = tunnels.get(0).and_then(|tunnel| tunnel.get("path"));
        let text = |name| path.and_then(|path| path.get(name)).and_then(Value::as_str).unwrap_or("none");
        Ok((text("kind").to_owned(), text("remote").to_owned()))
    }

    pub(super) fn process(&mut self) -> Result<&mut Process> {
        Ok(self.daemon.as_mut().context("it does not run")?.process())
    }

    /// Ends it as a power failure would.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("it does not run")?;
        ensure!(daemon.process().is_running(), "{} had ended by itself", daemon.process().name());
        daemon.process().kill()?;
        self.log.push_str(&daemon.process().stderr());
        Ok(())
    }

    /// Returns all that it wrote.
    pub(super) fn log(&mut self) -> String {
        let last = self.daemon.as_mut().map(|daemon| daemon.process().stderr());
        format!("{}{}", self.log, last.unwrap_or_default())
    }
}

/// Has lenders join and become super-nodes with these options, and waits until they do the operator's work.
pub(super) fn lend(operator: &Player<'_>, lenders: &mut [Player<'_>], options: &[&str]) -> Result<()> {
    if lenders.is_empty() {
        return Ok(());
    }
    for lender in lenders {
        // Each of an organisation of its own, since nobody's own super-node counts for him.
        let domain = lender.peerage.host().name();
        operator.peerage.call(&["domain", "add", domain])?;
        lender.join(&operator.peerage, domain, "user,super")?;
        lender.peerage.call(&[&["super", "on"], options].concat())?;
    }
    wait_until("the super-nodes carry the table", || {
        let map = operator.peerage.call(&["segment", "map"])?;
        let segments = map.get("segments").and_then(Value::as_array).context("no segments")?;
        let is_carried = |segment: &Value| segment.get("stands_in") == Some(&json!(false));
        Ok(if segments.iter().all(is_carried) { Ok(()) } else { Err(map) })
    })
}

/// Tries until `look` finds it so; it returns instead what it has found.
pub(super) fn wait_until(what: &str, mut look: impl FnMut() -> Result<Result<(), Value>>) -> Result<()> {
    let began_at = Instant::now();
    while let Err(instead) = look()? {
        ensure!(began_at.elapsed() < PATIENCE, "after {PATIENCE:?} it is not so that {what}, but {instead}");
        thread::sleep(INTERVAL);
    }
    Ok(())
}

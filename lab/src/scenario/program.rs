//! Runs the `peerage` program on simulated hosts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::netns::{MachineCommand, Process};
use crate::topology::{Host, Lab};

/// How long a command that only talks to a running node or operator may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node or an operator may take until it serves; a node speaks to its operator first.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node or an operator may take to end after SIGTERM; a super-node first hands over, for up to a minute.
const STOP_TIMEOUT: Duration = Duration::from_secs(80);

/// The program together with a host and a data directory for it.
#[derive(Debug)]
pub struct Peerage<'a> {
    binary: PathBuf,
    host: &'a Host,
    data: PathBuf,
    data_outside: PathBuf,
}

impl<'a> Peerage<'a> {
    /// Gives the program a data directory of its own on this host; the program has to make it.
    ///
    /// # Errors
    /// When the directory above it cannot be made.
    pub fn new(lab: &Lab, binary: &Path, host: &'a Host) -> Result<Self> {
        let (inside, outside) = lab.directory(&format!("peerage-{}", host.name()))?;
        let [data, data_outside] = [inside, outside].map(|directory| directory.join("data"));
        Ok(Self { binary: binary.to_owned(), host, data, data_outside })
    }

    /// Returns the host.
    #[must_use]
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// Writes the configuration file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        // As the program itself makes it: for its user alone.
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700).create(&self.data_outside)?;
        std::fs::write(self.data_outside.join("peerage.toml"), text).context("cannot write the configuration")
    }

    /// Returns a call of the program with `--data` and `--json`.
    ///
    /// Settings for a node of the real machine do not reach it, except for what it logs.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> MachineCommand {
        let command =
            self.host.command(&self.binary).args(arguments).arg("--data").arg(&self.data).arg("--json");
        std::env::vars_os()
            .map(|(key, _)| key)
            .filter(|key| {
                let name = key.as_encoded_bytes();
                let is_proxy = name.to_ascii_lowercase().ends_with(b"_proxy");
                is_proxy || (name.starts_with(b"PEERAGE_") && key != "PEERAGE_LOG")
            })
            .fold(command, |command, key| command.env_remove(key))
    }

    /// Runs the program to its end and returns what it printed as JSON, `null` if it printed nothing.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn call(&self, arguments: &[&str]) -> Result<Value> {
        let what = format!("peerage {} on {}", arguments.join(" "), self.host.name());
        let output = self.command(arguments).run(COMMAND_TIMEOUT)?.success(&what)?.stdout;
        if output.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output).with_context(|| format!("{what} printed no JSON but:\n{output}"))
    }

    /// Starts the program and waits for its first line, an object whose `event` is as expected.
    ///
    /// # Errors
    /// When it ends before, or prints something else.
    pub fn start(&self, arguments: &[&str], event: &str) -> Result<Daemon> {
        let mut process = self.command(arguments).spawn()?;
        let line = process
            .wait_for_line(&format!("it printed \"{event}\""), READY_TIMEOUT, |line| Some(line.to_owned()))?;
        let first: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(
            first.get("event").and_then(Value::as_str) == Some(event),
            "expected the event {event}, not {line}"
        );
        Ok(Daemon { process, first })
    }

    /// Returns the tunnels of this host's node with the ways that they take, as its local API tells.
    ///
    /// # Errors
    /// When the API does not answer as it should.
    pub fn tunnels(&self) -> Result<Value> {
        self.request("GET", "/v1/tunnels", &Value::Null)
    }

    /// Opens a local port that leads to a service of a device, without the time that starting a program takes.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn open_tunnel(&self, device: &str, service: &str) -> Result<Value> {
        self.request("POST", "/v1/tunnels", &json!({ "device": device, "service": service }))
    }

    /// Closes what [`Peerage::open_tunnel`] returned.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn close_tunnel(&self, tunnel: &Value) -> Result<()> {
        let id = tunnel.get("id").and_then(Value::as_str).context("the tunnel has no id")?;
        self.request("DELETE", &format!("/v1/tunnels/{id}"), &Value::Null).map(drop)
    }

    /// Asks the node's local API; a body of `null` is none.
    fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let socket = self.data_outside.join("api.sock");
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("cannot reach {}", socket.display()))?;
        stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not HTTP: {answer}"))?;
        ensure!(head.starts_with("HTTP/1.1 2"), "the local API answered to {method} {path}\n{answer}");
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(body).with_context(|| format!("the local API answered\n{answer}"))
    }
}

/// A running operator, node or tunnel.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    first: Value,
}

impl Daemon {
    /// Returns the object that it printed first.
    #[must_use]
    pub fn first(&self) -> &Value {
        &self.first
    }

    /// Returns the process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// When it had ended before, does not end soon, or not with exit status 0.
    pub fn stop(mut self) -> Result<()> {
        ensure!(self.process.is_running(), "{} had ended by itself", self.process.name());
        let status = self.process.terminate(STOP_TIMEOUT)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.process.name());
        Ok(())
    }
}

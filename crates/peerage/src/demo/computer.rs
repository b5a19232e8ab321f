//! The computers of the demonstration, on which this very program runs: simulated ones, or this one several times.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use peerage_lab::{
    Host,
    netns::{MachineCommand, Process},
};
use serde_json::Value;

/// How long a program may take until it serves. A node asks its operator first.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the end of a command is looked for: the standard library cannot wait with a limit.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Lines of a program's log that are shown when it fails.
const SHOWN_LOG_LINES: usize = 12;

/// A computer, with a data directory for a node or an operator.
#[derive(Debug)]
pub(crate) struct Computer {
    name: String,
    program: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// In namespaces: the directory has one path there and one here.
    Simulated { host: Box<Host>, inside: PathBuf, outside: PathBuf },
    /// This computer, with another directory.
    This { directory: PathBuf },
}

impl Computer {
    /// Makes a simulated computer one of the demonstration. `inside` and `outside` name one directory that exists.
    pub(crate) fn simulated(
        name: &str,
        program: &Path,
        host: Host,
        (inside, outside): (PathBuf, PathBuf),
    ) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            kind: Kind::Simulated { host: Box::new(host), inside, outside },
        }
    }

    /// Takes this computer for one of the demonstration, with a directory that exists.
    pub(crate) fn this(name: &str, program: &Path, directory: PathBuf) -> Self {
        Self { name: name.to_owned(), program: program.to_owned(), kind: Kind::This { directory } }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns where the data of the program is, as seen from this process.
    pub(crate) fn data(&self) -> PathBuf {
        match &self.kind {
            Kind::Simulated { outside, .. } => outside.join("data"),
            Kind::This { directory } => directory.join("data"),
        }
    }

    /// Runs the program to its end and returns the JSON that it wrote, null if it wrote nothing.
    ///
    /// # Errors
    /// When it fails or takes longer than `limit`; the message has its last words.
    pub(crate) fn call(&self, arguments: &[&str], limit: Duration) -> Result<Value> {
        let what = self.describe(arguments);
        let (status, stdout, stderr) = match &self.kind {
            Kind::Simulated { host, inside, .. } => {
                let ended = self.inside(host, inside, arguments).run(limit)?;
                (ended.status, ended.stdout, ended.stderr)
            }
            Kind::This { directory } => self.here(directory, arguments).run(limit)?,
        };
        ensure!(status.success(), "{what} failed ({status})\n{}", last_lines(&stderr));
        if stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout).with_context(|| format!("{what} wrote no JSON but {stdout}"))
    }

    /// Starts the program and waits for the first line that it writes, a JSON object.
    ///
    /// # Errors
    /// When it ends before, or takes too long; the message has its last words.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        let what = self.describe(arguments);
        let mut process = match &self.kind {
            Kind::Simulated { host, inside, .. } => {
                Running::Inside(self.inside(host, inside, arguments).spawn()?)
            }
            Kind::This { directory } => Running::Here(self.here(directory, arguments).spawn()?),
        };
        let line = process.first_line().with_context(|| format!("{what} does not run"))?;
        let first =
            serde_json::from_str(&line).with_context(|| format!("{what} wrote no JSON but {line}"))?;
        Ok(Daemon { what, first, process })
    }

    fn describe(&self, arguments: &[&str]) -> String {
        // A token, or a path, would make a long and useless line.
        let words: Vec<&str> = arguments.iter().copied().take(2).collect();
        format!("peerage {} on {}", words.join(" "), self.name)
    }

    fn inside(&self, host: &Host, directory: &Path, arguments: &[&str]) -> MachineCommand {
        let command = host.command(&self.program).args(arguments).arg("--json");
        let command = command.arg("--data").arg(directory.join("data"));
        settings().fold(command, |command, name| command.env_remove(name))
    }

    fn here(&self, directory: &Path, arguments: &[&str]) -> Here {
        let mut command = Command::new(&self.program);
        command
            .args(["demo", "child", "--"])
            .args(arguments)
            .arg("--json")
            .arg("--data")
            .arg(directory.join("data"));
        // Ctrl-C in the terminal reaches the demonstration alone, which then ends its programs.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        settings().for_each(|name| _ = command.env_remove(name));
        Here { command, log: directory.join("log") }
    }
}

/// Returns the settings of this computer's own node, which must not reach those of the demonstration.
fn settings() -> impl Iterator<Item = std::ffi::OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        let name = name.as_encoded_bytes();
        let is_proxy = name.to_ascii_lowercase().ends_with(b"_proxy");
        is_proxy || (name.starts_with(b"PEERAGE_") && name != b"PEERAGE_LOG")
    })
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    what: String,
    first: Value,
    process: Running,
}

impl Daemon {
    /// Returns a text of the object that it wrote first.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn text(&self, field: &str) -> Result<&str> {
        let text = self.first.get(field).and_then(Value::as_str);
        text.with_context(|| format!("{} wrote no {field} but {}", self.what, self.first))
    }

    /// Returns a value of the object that it wrote first.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn field(&self, field: &str) -> Result<Value> {
        let value = self.first.get(field).cloned();
        value.with_context(|| format!("{} wrote no {field} but {}", self.what, self.first))
    }

    /// Returns the number of its process on this computer; none of a program in namespaces.
    pub(crate) fn process(&self) -> Option<u32> {
        match &self.process {
            Running::Inside(_) => None,
            Running::Here(child) => Some(child.child.id()),
        }
    }

    /// Makes sure that it still runs.
    ///
    /// # Errors
    /// When it has ended; the message has its last words.
    pub(crate) fn check(&mut self) -> Result<()> {
        let ended = match &mut self.process {
            Running::Inside(process) => !process.is_running(),
            Running::Here(child) => child.child.try_wait()?.is_some(),
        };
        ensure!(!ended, "{} has ended by itself\n{}", self.what, self.process.last_words());
        Ok(())
    }
}

#[derive(Debug)]
enum Running {
    Inside(Process),
    Here(HereChild),
}

impl Running {
    fn first_line(&mut self) -> Result<String> {
        match self {
            Self::Inside(process) => {
                process.wait_for_line("it was ready", READY_TIMEOUT, |line| Some(line.to_owned()))
            }
            Self::Here(child) => match child.lines.recv_timeout(READY_TIMEOUT) {
                Ok(line) => Ok(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it has ended\n{}", self.last_words()),
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("it takes too long\n{}", self.last_words()),
            },
        }
    }

    fn last_words(&self) -> String {
        match self {
            Self::Inside(process) => last_lines(&process.stderr()),
            Self::Here(child) => last_lines(&std::fs::read_to_string(&child.log).unwrap_or_default()),
        }
    }
}

/// A program on this computer that is about to start.
#[derive(Debug)]
struct Here {
    command: Command,
    log: PathBuf,
}

#[derive(Debug)]
struct HereChild {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Here {
    fn spawn(mut self) -> Result<HereChild> {
        let log = File::create(&self.log).with_context(|| format!("cannot make {}", self.log.display()))?;
        let mut child = self.command.stderr(log).spawn().context("cannot start this program once more")?;
        let (tell, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            // Reads on when nobody wants the lines any more: a full pipe would stop the program.
            thread::spawn(move || {
                BufReader::new(stdout).lines().map_while(Result::ok).for_each(|l| _ = tell.send(l))
            });
        }
        Ok(HereChild { child, lines, log: self.log })
    }

    fn run(mut self, limit: Duration) -> Result<(ExitStatus, String, String)> {
        // Beside the log of a program that may run in the same directory.
        self.log.set_extension("command");
        let mut running = self.spawn()?;
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = running.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "it still runs after {} s", limit.as_secs());
            thread::sleep(POLL_INTERVAL);
        };
        let stdout: Vec<String> = running.lines.iter().collect();
        Ok((status, stdout.join("\n"), std::fs::read_to_string(&running.log).unwrap_or_default()))
    }
}

impl Drop for HereChild {
    fn drop(&mut self) {
        // Its data goes with it, so there is nothing to end in order.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Becomes the program with these arguments, as a process that ends with the one that started it.
pub(crate) fn become_child(arguments: &[String]) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Err(Command::new(std::env::current_exe()?).args(arguments).exec().into())
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(SHOWN_LOG_LINES)..).unwrap_or_default().join("\n")
}

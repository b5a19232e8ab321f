//! HTTP proxies as companies have them: tinyproxy, which passes bytes, and mitmproxy, which opens TLS, or passes on whole requests and answers
//! alone.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Process;
use crate::topology::{Host, Lab};

/// Packages of Debian that bring the programs of the proxies; mitmproxy itself comes from PyPI.
pub const PACKAGES: &[&str] = &["python3-venv", "tinyproxy-bin"];

/// The port on which every proxy listens.
pub const PORT: u16 = 3128;

/// The version of mitmproxy that the stories were tried with.
const MITMPROXY: &str = "mitmproxy==11.0.2";

/// How long mitmproxy may take until it listens; it imports some hundred modules.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What a proxy is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Connects everybody to port 443.
    Open,
    /// The same for whoever gives this user name and password.
    Password(&'static str, &'static str),
    /// Connects to another port alone, which nobody needs.
    OtherPort,
    /// Opens TLS, and shows certificates of an authority of its own.
    Intercepting,
    /// The same, and refuses WebSockets.
    InterceptingBodies,
    /// Stands in for the web server at this address without anybody asking it to, and refuses WebSockets.
    InPlaceOf(Ipv4Addr),
    /// Answers in the place of every web server, and sends browsers to a page that wants a login.
    Portal,
}

impl Manner {
    /// Returns whether whoever uses it has to know of it.
    #[must_use]
    pub const fn is_asked(self) -> bool {
        !matches!(self, Self::InPlaceOf(_) | Self::Portal)
    }
}

/// What mitmproxy is told that refuses WebSockets.
const NO_UPGRADE: &str = "from mitmproxy import http

def request(flow):
    if 'upgrade' in flow.request.headers:
        flow.response = http.Response.make(403, b'not here')
";

/// What it is told that sends everybody to the page with the login.
const LOGIN: &str = "from mitmproxy import http

def request(flow):
    flow.response = http.Response.make(302, b'', {'Location': 'http://login.example/'})
";

/// A proxy; it ends when this value is dropped.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
}

impl Proxy {
    /// Starts a proxy at this host.
    ///
    /// # Errors
    /// When it does not start, with what it said.
    pub fn start(lab: &Lab, host: &Host, manner: Manner) -> Result<Self> {
        let (inside, outside) = lab.directory(&format!("proxy-{}", host.name()))?;
        let mut process = match manner {
            Manner::Intercepting | Manner::InterceptingBodies | Manner::InPlaceOf(_) | Manner::Portal => {
                mitmproxy(host, (&inside, &outside), manner)?
            }
            Manner::Open | Manner::Password(..) | Manner::OtherPort => {
                fs::write(outside.join("settings"), settings(manner)).context("cannot write the settings")?;
                host.command("tinyproxy").arg("-d").arg("-c").arg(inside.join("settings")).spawn()?
            }
        };
        let listens = format!("ss -ltn | grep -q ':{PORT} '");
        let waited_since = std::time::Instant::now();
        while host.wait_until(&listens).is_err() {
            ensure!(
                process.is_running() && waited_since.elapsed() < START_TIMEOUT,
                "the proxy does not serve:\n{}{}",
                process.stdout(),
                process.stderr()
            );
        }
        Ok(Self { process })
    }

    /// Ends it as a power failure would.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill(mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the proxy had ended:\n{}", self.process.stderr());
        self.process.kill()?;
        Ok(())
    }
}

/// Starts mitmproxy; its files are in a directory with one name inside and another one outside.
fn mitmproxy(host: &Host, (inside, outside): (&Path, &Path), manner: Manner) -> Result<Process> {
    let mut more = Vec::new();
    let server = match manner {
        Manner::InPlaceOf(server) => Some(server),
        // It is never asked.
        Manner::Portal => Some(Ipv4Addr::LOCALHOST),
        Manner::Intercepting | Manner::InterceptingBodies | Manner::Open => None,
        Manner::Password(..) | Manner::OtherPort => None,
    };
    if let Some(server) = server {
        more.extend(["--mode".to_owned(), format!("reverse:http://{server}:80")]);
        // Nothing is at that address where nobody is let through.
        more.extend(["--set", "connection_strategy=lazy"].map(str::to_owned));
    }
    let script = match manner {
        Manner::InterceptingBodies | Manner::InPlaceOf(_) => Some(NO_UPGRADE),
        Manner::Portal => Some(LOGIN),
        Manner::Intercepting | Manner::Open | Manner::Password(..) | Manner::OtherPort => None,
    };
    if let Some(script) = script {
        fs::write(outside.join("script.py"), script).context("cannot write the script")?;
        more.extend(["--scripts".to_owned(), inside.join("script.py").display().to_string()]);
    }
    host.command(mitmdump()?)
        .args(["--listen-host", "0.0.0.0", "--listen-port", &PORT.to_string(), "--ssl-insecure"])
        // Its own authority's keys are made anew and kept there. What is no HTTP within TLS does not pass.
        .arg("--set")
        .arg(format!("confdir={}", inside.display()))
        // Addresses of the lab look global, from which it takes nobody unless it is told.
        .args(["--set", "rawtcp=false", "--set", "block_global=false"])
        .args(more)
        .env("HOME", inside)
        .spawn()
}

fn settings(manner: Manner) -> String {
    let more = match manner {
        Manner::Password(user, password) => format!("BasicAuth {user} {password}\nConnectPort 443\n"),
        Manner::OtherPort => "ConnectPort 563\n".to_owned(),
        Manner::Open
        | Manner::Intercepting
        | Manner::InterceptingBodies
        | Manner::InPlaceOf(_)
        | Manner::Portal => "ConnectPort 443\n".to_owned(),
    };
    format!("Port {PORT}\nListen 0.0.0.0\nTimeout 600\nMaxClients 100\nLogLevel Connect\n{more}")
}

/// Returns where mitmproxy is; installs it into an environment of its own beside what cargo builds, the first time.
fn mitmdump() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no workspace")?;
    let home = workspace.join("target").join("lab-mitmproxy");
    let program = home.join("bin").join("mitmdump");
    if program.is_file() {
        return Ok(program);
    }
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    run(Command::new(home.join("bin").join("pip")).args(["install", "--quiet", MITMPROXY]))?;
    Ok(program)
}

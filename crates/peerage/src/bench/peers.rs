//! The same bytes through tunnels of other programs, if they are installed: they take turns with the own tunnel, to the same device.
//!
//! Each is started as its manual says, on loopback addresses, with nothing tuned and its files in a temporary directory.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    How,
    machine::milliseconds,
    report::{Case, Report, median},
    tcp::{self, Direction},
    tunnel::{Scene, Way, compare},
};

/// How long a program may take until bytes go through it.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether they do.
const READY_INTERVAL: Duration = Duration::from_millis(50);

/// Streams at once.
const STREAMS: [u64; 2] = [1, 8];

/// Connections that are opened to find out how long that takes.
const OPENED: u32 = 50;

/// Where Debian and others keep the server of OpenSSH, which is in nobody's search path.
const SSHD: &str = "/usr/sbin/sshd";

/// How a program is started that tunnels from a port to the device.
type Start = fn(&Bench<'_>, &mut Other) -> Result<()>;

/// The programs, and how each is started.
const OTHERS: [(&str, Start); 6] = [
    ("socat, two hops, not encrypted", socat),
    ("bore, not encrypted", bore),
    ("rathole, not encrypted", rathole),
    ("rathole with noise", rathole_noise),
    ("ssh -L", ssh),
    ("dumbpipe", dumbpipe),
];

/// Measures the own tunnel beside each program that is found in `programs` or in the search path.
pub(super) fn peers(how: &How, programs: Option<&Path>) -> Result<Report> {
    let scene = Scene::set_up()?;
    scene.network.settle(&scene.user, &scene.tunnel, |kind| kind == "direct")?;
    let own = scene.tunnelled();
    let bench = Bench { programs, device: scene.device.listen()? };
    let (mut cases, mut absent) = (Vec::new(), Vec::new());
    for (name, start) in OTHERS {
        match bench.start(start) {
            Ok(other) => cases.extend(beside(how, name, &other.way(), &own)?),
            Err(error) => absent.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(!cases.is_empty(), "there is nothing to compare with:\n{}", absent.join("\n"));
    if let Some(first) = cases.first_mut().filter(|_| !absent.is_empty()) {
        first.note("not_compared", absent);
    }
    Report::new("peers", "GB/s", "the program that is named", cases)
}

fn beside(how: &How, name: &str, other: &Way, own: &Way) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for streams in STREAMS {
        for way in Direction::BOTH {
            cases.push(compare(how, (other, own), way, streams)?.against(name));
        }
    }
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..if how.is_instant() { 1 } else { OPENED } {
        for (way, took) in [other, own].into_iter().zip(&mut took) {
            took.push(milliseconds(tcp::first_byte(way.at)?.1));
        }
    }
    let [theirs, ours] = took.map(median);
    if let Some(first) = cases.first_mut() {
        first.note("first_byte_ms", ours);
        first.note("reference_first_byte_ms", theirs);
    }
    Ok(cases)
}

/// What all of them need to know.
struct Bench<'a> {
    programs: Option<&'a Path>,
    device: SocketAddr,
}

/// A tunnel of another program. Its processes end with it.
struct Other {
    at: SocketAddr,
    running: Vec<Child>,
    directory: tempfile::TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        for mut child in self.running.drain(..).rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Bench<'_> {
    fn start(&self, start: Start) -> Result<Other> {
        let directory = tempfile::Builder::new().prefix("peerage-bench-").tempdir()?;
        let mut other = Other { at: free_port()?, running: Vec::new(), directory };
        start(self, &mut other)?;
        let at = other.at;
        other.wait_until(|| tcp::first_byte(at).map(drop))?;
        Ok(other)
    }

    /// Returns the program of this name.
    fn find(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.programs.map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        let mut found = folders.map(|folder| folder.join(name)).filter(|file| file.is_file());
        found.next().with_context(|| format!("{name} is not installed"))
    }
}

impl Other {
    fn way(&self) -> Way {
        Way { at: self.at, processes: self.running.iter().map(Child::id).collect() }
    }

    /// Starts a program with this name for its log.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = File::create(self.log(name))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C reaches the bench alone, which then ends what it has started.
        command.process_group(0).current_dir(self.directory.path());
        let what = command.get_program().to_owned();
        self.running.push(command.spawn().with_context(|| format!("cannot start {}", what.display()))?);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn wait_until<T>(&mut self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let began_at = Instant::now();
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let ended = self.running.iter_mut().any(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended || began_at.elapsed() > READY_TIMEOUT {
                return Err(error.context(format!("it does not work: {}", self.last_words())));
            }
            thread::sleep(READY_INTERVAL);
        }
    }

    fn last_words(&self) -> String {
        let files = fs::read_dir(self.directory.path()).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "log"));
        let last =
            logs.filter_map(|log| Some(fs::read_to_string(log.path()).ok()?.lines().last()?.to_owned()));
        last.collect::<Vec<_>>().join("; ")
    }
}

/// Returns a port that nobody listens on now, for programs that cannot choose one and say which.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

// ---- the programs -----------------------------------------------------------------------------

fn socat(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    let (program, near) = (bench.find("socat")?, free_port()?);
    for (name, at, target) in [("near", near, bench.device), ("far", other.at, near)] {
        let listen = format!("TCP4-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,nodelay", at.port());
        let target = format!("TCP4:{target},nodelay");
        other.run(name, Command::new(&program).args(["-b", "65536", &listen, &target]))?;
    }
    Ok(())
}

fn bore(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    let (program, port) = (bench.find("bore")?, other.at.port().to_string());
    let here = ["--bind-addr", "127.0.0.1", "--min-port", &port, "--max-port", &port];
    other.run("server", Command::new(&program).arg("server").args(here))?;
    let local = bench.device.port().to_string();
    let client = ["local", &local, "--to", "127.0.0.1", "--port", &port];
    // Its server listens on a port of its own choice, and the client ends where it is not there yet.
    let answer = SocketAddr::from((Ipv4Addr::LOCALHOST, BORE_CONTROL_PORT));
    other.wait_until(|| Ok(std::net::TcpStream::connect(answer).map(drop)?))?;
    other.run("client", Command::new(&program).args(client))
}

/// Where every server of bore listens for its clients.
const BORE_CONTROL_PORT: u16 = 7_835;

fn rathole(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    rathole_with(bench, other, ["", ""])
}

fn rathole_noise(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    let keys = Command::new(bench.find("rathole")?).arg("--genkey").output()?;
    let keys = String::from_utf8(keys.stdout)?;
    let [private, public] =
        rathole_keys(&keys).with_context(|| format!("rathole makes no keys but says {keys}"))?;
    let settings = |side: &str, field: &str, key: &str| {
        format!("[{side}.transport]\ntype = \"noise\"\n[{side}.transport.noise]\n{field} = \"{key}\"\n")
    };
    let server = settings("server", "local_private_key", private);
    let client = settings("client", "remote_public_key", public);
    rathole_with(bench, other, [&server, &client])
}

/// Returns the private and the public key of what `rathole --genkey` says: each on the line after its name.
fn rathole_keys(text: &str) -> Option<[&str; 2]> {
    let after = |name: &str| {
        let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with(name));
        lines.nth(1).filter(|key| !key.is_empty())
    };
    Some([after("Private Key")?, after("Public Key")?])
}

fn rathole_with(bench: &Bench<'_>, other: &mut Other, [server, client]: [&str; 2]) -> Result<()> {
    let (program, meeting) = (bench.find("rathole")?, free_port()?);
    let service = |side: &str, at: SocketAddr| {
        let field = if side == "server" { "bind_addr" } else { "local_addr" };
        format!("[{side}.services.device]\ntoken = \"bench\"\n{field} = \"{at}\"\nnodelay = true\n")
    };
    let server = format!("[server]\nbind_addr = \"{meeting}\"\n{server}{}", service("server", other.at));
    let client =
        format!("[client]\nremote_addr = \"{meeting}\"\n{client}{}", service("client", bench.device));
    for (side, settings) in [("server", server), ("client", client)] {
        let file = other.write(&format!("{side}.toml"), &settings)?;
        other.run(side, Command::new(&program).arg(format!("--{side}")).arg(file))?;
    }
    Ok(())
}

fn ssh(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    let (program, keygen) = (bench.find("ssh")?, bench.find("ssh-keygen")?);
    ensure!(Path::new(SSHD).is_file(), "sshd is not installed");
    let folder = other.directory.path().to_owned();
    for key in ["host", "user"] {
        let made = Command::new(&keygen)
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.join(key))
            .status()?;
        ensure!(made.success(), "ssh-keygen makes no key");
    }
    fs::copy(folder.join("user.pub"), folder.join("authorized"))?;
    let (at, folder) = (free_port()?, folder.display());
    let settings = format!(
        "ListenAddress {at}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n\
         UsePAM no\nPidFile none\nPasswordAuthentication no\n"
    );
    let settings = other.write("sshd_config", &settings)?;
    other.run("server", Command::new(SSHD).args(["-D", "-e", "-f"]).arg(settings))?;
    other.wait_until(|| Ok(std::net::TcpStream::connect(at).map(drop)?))?;
    let forward = format!("{}:{}", other.at, bench.device);
    let identity = other.directory.path().join("user");
    let known = format!("UserKnownHostsFile={}", other.directory.path().join("known").display());
    let mut client = Command::new(&program);
    client.args(["-N", "-L", &forward, "-p", &at.port().to_string(), "-i"]).arg(identity);
    client.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", &known, "-o", "BatchMode=yes"]);
    other.run("client", client.args(["-o", "ExitOnForwardFailure=yes", "127.0.0.1"]))
}

fn dumbpipe(bench: &Bench<'_>, other: &mut Other) -> Result<()> {
    let program = bench.find("dumbpipe")?;
    other.run("server", Command::new(&program).args(["listen-tcp", "--host", &bench.device.to_string()]))?;
    let log = other.log("server");
    let ticket = other.wait_until(|| {
        let said = fs::read_to_string(&log)?;
        dumbpipe_ticket(&said).map(str::to_owned).ok_or_else(|| anyhow!("it says no ticket"))
    })?;
    let client = ["connect-tcp", "--addr", &other.at.to_string(), &ticket].map(str::to_owned);
    other.run("client", Command::new(&program).args(client))
}

/// Returns the ticket of what dumbpipe says: the last word of the line that tells how to connect.
fn dumbpipe_ticket(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.contains("connect-tcp"))?;
    line.split_whitespace().last().filter(|ticket| ticket.len() > 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_rathole_are_read_from_what_it_says() {
        let said = "Private Key:\nabc=\n\nPublic Key:\ndef=\n";
        assert_eq!(rathole_keys(said), Some(["abc=", "def="]));
        assert_eq!(rathole_keys("Private Key:\n"), None);
    }

    #[test]
    fn the_ticket_of_dumbpipe_is_read_from_what_it_says() {
        let ticket = "nodeab".repeat(10);
        let said = format!("Forwarding.\nTo connect, use e.g.:\ndumbpipe connect-tcp {ticket}\n");
        assert_eq!(dumbpipe_ticket(&said), Some(ticket.as_str()));
        assert_eq!(dumbpipe_ticket("dumbpipe connect-tcp\n"), None);
    }

    #[test]
    fn a_program_that_ends_is_reported_with_its_last_words() {
        let device = free_port().unwrap();
        let bench = Bench { programs: None, device };
        let start: Start =
            |_, other| other.run("one", Command::new("/bin/sh").args(["-c", "echo no such option; exit 2"]));
        let error = bench.start(start).err().unwrap();
        assert!(format!("{error:#}").contains("no such option"), "{error:#}");
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let bench = Bench { programs: None, device: free_port().unwrap() };
        let error = bench.find("peerage-no-such-program").unwrap_err().to_string();
        assert_eq!(error, "peerage-no-such-program is not installed");
    }
}

//! The same bytes through tunnels of other programs, if they are installed: they take turns with the own tunnel, to the same device.
//!
//! Each is started as its manual says, on loopback addresses, with nothing tuned and its files in a temporary directory.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    How,
    machine::milliseconds,
    other::{Other, find, free_port},
    report::{Case, Report, median},
    ssh as openssh,
    tcp::{self, Direction},
    tunnel::{Scene, Way, compare},
};

/// Streams at once.
const STREAMS: [u64; 2] = [1, 8];

/// Connections that are opened to find out how long that takes.
const OPENED: u32 = 50;

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
            Ok(other) => cases.extend(beside(how, name, &way(&other), &own)?),
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

/// Starts dumbpipe, which is found there or in the search path, between a port and a device.
pub(super) fn start_dumbpipe(programs: &Path, device: SocketAddr) -> Result<Other> {
    Bench { programs: Some(programs), device }.start(dumbpipe)
}

/// Returns the way through a tunnel of another program.
pub(super) fn way(other: &Other) -> Way {
    Way { at: other.at, processes: other.processes() }
}

/// What all of them need to know.
struct Bench<'a> {
    programs: Option<&'a Path>,
    device: SocketAddr,
}

impl Bench<'_> {
    fn start(&self, start: Start) -> Result<Other> {
        let mut other = Other::new()?;
        start(self, &mut other)?;
        let at = other.at;
        other.wait_until(|| tcp::first_byte(at).map(drop))?;
        Ok(other)
    }

    /// Returns the program of this name.
    fn find(&self, name: &str) -> Result<PathBuf> {
        find(name, self.programs)
    }
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
    let program = bench.find("ssh")?;
    let at = free_port()?;
    openssh::serve(other, at)?;
    let forward = format!("{}:{}", other.at, bench.device);
    let mut client = Command::new(&program);
    client.args(["-N", "-L", &forward, "-p", &at.port().to_string()]);
    openssh::as_user(&mut client, other).args(["-o", "ExitOnForwardFailure=yes", "127.0.0.1"]);
    other.run("client", &mut client)
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
}

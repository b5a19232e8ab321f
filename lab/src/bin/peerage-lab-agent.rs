//! What the tests run on simulated hosts, always with two arguments:
//! `nat-server ADDRESS ADDRESS`, `nat-probe ADDRESS ADDRESS`, `device WEB RAW`, `fetch ENDPOINT MILLISECONDS`;
//! `map-port PROTOCOL GATEWAY`, for port 8080; `door SOCKET ENDPOINT`, `capture NEEDLES -`, which ends with its input;
//! `flow-device ENDPOINT -`, `flow ENDPOINT COUNT`, that many flows until its input ends, `first-byte ENDPOINT COUNT`,
//! `echo ENDPOINT -`, `exchange ENDPOINT BYTES`, which tells the microseconds to the first byte and to the last;
//! `watch URL -`, until its input ends; `wire INTERFACE INTERFACE`, with a manner on each line of its input;
//! and outside of them `hold-lab MARK -`, a lab with one process inside, to be killed, and `try-lab - -`, which makes
//! a small Internet and fetches a web page through a NAT.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use peerage_lab::device::{MappingProtocol, SampleDevice};
use peerage_lab::flow::{self, Flow};
use peerage_lab::netns::{self, Nat};
use peerage_lab::watch::Watch;
use peerage_lab::wire::{Manner, Wire};
use peerage_lab::{Lab, SiteConfig, capture, echo, mapping, probe};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, first, second] = arguments.as_slice() else { bail!("usage: ROLE ARGUMENT ARGUMENT") };
    match role.as_str() {
        "nat-server" => {
            let server = probe::Server::bind(first.parse()?, second.parse()?)?;
            say("ready")?;
            server.run()
        }
        "nat-probe" => say(&probe::measure(first.parse()?, second.parse()?)?.to_json().to_string()),
        "map-port" => {
            let mut all = MappingProtocol::ALL.into_iter();
            let protocol = all.find(|protocol| protocol.name() == first).context("no such protocol")?;
            say(&mapping::ask(protocol, second.parse()?, 8080)?.to_string())
        }
        "device" => {
            let device = SampleDevice::start(first.parse()?, second.parse()?)?;
            say(&format!("ready web={} raw={}", device.web(), device.raw()))?;
            sleep_for_ever()
        }
        "capture" => {
            let capture = capture::Capture::start(&capture::read_needles(first.as_ref())?)?;
            say("ready")?;
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            say(&capture.finish()?.to_json().to_string())
        }
        "flow-device" => {
            flow::serve(first.parse()?, |end| _ = say(&end.to_json().to_string()), || say("ready"))
        }
        "flow" => flows(first.parse()?, second.parse()?),
        "first-byte" => first_bytes(first.parse()?, second.parse()?),
        "echo" => echo::serve(first.parse()?, || say("ready")),
        "exchange" => {
            let done = echo::exchange(first.parse()?, second.parse()?)?;
            say(&format!("{} {}", done.first.as_micros(), done.whole.as_micros()))
        }
        "watch" => watch(first),
        "wire" => carry([first.as_str(), second.as_str()]),
        "door" => netns::serve_door(first.as_ref(), second.parse()?, || say("ready")),
        "fetch" => say(&fetch(first.parse()?, Duration::from_millis(second.parse()?))?),
        "hold-lab" => {
            let lab = Lab::new()?;
            let host = lab.public_host("host")?;
            let _inside = host.command("sh").args(["-c", &format!("sleep 100000; : {first}")]).spawn()?;
            say("ready")?;
            sleep_for_ever()
        }
        "try-lab" => try_lab(),
        other => bail!("there is no role {other}"),
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("nobody reads the output")
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn try_lab() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let agent = std::env::current_exe()?;
    let lab = Lab::new()?;
    let server = lab.public_host("server")?;
    let host = lab.site(SiteConfig::new("home").nat(Nat::EIM_EIF))?.host("pc")?;
    let mut device = server.command(&agent).args(["device", "0.0.0.0:80", "0.0.0.0:0"]).spawn()?;
    device.wait_for_line("it served", TIMEOUT, |line| line.starts_with("ready").then_some(()))?;
    let from = format!("{}:80", server.address());
    say(&host.command(&agent).args(["fetch", &from, "10000"]).output(TIMEOUT)?)
}

/// Fetches a web page.
fn fetch(from: SocketAddr, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// Bytes that each direction of a single flow carries in a second; many share it.
const RATE: u64 = 1 << 20;

/// Keeps up flows until the input ends; tells how many microseconds the first byte of any took, and when all flow. Then ends them in order and tells what came of each.
fn flows(to: SocketAddr, count: u64) -> Result<()> {
    let rate = RATE / count.max(1);
    let flowing = Arc::new(AtomicU64::new(0));
    let mut flows = Vec::new();
    for number in 0..count {
        let id = u64::from(std::process::id()) << 32 | number;
        let (flowing, began_at) = (Arc::clone(&flowing), Instant::now());
        let note = move || {
            let number = flowing.fetch_add(1, Ordering::Relaxed) + 1;
            if number == 1 {
                _ = say(&format!("first {}", began_at.elapsed().as_micros()));
            }
            if number == count {
                _ = say("flows");
            }
        };
        flows.push(Flow::start(to, id, rate, note)?);
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    flows.iter().for_each(Flow::stop);
    for flow in flows {
        say(&flow.finish()?.to_json().to_string())?;
    }
    say("ended")
}

/// Connects so many times, one after the other, and tells for each the microseconds to the first byte of the answer.
fn first_bytes(to: SocketAddr, count: u64) -> Result<()> {
    for _turn in 0..count {
        let began_at = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        // The smallest flow: its device begins to send when it has the head.
        stream.write_all(&[0, RATE].map(u64::to_le_bytes).concat())?;
        stream.read_exact(&mut [0])?;
        say(&began_at.elapsed().as_micros().to_string())?;
    }
    Ok(())
}

/// Watches a camera until the input ends, then tells what was seen.
fn watch(url: &str) -> Result<()> {
    let watch = Watch::start(url, || _ = say("plays"))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    say(&watch.finish()?.to_json().to_string())
}

/// Carries frames, in the manner that was last read.
fn carry(interfaces: [&str; 2]) -> Result<()> {
    let wire = Wire::start(interfaces)?;
    say("ready")?;
    for line in std::io::stdin().lines() {
        wire.set(Manner::parse(&line?)?);
        say("set")?;
    }
    Ok(())
}

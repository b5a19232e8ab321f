//! Super-nodes at the web's ports: a user whose network lets out nothing else reaches a device by one of them, and not by the operator, who
//! can be reached at no such port.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::player::wait_until;
use super::village::{Cast, More, Stage, WEB_PORT};

/// What the home's router lets out, instead of everything: connections to the port for HTTPS.
const WALL: &str = "table inet blocking {
 counter dropped { }
 chain forward {
  type filter hook forward priority filter - 5;
  iifname != \"lan\" accept
  tcp dport 443 accept
  counter name dropped drop
 }
}
";

/// How long a byte may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Plays the story with these programs and tells `progress` about each step.
pub fn web_ports(programs: &Programs, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    report.error = play(programs, &mut report, &mut say).err();
    report
}

fn play(programs: &Programs, report: &mut Report, say: &mut dyn FnMut(&str)) -> Result<()> {
    say(
        "building an office and a home; starting an operator, three super-nodes at the web's port as well, and three nodes",
    );
    let stage = Stage::build(More { lenders: 3, is_at_web_ports: true, ..More::NONE })?;
    let mut cast = Cast::start(&stage, programs)?;
    let result = visit(&mut cast, report, say);
    if result.is_err() {
        say(&cast.logs());
    }
    result?;
    say("ending all programs in order");
    cast.stop()
}

fn visit(cast: &mut Cast<'_>, report: &mut Report, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("the home's router lets out connections to port 443 alone; the node there starts anew");
    cast.stage.home.router().load_nft(WALL)?;
    cast.user.kill()?;
    let began_at = Instant::now();
    cast.user.start()?;
    let lenders: Vec<_> =
        cast.stage.lenders.iter().map(|host| format!("{}:{WEB_PORT}", host.address())).collect();
    wait_until("messages go to a super-node inside TLS", || {
        let status = cast.user.peerage.call(&["status"])?;
        let carriers = status.get("carriers").and_then(Value::as_array);
        let is_meant = |carrier: &Value| {
            let address = carrier.get("address").and_then(Value::as_str).unwrap_or_default();
            carrier.get("carrier") == Some(&json!("tls")) && lenders.iter().any(|own| own == address)
        };
        Ok(if carriers.into_iter().flatten().any(is_meant) { Ok(()) } else { Err(status) })
    })?;
    report.note("messages_ms", u64::try_from(began_at.elapsed().as_millis())?);
    say("a tunnel");
    wait_until("a tunnel is opened", || Ok(cast.connect().map_err(|error| format!("{error:#}").into())))?;
    let mut process = cast.agent(&["first-byte", &cast.local()?, "1"])?;
    process.feed(&[]);
    process.finish(TIMEOUT)?.success("the first byte")?;
    report.note("first_byte_ms", u64::try_from(began_at.elapsed().as_millis())?);
    let (kind, remote) = cast.path()?;
    ensure!(kind == "relayed" && lenders.contains(&remote), "the path is {kind} by {remote}");
    report.note("path", json!({ "kind": kind, "remote": remote }));
    Ok(())
}

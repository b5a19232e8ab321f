//! The demonstration as its user sees it. That in simulated networks needs the packages which `cargo xtask test`
//! installs, and a kernel that allows user namespaces.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{interval, timeout},
};

/// How long the demonstration may take; without optimisation it takes a tenth of that.
const LIMIT: Duration = Duration::from_secs(150);

/// How often it is looked whether something is gone.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[tokio::test]
async fn all_that_goes_through_each_path_between_simulated_networks_arrives() {
    let temporary = tempfile::tempdir().unwrap();
    let report = once(&[], temporary.path()).await;
    assert_eq!(report["mode"], "namespaces", "{report}");
    let paths = report["paths"].as_array().unwrap();
    let path = |path: &Value| [&path["kind"], &path["remote"]].map(|text| text.as_str().unwrap().to_owned());
    let [local, direct, mapped, punched, relayed] = &paths.iter().map(path).collect::<Vec<_>>()[..] else {
        panic!("{report}")
    };
    assert_eq!(local, &["local", "192.168.1.50:9100"], "straight to the printer");
    assert_eq!(direct, &["direct", "45.1.0.2:4242"], "through the port that the office's router forwards");
    assert_eq!(mapped[0], "mapped");
    assert!(
        mapped[1].starts_with("45.1.2.2:"),
        "through one that the workshop's router has given: {mapped:?}"
    );
    assert_eq!(punched[0], "punched");
    assert!(punched[1].starts_with("45.1.3.2:"), "through the cabin's router: {punched:?}");
    assert_eq!(relayed, &["relayed", "45.0.0.2:4240"], "through the operator's relay");
}

#[tokio::test]
async fn all_that_goes_through_each_path_on_loopback_arrives() {
    let temporary = tempfile::tempdir().unwrap();
    let report = once(&["--loopback"], temporary.path()).await;
    assert_eq!(report["mode"], "loopback", "{report}");
    assert!(report["reason"].as_str().unwrap().contains("loopback"));
}

#[tokio::test]
async fn the_page_is_served_until_ctrl_c_and_then_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(&["--loopback", "--json"], temporary.path()).spawn().unwrap();
    let web = ready(&mut child).await;
    let page = fetch(web, "/").await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("You are seeing this through"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page must not load from elsewhere");
    let shown = fetch(web, "/status.json").await.unwrap();
    assert!(shown.contains("\"one_machine\":true"), "{shown}");
    signal(&child, Signal::SIGINT);
    let output = ended(child).await;
    assert!(output.status.success(), "{output:?}");
    assert!(fetch(web, "/").await.is_err());
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn its_programs_end_with_it_when_it_is_killed() {
    for arguments in [&["--loopback", "--json"][..], &["--json"]] {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = demo(arguments, temporary.path()).spawn().unwrap();
        let web = ready(&mut child).await;
        assert!(fetch(web, "/").await.is_ok());
        let program = temporary.path().display().to_string();
        child.kill().await.unwrap();
        let gone = async {
            let mut ticks = interval(POLL_INTERVAL);
            while fetch(web, "/").await.is_ok() || is_mentioned(&program) {
                ticks.tick().await;
            }
        };
        timeout(LIMIT, gone).await.unwrap();
    }
}

/// Says whether a process was started with these words.
fn is_mentioned(words: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(words))
}

fn demo(arguments: &[&str], temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.arg("demo").args(arguments).env("TMPDIR", temporary);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs it with `--once` and returns its report, which must be good.
async fn once(arguments: &[&str], temporary: &Path) -> Value {
    let arguments = [&["--once", "--json"], arguments].concat();
    let output = ended(demo(&arguments, temporary).spawn().unwrap()).await;
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true);
    let paths = report["paths"].as_array().unwrap();
    assert!(!paths.is_empty());
    for path in paths {
        assert_eq!((&path["ok"], &path["bytes"]), (&json!(true), &json!(2 * (64 << 20))));
        assert!(path["mb_per_s"].as_f64().unwrap() > 0.0 && path["first_byte_ms"].as_f64().unwrap() > 0.0);
    }
    report
}

/// Reads its first line: where the page is.
async fn ready(child: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["event"], "ready", "{ready}");
    let web = ready["web"].as_str().unwrap();
    web.trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
}

async fn fetch(web: SocketAddr, path: &str) -> std::io::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(web).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {web}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    };
    timeout(LIMIT, asked).await.unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

async fn ended(child: Child) -> Output {
    timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap()
}

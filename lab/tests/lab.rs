//! The simulated Internet is one, keeps to itself, and leaves nothing behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use peerage_lab::capture::write_needles;
use peerage_lab::netns::{Doorway, Egress, Nat, Process};
use peerage_lab::{Host, Lab, SiteConfig};

const AGENT: &str = env!("CARGO_BIN_EXE_peerage-lab-agent");
const TIMEOUT: Duration = Duration::from_secs(30);

/// Starts a sample device whose web page is at this port.
fn device(host: &Host, port: u16) -> Result<Process> {
    let web = format!("[::]:{port}");
    let mut device = host.command(AGENT).args(["device", &web, "0.0.0.0:0"]).spawn()?;
    device.wait_for_line("it served", TIMEOUT, |line| line.starts_with("ready").then_some(()))?;
    Ok(device)
}

/// Tries to fetch a web page with the agent.
fn fetches(host: &Host, from: impl std::fmt::Display, port: u16) -> Result<bool> {
    let finished = host.command(AGENT).args(["fetch", &format!("{from}:{port}"), "2000"]).run(TIMEOUT)?;
    ensure!(matches!(finished.status.code(), Some(0 | 1)), "the agent failed: {}", finished.stderr);
    Ok(finished.stdout.contains("Sample printer"))
}

#[test]
fn two_sites_with_the_same_prefix_reach_a_public_host_but_not_each_other() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let (one, two) = (lab.site(SiteConfig::new("one")).unwrap(), lab.site(SiteConfig::new("two")).unwrap());
    let (here, there) = (one.host("pc").unwrap(), two.host("pc").unwrap());
    assert_eq!(here.address(), there.address());
    assert_eq!(here.address().to_string(), "192.168.1.10");
    let neighbour = two.host("neighbour").unwrap();
    let _devices = [device(&server, 80).unwrap(), device(&neighbour, 80).unwrap()];

    assert!(fetches(&here, server.address(), 80).unwrap());
    assert!(fetches(&there, server.address(), 80).unwrap());
    assert!(fetches(&there, neighbour.address(), 80).unwrap());
    assert!(
        !fetches(&here, neighbour.address(), 80).unwrap(),
        "the other LAN was reached by its private address"
    );
    assert!(!fetches(&server, two.public_address(), 80).unwrap(), "the router let a stranger in");
}

#[test]
fn a_forwarded_port_leads_to_the_host_behind_the_router() {
    let lab = Lab::new().unwrap();
    let outside = lab.public_host("outside").unwrap();
    let site = lab.site(SiteConfig::new("office").nat(Nat::EIM_APDF)).unwrap();
    let host = site.host("node").unwrap();
    let _device = device(&host, 4242).unwrap();
    assert!(!fetches(&outside, site.public_address(), 4242).unwrap());
    site.forward(4242, &host).unwrap();
    assert!(fetches(&outside, site.public_address(), 4242).unwrap());
}

#[test]
fn a_web_only_firewall_lets_nothing_but_the_web_out() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let site = lab.site(SiteConfig::new("corp").egress(Egress::WebOnly)).unwrap();
    let host = site.host("pc").unwrap();
    let _devices = [device(&server, 443).unwrap(), device(&server, 8080).unwrap()];
    assert!(fetches(&host, server.address(), 443).unwrap());
    assert!(!fetches(&host, server.address(), 8080).unwrap());
}

#[test]
fn two_labs_with_the_same_names_live_side_by_side() {
    let labs = [Lab::new().unwrap(), Lab::new().unwrap()];
    let hosts: Vec<Host> = labs.iter().map(|lab| lab.public_host("server").unwrap()).collect();
    let _device = device(&hosts[0], 80).unwrap();
    assert!(fetches(&hosts[0], hosts[0].address(), 80).unwrap());
    assert!(!fetches(&hosts[1], hosts[1].address(), 80).unwrap());
}

#[test]
fn a_machine_has_its_own_host_name_interfaces_and_run_directory() {
    let lab = Lab::new().unwrap();
    let (one, two) = (lab.public_host("one").unwrap(), lab.public_host("two").unwrap());
    let look = "hostname; ls /sys/class/net | tr '\\n' ' '; touch /run/private\n";
    assert_eq!(one.script(look).unwrap().trim(), "one\neth0 lo");
    assert_eq!(two.script("ls /run/private 2>/dev/null || echo none\n").unwrap().trim(), "none");
    let (inside, outside) = lab.directory("shared").unwrap();
    fs::write(outside.join("file"), "from outside").unwrap();
    let read = |host: &Host| host.command("cat").arg(inside.join("file")).output(TIMEOUT).unwrap();
    assert_eq!((read(&one), read(&two)), ("from outside".to_owned(), "from outside".to_owned()));
}

#[test]
fn a_program_that_was_stopped_and_goes_on_can_be_told_to_end() {
    let lab = Lab::new().unwrap();
    let host = lab.public_host("server").unwrap();
    let mut device = device(&host, 80).unwrap();
    device.signal(Signal::SIGSTOP).unwrap();
    device.signal(Signal::SIGCONT).unwrap();
    assert!(fetches(&host, host.address(), 80).unwrap());
    device.terminate(TIMEOUT).unwrap();
}

#[test]
fn a_doorway_leads_a_program_outside_to_a_port_of_a_machine() {
    let lab = Lab::new().unwrap();
    let host = lab.site(SiteConfig::new("home")).unwrap().host("pc").unwrap();
    let _device = device(&host, 80).unwrap();
    let (inside, outside) = lab.directory("doors").unwrap();
    let mut door =
        host.command(AGENT).arg("door").arg(inside.join("web")).arg("127.0.0.1:80").spawn().unwrap();
    door.wait_for_line("the door was there", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    let doorway = Doorway::open(0, outside.join("web")).unwrap();
    for _ in 0..3 {
        let mut browser = TcpStream::connect(doorway.address()).unwrap();
        browser.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        browser.read_to_string(&mut page).unwrap();
        assert!(page.contains("Sample printer"), "{page}");
    }
}

#[test]
fn a_capture_finds_what_was_readable_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let host = lab.site(SiteConfig::new("home")).unwrap().host("pc").unwrap();
    let _device = device(&server, 80).unwrap();
    let (inside, outside) = lab.directory("capture").unwrap();
    let needles: [&[u8]; 3] = [b"<h1>Sample printer</h1>", b"GET / HTTP/1.0", b"never on the wire"];
    write_needles(&outside.join("needles"), &needles).unwrap();
    let mut listener =
        lab.core().command(AGENT).arg("capture").arg(inside.join("needles")).arg("-").spawn().unwrap();
    listener.wait_for_line("it listened", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    assert!(fetches(&host, server.address(), 80).unwrap());
    listener.feed(&[]);
    let heard = listener.finish(TIMEOUT).unwrap().success("the capture").unwrap().stdout;
    let heard: serde_json::Value = serde_json::from_str(heard.lines().last().unwrap()).unwrap();
    assert_eq!(heard["needles"], serde_json::json!([0, 1]), "{heard}");
}

#[test]
fn a_site_without_udp_still_has_the_rest() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let host = lab.site(SiteConfig::new("corp").egress(Egress::NoUdp)).unwrap().host("pc").unwrap();
    let (first, second) = (server.address().to_string(), server.second_address().to_string());
    let mut stun = server.command(AGENT).args(["nat-server", &first, &second]).spawn().unwrap();
    stun.wait_for_line("it served", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    let _device = device(&server, 80).unwrap();
    assert!(fetches(&host, server.address(), 80).unwrap());
    let probe = host.command(AGENT).args(["nat-probe", &first, &second]).run(TIMEOUT).unwrap();
    assert!(probe.stderr.contains("does not answer"), "{probe:?}");
}

#[test]
fn signals_and_exit_codes_pass_between_a_program_inside_and_its_owner() {
    let lab = Lab::new().unwrap();
    let host = lab.public_host("host").unwrap();
    let script = "trap 'exit 7' TERM; echo ready; while :; do read line || exit 3; done";
    let mut program = host.command("sh").args(["-c", script]).spawn().unwrap();
    program.wait_for_line("the trap was set", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    program.signal(Signal::SIGTERM).unwrap();
    program.feed(b"wake up\n");
    assert_eq!(program.wait(TIMEOUT).unwrap().code(), Some(7));
}

#[test]
fn an_ordinary_user_without_any_privilege_can_make_a_lab() {
    // The folder of the build may be closed to others.
    let folder = std::env::temp_dir().join(format!("peerage-lab-{}", std::process::id()));
    let agent = folder.join("agent");
    fs::create_dir(&folder).unwrap();
    fs::copy(AGENT, &agent).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    let output = command.arg("--no-new-privs").arg(&agent).args(["try-lab", "-", "-"]).output().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("Sample printer"), "{output:?}");
}

/// Returns whether a process runs whose command line contains this text.
fn runs(text: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        !command_line.is_empty() && String::from_utf8_lossy(&command_line).contains(text)
    })
}

/// Waits until a process runs whose command line contains this text.
fn begins(text: &str) -> bool {
    comes_to(|| runs(text))
}

/// Waits until none does.
fn ends(text: &str) -> bool {
    comes_to(|| !runs(text))
}

fn comes_to(state: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    while !state() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_dropped_lab_leaves_no_process_and_no_file() {
    let mark = format!("lab-drop-{}", std::process::id());
    let lab = Lab::new().unwrap();
    let host = lab.public_host("host").unwrap();
    let (_, outside) = lab.directory("files").unwrap();
    // A daemon: it left the process group of the command that started it.
    host.script(&format!("setsid sh -c 'sleep 100000; : {mark}' </dev/null >/dev/null 2>&1 &\n")).unwrap();
    // The shell that was put into the background may not have got that far.
    assert!(begins(&mark));
    drop((host, lab));
    assert!(ends(&mark));
    assert!(!Path::new(&outside).exists());
}

#[test]
fn a_killed_owner_takes_its_lab_along() {
    let mark = format!("lab-kill-{}", std::process::id());
    let mut owner = std::process::Command::new(AGENT)
        .args(["hold-lab", &mark, "-"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = owner.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(begins(&format!("sleep 100000; : {mark}")));
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(ends(&format!("sleep 100000; : {mark}")));
}

#[test]
fn a_site_with_ipv6_gets_out_and_lets_nobody_in_whom_it_did_not_call() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let outside = lab.add_ipv6(&server).unwrap();
    let only = lab.site(SiteConfig::new("v6only").with_ipv6().egress(Egress::Ipv6Only)).unwrap();
    let both = lab.site(SiteConfig::new("both").with_ipv6()).unwrap();
    let hosts = [only.host("pc").unwrap(), both.host("pc").unwrap()];
    let _devices: Vec<_> = hosts.iter().chain([&server]).map(|host| device(host, 80).unwrap()).collect();
    for host in &hosts {
        let inside = format!("[{}]", host.ipv6().unwrap());
        assert!(fetches(host, format!("[{outside}]"), 80).unwrap(), "{}", host.name());
        assert!(!fetches(&server, &inside, 80).unwrap(), "{}", host.name());
        assert!(fetches(host, &inside, 80).unwrap(), "{}", host.name());
    }
    assert!(!fetches(&hosts[0], server.address(), 80).unwrap());
    assert!(fetches(&hosts[1], server.address(), 80).unwrap());
}

#[test]
fn a_site_with_web_ports_only_reaches_those_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let host = lab.site(SiteConfig::new("hotel").egress(Egress::WebOnly)).unwrap().host("pc").unwrap();
    let _devices = [80, 443, 4242].map(|port| device(&server, port).unwrap());
    let reached = [80, 443, 4242].map(|port| fetches(&host, server.address(), port).unwrap());
    assert_eq!(reached, [true, true, false]);
    let (first, second) = (server.address().to_string(), server.second_address().to_string());
    let mut stun = server.command(AGENT).args(["nat-server", &first, &second]).spawn().unwrap();
    stun.wait_for_line("it served", TIMEOUT, |line| (line == "ready").then_some(())).unwrap();
    assert!(!host.command(AGENT).args(["nat-probe", &first, &second]).run(TIMEOUT).unwrap().status.success());
}

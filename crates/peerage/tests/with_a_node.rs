//! The commands that ask a node, against a real local API whose answers the test knows.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use peerage_client::{
    Problem, ProblemKind, Protocol, Role, Service,
    local::{
        Clock, Device, DeviceState, Elected, Election, Event, EventDetail, Head, Nat, NodeIdentity,
        NodeState, OpenTunnel, Path, PathKind, Privacy, ReachableVia, Records, Status, SuperLimits,
        SuperNode, SuperOff, SuperOn, SuperRange, SuperState, Tunnel, TunnelState,
    },
};
use peerage_node::local_api::{Backend, Socket, serve};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::{broadcast, mpsc, oneshot},
};

mod questions {
    use super::*;

    #[tokio::test]
    async fn status_as_json_is_what_the_node_says_and_its_open_tunnels() {
        let node = TestNode::start();
        let output = node.run(&["status", "--json"]).await;
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["node"]["name"], "front-desk");
        assert_eq!(shown["discards"]["bad-signature"], 3);
        assert_eq!(shown["open_tunnels"], Value::Array(Vec::new()));
    }

    #[tokio::test]
    async fn status_for_people_is_aligned_and_says_what_to_know() {
        let text = text(&TestNode::start().run(&["status"]).await);
        for line in [
            "node               front-desk (n1)",
            "domain             acme (7)",
            "state              online",
            "roles              user, tunnel",
            "head               revocation freshness: 10 min 0 s; number 5, epoch 2, 1 revoked",
            "clock              1 h 0 min fast, learned from op",
            "super-node         serving",
            "                   the whole table, 12 records in 62.5 KiB, 3 nodes attached",
            "discarded          bad-signature 3",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}:\n{text}");
        }
        let served = "served at          eth0, location 0123456789abcdef: by this computer (elected ";
        assert!(text.lines().any(|shown| shown.starts_with(served)), "{text}");
    }

    #[tokio::test]
    async fn lending_sends_the_limits_that_were_given_and_says_what_is_lent() {
        let node = TestNode::start();
        let limits = ["--max-memory", "64MiB", "--max-rate", "10MB/s", "--max-daily", "20GB"];
        let output = node.run(&[&["super", "on", "--json"], &limits[..]].concat()).await;
        let lent: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(lent["limits"]["max_memory_bytes"], 64 << 20);
        assert_eq!(lent["limits"]["max_bytes_per_second"], 10_000_000);
        assert_eq!(lent["limits"]["max_bytes_per_day"], 20_000_000_000_u64);
        assert_eq!(lent["limits"]["max_tunnels"], 0, "what was not given is not sent");
        let text = text(&node.run(&["super", "status"]).await);
        assert!(text.contains("serving") && text.contains("70 requests answered"), "{text}");
        let wrong = node.run(&["super", "on", "--max-memory", "64"]).await;
        assert_eq!(wrong.status.code(), Some(2));
        assert!(String::from_utf8(wrong.stderr).unwrap().contains("64MiB"));
    }

    #[tokio::test]
    async fn super_off_says_what_became_of_what_was_held() {
        let node = TestNode::start();
        let said = text(&node.run(&["super", "off"]).await);
        assert!(said.contains("others hold what it held"), "{said}");
        let output = node.run(&["super", "off", "--json"]).await;
        let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&ended["handed_over"], &ended["super_node"]["state"]),
            (&Value::from(true), &Value::from("off"))
        );
    }

    #[tokio::test]
    async fn devices_are_a_table_and_names_cannot_steer_the_terminal() {
        let node = TestNode::start();
        let known = text(&node.run(&["devices"]).await);
        assert_eq!(
            known.lines().collect::<Vec<_>>(),
            [
                "DEVICE  KIND     SERVICES                              STATE      NODES  LOCAL  SERVED HERE",
                "hp      printer  ipp=631, https=443/tls, snmp=161/udp  reachable  2      no     no",
            ]
        );
        let refreshed = text(&node.run(&["devices", "--refresh"]).await);
        assert!(refreshed.contains("\u{fffd}[2Jnew") && !refreshed.contains('\u{1b}'), "{refreshed}");
    }

    #[tokio::test]
    async fn down_returns_when_the_node_no_longer_answers() {
        let node = TestNode::start();
        assert_eq!(text(&node.run(&["down"]).await), "The node has ended.\n");
        assert_eq!(node.run(&["status"]).await.status.code(), Some(1));
    }
}

mod connect {
    use super::*;

    #[tokio::test]
    async fn the_first_line_says_where_to_connect_and_a_signal_closes_the_tunnel() {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut node = TestNode::start();
            let (mut child, mut lines) = node.spawn(&["connect", "hp:ipp", "--json"]);
            let first = json_line(&mut lines).await;
            assert_eq!(first["event"], "listening");
            assert_eq!(first["local"], "127.0.0.1:40123");
            assert_eq!((&first["device"], &first["service"]), (&Value::from("hp"), &Value::from("ipp")));
            assert_eq!(first["path"], Value::Null);
            end(&child, signal);
            assert_eq!(json_line(&mut lines).await["event"], "closed");
            assert_eq!(child.wait().await.unwrap().code(), Some(0));
            assert_eq!(node.closed.recv().await.unwrap(), "0");
        }
    }

    #[tokio::test]
    async fn status_shows_each_open_tunnel_with_its_path_and_who_can_read() {
        let node = TestNode::start();
        let (_child, mut lines) = node.spawn(&["connect", "hp:ipp", "--json"]);
        json_line(&mut lines).await;
        node.backend.find_path();
        let shown = text(&node.run(&["status"]).await);
        let tunnels: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("TUNNEL")).collect();
        assert_eq!(
            tunnels,
            [
                "TUNNEL  LOCAL PORT       STATE  PATH                      SENT     RECEIVED  CONNECTIONS  WHO CAN READ",
                "hp:ipp  127.0.0.1:40123  ready  direct 198.51.100.7:4433  1.0 KiB  0 B       0            \
                 the tunnel-node can read (device has no TLS)",
            ]
        );
    }

    #[tokio::test]
    async fn a_tunnel_ends_with_a_connect_that_is_killed() {
        let mut node = TestNode::start();
        let (mut child, mut lines) = node.spawn(&["connect", "hp:ipp", "--json"]);
        json_line(&mut lines).await;
        child.kill().await.unwrap();
        assert_eq!(node.closed.recv().await.unwrap(), "0");
    }

    #[tokio::test]
    async fn a_signal_ends_connect_although_the_node_does_not_answer_any_more() {
        let node = TestNode::start();
        let (child, mut lines) = node.spawn(&["connect", "hp:ipp", "--json"]);
        json_line(&mut lines).await;
        end(&child, Signal::SIGTERM);
        let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap());
        // Nothing of the node runs while this thread waits.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        assert_eq!(waitid(Id::Pid(pid), flags).unwrap(), WaitStatus::Exited(pid, 0));
    }

    #[tokio::test]
    async fn a_path_that_is_found_later_is_told_once() {
        let node = TestNode::start();
        let (child, mut lines) = node.spawn(&["connect", "hp", "--json"]);
        json_line(&mut lines).await;
        for _ in 0..2 {
            node.backend.find_path();
        }
        let changed = json_line(&mut lines).await;
        assert_eq!((&changed["event"], &changed["state"]), (&Value::from("changed"), &Value::from("ready")));
        assert_eq!(changed["path"]["kind"], "direct");
        end(&child, Signal::SIGTERM);
        assert_eq!(json_line(&mut lines).await["event"], "closed");
    }

    #[tokio::test]
    async fn when_the_node_closes_the_tunnel_connect_fails_with_its_reason() {
        let node = TestNode::start();
        let (child, mut lines) = node.spawn(&["connect", "hp:ipp"]);
        let first = lines.next_line().await.unwrap().unwrap();
        assert_eq!(first, "hp:ipp is at 127.0.0.1:40123 (tcp) until Ctrl-C.");
        node.backend.close_tunnel("0").await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "error: the node has closed the tunnel\n  asked to\n");
    }

    #[tokio::test]
    async fn a_refusal_of_the_node_is_told_with_its_advice() {
        let node = TestNode::start();
        let output = node.run(&["connect", "absent", "--json"]).await;
        assert_eq!(output.status.code(), Some(1));
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["error"]["type"], "urn:peerage:problem:unknown-device");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "error: Unknown device\n  See `peerage devices`.\n");
        let output = node.run(&["connect", "hp", "--listen", "0.0.0.0:0"]).await;
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: Not a loopback address\n  "));
    }
}

struct TestNode {
    data: tempfile::TempDir,
    backend: Arc<FakeBackend>,
    closed: mpsc::UnboundedReceiver<String>,
}

impl TestNode {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (close, closed) = mpsc::unbounded_channel();
        let backend = Arc::new(FakeBackend {
            tunnels: Mutex::default(),
            events: broadcast::channel(16).0,
            closed: close,
            stop: Mutex::new(Some(stop)),
        });
        let socket = Socket::bind(data.path()).unwrap();
        tokio::spawn(serve(socket, Arc::clone(&backend), async move {
            stopped.await.unwrap();
        }));
        Self { data, backend, closed }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
        command
            .env_clear()
            .args(args)
            .arg("--data")
            .arg(self.data.path())
            .kill_on_drop(true)
            .stdin(Stdio::null());
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    fn spawn(&self, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }
}

fn end(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), signal).unwrap();
}

async fn json_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("the program has ended"));
    serde_json::from_str(&line).unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

struct FakeBackend {
    tunnels: Mutex<Vec<Tunnel>>,
    events: broadcast::Sender<Event>,
    closed: mpsc::UnboundedSender<String>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

impl FakeBackend {
    fn tell(&self, detail: EventDetail) {
        // Without a reader there is nobody to tell.
        let _ = self.events.send(Event { at_ms: 1_700_000_000_000, detail });
    }

    fn find_path(&self) {
        let mut tunnels = self.tunnels.lock().unwrap();
        tunnels[0].state = TunnelState::Ready;
        tunnels[0].path = Some(Path {
            kind: PathKind::Direct,
            remote: "198.51.100.7:4433".parse().unwrap(),
            tunnel_node: Some("n2".to_owned()),
        });
        self.tell(EventDetail::TunnelChanged { tunnel: tunnels[0].clone() });
    }
}

impl Backend for FakeBackend {
    async fn status(&self) -> Result<Status, Problem> {
        Ok(Status {
            node: NodeIdentity {
                id: "n1".to_owned(),
                domain: 7,
                domain_name: Some("acme".to_owned()),
                name: "front-desk".to_owned(),
                roles: vec![Role::User, Role::Tunnel],
                version: "0.1.0".to_owned(),
            },
            state: NodeState::Online,
            operators: Vec::new(),
            carriers: Vec::new(),
            clock: Clock { offset_ms: -3_600_000, learned_from: Some("op".to_owned()) },
            locations: Vec::new(),
            head: Some(Head { age_ms: 600_000, sequence: 5, epoch: 2, revocations: 1 }),
            port_mappings: Vec::new(),
            elections: vec![Election {
                location: "0123456789abcdef".to_owned(),
                interface: Some("eth0".to_owned()),
                candidates: Vec::new(),
                serving: vec![Elected { node: "n1".to_owned(), since_at_ms: 0 }],
                stands_in: false,
                hears_others: true,
            }],
            attachments: Vec::new(),
            nat: Nat::default(),
            proxy: None,
            devices: 1,
            serves: Vec::new(),
            tunnels: 0,
            listen: vec!["[::]:41000".parse().unwrap()],
            advertised: Vec::new(),
            records: Records { node_expires_at_ms: 1_800_000_000_000, info_expires_at_ms: None },
            super_node: serving(),
            discards: BTreeMap::from([("bad-signature".to_owned(), 3), ("stale".to_owned(), 0)]),
            warnings: Vec::new(),
        })
    }

    async fn devices(&self) -> Result<Vec<Device>, Problem> {
        Ok(vec![device("hp")])
    }

    async fn refresh_devices(&self) -> Result<Vec<Device>, Problem> {
        Ok(vec![device("hp"), device("\u{1b}[2Jnew")])
    }

    async fn tunnels(&self) -> Result<Vec<Tunnel>, Problem> {
        Ok(self.tunnels.lock().unwrap().clone())
    }

    async fn open_tunnel(&self, request: OpenTunnel) -> Result<Tunnel, Problem> {
        if request.device != "hp" {
            return Err(Problem::new(ProblemKind::UnknownDevice, "See `peerage devices`."));
        }
        let tunnel = Tunnel {
            id: "0".to_owned(),
            device: request.device,
            service: request.service.unwrap_or_else(|| "ipp".to_owned()),
            protocol: Protocol::Tcp,
            local: "127.0.0.1:40123".parse().unwrap(),
            state: TunnelState::Connecting,
            path: None,
            bytes_sent: 1024,
            bytes_received: 0,
            connections: 0,
            opened_at_ms: 1_700_000_000_000,
            privacy: Privacy::TunnelNodeCanRead,
        };
        self.tunnels.lock().unwrap().push(tunnel.clone());
        Ok(tunnel)
    }

    async fn close_tunnel(&self, id: &str) -> Result<(), Problem> {
        let mut tunnels = self.tunnels.lock().unwrap();
        let Some(at) = tunnels.iter().position(|tunnel| tunnel.id == id) else {
            return Err(Problem::new(ProblemKind::UnknownTunnel, ""));
        };
        tunnels.remove(at);
        self.closed.send(id.to_owned()).unwrap();
        self.tell(EventDetail::TunnelClosed { id: id.to_owned(), reason: "asked to".to_owned() });
        Ok(())
    }

    async fn super_node(&self) -> Result<SuperNode, Problem> {
        Ok(serving())
    }

    async fn super_on(&self, lend: SuperOn) -> Result<SuperNode, Problem> {
        let limits = SuperLimits {
            max_memory_bytes: lend.max_memory_bytes.unwrap_or_default(),
            max_tunnels: lend.max_tunnels.unwrap_or_default(),
            max_bytes_per_second: lend.max_bytes_per_second.unwrap_or_default(),
            max_bytes_per_day: lend.max_bytes_per_day.unwrap_or_default(),
        };
        Ok(SuperNode { state: SuperState::Asking, limits, ..SuperNode::default() })
    }

    async fn super_off(&self) -> Result<SuperOff, Problem> {
        Ok(SuperOff { handed_over: Some(true), super_node: SuperNode::default() })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn shutdown(&self) -> Result<(), Problem> {
        if let Some(stop) = self.stop.lock().unwrap().take() {
            stop.send(()).unwrap();
        }
        Ok(())
    }
}

fn serving() -> SuperNode {
    SuperNode {
        state: SuperState::Serving,
        range: Some(SuperRange { from: "0".repeat(16), to: "f".repeat(16) }),
        records: 12,
        bytes_held: 64_000,
        attached: 3,
        served_requests: 70,
        ..SuperNode::default()
    }
}

fn device(name: &str) -> Device {
    let service = |name: &str, port, protocol, tls| Service { name: name.to_owned(), port, protocol, tls };
    Device {
        id: "d1".to_owned(),
        name: name.to_owned(),
        kind: "printer".to_owned(),
        services: vec![
            service("ipp", 631, Protocol::Tcp, false),
            service("https", 443, Protocol::Tcp, true),
            service("snmp", 161, Protocol::Udp, false),
        ],
        reachable_via: ReachableVia { tunnel_nodes: 2, local: false },
        served_here: false,
        state: DeviceState::Reachable,
    }
}

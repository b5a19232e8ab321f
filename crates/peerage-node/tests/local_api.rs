//! The local API over a real Unix socket, with a backend that the test controls.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use peerage_client::{
    Client, Error, Problem, ProblemKind, Protocol, Role,
    local::{
        Clock, Device, DeviceState, Event, EventDetail, Nat, NodeIdentity, NodeState, OpenTunnel, Privacy,
        ROUTES, ReachableVia, Records, SOCKET_FILE, Status, SuperNode, SuperOff, SuperOn, SuperState, Tunnel,
        TunnelState,
    },
};
use peerage_node::local_api::{
    Backend, BindError, MAX_CONNECTIONS, MAX_REQUEST_BYTES, MAX_SUBSCRIBERS, Socket, serve,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};

mod answers {
    use super::*;

    #[tokio::test]
    async fn every_call_of_the_client_reaches_the_backend_and_brings_its_answer_back() {
        let node = TestNode::start();
        let client = node.client();
        assert_eq!(client.status().await.unwrap(), status());
        assert_eq!(client.devices().await.unwrap(), [device("hp")]);
        assert_eq!(client.refresh_devices().await.unwrap(), [device("hp"), device("new")]);

        let tunnel = client.open_tunnel(&open("hp")).await.unwrap();
        assert_eq!(client.tunnels().await.unwrap().first(), Some(&tunnel));
        client.close_tunnel(&tunnel.id).await.unwrap();
        assert_eq!(client.tunnels().await.unwrap(), []);

        let lend = SuperOn { max_tunnels: Some(3), ..SuperOn::default() };
        let lent = client.super_on(&lend).await.unwrap();
        assert_eq!((lent.state, lent.limits.max_tunnels), (SuperState::Asking, 3));
        assert_eq!(client.super_node().await.unwrap(), SuperNode::default());
        assert_eq!(client.super_off().await.unwrap().handed_over, Some(true));
    }

    #[tokio::test]
    async fn a_misspelt_limit_of_what_is_lent_is_refused_rather_than_left_out() {
        let body = r#"{"max_tunels":3}"#;
        let length = format!("content-type: application/json\r\ncontent-length: {}", body.len());
        let head = format!("POST /v1/super/on HTTP/1.1\r\nhost: localhost\r\n{length}\r\nconnection: close");
        let answer = TestNode::start().raw(&format!("{head}\r\n\r\n{body}")).await;
        assert!(answer.contains(ProblemKind::InvalidRequest.urn()), "{answer}");
        assert!(answer.contains("max_tunels"), "{answer}");
    }

    #[tokio::test]
    async fn a_problem_of_the_backend_arrives_with_its_kind_and_advice() {
        let node = TestNode::start();
        let problem = problem_of(node.client().open_tunnel(&open("absent")).await);
        assert_eq!(problem.kind, ProblemKind::UnknownDevice);
        assert_eq!(problem.status, 404);
        assert!(problem.detail.contains("peerage devices"), "{problem}");
        assert_eq!(problem_of(node.client().close_tunnel("a/b ?").await).kind, ProblemKind::UnknownTunnel);
    }

    #[tokio::test]
    async fn a_tunnel_on_an_address_that_others_can_reach_must_be_asked_for() {
        let node = TestNode::start();
        let mut request = open("hp");
        request.listen = Some("0.0.0.0:0".parse().unwrap());
        assert_eq!(problem_of(node.client().open_tunnel(&request).await).kind, ProblemKind::NotLoopback);
        request.expose = true;
        node.client().open_tunnel(&request).await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_ends_the_server_and_removes_the_socket() {
        let mut node = TestNode::start();
        let mut events = node.client().events().await.unwrap();
        node.client().shutdown().await.unwrap();
        node.server.take().unwrap().await.unwrap();
        assert!(events.next().await.is_none());
        assert!(!node.data.path().join(SOCKET_FILE).exists());
        assert!(matches!(node.client().status().await, Err(Error::NodeNotRunning { .. })));
    }
}

mod routes {
    use super::*;

    #[tokio::test]
    async fn every_published_route_is_served_and_no_other_method() {
        for route in ROUTES {
            let path = route.path.replace("{id}", "none");
            // A new one each: one of the routes ends it.
            let answer = TestNode::start().raw(&request(route.method.as_str(), &path, "")).await;
            assert!(
                ![ProblemKind::UnknownRoute.urn(), ProblemKind::MethodNotAllowed.urn()]
                    .iter()
                    .any(|urn| answer.contains(urn)),
                "{route:?}: {answer}"
            );
        }
        let node = TestNode::start();
        for path in ROUTES.iter().map(|route| route.path.replace("{id}", "none")) {
            for method in ["PUT", "PATCH"] {
                let answer = node.raw(&request(method, &path, "")).await;
                assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
                assert!(answer.contains(ProblemKind::MethodNotAllowed.urn()), "{answer}");
            }
        }
    }

    #[tokio::test]
    async fn an_unknown_route_is_a_problem_document() {
        let answer = TestNode::start().raw(&request("GET", "/v2/status", "")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.to_lowercase().contains("content-type: application/problem+json"), "{answer}");
        assert!(answer.contains(ProblemKind::UnknownRoute.urn()), "{answer}");
    }
}

mod refusals {
    use super::*;

    #[tokio::test]
    async fn whatever_a_web_page_could_send_is_refused_before_it_has_an_effect() {
        let node = TestNode::start();
        let body = r#"{"device":"hp"}"#;
        let length = format!("content-type: application/json\r\ncontent-length: {}", body.len());
        for head in [
            format!("POST /v1/tunnels HTTP/1.1\r\nhost: evil.example\r\n{length}"),
            format!(
                "POST /v1/tunnels HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n{length}"
            ),
            format!("POST /v1/tunnels HTTP/1.1\r\nhost: localhost\r\norigin: null\r\n{length}"),
            format!("POST /v1/tunnels HTTP/1.0\r\n{length}"),
        ] {
            let answer = node.raw(&format!("{head}\r\nconnection: close\r\n\r\n{body}")).await;
            assert!(answer.contains(" 403 "), "{head}: {answer}");
            assert!(answer.contains(ProblemKind::ForeignOrigin.urn()), "{head}: {answer}");
        }
        assert_eq!(node.client().tunnels().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_body_that_is_not_what_is_expected_is_named() {
        let node = TestNode::start();
        let huge = format!(r#"{{"device":"{}"}}"#, "x".repeat(MAX_REQUEST_BYTES));
        for (body, kind, hint) in [
            (huge.as_str(), ProblemKind::BodyTooLarge, ""),
            (r#"{"device":"#, ProblemKind::InvalidRequest, "EOF"),
            (r#"{"device":"hp","servise":"ipp"}"#, ProblemKind::InvalidRequest, "servise"),
            (r#"{"device":"hp","listen":"127.0.0.1"}"#, ProblemKind::InvalidRequest, "socket address"),
        ] {
            let answer = node.raw(&request("POST", "/v1/tunnels", body)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {} ", kind.status())), "{body:.40}: {answer}");
            assert!(answer.contains(kind.urn()) && answer.contains(hint), "{body:.40}: {answer}");
        }
        let plain = "POST /v1/tunnels HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                     content-type: text/plain\r\ncontent-length: 15\r\n\r\n{\"device\":\"hp\"}";
        assert!(node.raw(plain).await.contains(ProblemKind::UnsupportedMediaType.urn()));
    }
}

mod limits {
    use super::*;

    #[tokio::test]
    async fn a_connection_beyond_the_limit_is_served_as_soon_as_another_ends() {
        let node = TestNode::start();
        let path = node.data.path().join(SOCKET_FILE);
        let kept_open = "GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(kept_open.as_bytes()).await.unwrap();
            // An answer shows that it has been accepted.
            assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
            held.push(stream);
        }
        let mut waiting = UnixStream::connect(&path).await.unwrap();
        waiting.write_all(kept_open.as_bytes()).await.unwrap();
        // Test and server share one thread: by now the server would have answered, if it wanted to.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let early = waiting.try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        held.pop();
        assert_ne!(waiting.read(&mut [0; 4096]).await.unwrap(), 0);
    }
}

mod events {
    use super::*;

    #[tokio::test]
    async fn events_arrive_in_order_with_their_details() {
        let node = TestNode::start();
        let mut events = node.client().events().await.unwrap();
        let tunnel = node.client().open_tunnel(&open("hp")).await.unwrap();
        node.client().close_tunnel(&tunnel.id).await.unwrap();
        let opened = events.next().await.unwrap().unwrap();
        assert_eq!(opened.detail, EventDetail::TunnelOpened { tunnel: tunnel.clone() });
        let closed = events.next().await.unwrap().unwrap();
        assert_eq!(closed.detail, EventDetail::TunnelClosed { id: tunnel.id, reason: "asked to".to_owned() });
    }

    #[tokio::test]
    async fn a_held_tunnel_is_closed_when_its_holder_is_gone() {
        let mut node = TestNode::start();
        let tunnel = node.client().open_tunnel(&open("hp")).await.unwrap();
        let other = node.client().open_tunnel(&open("hp")).await.unwrap();
        let hold = node.client().hold_tunnel(&tunnel.id).await.unwrap();
        drop(hold);
        assert_eq!(node.closed.recv().await.unwrap(), tunnel.id);
        assert_eq!(node.client().tunnels().await.unwrap(), [other]);
    }

    #[tokio::test]
    async fn a_tunnel_that_is_not_there_cannot_be_held() {
        let node = TestNode::start();
        let problem = problem_of(node.client().hold_tunnel("17").await);
        assert_eq!(problem.kind, ProblemKind::UnknownTunnel);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_how_much_it_has_missed() {
        let node = TestNode::start();
        let mut events = node.client().events().await.unwrap();
        // In one go, with no other task in between: the reader's queue holds EVENT_QUEUE.
        for devices in 0..EVENT_QUEUE as u64 + 5 {
            node.backend.tell(EventDetail::DevicesChanged { devices });
        }
        let first = events.next().await.unwrap().unwrap();
        assert_eq!(first.detail, EventDetail::Missed { events: 5 });
        let second = events.next().await.unwrap().unwrap();
        assert_eq!(second.detail, EventDetail::DevicesChanged { devices: 5 });
    }

    #[tokio::test]
    async fn readers_of_events_are_limited_and_do_not_keep_others_out() {
        let node = TestNode::start();
        let mut readers = Vec::new();
        for _ in 0..MAX_SUBSCRIBERS {
            readers.push(node.client().events().await.unwrap());
        }
        assert_eq!(problem_of(node.client().events().await).kind, ProblemKind::TooMany);
        node.client().status().await.unwrap();
    }
}

mod socket {
    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_open_the_socket() {
        let node = TestNode::start();
        let mode = fs::metadata(node.data.path().join(SOCKET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_second_node_on_the_same_data_is_refused_and_the_first_goes_on() {
        let node = TestNode::start();
        let error = Socket::bind(node.data.path()).unwrap_err();
        assert!(matches!(error, BindError::AlreadyServed { .. }), "{error}");
        node.client().status().await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_node_left_behind_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        // A listener of the standard library leaves its file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(data.path().join(SOCKET_FILE)).unwrap());
        let node = TestNode::start_in(data);
        node.client().status().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(SOCKET_FILE), "precious").unwrap();
        assert!(matches!(Socket::bind(data.path()), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(data.path().join(SOCKET_FILE)).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_named() {
        let data = Path::new("/tmp").join("x".repeat(120));
        assert!(matches!(Socket::bind(&data), Err(BindError::PathTooLong { .. })));
    }

    #[tokio::test]
    async fn a_socket_that_another_has_replaced_is_not_removed() {
        let data = tempfile::tempdir().unwrap();
        let first = Socket::bind(data.path()).unwrap();
        fs::remove_file(data.path().join(SOCKET_FILE)).unwrap();
        let second = Socket::bind(data.path()).unwrap();
        drop(first);
        assert!(data.path().join(SOCKET_FILE).exists());
        drop(second);
        assert!(!data.path().join(SOCKET_FILE).exists());
    }
}

/// How many events a slow reader may be behind in these tests.
const EVENT_QUEUE: usize = 16;

struct TestNode {
    data: tempfile::TempDir,
    backend: Arc<FakeBackend>,
    closed: mpsc::UnboundedReceiver<String>,
    server: Option<JoinHandle<()>>,
}

impl TestNode {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(data: tempfile::TempDir) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (close, closed) = mpsc::unbounded_channel();
        let backend = Arc::new(FakeBackend {
            tunnels: Mutex::default(),
            events: broadcast::channel(EVENT_QUEUE).0,
            closed: close,
            stop: Mutex::new(Some(stop)),
        });
        let socket = Socket::bind(data.path()).unwrap();
        let server = tokio::spawn(serve(socket, Arc::clone(&backend), async move {
            stopped.await.expect("the backend outlives the server");
        }));
        Self { data, backend, closed, server: Some(server) }
    }

    fn client(&self) -> Client {
        Client::new(self.data.path())
    }

    /// Sends bytes and returns the head of the answer and, unless it is a stream, its body.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.data.path().join(SOCKET_FILE)).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let n = stream.read(&mut chunk).await.unwrap_or(0);
            answer.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&answer);
            if n == 0 || text.contains("text/event-stream") {
                return text.into_owned();
            }
        }
    }
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
}

impl Backend for FakeBackend {
    async fn status(&self) -> Result<Status, Problem> {
        Ok(status())
    }

    async fn devices(&self) -> Result<Vec<Device>, Problem> {
        Ok(vec![device("hp")])
    }

    async fn refresh_devices(&self) -> Result<Vec<Device>, Problem> {
        Ok(vec![device("hp"), device("new")])
    }

    async fn tunnels(&self) -> Result<Vec<Tunnel>, Problem> {
        Ok(self.tunnels.lock().unwrap().clone())
    }

    async fn open_tunnel(&self, request: OpenTunnel) -> Result<Tunnel, Problem> {
        if request.device != "hp" {
            let detail = format!("There is no device \"{}\"; see `peerage devices`.", request.device);
            return Err(Problem::new(ProblemKind::UnknownDevice, detail));
        }
        let mut tunnels = self.tunnels.lock().unwrap();
        let tunnel = Tunnel {
            id: tunnels.len().to_string(),
            device: request.device,
            service: request.service.unwrap_or_else(|| "ipp".to_owned()),
            protocol: Protocol::Tcp,
            local: request.listen.unwrap_or_else(|| "127.0.0.1:40123".parse().unwrap()),
            state: TunnelState::Connecting,
            path: None,
            bytes_sent: 0,
            bytes_received: 0,
            connections: 0,
            opened_at_ms: 1_700_000_000_000,
            privacy: Privacy::TunnelNodeCanRead,
        };
        tunnels.push(tunnel.clone());
        self.tell(EventDetail::TunnelOpened { tunnel: tunnel.clone() });
        Ok(tunnel)
    }

    async fn close_tunnel(&self, id: &str) -> Result<(), Problem> {
        let mut tunnels = self.tunnels.lock().unwrap();
        let before = tunnels.len();
        tunnels.retain(|tunnel| tunnel.id != id);
        if tunnels.len() == before {
            return Err(Problem::new(ProblemKind::UnknownTunnel, format!("There is no tunnel {id}.")));
        }
        self.closed.send(id.to_owned()).unwrap();
        self.tell(EventDetail::TunnelClosed { id: id.to_owned(), reason: "asked to".to_owned() });
        Ok(())
    }

    async fn super_node(&self) -> Result<SuperNode, Problem> {
        Ok(SuperNode::default())
    }

    async fn super_on(&self, lend: SuperOn) -> Result<SuperNode, Problem> {
        let mut lent = SuperNode { state: SuperState::Asking, ..SuperNode::default() };
        lent.limits.max_tunnels = lend.max_tunnels.unwrap_or_default();
        Ok(lent)
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

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn problem_of<T: std::fmt::Debug>(result: Result<T, Error>) -> Problem {
    match result {
        Err(Error::Problem(problem)) => problem,
        other => panic!("not a problem: {other:?}"),
    }
}

fn open(device: &str) -> OpenTunnel {
    OpenTunnel { device: device.to_owned(), service: None, listen: None, expose: false }
}

fn device(name: &str) -> Device {
    Device {
        id: "d1".to_owned(),
        name: name.to_owned(),
        kind: "printer".to_owned(),
        services: Vec::new(),
        reachable_via: ReachableVia { tunnel_nodes: 2, local: false },
        served_here: false,
        state: DeviceState::Reachable,
    }
}

fn status() -> Status {
    Status {
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
        head: None,
        port_mappings: Vec::new(),
        proxy: None,
        elections: Vec::new(),
        attachments: Vec::new(),
        nat: Nat::default(),
        devices: 1,
        serves: vec!["hp".to_owned()],
        tunnels: 0,
        listen: vec!["[::]:41000".parse().unwrap()],
        advertised: Vec::new(),
        records: Records { node_expires_at_ms: 1_800_000_000_000, info_expires_at_ms: None },
        super_node: SuperNode::default(),
        discards: BTreeMap::from([("bad-signature".to_owned(), 3)]),
        warnings: Vec::new(),
    }
}

//! The client of the admin API against a server that writes down what it is asked.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use peerage_client::{
    AdminClient, Error, ProblemKind, Protocol, Service,
    admin::{
        ADMIN_FILE, AddDevice, AddDomain, AddToken, Push, QuarantineSuperNode, ROUTES, RevokeDomain,
        RevokeNode, RevokeToken,
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;

#[tokio::test]
async fn each_call_uses_one_route_and_all_routes_are_used() {
    let server = Server::start(|_, _| problem(ProblemKind::Unavailable)).await;
    let client = server.client();
    let device = AddDevice {
        name: "hp".to_owned(),
        kind: String::new(),
        mac: "02:00:00:00:00:01".to_owned(),
        via: None,
        services: vec![Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false }],
        tls_pins: Vec::new(),
        allowed: None,
    };
    let token = AddToken { uses: Some(2), expires_s: None, roles: None, approval: false };
    unavailable(client.status().await);
    unavailable(client.domains().await);
    unavailable(client.add_domain(&AddDomain { name: "acme".to_owned(), vendor: false }).await);
    unavailable(client.domain("{domain}").await);
    unavailable(client.revoke_domain("{domain}", &RevokeDomain::default()).await);
    unavailable(client.tokens("{domain}").await);
    unavailable(client.add_token("{domain}", &token).await);
    unavailable(client.revoke_token("{domain}", "{token}", &RevokeToken::default()).await);
    unavailable(client.devices("{domain}").await);
    unavailable(client.add_device("{domain}", &device).await);
    unavailable(client.remove_device("{domain}", "{device}").await);
    unavailable(client.push("{domain}", &Push::default()).await);
    unavailable(client.nodes("{domain}").await);
    unavailable(client.node("{domain}", "{node}").await);
    unavailable(client.approve_node("{domain}", "{node}").await);
    unavailable(client.revoke_node("{domain}", "{node}", &RevokeNode::default()).await);
    unavailable(client.super_nodes().await);
    unavailable(client.quarantine("{node}", &QuarantineSuperNode::default()).await);
    unavailable(client.release("{node}").await);
    unavailable(client.segments().await);

    let asked = server.asked.lock().unwrap();
    // Names are encoded, so braces arrive as %7B and %7D.
    let used: Vec<String> = asked.iter().map(|a| a.line.replace("%7B", "{").replace("%7D", "}")).collect();
    let routes: BTreeSet<String> = ROUTES.iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(used.iter().cloned().collect::<BTreeSet<_>>(), routes);
    assert_eq!(used.len(), routes.len());
    assert!(asked.iter().all(|a| a.host == server.address && a.authorization == "Bearer secret"));
    assert_eq!(
        asked.iter().find(|a| a.line.ends_with("/tokens") && a.body != Value::Null).unwrap().body,
        json!({"uses": 2, "approval": false})
    );
}

#[tokio::test]
async fn an_answer_is_read_and_names_cannot_change_the_path() {
    let pushed = json!({"devices": 3, "holders": 1, "of_tomorrow": true});
    let server = Server::start(move |_, _| (200, "application/json", pushed.to_string())).await;
    let answer = server.client().push("../status?x", &Push { device: Some("hp".to_owned()) }).await.unwrap();
    assert_eq!((answer.devices, answer.holders), (3, 1));
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked.first().unwrap().line, "POST /v1/domains/%2E%2E%2Fstatus%3Fx/push");
    assert_eq!(asked.first().unwrap().body, json!({"device": "hp"}));
}

#[tokio::test]
async fn an_answer_that_is_not_understood_is_an_error_of_its_own() {
    let server = Server::start(|_, path| match path {
        "/v1/status" => (502, "text/html", "<h1>Bad gateway</h1>".to_owned()),
        _ => (200, "application/json", "{}".to_owned()),
    })
    .await;
    assert!(matches!(server.client().status().await, Err(Error::Unexplained { status: 502 })));
    assert!(matches!(server.client().domains().await, Err(Error::Malformed(_))));
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let server = Server::start(|_, _| (200, "application/json", " ".repeat(17 * 1024 * 1024))).await;
    assert!(matches!(server.client().domains().await, Err(Error::TooLarge { .. })));
}

type Answer = (u16, &'static str, String);

struct Asked {
    line: String,
    host: String,
    authorization: String,
    body: Value,
}

struct Server {
    data: tempfile::TempDir,
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    async fn start(answer: impl Fn(&str, &str) -> Answer + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(ADMIN_FILE);
        fs::write(&path, json!({"address": address, "token": "secret"}).to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (server_asked, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, answer) = (Arc::clone(&server_asked), Arc::clone(&answer));
                let service = service_fn(move |request| {
                    let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                    async move { respond(request, &asked, &*answer).await }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { data, address, asked }
    }

    fn client(&self) -> AdminClient {
        AdminClient::from_data_dir(self.data.path()).unwrap()
    }
}

async fn respond(
    request: Request<Incoming>,
    asked: &Mutex<Vec<Asked>>,
    answer: &impl Fn(&str, &str) -> Answer,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let header = |name: &str| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
    let (method, path) = (request.method().to_string(), request.uri().to_string());
    let mut note = Asked {
        line: format!("{method} {path}"),
        host: header("host"),
        authorization: header("authorization"),
        body: Value::Null,
    };
    let body = request.into_body().collect().await?.to_bytes();
    if !body.is_empty() {
        note.body = serde_json::from_slice(&body).unwrap();
    }
    asked.lock().unwrap().push(note);
    let (status, media_type, body) = answer(&method, &path);
    Ok(Response::builder().status(status).header("content-type", media_type).body(Full::from(body)).unwrap())
}

fn problem(kind: ProblemKind) -> Answer {
    let problem = peerage_client::Problem::new(kind, "later");
    (kind.status(), peerage_client::PROBLEM_MEDIA_TYPE, serde_json::to_string(&problem).unwrap())
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Problem(problem)) => assert_eq!(problem.kind, ProblemKind::Unavailable),
        other => panic!("{other:?}"),
    }
}

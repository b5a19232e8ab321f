//! An operator on loopback, and clients of its three ports.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod member;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use getrandom::SysRng;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use peerage_client::AdminClient;
use peerage_client::admin::{AddDevice, AddDomain, AddToken};
use peerage_client::{Protocol, Role, Service};
use peerage_node::tls::AnyCertificate;
use peerage_operator::{InitConfig, InitReport, Ready, RunConfig, RunError, init, run};
use peerage_wire::crypto::Real;
use peerage_wire::enrol::{
    Admission, CERTIFICATE_FIELD, Credential, ENROL_PATH, EnrolAnswer, EnrolRequest, HELLO_PATH, Hello,
    TrustedOperator,
};
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::time::UnixTime;
use peerage_wire::token::JoinToken;
use rand_core::UnwrapErr;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// An operator that runs.
pub(crate) struct Running {
    pub(crate) ready: Ready,
    pub(crate) admin: AdminClient,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Ends it and waits until it has ended.
    pub(crate) async fn end(self) -> Result<(), RunError> {
        drop(self.stop);
        self.task.await.unwrap()
    }
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn init_config(data: &Path) -> InitConfig {
    InitConfig { data: data.to_owned(), listen: loopback(), advertise: Vec::new(), certificate: None }
}

/// Makes an operator in a new directory.
pub(crate) fn made() -> (TempDir, InitReport) {
    let dir = tempfile::tempdir().unwrap();
    let report = init(&init_config(&dir.path().join("operator"))).unwrap();
    (dir, report)
}

pub(crate) fn data(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("operator")
}

pub(crate) async fn start(config: RunConfig) -> Result<Running, RunError> {
    let (tell, told) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let data = config.data.clone();
    let ready = move |ready| tell.send(ready).unwrap();
    let shutdown = async move { drop(stopped.await) };
    let task = tokio::spawn(Box::pin(run(config, ready, shutdown)));
    match told.await {
        Ok(ready) => {
            let admin = AdminClient::from_data_dir(data).unwrap();
            Ok(Running { ready, admin, stop, task })
        }
        Err(_) => Err(task.await.unwrap().unwrap_err()),
    }
}

/// Makes and starts an operator with the domain `acme`.
pub(crate) async fn acme() -> (TempDir, Running) {
    let (dir, _) = made();
    let running = start(RunConfig::new(data(&dir))).await.unwrap();
    running.admin.add_domain(&AddDomain { name: "acme".to_owned(), vendor: false }).await.unwrap();
    (dir, running)
}

pub(crate) async fn token(running: &Running, uses: u32) -> JoinToken {
    token_for(running, "acme", uses, None).await
}

pub(crate) async fn token_for(
    running: &Running,
    domain: &str,
    uses: u32,
    roles: Option<Vec<Role>>,
) -> JoinToken {
    let new = AddToken { uses: Some(uses), expires_s: None, roles, approval: false };
    running.admin.add_token(domain, &new).await.unwrap().token.parse().unwrap()
}

pub(crate) fn printer(name: &str, mac: &str) -> AddDevice {
    let service = Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false };
    AddDevice {
        name: name.to_owned(),
        kind: "printer".to_owned(),
        mac: mac.to_owned(),
        via: None,
        services: vec![service],
        tls_pins: Vec::new(),
        allowed: None,
    }
}

pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// A computer that wants to join.
pub(crate) struct Computer {
    pub(crate) identity: IdentityKey,
    pub(crate) receiving: AgreementKey,
}

impl Computer {
    pub(crate) fn new() -> Self {
        Self { identity: IdentityKey::generate(&mut rng()), receiving: AgreementKey::generate(&mut rng()) }
    }

    pub(crate) fn request(&self, credential: Credential) -> EnrolRequest {
        EnrolRequest {
            credential,
            identity: self.identity.public(),
            receiving: *self.receiving.public(),
            time: UnixTime::default(),
            name: "front desk".to_owned(),
        }
    }

    /// Joins as a node does: believes the operator for the token's sake, whatever its certificate says.
    pub(crate) async fn join(&self, token: &JoinToken) -> EnrolAnswer {
        let remote = token.addresses[0];
        let operator = hello(remote).await.verify(&token.network, None, &Real).unwrap();
        let credential = Credential::Token { id: token.id, secret: token.secret };
        self.ask(remote, &operator, token, credential).await
    }

    pub(crate) async fn ask(
        &self,
        remote: SocketAddr,
        operator: &TrustedOperator,
        token: &JoinToken,
        credential: Credential,
    ) -> EnrolAnswer {
        let request = self.request(credential);
        let sealed = request.seal(&token.network, operator, &self.identity, &mut rng()).unwrap();
        let (status, body) = https(remote, "POST", ENROL_PATH, sealed.clone()).await;
        assert_eq!(status, StatusCode::OK);
        EnrolAnswer::open(&body, &token.network, &self.receiving, &sealed).unwrap()
    }
}

pub(crate) fn admitted(answer: EnrolAnswer) -> Admission {
    let EnrolAnswer::Admitted(admission) = answer else { panic!("not admitted: {answer:?}") };
    *admission
}

pub(crate) async fn hello(remote: SocketAddr) -> Hello {
    let (status, body) = https(remote, "GET", HELLO_PATH, Vec::new()).await;
    assert_eq!(status, StatusCode::OK);
    Hello::decode(&body).unwrap()
}

/// Returns SHA-256 of the certificate that the operator shows, and what it says that it is.
pub(crate) async fn certificates(remote: SocketAddr) -> ([u8; 32], String) {
    let tcp = TcpStream::connect(remote).await.unwrap();
    let name = ServerName::IpAddress(remote.ip().into());
    let (config, seen) = AnyCertificate::client().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let request = Request::builder().uri(HELLO_PATH).header("host", "operator");
    let response = exchange(stream, request.body(Full::default()).unwrap()).await;
    let said = response.headers()[CERTIFICATE_FIELD].to_str().unwrap().to_owned();
    (seen.proven().unwrap(), said)
}

/// One exchange over TLS, with whatever certificate.
pub(crate) async fn https(
    remote: SocketAddr,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> (StatusCode, Bytes) {
    let tcp = TcpStream::connect(remote).await.unwrap();
    let name = ServerName::IpAddress(remote.ip().into());
    let (config, _seen) = AnyCertificate::client().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let request = Request::builder().method(method).uri(path).header("host", "operator");
    let response = exchange(stream, request.body(Full::new(body.into())).unwrap()).await;
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

pub(crate) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Response<Incoming>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

//! Joining with an operator that this test plays, over real HTTPS.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use peerage_wire::cbor::MapWriter;
use peerage_wire::enrol::Admission;
use peerage_wire::id::{Domain, RecordKey, TokenId};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, DomainKeys, IdentityKey, SecretKey, network_id};
use peerage_wire::record::{
    DomainKeyBody, Draft, Header, NodeBody, OperatorBody, OperatorState, Record, Table,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::connect::{Exceptions, ProxySettings};

const DOMAIN: Domain = Domain(5);

#[tokio::test]
async fn joining_brings_a_membership_and_joining_again_changes_nothing() {
    let operator = Operator::start(Answer::Admit).await;
    let (_temp, config) = config(&operator);
    let joined = join(config.clone()).await.unwrap();
    assert_eq!((joined.domain_name.as_str(), joined.pending, joined.already), ("acme", false, false));
    assert_eq!(joined.id.domain, DOMAIN);
    assert!(joined.roles.tunnel && joined.expires.is_some());
    let again = join(config.clone()).await.unwrap();
    assert_eq!((again.id, again.already), (joined.id, true));

    let data = DataDir::open(&config.data).unwrap();
    let (_store, contents) = Store::open(&data.store_path()).unwrap();
    assert_eq!(contents.records.len(), 3);
    assert!(!contents.facts.values().any(|fact| *fact == config.token.as_bytes()), "the token is erased");
}

#[tokio::test]
async fn an_operator_that_is_down_is_named_and_the_same_command_works_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let operator = Operator::new(address);
    let (_temp, config) = config(&operator);
    let error = join(config.clone()).await.unwrap_err();
    assert!(matches!(error, JoinError::Enrol(EnrolFailure::Unreachable(_))), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(error.to_string().contains("again later"), "{error}");
    let identity = DataDir::open(&config.data).unwrap().keys().unwrap().unwrap().identity.public();

    operator.serve(TcpListener::bind(address).await.unwrap(), Answer::Admit);
    let joined = join(config).await.unwrap();
    assert!(joined.id.is_of(&identity), "the keys of the first attempt are used");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_operators_words_and_makes_no_member() {
    for refusal in [Refusal::UnknownToken, Refusal::ExpiredToken, Refusal::UsedUpToken, Refusal::RevokedNode]
    {
        let operator = Operator::start(Answer::Refuse(refusal)).await;
        let (_temp, config) = config(&operator);
        let error = join(config.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), refusal.to_string());
        let (_store, contents) = Store::open(&config.data.join("node.db")).unwrap();
        assert_eq!(contents, crate::store::Contents::default());
    }
}

/// A proxy that leads to one address, whatever it is asked for, if it is told who asks.
async fn proxy(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(near.read_u8().await.unwrap());
            }
            assert!(String::from_utf8(head).unwrap().contains("Proxy-Authorization: Basic YW5uOng="));
            near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

#[tokio::test]
async fn joining_goes_through_a_proxy() {
    let operator = Operator::start(Answer::Admit).await;
    let (_temp, mut config) = config(&operator);
    // Nobody is there (RFC 5737), so that only the proxy leads to the operator.
    let far = "203.0.113.9:443".parse().unwrap();
    config.token = JoinToken { addresses: vec![far], ..operator.token() }.to_string();
    let proxy = format!("http://ann:x@{}", proxy(operator.address).await).parse().unwrap();
    let exceptions = Exceptions::default();
    config.connector = Connector::new(Some(ProxySettings { proxy, source: "a test", exceptions }));
    assert!(!join(config).await.unwrap().pending);
}

#[tokio::test]
async fn an_address_that_swallows_connections_does_not_hold_up_the_next() {
    let operator = Operator::start(Answer::Admit).await;
    let (_temp, mut config) = config(&operator);
    // It takes the connection and says nothing, as long as the test lasts.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![silent.local_addr().unwrap(), operator.address];
    config.token = JoinToken { addresses, ..operator.token() }.to_string();
    let joined = join(config);
    let held = async {
        let held = silent.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(held);
    };
    tokio::select! {
        joined = joined => assert!(!joined.unwrap().pending),
        () = held => {}
    }
}

/// Rule 6.112.
#[tokio::test]
async fn where_only_http_passes_joining_goes_without_tls() {
    let operator = Operator::start(Answer::Admit).await;
    let (_temp, mut config) = config(&operator);
    // A firewall that takes every connection and passes on what begins as HTTP does.
    let firewall = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![firewall.local_addr().unwrap()];
    config.token = JoinToken { addresses, ..operator.token() }.to_string();
    tokio::spawn(async move {
        let mut swallowed = Vec::new();
        while let Ok((mut near, _)) = firewall.accept().await {
            let mut first = [0];
            if near.peek(&mut first).await.unwrap() == 1 && first[0] != b'G' {
                swallowed.push(near);
                continue;
            }
            let mut far = TcpStream::connect(operator.address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    assert!(!join(config).await.unwrap().pending);
}

#[test]
fn without_tls_the_port_of_http_is_tried_first_and_after_everything_inside_tls() {
    let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
    let (own, web) = (address(4240), address(80));
    let (tls, open) = (Inside::Tls, Inside::Nothing);
    assert_eq!(ways(&[own, web]), [(tls, own), (tls, web), (open, web), (open, own)]);
}

#[tokio::test]
async fn a_captive_portal_is_named_when_it_answers_in_the_operators_place() {
    let operator = Operator::start(Answer::Portal).await;
    let (_temp, config) = config(&operator);
    let error = join(config).await.unwrap_err().to_string();
    assert!(error.contains("captive portal"), "{error}");
}

#[tokio::test]
async fn a_token_of_another_network_is_refused_by_the_client() {
    let operator = Operator::start(Answer::Admit).await;
    let (_temp, mut config) = config(&operator);
    config.token = JoinToken { network: NetworkId([9; 32]), ..operator.token() }.to_string();
    let error = join(config).await.unwrap_err().to_string();
    assert!(error.contains("belongs to another network"), "{error}");
}

#[tokio::test]
async fn an_answer_about_another_computer_is_not_believed() {
    let operator = Operator::start(Answer::AdmitSomebodyElse).await;
    let (_temp, config) = config(&operator);
    let error = join(config).await.unwrap_err().to_string();
    assert!(error.contains("about another computer"), "{error}");
}

#[tokio::test]
async fn while_approval_is_awaited_the_token_is_kept_and_asking_again_admits() {
    let operator = Operator::start(Answer::Wait).await;
    let (_temp, mut config) = config(&operator);
    assert!(join(config.clone()).await.unwrap().pending);
    let admitting = Operator::start(Answer::Admit).await;
    config.token = admitting.token().to_string();
    assert!(!join(config).await.unwrap().pending);
}

#[tokio::test]
async fn what_is_no_token_and_no_name_is_refused_before_anything_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("node");
    let config = JoinConfig {
        data: data.clone(),
        token: "hello".to_owned(),
        name: "pc".to_owned(),
        connector: Connector::default(),
    };
    assert!(matches!(join(config.clone()).await, Err(JoinError::Token(TokenError::NotAToken))));
    let token = Operator::new(([127, 0, 0, 1], 1).into()).token().to_string();
    let truncated = JoinConfig { token: token[..token.len() - 6].to_owned(), ..config.clone() };
    assert!(matches!(join(truncated).await, Err(JoinError::Token(TokenError::Damaged))));
    assert!(matches!(join(JoinConfig { token, name: String::new(), ..config }).await, Err(JoinError::Name)));
    assert!(!data.exists());
}

#[derive(Clone, Copy)]
enum Answer {
    Admit,
    AdmitSomebodyElse,
    Wait,
    Refuse(Refusal),
    Portal,
}

#[derive(Clone)]
struct Operator {
    root: IdentityKey,
    identity: IdentityKey,
    enrolment: AgreementKey,
    address: SocketAddr,
}

impl Operator {
    fn new(address: SocketAddr) -> Self {
        let key = |seed: u8| IdentityKey::from_seed(&[seed; 32]);
        Self { root: key(1), identity: key(2), enrolment: AgreementKey::from_secret([3; 32]), address }
    }

    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let operator = Self::new(listener.local_addr().unwrap());
        operator.serve(listener, answer);
        operator
    }

    fn token(&self) -> JoinToken {
        JoinToken {
            network: self.network(),
            id: TokenId([4; 8]),
            secret: [5; 16],
            addresses: vec![self.address],
        }
    }

    fn network(&self) -> NetworkId {
        network_id(&self.root.public())
    }

    fn id(&self) -> NodeId {
        self.identity.node_id(Domain::OPERATORS)
    }

    fn serve(&self, listener: TcpListener, answer: Answer) {
        let made = rcgen::generate_simple_self_signed(vec!["operator".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let operator = self.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, operator) = (acceptor.clone(), operator.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| operator.answer(request, answer));
                    let http = hyper::server::conn::http1::Builder::new();
                    let mut first = [0];
                    let _ = socket.peek(&mut first).await;
                    if first[0] == b'G' {
                        let _ = http.serve_connection(TokioIo::new(socket), service).await;
                    } else {
                        let stream = acceptor.accept(socket).await.unwrap();
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
    }

    async fn answer(
        &self,
        request: Request<hyper::body::Incoming>,
        answer: Answer,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        if matches!(answer, Answer::Portal) {
            let moved = Response::builder().status(302).header("location", "https://login.example/");
            return Ok(moved.body(Full::default()).unwrap());
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = match path.as_str() {
            HELLO_PATH => {
                let hello = Hello { root: self.root.public(), operator: self.own_record().bytes().clone() };
                hello.encode()
            }
            ENROL_PATH => self.enrol(&body, answer),
            other => panic!("{other}"),
        };
        Ok(Response::new(Full::from(answer)))
    }

    fn enrol(&self, sealed: &[u8], answer: Answer) -> Vec<u8> {
        let network = self.network();
        let request = EnrolRequest::open(sealed, &network, self.id(), &self.enrolment).unwrap();
        assert_eq!(request.credential, Credential::Token { id: TokenId([4; 8]), secret: [5; 16] });
        let answer = match answer {
            Answer::Admit => self.admit(request.identity, request.receiving),
            Answer::AdmitSomebodyElse => {
                self.admit(IdentityKey::from_seed(&[9; 32]).public(), request.receiving)
            }
            Answer::Wait | Answer::Portal => EnrolAnswer::Pending,
            Answer::Refuse(refusal) => EnrolAnswer::Refused(refusal),
        };
        answer.seal(&network, &request.receiving, sealed, &mut rng()).unwrap()
    }

    fn admit(&self, identity: [u8; 32], receiving: [u8; 32]) -> EnrolAnswer {
        let id = NodeId::new(DOMAIN, &identity);
        let roles = Roles { tunnel: true, super_node: false };
        let keys = DomainKeys {
            epoch: 1,
            epoch_key: SecretKey([6; 32]),
            previous: None,
            location_key: SecretKey([7; 32]),
        };
        let sealed = DomainKeyBody::seal(&keys, (&self.network(), id, &receiving), &mut rng()).unwrap();
        let node = NodeBody { identity, receiving, roles };
        let record = |table, body| self.record((table, DOMAIN, id.record_key()), body, &self.identity);
        let sealing = AgreementKey::from_secret([8; 32]);
        let (now, day) = (now(), Duration::from_secs(86_400));
        let statement = KeyStatement::sign(
            &self.identity,
            &self.network(),
            self.id(),
            *sealing.public(),
            now..now.after(day),
            &Real,
        );
        EnrolAnswer::Admitted(Box::new(Admission {
            node: record(Table::Node, node.write()).bytes().clone(),
            domain_key: record(Table::DomainKey, sealed.write()).bytes().clone(),
            operators: vec![self.own_record().bytes().clone()],
            statement,
            domain_name: "acme".to_owned(),
            time: now,
        }))
    }

    fn own_record(&self) -> Record {
        let body = OperatorBody {
            identity: self.identity.public(),
            enrolment: *self.enrolment.public(),
            addresses: vec![self.address],
            state: OperatorState::Active,
        };
        let id = (Table::OperatorNode, Domain::OPERATORS, self.id().record_key());
        self.record(id, body.write(), &self.root)
    }

    fn record(
        &self,
        (table, domain, key): (Table, Domain, RecordKey),
        public: MapWriter,
        signer: &IdentityKey,
    ) -> Record {
        let made = now();
        let header = Header {
            table,
            domain,
            key,
            version: made.as_millis(),
            expires: made.after(Duration::from_secs(86_400)),
            signer: signer.node_id(Domain::OPERATORS),
            removed: false,
        };
        Draft { header, public, private: None }.sign(signer, &self.network(), &Real).unwrap()
    }
}

fn now() -> UnixTime {
    Clock::new().now().unix
}

fn config(operator: &Operator) -> (tempfile::TempDir, JoinConfig) {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("node");
    let token = operator.token().to_string();
    (temp, JoinConfig { data, token, name: "pc".to_owned(), connector: Connector::default() })
}

//! A member with nothing but its message layer, and a port that takes links.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_node::clock::Clock;
use peerage_node::tls::Tls;
use peerage_node::udp::Ports;
use peerage_proto::endpoint::{self, Endpoint, Outcome};
use peerage_proto::trust::Trust;
use peerage_wire::crypto::Real;
use peerage_wire::id::{LookupTag, NodeId};
use peerage_wire::keys::AgreementKey;
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, HeadBody, Header, NodeInfoPublic, Record, Table, UnverifiedRecord};
use peerage_wire::token::JoinToken;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Computer, Running, admitted, hello, rng, token};

/// A member with nothing but its message layer.
pub(crate) struct Member {
    endpoint: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) socket: UdpSocket,
    clock: Clock,
    operator: NodeId,
    remote: SocketAddr,
    pub(crate) id: NodeId,
}

impl Member {
    pub(crate) async fn join(running: &Running) -> Self {
        Self::join_with(token(running, 1).await).await
    }

    /// Joins with a token that allows one more node.
    pub(crate) async fn join_with(token: JoinToken) -> Self {
        let computer = Computer::new();
        let admission = admitted(computer.join(&token).await);
        let remote = token.addresses[0];
        let operator = hello(remote).await.verify(&token.network, None, &Real).unwrap();
        let mut trust = Trust::new(token.network, operator.root);
        trust.learn(&operator.record);
        let tls = Tls::new(&computer.identity).unwrap();
        let id = computer.identity.node_id(UnverifiedRecord::parse(&admission.node).unwrap().header().domain);
        let config = endpoint::Config {
            network: token.network,
            crypto: Arc::new(Real),
            identity: computer.identity,
            id,
            record: admission.node,
            asks_introduction: false,
        };
        let clock = Clock::new();
        let seed = *AgreementKey::generate(&mut rng()).secret();
        let mut endpoint = Endpoint::new(config, seed, clock.now());
        endpoint.trust_own_clock();
        let known = Trust::member(&operator.record).unwrap();
        endpoint.learn_peer(known, admission.statement, clock.now());
        let ports = Ports::bind(Some("127.0.0.1:0".parse().unwrap())).unwrap();
        tokio::spawn(take_links(ports.tcp, tls));
        Self { endpoint, trust, socket: ports.udp, clock, operator: operator.id, remote, id }
    }

    /// Asks the operator; `None` if it does not answer.
    pub(crate) async fn ask(&mut self, request: &Request) -> Option<Reply> {
        self.endpoint.request(self.operator, self.remote, request, self.clock.now());
        let mut buffer = [0; 2_048];
        loop {
            self.send().await;
            while let Some(outcome) = self.endpoint.poll_outcome() {
                match outcome {
                    Outcome::Answered { reply, .. } => return Some(reply),
                    Outcome::Failed { .. } => return None,
                    Outcome::Request(_)
                    | Outcome::Forwarded { .. }
                    | Outcome::ClockLearned(_)
                    | Outcome::ClockDoubted => {}
                }
            }
            self.receive(&mut buffer).await;
        }
    }

    /// Answers what the operator asks until it stores a record of this table here, and returns that.
    pub(crate) async fn stored(&mut self, table: Table) -> Record {
        let mut buffer = [0; 2_048];
        loop {
            while let Some(outcome) = self.endpoint.poll_outcome() {
                let Outcome::Request(incoming) = outcome else { continue };
                let mut wanted = None;
                let reply = if let Request::Store(bytes) = &incoming.request {
                    let record = self.trust.verify(bytes, Some(self.clock.now().unix), &Real).unwrap();
                    let Header { table: of, key, version, .. } = *record.header();
                    wanted = (of == table).then_some(record);
                    Reply::Stored { table: of, key, version }
                } else if let Request::Notify { id, .. } = &incoming.request {
                    Reply::Notified(*id)
                } else {
                    assert_eq!(incoming.request, Request::Ping, "nobody asked for more");
                    Reply::Reping { observed: incoming.remote }
                };
                self.endpoint.reply(&incoming.reply_to, &reply);
                if let Some(record) = wanted {
                    self.send().await;
                    return record;
                }
            }
            self.send().await;
            self.receive(&mut buffer).await;
        }
    }

    async fn send(&mut self) {
        while let Some((remote, payload)) = self.endpoint.poll_transmit() {
            self.socket.send_to(&payload, remote).await.unwrap();
        }
    }

    async fn receive(&mut self, buffer: &mut [u8]) {
        let due = self.endpoint.poll_timeout().map(|at| at.since(self.clock.mono()));
        let wait = due.unwrap_or(Duration::from_secs(1));
        match tokio::time::timeout(wait, self.socket.recv_from(buffer)).await {
            Ok(received) => {
                let (length, remote) = received.unwrap();
                self.endpoint.handle_datagram(remote, &buffer[..length], &self.trust, self.clock.now());
            }
            Err(_elapsed) => self.endpoint.handle_timeout(&self.trust, self.clock.now()),
        }
    }

    /// Signs where it is, findable by a tag.
    pub(crate) fn announcement(&self, tag: LookupTag) -> Bytes {
        let now = self.clock.now().unix;
        let header = Header {
            table: Table::NodeInfo,
            domain: self.id.domain,
            key: self.id.record_key(),
            version: now.as_millis(),
            expires: now.after(Duration::from_secs(600)),
            signer: self.id,
            removed: false,
        };
        let public =
            NodeInfoPublic { statement: *self.endpoint.statement(), tags: vec![tag], addresses: Vec::new() };
        let draft = Draft { header, public: public.write(), private: None };
        draft.sign(self.endpoint.identity(), self.trust.network(), &Real).unwrap().bytes().clone()
    }

    pub(crate) async fn head(&mut self) -> HeadBody {
        let Some(Reply::Head(Some(bytes))) = self.ask(&Request::GetHead { domain: None }).await else {
            panic!("no Head")
        };
        let record = self.trust.verify(&bytes, None, &Real).unwrap();
        HeadBody::read(&record).unwrap()
    }
}

/// Proves its identity to whoever connects.
async fn take_links(listener: TcpListener, tls: Tls) {
    while let Ok((stream, _)) = listener.accept().await {
        prove(&stream, &tls).await;
    }
}

async fn prove(stream: &TcpStream, tls: &Tls) {
    let mut connection = tls.accept().unwrap();
    let (mut received, mut sealed) = ([0; 4_096], Vec::new());
    while connection.is_handshaking() {
        stream.readable().await.unwrap();
        match stream.try_read(&mut received) {
            Ok(0) => return,
            Ok(length) => {
                let mut bytes = &received[..length];
                while !bytes.is_empty() {
                    connection.read_tls(&mut bytes).unwrap();
                    connection.process_new_packets().unwrap();
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_gone) => return,
        }
        while connection.wants_write() {
            connection.write_tls(&mut sealed).unwrap();
        }
        let mut left = sealed.as_slice();
        while !left.is_empty() {
            stream.writable().await.unwrap();
            left = stream.try_write(left).map_or(left, |count| &left[count..]);
        }
        sealed.clear();
    }
}

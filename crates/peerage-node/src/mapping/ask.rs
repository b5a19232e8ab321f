//! Asking a router by PCP or NAT-PMP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_proto::mapping::MappingProtocol;
use peerage_wire::codec::Transport;
use tokio::net::UdpSocket;
use tokio::time;

use super::lease::{Lease, NoLease};
use super::pcp::{self, Answer, MAX_ANSWER, Nonce, Version, What, Wish};

/// How long each try waits for an answer: as RFC 6886, section 3.1, begins, which goes on to a minute. A router that is there answers at
/// once; one that is not must not keep UPnP waiting.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1_000)];

/// How long a mapping is asked for, in seconds: what RFC 6886, section 3.3, recommends. Longer leaves more behind when a computer
/// vanishes, shorter asks more often.
const LIFETIME: u32 = 7_200;

/// The most datagrams that are looked at in one try; others on the LAN may send any number.
const MAX_DATAGRAMS: usize = 64;

/// A router that is asked by datagrams.
#[derive(Debug)]
pub(super) struct Asker {
    socket: UdpSocket,
    own: IpAddr,
    /// For which ports it is asked.
    transports: &'static [Transport],
    port: u16,
    nonce: Nonce,
    /// Which protocol it speaks, once it has answered.
    version: Option<Version>,
    /// When the router had forgotten its mappings last, and when it said so.
    epoch: Option<(u32, time::Instant)>,
}

impl Asker {
    pub(super) async fn new(
        (router, own): (SocketAddr, IpAddr),
        transports: &'static [Transport],
        (port, nonce): (u16, Nonce),
    ) -> Result<Self, NoLease> {
        let socket = UdpSocket::bind((own, 0)).await?;
        // From now on the system drops what others send.
        socket.connect(router).await?;
        Ok(Self { socket, own, transports, port, nonce, version: None, epoch: None })
    }

    /// Has the ports mapped, at best to these ones.
    pub(super) async fn map(&mut self, last: Option<&Lease>) -> Result<Lease, NoLease> {
        let version = match self.version {
            Some(version) => version,
            None => self.introduce().await?,
        };
        let protocol = protocol(version);
        let mut lease = Lease { protocol, udp: None, tcp: None, lifetime: Duration::MAX };
        let mut refused = None;
        for &transport in self.transports {
            let external = last.and_then(|last| last.of(transport)).map_or(self.port, |held| held.port());
            match self.map_one(version, self.wish(transport, external, LIFETIME)).await {
                Ok((external, lifetime)) => {
                    lease.set(transport, external);
                    lease.lifetime = lease.lifetime.min(lifetime);
                }
                Err(NoLease::Silent) => return Err(NoLease::Silent),
                Err(why) => refused = Some(why),
            }
        }
        self.version = Some(version);
        match refused {
            Some(why) if lease.udp.is_none() && lease.tcp.is_none() => Err(why),
            _ => Ok(lease),
        }
    }

    /// Returns whether the router still knows what it has granted; one that has restarted does not (RFC 6887, section 8.5).
    pub(super) async fn is_remembered(&mut self) -> Result<bool, NoLease> {
        let (before, at) = self.epoch.ok_or(NoLease::Silent)?;
        let version = self.version.ok_or(NoLease::Silent)?;
        let request = match version {
            Version::NatPmp => pcp::nat_pmp_address().to_vec(),
            Version::Pcp => pcp::pcp_announce(self.own),
        };
        self.ask(&[&request], |answer| (answer.version == version).then_some(())).await?;
        let (after, _) = self.epoch.ok_or(NoLease::Silent)?;
        Ok(goes_on(before, after, at.elapsed()))
    }

    /// Gives the mappings back. A router that does not answer may have heard nothing, so it is told again; what it does not take back
    /// ends by itself.
    pub(super) async fn forget(&mut self) {
        let Some(version) = self.version else { return };
        let request = |wish| match version {
            Version::NatPmp => pcp::nat_pmp_map(&wish),
            Version::Pcp => pcp::pcp_map(&wish, self.own, self.nonce),
        };
        let requests: Vec<_> =
            self.transports.iter().map(|transport| request(self.wish(*transport, 0, 0))).collect();
        let requests: Vec<_> = requests.iter().map(Vec::as_slice).collect();
        let (own_nonce, port) = (self.nonce, self.port);
        let mut left = self.transports.to_vec();
        let is_all_back = |answer: &Answer| {
            let back = match answer.what {
                What::Pcp { nonce, transport, internal, .. } if nonce == own_nonce => (transport, internal),
                What::NatPmp { transport, internal, .. } => (transport, internal),
                What::Pcp { .. } | What::Address(_) | What::Nothing => return None,
            };
            left.retain(|transport| (*transport, port) != back);
            left.is_empty().then_some(())
        };
        let result = self.ask(&requests, is_all_back).await;
        if let Err(why) = result {
            tracing::debug!(%why, "the router may forward ports until it ends that by itself");
        }
    }

    const fn wish(&self, transport: Transport, external: u16, lifetime: u32) -> Wish {
        Wish { transport, internal: self.port, external, lifetime }
    }

    /// Finds out which protocol the router speaks; PCP if it speaks both.
    async fn introduce(&mut self) -> Result<Version, NoLease> {
        let announce = pcp::pcp_announce(self.own);
        let address = pcp::nat_pmp_address();
        // An IPv6 firewall has PCP alone.
        let both: [&[u8]; 2] = [&announce, &address];
        let requests = both.get(..if self.own.is_ipv4() { 2 } else { 1 }).unwrap_or_default();
        let first = self.ask(requests, |answer| Some((answer.version, answer.result))).await?;
        // What answers PCP in the words of NAT-PMP (RFC 6887, section 9) answers the other question as well.
        match first {
            (Version::Pcp, _) => Ok(Version::Pcp),
            (Version::NatPmp, _) => {
                let pcp = |answer: &Answer| (answer.version == Version::Pcp).then_some(());
                let is_pcp =
                    time::timeout(PAUSES[0] / 2, self.receive(pcp)).await.is_ok_and(|found| found.is_ok());
                Ok(if is_pcp { Version::Pcp } else { Version::NatPmp })
            }
        }
    }

    async fn map_one(&mut self, version: Version, wish: Wish) -> Result<(SocketAddr, Duration), NoLease> {
        let protocol = protocol(version);
        let refused = |result| NoLease::Refused { protocol, why: pcp::refusal(version, result) };
        let (nonce, port) = (self.nonce, self.port);
        match version {
            Version::Pcp => {
                let request = pcp::pcp_map(&wish, self.own, nonce);
                let read = |answer: &Answer| match answer.what {
                    What::Pcp { nonce: theirs, transport, internal, external, lifetime } => {
                        let is_ours = theirs == nonce && transport == wish.transport && internal == port;
                        is_ours.then_some((answer.result, external, lifetime))
                    }
                    What::NatPmp { .. } | What::Address(_) | What::Nothing => None,
                };
                match self.ask(&[&request], read).await? {
                    (0, external, lifetime) => Ok((external, Duration::from_secs(lifetime.into()))),
                    (result, ..) => Err(refused(result)),
                }
            }
            Version::NatPmp => {
                let request = pcp::nat_pmp_map(&wish);
                let read = |answer: &Answer| match answer.what {
                    What::NatPmp { transport, internal, external, lifetime } => {
                        let is_ours = transport == wish.transport && internal == port;
                        is_ours.then_some(Ok((external, lifetime)))
                    }
                    // An error does not say about what; one question is asked at a time.
                    What::Nothing if answer.result != 0 => Some(Err(answer.result)),
                    What::Pcp { .. } | What::Address(_) | What::Nothing => None,
                };
                let (external, lifetime) = self.ask(&[&request], read).await?.map_err(refused)?;
                let address = self.nat_pmp_address().await?;
                Ok((SocketAddr::new(address, external), Duration::from_secs(lifetime.into())))
            }
        }
    }

    async fn nat_pmp_address(&mut self) -> Result<IpAddr, NoLease> {
        let read = |answer: &Answer| match answer.what {
            What::Address(address) => Some(Ok(address.into())),
            What::Nothing if answer.result != 0 => Some(Err(answer.result)),
            What::Pcp { .. } | What::NatPmp { .. } | What::Nothing => None,
        };
        let why = |result| NoLease::Refused {
            protocol: MappingProtocol::NatPmp,
            why: pcp::refusal(Version::NatPmp, result),
        };
        self.ask(&[&pcp::nat_pmp_address()], read).await?.map_err(why)
    }

    /// Sends the requests until something comes that is an answer to one of them.
    async fn ask<T>(
        &mut self,
        requests: &[&[u8]],
        mut read: impl FnMut(&Answer) -> Option<T>,
    ) -> Result<T, NoLease> {
        for pause in PAUSES {
            for request in requests {
                self.socket.send(request).await?;
            }
            match time::timeout(pause, self.receive(&mut read)).await {
                Ok(found) => return Ok(found?),
                Err(_elapsed) => {}
            }
        }
        Err(NoLease::Silent)
    }

    async fn receive<T>(&mut self, mut read: impl FnMut(&Answer) -> Option<T>) -> std::io::Result<T> {
        let mut buffer = [0; MAX_ANSWER];
        for _ in 0..MAX_DATAGRAMS {
            let length = self.socket.recv(&mut buffer).await?;
            let Some(answer) = buffer.get(..length).and_then(pcp::read) else { continue };
            self.epoch = Some((answer.epoch, time::Instant::now()));
            if let Some(found) = read(&answer) {
                return Ok(found);
            }
        }
        std::future::pending().await
    }
}

/// Returns whether a router's clock went on as one does that has not restarted (RFC 6887, section 8.5).
fn goes_on(before: u32, after: u32, elapsed: Duration) -> bool {
    let expected = u64::from(before) + elapsed.as_secs();
    // A sixteenth for clocks that go wrong, and two seconds for rounding.
    let slack = elapsed.as_secs() / 16 + 2;
    u64::from(after) + slack >= expected
}

const fn protocol(version: Version) -> MappingProtocol {
    match version {
        Version::NatPmp => MappingProtocol::NatPmp,
        Version::Pcp => MappingProtocol::Pcp,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A router on loopback that answers each datagram by what the function returns.
    async fn router(
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> (SocketAddr, tokio::task::AbortHandle) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 256];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                for datagram in answer(&buffer[..length]) {
                    socket.send_to(&datagram, from).await.unwrap();
                }
            }
        });
        (address, task.abort_handle())
    }

    async fn asker(router: SocketAddr) -> Asker {
        asker_for(&[Transport::Udp, Transport::Tcp], router).await
    }

    async fn asker_for(transports: &'static [Transport], router: SocketAddr) -> Asker {
        Asker::new((router, "127.0.0.1".parse().unwrap()), transports, (7_000, [7; 12])).await.unwrap()
    }

    /// What a router with PCP answers: the wished port plus ten, at 198.20.0.7.
    fn pcp_answer(request: &[u8]) -> Option<Vec<u8>> {
        let mut answer = request.to_vec();
        if *request.first()? != 2 {
            return None;
        }
        answer[1] |= 0x80;
        answer[8..24].fill(0);
        if answer.len() == 60 {
            let port = u16::from_be_bytes([answer[42], answer[43]]) + 10;
            answer[42..44].copy_from_slice(&port.to_be_bytes());
            answer[56..60].copy_from_slice(&[198, 20, 0, 7]);
        }
        Some(answer)
    }

    /// What a router with NAT-PMP alone answers.
    fn nat_pmp_answer(request: &[u8]) -> Vec<u8> {
        match request {
            [0, 0] => vec![0, 128, 0, 0, 0, 0, 0, 9, 198, 20, 0, 7],
            [0, code, _, _, internal_high, internal_low, external @ .., _, _, _, _] => {
                let mut answer = vec![0, code | 0x80, 0, 0, 0, 0, 0, 9, *internal_high, *internal_low];
                answer.extend(external);
                answer.extend(60_u32.to_be_bytes());
                answer
            }
            // RFC 6887, section 9.
            _ => vec![0, 0x80 | request[1], 0, 1, 0, 0, 0, 9],
        }
    }

    /// Rule 6.83.
    #[tokio::test]
    async fn a_router_with_both_protocols_is_asked_by_pcp() {
        let both = |request: &[u8]| match pcp_answer(request) {
            Some(answer) => vec![answer],
            None => vec![nat_pmp_answer(request)],
        };
        let (address, task) = router(both).await;
        let lease = asker(address).await.map(None).await.unwrap();
        let external: SocketAddr = "198.20.0.7:7010".parse().unwrap();
        assert_eq!(lease.protocol, MappingProtocol::Pcp);
        assert_eq!((lease.udp, lease.tcp), (Some(external), Some(external)));
        assert_eq!(lease.lifetime, Duration::from_secs(7_200));
        task.abort();
    }

    #[tokio::test]
    async fn a_router_without_pcp_is_asked_by_nat_pmp() {
        let (address, task) = router(|request| vec![nat_pmp_answer(request)]).await;
        let mut asker = asker(address).await;
        let lease = asker.map(None).await.unwrap();
        let external: SocketAddr = "198.20.0.7:7000".parse().unwrap();
        assert_eq!(lease.protocol, MappingProtocol::NatPmp);
        assert_eq!((lease.udp, lease.tcp), (Some(external), Some(external)));
        assert!(asker.is_remembered().await.unwrap());
        task.abort();
    }

    /// Rule 6.84: somebody else's mapping, or an old answer, is not taken for the own one.
    #[tokio::test]
    async fn an_answer_with_another_nonce_is_left_alone() {
        let answers = |request: &[u8]| {
            let own = pcp_answer(request);
            let mut foreign = own.clone();
            if let Some(foreign) = foreign.as_mut().filter(|answer| answer.len() == 60) {
                foreign[24] ^= 1;
                foreign[42] = 99;
            }
            foreign.into_iter().chain(own).collect()
        };
        let (address, task) = router(answers).await;
        let lease = asker(address).await.map(None).await.unwrap();
        assert_eq!(lease.udp, Some("198.20.0.7:7010".parse().unwrap()));
        task.abort();
    }

    /// Rule 6.82.
    #[tokio::test]
    async fn who_wants_to_be_heard_alone_gets_no_port_for_links_over_tcp() {
        let (address, task) = router(|request| pcp_answer(request).into_iter().collect()).await;
        let lease = asker_for(&[Transport::Udp], address).await.map(None).await.unwrap();
        assert_eq!((lease.udp, lease.tcp), (Some("198.20.0.7:7010".parse().unwrap()), None));
        task.abort();
    }

    /// Rule 6.84: a datagram that is lost would leave the port open for two hours.
    #[tokio::test]
    async fn a_router_that_did_not_hear_that_ports_come_back_is_told_again() {
        for answer in [pcp_answer, |request: &[u8]| Some(nat_pmp_answer(request))] {
            let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
            let deaf = std::sync::Mutex::new(true);
            let (address, task) = router(move |request| {
                let is_deletion = is_deletion(request);
                if is_deletion && std::mem::take(&mut *deaf.lock().unwrap()) {
                    return Vec::new();
                }
                if is_deletion {
                    told.send(request.to_vec()).unwrap();
                }
                answer(request).into_iter().collect()
            })
            .await;
            let mut asker = asker(address).await;
            asker.map(None).await.unwrap();
            asker.forget().await;
            let back: BTreeSet<_> = std::iter::from_fn(|| heard.try_recv().ok()).collect();
            assert_eq!(back.len(), 2, "the router has heard of both ports when this ends");
            task.abort();
        }
    }

    /// Returns whether a router is asked for a mapping of no time at all.
    fn is_deletion(request: &[u8]) -> bool {
        match request {
            [2, 1, _, _, lifetime @ ..] if request.len() == 60 => lifetime.starts_with(&[0; 4]),
            [0, 1 | 2, ..] if request.len() == 12 => request.ends_with(&[0; 4]),
            _ => false,
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_words() {
        let refuse = |request: &[u8]| {
            let mut answer = pcp_answer(request);
            if let Some(answer) = answer.as_mut().filter(|answer| answer.len() == 60) {
                answer[3] = 2;
            }
            answer.into_iter().collect()
        };
        let (address, task) = router(refuse).await;
        let why = asker(address).await.map(None).await.unwrap_err();
        assert_eq!(why.to_string(), "the router does not allow it");
        task.abort();
    }

    #[tokio::test]
    async fn where_nobody_listens_that_is_known_at_once() {
        // Bound and closed again: what is sent there comes back as an ICMP message.
        let address = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(matches!(asker(address).await.map(None).await, Err(NoLease::Silent)));
    }

    /// Rule 6.84.
    #[test]
    fn a_router_that_has_restarted_is_told_by_its_clock() {
        assert!(goes_on(1_000, 1_060, Duration::from_secs(60)));
        assert!(goes_on(1_000, 1_057, Duration::from_secs(60)));
        assert!(!goes_on(1_000, 12, Duration::from_secs(60)));
        assert!(!goes_on(1_000, 1_050, Duration::from_secs(60)));
    }
}

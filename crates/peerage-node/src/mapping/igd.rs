//! Asking a router by UPnP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use peerage_proto::mapping::MappingProtocol;
use peerage_wire::codec::Transport;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time;

use super::lease::{Lease, NoLease};
use super::upnp::{
    CONFLICT, Call, Control, GROUP, MAX_TEXT, ONLY_PERMANENT, Page, SAME_PORT_REQUIRED, Wish,
    read_description, read_error, read_external_address, read_location, searches,
};

/// How often a gateway is searched for, and how long each time: it waits up to the second that the search allows (field MX).
const MAX_SEARCHES: usize = 2;
const SEARCH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long a router may take for a page or a call; small ones are slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The most answers to a search that are looked at; every device on the LAN may send some.
const MAX_ANSWERS: usize = 64;

/// How long a mapping lasts, in seconds. UPnP does not tell when the router has restarted, so it is asked for again after half of it.
const LIFETIME: u32 = 2_400;

/// How many external ports are tried if somebody else has the first.
const MAX_PORTS: u16 = 4;

/// How far apart they are: neighbouring ones are likely taken by the same program.
const PORT_STEP: u16 = 1_009;

/// A router that is asked by calls.
#[derive(Debug)]
pub(super) struct Igd {
    control: Control,
    own: IpAddr,
    /// For which ports it is asked.
    transports: &'static [Transport],
    port: u16,
    /// Whether it makes only mappings that last until they are deleted.
    is_permanent: bool,
}

impl Igd {
    /// Searches for the router on the LAN of this address.
    pub(super) async fn find(
        router: IpAddr,
        own: IpAddr,
        wanted: (&'static [Transport], u16),
    ) -> Result<Self, NoLease> {
        // The protocol knows IPv4 alone.
        let IpAddr::V4(own_v4) = own else { return Err(NoLease::Silent) };
        Self::at(&search(router, own_v4).await?, own, wanted).await
    }

    /// Reads the router's description.
    async fn at(
        location: &Page,
        own: IpAddr,
        (transports, port): (&'static [Transport], u16),
    ) -> Result<Self, NoLease> {
        let (_, text) = request(own, location, Method::GET, None).await?;
        let control = read_description(&text, location).ok_or(NoLease::Silent)?;
        Ok(Self { control, own, transports, port, is_permanent: false })
    }

    /// Has the ports mapped, at best to these ones.
    pub(super) async fn map(&mut self, last: Option<&Lease>) -> Result<Lease, NoLease> {
        let address = self.external_address().await?;
        let mut lease = Lease {
            protocol: MappingProtocol::Upnp,
            udp: None,
            tcp: None,
            lifetime: Duration::from_secs(LIFETIME.into()),
        };
        let mut refused = NoLease::Silent;
        for &transport in self.transports {
            let wanted = last.and_then(|last| last.of(transport)).map_or(self.port, |held| held.port());
            match self.map_one(transport, wanted).await {
                Ok(port) => lease.set(transport, SocketAddr::new(address, port)),
                Err(why) => refused = why,
            }
        }
        if lease.udp.is_none() && lease.tcp.is_none() { Err(refused) } else { Ok(lease) }
    }

    /// Gives the mappings back.
    pub(super) async fn forget(&self, lease: &Lease) {
        for &transport in self.transports {
            let Some(external) = lease.of(transport) else { continue };
            if let Err(error) = self.call(&self.control.delete(transport, external.port())).await {
                tracing::debug!(%error, "the router keeps a forwarded port until it ends by itself");
            }
        }
    }

    async fn external_address(&self) -> Result<IpAddr, NoLease> {
        match self.call(&self.control.external_address()).await? {
            Ok(text) => read_external_address(&text).ok_or_else(|| refused("it does not tell its address")),
            Err(code) => Err(refused(&format!("it does not tell its address (error {code})"))),
        }
    }

    async fn map_one(&mut self, transport: Transport, wanted: u16) -> Result<u16, NoLease> {
        let mut external = wanted;
        let mut last_code = CONFLICT;
        // Each port, and once more for each other thing that the router wants.
        for _attempt in 0..MAX_PORTS + 2 {
            let lifetime = if self.is_permanent { 0 } else { LIFETIME };
            let (own, internal) = (self.own, self.port);
            let call = self.control.add(&Wish { transport, own, internal, external, lifetime });
            match self.call(&call).await? {
                Ok(_) => return Ok(external),
                Err(CONFLICT) => external = another(external),
                Err(SAME_PORT_REQUIRED) if external != internal => external = internal,
                Err(ONLY_PERMANENT) if !self.is_permanent => self.is_permanent = true,
                Err(code) => {
                    last_code = code;
                    break;
                }
            }
        }
        Err(refused(match last_code {
            606 => "it does not allow it",
            CONFLICT => "other computers have the ports",
            728 => "it has no room for more mappings",
            _ => return Err(refused(&format!("error {last_code}"))),
        }))
    }

    /// Returns what the router says, or its number of the error.
    async fn call(&self, call: &Call) -> Result<Result<String, u16>, NoLease> {
        let (status, text) = request(self.own, &self.control.page, Method::POST, Some(call)).await?;
        if status.is_success() {
            return Ok(Ok(text));
        }
        Ok(Err(read_error(&text).unwrap_or(status.as_u16())))
    }
}

/// Returns the port that is tried after this one: an unprivileged one.
fn another(port: u16) -> u16 {
    let next = port.wrapping_add(PORT_STEP);
    if next < 1_024 { next + 1_024 } else { next }
}

fn refused(why: &str) -> NoLease {
    NoLease::Refused { protocol: MappingProtocol::Upnp, why: format!("the router refuses: {why}") }
}

/// Asks all devices of the LAN which of them is a gateway; only the router itself is listened to.
async fn search(router: IpAddr, own: Ipv4Addr) -> Result<Page, NoLease> {
    let socket = UdpSocket::bind((own, 0)).await?;
    socket2::SockRef::from(&socket).set_multicast_if_v4(&own)?;
    for _ in 0..MAX_SEARCHES {
        for text in searches() {
            socket.send_to(text.as_bytes(), GROUP).await?;
        }
        if let Ok(found) = time::timeout(SEARCH_TIMEOUT, answered(&socket, router)).await {
            return Ok(found?);
        }
    }
    Err(NoLease::Silent)
}

async fn answered(socket: &UdpSocket, router: IpAddr) -> std::io::Result<Page> {
    let mut buffer = [0; 2_048];
    for _ in 0..MAX_ANSWERS {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let text = buffer.get(..length).unwrap_or_default();
        if let Some(page) = (from.ip() == router).then(|| read_location(text, router)).flatten() {
            return Ok(page);
        }
    }
    std::future::pending().await
}

async fn request(
    own: IpAddr,
    page: &Page,
    method: Method,
    call: Option<&Call>,
) -> Result<(StatusCode, String), NoLease> {
    let answer = time::timeout(CALL_TIMEOUT, exchange(own, page, method, call)).await;
    answer.map_err(|_elapsed| NoLease::Silent)?.map_err(|error| {
        tracing::debug!(%error, server = %page.server, "the router's UPnP pages cannot be used");
        NoLease::Silent
    })
}

/// Why a page of the router is of no use.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error("the answer broke off or has more than {MAX_TEXT} bytes")]
    Body,
}

async fn exchange(
    own: IpAddr,
    page: &Page,
    method: Method,
    call: Option<&Call>,
) -> Result<(StatusCode, String), ExchangeError> {
    // Some routers map only for the address that the call comes from.
    let socket = TcpSocket::new_v4()?;
    socket.bind((own, 0).into())?;
    let stream = socket.connect(page.server).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let mut request = Request::builder()
            .method(method)
            .uri(&page.path)
            .header(header::HOST, page.server.to_string())
            .header(header::CONNECTION, "close");
        if let Some(call) = call {
            request = request
                .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
                .header("SOAPAction", &call.action);
        }
        let body = call.map(|call| Bytes::from(call.body.clone())).unwrap_or_default();
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_TEXT).collect().await;
        let body = body.map_err(|_| ExchangeError::Body)?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = &mut exchange => result,
        // It may end with the last byte of the answer.
        _ended = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use peerage_proto::mapping::Ports;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const DESCRIPTION: &str = "<root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/ctl</controlURL></service></serviceList></device></root>";

    /// A router on loopback: answers each call by what the function says to its body; an error is a number.
    async fn router(
        answer: impl Fn(&str) -> Result<String, u16> + Send + 'static,
    ) -> (Page, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let page = Page { server: listener.local_addr().unwrap(), path: "/root.xml".to_owned() };
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = read_request(&mut stream).await;
                let (status, body) = if request.starts_with("GET /root.xml ") {
                    (200, DESCRIPTION.to_owned())
                } else {
                    seen.lock().unwrap().push(request.clone());
                    match answer(&request) {
                        Ok(body) => (200, body),
                        Err(code) => (500, format!("<a><errorCode>{code}</errorCode></a>")),
                    }
                };
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        (page, calls)
    }

    async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4_096];
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let lengths = head.lines().filter_map(|line| line.split_once(": "));
            let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            if lengths.next().is_none_or(|(_, n)| n.parse::<usize>().unwrap() <= body.len()) {
                return text;
            }
        }
    }

    fn address_or(call: &str, then: Result<String, u16>) -> Result<String, u16> {
        if call.contains("GetExternalIPAddress") {
            return Ok("<a><NewExternalIPAddress>198.20.0.7</NewExternalIPAddress></a>".to_owned());
        }
        then
    }

    async fn igd(page: &Page) -> Igd {
        Igd::at(page, "127.0.0.1".parse().unwrap(), (Ports::All.transports(), 7_000)).await.unwrap()
    }

    #[tokio::test]
    async fn both_ports_are_mapped_and_given_back() {
        let (page, calls) = router(|call| address_or(call, Ok("<a/>".to_owned()))).await;
        let mut igd = igd(&page).await;
        let lease = igd.map(None).await.unwrap();
        let external = Some("198.20.0.7:7000".parse().unwrap());
        assert_eq!((lease.udp, lease.tcp), (external, external));
        igd.forget(&lease).await;
        let calls = calls.lock().unwrap();
        assert_eq!(calls.iter().filter(|call| call.contains("DeletePortMapping")).count(), 2);
    }

    #[tokio::test]
    async fn another_port_is_taken_if_somebody_has_the_first() {
        let taken = |call: &str| {
            let is_taken = call.contains("<NewExternalPort>7000<");
            address_or(call, if is_taken { Err(CONFLICT) } else { Ok("<a/>".to_owned()) })
        };
        let (page, _) = router(taken).await;
        let lease = igd(&page).await.map(None).await.unwrap();
        assert_eq!(lease.udp, Some("198.20.0.7:8009".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_router_that_knows_no_end_of_mappings_gets_none() {
        let endless = |call: &str| {
            let is_endless = call.contains("<NewLeaseDuration>0<");
            address_or(call, if is_endless { Ok("<a/>".to_owned()) } else { Err(ONLY_PERMANENT) })
        };
        let (page, _) = router(endless).await;
        let lease = igd(&page).await.map(None).await.unwrap();
        assert_eq!(lease.tcp, Some("198.20.0.7:7000".parse().unwrap()));
    }

    #[tokio::test]
    async fn what_is_refused_is_told_and_not_asked_for_ever() {
        for (code, expected) in [(606, "does not allow"), (CONFLICT, "have the ports"), (501, "error 501")] {
            let (page, calls) = router(move |call| address_or(call, Err(code))).await;
            let why = igd(&page).await.map(None).await.unwrap_err().to_string();
            assert!(why.contains(expected), "{why}");
            assert!(calls.lock().unwrap().len() <= 2 * usize::from(MAX_PORTS + 2) + 1);
        }
    }
}

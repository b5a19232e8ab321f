//! The texts of a UPnP Internet Gateway Device: the search, its description, and the calls to its connection service (UPnP Forum,
//! *WANIPConnection:2 Service*, 2010).

use std::net::{IpAddr, SocketAddr};

use peerage_wire::codec::Transport;
use quick_xml::Reader;
use quick_xml::events::Event;

/// Where devices listen for searches (UPnP Device Architecture 1.1, section 1.1.1).
pub(super) const GROUP: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(239, 255, 255, 250)), 1_900);

/// The longest text that is taken from a router, in bytes; descriptions have some thousand.
pub(super) const MAX_TEXT: usize = 64 * 1_024;

/// The kinds of devices that are searched for: a gateway of either version.
const DEVICES: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];

/// The services that map ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// Somebody else's mapping has the external port.
pub(super) const CONFLICT: u16 = 718;
/// The external port has to equal the internal one.
pub(super) const SAME_PORT_REQUIRED: u16 = 724;
/// Only mappings without an end can be made.
pub(super) const ONLY_PERMANENT: u16 = 725;

/// Returns the searches, one for each kind of gateway.
pub(super) fn searches() -> impl Iterator<Item = String> {
    DEVICES.iter().map(|device| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {device}\r\n\r\n"
        )
    })
}

/// A page of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) server: SocketAddr,
    pub(super) path: String,
}

impl Page {
    /// Reads a URL that leads to the router itself; one that leads elsewhere would aim this computer at others.
    fn read(url: &str, router: IpAddr) -> Option<Self> {
        let rest = url.trim().strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let server: SocketAddr =
            host.parse().or_else(|_| host.parse().map(|ip: IpAddr| SocketAddr::new(ip, 80))).ok()?;
        let path = if path.is_empty() { "/" } else { path };
        (server.ip() == router && path.bytes().all(|b| b.is_ascii_graphic()))
            .then(|| Self { server, path: path.to_owned() })
    }

    /// Returns the page that a description calls so.
    fn join(&self, url: &str) -> Option<Self> {
        let url = url.trim();
        if url.contains("://") {
            return Self::read(url, self.server.ip());
        }
        let path = if url.starts_with('/') {
            url.to_owned()
        } else {
            let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{url}")
        };
        path.bytes().all(|b| b.is_ascii_graphic()).then_some(Self { server: self.server, path })
    }
}

/// Reads where a gateway that answers a search describes itself.
pub(super) fn read_location(answer: &[u8], router: IpAddr) -> Option<Page> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut lines = text.lines();
    if !lines.next()?.starts_with("HTTP/1.1 200") {
        return None;
    }
    let fields = lines.filter_map(|line| line.split_once(':'));
    let mut locations = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case("location"));
    Page::read(locations.next()?.1, router)
}

/// A service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) page: Page,
    service: &'static str,
}

/// Finds the service in a gateway's description.
pub(super) fn read_description(text: &str, from: &Page) -> Option<Control> {
    let base = values(text, &["URLBase"]).into_iter().next();
    let base = base.and_then(|(_, url)| from.join(&url)).unwrap_or_else(|| from.clone());
    let mut found: Vec<(usize, Page)> = Vec::new();
    let mut kind = None;
    // Within a <service>, its type stands before or after the URL.
    let mut url = None;
    for (name, value) in values(text, &["serviceType", "controlURL", "/service"]) {
        match name {
            "serviceType" => kind = SERVICES.iter().position(|service| *service == value.trim()),
            "controlURL" => url = base.join(&value),
            _ => found.extend(kind.take().zip(url.take())),
        }
    }
    let (kind, page) = found.into_iter().min_by_key(|(kind, _)| *kind)?;
    Some(Control { page, service: SERVICES.get(kind)? })
}

/// A mapping to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) transport: Transport,
    pub(super) own: IpAddr,
    pub(super) internal: u16,
    pub(super) external: u16,
    /// For how long, in seconds; 0: without end.
    pub(super) lifetime: u32,
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// The value of the header `SOAPACTION`.
    pub(super) action: String,
    pub(super) body: String,
}

impl Control {
    pub(super) fn add(&self, wish: &Wish) -> Call {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", wish.external.to_string()),
            ("NewProtocol", protocol(wish.transport).to_owned()),
            ("NewInternalPort", wish.internal.to_string()),
            ("NewInternalClient", wish.own.to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", "Peerage".to_owned()),
            ("NewLeaseDuration", wish.lifetime.to_string()),
        ];
        self.call("AddPortMapping", &arguments)
    }

    pub(super) fn delete(&self, transport: Transport, external: u16) -> Call {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", external.to_string()),
            ("NewProtocol", protocol(transport).to_owned()),
        ];
        self.call("DeletePortMapping", &arguments)
    }

    pub(super) fn external_address(&self) -> Call {
        self.call("GetExternalIPAddress", &[])
    }

    /// Writes a call; no argument needs to be escaped.
    fn call(&self, name: &str, arguments: &[(&str, String)]) -> Call {
        let service = self.service;
        let arguments: String =
            arguments.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{service}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        Call { action: format!("\"{service}#{name}\""), body }
    }
}

const fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
    }
}

/// Reads the router's own address from the answer to that call.
pub(super) fn read_external_address(text: &str) -> Option<IpAddr> {
    let (_, value) = values(text, &["NewExternalIPAddress"]).into_iter().next()?;
    value.trim().parse().ok()
}

/// Reads why a call was refused.
pub(super) fn read_error(text: &str) -> Option<u16> {
    let (_, value) = values(text, &["errorCode"]).into_iter().next()?;
    value.trim().parse().ok()
}

/// Returns the text of the elements with these names, whatever their prefix, in their order; `/name` stands for the end of one.
/// What is no XML ends the list.
fn values<'a>(text: &str, names: &[&'a str]) -> Vec<(&'a str, String)> {
    let mut reader = Reader::from_str(text);
    let mut open = None;
    let mut all = Vec::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => {
                let local = element.local_name();
                open = names.iter().copied().find(|name| *name == local.as_ref());
                if let Some(name) = open {
                    all.push((name, String::new()));
                }
            }
            Ok(Event::Text(piece)) => {
                if let (Some(_), Some((_, value))) = (open, all.last_mut()) {
                    value.push_str(&piece);
                }
            }
            Ok(Event::End(element)) => {
                open = None;
                let local = element.local_name();
                let is_end = |name: &&str| name.strip_prefix('/').is_some_and(|n| n == local.as_ref());
                all.extend(names.iter().copied().find(is_end).map(|name| (name, String::new())));
            }
            Ok(Event::Eof) | Err(_) => return all,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 1));

    fn page(text: &str) -> Page {
        Page::read(text, ROUTER).unwrap()
    }

    #[test]
    fn the_location_is_taken_from_an_answer_whatever_the_case_of_its_names() {
        let answer = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLocation: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
        let found = read_location(answer, ROUTER).unwrap();
        assert_eq!(
            (found.server, found.path.as_str()),
            ("192.168.1.1:5000".parse().unwrap(), "/rootDesc.xml")
        );
    }

    /// Anybody on the LAN answers a search. Nobody may aim this computer elsewhere by it.
    #[test]
    fn a_location_that_is_not_the_routers_own_is_refused() {
        for url in [
            "http://192.168.1.77/x",
            "http://127.0.0.1:8080/",
            "https://192.168.1.1/",
            "http://192.168.1.1@10.0.0.1/",
            "http://192.168.1.1/a b",
            "http://router.local/",
            "/rootDesc.xml",
        ] {
            assert_eq!(Page::read(url, ROUTER), None, "{url}");
        }
        assert_eq!(page("http://192.168.1.1/a").join("http://10.0.0.9/ctl"), None);
    }

    #[test]
    fn the_best_connection_service_is_found_in_a_description() {
        let text = "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList>\
            <service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType>\
            <controlURL>/ctl/ppp</controlURL></service>\
            <service><controlURL>ctl/IPConn</controlURL>\
            <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType></service>\
            <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
            <controlURL>/ctl/L3F</controlURL></service></serviceList></device></root>";
        let control = read_description(text, &page("http://192.168.1.1:5000/igd/root.xml")).unwrap();
        assert_eq!(control.page, page("http://192.168.1.1:5000/igd/ctl/IPConn"));
        assert_eq!(control.service, SERVICES[1]);
    }

    #[test]
    fn a_description_without_the_service_or_without_sense_gives_nothing() {
        for text in ["", "<root>", "no xml", "<root><service><controlURL>/x</controlURL></service></root>"] {
            assert_eq!(read_description(text, &page("http://192.168.1.1/")), None, "{text}");
        }
    }

    #[test]
    fn a_call_names_its_service_and_all_arguments() {
        let control = Control { page: page("http://192.168.1.1/c"), service: SERVICES[0] };
        let own = "192.168.1.10".parse().unwrap();
        let call = control.add(&Wish {
            transport: Transport::Udp,
            own,
            internal: 8_000,
            external: 18_000,
            lifetime: 3_600,
        });
        assert_eq!(call.action, "\"urn:schemas-upnp-org:service:WANIPConnection:2#AddPortMapping\"");
        for part in [
            "<NewExternalPort>18000</NewExternalPort><NewProtocol>UDP</NewProtocol>",
            "<NewInternalPort>8000</NewInternalPort><NewInternalClient>192.168.1.10</NewInternalClient>",
            "<NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping>",
        ] {
            assert!(call.body.contains(part), "{part}");
        }
    }

    #[test]
    fn answers_tell_the_address_or_the_error() {
        let address = "<s:Envelope xmlns:s=\"x\"><s:Body><u:GetExternalIPAddressResponse xmlns:u=\"y\">\
            <NewExternalIPAddress>203.0.114.7</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>";
        assert_eq!(read_external_address(address), Some("203.0.114.7".parse().unwrap()));
        let error = "<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>";
        assert_eq!(read_error(error), Some(CONFLICT));
        assert_eq!(read_error(address), None);
    }
}

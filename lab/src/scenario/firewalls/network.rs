//! The networks: what each lets out, and what should come of it.

use std::net::Ipv4Addr;

use super::FORWARDED_PORT;
use crate::device::{PROXY_PORT, ProxyManner};

/// What every network is called.
pub const NAMES: &[&str] = &[
    "udp-dropped",
    "udp-dies",
    "web-rejected",
    "web-dropped",
    "tls-only",
    "http-only",
    "proxy",
    "proxy-password",
    "proxy-no-password",
    "proxy-other-port",
    "proxy-intercepting",
    "proxy-dies",
];

/// What should come of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// All works.
    Everything,
    /// All works until the proxy dies, which is then named.
    Outage,
    /// All works, also when UDP is dropped from then on while bytes are on their way.
    LossOfUdp,
    /// Nothing leads out, and joining says why in these words.
    NoJoining(&'static str),
}

/// What may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// All but TCP to the office's node, so that direct paths are of UDP.
    NoTcpToOffice,
    /// All but UDP.
    NoUdp,
    /// TCP to the web's ports; the rest is rejected.
    WebOrRejected,
    /// The same; the rest vanishes.
    WebOrDropped,
    /// TCP to port 443 that begins as TLS does.
    Tls,
    /// TCP to port 80 that begins as HTTP does.
    Http,
    /// TCP to the proxy.
    Proxy,
}

/// A network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    pub(super) name: &'static str,
    /// A name for hosts, of at most 8 letters.
    pub(super) short: &'static str,
    leaves: Leaves,
    pub(super) proxy: Option<ProxyManner>,
    /// The user name and password that the user has for it.
    credentials: Option<&'static str>,
    /// What the doctor should call it.
    pub(super) cause: &'static str,
    pub(super) expected: Expected,
}

/// Returns all networks.
pub(super) fn all() -> Vec<Network> {
    let direct = |name, short, leaves, cause| Network {
        name,
        short,
        leaves,
        proxy: None,
        credentials: None,
        cause,
        expected: Expected::Everything,
    };
    let proxied = |name, short, manner, cause, expected| Network {
        proxy: Some(manner),
        expected,
        ..direct(name, short, Leaves::Proxy, cause)
    };
    let password = ProxyManner::Password("ann", "secret");
    vec![
        direct("udp-dropped", "noudp", Leaves::NoUdp, "udp-blocked"),
        Network {
            expected: Expected::LossOfUdp,
            ..direct("udp-dies", "dying", Leaves::NoTcpToOffice, "none")
        },
        direct("web-rejected", "webrej", Leaves::WebOrRejected, "only-web-ports"),
        direct("web-dropped", "webdrop", Leaves::WebOrDropped, "only-web-ports"),
        direct("tls-only", "tls", Leaves::Tls, "only-web-ports"),
        direct("http-only", "http", Leaves::Http, "only-http"),
        proxied("proxy", "proxy", ProxyManner::Open, "only-proxy", Expected::Everything),
        Network {
            credentials: Some("ann:secret"),
            ..proxied("proxy-password", "pass", password, "only-proxy", Expected::Everything)
        },
        proxied(
            "proxy-no-password",
            "nopass",
            password,
            "proxy-credentials",
            Expected::NoJoining("wants a user name and password (407)"),
        ),
        proxied(
            "proxy-other-port",
            "port",
            ProxyManner::OtherPort,
            "proxy-refuses",
            Expected::NoJoining("does not allow connections to this address or port (403)"),
        ),
        proxied(
            "proxy-intercepting",
            "mitm",
            ProxyManner::Intercepting,
            "tls-intercepted",
            Expected::Everything,
        ),
        proxied("proxy-dies", "dies", ProxyManner::Open, "only-proxy", Expected::Outage),
    ]
}

impl Network {
    /// Returns how the user names the proxy.
    pub(super) fn url(&self, place: &str) -> String {
        match self.credentials {
            Some(credentials) => format!("http://{credentials}@{place}"),
            None => format!("http://{place}"),
        }
    }

    /// Returns the rules of the firewall, which counts what it keeps back; `proxy` is where the proxy is.
    pub(super) fn firewall(&self, proxy: Option<Ipv4Addr>) -> String {
        let web = "tcp dport { 80, 443 } accept";
        let rules = match (self.leaves, proxy) {
            (Leaves::NoTcpToOffice, _) => format!("tcp dport {FORWARDED_PORT} drop"),
            (Leaves::NoUdp, _) => "meta l4proto udp counter name dropped drop".to_owned(),
            (Leaves::WebOrRejected, _) => format!("{web}\n  counter name dropped reject"),
            (Leaves::WebOrDropped, _) => format!("{web}\n  counter name dropped drop"),
            (Leaves::Tls, _) => TLS.to_owned(),
            (Leaves::Http, _) => HTTP.to_owned(),
            (Leaves::Proxy, Some(proxy)) => {
                format!("ip daddr {proxy} tcp dport {PROXY_PORT} accept\n  counter name dropped drop")
            }
            (Leaves::Proxy, None) => "counter name dropped drop".to_owned(),
        };
        // Before the router's own rules, which let all of a connection pass once its first packet has.
        format!(
            "table inet blocking {{\n counter dropped {{ }}\n chain forward {{\n  \
             type filter hook forward priority filter - 5;\n  iifname != \"lan\" accept\n  {rules}\n }}\n}}\n"
        )
    }
}

/// What a firewall is told that drops UDP from now on, in both directions.
pub(super) const NO_UDP: &str =
    "insert rule inet blocking forward meta l4proto udp counter name dropped drop\n";

/// The first bytes of each connection to port 443 must be those of a TLS record with a handshake; whatever has none yet may pass.
const TLS: &str = "tcp dport 443 ct mark 1 accept
  tcp dport 443 @ih,0,16 0x1603 ct mark set 1 accept
  tcp dport 443 @ih,0,8 0-255 counter name dropped drop
  tcp dport 443 accept
  counter name dropped drop";

/// The first bytes of each connection to port 80 must be `GET ` or `POST`; whatever has none yet may pass.
const HTTP: &str = "tcp dport 80 ct mark 1 accept
  tcp dport 80 @ih,0,32 0x47455420 ct mark set 1 accept
  tcp dport 80 @ih,0,32 0x504f5354 ct mark set 1 accept
  tcp dport 80 @ih,0,8 0-255 counter name dropped drop
  tcp dport 80 accept
  counter name dropped drop";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_networks_and_short_ones_fit_interfaces() {
        let all = all();
        assert_eq!(all.iter().map(|network| network.name).collect::<Vec<_>>(), NAMES);
        assert!(all.iter().all(|network| network.short.len() <= 8));
    }
}

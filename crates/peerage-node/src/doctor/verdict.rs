//! What the checks come to.

use std::net::SocketAddr;

use peerage_proto::proxy::Refusal;

use super::{Cause, Check, Name, Outcome, Report, Rule, WEB_PORTS};
use crate::connect::ProxyFault;

/// How a refusal for want of credentials begins its reason; the outcome alone does not tell it from others.
const CREDENTIALS: &str = "(407)";

/// Says how bad a proxy's fault is: what credentials or a login would mend is a limit.
pub(super) fn of_proxy(fault: &ProxyFault) -> Outcome {
    match fault {
        ProxyFault::Refused(
            Refusal::CredentialsMissing
            | Refusal::CredentialsRefused
            | Refusal::CredentialsUnsupported
            | Refusal::Portal { .. },
        ) => Outcome::Limited,
        ProxyFault::Refused(_) | ProxyFault::Io(_) => Outcome::Blocked,
    }
}

/// Puts the report together.
pub(super) fn judge(servers: &[SocketAddr], checks: Vec<Check>) -> Report {
    let cause = cause(servers, &checks);
    let rules = rules(servers, &checks, cause);
    let summary = format!("{}{}", summary(cause), way(cause, &checks));
    Report { cause, summary, checks, rules }
}

/// Says what Peerage makes of a network that is in its way.
fn way(cause: Cause, checks: &[Check]) -> &'static str {
    let passes = |name| checks.iter().any(|check| check.name == name && check.outcome == Outcome::Passes);
    if matches!(cause, Cause::None | Cause::CaptivePortal | Cause::Offline) {
        ""
    } else if passes(Name::Messages) {
        " Messages go inside TLS, and so do tunnels where nothing better is left."
    } else if passes(Name::Websocket) {
        " Messages go in WebSockets, and so do tunnels where nothing better is left."
    } else if passes(Name::Requests) {
        " Messages go in requests of HTTP, one after the other, and so do tunnels, slowly, where nothing better is left."
    } else {
        " Peerage finds no way out."
    }
}

fn cause(servers: &[SocketAddr], checks: &[Check]) -> Cause {
    let has = |name, outcome| checks.iter().any(|check| check.name == name && check.outcome == outcome);
    let connects = |is_meant: &dyn Fn(SocketAddr) -> bool| {
        let connected = |check: &&Check| check.name == Name::Tcp && check.outcome == Outcome::Passes;
        checks.iter().filter(connected).filter_map(|check| check.address).any(is_meant)
    };
    let [https, http] = WEB_PORTS;
    let is_answered = has(Name::Https, Outcome::Passes);
    let is_portal =
        |check: &Check| matches!(check.name, Name::Https | Name::Http) && check.outcome == Outcome::Limited;
    if !is_answered && checks.iter().any(is_portal) {
        Cause::CaptivePortal
    } else if has(Name::Tls, Outcome::Limited) {
        Cause::TlsIntercepted
    } else if has(Name::Udp, Outcome::Passes) {
        Cause::None
    } else if connects(&|address| servers.contains(&address) && !WEB_PORTS.contains(&address.port())) {
        Cause::UdpBlocked
    } else if connects(&|address| address.port() == https) {
        Cause::OnlyWebPorts
    } else if connects(&|address| address.port() == http) {
        Cause::OnlyHttp
    } else {
        of_proxies(checks)
    }
}

/// Returns what is in the way if nothing passes but what the proxy lets.
fn of_proxies(checks: &[Check]) -> Cause {
    let asked: Vec<&Check> = checks.iter().filter(|check| check.name == Name::Proxy).collect();
    let wants_credentials =
        |check: &&&Check| check.outcome == Outcome::Limited && check.evidence.contains(CREDENTIALS);
    if asked.iter().any(|check| check.outcome == Outcome::Passes) {
        Cause::OnlyProxy
    } else if asked.iter().find(wants_credentials).is_some() {
        Cause::ProxyCredentials
    } else if asked.iter().any(|check| check.outcome == Outcome::Limited) {
        Cause::CaptivePortal
    } else if asked.iter().any(|check| check.outcome == Outcome::Blocked) {
        Cause::ProxyRefuses
    } else {
        Cause::Offline
    }
}

const fn summary(cause: Cause) -> &'static str {
    match cause {
        Cause::None => "Messages pass by UDP; nothing is in the way.",
        Cause::UdpBlocked => "A firewall lets no UDP through; TCP passes.",
        Cause::OnlyWebPorts => "A firewall lets connections to the web's ports alone through.",
        Cause::OnlyHttp => "A firewall lets connections to port 80 alone through.",
        Cause::OnlyProxy => "Only the proxy leads out of this network.",
        Cause::ProxyCredentials => {
            "Only the proxy leads out of this network, and it wants another user name and password than it was given."
        }
        Cause::ProxyRefuses => "The proxy does not connect to the servers, and nothing else leads out.",
        Cause::TlsIntercepted => {
            "Somebody between here and the servers opens TLS connections and shows certificates of his own. Peerage \
             trusts nothing that depends on them."
        }
        Cause::CaptivePortal => "This network wants a login: open any page in a browser first.",
        Cause::Offline => {
            "Nothing comes back from any server: the servers are down, or this network leads nowhere."
        }
    }
}

/// Returns what would have to be allowed for the best way: messages by UDP, links by TCP on the servers' own ports.
fn rules(servers: &[SocketAddr], checks: &[Check], cause: Cause) -> Vec<Rule> {
    if matches!(cause, Cause::None | Cause::CaptivePortal) {
        return Vec::new();
    }
    let passes = |name, server| {
        checks.iter().any(|c| c.name == name && c.address == Some(server) && c.outcome == Outcome::Passes)
    };
    let mut rules = Vec::new();
    for server in servers {
        let rule = |protocol, why| Rule { protocol, to: server.ip(), port: server.port(), why };
        if !passes(Name::Udp, *server) {
            rules.push(rule("udp", "messages, and direct paths to other computers"));
        }
        if cause == Cause::TlsIntercepted {
            rules.push(rule("tcp", "joining and relayed tunnels; to be left alone by TLS inspection"));
        } else if !passes(Name::Tcp, *server) {
            rules.push(rule("tcp", "joining and relayed tunnels, without TLS inspection"));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "45.0.0.2:4240";

    fn check(name: Name, address: &str, outcome: Outcome) -> Check {
        Check::new(name, address.parse().ok(), outcome, "")
    }

    fn judged(checks: &[(Name, &str, Outcome)]) -> Report {
        let checks = checks.iter().map(|(name, address, outcome)| check(*name, address, *outcome)).collect();
        judge(&[SERVER.parse().unwrap()], checks)
    }

    #[test]
    fn each_network_has_its_cause() {
        use Outcome::{Blocked, Limited, Passes};
        let udp = (Name::Udp, SERVER, Blocked);
        let own = |outcome| (Name::Tcp, SERVER, outcome);
        let (web, http) = ((Name::Tcp, "45.0.0.2:443", Passes), (Name::Tcp, "45.0.0.2:80", Passes));
        let proxy = |outcome| (Name::Proxy, SERVER, outcome);
        for (checks, cause) in [
            (vec![(Name::Udp, SERVER, Passes), own(Passes)], Cause::None),
            (vec![udp, own(Passes)], Cause::UdpBlocked),
            (vec![udp, own(Blocked), web, http], Cause::OnlyWebPorts),
            (vec![udp, own(Blocked), http], Cause::OnlyHttp),
            (vec![udp, own(Blocked), proxy(Passes)], Cause::OnlyProxy),
            (vec![udp, own(Blocked), proxy(Blocked)], Cause::ProxyRefuses),
            (vec![udp, own(Blocked), proxy(Limited)], Cause::CaptivePortal),
            (vec![udp, own(Passes), (Name::Tls, SERVER, Limited)], Cause::TlsIntercepted),
            (vec![udp, own(Passes), (Name::Https, SERVER, Limited)], Cause::CaptivePortal),
            (vec![udp, own(Blocked)], Cause::Offline),
            (vec![], Cause::Offline),
        ] {
            assert_eq!(judged(&checks).cause, cause, "{checks:?}");
        }
    }

    #[test]
    fn what_is_left_of_a_network_is_told() {
        use Outcome::{Blocked, Passes};
        let (udp, own) = ((Name::Udp, SERVER, Blocked), (Name::Tcp, SERVER, Passes));
        let summary = |checks: &[_]| judged(checks).summary;
        let others = [Name::Requests, Name::Websocket, Name::Messages].map(|name| (name, SERVER, Passes));
        let all = [&[udp, own][..], &others].concat();
        assert!(summary(&all).ends_with("inside TLS, and so do tunnels where nothing better is left."));
        assert!(summary(&all[..4]).contains("in WebSockets"));
        assert!(summary(&all[..3]).contains("in requests of HTTP"));
        assert!(summary(&all[..2]).ends_with("Peerage finds no way out."));
        assert!(!summary(&[(Name::Udp, SERVER, Passes)]).contains("way out"));
    }

    #[test]
    fn a_proxy_that_wants_a_password_is_told_from_a_portal() {
        let fault = ProxyFault::from(Refusal::CredentialsMissing);
        let asked = Check::new(Name::Proxy, None, of_proxy(&fault), fault.to_string());
        assert_eq!(judge(&[], vec![asked]).cause, Cause::ProxyCredentials);
        let fault = ProxyFault::from(Refusal::Portal { location: None });
        let asked = Check::new(Name::Proxy, None, of_proxy(&fault), fault.to_string());
        assert_eq!(judge(&[], vec![asked]).cause, Cause::CaptivePortal);
    }

    #[test]
    fn the_administrator_is_told_what_is_missing_and_no_more() {
        let blocked = [(Name::Udp, SERVER, Outcome::Blocked), (Name::Tcp, SERVER, Outcome::Passes)];
        let rules = judged(&blocked).rules;
        let told: Vec<_> = rules.iter().map(|rule| (rule.protocol, rule.to.to_string(), rule.port)).collect();
        assert_eq!(told, [("udp", "45.0.0.2".to_owned(), 4240)]);
        assert_eq!(judged(&[(Name::Udp, SERVER, Outcome::Passes)]).rules, []);
    }
}

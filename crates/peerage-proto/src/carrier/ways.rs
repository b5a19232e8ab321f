//! In which order the ways to a server are tried.

use std::net::SocketAddr;

use super::Carrier;

/// The port that firewalls leave open for TLS.
const HTTPS_PORT: u16 = 443;

/// The port that firewalls leave open for HTTP.
const HTTP_PORT: u16 = 80;

/// Returns all pairs of a carrier other than UDP and an address: first each carrier where it passes most likely, with TLS at two
/// addresses, so that a network of any kind is found out about in six attempts; then the others.
pub(super) fn ways(carriers: &[Carrier], addresses: &[SocketAddr]) -> Vec<(Carrier, SocketAddr)> {
    let mut ways: Vec<_> = carriers.iter().flat_map(|carrier| of(*carrier, addresses)).collect();
    ways.sort_by_key(|(is_unlikely, carrier, _)| (*is_unlikely, *carrier));
    ways.into_iter().map(|(_, carrier, address)| (carrier, address)).collect()
}

fn of(carrier: Carrier, addresses: &[SocketAddr]) -> Vec<(bool, Carrier, SocketAddr)> {
    let mut addresses = addresses.to_vec();
    let likely = match carrier {
        // Needs no connection.
        Carrier::Udp => return Vec::new(),
        Carrier::Tls => {
            if let Some(others) = addresses.get_mut(1..) {
                others.sort_by_key(|address| address.port() != HTTPS_PORT);
            }
            2
        }
        Carrier::Wss | Carrier::Https => {
            addresses.sort_by_key(|address| address.port() != HTTPS_PORT);
            1
        }
        Carrier::Ws | Carrier::Http => {
            addresses.sort_by_key(|address| address.port() != HTTP_PORT);
            1
        }
    };
    let numbered = addresses.into_iter().enumerate();
    numbered.map(|(place, address)| (place >= likely, carrier, address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 6.106.
    #[test]
    fn each_carrier_is_tried_where_it_passes_most_likely_before_anything_is_tried_elsewhere() {
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let ways = ways(&Carrier::ALL, &[4240, 80, 443].map(address));
        let ports: Vec<_> = ways.into_iter().map(|(carrier, address)| (carrier, address.port())).collect();
        use Carrier::{Http, Https, Tls, Ws, Wss};
        let likely = [(Tls, 4240), (Tls, 443), (Wss, 443), (Ws, 80), (Https, 443), (Http, 80)];
        assert_eq!(ports[..6], likely);
        let web = [(Tls, 80), (Wss, 4240), (Wss, 80), (Ws, 4240), (Ws, 443)];
        assert_eq!(ports[6..11], web);
        assert_eq!(ports[11..], [(Https, 4240), (Https, 80), (Http, 4240), (Http, 443)]);
    }
}

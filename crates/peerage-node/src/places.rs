//! How many connections each place on the Internet has: one IPv4 address, or one IPv6 /48, which is all one owner's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use peerage_proto::limiter::place;

/// Counts connections by place, within limits. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    per_place: usize,
    in_all: usize,
    counts: Mutex<BTreeMap<u64, usize>>,
}

/// One connection; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    places: Places,
    place: u64,
}

impl Places {
    pub(crate) fn new(per_place: usize, in_all: usize) -> Self {
        Self { inner: Arc::new(Inner { per_place, in_all, counts: Mutex::default() }) }
    }

    /// Counts one more from an address; `None` if that would be too many.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Counted> {
        let place = place(address);
        let mut counts = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let of_place = counts.get(&place).copied().unwrap_or(0);
        if all >= self.inner.in_all || of_place >= self.inner.per_place {
            return None;
        }
        counts.insert(place, of_place + 1);
        Some(Counted { places: self.clone(), place })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.places.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(places: &Places, addresses: impl Iterator<Item = IpAddr>) -> Vec<Counted> {
        addresses.map_while(|address| places.take(address)).collect()
    }

    #[test]
    fn one_place_cannot_take_everything_and_gets_back_what_it_lets_go() {
        let places = Places::new(3, 5);
        let one = IpAddr::from([192, 0, 2, 1]);
        let mut held = taken(&places, std::iter::repeat(one));
        assert_eq!(held.len(), 3);
        let others = taken(&places, (2..9).map(|n| IpAddr::from([192, 0, 2, n])));
        assert_eq!(others.len(), 2, "five in all");
        drop(others);
        held.pop();
        assert!(places.take(one).is_some());
        held.clear();
        assert!(places.inner.counts.lock().unwrap().is_empty());
    }

    /// Whoever has an IPv6 /48 has 2^80 addresses.
    #[test]
    fn all_addresses_of_an_ipv6_site_are_one_place() {
        let places = Places::new(3, 100);
        let site = |n: u16| IpAddr::from([0x2001, 0xdb8, 1, n, 0, 0, 0, n]);
        assert_eq!(taken(&places, (0..50).map(site)).len(), 3);
        assert!(places.take(IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 1])).is_some());
    }
}

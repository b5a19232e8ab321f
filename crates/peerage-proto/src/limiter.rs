//! Token buckets per place on the Internet: how much work a stranger may cause.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use crate::sizes::TableSize;

/// Most places whose buckets are remembered; beyond that the fullest ones, which lose nothing, are forgotten.
const MAX_BUCKETS: usize = 4_096;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: u32,
    /// Most tokens.
    pub burst: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When the bucket will be full again; it is empty when that lies a whole filling ahead.
    full_at: Instant,
}

/// One bucket for each IPv4 address and each IPv6 /48: an IPv6 site has as many addresses as it likes.
#[derive(Clone, Debug)]
pub struct Limiter {
    rate: Rate,
    buckets: BTreeMap<u64, Bucket>,
}

impl Limiter {
    /// Makes a limiter with full buckets.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, buckets: BTreeMap::new() }
    }

    /// Returns how many places are remembered.
    pub(crate) fn size(&self, name: &'static str) -> TableSize {
        TableSize::new(name, self.buckets.len(), MAX_BUCKETS)
    }

    fn token(&self) -> Duration {
        Duration::from_secs(1) / self.rate.per_second.max(1)
    }

    /// Takes a token from the bucket of a remote address. Returns false if there is none.
    pub fn take(&mut self, remote: SocketAddr, now: Instant) -> bool {
        self.take_of(place(remote.ip()), now)
    }

    /// Puts a token back that was taken from the bucket of a remote address, for what turned out to cost nothing.
    pub fn put_back(&mut self, remote: SocketAddr, now: Instant) {
        let token = self.token();
        if let Some(bucket) = self.buckets.get_mut(&place(remote.ip())) {
            // Never more than a full bucket, which is as if it were full for long.
            bucket.full_at = now.after((bucket.full_at - now).saturating_sub(token));
        }
    }

    fn take_of(&mut self, key: u64, now: Instant) -> bool {
        let token = self.token();
        if self.buckets.len() >= MAX_BUCKETS {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
        }
        if self.buckets.len() >= MAX_BUCKETS {
            return false;
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now });
        let full_at = bucket.full_at.max(now).after(token);
        let allowed = full_at - now <= token * self.rate.burst;
        if allowed {
            bucket.full_at = full_at;
        }
        allowed
    }
}

/// One bucket for each authenticated node.
#[derive(Clone, Debug)]
pub struct NodeLimiter(Limiter);

impl NodeLimiter {
    /// Makes a limiter with full buckets.
    pub const fn new(rate: Rate) -> Self {
        Self(Limiter::new(rate))
    }

    /// Takes a token from the bucket of a node. Returns false if there is none.
    pub fn take(&mut self, node: &NodeId, now: Instant) -> bool {
        // Node ids are hashes of keys: finding two of the same first eight bytes is worth nothing here.
        let key = node.hash.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first));
        self.0.take_of(key, now)
    }

    /// Returns how many nodes are remembered.
    pub(crate) fn size(&self, name: &'static str) -> TableSize {
        self.0.size(name)
    }
}

/// Returns a number for the part of the address that one owner is likely to have whole.
pub fn place(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            (1 << 63) | (u64::from(a) << 32) | (u64::from(b) << 16) | u64::from(c)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(Rate { per_second: 10, burst: 3 })
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let (mut limiter, remote) = (limiter(), "192.0.2.1:1".parse().unwrap());
        let start = Instant::from_micros(0);
        let taken = (0..10).filter(|_| limiter.take(remote, start)).count();
        assert_eq!(taken, 3);
        let later = start.after(Duration::from_secs(1));
        assert_eq!((0..10).filter(|_| limiter.take(remote, later)).count(), 3);
        assert!(limiter.take(remote, later.after(Duration::from_millis(100))));
    }

    #[test]
    fn what_is_put_back_can_be_taken_again_and_fills_no_more_than_the_bucket() {
        let (mut limiter, remote) = (limiter(), "192.0.2.1:1".parse().unwrap());
        let now = Instant::from_micros(0);
        for _ in 0..10 {
            assert!(limiter.take(remote, now));
            limiter.put_back(remote, now);
        }
        limiter.put_back(remote, now);
        limiter.put_back("192.0.2.2:1".parse().unwrap(), now);
        assert_eq!((0..10).filter(|_| limiter.take(remote, now)).count(), 3);
    }

    #[test]
    fn ports_share_a_bucket_and_addresses_do_not() {
        let mut limiter = limiter();
        let now = Instant::from_micros(0);
        let take = |limiter: &mut Limiter, text: &str| limiter.take(text.parse().unwrap(), now);
        for port in 1..=3 {
            assert!(take(&mut limiter, &format!("192.0.2.1:{port}")));
            assert!(take(&mut limiter, &format!("[2001:db8:0:{port}::1]:1")));
        }
        assert!(!take(&mut limiter, "192.0.2.1:9"));
        assert!(!take(&mut limiter, "[2001:db8:0:9::1]:1"));
        assert!(take(&mut limiter, "192.0.2.2:1"));
        assert!(take(&mut limiter, "[2001:db8:1::1]:1"));
    }

    #[test]
    fn a_flood_from_everywhere_fills_no_memory() {
        let mut limiter = limiter();
        let now = Instant::from_micros(0);
        let flood = (0..3 * MAX_BUCKETS).map(|n| std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
        let allowed = flood.filter(|ip| limiter.take((*ip, 1).into(), now)).count();
        assert_eq!(allowed, MAX_BUCKETS);
        assert!(limiter.take("192.0.2.1:1".parse().unwrap(), now.after(Duration::from_secs(1))));
    }
}

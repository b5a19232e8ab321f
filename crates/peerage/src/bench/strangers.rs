//! A flood of first contacts, from many places at once: what strangers take from those who are known.
//!
//! Each datagram has the form of a member's first word with an introduction that holds, but a key of its own that nothing is sealed with,
//! and shows no cookie. So each is as much work as a stranger can make, and nobody who sends it learns anything.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use peerage_wire::{crypto::ENC_SIZE, packet::LONG_HEADER};
use rand_core::Rng as _;

use super::udp;

/// How many places the flood comes from; what is allowed to strangers of one place is counted for each.
const PLACES: u8 = 64;

/// Where the encapsulated key stands: it ends the header.
const ENC_AT: usize = LONG_HEADER - ENC_SIZE;

/// Those who flood.
pub(super) struct Strangers {
    sockets: Vec<UdpSocket>,
    datagram: Vec<u8>,
}

impl Strangers {
    /// Takes a first word without a cookie, which they repeat with other keys.
    pub(super) fn new(datagram: Vec<u8>) -> Result<Self> {
        ensure!(datagram.len() > LONG_HEADER, "a first word is longer than its header");
        let sockets: Result<_> =
            (0..PLACES).map(|place| udp::bind(Ipv4Addr::new(127, 1, place, 1))).collect();
        Ok(Self { sockets: sockets?, datagram })
    }

    /// Floods an address, as fast as one thread can, while something else is done; returns also how many were sent a second.
    pub(super) fn beside<T>(&mut self, to: SocketAddr, act: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let (has_ended, sent, began_at) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
        let done = thread::scope(|scope| {
            let flooding = scope.spawn(|| self.flood(to, &has_ended, &sent));
            let done = act();
            has_ended.store(true, Ordering::Relaxed);
            flooding.join().map_err(|_| anyhow!("the flood has failed"))??;
            done
        })?;
        Ok((done, sent.load(Ordering::Relaxed) as f64 / began_at.elapsed().as_secs_f64()))
    }

    fn flood(&mut self, to: SocketAddr, has_ended: &AtomicBool, sent: &AtomicU64) -> Result<()> {
        let mut rng = super::crowd::rng()?;
        while !has_ended.load(Ordering::Relaxed) {
            for socket in &self.sockets {
                let enc = self.datagram.get_mut(ENC_AT..LONG_HEADER).unwrap_or_default();
                rng.fill_bytes(enc);
                // What the system refuses is not sent.
                if socket.send_to(&self.datagram, to).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

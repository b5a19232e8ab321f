//! One session at the server: bytes between requests and a connection within the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, pin::pin};

use bytes::{Buf as _, Bytes};
use tokio::sync::{Mutex, Notify};
use tokio::time;

use super::{Follows, Portion};
use crate::socket::Socket;

/// How long a request waits at the server: for bytes, or for room for its own. Longer is cut off by proxies, many of which wait for half a
/// minute; shorter asks more often for nothing.
pub(super) const HOLD: Duration = Duration::from_secs(20);

/// Why a request cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It speaks of bytes that are not its turn.
    Gap,
    /// Nobody takes what it brings any more.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    socket: Socket,
    portion_bytes: usize,
    /// How many bytes have come.
    taken: Mutex<u64>,
    given: Mutex<Given>,
    /// Told when somebody asks for bytes who has not waited before.
    asked_anew: Notify,
    /// Told at the beginning and the end of each request.
    pub(super) heard: Notify,
    has_taken_end: AtomicBool,
    has_given_end: AtomicBool,
}

/// What was given last; it is kept until the next request says that it has come.
#[derive(Debug, Default)]
struct Given {
    /// How many bytes have come at the client for sure.
    confirmed: u64,
    unconfirmed: Bytes,
}

impl Session {
    /// Makes one of this end of a connection.
    pub(super) fn new(socket: Socket, portion_bytes: usize) -> Self {
        Self {
            socket,
            portion_bytes,
            taken: Mutex::default(),
            given: Mutex::default(),
            asked_anew: Notify::new(),
            heard: Notify::new(),
            has_taken_end: AtomicBool::new(false),
            has_given_end: AtomicBool::new(false),
        }
    }

    /// Takes bytes that begin at `offset`, those that have come before excepted, and returns how many have come in all. Some are left
    /// if there was no room for them for a while.
    pub(super) async fn take(&self, offset: u64, portion: Portion) -> Result<u64, Fault> {
        let mut taken = self.taken.lock().await;
        let known =
            usize::try_from(taken.checked_sub(offset).ok_or(Fault::Gap)?).map_err(|_far| Fault::Gap)?;
        let mut rest = portion.bytes;
        rest.advance(known.min(rest.len()));
        let writing = async {
            while !rest.is_empty() {
                self.socket.writable().await?;
                match self.socket.try_write(&rest) {
                    Ok(count) => {
                        rest.advance(count);
                        *taken += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        match time::timeout(HOLD, writing).await {
            Err(_elapsed) => return Ok(*taken),
            Ok(Err(_deaf)) => {
                self.has_taken_end.store(true, Ordering::Relaxed);
                return Err(Fault::Gone);
            }
            Ok(Ok(())) => {}
        }
        match portion.follows {
            Follows::More => return Ok(*taken),
            // A socket within the process can be ended.
            Follows::Nothing => drop(self.socket.end()),
            Follows::Break => self.reset(),
        }
        self.has_taken_end.store(true, Ordering::Relaxed);
        Ok(*taken)
    }

    /// Gives the bytes that begin at `offset`, as soon as there are some, or none after a while.
    pub(super) async fn give(&self, offset: u64) -> Result<Portion, Fault> {
        // Whoever waits for an earlier request is gone, or he would not ask.
        self.asked_anew.notify_waiters();
        let mut given = self.given.lock().await;
        let end = given.confirmed + given.unconfirmed.len() as u64;
        if offset != end {
            let bytes = given.unconfirmed.clone();
            return if offset == given.confirmed { Ok(more(bytes)) } else { Err(Fault::Gap) };
        }
        *given = Given { confirmed: end, unconfirmed: Bytes::new() };
        let mut asked_anew = pin!(self.asked_anew.notified());
        tokio::select! {
            _readable = self.socket.readable() => {}
            () = asked_anew.as_mut() => return Ok(more(Bytes::new())),
            () = time::sleep(HOLD) => return Ok(more(Bytes::new())),
        }
        let mut buffer = vec![0; self.portion_bytes];
        let follows = match self.socket.try_read(&mut buffer) {
            Ok(0) => Follows::Nothing,
            Ok(count) => {
                // Not the whole buffer, which is larger than most of what is given.
                given.unconfirmed = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                return Ok(more(given.unconfirmed.clone()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Follows::More,
            Err(_broken) => Follows::Break,
        };
        if follows != Follows::More {
            self.has_given_end.store(true, Ordering::Relaxed);
        }
        Ok(Portion { follows, bytes: Bytes::new() })
    }

    /// Returns whether both directions have ended.
    pub(super) fn is_over(&self) -> bool {
        self.has_taken_end.load(Ordering::Relaxed) && self.has_given_end.load(Ordering::Relaxed)
    }

    /// Breaks both directions.
    pub(super) fn reset(&self) {
        self.socket.reset();
        self.has_given_end.store(true, Ordering::Relaxed);
    }
}

const fn more(bytes: Bytes) -> Portion {
    Portion { follows: Follows::More, bytes }
}

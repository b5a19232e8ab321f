//! Pipes, through which the kernel moves bytes between two sockets without copying them to this process (splice(2)).
//!
//! A pipe is held only while bytes are inside, so a few serve many tunnels.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;

/// Most pipes. The kernel gives an unprivileged user 1,024 pipes of full size and shrinks further ones to a page; half of
/// that leaves room for other programs of the same user. With fewer, busy relays copy in user space.
const MAX_PIPES: usize = 512;

/// The pipes of a relay.
#[derive(Debug, Default)]
pub(super) struct Pool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Ends>,
    lent: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that was lent; back in the pool when it is dropped, unless bytes are left inside.
#[derive(Debug)]
pub(super) struct Pipe<'a> {
    pool: &'a Pool,
    ends: Option<Ends>,
    inside: usize,
}

impl Pool {
    /// Lends a pipe; none if all are in use or the system gives no more.
    pub(super) fn lend(&self) -> Option<Pipe<'_>> {
        let mut state = self.lock();
        let ends = match state.idle.pop() {
            Some(ends) => ends,
            None if state.lent < MAX_PIPES => {
                let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
                Ends { read, write }
            }
            None => return None,
        };
        state.lent += 1;
        Some(Pipe { pool: self, ends: Some(ends), inside: 0 })
    }

    #[cfg(test)]
    pub(super) fn lent(&self) -> usize {
        self.lock().lent
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe<'_> {
    /// Moves up to `most` bytes from a socket into the pipe, which must be empty. 0 is the end of the stream.
    pub(super) fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let moved = splice(from, None, &ends.write, None, most, flags())?;
        self.inside += moved;
        Ok(moved)
    }

    /// Moves what is inside to a socket, as far as it takes it.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<()> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let moved = splice(&ends.read, None, to, None, self.inside, flags())?;
        self.inside = self.inside.saturating_sub(moved);
        if moved == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Returns how many bytes are inside.
    pub(super) const fn inside(&self) -> usize {
        self.inside
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.lent = state.lent.saturating_sub(1);
        // What is left inside belongs to a tunnel that has ended; nobody else may see it.
        if let Some(ends) = self.ends.take_if(|_| self.inside == 0)
            && state.idle.len() < MAX_PIPES
        {
            state.idle.push(ends);
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_comes_back_and_one_with_bytes_inside_does_not() {
        let pool = Pool::default();
        let all: Vec<_> = std::iter::from_fn(|| pool.lend()).take(4).collect();
        assert_eq!((all.len(), pool.lent()), (4, 4));
        drop(all);
        assert_eq!((pool.lent(), pool.lock().idle.len()), (0, 4));

        let (read, write) = pipe2(OFlag::O_NONBLOCK).unwrap();
        nix::unistd::write(&write, b"secret").unwrap();
        let mut pipe = pool.lend().unwrap();
        assert_eq!(pipe.fill(&read, 100).unwrap(), 6);
        assert_eq!(pipe.inside(), 6);
        drop(pipe);
        assert_eq!((pool.lent(), pool.lock().idle.len()), (0, 3));
    }

    #[test]
    fn a_pipe_passes_bytes_on_in_order() {
        let pool = Pool::default();
        let [(read, write), (out, into)] = [(); 2].map(|()| pipe2(OFlag::O_NONBLOCK).unwrap());
        let mut pipe = pool.lend().unwrap();
        assert_eq!(pipe.fill(&read, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::unistd::write(&write, b"one two").unwrap();
        assert_eq!(pipe.fill(&read, 4).unwrap(), 4);
        pipe.drain(&into).unwrap();
        assert_eq!(pipe.fill(&read, 100).unwrap(), 3);
        pipe.drain(&into).unwrap();
        drop(write);
        assert_eq!(pipe.fill(&read, 100).unwrap(), 0);
        let mut buffer = [0; 10];
        assert_eq!(nix::unistd::read(&out, &mut buffer).unwrap(), 7);
        assert_eq!(&buffer[..7], b"one two");
    }
}

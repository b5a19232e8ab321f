//! The thread that owns the ledger, and how asynchronous code reaches it.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use peerage_wire::time::UnixTime;
use tokio::sync::{mpsc, oneshot};

use super::{Change, Ledger, LedgerError, Tx};

/// Most actions that wait for the ledger. A commit takes about a millisecond on a disk of its own and some tens on a
/// slow one, so the last of these waits a few seconds; more would only be given up by those who asked.
const MAX_WAITING: usize = 256;

/// Most committed changes that wait for the state machine; then the ledger waits.
pub(crate) const MAX_CHANGES: usize = 64;

type Job = Box<dyn FnOnce(&mut Ledger, &mpsc::Sender<Change>) + Send>;

/// The asynchronous side of a ledger; clones reach the same one.
#[derive(Clone)]
pub(crate) struct LedgerHandle {
    jobs: SyncSender<Job>,
    clock: fn() -> UnixTime,
}

/// The thread that owns the ledger; ends when every handle is dropped.
#[derive(Debug)]
pub(crate) struct LedgerThread {
    thread: thread::JoinHandle<()>,
    /// Closed when the thread ends, by a panic too.
    ended: oneshot::Receiver<()>,
}

impl LedgerThread {
    /// Waits until the thread has ended. While there are handles it should not.
    pub(crate) async fn ended(&mut self) {
        // Nothing is ever sent; the sender is dropped with the thread's stack.
        let _ = (&mut self.ended).await;
    }

    /// Waits until the thread has done what was asked of it and has closed the ledger. All handles must be gone.
    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the ledger's thread has panicked");
        }
    }
}

impl LedgerHandle {
    /// Starts the thread; `changes` gets what is committed, in order and before whoever asked gets the answer.
    pub(crate) fn start(
        mut ledger: Ledger,
        clock: fn() -> UnixTime,
        changes: mpsc::Sender<Change>,
    ) -> std::io::Result<(Self, LedgerThread)> {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let (alive, ended) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || {
            work(&mut ledger, &waiting, &changes);
            drop(alive);
        })?;
        Ok((Self { jobs, clock }, LedgerThread { thread, ended }))
    }

    /// Runs an action in a transaction of its own, after those that were asked for before. It also runs if the
    /// caller goes away before it has the answer.
    pub(crate) async fn act<T, E>(
        &self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<LedgerError> + Send + 'static,
    {
        let answer = self.begin(action).map_err(E::from)?;
        answer.await.unwrap_or_else(|_| Err(LedgerError::Busy.into()))
    }

    /// As [`act`](Self::act), for callers that must not wait: the answer arrives in the returned channel.
    pub(crate) fn begin<T, E>(
        &self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, E>>, LedgerError>
    where
        T: Send + 'static,
        E: From<LedgerError> + Send + 'static,
    {
        let (give, answer) = oneshot::channel();
        let clock = self.clock;
        let job: Job = Box::new(move |ledger, changes| {
            let outcome = ledger.act(clock(), action).map(|(value, change)| {
                if !change.is_empty() {
                    // Fails only while the operator ends; the next start reads it from the ledger.
                    let _ = changes.blocking_send(change);
                }
                value
            });
            // Whoever asked may have gone away; what was done is done.
            let _ = give.send(outcome);
        });
        match self.jobs.try_send(job) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(LedgerError::Busy),
        }
    }
}

impl fmt::Debug for LedgerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerHandle").finish_non_exhaustive()
    }
}

fn work(ledger: &mut Ledger, waiting: &Receiver<Job>, changes: &mpsc::Sender<Change>) {
    while let Ok(job) = waiting.recv() {
        job(ledger, changes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::signer;
    use super::*;

    fn start() -> (tempfile::NamedTempFile, LedgerHandle, LedgerThread, mpsc::Receiver<Change>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ledger = Ledger::open(file.path(), signer()).unwrap();
        let (changes, committed) = mpsc::channel(MAX_CHANGES);
        let (handle, thread) = LedgerHandle::start(ledger, || UnixTime::from_secs(1), changes).unwrap();
        (file, handle, thread, committed)
    }

    fn add_domain(tx: &mut Tx<'_>) -> Result<(), LedgerError> {
        let new = super::super::NewDomain { name: "acme".to_owned(), offline_hours: None, vendor: false };
        tx.add_domain(&new, super::super::Actor::Admin).map(drop).map_err(|_| LedgerError::Busy)
    }

    #[tokio::test]
    async fn more_than_may_wait_is_refused_and_what_waits_is_done() {
        let (_file, handle, thread, _committed) = start();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (tell, told) = oneshot::channel();
        let block = move |_: &mut Tx<'_>| {
            tell.send(()).unwrap();
            assert!(gone.recv().is_err(), "nothing is sent");
            Ok::<(), LedgerError>(())
        };
        let blocked = handle.begin(block).unwrap();
        told.await.unwrap();
        let one = || handle.begin(|tx| Ok::<_, LedgerError>(tx.now()));
        let waiting: Vec<_> = (0..MAX_WAITING).map(|_| one().unwrap()).collect();
        assert!(matches!(one(), Err(LedgerError::Busy)));
        drop(go);
        blocked.await.unwrap().unwrap();
        for answer in waiting {
            assert_eq!(answer.await.unwrap().unwrap(), UnixTime::from_secs(1));
        }
        drop(handle);
        thread.join();
    }

    #[tokio::test]
    async fn a_change_is_on_its_way_before_the_answer() {
        let (_file, handle, _thread, mut committed) = start();
        handle.act(add_domain).await.unwrap();
        assert_eq!(committed.try_recv().unwrap().facts.len(), 1);
        assert!(handle.act(add_domain).await.is_err());
        assert!(committed.try_recv().is_err(), "what failed has changed nothing");
    }

    #[tokio::test]
    async fn an_action_runs_though_nobody_waits_for_it_any_more() {
        let (_file, handle, _thread, mut committed) = start();
        drop(handle.begin(add_domain).unwrap());
        assert_eq!(committed.recv().await.unwrap().facts.len(), 1);
    }
}

//! Several ways to the same end, each tried a little after the one before.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time;

/// Makes attempts, each `stagger` after the one before or as soon as that has failed, until one succeeds; the others are dropped.
///
/// # Errors
/// That of the attempt that failed last; `None` if there was none.
pub(crate) async fn first_of<T, E, F: Future<Output = Result<T, E>>>(
    stagger: Duration,
    mut waiting: VecDeque<F>,
) -> Result<T, Option<E>> {
    let mut running = FuturesUnordered::new();
    let mut last_error = None;
    loop {
        match waiting.pop_front() {
            Some(attempt) => running.push(attempt),
            None if running.is_empty() => return Err(last_error),
            None => {}
        }
        let has_more = !waiting.is_empty();
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(reached) => return Ok(reached),
                Err(error) => last_error = Some(error),
            },
            () = time::sleep(stagger), if has_more => {}
        }
    }
}

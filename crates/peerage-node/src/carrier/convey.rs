//! Moving the bytes of a connection into another protocol and out of it.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use crate::framed::within;
use crate::socket::Pipe;

/// Bytes that are moved at once in each direction: a record of TLS. More waits longer for a slow connection, less costs calls.
const PORTION_BYTES: usize = 16 * 1_024;

/// How long what was said last may take to leave once nobody holds the connection any more.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries what is written at a pipe's other end over a stream of bytes, and the reverse, until both directions have ended, or nobody
/// holds the other end any more.
pub(super) async fn convey(mut io: impl AsyncRead + AsyncWrite + Unpin, mut pipe: Pipe) {
    let abandoned = pipe.abandoned();
    let copying = async {
        copy_bidirectional_with_sizes(&mut io, &mut pipe, PORTION_BYTES, PORTION_BYTES).await.map(|_bytes| ())
    };
    let result = until(copying, abandoned).await;
    if let Err(error) = result {
        tracing::debug!(%error, "what carries a connection broke");
        pipe.reset();
    }
}

/// Goes on until the work is done, or for a while after it was abandoned.
pub(super) async fn until(
    work: impl Future<Output = io::Result<()>>,
    abandoned: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut work = pin!(work);
    tokio::select! {
        result = work.as_mut() => result,
        () = abandoned => within(FAREWELL_TIMEOUT, work).await,
    }
}

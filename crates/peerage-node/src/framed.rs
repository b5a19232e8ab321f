//! Datagrams on streams of bytes, each behind its length (Rules 6.30 and 6.101).

use std::io;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::leg;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time;

/// Reads one datagram and not a byte more.
///
/// # Errors
/// What the stream says, and `InvalidData` if what comes announces no datagram.
pub(crate) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut header = [0; leg::LENGTH_SIZE];
    reader.read_exact(&mut header).await?;
    let length = leg::length(header).ok_or(io::ErrorKind::InvalidData)?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(payload.into())
}

/// Limits the time that something may take.
///
/// # Errors
/// `TimedOut`, and what the future says.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(limit, future).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

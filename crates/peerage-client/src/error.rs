//! Why a call of an API did not succeed.

use crate::problem::Problem;
use std::{io, net::SocketAddr, path::PathBuf};

/// Why a call of an API did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server understood the request and refused it, or failed at it.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Nothing listens on the node's socket.
    #[error("no node is running with the data directory {}", .data.display())]
    NodeNotRunning {
        /// The directory in which the socket was looked for.
        data: PathBuf,
    },
    /// There is no admin file, or nothing listens where it says.
    #[error("no operator is running with the data directory {}", .data.display())]
    OperatorNotRunning {
        /// The directory in which the admin file was looked for.
        data: PathBuf,
    },
    /// The node's socket belongs to another user.
    #[error("this user may not connect to {}", .path.display())]
    SocketForbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The admin file exists but cannot be read.
    #[error("cannot read {}", .path.display())]
    AdminFileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the admin file, and so the token in it.
    #[error("{} can be read by others (mode {mode:03o}); the operator makes it with mode 600", .path.display())]
    AdminFileExposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The admin file is not what an operator writes.
    #[error("{} is not a valid admin file", .path.display())]
    AdminFileMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The admin file names an address on a network, over which the token would travel in clear.
    #[error("the admin file names {address}, which is not a loopback address")]
    AdminNotLoopback {
        /// The address in the file.
        address: SocketAddr,
    },
    /// The connection failed.
    #[error("cannot reach the server")]
    Io(#[from] io::Error),
    /// The server broke the connection or does not speak HTTP.
    #[error("the server broke off")]
    Http(#[from] hyper::Error),
    /// The server did not answer in time.
    #[error("the server did not answer within {seconds} s")]
    TimedOut {
        /// How long was waited.
        seconds: u64,
    },
    /// The answer, or one event, is larger than this client reads.
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The answer is not what this version of the client understands.
    #[error("the answer cannot be read; the server may be of another version")]
    Malformed(#[from] serde_json::Error),
    /// The answer has a status but neither a value nor a problem.
    #[error("the server answered with status {status} and no reason")]
    Unexplained {
        /// The HTTP status.
        status: u16,
    },
}

//! What moves messages and legs, and what is said about it.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::NodeId;

/// Names a connection that carries messages; given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// One that somebody has made to this computer; numbered by the shell.
    Accepted(u64),
    /// One that this node has asked for.
    Made(u64),
}

/// What moves messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// Datagrams.
    Udp,
    /// TLS over TCP, each message behind its length.
    Tls,
    /// The same in a WebSocket inside TLS.
    Wss,
    /// The same in a WebSocket.
    Ws,
    /// The same in requests and answers of HTTP, inside TLS.
    Https,
    /// The same in requests and answers of HTTP.
    Http,
}

impl Carrier {
    /// All of them, the best first.
    pub const ALL: [Self; 6] = [Self::Udp, Self::Tls, Self::Wss, Self::Ws, Self::Https, Self::Http];

    /// Returns its name, as in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tls => "tls",
            Self::Wss => "wss",
            Self::Ws => "ws",
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

/// How a leg may be made: as it is (Rule 6.30), or inside what carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegWay {
    /// Inside what; `None`: bare.
    pub inside: Option<Carrier>,
    /// Where to.
    pub address: SocketAddr,
}

/// All ways in which the leg to a relay may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegWays {
    /// The ways, the one to be tried first in front.
    pub all: Vec<LegWay>,
    /// Whether the relay must have answered on a connection before it counts. Where messages go over UDP a bare one is taken at its word, which
    /// saves a round trip.
    pub must_answer: bool,
}

/// What has happened to a connection that carries messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamNews {
    /// One that this node has asked for stands.
    Opened(StreamId),
    /// A message came.
    Datagram {
        /// On which.
        stream: StreamId,
        /// Who is at its other end: as seen here, or as it was asked for.
        remote: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
    /// It is gone, or was never made.
    Closed(StreamId),
}

/// What to do with connections that carry messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOrder {
    /// Make one; answered by [`StreamNews::Opened`] or [`StreamNews::Closed`].
    Open {
        /// Its name.
        stream: StreamId,
        /// Of which kind.
        carrier: Carrier,
        /// Where to.
        address: SocketAddr,
    },
    /// Send a message, or drop it if too many wait or the connection is gone.
    Send {
        /// On which.
        stream: StreamId,
        /// What.
        payload: Bytes,
    },
    /// Close it. Nothing is told about it any more.
    Close(StreamId),
}

/// Why a server is not asked over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// UDP stays silent.
    Silent,
    /// Too much of what is sent over UDP is lost.
    Lossy,
}

/// What the owner of [`Carriers`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Have a connection made.
    Open {
        /// Its name.
        stream: StreamId,
        /// Of which kind.
        carrier: Carrier,
        /// Where to.
        address: SocketAddr,
    },
    /// Have it closed.
    Close(StreamId),
    /// Ask a server for a sign of life in this way: on a connection, or over UDP.
    Probe {
        /// Whom.
        server: NodeId,
        /// Where it is.
        address: SocketAddr,
        /// On which connection.
        stream: Option<StreamId>,
    },
    /// Remember for the next time what has worked in this network where UDP did not; `None`: UDP works.
    Remember(Option<Carrier>),
    /// Send what goes to a server on this connection from now on, or over UDP again.
    Use {
        /// Which server.
        server: NodeId,
        /// On which connection.
        stream: Option<StreamId>,
    },
}

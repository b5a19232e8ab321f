//! Datagrams between a UDP socket and a session: neither buffered for long nor sent again.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::session::State;
use peerage_wire::frame::{Code, MAX_DATAGRAM};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time;

use super::Counters;
use crate::link::Stream;

/// How long a flow of datagrams may be silent in both directions (RFC 4787, section 4.3, asks NATs for at least two
/// minutes). Longer keeps sessions of programs that are gone, shorter cuts off slow pollers.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// The most datagrams of an application that wait for its flow's task; a burst of SNMP requests fits. The next is dropped.
pub const MAX_WAITING: usize = 64;

/// Where the datagrams of a local port with many applications come from and go to.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    /// What one application sends.
    pub(crate) incoming: mpsc::Receiver<Bytes>,
    /// The socket and the application's address.
    pub(crate) outgoing: (&'a UdpSocket, std::net::SocketAddr),
    /// Whether a tunnel for it was ever granted.
    pub(crate) was_open: bool,
}

/// Moves the datagrams of one application until it has been silent for [`IDLE_TIMEOUT`].
pub(crate) async fn pump_flow(flow: &mut Flow<'_>, stream: &Stream, counters: &Counters) -> Result<(), Code> {
    loop {
        while let Some(datagram) = stream.read_datagram() {
            let (socket, application) = flow.outgoing;
            match socket.send_to(&datagram, application).await {
                Ok(count) => counters.add_received(count),
                Err(error) => tracing::trace!(%error, "a datagram was dropped"),
            }
        }
        check(stream)?;
        flow.was_open |= stream.state() == State::Open;
        let step = async {
            tokio::select! {
                () = stream.changed() => true,
                datagram = flow.incoming.recv() => match datagram {
                    Some(datagram) => {
                        counters.add_sent(datagram.len());
                        // A session that has ended says so at the next turn.
                        let _ = stream.write_datagram(datagram);
                        true
                    }
                    None => false,
                },
            }
        };
        if !time::timeout(IDLE_TIMEOUT, step).await.unwrap_or(false) {
            stream.reset(Code::Idle);
            return Ok(());
        }
    }
}

/// Moves datagrams between a connected socket and a session until either is silent for [`IDLE_TIMEOUT`] or ends.
pub(crate) async fn pump_socket(socket: &UdpSocket, stream: &Stream) -> Result<(), Code> {
    // One byte more than can be sent tells datagrams that were cut.
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        while let Some(datagram) = stream.read_datagram() {
            if let Err(error) = socket.send(&datagram).await {
                // Nobody listens, or the device is away: its own protocol will ask again.
                tracing::trace!(%error, "a datagram was dropped");
            }
        }
        check(stream)?;
        let step = async {
            tokio::select! {
                () = stream.changed() => {}
                received = socket.recv(&mut buffer) => match received {
                    Ok(count) if count <= MAX_DATAGRAM => {
                        let datagram = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                        let _ = stream.write_datagram(datagram);
                    }
                    Ok(_cut) => tracing::trace!("a datagram that is too long was dropped"),
                    Err(error) => tracing::trace!(%error, "the device's port is closed"),
                },
            }
        };
        if time::timeout(IDLE_TIMEOUT, step).await.is_err() {
            stream.reset(Code::Idle);
            return Ok(());
        }
    }
}

/// Moves datagrams between an application and a device on the same LAN.
pub(crate) async fn copy_local(
    flow: &mut Flow<'_>,
    device: &UdpSocket,
    counters: &Counters,
) -> std::io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM + 1];
    let (socket, application) = flow.outgoing;
    loop {
        let step = async {
            tokio::select! {
                datagram = flow.incoming.recv() => match datagram {
                    Some(datagram) => {
                        counters.add_sent(datagram.len());
                        device.send(&datagram).await.map(|_count| true)
                    }
                    None => Ok(false),
                },
                received = device.recv(&mut buffer) => {
                    let datagram = buffer.get(..received?).unwrap_or_default();
                    counters.add_received(datagram.len());
                    socket.send_to(datagram, application).await.map(|_count| true)
                }
            }
        };
        if !time::timeout(IDLE_TIMEOUT, step).await.unwrap_or(Ok(false))? {
            return Ok(());
        }
    }
}

fn check(stream: &Stream) -> Result<(), Code> {
    match stream.state() {
        State::Ended(end) => end.code().map_or(Err(Code::ApplicationReset), Err),
        State::Opening | State::Asked | State::Open => Ok(()),
    }
}

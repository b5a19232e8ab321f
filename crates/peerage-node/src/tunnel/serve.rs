//! The tunnel-node's side: what the node has granted is connected to the device.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use peerage_wire::codec::Protocol;
use peerage_wire::frame::Code;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time;

use super::{Counters, datagrams, pump};
use crate::link::Stream;

/// How long a device may take to accept a connection: two lost packets. Longer makes users wait for devices that
/// are off, shorter fails sleepy ones.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects a granted session to the device and moves bytes until it ends; refuses it if the device does not answer.
///
/// The address was checked by the node, the only authority on what may be dialled.
pub async fn serve(stream: Arc<Stream>, address: SocketAddr, protocol: Protocol) {
    let result = match protocol {
        Protocol::Tcp => serve_tcp(&stream, address).await,
        Protocol::Udp => serve_udp(&stream, address).await,
    };
    if let Err(code) = result {
        stream.reset(code);
        tracing::debug!(peer = ?stream.peer(), %code, "a tunnel has ended");
    }
}

async fn serve_tcp(stream: &Stream, address: SocketAddr) -> Result<(), Code> {
    let connected = time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let socket = match connected {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err(refusal(&error)),
        Err(_elapsed) => return Err(Code::DeviceUnreachable),
    };
    // What matters is the application's rhythm, not the network's.
    let _ = socket.set_nodelay(true);
    stream.confirm();
    pump::pump(socket, stream, &Counters::default()).await
}

async fn serve_udp(stream: &Stream, address: SocketAddr) -> Result<(), Code> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(|error| refusal(&error))?;
    socket.connect(address).await.map_err(|error| refusal(&error))?;
    stream.confirm();
    datagrams::pump_socket(&socket, stream).await
}

fn refusal(error: &io::Error) -> Code {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Code::DeviceRefused;
    }
    match error.raw_os_error().map(Errno::from_raw) {
        // The tunnels that are open go on.
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => Code::Limit,
        Some(_) | None => Code::DeviceUnreachable,
    }
}

//! The local API: what programs on this computer ask of the node, over HTTP on a Unix socket.
//!
//! [`Socket::bind`] makes the socket, [`serve`] answers on it, and a [`Backend`] knows the answers. Who may connect
//! is decided three times over: by the socket's permissions, by the system's word on who is at the other end, and by
//! refusing whatever a web page could send ([`web::protect`]).
//!
//! The types and the routes are those of [`peerage_client::local`].

mod events;
mod routes;
mod server;
mod socket;
pub mod web;

pub use server::serve;
pub use socket::{BindError, Socket};

use peerage_client::{
    Problem,
    local::{Device, Event, OpenTunnel, Status, SuperNode, SuperOff, SuperOn, Tunnel},
};
use tokio::sync::broadcast;

/// How many connections are served at once; further ones wait in the system's queue. Each takes a descriptor, of which
/// an ordinary process has 1,024 for everything, tunnels above all.
pub const MAX_CONNECTIONS: usize = 192;

/// How many readers of events there may be; each running `peerage connect` is one. Well below [`MAX_CONNECTIONS`], so
/// that readers, who stay, cannot keep out those who only ask.
pub const MAX_SUBSCRIBERS: usize = 128;

/// The largest body of a request, in bytes. The largest useful one names a device, a service and an address.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The node behind the local API.
///
/// A future is dropped when the client goes away before it has its answer; an [`open_tunnel`](Self::open_tunnel)
/// that is dropped must leave no tunnel behind.
pub trait Backend: Send + Sync + 'static {
    /// Tells how the node is.
    fn status(&self) -> impl Future<Output = Result<Status, Problem>> + Send;

    /// Lists the devices of the domain that are known here, by name.
    fn devices(&self) -> impl Future<Output = Result<Vec<Device>, Problem>> + Send;

    /// Asks the network for the devices of the domain, then lists them.
    fn refresh_devices(&self) -> impl Future<Output = Result<Vec<Device>, Problem>> + Send;

    /// Lists the tunnels that were opened through this API, oldest first.
    fn tunnels(&self) -> impl Future<Output = Result<Vec<Tunnel>, Problem>> + Send;

    /// Opens a local port that leads to a service of a device. The address to listen on has been checked: it is a
    /// loopback address, or the client has asked to expose it.
    fn open_tunnel(&self, request: OpenTunnel) -> impl Future<Output = Result<Tunnel, Problem>> + Send;

    /// Closes a tunnel.
    fn close_tunnel(&self, id: &str) -> impl Future<Output = Result<(), Problem>> + Send;

    /// Tells what the node lends to the network as a super-node, and has given.
    fn super_node(&self) -> impl Future<Output = Result<SuperNode, Problem>> + Send;

    /// Lends a part of the computer to the network, and remembers that.
    fn super_on(&self, lend: SuperOn) -> impl Future<Output = Result<SuperNode, Problem>> + Send;

    /// Lends nothing any more, remembers that, and hands over what others hold here; that goes on if the future is dropped.
    fn super_off(&self) -> impl Future<Output = Result<SuperOff, Problem>> + Send;

    /// Returns a receiver of what happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Begins to shut the node down, and returns without waiting for the end of it.
    fn shutdown(&self) -> impl Future<Output = Result<(), Problem>> + Send;
}

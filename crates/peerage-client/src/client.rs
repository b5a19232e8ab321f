//! The client of the local API.

use crate::{
    error::Error,
    events::Events,
    http::{self, Call, segment},
    local::{Device, HOST, OpenTunnel, SOCKET_FILE, Status, SuperNode, SuperOff, SuperOn, Tunnel},
};
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;

/// A client of the node that runs with a data directory.
///
/// Cheap to make and to clone; each call connects anew, so a client outlives restarts of the node.
#[derive(Clone, Debug)]
pub struct Client {
    data: PathBuf,
}

impl Client {
    /// Makes a client of the node that runs with this data directory. Does not connect yet.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    /// Returns the data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Asks how the node is.
    pub async fn status(&self) -> Result<Status, Error> {
        http::call(self.connect().await?, Call::new("GET", "/v1/status", HOST)).await
    }

    /// Lists the devices of the domain that the node knows.
    pub async fn devices(&self) -> Result<Vec<Device>, Error> {
        http::call(self.connect().await?, Call::new("GET", "/v1/devices", HOST)).await
    }

    /// Has the node ask the network for the devices of the domain now, and lists them.
    pub async fn refresh_devices(&self) -> Result<Vec<Device>, Error> {
        http::call(self.connect().await?, Call::new("POST", "/v1/devices/refresh", HOST)).await
    }

    /// Lists the tunnels that applications of this computer have opened.
    pub async fn tunnels(&self) -> Result<Vec<Tunnel>, Error> {
        http::call(self.connect().await?, Call::new("GET", "/v1/tunnels", HOST)).await
    }

    /// Opens a local port that leads to a service of a device.
    ///
    /// It stays until it is closed or the node ends; see [`Client::hold_tunnel`] for one that ends with its user.
    pub async fn open_tunnel(&self, tunnel: &OpenTunnel) -> Result<Tunnel, Error> {
        http::call(self.connect().await?, Call::new("POST", "/v1/tunnels", HOST).json(tunnel)?).await
    }

    /// Closes a tunnel and every connection through it.
    pub async fn close_tunnel(&self, id: &str) -> Result<(), Error> {
        let call = Call::new("DELETE", format!("/v1/tunnels/{}", segment(id)), HOST);
        http::call_without_answer(self.connect().await?, call).await
    }

    /// Asks what the node lends to the network as a super-node, and has given.
    pub async fn super_node(&self) -> Result<SuperNode, Error> {
        http::call(self.connect().await?, Call::new("GET", "/v1/super", HOST)).await
    }

    /// Lends a part of the computer to the network. The node remembers it.
    pub async fn super_on(&self, lend: &SuperOn) -> Result<SuperNode, Error> {
        http::call(self.connect().await?, Call::new("POST", "/v1/super/on", HOST).json(lend)?).await
    }

    /// Lends nothing any more. Returns once others hold what was held here, or it has given up on that after a minute.
    pub async fn super_off(&self) -> Result<SuperOff, Error> {
        http::call(self.connect().await?, Call::new("POST", "/v1/super/off", HOST)).await
    }

    /// Follows what happens in the node from now on.
    pub async fn events(&self) -> Result<Events, Error> {
        let body = http::open_stream(self.connect().await?, Call::new("GET", "/v1/events", HOST)).await?;
        Ok(Events::new(body))
    }

    /// Follows what happens in the node, and ties a tunnel to it: when the returned value is dropped, or this
    /// process dies, the node closes the tunnel.
    pub async fn hold_tunnel(&self, id: &str) -> Result<Events, Error> {
        let call = Call::new("GET", format!("/v1/events?hold={}", segment(id)), HOST);
        Ok(Events::new(http::open_stream(self.connect().await?, call).await?))
    }

    /// Tells the node to close its tunnels and end. Returns when it has begun to.
    pub async fn shutdown(&self) -> Result<(), Error> {
        http::call_without_answer(self.connect().await?, Call::new("POST", "/v1/shutdown", HOST)).await
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        let path = self.data.join(SOCKET_FILE);
        UnixStream::connect(&path).await.map_err(|error| {
            let kind = error.kind();
            if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                Error::NodeNotRunning { data: self.data.clone() }
            } else if kind == io::ErrorKind::PermissionDenied {
                Error::SocketForbidden { path }
            } else {
                Error::Io(error)
            }
        })
    }
}

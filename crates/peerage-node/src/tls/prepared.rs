//! Handshakes whose first two flights travel in messages, and which go on over a connection (Rule 7.29).

use std::io;
use std::sync::Arc;

use rustls::{Connection, Error, ServerConnection};

use super::{ALPN_TUNNEL, Tls, peer_identity, server_config};

impl Tls {
    /// Begins a handshake with the node that holds `expected`; returns the client's first flight as well.
    ///
    /// # Errors
    /// If rustls refuses its configuration.
    pub(crate) fn begin(&self, expected: [u8; 32]) -> Result<(Connection, Vec<u8>), Error> {
        let mut client = self.connect(expected)?.into();
        let hello = spoken(&mut client)?;
        Ok((client, hello))
    }

    /// Answers the first flight of a client that will have to prove that it holds `expected`; returns the server's flight as well.
    ///
    /// # Errors
    /// If the client's flight is not one, or leaves anything open.
    pub(crate) fn prepare(&self, expected: [u8; 32], hello: &[u8]) -> Result<(Connection, Vec<u8>), Error> {
        let config = server_config(&self.provider, &self.key, Some(expected))?;
        let mut server = ServerConnection::new(Arc::new(config))?.into();
        hear(&mut server, hello)?;
        let flight = spoken(&mut server)?;
        // Otherwise it waits for the rest of the hello, or has asked for another.
        let is_answer = server.alpn_protocol() == Some(ALPN_TUNNEL) && !flight.is_empty();
        if is_answer { Ok((server, flight)) } else { Err(Error::HandshakeNotComplete) }
    }
}

/// Lets a client that has begun hear the server's flight, which proves that the server holds `expected`. What the client says next is its
/// second flight, and then whatever is written.
///
/// # Errors
/// If the flight is another's, or not the whole answer.
pub(crate) fn go_on(client: &mut Connection, expected: [u8; 32], flight: &[u8]) -> Result<(), Error> {
    hear(client, flight)?;
    if peer_identity(client) == Some(expected) { Ok(()) } else { Err(Error::HandshakeNotComplete) }
}

fn hear(tls: &mut Connection, mut flight: &[u8]) -> Result<(), Error> {
    while !flight.is_empty() {
        // From memory it takes as much as it has room for, which is more than a message carries.
        tls.read_tls(&mut flight).map_err(|_full| Error::HandshakeNotComplete)?;
        tls.process_new_packets()?;
    }
    Ok(())
}

fn spoken(tls: &mut Connection) -> Result<Vec<u8>, Error> {
    let mut flight = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut flight).map_err(|error: io::Error| Error::General(error.to_string()))?;
    }
    Ok(flight)
}

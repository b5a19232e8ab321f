//! How a connection begins that goes on with a prepared handshake (Rules 7.29 and 7.30).
//!
//! The first flights of both ends of a TLS handshake have travelled in messages before the connection stands. What the client sends on the
//! connection is a byte that no other protocol on the port begins with, the [name](HandshakeId) of the handshake, and then its second flight.

use crate::id::{HandshakeId, sha256};

/// The first byte: more than the first byte of a [leg](crate::leg), less than that of TLS and of whatever begins with a letter.
const FIRST_BYTE: u8 = 7;

/// Bytes before the client's second flight.
pub const BEGINNING_SIZE: usize = 1 + HandshakeId::SIZE;

const LABEL: &[u8] = b"peerage prepared handshake 1";

/// Returns the name of the handshake that begins with this first flight of its client.
pub fn name_of(hello: &[u8]) -> HandshakeId {
    let hash = sha256(&[LABEL, hello]);
    let mut name = [0; HandshakeId::SIZE];
    for (byte, hashed) in name.iter_mut().zip(hash) {
        *byte = hashed;
    }
    HandshakeId(name)
}

/// Returns whether a connection that begins with this byte goes on with a prepared handshake.
pub const fn begins_prepared(first: u8) -> bool {
    first == FIRST_BYTE
}

/// Returns how a connection begins that goes on with this handshake.
pub fn beginning(name: HandshakeId) -> [u8; BEGINNING_SIZE] {
    let mut bytes = [FIRST_BYTE; BEGINNING_SIZE];
    for (byte, of_name) in bytes.iter_mut().skip(1).zip(name.0) {
        *byte = of_name;
    }
    bytes
}

/// Reads what [`beginning`] made; `None` if it is something else.
pub fn read_beginning(bytes: &[u8; BEGINNING_SIZE]) -> Option<HandshakeId> {
    let (first, name) = bytes.split_first()?;
    let name = HandshakeId::try_from(name).ok()?;
    begins_prepared(*first).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leg::begins_leg;

    #[test]
    fn a_beginning_names_its_handshake_and_nothing_else_begins_so() {
        let name = name_of(b"a client's first flight");
        assert_eq!(read_beginning(&beginning(name)), Some(name));
        assert_ne!(name, name_of(b"another"));
        for first in 0..=u8::MAX {
            let mut bytes = beginning(name);
            bytes[0] = first;
            assert_eq!(read_beginning(&bytes).is_some(), begins_prepared(first), "{first}");
            assert!(!(begins_prepared(first) && begins_leg(first)), "{first}");
        }
        // A TLS record of the handshake, an alert, SSL 2, requests of HTTP, SSH and SOCKS 5.
        assert!(![22, 21, 0x80, b'G', b'P', b'C', b'O', b'S', 5].into_iter().any(begins_prepared));
    }
}

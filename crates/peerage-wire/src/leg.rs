//! Datagrams on a TCP connection: how a leg speaks with its relay before it is joined (Rule 6.30).
//!
//! Each datagram has its length before it, in two bytes. As no datagram is longer than 1,200 bytes, the first byte of such
//! a connection is at most 4, which tells it from TLS (22), HTTP and whatever else begins with a letter, on the same port.

use crate::limits::MAX_DATAGRAM;

/// Bytes before each datagram.
pub const LENGTH_SIZE: usize = 2;

/// Returns whether a connection that begins with this byte speaks so.
pub const fn begins_leg(first: u8) -> bool {
    // Of the highest length.
    (first as usize) <= MAX_DATAGRAM >> 8
}

/// Returns the length that these bytes announce; `None` if it is not that of a datagram.
pub const fn length(header: [u8; LENGTH_SIZE]) -> Option<usize> {
    let length = u16::from_be_bytes(header) as usize;
    if length == 0 || length > MAX_DATAGRAM { None } else { Some(length) }
}

/// Puts its length before a datagram; `None` if it is none.
pub fn frame(datagram: &[u8]) -> Option<Vec<u8>> {
    let header = u16::try_from(datagram.len()).ok()?.to_be_bytes();
    length(header)?;
    Some([&header, datagram].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_is_told_from_tls_and_http_by_its_first_byte() {
        for length in [1, 255, 256, MAX_DATAGRAM] {
            let framed = frame(&vec![7; length]).unwrap();
            assert!(begins_leg(framed[0]), "{length}");
            assert_eq!(super::length([framed[0], framed[1]]), Some(length));
            assert_eq!(framed.len(), LENGTH_SIZE + length);
        }
        // A TLS record of the handshake, an alert, SSL 2, requests of HTTP, SSH and SOCKS 5.
        for other in [22, 21, 0x80, b'G', b'P', b'C', b'O', b'S', 5] {
            assert!(!begins_leg(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_datagram_has_no_frame() {
        assert_eq!(frame(&[]), None);
        assert_eq!(frame(&vec![0; MAX_DATAGRAM + 1]), None);
        assert_eq!(length([0, 0]), None);
        assert_eq!(length([4, 0xb1]), None);
        assert_eq!(length([22, 3]), None);
    }
}

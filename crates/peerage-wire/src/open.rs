//! The payload of an OPEN frame: which service of which device a session is for (Rule 7.6).
//!
//! It travels inside TLS between nodes that have proven who they are, and is the only authority for a tunnel.

use crate::cbor::{Malformed, Map, MapWriter};
use crate::id::{DeviceId, SessionId};
use crate::limits::MAX_NAME;

/// What a user-node asks of a tunnel-node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The session's name, random; whoever resumes it must be the same node.
    pub session: SessionId,
    /// Which device.
    pub device: DeviceId,
    /// Which of its services, by name.
    pub service: String,
}

impl Open {
    /// Encodes the payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::new();
        map.bytes(1, &self.session.0).bytes(2, &self.device.0).text(3, &self.service);
        map.finish()
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut map = Map::parse(bytes)?;
        let open = Self { session: map.id(1)?, device: map.id(2)?, service: map.text(3, MAX_NAME)? };
        map.finish()?;
        Ok(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_is_read_back_as_written_and_no_part_of_it_is_one() {
        let open = Open { session: SessionId([1; 16]), device: DeviceId([2; 32]), service: "ipp".to_owned() };
        let bytes = open.encode();
        assert_eq!(Open::decode(&bytes), Ok(open));
        for length in 0..bytes.len() {
            assert!(Open::decode(&bytes[..length]).is_err(), "{length}");
        }
    }
}

//! Names of things: fixed-size byte strings and numbers, one type each.

mod place;

use std::fmt;
use std::str::FromStr;

pub use place::{PlaceKey, PlacementKey, Segment};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Returns SHA-256 of the concatenated parts.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Returns the first `N` bytes of `bytes`, zero-padded should it be shorter.
pub(crate) fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    out
}

/// Writes bytes as lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Why a text is not the id that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The number of characters does not fit.
    #[error("wrong length: {0} characters")]
    Length(usize),
    /// Something else than 0–9, a–f or A–F.
    #[error("not a hexadecimal digit")]
    Digit,
}

/// Reads exactly `N` bytes from hexadecimal digits of either case, and nothing else (Rule 1.3).
///
/// # Errors
/// If the length differs or a character is not a hexadecimal digit.
pub fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    if text.len() != N * 2 {
        return Err(ParseIdError::Length(text.len()));
    }
    let mut out = [0; N];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = str::from_utf8(digits).map_err(|_| ParseIdError::Digit)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseIdError::Digit);
        }
        *byte = u8::from_str_radix(digits, 16).map_err(|_| ParseIdError::Digit)?;
    }
    Ok(out)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $size]);

        impl $name {
            /// The size in bytes.
            pub const SIZE: usize = $size;

            /// Returns the bytes.
            pub const fn as_bytes(&self) -> &[u8; $size] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Eight digits tell ids apart in a log, and keep it readable.
                let text = to_hex(&self.0);
                write!(f, "{}({}…)", stringify!($name), text.get(..8).unwrap_or(&text))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                from_hex(text).map(Self)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(Self)
            }
        }
    };
}

byte_id!(
    /// Names one Peerage network: SHA-256 of its first root operator's identity key (Rule 1.1).
    NetworkId, 32
);
byte_id!(
    /// Names what an entry of a table is about; together with table and domain it is unique.
    RecordKey, 32
);
byte_id!(
    /// Names an end-device for ever, fixed at registration (Rule 1.5).
    DeviceId, 32
);
byte_id!(
    /// Names where a node's interface is (Rule 1.6); a hint, never authority.
    LocationId, 32
);
byte_id!(
    /// What a NodeInfo is found under by those who know a location and the domain's epoch key (Rule 1.7).
    LookupTag, 16
);
byte_id!(
    /// Names an attempt to link two nodes; by it and their node ids a relay knows which two legs belong together.
    LinkId,
    16
);

byte_id!(
    /// Names a prepared handshake (Rule 7.29). Only the two ends know it before the connection that goes on with it says it.
    HandshakeId,
    16
);
byte_id!(
    /// Names a session: random, chosen by the user-node.
    SessionId, 16
);
byte_id!(
    /// Names one execution of a command with effects, so that a replay does nothing (Rule 3.12).
    CommandId, 16
);
byte_id!(
    /// Names a sealing context: the first 8 bytes of SHA-256 of its encapsulated key.
    ContextId, 8
);
byte_id!(
    /// Names a join token.
    TokenId, 8
);
byte_id!(
    /// The first 8 bytes of SHA-256 of a sealing key: tells a receiver which of its keys was used.
    KeyHint, 8
);
byte_id!(
    /// The nonce of a sealed request; unique in its context.
    Nonce, 12
);

impl KeyHint {
    /// Returns the hint for a public sealing key.
    pub fn of(key: &[u8; 32]) -> Self {
        Self(prefix(&sha256(&[key])))
    }
}

impl ContextId {
    /// Returns the id of the context that this encapsulated key opens.
    pub fn of(enc: &[u8; 32]) -> Self {
        Self(prefix(&sha256(&[enc])))
    }
}

impl SessionId {
    /// Compares in constant time: whoever knows a session id could ask to resume it.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// One organisation: a number that the operator chose at random; 0 is the operators' own. Knowing it grants nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub u32);

impl Domain {
    /// The domain of operators and of the root.
    pub const OPERATORS: Self = Self(0);

    /// Returns the number as four bytes, big end first.
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({self})")
    }
}

impl FromStr for Domain {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        from_hex::<4>(text).map(|bytes| Self(u32::from_be_bytes(bytes)))
    }
}

/// A computer running Peerage: its domain and SHA-256 of its Ed25519 identity key (Rule 1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// The organisation it is a member of.
    pub domain: Domain,
    /// SHA-256 of its identity key.
    pub hash: [u8; 32],
}

impl NodeId {
    /// The size in bytes on the wire.
    pub const SIZE: usize = 36;

    /// Returns the id of the node with this identity key.
    pub fn new(domain: Domain, identity: &[u8; 32]) -> Self {
        Self { domain, hash: sha256(&[identity]) }
    }

    /// Returns domain and hash, one after the other.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        let (domain, hash) = out.split_at_mut(4);
        domain.copy_from_slice(&self.domain.to_bytes());
        hash.copy_from_slice(&self.hash);
        out
    }

    /// Reads an id from its 36 bytes.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (domain, hash) = bytes.split_at(4);
        Self { domain: Domain(u32::from_be_bytes(prefix(domain))), hash: prefix(hash) }
    }

    /// Returns the record key under which the node's own records are kept.
    pub const fn record_key(&self) -> RecordKey {
        RecordKey(self.hash)
    }

    /// Returns the hash of the identity key in groups of four digits, for two people to compare.
    pub fn fingerprint(&self) -> String {
        let digits = to_hex(&self.hash);
        let groups: Vec<_> =
            digits.as_bytes().chunks(4).filter_map(|group| str::from_utf8(group).ok()).collect();
        groups.join(" ")
    }

    /// Returns whether this is the id that belongs to the identity key.
    pub fn is_of(&self, identity: &[u8; 32]) -> bool {
        self.hash == sha256(&[identity])
    }
}

impl TryFrom<&[u8]> for NodeId {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        <&[u8; Self::SIZE]>::try_from(bytes).map(Self::from_bytes)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.domain, to_hex(&self.hash))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({}…{})", self.domain, to_hex(self.hash.get(..4).unwrap_or(&[])))
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        from_hex(text).map(|bytes| Self::from_bytes(&bytes))
    }
}

/// An Ethernet hardware address (Rule 1.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl FromStr for Mac {
    type Err = ParseIdError;

    /// Reads six pairs of hexadecimal digits, separated by `:` or `-`.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 17 {
            return Err(ParseIdError::Length(text.len()));
        }
        let separator = text.as_bytes().get(2).copied();
        if !matches!(separator, Some(b':' | b'-')) {
            return Err(ParseIdError::Digit);
        }
        let separated = text.bytes().skip(2).step_by(3).all(|b| Some(b) == separator);
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-')).collect();
        if !separated {
            return Err(ParseIdError::Digit);
        }
        from_hex(&digits).map(Self)
    }
}

impl DeviceId {
    /// Returns the id of the device with this hardware address and, if it has one, TLS certificate hash.
    pub fn new(mac: Mac, certificate: Option<&[u8; 32]>) -> Self {
        let certificate: &[u8] = certificate.map_or(&[], |hash| hash);
        Self(sha256(&[crate::keys::LABEL_DEVICE, &mac.0, certificate]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 1.3: digits of either case, the right number of them, no sign.
    #[test]
    fn ids_survive_text() {
        let id = NodeId::new(Domain(0xdfe4_7365), &[7; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 72);
        assert_eq!("xy".repeat(36).parse::<NodeId>(), Err(ParseIdError::Digit));
        assert_eq!("ab".parse::<NodeId>(), Err(ParseIdError::Length(2)));
        assert_eq!("+1".repeat(36).parse::<NodeId>(), Err(ParseIdError::Digit));
    }

    /// Rule 1.2: the id is the domain followed by the hash of the identity key.
    #[test]
    fn a_node_id_begins_with_its_domain_and_ends_with_the_hash_of_its_key() {
        let id = NodeId::new(Domain(0x0102_0304), &[9; 32]);
        assert_eq!(id.to_bytes()[..4], [1, 2, 3, 4]);
        assert_eq!(id.to_bytes()[4..], sha256(&[&[9; 32]]));
        assert!(id.is_of(&[9; 32]));
        assert!(!id.is_of(&[8; 32]));
    }

    #[test]
    fn a_fingerprint_can_be_read_out_loud() {
        let id = NodeId { domain: Domain(7), hash: [0xab; 32] };
        assert_eq!(id.fingerprint(), ["abab"; 16].join(" "));
    }

    /// Rule 1.4.
    #[test]
    fn macs_are_read_in_both_usual_forms_and_no_other() {
        let mac = Mac([0xaa, 0xbb, 0xcc, 0, 1, 2]);
        assert_eq!("aa:bb:cc:00:01:02".parse(), Ok(mac));
        assert_eq!("AA-BB-CC-00-01-02".parse(), Ok(mac));
        for bad in ["aa:bb:cc:00:01", "aa:bb:cc:00:01:0g", "aa:bb-cc:00:01:02", "aabb:cc:00:01:02:", ""] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    /// Rule 1.5: a device keeps its id only with the same address and certificate.
    #[test]
    fn a_device_id_depends_on_address_and_certificate() {
        let mac = Mac([1, 2, 3, 4, 5, 6]);
        let plain = DeviceId::new(mac, None);
        assert_ne!(plain, DeviceId::new(mac, Some(&[0; 32])));
        assert_ne!(plain, DeviceId::new(Mac([1, 2, 3, 4, 5, 7]), None));
    }
}

//! Introductions: what a node shows to somebody who does not know it yet.

use crate::crypto::Crypto;
use crate::id::{KeyHint, NetworkId, NodeId};
use crate::keys::{IdentityKey, LABEL_STATEMENT, SignatureBytes};
use crate::limits::MAX_RECORD;
use crate::time::UnixTime;

/// A node's announcement of its sealing key of the day (Rule 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStatement {
    /// Whose key it is.
    pub node: NodeId,
    /// The X25519 sealing key.
    pub key: [u8; 32],
    /// The first moment at which it is valid.
    pub not_before: UnixTime,
    /// The first moment at which it is no longer valid.
    pub not_after: UnixTime,
    /// The identity key's signature.
    pub signature: SignatureBytes,
}

impl KeyStatement {
    /// The size in bytes: node id, key, two times, signature.
    pub const SIZE: usize = NodeId::SIZE + 32 + 8 + 8 + 64;

    /// Makes and signs a statement.
    pub fn sign(
        identity: &IdentityKey,
        network: &NetworkId,
        node: NodeId,
        key: [u8; 32],
        validity: std::ops::Range<UnixTime>,
        crypto: &dyn Crypto,
    ) -> Self {
        let mut statement =
            Self { node, key, not_before: validity.start, not_after: validity.end, signature: [0; 64] };
        statement.signature = crypto.sign(identity, &statement.signed_bytes(network));
        statement
    }

    fn unsigned_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::SIZE);
        out.extend_from_slice(&self.node.to_bytes());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.not_before.as_millis().to_be_bytes());
        out.extend_from_slice(&self.not_after.as_millis().to_be_bytes());
        out
    }

    fn signed_bytes(&self, network: &NetworkId) -> Vec<u8> {
        [LABEL_STATEMENT, &network.0, &self.unsigned_bytes()].concat()
    }

    /// Returns the bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.unsigned_bytes();
        out.extend_from_slice(&self.signature);
        out
    }

    /// Reads a statement; nothing in it can be believed before [`verify`](Self::verify).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let (node, rest) = bytes.split_first_chunk::<{ NodeId::SIZE }>()?;
        let (key, rest) = rest.split_first_chunk::<32>()?;
        let (not_before, rest) = rest.split_first_chunk::<8>()?;
        let (not_after, signature) = rest.split_first_chunk::<8>()?;
        Some(Self {
            node: NodeId::from_bytes(node),
            key: *key,
            not_before: UnixTime::from_millis(u64::from_be_bytes(*not_before)),
            not_after: UnixTime::from_millis(u64::from_be_bytes(*not_after)),
            signature: signature.try_into().ok()?,
        })
    }

    /// Returns whether `identity` is the node's key and has signed this.
    pub fn verify(&self, identity: &[u8; 32], network: &NetworkId, crypto: &dyn Crypto) -> bool {
        self.node.is_of(identity) && crypto.verify(identity, &self.signed_bytes(network), &self.signature)
    }

    /// Returns whether the key may be used at a time.
    pub fn is_valid_at(&self, time: UnixTime) -> bool {
        self.not_before <= time && time < self.not_after
    }

    /// Returns the short form by which messages name the key.
    pub fn hint(&self) -> KeyHint {
        KeyHint::of(&self.key)
    }
}

/// A node's own record, signed by an operator, and its key statement (Rule 3.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// The Node record, or an operator's OperatorNode record, as it travels.
    pub record: Vec<u8>,
    /// The sealing key of the day.
    pub statement: KeyStatement,
}

impl Introduction {
    /// Returns the bytes on the wire: the record's length in two bytes, the record, the statement.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.record.len()).unwrap_or(u16::MAX);
        let mut out = length.to_be_bytes().to_vec();
        out.extend_from_slice(&self.record);
        out.extend_from_slice(&self.statement.to_bytes());
        out
    }

    /// Reads an introduction off the front of `bytes` and returns what follows it too.
    pub fn split_from(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_RECORD {
            return None;
        }
        let (record, rest) = rest.split_at_checked(length)?;
        let (statement, rest) = rest.split_at_checked(KeyStatement::SIZE)?;
        let statement = KeyStatement::from_bytes(statement)?;
        Some((Self { record: record.to_vec(), statement }, rest))
    }

    /// Returns the hash by which a receiver recognises an introduction that it has verified before.
    pub fn fingerprint(&self) -> [u8; 32] {
        crate::id::sha256(&[&self.to_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Real;
    use crate::id::Domain;

    const NETWORK: NetworkId = NetworkId([0x11; 32]);

    fn identity() -> IdentityKey {
        IdentityKey::from_seed(&[1; 32])
    }

    fn statement() -> KeyStatement {
        let validity = UnixTime::from_secs(100)..UnixTime::from_secs(200);
        KeyStatement::sign(&identity(), &NETWORK, identity().node_id(Domain(7)), [4; 32], validity, &Real)
    }

    /// Rule 3.7: 148 bytes, no other number of them, and each bit counts.
    #[test]
    fn a_statement_is_believed_only_as_it_was_signed() {
        let bytes = statement().to_bytes();
        assert_eq!(bytes.len(), 148);
        assert_eq!(KeyStatement::from_bytes(&bytes), Some(statement()));
        assert_eq!(KeyStatement::from_bytes(&bytes[1..]), None);
        assert_eq!(KeyStatement::from_bytes(&[&bytes[..], &[0]].concat()), None);
        let verify = |bytes: &[u8], network| {
            KeyStatement::from_bytes(bytes).unwrap().verify(&identity().public(), network, &Real)
        };
        assert!(verify(&bytes, &NETWORK));
        assert!(!verify(&bytes, &NetworkId([0x12; 32])));
        let mut altered = bytes;
        for bit in 0..altered.len() * 8 {
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&altered, &NETWORK), "bit {bit}");
            altered[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Rule 3.7: a statement about another node is not believed, though its signature is right.
    #[test]
    fn nobody_states_the_key_of_somebody_else() {
        let other = IdentityKey::from_seed(&[2; 32]);
        let about_other = KeyStatement::sign(
            &identity(),
            &NETWORK,
            other.node_id(Domain(7)),
            [4; 32],
            UnixTime::from_secs(1)..UnixTime::from_secs(2),
            &Real,
        );
        assert!(!about_other.verify(&identity().public(), &NETWORK, &Real));
        assert!(!about_other.verify(&other.public(), &NETWORK, &Real));
    }

    #[test]
    fn a_key_is_valid_from_its_first_moment_to_before_its_last() {
        let valid = |secs| statement().is_valid_at(UnixTime::from_secs(secs));
        assert_eq!([99, 100, 199, 200].map(valid), [false, true, true, false]);
    }

    /// Rule 3.7: an introduction ends where it says, whatever follows, and nowhere before.
    #[test]
    fn an_introduction_is_split_from_what_follows() {
        for length in [0, 1, 255, 256, MAX_RECORD] {
            let introduction = Introduction { record: vec![7; length], statement: statement() };
            let mut bytes = introduction.to_bytes();
            for cut in 0..bytes.len() {
                assert_eq!(Introduction::split_from(&bytes[..cut]), None, "{cut}");
            }
            bytes.extend_from_slice(b"rest");
            assert_eq!(Introduction::split_from(&bytes), Some((introduction, &b"rest"[..])));
        }
        let too_long = Introduction { record: vec![7; MAX_RECORD + 1], statement: statement() };
        assert_eq!(Introduction::split_from(&too_long.to_bytes()), None);
    }

    /// Rule 3.8: a receiver recognises an introduction by all of it.
    #[test]
    fn the_fingerprint_depends_on_record_and_statement() {
        let introduction = Introduction { record: vec![7; 10], statement: statement() };
        let other_record = Introduction { record: vec![8; 10], ..introduction.clone() };
        let mut other_statement = introduction.clone();
        other_statement.statement.signature[63] ^= 1;
        assert_ne!(introduction.fingerprint(), other_record.fingerprint());
        assert_ne!(introduction.fingerprint(), other_statement.fingerprint());
    }
}

//! Records: the signed, versioned entries of the distributed table (chapter 2 of the protocol).
//!
//! Bytes that arrive become an [`UnverifiedRecord`]; only [`UnverifiedRecord::verify`] turns it into
//! a [`Record`], which alone can be stored, answered or believed. What a record says is read by the
//! body types, one for each table.

mod body;
mod head;
mod private;

use bytes::Bytes;

pub use body::{
    DomainKeyBody, EndDevice, LocalPolicy, NodeBody, NodeInfoPrivate, NodeInfoPublic, OperatorBody,
    OperatorState, RevocationBody, RevocationKind, Roles, SuperNodeBody, subject,
};
pub use head::{HeadBody, SetSummary};
pub use private::PrivateError;

use crate::cbor::{Malformed, Map, MapWriter};
use crate::crypto::{Crypto, CryptoError};
use crate::id::{Domain, NetworkId, NodeId, PlacementKey, RecordKey, sha256};
use crate::keys::{IdentityKey, LABEL_RECORD};
use crate::limits::{MAX_NODE_INFO, MAX_RECORD, MAX_VERSION_AHEAD};
use crate::time::UnixTime;
use std::time::Duration;

const SIGNATURE_SIZE: usize = 64;
const DAY: Duration = Duration::from_secs(86_400);

/// The tables of the distributed table (Rule 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Who is a member: identity key, receiving key, permitted roles.
    Node,
    /// Where a node is just now.
    NodeInfo,
    /// Which part of the key-space a super-node serves.
    SuperNode,
    /// Who is an operator, signed by the root.
    OperatorNode,
    /// A device that tunnels may lead to.
    EndDevice,
    /// A domain's keys, sealed to one member.
    DomainKey,
    /// What is no longer valid before its time.
    Revocation,
    /// The operator's fresh statement about a domain.
    Head,
}

impl Table {
    /// All tables with their numbers on the wire.
    pub const ALL: [(Self, u8); 8] = [
        (Self::Node, 1),
        (Self::NodeInfo, 2),
        (Self::SuperNode, 3),
        (Self::OperatorNode, 4),
        (Self::EndDevice, 5),
        (Self::DomainKey, 6),
        (Self::Revocation, 7),
        (Self::Head, 8),
    ];

    /// Returns the number on the wire.
    pub fn number(self) -> u8 {
        Self::ALL.iter().find(|(table, _)| *table == self).map_or(0, |(_, n)| *n)
    }

    /// Returns the table with a number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| u64::from(*n) == number).map(|(table, _)| *table)
    }

    /// Returns the longest time between version and expiry (Rule 2.7). A Revocation lives as long as what it revokes, at most as
    /// long as the longest of those.
    pub const fn max_life(self) -> Duration {
        match self {
            Self::Node | Self::SuperNode | Self::EndDevice | Self::DomainKey => DAY.saturating_mul(30),
            Self::OperatorNode | Self::Revocation => DAY.saturating_mul(90),
            Self::NodeInfo => Duration::from_secs(600),
            Self::Head => Duration::from_secs(60),
        }
    }

    /// Returns the longest record, in bytes, signature included.
    pub const fn max_size(self) -> usize {
        match self {
            Self::NodeInfo => MAX_NODE_INFO,
            Self::Node
            | Self::SuperNode
            | Self::OperatorNode
            | Self::EndDevice
            | Self::DomainKey
            | Self::Revocation
            | Self::Head => MAX_RECORD,
        }
    }

    /// Returns whether an operator signs the table; of the others, NodeInfo is signed by its node and
    /// OperatorNode by the root.
    pub const fn is_operator_signed(self) -> bool {
        !matches!(self, Self::NodeInfo | Self::OperatorNode)
    }
}

/// What every record says about itself, unsealed (Rule 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which table it belongs to.
    pub table: Table,
    /// Whose it is.
    pub domain: Domain,
    /// What it is about.
    pub key: RecordKey,
    /// Milliseconds since the epoch when it was made, or one more than the version before: the higher wins.
    pub version: u64,
    /// From when on it is gone, everywhere.
    pub expires: UnixTime,
    /// Who signed it.
    pub signer: NodeId,
    /// Whether it says that its subject no longer exists.
    pub removed: bool,
}

impl Header {
    /// Returns where in the distributed table the record lives.
    pub fn placement(&self) -> PlacementKey {
        PlacementKey::new(self.domain, &self.key.0)
    }

    /// Returns what is unique about the record.
    pub const fn id(&self) -> (Table, Domain, RecordKey) {
        (self.table, self.domain, self.key)
    }

    /// Returns when the record was made, as far as its version tells.
    pub const fn made_at(&self) -> UnixTime {
        UnixTime::from_millis(self.version)
    }

    fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.uint(1, self.table.number())
            .uint(2, self.domain.0)
            .bytes(3, &self.key.0)
            .uint(4, self.version)
            .uint(5, self.expires.as_millis())
            .bytes(6, &self.signer.to_bytes())
            .flag(7, self.removed);
        map
    }

    fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            table: Table::from_number(map.uint(1)?).ok_or(Malformed::Type(1))?,
            domain: Domain(map.uint(2)?),
            key: map.id(3)?,
            version: map.uint(4)?,
            expires: UnixTime::from_millis(map.uint(5)?),
            signer: map.id(6)?,
            removed: map.flag(7)?,
        })
    }
}

/// Why a record cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than its table allows.
    #[error("longer than its table allows")]
    TooLong,
    /// Not strict CBOR, or without a field that it needs.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The signature is not the signer's.
    #[error("the signature is not the signer's")]
    Signature,
    /// Its version lies more than two minutes ahead.
    #[error("made in the future")]
    Future,
    /// It has expired.
    #[error("expired")]
    Expired,
    /// It would live for longer than its table allows.
    #[error("lives for longer than its table allows")]
    Lifetime,
}

/// A record as it arrived: well-formed, but nothing in it can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedRecord(Record);

impl UnverifiedRecord {
    /// Reads the form of a record.
    ///
    /// # Errors
    /// If it is too long, not strict CBOR, or has no proper header.
    pub fn parse(bytes: &Bytes) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD {
            return Err(RecordError::TooLong);
        }
        let content = bytes.len().checked_sub(SIGNATURE_SIZE).ok_or(Malformed::Truncated)?;
        let mut map = Map::parse(bytes.get(..content).ok_or(Malformed::Truncated)?)?;
        let header = Header::read(&mut map)?;
        if bytes.len() > header.table.max_size() {
            return Err(RecordError::TooLong);
        }
        Ok(Self(Record { bytes: bytes.clone(), content, header }))
    }

    /// Returns what the record claims about itself.
    pub const fn header(&self) -> &Header {
        &self.0.header
    }

    /// Checks version and expiry against a time (Rule 2.7).
    ///
    /// # Errors
    /// If the record comes from the future, has expired, or would live too long.
    pub fn check_time(&self, time: UnixTime) -> Result<(), RecordError> {
        let header = self.header();
        if header.made_at() > time.after(MAX_VERSION_AHEAD) {
            return Err(RecordError::Future);
        }
        if header.expires <= time {
            return Err(RecordError::Expired);
        }
        if header.expires > header.made_at().after(header.table.max_life()) {
            return Err(RecordError::Lifetime);
        }
        Ok(())
    }

    /// Checks the signature (Rule 2.9). Whether the signer may sign this table is for the caller to know.
    ///
    /// # Errors
    /// If `identity` is not the key of the signer named in the header, or did not sign the record.
    pub fn verify(
        self,
        network: &NetworkId,
        identity: &[u8; 32],
        crypto: &dyn Crypto,
    ) -> Result<Record, RecordError> {
        let record = self.0;
        let (content, signature) =
            record.bytes.split_last_chunk::<SIGNATURE_SIZE>().ok_or(RecordError::Signature)?;
        let message = signed_bytes(record.header.table, network, content);
        let genuine = record.header.signer.is_of(identity) && crypto.verify(identity, &message, signature);
        if genuine { Ok(record) } else { Err(RecordError::Signature) }
    }

    /// Takes a record from the own store, whose every entry was verified before it was written.
    pub fn trust_own_store(self) -> Record {
        self.0
    }
}

/// A record whose signature was verified. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Bytes,
    content: usize,
    header: Header,
}

impl Record {
    /// Returns what the record says about itself.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the bytes as they travel, signature included.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns SHA-256 of the bytes.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&[&self.bytes])
    }

    /// Returns whether this record takes the place of another with the same id: the higher version wins, ties by bytes.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.header.version, &self.bytes) > (other.header.version, &other.bytes)
    }

    /// Returns whether the record is still valid.
    pub fn is_valid_at(&self, time: UnixTime) -> bool {
        time < self.header.expires
    }

    fn content(&self) -> &[u8] {
        self.bytes.get(..self.content).unwrap_or(&[])
    }

    /// Returns the map after the header's fields.
    fn fields(&self) -> Result<Map<'_>, Malformed> {
        let mut map = Map::parse(self.content())?;
        Header::read(&mut map)?;
        Ok(map)
    }
}

fn signed_bytes(table: Table, network: &NetworkId, content: &[u8]) -> Vec<u8> {
    [LABEL_RECORD, &[table.number()], &network.0, content].concat()
}

/// A record about to be made.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What it will say about itself; `signer` must be the id of the key that signs.
    pub header: Header,
    /// What everybody may read.
    pub public: MapWriter,
    /// What only members of the domain may read.
    pub private: Option<PrivateDraft>,
}

/// A private body about to be sealed.
#[derive(Clone, Debug)]
pub struct PrivateDraft {
    /// The newest epoch.
    pub epoch: u32,
    /// Its key.
    pub epoch_key: crate::keys::SecretKey,
    /// Sixteen random bytes.
    pub salt: [u8; 16],
    /// The body.
    pub body: MapWriter,
}

/// Why a record could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// It would be longer than its table allows.
    #[error("the record would have {size} bytes, and {most} are allowed")]
    TooLong {
        /// How long it would be.
        size: usize,
        /// How long it may be.
        most: usize,
    },
    /// Its private body would be longer than allowed.
    #[error("the private part of the record would have {size} bytes, and {most} are allowed")]
    PrivateTooLong {
        /// How long it would be.
        size: usize,
        /// How long it may be.
        most: usize,
    },
    /// The private body could not be sealed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl Draft {
    /// Seals the private body and signs.
    ///
    /// # Errors
    /// If the record would be too long for its table.
    pub fn sign(
        &self,
        identity: &IdentityKey,
        network: &NetworkId,
        crypto: &dyn Crypto,
    ) -> Result<Record, DraftError> {
        let header = self.header;
        debug_assert!(header.signer.is_of(&identity.public()), "a record names the key that signs it");
        let mut map = header.write();
        map.map(8, &self.public);
        if let Some(private) = &self.private {
            private.seal_into(&mut map, &header, crypto)?;
        }
        let mut bytes = map.finish();
        let content = bytes.len();
        let signature = crypto.sign(identity, &signed_bytes(header.table, network, &bytes));
        bytes.extend_from_slice(&signature);
        let most = header.table.max_size();
        if bytes.len() > most {
            return Err(DraftError::TooLong { size: bytes.len(), most });
        }
        Ok(Record { bytes: bytes.into(), content, header })
    }
}

#[cfg(test)]
mod tests;

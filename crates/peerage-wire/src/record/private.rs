//! Private bodies: sealed with the domain's epoch key, padded, bound to everything public (Rule 2.11).

use super::{Draft, DraftError, Header, PrivateDraft, Record};
use crate::cbor::{Malformed, Map, MapWriter};
use crate::crypto::{Crypto, CryptoError};
use crate::keys::{DomainKeys, LABEL_PRIVATE, SecretKey, private_body_key};
use crate::limits::{MAX_PRIVATE_BODY, PRIVATE_BODY_PAD};

/// The key of each body is used once, so the nonce may be fixed.
const NONCE: [u8; 12] = [0; 12];

const EPOCH: u64 = 9;
const SALT: u64 = 10;
const SEALED: u64 = 11;

/// Why a private body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateError {
    /// The record has none, as tombstones.
    #[error("there is no private body")]
    None,
    /// It was sealed in an epoch whose key is not known here.
    #[error("the key of epoch {0} is not known")]
    Epoch(u32),
    /// It does not open.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// It opened, but is not what it should be.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
}

fn key_of(header: &Header, epoch_key: &SecretKey, salt: &[u8; 16]) -> SecretKey {
    let table = [header.table.number()];
    private_body_key(epoch_key, salt, &[LABEL_PRIVATE, &table, &header.key.0, &header.signer.to_bytes()])
}

impl PrivateDraft {
    /// Appends epoch, salt and sealed body to a record's map.
    pub(super) fn seal_into(
        &self,
        map: &mut MapWriter,
        header: &Header,
        crypto: &dyn Crypto,
    ) -> Result<(), DraftError> {
        map.uint(EPOCH, self.epoch).bytes(SALT, &self.salt);
        let mut body = padded(&self.body.finish())?;
        let key = key_of(header, &self.epoch_key, &self.salt);
        let tag = crypto.seal(&key, &NONCE, map.pairs(), &mut body)?;
        body.extend_from_slice(&tag);
        map.bytes(SEALED, &body);
        Ok(())
    }
}

/// Prefixes the length in two bytes and pads with zeros.
fn padded(body: &[u8]) -> Result<Vec<u8>, DraftError> {
    let length = u16::try_from(body.len()).ok().filter(|n| usize::from(*n) <= MAX_PRIVATE_BODY);
    let too_long = DraftError::PrivateTooLong { size: body.len(), most: MAX_PRIVATE_BODY };
    let mut out = length.ok_or(too_long)?.to_be_bytes().to_vec();
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(PRIVATE_BODY_PAD), 0);
    Ok(out)
}

fn unpadded(padded: &[u8]) -> Result<&[u8], Malformed> {
    let (length, rest) = padded.split_first_chunk::<2>().ok_or(Malformed::Truncated)?;
    let (body, padding) =
        rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(Malformed::Truncated)?;
    if padding.iter().any(|byte| *byte != 0) { Err(Malformed::Trailing) } else { Ok(body) }
}

impl Record {
    /// Opens the private body with a domain's keys and hands its map to `read`.
    ///
    /// # Errors
    /// If there is none, its epoch's key is not known, it does not open, or `read` refuses it.
    pub fn read_private<T>(
        &self,
        keys: &DomainKeys,
        crypto: &dyn Crypto,
        read: impl FnOnce(Map<'_>) -> Result<T, Malformed>,
    ) -> Result<T, PrivateError> {
        let start = self.content().len().saturating_sub(Map::parse(self.content())?.rest().len());
        let mut map = self.fields()?;
        map.raw(super::body::PUBLIC)?;
        let epoch: u32 = map.optional_uint(EPOCH)?.ok_or(PrivateError::None)?;
        let salt: [u8; 16] = map.id(SALT)?;
        // Every byte of the content before the sealed field, without the head of the map.
        let before = self.content().len().saturating_sub(map.rest().len());
        let aad = self.content().get(start..before).ok_or(Malformed::Truncated)?;
        let sealed = map.bytes(SEALED)?;
        map.finish()?;
        let epoch_key = keys.of_epoch(epoch).ok_or(PrivateError::Epoch(epoch))?;
        let mut buffer = sealed.to_vec();
        let opened = crypto.open(&key_of(self.header(), epoch_key, &salt), &NONCE, aad, &mut buffer)?;
        Ok(read(Map::parse(unpadded(opened)?)?)?)
    }

    /// Returns the epoch in which the private body was sealed, if there is one.
    pub fn epoch(&self) -> Option<u32> {
        let mut map = self.fields().ok()?;
        map.optional_uint(EPOCH).ok()?
    }
}

impl Draft {
    /// Returns the same draft with a private body.
    #[must_use]
    pub fn with_private(mut self, keys: &DomainKeys, salt: [u8; 16], body: MapWriter) -> Self {
        let epoch_key = keys.epoch_key.clone();
        self.private = Some(PrivateDraft { epoch: keys.epoch, epoch_key, salt, body });
        self
    }
}

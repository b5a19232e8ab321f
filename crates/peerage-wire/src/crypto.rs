//! The seam behind which the cryptography stands, so that a simulation can put something cheap in its place.
//!
//! [`Real`] is what ships: HPKE in Auth mode (RFC 9180: DHKEM X25519, HKDF-SHA-256, export only) for the
//! keys of a context, AES-256-GCM for messages, strict Ed25519 for what is stored or passed on.

use std::fmt;

use hpke::aead::{AesGcm256, ExportOnlyAead};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _};
use rand_core::CryptoRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as RingNonce, UnboundKey};

use crate::keys::{AgreementKey, IdentityKey, SecretKey, SignatureBytes, verify};

/// Bytes that authenticate a sealed message.
pub const TAG_SIZE: usize = 16;

/// Bytes of an encapsulated key.
pub const ENC_SIZE: usize = 32;

/// A cryptographic operation failed: a wrong key, or something was altered. Nothing more is to be learned from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cryptographic check failed")]
pub struct CryptoError;

/// The two keys of a sealing context, exported under `request` and `reply` (Rule 3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextKeys {
    /// Seals what the opener of the context sends.
    pub request: SecretKey,
    /// Seals the answers.
    pub reply: SecretKey,
}

/// What the protocol needs of cryptography.
pub trait Crypto: Send + Sync + fmt::Debug {
    /// Signs with an identity key.
    fn sign(&self, key: &IdentityKey, message: &[u8]) -> SignatureBytes;

    /// Verifies strictly.
    fn verify(&self, public: &[u8; 32], message: &[u8], signature: &SignatureBytes) -> bool;

    /// Agrees on the keys of a new context with `receiver`, as `sender`; returns the encapsulated key too.
    ///
    /// # Errors
    /// If the receiver's key is not a usable X25519 key.
    fn open_context(
        &self,
        sender: &AgreementKey,
        receiver: &[u8; 32],
        info: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<([u8; ENC_SIZE], ContextKeys), CryptoError>;

    /// Agrees on the keys of a context that `sender` opened.
    ///
    /// # Errors
    /// If the encapsulated key or the sender's key is not usable. A forged one gives keys that open nothing.
    fn accept_context(
        &self,
        receiver: &AgreementKey,
        sender: &[u8; 32],
        enc: &[u8; ENC_SIZE],
        info: &[u8],
    ) -> Result<ContextKeys, CryptoError>;

    /// Encrypts a text in place and returns the tag that goes behind it.
    ///
    /// # Errors
    /// If the text is longer than the cipher allows, which no message is.
    fn seal(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_SIZE], CryptoError>;

    /// Decrypts `buffer`, which ends with the tag, in place and returns the plaintext.
    ///
    /// # Errors
    /// If anything was altered.
    fn open<'b>(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], CryptoError>;
}

/// The cryptography that ships.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real;

type Suite = X25519HkdfSha256;
type PublicKey = <Suite as Kem>::PublicKey;
type PrivateKey = <Suite as Kem>::PrivateKey;

fn public(bytes: &[u8; 32]) -> Result<PublicKey, CryptoError> {
    PublicKey::from_bytes(bytes).map_err(|_| CryptoError)
}

fn private(key: &AgreementKey) -> Result<PrivateKey, CryptoError> {
    PrivateKey::from_bytes(key.secret()).map_err(|_| CryptoError)
}

/// Exports both keys. `seal` and `open` of an export-only context panic; nothing here calls them.
fn export(
    export: impl Fn(&[u8], &mut [u8]) -> Result<(), hpke::HpkeError>,
) -> Result<ContextKeys, CryptoError> {
    let mut keys = ContextKeys { request: SecretKey([0; 32]), reply: SecretKey([0; 32]) };
    export(b"request", &mut keys.request.0).map_err(|_| CryptoError)?;
    export(b"reply", &mut keys.reply.0).map_err(|_| CryptoError)?;
    Ok(keys)
}

impl Crypto for Real {
    fn sign(&self, key: &IdentityKey, message: &[u8]) -> SignatureBytes {
        key.sign(message)
    }

    fn verify(&self, public: &[u8; 32], message: &[u8], signature: &SignatureBytes) -> bool {
        verify(public, message, signature)
    }

    fn open_context(
        &self,
        sender: &AgreementKey,
        receiver: &[u8; 32],
        info: &[u8],
        mut rng: &mut dyn CryptoRng,
    ) -> Result<([u8; ENC_SIZE], ContextKeys), CryptoError> {
        let mode = OpModeS::<Suite>::Auth((private(sender)?, public(sender.public())?));
        let (enc, context) = hpke::setup_sender_with_rng::<ExportOnlyAead, HkdfSha256, Suite>(
            &mode,
            &public(receiver)?,
            info,
            &mut rng,
        )
        .map_err(|_| CryptoError)?;
        Ok((enc.to_bytes().into(), export(|label, out| context.export(label, out))?))
    }

    fn accept_context(
        &self,
        receiver: &AgreementKey,
        sender: &[u8; 32],
        enc: &[u8; ENC_SIZE],
        info: &[u8],
    ) -> Result<ContextKeys, CryptoError> {
        let mode = OpModeR::<Suite>::Auth(public(sender)?);
        let enc = <Suite as Kem>::EncappedKey::from_bytes(enc).map_err(|_| CryptoError)?;
        let context =
            hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, Suite>(&mode, &private(receiver)?, &enc, info)
                .map_err(|_| CryptoError)?;
        export(|label, out| context.export(label, out))
    }

    fn seal(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_SIZE], CryptoError> {
        let nonce = RingNonce::assume_unique_for_key(*nonce);
        let tag = cipher(key)?.seal_in_place_separate_tag(nonce, Aad::from(aad), text);
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(CryptoError)
    }

    fn open<'b>(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], CryptoError> {
        let nonce = RingNonce::assume_unique_for_key(*nonce);
        cipher(key)?.open_in_place(nonce, Aad::from(aad), buffer).map_err(|_| CryptoError)
    }
}

fn cipher(key: &SecretKey) -> Result<LessSafeKey, CryptoError> {
    UnboundKey::new(&AES_256_GCM, &key.0).map(LessSafeKey::new).map_err(|_| CryptoError)
}

/// Seals bytes to whoever holds the secret half of `receiver`, in HPKE Base mode with AES-256-GCM; returns
/// the encapsulated key followed by the ciphertext. For enrolment and domain keys, not for messages.
/// `plaintext` gets the encapsulated key, so that a signature inside can cover it.
///
/// # Errors
/// If the receiver's key is not a usable X25519 key.
pub fn seal_to(
    receiver: &[u8; 32],
    info: &[u8],
    aad: &[u8],
    plaintext: impl FnOnce(&[u8; ENC_SIZE]) -> Vec<u8>,
    mut rng: &mut dyn CryptoRng,
) -> Result<Vec<u8>, CryptoError> {
    let (enc, mut context) = hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, Suite>(
        &OpModeS::Base,
        &public(receiver)?,
        info,
        &mut rng,
    )
    .map_err(|_| CryptoError)?;
    let enc: [u8; ENC_SIZE] = enc.to_bytes().into();
    let mut sealed = enc.to_vec();
    let mut body = plaintext(&enc);
    let tag = context.seal_inout_detached(body.as_mut_slice().into(), aad).map_err(|_| CryptoError)?;
    sealed.extend_from_slice(&body);
    sealed.extend_from_slice(&tag.to_bytes());
    Ok(sealed)
}

/// Opens what [`seal_to`] made.
///
/// # Errors
/// If it is too short, was altered, or was sealed to somebody else or for another purpose.
pub fn open_sealed(
    receiver: &AgreementKey,
    info: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let (enc, rest) = sealed.split_at_checked(ENC_SIZE).ok_or(CryptoError)?;
    let (body, tag) =
        rest.len().checked_sub(TAG_SIZE).and_then(|at| rest.split_at_checked(at)).ok_or(CryptoError)?;
    let enc = <Suite as Kem>::EncappedKey::from_bytes(enc).map_err(|_| CryptoError)?;
    let tag = hpke::aead::AeadTag::<AesGcm256>::from_bytes(tag).map_err(|_| CryptoError)?;
    let mut context =
        hpke::setup_receiver::<AesGcm256, HkdfSha256, Suite>(&OpModeR::Base, &private(receiver)?, &enc, info)
            .map_err(|_| CryptoError)?;
    let mut plaintext = body.to_vec();
    context.open_inout_detached(plaintext.as_mut_slice().into(), aad, &tag).map_err(|_| CryptoError)?;
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;

    fn key(byte: u8) -> AgreementKey {
        AgreementKey::from_secret([byte; 32])
    }

    /// Rule 3.4: both ends come to the same keys, which differ from each other and with everything that goes in.
    #[test]
    fn both_ends_agree_on_two_keys() {
        let (sender, receiver) = (key(1), key(2));
        let (enc, keys) = Real.open_context(&sender, receiver.public(), b"info", &mut TestRng(1)).unwrap();
        let accept = |receiver: &AgreementKey, sender: &AgreementKey, enc, info: &[u8]| {
            Real.accept_context(receiver, sender.public(), enc, info).unwrap()
        };
        assert_eq!(accept(&receiver, &sender, &enc, b"info"), keys);
        assert_ne!(keys.request, keys.reply);
        assert_ne!(accept(&receiver, &sender, &enc, b"other"), keys);
        assert_ne!(accept(&receiver, &key(3), &enc, b"info"), keys);
        assert_ne!(accept(&key(3), &sender, &enc, b"info"), keys);
        assert_ne!(accept(&receiver, &sender, key(3).public(), b"info"), keys);
    }

    /// Rule 3.4: a key of small order would make the secret known to everybody.
    #[test]
    fn keys_of_small_order_are_refused() {
        let (sender, receiver) = (key(1), key(2));
        let mut one = [0; 32];
        one[0] = 1;
        for weak in [[0; 32], one] {
            assert_eq!(Real.open_context(&sender, &weak, b"", &mut TestRng(1)), Err(CryptoError));
            assert_eq!(Real.accept_context(&receiver, &weak, key(3).public(), b""), Err(CryptoError));
            assert_eq!(Real.accept_context(&receiver, sender.public(), &weak, b""), Err(CryptoError));
            assert_eq!(seal_to(&weak, b"", b"", |_| vec![1], &mut TestRng(1)), Err(CryptoError));
        }
    }

    #[test]
    fn what_is_sealed_to_somebody_opens_for_him_whole_and_for_one_purpose() {
        let receiver = key(2);
        let write = |enc: &[u8; 32]| [b"secret", &enc[..]].concat();
        let sealed = seal_to(receiver.public(), b"info", b"aad", write, &mut TestRng(1)).unwrap();
        let plaintext = [b"secret", &sealed[..ENC_SIZE]].concat();
        assert_eq!(open_sealed(&receiver, b"info", b"aad", &sealed), Ok(plaintext));
        assert_eq!(open_sealed(&receiver, b"other", b"aad", &sealed), Err(CryptoError));
        assert_eq!(open_sealed(&receiver, b"info", b"other", &sealed), Err(CryptoError));
        assert_eq!(open_sealed(&key(3), b"info", b"aad", &sealed), Err(CryptoError));
        for length in 0..sealed.len() {
            assert_eq!(open_sealed(&receiver, b"info", b"aad", &sealed[..length]), Err(CryptoError));
        }
        // The highest bit of an X25519 key means nothing (RFC 7748, section 5), but HPKE covers it all the same.
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_sealed(&receiver, b"info", b"aad", &altered), Err(CryptoError), "bit {bit}");
        }
    }

    #[test]
    fn a_sealed_message_shorter_than_its_tag_is_refused() {
        for length in 0..TAG_SIZE {
            assert!(Real.open(&SecretKey([1; 32]), &[0; 12], b"", &mut vec![0; length]).is_err());
        }
    }
}

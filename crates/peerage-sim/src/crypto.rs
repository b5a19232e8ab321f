//! A cheap stand-in for the cryptography: keyed hashes with the properties that the protocol relies on, and no security at all.
//!
//! What it keeps: a signature of another key or of other bytes does not verify; both ends of a key agreement come to the same keys, and
//! nobody with other keys does; what was altered does not open, nor does anything under another key, nonce or additional data. What it
//! gives up: whoever knows a public key can sign, and plaintext stays readable. The liars of a simulation must therefore play by
//! the rules of [`Crypto`] and use keys of their own.

use peerage_wire::crypto::{ContextKeys, Crypto, CryptoError, ENC_SIZE, TAG_SIZE};
use peerage_wire::keys::{AgreementKey, IdentityKey, SecretKey, SignatureBytes};
use rand_core::CryptoRng;

/// Odd constants without structure: digits of π, e, √2 and √3.
const PI: u64 = 0x2431_6c3f_6a88_85a3;
const E: u64 = 0xb7e1_5162_8aed_2a6b;
const ROOT_2: u64 = 0x6a09_e667_f3bc_c909;
const ROOT_3: u64 = 0xbb67_ae85_84ca_a73b;

/// A fast hash: two words that a wide multiplication stirs, sixteen bytes at a time.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    a: u64,
    b: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "both halves of the product are wanted")]
const fn fold(x: u64, y: u64) -> u64 {
    let product = (x as u128) * (y as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Reads up to eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    let mut padded = [0; 8];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(padded)
}

impl Default for Mix {
    fn default() -> Self {
        Self::new()
    }
}

impl Mix {
    /// Makes an empty hash.
    pub const fn new() -> Self {
        Self { a: PI, b: E }
    }

    /// Takes one part, whose length counts too.
    pub fn take(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        for chunk in bytes.chunks(16) {
            let (low, high) = chunk.split_at(chunk.len().min(8));
            self.a = fold(self.a ^ word(low), ROOT_2 ^ word(high));
            self.b = self.b.rotate_left(23).wrapping_add(self.a ^ word(low).rotate_left(32) ^ word(high));
        }
    }

    /// Takes a number.
    pub const fn number(&mut self, number: u64) {
        self.a = fold(self.a ^ number, ROOT_3);
        self.b = self.b.rotate_left(31).wrapping_add(self.a ^ number);
    }

    /// Returns as many bytes as are wanted.
    pub fn out<const N: usize>(mut self) -> [u8; N] {
        let mut out = [0; N];
        for chunk in out.chunks_mut(8) {
            self.number(E);
            let value = fold(self.a ^ PI, self.b ^ ROOT_2) ^ self.b;
            for (to, from) in chunk.iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
        out
    }
}

fn hash<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut mix = Mix::new();
    for part in parts {
        mix.take(part);
    }
    mix.out()
}

/// Cryptography that costs some nanoseconds and protects nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cheap {
    /// A planted bug: what is sealed can be read by everybody.
    pub leaves_open: bool,
}

fn context(sender: &[u8; 32], receiver: &[u8; 32], enc: &[u8; 32], info: &[u8]) -> ContextKeys {
    let key = |label: &[u8]| SecretKey(hash(&[label, sender, receiver, enc, info]));
    ContextKeys { request: key(b"request"), reply: key(b"reply") }
}

fn tag(key: &SecretKey, nonce: &[u8; 12], aad: &[u8], text: &[u8]) -> [u8; TAG_SIZE] {
    hash(&[b"seal", &key.0, nonce, aad, text])
}

/// Keys that nobody holds, as those of small order.
fn usable(public: &[u8; 32]) -> Result<(), CryptoError> {
    if *public == [0; 32] { Err(CryptoError) } else { Ok(()) }
}

impl Crypto for Cheap {
    fn sign(&self, key: &IdentityKey, message: &[u8]) -> SignatureBytes {
        hash(&[b"sign", &key.public(), message])
    }

    fn verify(&self, public: &[u8; 32], message: &[u8], signature: &SignatureBytes) -> bool {
        *signature == hash::<64>(&[b"sign", public, message])
    }

    fn open_context(
        &self,
        sender: &AgreementKey,
        receiver: &[u8; 32],
        info: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<([u8; ENC_SIZE], ContextKeys), CryptoError> {
        usable(receiver)?;
        let mut enc = [0; ENC_SIZE];
        rng.fill_bytes(&mut enc);
        Ok((enc, context(sender.public(), receiver, &enc, info)))
    }

    fn accept_context(
        &self,
        receiver: &AgreementKey,
        sender: &[u8; 32],
        enc: &[u8; ENC_SIZE],
        info: &[u8],
    ) -> Result<ContextKeys, CryptoError> {
        usable(sender)?;
        usable(enc)?;
        Ok(context(sender, receiver.public(), enc, info))
    }

    fn seal(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_SIZE], CryptoError> {
        self.mask(text);
        Ok(tag(key, nonce, aad, text))
    }

    fn open<'b>(
        &self,
        key: &SecretKey,
        nonce: &[u8; 12],
        aad: &[u8],
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], CryptoError> {
        let at = buffer.len().checked_sub(TAG_SIZE).ok_or(CryptoError)?;
        let (text, shown) = buffer.split_at_mut(at);
        if *shown != tag(key, nonce, aad, text) {
            return Err(CryptoError);
        }
        self.mask(text);
        Ok(text)
    }
}

impl Cheap {
    /// Makes text unlike itself, so that it is seen where something lies about that was never sealed.
    fn mask(self, text: &mut [u8]) {
        for byte in text.iter_mut().filter(|_| !self.leaves_open) {
            *byte ^= 0xa5;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    #[test]
    fn a_signature_is_of_one_key_and_one_message() {
        let [one, two] = [1, 2].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let signature = Cheap::default().sign(&one, b"message");
        assert!(Cheap::default().verify(&one.public(), b"message", &signature));
        assert!(!Cheap::default().verify(&two.public(), b"message", &signature));
        assert!(!Cheap::default().verify(&one.public(), b"messages", &signature));
    }

    #[test]
    fn both_ends_agree_on_keys_and_nobody_else_does() {
        let [sender, receiver, other] = [1, 2, 3].map(|seed| AgreementKey::from_secret([seed; 32]));
        let mut chance = Chance::new(1, "test");
        let (enc, keys) =
            Cheap::default().open_context(&sender, receiver.public(), b"info", chance.rng()).unwrap();
        assert_eq!(Cheap::default().accept_context(&receiver, sender.public(), &enc, b"info").unwrap(), keys);
        assert_ne!(Cheap::default().accept_context(&receiver, other.public(), &enc, b"info").unwrap(), keys);
        assert_ne!(Cheap::default().accept_context(&other, sender.public(), &enc, b"info").unwrap(), keys);
        assert_ne!(Cheap::default().accept_context(&receiver, sender.public(), &enc, b"else").unwrap(), keys);
    }

    #[test]
    fn what_was_altered_does_not_open() {
        let key = SecretKey([7; 32]);
        let mut sealed = b"a text of more than sixteen bytes".to_vec();
        let tag = Cheap::default().seal(&key, &[1; 12], b"aad", &mut sealed).unwrap();
        sealed.extend_from_slice(&tag);
        assert!(Cheap::default().open(&key, &[1; 12], b"aad", &mut sealed.clone()).is_ok());
        assert!(Cheap::default().open(&key, &[2; 12], b"aad", &mut sealed.clone()).is_err());
        assert!(Cheap::default().open(&key, &[1; 12], b"ada", &mut sealed.clone()).is_err());
        assert!(Cheap::default().open(&SecretKey([8; 32]), &[1; 12], b"aad", &mut sealed.clone()).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(Cheap::default().open(&key, &[1; 12], b"aad", &mut altered).is_err(), "bit {bit}");
        }
    }
}

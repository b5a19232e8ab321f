//! The key schedule of Rule 3.4, written out with nothing but HMAC and X25519, against the vectors of RFC 9180 and
//! against what the crate does.

use std::convert::Infallible;

use hmac::{Hmac, KeyInit as _, Mac as _};
use peerage_wire::crypto::{Crypto as _, Real, open_sealed, seal_to};
use peerage_wire::keys::AgreementKey;
use rand_core::{TryCryptoRng, TryRng};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::vectors::Vectors;

const EXPORT_ONLY: [u8; 2] = [0xff, 0xff];
const AES_256: [u8; 2] = [0, 2];

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

fn extract(salt: &[u8], suite: &[u8], label: &str, ikm: &[u8]) -> Vec<u8> {
    hmac(salt, &[b"HPKE-v1", suite, label.as_bytes(), ikm])
}

fn expand(prk: &[u8], suite: &[u8], label: &str, info: &[u8], length: u8) -> Vec<u8> {
    let mut out = hmac(prk, &[&[0, length], b"HPKE-v1", suite, label.as_bytes(), info, &[1]]);
    out.truncate(usize::from(length));
    out
}

fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*public)).to_bytes()
}

fn public(secret: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
}

/// What a key agreement comes to, with the steps that RFC 9180 publishes.
struct Schedule {
    suite: Vec<u8>,
    shared: Vec<u8>,
    context: Vec<u8>,
    secret: Vec<u8>,
    exporter: Vec<u8>,
}

impl Schedule {
    /// `dh` is one or two X25519 results, `keys` the public keys in the order of the RFC.
    fn new(mode: u8, aead: [u8; 2], dh: &[u8], keys: &[u8], info: &[u8]) -> Self {
        let kem = [b"KEM".as_slice(), &[0, 0x20]].concat();
        let suite = [b"HPKE".as_slice(), &[0, 0x20, 0, 1], &aead].concat();
        let shared = expand(&extract(&[], &kem, "eae_prk", dh), &kem, "shared_secret", keys, 32);
        let psk = extract(&[], &suite, "psk_id_hash", &[]);
        let context = [&[mode], &psk[..], &extract(&[], &suite, "info_hash", info)].concat();
        let secret = extract(&shared, &suite, "secret", &[]);
        let exporter = expand(&secret, &suite, "exp", &context, 32);
        Self { suite, shared, context, secret, exporter }
    }

    fn export(&self, label: &[u8]) -> Vec<u8> {
        expand(&self.exporter, &self.suite, "sec", label, 32)
    }
}

/// Gives the same 32 bytes again and again, as which RFC 9180 publishes the randomness of its vectors.
struct Fixed([u8; 32]);

impl TryRng for Fixed {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.try_next_u32().map(u64::from)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for (to, from) in out.iter_mut().zip(self.0.iter().cycle()) {
            *to = *from;
        }
        Ok(())
    }
}

impl TryCryptoRng for Fixed {}

fn published(vectors: &mut Vectors, name: &str) -> [u8; 32] {
    vectors.get(name).try_into().unwrap()
}

fn agrees(vectors: &mut Vectors, mode: &str, schedule: &Schedule) {
    assert_eq!(schedule.shared, vectors.get(&format!("{mode}.shared_secret")));
    assert_eq!(schedule.context, vectors.get(&format!("{mode}.key_schedule_context")));
    assert_eq!(schedule.secret, vectors.get(&format!("{mode}.secret")));
    assert_eq!(schedule.exporter, vectors.get(&format!("{mode}.exporter_secret")));
    for number in 0..3 {
        let context = vectors.get(&format!("{mode}.exporter_context.{number}"));
        assert_eq!(schedule.export(&context), vectors.get(&format!("{mode}.exported_value.{number}")));
    }
}

/// Rule 3.4: the schedule as the protocol spells it out is that of RFC 9180, and what the crate does is that schedule.
#[test]
fn contexts_agree_on_keys_as_rfc_9180_says() {
    let mut vectors = Vectors::read("hpke.txt");
    let [ephemeral, receiver, sender, randomness] =
        ["auth.skEm", "auth.skRm", "auth.skSm", "auth.ikmE"].map(|name| published(&mut vectors, name));
    let [enc, receiver_public, sender_public] =
        ["auth.enc", "auth.pkRm", "auth.pkSm"].map(|name| published(&mut vectors, name));
    let info = vectors.get("auth.info");
    assert_eq!(
        [public(&ephemeral), public(&receiver), public(&sender)],
        [enc, receiver_public, sender_public]
    );
    assert_eq!(published(&mut vectors, "auth.pkEm"), enc);

    let dh = [x25519(&ephemeral, &receiver_public), x25519(&sender, &receiver_public)].concat();
    assert_eq!(dh, [x25519(&receiver, &enc), x25519(&receiver, &sender_public)].concat());
    let keys = [enc, receiver_public, sender_public].concat();
    let schedule = Schedule::new(2, EXPORT_ONLY, &dh, &keys, &info);
    agrees(&mut vectors, "auth", &schedule);

    let (sender, receiver) = (AgreementKey::from_secret(sender), AgreementKey::from_secret(receiver));
    let (made_enc, made) =
        Real.open_context(&sender, &receiver_public, &info, &mut Fixed(randomness)).unwrap();
    assert_eq!(made_enc, enc);
    assert_eq!(made.request.0.to_vec(), schedule.export(b"request"));
    assert_eq!(made.reply.0.to_vec(), schedule.export(b"reply"));
    assert_eq!(Real.accept_context(&receiver, &sender_public, &enc, &info), Ok(made));
}

/// Rule 3.4: Base mode, as enrolment and domain keys use it, is that of RFC 9180 with AES-256-GCM.
#[test]
fn base_mode_seals_as_rfc_9180_says() {
    let mut vectors = Vectors::read("hpke.txt");
    let [ephemeral, receiver, randomness] =
        ["base.skEm", "base.skRm", "base.ikmE"].map(|name| published(&mut vectors, name));
    let [enc, receiver_public] = ["base.enc", "base.pkRm"].map(|name| published(&mut vectors, name));
    let info = vectors.get("base.info");
    assert_eq!([public(&ephemeral), published(&mut vectors, "base.pkEm")], [enc, enc]);
    let dh = x25519(&ephemeral, &receiver_public);
    let keys = [enc, receiver_public].concat();
    agrees(&mut vectors, "base", &Schedule::new(0, EXPORT_ONLY, &dh, &keys, &info));

    let schedule = Schedule::new(0, AES_256, &dh, &keys, &info);
    let key = expand(&schedule.secret, &schedule.suite, "key", &schedule.context, 32);
    let nonce = expand(&schedule.secret, &schedule.suite, "base_nonce", &schedule.context, 12);
    let mut expected = b"plaintext".to_vec();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&nonce).unwrap();
    cipher.seal_in_place_append_tag(nonce, Aad::from(b"aad"), &mut expected).unwrap();

    let write = |_: &[u8; 32]| b"plaintext".to_vec();
    let sealed = seal_to(&receiver_public, &info, b"aad", write, &mut Fixed(randomness)).unwrap();
    assert_eq!(sealed, [&enc[..], &expected].concat());
    let opened = open_sealed(&AgreementKey::from_secret(receiver), &info, b"aad", &sealed);
    assert_eq!(opened, Ok(b"plaintext".to_vec()));
}

//! Labels that keep signatures and derived keys of different purposes apart, and the keys themselves.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand_core::CryptoRng;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{DeviceId, Domain, LocationId, LookupTag, Mac, NetworkId, NodeId, RecordKey, prefix, sha256};

/// Begins the hash that makes a device id.
pub const LABEL_DEVICE: &[u8] = b"peerage device 1";
/// Begins what is signed for a record.
pub const LABEL_RECORD: &[u8] = b"peerage record 1";
/// Begins what is signed for a key statement.
pub const LABEL_STATEMENT: &[u8] = b"peerage key statement 1";
/// Begins the HPKE info of a sealing context.
pub const LABEL_CONTEXT: &[u8] = b"peerage context 1";
/// Begins the HPKE info of an enrolment.
pub const LABEL_ENROL: &[u8] = b"peerage enrol 1";
/// Begins the HPKE info of the answer to an enrolment.
pub const LABEL_ENROLLED: &[u8] = b"peerage enrolled 1";
/// Begins the HPKE info of a domain key.
pub const LABEL_DOMAIN_KEY: &[u8] = b"peerage domain key 1";
/// Begins the info under which the key of a private body is derived.
pub const LABEL_PRIVATE: &[u8] = b"peerage private body 1";
const LABEL_LOCATION: &[u8] = b"peerage location 1";
const LABEL_SERVER_RANK: &[u8] = b"peerage server rank 1";
const LABEL_NAMED_LOCATION: &[u8] = b"peerage named location 1";
const LABEL_RECORD_KEY: &[u8] = b"peerage device record 1";
const LABEL_TAG: &[u8] = b"peerage look-up tag 1";
const LABEL_COOKIE: &[u8] = b"peerage cookie 1";

/// An Ed25519 signature (RFC 8032).
pub type SignatureBytes = [u8; 64];

/// The Ed25519 key pair that a node is, made once and kept in a file that only its owner can read.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Makes a new key pair.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let key = Self::from_seed(&seed);
        seed.zeroize();
        key
    }

    /// Restores a key pair from its secret seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Returns the secret seed, for the key file and for TLS only.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Returns the public key.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Returns the id of the node that this key is, in a domain.
    pub fn node_id(&self, domain: Domain) -> NodeId {
        NodeId::new(domain, &self.public())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> SignatureBytes {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey(public {})", crate::id::to_hex(&prefix::<4>(&self.public())))
    }
}

/// Verifies a signature strictly: no malleable signature and no key of small order passes (Rule 2.4).
pub fn verify(public: &[u8; 32], message: &[u8], signature: &SignatureBytes) -> bool {
    VerifyingKey::from_bytes(public)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// An X25519 key pair (RFC 7748): a sealing key of the day, an enrolment key, or a node's receiving key.
#[derive(Clone)]
pub struct AgreementKey {
    secret: StaticSecret,
    public: [u8; 32],
}

impl AgreementKey {
    /// Makes a new key pair.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let key = Self::from_secret(secret);
        secret.zeroize();
        key
    }

    /// Restores a key pair from its secret half.
    pub fn from_secret(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// Returns the secret half, for the key file and for key agreement only.
    pub fn secret(&self) -> &[u8; 32] {
        self.secret.as_bytes()
    }

    /// Returns the public half.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgreementKey(public {})", crate::id::to_hex(&prefix::<4>(&self.public)))
    }
}

/// 32 secret bytes: a message key, a domain's epoch key or its location key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey(pub [u8; 32]);

impl SecretKey {
    /// Draws a new key.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut key = Self([0; 32]);
        rng.fill_bytes(&mut key.0);
        key
    }

    fn hmac(&self, parts: &[&[u8]]) -> [u8; 32] {
        // HMAC pads a key to the block of its hash with zeros (RFC 2104); doing it here leaves nothing to fail.
        let mut block = [0; 64];
        for (to, from) in block.iter_mut().zip(self.0) {
            *to = from;
        }
        let mut mac = Hmac::<Sha256>::new(&block.into());
        block.zeroize();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    pub(crate) fn derive(&self, salt: Option<&[u8]>, info: &[&[u8]]) -> Self {
        let mut out = Self([0; 32]);
        // HKDF-SHA-256 can give 8,160 bytes; 32 never fail.
        let done = Hkdf::<Sha256>::new(salt, &self.0).expand_multi_info(info, &mut out.0);
        debug_assert!(done.is_ok(), "32 bytes are within the bound of HKDF");
        out
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// What the members of a domain share and a stranger's super-node does not know (Rule 2.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainKeys {
    /// The number of the newest epoch.
    pub epoch: u32,
    /// Seals private bodies; new after each revocation and every 30 days.
    pub epoch_key: SecretKey,
    /// The key of the epoch before, for reading only.
    pub previous: Option<SecretKey>,
    /// Keys the hashes of locations and devices; never changes and seals nothing.
    pub location_key: SecretKey,
}

impl DomainKeys {
    /// Returns the key of an epoch, if it is the newest or the one before.
    pub fn of_epoch(&self, epoch: u32) -> Option<&SecretKey> {
        if epoch == self.epoch {
            return Some(&self.epoch_key);
        }
        self.previous.as_ref().filter(|_| epoch.checked_add(1) == Some(self.epoch))
    }

    /// Returns the id of a location (Rule 1.6): gateway address, prefix and its length.
    pub fn location(&self, gateway: Mac, network: &[u8], prefix_length: u8) -> LocationId {
        let length = [prefix_length];
        LocationId(self.location_key.hmac(&[LABEL_LOCATION, &gateway.0, network, &length]))
    }

    /// Returns the id of a location that an administrator has named, where no gateway tells one (Rule 1.6).
    pub fn named_location(&self, name: &str) -> LocationId {
        LocationId(self.location_key.hmac(&[LABEL_NAMED_LOCATION, name.as_bytes()]))
    }

    /// Returns the key of a device's record (Rule 1.5).
    pub fn device_record_key(&self, device: &DeviceId) -> RecordKey {
        RecordKey(self.location_key.hmac(&[LABEL_RECORD_KEY, &device.0]))
    }

    /// Returns by what members of the domain order servers that are about equally near, the least first, so that they choose
    /// the same (Rule 6.10). A stranger cannot tell it, and so cannot draw identities until one is chosen.
    pub fn server_rank(&self, server: &NodeId) -> [u8; 32] {
        self.location_key.hmac(&[LABEL_SERVER_RANK, &server.to_bytes()])
    }

    /// Returns the tag of a location on a day, in the newest epoch (Rule 1.7).
    pub fn tag(&self, location: &LocationId, day: u64) -> LookupTag {
        tag(&self.epoch_key, location, day)
    }

    /// Returns the tag of a location on a day in the epoch before, if its key is known.
    pub fn previous_tag(&self, location: &LocationId, day: u64) -> Option<LookupTag> {
        self.previous.as_ref().map(|key| tag(key, location, day))
    }
}

fn tag(epoch_key: &SecretKey, location: &LocationId, day: u64) -> LookupTag {
    let key = epoch_key.derive(None, &[b"tag"]);
    LookupTag(prefix(&key.hmac(&[LABEL_TAG, &day.to_be_bytes(), &location.0])))
}

/// Derives the key of one private body (Rule 2.11).
pub fn private_body_key(epoch_key: &SecretKey, salt: &[u8; 16], info: &[&[u8]]) -> SecretKey {
    epoch_key.derive(Some(salt), info)
}

/// Makes the cookie that a loaded receiver wants to see before it computes anything (Rule 3.10).
///
/// `address` is the sender's IP address, 16 bytes with IPv4 mapped into IPv6.
pub fn cookie(
    key: &SecretKey,
    minute: u64,
    address: &[u8; 16],
    port: u16,
    sender: &NodeId,
    enc: &[u8; 32],
) -> [u8; 16] {
    let parts: [&[u8]; 6] =
        [LABEL_COOKIE, &minute.to_be_bytes(), address, &port.to_be_bytes(), &sender.to_bytes(), enc];
    prefix(&key.hmac(&parts))
}

/// Returns the id of the network that a root key founded (Rule 1.1).
pub fn network_id(root: &[u8; 32]) -> NetworkId {
    NetworkId(sha256(&[root]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> DomainKeys {
        DomainKeys {
            epoch: 2,
            epoch_key: SecretKey([2; 32]),
            previous: Some(SecretKey([1; 32])),
            location_key: SecretKey([9; 32]),
        }
    }

    /// Rule 2.4: a signature whose scalar is not reduced verifies in lax implementations; not here.
    #[test]
    fn malleable_signatures_and_small_order_keys_are_refused() {
        let key = IdentityKey::from_seed(&[1; 32]);
        let signature = key.sign(b"m");
        assert!(verify(&key.public(), b"m", &signature));
        let order = curve_order();
        let mut malleable = signature;
        let mut carry = 0_u16;
        for (byte, add) in malleable[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert!(!verify(&key.public(), b"m", &malleable));
        // The neutral element as key and as R verifies everything where order is not checked.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(!verify(&neutral, b"anything", &forged));
    }

    /// The order of the base point, little end first (RFC 8032, section 5.1).
    fn curve_order() -> [u8; 32] {
        let big =
            crate::id::from_hex::<32>("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed");
        let mut order = big.unwrap();
        order.reverse();
        order
    }

    /// Rule 1.7: a tag changes with the day and the epoch, so that a super-node cannot follow a place for long.
    #[test]
    fn tags_change_with_day_and_epoch() {
        let keys = keys();
        let location = keys.location(Mac([1; 6]), &[192, 168, 1, 0], 24);
        let mut next = keys.clone();
        next.previous = Some(keys.epoch_key.clone());
        next.epoch_key = SecretKey([3; 32]);
        assert_ne!(keys.tag(&location, 1), keys.tag(&location, 2));
        assert_ne!(keys.tag(&location, 1), next.tag(&location, 1));
        assert_eq!(next.previous_tag(&location, 1), Some(keys.tag(&location, 1)));
    }

    /// Rule 1.6: the same prefix behind another gateway, or in another domain, is another place.
    #[test]
    fn a_location_depends_on_gateway_prefix_and_domain() {
        let keys = keys();
        let here = keys.location(Mac([1; 6]), &[192, 168, 1, 0], 24);
        assert_ne!(here, keys.location(Mac([2; 6]), &[192, 168, 1, 0], 24));
        assert_ne!(here, keys.location(Mac([1; 6]), &[192, 168, 1, 0], 25));
        let other = DomainKeys { location_key: SecretKey([8; 32]), ..keys };
        assert_ne!(here, other.location(Mac([1; 6]), &[192, 168, 1, 0], 24));
    }

    #[test]
    fn only_the_newest_epoch_and_the_one_before_have_keys() {
        let keys = keys();
        assert_eq!(keys.of_epoch(2), Some(&SecretKey([2; 32])));
        assert_eq!(keys.of_epoch(1), Some(&SecretKey([1; 32])));
        assert_eq!(keys.of_epoch(0), None);
        assert_eq!(keys.of_epoch(3), None);
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", SecretKey([7; 32])), "SecretKey(…)");
        let key = IdentityKey::from_seed(&[7; 32]);
        assert!(!format!("{key:?}").contains("07070707"));
    }
}

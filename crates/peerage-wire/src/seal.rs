//! Sealing contexts: one key agreement, then AES-256-GCM for each message (Rules 3.4 to 3.6).
//!
//! Every long-form request carries what its receiver needs to rebuild the keys, so both ends may forget a
//! context at any time. Nothing here remembers which nonces were seen; that is the protocol's work.

use rand_core::CryptoRng;

use crate::crypto::{Crypto, CryptoError, ENC_SIZE, TAG_SIZE};
use crate::id::{ContextId, KeyHint, NetworkId, NodeId, Nonce};
use crate::intro::Introduction;
use crate::keys::{AgreementKey, LABEL_CONTEXT};
use crate::limits::{CONTEXT_LIFETIME, MAX_CONTEXT_MESSAGES, MAX_DATAGRAM};
use crate::packet::{COOKIE_SIZE, Class, LongHeader, MIN_LONG, ReplyHeader, ShortHeader};
use crate::time::UnixTime;

pub use crate::crypto::ContextKeys;

/// Who speaks to whom; part of the key agreement, so that a context cannot be turned against somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The network.
    pub network: NetworkId,
    /// Who opened the context.
    pub sender: NodeId,
    /// Whom it is for.
    pub receiver: NodeId,
}

impl Ends {
    fn info(&self, born: u32) -> Vec<u8> {
        let (sender, receiver) = (self.sender.to_bytes(), self.receiver.to_bytes());
        [LABEL_CONTEXT, &self.network.0, &sender, &receiver, &born.to_be_bytes()].concat()
    }
}

/// A context as its opener holds it. Kept in memory only, never copied to disk.
#[derive(Clone, Debug)]
pub struct SendContext {
    ends: Ends,
    enc: [u8; ENC_SIZE],
    /// The hash of `enc`, which every message names.
    id: ContextId,
    born: u32,
    keys: ContextKeys,
    receiver_key: KeyHint,
    sender_key: KeyHint,
    counter: u32,
}

/// A request that was sealed, with what is needed to recognise its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The bytes to send.
    pub datagram: Vec<u8>,
    /// By which the answer names the request.
    pub nonce: Nonce,
}

impl SendContext {
    /// Agrees on keys with a receiver.
    ///
    /// # Errors
    /// If the receiver's key is not usable.
    pub fn open(
        ends: Ends,
        own_key: &AgreementKey,
        receiver_key: &[u8; 32],
        time: UnixTime,
        crypto: &dyn Crypto,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, CryptoError> {
        let born = u32::try_from(time.as_secs()).map_err(|_| CryptoError)?;
        let (enc, keys) = crypto.open_context(own_key, receiver_key, &ends.info(born), rng)?;
        let receiver_key = KeyHint::of(receiver_key);
        let sender_key = KeyHint::of(own_key.public());
        let id = ContextId::of(&enc);
        Ok(Self { ends, enc, id, born, keys, receiver_key, sender_key, counter: 0 })
    }

    /// Returns whether the context may seal no more at this time: too old, or its counter used up.
    pub fn is_spent(&self, time: UnixTime) -> bool {
        let born = UnixTime::from_secs(u64::from(self.born));
        let is_before_birth = time.as_secs() < u64::from(self.born);
        self.counter >= MAX_CONTEXT_MESSAGES || time.since(born) >= CONTEXT_LIFETIME || is_before_birth
    }

    /// Returns the encapsulated key, which a cookie is bound to.
    pub const fn enc(&self) -> &[u8; ENC_SIZE] {
        &self.enc
    }

    /// Returns which of the receiver's sealing keys the context was agreed with.
    pub const fn receiver_key(&self) -> KeyHint {
        self.receiver_key
    }

    /// Composes the next nonce (Rule 3.5). A counter that is used up must not begin again: the time alone
    /// could repeat.
    fn next_nonce(&mut self, time: UnixTime, rng: &mut dyn CryptoRng) -> Result<Nonce, CryptoError> {
        if self.counter >= MAX_CONTEXT_MESSAGES {
            return Err(CryptoError);
        }
        let nonce = Nonce::for_request(time, self.counter, rng.next_u32());
        self.counter = self.counter.saturating_add(1);
        Ok(nonce)
    }

    /// Seals a request in the long form, padded to [`MIN_LONG`] (Rule 3.2).
    ///
    /// # Errors
    /// If the datagram would be too long, or the context's counter is used up.
    pub fn seal_long(
        &mut self,
        class: Class,
        plaintext: &[u8],
        introduction: Option<Introduction>,
        cookie: Option<[u8; COOKIE_SIZE]>,
        time: UnixTime,
        (crypto, rng): (&dyn Crypto, &mut dyn CryptoRng),
    ) -> Result<Sealed, CryptoError> {
        let nonce = self.next_nonce(time, rng)?;
        let header = LongHeader {
            class,
            receiver_key: self.receiver_key,
            sender_key: self.sender_key,
            receiver: self.ends.receiver,
            sender: self.ends.sender,
            born: self.born,
            nonce,
            enc: self.enc,
            cookie,
            introduction,
        };
        let header = header.to_bytes();
        let mut padded = plaintext.to_vec();
        padded.resize(padded.len().max(MIN_LONG.saturating_sub(header.len() + TAG_SIZE)), 0);
        self.seal(&header, nonce, &padded, crypto)
    }

    /// Seals a request in the short form, for a receiver that has the context.
    ///
    /// # Errors
    /// If the datagram would be too long, or the context's counter is used up.
    pub fn seal_short(
        &mut self,
        class: Class,
        plaintext: &[u8],
        time: UnixTime,
        (crypto, rng): (&dyn Crypto, &mut dyn CryptoRng),
    ) -> Result<Sealed, CryptoError> {
        let nonce = self.next_nonce(time, rng)?;
        let header = ShortHeader { class, context: self.id, nonce };
        self.seal(&header.to_bytes(), nonce, plaintext, crypto)
    }

    fn seal(
        &self,
        header: &[u8],
        nonce: Nonce,
        plaintext: &[u8],
        crypto: &dyn Crypto,
    ) -> Result<Sealed, CryptoError> {
        let datagram = seal_after(header, header, &nonce, plaintext, &self.keys.request, crypto)?;
        Ok(Sealed { datagram, nonce })
    }

    /// Opens the answer to a request of this context.
    ///
    /// # Errors
    /// If it was not sealed by the receiver as an answer to just this request.
    pub fn open_reply(
        &self,
        header: &ReplyHeader,
        aad: &[u8],
        sealed: &[u8],
        crypto: &dyn Crypto,
    ) -> Result<Vec<u8>, CryptoError> {
        let aad = reply_aad(aad, &self.enc, &header.request);
        open_copy(&self.keys.reply, &header.nonce, &aad, sealed, crypto)
    }
}

/// A context as the one who accepted it holds it.
#[derive(Clone, Debug)]
pub struct ReceiveContext {
    ends: Ends,
    enc: [u8; ENC_SIZE],
    /// The hash of `enc`, which every message names.
    id: ContextId,
    born: u32,
    keys: ContextKeys,
}

impl ReceiveContext {
    /// Rebuilds the keys of a context from a long-form header. Nothing is proven before
    /// [`open_request`](Self::open_request) succeeds.
    ///
    /// # Errors
    /// If the keys in it are not usable.
    pub fn accept(
        network: NetworkId,
        header: &LongHeader,
        own_key: &AgreementKey,
        sender_key: &[u8; 32],
        crypto: &dyn Crypto,
    ) -> Result<Self, CryptoError> {
        let ends = Ends { network, sender: header.sender, receiver: header.receiver };
        let keys = crypto.accept_context(own_key, sender_key, &header.enc, &ends.info(header.born))?;
        Ok(Self { ends, enc: header.enc, id: ContextId::of(&header.enc), born: header.born, keys })
    }

    /// Returns who opened the context.
    pub const fn sender(&self) -> NodeId {
        self.ends.sender
    }

    /// Returns the id by which the short form names the context.
    pub const fn id(&self) -> ContextId {
        self.id
    }

    /// Returns whether a message stamped `time` may still use the context (Rule 3.5).
    pub fn covers(&self, time: UnixTime) -> bool {
        let born = UnixTime::from_secs(u64::from(self.born));
        let window = crate::limits::TIME_WINDOW;
        born.before(window) <= time && time <= born.after(CONTEXT_LIFETIME).after(window)
    }

    /// Opens a request.
    ///
    /// # Errors
    /// If it was not sealed in this context, or was altered.
    pub fn open_request(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8],
        crypto: &dyn Crypto,
    ) -> Result<Vec<u8>, CryptoError> {
        open_copy(&self.keys.request, nonce, aad, sealed, crypto)
    }

    /// Seals the answer to a request.
    ///
    /// # Errors
    /// If the datagram would be too long.
    pub fn seal_reply(
        &self,
        request: Nonce,
        plaintext: &[u8],
        (crypto, rng): (&dyn Crypto, &mut dyn CryptoRng),
    ) -> Result<Vec<u8>, CryptoError> {
        let mut nonce = Nonce([0; Nonce::SIZE]);
        rng.fill_bytes(&mut nonce.0);
        let header = ReplyHeader { request, nonce }.to_bytes();
        let aad = reply_aad(&header, &self.enc, &request);
        seal_after(&header, &aad, &nonce, plaintext, &self.keys.reply, crypto)
    }
}

/// Additional data of a reply: its header, then the context and the request that it belongs to (Rule 3.6).
fn reply_aad(header: &[u8], enc: &[u8; ENC_SIZE], request: &Nonce) -> Vec<u8> {
    [header, enc, &request.0].concat()
}

/// Makes a datagram of a header and what is sealed behind it, in memory of just that size.
fn seal_after(
    header: &[u8],
    aad: &[u8],
    nonce: &Nonce,
    plaintext: &[u8],
    key: &crate::keys::SecretKey,
    crypto: &dyn Crypto,
) -> Result<Vec<u8>, CryptoError> {
    let length = header.len() + plaintext.len() + TAG_SIZE;
    if length > MAX_DATAGRAM {
        return Err(CryptoError);
    }
    let mut datagram = Vec::with_capacity(length);
    datagram.extend_from_slice(header);
    datagram.extend_from_slice(plaintext);
    let (_, text) = datagram.split_at_mut_checked(header.len()).ok_or(CryptoError)?;
    let tag = crypto.seal(key, &nonce.0, aad, text)?;
    datagram.extend_from_slice(&tag);
    Ok(datagram)
}

fn open_copy(
    key: &crate::keys::SecretKey,
    nonce: &Nonce,
    aad: &[u8],
    sealed: &[u8],
    crypto: &dyn Crypto,
) -> Result<Vec<u8>, CryptoError> {
    let mut buffer = sealed.to_vec();
    let length = crypto.open(key, &nonce.0, aad, &mut buffer)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::crypto::Real;
    use crate::id::Domain;
    use crate::intro::KeyStatement;
    use crate::keys::IdentityKey;
    use crate::packet::{Packet, SHORT_OVERHEAD};
    use crate::testing::TestRng;

    const NETWORK: NetworkId = NetworkId([0x11; 32]);
    const NOW: UnixTime = UnixTime::from_millis(1_800_000_000_123);
    const ENDS: Ends = Ends {
        network: NETWORK,
        sender: NodeId { domain: Domain(7), hash: [1; 32] },
        receiver: NodeId { domain: Domain(7), hash: [2; 32] },
    };

    fn sender_key() -> AgreementKey {
        AgreementKey::from_secret([3; 32])
    }

    fn receiver_key() -> AgreementKey {
        AgreementKey::from_secret([4; 32])
    }

    fn context() -> SendContext {
        let (own, receiver) = (sender_key(), receiver_key());
        SendContext::open(ENDS, &own, receiver.public(), NOW, &Real, &mut TestRng(1)).unwrap()
    }

    fn introduction() -> Introduction {
        let statement = KeyStatement::sign(
            &IdentityKey::from_seed(&[1; 32]),
            &NETWORK,
            ENDS.sender,
            *sender_key().public(),
            NOW..NOW.after(Duration::from_secs(60)),
            &Real,
        );
        Introduction { record: vec![9; 64], statement }
    }

    fn sealed_long(context: &mut SendContext, plaintext: &[u8]) -> Sealed {
        context.seal_long(Class::Read, plaintext, None, None, NOW, (&Real, &mut TestRng(2))).unwrap()
    }

    /// Opens a long form as a receiver does that knows the sender.
    fn open_long(datagram: &[u8]) -> Result<(ReceiveContext, Vec<u8>), CryptoError> {
        let Ok(Packet::Long { header, aad, sealed }) = Packet::parse(datagram) else {
            return Err(CryptoError);
        };
        let sender_key = sender_key();
        let accepted = ReceiveContext::accept(NETWORK, &header, &receiver_key(), sender_key.public(), &Real)?;
        let plaintext = accepted.open_request(&header.nonce, aad, sealed, &Real)?;
        Ok((accepted, plaintext))
    }

    fn open_short(context: &ReceiveContext, datagram: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let Ok(Packet::Short { header, aad, sealed }) = Packet::parse(datagram) else {
            return Err(CryptoError);
        };
        if header.context != context.id() {
            return Err(CryptoError);
        }
        context.open_request(&header.nonce, aad, sealed, &Real)
    }

    fn open_reply(context: &SendContext, datagram: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let Ok(Packet::Reply { header, aad, sealed }) = Packet::parse(datagram) else {
            return Err(CryptoError);
        };
        context.open_reply(&header, aad, sealed, &Real)
    }

    fn flip_each_bit(datagram: &[u8], mut still_opens: impl FnMut(&[u8]) -> bool) {
        let mut altered = datagram.to_vec();
        for bit in 0..datagram.len() * 8 {
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(!still_opens(&altered), "bit {bit}");
            altered[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Rules 3.2, 3.3, 3.4 and 3.6: a request in the long form, one in the short form, and their answers.
    #[test]
    fn requests_and_replies_cross_in_both_forms() {
        let mut context = context();
        let long = sealed_long(&mut context, b"a question that is long");
        let (accepted, plaintext) = open_long(&long.datagram).unwrap();
        assert!(plaintext.starts_with(b"a question that is long"));
        assert_eq!((accepted.sender(), accepted.id()), (ENDS.sender, ContextId::of(context.enc())));
        let short = context.seal_short(Class::Other, b"another", NOW, (&Real, &mut TestRng(3))).unwrap();
        assert_eq!(short.datagram.len(), SHORT_OVERHEAD + 7);
        assert_eq!(open_short(&accepted, &short.datagram).unwrap(), b"another");
        for (request, answer) in [(long.nonce, &b"yes"[..]), (short.nonce, b"no")] {
            let reply = accepted.seal_reply(request, answer, (&Real, &mut TestRng(4))).unwrap();
            assert_eq!(open_reply(&context, &reply).unwrap(), answer);
        }
    }

    /// Rule 3.2: all of the header is covered by the seal, cookie and introduction included.
    #[test]
    fn a_flipped_bit_anywhere_in_a_long_form_is_refused() {
        let mut context = context();
        let seal = (&Real as &dyn Crypto, &mut TestRng(2) as &mut dyn CryptoRng);
        let sealed =
            context.seal_long(Class::Other, b"m", Some(introduction()), Some([8; 16]), NOW, seal).unwrap();
        assert!(open_long(&sealed.datagram).is_ok());
        flip_each_bit(&sealed.datagram, |altered| open_long(altered).is_ok());
    }

    /// Rule 3.3: the same for the short form, whose first byte says whether it reads.
    #[test]
    fn a_flipped_bit_anywhere_in_a_short_form_is_refused() {
        let mut context = context();
        let (accepted, _) = open_long(&sealed_long(&mut context, b"m").datagram).unwrap();
        let sealed = context.seal_short(Class::Read, b"message", NOW, (&Real, &mut TestRng(2))).unwrap();
        assert!(open_short(&accepted, &sealed.datagram).is_ok());
        flip_each_bit(&sealed.datagram, |altered| open_short(&accepted, altered).is_ok());
    }

    /// Rule 3.6: the same for replies.
    #[test]
    fn a_flipped_bit_anywhere_in_a_reply_is_refused() {
        let mut context = context();
        let sealed = sealed_long(&mut context, b"m");
        let (accepted, _) = open_long(&sealed.datagram).unwrap();
        let reply = accepted.seal_reply(sealed.nonce, b"answer", (&Real, &mut TestRng(2))).unwrap();
        assert!(open_reply(&context, &reply).is_ok());
        flip_each_bit(&reply, |altered| open_reply(&context, altered).is_ok());
    }

    /// Rule 3.6: an answer belongs to one request of one context.
    #[test]
    fn a_reply_to_another_request_or_of_another_context_is_refused() {
        let mut asker = context();
        let first = sealed_long(&mut asker, b"m");
        let second = sealed_long(&mut asker, b"m");
        let (accepted, _) = open_long(&first.datagram).unwrap();
        let reply = accepted.seal_reply(first.nonce, b"answer", (&Real, &mut TestRng(2))).unwrap();
        let mut moved = reply.clone();
        moved[1..13].copy_from_slice(&second.nonce.0);
        assert_eq!(open_reply(&asker, &moved), Err(CryptoError));
        let (own, receiver) = (sender_key(), receiver_key());
        let other = SendContext::open(ENDS, &own, receiver.public(), NOW, &Real, &mut TestRng(9)).unwrap();
        assert_eq!(open_reply(&other, &reply), Err(CryptoError));
        assert!(open_reply(&asker, &reply).is_ok());
    }

    /// Rule 3.6: a request that arrives twice is answered under two nonces.
    #[test]
    fn replies_to_one_request_never_share_a_nonce() {
        let mut context = context();
        let sealed = sealed_long(&mut context, b"m");
        let (accepted, _) = open_long(&sealed.datagram).unwrap();
        let mut rng = TestRng(5);
        let mut seal = || accepted.seal_reply(sealed.nonce, b"answer", (&Real, &mut rng)).unwrap();
        assert_ne!(seal()[13..25], seal()[13..25]);
    }

    /// Rule 3.4: who speaks to whom, where and since when is part of the agreement, so a datagram cannot be turned.
    #[test]
    fn a_context_belongs_to_its_network_ends_and_birth() {
        let sealed = sealed_long(&mut context(), b"m").datagram;
        let Ok(Packet::Long { header, aad, sealed }) = Packet::parse(&sealed) else {
            panic!("is of the long form")
        };
        let opens = |network: NetworkId, change: &dyn Fn(&mut LongHeader)| {
            let mut header = header.clone();
            change(&mut header);
            let sender_key = sender_key();
            ReceiveContext::accept(network, &header, &receiver_key(), sender_key.public(), &Real)
                .and_then(|accepted| accepted.open_request(&header.nonce, aad, sealed, &Real))
                .is_ok()
        };
        assert!(opens(NETWORK, &|_| {}));
        assert!(!opens(NetworkId([0x12; 32]), &|_| {}));
        assert!(!opens(NETWORK, &|header| header.sender.domain = Domain(8)));
        assert!(!opens(NETWORK, &|header| header.receiver.domain = Domain(8)));
        assert!(!opens(NETWORK, &|header| header.born += 1));
    }

    #[test]
    fn somebody_elses_keys_open_nothing() {
        let sealed = sealed_long(&mut context(), b"m").datagram;
        let Ok(Packet::Long { header, aad, sealed }) = Packet::parse(&sealed) else {
            panic!("is of the long form")
        };
        let stranger = AgreementKey::from_secret([5; 32]);
        for (own, peer) in [(stranger.clone(), sender_key()), (receiver_key(), stranger)] {
            let accepted = ReceiveContext::accept(NETWORK, &header, &own, peer.public(), &Real).unwrap();
            assert_eq!(accepted.open_request(&header.nonce, aad, sealed, &Real), Err(CryptoError));
        }
    }

    /// Rule 3.2: the smallest long form has room for the largest hint, and is padded with zeros.
    #[test]
    fn a_long_form_is_never_shorter_than_a_hint() {
        for length in 0..20 {
            let plaintext = vec![7; length];
            let sealed = sealed_long(&mut context(), &plaintext).datagram;
            assert!(sealed.len() >= MIN_LONG);
            let opened = open_long(&sealed).unwrap().1;
            assert_eq!(opened[..length], plaintext);
            assert!(opened[length..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn nothing_longer_than_a_datagram_is_sealed() {
        let mut context = context();
        let longest = vec![0; MAX_DATAGRAM - SHORT_OVERHEAD];
        let too_long = vec![0; MAX_DATAGRAM - SHORT_OVERHEAD + 1];
        let mut seal = |plaintext: &[u8]| {
            context
                .seal_short(Class::Read, plaintext, NOW, (&Real, &mut TestRng(1)))
                .map(|s| s.datagram.len())
        };
        assert_eq!(seal(&longest), Ok(MAX_DATAGRAM));
        assert_eq!(seal(&too_long), Err(CryptoError));
    }

    /// Rule 3.5: nonces of one context differ though the time stands still, and end with the counter.
    #[test]
    fn a_context_ends_before_its_counter_repeats() {
        let mut context = context();
        let first = sealed_long(&mut context, b"m").nonce;
        let second = sealed_long(&mut context, b"m").nonce;
        assert_eq!(first.0[6..9], [0, 0, 0]);
        assert_eq!(second.0[6..9], [0, 0, 1]);
        context.counter = MAX_CONTEXT_MESSAGES - 1;
        assert!(!context.is_spent(NOW));
        assert_eq!(sealed_long(&mut context, b"m").nonce.0[6..9], [0xff, 0xff, 0xff]);
        assert!(context.is_spent(NOW));
        assert!(context.seal_short(Class::Read, b"m", NOW, (&Real, &mut TestRng(1))).is_err());
    }

    /// Rule 3.5: an hour, not longer, and not before it began.
    #[test]
    fn a_context_lives_for_an_hour() {
        let context = context();
        let second = Duration::from_secs(1);
        let born = UnixTime::from_secs(NOW.as_secs());
        assert!(!context.is_spent(born.after(CONTEXT_LIFETIME).before(Duration::from_millis(1))));
        assert!(context.is_spent(born.after(CONTEXT_LIFETIME)));
        assert!(context.is_spent(born.before(second)));
        let mut context = context;
        let (accepted, _) = open_long(&sealed_long(&mut context, b"m").datagram).unwrap();
        let window = crate::limits::TIME_WINDOW;
        let (first, last) = (born.before(window), born.after(CONTEXT_LIFETIME).after(window));
        assert!(accepted.covers(first) && accepted.covers(last));
        assert!(!accepted.covers(first.before(second)) && !accepted.covers(last.after(second)));
    }
}

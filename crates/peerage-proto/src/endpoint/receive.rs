//! Datagrams in: the checks of Rule 3.8 in their order.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use peerage_wire::crypto::TAG_SIZE;
use peerage_wire::id::{ContextId, NodeId, Nonce};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::cookie;
use peerage_wire::limits::TIME_WINDOW;
use peerage_wire::message::{BadMessage, Reply, Request};
use peerage_wire::packet::{
    BadPacket, COOKIE_SIZE, Class, HINT_HEADER, Hint, HintReason, LongHeader, Packet, ReplyHeader,
    ShortHeader, tag_of,
};
use peerage_wire::seal::ReceiveContext;
use peerage_wire::time::{Now, UnixTime};

use super::back::Back;
use super::{Endpoint, Incoming, Outcome, ReplyTo};
use crate::discard::Discard;
use crate::trust::{Member, Trust};

/// Where a datagram came from, how long it was, by which tag a hint would name it, and how an answer goes back.
#[derive(Clone, Copy, Debug)]
struct Origin<'a> {
    remote: SocketAddr,
    length: usize,
    tag: [u8; TAG_SIZE],
    back: &'a Back,
}

/// A request as it stands in its datagram.
struct SealedRequest<'a> {
    class: Class,
    nonce: Nonce,
    aad: &'a [u8],
    sealed: &'a [u8],
}

/// Who sent a request, as far as that is known before the seal has shown it.
#[derive(Clone, Copy, Debug)]
struct Sender {
    member: Member,
    statement: KeyStatement,
    /// The hash of an introduction that is believed once the seal has opened.
    introduction: Option<[u8; 32]>,
}

impl Endpoint {
    /// Takes a datagram. What comes of it are transmits and outcomes; whatever is wrong with it is counted.
    pub fn handle_datagram(&mut self, remote: SocketAddr, datagram: &[u8], trust: &Trust, now: Now) {
        self.observe_clock(now);
        if let Err(reason) = self.receive((remote, &Back::Straight), datagram, trust, now) {
            self.discard(reason);
        }
    }

    pub(super) fn receive(
        &mut self,
        (remote, back): (SocketAddr, &Back),
        datagram: &[u8],
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let packet = Packet::parse(datagram).map_err(|bad| match bad {
            BadPacket::TooShort => Discard::TooShort,
            BadPacket::TooLong => Discard::TooLong,
            BadPacket::UnknownForm => Discard::UnknownForm,
            BadPacket::Introduction => Discard::BadIntroduction,
        })?;
        let tag = tag_of(datagram).ok_or(Discard::TooShort)?;
        let origin = Origin { remote, length: datagram.len(), tag, back };
        match packet {
            Packet::Long { header, aad, sealed } => {
                let request = SealedRequest { class: header.class, nonce: header.nonce, aad, sealed };
                let (context, sender) = self.accept(&header, &request, origin, trust, now)?;
                self.open(&context, &sender, &request, origin, trust, now)
            }
            Packet::Short { header, aad, sealed } => self.short(header, (aad, sealed), origin, trust, now),
            Packet::Reply { header, aad, sealed } => {
                self.answered((remote, back), (header, aad, sealed), trust, now)
            }
            Packet::Hint(hint) => self.hinted(hint, (remote, back), trust, now),
        }
    }

    /// Finds or agrees on the context of a long-form request.
    fn accept(
        &mut self,
        header: &LongHeader,
        request: &SealedRequest<'_>,
        origin: Origin<'_>,
        trust: &Trust,
        now: Now,
    ) -> Result<(Arc<ReceiveContext>, Sender), Discard> {
        if header.receiver != self.config.id {
            return Err(Discard::Misaddressed);
        }
        let time = self.clock.time(now);
        self.check_start(request.nonce.time(), time, now)?;
        if let Some(context) = self.contexts.get(ContextId::of(&header.enc))
            && let Some(sender) = self.known_sender(&context.sender())
        {
            return Ok((context, sender));
        }
        if self.keys.named(header.receiver_key, time).is_none() {
            let statement = self.keys.statement().to_bytes();
            return Err(self.hint(HintReason::StaleKey(statement), origin, Discard::UnknownKey, now));
        }
        self.admit_work(header, origin, now)?;
        let sender = self.introduced(header, origin, trust, now)?;
        if sender.statement.hint() != header.sender_key {
            return Err(Discard::BadStatement);
        }
        let sender_key = sender.statement.key;
        let own_key = self.keys.named(header.receiver_key, time).ok_or(Discard::UnknownKey)?;
        let network = self.config.network;
        let context = ReceiveContext::accept(network, header, own_key, &sender_key, &*self.config.crypto)
            .map_err(|_| Discard::BadSeal)?;
        Ok((Arc::new(context), sender))
    }

    fn known_sender(&self, node: &NodeId) -> Option<Sender> {
        let peer = self.peers.get(node)?;
        Some(Sender { member: peer.member, statement: peer.statement, introduction: None })
    }

    /// Drops what was stamped before this process started but within the window: this process cannot know whether it
    /// was executed already (Rule 3.12). What lies outside the window is told the time instead.
    fn check_start(&self, stamped: UnixTime, time: UnixTime, now: Now) -> Result<(), Discard> {
        let started = time.before(now.mono - self.started.mono);
        let fresh = stamped.distance(time) <= TIME_WINDOW;
        if fresh && stamped < started { Err(Discard::BeforeStart) } else { Ok(()) }
    }

    /// Decides whether a key agreement may be spent on a stranger, or a cookie is wanted first (Rule 3.10).
    fn admit_work(&mut self, header: &LongHeader, origin: Origin<'_>, now: Now) -> Result<(), Discard> {
        if !self.agreements.take(origin.remote, now.mono) {
            return Err(Discard::RateLimited);
        }
        let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        if self.busy.take(anywhere, now.mono) {
            return Ok(());
        }
        let minute = self.clock.time(now).as_secs() / 60;
        let make = |minute| self.cookie_for(minute, header, origin.remote);
        let (current, previous) = (make(minute), make(minute.saturating_sub(1)));
        match header.cookie {
            Some(shown) if shown == current || shown == previous => Ok(()),
            Some(_) | None => Err(self.hint(HintReason::Cookie(current), origin, Discard::BadCookie, now)),
        }
    }

    fn cookie_for(&self, minute: u64, header: &LongHeader, remote: SocketAddr) -> [u8; COOKIE_SIZE] {
        let address = match remote.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        cookie(&self.cookie_key, minute, &address, remote.port(), &header.sender, &header.enc)
    }

    /// Finds out who sent a long-form request: by an introduction seen before, or by verifying this one.
    fn introduced(
        &mut self,
        header: &LongHeader,
        origin: Origin<'_>,
        trust: &Trust,
        now: Now,
    ) -> Result<Sender, Discard> {
        let Some(introduction) = &header.introduction else {
            let known = self.known_sender(&header.sender);
            if let Some(sender) = known.filter(|sender| sender.statement.hint() == header.sender_key) {
                return Ok(sender);
            }
            let reason = HintReason::NeedIntroduction;
            return Err(if self.config.asks_introduction {
                self.hint(reason, origin, Discard::UnknownSender, now)
            } else {
                Discard::UnknownSender
            });
        };
        let (fingerprint, statement) = (introduction.fingerprint(), introduction.statement);
        if let Some(peer) = self.peers.get(&header.sender)
            && peer.introduction == Some(fingerprint)
        {
            return Ok(Sender { member: peer.member, statement, introduction: Some(fingerprint) });
        }
        let time = self.judging_time(now);
        let member = trust.verify_introduction(introduction, time, &*self.config.crypto)?;
        if member.id != header.sender {
            return Err(Discard::BadIntroduction);
        }
        if trust.is_unheard(&member.id, self.config.asks_introduction) {
            return Err(Discard::Revoked);
        }
        Ok(Sender { member, statement, introduction: Some(fingerprint) })
    }

    fn short(
        &mut self,
        header: ShortHeader,
        (aad, sealed): (&[u8], &[u8]),
        origin: Origin<'_>,
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let known = self.contexts.get(header.context);
        let known = known.and_then(|c| self.known_sender(&c.sender()).map(|sender| (c, sender)));
        let Some((context, sender)) = known else {
            return Err(self.hint(HintReason::NeedLong, origin, Discard::UnknownContext, now));
        };
        let request = SealedRequest { class: header.class, nonce: header.nonce, aad, sealed };
        self.open(&context, &sender, &request, origin, trust, now)
    }

    /// Opens a request and hands it out; only now are the context and the introduction remembered, so that nobody can
    /// displace what is current by repeating what once was (Rules 3.8 and 3.12).
    fn open(
        &mut self,
        context: &Arc<ReceiveContext>,
        sender: &Sender,
        request: &SealedRequest<'_>,
        origin: Origin<'_>,
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let crypto = &*self.config.crypto;
        let plaintext = context
            .open_request(&request.nonce, request.aad, request.sealed, crypto)
            .map_err(|_| Discard::BadSeal)?;
        let time = self.clock.time(now);
        let stamped = request.nonce.time();
        let reply_to = ReplyTo {
            remote: origin.remote,
            context: Arc::clone(context),
            nonce: request.nonce,
            room: origin.length,
            back: origin.back.clone(),
        };
        if stamped.distance(time) > TIME_WINDOW {
            // Only who knows the time may tell it; two wrong clocks would only confuse each other.
            if self.clock.is_learned() {
                self.reply(&reply_to, &Reply::StaleTime(time));
            }
            return Err(Discard::StaleTime);
        }
        if !context.covers(stamped) {
            return Err(Discard::SpentContext);
        }
        self.check_sender(sender, trust, now)?;
        if !self.contexts.first_time(context, &request.nonce) {
            return Err(Discard::Replayed);
        }
        self.carried.heard(sender.member.id, origin.back);
        let mut from = sender.member;
        if let Some(fingerprint) = sender.introduction {
            self.peers.introduced(sender.member, sender.statement, fingerprint, now.mono);
            from = self.peers.get(&from.id).map_or(from, |peer| peer.member);
        }
        let decoded = Request::decode(&plaintext).map_err(bad_message)?;
        if decoded.class() != request.class {
            return Err(Discard::WrongClass);
        }
        if !origin.back.carries(&decoded) {
            return Err(Discard::Forbidden);
        }
        // Whoever was revoked with its whole domain may find that out, and nothing else (Rule 6.60).
        let finds_out = matches!(decoded, Request::GetHead { domain: None } | Request::GetRevocations { .. });
        if trust.is_revoked(&sender.member.id) && !finds_out {
            return Err(Discard::Revoked);
        }
        let incoming = Incoming { from, remote: origin.remote, request: decoded, reply_to };
        self.outcomes.push_back(Outcome::Request(Box::new(incoming)));
        Ok(())
    }

    /// Checks again what may have changed since the context was made: expiry and revocation.
    fn check_sender(&self, sender: &Sender, trust: &Trust, now: Now) -> Result<(), Discard> {
        let member = &sender.member;
        let is_unheard = trust.is_unheard(&member.id, self.config.asks_introduction);
        if is_unheard || (member.is_operator && !trust.is_operator(&member.id)) {
            return Err(Discard::Revoked);
        }
        if self.judging_time(now).is_some_and(|time| member.expires <= time) {
            return Err(Discard::Expired);
        }
        let valid = self.judging_time(now).is_none_or(|time| sender.statement.is_valid_at(time));
        if valid { Ok(()) } else { Err(Discard::BadStatement) }
    }

    fn answered(
        &mut self,
        (remote, back): (SocketAddr, &Back),
        (header, aad, sealed): (ReplyHeader, &[u8], &[u8]),
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let expected = self.outgoing.expected(&header.request, now.mono).ok_or(Discard::Unsolicited)?;
        let crypto = &*self.config.crypto;
        let plaintext =
            expected.context.open_reply(&header, aad, sealed, crypto).map_err(|_| Discard::BadSeal)?;
        let reply = Reply::decode(&plaintext).map_err(bad_message)?;
        if !reply.answers(expected.number) {
            return Err(Discard::Malformed);
        }
        if let Reply::StaleTime(theirs) = reply {
            return self.told_the_time(&expected.to, expected.request, theirs, trust, now);
        }
        // An answer confirms the time that its request was stamped with, not one that was set since (Rule 6.1).
        let is_recent = expected.rtt <= now.mono - self.stepped_at;
        if is_recent && trust.is_operator(&expected.to) {
            self.clock.stands(expected.to, now.mono);
        }
        if is_recent && !self.clock.is_learned() && self.confirms_time(&expected.to, trust) {
            self.clock.confirm();
            self.outcomes.push_back(Outcome::ClockLearned(self.clock.offset_millis()));
        }
        if let Some(opened) = self.peer_mut(&expected.to).and_then(|peer| peer.opened.as_mut())
            && opened.context.enc() == expected.context.enc()
        {
            opened.confirmed = true;
        }
        if let Reply::ForwardedTunnelOpened(inner) = &reply
            && self.outgoing.is_through(expected.request)
        {
            self.unpark(expected.to, now);
            let stream = if let Back::Stream(stream) = back { Some(*stream) } else { None };
            self.outcomes.push_back(Outcome::Forwarded { by: expected.to, stream });
            return self.answered_through(expected.request, (remote, back), inner.as_deref(), trust, now);
        }
        let is_straight = matches!(back, Back::Straight) && self.outgoing.is_straight(expected.request);
        let straight = is_straight.then_some(remote);
        let stream = if let Back::Stream(stream) = back { Some(*stream) } else { None };
        if self.outgoing.finish(expected.request) {
            let (request, from, rtt) = (expected.request, expected.to, expected.rtt);
            self.outcomes.push_back(Outcome::Answered { request, from, reply, rtt, straight, stream });
        }
        self.unpark(expected.to, now);
        Ok(())
    }

    fn told_the_time(
        &mut self,
        by: &NodeId,
        request: super::RequestId,
        theirs: UnixTime,
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let may_be_heard = self.is_super_node(by) && !self.clock.is_learned();
        let believed = trust.is_operator(by) || (may_be_heard && self.clock.hear(by.domain, theirs, now));
        if !believed {
            if self.clock.is_learned() && !self.is_stood_by(None, trust, now) {
                self.outcomes.push_back(Outcome::ClockDoubted);
            }
            return Err(Discard::StaleTime);
        }
        if self.is_contradicted(by, theirs, trust, now) {
            return Err(Discard::OperatorsDisagree);
        }
        self.learn_clock(theirs, now);
        if trust.is_operator(by) {
            self.clock.stands(*by, now.mono);
        }
        self.resend(request, now);
        Ok(())
    }

    /// Returns whether another operator stands by a time that differs from this one. Two whose dates differ would otherwise take the clock to
    /// and fro, and what is judged by it: a super-node would drop by the later time what is valid by the earlier (Rule 6.1).
    fn is_contradicted(&self, by: &NodeId, theirs: UnixTime, trust: &Trust, now: Now) -> bool {
        // A request that was long on its way is told about the time that the clock shows anyway.
        self.is_far(theirs, now) && self.is_stood_by(Some(by), trust, now)
    }

    /// Returns whether an operator, other than the one named, stands by the own time (Rule 6.1).
    fn is_stood_by(&self, except: Option<&NodeId>, trust: &Trust, now: Now) -> bool {
        self.clock.standing(now.mono).any(|other| Some(other) != except && trust.is_operator(other))
    }

    /// Returns whether an answer of this node, together with those before it, shows that the own time is right.
    fn confirms_time(&mut self, node: &NodeId, trust: &Trust) -> bool {
        trust.is_operator(node) || (self.is_super_node(node) && self.clock.agree(node.domain))
    }

    fn is_super_node(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.member.roles.super_node)
    }

    /// Acts on a hint: the only effect is sending one request once more (Rule 3.9).
    fn hinted(
        &mut self,
        hint: Hint,
        (remote, back): (SocketAddr, &Back),
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        // Where a stream leads is nothing that the sender of a hint could choose.
        let place = (!matches!(back, Back::Stream(_))).then_some(remote);
        let about = self.outgoing.hinted(&hint.echo, place, now.mono);
        let (request, to) = about.ok_or(Discard::Unsolicited)?;
        match hint.reason {
            HintReason::NeedIntroduction | HintReason::NeedLong => {
                let peer = self.peer_mut(&to).and_then(|peer| peer.opened.as_mut());
                if let Some(opened) = peer {
                    opened.confirmed = false;
                }
            }
            HintReason::StaleKey(statement) => {
                let statement = KeyStatement::from_bytes(&statement).ok_or(Discard::BadStatement)?;
                self.learn_statement(&to, statement, trust, now)?;
            }
            HintReason::Cookie(cookie) => {
                let peer = self.peer_mut(&to).and_then(|peer| peer.opened.as_mut());
                if let Some(opened) = peer {
                    opened.confirmed = false;
                    opened.cookie = Some(cookie);
                }
            }
        }
        self.resend(request, now);
        Ok(())
    }

    fn learn_statement(
        &mut self,
        node: &NodeId,
        statement: KeyStatement,
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        let member = self.peers.get(node).map(|peer| peer.member).ok_or(Discard::Unsolicited)?;
        let crypto = &*self.config.crypto;
        let genuine = statement.node == *node
            && statement.verify(&member.identity, trust.network(), crypto)
            && self.judging_time(now).is_none_or(|time| statement.is_valid_at(time));
        if !genuine {
            return Err(Discard::BadStatement);
        }
        // The echo shows that this is an answer to what was sent just now, so it counts even if its date is earlier: the
        // node's clock may have been set back since it made the key before.
        self.peers.restate(member, statement, now.mono);
        Ok(())
    }

    /// Sends a hint, unless it would be longer than its cause or too many went to that place. Returns why the
    /// datagram itself was dropped.
    fn hint(&mut self, reason: HintReason, origin: Origin<'_>, dropped: Discard, now: Now) -> Discard {
        let hint = Hint { echo: origin.tag, reason }.to_bytes();
        debug_assert!(hint.len() >= HINT_HEADER, "a hint has a header");
        if hint.len() > origin.length {
            return dropped;
        }
        if !self.hints.take(origin.remote, now.mono) {
            return Discard::RateLimited;
        }
        self.send_back(origin.back, origin.remote, hint.into());
        dropped
    }
}

fn bad_message(bad: BadMessage) -> Discard {
    match bad {
        BadMessage::Command(_) => Discard::UnknownCommand,
        BadMessage::Malformed(_) => Discard::Malformed,
    }
}

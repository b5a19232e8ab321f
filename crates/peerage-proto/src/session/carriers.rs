//! What a session knows about each of its carriers, and which of them it uses.

use std::time::Duration;

use peerage_wire::frame::CarrierNumber;
use peerage_wire::time::Instant;

use super::{AckPlan, End, Phase, Session};

/// One carrier: a stream of some link, as this session sees it.
#[derive(Clone, Debug)]
pub(super) struct Carrier {
    pub(super) number: CarrierNumber,
    pub(super) greeting: Greeting,
    pub(super) is_suspect: bool,
    pub(super) round_trip: Duration,
    /// The range of offsets that was sent here, FIN included: from the lowest to past the highest.
    pub(super) carried: Option<(u64, u64)>,
    pub(super) has_sent_ack: bool,
    /// Up to where the peer was told here that its bytes arrived.
    pub(super) told: u64,
    /// The highest received and limit that the peer said here.
    pub(super) said: (u64, u64),
    /// This side sent LEAVE or RESET here.
    pub(super) has_sent_last: bool,
    /// The peer did.
    pub(super) has_received_last: bool,
    /// A higher carrier has taken over: LEAVE is due.
    pub(super) is_replaced: bool,
    /// It makes room for a newer one: left as soon as it takes frames again.
    pub(super) is_given_up: bool,
    /// Opener: it was attached before the peer was known to have heard of the session, so that RESUME may overtake OPEN.
    pub(super) is_early: bool,
}

/// What a carrier begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Opener: OPEN is to be sent.
    Open,
    /// Opener: OPEN was sent; DATA may follow, up to the first credit.
    AwaitOpened,
    /// Acceptor: OPENED is to be sent, once the node has agreed.
    Opened,
    /// Opener: RESUME is to be sent; with `resend`, DATA waits for the answer, which says where to go on.
    Resume { resend: bool },
    /// Opener: RESUME was sent.
    AwaitResumed { resend: bool },
    /// Acceptor: RESUMED is to be sent, once the node has agreed to the session.
    Resumed { resend: bool },
    /// Both sides know that the carrier belongs to the session.
    Done,
}

impl Carrier {
    pub(super) const fn new(number: CarrierNumber, greeting: Greeting) -> Self {
        Self {
            number,
            greeting,
            is_suspect: false,
            round_trip: Duration::ZERO,
            carried: None,
            has_sent_ack: false,
            told: 0,
            said: (0, 0),
            has_sent_last: false,
            has_received_last: false,
            is_replaced: false,
            is_given_up: false,
            is_early: false,
        }
    }

    /// Whether frames can go out here and answers come in.
    pub(super) const fn is_usable(&self) -> bool {
        !self.has_sent_last && !self.has_received_last && !self.is_replaced
    }

    pub(super) const fn is_healthy(&self) -> bool {
        self.is_usable() && !self.is_suspect
    }

    /// Whether bytes of the application may go out here.
    pub(super) const fn may_carry(&self) -> bool {
        match self.greeting {
            Greeting::Done | Greeting::AwaitOpened | Greeting::AwaitResumed { resend: false } => true,
            Greeting::Open
            | Greeting::Opened
            | Greeting::Resume { .. }
            | Greeting::AwaitResumed { resend: true }
            | Greeting::Resumed { .. } => false,
        }
    }

    /// Whether the peer may have moved here, or may never have heard of it.
    pub(super) const fn awaits_resumed(&self) -> bool {
        matches!(self.greeting, Greeting::AwaitResumed { .. }) && !self.has_received_last
    }

    pub(super) fn note_carried(&mut self, from: u64, to: u64) {
        self.carried = match self.carried {
            None => Some((from, to)),
            Some((first, end)) => Some((first.min(from), end.max(to))),
        };
    }
}

impl Session {
    /// Returns the carrier that new frames go to: the newest healthy one, or the newest that can be used at
    /// all.
    pub(super) fn active(&self) -> Option<&Carrier> {
        let newest =
            |wanted: fn(&Carrier) -> bool| self.carriers.iter().rev().find(|carrier| wanted(carrier));
        newest(Carrier::is_healthy).or_else(|| newest(Carrier::is_usable))
    }

    pub(super) fn has_healthy_carrier(&self) -> bool {
        self.carriers.iter().any(Carrier::is_healthy)
    }

    pub(super) fn carrier_mut(&mut self, number: CarrierNumber) -> Option<&mut Carrier> {
        self.carriers.iter_mut().find(|carrier| carrier.number == number)
    }

    /// Makes what this carrier carried, and the peer has not acknowledged, be sent again.
    pub(super) fn send_again(&mut self, carrier: &Carrier) {
        if let Some((first, end)) = carrier.carried
            && end > self.send.acked()
        {
            self.send.rewind(first);
        }
    }

    /// Says once more what was received, if that was said on this carrier: it may have been lost there, and with it the peer's leave to
    /// go on sending.
    pub(super) fn acknowledge_again(&mut self, carrier: &Carrier) {
        if carrier.has_sent_ack && !matches!(self.phase, Phase::Ended(_)) {
            self.ack = AckPlan::Due;
        }
    }

    /// Opener: whether the peer may have moved to a carrier from which nothing comes, and would not return to a lower one by itself.
    pub(super) fn is_move_in_doubt(&self) -> bool {
        let highest = self.carriers.last().filter(|carrier| self.is_highest(carrier));
        self.has_lost_move || highest.is_some_and(|carrier| carrier.is_suspect && carrier.awaits_resumed())
    }

    /// Drops carriers on which both sides said their last, and notes when none is left.
    pub(super) fn note_carriers(&mut self, now: Instant) {
        self.carriers.retain(|carrier| !(carrier.has_sent_last && carrier.has_received_last));
        let is_left = self.carriers.iter().any(Carrier::is_usable);
        if is_left {
            self.carrierless_at = None;
        } else if self.is_end_owed || !matches!(self.phase, Phase::Ended(_)) {
            self.carrierless_at = self.carrierless_at.or(Some(now));
        } else {
            self.carrierless_at = None;
        }
    }

    /// Ends the session; what arrived in order stays readable unless the caller cleared it.
    pub(super) fn end(&mut self, end: End) {
        self.phase = Phase::Ended(end);
        self.send.clear();
        self.receive.forget_gaps();
        self.datagrams_out.clear();
        self.ack = AckPlan::None;
    }
}

//! Frames of carriers, in and out.

use bytes::Bytes;
use peerage_wire::frame::{CarrierNumber, Code, Resume, Resumed, StreamFrame};
use peerage_wire::time::Instant;

use super::carriers::{Carrier, Greeting};
use super::{ACK_DELAY, AckPlan, End, FIRST_CREDIT, Lane, Phase, Role, Session, Violation, push_fresh};

/// The next frame for a carrier, before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Greeting,
    Reset(Code),
    Ack,
    Datagram,
    Data,
    Fin,
    Leave,
}

impl Session {
    /// Takes a frame that arrived on a carrier. Frames of carriers that are not attached (any more) do
    /// nothing.
    ///
    /// A frame that breaks the rules ends the session; [`state`](Self::state) says which rule.
    pub fn handle_frame(&mut self, number: CarrierNumber, frame: StreamFrame, now: Instant) {
        let Some(carrier) = self.carrier_mut(number) else { return };
        if carrier.has_received_last {
            return;
        }
        let is_last = matches!(frame, StreamFrame::Reset(_) | StreamFrame::Leave);
        let result = match self.phase {
            Phase::Ended(_) => {
                self.on_frame_after_end(number, &frame);
                Ok(())
            }
            Phase::Opening | Phase::Asked | Phase::Open => self.on_frame(number, frame, now),
        };
        if let Err(violation) = result {
            self.receive.clear();
            self.end(End::Violated(violation));
            self.is_end_owed = true;
            if is_last {
                // Wrong or not, nothing follows it here.
                self.on_last(number);
            }
        }
        self.complete_if_done();
        self.note_carriers(now);
    }

    /// Makes the next frame of a lane for a carrier, none if there is nothing to send there now.
    pub fn poll_frame(&mut self, number: CarrierNumber, lane: Lane, now: Instant) -> Option<StreamFrame> {
        let next = self.next(number, lane)?;
        let frame = self.make(number, next);
        self.complete_if_done();
        self.note_carriers(now);
        frame
    }

    pub(super) fn is_ready(&self, number: CarrierNumber) -> bool {
        self.next(number, Lane::Control).is_some() || self.next(number, Lane::Bulk).is_some()
    }

    /// Decides when the peer hears about what arrived or was read (Rule 7.15).
    pub(super) fn schedule_ack(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        if self.receive.wants_ack_now() {
            self.ack = AckPlan::Due;
        } else if self.receive.has_untold() {
            self.ack.at_latest(now.after(ACK_DELAY));
        }
    }

    /// Learns what RESUME or RESUMED say, which makes their carrier the one in use.
    pub(super) fn on_resumed(
        &mut self,
        number: CarrierNumber,
        received: u64,
        limit: u64,
        resend: bool,
        now: Instant,
    ) {
        if let Some(carrier) = self.carrier_mut(number) {
            carrier.said = (received, limit);
        }
        for carrier in self.carriers.iter_mut().filter(|carrier| carrier.number < number) {
            carrier.is_replaced = true;
        }
        if !matches!(self.phase, Phase::Ended(_)) {
            self.send.set_limit(limit);
            if let Err(violation) = self.send.on_received(received) {
                self.receive.clear();
                self.end(End::Violated(violation));
                self.is_end_owed = true;
            }
            if resend {
                self.send.rewind(self.send.acked());
            }
        }
        self.note_carriers(now);
    }

    fn on_frame(&mut self, number: CarrierNumber, frame: StreamFrame, now: Instant) -> Result<(), Violation> {
        self.check_greeted(number, &frame)?;
        match frame {
            StreamFrame::Opened { limit } => self.on_opened(number, limit),
            StreamFrame::Resumed(resumed) => self.on_resumed_frame(number, resumed, now),
            StreamFrame::Data { offset, payload } => {
                let is_new = self.receive.on_data(offset, payload)?;
                self.schedule_ack(now);
                if !is_new {
                    // The peer sends again what is here: it missed an acknowledgement.
                    self.ack.at_latest(now.after(ACK_DELAY));
                }
                Ok(())
            }
            StreamFrame::Fin { offset } => {
                self.receive.on_fin(offset)?;
                self.schedule_ack(now);
                self.ack.at_latest(now.after(ACK_DELAY));
                Ok(())
            }
            StreamFrame::Ack { received, limit } => self.on_ack(number, received, limit),
            StreamFrame::Datagram(payload) => {
                self.datagrams_dropped += push_fresh(&mut self.datagrams_in, payload);
                Ok(())
            }
            StreamFrame::Reset(code) => {
                self.on_reset(number, code);
                Ok(())
            }
            StreamFrame::Leave => {
                self.on_last(number);
                Ok(())
            }
            StreamFrame::Open { .. } | StreamFrame::Resume(_) => Err(Violation::Unexpected),
        }
    }

    /// Checks that the acceptor speaks on a carrier only after it has granted it (Rule 7.13). DATAGRAM keeps no order (Rule 7.18).
    fn check_greeted(&mut self, number: CarrierNumber, frame: &StreamFrame) -> Result<(), Violation> {
        let Some(carrier) = self.carrier_mut(number) else { return Ok(()) };
        let is_allowed = match carrier.greeting {
            Greeting::Done | Greeting::Opened | Greeting::Resumed { .. } => {
                !matches!(frame, StreamFrame::Opened { .. } | StreamFrame::Resumed(_))
            }
            Greeting::AwaitOpened => {
                use StreamFrame::{Datagram, Opened, Reset};
                matches!(frame, Opened { .. } | Reset(_) | Datagram(_))
            }
            Greeting::AwaitResumed { .. } => {
                use StreamFrame::{Datagram, Reset, Resumed};
                matches!(frame, Resumed(_) | Reset(_) | Datagram(_))
            }
            Greeting::Open | Greeting::Resume { .. } => false,
        };
        if is_allowed { Ok(()) } else { Err(Violation::Unexpected) }
    }

    /// After the end, only the peer's last frame on each carrier matters.
    fn on_frame_after_end(&mut self, number: CarrierNumber, frame: &StreamFrame) {
        match frame {
            StreamFrame::Reset(code) => {
                let is_of_carrier = self.is_refusal_of_carrier(number, *code);
                self.on_last(number);
                self.is_end_owed &= is_of_carrier;
            }
            StreamFrame::Leave => self.on_last(number),
            StreamFrame::Resumed(_) | StreamFrame::Opened { .. } => {
                if let Some(carrier) = self.carrier_mut(number) {
                    carrier.greeting = Greeting::Done;
                }
            }
            StreamFrame::Open { .. }
            | StreamFrame::Data { .. }
            | StreamFrame::Ack { .. }
            | StreamFrame::Fin { .. }
            | StreamFrame::Resume(_)
            | StreamFrame::Datagram(_) => {}
        }
    }

    fn on_reset(&mut self, number: CarrierNumber, code: Code) {
        if self.is_refusal_of_carrier(number, code) {
            if let Some(carrier) = self.carrier_mut(number) {
                let carrier = carrier.clone();
                self.send_again(&carrier);
            }
            self.ack = AckPlan::Due;
        } else {
            self.end(End::ResetByPeer(code));
        }
        self.on_last(number);
    }

    /// Whether a RESET answers RESUME and concerns its carrier alone; any other RESET ends the session.
    fn is_refusal_of_carrier(&self, number: CarrierNumber, code: Code) -> bool {
        let carrier = self.carriers.iter().find(|carrier| carrier.number == number);
        let asked = carrier.filter(|carrier| matches!(carrier.greeting, Greeting::AwaitResumed { .. }));
        // RESUME had overtaken OPEN, and the peer has heard of the session since. However late the refusal comes: another carrier
        // serves or, if none is left, the next RESUME is answered for good.
        let has_overtaken = |carrier: &Carrier| carrier.is_early && self.phase == Phase::Open;
        let is_of_carrier = matches!(code, Code::StaleCarrier | Code::Limit);
        asked.is_some_and(|carrier| is_of_carrier || (code == Code::UnknownSession && has_overtaken(carrier)))
    }

    /// The peer sends nothing more here, so nothing could be answered either: this side leaves as well.
    fn on_last(&mut self, number: CarrierNumber) {
        if let Some(carrier) = self.carrier_mut(number) {
            carrier.has_received_last = true;
            carrier.is_replaced = true;
        }
        if matches!(self.phase, Phase::Ended(_)) && self.peer_knows_end() {
            self.is_end_owed = false;
        }
    }

    /// Whether the peer said its last on the highest carrier of all: on a lower one it may only have moved.
    fn peer_knows_end(&self) -> bool {
        let highest = self.carriers.last().filter(|carrier| self.is_highest(carrier));
        highest.is_some_and(|carrier| carrier.has_received_last)
    }

    pub(super) fn is_highest(&self, carrier: &Carrier) -> bool {
        carrier.number.0.checked_add(1) == Some(self.next_carrier)
    }

    fn on_opened(&mut self, number: CarrierNumber, limit: u64) -> Result<(), Violation> {
        if limit < FIRST_CREDIT {
            return Err(Violation::WentBack);
        }
        self.send.set_limit(limit);
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
        }
        if let Some(carrier) = self.carrier_mut(number) {
            carrier.greeting = Greeting::Done;
            carrier.said = (0, limit);
        }
        Ok(())
    }

    fn on_resumed_frame(
        &mut self,
        number: CarrierNumber,
        resumed: Resumed,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(carrier) = self.carrier_mut(number) else { return Ok(()) };
        let asked_again = matches!(carrier.greeting, Greeting::AwaitResumed { resend: true });
        carrier.greeting = Greeting::Done;
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
        }
        self.on_resumed(number, resumed.received, resumed.limit, asked_again || resumed.resend, now);
        match self.phase {
            Phase::Ended(End::Violated(violation)) => Err(violation),
            Phase::Ended(_) | Phase::Opening | Phase::Asked | Phase::Open => Ok(()),
        }
    }

    fn on_ack(&mut self, number: CarrierNumber, received: u64, limit: u64) -> Result<(), Violation> {
        let Some(carrier) = self.carrier_mut(number) else { return Ok(()) };
        let (said_received, said_limit) = carrier.said;
        if received < said_received || limit < said_limit {
            return Err(Violation::WentBack);
        }
        carrier.said = (received, limit);
        self.send.set_limit(limit);
        self.send.on_received(received)
    }

    /// Ends a session that has nothing more to say: both ends acknowledged, both directions (Rule 7.21).
    fn complete_if_done(&mut self) {
        let is_done = self.phase == Phase::Open
            && self.send.is_done()
            && self.receive.is_complete()
            && !self.receive.has_untold();
        if is_done {
            self.end(End::Complete);
            // A peer whose LEAVE is here already knows.
            self.is_end_owed = !self.peer_knows_end();
        }
    }

    fn next(&self, number: CarrierNumber, lane: Lane) -> Option<Next> {
        let carrier = self.carriers.iter().find(|carrier| carrier.number == number)?;
        if carrier.has_sent_last {
            return None;
        }
        let has_greeted = match carrier.greeting {
            Greeting::Open | Greeting::Resume { .. } => false,
            // The node has not decided: nothing but a refusal can be said.
            Greeting::Opened | Greeting::Resumed { .. } if self.phase == Phase::Asked => return None,
            // A refusal takes the place of an agreement.
            Greeting::Opened | Greeting::Resumed { .. } => {
                matches!(self.phase, Phase::Ended(end) if end != End::Complete)
            }
            Greeting::AwaitOpened | Greeting::AwaitResumed { .. } | Greeting::Done => true,
        };
        match lane {
            Lane::Control if !has_greeted => Some(Next::Greeting),
            Lane::Control => self.next_control(carrier),
            Lane::Bulk if !has_greeted => None,
            Lane::Bulk => self.next_bulk(carrier),
        }
    }

    fn next_control(&self, carrier: &Carrier) -> Option<Next> {
        match self.phase {
            Phase::Ended(End::Complete) => None,
            Phase::Ended(end) => Some(Next::Reset(end.code().unwrap_or(Code::ProtocolViolation))),
            Phase::Asked => None,
            Phase::Opening | Phase::Open => {
                (self.ack == AckPlan::Due && self.is_active(carrier)).then_some(Next::Ack)
            }
        }
    }

    fn next_bulk(&self, carrier: &Carrier) -> Option<Next> {
        match self.phase {
            // LEAVE may be all that the peer ever hears of the end, so it must know by then that nothing is missing.
            Phase::Ended(End::Complete) if carrier.told < self.receive.received() => return Some(Next::Ack),
            Phase::Ended(End::Complete) => return Some(Next::Leave),
            Phase::Ended(_) | Phase::Asked => return None,
            Phase::Opening | Phase::Open => {}
        }
        if carrier.is_replaced {
            // While the peer lacks bytes that went out here, the loss of this carrier still concerns the session.
            let is_acked = |(_, end)| end <= self.send.acked() || self.send.is_done();
            return carrier.carried.is_none_or(is_acked).then_some(Next::Leave);
        }
        if !self.is_active(carrier) || !carrier.may_carry() {
            return None;
        }
        if !self.datagrams_out.is_empty() {
            return Some(Next::Datagram);
        }
        if self.send.has_data() {
            return Some(Next::Data);
        }
        self.send.wants_fin().then_some(Next::Fin)
    }

    fn is_active(&self, carrier: &Carrier) -> bool {
        self.active().is_some_and(|active| active.number == carrier.number)
    }

    fn make(&mut self, number: CarrierNumber, next: Next) -> Option<StreamFrame> {
        match next {
            Next::Greeting => self.make_greeting(number),
            Next::Reset(code) => {
                self.note_last(number);
                Some(StreamFrame::Reset(code))
            }
            Next::Leave => {
                self.note_last(number);
                Some(StreamFrame::Leave)
            }
            Next::Ack => {
                self.ack = AckPlan::None;
                let (received, limit) = self.receive.tell();
                let carrier = self.carrier_mut(number)?;
                carrier.has_sent_ack = true;
                carrier.told = received;
                Some(StreamFrame::Ack { received, limit })
            }
            Next::Datagram => self.datagrams_out.pop_front().map(StreamFrame::Datagram),
            Next::Data => {
                let (offset, payload) = self.send.poll_data()?;
                let end = offset + payload.len() as u64;
                self.carrier_mut(number)?.note_carried(offset, end);
                Some(StreamFrame::Data { offset, payload })
            }
            Next::Fin => {
                let offset = self.send.poll_fin()?;
                self.carrier_mut(number)?.note_carried(offset, offset + 1);
                Some(StreamFrame::Fin { offset })
            }
        }
    }

    fn make_greeting(&mut self, number: CarrierNumber) -> Option<StreamFrame> {
        let greeting = self.carrier_mut(number)?.greeting;
        let mut told = 0;
        let (frame, after) = match greeting {
            Greeting::Open => {
                let Role::Opener { request } = &self.role else { return None };
                let request: Bytes = request.clone();
                let (_, limit) = self.receive.tell();
                (StreamFrame::Open { limit, request }, Greeting::AwaitOpened)
            }
            Greeting::Opened => {
                // What arrived with OPEN is acknowledged apart, because OPENED has no place for it.
                let limit = self.receive.limit();
                (StreamFrame::Opened { limit }, Greeting::Done)
            }
            Greeting::Resume { resend } => {
                let (received, limit) = self.receive.tell();
                self.ack = AckPlan::None;
                told = received;
                let resume = Resume { session: self.id, carrier: number, received, limit, resend };
                (StreamFrame::Resume(resume), Greeting::AwaitResumed { resend })
            }
            Greeting::Resumed { resend } => {
                let (received, limit) = self.receive.tell();
                self.ack = AckPlan::None;
                told = received;
                (StreamFrame::Resumed(Resumed { received, limit, resend }), Greeting::Done)
            }
            Greeting::AwaitOpened | Greeting::AwaitResumed { .. } | Greeting::Done => return None,
        };
        self.is_announced = true;
        let carrier = self.carrier_mut(number)?;
        carrier.greeting = after;
        carrier.has_sent_ack = true;
        carrier.told = told;
        Some(frame)
    }

    fn note_last(&mut self, number: CarrierNumber) {
        if let Some(carrier) = self.carrier_mut(number) {
            carrier.has_sent_last = true;
        }
    }
}

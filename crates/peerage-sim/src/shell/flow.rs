//! What follows from what: bundles, applications and carriers, until nothing moves.

use bytes::{Bytes, BytesMut};
use peerage_proto::link::BATCH_BYTES;
use peerage_proto::link::bundle::{Event, LinkId, SessionKey};
use peerage_proto::node::{Input, TunnelId};
use peerage_proto::session::{self, State};
use peerage_wire::frame::{Code, Encoded};
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::{MAX_UNDER_WAY, Shell, Tunnel, Want};
use crate::app::{App, End};

impl Shell {
    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            // An idle link that becomes busy with what a time-out sends is to be measured at once, which makes another one due.
            for _turn in 0..2 {
                let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.is_due(now)) else { break };
                peer.bundle.handle_timeout(now);
                self.pump_peer(id, now);
            }
            let due = self.peers.get(&id).filter(|peer| peer.is_due(now));
            self.overdue = self.overdue.or(due.and_then(|peer| peer.bundle.poll_timeout()));
        }
        let is_due = |tunnel: &Tunnel| tunnel.wakes_at().is_some_and(|at| at <= now);
        let due = self.tunnels.iter().filter(|(_, tunnel)| is_due(tunnel));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.drive(id, now);
        }
        self.pump(now);
    }

    /// Returns what a bundle wanted right after its time-out though it did not lie in the future, if that ever was.
    pub const fn overdue(&self) -> Option<Instant> {
        self.overdue
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let bundles = self.peers.values().filter_map(|peer| peer.bundle.poll_timeout());
        bundles.chain(self.tunnels.values().filter_map(Tunnel::wakes_at)).min()
    }

    /// Does what can be done now that bytes have left.
    pub fn pump(&mut self, now: Instant) {
        while let Some(id) = self.roomy.pop_first() {
            if let Some(carrier) = self.carriers.get(&id).copied() {
                self.flush(carrier.peer, carrier.link, now);
                self.touched.insert(carrier.peer);
            }
        }
        while let Some(id) = self.touched.pop_first() {
            self.pump_peer(id, now);
        }
    }

    /// Moves everything between this computer and a peer until nothing moves.
    pub(super) fn pump_peer(&mut self, id: NodeId, now: Instant) {
        while let Some(peer) = self.peers.get_mut(&id) {
            if let Some(event) = peer.bundle.poll_event() {
                self.on_event(id, event, now);
            } else if let Some(key) = peer.bundle.poll_woken() {
                self.on_woken(id, key, now);
            } else if peer.bundle.poll_seek(now) {
                // The world finds the way to a peer with each dial.
            } else if let Some(dial) = peer.bundle.poll_dial(now) {
                let candidates = peer.candidates.clone();
                self.wants.push_back(Want::Dial(id, candidates, Some(dial)));
            } else if let Some(link) = peer.bundle.poll_writable() {
                self.flush(id, link, now);
            } else {
                break;
            }
        }
        self.touched.remove(&id);
        if self.peers.get(&id).is_some_and(super::Peer::is_idle) {
            self.peers.remove(&id);
        }
    }

    fn on_event(&mut self, id: NodeId, event: Event, now: Instant) {
        match event {
            Event::Usable => self.tell(Input::LinkUp(id)),
            Event::Unusable => self.tell(Input::LinkDown(id)),
            Event::OpenAsked { session, open } => {
                self.add_tunnel((id, session), &open, End::Device, None, now)
            }
            Event::Head(record) => self.tell(Input::HeadSeen(record)),
            // Relays do not die here.
            Event::Silent(_) => {}
            Event::Moved { .. } => self.moves = self.moves.saturating_add(1),
        }
    }

    fn on_woken(&mut self, id: NodeId, key: SessionKey, now: Instant) {
        let tunnel = self.peers.get(&id).and_then(|peer| peer.tunnels.get(&key)).copied();
        if let Some(tunnel) = tunnel {
            self.drive(tunnel, now);
        }
    }

    /// Lets the application of a tunnel do what it can, and tells what has become of the tunnel.
    pub(super) fn drive(&mut self, id: TunnelId, now: Instant) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let Some(peer) = self.peers.get_mut(&tunnel.peer) else { return };
        self.touched.insert(tunnel.peer);
        let is_patient = self.is_patient;
        let gives_up_at = tunnel.gives_up_at;
        let app = &mut tunnel.app;
        let driven = peer.bundle.with(tunnel.key, now, |session, now| {
            let is_lost = !is_patient && session.needs_carrier();
            if session.state() == State::Opening && (is_lost || gives_up_at <= now) {
                // Another way is tried.
                session.reset(Code::DeviceUnreachable);
            }
            let deeds = app.as_mut().map(|app| app.drive(session, now)).unwrap_or_default();
            (deeds, session.state())
        });
        match driven {
            Some((deeds, state)) => {
                let (session, end) = (tunnel.session, tunnel.end);
                self.wants.extend(deeds.into_iter().map(|deed| Want::Deed(session, end, deed)));
                self.note_state(id, state, now);
            }
            // It was over, and nobody needed it any more.
            None => {
                peer.tunnels.remove(&tunnel.key);
                self.tunnels.remove(&id);
            }
        }
    }

    /// Tells about a tunnel that has been opened or has ended.
    fn note_state(&mut self, id: TunnelId, state: State, now: Instant) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let before = std::mem::replace(&mut tunnel.state, state);
        let Tunnel { session, peer, end, device, was_open, key, .. } = *tunnel;
        let is_seen = tunnel.app.as_ref().is_none_or(App::has_seen_end);
        let is_over = matches!(state, State::Ended(_)) && is_seen;
        let is_to_release = is_over && !std::mem::replace(&mut tunnel.is_released, is_over);
        match state {
            State::Open if before != State::Open => {
                tunnel.was_open = true;
                if end == End::User {
                    let service = tunnel.service.clone();
                    self.wants.push_back(Want::Opened(session));
                    self.tell(Input::TunnelOpened { tunnel: id, peer, device, service });
                }
            }
            State::Ended(how) => {
                if !matches!(before, State::Ended(_)) {
                    self.wants.push_back(Want::Ended(session, end, how));
                    let failed = match how {
                        session::End::ResetByPeer(code) => Some(Some(code)),
                        session::End::ResetHere(Code::DeviceUnreachable) => Some(None),
                        session::End::Complete
                        | session::End::ResetHere(_)
                        | session::End::Violated(_)
                        | session::End::Expired => None,
                    };
                    if let Some(code) = failed.filter(|_| end == End::User && !was_open) {
                        self.tell(Input::RouteFailed { device, peer, code });
                    }
                    self.tell(Input::TunnelEnded(id));
                }
                if is_to_release && let Some(peer) = self.peers.get_mut(&peer) {
                    peer.bundle.release(key, now);
                }
            }
            State::Opening | State::Asked | State::Open => {}
        }
    }

    /// Sends what a link has to say, as far as there is room on its carrier.
    fn flush(&mut self, id: NodeId, link: LinkId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(carrier_id) = peer.carriers.get(&link).copied() else { return };
        let Some(carrier) = self.carriers.get_mut(&carrier_id) else { return };
        let mut has_more = true;
        while has_more && carrier.under_way < MAX_UNDER_WAY {
            let mut frames = Vec::new();
            let room = (MAX_UNDER_WAY - carrier.under_way).min(BATCH_BYTES);
            has_more = peer.bundle.poll_output(link, room, now, &mut frames);
            let Some(bytes) = joined(&frames) else { break };
            carrier.under_way = carrier.under_way.saturating_add(bytes.len());
            self.wants.push_back(Want::Send(carrier_id, bytes));
        }
        if peer.bundle.closed(link).is_some() {
            self.wants.push_back(Want::Close(carrier_id));
            self.carriers.remove(&carrier_id);
            peer.carriers.remove(&link);
            peer.bundle.link_lost(link, now);
        }
    }
}

impl Tunnel {
    /// Returns when its application acts by itself, or gives it up.
    fn wakes_at(&self) -> Option<Instant> {
        let gives_up_at = (self.state == State::Opening).then_some(self.gives_up_at);
        let app = self.app.as_ref().and_then(App::wakes_at);
        app.into_iter().chain(gives_up_at).min()
    }
}

fn joined(frames: &[Encoded]) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    for frame in frames {
        bytes.extend_from_slice(&frame.header);
        bytes.extend_from_slice(&frame.payload);
    }
    (!bytes.is_empty()).then(|| bytes.freeze())
}

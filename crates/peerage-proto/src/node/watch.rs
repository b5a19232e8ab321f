//! Open tunnels of both ends: checked again at each Head, because authority can end (Rule 6.9).

use bytes::Bytes;
use peerage_wire::frame::Code;
use peerage_wire::record::{Table, UnverifiedRecord};
use peerage_wire::time::Now;

use super::{Event, Node, Output, TunnelId, Watched};
use crate::trust::Trust;

impl Node {
    /// A peer has handed its Head on. One that is no news is not worth a verification.
    pub(super) fn head_seen(&mut self, record: &Bytes, now: Now) {
        let known = self.freshness.record().map_or(0, |known| known.header().version);
        let is_news = UnverifiedRecord::parse(record).is_ok_and(|record| record.header().version > known);
        if is_news {
            self.take_head(record, now);
        }
    }

    pub(super) fn watch(&mut self, tunnel: TunnelId, watched: Watched, now: Now) {
        self.watched.insert(tunnel, watched);
        self.review_watched(now);
    }

    pub(super) fn tunnel_ended(&mut self, tunnel: TunnelId) {
        self.watched.remove(&tunnel);
        self.openings.remove(&tunnel);
    }

    /// Closes every tunnel that would not be opened now.
    pub(super) fn review_watched(&mut self, now: Now) {
        let ended: Vec<_> = self
            .watched
            .iter()
            .filter_map(|(tunnel, watched)| Some((*tunnel, self.objection(watched, now)?)))
            .collect();
        for (tunnel, code) in ended {
            self.watched.remove(&tunnel);
            self.outputs.push_back(Output::CloseTunnel { tunnel, code });
        }
        if self.is_revoked() && !std::mem::replace(&mut self.told_revoked, true) {
            self.event(Event::Revoked);
        }
    }

    /// Returns why a tunnel may not go on, if it may not.
    fn objection(&self, watched: &Watched, now: Now) -> Option<Code> {
        if self.is_revoked() || self.trust.is_revoked(&watched.peer) {
            return Some(Code::Revoked);
        }
        if self.is_expired(now) || self.peer_expired(watched, now) {
            return Some(Code::NotMember);
        }
        let Some((_, device)) = self.devices.get(&watched.device) else {
            return Some(Code::UnknownDevice);
        };
        if device.service(&watched.service).is_none() {
            return Some(Code::UnknownService);
        }
        let (user, server) =
            if watched.serving { (watched.peer, self.me.id) } else { (self.me.id, watched.peer) };
        let allowed = |list: &[_], node| list.is_empty() || list.contains(node);
        let permitted = allowed(&device.users, &user) && allowed(&device.servers, &server);
        (!permitted).then_some(Code::NotAllowed)
    }

    fn peer_expired(&self, watched: &Watched, now: Now) -> bool {
        let (domain, key) = (watched.peer.domain, watched.peer.record_key());
        let member = self.records.get(Table::Node, domain, key).and_then(Trust::member);
        let time = self.endpoint.judging_time(now);
        time.is_some_and(|time| member.is_none_or(|member| member.expires <= time))
    }
}

//! The operator in a super-node's place: attachments, forwarding and a capped relay (Rules 6.23, 6.28 and 6.31).

use std::net::SocketAddr;

use peerage_wire::id::NodeId;
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::Table;
use peerage_wire::time::{Now, UnixTime};

use super::{CONTACT_LIFETIME, Operator};
use crate::carrier::StreamNews;
use crate::discard::Discard;
use crate::endpoint::Incoming;
use crate::relay::Load;
use crate::table::Records;
use crate::trust::{Member, Trust};

impl Operator {
    /// Returns how much it relays now.
    pub fn relayed(&self) -> Load {
        self.desk.load()
    }

    /// Notes that a member wants to be reached here.
    pub(super) fn attach(&mut self, from: &Member, remote: SocketAddr, now: Now) -> Reply {
        self.note_contact(from.id, remote, now);
        if let Some(contact) = self.contacts.get_mut(&from.id) {
            contact.attached_at = Some(now.mono);
        }
        // So that what is forwarded to it need not wait for an introduction.
        self.endpoint.warm_up(from.id, remote, now);
        Reply::Attached { observed: remote, head: self.head(from.id.domain, now) }
    }

    /// Takes what has happened to a connection that a member has made for its messages.
    pub(super) fn stream_news(&mut self, news: StreamNews, now: Now) {
        match news {
            StreamNews::Datagram { stream, remote, payload } => {
                self.endpoint.handle_stream_datagram((stream, remote), &payload, &self.trust, now);
            }
            StreamNews::Closed(stream) => {
                for node in self.endpoint.stream_closed(stream) {
                    self.contacts.remove(&node);
                }
            }
            StreamNews::Opened(_made) => {}
        }
    }

    /// Returns where a member is that is attached here now.
    fn attached(&self, node: &NodeId, now: Now) -> Option<SocketAddr> {
        let contact = self.contacts.get(node)?;
        let is_live = now.mono - contact.attached_at? <= CONTACT_LIFETIME;
        let time = self.endpoint.time(now);
        (is_live && is_current(node, &self.records, &self.trust, time)).then_some(contact.remote)
    }

    /// Passes on what a member asks somebody else, or joins its leg.
    pub(super) fn pass(&mut self, mut incoming: Incoming, now: Now) {
        let Some(from) = self.current(incoming.from) else { return self.endpoint.discard(Discard::Expired) };
        incoming.from = from;
        let attached = if let Request::ForwardedTunnelRequest { to, .. } = &incoming.request {
            self.attached(to, now)
        } else {
            None
        };
        if let Err(reason) = self.desk.asked(incoming, attached, &mut self.endpoint, now) {
            self.endpoint.discard(reason);
        }
    }

    /// Ends what is relayed for those who are no members any more.
    pub(super) fn review_legs(&mut self, now: Now) {
        let (records, trust, time) = (&self.records, &self.trust, self.endpoint.time(now));
        self.desk.review(|node| is_current(node, records, trust, time));
    }
}

fn is_current(node: &NodeId, records: &Records, trust: &Trust, time: UnixTime) -> bool {
    let record = records.get(Table::Node, node.domain, node.record_key());
    let is_valid = record.is_some_and(|record| !record.header().removed && record.is_valid_at(time));
    is_valid && !trust.is_revoked(node)
}

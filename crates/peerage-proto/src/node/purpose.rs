//! What own requests are for, and so who takes their answers.

use peerage_wire::id::{DeviceId, NodeId};
use peerage_wire::message::Reply;
use peerage_wire::time::Now;

use super::hold::Errand;
use super::queries::QueryId;
use super::{Answer, Node, RequestId, Server, TaskId};
use crate::relay::LegId;

/// What an own request was for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A page of a look-up.
    Query(QueryId),
    /// Keeping in contact.
    Attach(NodeId),
    /// Finding out how far away somebody is to whom this node may attach.
    Probe,
    /// Having the time confirmed.
    Time,
    /// Storing this version of the own NodeInfo.
    Announce(u64),
    /// Telling where a device was seen.
    Report(DeviceId),
    /// Finding out whether a tunnel-node of the own location answers.
    Survey(TaskId),
    /// Finding out whether a tunnel-node is on this LAN.
    Meet(TaskId),
    /// Arranging a path to a tunnel-node.
    Path(TaskId),
    /// Having a leg joined.
    Leg(LegId),
    /// Having the time confirmed before leaving.
    BeforeLeave(TaskId, Server),
    /// Being told how a server sees this node.
    Observe,
    /// Finding out whether the routers on the way let in what comes from another port.
    Elsewhere,
    /// Finding out whether they turn round what is sent to this node's own outer address.
    Hairpin,
    /// Finding out whether a datagram gets to a place of a peer.
    Check,
    /// Finding out whether a server answers in a certain way.
    Carrier,
    /// Leaving.
    Leave(TaskId),
    /// What a super-node does.
    Hold(Errand),
}

impl Purpose {
    /// Returns whether silence does not mean that whoever was asked is not well: operators that do not keep the map are silent to
    /// offers, checks and greetings go where perhaps nobody is, and observers are asked beside a look-up that tells more.
    pub(super) const fn says_nothing_by_silence(&self) -> bool {
        matches!(
            self,
            Self::Hold(Errand::Submit)
                | Self::Check
                | Self::Carrier
                | Self::Meet(_)
                | Self::Observe
                | Self::Elsewhere
                | Self::Hairpin
        )
    }
}

impl Node {
    /// Takes an answer to where it is waited for.
    pub(super) fn answered(
        &mut self,
        purpose: Purpose,
        request: RequestId,
        from: NodeId,
        reply: Reply,
        now: Now,
    ) {
        match purpose {
            Purpose::Query(id) => self.query_answered(id, request, reply, now),
            Purpose::Attach(_) => self.attached(from, reply, now),
            Purpose::Time => {}
            Purpose::Observe | Purpose::Check | Purpose::Carrier | Purpose::Meet(_) | Purpose::Elsewhere => {}
            Purpose::Hairpin => self.hairpin_ended(true),
            Purpose::Probe => self.probed(now),
            Purpose::Announce(version) => self.announced(version, from, &reply, now),
            Purpose::Report(device) => self.reported(device, now),
            Purpose::Survey(task) => self.survey_answered(task, request, true, now),
            Purpose::Path(task) => self.path_answered(task, request, &reply, now),
            Purpose::Leg(leg) => self.leg_answered(leg, &reply, now),
            Purpose::BeforeLeave(task, server) => self.take_leave(task, server, now),
            Purpose::Leave(task) => self.answer(task, Answer::Left { confirmed: true }),
            Purpose::Hold(errand) => self.hold_answered(errand, from, reply, now),
        }
    }

    /// Tells whoever waits for an answer that there is none.
    pub(super) fn unanswered(&mut self, purpose: Purpose, request: RequestId, to: NodeId, now: Now) {
        match purpose {
            Purpose::Query(id) => self.query_failed(id, request),
            Purpose::Attach(server) => self.attachment_failed(server, now),
            Purpose::Time | Purpose::Observe | Purpose::Carrier => {}
            Purpose::Check => self.check_unanswered(),
            Purpose::Meet(task) => self.neighbour_met(task, request, None, now),
            Purpose::Elsewhere => self.elsewhere_ended(&to, None),
            Purpose::Hairpin => self.hairpin_ended(false),
            Purpose::Probe => self.probed(now),
            Purpose::Announce(version) => self.announcement_failed(version, to, now),
            Purpose::Report(device) => self.report_failed(device, now),
            Purpose::Survey(task) => self.survey_answered(task, request, false, now),
            Purpose::Path(task) => self.path_failed(task, request, now),
            Purpose::Leg(leg) => self.leg_unanswered(leg),
            Purpose::BeforeLeave(task, _) | Purpose::Leave(task) => {
                self.answer(task, Answer::Left { confirmed: false });
            }
            Purpose::Hold(errand) => self.hold_unanswered(errand, to, now),
        }
    }
}

//! One visit: a spy comes as a member does that has just been switched on, asks a few questions, and goes away.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::NodeId;
use peerage_wire::message::{Page, Reply};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::dossier::{Evidence, Fault, Finding};
use super::judge::{Question, Truth, content, last_key};
use crate::endpoint::{Endpoint, Outcome, RequestId};
use crate::table::Records;
use crate::trust::{Member, Trust};

/// How long after a bad answer, or none, the question is asked once more, as a member's would be. Between the two an honest
/// super-node that was idle has fetched a new Head, or compared a set that differed.
const REPEAT_AFTER: Duration = Duration::from_secs(6);

/// How often one question is asked.
const TRIES: u8 = 2;

/// Most pages of one set, of up to 16 records; what comes after them is not judged.
const MAX_PAGES: u8 = 8;

/// When a visit ends at the latest. Six questions that are each asked twice in vain take 78 s.
pub(super) const MAX_VISIT_TIME: Duration = Duration::from_secs(120);

/// A question under way.
#[derive(Clone, Debug)]
struct Asking {
    question: Question,
    tries: u8,
    asked_at: UnixTime,
    pages: u8,
    collected: Vec<Bytes>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent(RequestId),
    Again(Instant),
}

/// What is said to one super-node, and what it says.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) node: NodeId,
    remote: SocketAddr,
    /// Since when it has been there with its range, if it is one that is judged.
    pub(super) steady_since: Option<Instant>,
    ahead: VecDeque<Question>,
    asking: Option<Asking>,
    pub(super) finding: Finding,
}

impl Talk {
    pub(super) fn new(
        (node, remote): (NodeId, SocketAddr),
        steady_since: Option<Instant>,
        questions: impl IntoIterator<Item = Question>,
    ) -> Self {
        let ahead = questions.into_iter().collect();
        Self { node, remote, steady_since, ahead, asking: None, finding: Finding::default() }
    }

    const fn is_over(&self) -> bool {
        self.asking.is_none()
    }

    fn next_at(&self) -> Option<Instant> {
        match self.asking.as_ref()?.state {
            State::Again(at) => Some(at),
            State::Sent(_) => None,
        }
    }

    /// Asks what is due.
    fn go_on(&mut self, endpoint: &mut Endpoint, now: Now) {
        if self.asking.is_none() {
            let Some(question) = self.ahead.pop_front() else { return };
            let state = State::Again(now.mono);
            let asked_at = endpoint.time(now);
            self.asking =
                Some(Asking { question, tries: 0, asked_at, pages: 0, collected: Vec::new(), state });
        }
        let Some(asking) = self.asking.as_mut() else { return };
        if !matches!(asking.state, State::Again(at) if at <= now.mono) {
            return;
        }
        asking.tries += 1;
        (asking.pages, asking.asked_at) = (0, endpoint.time(now));
        asking.collected.clear();
        let id = endpoint.request(self.node, self.remote, &asking.question.request(None), now);
        asking.state = State::Sent(id);
    }

    fn is_waiting_for(&self, request: RequestId) -> bool {
        self.asking.as_ref().is_some_and(|asking| asking.state == State::Sent(request))
    }

    fn failed(&mut self, now: Instant) {
        let Some(asking) = self.asking.as_mut() else { return };
        if asking.tries < TRIES {
            asking.state = State::Again(now.after(REPEAT_AFTER));
            return;
        }
        self.finding.unanswered.insert(asking.question.name());
        if matches!(asking.question, Question::Ping | Question::Head) {
            // A member would turn to others.
            self.ahead.clear();
        }
        self.asking = None;
    }

    fn answered(&mut self, reply: Reply, sources: &Sources<'_>, endpoint: &mut Endpoint, now: Now) {
        let Some(asking) = self.asking.as_mut() else { return };
        let page = content(reply);
        let last = last_key(&page);
        let Page { records, more } = page;
        asking.collected.extend(records);
        asking.pages += 1;
        if let Some(last) = last.filter(|_| more && asking.pages < MAX_PAGES) {
            let id = endpoint.request(self.node, self.remote, &asking.question.request(Some(last)), now);
            asking.state = State::Sent(id);
            return;
        }
        let steady = self.steady_since.map(|since| now.mono - since).unwrap_or_default();
        let truth = Truth {
            records: sources.records,
            trust: sources.trust,
            crypto: endpoint.crypto(),
            spy: endpoint.id(),
            asked_at: asking.asked_at,
            steady,
        };
        let fault = truth.fault(&asking.question, &asking.collected, !more);
        let is_final = asking.tries >= TRIES || matches!(fault, None | Some((Fault::Forged, _)));
        if !is_final {
            asking.state = State::Again(now.mono.after(REPEAT_AFTER));
            return;
        }
        self.finding.answered.insert(asking.question.name());
        if let Some((fault, about)) = fault {
            let (at, spy) = (endpoint.time(now), endpoint.id());
            self.finding.evidence.push(Evidence { at, fault, spy, about });
        }
        self.asking = None;
    }
}

/// What answers are compared with.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) records: &'a Records,
    pub(super) trust: &'a Trust,
}

/// A spy that is out.
#[derive(Debug)]
pub(super) struct Visit {
    endpoint: Endpoint,
    pub(super) talks: Vec<Talk>,
    ends_at: Instant,
}

impl Visit {
    pub(super) fn begin(mut endpoint: Endpoint, peers: Vec<Member>, talks: Vec<Talk>, now: Now) -> Self {
        endpoint.trust_own_clock();
        peers.into_iter().for_each(|peer| endpoint.learn_identity(peer, now));
        let mut visit = Self { endpoint, talks, ends_at: now.mono.after(MAX_VISIT_TIME) };
        visit.go_on(now);
        visit
    }

    pub(super) fn spy(&self) -> NodeId {
        self.endpoint.id()
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends_at <= now || self.talks.iter().all(Talk::is_over)
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let talks = self.talks.iter().filter_map(Talk::next_at);
        talks.chain(self.endpoint.poll_timeout()).chain([self.ends_at]).min()
    }

    pub(super) fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        payload: &[u8],
        sources: Sources<'_>,
        now: Now,
    ) {
        self.endpoint.handle_datagram(remote, payload, sources.trust, now);
        self.drain(sources, now);
    }

    pub(super) fn handle_timeout(&mut self, sources: Sources<'_>, now: Now) {
        self.endpoint.handle_timeout(sources.trust, now);
        self.drain(sources, now);
        // A request that cannot be made fails at the next timeout, which may as well be this one.
        self.endpoint.handle_timeout(sources.trust, now);
        self.drain(sources, now);
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.endpoint.poll_transmit()
    }

    fn go_on(&mut self, now: Now) {
        for talk in &mut self.talks {
            talk.go_on(&mut self.endpoint, now);
        }
    }

    fn drain(&mut self, sources: Sources<'_>, now: Now) {
        while let Some(outcome) = self.endpoint.poll_outcome() {
            match outcome {
                Outcome::Answered { request, reply, .. } => {
                    let talk = self.talks.iter_mut().find(|talk| talk.is_waiting_for(request));
                    if let Some(talk) = talk {
                        talk.answered(reply, &sources, &mut self.endpoint, now);
                    }
                }
                Outcome::Failed { request, .. } => {
                    if let Some(talk) = self.talks.iter_mut().find(|talk| talk.is_waiting_for(request)) {
                        talk.failed(now.mono);
                    }
                }
                // It answers nobody: neither does a member that nobody is attached to.
                Outcome::Request(_)
                | Outcome::Forwarded { .. }
                | Outcome::ClockLearned(_)
                | Outcome::ClockDoubted => {}
            }
        }
        self.go_on(now);
    }

    /// Returns whether somebody of another organisation has answered anything, so that silence is not the spy's own.
    pub(super) fn heard_others(&self, than: &NodeId) -> bool {
        let others = self.talks.iter().filter(|talk| talk.node.domain != than.domain);
        others.map(|talk| &talk.finding.answered).any(|answered: &BTreeSet<_>| !answered.is_empty())
    }
}

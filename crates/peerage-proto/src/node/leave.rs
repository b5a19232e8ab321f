//! Leaving for good: an operator is told first, if one answers.

use peerage_wire::message::Request;
use peerage_wire::time::Now;

use super::purpose::Purpose;
use super::{Answer, Node, Server, TaskId};

impl Node {
    pub(super) fn leave(&mut self, task: TaskId, now: Now) {
        if !self.hands_over_first(task, now) {
            self.leave_now(task, now);
        }
    }

    pub(super) fn leave_now(&mut self, task: TaskId, now: Now) {
        let Some(server) = self.shuffled_operators(now).into_iter().next() else {
            return self.answer(task, Answer::Left { confirmed: false });
        };
        // By a clock that is ahead it would be refused now, and whoever has recorded it could have it executed once its time
        // has come, against a node that has joined again meanwhile.
        if self.endpoint.clock().is_learned() {
            self.take_leave(task, server, now);
        } else {
            self.ask(server, &Request::Ping, Purpose::BeforeLeave(task, server), now);
        }
    }

    pub(super) fn take_leave(&mut self, task: TaskId, server: Server, now: Now) {
        let request = Request::Leave(self.command_id());
        self.ask(server, &request, Purpose::Leave(task), now);
    }
}

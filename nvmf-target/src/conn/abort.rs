//! Abort (NVMe Base 2.1 §5.1.1): finds a command wherever it is, and ends it where that is possible.
//!
//! | where the command is | what happens |
//! |---|---|
//! | waits for a buffer, for an event, for the other half of a fused operation, or for data that no R2T has asked for yet | aborted |
//! | waits for a lane, or for a thread of its backend | withdrawn, aborted |
//! | waits for its turn, or to be alone with its namespace (a fused pair) | aborted |
//! | its host has been asked for data (R2T) | aborted later: behind that data, which is thrown away |
//! | between two steps of a longer operation | aborted later: behind the step that is under way |
//! | in its backend, or its response is on its way | not aborted |
//!
//! Only the first three are immediate, and only then is bit 0 of the answer clear. A command of
//! another queue is looked for by that queue's reactor.

use super::fused::Half;
use super::{Conn, Queue};
use crate::ctrl::ConnRef;
use crate::ctrl::admin::ACL;
use crate::reactor::{Cx, Message};
use nvmf_proto::tcp::Slot;
use nvmf_proto::tcp::target::Done;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::abort::AbortCommand;

/// An Abort that waits for the reactor of the queue that it names.
#[derive(Debug)]
pub(super) struct Asked {
    slot: Slot,
    qid: u16,
    queue: ConnRef,
}

impl Conn {
    /// Carries out an Abort command.
    pub(super) fn execute_abort(&mut self, cx: &mut Cx, slot: Slot) {
        let abort = AbortCommand::decode(&self.command(slot).sqe);
        if abort.sqid == 0 {
            let aborted = self.abort(cx, abort.cid);
            return self.answer_abort(cx, slot, aborted);
        }
        let asker = self.reference(cx);
        let Queue::Admin(admin) = &mut self.queue else {
            return;
        };
        if admin.aborts.len() > usize::from(ACL) {
            return self.complete(cx, slot, Status::ABORT_LIMIT_EXCEEDED, 0);
        }
        let Some(queue) = admin.controller.queue(abort.sqid) else {
            return self.answer_abort(cx, slot, false);
        };
        queue.mailbox.send(Message::Abort {
            conn: queue.id,
            cid: abort.cid,
            asker,
            slot,
        });
        let qid = abort.sqid;
        admin.aborts.push(Asked { slot, qid, queue });
    }

    /// The reactor that was asked has answered.
    pub(crate) fn on_aborted(&mut self, cx: &mut Cx, slot: Slot, aborted: bool) {
        if let Queue::Admin(admin) = &mut self.queue
            && let Some(at) = admin.aborts.iter().position(|asked| asked.slot == slot)
        {
            admin.aborts.swap_remove(at);
            self.answer_abort(cx, slot, aborted);
        }
    }

    /// Answers Aborts whose queue is gone, with the command that they named: perhaps nobody was
    /// left there to do it.
    pub(super) fn answer_lost_aborts(&mut self, cx: &mut Cx) {
        while let Queue::Admin(admin) = &mut self.queue
            && let Some(at) = admin.aborts.iter().position(|asked| {
                let now = admin.controller.queue(asked.qid);
                now.is_none_or(|now| now != asked.queue)
            })
        {
            let Asked { slot, .. } = admin.aborts.swap_remove(at);
            self.answer_abort(cx, slot, false);
        }
    }

    fn answer_abort(&mut self, cx: &mut Cx, slot: Slot, aborted: bool) {
        let dw0 = if aborted {
            0
        } else {
            AbortCommand::NOT_PERFORMED
        };
        self.complete(cx, slot, Status::SUCCESS, dw0.into());
    }

    /// Ends the command with this CID, if it is here and can be ended. True if its response is
    /// queued: the abort was immediate.
    pub(crate) fn abort(&mut self, cx: &mut Cx, cid: u16) -> bool {
        if self.stream.is_none() {
            return false;
        }
        let Some(slot) = self.tcp.find(cid) else {
            return false;
        };
        if self.forgo_turn(cx, slot) || self.forgo_gate(cx, slot) {
            return true;
        }
        if self.command(slot).parts > 0 {
            return self.abort_request(cx, slot);
        }
        let waits = self.stop_waiting(cx, slot)
            || self.tcp.awaits_data(slot)
            || self.command(slot).half != Half::Whole;
        if !waits {
            return false;
        }
        let buf = std::mem::take(&mut self.command(slot).buf);
        self.give_buffer(cx, buf);
        let done = Done {
            status: Status::ABORT_REQUESTED,
            result: 0,
            data_len: 0,
        };
        let other = self.end_half(cx, slot, done.status);
        let immediate = self.tcp.complete(slot, done);
        self.mark_dirty(cx);
        self.resume(cx);
        if let Some((other, status)) = other {
            self.complete(cx, other, status, 0);
        }
        immediate
    }

    /// Ends a command that waits for a write gate, or whose other half does; false if it does not.
    fn forgo_gate(&mut self, cx: &mut Cx, slot: Slot) -> bool {
        let other = self.command(slot).half.other();
        let waits =
            self.stop_closing(cx, slot) || other.is_some_and(|other| self.stop_closing(cx, other));
        if !waits {
            return false;
        }
        match &self.queue {
            Queue::Admin(_) => self.end_settling(cx, slot, Status::ABORT_REQUESTED),
            Queue::None | Queue::Io(_) => self.fail(cx, slot, Status::ABORT_REQUESTED),
        }
        true
    }

    /// Takes a command off the list that it waits on, for a buffer or an event; false if it is on
    /// none.
    pub(super) fn stop_waiting(&mut self, cx: &mut Cx, slot: Slot) -> bool {
        let id = self.id;
        if self.blocked.is_some_and(|(of, _)| of == slot) {
            self.blocked = None;
            cx.blocked.retain(|&conn| conn != id);
            return true;
        }
        if let Some(at) = self.waiting.iter().position(|&(of, _)| of == slot) {
            self.waiting.remove(at);
            if self.waiting.is_empty() {
                cx.starved.retain(|&conn| conn != id);
                cx.line.leave(id, cx.now);
            }
            return true;
        }
        match &mut self.queue {
            Queue::Admin(admin) => admin.forget_event_request(slot),
            Queue::None | Queue::Io(_) => false,
        }
    }

    /// Aborts a command that has requests with lanes.
    fn abort_request(&mut self, cx: &mut Cx, slot: Slot) -> bool {
        let id = cx.mailbox.port.request(self.id, slot);
        let command = self.command(slot);
        let lane = command.lane;
        // If more steps were to come, they do not.
        command.aborted = true;
        if command.parts > 1 {
            return false;
        }
        let Some(request) = cx.lanes.withdraw(lane, id, &cx.poller) else {
            return false;
        };
        let mut completion = request.withdraw(Status::ABORT_REQUESTED);
        let Cx { lanes, poller, .. } = cx;
        lanes.completed(lane, &mut completion, poller);
        cx.in_flight -= 1;
        self.on_completion(cx, &mut completion);
        cx.requests.recycle(completion);
        true
    }
}

//! The orderly end of a connection, by a Disconnect or in a shutdown of the target: what it has is
//! finished, and the host is told so that no answer is lost.
//!
//! In a shutdown, writes whose data has been asked for get it, if the host sends it. In the end the
//! connection is closed for writing, and in full when the host has done the same: a socket that is
//! closed with input unread is reset, and a reset may overtake the answers before it.

use super::{Conn, Queue};
use crate::chatter::limited;
use crate::reactor::Cx;
use nvmf_proto::tcp::{Slot, Time};
use nvmf_proto::wire::Status;

/// Nanoseconds that a host has for taking enough of what it is sent, or sending enough of what it
/// was asked for: see [`Conn::is_stuck`].
const PATIENCE: u64 = 2_000_000_000;
/// Nanoseconds that a host has for closing its side.
const LINGER: u64 = 500_000_000;

impl Conn {
    /// The target shuts down: takes note of the commands that wait for their data.
    pub(crate) fn start_drain(&mut self, cx: &mut Cx) {
        self.moved = cx.now;
        let slots = self.commands.iter().map(|command| command.slot);
        self.owed = slots.filter(|&slot| self.tcp.awaits_data(slot)).collect();
        let waiting = self.waiting.iter().chain(&self.blocked);
        self.owed.extend(waiting.map(|&(slot, _)| slot));
        cx.ready.push(self.id);
    }

    /// Whether commands that were there when the shutdown began wait for data still.
    pub(super) fn is_owed_data(&mut self) -> bool {
        let Self {
            owed,
            tcp,
            waiting,
            blocked,
            ..
        } = self;
        owed.retain(|&slot| {
            let mut unfed = waiting.iter().chain(&*blocked);
            tcp.awaits_data(slot) || unfed.any(|&(of, _)| of == slot)
        });
        !owed.is_empty()
    }

    /// Goes on with the end of the connection, in a shutdown that began at `since`. An admin queue
    /// outlives the I/O queues of its controller, for its end would be theirs.
    pub(crate) fn drain(&mut self, cx: &mut Cx, since: Time) {
        if self.stream.is_none() {
            return;
        }
        // Time that a backend takes is none of the host's: it is looked at meanwhile.
        let is_stuck = self.is_stuck(cx, PATIENCE, 0, since);
        if self.in_flight > 0 {
            return;
        }
        // A host must not keep the target from ending, be it that it moves nothing or a byte now and
        // then.
        let given_up = if self.leaving {
            self.moved.after(LINGER) <= cx.now
        } else {
            is_stuck || self.moved.after(PATIENCE) <= cx.now
        };
        let io_queues = match &self.queue {
            Queue::Admin(admin) => admin.controller.io_queue_count(),
            Queue::None | Queue::Io(_) => 0,
        };
        if io_queues > 0 || (!given_up && (self.leaving || self.is_owed_data())) {
            return;
        }
        let sent = self.list.is_none() && !self.tcp.has_transmit();
        if given_up {
            self.cut_off(cx);
        }
        if given_up || (sent && self.ended) {
            return self.close(cx, "the target shuts down");
        }
        if sent {
            self.leave(cx);
        }
    }

    /// In a shutdown: if its host has not sent, or not taken, what it has asked for, that is said.
    /// The target has done its part.
    pub(crate) fn cut_off(&mut self, cx: &Cx) {
        let sent = self.list.is_none() && !self.tcp.has_transmit();
        if self.stream.is_none() || self.in_flight > 0 || (sent && !self.is_owed_data()) {
            return;
        }
        limited!(
            Warn,
            cx.core.chatters.silence,
            cx.now,
            "{}: cut off in the shutdown: its host takes too long over the data of its commands",
            self.peer
        );
    }

    /// Everything has been sent: it is the host's turn to close the connection.
    pub(super) fn leave(&mut self, cx: &mut Cx) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.shutdown_write();
        self.half_closed = true;
        self.leaving = true;
        self.moved = cx.now;
        // What is there to read comes without another event.
        self.readable = true;
        cx.ready.push(self.id);
        self.arm(cx);
    }

    /// When the host's turn is over.
    pub(super) fn lingers_until(&self) -> Option<Time> {
        self.leaving.then(|| self.moved.after(LINGER))
    }

    /// Disconnect: deletes the queue (NVMe Base 2.1 §6.4). Its response is the last one, so
    /// commands that wait end now, and those in backends are waited for. One whose data has been
    /// asked for can have no response before the data, which is not read any more.
    pub(super) fn disconnect(&mut self, cx: &mut Cx, slot: Slot) {
        self.closing = true;
        self.disconnect = Some(slot);
        let slots: Vec<Slot> = self.commands.iter().map(|command| command.slot).collect();
        for other in slots {
            let waits = self.waiting.iter().any(|&(of, _)| of == other);
            if waits || self.tcp.awaits_data(other) {
                self.complete(cx, other, Status::ABORTED_SQ_DELETION, 0);
            }
        }
        self.waiting.clear();
        self.mark_dirty(cx);
    }

    /// Answers a Disconnect when no other command is at work.
    pub(super) fn end_disconnect(&mut self, cx: &mut Cx) {
        if self.in_flight == 0
            && let Some(slot) = self.disconnect.take()
        {
            self.complete(cx, slot, Status::SUCCESS, 0);
        }
    }
}

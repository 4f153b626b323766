//! Where buffers are short, and in a shutdown: what a host owes for those of its connection that only
//! it can free.

use super::Conn;
use super::fused::Half;
use crate::reactor::{Cx, SMALL};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::Status;

/// One way of a connection's data.
#[derive(Debug, Default)]
pub(super) struct Dues {
    /// Bytes that have been moved.
    moved: u64,
    /// When it was last seen that this was enough for what is owed, and `moved` then.
    paid: (Time, u64),
}

impl Dues {
    pub(super) const fn note(&mut self, n: usize) {
        self.moved += n as u64;
    }

    /// Whether less than an eighth of the `owed` bytes, or than 16 KiB, has been moved within
    /// `limit` nanoseconds, as long as the shortage has been looked at that `began` then; half of
    /// that in half of the time, and so on, `hurry` times.
    fn are_late(&mut self, owed: usize, now: Time, limit: u64, hurry: u32, began: Time) -> bool {
        let enough = (owed.min(SMALL).max(owed / 8) >> hurry) as u64;
        let (since, before) = self.paid;
        if owed == 0 || since < began || self.moved - before >= enough {
            self.paid = (now, self.moved);
        }
        self.paid.0.after(limit >> hurry) <= now
    }
}

impl Conn {
    /// Whether its host has moved nothing for `limit` nanoseconds, or too little for the buffers
    /// that only it can free. What is in a backend, or waits for a backend or for others, is not its
    /// fault; commands that need no buffers are no use of those.
    pub(crate) fn is_stuck(&mut self, cx: &Cx, limit: u64, hurry: u32, began: Time) -> bool {
        let now = cx.now;
        let (to_fill, to_empty) = if self.held > 0 { self.owed() } else { (0, 0) };
        let late = self.filling.are_late(to_fill, now, limit, hurry, began)
            | self.emptying.are_late(to_empty, now, limit, hurry, began);
        let idle = self.moved.after(limit >> hurry) < now && to_fill + to_empty > 0;
        late || idle
    }

    /// Ends a pair of which one half has its buffer while the other has waited for one for `limit`
    /// nanoseconds: where many do that nobody would ever get on. Their hosts may try again.
    pub(crate) fn end_starved_pair(&mut self, cx: &mut Cx, limit: u64) {
        let mut waiting = self.blocked.iter().chain(&self.waiting);
        let starved = waiting.find(|&&(slot, _)| self.completes_pair(slot));
        let Some(&(slot, _)) = starved else {
            self.pair_waits = None;
            return;
        };
        match self.pair_waits {
            Some((of, since)) if of == slot => {
                if since.after(limit) <= cx.now {
                    self.pair_waits = None;
                    self.stop_waiting(cx, slot);
                    self.fail(cx, slot, Status::COMMAND_INTERRUPTED);
                }
            }
            _ => self.pair_waits = Some((slot, cx.now)),
        }
    }

    /// Bytes of buffers that wait for data of the host, and of those whose data it does not read.
    fn owed(&self) -> (usize, usize) {
        let (mut to_fill, mut to_empty) = (0, 0);
        // The host's data may stand behind in-capsule data that waits for a buffer.
        let hears = self.blocked.is_none();
        for command in self.commands.iter().filter(|c| !c.buf.is_empty()) {
            let footprint = command.buf.footprint();
            // A first half waits for the host's second.
            let waits = matches!(command.half, Half::First { .. });
            if hears && (waits || self.tcp.awaits_data(command.slot)) {
                to_fill += footprint;
            } else if self.list.is_some() && self.tcp.is_answered(command.slot) {
                to_empty += footprint;
            }
        }
        (to_fill, to_empty)
    }
}

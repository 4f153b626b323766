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
    /// `limit` nanoseconds, as long as the shortage has been looked at that `began` then.
    fn are_late(&mut self, owed: usize, now: Time, limit: u64, began: Time) -> bool {
        let enough = owed.min(SMALL).max(owed / 8) as u64;
        let (since, before) = self.paid;
        if owed == 0 || since < began || self.moved - before >= enough {
            self.paid = (now, self.moved);
        }
        self.paid.0.after(limit) <= now
    }
}

impl Conn {
    /// Whether its host has moved nothing for `limit` nanoseconds, or too little for the buffers
    /// that only it can free. What is in a backend, or waits for a backend or for others, is not its
    /// fault; commands that need no buffers are no use of those. Where nothing at all has been moved
    /// since anything was owed, the time is halved `hurry` times.
    pub(crate) fn is_stuck(&mut self, cx: &Cx, limit: u64, hurry: u32, began: Time) -> bool {
        let now = cx.now;
        let (to_fill, to_empty) = if self.held > 0 { self.owed() } else { (0, 0) };
        let moved = (self.filling.moved, self.emptying.moved);
        let is_still = to_fill + to_empty > 0 && self.first_owed == Some(moved);
        if to_fill + to_empty == 0 {
            self.first_owed = None;
        } else {
            self.first_owed.get_or_insert(moved);
        }
        let limit = if is_still { limit >> hurry } else { limit };
        let late = self.filling.are_late(to_fill, now, limit, began)
            | self.emptying.are_late(to_empty, now, limit, began);
        let idle = self.moved.after(limit) < now && to_fill + to_empty > 0;
        late || idle
    }

    /// What is with namespaces that do not answer is no part of its share any more: it cannot be
    /// freed, and what the host wants of others is to go on.
    pub(crate) fn write_off(&mut self, cx: &mut Cx) {
        // Idle connections are many, and each has a place for every command that it may send.
        if self.held == 0 {
            return;
        }
        let mut lost = 0;
        for command in &mut self.commands {
            let is_lost = command.given > 0 && cx.lanes.is_stopped(command.lane);
            command.lost = if is_lost { command.given } else { 0 };
            lost += command.lost as usize;
        }
        if self.lost < lost {
            cx.line.note_change();
        }
        self.lost = lost;
    }

    /// Bytes of buffers that count for its share.
    pub(super) const fn counted(&self) -> usize {
        self.held.saturating_sub(self.lost)
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

    /// Bytes of buffers that wait for data of the host, and of those whose data it is to read first:
    /// what it is asked for may stand behind that.
    fn owed(&self) -> (usize, usize) {
        let (mut to_fill, mut to_empty) = (0, 0);
        // The host's data may stand behind in-capsule data that waits for a buffer.
        let hears = self.blocked.is_none();
        for command in self.commands.iter().filter(|c| !c.buf.is_empty()) {
            let footprint = command.buf.footprint();
            // A first half waits for the host's second.
            let waits = matches!(command.half, Half::First { .. });
            let slot = command.slot;
            if self.list.is_some() {
                if waits || self.tcp.awaits_data(slot) || self.tcp.is_answered(slot) {
                    to_empty += footprint;
                }
            } else if hears && (waits || self.tcp.is_receiving(slot)) {
                to_fill += footprint;
            }
        }
        (to_fill, to_empty)
    }
}

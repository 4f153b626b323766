//! Sending: everything that is finished leaves in one gather write.

use super::in_place::{Loans, data};
use super::{Conn, Queue};
use crate::contain::contain;
use crate::reactor::Cx;
use arrayvec::ArrayVec;
use nvmf_proto::tcp::{Need, Seg, TxList};
use std::io::{self, IoSlice};

/// Runs that one system call takes.
pub(super) const RUNS: usize = 256;

impl Conn {
    /// Sends what there is, until the stream takes no more.
    pub(crate) fn flush(&mut self, cx: &mut Cx) {
        if let Err(panic) = contain(|| self.transmit(cx)) {
            self.give_up(cx, &panic);
        }
    }

    fn transmit(&mut self, cx: &mut Cx) {
        self.dirty = false;
        self.end_disconnect(cx);
        while self.stream.is_some() {
            let mut list = match self.list.take() {
                Some(list) => list,
                None if self.tcp.has_transmit() => cx.take_list(matches!(self.queue, Queue::None)),
                None => break,
            };
            let fresh = list.is_empty() && self.tcp.poll_transmit(&mut list);
            if list.is_empty() {
                cx.give_list(list);
                break;
            }
            match self.write(cx, &mut list, fresh) {
                Ok(0) => {
                    self.list = Some(list);
                    break;
                }
                Ok(n) => self.sent(cx, list, n),
                Err(err) => {
                    cx.give_list(list);
                    self.close(cx, &err.to_string());
                }
            }
        }
        // Loans end with the turn.
        if let Err(err) = self.copy_lent(&cx.lanes, &mut cx.pool) {
            self.close(cx, &err.to_string());
        }
        let sent = self.list.is_none() && !self.tcp.has_transmit();
        if self.closing && self.disconnect.is_none() && sent && !self.leaving {
            self.leave(cx);
        }
        if self.list.is_none() && !self.half_closed && self.tcp.need() == Need::Drain {
            // The TermReq has left. Its reader is to see the end, and to close before we do:
            // unread data at our close would make a reset that may overtake the TermReq.
            self.half_closed = true;
            if let Some(stream) = &mut self.stream {
                stream.shutdown_write();
            }
        }
        // Slots have become free: the machine may have waited for one.
        self.resume(cx);
    }

    /// One write of a list, which is `fresh` if none of it has been tried before. `Ok(0)`: the
    /// stream takes nothing at the moment.
    fn write(&mut self, cx: &mut Cx, list: &mut TxList, fresh: bool) -> io::Result<usize> {
        let Cx { lanes, pool, .. } = cx;
        let mut loans = Loans::new();
        self.borrow(lanes, pool, list, &mut loans)?;
        if fresh {
            list.fill_digests(|d| {
                &data(&self.commands, d.slot, &loans)
                    [d.offset as usize..(d.offset + d.len) as usize]
            });
        }
        let (n, of) = self.writev(list, &loans)?;
        if n < of && !loans.is_empty() {
            self.end_loans(pool, list, &loans, n)?;
        }
        Ok(n)
    }

    /// How many bytes have left, of how many.
    fn writev(&mut self, list: &TxList, loans: &Loans<'_>) -> io::Result<(usize, usize)> {
        let Some(stream) = self.stream.as_mut().filter(|_| self.writable) else {
            return Ok((0, usize::MAX));
        };
        let mut runs: ArrayVec<IoSlice<'_>, RUNS> = ArrayVec::new();
        let mut total = 0;
        for seg in list.segments().iter().take(RUNS) {
            let run = match *seg {
                Seg::Head { start, len } => &list.heads()[start as usize..(start + len) as usize],
                Seg::Data { slot, offset, len } => {
                    &data(&self.commands, slot, loans)[offset as usize..(offset + len) as usize]
                }
            };
            total += run.len();
            runs.push(IoSlice::new(run));
        }
        let result = loop {
            match stream.writev(&runs) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok((0, total))
            }
            result => result.map(|n| (n, total)),
        }
    }

    /// Takes note of `n` bytes that have left, and of the commands that are over by that.
    fn sent(&mut self, cx: &mut Cx, mut list: Box<TxList>, n: usize) {
        list.advance(n);
        self.moved = cx.now;
        self.emptying.note(n);
        let Self {
            tcp,
            commands,
            held,
            ..
        } = self;
        tcp.transmitted(n, |slot| {
            let command = &mut commands[slot.index()];
            if let Some(lent) = command.lent.take() {
                *held -= lent.end(&mut cx.pool);
            }
            if !command.buf.is_empty() {
                let buf = std::mem::take(&mut command.buf);
                *held -= buf.footprint();
                cx.give_buffer(buf);
            }
        });
        if list.is_empty() {
            cx.give_list(list);
        } else {
            self.list = Some(list);
        }
    }
}

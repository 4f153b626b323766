//! Reads and writes of devices that work at memory speed, without a buffer in between.
//!
//! The data of a Read leaves from where the device has it, in the turn that carries the command
//! out: it is lent for the time of one system call, and what the stream does not take then is
//! copied to a buffer. The data of a Write goes to the device from where it was received. Memory
//! is set aside for either as for any other command, so that nothing has to wait for it halfway.

use super::fused::Half;
use super::io::{IoPlan, Step};
use super::{Command, Conn, Queue};
use crate::buf::{BLOCK, BufPool};
use crate::chatter::error;
use crate::ns::{LbaRange, Loan, Op};
use crate::reactor::{Cx, Lanes};
use arrayvec::ArrayVec;
use nvmf_proto::tcp::target::Event;
use nvmf_proto::tcp::{Need, Seg, Slot, TxList, crc32c};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::pdu::DIGEST_LEN;
use std::io;

/// Loans that one gather write can use.
pub(super) type Loans<'a> = ArrayVec<Loan<'a>, { super::tx::RUNS }>;

/// A Read's data that its lane is to lend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    /// Byte offset on the device.
    at: u64,
    len: usize,
    /// The command has no buffer, but the pool's promise of one.
    promised: bool,
    /// Index in the [`Loans`] of the gather write that is being made.
    loan: usize,
}

impl Lent {
    /// It is over: what the pool has promised may go to others. Returns how many bytes that are.
    pub(super) const fn end(self, pool: &mut BufPool) -> usize {
        if self.promised {
            pool.release_promise();
            BLOCK
        } else {
            0
        }
    }
}

/// A Write to a device that takes it at once.
#[derive(Clone, Copy, Debug)]
struct InPlace {
    lane: usize,
    op: Op,
    /// Byte offset on the device.
    at: u64,
    len: usize,
}

impl InPlace {
    /// What a plan asks for, if it is that and its lane is open.
    fn of(plan: &IoPlan, cx: &Cx) -> Option<Self> {
        let &IoPlan::Rw {
            ns,
            op: op @ Op::Write { .. },
            next: Step::Respond,
            range,
            len,
        } = plan
        else {
            return None;
        };
        let lane = cx.lanes.get(ns.uid)?;
        cx.lanes.writes_inline(lane).then(|| Self {
            lane,
            op,
            at: range.slba << ns.lba_shift,
            len: len as usize,
        })
    }
}

/// A small Write whose data is next in the stream. It has no buffer, but the pool's promise of one.
/// Outlives no call of [`Conn::feed`](super::Conn).
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    slot: Slot,
    write: InPlace,
}

/// The bytes of a command's data.
pub(super) fn data<'a>(commands: &'a [Command], slot: Slot, loans: &'a Loans<'_>) -> &'a [u8] {
    let command = &commands[slot.index()];
    match command.lent {
        Some(lent) => &loans[lent.loan],
        None => &command.buf,
    }
}

impl Conn {
    /// Answers a small Read with data that its lane will lend when it is sent. A buffer is only
    /// promised: as a rule it is not needed. False: it has to go the usual way.
    pub(super) fn read_promised(&mut self, cx: &mut Cx, slot: Slot, plan: &IoPlan) -> bool {
        let &IoPlan::Rw {
            ns,
            op: Op::Read,
            next: Step::Respond,
            range,
            len,
        } = plan
        else {
            return false;
        };
        if len as usize > BLOCK || !self.may_take(cx, len) {
            return false;
        }
        let Some(lane) = cx.lanes.get(ns.uid) else {
            return false;
        };
        if !self.may_lend(cx, lane, range) || !cx.pool.promise() {
            return false;
        }
        self.held += BLOCK;
        self.answer_lent(cx, slot, lane, range.slba << ns.lba_shift, len, true);
        true
    }

    /// The same for a Read that has its buffer.
    pub(super) fn read_in_place(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        lane: usize,
        range: LbaRange,
        lba_shift: u8,
    ) -> bool {
        let lends = self.may_lend(cx, lane, range);
        if lends {
            let len = u32::try_from(self.command(slot).buf.len()).unwrap_or(u32::MAX);
            self.answer_lent(cx, slot, lane, range.slba << lba_shift, len, false);
        }
        lends
    }

    #[inline]
    fn may_lend(&self, cx: &Cx, lane: usize, range: LbaRange) -> bool {
        // What cannot leave in this turn would be copied all the same.
        self.writable && self.list.is_none() && cx.lanes.may_lend(lane, range)
    }

    #[inline]
    fn answer_lent(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        lane: usize,
        at: u64,
        len: u32,
        promised: bool,
    ) {
        let command = self.command(slot);
        command.lane = lane;
        command.lent = Some(Lent {
            at,
            len: len as usize,
            promised,
            loan: usize::MAX,
        });
        self.lent.push(slot);
        self.send_data(cx, slot, len);
    }

    /// Collects the loans for what a list is about to send. Where somebody is writing, all that was
    /// to be lent is copied: what has been lent so far from there, so that nothing is lent twice.
    pub(super) fn borrow<'a>(
        &mut self,
        lanes: &'a Lanes,
        pool: &mut BufPool,
        list: &TxList,
        loans: &mut Loans<'a>,
    ) -> io::Result<()> {
        if self.lent.is_empty() || (self.writable && self.try_borrow(lanes, list, loans)) {
            return Ok(());
        }
        for seg in list.segments() {
            if let Seg::Data { slot, .. } = *seg
                && let Some(lent) = self.commands[slot.index()].lent
                && let Some(loan) = loans.get(lent.loan)
            {
                self.copy_loan(pool, slot, loan)?;
            }
        }
        loans.clear();
        self.copy_lent(lanes, pool)
    }

    fn try_borrow<'a>(&mut self, lanes: &'a Lanes, list: &TxList, loans: &mut Loans<'a>) -> bool {
        for seg in list.segments() {
            let Seg::Data { slot, .. } = *seg else {
                continue;
            };
            let command = &mut self.commands[slot.index()];
            let Some(lent) = &mut command.lent else {
                continue;
            };
            let Some(loan) = lanes.lend(command.lane, lent.at, lent.len, false) else {
                return false;
            };
            lent.loan = loans.len();
            loans.push(loan);
        }
        true
    }

    /// Copies what is still to be lent to buffers of its commands, one after the other.
    pub(super) fn copy_lent(&mut self, lanes: &Lanes, pool: &mut BufPool) -> io::Result<()> {
        while let Some(&slot) = self.lent.last() {
            let command = &self.commands[slot.index()];
            if let Some(lent) = command.lent {
                let loan = lanes.lend(command.lane, lent.at, lent.len, true);
                let loan = loan.ok_or_else(|| io::Error::other("its device refused a loan"))?;
                self.copy_loan(pool, slot, &loan)?;
            }
            // Not before: what it was promised is given back with the list.
            self.lent.pop();
        }
        Ok(())
    }

    /// Copies what is lent to a command to its buffer.
    fn copy_loan(&mut self, pool: &mut BufPool, slot: Slot, loan: &[u8]) -> io::Result<()> {
        let command = &mut self.commands[slot.index()];
        if let Some(Lent { promised: true, .. }) = command.lent.take() {
            let buf = pool.redeem(loan.len());
            command.buf = buf.ok_or_else(|| io::Error::other("the pool broke a promise"))?;
        }
        command.buf.copy_from_slice(loan);
        Ok(())
    }

    /// `n` bytes of a list have left: copies what was lent and has not left entirely.
    pub(super) fn end_loans(
        &mut self,
        pool: &mut BufPool,
        list: &TxList,
        loans: &Loans<'_>,
        n: usize,
    ) -> io::Result<()> {
        let mut left = n;
        for seg in list.segments() {
            let len = match *seg {
                Seg::Head { len, .. } => len as usize,
                Seg::Data { slot, len, .. } => {
                    let lent = self.commands[slot.index()].lent;
                    if let Some(lent) = lent.filter(|_| left < len as usize) {
                        self.copy_loan(pool, slot, &loans[lent.loan])?;
                    }
                    len as usize
                }
            };
            left = left.saturating_sub(len);
        }
        Ok(())
    }

    /// Prepares a small Write whose data is next in the stream for [`Conn::write_in_place`]. A
    /// buffer is only promised, as to a Read. False: it has to go the usual way.
    pub(super) fn expect_in_place(&mut self, cx: &mut Cx, slot: Slot, plan: &IoPlan) -> bool {
        let Some(write) = InPlace::of(plan, cx) else {
            return false;
        };
        if write.len > BLOCK
            || self.command(slot).half != Half::Whole
            || !self.may_take(cx, u32::try_from(write.len).unwrap_or(u32::MAX))
            || !cx.pool.promise()
        {
            return false;
        }
        self.held += BLOCK;
        self.expected = Some(Expected { slot, write });
        self.tcp.receive(slot, 0);
        true
    }

    /// What was promised to the Write whose data is next becomes its buffer.
    fn redeem_expected(&mut self, cx: &mut Cx) {
        if let Some(Expected { slot, write, .. }) = self.expected.take() {
            match cx.pool.redeem(write.len) {
                Some(buf) => self.command(slot).buf = buf,
                None => self.close(cx, "the pool broke a promise"),
            }
        }
    }

    /// The Write is over, or the connection: what was promised may go to others.
    pub(super) fn forget_expected(&mut self, pool: &mut BufPool) {
        if self.expected.take().is_some() {
            pool.release_promise();
            self.held -= BLOCK;
        }
    }

    /// Carries out a Write whose data is next in the stream and lies in `rest`, with its digest,
    /// if its device takes it from there. Returns how many bytes that were.
    pub(super) fn write_in_place(&mut self, cx: &mut Cx, rest: &[u8]) -> Option<usize> {
        let used = self.try_write_in_place(cx, rest);
        if used.is_none() {
            self.redeem_expected(cx);
        }
        used
    }

    fn try_write_in_place(&mut self, cx: &mut Cx, rest: &[u8]) -> Option<usize> {
        let Need::Payload {
            slot,
            offset: 0,
            len,
            crc,
        } = self.tcp.need()
        else {
            return None;
        };
        let n = len as usize;
        let used = n + crc.map_or(0, |_| DIGEST_LEN);
        if rest.len() < used {
            return None;
        }
        let write = self.planned_write(cx, slot)?;
        if write.len != n || !cx.lanes.writes_inline(write.lane) {
            return None;
        }
        let (data, digest) = rest[..used].split_at(n);
        let event = self.tcp.placed(len, crc.map(|crc| crc32c(crc, data)));
        let event = event.or_else(|| self.tcp.parse(digest).ok()?.event);
        self.forget_expected(&mut cx.pool);
        match event {
            Some(Event::Received {
                digest_ok: true, ..
            }) => {
                self.filling.note(n);
                self.command(slot).lane = write.lane;
                let result = cx.lanes.write(write.lane, write.op, write.at, data);
                self.written_in_place(cx, slot, n as u64, result);
            }
            Some(event) => self.on_event(cx, event),
            None => error!("{}: no event behind a command's data", self.peer),
        }
        Some(used)
    }

    /// What a Write is about to do: found out when its command came, if nothing has changed since.
    fn planned_write(&mut self, cx: &Cx, slot: Slot) -> Option<InPlace> {
        if let Some(expected) = self.expected
            && expected.slot == slot
            && let Queue::Io(queue) = &self.queue
            && queue.is_fresh()
        {
            return Some(expected.write);
        }
        let command = self.command(slot);
        if command.half != Half::Whole {
            return None;
        }
        let (sqe, held) = (command.sqe, command.buf.len());
        let write = InPlace::of(&self.plan_io(&sqe).ok()?, cx)?;
        // The namespace may be of another format by now: a piece of what the host was asked for
        // is not to pass for the whole.
        (write.len == held).then_some(write)
    }

    fn written_in_place(&mut self, cx: &mut Cx, slot: Slot, len: u64, result: Result<(), Status>) {
        cx.flushed = false;
        match result {
            Ok(()) => {
                self.count_written(cx, slot, len);
                self.complete(cx, slot, Status::SUCCESS, 0);
            }
            Err(status) => self.fail(cx, slot, status),
        }
    }
}

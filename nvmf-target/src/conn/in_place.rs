//! Reads and writes of devices that work at memory speed, without a buffer in between.
//!
//! The data of a Read leaves from where the device has it, in the turn that carries the command
//! out: it is lent for the time of one system call, and what the stream does not take then is
//! copied to the command's buffer. The data of a Write goes to the device from where it was
//! received. Either command still has its buffer, so that nothing has to wait for memory halfway.

use super::Conn;
use super::fused::Half;
use super::io::{IoPlan, Step};
use crate::ns::{LbaRange, Loan, Op};
use crate::reactor::Cx;
use arrayvec::ArrayVec;
use log::error;
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
    /// Index in the [`Loans`] of the gather write that is being made.
    loan: usize,
}

impl Conn {
    /// Answers a Read with data that its lane will lend when it is sent. False: it has to be read.
    pub(super) fn read_in_place(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        lane: usize,
        range: LbaRange,
        lba_shift: u8,
    ) -> bool {
        // What cannot leave in this turn would be copied all the same.
        if !self.writable || self.list.is_some() || !cx.lanes.may_lend(lane, range) {
            return false;
        }
        let command = self.command(slot);
        command.lane = lane;
        command.lent = Some(Lent {
            at: range.slba << lba_shift,
            loan: usize::MAX,
        });
        self.lent.push(slot);
        self.send_data(cx, slot);
        true
    }

    /// The loans for what a list is about to send. None where somebody is writing: then all that
    /// was to be lent is copied.
    pub(super) fn borrow<'a>(&mut self, cx: &'a Cx, list: &TxList) -> io::Result<Loans<'a>> {
        let mut loans = Loans::new();
        if self.lent.is_empty() || (self.writable && self.try_borrow(cx, list, &mut loans)) {
            return Ok(loans);
        }
        loans.clear();
        self.copy_lent(cx)?;
        Ok(loans)
    }

    fn try_borrow<'a>(&mut self, cx: &'a Cx, list: &TxList, loans: &mut Loans<'a>) -> bool {
        list.segments().iter().all(|seg| {
            let Seg::Data { slot, .. } = *seg else {
                return true;
            };
            let command = &mut self.commands[slot.index()];
            let Some(lent) = &mut command.lent else {
                return true;
            };
            let len = command.buf.len();
            let Some(loan) = cx.lanes.lend(command.lane, lent.at, len, false) else {
                return false;
            };
            lent.loan = loans.len();
            loans.push(loan);
            true
        })
    }

    /// Copies what is still to be lent to the buffers of its commands, one after the other.
    pub(super) fn copy_lent(&mut self, cx: &Cx) -> io::Result<()> {
        for slot in self.lent.drain(..) {
            let command = &mut self.commands[slot.index()];
            let Some(lent) = command.lent.take() else {
                continue;
            };
            let len = command.buf.len();
            let loan = cx.lanes.lend(command.lane, lent.at, len, true);
            let loan = loan.ok_or_else(|| io::Error::other("its device refused a loan"))?;
            command.buf.copy_from_slice(&loan);
        }
        Ok(())
    }

    /// The bytes of a command's data.
    pub(super) fn data<'a>(&'a self, slot: Slot, loans: &'a Loans<'_>) -> &'a [u8] {
        let command = &self.commands[slot.index()];
        match command.lent {
            Some(lent) => &loans[lent.loan],
            None => &command.buf,
        }
    }

    /// `n` bytes of a list have left: copies what was lent and has not left entirely.
    pub(super) fn end_loans(&mut self, list: &TxList, loans: &Loans<'_>, n: usize) {
        let mut left = n;
        for seg in list.segments() {
            let len = match *seg {
                Seg::Head { len, .. } => len as usize,
                Seg::Data { slot, len, .. } => {
                    let command = &mut self.commands[slot.index()];
                    if let Some(lent) = command.lent.take()
                        && left < len as usize
                    {
                        command.buf.copy_from_slice(&loans[lent.loan]);
                    }
                    len as usize
                }
            };
            left = left.saturating_sub(len);
        }
    }

    /// Carries out a Write whose data lies in `rest`, with its digest, if its device takes it from
    /// there. Returns how many bytes that were.
    pub(super) fn write_in_place(&mut self, cx: &mut Cx, rest: &[u8]) -> Option<usize> {
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
        let command = &self.commands[slot.index()];
        if rest.len() < used || command.buf.len() != n || command.half != Half::Whole {
            return None;
        }
        let sqe = command.sqe;
        let Ok(IoPlan::Rw {
            ns,
            op: op @ Op::Write { .. },
            next: Step::Respond,
            range,
            ..
        }) = self.plan_io(&sqe)
        else {
            return None;
        };
        let lane = self.lane(cx, ns).ok()?;
        if !cx.lanes.writes_inline(lane) {
            return None;
        }
        let (data, digest) = rest[..used].split_at(n);
        let event = self.tcp.placed(len, crc.map(|crc| crc32c(crc, data)));
        let event = event.or_else(|| self.tcp.parse(digest).ok()?.event);
        match event {
            Some(Event::Received {
                digest_ok: true, ..
            }) => {
                self.command(slot).lane = lane;
                let result = cx.lanes.write(lane, op, range.slba << ns.lba_shift, data);
                self.written_in_place(cx, slot, n as u64, result);
            }
            Some(event) => self.on_event(cx, event),
            None => error!("{}: no event behind a command's data", self.peer),
        }
        Some(used)
    }

    fn written_in_place(&mut self, cx: &mut Cx, slot: Slot, len: u64, result: Result<(), Status>) {
        match result {
            Ok(()) => {
                self.count_written(cx, slot, len);
                self.complete(cx, slot, Status::SUCCESS, 0);
            }
            Err(status) => self.fail(cx, slot, status),
        }
    }
}

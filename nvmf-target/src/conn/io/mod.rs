//! Commands of the NVM command set: requests to the lanes, completions.

mod compare;
mod copy;
mod plan;
mod steps;
mod turns;

pub(crate) use copy::CopyLimits;
pub(super) use copy::Copying;
pub(super) use plan::IoPlan;
pub(super) use steps::Step;
pub(crate) use steps::{DMRL, DMRSL, STRIDE};
pub(crate) use turns::Turns;

use super::{Conn, Queue};
use crate::buf::IoBuf;
use crate::ctrl::{Fault, Seen};
use crate::ns::{LbaRange, NsInfo, Op, Request, Route, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::tcp::target::Done;
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};
use plan::NsRef;
use std::sync::Arc;

/// Bytes that emulated commands read or write at a time; no fewer than one write may be promised to
/// be atomic for.
const PIECE: u64 = NsInfo::ATOMIC_MAX as u64;

/// The range of requests that have none.
pub(super) const NOWHERE: LbaRange = LbaRange { slba: 0, blocks: 0 };

/// Whether FUA means anything for what a command writes.
const fn is_write(sqe: &Sqe) -> bool {
    matches!(
        NvmOpcode(sqe.opcode()),
        NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::COPY
    )
}

impl Conn {
    /// Checks an I/O command against the namespaces of this moment.
    #[inline]
    pub(super) fn plan_io(&mut self, sqe: &Sqe) -> Result<IoPlan, Fault> {
        let Queue::Io(queue) = &mut self.queue else {
            return Err(Status::INTERNAL_ERROR.into());
        };
        queue.refresh();
        let view = &queue.view;
        let max_transfer = queue.controller.limits.max_transfer;
        if view.write_through() && is_write(sqe) {
            let mut forced = *sqe;
            forced.set_fua();
            return IoPlan::new(&forced, view, max_transfer);
        }
        IoPlan::new(sqe, view, max_transfer)
    }

    pub(super) fn execute_io(&mut self, cx: &mut Cx, slot: Slot, plan: &IoPlan) {
        match *plan {
            IoPlan::Nothing => self.complete(cx, slot, Status::SUCCESS, 0),
            IoPlan::Disconnect => self.disconnect(cx, slot),
            IoPlan::Rw {
                ns,
                op,
                next,
                range,
                ..
            } => {
                let lane = match self.lane(cx, ns) {
                    Ok(lane) => lane,
                    Err(status) => return self.end(cx, slot, status),
                };
                let plain = op == Op::Read && next == Step::Respond;
                if plain && self.read_in_place(cx, slot, lane, range, ns.lba_shift) {
                    return;
                }
                let route = self.route(slot, lane);
                let command = self.command(slot);
                command.next = next;
                let buf = std::mem::take(&mut command.buf);
                let request = cx.requests.make(op, ns.lba_shift, range, buf, route);
                self.launch(cx, slot, lane, request);
            }
            IoPlan::Steps {
                ns, flush, first, ..
            } => {
                self.command(slot).next = first;
                if flush {
                    self.submit(cx, slot, ns, Op::Flush, NOWHERE, IoBuf::empty());
                } else {
                    self.proceed(cx, slot);
                }
            }
            IoPlan::Flush(ns) => {
                self.command(slot).next = Step::Respond;
                self.submit(cx, slot, ns, Op::Flush, NOWHERE, IoBuf::empty());
            }
            IoPlan::FlushAll => self.flush_all(cx, slot),
            IoPlan::Reservation(_) => self.execute_reservation(cx, slot),
        }
    }

    /// The lane of a namespace, opened if need be.
    pub(super) fn lane(&self, cx: &mut Cx, ns: NsRef) -> Result<usize, Status> {
        if let Some(lane) = cx.lanes.get(ns.uid) {
            return Ok(lane);
        }
        let Queue::Io(queue) = &self.queue else {
            return Err(Status::INTERNAL_ERROR);
        };
        let seen = queue.view.get(ns.nsid);
        let seen = seen.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        cx.lanes.open(&seen.entry, &cx.poller, &cx.mailbox)
    }

    const fn route(&self, slot: Slot, lane: usize) -> Route {
        let conn = self.id;
        Route { conn, slot, lane }
    }

    /// Hands one request to the namespace's lane.
    fn submit(&mut self, cx: &mut Cx, slot: Slot, ns: NsRef, op: Op, range: LbaRange, buf: IoBuf) {
        match self.lane(cx, ns) {
            Ok(lane) => {
                let route = self.route(slot, lane);
                let request = cx.requests.make(op, ns.lba_shift, range, buf, route);
                self.launch(cx, slot, lane, request);
            }
            Err(status) => {
                self.give_buffer(cx, buf);
                self.end(cx, slot, status);
            }
        }
    }

    pub(super) fn launch(&mut self, cx: &mut Cx, slot: Slot, lane: usize, request: Request) {
        let command = self.command(slot);
        command.parts += 1;
        command.lane = lane;
        command.given = u32::try_from(request.footprint()).unwrap_or(u32::MAX);
        let alone = command.exclusive.is_some();
        self.in_flight += 1;
        cx.in_flight += 1;
        if alone {
            cx.lanes.submit_exclusive(lane, request);
        } else {
            cx.lanes.submit(lane, request);
        }
    }

    /// Flush with NSID FFFFFFFFh: every namespace of the subsystem (VWC bits 2:1 are 11b).
    fn flush_all(&mut self, cx: &mut Cx, slot: Slot) {
        let Queue::Io(queue) = &self.queue else {
            return;
        };
        let view = Arc::clone(&queue.view);
        let volatile = |seen: &&Seen| {
            let info = &seen.entry.info;
            info.volatile_cache && info.caps.flush == Support::Native
        };
        // Only one at a time of these has more requests than one: what a queue takes must not grow
        // with the product of commands and namespaces.
        if view.iter().filter(volatile).nth(1).is_some()
            && self.commands.iter().any(|c| c.parts > 1)
        {
            return self.end(cx, slot, Status::COMMAND_INTERRUPTED);
        }
        self.command(slot).next = Step::Respond;
        let mut launched = false;
        for seen in view.iter().filter(volatile) {
            let ns = NsRef::of(&seen.entry);
            match self.lane(cx, ns) {
                Ok(lane) => {
                    let route = self.route(slot, lane);
                    let request =
                        cx.requests
                            .make(Op::Flush, ns.lba_shift, NOWHERE, IoBuf::empty(), route);
                    self.launch(cx, slot, lane, request);
                    launched = true;
                }
                Err(status) => self.command(slot).status = Some(status),
            }
        }
        if !launched {
            let status = self.command(slot).status.unwrap_or(Status::SUCCESS);
            self.end(cx, slot, status);
        }
    }

    /// A backend has finished a request of a command.
    pub(super) fn on_io_done(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        op: Op,
        buf: IoBuf,
        status: Status,
    ) {
        let command = self.command(slot);
        command.parts -= 1;
        if !status.is_success() && command.status.is_none() {
            command.status = Some(status);
        }
        let failed = command.status;
        if op == Op::Read && failed.is_none() && command.next == Step::Respond {
            let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
            self.command(slot).buf = buf;
            return self.send_data(cx, slot, len);
        }
        let unfinished = command.parts > 0;
        let len = buf.len() as u64;
        let mut wrong = false;
        if op == Op::Read && failed.is_none() {
            match self.command(slot).next {
                Step::Compare { .. } => wrong = !self.is_expected(slot, &buf),
                Step::Copy { .. } => self.gather(slot, &buf),
                _ => {}
            }
        }
        self.give_buffer(cx, buf);
        if unfinished {
            return;
        }
        if let Some(status) = failed {
            return self.request_failed(cx, slot, op, status);
        }
        if wrong {
            return self.end(cx, slot, Status::COMPARE_FAILURE.dnr());
        }
        match op {
            Op::Write { .. } => {
                if matches!(self.command(slot).next, Step::Respond | Step::Flush { .. }) {
                    self.count_written(cx, slot, len);
                }
            }
            Op::Compare => self.count_read(cx, slot, len),
            Op::CompareAndWrite { .. } => {
                self.count_read(cx, slot, len);
                self.count_written(cx, slot, len);
            }
            _ => {}
        }
        self.proceed(cx, slot);
    }

    /// The data of a Read, of `len` bytes, is here.
    #[inline]
    pub(super) fn send_data(&mut self, cx: &mut Cx, slot: Slot, len: u32) {
        self.count_read(cx, slot, len.into());
        let done = Done {
            status: Status::SUCCESS,
            result: 0,
            data_len: len,
        };
        self.respond(cx, slot, done);
    }

    /// A request of a command has failed.
    fn request_failed(&mut self, cx: &mut Cx, slot: Slot, op: Op, status: Status) {
        // What a backend compares and writes is the second half's request, but what it cannot
        // read, and other data, are the first one's failure.
        let of_first = status.same_code(Status::COMPARE_FAILURE)
            || status.same_code(Status::UNRECOVERED_READ_ERROR);
        let first = match op {
            Op::CompareAndWrite { .. } if of_first => self.command(slot).half.other(),
            _ => None,
        };
        self.end(cx, first.unwrap_or(slot), status);
    }

    /// Ends an I/O command without data.
    fn end(&mut self, cx: &mut Cx, slot: Slot, why: impl Into<Fault>) {
        if let Some(copying) = self.command(slot).copying.take() {
            self.give_buffer(cx, copying.gathered);
        }
        let fault = Fault {
            dw0: self.command(slot).result,
            ..why.into()
        };
        if fault.status.is_success() {
            self.complete(cx, slot, fault.status, fault.dw0.into());
        } else {
            self.fail(cx, slot, fault);
        }
    }

    /// SMART counters of controller and namespace: NVMe Base 2.1, SMART / Health Information log.
    fn count_read(&mut self, cx: &Cx, slot: Slot, bytes: u64) {
        if let Queue::Io(queue) = &self.queue {
            queue.stats.read(bytes);
        }
        if let Some(stats) = cx.lanes.stats(self.command(slot).lane) {
            stats.read(bytes);
        }
    }

    pub(super) fn count_written(&mut self, cx: &Cx, slot: Slot, bytes: u64) {
        if let Queue::Io(queue) = &self.queue {
            queue.stats.written(bytes);
        }
        if let Some(stats) = cx.lanes.stats(self.command(slot).lane) {
            stats.written(bytes);
        }
    }
}

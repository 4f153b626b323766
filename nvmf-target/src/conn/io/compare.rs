//! Compare, and the fused operation Compare and Write.

use super::NOWHERE;
use super::plan::{NsRef, force, inside};
use super::steps::{Now, Step, split};
use crate::buf::IoBuf;
use crate::conn::command::CHANGED;
use crate::conn::{Conn, Queue};
use crate::ctrl::{Fault, Usage};
use crate::ns::{LbaRange, Op, Support};
use crate::reactor::{Cx, Gate};
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::{Sqe, Status};
use std::sync::Arc;

/// A fused operation whose halves have passed their checks.
struct Pair {
    ns: NsRef,
    gate: Arc<Gate>,
    /// The backend does it in one request.
    native: bool,
    /// FUA of the comparison: a Flush comes first.
    flush: bool,
    /// How the write goes on stable storage: by itself, or what follows it.
    fua: bool,
    next: Step,
}

fn range_of(sqe: &Sqe) -> LbaRange {
    LbaRange {
        slba: sqe.slba(),
        blocks: sqe.block_count().into(),
    }
}

impl Conn {
    /// Compares what comes behind the first `done` bytes.
    pub(super) fn compare(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        done: u32,
        now: &Now,
    ) -> Result<(), Status> {
        let command = self.command(slot);
        let range = inside(range_of(&command.sqe), now.blocks)?;
        let fused = command.half.other().is_some();
        if now.caps.compare == Support::Native && !fused {
            let buf = std::mem::take(&mut command.buf);
            self.submit(cx, slot, ns, Op::Compare, range, buf);
            return Ok(());
        }
        let at = u64::from(done >> ns.lba_shift);
        let rest = LbaRange {
            slba: range.slba + at,
            blocks: range.blocks - at,
        };
        if rest.blocks == 0 {
            self.count_read(cx, slot, range.blocks << ns.lba_shift);
            self.compared(cx, slot, ns);
            return Ok(());
        }
        let (range, _) = split(rest, Self::piece(cx), ns.lba_shift);
        let buf = self.lend(cx, range.blocks << ns.lba_shift)?;
        self.command(slot).next = Step::Compare { ns, done };
        self.submit(cx, slot, ns, Op::Read, range, buf);
        Ok(())
    }

    /// Whether what was read is what the host expects; the next step is behind it then.
    pub(super) fn is_expected(&mut self, slot: Slot, read: &[u8]) -> bool {
        let command = self.command(slot);
        let Step::Compare { done, .. } = &mut command.next else {
            return false;
        };
        let start = *done as usize;
        let end = start + read.len();
        *done = u32::try_from(end).unwrap_or(u32::MAX);
        command.buf.get(start..end) == Some(read)
    }

    /// All is as expected: the end, or the second half of a fused operation.
    fn compared(&mut self, cx: &mut Cx, slot: Slot, ns: NsRef) {
        let Some(second) = self.command(slot).half.other() else {
            return self.end(cx, slot, Status::SUCCESS);
        };
        if let Err(status) = self.look(ns, Usage::Write) {
            return self.end(cx, second, status);
        }
        if self.command(second).aborted {
            return self.end(cx, second, Status::ABORT_REQUESTED);
        }
        match self.check_pair(slot, second) {
            Ok(pair) => {
                // From now on it is the second half that has a request in the backend.
                let first = self.command(slot);
                first.parts = 1;
                let exclusive = first.exclusive.take();
                let command = self.command(second);
                command.parts = 0;
                command.exclusive = exclusive;
                command.next = pair.next;
                let (range, buf) = (range_of(&command.sqe), std::mem::take(&mut command.buf));
                self.submit(cx, second, ns, Op::Write { fua: pair.fua }, range, buf);
            }
            Err((slot, status)) => self.end(cx, slot, status),
        }
    }

    /// Both halves of a fused operation have their data: it begins.
    pub(in crate::conn) fn execute_pair(&mut self, cx: &mut Cx, first: Slot, second: Slot) {
        match self.check_pair(first, second) {
            Ok(pair) if pair.native => self.compare_and_write(cx, first, second, &pair),
            Ok(pair) => {
                // It is not to be ended by anybody else meanwhile.
                self.command(second).parts = 1;
                self.close_gate(cx, first, &pair.gate);
            }
            Err((slot, status)) => self.end(cx, slot, status),
        }
    }

    /// The namespace's gate is closed: nothing else writes, and the comparison may begin.
    pub(in crate::conn) fn execute_pair_alone(&mut self, cx: &mut Cx, first: Slot, second: Slot) {
        if self.command(first).aborted {
            return self.end(cx, first, Status::ABORT_REQUESTED);
        }
        // Anything may have changed while the gate was closing.
        match self.check_pair(first, second) {
            // Another namespace has another gate.
            Ok(pair) if !self.holds(first, &pair.gate) => {
                self.end(cx, first, Status::INVALID_NAMESPACE.dnr());
            }
            Ok(Pair { ns, flush, .. }) => {
                self.command(first).next = Step::Compare { ns, done: 0 };
                if flush {
                    self.submit(cx, first, ns, Op::Flush, NOWHERE, IoBuf::empty());
                } else {
                    self.proceed(cx, first);
                }
            }
            Err((slot, status)) => self.end(cx, slot, status),
        }
    }

    fn holds(&mut self, slot: Slot, gate: &Arc<Gate>) -> bool {
        let exclusive = &self.command(slot).exclusive;
        exclusive.as_ref().is_some_and(|held| held.is_of(gate))
    }

    /// Checks both halves against the namespaces of this moment; else which one ends, and how.
    fn check_pair(&mut self, first: Slot, second: Slot) -> Result<Pair, (Slot, Fault)> {
        for slot in [first, second] {
            let command = self.command(slot);
            let (sqe, held) = (command.sqe, command.buf.len());
            match self.plan_io(&sqe) {
                Ok(plan) if plan.transfer().len() == held => {}
                Ok(_) => return Err((slot, CHANGED.into())),
                Err(fault) => return Err((slot, fault)),
            }
        }
        let (compare, write) = (self.command(first).sqe, self.command(second).sqe);
        let (seen, write_through) = match &self.queue {
            Queue::Io(queue) => (queue.view.get(write.nsid()), queue.view.write_through()),
            Queue::None | Queue::Admin(_) => (None, false),
        };
        let entry = &seen
            .ok_or_else(|| (second, Status::INVALID_NAMESPACE.dnr().into()))?
            .entry;
        let (info, ns) = (&entry.info, NsRef::of(entry));
        let flush = compare.fua() && info.volatile_cache;
        let (fua, next) = force(info, ns, write.fua() || write_through);
        Ok(Pair {
            ns,
            gate: Arc::clone(&entry.shared.gate),
            native: info.caps.compare_and_write == Support::Native && !flush,
            flush,
            fua,
            next,
        })
    }

    fn compare_and_write(&mut self, cx: &mut Cx, first: Slot, second: Slot, pair: &Pair) {
        let ns = pair.ns;
        let lane = match self.lane(cx, ns) {
            Ok(lane) => lane,
            Err(status) => return self.end(cx, second, status),
        };
        let route = self.route(second, lane);
        let command = self.command(first);
        // As in `execute_pair`.
        command.parts = 1;
        let expected = std::mem::take(&mut command.buf);
        let command = self.command(second);
        command.next = pair.next;
        let (range, data) = (range_of(&command.sqe), std::mem::take(&mut command.buf));
        let op = Op::CompareAndWrite { fua: pair.fua };
        let request = cx.requests.make(op, ns.lba_shift, range, data, route);
        self.launch(cx, second, lane, request.expecting(expected));
    }
}

//! Commands that take several requests, one after the other.
//!
//! Between two requests anything may have changed: each step looks at the namespace and at what
//! the host may do with it anew.

use super::plan::{NsRef, inside};
use super::{NOWHERE, PIECE};
use crate::buf::{BLOCK, IoBuf};
use crate::conn::{Conn, Queue};
use crate::ctrl::{Fault, Usage};
use crate::ns::{Caps, LbaRange, Op, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::dsm::{DsmAttributes, DsmCommand, DsmRange};
use nvmf_proto::wire::log::ParameterLocation;
use std::sync::Arc;

/// Bytes of one request that moves no data: what a device at memory speed does in a moment, so
/// that it does not keep everything else on its reactor waiting. Hosts are told to ask for no more
/// at a time (VSL, WZSL).
pub(crate) const STRIDE: u64 = 32 << 20;

/// DMRL: ranges of a Dataset Management command that are looked at.
pub(crate) const DMRL: u8 = u8::MAX;
/// DMRSL: logical blocks of one such range that are looked at.
pub(crate) const DMRSL: u32 = 1 << 23;

/// A range of a Dataset Management command is not inside the namespace: a matter of its data.
const RANGE_OUTSIDE: Fault = Fault::new(Status::LBA_OUT_OF_RANGE.dnr(), ParameterLocation::NONE);

/// What follows when a request of a command is done, or what the first one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(in crate::conn) enum Step {
    /// The response.
    #[default]
    Respond,
    /// A Flush, for a write with FUA on a backend that has no such thing.
    Flush { ns: NsRef },
    /// The read of a Read with FUA.
    Read { ns: NsRef, range: LbaRange },
    /// The rest of a Write Zeroes.
    Zeroes(Zeroes),
    /// The rest of a Verify.
    Verify { ns: NsRef, rest: LbaRange },
    /// The rest of a Compare, of which `done` bytes are the same.
    Compare { ns: NsRef, done: u32 },
    /// Blocks are to be marked, while nothing else writes.
    Uncorrectable { ns: NsRef, range: LbaRange },
    /// The Copy command's ranges are to be checked.
    CheckCopy { ns: NsRef, fua: bool },
    /// The rest of a Copy, which its command keeps: steps are to be small.
    Copy { ns: NsRef },
    /// The Dataset Management command's ranges are to be checked.
    Dsm { ns: NsRef },
    /// The rest of its deallocations: from block `done` of range `next` on.
    Deallocate { ns: NsRef, next: u16, done: u32 },
}

/// What is left of a Write Zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conn) struct Zeroes {
    pub(super) ns: NsRef,
    pub(super) rest: LbaRange,
    pub(super) fua: bool,
    pub(super) deallocate: bool,
    /// NSZ: all of the namespace.
    pub(super) whole: bool,
}

/// A namespace as the next step finds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) blocks: u64,
    pub(super) caps: Caps,
    pub(super) volatile: bool,
    /// The host has turned the write cache off, perhaps since the command began.
    pub(super) write_through: bool,
}

impl Step {
    /// Which namespace it needs, and what for.
    const fn needs(self) -> Option<(NsRef, Usage)> {
        Some(match self {
            Self::Respond => return None,
            Self::Flush { ns } => (ns, Usage::Flush),
            Self::Read { ns, .. } | Self::Verify { ns, .. } | Self::Compare { ns, .. } => {
                (ns, Usage::Read)
            }
            Self::Zeroes(Zeroes { ns, .. })
            | Self::Uncorrectable { ns, .. }
            | Self::CheckCopy { ns, .. }
            | Self::Copy { ns }
            | Self::Dsm { ns }
            | Self::Deallocate { ns, .. } => (ns, Usage::Write),
        })
    }
}

/// The first blocks of a range, as many as fit `bytes` but at least one, and the rest.
pub(super) fn split(range: LbaRange, bytes: u64, lba_shift: u8) -> (LbaRange, LbaRange) {
    let blocks = range.blocks.min((bytes >> lba_shift).max(1));
    let (slba, rest) = (range.slba, range.blocks - blocks);
    (
        LbaRange { slba, blocks },
        LbaRange {
            slba: slba + blocks,
            blocks: rest,
        },
    )
}

impl Conn {
    /// The namespace of a command that goes on, if it is still the same and may still be used.
    pub(super) fn look(&mut self, ns: NsRef, usage: Usage) -> Result<Now, Status> {
        let Queue::Io(queue) = &mut self.queue else {
            return Err(Status::INTERNAL_ERROR);
        };
        queue.refresh();
        // What is attached under the NSID now may be another namespace.
        let seen = queue.view.get(ns.nsid);
        let seen = seen.filter(|seen| NsRef::of(&seen.entry) == ns);
        let seen = seen.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        match seen.refusal(usage) {
            // NVMe Base 2.1 §8.1.22: a command that has begun does not end with a conflict. What is
            // to stop it is Preempt and Abort.
            Some(status) if !status.same_code(Status::RESERVATION_CONFLICT) => Err(status),
            _ => Ok(Now {
                blocks: seen.entry.info.blocks,
                caps: seen.entry.info.caps,
                volatile: seen.entry.info.volatile_cache,
                write_through: queue.view.write_through(),
            }),
        }
    }

    /// Marks blocks as uncorrectable: first the gate is closed, so that what is being written is
    /// before that and what is written later behind it.
    fn mark(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        range: LbaRange,
        now: &Now,
    ) -> Result<(), Status> {
        let range = inside(range, now.blocks)?;
        let seen = match &self.queue {
            Queue::Io(queue) => queue.view.get(ns.nsid),
            Queue::None | Queue::Admin(_) => None,
        };
        let seen = seen.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let gate = Arc::clone(&seen.entry.shared.gate);
        let command = self.command(slot);
        if command.exclusive.is_none() {
            command.next = Step::Uncorrectable { ns, range };
            self.close_gate(cx, slot, &gate);
        } else if gate.uncorrectable.mark(range) {
            self.end(cx, slot, Status::SUCCESS);
        } else {
            // There is no status for it.
            return Err(Status::INTERNAL_ERROR.dnr());
        }
        Ok(())
    }

    /// Takes the next step of a command whose last one succeeded.
    pub(in crate::conn) fn proceed(&mut self, cx: &mut Cx, slot: Slot) {
        let command = self.command(slot);
        let (next, aborted) = (std::mem::take(&mut command.next), command.aborted);
        let Some((ns, usage)) = next.needs() else {
            return self.end(cx, slot, Status::SUCCESS);
        };
        if aborted {
            return self.end(cx, slot, Status::ABORT_REQUESTED);
        }
        let taken = match self.look(ns, usage) {
            Ok(now) => self.take_step(cx, slot, next, &now),
            Err(status) => Err(status.into()),
        };
        if let Err(fault) = taken {
            self.end(cx, slot, fault);
        }
    }

    /// Submits what a step wants done, or ends the command; an error ends it, too.
    fn take_step(&mut self, cx: &mut Cx, slot: Slot, next: Step, now: &Now) -> Result<(), Fault> {
        match next {
            Step::Respond => self.end(cx, slot, Status::SUCCESS),
            Step::Flush { ns } if now.volatile => {
                self.submit(cx, slot, ns, Op::Flush, NOWHERE, IoBuf::empty());
            }
            Step::Flush { .. } => self.end(cx, slot, Status::SUCCESS),
            Step::Read { ns, range } => {
                let range = inside(range, now.blocks)?;
                let buf = std::mem::take(&mut self.command(slot).buf);
                self.submit(cx, slot, ns, Op::Read, range, buf);
            }
            Step::Zeroes(zeroes) => self.zeroes(cx, slot, zeroes, now)?,
            Step::Verify { ns, rest } => self.verify(cx, slot, ns, rest, now)?,
            Step::Compare { ns, done } => self.compare(cx, slot, ns, done, now)?,
            Step::Uncorrectable { ns, range } => self.mark(cx, slot, ns, range, now)?,
            Step::CheckCopy { ns, fua } => self.check_copy(cx, slot, (ns, fua), now)?,
            Step::Copy { ns } => self.copy(cx, slot, ns, now)?,
            Step::Dsm { ns } => self.check_ranges(cx, slot, ns, now)?,
            Step::Deallocate { ns, next, done } => {
                self.deallocate(cx, slot, (ns, next, done), now)?;
            }
        }
        Ok(())
    }

    /// Lends a buffer for what a command needs beside its data. Without one the command is better
    /// tried again than kept waiting with what it holds.
    pub(super) fn lend(&mut self, cx: &mut Cx, len: u64) -> Result<IoBuf, Status> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let buf = cx.pool.take(len).ok_or(Status::COMMAND_INTERRUPTED)?;
        self.held += buf.footprint();
        self.moved = cx.now;
        Ok(buf)
    }

    /// Bytes that an emulation reads or writes at a time: as little as possible while commands wait
    /// for buffers, so that what the last piece gives back goes to them.
    pub(super) fn piece(cx: &Cx) -> u64 {
        let short = !(cx.starved.is_empty() && cx.blocked.is_empty());
        let piece = if short { BLOCK as u64 } else { PIECE };
        piece.min(cx.core.config.max_transfer.into())
    }

    fn zeroes(&mut self, cx: &mut Cx, slot: Slot, zeroes: Zeroes, now: &Now) -> Result<(), Status> {
        let Zeroes { ns, rest, fua, .. } = zeroes;
        let fua = fua || now.write_through;
        let native = now.caps.write_zeroes == Support::Native;
        if rest.blocks == 0 {
            let command = self.command(slot);
            command.result = u32::from(zeroes.whole);
            // A native Write Zeroes may have had FUA itself.
            if fua && !(native && now.caps.fua == Support::Native) {
                command.next = Step::Flush { ns };
            }
            self.proceed(cx, slot);
            return Ok(());
        }
        inside(rest, now.blocks)?;
        let Some(lane) = self.has_turn(cx, slot, ns, Step::Zeroes(zeroes))? else {
            return Ok(());
        };
        let bytes = if native { STRIDE } else { Self::piece(cx) };
        let (range, rest) = split(rest, bytes, ns.lba_shift);
        Self::spend(cx, lane, range.blocks << ns.lba_shift);
        let next = Step::Zeroes(Zeroes { rest, ..zeroes });
        let (op, buf) = if native {
            let op = Op::WriteZeroes {
                deallocate: zeroes.deallocate,
                fua: fua && now.caps.fua == Support::Native,
            };
            (op, IoBuf::empty())
        } else {
            let mut buf = self.lend(cx, range.blocks << ns.lba_shift)?;
            buf.fill(0);
            (Op::Write { fua: false }, buf)
        };
        self.command(slot).next = next;
        self.submit(cx, slot, ns, op, range, buf);
        Ok(())
    }

    fn verify(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        rest: LbaRange,
        now: &Now,
    ) -> Result<(), Status> {
        if rest.blocks == 0 {
            let blocks = u64::from(self.command(slot).sqe.block_count());
            self.count_read(cx, slot, blocks << ns.lba_shift);
            self.end(cx, slot, Status::SUCCESS);
            return Ok(());
        }
        inside(rest, now.blocks)?;
        let Some(lane) = self.has_turn(cx, slot, ns, Step::Verify { ns, rest })? else {
            return Ok(());
        };
        let native = now.caps.verify == Support::Native;
        let bytes = if native { STRIDE } else { Self::piece(cx) };
        let (range, rest) = split(rest, bytes, ns.lba_shift);
        Self::spend(cx, lane, range.blocks << ns.lba_shift);
        let (op, buf) = if native {
            (Op::Verify, IoBuf::empty())
        } else {
            (Op::Read, self.lend(cx, range.blocks << ns.lba_shift)?)
        };
        self.command(slot).next = Step::Verify { ns, rest };
        self.submit(cx, slot, ns, op, range, buf);
        Ok(())
    }

    /// Dataset Management: only the deallocate attribute has an effect; the others are hints.
    fn check_ranges(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        now: &Now,
    ) -> Result<(), Status> {
        let command = self.command(slot);
        let dsm = DsmCommand::decode(&command.sqe);
        let outside = DsmRange::decode_all(&command.buf)
            .take(dsm.range_count.into())
            .any(|range| {
                let (slba, blocks) = (range.slba, range.length.into());
                inside(LbaRange { slba, blocks }, now.blocks).is_err()
            });
        if outside {
            self.end(cx, slot, RANGE_OUTSIDE);
            return Ok(());
        }
        let wanted = dsm.attributes.contains(DsmAttributes::DEALLOCATE);
        if wanted && now.caps.deallocate == Support::Native {
            command.next = Step::Deallocate {
                ns,
                next: 0,
                done: 0,
            };
        }
        self.proceed(cx, slot);
        Ok(())
    }

    fn deallocate(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        (ns, mut next, mut done): (NsRef, u16, u32),
        now: &Now,
    ) -> Result<(), Status> {
        let Some(lane) = self.has_turn(cx, slot, ns, Step::Deallocate { ns, next, done })? else {
            return Ok(());
        };
        let route = self.route(slot, lane);
        let command = self.command(slot);
        // NVM Command Set 1.1, Dataset Management Processing Limits: what is beyond the limits is
        // not processed, and that is no error.
        let count = DsmCommand::decode(&command.sqe).range_count;
        let count = count.min(DMRL.into());
        let mut budget = (STRIDE >> ns.lba_shift).max(1);
        let mut outside = false;
        let ranges = std::iter::from_fn(|| {
            while next < count && budget > 0 {
                let bytes = command.buf.get(usize::from(next) * DsmRange::SIZE..)?;
                let range = DsmRange::decode(bytes.first_chunk()?);
                let left = range.length.min(DMRSL) - done;
                let blocks = u64::from(left).min(budget);
                let slba = range.slba + u64::from(done);
                #[expect(clippy::cast_possible_truncation, reason = "at most `left`, a u32")]
                if blocks < u64::from(left) {
                    done += blocks as u32;
                } else {
                    (next, done) = (next + 1, 0);
                }
                budget -= blocks;
                let range = LbaRange { slba, blocks };
                outside |= inside(range, now.blocks).is_err();
                if blocks > 0 {
                    return Some(range);
                }
            }
            None
        });
        let request = cx.requests.make_deallocate(ns.lba_shift, ranges, route);
        if outside || request.ranges().is_empty() {
            cx.requests.discard(request);
            let fault = if outside {
                RANGE_OUTSIDE
            } else {
                Status::SUCCESS.into()
            };
            self.end(cx, slot, fault);
            return Ok(());
        }
        let blocks = (STRIDE >> ns.lba_shift).saturating_sub(budget);
        Self::spend(cx, lane, blocks << ns.lba_shift);
        self.command(slot).next = Step::Deallocate { ns, next, done };
        self.launch(cx, slot, lane, request);
        Ok(())
    }
}

//! Copy: source ranges are read one after the other, and written together as far as a buffer goes.

use super::plan::{COPY_FORMAT, NsRef, Usage, inside};
use super::steps::{Now, Step};
use crate::conn::{Conn, Queue};
use crate::ctrl::Fault;
use crate::ns::{LbaRange, NsInfo, Op, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_proto::wire::identify::NSID_BROADCAST;

/// How much one Copy may copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyLimits {
    /// MSSRL: blocks of a source range.
    pub(crate) range_blocks: u16,
    /// MCL: blocks in all.
    pub(crate) blocks: u32,
}

impl CopyLimits {
    /// MSRC + 1: source ranges.
    pub(crate) const RANGES: u8 = 128;
    /// Bytes in all.
    const BYTES: u32 = 64 << 20;

    pub(crate) fn of(info: &NsInfo) -> Self {
        Self::with(info.lba_shift)
    }

    fn with(lba_shift: u8) -> Self {
        let blocks = Self::BYTES >> lba_shift;
        Self {
            range_blocks: u16::try_from(blocks).unwrap_or(u16::MAX),
            blocks,
        }
    }
}

/// What is left of a Copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conn) struct Copying {
    /// Where to.
    pub(super) ns: NsRef,
    fua: bool,
    /// Blocks in all.
    blocks: u32,
    /// The next block to write.
    at: u64,
    /// Blocks to be written yet, those gathered included.
    left: u64,
    /// Bytes gathered.
    filled: u32,
    /// The source range to be read next, and how many of its blocks have been read.
    range: u16,
    read: u32,
}

impl Conn {
    /// Checks the ranges of a Copy, which are in its buffer, and begins.
    pub(super) fn check_copy(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        (ns, fua): (NsRef, bool),
        now: &Now,
    ) -> Result<(), Fault> {
        let command = CopyCommand::decode(&self.command(slot).sqe);
        let limits = CopyLimits::with(ns.lba_shift);
        let too_much = Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr();
        self.allowed(command.format)?;
        let mut total = 0;
        for number in 0..command.range_count {
            let range = self.copy_range(slot, number)?;
            if range.blocks > limits.range_blocks.into() {
                return Err(too_much.into());
            }
            total += range.blocks;
        }
        if total > limits.blocks {
            return Err(too_much.into());
        }
        let to = LbaRange {
            slba: command.sdlba,
            blocks: total.into(),
        };
        inside(to, now.blocks)?;
        for number in 0..command.range_count {
            let range = self.copy_range(slot, number)?;
            let (source, from) = self.source(&command, ns, &range)?;
            let any = command.format == CopyFormat::ANY_NAMESPACE;
            let apart = from.slba >= to.slba + to.blocks || to.slba >= from.slba + from.blocks;
            if any && source == ns && !apart {
                return Err(Status::OVERLAPPING_RANGE.dnr().into());
            }
            if any && range.fast_only {
                return Err(Status::FAST_COPY_NOT_POSSIBLE.dnr().into());
            }
        }
        self.command(slot).next = Step::Copy(Copying {
            ns,
            fua,
            blocks: total,
            at: to.slba,
            left: to.blocks,
            filled: 0,
            range: 0,
            read: 0,
        });
        self.proceed(cx, slot);
        Ok(())
    }

    /// Whether the host may use a format: some only if it has said that it knows of them.
    fn allowed(&self, format: CopyFormat) -> Result<(), Fault> {
        let Queue::Io(queue) = &self.queue else {
            return Err(Status::INTERNAL_ERROR.into());
        };
        if format == CopyFormat::SAME_NAMESPACE
            || queue.controller.copy_formats() & format.bit() != 0
        {
            Ok(())
        } else {
            Err(COPY_FORMAT)
        }
    }

    fn copy_range(&mut self, slot: Slot, number: u16) -> Result<CopyRange, Status> {
        let buf = &self.command(slot).buf;
        CopyRange::nth(buf, number.into()).ok_or(Status::DATA_SGL_LENGTH_INVALID.dnr())
    }

    /// The namespace and blocks of a source range, if the host may read them.
    fn source(
        &self,
        command: &CopyCommand,
        ns: NsRef,
        range: &CopyRange,
    ) -> Result<(NsRef, LbaRange), Status> {
        let Queue::Io(queue) = &self.queue else {
            return Err(Status::INTERNAL_ERROR);
        };
        let nsid = if command.format == CopyFormat::ANY_NAMESPACE {
            range.snsid
        } else {
            ns.nsid
        };
        let seen = queue.view.get(nsid).ok_or_else(|| {
            // NVM Command Set 1.1, Copy command: an NSID that cannot be, and one that is not.
            let highest = queue.controller.subsystem.max_namespaces;
            if nsid == 0 || nsid == NSID_BROADCAST || nsid > highest {
                Status::INVALID_NAMESPACE.dnr()
            } else {
                Status::INVALID_FIELD.dnr()
            }
        })?;
        if let Some(status) = Usage::Read.refused_by(&seen.access) {
            return Err(status);
        }
        let source = NsRef::of(&seen.entry);
        if source.lba_shift != ns.lba_shift {
            return Err(Status::INCOMPATIBLE_NAMESPACE.dnr());
        }
        let blocks = LbaRange {
            slba: range.slba,
            blocks: range.blocks.into(),
        };
        Ok((source, inside(blocks, seen.entry.info.blocks)?))
    }

    /// Reads the next blocks, or writes what has been gathered.
    pub(super) fn copy(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        mut copying: Copying,
        now: &Now,
    ) -> Result<(), Status> {
        let Copying { ns, at, left, .. } = copying;
        let native = now.caps.fua == Support::Native;
        let command = self.command(slot);
        let gathered = command.gathered.len() as u64;
        if left == 0 {
            command.result = 0;
            if copying.fua && !native {
                command.next = Step::Flush { ns };
            }
            let bytes = u64::from(copying.blocks) << ns.lba_shift;
            self.count_read(cx, slot, bytes);
            self.count_written(cx, slot, bytes);
            self.proceed(cx, slot);
            return Ok(());
        }
        if gathered > 0 && gathered == u64::from(copying.filled) {
            let blocks = gathered >> ns.lba_shift;
            let to = inside(LbaRange { slba: at, blocks }, now.blocks)?;
            let buf = std::mem::take(&mut command.gathered);
            (copying.at, copying.left, copying.filled) = (at + blocks, left - blocks, 0);
            command.next = Step::Copy(copying);
            let fua = copying.fua && native;
            self.submit(cx, slot, ns, Op::Write { fua }, to, buf);
            return Ok(());
        }
        if gathered == 0 {
            // All before this range has been written (CQE dword 0 of a Copy that fails).
            command.result = copying.range.into();
            let len = (left << ns.lba_shift).min(Self::piece(cx) >> ns.lba_shift << ns.lba_shift);
            let buf = self.lend(cx, len.max(1 << ns.lba_shift))?;
            self.command(slot).gathered = buf;
        }
        self.read_source(cx, slot, copying)
    }

    fn read_source(&mut self, cx: &mut Cx, slot: Slot, mut copying: Copying) -> Result<(), Status> {
        let ns = copying.ns;
        let range = self.copy_range(slot, copying.range)?;
        let command = self.command(slot);
        let room = (command.gathered.len() - copying.filled as usize) >> ns.lba_shift;
        let copy = CopyCommand::decode(&command.sqe);
        let (source, from) = self.source(&copy, ns, &range)?;
        let blocks = (from.blocks - u64::from(copying.read)).min(room as u64);
        let from = LbaRange {
            slba: from.slba + u64::from(copying.read),
            blocks,
        };
        let buf = self.lend(cx, blocks << ns.lba_shift)?;
        copying.read += u32::try_from(blocks).unwrap_or(u32::MAX);
        if copying.read >= range.blocks {
            (copying.range, copying.read) = (copying.range + 1, 0);
        }
        self.command(slot).next = Step::Copy(copying);
        self.submit(cx, slot, source, Op::Read, from, buf);
        Ok(())
    }

    /// Takes in what was read of a source range.
    pub(super) fn gather(&mut self, slot: Slot, read: &[u8]) {
        let command = self.command(slot);
        let Step::Copy(copying) = &mut command.next else {
            return;
        };
        let start = copying.filled as usize;
        if let Some(to) = command.gathered.get_mut(start..start + read.len()) {
            to.copy_from_slice(read);
            copying.filled += u32::try_from(read.len()).unwrap_or(u32::MAX);
        }
    }
}

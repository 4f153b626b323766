//! Copy: source ranges are read one after the other, and written together as far as a buffer goes.

use super::plan::{COPY_FORMAT, NsRef, inside};
use super::steps::{Now, Step};
use crate::buf::IoBuf;
use crate::conn::{Conn, Queue};
use crate::ctrl::{Fault, Usage};
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
#[derive(Debug)]
pub(in crate::conn) struct Copying {
    fua: bool,
    /// Blocks in all.
    blocks: u32,
    /// The next block to write.
    at: u64,
    /// Blocks to be written yet.
    left: u64,
    /// What has been read and not yet written, with room for what is written with it.
    pub(in crate::conn) gathered: IoBuf,
    /// Bytes of it that have been read.
    filled: usize,
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
        let command = self.command(slot);
        command.next = Step::Copy { ns };
        command.copying = Some(Box::new(Copying {
            fua,
            blocks: total,
            at: to.slba,
            left: to.blocks,
            gathered: IoBuf::empty(),
            filled: 0,
            range: 0,
            read: 0,
        }));
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
        if let Some(status) = seen.refusal(Usage::Read) {
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
        ns: NsRef,
        now: &Now,
    ) -> Result<(), Status> {
        let native = now.caps.fua == Support::Native;
        let command = self.command(slot);
        let copying = command.copying.as_mut().ok_or(Status::INTERNAL_ERROR)?;
        let fua = copying.fua || now.write_through;
        if copying.left == 0 {
            command.result = 0;
            if fua && !native {
                command.next = Step::Flush { ns };
            }
            let bytes = u64::from(copying.blocks) << ns.lba_shift;
            self.count_read(cx, slot, bytes);
            self.count_written(cx, slot, bytes);
            self.proceed(cx, slot);
            return Ok(());
        }
        let gathered = copying.gathered.len();
        if gathered > 0 && gathered == copying.filled {
            let blocks = gathered as u64 >> ns.lba_shift;
            let slba = copying.at;
            let to = inside(LbaRange { slba, blocks }, now.blocks)?;
            let buf = std::mem::take(&mut copying.gathered);
            copying.at += blocks;
            copying.left -= blocks;
            copying.filled = 0;
            let fua = fua && native;
            command.next = Step::Copy { ns };
            self.submit(cx, slot, ns, Op::Write { fua }, to, buf);
            return Ok(());
        }
        if gathered == 0 {
            // All before this range has been written (CQE dword 0 of a Copy that fails).
            command.result = copying.range.into();
            let blocks = (Self::piece(cx) >> ns.lba_shift).clamp(1, copying.left);
            let buf = self.lend(cx, blocks << ns.lba_shift)?;
            if let Some(copying) = &mut self.command(slot).copying {
                copying.gathered = buf;
            }
        }
        self.read_source(cx, slot, ns)
    }

    fn read_source(&mut self, cx: &mut Cx, slot: Slot, ns: NsRef) -> Result<(), Status> {
        let command = self.command(slot);
        let sqe = CopyCommand::decode(&command.sqe);
        let copying = command.copying.as_ref().ok_or(Status::INTERNAL_ERROR)?;
        let (number, read) = (copying.range, u64::from(copying.read));
        let room = (copying.gathered.len() - copying.filled) as u64 >> ns.lba_shift;
        let range = self.copy_range(slot, number)?;
        let (source, from) = self.source(&sqe, ns, &range)?;
        let from = LbaRange {
            slba: from.slba + read,
            blocks: (from.blocks - read).min(room),
        };
        let buf = self.lend(cx, from.blocks << ns.lba_shift)?;
        let command = self.command(slot);
        command.next = Step::Copy { ns };
        if let Some(copying) = &mut command.copying {
            copying.read += u32::try_from(from.blocks).unwrap_or(u32::MAX);
            if copying.read >= range.blocks {
                (copying.range, copying.read) = (number + 1, 0);
            }
        }
        self.submit(cx, slot, source, Op::Read, from, buf);
        Ok(())
    }

    /// Takes in what was read of a source range.
    pub(super) fn gather(&mut self, slot: Slot, read: &[u8]) {
        let Some(copying) = &mut self.command(slot).copying else {
            return;
        };
        let end = copying.filled + read.len();
        if let Some(to) = copying.gathered.get_mut(copying.filled..end) {
            to.copy_from_slice(read);
            copying.filled = end;
        }
    }
}

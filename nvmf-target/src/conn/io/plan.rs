//! What an I/O command asks for, checked against what its controller sees at this moment.

use super::copy::CopyLimits;
use super::steps::{Step, Zeroes};
use crate::conn::reservation;
use crate::ctrl::admin::Transfer;
use crate::ctrl::{Fault, NsEntry, Usage, View};
use crate::ns::{LbaRange, NsInfo, Op, Support};
use nvmf_proto::wire::copy::{CopyCommand, CopyFormat};
use nvmf_proto::wire::dsm::{DsmCommand, DsmRange};
use nvmf_proto::wire::fabrics::{FabricsType, disconnect_recfmt};
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::log::ParameterLocation;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};

/// Write Zeroes, CDW12 bit 25: Deallocate.
const DEAC: u32 = 1 << 25;
/// Write Zeroes, CDW12 bit 23: Namespace Zeroes.
const NSZ: u32 = 1 << 23;
/// PRACT in CDW12: bit 29.
const PRACT: u32 = 1 << 29;
/// The most that a fused Compare and Write compares and writes, bytes.
const COMPARE_AND_WRITE_MAX: u32 = 128 << 10;

/// FUSE is what is wrong with the command.
const FUSE: Fault = Fault::new(Status::INVALID_FIELD.dnr(), ParameterLocation::byte(1));
/// DESFMT is.
pub(super) const COPY_FORMAT: Fault = Fault::cdw(12, 8);
/// NLB is.
const NLB: Fault = Fault::cdw(12, 0);

/// A namespace as a plan needs it: no reference count is touched per command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conn) struct NsRef {
    pub(super) nsid: u32,
    pub(in crate::conn) uid: u64,
    pub(in crate::conn) lba_shift: u8,
}

impl NsRef {
    pub(super) const fn of(entry: &NsEntry) -> Self {
        Self {
            nsid: entry.nsid,
            uid: entry.uid,
            lba_shift: entry.info.lba_shift,
        }
    }
}

/// What a command of a namespace does to it.
const fn usage(opcode: NvmOpcode) -> Usage {
    match opcode {
        NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY => Usage::Read,
        NvmOpcode::FLUSH => Usage::Flush,
        _ => Usage::Write,
    }
}

/// An I/O command that has passed its checks.
#[derive(Clone, Copy, Debug)]
pub(in crate::conn) enum IoPlan {
    /// Read or Write of `len` bytes.
    Rw {
        ns: NsRef,
        op: Op,
        next: Step,
        range: LbaRange,
        len: u32,
    },
    /// What takes more than one request.
    Steps {
        transfer: Transfer,
        ns: NsRef,
        /// FUA of a command that reads: what a volatile cache holds is to be on the medium first.
        flush: bool,
        first: Step,
    },
    Flush(NsRef),
    FlushAll,
    Reservation(Transfer),
    /// Nothing has to be done.
    Nothing,
    Disconnect,
}

impl IoPlan {
    /// Checks a command against the namespaces of this moment.
    pub(in crate::conn) fn new(sqe: &Sqe, view: &View, max_transfer: u32) -> Result<Self, Fault> {
        let opcode = NvmOpcode(sqe.opcode());
        match opcode {
            NvmOpcode::FABRICS => return Self::fabrics(sqe),
            NvmOpcode::FLUSH
            | NvmOpcode::READ
            | NvmOpcode::WRITE
            | NvmOpcode::COMPARE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::DATASET_MANAGEMENT
            | NvmOpcode::VERIFY
            | NvmOpcode::COPY
            | NvmOpcode::WRITE_UNCORRECTABLE
            | NvmOpcode::RESERVATION_REGISTER
            | NvmOpcode::RESERVATION_REPORT
            | NvmOpcode::RESERVATION_ACQUIRE
            | NvmOpcode::RESERVATION_RELEASE => {}
            _ => return Err(Status::INVALID_OPCODE.dnr().into()),
        }
        // NVM Command Set 1.1, Fused Operation: Compare first, then Write, and no other pair.
        match (sqe.fuse(), opcode) {
            (Fuse::None, _)
            | (Fuse::First, NvmOpcode::COMPARE)
            | (Fuse::Second, NvmOpcode::WRITE) => {}
            _ => return Err(FUSE),
        }
        if opcode == NvmOpcode::FLUSH && sqe.nsid() == NSID_BROADCAST {
            // NVMe Base 2.1 §8.1.1 and §8.1.22: what any of them refuses is refused.
            let conflict = || view.iter().find_map(|seen| seen.refusal(Usage::Flush));
            let refused = view.refused_by_ana(sqe.nsid()).or_else(conflict);
            return refused.map_or(Ok(Self::FlushAll), |status| Err(status.into()));
        }
        let seen = view
            .get(sqe.nsid())
            .ok_or(Status::INVALID_NAMESPACE.dnr())?;
        if let Some(transfer) = reservation::transfer(sqe, max_transfer) {
            // Which reservation there is decides about these when they are carried out.
            let refused = seen.ana.map(Fault::from);
            return refused.map_or_else(|| transfer.map(Self::Reservation), Err);
        }
        if let Some(status) = seen.refusal(usage(opcode)) {
            return Err(status.into());
        }
        let ns = NsRef::of(&seen.entry);
        let info = &seen.entry.info;
        match opcode {
            NvmOpcode::READ | NvmOpcode::WRITE => Self::rw(sqe, info, ns, max_transfer),
            NvmOpcode::FLUSH if info.volatile_cache && info.caps.flush == Support::Native => {
                Ok(Self::Flush(ns))
            }
            NvmOpcode::FLUSH => Ok(Self::Nothing),
            NvmOpcode::COMPARE => Self::compare(sqe, info, ns, max_transfer),
            NvmOpcode::VERIFY => Self::verify(sqe, info, ns),
            NvmOpcode::WRITE_ZEROES => Self::write_zeroes(sqe, info, ns),
            NvmOpcode::WRITE_UNCORRECTABLE => Self::write_uncorrectable(sqe, info, ns),
            NvmOpcode::COPY => Self::copy(sqe, info, ns),
            _ => Ok(Self::dataset_management(sqe, ns)),
        }
    }

    #[inline]
    fn rw(sqe: &Sqe, info: &NsInfo, ns: NsRef, max_transfer: u32) -> Result<Self, Fault> {
        let range = blocks_of(sqe, info.blocks)?;
        let len = transfer_length(range, info, max_transfer)?;
        if sqe.fuse() == Fuse::Second {
            fusible(info, len)?;
        }
        let (op, next) = if sqe.opcode() == NvmOpcode::READ.0 {
            if sqe.fua() && info.volatile_cache {
                let (transfer, first) = (Transfer::ToHost(len), Step::Read { ns, range });
                return Ok(Self::Steps {
                    transfer,
                    ns,
                    flush: true,
                    first,
                });
            }
            (Op::Read, Step::Respond)
        } else {
            let (fua, next) = force(info, ns, sqe.fua());
            (Op::Write { fua }, next)
        };
        Ok(Self::Rw {
            ns,
            op,
            next,
            range,
            len,
        })
    }

    fn compare(sqe: &Sqe, info: &NsInfo, ns: NsRef, max_transfer: u32) -> Result<Self, Fault> {
        if info.caps.compare == Support::None {
            return Err(Status::INVALID_OPCODE.dnr().into());
        }
        let range = blocks_of(sqe, info.blocks)?;
        let len = transfer_length(range, info, max_transfer)?;
        if sqe.fuse() == Fuse::First {
            fusible(info, len)?;
        }
        Ok(Self::Steps {
            transfer: Transfer::FromHost(len),
            ns,
            flush: sqe.fua() && info.volatile_cache,
            first: Step::Compare { ns, done: 0 },
        })
    }

    fn verify(sqe: &Sqe, info: &NsInfo, ns: NsRef) -> Result<Self, Fault> {
        if info.caps.verify == Support::None {
            return Err(Status::INVALID_OPCODE.dnr().into());
        }
        let rest = blocks_of(sqe, info.blocks)?;
        // NVM Command Set 1.1, Verify command: unlike in other commands without protection
        // information PRACT is not ignored.
        if sqe.cdw12() & PRACT != 0 {
            return Err(Fault::cdw(12, 29));
        }
        Ok(Self::Steps {
            transfer: Transfer::None,
            ns,
            flush: sqe.fua() && info.volatile_cache,
            first: Step::Verify { ns, rest },
        })
    }

    fn write_zeroes(sqe: &Sqe, info: &NsInfo, ns: NsRef) -> Result<Self, Fault> {
        if info.caps.write_zeroes == Support::None {
            return Err(Status::INVALID_OPCODE.dnr().into());
        }
        let native = info.caps.write_zeroes == Support::Native;
        let deallocate = sqe.cdw12() & DEAC != 0;
        let whole = sqe.cdw12() & NSZ != 0;
        let rest = if whole {
            // NVM Command Set 1.1, Write Zeroes command: NSZ goes with DEAC, and with blocks that
            // read as zeroes once deallocated. SLBA and NLB are ignored then.
            if !(deallocate && native && info.dealloc_reads_zero) {
                return Err(Fault::cdw(12, 23));
            }
            LbaRange {
                slba: 0,
                blocks: info.blocks,
            }
        } else {
            blocks_of(sqe, info.blocks)?
        };
        let zeroes = Zeroes {
            ns,
            rest,
            fua: sqe.fua(),
            deallocate,
            whole,
        };
        Ok(Self::Steps {
            transfer: Transfer::None,
            ns,
            flush: false,
            first: Step::Zeroes(zeroes),
        })
    }

    fn write_uncorrectable(sqe: &Sqe, info: &NsInfo, ns: NsRef) -> Result<Self, Fault> {
        if info.caps.write_uncorrectable == Support::None {
            return Err(Status::INVALID_OPCODE.dnr().into());
        }
        let range = blocks_of(sqe, info.blocks)?;
        Ok(Self::Steps {
            transfer: Transfer::None,
            ns,
            flush: false,
            first: Step::Uncorrectable { ns, range },
        })
    }

    fn copy(sqe: &Sqe, info: &NsInfo, ns: NsRef) -> Result<Self, Fault> {
        if info.caps.copy == Support::None {
            return Err(Status::INVALID_OPCODE.dnr().into());
        }
        let command = CopyCommand::decode(sqe);
        if !matches!(
            command.format,
            CopyFormat::SAME_NAMESPACE | CopyFormat::ANY_NAMESPACE
        ) {
            return Err(COPY_FORMAT);
        }
        if command.range_count > u16::from(CopyLimits::RANGES) {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr().into());
        }
        #[expect(clippy::cast_possible_truncation, reason = "4096 at most")]
        let len = command.data_length() as u32;
        Ok(Self::Steps {
            transfer: Transfer::FromHost(len),
            ns,
            flush: false,
            first: Step::CheckCopy { ns, fua: sqe.fua() },
        })
    }

    fn dataset_management(sqe: &Sqe, ns: NsRef) -> Self {
        let command = DsmCommand::decode(sqe);
        Self::Steps {
            transfer: Transfer::FromHost(dsm_length(sqe, command)),
            ns,
            flush: false,
            first: Step::Dsm { ns },
        }
    }

    fn fabrics(sqe: &Sqe) -> Result<Self, Fault> {
        match FabricsType::of(sqe) {
            FabricsType::DISCONNECT if disconnect_recfmt(sqe) != 0 => {
                Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr().into())
            }
            FabricsType::DISCONNECT => Ok(Self::Disconnect),
            FabricsType::CONNECT => Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into()),
            _ => Err(Status::INVALID_OPCODE.dnr().into()),
        }
    }

    pub(in crate::conn) fn transfer(&self) -> Transfer {
        match self {
            Self::Rw {
                op: Op::Read, len, ..
            } => Transfer::ToHost(*len),
            Self::Rw { len, .. } => Transfer::FromHost(*len),
            Self::Steps { transfer, .. } | Self::Reservation(transfer) => *transfer,
            _ => Transfer::None,
        }
    }
}

/// How FUA of a command that writes comes about: whether its request has it, and what follows.
pub(super) fn force(info: &NsInfo, ns: NsRef, fua: bool) -> (bool, Step) {
    let native = info.caps.fua == Support::Native;
    if fua && !native && info.volatile_cache {
        (false, Step::Flush { ns })
    } else {
        (fua && native, Step::Respond)
    }
}

/// Bytes of a command that moves its blocks between host and namespace: at most MDTS.
fn transfer_length(range: LbaRange, info: &NsInfo, max_transfer: u32) -> Result<u32, Fault> {
    u32::try_from(range.blocks << info.lba_shift)
        .ok()
        .filter(|&len| len <= max_transfer)
        .ok_or(NLB)
}

/// Whether a Compare or Write of `len` bytes may be half of a fused operation.
fn fusible(info: &NsInfo, len: u32) -> Result<(), Fault> {
    if info.caps.compare_and_write == Support::None {
        Err(FUSE)
    } else if len > COMPARE_AND_WRITE_MAX {
        Err(NLB)
    } else {
        Ok(())
    }
}

/// Bytes that a Dataset Management command transfers. A host may send room for more ranges than
/// the command counts, up to the most there can be: Linux always sends all 4096 bytes.
fn dsm_length(sqe: &Sqe, command: DsmCommand) -> u32 {
    const MAX: usize = DsmCommand::MAX_RANGES * DsmRange::SIZE;
    let offered = usize::try_from(sqe.sgl().length).unwrap_or(MAX);
    #[expect(clippy::cast_possible_truncation, reason = "4096 at most")]
    {
        offered.clamp(command.data_length(), MAX) as u32
    }
}

/// The blocks that a command is about, inside a namespace of `size` blocks.
fn blocks_of(sqe: &Sqe, size: u64) -> Result<LbaRange, Status> {
    let range = LbaRange {
        slba: sqe.slba(),
        blocks: sqe.block_count().into(),
    };
    inside(range, size)
}

pub(super) fn inside(range: LbaRange, size: u64) -> Result<LbaRange, Status> {
    match range.slba.checked_add(range.blocks) {
        Some(end) if end <= size => Ok(range),
        _ => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

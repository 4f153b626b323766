//! Commands that are mostly plausible.

use super::{DATA_MAX, WRITTEN};
use arbitrary::Arbitrary;
use nvmf_host::Data;
use nvmf_proto::wire::copy::CopyCommand;
use nvmf_proto::wire::dsm::DsmCommand;
use nvmf_proto::wire::fabrics::FabricsType;
use nvmf_proto::wire::feature::{Fid, GetFeatures, HOST_ID_EXTENDED};
use nvmf_proto::wire::log::GetLogPage;
use nvmf_proto::wire::reservation::ReportCommand;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, SglDescriptor, Sqe};

/// A command, of either kind of queue.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Command {
    opcode: Opcode,
    nsid: u8,
    /// CDW10 to CDW15: the low half, and which of them have something in the high half.
    cdw: [u16; 6],
    high: u8,
    data: Length,
    lie: Lie,
}

/// An index into the opcodes that the queue knows, or any opcode at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Opcode {
    odds: u8,
    value: u8,
}

/// How much data the command says it has.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Blocks(u8),
    Bytes(u16),
    /// What the command moves.
    AsCommand,
    /// The same, in the order of the target's choice.
    ByR2t,
    /// The same, and the blocks lie where most are: at the beginning.
    Low,
}

/// Rarely the SQE is not what a host would make.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    odds: u8,
    flags: u8,
    sgl_kind: u8,
    sgl_len: u16,
}

impl Command {
    /// As it is submitted.
    pub(super) fn sqe(&self, admin: bool) -> Sqe {
        const FABRICS: u8 = 0x7f;
        let known: &[u8] = if admin {
            &[
                AdminOpcode::GET_LOG_PAGE.0,
                AdminOpcode::IDENTIFY.0,
                AdminOpcode::ABORT.0,
                AdminOpcode::SET_FEATURES.0,
                AdminOpcode::GET_FEATURES.0,
                AdminOpcode::ASYNC_EVENT_REQUEST.0,
                AdminOpcode::KEEP_ALIVE.0,
                FABRICS,
            ]
        } else {
            &[
                NvmOpcode::FLUSH.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                NvmOpcode::WRITE_ZEROES.0,
                NvmOpcode::DATASET_MANAGEMENT.0,
                NvmOpcode::COMPARE.0,
                NvmOpcode::VERIFY.0,
                NvmOpcode::COPY.0,
                NvmOpcode::WRITE_UNCORRECTABLE.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                FABRICS,
                NvmOpcode::RESERVATION_REGISTER.0,
                NvmOpcode::RESERVATION_REPORT.0,
                NvmOpcode::RESERVATION_ACQUIRE.0,
                NvmOpcode::RESERVATION_RELEASE.0,
            ]
        };
        let opcode = if self.opcode.odds >= 0xe0 {
            self.opcode.value
        } else {
            known[usize::from(self.opcode.value) % known.len()]
        };
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(match self.nsid {
            nsid @ 0..0xf0 => u32::from(nsid % 7),
            _ => u32::MAX,
        });
        let mut bit = 0;
        let mut cdw = self.cdw.map(|low| {
            bit += 1;
            // CDW11 is the upper half of an SLBA: mostly 0.
            let high = self.high >> bit & 1 == 1 && self.high > 0xc0;
            u32::from(low) | if high { u32::from(low) << 16 } else { 0 }
        });
        if !admin && matches!(self.data, Length::Low) {
            // SLBA and NLB.
            (cdw[0], cdw[1], cdw[2]) = (cdw[0] % 64, 0, cdw[2] % 256);
        }
        sqe.set_cdw10_15(cdw);
        if self.lie.odds >= 0xf0 {
            sqe.0[1] = self.lie.flags;
        }
        // Half a fused operation waits for the other one.
        if (0xe0..0xf0).contains(&self.lie.odds) && !admin {
            sqe.0[1] |= 1 + (self.lie.flags & 1);
        }
        if self.lie.odds >= 0xf8 {
            sqe.set_sgl(SglDescriptor {
                address: self.lie.flags.into(),
                length: self.lie.sgl_len.into(),
                kind: self.lie.sgl_kind,
            });
        }
        sqe
    }

    /// The data of the command, and whether it is what its opcode says.
    pub(super) fn data(&self, sqe: &Sqe, admin: bool) -> (Data, bool) {
        if self.lie.odds >= 0xf8 {
            return (Data::AsIs, false);
        }
        let exact = exact_length(sqe, admin);
        let len = match self.data {
            Length::Blocks(blocks) => usize::from(blocks % 64) * 512,
            Length::Bytes(bytes) => usize::from(bytes),
            Length::AsCommand | Length::ByR2t | Length::Low => exact.min(DATA_MAX),
        };
        let fabrics = sqe.opcode() == 0x7f;
        // Bits 1:0 of the opcode (of FCTYPE in Fabrics commands) are the direction of the data.
        let direction = if fabrics {
            FabricsType::of(sqe).0 & 3
        } else {
            sqe.opcode() & 3
        };
        match direction {
            0 => (Data::None, true),
            // This host calls a success with less data than it made room for a violation.
            1 if matches!(self.data, Length::ByR2t) => {
                (Data::WriteByR2t(vec![WRITTEN; len]), len == exact)
            }
            1 => (Data::Write(vec![WRITTEN; len]), len == exact),
            2 => (Data::Read(vec![0xee; len]), len == exact),
            _ => (Data::Read(vec![0xee; len]), false),
        }
    }
}

/// How many bytes a good command moves.
fn exact_length(sqe: &Sqe, admin: bool) -> usize {
    if !admin {
        return match NvmOpcode(sqe.opcode()) {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                let block = if sqe.nsid() == 2 { 4096 } else { 512 };
                sqe.block_count() as usize * block
            }
            NvmOpcode::DATASET_MANAGEMENT => DsmCommand::decode(sqe).data_length(),
            NvmOpcode::COPY => CopyCommand::decode(sqe).data_length(),
            NvmOpcode::RESERVATION_REGISTER | NvmOpcode::RESERVATION_ACQUIRE => 16,
            NvmOpcode::RESERVATION_RELEASE => 8,
            NvmOpcode::RESERVATION_REPORT => {
                usize::try_from(ReportCommand::decode(sqe).length()).unwrap_or(usize::MAX)
            }
            _ => 0,
        };
    }
    match AdminOpcode(sqe.opcode()) {
        AdminOpcode::IDENTIFY => 4096,
        AdminOpcode::GET_LOG_PAGE => {
            usize::try_from(GetLogPage::decode(sqe).length()).unwrap_or(usize::MAX)
        }
        AdminOpcode::GET_FEATURES if GetFeatures::decode(sqe).fid == Fid::HOST_IDENTIFIER => {
            if GetFeatures::decode(sqe).cdw11 & HOST_ID_EXTENDED == 0 {
                8
            } else {
                16
            }
        }
        _ => 0,
    }
}

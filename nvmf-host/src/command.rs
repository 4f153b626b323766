//! SQEs of the NVM command set and of the Admin commands that have no structure of their own.
//!
//! CID and SGL are set by [`Queue::submit`](crate::Queue::submit). Counts of logical blocks are
//! as people count: 1 to 65,536.

use nvmf_proto::wire::copy::CopyCommand;
use nvmf_proto::wire::dsm::{DsmAttributes, DsmCommand};
use nvmf_proto::wire::feature::{GetFeatures, SetFeatures};
use nvmf_proto::wire::identify::IdentifyCommand;
use nvmf_proto::wire::log::GetLogPage;
use nvmf_proto::wire::reservation::{
    AcquireCommand, RegisterCommand, ReleaseCommand, ReportCommand,
};
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, Sqe};

/// FUA of Read, Write and Write Zeroes in CDW12.
const FUA: u32 = 1 << 30;
/// DEAC of Write Zeroes in CDW12.
const DEAC: u32 = 1 << 25;
/// NSZ of Write Zeroes in CDW12.
const NSZ: u32 = 1 << 23;

/// A command on a range of logical blocks. `blocks` of 0 is the same as 1.
#[must_use]
pub fn on_blocks(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32) -> Sqe {
    let mut sqe = Sqe::with_opcode(opcode.0);
    sqe.set_nsid(nsid);
    let [a, b, c, d, e, f, g, h] = slba.to_le_bytes();
    let nlb = blocks.saturating_sub(1) & 0xffff;
    let low = u32::from_le_bytes([a, b, c, d]);
    let high = u32::from_le_bytes([e, f, g, h]);
    sqe.set_cdw10_15([low, high, nlb, 0, 0, 0]);
    sqe
}

/// Read.
#[must_use]
pub fn read(nsid: u32, slba: u64, blocks: u32) -> Sqe {
    on_blocks(NvmOpcode::READ, nsid, slba, blocks)
}

/// Write.
#[must_use]
pub fn write(nsid: u32, slba: u64, blocks: u32) -> Sqe {
    on_blocks(NvmOpcode::WRITE, nsid, slba, blocks)
}

/// The same command with FUA: it completes when the data is on the medium.
#[must_use]
pub fn with_fua(mut sqe: Sqe) -> Sqe {
    set_cdw12_bits(&mut sqe, FUA);
    sqe
}

/// Write Zeroes; with `deallocate` the blocks may be given back (DEAC).
#[must_use]
pub fn write_zeroes(nsid: u32, slba: u64, blocks: u32, deallocate: bool) -> Sqe {
    let mut sqe = on_blocks(NvmOpcode::WRITE_ZEROES, nsid, slba, blocks);
    if deallocate {
        set_cdw12_bits(&mut sqe, DEAC);
    }
    sqe
}

/// The same Write Zeroes for all blocks of the namespace (NSZ).
#[must_use]
pub fn whole_namespace(mut sqe: Sqe) -> Sqe {
    set_cdw12_bits(&mut sqe, NSZ);
    sqe
}

/// Compare: the data goes to the controller.
#[must_use]
pub fn compare(nsid: u32, slba: u64, blocks: u32) -> Sqe {
    on_blocks(NvmOpcode::COMPARE, nsid, slba, blocks)
}

/// Verify.
#[must_use]
pub fn verify(nsid: u32, slba: u64, blocks: u32) -> Sqe {
    on_blocks(NvmOpcode::VERIFY, nsid, slba, blocks)
}

/// The same command as half of a fused operation (FUSE in byte 1). The halves are to be submitted
/// one right after the other.
#[must_use]
pub const fn fused(mut sqe: Sqe, half: Fuse) -> Sqe {
    let bits = match half {
        Fuse::None => 0,
        Fuse::First => 1,
        Fuse::Second => 2,
        Fuse::Reserved => 3,
    };
    sqe.0[1] = sqe.0[1] & !3 | bits;
    sqe
}

/// The fused operation Compare and Write: its first and its second command.
#[must_use]
pub fn compare_and_write(nsid: u32, slba: u64, blocks: u32) -> [Sqe; 2] {
    [
        fused(compare(nsid, slba, blocks), Fuse::First),
        fused(write(nsid, slba, blocks), Fuse::Second),
    ]
}

/// Write Uncorrectable.
#[must_use]
pub fn write_uncorrectable(nsid: u32, slba: u64, blocks: u32) -> Sqe {
    on_blocks(NvmOpcode::WRITE_UNCORRECTABLE, nsid, slba, blocks)
}

/// Copy of 1 to 256 ranges, which are the command's data.
#[must_use]
pub fn copy(nsid: u32, command: &CopyCommand) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::COPY.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Flush.
#[must_use]
pub fn flush(nsid: u32) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::FLUSH.0);
    sqe.set_nsid(nsid);
    sqe
}

/// Dataset Management of `ranges` ranges, 1 to 256, which are the command's data.
#[must_use]
pub fn dataset_management(nsid: u32, ranges: u16, attributes: DsmAttributes) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::DATASET_MANAGEMENT.0);
    sqe.set_nsid(nsid);
    DsmCommand {
        range_count: ranges,
        attributes,
    }
    .encode(&mut sqe);
    sqe
}

/// Reservation Register; its data is a
/// [`RegisterData`](nvmf_proto::wire::reservation::RegisterData).
#[must_use]
pub fn reservation_register(nsid: u32, command: &RegisterCommand) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_REGISTER.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Reservation Acquire; its data is an
/// [`AcquireData`](nvmf_proto::wire::reservation::AcquireData).
#[must_use]
pub fn reservation_acquire(nsid: u32, command: &AcquireCommand) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_ACQUIRE.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Reservation Release; its data is a
/// [`ReleaseData`](nvmf_proto::wire::reservation::ReleaseData).
#[must_use]
pub fn reservation_release(nsid: u32, command: &ReleaseCommand) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_RELEASE.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Reservation Report of `length` bytes, rounded up to dwords; `extended` asks for the data
/// structure with Host Identifiers of 128 bits, the one that Fabrics has.
#[must_use]
pub fn reservation_report(nsid: u32, length: u32, extended: bool) -> Sqe {
    let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_REPORT.0);
    sqe.set_nsid(nsid);
    ReportCommand {
        numd: length.div_ceil(4).saturating_sub(1),
        eds: extended,
    }
    .encode(&mut sqe);
    sqe
}

/// Identify.
#[must_use]
pub fn identify(nsid: u32, command: &IdentifyCommand) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::IDENTIFY.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Get Log Page.
#[must_use]
pub fn get_log_page(nsid: u32, command: &GetLogPage) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_LOG_PAGE.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Get Features.
#[must_use]
pub fn get_features(nsid: u32, command: &GetFeatures) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::GET_FEATURES.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Set Features.
#[must_use]
pub fn set_features(nsid: u32, command: &SetFeatures) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::SET_FEATURES.0);
    sqe.set_nsid(nsid);
    command.encode(&mut sqe);
    sqe
}

/// Asynchronous Event Request.
#[must_use]
pub fn async_event_request() -> Sqe {
    Sqe::with_opcode(AdminOpcode::ASYNC_EVENT_REQUEST.0)
}

/// Keep Alive.
#[must_use]
pub fn keep_alive() -> Sqe {
    Sqe::with_opcode(AdminOpcode::KEEP_ALIVE.0)
}

/// Abort of the command with this CID on a submission queue.
#[must_use]
pub fn abort(sqid: u16, cid: u16) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::ABORT.0);
    let ([a, b], [c, d]) = (sqid.to_le_bytes(), cid.to_le_bytes());
    sqe.set_cdw10_15([u32::from_le_bytes([a, b, c, d]), 0, 0, 0, 0, 0]);
    sqe
}

fn set_cdw12_bits(sqe: &mut Sqe, bits: u32) {
    sqe.set_cdw10_15([
        sqe.cdw10(),
        sqe.cdw11(),
        sqe.cdw12() | bits,
        sqe.cdw13(),
        sqe.cdw14(),
        sqe.cdw15(),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords() {
        let sqe = with_fua(read(3, 0x0102_0304_0506_0708, 65_536));
        assert_eq!((sqe.opcode(), sqe.psdt(), sqe.nsid()), (2, 1, 3));
        assert_eq!(
            (sqe.slba(), sqe.block_count(), sqe.fua()),
            (0x0102_0304_0506_0708, 65_536, true)
        );
        let sqe = write_zeroes(1, 5, 8, true);
        assert_eq!((sqe.opcode(), sqe.cdw12()), (8, 1 << 25 | 7));
        let [first, second] = compare_and_write(1, 5, 8);
        assert_eq!(
            (&first.0[..2], &second.0[..2]),
            (&[5, 0x41][..], &[1, 0x42][..])
        );
        assert_eq!(abort(2, 0x1234).cdw10(), 0x1234_0002);
        let sqe = dataset_management(1, 256, DsmAttributes::DEALLOCATE);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (255, 4));
        let sqe = reservation_report(1, 129, true);
        assert_eq!((sqe.opcode(), sqe.cdw10(), sqe.cdw11()), (0xe, 32, 1));
    }
}

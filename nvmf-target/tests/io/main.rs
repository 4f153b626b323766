//! I/O commands: what each does, and the status of each where it cannot.

#[path = "../common/mod.rs"]
mod common;

mod effects;
mod refusals;
mod uncorrectable;

use common::raw::{self, Digests, Raw, with_sgl};
use common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{Fid, HostBehavior, SetFeatures};
use nvmf_host::nvmf_proto::wire::{NvmOpcode, SglDescriptor, Sqe, Status};
use nvmf_target::Target;
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, RamDisk, Support};
use std::net::SocketAddr;

const SUCCESS: Status = Status::SUCCESS;
const UNREADABLE: Status = Status::UNRECOVERED_READ_ERROR.dnr();

/// Reads and writes, and leaves everything else to the target.
struct Plain {
    disk: RamDisk,
    info: NsInfo,
}

impl BlockDevice for Plain {
    fn info(&self) -> NsInfo {
        self.info.clone()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        self.disk.write_at(offset, buf, fua)
    }
}

const BLOCKS: u64 = 1 << 17;

fn plain(change: impl FnOnce(&mut NsInfo)) -> Inline<Plain> {
    let mut info = NsInfo::new(512, BLOCKS);
    change(&mut info);
    let bytes = info.bytes();
    let disk = RamDisk::new(bytes, info.block_size()).unwrap();
    Inline::new(Plain { disk, info })
}

/// Namespaces: 1 has everything natively, 2 emulates everything, 3 has nothing but Read and Write,
/// 4 is read-only, 5 has blocks of 4096 bytes; 6 and those up to 1024 are not there.
fn target() -> (Target, SocketAddr) {
    let mut config = config();
    config.buffer_bytes = 32 << 20;
    let (target, address) = common::target(config);
    target.add_namespace(NQN, 2, plain(|_| {})).unwrap();
    let nothing = plain(|info| {
        info.caps.write_zeroes = Support::None;
        info.caps.compare = Support::None;
        info.caps.compare_and_write = Support::None;
        info.caps.verify = Support::None;
        info.caps.copy = Support::None;
        info.caps.write_uncorrectable = Support::None;
    });
    target.add_namespace(NQN, 3, nothing).unwrap();
    target
        .add_namespace(NQN, 4, plain(|info| info.read_only = true))
        .unwrap();
    let large = plain(|info| {
        (info.lba_shift, info.blocks) = (12, BLOCKS / 8);
    });
    target.add_namespace(NQN, 5, large).unwrap();
    (target, address)
}

fn io(address: SocketAddr) -> (Raw, Raw) {
    let (admin, cntlid) = Raw::admin(address);
    let queue = Raw::io(address, cntlid, 1);
    (admin, queue)
}

/// Data of a command.
#[derive(Clone, Debug)]
enum Moves {
    Nothing,
    /// The host offers room.
    ToHost(u32),
    /// In the capsule if it fits, else by R2T.
    FromHost(Vec<u8>),
}

/// Runs a command to its end; status and dword 0.
fn run(queue: &mut Raw, sqe: Sqe, data: &Moves) -> (Status, u32) {
    let (sgl, payload): (_, &[u8]) = match data {
        Moves::Nothing => (SglDescriptor::transport(0), &[]),
        Moves::ToHost(len) => (SglDescriptor::transport(*len), &[]),
        Moves::FromHost(data) if data.len() <= 8192 => {
            let len = u32::try_from(data.len()).unwrap();
            (SglDescriptor::in_capsule(len), data)
        }
        Moves::FromHost(data) => {
            let len = u32::try_from(data.len()).unwrap();
            (SglDescriptor::transport(len), &[])
        }
    };
    queue.submit(&with_sgl(sqe, 1, sgl), payload);
    loop {
        let pdu = queue.recv();
        match pdu.ch.pdu_type {
            raw::C2H_DATA => {
                pdu.data();
            }
            raw::R2T => {
                let Moves::FromHost(data) = data else {
                    panic!("an R2T for {sqe:?}");
                };
                queue.send(&Digests::default().h2c_data(&pdu.r2t(), 0, data, true));
            }
            _ => {
                let cqe = pdu.cqe();
                #[expect(clippy::cast_possible_truncation, reason = "dword 0")]
                return (cqe.status, cqe.result as u32);
            }
        }
    }
}

fn blocks(queue: &mut Raw, nsid: u32, slba: u64, count: u32) -> Vec<u8> {
    let sgl = SglDescriptor::transport(count * 512);
    queue.read(&with_sgl(command::read(nsid, slba, count), 9, sgl))
}

fn dsm(nsid: u32, ranges: &[(u64, u32)]) -> (Sqe, Moves) {
    let data = ranges.iter().flat_map(|&(slba, length)| {
        DsmRange {
            context: 0xffff_ffff,
            length,
            slba,
        }
        .encode()
    });
    let data = data.collect();
    let count = u16::try_from(ranges.len()).unwrap();
    let sqe = command::dataset_management(nsid, count, DsmAttributes::all());
    (sqe, Moves::FromHost(data))
}

/// A Copy from other namespaces, or without those (NSID 0 everywhere) within its own.
fn copy(nsid: u32, sdlba: u64, ranges: &[(u32, u64, u32)]) -> (Sqe, Moves) {
    let format = if ranges.iter().all(|range| range.0 == 0) {
        CopyFormat::SAME_NAMESPACE
    } else {
        CopyFormat::ANY_NAMESPACE
    };
    let command = CopyCommand {
        sdlba,
        range_count: u16::try_from(ranges.len()).unwrap(),
        format,
    };
    let data = ranges.iter().flat_map(|&(snsid, slba, blocks)| {
        CopyRange {
            snsid,
            slba,
            blocks,
            fast_only: false,
        }
        .encode()
    });
    (
        command::copy(nsid, &command),
        Moves::FromHost(data.collect()),
    )
}

/// Set Features Host Behavior Support: Copy from other namespaces is known of.
fn allow_other_namespaces(admin: &mut Raw) {
    let behavior = HostBehavior {
        cdfe: CopyFormat::ANY_NAMESPACE.bit(),
        ..HostBehavior::default()
    };
    let mut data = [0; HostBehavior::SIZE];
    behavior.encode(&mut data);
    let sqe = command::set_features(0, &SetFeatures::new(Fid::HOST_BEHAVIOR, 0));
    let len = u32::try_from(data.len()).unwrap();
    admin.ok(&with_sgl(sqe, 1, SglDescriptor::in_capsule(len)), &data);
}

/// The commands with a range of blocks, and the data that they move with one of 512 bytes.
fn ranged() -> [(NvmOpcode, Moves); 6] {
    let data = || Moves::FromHost(vec![0; 512]);
    [
        (NvmOpcode::READ, Moves::ToHost(512)),
        (NvmOpcode::WRITE, data()),
        (NvmOpcode::COMPARE, data()),
        (NvmOpcode::VERIFY, Moves::Nothing),
        (NvmOpcode::WRITE_ZEROES, Moves::Nothing),
        (NvmOpcode::WRITE_UNCORRECTABLE, Moves::Nothing),
    ]
}

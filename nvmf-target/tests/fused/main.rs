//! Fused operations: Compare and Write, over the wire and against everything else that writes.

#[path = "../common/mod.rs"]
mod common;

mod abort;
mod gate;
mod pairs;

use common::raw::{self, Raw};
use common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::abort::AbortCommand;
use nvmf_host::nvmf_proto::wire::{AdminOpcode, Cqe, SglDescriptor, Sqe, Status};
use nvmf_target::Target;
use nvmf_target::ns::{Inline, NsInfo, RamDisk};
use std::net::SocketAddr;

const SUCCESS: Status = Status::SUCCESS;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;
const MISCOMPARE: Status = Status::COMPARE_FAILURE.dnr();

/// A target whose namespace 2 emulates what the first one does itself.
fn target() -> (Target, SocketAddr) {
    let (target, address) = common::target(config());
    let disk = RamDisk::new(64 << 20, 512).unwrap();
    target
        .add_namespace(NQN, 2, Inline::new(Plain(disk)))
        .unwrap();
    (target, address)
}

/// Reads and writes only.
struct Plain(RamDisk);

impl nvmf_target::ns::BlockDevice for Plain {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, (64 << 20) / 512)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), nvmf_target::ns::NsError> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8], fua: bool) -> Result<(), nvmf_target::ns::NsError> {
        self.0.write_at(at, buf, fua)
    }
}

/// How the data of a command gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Capsule,
    R2t,
}

/// A command with its CID and data pointer.
fn made(sqe: Sqe, cid: u16, len: usize, way: Way) -> Sqe {
    let len = u32::try_from(len).unwrap();
    let sgl = match way {
        Way::Capsule => SglDescriptor::in_capsule(len),
        Way::R2t => SglDescriptor::transport(len),
    };
    raw::with_sgl(sqe, cid, sgl)
}

fn submit(queue: &mut Raw, sqe: Sqe, cid: u16, data: &[u8], way: Way) {
    let sqe = made(sqe, cid, data.len(), way);
    queue.submit(&sqe, if way == Way::Capsule { data } else { &[] });
}

/// The next `count` completions, by CID.
fn completions(queue: &mut Raw, count: usize) -> Vec<(u16, Status)> {
    let cqe = |_| {
        let Cqe { cid, status, .. } = queue.recv().cqe();
        (cid, status)
    };
    let mut all: Vec<_> = (0..count).map(cqe).collect();
    all.sort_by_key(|&(cid, _)| cid);
    all
}

fn io(address: SocketAddr) -> (Raw, Raw) {
    let (admin, cntlid) = Raw::admin(address);
    (admin, Raw::io(address, cntlid, 1))
}

fn blocks_at(queue: &mut Raw, nsid: u32, slba: u64, blocks: u32) -> Vec<u8> {
    let sgl = SglDescriptor::transport(blocks * 512);
    queue.read(&raw::with_sgl(command::read(nsid, slba, blocks), 9, sgl))
}

/// Aborts a command of queue 1; whether that was immediate.
fn aborts(admin: &mut Raw, cid: u16) -> bool {
    let mut sqe = Sqe::with_opcode(AdminOpcode::ABORT.0);
    AbortCommand { sqid: 1, cid }.encode(&mut sqe);
    sqe.set_cid(100);
    admin.ok(&sqe, &[]).result & 1 == 0
}

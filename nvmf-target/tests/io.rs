//! I/O commands: what each does, and the status of each where it cannot.

mod common;

use common::raw::{self, Digests, Raw, with_sgl};
use common::step::Step;
use common::{NQN, assert_idle, config, connect, eventually, pattern};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{Fid, HostBehavior, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_host::nvmf_proto::wire::{NvmOpcode, SglDescriptor, Sqe, Status};
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, Op, RamDisk, Support};
use nvmf_target::{Target, TargetConfig};
use std::net::SocketAddr;
use std::sync::Arc;

const SUCCESS: Status = Status::SUCCESS;
const FIELD: Status = Status::INVALID_FIELD.dnr();
const RANGE: Status = Status::LBA_OUT_OF_RANGE.dnr();
const NAMESPACE: Status = Status::INVALID_NAMESPACE.dnr();
const LENGTH: Status = Status::DATA_SGL_LENGTH_INVALID.dnr();
const OPCODE: Status = Status::INVALID_OPCODE.dnr();
const PROTECTED: Status = Status::NAMESPACE_WRITE_PROTECTED.dnr();
const TOO_LARGE: Status = Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr();
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
    with_config(config)
}

fn with_config(config: TargetConfig) -> (Target, SocketAddr) {
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

fn with_cdw12(mut sqe: Sqe, bits: u32) -> Sqe {
    let cdw12 = sqe.cdw12() | bits;
    sqe.0[48..52].copy_from_slice(&cdw12.to_le_bytes());
    sqe
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

/// What is the same for every command with a range of blocks.
#[test]
fn every_range_command_checks_its_namespace_and_range() {
    let (target, address) = target();
    let (admin, mut queue) = io(address);
    for (opcode, data) in ranged() {
        let reads = matches!(
            opcode,
            NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY
        );
        let basic = matches!(opcode, NvmOpcode::READ | NvmOpcode::WRITE);
        let write = opcode == NvmOpcode::WRITE_UNCORRECTABLE;
        let cases = [
            ("first block", 1, 0, SUCCESS),
            ("last block", 1, BLOCKS - 1, SUCCESS),
            ("emulated", 2, BLOCKS - 1, SUCCESS),
            ("behind the end", 1, BLOCKS, RANGE),
            ("behind all ends", 1, u64::MAX, RANGE),
            ("no NSID", 0, 0, NAMESPACE),
            ("all NSIDs", NSID_BROADCAST, 0, NAMESPACE),
            ("inactive NSID", 6, 0, NAMESPACE),
            ("NSID beyond NN", 5000, 0, NAMESPACE),
            ("not offered", 3, 0, if basic { SUCCESS } else { OPCODE }),
            ("read-only", 4, 0, if reads { SUCCESS } else { PROTECTED }),
        ];
        for (case, nsid, slba, status) in cases {
            let sqe = command::on_blocks(opcode, nsid, slba, 1);
            assert_eq!(
                run(&mut queue, sqe, &data),
                (status, 0),
                "{}: {case}",
                opcode.name()
            );
            if write && status == SUCCESS {
                let heal = command::write_zeroes(nsid, slba, 1, false);
                assert_eq!(run(&mut queue, heal, &Moves::Nothing).0, SUCCESS);
            }
        }
        let across = command::on_blocks(opcode, 1, BLOCKS - 1, 2);
        let data = match data {
            Moves::Nothing => Moves::Nothing,
            Moves::ToHost(_) => Moves::ToHost(1024),
            Moves::FromHost(_) => Moves::FromHost(vec![0; 1024]),
        };
        assert_eq!(run(&mut queue, across, &data).0, RANGE, "{}", opcode.name());
        // Limited Retry and what belongs to protection information, directives and hints is for
        // others; PRACT is not, in Verify.
        let hints = 0x9f70_0000;
        let sqe = command::on_blocks(opcode, 1, 0, 1);
        let mut data = data;
        match &mut data {
            Moves::Nothing => {}
            Moves::ToHost(len) => *len = 512,
            Moves::FromHost(data) => data.truncate(512),
        }
        let sqe = with_cdw12(sqe, hints & !(1 << 25 | 1 << 23));
        assert_eq!(run(&mut queue, sqe, &data).0, SUCCESS, "{}", opcode.name());
        let pract = with_cdw12(sqe, 1 << 29);
        let status = if opcode == NvmOpcode::VERIFY {
            FIELD
        } else {
            SUCCESS
        };
        if write {
            assert_eq!(run(&mut queue, pract, &data).0, SUCCESS);
            let heal = command::write_zeroes(1, 0, 1, false);
            assert_eq!(run(&mut queue, heal, &Moves::Nothing).0, SUCCESS);
        } else {
            assert_eq!(run(&mut queue, pract, &data).0, status);
        }
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// Everything else that a command can be refused for: command, data, status and dword 0.
#[test]
fn every_refusal() {
    let (target, address) = target();
    let (mut admin, mut queue) = io(address);
    let (zero, none) = (|len| Moves::FromHost(vec![0; len]), Moves::Nothing);
    let (mib, deac) = (1 << 20, true);
    let same = |sdlba, ranges: &[(u64, u32)]| {
        let ranges: Vec<_> = ranges.iter().map(|&(slba, n)| (0, slba, n)).collect();
        copy(1, sdlba, &ranges)
    };
    let (half, forbidden) = (1 << 16, copy(1, 0, &[(2, 0, 1)]));
    let format = |format| {
        let command = CopyCommand {
            sdlba: 0,
            range_count: 1,
            format: CopyFormat(format),
        };
        (command::copy(1, &command), zero(32))
    };
    let cases: Vec<(&str, (Sqe, Moves), Status)> = vec![
        // MDTS: 1 MiB.
        (
            "MDTS, Read",
            (command::read(1, 0, 2048), Moves::ToHost(mib)),
            SUCCESS,
        ),
        (
            "MDTS, Read",
            (command::read(1, 0, 2049), Moves::ToHost(mib + 512)),
            FIELD,
        ),
        (
            "MDTS, Write",
            (command::write(1, 0, 2049), zero(2049 * 512)),
            FIELD,
        ),
        (
            "MDTS, Compare",
            (command::compare(1, 0, 2049), zero(2049 * 512)),
            FIELD,
        ),
        (
            "MDTS, Compare",
            (command::compare(2, 0, 2048), zero(2048 * 512)),
            SUCCESS,
        ),
        (
            "MDTS does not bound Verify",
            (command::verify(2, 0, half), none.clone()),
            SUCCESS,
        ),
        (
            "nor Write Zeroes",
            (command::write_zeroes(2, 0, half, deac), none.clone()),
            SUCCESS,
        ),
        // Lengths.
        (
            "Compare, less data",
            (command::compare(1, 0, 2), zero(512)),
            LENGTH,
        ),
        (
            "Compare, more data",
            (command::compare(1, 0, 1), zero(1024)),
            LENGTH,
        ),
        (
            "Verify with data",
            (command::verify(1, 0, 1), zero(512)),
            FIELD,
        ),
        (
            "Write Uncorrectable with data",
            (command::write_uncorrectable(1, 0, 1), zero(512)),
            FIELD,
        ),
        (
            "miscompare",
            (command::compare(1, 0, 1), Moves::FromHost(vec![1; 512])),
            Status::COMPARE_FAILURE.dnr(),
        ),
        (
            "miscompare, emulated",
            (command::compare(2, 0, 1), Moves::FromHost(vec![1; 512])),
            Status::COMPARE_FAILURE.dnr(),
        ),
        // Namespace Zeroes.
        (
            "NSZ without DEAC",
            (
                command::whole_namespace(command::write_zeroes(1, 0, 1, false)),
                none.clone(),
            ),
            FIELD,
        ),
        (
            "NSZ where it is not known what deallocated blocks read as",
            (
                command::whole_namespace(command::write_zeroes(2, 0, 1, true)),
                none,
            ),
            FIELD,
        ),
        // Dataset Management.
        ("no blocks", dsm(1, &[(0, 0)]), SUCCESS),
        ("all blocks, twice", dsm(1, &[(0, 1 << 17); 2]), SUCCESS),
        ("256 ranges", dsm(1, &[(7, 1); 256]), SUCCESS),
        (
            "range behind the end",
            dsm(1, &[(0, 1), (BLOCKS, 1)]),
            RANGE,
        ),
        ("across the end", dsm(1, &[(BLOCKS - 1, 2)]), RANGE),
        ("behind all ends", dsm(2, &[(u64::MAX, u32::MAX)]), RANGE),
        ("read-only", dsm(4, &[(0, 1)]), PROTECTED),
        ("not offered: a hint", dsm(3, &[(0, 1)]), SUCCESS),
        ("inactive NSID", dsm(6, &[(0, 1)]), NAMESPACE),
        (
            "less data than ranges",
            (dsm(1, &[(0, 1); 2]).0, zero(16)),
            LENGTH,
        ),
        (
            "more data than ranges",
            (dsm(1, &[(0, 1)]).0, zero(4096)),
            SUCCESS,
        ),
        // Copy.
        ("one block", same(10, &[(0, 1)]), SUCCESS),
        ("onto itself", same(0, &[(0, 8)]), SUCCESS),
        ("MSSRL", same(0, &[(1 << 16, 65535)]), SUCCESS),
        ("over MSSRL", same(0, &[(1 << 16, 1 << 16)]), TOO_LARGE),
        (
            "MCL",
            same(0, &[(1 << 16, 65535), (0, 65535), (0, 2)]),
            SUCCESS,
        ),
        (
            "over MCL",
            same(0, &[(1 << 16, 65535), (0, 65535), (0, 3)]),
            TOO_LARGE,
        ),
        ("MSRC", same(1000, &[(0, 1); 128]), SUCCESS),
        ("over MSRC", same(1000, &[(0, 1); 129]), TOO_LARGE),
        (
            "source behind the end",
            same(0, &[(0, 1), (BLOCKS, 1)]),
            RANGE,
        ),
        ("destination behind the end", same(BLOCKS, &[(0, 1)]), RANGE),
        ("across the end", same(BLOCKS - 1, &[(0, 1), (0, 1)]), RANGE),
        ("behind all ends", same(u64::MAX, &[(0, 1)]), RANGE),
        ("read-only", copy(4, 0, &[(0, 0, 1)]), PROTECTED),
        ("not offered", copy(3, 0, &[(0, 0, 1)]), OPCODE),
        ("inactive NSID", copy(6, 0, &[(0, 0, 1)]), NAMESPACE),
        ("format 1", format(1), FIELD),
        ("format 3", format(3), FIELD),
        ("format 4", format(4), FIELD),
        ("format 15", format(15), FIELD),
        ("format 2 without permission", forbidden.clone(), FIELD),
        ("less data", (forbidden.0, zero(16)), LENGTH),
        ("more data", (same(0, &[(0, 1)]).0, zero(64)), LENGTH),
    ];
    for (case, (sqe, data), status) in &cases {
        assert_eq!(run(&mut queue, *sqe, data), (*status, 0), "{case}");
    }
    allow_other_namespaces(&mut admin);
    let overlap = Status::OVERLAPPING_RANGE.dnr();
    let slow = Status::FAST_COPY_NOT_POSSIBLE.dnr();
    let (fast, _) = copy(1, 0, &[(2, 0, 1)]);
    let fast_data = CopyRange {
        snsid: 2,
        slba: 0,
        blocks: 1,
        fast_only: true,
    };
    let incompatible = Status::INCOMPATIBLE_NAMESPACE.dnr();
    let cases = [
        ("another namespace", copy(1, 0, &[(2, 0, 1)]), SUCCESS),
        (
            "several",
            copy(1, 9, &[(2, 0, 1), (1, 0, 1), (4, 0, 1)]),
            SUCCESS,
        ),
        (
            "from one that cannot copy",
            copy(1, 0, &[(3, 0, 1)]),
            SUCCESS,
        ),
        ("to a read-only one", copy(4, 0, &[(1, 0, 1)]), PROTECTED),
        ("other blocks", copy(1, 0, &[(5, 0, 1)]), incompatible),
        ("NSID 0", copy(1, 0, &[(2, 0, 1), (0, 9, 1)]), NAMESPACE),
        (
            "all NSIDs",
            copy(1, 0, &[(NSID_BROADCAST, 0, 1)]),
            NAMESPACE,
        ),
        ("NSID beyond NN", copy(1, 0, &[(5000, 0, 1)]), NAMESPACE),
        ("inactive NSID", copy(1, 0, &[(6, 0, 1)]), FIELD),
        ("overlap", copy(1, 7, &[(1, 0, 8)]), overlap),
        ("side by side", copy(1, 8, &[(1, 0, 8)]), SUCCESS),
        ("elsewhere", copy(1, 7, &[(2, 0, 8)]), SUCCESS),
        (
            "source behind the end",
            copy(1, 7, &[(2, BLOCKS, 1)]),
            RANGE,
        ),
        (
            "fast",
            (fast, Moves::FromHost(fast_data.encode().to_vec())),
            slow,
        ),
    ];
    for (case, (sqe, data), status) in &cases {
        assert_eq!(run(&mut queue, *sqe, data), (*status, 0), "{case}");
    }
    drop((admin, queue));
    assert_idle(&target);
}

#[test]
fn copies_what_is_there() {
    let (target, address) = target();
    let (mut admin, mut queue) = io(address);
    allow_other_namespaces(&mut admin);
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    for nsid in [1, 2] {
        let ns = host.namespace(nsid).unwrap();
        let mut direct = host.io_queue(1).unwrap();
        let data = pattern(u64::from(nsid), 1 << 20);
        direct.write(&ns, 0, &data).unwrap();
        // Ranges that share buffers, that need several, and that touch.
        let ranges = [(100, 3), (0, 1), (1000, 700), (5, 1), (6, 300)];
        let mut want = Vec::new();
        let list: Vec<_> = ranges
            .iter()
            .map(|&(slba, blocks)| {
                let start = usize::try_from(slba * 512).unwrap();
                want.extend(&data[start..start + blocks as usize * 512]);
                CopyRange {
                    slba,
                    blocks,
                    ..CopyRange::default()
                }
            })
            .collect();
        direct.copy(&ns, 50_000, &list).unwrap();
        let mut back = vec![0; want.len()];
        direct.read(&ns, 50_000, &mut back).unwrap();
        assert!(back == want, "{nsid}");
        // From the other one, with FUA.
        let other = 3 - nsid;
        let (sqe, ranges) = copy(other, 7, &[(nsid, 1000, 300)]);
        let status = run(&mut queue, command::with_fua(sqe), &ranges);
        assert_eq!(status, (SUCCESS, 0));
        let got = blocks(&mut queue, other, 7, 300);
        assert!(got == data[1000 * 512..1300 * 512]);
        direct.disconnect().unwrap();
    }
    drop((admin, queue, host));
    assert_idle(&target);
}

/// Dword 0 of a Copy that fails is the first source range that was not copied entirely.
#[test]
fn a_copy_that_fails_says_how_far_it_came() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    let mark = command::write_uncorrectable(1, 5000, 1);
    assert_eq!(run(&mut queue, mark, &Moves::Nothing).0, SUCCESS);
    // 128 KiB, 256 blocks, are written at a time.
    for (ranges, want) in [
        (&[(0, 4000, 2000)][..], 0),
        (&[(0, 0, 8), (0, 5000, 1)], 0),
        (&[(0, 0, 256), (0, 5000, 1)], 1),
        (&[(0, 0, 200), (0, 0, 100), (0, 4744, 257)], 2),
        (&[(0, 0, 200), (0, 0, 100), (0, 0, 7), (0, 5000, 1)], 1),
    ] {
        let (sqe, data) = copy(1, 10_000, ranges);
        assert_eq!(
            run(&mut queue, sqe, &data),
            (UNREADABLE, want),
            "{ranges:?}"
        );
    }
}

#[test]
fn uncorrectable_blocks_cannot_be_read_until_they_are_written() {
    let (target, address) = target();
    let (admin, mut queue) = io(address);
    let data = |count: usize| Moves::FromHost(vec![7; 512 * count]);
    for nsid in [1, 2] {
        let fill = command::write(nsid, 0, 100);
        assert_eq!(run(&mut queue, fill, &data(100)).0, SUCCESS);
        let mark = command::write_uncorrectable(nsid, 10, 10);
        assert_eq!(run(&mut queue, mark, &Moves::Nothing).0, SUCCESS);
        let [first, second] = command::compare_and_write(nsid, 19, 1);
        let fails = |queue: &mut Raw, slba, count: u16, want| {
            let bytes = u32::from(count) * 512;
            for (sqe, data) in [
                (
                    command::read(nsid, slba, count.into()),
                    Moves::ToHost(bytes),
                ),
                (
                    command::compare(nsid, slba, count.into()),
                    data(count.into()),
                ),
                (command::verify(nsid, slba, count.into()), Moves::Nothing),
                copy(nsid, 1000, &[(0, slba, count.into())]),
            ] {
                assert_eq!(run(queue, sqe, &data).0, want, "{sqe:?}");
            }
        };
        fails(&mut queue, 0, 10, SUCCESS);
        fails(&mut queue, 20, 10, SUCCESS);
        fails(&mut queue, 0, 11, UNREADABLE);
        fails(&mut queue, 19, 1, UNREADABLE);
        queue.submit(
            &with_sgl(first, 1, SglDescriptor::in_capsule(512)),
            &[7; 512],
        );
        queue.submit(
            &with_sgl(second, 2, SglDescriptor::in_capsule(512)),
            &[8; 512],
        );
        let statuses = [queue.recv().cqe().status, queue.recv().cqe().status];
        assert_eq!(statuses, [UNREADABLE, Status::ABORTED_FAILED_FUSED]);
        // What writes makes blocks valid; Dataset Management does not write.
        let (sqe, ranges) = dsm(nsid, &[(10, 10)]);
        assert_eq!(run(&mut queue, sqe, &ranges).0, SUCCESS);
        fails(&mut queue, 10, 1, UNREADABLE);
        assert_eq!(
            run(&mut queue, command::write(nsid, 10, 2), &data(2)).0,
            SUCCESS
        );
        let zeroes = command::write_zeroes(nsid, 12, 3, false);
        assert_eq!(run(&mut queue, zeroes, &Moves::Nothing).0, SUCCESS);
        let (sqe, ranges) = copy(nsid, 15, &[(0, 0, 5)]);
        assert_eq!(run(&mut queue, sqe, &ranges).0, SUCCESS);
        let read = command::read(nsid, 0, 100);
        assert_eq!(run(&mut queue, read, &Moves::ToHost(51200)).0, SUCCESS);
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// Blocks are marked behind what is being written, and before what comes later.
#[test]
fn blocks_are_marked_when_nothing_writes() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, BLOCKS));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, cntlid) = Raw::admin(address);
    let mut queues = [1, 2].map(|qid| Raw::io(address, cntlid, qid));
    let write = with_sgl(command::write(2, 5, 1), 3, SglDescriptor::in_capsule(512));
    queues[0].submit(&write, &[1; 512]);
    let before = step.next();
    let mark = with_sgl(
        command::write_uncorrectable(2, 0, 10),
        4,
        SglDescriptor::transport(0),
    );
    queues[1].submit(&mark, &[]);
    queues[1].ok(
        &with_sgl(command::flush(1), 7, SglDescriptor::transport(0)),
        &[],
    );
    before.complete(Ok(()));
    assert_eq!(queues[0].recv().cqe().status, SUCCESS);
    let cqe = queues[1].recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (4, SUCCESS));
    let read = |slba| with_sgl(command::read(2, slba, 1), 5, SglDescriptor::transport(512));
    assert_eq!(queues[0].execute(&read(5), &[]).status, UNREADABLE);
    assert_eq!(step.pending(), 0, "the backend is not asked");
    // A write that fails leaves them as they are.
    queues[0].submit(&write, &[1; 512]);
    step.next().complete(Err(Status::WRITE_FAULT));
    assert_eq!(queues[0].recv().cqe().status, Status::WRITE_FAULT);
    assert_eq!(queues[0].execute(&read(5), &[]).status, UNREADABLE);
    queues[0].submit(&write, &[1; 512]);
    step.next().complete(Ok(()));
    assert_eq!(queues[0].recv().cqe().status, SUCCESS);
    queues[1].submit(&read(5), &[]);
    let mut request = step.next();
    request.data_mut().fill(1);
    request.complete(Ok(()));
    assert_eq!(queues[1].recv().data(), [1; 512]);
}

/// FUA of what reads is a Flush before it.
#[test]
fn fua_of_what_reads_is_a_flush_before() {
    for volatile in [true, false] {
        let (target, address) = common::target(config());
        let mut info = NsInfo::new(512, BLOCKS);
        if volatile {
            info = info.with_volatile_cache();
        }
        let step = Step::new(info);
        target.add_namespace(NQN, 2, step.clone()).unwrap();
        let (_admin, mut queue) = io(address);
        for (opcode, data) in ranged().into_iter().take(4) {
            if opcode == NvmOpcode::WRITE {
                continue;
            }
            let sqe = command::with_fua(command::on_blocks(opcode, 2, 0, 1));
            let (sgl, payload): (_, &[u8]) = match &data {
                Moves::FromHost(data) => (SglDescriptor::in_capsule(512), data),
                _ => (SglDescriptor::transport(512), &[]),
            };
            queue.submit(&with_sgl(sqe, 1, sgl), payload);
            if volatile {
                let flush = step.next();
                assert_eq!((flush.op(), step.pending()), (Op::Flush, 0));
                flush.complete(Ok(()));
            }
            let mut read = step.next();
            assert_eq!(read.op(), Op::Read);
            read.data_mut().fill(0);
            read.complete(Ok(()));
            if opcode == NvmOpcode::READ {
                queue.recv().data();
            }
            assert_eq!(queue.recv().cqe().status, SUCCESS, "{}", opcode.name());
            assert_eq!(step.pending(), 0);
        }
    }
}

/// A command over much storage comes to a backend in pieces, one after the other.
#[test]
fn much_at_once_comes_in_pieces() {
    const PIECE: u64 = (32 << 20) / 512;
    let (target, address) = common::target(config());
    let mut info = NsInfo::new(512, 1 << 40);
    info.caps.write_zeroes = Support::Native;
    info.caps.deallocate = Support::Native;
    info.caps.verify = Support::Native;
    info.dealloc_reads_zero = true;
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, mut queue) = io(address);
    let none = SglDescriptor::transport(0);
    let whole = command::whole_namespace(command::write_zeroes(2, 77, 1, true));
    queue.submit(&with_sgl(whole, 1, none), &[]);
    for at in 0..3 {
        let request = step.next();
        let range = request.lba_range();
        assert_eq!((range.slba, range.blocks), (at * PIECE, PIECE));
        assert_eq!(step.pending(), 0);
        let outcome = if at < 2 {
            Ok(())
        } else {
            Err(Status::WRITE_FAULT)
        };
        request.complete(outcome);
    }
    assert_eq!(queue.recv().cqe().status, Status::WRITE_FAULT);
    queue.submit(&with_sgl(command::verify(2, 9, 1 << 16), 1, none), &[]);
    let verify = step.next();
    assert_eq!(
        (verify.op(), verify.lba_range().blocks),
        (Op::Verify, PIECE)
    );
    verify.complete(Ok(()));
    assert_eq!(queue.recv().cqe().status, SUCCESS);
    // 8,388,608 blocks of a range are seen to (DMRSL), and 255 ranges (DMRL).
    let ranges = [(5, 1 << 17), (7, 0), (1 << 30, u32::MAX), (0, 3)];
    let (sqe, Moves::FromHost(data)) = dsm(2, &ranges) else {
        unreachable!();
    };
    let len = u32::try_from(data.len()).unwrap();
    queue.submit(&with_sgl(sqe, 2, SglDescriptor::in_capsule(len)), &data);
    let mut seen = Vec::new();
    while seen.iter().all(|&(slba, _)| slba != 0) {
        let request = step.next();
        let total: u64 = request.ranges().iter().map(|range| range.blocks).sum();
        assert!(total <= PIECE);
        seen.extend(request.ranges().iter().map(|r| (r.slba, r.blocks)));
        request.complete(Ok(()));
    }
    assert_eq!(queue.recv().cqe().status, SUCCESS);
    let of = |from: u64| -> u64 {
        let all = seen.iter().filter(|range| range.0 >> 30 == from >> 30);
        all.map(|range| range.1).sum()
    };
    assert_eq!((of(0), of(1 << 30)), ((1 << 17) + 3, 1 << 23));
}

/// Namespace Zeroes says in dword 0 that it has zeroed everything.
#[test]
fn a_whole_namespace_is_zeroed() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    let data = Moves::FromHost(vec![7; 4096]);
    for slba in [0, BLOCKS - 8] {
        assert_eq!(
            run(&mut queue, command::write(1, slba, 8), &data).0,
            SUCCESS
        );
    }
    let whole = command::whole_namespace(command::write_zeroes(1, u64::MAX, 1, true));
    assert_eq!(run(&mut queue, whole, &Moves::Nothing), (SUCCESS, 1));
    for slba in [0, BLOCKS - 8] {
        assert_eq!(blocks(&mut queue, 1, slba, 8), [0; 4096]);
    }
}

/// One backend under two NSIDs and in two subsystems: what is written by one way is read by all.
#[test]
fn a_backend_may_be_served_more_than_once() {
    const OTHER: &str = "nqn.2026-11.org.example:other";
    let (target, address) = common::target(config());
    let disk = Arc::new(Inline::new(RamDisk::new(1 << 20, 512).unwrap()));
    target.add_namespace(NQN, 2, Arc::clone(&disk)).unwrap();
    target.add_namespace(NQN, 3, Arc::clone(&disk)).unwrap();
    target
        .add_subsystem(nvmf_target::SubsystemConfig::new(OTHER))
        .unwrap();
    target.add_namespace(OTHER, 9, disk).unwrap();
    let mut hosts = [NQN, OTHER].map(|nqn| {
        let options = nvmf_host::ConnectOptions::new(address, nqn).unwrap();
        nvmf_host::Controller::connect(&options).unwrap()
    });
    let mut ways = Vec::new();
    for (host, nsids) in hosts.iter_mut().zip([&[2, 3][..], &[9]]) {
        host.set_queue_count(2).unwrap();
        for (qid, &nsid) in (1..).zip(nsids) {
            let ns = host.namespace(nsid).unwrap();
            ways.push((ns, host.io_queue(qid).unwrap()));
        }
    }
    for writer in 0..ways.len() {
        let data = pattern(writer as u64, 4096);
        let (ns, queue) = &mut ways[writer];
        queue.write(ns, 8, &data).unwrap();
        for (ns, queue) in &mut ways {
            let mut back = vec![0; 4096];
            queue.read(ns, 8, &mut back).unwrap();
            assert_eq!(back, data);
        }
    }
    target.remove_namespace(NQN, 2).unwrap();
    let (ns, queue) = &mut ways[2];
    queue.write(ns, 0, &[1; 512]).unwrap();
    drop((ways, hosts));
    eventually("everything is given back", || {
        target.stats() == Default::default()
    });
}

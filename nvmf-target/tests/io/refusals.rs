//! What a command is refused for.

use super::{BLOCKS, Moves, SUCCESS, allow_other_namespaces, copy, dsm, io, ranged, run, target};
use crate::common::assert_idle;
use crate::common::raw::Raw;
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_host::nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_host::nvmf_proto::wire::{NvmOpcode, Sqe, Status};

const FIELD: Status = Status::INVALID_FIELD.dnr();
const RANGE: Status = Status::LBA_OUT_OF_RANGE.dnr();
const NAMESPACE: Status = Status::INVALID_NAMESPACE.dnr();
const LENGTH: Status = Status::DATA_SGL_LENGTH_INVALID.dnr();
const OPCODE: Status = Status::INVALID_OPCODE.dnr();
const PROTECTED: Status = Status::NAMESPACE_WRITE_PROTECTED.dnr();
const TOO_LARGE: Status = Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr();

fn with_cdw12(mut sqe: Sqe, bits: u32) -> Sqe {
    let cdw12 = sqe.cdw12() | bits;
    sqe.0[48..52].copy_from_slice(&cdw12.to_le_bytes());
    sqe
}

/// Makes a block that has been marked as uncorrectable readable again.
fn heal(queue: &mut Raw, nsid: u32, slba: u64) {
    let zeroes = command::write_zeroes(nsid, slba, 1, false);
    assert_eq!(run(queue, zeroes, &Moves::Nothing).0, SUCCESS);
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
                heal(&mut queue, nsid, slba);
            }
        }
        let across = command::on_blocks(opcode, 1, BLOCKS - 1, 2);
        let data = match data {
            Moves::Nothing => Moves::Nothing,
            Moves::ToHost(_) => Moves::ToHost(1024),
            Moves::FromHost(_) => Moves::FromHost(vec![0; 1024]),
        };
        assert_eq!(run(&mut queue, across, &data).0, RANGE, "{}", opcode.name());
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// Limited Retry and what belongs to protection information, directives and hints is for others;
/// PRACT is not, in Verify.
#[test]
fn fields_that_are_for_others_are_ignored() {
    let (target, address) = target();
    let (admin, mut queue) = io(address);
    for (opcode, data) in ranged() {
        let hints = 0x9f70_0000 & !(1 << 25 | 1 << 23);
        let sqe = with_cdw12(command::on_blocks(opcode, 1, 0, 1), hints);
        assert_eq!(run(&mut queue, sqe, &data).0, SUCCESS, "{}", opcode.name());
        let status = if opcode == NvmOpcode::VERIFY {
            FIELD
        } else {
            SUCCESS
        };
        let pract = with_cdw12(sqe, 1 << 29);
        assert_eq!(run(&mut queue, pract, &data).0, status, "{}", opcode.name());
        if opcode == NvmOpcode::WRITE_UNCORRECTABLE {
            heal(&mut queue, 1, 0);
        }
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// What a command is, the command and its data, and its status.
type Case = (&'static str, (Sqe, Moves), Status);

fn zeroes(len: usize) -> Moves {
    Moves::FromHost(vec![0; len])
}

/// MDTS: 1 MiB.
fn transfer_sizes() -> Vec<Case> {
    let (mib, half, deac, none) = (1 << 20, 1 << 16, true, Moves::Nothing);
    vec![
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
            (command::write(1, 0, 2049), zeroes(2049 * 512)),
            FIELD,
        ),
        (
            "MDTS, Compare",
            (command::compare(1, 0, 2049), zeroes(2049 * 512)),
            FIELD,
        ),
        (
            "MDTS, Compare",
            (command::compare(2, 0, 2048), zeroes(2048 * 512)),
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
    ]
}

fn lengths_and_data() -> Vec<Case> {
    vec![
        (
            "Compare, less data",
            (command::compare(1, 0, 2), zeroes(512)),
            LENGTH,
        ),
        (
            "Compare, more data",
            (command::compare(1, 0, 1), zeroes(1024)),
            LENGTH,
        ),
        (
            "Verify with data",
            (command::verify(1, 0, 1), zeroes(512)),
            FIELD,
        ),
        (
            "Write Uncorrectable with data",
            (command::write_uncorrectable(1, 0, 1), zeroes(512)),
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
    ]
}

/// Namespace Zeroes.
fn whole_namespaces() -> Vec<Case> {
    let none = Moves::Nothing;
    vec![
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
    ]
}

fn dataset_management() -> Vec<Case> {
    vec![
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
            (dsm(1, &[(0, 1); 2]).0, zeroes(16)),
            LENGTH,
        ),
        (
            "more data than ranges",
            (dsm(1, &[(0, 1)]).0, zeroes(4096)),
            SUCCESS,
        ),
    ]
}

/// Copies within a namespace, and from others as long as that is not allowed.
fn copies() -> Vec<Case> {
    let same = |sdlba, ranges: &[(u64, u32)]| {
        let ranges: Vec<_> = ranges.iter().map(|&(slba, n)| (0, slba, n)).collect();
        copy(1, sdlba, &ranges)
    };
    let format = |format| {
        let command = CopyCommand {
            sdlba: 0,
            range_count: 1,
            format: CopyFormat(format),
        };
        (command::copy(1, &command), zeroes(32))
    };
    let forbidden = copy(1, 0, &[(2, 0, 1)]);
    vec![
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
        ("less data", (forbidden.0, zeroes(16)), LENGTH),
        ("more data", (same(0, &[(0, 1)]).0, zeroes(64)), LENGTH),
    ]
}

/// Copies from other namespaces where that is allowed.
fn copies_between_namespaces() -> Vec<Case> {
    let overlap = Status::OVERLAPPING_RANGE.dnr();
    let incompatible = Status::INCOMPATIBLE_NAMESPACE.dnr();
    let (fast, _) = copy(1, 0, &[(2, 0, 1)]);
    let fast_range = CopyRange {
        snsid: 2,
        slba: 0,
        blocks: 1,
        fast_only: true,
    };
    vec![
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
            (fast, Moves::FromHost(fast_range.encode().to_vec())),
            Status::FAST_COPY_NOT_POSSIBLE.dnr(),
        ),
    ]
}

/// Status, and 0 in dword 0.
fn assert_answers(queue: &mut Raw, cases: &[Case]) {
    for (case, (sqe, data), status) in cases {
        assert_eq!(run(queue, *sqe, data), (*status, 0), "{case}");
    }
}

/// Everything else that a command can be refused for.
#[test]
fn every_refusal() {
    let (target, address) = target();
    let (mut admin, mut queue) = io(address);
    assert_answers(&mut queue, &transfer_sizes());
    assert_answers(&mut queue, &lengths_and_data());
    assert_answers(&mut queue, &whole_namespaces());
    assert_answers(&mut queue, &dataset_management());
    assert_answers(&mut queue, &copies());
    allow_other_namespaces(&mut admin);
    assert_answers(&mut queue, &copies_between_namespaces());
    drop((admin, queue));
    assert_idle(&target);
}

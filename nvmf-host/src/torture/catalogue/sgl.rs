//! I/O commands whose data pointer lies.

use super::{ANY, At, Case, Command, Facts, INVALID_FIELD, Play, SGL, SQE, Want, byte, case};
use crate::torture::scene::{Digests, with_sgl};
use nvmf_proto::wire::{SglDescriptor, Sqe, Status};

pub(super) const PLAIN: At = At::Io(Digests::NONE);
const LENGTH: &[Want] = &[Want::Status(Status::DATA_SGL_LENGTH_INVALID)];
const TYPE: &[Want] = &[
    Want::Status(Status::SGL_TYPE_INVALID),
    INVALID_FIELD,
    Want::Status(Status::INVALID_SGL_SEGMENT),
];

/// A command that reads, or moves no data; of [`SGL`], if it has no other source.
pub(super) const fn lie(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    command: fn(&Facts) -> Command,
    conforms: &'static [Want],
) -> Case {
    case(
        name,
        scenarios,
        sends,
        PLAIN,
        Play::Command(command),
        conforms,
    )
    .source(SGL)
    .tolerates(ANY)
}

/// A command that would write if it were believed.
pub(super) const fn write(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    command: fn(&Facts) -> Command,
    conforms: &'static [Want],
) -> Case {
    lie(name, scenarios, sends, command, conforms).attempts()
}

/// The same command with another descriptor.
pub(super) fn sgl(sqe: Sqe, kind: u8, length: u32) -> Command {
    let address = 0;
    (
        with_sgl(
            sqe,
            SglDescriptor {
                address,
                length,
                kind,
            },
        ),
        Vec::new(),
    )
}

pub(super) const CASES: &[Case] = &[
    lie(
        "sgl/read-length-0",
        &[29],
        "Read of a block, SGL length 0",
        |f| sgl(f.read(1), SglDescriptor::TRANSPORT, 0),
        LENGTH,
    ),
    lie(
        "sgl/read-length-1",
        &[29],
        "Read of a block, SGL length 1",
        |f| sgl(f.read(1), SglDescriptor::TRANSPORT, 1),
        LENGTH,
    ),
    lie(
        "sgl/read-length-less",
        &[29],
        "Read of 8 blocks, SGL a byte short",
        |f| sgl(f.read(8), SglDescriptor::TRANSPORT, f.bytes(8) - 1),
        LENGTH,
    ),
    lie(
        "sgl/read-length-more",
        &[29],
        "Read of 8 blocks, SGL of 9",
        |f| sgl(f.read(8), SglDescriptor::TRANSPORT, f.bytes(9)),
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), Want::Success],
    ),
    lie(
        "sgl/read-length-max",
        &[29],
        "Read of a block, SGL length FFFFFFFFh",
        |f| sgl(f.read(1), SglDescriptor::TRANSPORT, u32::MAX),
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), Want::Success],
    ),
    lie(
        "sgl/read-in-capsule",
        &[30],
        "Read, SGL in the capsule",
        |f| sgl(f.read(1), SglDescriptor::IN_CAPSULE, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-with-data",
        &[30],
        "Read with data in its capsule",
        |f| (f.read(1), f.zeroes(1)),
        &[INVALID_FIELD],
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    lie(
        "sgl/read-type-0",
        &[31],
        "Read, SGL data block with an address",
        |f| sgl(f.read(1), 0x00, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-bit-bucket",
        &[31],
        "Read, SGL bit bucket",
        |f| sgl(f.read(1), 0x10, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-segment",
        &[31],
        "Read, SGL segment",
        |f| sgl(f.read(1), 0x20, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-last-segment",
        &[31],
        "Read, SGL last segment",
        |f| sgl(f.read(1), 0x30, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-keyed",
        &[31],
        "Read, keyed SGL data block",
        |f| sgl(f.read(1), 0x40, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-sub-type",
        &[31],
        "Read, transport SGL data block, sub type 5h",
        |f| sgl(f.read(1), 0x55, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/read-vendor",
        &[31],
        "Read, vendor specific SGL",
        |f| sgl(f.read(1), 0xf0, f.bytes(1)),
        TYPE,
    ),
    lie(
        "sgl/psdt-0",
        &[31],
        "Read, PSDT 00b: PRPs",
        |f| byte(f.read(1), 1, 0),
        &[INVALID_FIELD],
    )
    .source(SQE)
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    lie(
        "sgl/psdt-3",
        &[31],
        "Read, PSDT 11b",
        |f| byte(f.read(1), 1, 0xc0),
        &[INVALID_FIELD],
    )
    .source(SQE)
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    write(
        "sgl/write-length-less",
        &[29],
        "Write, SGL a byte short",
        |f| {
            sgl(
                f.owed(),
                SglDescriptor::TRANSPORT,
                f.bytes(f.owed_blocks()) - 1,
            )
        },
        LENGTH,
    ),
    write(
        "sgl/write-length-more",
        &[29],
        "Write, SGL of a block more",
        |f| {
            sgl(
                f.owed(),
                SglDescriptor::TRANSPORT,
                f.bytes(f.owed_blocks() + 1),
            )
        },
        LENGTH,
    ),
    write(
        "sgl/write-length-0",
        &[29],
        "Write, SGL length 0",
        |f| sgl(f.owed(), SglDescriptor::TRANSPORT, 0),
        LENGTH,
    ),
    write(
        "sgl/write-length-max",
        &[29],
        "Write, SGL length FFFFFFFFh",
        |f| sgl(f.owed(), SglDescriptor::TRANSPORT, u32::MAX),
        LENGTH,
    ),
    write(
        "sgl/capsule-without-data",
        &[30],
        "Write, SGL in the capsule, which is empty",
        |f| (f.write_in_capsule(1), Vec::new()),
        LENGTH,
    ),
    write(
        "sgl/capsule-a-byte-short",
        &[30],
        "Write, a byte less in the capsule than the SGL says",
        |f| {
            let mut data = f.zeroes(1);
            data.pop();
            (f.write_in_capsule(1), data)
        },
        LENGTH,
    ),
    write(
        "sgl/capsule-a-byte-more",
        &[30],
        "Write, a byte more in the capsule than the SGL says",
        |f| {
            let mut data = f.zeroes(1);
            data.push(0);
            (f.write_in_capsule(1), data)
        },
        LENGTH,
    )
    .tolerates(&[Want::Error, Want::End, Want::Success])
    .overwrites_blocks(),
    write(
        "sgl/capsule-of-fewer-blocks",
        &[30],
        "Write of 8 blocks, SGL and capsule of one",
        |f| {
            (
                sgl(f.write(8), SglDescriptor::IN_CAPSULE, f.bytes(1)).0,
                f.zeroes(1),
            )
        },
        LENGTH,
    ),
    write(
        "sgl/capsule-of-more-blocks",
        &[30],
        "Write of a block, SGL and capsule of two",
        |f| {
            (
                sgl(f.write(1), SglDescriptor::IN_CAPSULE, f.bytes(2)).0,
                f.zeroes(2),
            )
        },
        LENGTH,
    ),
    write(
        "sgl/capsule-offset",
        &[30],
        "Write, SGL offset 8 in the capsule",
        |f| {
            let address = 8;
            let (length, kind) = (f.bytes(1), SglDescriptor::IN_CAPSULE);
            (
                with_sgl(
                    f.write(1),
                    SglDescriptor {
                        address,
                        length,
                        kind,
                    },
                ),
                f.zeroes(1),
            )
        },
        &[Want::Status(Status::SGL_OFFSET_INVALID)],
    ),
    write(
        "sgl/capsule-offset-max",
        &[30],
        "Write, SGL offset FFFFFFFFFFFFFFFFh",
        |f| {
            let address = u64::MAX;
            let (length, kind) = (f.bytes(1), SglDescriptor::IN_CAPSULE);
            (
                with_sgl(
                    f.write(1),
                    SglDescriptor {
                        address,
                        length,
                        kind,
                    },
                ),
                f.zeroes(1),
            )
        },
        &[Want::Status(Status::SGL_OFFSET_INVALID)],
    ),
    write(
        "sgl/transport-with-data",
        &[30],
        "Write, transport SGL, data in the capsule",
        |f| (f.write(1), f.zeroes(1)),
        &[INVALID_FIELD, Want::Status(Status::SGL_TYPE_INVALID)],
    )
    .tolerates(&[Want::Error, Want::End, Want::Success])
    .overwrites_blocks(),
    write(
        "sgl/write-keyed",
        &[31],
        "Write, keyed SGL data block",
        |f| sgl(f.owed(), 0x40, f.bytes(f.owed_blocks())),
        TYPE,
    ),
];

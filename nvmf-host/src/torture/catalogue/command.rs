//! I/O commands whose fields lie, and halves of fused pairs.

use super::sgl::{PLAIN, lie, sgl, write};
use super::{Case, Command, Facts, INVALID_FIELD, OPCODE, SQE, Want, byte, script};
use crate::command;
use crate::torture::answer::Answer;
use crate::torture::scene::{Scene, Setback, with_sgl};
use nvmf_proto::wire::dsm::DsmAttributes;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{NvmOpcode, SglDescriptor, Sqe, Status};

const NVM: &str = "NVM Command Set 1.1, LBA range";
const DSM: &str = "NVM Command Set 1.1, Dataset Management";
const RESERVATION: &str = "NVMe Base 2.1, reservations";
const FUSED: &str = "NVMe Base 2.1, fused operations";
const NAMESPACE: &[Want] = &[Want::Status(Status::INVALID_NAMESPACE)];
const RANGE: &[Want] = &[Want::Status(Status::LBA_OUT_OF_RANGE)];
const FUSED_ALONE: &[Want] = &[
    Want::Status(Status::ABORTED_MISSING_FUSED),
    INVALID_FIELD,
    Want::Status(Status::INVALID_OPCODE),
];

/// A read of blocks from an LBA on.
fn read_at(facts: &Facts, slba: u64, blocks: u32) -> Command {
    let sqe = command::read(facts.nsid, slba, blocks);
    sgl(sqe, SglDescriptor::TRANSPORT, facts.bytes(blocks))
}

fn nsid(facts: &Facts, nsid: u32) -> Command {
    let mut sqe = facts.read(1);
    sqe.set_nsid(nsid);
    (sqe, Vec::new())
}

pub(super) const CASES: &[Case] = &[
    lie(
        "io/nsid-0",
        &[45],
        "Read, NSID 0",
        |f| nsid(f, 0),
        NAMESPACE,
    )
    .source(SQE),
    lie(
        "io/nsid-all",
        &[45],
        "Read, NSID FFFFFFFFh",
        |f| nsid(f, u32::MAX),
        NAMESPACE,
    )
    .source(SQE),
    lie(
        "io/nsid-of-nobody",
        &[45],
        "Read, NSID FFFFFFF0h",
        |f| nsid(f, 0xffff_fff0),
        NAMESPACE,
    )
    .source(SQE),
    lie(
        "io/lba-end",
        &[53],
        "Read of the block behind the last",
        |f| read_at(f, f.blocks, 1),
        RANGE,
    )
    .source(NVM),
    lie(
        "io/lba-across-the-end",
        &[53],
        "Read of the last block and the next",
        |f| read_at(f, f.blocks - 1, 2),
        RANGE,
    )
    .source(NVM),
    lie(
        "io/lba-max",
        &[53],
        "Read at LBA FFFFFFFFFFFFFFFFh",
        |f| read_at(f, u64::MAX, 1),
        RANGE,
    )
    .source(NVM),
    lie(
        "io/lba-wraps",
        &[53],
        "Read of 8 blocks from FFFFFFFFFFFFFFFEh on",
        |f| read_at(f, u64::MAX - 1, 8),
        RANGE,
    )
    .source(NVM),
    write(
        "io/write-lba-wraps",
        &[53],
        "Write of 8 blocks from FFFFFFFFFFFFFFFEh on",
        |f| {
            let sqe = command::write(f.nsid, u64::MAX - 1, 8);
            sgl(sqe, SglDescriptor::TRANSPORT, f.bytes(8))
        },
        RANGE,
    )
    .source(NVM),
    write(
        "io/write-lba-end",
        &[53],
        "Write of the block behind the last, in the capsule",
        |f| {
            let sqe = command::write(f.nsid, f.blocks, 1);
            (
                sgl(sqe, SglDescriptor::IN_CAPSULE, f.bytes(1)).0,
                f.zeroes(1),
            )
        },
        RANGE,
    )
    .source(NVM),
    script(
        "io/mdts",
        &[29],
        "Read of a block more than MDTS allows",
        PLAIN,
        beyond_mdts,
        "Invalid Field in Command",
    )
    .source("NVMe Base 2.1, MDTS")
    .tolerates(&[Want::Error]),
    lie(
        "io/nlb-max",
        &[29, 53],
        "Read of 65,536 blocks with a fitting SGL",
        |f| read_at(f, 0, 1 << 16),
        &[
            INVALID_FIELD,
            Want::Status(Status::LBA_OUT_OF_RANGE),
            Want::Success,
        ],
    )
    .source(NVM),
    lie(
        "io/nlb-max-of-a-small-sgl",
        &[29],
        "Read of 65,536 blocks, SGL of one",
        |f| {
            sgl(
                command::read(f.nsid, 0, 1 << 16),
                SglDescriptor::TRANSPORT,
                f.bytes(1),
            )
        },
        &[
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            INVALID_FIELD,
            Want::Status(Status::LBA_OUT_OF_RANGE),
        ],
    )
    .source(NVM),
    lie(
        "io/opcode-03h",
        &[45],
        "opcode 03h, reserved",
        |f| byte(f.read(1), 0, 0x03),
        OPCODE,
    )
    .source(SQE),
    lie(
        "io/opcode-0bh",
        &[45],
        "opcode 0Bh, reserved",
        |f| byte(f.read(1), 0, 0x0b),
        OPCODE,
    )
    .source(SQE),
    lie(
        "io/opcode-40h",
        &[45],
        "opcode 40h, reserved",
        |f| byte(f.read(1), 0, 0x40),
        OPCODE,
    )
    .source(SQE),
    lie(
        "io/opcode-7bh",
        &[45],
        "opcode 7Bh, reserved",
        |f| byte(f.read(1), 0, 0x7b),
        OPCODE,
    )
    .source(SQE),
    lie(
        "io/reserved-dwords",
        &[45],
        "Read with its reserved bytes all ones",
        |f| {
            let mut sqe = f.read(1);
            sqe.0[8..16].fill(0xff);
            (sqe, Vec::new())
        },
        &[Want::Success, INVALID_FIELD],
    )
    .source(SQE),
    lie(
        "io/flush-with-garbage",
        &[36],
        "Flush with an SGL of FFFFFFFFh bytes and all dwords ones",
        |f| {
            let mut sqe = command::flush(f.nsid);
            sqe.0[16..64].fill(0xff);
            (sqe, Vec::new())
        },
        &[Want::Success, Want::Error],
    )
    .source(SQE)
    .tolerates(&[Want::End]),
    lie(
        "io/flush-with-data",
        &[36],
        "Flush with data in its capsule",
        |f| {
            (
                with_sgl(command::flush(f.nsid), SglDescriptor::in_capsule(512)),
                vec![0; 512],
            )
        },
        &[INVALID_FIELD, Want::Success],
    )
    .source(SQE),
    lie(
        "io/flush-nsid-of-nobody",
        &[36],
        "Flush, NSID FFFFFFF0h",
        |_| (command::flush(0xffff_fff0), Vec::new()),
        NAMESPACE,
    )
    .source(SQE),
    lie(
        "io/fabrics-property-get",
        &[41],
        "Property Get on an I/O queue",
        |f| (f.probe(0), Vec::new()),
        OPCODE,
    )
    .source("NVMe Base 2.1, Fabrics commands"),
    lie(
        "io/fabrics-unknown",
        &[41],
        "Fabrics command of type 7Fh on an I/O queue",
        |f| byte(f.probe(0), 4, 0x7f),
        OPCODE,
    )
    .source("NVMe Base 2.1, Fabrics commands"),
    lie(
        "io/connect-again",
        &[39],
        "Connect on a queue that is connected",
        |f| {
            (
                super::connect_sqe(&f.connect_command(1)),
                f.connect_data(&f.subsystem, 1).to_vec(),
            )
        },
        &[
            Want::Status(Status::COMMAND_SEQUENCE_ERROR),
            Want::Status(Status::INVALID_OPCODE),
        ],
    )
    .source("NVMe Base 2.1, Connect command"),
    write(
        "io/dsm-without-data",
        &[54],
        "Dataset Management of 256 ranges, SGL of one",
        |f| {
            let sqe = command::dataset_management(f.nsid, 256, DsmAttributes::DEALLOCATE);
            (with_sgl(sqe, SglDescriptor::in_capsule(16)), vec![0; 16])
        },
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), INVALID_FIELD],
    )
    .source(DSM),
    write(
        "io/dsm-past-the-end",
        &[54],
        "Dataset Management of a range that wraps",
        |f| {
            let sqe = command::dataset_management(f.nsid, 1, DsmAttributes::DEALLOCATE);
            let mut range = vec![0; 16];
            range[4..8].fill(0xff);
            range[8..].fill(0xff);
            (with_sgl(sqe, SglDescriptor::in_capsule(16)), range)
        },
        &[
            Want::Status(Status::LBA_OUT_OF_RANGE),
            Want::Status(Status::INVALID_OPCODE),
        ],
    )
    .source(DSM)
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    write(
        "io/write-zeroes-wraps",
        &[55],
        "Write Zeroes of 65,536 blocks from FFFFFFFFFFFFFFFEh on",
        |f| {
            (
                command::write_zeroes(f.nsid, u64::MAX - 1, 1 << 16, false),
                Vec::new(),
            )
        },
        &[
            Want::Status(Status::LBA_OUT_OF_RANGE),
            Want::Status(Status::INVALID_OPCODE),
            INVALID_FIELD,
        ],
    )
    .source(NVM),
    lie(
        "io/compare-short",
        &[55],
        "Compare of 8 blocks, SGL and capsule of one",
        |f| {
            let sqe = command::compare(f.nsid, f.slba, 8);
            (
                with_sgl(sqe, SglDescriptor::in_capsule(f.bytes(1))),
                f.zeroes(1),
            )
        },
        &[
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            Want::Status(Status::INVALID_OPCODE),
        ],
    )
    .source(NVM),
    write(
        "io/copy-without-ranges",
        &[55],
        "Copy of 128 ranges, SGL of one",
        |f| {
            let mut sqe = Sqe::with_opcode(NvmOpcode::COPY.0);
            sqe.set_nsid(f.nsid);
            sqe.set_cdw10_15([0, 0, 127, 0, 0, 0]);
            (with_sgl(sqe, SglDescriptor::in_capsule(32)), vec![0; 32])
        },
        &[
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            Want::Status(Status::INVALID_OPCODE),
        ],
    )
    .source(NVM),
    lie(
        "io/register-short",
        &[56],
        "Reservation Register with 8 of 16 bytes",
        |f| {
            let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_REGISTER.0);
            sqe.set_nsid(f.nsid);
            (with_sgl(sqe, SglDescriptor::in_capsule(8)), vec![0; 8])
        },
        &[
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            INVALID_FIELD,
            Want::Status(Status::INVALID_OPCODE),
        ],
    )
    .source(RESERVATION),
    lie(
        "io/release-wrong-key",
        &[56],
        "Reservation Release by a host that has not registered",
        |f| {
            let mut sqe = Sqe::with_opcode(NvmOpcode::RESERVATION_RELEASE.0);
            sqe.set_nsid(f.nsid);
            sqe.set_cdw10_15([1 << 8, 0, 0, 0, 0, 0]);
            (with_sgl(sqe, SglDescriptor::in_capsule(8)), vec![7; 8])
        },
        &[
            Want::Status(Status::RESERVATION_CONFLICT),
            Want::Status(Status::INVALID_OPCODE),
            INVALID_FIELD,
        ],
    )
    .source(RESERVATION),
    lie(
        "io/report-of-4-bytes",
        &[56],
        "Reservation Report of 4 bytes",
        |f| {
            sgl(
                command::reservation_report(f.nsid, 4, true),
                SglDescriptor::TRANSPORT,
                4,
            )
        },
        &[Want::Success, Want::Error],
    )
    .source(RESERVATION),
    lie(
        "io/report-longer-than-its-sgl",
        &[56],
        "Reservation Report of 4 KiB, SGL of 4 bytes",
        |f| {
            sgl(
                command::reservation_report(f.nsid, 4096, true),
                SglDescriptor::TRANSPORT,
                4,
            )
        },
        &[Want::Error],
    )
    .source(RESERVATION),
    script(
        "fused/first-alone",
        &[55],
        "the first half of a pair, and another command behind it",
        PLAIN,
        |scene| alone(scene, Fuse::First),
        "Missing Fused Command, or Invalid Field where there is no such pair",
    )
    .source(FUSED),
    lie(
        "fused/second-alone",
        &[55],
        "the second half of a pair alone",
        |f| (command::fused(f.read(1), Fuse::Second), Vec::new()),
        FUSED_ALONE,
    )
    .source(FUSED),
    lie(
        "fused/reserved",
        &[55],
        "FUSE 11b",
        |f| (command::fused(f.read(1), Fuse::Reserved), Vec::new()),
        &[INVALID_FIELD],
    )
    .source(FUSED)
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    script(
        "fused/first-and-fin",
        &[33, 55],
        "the first half of a pair, and FIN",
        PLAIN,
        |scene| {
            let sqe = command::fused(
                command::compare(scene.facts.nsid, scene.facts.slba, 1),
                Fuse::First,
            );
            let sqe = with_sgl(sqe, SglDescriptor::in_capsule(scene.facts.bytes(1)));
            scene.submit(super::CID, &sqe, &scene.facts.zeroes(1));
            scene.connection.half_close();
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source(FUSED),
];

fn beyond_mdts(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let Some(max) = facts.max_transfer else {
        return Err(Setback::NotOffered("MDTS"));
    };
    let blocks = max / facts.block_size + 1;
    if blocks > 1 << 16 || u64::from(blocks) > facts.blocks {
        return Err(Setback::NotOffered("room for more than MDTS"));
    }
    let (sqe, data) = read_at(facts, 0, blocks);
    Ok(match scene.command(&sqe, &data) {
        Answer::Completed { status, .. } if status.same_code(Status::INVALID_FIELD) => {
            Answer::Kept(status.without_more().to_string())
        }
        other => other,
    })
}

/// A half of a pair that is followed by something else than the other.
fn alone(scene: &mut Scene<'_>, half: Fuse) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let sqe = command::compare(facts.nsid, facts.slba, 1);
    let sqe = with_sgl(
        command::fused(sqe, half),
        SglDescriptor::in_capsule(facts.bytes(1)),
    );
    scene.submit(super::CID, &sqe, &facts.zeroes(1));
    scene.submit(super::CID + 1, &facts.read(1), &[]);
    Ok(match scene.listen() {
        Answer::Completed { status, .. }
            if FUSED_ALONE.contains(&Want::Status(Status::new(status.sct().0, status.sc()))) =>
        {
            Answer::Kept(status.without_more().to_string())
        }
        other => other,
    })
}

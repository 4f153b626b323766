//! Features, Identify and log pages with lying offsets, sizes and lengths; the discovery controller.

use super::property::{LENIENT, lie, to_host};
use super::{
    ANY, At, Case, Command, Facts, INVALID_FIELD, OPCODE, Play, SGL, SQE, Want, byte, case,
};
use crate::command;
use crate::torture::scene::with_sgl;
use nvmf_proto::wire::feature::{Fid, GetFeatures, SetFeatures};
use nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_proto::wire::log::{GetLogPage, Lid};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{AdminOpcode, SglDescriptor, Sqe, Status};

const FEATURES: &str = "NVMe Base 2.1, features";
const IDENTIFY: &str = "NVMe Base 2.1, Identify command";
const LOG: &str = "NVMe Base 2.1, Get Log Page command";
const DISCOVERY: &str = "NVMe Base 2.1, discovery controller";
const LENGTH: &[Want] = &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), INVALID_FIELD];

/// Commands each of which only has to be answered.
const fn sweep(
    name: &'static str,
    sends: &'static str,
    at: At,
    commands: fn(&Facts) -> Vec<Command>,
) -> Case {
    Case {
        rule: "every one answered, with no more data than it has asked for",
        ..case(name, &[45], sends, at, Play::Sweep(commands), &[Want::Kept])
    }
}

fn feature(fid: Fid, cdw11: u32) -> Command {
    (
        command::set_features(0, &SetFeatures::new(fid, cdw11)),
        Vec::new(),
    )
}

fn identify(nsid: u32, cns: u8, length: u32) -> Command {
    to_host(
        command::identify(nsid, &IdentifyCommand::new(Cns(cns))),
        length,
    )
}

fn log(lid: u8, numd: u32, lpo: u64, length: u32) -> Command {
    let page = GetLogPage {
        rae: true,
        numd,
        lpo,
        ..GetLogPage::new(Lid(lid), 4)
    };
    to_host(command::get_log_page(0xffff_ffff, &page), length)
}

/// A right Get Log Page of as many bytes.
fn log_of(lid: u8, lpo: u64, length: u32) -> Command {
    log(lid, length / 4 - 1, lpo, length)
}

/// An admin command of an opcode, without data.
fn opcode(value: u8) -> Command {
    (Sqe::with_opcode(value), Vec::new())
}

/// SGL lengths of the sweeps.
const LENGTHS: [u32; 6] = [0, 1, 4, 4095, 4096, 1 << 31];

fn of_all(one: impl Fn(u8, u32) -> Command) -> Vec<Command> {
    let one = &one;
    (0..=255)
        .flat_map(|value| LENGTHS.map(|length| one(value, length)))
        .collect()
}

pub(super) const CASES: &[Case] = &[
    lie(
        "admin/opcode-03h",
        &[45],
        "admin opcode 03h, reserved",
        At::Admin,
        |_| opcode(0x03),
        OPCODE,
    )
    .source(SQE),
    lie(
        "admin/opcode-0bh",
        &[45],
        "admin opcode 0Bh, reserved",
        At::Admin,
        |_| opcode(0x0b),
        OPCODE,
    )
    .source(SQE),
    lie(
        "admin/create-io-sq",
        &[45],
        "Create I/O Submission Queue",
        At::Admin,
        |_| opcode(0x01),
        OPCODE,
    )
    .source(SQE),
    lie(
        "admin/create-io-cq",
        &[45],
        "Create I/O Completion Queue",
        At::Admin,
        |_| opcode(0x05),
        OPCODE,
    )
    .source(SQE),
    lie(
        "admin/fused",
        &[45],
        "Identify as half of a pair",
        At::Admin,
        |_| {
            let (sqe, data) = identify(0, 1, 4096);
            (command::fused(sqe, Fuse::First), data)
        },
        &[INVALID_FIELD],
    )
    .source(SQE)
    .tolerates(LENIENT),
    lie(
        "admin/psdt-0",
        &[31],
        "Identify with PSDT 00b",
        At::Admin,
        |_| byte(identify(0, 1, 4096).0, 1, 0),
        &[INVALID_FIELD],
    )
    .source(SQE)
    .tolerates(LENIENT),
    lie(
        "identify/length-0",
        &[45],
        "Identify Controller, SGL length 0",
        At::Admin,
        |_| identify(0, 1, 0),
        LENGTH,
    )
    .source(SGL),
    lie(
        "identify/length-4095",
        &[45],
        "Identify Controller, SGL length 4095",
        At::Admin,
        |_| identify(0, 1, 4095),
        LENGTH,
    )
    .source(SGL)
    .tolerates(LENIENT),
    lie(
        "identify/length-max",
        &[45],
        "Identify Controller, SGL length FFFFFFFFh",
        At::Admin,
        |_| identify(0, 1, u32::MAX),
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), Want::Success],
    )
    .source(SGL),
    lie(
        "identify/with-data",
        &[30, 45],
        "Identify Controller with 4 KiB in its capsule",
        At::Admin,
        |_| (identify(0, 1, 4096).0, vec![0xff; 4096]),
        &[INVALID_FIELD],
    )
    .source(SGL)
    .tolerates(LENIENT),
    lie(
        "identify/in-capsule",
        &[30],
        "Identify Controller, SGL in the capsule",
        At::Admin,
        |_| {
            let sqe = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
            (with_sgl(sqe, SglDescriptor::in_capsule(4096)), Vec::new())
        },
        &[INVALID_FIELD, Want::Status(Status::SGL_TYPE_INVALID)],
    )
    .source(SGL),
    lie(
        "identify/cns-of-nothing",
        &[45],
        "Identify, CNS FFh",
        At::Admin,
        |_| identify(0, 0xff, 4096),
        &[INVALID_FIELD],
    )
    .source(IDENTIFY),
    lie(
        "identify/namespace-0",
        &[45],
        "Identify Namespace, NSID 0",
        At::Admin,
        |_| identify(0, 0, 4096),
        &[Want::Status(Status::INVALID_NAMESPACE)],
    )
    .source(IDENTIFY),
    lie(
        "identify/namespace-of-nobody",
        &[45],
        "Identify Namespace, NSID FFFFFFF0h",
        At::Admin,
        |_| identify(0xffff_fff0, 0, 4096),
        &[Want::Status(Status::INVALID_NAMESPACE)],
    )
    .source(IDENTIFY),
    lie(
        "identify/list-beyond",
        &[45],
        "Active Namespace ID list behind NSID FFFFFFFEh",
        At::Admin,
        |_| identify(0xffff_fffe, 2, 4096),
        &[Want::Status(Status::INVALID_NAMESPACE)],
    )
    .source(IDENTIFY)
    .tolerates(LENIENT),
    sweep(
        "identify/sweep",
        "Identify of every CNS with SGL lengths 0, 1, 4, 4095, 4096 and 2 GiB",
        At::Admin,
        |f| of_all(|cns, length| identify(f.nsid, cns, length)),
    )
    .source(IDENTIFY),
    sweep(
        "identify/sweep-without-namespace",
        "the same for NSID 0",
        At::Admin,
        |_| of_all(|cns, length| identify(0, cns, length)),
    )
    .source(IDENTIFY),
    lie(
        "log/lid-of-nothing",
        &[45],
        "log page BFh",
        At::Admin,
        |_| log_of(0xbf, 0, 512),
        &[Want::Status(Status::INVALID_LOG_PAGE)],
    )
    .source(LOG),
    lie(
        "log/offset-unaligned",
        &[45],
        "SMART log from byte 2 on",
        At::Admin,
        |_| log_of(2, 2, 512),
        &[INVALID_FIELD],
    )
    .source(LOG)
    .tolerates(LENIENT),
    lie(
        "log/offset-beyond",
        &[45],
        "SMART log from byte 512 MiB on",
        At::Admin,
        |_| log_of(2, 512 << 20, 512),
        &[INVALID_FIELD],
    )
    .source(LOG),
    lie(
        "log/offset-max",
        &[45],
        "SMART log from FFFFFFFFFFFFFFFCh on",
        At::Admin,
        |_| log_of(2, u64::MAX - 3, 512),
        &[INVALID_FIELD],
    )
    .source(LOG),
    lie(
        "log/numd-max",
        &[45],
        "SMART log of 16 GiB, SGL of 512",
        At::Admin,
        |_| log(2, u32::MAX, 0, 512),
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), INVALID_FIELD],
    )
    .source(LOG)
    .tolerates(LENIENT),
    lie(
        "log/numd-max-sgl-max",
        &[45],
        "SMART log of 16 GiB, SGL of FFFFFFFFh",
        At::Admin,
        |_| log(2, u32::MAX, 0, u32::MAX),
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), INVALID_FIELD],
    )
    .source(LOG)
    .tolerates(LENIENT),
    lie(
        "log/sgl-short",
        &[45],
        "SMART log of 512 bytes, SGL of 4",
        At::Admin,
        |_| log(2, 127, 0, 4),
        LENGTH,
    )
    .source(LOG)
    .tolerates(LENIENT),
    lie(
        "log/index-offset",
        &[45],
        "SMART log by an index",
        At::Admin,
        |_| {
            let page = GetLogPage {
                rae: true,
                ot: true,
                lpo: 1,
                ..GetLogPage::new(Lid::SMART, 512)
            };
            to_host(command::get_log_page(u32::MAX, &page), 512)
        },
        &[INVALID_FIELD],
    )
    .source(LOG)
    .tolerates(LENIENT),
    sweep(
        "log/sweep",
        "Get Log Page of 4 KiB of every LID with SGL lengths 0, 1, 4, 4095, 4096 and 2 GiB",
        At::Admin,
        |_| of_all(|lid, length| log(lid, 1023, 0, length)),
    )
    .source(LOG),
    sweep(
        "log/sweep-of-offsets",
        "Get Log Page of every LID from 2, 1 GiB and FFFFFFFFFFFFFFFCh on",
        At::Admin,
        |_| {
            let offsets = [2, 1 << 30, u64::MAX - 3];
            (0..=255)
                .flat_map(|lid| offsets.map(|lpo| log_of(lid, lpo, 4096)))
                .collect()
        },
    )
    .source(LOG),
    lie(
        "feature/get-of-nothing",
        &[45],
        "Get Features of FID BFh",
        At::Admin,
        |_| {
            (
                command::get_features(0, &GetFeatures::new(Fid(0xbf))),
                Vec::new(),
            )
        },
        &[INVALID_FIELD],
    )
    .source(FEATURES),
    sweep(
        "feature/sweep",
        "Get Features of every FID with SGL lengths 0, 1, 4, 4095, 4096 and 2 GiB",
        At::Admin,
        |f| {
            of_all(|fid, length| {
                to_host(
                    command::get_features(f.nsid, &GetFeatures::new(Fid(fid))),
                    length,
                )
            })
        },
    )
    .source(FEATURES),
    lie(
        "feature/set-of-nothing",
        &[49],
        "Set Features of FID BFh",
        At::Admin,
        |_| feature(Fid(0xbf), 0),
        &[INVALID_FIELD],
    )
    .source(FEATURES),
    lie(
        "feature/queues-ffffh",
        &[49],
        "Number of Queues FFFFh",
        At::Admin,
        |_| feature(Fid::NUMBER_OF_QUEUES, u32::MAX),
        &[INVALID_FIELD],
    )
    .source(FEATURES),
    lie(
        "feature/queues-many",
        &[49],
        "Number of Queues FFFEh",
        At::Admin,
        |_| feature(Fid::NUMBER_OF_QUEUES, 0xfffe_fffe),
        &[Want::Success, INVALID_FIELD],
    )
    .source(FEATURES),
    lie(
        "feature/queues-saved",
        &[49],
        "Number of Queues with SV",
        At::Admin,
        |_| {
            let change = SetFeatures {
                sv: true,
                ..SetFeatures::new(Fid::NUMBER_OF_QUEUES, 0)
            };
            (command::set_features(0, &change), Vec::new())
        },
        &[Want::Status(Status::FEATURE_NOT_SAVEABLE), INVALID_FIELD],
    )
    .source(FEATURES)
    .tolerates(LENIENT),
    lie(
        "feature/events-reserved",
        &[49],
        "Asynchronous Event Configuration of all ones",
        At::Admin,
        |_| feature(Fid::ASYNC_EVENT_CONFIG, u32::MAX),
        &[INVALID_FIELD],
    )
    .source(FEATURES)
    .tolerates(LENIENT),
    lie(
        "feature/kato-0",
        &[48, 49],
        "Keep Alive Timer 0",
        At::Admin,
        |_| feature(Fid::KEEP_ALIVE_TIMER, 0),
        &[
            INVALID_FIELD,
            Want::Status(Status::KEEP_ALIVE_TIMEOUT_INVALID),
            Want::Success,
        ],
    )
    .source(FEATURES),
    lie(
        "feature/kato-max",
        &[48, 49],
        "Keep Alive Timer FFFFFFFFh",
        At::Admin,
        |_| feature(Fid::KEEP_ALIVE_TIMER, u32::MAX),
        &[
            Want::Success,
            INVALID_FIELD,
            Want::Status(Status::KEEP_ALIVE_TIMEOUT_INVALID),
        ],
    )
    .source(FEATURES),
    lie(
        "feature/host-identifier",
        &[49],
        "Set Features Host Identifier",
        At::Admin,
        |_| {
            let (sqe, _) = feature(Fid::HOST_IDENTIFIER, 1);
            (with_sgl(sqe, SglDescriptor::in_capsule(16)), vec![7; 16])
        },
        &[Want::Error],
    )
    .source(FEATURES),
    lie(
        "feature/timestamp-short",
        &[49],
        "Timestamp, 1 byte of 8",
        At::Admin,
        |_| {
            let (sqe, _) = feature(Fid::TIMESTAMP, 0);
            (with_sgl(sqe, SglDescriptor::in_capsule(1)), vec![0; 1])
        },
        &[Want::Status(Status::DATA_SGL_LENGTH_INVALID), INVALID_FIELD],
    )
    .source(FEATURES),
    lie(
        "discovery/identify-namespace",
        &[41, 45],
        "Identify Namespace on a discovery controller",
        At::Discovery,
        |_| identify(1, 0, 4096),
        &[Want::Error],
    )
    .source(DISCOVERY),
    lie(
        "discovery/queues",
        &[41, 49],
        "Number of Queues on a discovery controller",
        At::Discovery,
        |_| feature(Fid::NUMBER_OF_QUEUES, 0x0001_0001),
        &[Want::Error],
    )
    .source(DISCOVERY)
    .tolerates(LENIENT),
    lie(
        "discovery/log-beyond",
        &[45, 50],
        "discovery log from byte 1 GiB on",
        At::Discovery,
        |_| log_of(0x70, 1 << 30, 1024),
        &[INVALID_FIELD],
    )
    .source(DISCOVERY)
    .tolerates(LENIENT),
    lie(
        "discovery/log-unaligned",
        &[45],
        "discovery log from byte 1 on",
        At::Discovery,
        |_| log_of(0x70, 1, 1024),
        &[INVALID_FIELD],
    )
    .source(DISCOVERY)
    .tolerates(LENIENT),
    lie(
        "discovery/log-of-16-gib",
        &[45],
        "discovery log of 16 GiB",
        At::Discovery,
        |_| log(0x70, u32::MAX, 0, u32::MAX),
        &[INVALID_FIELD, Want::Status(Status::DATA_SGL_LENGTH_INVALID)],
    )
    .source(DISCOVERY)
    .tolerates(LENIENT),
    case(
        "discovery/io-queue",
        &[37, 41],
        "a Connect of an I/O queue of a discovery controller",
        At::Discovery,
        Play::ConnectIo(|_, data| {
            data[256..512].copy_from_slice(&Nqn::discovery().to_field());
        }),
        &[
            Want::Parameter(42),
            Want::Status(Status::COMMAND_SEQUENCE_ERROR),
        ],
    )
    .source(DISCOVERY)
    .tolerates(ANY),
    sweep(
        "discovery/sweep-of-identify",
        "Identify of every CNS on a discovery controller",
        At::Discovery,
        |_| of_all(|cns, length| identify(0, cns, length)),
    )
    .source(DISCOVERY),
    sweep(
        "discovery/sweep-of-logs",
        "every log page on a discovery controller",
        At::Discovery,
        |_| of_all(|lid, length| log(lid, 1023, 0, length)),
    )
    .source(DISCOVERY),
    sweep(
        "discovery/sweep-of-opcodes",
        "opcodes 00h, 01h, 03h, 04h and 05h on a discovery controller",
        At::Discovery,
        |_| [0, 1, 3, 4, 5].map(opcode).to_vec(),
    )
    .source(DISCOVERY),
    lie(
        "admin/keep-alive-with-data",
        &[48],
        "Keep Alive with data in its capsule",
        At::Admin,
        |_| (Sqe::with_opcode(AdminOpcode::KEEP_ALIVE.0), vec![0; 64]),
        &[INVALID_FIELD, Want::Success],
    )
    .source(SQE),
];

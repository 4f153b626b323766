//! Connect commands of which a field is wrong, and commands before and after their time.

use super::icreq::end;
use super::{ANY, At, Case, Play, Want, case, connect_with, ends, script};
use crate::command;
use crate::torture::answer::Answer;
use crate::torture::scene::{
    CC_ENABLED, CID, Digests, Scene, Setback, connect_sqe, set_cc, set_queues, with_sgl,
};
use nvmf_proto::wire::fabrics::FabricsType;
use nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_proto::wire::property::Cc;
use nvmf_proto::wire::{SglDescriptor, Sqe, Status};

const CONNECT: &str = "NVMe Base 2.1, Connect command";
const ORDER: &str = "NVMe Base 2.1, controller initialization";
const ACCEPTED: &[Want] = &[Want::Success];
const FORMAT: &[Want] = &[Want::Status(Status::CONNECT_INCOMPATIBLE_FORMAT)];
const SEQUENCE: &[Want] = &[Want::Status(Status::COMMAND_SEQUENCE_ERROR)];

type Lie = fn(&mut Sqe, &mut [u8; 1024]);

/// The field of the command that is to blame.
const fn of_command(offset: u32) -> Want {
    Want::Parameter(offset)
}

/// The field of the data that is to blame.
const fn of_data(offset: u32) -> Want {
    Want::Parameter(1 << 16 | offset)
}

const fn admin(
    name: &'static str,
    sends: &'static str,
    lie: Lie,
    conforms: &'static [Want],
) -> Case {
    case(
        name,
        &[37],
        sends,
        At::Open,
        Play::ConnectAdmin(lie),
        conforms,
    )
    .source(CONNECT)
    .tolerates(ANY)
}

const fn io(name: &'static str, sends: &'static str, lie: Lie, conforms: &'static [Want]) -> Case {
    case(
        name,
        &[37],
        sends,
        At::Admin,
        Play::ConnectIo(lie),
        conforms,
    )
    .source(CONNECT)
    .tolerates(ANY)
}

/// SUBNQN or HOSTNQN at its offset.
fn set_name(data: &mut [u8; 1024], at: usize, name: &[u8]) {
    data[at..at + 256].fill(0);
    data[at..at + name.len()].copy_from_slice(name);
}

const fn command_of(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    at: At,
    command: fn(&super::Facts) -> super::Command,
    conforms: &'static [Want],
) -> Case {
    case(name, scenarios, sends, at, Play::Command(command), conforms)
        .source(ORDER)
        .tolerates(ANY)
}

fn identify() -> super::Command {
    let sqe = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    (with_sgl(sqe, SglDescriptor::transport(4096)), Vec::new())
}

pub(super) const CASES: &[Case] = &[
    admin("connect/good", "a good Connect", |_, _| {}, ACCEPTED),
    admin("connect/recfmt-1", "RECFMT 1", |s, _| s.0[40] = 1, FORMAT),
    admin(
        "connect/recfmt-100h",
        "RECFMT 100h",
        |s, _| s.0[41] = 1,
        FORMAT,
    ),
    admin(
        "connect/sqsize-0",
        "SQSIZE 0",
        |s, _| s.0[44..46].fill(0),
        &[of_command(44)],
    ),
    admin(
        "connect/sqsize-1",
        "SQSIZE 1",
        |s, _| s.0[44..46].copy_from_slice(&[1, 0]),
        ACCEPTED,
    ),
    admin(
        "connect/sqsize-max",
        "SQSIZE FFFFh on an admin queue",
        |s, _| s.0[44..46].fill(0xff),
        &[of_command(44)],
    ),
    admin(
        "connect/cattr-all",
        "CATTR FFh",
        |s, _| s.0[46] = 0xff,
        ACCEPTED,
    )
    .tolerates(&[Want::Error, Want::End]),
    admin(
        "connect/kato-0",
        "KATO 0",
        |s, _| s.0[48..52].fill(0),
        ACCEPTED,
    ),
    admin(
        "connect/kato-1",
        "KATO of 1 ms",
        |s, _| s.0[48..52].copy_from_slice(&[1, 0, 0, 0]),
        ACCEPTED,
    ),
    admin(
        "connect/kato-max",
        "KATO FFFFFFFFh",
        |s, _| s.0[48..52].fill(0xff),
        ACCEPTED,
    ),
    admin(
        "connect/reserved-dwords",
        "CDW13 to CDW15 all ones",
        |s, _| s.0[52..64].fill(0xff),
        ACCEPTED,
    ),
    admin(
        "connect/sgl-1023",
        "1,023 bytes of data in an SGL of as much",
        |s, _| {
            s.set_sgl(SglDescriptor::in_capsule(1023));
        },
        &[
            of_command(24),
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            Want::Status(Status::INVALID_FIELD),
        ],
    ),
    admin(
        "connect/sgl-0",
        "an SGL of 0 bytes",
        |s, _| s.set_sgl(SglDescriptor::in_capsule(0)),
        &[
            of_command(24),
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            Want::Status(Status::INVALID_FIELD),
        ],
    ),
    admin(
        "connect/sgl-max",
        "an SGL of FFFFFFFFh bytes",
        |s, _| s.set_sgl(SglDescriptor::transport(u32::MAX)),
        &[
            of_command(24),
            Want::Status(Status::DATA_SGL_LENGTH_INVALID),
            Want::Status(Status::INVALID_FIELD),
        ],
    ),
    admin(
        "connect/sgl-offset",
        "an SGL offset of 8",
        |s, _| s.0[24] = 8,
        &[Want::Status(Status::SGL_OFFSET_INVALID), of_command(24)],
    ),
    admin(
        "connect/sgl-keyed",
        "a keyed SGL",
        |s, _| s.0[39] = 0x40,
        &[
            Want::Status(Status::SGL_TYPE_INVALID),
            of_command(24),
            Want::Status(Status::INVALID_FIELD),
        ],
    ),
    admin(
        "connect/hostid-0",
        "HOSTID 0",
        |_, d| d[..16].fill(0),
        &[of_data(0), Want::Success],
    ),
    admin(
        "connect/cntlid-0",
        "CNTLID 0 for an admin queue",
        |_, d| d[16..18].fill(0),
        &[of_data(16)],
    ),
    admin(
        "connect/cntlid-1",
        "CNTLID 1 for an admin queue",
        |_, d| d[16..18].copy_from_slice(&[1, 0]),
        &[of_data(16)],
    ),
    admin(
        "connect/cntlid-static",
        "CNTLID FFFEh for an admin queue",
        |_, d| d[16..18].copy_from_slice(&[0xfe, 0xff]),
        &[of_data(16)],
    ),
    admin(
        "connect/reserved-data",
        "reserved data all ones",
        |_, d| d[18..256].fill(0xff),
        ACCEPTED,
    ),
    admin(
        "connect/subnqn-empty",
        "an empty SUBNQN",
        |_, d| d[256..512].fill(0),
        &[of_data(256)],
    ),
    admin(
        "connect/subnqn-of-nobody",
        "a SUBNQN that is not there",
        |_, d| {
            set_name(d, 256, b"nqn.2026-11.org.example:nobody");
        },
        &[of_data(256)],
    ),
    admin(
        "connect/subnqn-of-224",
        "a SUBNQN of 224 bytes",
        |_, d| {
            d[256..512].fill(0);
            d[256..480].fill(b'n');
        },
        &[of_data(256)],
    ),
    admin(
        "connect/subnqn-without-nul",
        "a SUBNQN of 256 bytes without NUL",
        |_, d| d[256..512].fill(b'n'),
        &[of_data(256)],
    ),
    admin(
        "connect/subnqn-not-utf-8",
        "a SUBNQN that is not UTF-8",
        |_, d| d[259] = 0xff,
        &[of_data(256)],
    ),
    admin(
        "connect/subnqn-of-formats",
        "a SUBNQN of format directives and control characters",
        |_, d| {
            set_name(d, 256, b"%s%n%x\x1b[2J\r\n{}\x07");
        },
        &[of_data(256)],
    ),
    admin(
        "connect/hostnqn-empty",
        "an empty HOSTNQN",
        |_, d| d[512..768].fill(0),
        &[of_data(512)],
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    admin(
        "connect/hostnqn-without-nul",
        "a HOSTNQN of 256 bytes without NUL",
        |_, d| d[512..768].fill(b'n'),
        &[of_data(512)],
    ),
    admin(
        "connect/hostnqn-not-utf-8",
        "a HOSTNQN that is not UTF-8",
        |_, d| d[515] = 0xff,
        &[of_data(512)],
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    admin(
        "connect/data-behind",
        "bytes behind HOSTNQN all ones",
        |_, d| d[768..].fill(0xff),
        ACCEPTED,
    ),
    admin(
        "connect/io-queue-first",
        "an I/O queue of a controller that is not there",
        |s, d| {
            s.0[42] = 1;
            d[16..18].copy_from_slice(&[0xef, 0xff]);
        },
        &[of_data(16)],
    ),
    io(
        "connect/io-good",
        "a good Connect of an I/O queue",
        |_, _| {},
        ACCEPTED,
    ),
    io(
        "connect/io-recfmt",
        "RECFMT 1 for an I/O queue",
        |s, _| s.0[40] = 1,
        FORMAT,
    ),
    io(
        "connect/io-qid-max",
        "QID FFFFh",
        |s, _| s.0[42..44].fill(0xff),
        &[of_command(42)],
    ),
    io(
        "connect/io-sqsize-0",
        "SQSIZE 0 for an I/O queue",
        |s, _| s.0[44..46].fill(0),
        &[of_command(44)],
    ),
    io(
        "connect/io-sqsize-max",
        "SQSIZE FFFFh for an I/O queue",
        |s, _| s.0[44..46].fill(0xff),
        &[of_command(44)],
    ),
    io(
        "connect/io-kato",
        "KATO for an I/O queue",
        |s, _| s.0[48..52].fill(0xff),
        ACCEPTED,
    ),
    io(
        "connect/io-hostid",
        "HOSTID of another host",
        |_, d| d[15] ^= 0x5a,
        &[of_data(0)],
    ),
    io(
        "connect/io-hostnqn",
        "HOSTNQN of another host",
        |_, d| {
            set_name(d, 512, b"nqn.2026-11.org.example:other");
        },
        &[of_data(512), Want::Status(Status::CONNECT_INVALID_HOST)],
    ),
    io(
        "connect/io-cntlid-0",
        "CNTLID 0",
        |_, d| d[16..18].fill(0),
        &[of_data(16)],
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    io(
        "connect/io-cntlid-of-nobody",
        "CNTLID FFEFh",
        |_, d| d[16..18].copy_from_slice(&[0xef, 0xff]),
        &[of_data(16)],
    ),
    io(
        "connect/io-cntlid-dynamic",
        "CNTLID FFFFh for an I/O queue",
        |_, d| d[16..18].fill(0xff),
        &[of_data(16)],
    ),
    io(
        "connect/io-subnqn",
        "SUBNQN of the discovery subsystem for an I/O queue",
        |_, d| {
            set_name(d, 256, b"nqn.2014-08.org.nvmexpress.discovery");
        },
        &[of_data(256), of_command(42), of_data(16)],
    ),
    case(
        "connect/io-before-enable",
        &[41],
        "a Connect of an I/O queue while CC.EN is 0",
        At::Disabled,
        Play::ConnectIo(|_, _| {}),
        SEQUENCE,
    )
    .source(ORDER)
    .tolerates(ANY),
    command_of(
        "order/identify-first",
        &[40],
        "Identify before Connect",
        At::Open,
        |_| identify(),
        SEQUENCE,
    ),
    command_of(
        "order/property-first",
        &[40],
        "Property Get before Connect",
        At::Open,
        |f| (f.probe(0), Vec::new()),
        SEQUENCE,
    ),
    command_of(
        "order/read-first",
        &[40],
        "Read before Connect",
        At::Open,
        |f| (f.read(1), Vec::new()),
        SEQUENCE,
    ),
    command_of(
        "order/write-first",
        &[40],
        "Write with data before Connect",
        At::Open,
        |f| (f.write_in_capsule(1), f.zeroes(1)),
        SEQUENCE,
    )
    .attempts(),
    command_of(
        "order/disconnect-first",
        &[40],
        "Disconnect before Connect",
        At::Open,
        |_| (FabricsType::DISCONNECT.sqe(), Vec::new()),
        SEQUENCE,
    ),
    command_of(
        "order/identify-before-enable",
        &[41],
        "Identify while CC.EN is 0",
        At::Disabled,
        |_| identify(),
        SEQUENCE,
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    command_of(
        "order/aer-before-enable",
        &[41],
        "Asynchronous Event Request while CC.EN is 0",
        At::Disabled,
        |_| (command::async_event_request(), Vec::new()),
        SEQUENCE,
    ),
    command_of(
        "order/features-before-enable",
        &[41],
        "Set Features while CC.EN is 0",
        At::Disabled,
        |_| (set_queues(1), Vec::new()),
        SEQUENCE,
    )
    .tolerates(&[Want::Error, Want::End, Want::Success]),
    command_of(
        "order/connect-on-admin",
        &[39],
        "Connect on an admin queue that is connected",
        At::Admin,
        |f| {
            let data = f.connect_data(&f.subsystem, 0xffff).to_vec();
            (connect_sqe(&f.connect_command(0)), data)
        },
        &[
            Want::Status(Status::COMMAND_SEQUENCE_ERROR),
            Want::Status(Status::INVALID_OPCODE),
        ],
    ),
    command_of(
        "order/disconnect-on-admin",
        &[41],
        "Disconnect on an admin queue",
        At::Admin,
        |_| (FabricsType::DISCONNECT.sqe(), Vec::new()),
        &[
            Want::Status(Status::INVALID_QUEUE_TYPE),
            Want::Status(Status::INVALID_OPCODE),
        ],
    ),
    script(
        "order/after-shutdown",
        &[41],
        "Identify after CC.SHN",
        At::Admin,
        after_shutdown,
        "an error",
    )
    .source(ORDER)
    .tolerates(&[Want::End, Want::Success]),
    script(
        "order/after-reset",
        &[41],
        "Identify after CC.EN 1 to 0",
        At::Admin,
        after_reset,
        "an error",
    )
    .source(ORDER)
    .tolerates(&[Want::End, Want::Success]),
    script(
        "order/io-of-a-reset-controller",
        &[41],
        "Read after CC.EN 1 to 0 on the admin queue",
        At::Io(Digests::NONE),
        io_after_reset,
        "the end of the I/O queue",
    )
    .source(ORDER)
    .tolerates(&[Want::Error]),
    script(
        "connect/same-qid-twice",
        &[37, 42],
        "a second Connect of I/O queue 1 while the first lives",
        At::Io(Digests::NONE),
        same_qid,
        "the second is refused, or the first ends",
    )
    .source(CONNECT)
    .tolerates(&[Want::End]),
];

fn after_shutdown(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let cc = CC_ENABLED.with_shn(Cc::SHN_NORMAL);
    refused_after(scene, cc)
}

fn after_reset(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    refused_after(scene, Cc(0))
}

/// Identify after CC was set must fail.
fn refused_after(scene: &mut Scene<'_>, cc: Cc) -> Result<Answer, Setback> {
    let facts = scene.facts;
    facts.execute(&mut scene.connection, set_cc(cc), &[])?;
    let (sqe, data) = identify();
    Ok(match scene.command(&sqe, &data) {
        Answer::Completed { status, .. } if !status.is_success() => {
            Answer::Kept(status.without_more().to_string())
        }
        other => other,
    })
}

fn io_after_reset(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    facts.execute(&mut scene.others[0], set_cc(Cc(0)), &[])?;
    scene.submit(CID, &facts.read(1), &[]);
    Ok(end(scene))
}

fn same_qid(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let facts = scene.facts;
    let mut second = facts.open(Digests::NONE)?;
    let sqe = connect_sqe(&facts.connect_command(1));
    let data = facts.connect_data(&facts.subsystem, scene.cntlid);
    let answer = connect_with(facts, &mut second, &sqe, &data);
    scene.others.push(second);
    Ok(match answer {
        Answer::Completed { status, .. } if !status.is_success() => {
            Answer::Kept(format!("refused: {}", status.without_more()))
        }
        Answer::Completed { .. } if ends(&mut scene.connection) => {
            Answer::Kept("the second has it, the first ends".to_owned())
        }
        Answer::Completed { .. } => Answer::Broken("both have it".to_owned()),
        other => other,
    })
}

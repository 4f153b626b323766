//! From accept to the first I/O: what is refused and how, what is closed and when.

mod common;

use common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, disconnect, enable, encode, io_connect,
    read, set_cc, set_queues, with_sgl, write_in_capsule,
};
use common::{NQN, Witness, config, connect, eventually, target};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{
    ConnectCommand, ConnectData, InvalidParameter, PropertyGet, PropertySize,
};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use nvmf_target::SubsystemConfig;
use std::time::Duration;

const OTHER_NQN: &str = "nqn.2026-11.org.example:other";

type Refusal = (Status, u32);

fn in_command(offset: u16) -> Refusal {
    let dw0 = InvalidParameter::Command(offset).dw0();
    (Status::CONNECT_INVALID_PARAMETERS.dnr(), dw0)
}

fn in_data(offset: u16) -> Refusal {
    let dw0 = InvalidParameter::Data(offset).dw0();
    (Status::CONNECT_INVALID_PARAMETERS.dnr(), dw0)
}

fn field(text: &str) -> [u8; 256] {
    Nqn::new(text).unwrap().to_field()
}

/// Tries a Connect of an admin queue that is refused, and a good one on the same connection.
#[test]
fn connects_of_admin_queues_that_are_refused() {
    type Change = fn(&mut ConnectCommand, &mut ConnectData);
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let cases: [(&str, Change, Refusal); 12] = [
        (
            "RECFMT",
            |c, _| c.recfmt = 1,
            (Status::CONNECT_INCOMPATIBLE_FORMAT.dnr(), 0),
        ),
        (
            "SQSIZE 0",
            |c, _| c.sqsize = 0,
            in_command(ConnectCommand::SQSIZE),
        ),
        (
            "SQSIZE 4096",
            |c, _| c.sqsize = 4096,
            in_command(ConnectCommand::SQSIZE),
        ),
        (
            "CNTLID 1",
            |_, d| d.cntlid = 1,
            in_data(ConnectData::CNTLID),
        ),
        (
            "CNTLID FFFEh",
            |_, d| d.cntlid = 0xfffe,
            in_data(ConnectData::CNTLID),
        ),
        (
            "unknown SUBNQN",
            |_, d| d.subnqn = field(OTHER_NQN),
            in_data(ConnectData::SUBNQN),
        ),
        (
            "SUBNQN without NUL",
            |_, d| d.subnqn = [b'n'; 256],
            in_data(ConnectData::SUBNQN),
        ),
        (
            "SUBNQN of 224 bytes",
            |_, d| d.subnqn[..224].fill(b'n'),
            in_data(ConnectData::SUBNQN),
        ),
        (
            "no SUBNQN",
            |_, d| d.subnqn = [0; 256],
            in_data(ConnectData::SUBNQN),
        ),
        (
            "SUBNQN not UTF-8",
            |_, d| d.subnqn[3] = 0xff,
            in_data(ConnectData::SUBNQN),
        ),
        (
            "HOSTNQN without NUL",
            |_, d| d.hostnqn = [b'n'; 256],
            in_data(ConnectData::HOSTNQN),
        ),
        (
            "no HOSTNQN",
            |_, d| d.hostnqn = [0; 256],
            in_data(ConnectData::HOSTNQN),
        ),
    ];
    for (what, change, expected) in cases {
        let mut raw = Raw::open(address, Digests::default());
        let (mut command, mut data) = (admin_connect(), connect_data());
        change(&mut command, &mut data);
        assert_eq!(raw.connect(&command, &data), expected, "{what}");
        assert_eq!(target.stats().controllers, 1, "{what}");
        raw.connect_ok(&admin_connect(), &connect_data());
        drop(raw);
        witness.is_alone();
    }
}

#[test]
fn connects_of_io_queues_that_are_refused() {
    type Change = fn(&mut ConnectCommand, &mut ConnectData);
    let (target, address) = target(config());
    target
        .add_subsystem(SubsystemConfig::new(OTHER_NQN))
        .unwrap();
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let sequence = (Status::COMMAND_SEQUENCE_ERROR, 0);
    let cases: [(&str, Change, Refusal); 10] = [
        (
            "CNTLID of nobody",
            |_, d| d.cntlid = 0xffef,
            in_data(ConnectData::CNTLID),
        ),
        (
            "CNTLID FFFFh",
            |_, d| d.cntlid = 0xffff,
            in_data(ConnectData::CNTLID),
        ),
        (
            "other HOSTID",
            |_, d| d.hostid[15] ^= 1,
            in_data(ConnectData::HOSTID),
        ),
        (
            "other HOSTNQN",
            |_, d| d.hostnqn[30] ^= 1,
            in_data(ConnectData::HOSTNQN),
        ),
        (
            "other subsystem",
            |_, d| d.subnqn = field(OTHER_NQN),
            in_data(ConnectData::CNTLID),
        ),
        (
            "discovery",
            |_, d| d.subnqn = Nqn::discovery().to_field(),
            in_command(ConnectCommand::QID),
        ),
        (
            "QID 9 of 8",
            |c, _| c.qid = 9,
            in_command(ConnectCommand::QID),
        ),
        (
            "QID FFFFh",
            |c, _| c.qid = 0xffff,
            in_command(ConnectCommand::QID),
        ),
        (
            "SQSIZE 0",
            |c, _| c.sqsize = 0,
            in_command(ConnectCommand::SQSIZE),
        ),
        (
            "SQSIZE beyond MQES",
            |c, _| c.sqsize = 1024,
            in_command(ConnectCommand::SQSIZE),
        ),
    ];
    let good = ConnectData {
        cntlid,
        ..connect_data()
    };
    for (what, change, expected) in cases {
        let mut raw = Raw::open(address, Digests::default());
        let (mut command, mut data) = (io_connect(1), good.clone());
        change(&mut command, &mut data);
        assert_eq!(raw.connect(&command, &data), expected, "{what}");
        raw.connect_ok(&io_connect(1), &good);
        assert_eq!(raw.connect(&io_connect(2), &good), (sequence.0.dnr(), 0));
        drop(raw);
        eventually("QID 1 is free", || target.stats().io_queues == 1);
    }
    // A QID in use: the host has come back, its old connection ends.
    let mut old = Raw::io(address, cntlid, 1);
    let mut new = Raw::open(address, Digests::default());
    new.connect_ok(&io_connect(1), &good);
    old.expect_end();
    assert_eq!(target.stats().io_queues, 2);
    new.read(&read(1, 0, 1));
    drop((admin, old, new));
    witness.is_alone();
}

#[test]
fn io_queues_come_after_enable_and_set_features() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let mut admin = Raw::open(address, Digests::default());
    let cntlid = admin.connect_ok(&admin_connect(), &connect_data());
    let data = ConnectData {
        cntlid,
        ..connect_data()
    };
    let mut raw = Raw::open(address, Digests::default());
    let sequence = Status::COMMAND_SEQUENCE_ERROR;
    assert_eq!(raw.connect(&io_connect(1), &data), (sequence, 0));
    admin.ok(&enable(), &[]);
    assert_eq!(raw.connect(&io_connect(1), &data), (sequence.dnr(), 0));
    admin.ok(&set_queues(1), &[]);
    assert_eq!(
        raw.connect(&io_connect(2), &data),
        in_command(ConnectCommand::QID)
    );
    raw.connect_ok(&io_connect(1), &data);
    let refused = admin.execute(&set_queues(2), &[]);
    assert_eq!(refused.status, sequence.dnr(), "there is a queue already");
    // A reset takes all that back.
    admin.ok(&set_cc(Cc::default()), &[]);
    raw.expect_end();
    let mut raw = Raw::open(address, Digests::default());
    assert_eq!(raw.connect(&io_connect(1), &data), (sequence, 0));
    drop((admin, raw));
    witness.is_alone();
}

#[test]
fn the_data_of_connect_is_1024_bytes_in_the_capsule_or_by_r2t() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let data = encode(&connect_data());
    let sqe = |sgl| with_sgl(admin_connect().to_sqe(), 7, sgl);
    let mut raw = Raw::open(address, Digests::default());
    for (sgl, len, status, dw0) in [
        (
            SglDescriptor::in_capsule(1023),
            1023,
            in_command(ConnectCommand::SGL1).0,
            24,
        ),
        (
            SglDescriptor::in_capsule(0),
            0,
            in_command(ConnectCommand::SGL1).0,
            24,
        ),
        (
            SglDescriptor::transport(8193),
            0,
            in_command(ConnectCommand::SGL1).0,
            24,
        ),
        (
            SglDescriptor::in_capsule(1024),
            1020,
            Status::DATA_SGL_LENGTH_INVALID.dnr(),
            0,
        ),
        (
            SglDescriptor::in_capsule(1024),
            0,
            Status::DATA_SGL_LENGTH_INVALID.dnr(),
            0,
        ),
    ] {
        let cqe = raw.execute(&sqe(sgl), &data[..len]);
        assert_eq!((cqe.status, cqe.result), (status, dw0), "{sgl:?} {len}");
    }
    raw.submit(&sqe(SglDescriptor::transport(1024)), &[]);
    let r2t = raw.recv().r2t();
    raw.send(&Digests::default().h2c_data(&r2t, 0, &data, true));
    assert_eq!(raw.recv().cqe().status, Status::SUCCESS);
    raw.ok(&enable(), &[]);
    drop(raw);
    witness.is_alone();
}

/// What a connection or a controller is not ready for fails, and nothing else.
#[test]
fn commands_before_their_time() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let mut raw = Raw::open(address, Digests::default());
    let sequence = Status::COMMAND_SEQUENCE_ERROR.dnr();
    let cap = PropertyGet {
        size: PropertySize::BYTES_8,
        offset: PropertyOffset::CAP,
    }
    .to_sqe();
    let identify = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    let identify = with_sgl(identify, 3, SglDescriptor::transport(4096));
    let set_queues = set_queues(1);
    let all: [&Sqe; 4] = [
        &identify,
        &set_queues,
        &command::keep_alive(),
        &read(4, 0, 1),
    ];
    for sqe in all.into_iter().chain([&cap, &enable(), &disconnect()]) {
        assert_eq!(
            raw.execute(sqe, &[]).status,
            sequence,
            "before Connect: {sqe:?}"
        );
    }
    let status = raw.execute(&write_in_capsule(4, 0, 1), &[1; 512]).status;
    assert_eq!(status, sequence);
    raw.connect_ok(&admin_connect(), &connect_data());
    raw.ok(&cap, &[]);
    for sqe in all {
        assert_eq!(
            raw.execute(sqe, &[]).status,
            sequence,
            "before CC.EN: {sqe:?}"
        );
    }
    let again = raw.connect(&admin_connect(), &connect_data());
    assert_eq!(again, (sequence, 0));
    let status = raw.execute(&disconnect(), &[]).status;
    assert_eq!(status, Status::INVALID_QUEUE_TYPE.dnr());
    raw.ok(&enable(), &[]);
    assert_eq!(raw.read(&identify).len(), 4096);
    let status = raw.execute(&write_in_capsule(4, 0, 1), &[1; 512]).status;
    assert_eq!(status, Status::INVALID_OPCODE.dnr(), "an I/O command");
    drop(raw);
    witness.is_alone();
}

#[test]
fn a_disconnect_is_the_last_command_of_its_queue() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io(address, cntlid, 1);
    let write = Digests::default().capsule(&write_in_capsule(2, 0, 1), &[1; 512]);
    let both = [Digests::default().capsule(&disconnect(), &[]), write].concat();
    raw.send(&both);
    assert_eq!(raw.recv().cqe().status, Status::SUCCESS);
    raw.expect_end();
    // The controller lives, and the QID is free.
    eventually("the queue is gone", || target.stats().io_queues == 1);
    let mut raw = Raw::io(address, cntlid, 1);
    assert_eq!(raw.read(&read(1, 0, 1)), [0; 512], "nothing was written");
    drop((admin, raw));
    witness.is_alone();
}

#[test]
fn a_connection_that_does_not_become_a_queue_is_closed_in_time() {
    let mut config = config();
    config.connect_timeout = Duration::from_secs(1);
    let (target, address) = target(config);
    let stages: [fn(&mut Raw); 5] = [
        |_| {},
        |raw| raw.send(&Digests::default().ic_req()[..64]),
        |raw| {
            raw.send(&Digests::default().ic_req());
            raw.recv();
        },
        |raw| {
            raw.send(&Digests::default().ic_req());
            raw.recv();
            let (command, mut data) = (admin_connect(), connect_data());
            data.cntlid = 1;
            assert!(!raw.connect(&command, &data).0.is_success());
        },
        // Half of a Connect: it has a buffer.
        |raw| {
            raw.send(&Digests::default().ic_req());
            raw.recv();
            let sqe = connect_sqe(&admin_connect());
            let capsule = Digests::default().capsule(&sqe, &encode(&connect_data()));
            raw.send(&capsule[..600]);
        },
    ];
    // One that does become a queue may be as silent as it likes.
    let mut queue = Raw::open(address, Digests::default());
    queue.connect_ok(&admin_connect(), &connect_data());
    let connections = stages.map(|stage| {
        let mut raw = Raw::tcp(address);
        stage(&mut raw);
        raw
    });
    for mut raw in connections {
        raw.expect_end();
    }
    queue.ok(&enable(), &[]);
    drop(queue);
    common::assert_idle(&target);
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let mut config = config();
    config.max_connections = 3;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    for _ in 0..20 {
        let third = Raw::open(address, Digests::default());
        for _ in 0..5 {
            let mut beyond = Raw::tcp(address);
            beyond.expect_end();
        }
        assert_eq!(target.stats().connections, 3);
        drop(third);
        witness.is_alone();
    }
    drop(witness);
    common::assert_idle(&target);
    drop(connect(address));
}

/// NSIDs, names and numbers of one subsystem mean nothing in another.
#[test]
fn subsystems_have_controllers_of_their_own() {
    let (target, address) = target(config());
    target
        .add_subsystem(SubsystemConfig::new(OTHER_NQN))
        .unwrap();
    let mut options = common::options(address);
    options.subsystem = Nqn::new(OTHER_NQN).unwrap();
    let mut other = nvmf_host::Controller::connect(&options).unwrap();
    let mut one = connect(address);
    assert_eq!(other.active_namespaces().unwrap(), []);
    assert_eq!(one.active_namespaces().unwrap(), [1]);
    target.remove_namespace(OTHER_NQN, 1).unwrap_err();
    target.remove_namespace(NQN, 1).unwrap();
    assert_eq!(one.active_namespaces().unwrap(), []);
    drop((one, other));
    common::assert_idle(&target);
}

//! From accept to the first I/O: what is refused and how, what is closed and when.

mod common;
#[path = "tables/connect.rs"]
mod tables;

use common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, disconnect, enable, encode, io_connect,
    read, set_cc, set_queues, with_sgl, write_by_r2t, write_in_capsule,
};
use common::step::Step;
use common::{NQN, Witness, config, connect, eventually, target};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{
    ConnectCommand, ConnectData, InvalidParameter, PropertyGet, PropertySize,
};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use nvmf_target::ns::NsInfo;
use nvmf_target::{SubsystemConfig, Target};
use std::net::SocketAddr;
use std::time::Duration;
use tables::{Answer, Place, Row};

const OTHER_NQN: &str = "nqn.2026-11.org.example:other";

type Refusal = (Status, u32);

fn in_command(offset: u16) -> Refusal {
    let dw0 = InvalidParameter::Command(offset).dw0();
    (Status::CONNECT_INVALID_PARAMETERS.dnr(), dw0)
}

/// A target with the subsystems of the tables.
fn tables_target() -> (Target, SocketAddr) {
    let (target, address) = target(config());
    target
        .add_subsystem(SubsystemConfig::new(tables::OTHER))
        .unwrap();
    let mut closed = SubsystemConfig::new(tables::CLOSED);
    closed.allow_any_host = false;
    closed.hosts = vec!["nqn.2026-11.org.example:somebody".to_owned()];
    target.add_subsystem(closed).unwrap();
    (target, address)
}

/// The Connect of a row.
fn varied(row: &Row, command: &ConnectCommand, data: &ConnectData) -> (Sqe, [u8; 1024]) {
    let (mut sqe, mut data) = (connect_sqe(command), encode(data));
    match row.place {
        Place::Command(at) => sqe.0[at..at + row.bytes.len()].copy_from_slice(row.bytes),
        Place::Data(at) => {
            // A name that is shorter than the one before it ends where it ends.
            let field = (at / 256 * 256 + 256).min(1024);
            if row.bytes.len() > 16 && row.bytes.len() < 224 {
                data[at..field].fill(0);
            }
            data[at..at + row.bytes.len()].copy_from_slice(row.bytes);
        }
    }
    (sqe, data)
}

/// Sends the Connect of a row; true if it made a queue, and the answer is that of the row.
fn is_created(raw: &mut Raw, row: &Row, sqe: &Sqe, data: &[u8]) -> bool {
    let cqe = raw.execute(sqe, data);
    let Answer(sct, sc, dnr, dw0) = row.answer;
    let status = Status::new(sct, sc);
    let status = if dnr { status.dnr() } else { status };
    assert_eq!(cqe.status, status, "{}", row.what);
    if status.is_success() {
        return true;
    }
    assert_eq!(cqe.result, u64::from(dw0), "{}", row.what);
    false
}

#[test]
fn every_field_of_an_admin_connect() {
    let (target, address) = tables_target();
    let mut witness = Witness::new(&target, address);
    for row in &tables::ADMIN {
        let mut raw = Raw::open(address, Digests::default());
        let (sqe, data) = varied(row, &admin_connect(), &connect_data());
        if !is_created(&mut raw, row, &sqe, &data) {
            // It has left nothing, and the connection is good for another try.
            assert_eq!(target.stats().controllers, 1, "{}", row.what);
            raw.connect_ok(&admin_connect(), &connect_data());
        }
        raw.ok(&enable(), &[]);
        drop(raw);
        witness.is_alone();
    }
}

#[test]
fn every_field_of_an_io_connect() {
    let (target, address) = tables_target();
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let good = ConnectData {
        cntlid,
        ..connect_data()
    };
    for row in &tables::IO {
        let mut raw = Raw::open(address, Digests::default());
        let (sqe, data) = varied(row, &io_connect(1), &good);
        if !is_created(&mut raw, row, &sqe, &data) {
            assert_eq!(target.stats().io_queues, 1, "{}", row.what);
            raw.connect_ok(&io_connect(1), &good);
        }
        raw.ok(&write_in_capsule(1, 0, 1), &[0; 512]);
        let again = raw.connect(&io_connect(2), &good);
        assert_eq!(again, (Status::COMMAND_SEQUENCE_ERROR.dnr(), 0));
        drop(raw);
        eventually("the QID is free", || target.stats().io_queues == 1);
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

/// All queues of a controller are at the port of its admin queue.
#[test]
fn io_queues_come_by_the_port_of_their_controller() {
    let (target, address) = target(config());
    let elsewhere = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let data = ConnectData {
        cntlid,
        ..connect_data()
    };
    let mut raw = Raw::open(elsewhere, Digests::default());
    let cntlid_invalid = InvalidParameter::Data(ConnectData::CNTLID).dw0();
    let refused = (Status::CONNECT_INVALID_PARAMETERS.dnr(), cntlid_invalid);
    assert_eq!(raw.connect(&io_connect(1), &data), refused);
    // As the admin queue of a controller of its own it may stay.
    raw.connect_ok(&admin_connect(), &connect_data());
    drop((admin, raw));
    common::assert_idle(&target);
}

/// CNTLIDs are used again as late as possible, and when none is left the controller is busy.
#[test]
fn controller_ids_run_out_and_come_back() {
    let (target, address) = target(config());
    let mut few = SubsystemConfig::new(tables::OTHER);
    (few.cntlid_min, few.cntlid_max) = (7, 10);
    target.add_subsystem(few).unwrap();
    let data = ConnectData {
        subnqn: Nqn::new(tables::OTHER).unwrap().to_field(),
        ..connect_data()
    };
    let open = || Raw::open(address, Digests::default());
    let mut live: Vec<_> = (7..=10)
        .map(|cntlid| {
            let mut raw = open();
            assert_eq!(raw.connect_ok(&admin_connect(), &data), cntlid);
            raw
        })
        .collect();
    let mut raw = open();
    let busy = (Status::CONNECT_CONTROLLER_BUSY, 0);
    assert_eq!(raw.connect(&admin_connect(), &data), busy);
    drop(live.remove(2));
    eventually("9 is free", || target.stats().controllers == 3);
    assert_eq!(raw.connect_ok(&admin_connect(), &data), 9);
    drop(live.remove(0));
    eventually("7 is free", || target.stats().controllers == 3);
    drop(raw);
    eventually("9 is free", || target.stats().controllers == 2);
    // The one that was freed last is not the one that is used next.
    let mut raw = open();
    assert_eq!(raw.connect_ok(&admin_connect(), &data), 7);
    drop((raw, live));
    common::assert_idle(&target);
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

/// The response to a Disconnect is the last one of its queue: commands that wait end before it, and
/// those in a backend are waited for.
#[test]
fn a_disconnect_is_answered_when_the_other_commands_are_over() {
    let (target, address) = target(config());
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io(address, cntlid, 1);
    let mut slow = read(1, 0, 8);
    slow.set_nsid(2);
    raw.submit(&slow, &[]);
    let mut request = step.next();
    raw.submit(&write_by_r2t(2, 0, 8), &[]);
    raw.recv().r2t();
    let mut wrong = disconnect();
    wrong.0[40] = 1;
    let refused = raw.execute(&wrong, &[]).status;
    assert_eq!(refused, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    let mut last = disconnect();
    last.set_cid(9);
    raw.submit(&last, &[]);
    let quiet = Duration::from_millis(50);
    raw.stream.set_read_timeout(Some(quiet)).unwrap();
    raw.try_recv().unwrap_err();
    raw.stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    request.data_mut().fill(7);
    request.complete(Ok(()));
    assert_eq!(raw.recv().data(), [7; 4096]);
    assert_eq!(raw.recv().cqe().cid, 1);
    let cqe = raw.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (9, Status::SUCCESS));
    raw.expect_end();
    // The QID is free for who wants it, although the host has not closed its side.
    let mut next = Raw::io(address, cntlid, 1);
    next.read(&read(1, 0, 1));
    drop((admin, raw, next));
    common::assert_idle(&target);
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
    config.icreq_timeout = Duration::from_secs(1);
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
        let third = Raw::admin(address);
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

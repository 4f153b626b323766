//! The life of a controller: queues that come back, resets, shutdowns, timeouts.

mod common;

use common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, enable, encode, io_connect, read,
    set_cc, set_queues, with_sgl, write_in_capsule,
};
use common::step::Step;
use common::{NQN, PATIENCE, Witness, assert_idle, config, eventually, pattern, verified_io};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, PropertyGet, PropertySet, PropertySize};
use nvmf_host::nvmf_proto::wire::feature::{AsyncEventConfig, Fid, GetFeatures, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::property::{Cap, Cc, Csts, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{AdminOpcode, Cqe, SglDescriptor, Sqe, Status};
use nvmf_target::ns::{Inline, NsInfo, Op, RamDisk, Request};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const BLOCKS: u64 = 4096;
const ON: Cc = Cc(0x0046_0001);
const OFF: Cc = Cc(0x0046_0000);

/// A host with one I/O queue, whose namespace 2 is run by hand.
struct Rig {
    target: Target,
    address: SocketAddr,
    step: Step,
    cntlid: u16,
    admin: Raw,
    io: Raw,
}

fn rig(config: TargetConfig, info: NsInfo) -> Rig {
    let (target, address) = common::target(config);
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let io = Raw::io(address, cntlid, 1);
    Rig {
        target,
        address,
        step,
        cntlid,
        admin,
        io,
    }
}

fn info() -> NsInfo {
    NsInfo::new(512, BLOCKS)
}

impl Rig {
    /// A read that the backend keeps.
    fn hold(&mut self) -> Request {
        let mut sqe = read(1, 0, 8);
        sqe.set_nsid(2);
        self.io.submit(&sqe, &[]);
        self.step.next()
    }

    /// A connection whose Connect for the I/O queue has been sent.
    fn returns(&self) -> Raw {
        let mut raw = Raw::open(self.address, Digests::default());
        let data = ConnectData {
            cntlid: self.cntlid,
            ..connect_data()
        };
        raw.submit(&connect_sqe(&io_connect(1)), &encode(&data));
        raw
    }

    fn csts(&mut self) -> Csts {
        csts(&mut self.admin)
    }

    fn end(self) {
        let Self {
            target,
            address,
            admin,
            io,
            ..
        } = self;
        drop((admin, io));
        assert_idle(&target);
        verified_io(address, 3);
    }
}

fn csts(admin: &mut Raw) -> Csts {
    let get = PropertyGet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CSTS,
    };
    Csts(u32::try_from(admin.ok(&get.to_sqe(), &[]).result).unwrap())
}

fn event_request(cid: u16) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::ASYNC_EVENT_REQUEST.0);
    sqe.set_cid(cid);
    sqe
}

fn identify() -> Sqe {
    let sqe = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    with_sgl(sqe, 3, SglDescriptor::transport(4096))
}

/// The host comes back while its old queue's command is in the backend: it waits for that, and
/// there are never two queues.
#[test]
fn a_queue_that_comes_back_waits_for_its_old_commands() {
    let mut rig = rig(config(), info());
    let held = rig.hold();
    let mut new = rig.returns();
    rig.io.expect_end();
    // The admin queue works meanwhile; the Connect is not answered.
    rig.admin.read(&identify());
    new.stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    new.try_recv().unwrap_err();
    new.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(rig.target.stats().io_queues, 1);
    held.complete(Ok(()));
    assert_eq!(new.recv().cqe().status, Status::SUCCESS);
    assert_eq!(rig.target.stats().io_queues, 1);
    let data = pattern(1, 4096);
    new.ok(&write_in_capsule(2, 0, 8), &data);
    assert!(new.read(&read(3, 0, 8)) == data);
    drop(new);
    rig.end();
}

#[test]
fn of_two_that_come_back_the_last_gets_the_queue() {
    let mut rig = rig(config(), info());
    let held = rig.hold();
    let mut first = rig.returns();
    rig.io.expect_end();
    let mut gone = rig.returns();
    assert_eq!(first.recv().cqe().status, Status::COMMAND_SEQUENCE_ERROR);
    let mut last = rig.returns();
    assert_eq!(gone.recv().cqe().status, Status::COMMAND_SEQUENCE_ERROR);
    drop(gone);
    held.complete(Ok(()));
    assert_eq!(last.recv().cqe().status, Status::SUCCESS);
    // The one that was refused may try again, and ends that one.
    let data = ConnectData {
        cntlid: rig.cntlid,
        ..connect_data()
    };
    first.connect_ok(&io_connect(1), &data);
    last.expect_end();
    drop((first, last));
    rig.end();
}

#[test]
fn one_that_waits_and_goes_leaves_nothing() {
    let mut rig = rig(config(), info());
    let held = rig.hold();
    let waiting = rig.returns();
    rig.io.expect_end();
    let connections = rig.target.stats().connections;
    drop(waiting);
    eventually("it is gone", || {
        rig.target.stats().connections == connections - 1
    });
    held.complete(Ok(()));
    eventually("the old queue too", || rig.target.stats().io_queues == 0);
    rig.io = Raw::io(rig.address, rig.cntlid, 1);
    rig.end();
}

/// Queues that join while their controller ends leave nothing, whoever is first.
#[test]
fn queues_race_with_the_end_of_their_controller() {
    let (target, address) = common::target(config());
    let mut witness = Witness::new(&target, address);
    for round in 0..60 {
        let (admin, cntlid) = Raw::admin(address);
        let data = ConnectData {
            cntlid,
            ..connect_data()
        };
        let mut joining: Vec<_> = (1..=3)
            .map(|_| Raw::open(address, Digests::default()))
            .collect();
        let mut admin = Some(admin);
        // Two want the same QID.
        for (i, (raw, qid)) in joining.iter_mut().zip([1, 2, 1]).enumerate() {
            raw.submit(&connect_sqe(&io_connect(qid)), &encode(&data));
            if round % 3 == i {
                admin = None;
            }
        }
        drop(admin);
        for mut raw in joining {
            // An answer or the end.
            let _ = raw.try_recv();
        }
    }
    witness.is_alone();
}

/// A backend that never answers does not hold a Connect for ever, nor does the end of its
/// controller.
#[test]
fn a_connect_waits_for_a_bounded_time() {
    let mut config = config();
    config.connect_timeout = Duration::from_secs(2);
    let mut rig = rig(config, info());
    let held = rig.hold();
    let started = Instant::now();
    let mut new = rig.returns();
    assert_eq!(new.recv().cqe().status, Status::COMMAND_SEQUENCE_ERROR);
    assert!(started.elapsed() >= Duration::from_millis(900));
    let mut new = rig.returns();
    rig.admin.ok(&set_cc(OFF), &[]);
    assert_eq!(new.recv().cqe().status, Status::COMMAND_SEQUENCE_ERROR);
    held.complete(Ok(()));
    drop(new);
    rig.end();
}

#[test]
fn a_shutdown_is_complete_when_caches_are_flushed() {
    for shn in [Cc::SHN_NORMAL, Cc::SHN_ABRUPT] {
        let mut rig = rig(config(), info().with_volatile_cache());
        let held = rig.hold();
        rig.admin.ok(&set_cc(ON.with_shn(shn)), &[]);
        assert_eq!(rig.csts().shst(), Csts::SHST_OCCURRING);
        rig.io.expect_end();
        held.complete(Ok(()));
        let flush = rig.step.next();
        assert_eq!(flush.op(), Op::Flush);
        assert_eq!(rig.csts().shst(), Csts::SHST_OCCURRING);
        let failed = shn == Cc::SHN_ABRUPT;
        flush.complete(if failed {
            Err(Status::WRITE_FAULT)
        } else {
            Ok(())
        });
        eventually("it is complete", || {
            csts(&mut rig.admin).shst() == Csts::SHST_COMPLETE
        });
        assert_eq!(rig.step.pending(), 0);
        // No command could tell the host.
        assert_eq!(rig.csts().cfs(), failed);
        rig.admin.ok(&set_cc(OFF), &[]);
        rig.admin.ok(&enable(), &[]);
        assert!(!rig.csts().cfs(), "it has been reset");
        rig.end();
    }
}

#[test]
fn a_shutdown_without_queues_and_caches_is_complete_at_once() {
    let (target, address) = common::target(config());
    let (mut admin, _) = Raw::admin(address);
    admin.ok(&set_cc(ON.with_shn(Cc::SHN_NORMAL)), &[]);
    assert_eq!(csts(&mut admin).shst(), Csts::SHST_COMPLETE);
    drop(admin);
    assert_idle(&target);
}

/// After a shutdown the host can look, keep the association alive and reset the controller.
#[test]
fn after_a_shutdown_only_fabrics_commands_and_keep_alive_run() {
    let mut rig = rig(config(), info());
    rig.admin.ok(&set_cc(ON.with_shn(Cc::SHN_NORMAL)), &[]);
    rig.io.expect_end();
    eventually("it is complete", || {
        csts(&mut rig.admin).shst() == Csts::SHST_COMPLETE
    });
    let refused = Status::COMMAND_SEQUENCE_ERROR.dnr();
    for sqe in [identify(), set_queues(1), event_request(9)] {
        assert_eq!(plain(rig.admin.execute(&sqe, &[])), refused, "{sqe:?}");
    }
    rig.admin.ok(&command::keep_alive(), &[]);
    let mut io = rig.returns();
    assert_eq!(io.recv().cqe().status, Status::COMMAND_SEQUENCE_ERROR);
    rig.admin.ok(&set_cc(OFF), &[]);
    let csts = rig.csts();
    assert_eq!((csts.rdy(), csts.shst()), (false, Csts::SHST_NORMAL));
    let keep_alive = rig.admin.execute(&command::keep_alive(), &[]);
    assert_eq!(plain(keep_alive), refused, "not ready");
    rig.admin.ok(&enable(), &[]);
    rig.admin.ok(&set_queues(1), &[]);
    drop(io);
    rig.io = Raw::io(rig.address, rig.cntlid, 1);
    rig.end();
}

/// The status without More, which says that the error log has an entry.
fn plain(cqe: Cqe) -> Status {
    Status::from_bits(cqe.status.bits() & !(1 << 13))
}

#[test]
fn event_requests_end_with_a_reset_or_a_shutdown_with_or_without_queues() {
    for with_queue in [false, true] {
        for cc in [
            OFF,
            ON.with_shn(Cc::SHN_NORMAL),
            OFF.with_shn(Cc::SHN_NORMAL),
        ] {
            let (target, address) = common::target(config());
            let (mut admin, cntlid) = Raw::admin(address);
            let io = with_queue.then(|| Raw::io(address, cntlid, 1));
            for cid in [1, 2] {
                admin.submit(&event_request(cid), &[]);
            }
            let mut set = set_cc(cc);
            set.set_cid(3);
            admin.submit(&set, &[]);
            for (cid, status) in [
                (1, Status::ABORTED_SQ_DELETION),
                (2, Status::ABORTED_SQ_DELETION),
                (3, Status::SUCCESS),
            ] {
                let cqe = admin.recv().cqe();
                assert_eq!((cqe.cid, cqe.status), (cid, status), "{with_queue} {cc:?}");
            }
            drop((admin, io));
            assert_idle(&target);
        }
    }
}

#[test]
fn event_requests_are_limited_and_answered_at_once_if_there_is_an_event() {
    let (target, address) = common::target(config());
    let (mut admin, _) = Raw::admin(address);
    let limit = u16::from(admin.read(&identify())[259]) + 1;
    for cid in 0..limit {
        admin.submit(&event_request(100 + cid), &[]);
    }
    let refused = admin.execute(&event_request(99), &[]);
    assert_eq!(plain(refused), Status::AER_LIMIT_EXCEEDED.dnr());
    let events = AsyncEventConfig::NAMESPACE_ATTRIBUTE.bits();
    admin.ok(&set_features(Fid::ASYNC_EVENT_CONFIG, events), &[]);
    target.remove_namespace(NQN, 1).unwrap();
    let event = admin.recv().cqe();
    assert_eq!((event.cid, event.status), (100, Status::SUCCESS));
    // There is room for one more, and no more.
    admin.submit(&event_request(99), &[]);
    let refused = admin.execute(&event_request(98), &[]);
    assert_eq!(plain(refused), Status::AER_LIMIT_EXCEEDED.dnr());
    drop(admin);
    // An event that comes first waits for its request.
    let (mut admin, _) = Raw::admin(address);
    admin.ok(&set_features(Fid::ASYNC_EVENT_CONFIG, events), &[]);
    let disk = RamDisk::new(1 << 20, 512).unwrap();
    target.add_namespace(NQN, 1, Inline::new(disk)).unwrap();
    admin.ok(&event_request(7), &[]);
    drop(admin);
    assert_idle(&target);
}

fn set_features(fid: Fid, value: u32) -> Sqe {
    let mut sqe = command::set_features(0, &SetFeatures::new(fid, value));
    sqe.set_cid(0x500);
    sqe
}

#[test]
fn controllers_that_are_not_used_are_ended() {
    type Use = fn(&mut Raw);
    let mut config = config();
    config.association_timeout = Duration::from_secs(1);
    let (target, address) = common::target(config);
    let mut witness = Witness::new(&target, address);
    let uses: [(&str, Use); 3] = [
        ("never enabled", |_| {}),
        ("disabled", |admin| {
            admin.ok(&enable(), &[]);
            admin.ok(&set_cc(OFF), &[]);
        }),
        ("shut down", |admin| {
            admin.ok(&enable(), &[]);
            admin.ok(&set_cc(ON.with_shn(Cc::SHN_NORMAL)), &[]);
        }),
    ];
    for (what, make) in uses {
        let mut admin = Raw::open(address, Digests::default());
        admin.connect_ok(&admin_connect(), &connect_data());
        let started = Instant::now();
        make(&mut admin);
        admin.expect_end();
        assert!(started.elapsed() >= Duration::from_millis(900), "{what}");
    }
    // Those that are used may be silent.
    witness.is_alone();
}

/// KATO in Connect is rounded up, and Set Features takes effect on the running timer.
#[test]
fn keep_alive_timeouts() {
    let (target, address) = common::target(config());
    let mut admin = Raw::open(address, Digests::default());
    let mut command = admin_connect();
    command.kato = 119_901;
    admin.connect_ok(&command, &connect_data());
    admin.ok(&enable(), &[]);
    let get = command::get_features(0, &GetFeatures::new(Fid::KEEP_ALIVE_TIMER));
    assert_eq!(admin.ok(&get, &[]).result, 120_000);
    let started = Instant::now();
    admin.ok(&set_features(Fid::KEEP_ALIVE_TIMER, 301), &[]);
    assert_eq!(admin.ok(&get, &[]).result, 400);
    admin.expect_end();
    let elapsed = started.elapsed();
    assert!(
        elapsed >= Duration::from_millis(350) && elapsed < PATIENCE,
        "{elapsed:?}"
    );
    // Without one there is nothing to keep alive, and no end.
    let mut admin = Raw::open(address, Digests::default());
    command.kato = 0;
    admin.connect_ok(&command, &connect_data());
    admin.ok(&enable(), &[]);
    let invalid = admin.execute(&command::keep_alive(), &[]);
    assert_eq!(plain(invalid), Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr());
    let refused = admin.execute(&set_features(Fid::KEEP_ALIVE_TIMER, 0), &[]);
    assert_eq!(plain(refused), Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr());
    drop(admin);
    assert_idle(&target);
}

/// Keep Alive needs no buffer and waits for nobody who has one.
#[test]
fn keep_alive_is_answered_while_everything_else_waits() {
    let mut config = config();
    config.reactors = 1;
    (config.max_transfer, config.in_capsule) = (8192, 8192);
    config.buffer_bytes = 16 << 10;
    let mut rig = rig(config, info());
    let mut queues = Vec::new();
    // Every queue gets its first buffer, until there are none.
    for qid in 2..=5 {
        let mut queue = Raw::io(rig.address, rig.cntlid, qid);
        let mut sqe = read(1, 0, 8);
        sqe.set_nsid(2);
        queue.submit(&sqe, &[]);
        eventually("it has a buffer", || {
            rig.target.stats().buffers_lent == (queues.len() + 1) * 4096
        });
        queue.submit(&read(2, 0, 8), &[]);
        queues.push(queue);
    }
    // The backend is given three quarters of them.
    let held = rig.step.take(3);
    rig.admin.submit(&identify(), &[]);
    for cid in 100..120 {
        let mut sqe = command::keep_alive();
        sqe.set_cid(cid);
        rig.admin.ok(&sqe, &[]);
    }
    for mut request in held {
        request.data_mut().fill(1);
        request.complete(Ok(()));
    }
    rig.step.next().complete(Ok(()));
    assert_eq!(rig.admin.recv().data().len(), 4096);
    assert_eq!(rig.admin.recv().cqe().cid, 3);
    drop(queues);
    rig.end();
}

/// Commands on I/O queues keep a controller alive whose host sends no Keep Alive.
#[test]
fn traffic_keeps_a_controller_alive() {
    let (target, address) = common::target(config());
    let mut admin = Raw::open(address, Digests::default());
    let mut command = admin_connect();
    command.kato = 400;
    let cntlid = admin.connect_ok(&command, &connect_data());
    admin.ok(&enable(), &[]);
    admin.ok(&set_queues(1), &[]);
    let mut io = Raw::io(address, cntlid, 1);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        io.read(&read(1, 0, 1));
        std::thread::sleep(Duration::from_millis(5));
    }
    io.expect_end();
    admin.expect_end();
    assert_idle(&target);
}

fn property_set(offset: PropertyOffset, value: u64) -> Sqe {
    PropertySet {
        size: PropertySize::BYTES_4,
        offset,
        value,
    }
    .to_sqe()
}

/// "NVMe".
const NSSRC: u64 = 0x4e56_4d65;

#[test]
fn a_subsystem_reset_ends_all_controllers_of_the_subsystem() {
    let (target, address) = common::target(config());
    let nqn = Nqn::new("nqn.2026-11.org.example:resettable").unwrap();
    let mut resettable = SubsystemConfig::new(nqn.as_str());
    resettable.subsystem_reset = true;
    target.add_subsystem(resettable).unwrap();
    let mut witness = Witness::new(&target, address);
    let connect = || {
        let mut admin = Raw::open(address, Digests::default());
        let data = ConnectData {
            subnqn: nqn.to_field(),
            ..connect_data()
        };
        admin.connect_ok(&admin_connect(), &data);
        admin.ok(&enable(), &[]);
        admin
    };
    let (mut one, mut other) = (connect(), connect());
    assert!(!csts(&mut one).nssro());
    let get = PropertyGet {
        size: PropertySize::BYTES_8,
        offset: PropertyOffset::CAP,
    };
    assert!(Cap(one.ok(&get.to_sqe(), &[]).result).nssrs());
    // Another value means nothing.
    one.ok(&property_set(PropertyOffset::NSSR, NSSRC + 1), &[]);
    one.ok(&property_set(PropertyOffset::NSSR, NSSRC), &[]);
    one.expect_end();
    other.expect_end();
    // It is known afterwards, until the host has seen it.
    let mut one = connect();
    assert!(csts(&mut one).nssro());
    one.ok(&set_cc(OFF), &[]);
    assert!(csts(&mut one).nssro(), "not by another reset");
    one.ok(&property_set(PropertyOffset::CSTS, 1 << 4), &[]);
    assert_eq!(csts(&mut one), Csts(0));
    drop(one);
    witness.is_alone();
}

/// Without it, the properties are as if there were no such thing.
#[test]
fn subsystems_are_not_reset_by_hosts_unless_that_is_wished() {
    let (target, address) = common::target(config());
    let (mut admin, _) = Raw::admin(address);
    for (offset, value) in [
        (PropertyOffset::NSSR, NSSRC),
        (PropertyOffset::CSTS, 1 << 4),
    ] {
        let refused = admin.execute(&property_set(offset, value), &[]);
        assert_eq!(plain(refused), Status::INVALID_FIELD.dnr());
    }
    admin.read(&identify());
    drop(admin);
    assert_idle(&target);
}

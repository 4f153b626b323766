//! Wrappers around namespaces, seen from a host: what they do to its I/O, and that nothing is lost.

mod common;

use common::raw::{self, Raw};
use common::step::Step;
use common::{
    NQN, PATIENCE, Witness, assert_idle, config, connect, eventually, pattern, verified_io,
};
use nvmf_host::nvmf_proto::wire::identify::Nsattr;
use nvmf_host::nvmf_proto::wire::property::Cc;
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Completion, Controller, Data, IoQueue, Token, command};
use nvmf_target::Target;
use nvmf_target::ns::{
    Delay, Delayed, Fault, Faulty, Held, Inline, LbaRange, Namespace, NsInfo, Op, OpKind, RamDisk,
    ReadOnly, Rule, Stats, Threaded, Trace,
};
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SIZE: u64 = 8 << 20;

fn ram() -> RamDisk {
    RamDisk::new(SIZE, 512).unwrap()
}

/// A host of a target whose namespace 2 is what is tried here.
struct Rig {
    target: Target,
    address: SocketAddr,
    controller: Controller,
    queue: IoQueue,
}

fn rig(namespace: impl Namespace) -> Rig {
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, namespace).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let queue = controller.io_queue(1).unwrap();
    Rig {
        target,
        address,
        controller,
        queue,
    }
}

impl Rig {
    fn submit(&mut self, sqe: Sqe, data: Data) -> Token {
        let token = self.queue.queue().submit(sqe, data).unwrap();
        assert!(self.queue.queue().flush().unwrap());
        token
    }

    fn start_read(&mut self, slba: u64, blocks: u32) -> Token {
        let buffer = vec![0; blocks as usize * 512];
        self.submit(command::read(2, slba, blocks), Data::Read(buffer))
    }

    fn start_write(&mut self, slba: u64, blocks: u32) -> Token {
        let data = Data::Write(pattern(slba, blocks as usize * 512));
        self.submit(command::write(2, slba, blocks), data)
    }

    fn wait(&mut self, token: Token) -> Completion {
        self.queue.queue().wait_for("command", token).unwrap()
    }

    fn read(&mut self, slba: u64, blocks: u32) -> Result<Vec<u8>, Status> {
        let token = self.start_read(slba, blocks);
        let done = self.wait(token);
        match done.status() {
            Status::SUCCESS => Ok(done.buffer),
            status => Err(status),
        }
    }

    fn write(&mut self, slba: u64, blocks: u32) -> Status {
        let token = self.start_write(slba, blocks);
        self.wait(token).status()
    }

    fn run(&mut self, sqe: Sqe) -> Status {
        let token = self.submit(sqe, Data::None);
        self.wait(token).status()
    }

    /// Everything is given back once the host is gone, and another one is served.
    fn end(self) {
        let Self {
            target,
            address,
            controller,
            queue,
            ..
        } = self;
        drop((controller, queue));
        assert_idle(&target);
        verified_io(address, 1);
        assert_idle(&target);
    }
}

/// Writes and reads of all sizes and kinds, checked; for wrappers that must not be noticed.
fn is_a_disk(rig: &mut Rig) {
    for (slba, blocks) in [(0, 1), (8, 8), (100, 33), (512, 256), (4000, 1)] {
        assert_eq!(rig.write(slba, blocks), Status::SUCCESS);
        let data = pattern(slba, blocks as usize * 512);
        assert!(rig.read(slba, blocks).unwrap() == data, "{slba} {blocks}");
        let fua = command::with_fua(command::write(2, slba, blocks));
        let token = rig.submit(fua, Data::Write(data.clone()));
        assert_eq!(rig.wait(token).status(), Status::SUCCESS);
        let token = rig.submit(command::compare(2, slba, blocks), Data::Write(data));
        assert_eq!(rig.wait(token).status(), Status::SUCCESS);
    }
    assert_eq!(rig.run(command::flush(2)), Status::SUCCESS);
    assert_eq!(rig.run(command::verify(2, 0, 64)), Status::SUCCESS);
    let zeroes = command::write_zeroes(2, 8, 8, false);
    assert_eq!(rig.run(zeroes), Status::SUCCESS);
    assert_eq!(rig.read(8, 8).unwrap(), [0; 4096]);
    let tokens: Vec<_> = (0..64).map(|i| rig.start_read(i, 1)).collect();
    for token in tokens {
        assert_eq!(rig.wait(token).status(), Status::SUCCESS);
    }
}

#[test]
fn wrappers_that_do_nothing_are_not_noticed() {
    let stacked: Arc<dyn Namespace> = Arc::new(Stats::new(Trace::with(
        Delayed::new(Faulty::new(Threaded::new(ram(), 2)), Delay::NONE),
        |_| (),
    )));
    let cases: [Arc<dyn Namespace>; 6] = [
        Arc::new(Stats::new(Inline::new(ram()))),
        Arc::new(Faulty::new(Inline::new(ram()))),
        Arc::new(Trace::new("a test", Inline::new(ram()))),
        Arc::new(Stats::new(Threaded::new(ram(), 2))),
        Arc::new(Delayed::new(
            Inline::new(ram()),
            Delay::random(Duration::ZERO..=Duration::from_micros(300), 1),
        )),
        stacked,
    ];
    for namespace in cases {
        let info = namespace.info();
        assert_eq!((info.bytes(), info.caps.fua), (SIZE, ram_info().caps.fua));
        let mut rig = rig(namespace);
        is_a_disk(&mut rig);
        rig.end();
    }
}

fn ram_info() -> NsInfo {
    Inline::new(ram()).info()
}

#[test]
fn faults_hit_what_their_rule_says() {
    let faulty = Faulty::new(Inline::new(ram()));
    let faults = faulty.faults();
    let mut rig = rig(faulty);
    let status = Status::WRITE_FAULT;

    // By operation and range; the data stays as it was.
    let rule = Rule::new(Fault::Status(status)).on([OpKind::Write]);
    let id = faults.add(rule.blocks(10..20));
    for (slba, blocks, fails) in [(0, 10, false), (20, 5, false), (9, 2, true), (19, 4, true)] {
        assert_eq!(rig.write(slba, blocks) == status, fails, "{slba} {blocks}");
    }
    assert!(rig.read(10, 9).unwrap().iter().all(|&b| b == 0));
    assert_eq!(faults.hits(id), 2);
    faults.remove(id);
    assert_eq!((rig.write(10, 1), faults.hits(id)), (Status::SUCCESS, 2));

    // Every third from the sixth on, twice.
    let rule = Rule::new(Fault::Errno(5)).on([OpKind::Read]);
    let _ = faults.add(rule.after(5).every(3).times(2));
    let outcomes: Vec<_> = (0..20).map(|_| rig.read(0, 1).err()).collect();
    let hit: Vec<_> = (0..20).filter(|&i| outcomes[i].is_some()).collect();
    assert_eq!(hit, [7, 10]);
    assert_eq!(outcomes[7], Some(Status::UNRECOVERED_READ_ERROR));
    faults.clear();

    // By a seeded chance: the same ones each time.
    let mut rounds = [7, 7, 8].map(|seed| {
        let _ = faults.add(Rule::new(Fault::Status(status)).chance(0.25, seed));
        let hit: Vec<bool> = (0..100).map(|_| rig.write(0, 1) == status).collect();
        faults.clear();
        hit
    });
    assert_eq!(rounds[0], rounds[1]);
    assert_ne!(rounds[0], rounds[2]);
    let hits = rounds[0].iter_mut().filter(|hit| **hit).count();
    assert!((10..=45).contains(&hits), "{hits} of 100");

    // By what the embedder says; Deallocate by its ranges.
    let large = |request: &nvmf_target::ns::Request| request.lba_range().blocks > 4;
    let _ = faults.add(Rule::new(Fault::Status(status)).when(large));
    assert_eq!(
        (rig.write(0, 4), rig.write(0, 5)),
        (Status::SUCCESS, status)
    );
    faults.clear();
    rig.end();
}

#[test]
fn each_kind_of_fault_does_what_it_says() {
    let faulty = Faulty::new(Inline::new(ram()));
    let faults = faulty.faults();
    let mut rig = rig(faulty);
    let status = Status::WRITE_FAULT;
    let was = vec![0; 8 * 512];
    let new = |slba| pattern(slba, 8 * 512);
    let outcomes = [
        (Fault::Status(status), status, was.clone()),
        (
            Fault::Errno(28),
            Status::CAPACITY_EXCEEDED.dnr(),
            was.clone(),
        ),
        (Fault::Late(status), status, new(32)),
        (
            Fault::Torn { blocks: 3, status },
            status,
            [&new(48)[..3 * 512], &was[..5 * 512]].concat(),
        ),
        (Fault::Torn { blocks: 0, status }, status, was.clone()),
        (Fault::Torn { blocks: 99, status }, status, new(80)),
        (Fault::Drop, Status::INTERNAL_ERROR, was.clone()),
        (Fault::Panic, Status::INTERNAL_ERROR, was),
    ];
    for (slba, (fault, status, content)) in (0..).step_by(16).zip(outcomes) {
        let _ = faults.add(Rule::new(fault).times(1));
        assert_eq!(rig.write(slba, 8), status, "{fault:?}");
        assert!(rig.read(slba, 8).unwrap() == content, "{fault:?}");
    }
    rig.end();
}

/// What a host waits for is held by the backend: carried out, and not completed.
fn hold(rig: &mut Rig, faults: &nvmf_target::ns::Faults, fault: Fault) -> Vec<Token> {
    let _ = faults.add(Rule::new(fault));
    let tokens = (0..4).flat_map(|i| [rig.start_write(i * 8, 8), rig.start_read(i * 8, 8)]);
    let tokens: Vec<_> = tokens.collect();
    eventually("all are held", || faults.held() == 8);
    faults.clear();
    tokens
}

fn held() -> (Rig, nvmf_target::ns::Faults, Vec<Token>) {
    let faulty = Faulty::new(Inline::new(ram()));
    let faults = faulty.faults();
    let mut rig = rig(faulty);
    let tokens = hold(&mut rig, &faults, Fault::Stick);
    (rig, faults, tokens)
}

/// The buffers are what they were; writing to them disturbs nobody.
fn still_own(held: &mut [Held]) {
    for held in held {
        let slba = held.request().lba_range().slba;
        assert!(held.request().data() == pattern(slba, 4096), "{slba}");
        held.data_mut().fill(0xee);
    }
}

/// Completes what was held, on this thread and on others, in the wrong order, some with errors and
/// some not at all.
fn complete_all(mut held: Vec<Held>) {
    let elsewhere = held.split_off(3);
    let other = thread::spawn(move || {
        for (i, held) in elsewhere.into_iter().rev().enumerate() {
            match i {
                0 => drop(held),
                1 => held.end(Err(Status::WRITE_FAULT)),
                _ => held.release(),
            }
        }
    });
    for held in held.into_iter().rev() {
        held.release();
    }
    other.join().unwrap();
}

#[test]
fn what_is_held_back_is_answered_when_it_is_let_go() {
    let (mut rig, faults, tokens) = held();
    assert_eq!(rig.target.stats().in_flight, 8);
    assert_eq!(rig.read(0, 8).unwrap(), pattern(0, 4096), "it was written");
    assert_eq!(faults.release(), 8);
    for (i, token) in tokens.into_iter().enumerate() {
        let done = rig.wait(token);
        assert_eq!(done.status(), Status::SUCCESS);
        if i % 2 == 1 {
            assert!(done.buffer == pattern(i as u64 / 2 * 8, 4096));
        }
    }
    assert_eq!(faults.release(), 0);
    rig.end();
}

/// The connection, the namespace, and the controller end while the backend has requests: it keeps
/// its memory, and nobody who comes meanwhile gets any of it.
#[test]
fn scenario_58_completion_after_the_end_of_the_connection() {
    for reset in [false, true] {
        let faulty = Faulty::new(Inline::new(ram()));
        let faults = faulty.faults();
        let mut rig = rig(faulty);
        let mut witness = Witness::new(&rig.target, rig.address);
        hold(&mut rig, &faults, Fault::Stick);
        if reset {
            let enabled = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
            rig.controller.set_cc(enabled.with_en(false)).unwrap();
        }
        let Rig {
            target,
            controller,
            queue,
            ..
        } = rig;
        drop((controller, queue));
        eventually(
            "the host's connections are gone but for the backend's",
            || target.stats().connections == 3,
        );
        let stats = target.stats();
        assert_eq!((stats.in_flight, stats.buffers_lent), (8, 8 * 4096));
        for _ in 0..20 {
            witness.works();
        }
        let mut held = faults.take_held();
        still_own(&mut held);
        witness.works();
        complete_all(held);
        eventually("only the witness is left", || {
            target.stats().connections == 2
        });
        witness.works();
        drop(witness);
        assert_idle(&target);
    }
}

#[test]
fn scenario_58_completion_after_the_end_of_the_namespace() {
    let (mut rig, faults, tokens) = held();
    rig.target.remove_namespace(NQN, 2).unwrap();
    rig.target
        .add_namespace(NQN, 2, Inline::new(ram()))
        .unwrap();
    assert_eq!(rig.read(0, 8).unwrap(), [0; 4096], "it is another");
    let held = faults.take_held();
    assert_eq!(held.len(), 8);
    complete_all(held);
    let statuses: Vec<_> = tokens.into_iter().map(|t| rig.wait(t).status()).collect();
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!(
        [Status::SUCCESS, Status::WRITE_FAULT, Status::INTERNAL_ERROR].map(count),
        [6, 1, 1]
    );
    rig.end();
}

#[test]
fn scenario_58_completion_after_the_end_of_the_target() {
    let (rig, faults, _) = held();
    let Rig {
        target,
        controller,
        queue,
        ..
    } = rig;
    assert!(!target.shutdown(Duration::from_millis(1)), "cut off");
    drop((controller, queue));
    let mut held = faults.take_held();
    still_own(&mut held);
    drop(target);
    still_own_fill(&held);
    complete_all(held);
}

fn still_own_fill(held: &[Held]) {
    for held in held {
        assert_eq!(held.request().data(), [0xee; 4096]);
    }
}

/// An Abort, or else the end of the connection, bounds what never completes.
#[test]
fn scenario_58_what_never_completes_is_aborted() {
    let faulty = Faulty::new(Inline::new(ram()));
    let faults = faulty.faults();
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, faulty).unwrap();
    let (mut admin, cntlid) = Raw::admin(address);
    let mut io = Raw::io(address, cntlid, 1);
    let mut abort = |cid| {
        let mut sqe = command::abort(1, cid);
        sqe.set_cid(100 + cid);
        admin.ok(&sqe, &[]).result
    };
    let mut read = raw::read(7, 0, 1);
    read.set_nsid(2);
    let rule = faults.add(Rule::new(Fault::Hold));
    io.submit(&read, &[]);
    eventually("it is held", || faults.held() == 1);
    assert_eq!(abort(7), 1, "not immediate");
    let cqe = io.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (7, Status::ABORT_REQUESTED));
    assert_eq!((faults.held(), faults.hits(rule)), (0, 1));

    faults.clear();
    let _ = faults.add(Rule::new(Fault::Stick));
    io.submit(&read, &[]);
    eventually("it is held", || faults.held() == 1);
    assert_eq!(abort(7), 1);
    assert_eq!(faults.held(), 1);
    faults.clear();
    // Commands behind it go on, and its CID stays in use.
    read.set_cid(8);
    assert_eq!(io.read(&read), [0; 512]);
    drop((admin, io));
    eventually("only the backend holds anything", || {
        target.stats().connections == 1
    });
    verified_io(address, 1);
    assert_eq!(faults.release(), 1);
    assert_idle(&target);
}

/// A request that a lane gives back for an Abort is accounted for by all around it.
#[test]
fn what_is_withdrawn_is_told_to_all() {
    let step = Step::new(NsInfo::new(512, 4096));
    step.set_withdraws(true);
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let tell = move |event: &nvmf_target::ns::TraceEvent<'_>| {
        let told = (event.op, event.range, event.result);
        sender.lock().unwrap().send(told).unwrap();
    };
    let faulty = Faulty::new(step.clone());
    let status = Status::WRITE_FAULT;
    let torn = Rule::new(Fault::Torn { blocks: 1, status });
    let _ = faulty.faults().add(torn.on([OpKind::Write]));
    let stats = Stats::new(Trace::with(faulty, tell));
    let counters = stats.counters();
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, stats).unwrap();
    let (mut admin, cntlid) = Raw::admin(address);
    let mut io = Raw::io(address, cntlid, 1);
    let mut write = raw::write_in_capsule(5, 16, 8);
    write.set_nsid(2);
    io.submit(&write, &[1; 4096]);
    eventually("it is with the backend", || step.pending() == 1);
    assert_eq!(counters.read().op(OpKind::Write).in_flight, 1);
    let mut sqe = command::abort(1, 5);
    sqe.set_cid(6);
    assert_eq!(admin.ok(&sqe, &[]).result, 0, "immediate");
    assert_eq!(io.recv().cqe().status, Status::ABORT_REQUESTED);
    let counted = counters.read().op(OpKind::Write).clone();
    assert_eq!((counted.withdrawn, counted.in_flight), (1, 0));
    assert_eq!(counted.completed, 0);
    let range = LbaRange {
        slba: 16,
        blocks: 8,
    };
    let told = (
        Op::Write { fua: false },
        range,
        Err(Status::ABORT_REQUESTED),
    );
    assert_eq!(events.recv().unwrap(), told);
    drop((admin, io));
    assert_idle(&target);
}

#[test]
fn counters_count_every_request_once() {
    for namespace in [
        Arc::new(Inline::new(ram())) as Arc<dyn Namespace>,
        Arc::new(Threaded::new(ram(), 2)),
    ] {
        let faulty = Faulty::new(namespace);
        let _ = faulty
            .faults()
            .add(Rule::new(Fault::Status(Status::WRITE_FAULT)).blocks(4000..4001));
        counts(Stats::new(faulty));
    }
    // In place, with data that is lent.
    let disk = ram();
    counts(Stats::new(Inline::new(disk)));
}

fn counts(stats: Stats) {
    let counters = stats.counters();
    assert_eq!(counters.read().total().completed, 0);
    let mut rig = rig(stats);
    let mut fails = 0;
    for slba in [0, 100, 4000] {
        for blocks in [1, 8, 100] {
            fails += u64::from(rig.write(slba, blocks) != Status::SUCCESS);
            fails += u64::from(rig.read(slba, blocks).is_err());
        }
    }
    let tokens: Vec<_> = (0..100).map(|i| rig.start_read(i * 2, 2)).collect();
    for token in tokens {
        rig.wait(token);
    }
    assert_eq!(rig.run(command::verify(2, 0, 8)), Status::SUCCESS);
    let snapshot = counters.read();
    let (read, write) = (snapshot.op(OpKind::Read), snapshot.op(OpKind::Write));
    assert_eq!((read.completed, write.completed), (109, 9));
    assert_eq!(snapshot.op(OpKind::Verify).completed, 1);
    assert_eq!((read.failed + write.failed), fails);
    let good = if fails == 0 { 3 } else { 2 };
    assert_eq!(write.bytes, good * 109 * 512);
    assert_eq!(read.bytes, (good * 109 + 200) * 512);
    assert_eq!(read.latency.count(), 109);
    assert!(read.latency.percentile(50.0) <= read.latency.percentile(100.0));
    assert!(read.latency.mean().is_some());
    assert_eq!(snapshot.total().in_flight, 0);
    assert_eq!(snapshot.since(&snapshot).total().completed, 0);
    rig.end();
}

#[test]
fn what_is_traced_is_told_and_a_panic_over_it_changes_nothing() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&told);
    let trace = Trace::with(Inline::new(ram()), move |event| {
        list.lock().unwrap().push(event.to_string());
        assert!(event.range.slba != 77, "as it should in this test");
    });
    let mut rig = rig(trace);
    assert_eq!(rig.write(64, 8), Status::SUCCESS);
    assert_eq!(rig.read(76, 2).unwrap(), [0; 1024]);
    let lines = std::mem::take(&mut *told.lock().unwrap());
    assert!(lines[0].starts_with("Write { fua: false } of 8 blocks from 64: ok in "));
    assert!(lines[1].starts_with("Read of 2 blocks from 76: ok in "));
    assert_eq!(lines.len(), 2);
    // It panics with the lock held, and from then on because of that.
    for slba in [77, 78] {
        assert_eq!(rig.write(slba, 1), Status::SUCCESS);
        assert_eq!(rig.read(slba, 1).unwrap(), pattern(slba, 512));
    }
    rig.end();
}

/// Random delays of a seed reorder; Abort and removal let off what is left of a delay.
#[test]
fn delays_reorder_and_end_when_nobody_waits() {
    let hour = Duration::from_secs(3600);
    let delayed = Delayed::new(Inline::new(ram()), Delay::NONE);
    let pace = delayed.pace();
    let mut rig = rig(delayed);
    assert_eq!(rig.write(0, 64), Status::SUCCESS);
    let spread = Duration::ZERO..=Duration::from_millis(40);
    pace.set(Delay::random(spread, 3).on([OpKind::Read]));
    let tokens: Vec<_> = (0..32).map(|i| rig.start_read(i, 1)).collect();
    let mut order = Vec::new();
    let data = pattern(0, 64 * 512);
    while order.len() < tokens.len() {
        for done in rig.queue.poll(PATIENCE).unwrap() {
            let at = tokens.iter().position(|t| *t == done.token).unwrap();
            assert_eq!(done.buffer, data[at * 512..][..512]);
            order.push(at);
        }
    }
    assert!(!order.is_sorted(), "{order:?}");

    // Other operations are not held back, and these are until their namespace is gone.
    pace.set(Delay::fixed(hour).on([OpKind::Read]));
    let token = rig.start_read(0, 1);
    eventually("it is held back", || pace.held() == 1);
    assert_eq!(rig.write(0, 1), Status::SUCCESS);
    let (mut admin, cntlid) = Raw::admin(rig.address);
    let mut io = Raw::io(rig.address, cntlid, 1);
    let mut read = raw::read(9, 1, 1);
    read.set_nsid(2);
    io.submit(&read, &[]);
    eventually("both are held back", || pace.held() == 2);
    let mut abort = command::abort(1, 9);
    abort.set_cid(10);
    admin.ok(&abort, &[]);
    // It has been read, and so it is answered.
    assert_eq!(io.recv().data(), &data[512..1024]);
    assert_eq!(pace.held(), 1);
    drop((admin, io));
    assert_eq!(pace.release(), 1);
    assert_eq!(rig.wait(token).status(), Status::SUCCESS);

    rig.start_read(0, 1);
    eventually("it is held back", || pace.held() == 1);
    assert!(!rig.target.shutdown(Duration::from_millis(1)), "cut off");
    drop(rig);
    eventually("nothing is held back", || pace.held() == 0);
}

#[test]
fn a_read_only_namespace_is_write_protected_until_it_is_switched() {
    let read_only = ReadOnly::new(Inline::new(ram()));
    let switch = read_only.switch();
    let mut rig = rig(read_only);
    let protected = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    let nsattr = |rig: &mut Rig| rig.controller.identify_namespace(2).unwrap().nsattr;
    assert_eq!(nsattr(&mut rig), Nsattr::WRITE_PROTECTED);
    assert_eq!(rig.write(0, 8), protected);
    assert_eq!(rig.run(command::write_zeroes(2, 0, 8, false)), protected);
    assert_eq!(rig.read(0, 8).unwrap(), [0; 4096]);
    assert!(switch.set(false));
    assert_eq!(nsattr(&mut rig), Nsattr::empty());
    assert_eq!(rig.write(0, 8), Status::SUCCESS);
    assert!(switch.set(true));
    assert_eq!(rig.write(0, 8), protected);
    assert!(switch.info().read_only);
    rig.end();
    let ever = ram().with_info(|info| info.with_read_only(true));
    assert!(!ReadOnly::new(Inline::new(ever)).switch().set(false));
}

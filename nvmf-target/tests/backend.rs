//! What backends may do, seen from a host: every request here is ended by hand.

mod common;

use common::raw::{self, Digests, Raw};
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, pattern};
use nvmf_host::nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_host::nvmf_proto::wire::log::AsyncEvent;
use nvmf_host::nvmf_proto::wire::property::{Cc, Csts};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Completion, Controller, Data, IoQueue, Namespace, Token, command};
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_target::Target;
use nvmf_target::ns::{LbaRange, NsInfo, Op, Request, Support};
use std::thread;

const BLOCKS: u64 = 4096;

/// A target whose namespace 2 is run by hand, and a host with one I/O queue.
struct Rig {
    target: Target,
    step: Step,
    controller: Controller,
    queue: IoQueue,
    ns: Namespace,
}

fn rig(info: NsInfo) -> Rig {
    let (target, address) = common::target(config());
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let ns = controller.namespace(2).unwrap();
    let queue = controller.io_queue(1).unwrap();
    Rig {
        target,
        step,
        controller,
        queue,
        ns,
    }
}

fn plain() -> NsInfo {
    NsInfo::new(512, BLOCKS)
}

impl Rig {
    fn submit(&mut self, sqe: Sqe, data: Data) -> Token {
        let token = self.queue.queue().submit(sqe, data).unwrap();
        assert!(self.queue.queue().flush().unwrap());
        token
    }

    fn read(&mut self, slba: u64) -> Token {
        self.submit(command::read(2, slba, 8), Data::Read(vec![0; 4096]))
    }

    fn write(&mut self, slba: u64) -> Token {
        let data = Data::Write(pattern(slba, 4096));
        self.submit(command::write(2, slba, 8), data)
    }

    fn wait(&mut self, token: Token) -> Completion {
        self.queue.queue().wait_for("command", token).unwrap()
    }

    fn status(&mut self, token: Token) -> Status {
        self.wait(token).status()
    }

    /// Everything is given back once the host is gone.
    fn end(self) {
        drop((self.controller, self.queue));
        assert_idle(&self.target);
    }
}

fn fill(request: &mut Request) {
    let seed = request.lba_range().slba;
    let data = pattern(seed, request.data().len());
    request.data_mut().copy_from_slice(&data);
}

#[test]
fn requests_end_in_any_order_and_on_any_thread() {
    let mut rig = rig(plain());
    let tokens: Vec<_> = (0..6).map(|i| rig.read(i * 8)).collect();
    let mut requests: Vec<_> = rig.step.take(6).into_iter().map(Some).collect();
    for (at, elsewhere) in [
        (4, false),
        (0, true),
        (5, false),
        (2, true),
        (1, true),
        (3, false),
    ] {
        let mut request = requests[at].take().unwrap();
        assert_eq!(request.lba_range().slba, at as u64 * 8);
        fill(&mut request);
        if elsewhere {
            thread::spawn(move || request.complete(Ok(())))
                .join()
                .unwrap();
        } else {
            request.complete(Ok(()));
        }
        let done = rig.queue.poll(PATIENCE).unwrap().next().unwrap();
        assert_eq!(done.token, tokens[at], "the one that was ended comes first");
        let done = done.success("Read").unwrap();
        assert_eq!(done.buffer, pattern(at as u64 * 8, 4096));
    }
    rig.end();
}

#[test]
fn a_status_reaches_the_host_as_it_is_and_a_dropped_request_fails() {
    let mut rig = rig(plain());
    for status in [
        Status::UNRECOVERED_READ_ERROR,
        Status::WRITE_FAULT,
        Status::CAPACITY_EXCEEDED.dnr(),
        Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        Status::COMMAND_INTERRUPTED,
    ] {
        for write in [false, true] {
            let token = if write { rig.write(0) } else { rig.read(0) };
            rig.step.next().complete(Err(status));
            let done = rig.wait(token);
            assert_eq!((done.status(), done.received), (status, 0));
        }
    }
    let token = rig.write(0);
    drop(rig.step.next());
    assert_eq!(rig.status(token), Status::INTERNAL_ERROR);
    // Not what is in the buffer, which nobody has filled.
    let token = rig.read(0);
    rig.step.next().complete(Err(Status::SUCCESS));
    let done = rig.wait(token);
    assert_eq!((done.status(), done.received), (Status::INTERNAL_ERROR, 0));
    rig.end();
}

#[test]
fn requests_outlive_their_connection() {
    let mut rig = rig(plain());
    for slba in 0..4 {
        rig.read(slba * 8);
        rig.write(slba * 8);
    }
    let mut requests = rig.step.take(8);
    let Rig {
        target,
        controller,
        queue,
        ..
    } = rig;
    drop((controller, queue));
    // The queue's connection is closed but counted: the buffers are still the backend's.
    eventually("only the backend holds anything", || {
        target.stats().connections == 1
    });
    assert_eq!(target.stats().in_flight, 8);
    assert_eq!(target.stats().buffers_lent, 8 * 4096);
    drop(requests.pop());
    requests.pop().unwrap().complete(Err(Status::WRITE_FAULT));
    let other = requests.split_off(3);
    thread::spawn(move || other.into_iter().for_each(|r| r.complete(Ok(()))))
        .join()
        .unwrap();
    assert_eq!(target.stats().connections, 1);
    for mut request in requests {
        fill(&mut request);
        request.complete(Ok(()));
    }
    assert_idle(&target);
}

#[test]
fn a_reset_is_complete_when_the_backend_is_done() {
    let mut rig = rig(plain());
    rig.write(0);
    let request = rig.step.next();
    let enabled = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
    rig.controller.set_cc(enabled.with_en(false)).unwrap();
    eventually("the queue is closed", || {
        rig.queue.queue().progress().is_err()
    });
    assert!(rig.controller.csts().unwrap().rdy());
    request.complete(Ok(()));
    eventually("CSTS.RDY goes", || !rig.controller.csts().unwrap().rdy());
    rig.controller.enable().unwrap();
    rig.controller.set_queue_count(1).unwrap();
    rig.queue = rig.controller.io_queue(1).unwrap();
    let token = rig.write(8);
    rig.step.next().complete(Ok(()));
    assert_eq!(rig.status(token), Status::SUCCESS);
    rig.end();
}

#[test]
fn a_controller_shutdown_waits_for_the_backend_whatever_else_is_set() {
    let enabled = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
    let normal = enabled.with_shn(Cc::SHN_NORMAL);
    // What CC is set to one after the other, and CSTS.RDY in the end.
    let cases: [(&[Cc], bool); 3] = [
        (&[normal], true),
        (&[enabled.with_en(false), normal.with_en(false)], false),
        (&[normal, normal.with_en(false)], false),
    ];
    for (settings, ready) in cases {
        let mut rig = rig(plain());
        rig.write(0);
        let request = rig.step.next();
        for &cc in settings {
            rig.controller.set_cc(cc).unwrap();
        }
        let csts = rig.controller.csts().unwrap();
        assert_eq!(csts.shst(), Csts::SHST_OCCURRING, "{settings:?}");
        request.complete(Ok(()));
        eventually("shutdown is complete", || {
            rig.controller.csts().unwrap().shst() == Csts::SHST_COMPLETE
        });
        let csts = rig.controller.csts().unwrap();
        assert_eq!(csts.rdy(), ready, "{settings:?}");
        assert!(rig.controller.io_queue(1).is_err(), "only after a reset");
        rig.controller.reset().unwrap();
        rig.controller.enable().unwrap();
        rig.controller.set_queue_count(1).unwrap();
        rig.queue = rig.controller.io_queue(1).unwrap();
        rig.end();
    }
}

#[test]
fn a_target_shutdown_waits_for_the_backend_and_flushes_it() {
    let mut rig = rig(plain().with_volatile_cache());
    let token = rig.write(0);
    let write = rig.step.next();
    let mut idle = connect(rig.controller.options().address);
    let target = rig.target.clone();
    let shutdown = thread::spawn(move || target.shutdown(PATIENCE));
    eventually("idle connections are closed", || idle.csts().is_err());
    write.complete(Ok(()));
    assert_eq!(rig.status(token), Status::SUCCESS);
    let flush = rig.step.next();
    assert_eq!(flush.op(), Op::Flush);
    assert!(!shutdown.is_finished());
    flush.complete(Ok(()));
    assert!(shutdown.join().unwrap());
    rig.controller.csts().unwrap_err();
    assert_eq!(rig.target.stats(), Default::default());
}

#[test]
fn a_lane_has_no_more_requests_than_its_depth() {
    let mut info = plain();
    info.depth = 2;
    let mut rig = rig(info);
    let tokens: Vec<_> = (0..9).map(|i| rig.write(i * 8)).collect();
    let mut held = rig.step.take(2);
    for i in 2..9 {
        assert_eq!(rig.step.pending(), 0);
        held.remove(i % 2).complete(Ok(()));
        held.push(rig.step.next());
        assert_eq!(
            held[1].lba_range().slba,
            i as u64 * 8,
            "in the order of arrival"
        );
    }
    assert_eq!(rig.step.pending(), 0);
    held.into_iter()
        .for_each(|request| request.complete(Ok(())));
    for token in tokens {
        assert_eq!(rig.status(token), Status::SUCCESS);
    }
    rig.end();
}

/// A new depth is in force at once, for lanes that are open, too.
#[test]
fn a_lane_takes_a_new_depth() {
    let mut info = plain();
    info.depth = 1;
    let mut rig = rig(info);
    let tokens: Vec<_> = (0..8).map(|i| rig.write(i * 8)).collect();
    let first = rig.step.next();
    rig.step.change(|info| info.depth = 3);
    let mut held = rig.step.take(2);
    held.insert(0, first);
    assert_eq!(rig.step.pending(), 0);
    rig.step.change(|info| info.depth = 1);
    // Nothing more before all but one are done.
    let flush = rig.submit(command::flush(1), Data::None);
    assert_eq!(rig.status(flush), Status::SUCCESS);
    for _ in 0..2 {
        held.remove(0).complete(Ok(()));
        let flush = rig.submit(command::flush(1), Data::None);
        assert_eq!(rig.status(flush), Status::SUCCESS);
        assert_eq!(rig.step.pending(), 0);
    }
    held.remove(0).complete(Ok(()));
    for slba in (24..64).step_by(8) {
        let request = rig.step.next();
        assert_eq!((request.lba_range().slba, rig.step.pending()), (slba, 0));
        request.complete(Ok(()));
    }
    for token in tokens {
        assert_eq!(rig.status(token), Status::SUCCESS);
    }
    rig.end();
}

/// What a write with FUA becomes, by what the backend has.
#[test]
fn fua_is_native_or_a_flush_behind_the_write() {
    let native = |mut info: NsInfo| {
        info.caps.fua = Support::Native;
        info.caps.write_zeroes = Support::Native;
        info
    };
    let zeroes = |mut info: NsInfo| {
        info.caps.write_zeroes = Support::Native;
        info
    };
    let write = |fua| Op::Write { fua };
    let wz = |fua| Op::WriteZeroes {
        deallocate: false,
        fua,
    };
    let cached = plain().with_volatile_cache();
    let cases: [(NsInfo, &[Op], &[Op]); 4] = [
        (native(plain()), &[write(true)], &[wz(true)]),
        (native(cached.clone()), &[write(true)], &[wz(true)]),
        (zeroes(plain()), &[write(false)], &[wz(false)]),
        (
            zeroes(cached),
            &[write(false), Op::Flush],
            &[wz(false), Op::Flush],
        ),
    ];
    for (info, writes, zeroes) in cases {
        let mut rig = rig(info);
        for (sqe, data, ops) in [
            (
                command::write(2, 0, 8),
                Data::Write(pattern(1, 4096)),
                writes,
            ),
            (command::write_zeroes(2, 0, 8, false), Data::None, zeroes),
        ] {
            let token = rig.submit(command::with_fua(sqe), data);
            for &op in ops {
                assert_eq!(rig.queue.queue().progress().unwrap(), 0);
                let request = rig.step.next();
                assert_eq!(request.op(), op);
                request.complete(Ok(()));
            }
            assert_eq!(rig.status(token), Status::SUCCESS);
            assert_eq!(rig.step.pending(), 0);
        }
        rig.end();
    }
}

#[test]
fn a_failed_flush_fails_its_fua_write() {
    let mut rig = rig(plain().with_volatile_cache());
    let sqe = command::with_fua(command::write(2, 0, 8));
    let token = rig.submit(sqe, Data::Write(pattern(1, 4096)));
    rig.step.next().complete(Ok(()));
    rig.step.next().complete(Err(Status::WRITE_FAULT));
    assert_eq!(rig.status(token), Status::WRITE_FAULT);
    let token = rig.submit(sqe, Data::Write(pattern(1, 4096)));
    rig.step.next().complete(Err(Status::WRITE_FAULT));
    assert_eq!(rig.status(token), Status::WRITE_FAULT);
    assert_eq!(rig.step.pending(), 0, "nothing to flush");
    rig.end();
}

/// An emulated Write Zeroes goes on piece by piece, as long as its namespace stays what it was.
#[test]
fn write_zeroes_is_emulated_by_writes() {
    enum Then {
        Finish,
        Fail,
        Shrink,
        Replace,
    }
    for (then, status) in [
        (Then::Finish, Status::SUCCESS),
        (Then::Fail, Status::WRITE_FAULT),
        (Then::Shrink, Status::LBA_OUT_OF_RANGE.dnr()),
        (Then::Replace, Status::INVALID_NAMESPACE.dnr()),
    ] {
        let mut rig = rig(plain());
        let other = Step::new(plain());
        let token = rig.submit(command::write_zeroes(2, 10, 2000, false), Data::None);
        let first = rig.step.next();
        assert_eq!(first.op(), Op::Write { fua: false });
        assert!(first.data().iter().all(|&b| b == 0));
        let LbaRange { slba, mut blocks } = first.lba_range();
        assert_eq!(slba, 10);
        match then {
            Then::Finish => first.complete(Ok(())),
            Then::Fail => first.complete(Err(status)),
            Then::Shrink => {
                rig.step.change(|info| info.blocks = 1000);
                first.complete(Ok(()));
            }
            Then::Replace => {
                rig.target.remove_namespace(NQN, 2).unwrap();
                rig.target.add_namespace(NQN, 2, other.clone()).unwrap();
                first.complete(Ok(()));
            }
        }
        while status.is_success() && blocks < 2000 {
            let request = rig.step.next();
            assert_eq!(request.lba_range().slba, 10 + blocks);
            blocks += request.lba_range().blocks;
            request.complete(Ok(()));
        }
        assert_eq!(rig.status(token), status);
        assert_eq!((rig.step.pending(), other.pending()), (0, 0));
        rig.end();
    }
}

#[test]
fn flush_of_all_namespaces_waits_for_all_and_fails_with_one() {
    for failed in [None, Some(0), Some(1)] {
        let mut rig = rig(plain().with_volatile_cache());
        let (third, fourth) = (Step::new(plain().with_volatile_cache()), Step::new(plain()));
        rig.target.add_namespace(NQN, 3, third.clone()).unwrap();
        rig.target.add_namespace(NQN, 4, fourth.clone()).unwrap();
        let token = rig.submit(command::flush(NSID_BROADCAST), Data::None);
        let requests = [rig.step.next(), third.next()];
        for (i, request) in requests.into_iter().enumerate() {
            assert_eq!(request.op(), Op::Flush);
            assert_eq!(rig.queue.queue().progress().unwrap(), 0);
            request.complete(if failed == Some(i) {
                Err(Status::WRITE_FAULT)
            } else {
                Ok(())
            });
        }
        let status = if failed.is_some() {
            Status::WRITE_FAULT
        } else {
            Status::SUCCESS
        };
        assert_eq!(rig.status(token), status);
        assert_eq!(fourth.pending(), 0, "it has no volatile cache");
        rig.end();
    }
}

#[test]
fn a_namespace_that_is_removed_finishes_what_it_has() {
    let mut rig = rig(plain());
    let tokens = [rig.write(0), rig.read(8)];
    let requests = rig.step.take(2);
    rig.target.remove_namespace(NQN, 2).unwrap();
    let late = rig.write(16);
    assert_eq!(rig.status(late), Status::INVALID_NAMESPACE.dnr());
    for mut request in requests {
        if request.op() == Op::Read {
            fill(&mut request);
        }
        request.complete(Ok(()));
    }
    for token in tokens {
        assert_eq!(rig.status(token), Status::SUCCESS);
    }
    eventually("the target lets go of it", || !rig.step.is_held());
    rig.end();
}

/// Commands that were checked against one namespace do not reach another with the same NSID for
/// which they have the wrong length.
#[test]
fn a_namespace_of_another_format_does_not_get_what_its_predecessor_was_sent() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 3 << 20);
    let (target, address) = common::target(config);
    let (_admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    queue.submit(&raw::write_by_r2t(1, 0, 8), &[]);
    queue.submit(&raw::write_by_r2t(2, 0, 2000), &[]);
    let (small, large) = (queue.recv().r2t(), queue.recv().r2t());
    // No buffer is left for this one.
    queue.submit(&raw::read(3, 0, 16), &[]);
    queue.submit(&command::flush(1), &[]);
    assert_eq!(queue.recv().cqe().cid, 0, "all of them have come");
    let step = Step::new(NsInfo::new(4096, 512));
    target.remove_namespace(NQN, 1).unwrap();
    target.add_namespace(NQN, 1, step.clone()).unwrap();
    for (r2t, status) in [
        (small, Status::DATA_SGL_LENGTH_INVALID),
        (large, Status::LBA_OUT_OF_RANGE),
    ] {
        let data = vec![1; r2t.length as usize];
        queue.send(&Digests::default().h2c_data(&r2t, 0, &data, true));
        let cqe = queue.recv().cqe();
        assert_eq!((cqe.cid, cqe.status), (r2t.cccid, status.dnr()));
    }
    let cqe = queue.recv().cqe();
    let status = Status::DATA_SGL_LENGTH_INVALID.dnr();
    assert_eq!((cqe.cid, cqe.status), (3, status));
    assert_eq!(step.pending(), 0);
}

#[test]
fn a_new_size_is_told_and_used() {
    let mut rig = rig(plain());
    rig.controller
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
        .unwrap();
    for (blocks, inside) in [(2 * BLOCKS, true), (BLOCKS / 2, false), (BLOCKS, true)] {
        rig.controller.submit_event_request().unwrap();
        rig.step.change(|info| info.blocks = blocks);
        let event = rig.controller.poll_event(PATIENCE).unwrap();
        assert_eq!(event, Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED));
        assert_eq!(rig.controller.changed_namespaces().unwrap(), [2]);
        rig.ns = rig.controller.namespace(2).unwrap();
        assert_eq!(rig.ns.blocks, blocks);
        let token = rig.write(BLOCKS.min(blocks) - 8);
        rig.step.next().complete(Ok(()));
        assert_eq!(rig.status(token), Status::SUCCESS);
        let token = rig.write(blocks - 7);
        assert_eq!(
            rig.status(token),
            Status::LBA_OUT_OF_RANGE.dnr(),
            "{inside}"
        );
    }
    // What says nothing new is no event.
    rig.controller.submit_event_request().unwrap();
    rig.step.change(|_| {});
    rig.step.change(|info| info.read_only = true);
    assert!(rig.controller.poll_event(PATIENCE).unwrap().is_some());
    let token = rig.write(0);
    assert_eq!(rig.status(token), Status::NAMESPACE_WRITE_PROTECTED.dnr());
    rig.end();
}

#[test]
fn a_lane_that_cannot_be_opened_is_tried_again() {
    let mut rig = rig(plain());
    rig.step.set_broken(true);
    let token = rig.write(0);
    assert_eq!(rig.status(token), Status::NAMESPACE_NOT_READY);
    rig.step.set_broken(false);
    let token = rig.write(0);
    rig.step.next().complete(Ok(()));
    assert_eq!(rig.status(token), Status::SUCCESS);
    rig.end();
}

//! Abort: a command is found wherever it is, ended once or not at all, and the host is told which.

mod common;

use common::raw::{Digests, Raw, read, with_sgl, write_by_r2t, write_in_capsule};
use common::step::Step;
use common::{NQN, assert_idle, config, eventually, pattern, verified_io};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::abort::AbortCommand;
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::{AdminOpcode, SglDescriptor, Sqe, Status};
use nvmf_target::ns::{
    BlockDevice, Lane, LaneCx, Namespace, NsError, NsInfo, Op, Request, Support, Threaded,
};
use nvmf_target::{Error, Target, TargetConfig};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};

const BLOCKS: u64 = 8192;
/// CID of the Aborts.
const ABORT: u16 = 0x7001;

/// Whether an abort was immediate: bit 0 of the answer says that it was not.
const IMMEDIATE: u64 = 0;
const NOT_IMMEDIATE: u64 = AbortCommand::NOT_PERFORMED as u64;

fn abort(sqid: u16, cid: u16) -> Sqe {
    let mut sqe = command::abort(sqid, cid);
    sqe.set_cid(ABORT);
    sqe
}

/// A command for the namespace that the test runs by hand.
fn by_hand(mut sqe: Sqe) -> Sqe {
    sqe.set_nsid(2);
    sqe
}

fn event_request(cid: u16) -> Sqe {
    let mut sqe = Sqe::with_opcode(AdminOpcode::ASYNC_EVENT_REQUEST.0);
    sqe.set_cid(cid);
    sqe
}

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
    rig_with(config, info, Digests::default())
}

fn rig_with(config: TargetConfig, info: NsInfo, digests: Digests) -> Rig {
    let (target, address) = common::target(config);
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let io = Raw::io_with(address, cntlid, 1, digests);
    Rig {
        target,
        address,
        step,
        cntlid,
        admin,
        io,
    }
}

/// The queues on one reactor, and on two.
fn configs() -> [TargetConfig; 2] {
    [1, 2].map(|reactors| {
        let mut config = config();
        config.reactors = reactors;
        config
    })
}

fn info() -> NsInfo {
    NsInfo::new(512, BLOCKS)
}

impl Rig {
    /// Dword 0 of the answer to an Abort of a command of the I/O queue.
    fn abort(&mut self, cid: u16) -> u64 {
        self.admin.ok(&abort(1, cid), &[]).result
    }

    /// The next response of the I/O queue.
    fn response(&mut self) -> (u16, Status) {
        let cqe = self.io.recv().cqe();
        (cqe.cid, cqe.status)
    }

    /// The stream is in step, and everything is given back once the host is gone.
    fn end(mut self) {
        let data = pattern(9, 4096);
        self.io.ok(&write_in_capsule(0x6000, 64, 8), &data);
        assert!(self.io.read(&read(0x6001, 64, 8)) == data);
        let Self {
            target,
            address,
            step,
            admin,
            io,
            ..
        } = self;
        assert_eq!(step.pending(), 0);
        drop((admin, io));
        assert_idle(&target);
        verified_io(address, 3);
    }
}

fn fill(mut request: Request, value: u8) {
    request.data_mut().fill(value);
    request.complete(Ok(()));
}

#[test]
fn what_is_not_there_is_not_aborted() {
    for config in configs() {
        let mut rig = rig(config, info());
        rig.io.ok(&write_in_capsule(5, 0, 1), &[1; 512]);
        for (sqid, cid, what) in [
            (1, 5, "over"),
            (1, 6, "never there"),
            (2, 5, "no such queue"),
            (0xffff, 5, "no such queue"),
            (0, 5, "never there"),
            (0, ABORT, "itself"),
        ] {
            let dw0 = rig.admin.ok(&abort(sqid, cid), &[]).result;
            assert_eq!(dw0, NOT_IMMEDIATE, "{what}");
        }
        rig.end();
    }
}

#[test]
fn a_command_that_the_backend_has_goes_on() {
    for config in configs() {
        let mut rig = rig(config, info());
        rig.io.submit(&by_hand(read(1, 0, 8)), &[]);
        let request = rig.step.next();
        assert_eq!(rig.abort(1), NOT_IMMEDIATE);
        // The buffer is the backend's as before.
        assert_ne!(rig.target.stats().buffers_lent, 0);
        fill(request, 7);
        assert_eq!(rig.io.recv().data(), [7; 4096]);
        assert_eq!(rig.response(), (1, Status::SUCCESS));
        rig.end();
    }
}

#[test]
fn a_command_that_its_lane_has_no_room_for_is_withdrawn() {
    for config in configs() {
        let mut info = info();
        info.depth = 1;
        let mut rig = rig(config, info);
        rig.io.submit(&by_hand(read(1, 0, 8)), &[]);
        let request = rig.step.next();
        let data = pattern(1, 4096);
        rig.io.submit(&by_hand(write_in_capsule(2, 8, 8)), &data);
        rig.io.submit(&by_hand(read(3, 16, 8)), &[]);
        eventually("both wait", || rig.target.stats().in_flight == 3);
        assert_eq!(rig.abort(2), IMMEDIATE);
        assert_eq!(rig.response(), (2, Status::ABORT_REQUESTED));
        assert_eq!(rig.abort(2), NOT_IMMEDIATE, "once");
        fill(request, 7);
        assert_eq!(rig.io.recv().data(), [7; 4096]);
        assert_eq!(rig.response(), (1, Status::SUCCESS));
        let request = rig.step.next();
        assert_eq!(request.lba_range().slba, 16);
        fill(request, 8);
        assert_eq!(rig.io.recv().data(), [8; 4096]);
        assert_eq!(rig.response(), (3, Status::SUCCESS));
        rig.end();
    }
}

#[test]
fn a_lane_gives_back_what_it_has_not_begun() {
    for config in configs() {
        let mut rig = rig(config, info());
        rig.step.set_withdraws(true);
        for cid in 1..4 {
            rig.io.submit(&by_hand(read(cid, u64::from(cid), 1)), &[]);
        }
        eventually("the lane has them", || rig.step.pending() == 3);
        let begun = rig.step.next();
        assert_eq!(rig.abort(2), IMMEDIATE);
        assert_eq!(rig.response(), (2, Status::ABORT_REQUESTED));
        assert_eq!(rig.abort(1), NOT_IMMEDIATE, "begun");
        fill(begun, 1);
        assert_eq!(rig.io.recv().data(), [1; 512]);
        assert_eq!(rig.response(), (1, Status::SUCCESS));
        let last = rig.step.next();
        assert_eq!(last.lba_range().slba, 3);
        fill(last, 3);
        assert_eq!(rig.io.recv().data(), [3; 512]);
        assert_eq!(rig.response(), (3, Status::SUCCESS));
        rig.end();
    }
}

/// Reads that end when the test lets them.
#[derive(Default)]
struct Slow {
    /// Reads that have begun, and those that may end.
    state: Mutex<(usize, usize)>,
    moved: Condvar,
}

impl BlockDevice for Slow {
    fn info(&self) -> NsInfo {
        info()
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.moved.notify_all();
        let _ended = self
            .moved
            .wait_while(state, |state| state.1 == 0)
            .unwrap()
            .1
            .checked_sub(1);
        buf.fill(7);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }
}

impl Slow {
    fn wait_for_begun(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.moved.wait_while(state, |s| s.0 < count).unwrap());
    }

    fn end_all(&self) {
        self.state.lock().unwrap().1 = 1;
        self.moved.notify_all();
    }
}

#[test]
fn a_request_that_no_worker_thread_has_begun_is_withdrawn() {
    for config in configs() {
        let mut rig = rig(config, info());
        let slow = Arc::new(Slow::default());
        let threaded = Threaded::new(Arc::clone(&slow), 1);
        rig.target.add_namespace(NQN, 3, threaded).unwrap();
        for cid in 1..4 {
            let mut sqe = read(cid, 0, 1);
            sqe.set_nsid(3);
            rig.io.submit(&sqe, &[]);
        }
        slow.wait_for_begun(1);
        eventually("the others wait", || rig.target.stats().in_flight == 3);
        assert_eq!(rig.abort(1), NOT_IMMEDIATE, "begun");
        assert_eq!(rig.abort(3), IMMEDIATE);
        assert_eq!(rig.response(), (3, Status::ABORT_REQUESTED));
        slow.end_all();
        for cid in [1, 2] {
            assert_eq!(rig.io.recv().data(), [7; 512]);
            assert_eq!(rig.response(), (cid, Status::SUCCESS));
        }
        rig.end();
    }
}

#[test]
fn a_command_that_waits_for_a_buffer_is_aborted() {
    for mut config in configs() {
        // A third of the buffers is for one connection: 42 KiB.
        config.max_transfer = 32 << 10;
        config.buffer_bytes = (128 << 10) * config.reactors;
        let mut rig = rig(config, info());
        for cid in 1..=3 {
            rig.io.submit(&by_hand(read(cid, 0, 64)), &[]);
        }
        let request = rig.step.next();
        // In whichever order: behind both stands nothing.
        for cid in [3, 2] {
            // A command behind it has been answered, so it has been seen.
            rig.io.ok(&with_sgl(command::flush(2), 9, none()), &[]);
            assert_eq!(rig.abort(cid), IMMEDIATE);
            assert_eq!(rig.response(), (cid, Status::ABORT_REQUESTED));
        }
        fill(request, 7);
        assert_eq!(rig.io.recv().data(), [7; 32 << 10]);
        assert_eq!(rig.response(), (1, Status::SUCCESS));
        rig.end();
    }
}

fn none() -> SglDescriptor {
    SglDescriptor::transport(0)
}

#[test]
fn a_command_whose_capsule_waits_for_a_buffer_is_aborted() {
    const LEN: usize = 16 << 10;
    for digests in [Digests::default(), Digests::BOTH] {
        let mut config = config();
        config.max_transfer = 32 << 10;
        config.buffer_bytes = (64 << 10) * config.reactors;
        let mut rig = rig_with(config, info(), digests);
        let data = pattern(1, LEN);
        // The pool and the reserve for capsules, until nothing is taken any more.
        let mut sent = 0;
        for cid in 1..=30 {
            rig.io.submit(&by_hand(write_in_capsule(cid, 0, 32)), &data);
            sent = cid;
        }
        // One has its buffer from the pool, 16 have theirs from the reserve; the backend is given
        // three quarters of what the pool has.
        let mut held = rig.step.take(3);
        let stuck = 18;
        // Those behind it have not been read: nobody knows them.
        assert_eq!(rig.abort(stuck + 1), NOT_IMMEDIATE);
        eventually("it is aborted", || rig.abort(stuck) == IMMEDIATE);
        assert_eq!(rig.response(), (stuck, Status::ABORT_REQUESTED));
        // Its data is thrown away, and what follows is understood.
        let mut done = vec![stuck];
        while done.len() < usize::from(sent) {
            let request = held.pop().unwrap_or_else(|| rig.step.next());
            assert!(request.data() == data);
            request.complete(Ok(()));
            let (cid, status) = rig.response();
            assert_eq!(status, Status::SUCCESS);
            done.push(cid);
        }
        done.sort_unstable();
        assert!(done.iter().copied().eq(1..=sent));
        rig.end();
    }
}

#[test]
fn a_command_whose_data_comes_in_the_capsule_is_aborted() {
    for (config, digests) in configs()
        .into_iter()
        .zip([Digests::default(), Digests::BOTH])
    {
        let mut rig = rig_with(config, info(), digests);
        let capsule = digests.capsule(&by_hand(write_in_capsule(1, 0, 16)), &[1; 8192]);
        rig.io.send(&capsule[..capsule.len() - 700]);
        eventually("it has a buffer", || rig.target.stats().buffers_lent > 0);
        assert_eq!(rig.abort(1), IMMEDIATE);
        assert_eq!(rig.response(), (1, Status::ABORT_REQUESTED));
        eventually("its buffer is back", || {
            rig.target.stats().buffers_lent == 0
        });
        rig.io.send(&capsule[capsule.len() - 700..]);
        rig.end();
    }
}

/// The host has been asked for data and sends it, whatever else it asks for: the answer waits for
/// the data, and the data goes nowhere.
#[test]
fn a_command_whose_data_has_been_asked_for_is_aborted_behind_it() {
    for (config, digests) in configs()
        .into_iter()
        .zip([Digests::default(), Digests::BOTH])
    {
        let mut rig = rig_with(config, info(), digests);
        rig.io.submit(&by_hand(write_by_r2t(1, 0, 64)), &[]);
        let r2t = rig.io.recv().r2t();
        let data = pattern(1, 32 << 10);
        rig.io
            .send(&digests.h2c_data(&r2t, 0, &data[..4096], false));
        assert_eq!(rig.abort(1), NOT_IMMEDIATE);
        assert_eq!(rig.abort(1), NOT_IMMEDIATE, "it is under way already");
        // The memory does not wait for the host.
        eventually("its buffer is back", || {
            rig.target.stats().buffers_lent == 0
        });
        let rest = digests.h2c_data(&r2t, 4096, &data[4096..], true);
        rig.io.send(&rest);
        assert_eq!(rig.response(), (1, Status::ABORT_REQUESTED));
        rig.end();
    }
}

#[test]
fn a_command_of_several_steps_takes_no_further_one() {
    for config in configs() {
        let mut info = info();
        info.caps.write_zeroes = Support::Emulate;
        let mut rig = rig(config, info);
        let sqe = with_sgl(command::write_zeroes(2, 0, 4096, false), 1, none());
        rig.io.submit(&sqe, &[]);
        let request = rig.step.next();
        assert!(matches!(request.op(), Op::Write { .. }));
        assert_eq!(rig.abort(1), NOT_IMMEDIATE);
        request.complete(Ok(()));
        assert_eq!(rig.response(), (1, Status::ABORT_REQUESTED));
        rig.end();
    }
}

#[test]
fn an_asynchronous_event_request_is_aborted() {
    let mut rig = rig(config(), info());
    for cid in [11, 12] {
        rig.admin.submit(&event_request(cid), &[]);
    }
    rig.admin.submit(&abort(0, 11), &[]);
    let aborted = rig.admin.recv().cqe();
    assert_eq!(aborted.cid, 11, "before the answer to the Abort");
    assert_eq!(aborted.status, Status::ABORT_REQUESTED);
    let answer = rig.admin.recv().cqe();
    assert_eq!((answer.cid, answer.result), (ABORT, IMMEDIATE));
    let again = rig.admin.ok(&abort(0, 11), &[]).result;
    assert_eq!(again, NOT_IMMEDIATE);
    rig.end();
}

#[test]
fn an_admin_command_that_waits_for_a_buffer_is_aborted() {
    let mut config = config();
    config.reactors = 1;
    config.max_transfer = 8192;
    config.in_capsule = 8192;
    config.buffer_bytes = 16 << 10;
    let mut rig = rig(config, info());
    // Every queue gets its first buffer in any case, until there are none.
    let mut queues = Vec::new();
    for qid in 2..=5 {
        let mut queue = Raw::io(rig.address, rig.cntlid, qid);
        queue.submit(&by_hand(read(1, 0, 8)), &[]);
        eventually("it has a buffer", || {
            rig.target.stats().buffers_lent == (queues.len() + 1) * 4096
        });
        queues.push(queue);
    }
    // The backend is given three quarters of them.
    let held = rig.step.take(3);
    let identify = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    let sqe = with_sgl(identify, 21, SglDescriptor::transport(4096));
    rig.admin.submit(&sqe, &[]);
    rig.admin.submit(&abort(0, 21), &[]);
    let aborted = rig.admin.recv().cqe();
    assert_eq!(aborted.cid, 21, "before the answer to the Abort");
    assert_eq!(aborted.status, Status::ABORT_REQUESTED);
    let answer = rig.admin.recv().cqe();
    assert_eq!((answer.cid, answer.result), (ABORT, IMMEDIATE));
    for request in held {
        fill(request, 1);
    }
    fill(rig.step.next(), 1);
    assert_eq!(rig.admin.read(&sqe).len(), 4096);
    drop(queues);
    rig.end();
}

/// A lane that holds up its reactor until the test lets it go, or lets it fall.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Held>, Condvar)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Reactor,
    Released,
    Broken,
}

impl Gate {
    fn set(&self, held: Held) {
        *self.0.0.lock().unwrap() = held;
        self.0.1.notify_all();
    }

    fn wait_while(&self, held: Held) -> Held {
        let state = self.0.0.lock().unwrap();
        *self.0.1.wait_while(state, |state| *state == held).unwrap()
    }
}

impl Namespace for Gate {
    fn info(&self) -> NsInfo {
        info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Lane for Gate {
    fn submit(&mut self, request: Request) {
        self.set(Held::Reactor);
        let then = self.wait_while(Held::Reactor);
        assert_ne!(then, Held::Broken, "the reactor falls");
        request.complete(Ok(()));
    }
}

/// A rig whose I/O queue's reactor stands still.
fn held_rig(gate: &Gate) -> Rig {
    let mut rig = rig(config(), info());
    rig.target.add_namespace(NQN, 3, gate.clone()).unwrap();
    let mut flushing = write_in_capsule(1, 0, 1);
    flushing.set_nsid(3);
    rig.io.submit(&flushing, &[0; 512]);
    gate.wait_while(Held::Nothing);
    rig
}

#[test]
fn aborts_that_wait_for_an_answer_are_limited() {
    let gate = Gate::default();
    let mut rig = held_rig(&gate);
    let identify = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    let controller = with_sgl(identify, 3, SglDescriptor::transport(4096));
    let limit = u16::from(rig.admin.read(&controller)[258]) + 1;
    for i in 0..limit + 2 {
        let mut sqe = abort(1, 100 + i);
        sqe.set_cid(ABORT + i);
        rig.admin.submit(&sqe, &[]);
    }
    for i in [limit, limit + 1] {
        let refused = rig.admin.recv().cqe();
        assert_eq!(refused.cid, ABORT + i);
        assert_eq!(refused.status, Status::ABORT_LIMIT_EXCEEDED);
    }
    // One that needs nobody else's answer does not count; and an Abort cannot be aborted.
    let mut own = abort(0, ABORT);
    own.set_cid(50);
    assert_eq!(rig.admin.ok(&own, &[]).result, NOT_IMMEDIATE);
    gate.set(Held::Released);
    for i in 0..limit {
        let answer = rig.admin.recv().cqe();
        assert_eq!((answer.cid, answer.result), (ABORT + i, NOT_IMMEDIATE));
    }
    assert_eq!(rig.response(), (1, Status::SUCCESS));
    rig.end();
}

#[test]
fn an_abort_is_answered_even_if_nobody_is_left_to_do_it() {
    let gate = Gate::default();
    let mut rig = held_rig(&gate);
    rig.admin.submit(&abort(1, 1), &[]);
    // The Abort has been taken: a command behind it is answered.
    rig.admin.ok(&command::keep_alive(), &[]);
    gate.set(Held::Broken);
    let answer = rig.admin.recv().cqe();
    assert_eq!((answer.cid, answer.result), (ABORT, NOT_IMMEDIATE));
    drop((rig.admin, rig.io));
    assert_idle(&rig.target);
}

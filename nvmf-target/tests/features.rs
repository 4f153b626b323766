//! Features that change what becomes of I/O, on a backend whose every request is ended by hand.

mod common;

use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, pattern, target};
use nvmf_host::{Controller, Data, IoQueue, Token, command};
use nvmf_proto::wire::feature::{
    AsyncEventConfig, Fid, GetFeatures, HostBehavior, SetFeatures, Timestamp, TimestampOrigin,
};
use nvmf_proto::wire::identify::Nsattr;
use nvmf_proto::wire::log::AsyncEvent;
use nvmf_proto::wire::{Sqe, Status};
use nvmf_target::Target;
use nvmf_target::ns::{NsInfo, Op};
use std::time::Duration;

/// A target whose namespace 2 has a volatile cache and is run by hand, and a host of it.
struct Rig {
    target: Target,
    step: Step,
    controller: Controller,
    queue: IoQueue,
}

fn rig() -> Rig {
    let (target, address) = target(config());
    let step = Step::new(NsInfo::new(512, 4096).with_volatile_cache());
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let queue = controller.io_queue(1).unwrap();
    Rig {
        target,
        step,
        controller,
        queue,
    }
}

impl Rig {
    fn submit(&mut self, sqe: Sqe, data: Data) -> Token {
        let token = self.queue.queue().submit(sqe, data).unwrap();
        self.queue.queue().flush().unwrap();
        token
    }

    fn write(&mut self) -> Token {
        let data = Data::Write(pattern(1, 4096));
        self.submit(command::write(2, 0, 8), data)
    }

    fn set(&mut self, nsid: u32, fid: Fid, value: u32) -> Token {
        let sqe = command::set_features(nsid, &SetFeatures::new(fid, value));
        let admin = self.controller.admin_queue();
        let token = admin.submit(sqe, Data::None).unwrap();
        admin.flush().unwrap();
        token
    }

    /// The next request of the backend is this one, and it succeeds.
    fn expect(&self, op: Op) {
        let request = self.step.next();
        assert_eq!(request.op(), op);
        request.complete(Ok(()));
    }

    fn status(&mut self, token: Token) -> Status {
        self.queue
            .queue()
            .wait_for("command", token)
            .unwrap()
            .status()
    }

    fn admin_status(&mut self, token: Token) -> Status {
        let admin = self.controller.admin_queue();
        admin.wait_for("command", token).unwrap().status()
    }

    fn end(self) {
        drop((self.controller, self.queue));
        assert_idle(&self.target);
    }
}

const PLAIN: Op = Op::Write { fua: false };

#[test]
fn without_a_write_cache_every_write_is_safe_when_it_is_over() {
    let mut rig = rig();
    let token = rig.write();
    rig.expect(PLAIN);
    assert_eq!(rig.status(token), Status::SUCCESS);

    // What is in the cache now has to be safe first.
    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 0);
    let flush = rig.step.next();
    assert_eq!(flush.op(), Op::Flush);
    assert_eq!(rig.controller.admin_queue().progress().unwrap(), 0);
    flush.complete(Ok(()));
    assert_eq!(rig.admin_status(set), Status::SUCCESS);

    let token = rig.write();
    rig.expect(PLAIN);
    rig.expect(Op::Flush);
    assert_eq!(rig.status(token), Status::SUCCESS);
    let zeroes = rig.submit(command::write_zeroes(2, 0, 8, false), Data::None);
    rig.expect(PLAIN);
    rig.expect(Op::Flush);
    assert_eq!(rig.status(zeroes), Status::SUCCESS);

    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 1);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);
    let token = rig.write();
    rig.expect(PLAIN);
    assert_eq!(rig.status(token), Status::SUCCESS);
    assert_eq!(rig.step.pending(), 0);
    rig.end();
}

/// A write that began before goes without FUA: the Flush comes behind it. Of a longer command that
/// goes for what is under way, and the rest is flushed in the end.
#[test]
fn a_write_cache_is_off_when_what_was_being_written_is_safe() {
    let mut rig = rig();
    let early = rig.write();
    let write = rig.step.next();
    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 0);
    eventually("it waits", || rig.target.stats().in_flight == 2);
    assert_eq!(rig.step.pending(), 0, "a Flush that may miss the write");
    write.complete(Ok(()));
    assert_eq!(rig.status(early), Status::SUCCESS);
    rig.expect(Op::Flush);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);

    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 1);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);
    let zeroes = rig.submit(command::write_zeroes(2, 0, 1024, false), Data::None);
    let first = rig.step.next();
    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 0);
    eventually("it waits", || rig.target.stats().in_flight == 2);
    first.complete(Ok(()));
    let mut ops = Vec::new();
    while ops.iter().filter(|&&op| op == Op::Flush).count() < 2 {
        let request = rig.step.next();
        ops.push(request.op());
        request.complete(Ok(()));
    }
    assert_eq!(rig.status(zeroes), Status::SUCCESS);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);
    assert_eq!(ops.len(), 3 + 2, "{ops:?}");
    rig.end();
}

#[test]
fn a_write_cache_that_cannot_be_flushed_is_not_off_without_a_word() {
    let mut rig = rig();
    let set = rig.set(0, Fid::VOLATILE_WRITE_CACHE, 0);
    rig.step.next().complete(Err(Status::WRITE_FAULT));
    assert_eq!(rig.admin_status(set), Status::WRITE_FAULT);
    rig.end();
}

#[test]
fn a_namespace_is_protected_when_what_was_being_written_is_safe() {
    let mut rig = rig();
    let mut other = connect(rig.controller.options().address);
    other
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
        .unwrap();
    rig.controller
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
        .unwrap();
    for host in [&mut other, &mut rig.controller] {
        host.submit_event_request().unwrap();
    }
    let read_only = Status::NAMESPACE_WRITE_PROTECTED.dnr();

    let early = rig.write();
    let write = rig.step.next();
    let set = rig.set(2, Fid::NAMESPACE_WRITE_PROTECTION, 1);
    // From now on nothing is written, and the host is not told so before the last write is over.
    eventually("the namespace is protected", || {
        let id = other.identify_namespace(2).unwrap();
        id.nsattr.contains(Nsattr::WRITE_PROTECTED)
    });
    let late = rig.write();
    assert_eq!(rig.status(late), read_only);
    assert_eq!(rig.controller.admin_queue().progress().unwrap(), 0);
    write.complete(Ok(()));
    rig.expect(Op::Flush);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);
    assert_eq!(rig.status(early), Status::SUCCESS);

    // The other host hears of it, and this one knows.
    let event = other.poll_event(PATIENCE).unwrap();
    assert_eq!(event, Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED));
    assert_eq!(rig.controller.poll_event(Duration::ZERO).unwrap(), None);

    let read = rig.submit(command::read(2, 0, 8), Data::Read(vec![0; 4096]));
    rig.expect(Op::Read);
    assert_eq!(rig.status(read), Status::SUCCESS);
    let set = rig.set(2, Fid::NAMESPACE_WRITE_PROTECTION, 0);
    assert_eq!(rig.admin_status(set), Status::SUCCESS);
    let token = rig.write();
    rig.expect(PLAIN);
    assert_eq!(rig.status(token), Status::SUCCESS);
    drop(other);
    rig.end();
}

#[test]
fn values_that_are_data_go_both_ways() {
    let (target, address) = target(config());
    let mut host = connect(address);
    let set = |host: &mut Controller, fid, data: &[u8]| {
        let sqe = command::set_features(0, &SetFeatures::new(fid, 0));
        let done = host.raw(sqe, Data::Write(data.to_vec())).unwrap();
        done.status()
    };
    let get = |host: &mut Controller, fid, len| {
        let sqe = command::get_features(0, &GetFeatures::new(fid));
        let done = host.raw(sqe, Data::Read(vec![0; len])).unwrap();
        assert_eq!(done.status(), Status::SUCCESS);
        done.buffer
    };
    let year_2100 = 4_102_444_800_000u64;
    let status = set(&mut host, Fid::TIMESTAMP, &year_2100.to_le_bytes());
    assert_eq!(status, Status::SUCCESS);
    let bytes = get(&mut host, Fid::TIMESTAMP, 8).try_into().unwrap();
    let now = Timestamp(u64::from_le_bytes(bytes));
    assert_eq!(now.origin(), TimestampOrigin::HOST);
    assert!((year_2100..year_2100 + 3_600_000).contains(&now.milliseconds()));

    let mut behavior = [0; HostBehavior::SIZE];
    behavior[0] = 1;
    let status = set(&mut host, Fid::HOST_BEHAVIOR, &behavior);
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(get(&mut host, Fid::HOST_BEHAVIOR, 512), behavior);
    // Lengths are exact.
    for len in [0, 7, 9, 4096] {
        let status = set(&mut host, Fid::TIMESTAMP, &vec![0; len]);
        assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr(), "{len}");
    }
    drop(host);
    assert_idle(&target);
}

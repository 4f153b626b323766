//! Reservations that are taken away while commands are under way.

mod common;

use common::raw::{self, Raw};
use common::reserving::{
    CONFLICT, EXCLUSIVE_ACCESS, Host, WRITE_EXCLUSIVE, completions, preempt_and_abort,
};
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, eventually, pattern};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::reservation::{AcquireAction, ReleaseAction};
use nvmf_host::{Data, command};
use nvmf_target::ns::{NsInfo, Op};
use nvmf_target::{SubsystemConfig, Target};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A target whose only namespace does what the test says. It has a volatile cache and no FUA.
fn step_target() -> (Target, SocketAddr, Step) {
    let _ = env_logger::builder().is_test(true).try_init();
    let target = Target::new(config()).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let step = Step::new(NsInfo::new(512, 2048).with_volatile_cache());
    target.add_namespace(NQN, 1, step.clone()).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    (target, address, step)
}

#[test]
fn a_command_that_has_begun_ends_without_a_conflict() {
    let (_target, address, step) = step_target();
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    a.register();
    let fua = command::with_fua(command::write(1, 0, 1));
    for conflict in [EXCLUSIVE_ACCESS, WRITE_EXCLUSIVE] {
        let queue = b.queue.queue();
        queue
            .submit_tagged(fua, Data::Write(vec![1; 512]), 1)
            .unwrap();
        queue.flush().unwrap();
        let write = step.next();
        assert_eq!(a.acquire(conflict), Status::SUCCESS);
        write.complete(Ok(()));
        let flush = step.next();
        assert_eq!(flush.op(), Op::Flush);
        flush.complete(Ok(()));
        assert_eq!(completions(&mut b, 1), [(1, Status::SUCCESS)]);
        // The next one has not.
        assert_eq!(b.write(), CONFLICT);
        assert_eq!(a.release(ReleaseAction::RELEASE, conflict), Status::SUCCESS);
    }
}

#[test]
fn preempt_and_abort_waits_for_the_backend() {
    let (target, address, step) = step_target();
    let [mut a, mut b, mut witness] = [1, 2, 1].map(|number| Host::new(address, number));
    a.register();
    b.register();
    step.set_withdraws(true);
    let ns = b.ns;
    for lba in 0..2 {
        b.queue.submit_write(&ns, lba, vec![1; 512], lba).unwrap();
    }
    b.queue.queue().flush().unwrap();
    // One is under way, one has not been begun.
    let under_way = step.next();
    eventually("both are in the backend", || step.pending() == 1);
    preempt_and_abort(&mut a, b.key);
    assert_eq!(completions(&mut b, 1), [(1, Status::ABORT_REQUESTED)]);
    // The change is made, whoever asks; but it is not completed.
    let report = witness.report();
    assert_eq!(
        (report.status.registrants, report.registrants[0].hostid),
        (1, a.id)
    );
    assert_eq!(a.queue.poll(Duration::from_millis(50)).unwrap().count(), 0);
    under_way.complete(Ok(()));
    assert_eq!(completions(&mut b, 1), [(0, Status::SUCCESS)]);
    assert_eq!(completions(&mut a, 1), [(99, Status::SUCCESS)]);
    drop((a, b, witness));
    assert_idle(&target);
}

#[test]
fn preempt_and_abort_waits_for_what_a_lost_connection_left_in_the_backend() {
    let (target, address, step) = step_target();
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    a.register();
    b.register();
    let ns = b.ns;
    b.queue.submit_write(&ns, 0, vec![1; 512], 0).unwrap();
    b.queue.queue().flush().unwrap();
    let under_way = step.next();
    let (key, before) = (b.key, target.stats().connections);
    drop(b);
    // Its I/O connection stays until the backend is done; that it is closed shows in its fellow.
    eventually("the admin queue is gone", || {
        target.stats().connections < before
    });
    preempt_and_abort(&mut a, key);
    let mut witness = Host::new(address, 1);
    eventually("the change is made", || {
        witness.report().status.registrants == 1
    });
    assert_eq!(a.queue.poll(Duration::from_millis(50)).unwrap().count(), 0);
    under_way.complete(Ok(()));
    assert_eq!(completions(&mut a, 1), [(99, Status::SUCCESS)]);
    drop((a, witness));
    assert_idle(&target);
}

#[test]
fn preempt_and_abort_does_not_wait_for_a_host_that_owes_data() {
    let (_target, address) = common::target(config());
    let mut a = Host::new(address, 1);
    let (_admin, cntlid) = Raw::admin(address);
    let mut dead = Raw::io(address, cntlid, 1);
    let mut twin = Host::new(address, raw::HOSTID[0]);
    assert_eq!(twin.id, raw::HOSTID);
    a.register();
    twin.register();
    a.queue.write(&a.ns, 3, &[7; 512]).unwrap();
    dead.submit(&raw::write_by_r2t(5, 3, 1), &[]);
    let r2t = dead.recv().r2t();
    assert_eq!(a.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    let key = twin.key;
    let status = a.acquire_with(AcquireAction::PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, key);
    assert_eq!(status, Status::SUCCESS);
    // The data comes at last, and goes nowhere.
    let data = raw::Digests::default().h2c_data(&r2t, 0, &[9; 512], true);
    dead.send(&data);
    let cqe = dead.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (5, Status::ABORT_REQUESTED));
    let mut block = [0; 512];
    a.queue.read(&a.ns, 3, &mut block).unwrap();
    assert_eq!(block, [7; 512]);
}

#[test]
fn preempt_and_abort_under_load() {
    const BLOCKS: u64 = 64;
    const BYTES: usize = 64 * 512;
    let (target, address) = common::target(config());
    let mut a = Host::new(address, 1);
    a.register();
    for round in 0..20 {
        // Two controllers of the other host write everywhere until they are told not to.
        let mut others = [2, 2].map(|number| Host::new(address, number));
        others[0].register();
        assert_eq!(others[0].acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
        let key = others[0].key;
        let begun = AtomicBool::new(false);
        let (begun, ours) = (&begun, pattern(round, BYTES));
        thread::scope(|scope| {
            for other in others {
                scope.spawn(move || {
                    // All of it, with the admin queue.
                    let mut other = other;
                    let ns = other.ns;
                    let mut statuses = Vec::new();
                    for lba in (0..BLOCKS).cycle() {
                        if other.queue.queue().outstanding() < 32 {
                            other
                                .queue
                                .submit_write(&ns, lba, vec![0xee; 512], 0)
                                .unwrap();
                        }
                        let done = other.queue.poll(Duration::ZERO).unwrap();
                        statuses.extend(done.map(|done| done.status()));
                        begun.fetch_or(statuses.len() > 100, Ordering::Relaxed);
                        if statuses.contains(&CONFLICT) {
                            break;
                        }
                    }
                    while other.queue.queue().outstanding() > 0 {
                        let done = other.queue.poll(PATIENCE).unwrap();
                        statuses.extend(done.map(|done| done.status()));
                    }
                    let expected = [Status::SUCCESS, Status::ABORT_REQUESTED, CONFLICT];
                    assert!(statuses.iter().all(|status| expected.contains(status)));
                });
            }
            eventually("they write", || begun.load(Ordering::Relaxed));
            let status = a.acquire_with(AcquireAction::PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, key);
            assert_eq!(status, Status::SUCCESS);
            a.queue.write(&a.ns, 0, &ours).unwrap();
        });
        let mut back = vec![0; ours.len()];
        a.queue.read(&a.ns, 0, &mut back).unwrap();
        assert!(back == ours, "something was written after the completion");
        assert_eq!(
            a.release(ReleaseAction::RELEASE, EXCLUSIVE_ACCESS),
            Status::SUCCESS
        );
    }
    drop(a);
    assert_idle(&target);
}

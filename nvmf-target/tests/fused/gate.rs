//! Between the halves nothing else writes, and what waits for that gets on whatever happens.

use super::{FAILED, MISCOMPARE, SUCCESS, Way, aborts, completions, made, submit, target};
use crate::common::raw::{self, Raw};
use crate::common::step::Step;
use crate::common::{self, NQN, assert_idle, config, connect, eventually};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_target::ns::{Namespace, NsInfo, Op};
use nvmf_target::{Change, NamespaceConfig};
use std::sync::Arc;
use std::thread;

/// Many hosts on several reactors count by Compare and Write: none of their steps is lost, even
/// though others write around them.
#[test]
fn it_is_atomic() {
    const HOSTS: u64 = 4;
    const STEPS: u64 = 50;
    let (target, address) = target();
    for nsid in [1, 2] {
        let counting: Vec<_> = (0..HOSTS)
            .map(|_| {
                thread::spawn(move || {
                    let mut controller = connect(address);
                    controller.set_queue_count(1).unwrap();
                    let ns = controller.namespace(nsid).unwrap();
                    let mut queue = controller.io_queue(1).unwrap();
                    let mut block = vec![0; 512];
                    let mut steps = 0;
                    while steps < STEPS {
                        let mut next = block.clone();
                        let count = u64::from_le_bytes(*block.first_chunk().unwrap()) + 1;
                        next[..8].copy_from_slice(&count.to_le_bytes());
                        let [first, second] = queue
                            .compare_and_write(&ns, 5, block.clone(), next.clone())
                            .unwrap();
                        if first == SUCCESS {
                            assert_eq!(second, SUCCESS);
                            steps += 1;
                            block = next;
                        } else {
                            assert_eq!((first, second), (MISCOMPARE, FAILED));
                            queue.read(&ns, 5, &mut block).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut controller = connect(address);
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(nsid).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        while counting.iter().any(|host| !host.is_finished()) {
            queue.write(&ns, 6, &[1; 512]).unwrap();
        }
        counting.into_iter().for_each(|host| host.join().unwrap());
        let mut block = vec![0; 512];
        queue.read(&ns, 5, &mut block).unwrap();
        let count = u64::from_le_bytes(*block.first_chunk().unwrap());
        assert_eq!(count, HOSTS * STEPS);
    }
    assert_idle(&target);
}

/// A pair keeps others out as long as its requests are with the backend, also where that has been
/// removed and attached anew meanwhile.
#[test]
fn it_is_atomic_across_a_removal() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let backend: Arc<dyn Namespace> = Arc::new(step.clone());
    let add = || Change::AddNamespace {
        nqn: NQN.to_owned(),
        config: NamespaceConfig::new(2),
        namespace: Arc::clone(&backend),
    };
    target.apply(vec![add()]).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let mut queues: Vec<_> = (1..=2).map(|qid| Raw::io(address, cntlid, qid)).collect();
    let [first, second] = command::compare_and_write(2, 0, 1);
    submit(&mut queues[0], first, 1, &[0; 512], Way::Capsule);
    submit(&mut queues[0], second, 2, &[9; 512], Way::Capsule);
    let mut compare = step.next();
    compare.data_mut().fill(0);
    compare.complete(Ok(()));
    let write = step.next();
    let remove = Change::RemoveNamespace {
        nqn: NQN.to_owned(),
        nsid: 2,
    };
    target.apply(vec![remove, add()]).unwrap();
    let other = made(command::write(2, 0, 1), 3, 512, Way::Capsule);
    queues[1].submit(&other, &[1; 512]);
    queues[1].ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    assert_eq!(step.pending(), 0, "a write came between the halves");
    write.complete(Ok(()));
    let write = step.next();
    assert_eq!(write.data(), [1; 512]);
    write.complete(Ok(()));
    assert_eq!(completions(&mut queues[1], 1), [(3, SUCCESS)]);
    drop((queues, admin));
    assert_idle(&target);
}

/// A read reaches the backend at once, and ends.
fn assert_reads(queue: &mut Raw, step: &Step) {
    let sgl = SglDescriptor::transport(512);
    queue.submit(&raw::with_sgl(command::read(2, 50, 1), 4, sgl), &[]);
    let mut read = step.next();
    assert_eq!((read.op(), read.lba_range().slba), (Op::Read, 50));
    read.data_mut().fill(0);
    read.complete(Ok(()));
    queue.recv().data();
    queue.recv().cqe();
}

/// A namespace that is run by hand: what reaches the backend, and what waits for the gate.
#[test]
fn other_writes_wait_until_both_halves_are_done() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 1 << 20).with_volatile_cache());
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    // Queues go to both reactors.
    let mut queues: Vec<_> = (1..=4).map(|qid| Raw::io(address, cntlid, qid)).collect();
    let plain = |slba| made(command::write(2, slba, 1), 3, 512, Way::Capsule);
    for queue in &mut queues[1..] {
        queue.submit(&plain(100), &[1; 512]);
    }
    let before = step.take(3);
    let [first, second] = command::compare_and_write(2, 0, 1);
    submit(&mut queues[0], first, 1, &[0; 512], Way::Capsule);
    submit(
        &mut queues[0],
        command::with_fua(second),
        2,
        &[9; 512],
        Way::Capsule,
    );
    // Reads go on, and nothing is compared while there are writes.
    for write in before {
        assert_reads(&mut queues[0], &step);
        write.complete(Ok(()));
    }
    for queue in &mut queues[1..] {
        assert_eq!(queue.recv().cqe().cid, 3);
    }
    let mut compare = step.next();
    assert_eq!((compare.op(), compare.lba_range().slba), (Op::Read, 0));
    // Now it is the others that wait; one of them is another such operation.
    queues[1].submit(&plain(101), &[1; 512]);
    queues[2].submit(&plain(102), &[1; 512]);
    let [other_first, other_second] = command::compare_and_write(2, 0, 1);
    submit(&mut queues[3], other_first, 1, &[0; 512], Way::Capsule);
    submit(&mut queues[3], other_second, 2, &[8; 512], Way::Capsule);
    for queue in &mut queues[1..] {
        queue.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    }
    assert_eq!(step.pending(), 0);
    compare.data_mut().fill(0);
    compare.complete(Ok(()));
    let write = step.next();
    assert_eq!(write.op(), Op::Write { fua: false });
    assert_eq!(write.data(), [9; 512]);
    assert_eq!(step.pending(), 0);
    write.complete(Ok(()));
    let flush = step.next();
    assert_eq!(flush.op(), Op::Flush);
    assert_eq!(step.pending(), 0);
    flush.complete(Ok(()));
    assert_eq!(completions(&mut queues[0], 2), [(1, SUCCESS), (2, SUCCESS)]);
    // What has waited goes on before the other operation begins.
    let waited = step.take(2);
    let mut slbas: Vec<_> = waited.iter().map(|write| write.lba_range().slba).collect();
    slbas.sort_unstable();
    assert_eq!(slbas, [101, 102]);
    waited.into_iter().for_each(|write| write.complete(Ok(())));
    let mut compare = step.next();
    compare.data_mut().fill(9);
    compare.complete(Ok(()));
    assert_eq!(
        completions(&mut queues[3], 2),
        [(1, MISCOMPARE), (2, FAILED)]
    );
    drop((admin, queues));
    assert_idle(&target);
}

/// Hosts that vanish and namespaces that go do not leave the gate closed.
#[test]
fn the_gate_opens_whatever_happens() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 1 << 20));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, cntlid) = Raw::admin(address);
    let mut other = Raw::io(address, cntlid, 1);
    let plain = made(command::write(2, 100, 1), 3, 512, Way::Capsule);
    let [first, second] = command::compare_and_write(2, 0, 1);
    for fails in [false, true] {
        // The host goes while the backend compares.
        let mut queue = Raw::io(address, cntlid, 2);
        submit(&mut queue, first, 1, &[0; 512], Way::Capsule);
        submit(&mut queue, second, 2, &[9; 512], Way::Capsule);
        let compare = step.next();
        other.submit(&plain, &[1; 512]);
        other.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
        assert_eq!(step.pending(), 0);
        if fails {
            compare.complete(Err(Status::UNRECOVERED_READ_ERROR));
            let want = [(1, Status::UNRECOVERED_READ_ERROR), (2, FAILED)];
            assert_eq!(completions(&mut queue, 2), want);
        } else {
            drop(queue);
            eventually("the queue is closed", || target.stats().connections == 3);
            compare.complete(Err(Status::UNRECOVERED_READ_ERROR));
        }
        step.next().complete(Ok(()));
        assert_eq!(other.recv().cqe().cid, 3);
    }
    // The namespace goes while the backend compares, and while others wait.
    let mut queue = Raw::io(address, cntlid, 3);
    submit(&mut queue, first, 1, &[0; 512], Way::Capsule);
    submit(&mut queue, second, 2, &[9; 512], Way::Capsule);
    let mut compare = step.next();
    other.submit(&plain, &[1; 512]);
    other.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    target.remove_namespace(NQN, 2).unwrap();
    compare.data_mut().fill(0);
    compare.complete(Ok(()));
    let gone = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(completions(&mut queue, 2), [(1, gone), (2, FAILED)]);
    // What had passed its checks before is finished.
    step.next().complete(Ok(()));
    assert_eq!(other.recv().cqe().cid, 3);
    eventually("the target lets go of it", || !step.is_held());
}

/// Another namespace under the NSID when the gate is closed has a gate of its own.
#[test]
fn a_pair_does_not_go_over_to_another_namespace() {
    let (target, address) = common::target(config());
    let old = Step::new(NsInfo::new(512, 1 << 20));
    target.add_namespace(NQN, 2, old.clone()).unwrap();
    let (_admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    let plain = made(command::write(2, 100, 1), 3, 512, Way::Capsule);
    queue.submit(&plain, &[1; 512]);
    let writing = old.next();
    let [first, second] = command::compare_and_write(2, 0, 1);
    submit(&mut queue, first, 1, &[0; 512], Way::Capsule);
    submit(&mut queue, second, 2, &[9; 512], Way::Capsule);
    queue.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    target.remove_namespace(NQN, 2).unwrap();
    let new = Step::new(NsInfo::new(512, 1 << 20));
    target.add_namespace(NQN, 2, new.clone()).unwrap();
    writing.complete(Ok(()));
    let gone = Status::INVALID_NAMESPACE.dnr();
    let want = [(1, gone), (2, FAILED), (3, SUCCESS)];
    assert_eq!(completions(&mut queue, 3), want);
    assert_eq!(new.pending(), 0);
}

/// A write that waits for the gate is withdrawn; so is the wish to close it, in its own time.
#[test]
fn what_waits_for_the_gate_may_go_away() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 1 << 20));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (mut admin, cntlid) = Raw::admin(address);
    let mut parked = Raw::io(address, cntlid, 1);
    let mut holder = Raw::io(address, cntlid, 2);
    let mut next = Raw::io(address, cntlid, 3);
    let [first, second] = command::compare_and_write(2, 0, 1);
    for queue in [&mut holder, &mut next] {
        submit(queue, first, 1, &[0; 512], Way::Capsule);
        submit(queue, second, 2, &[9; 512], Way::Capsule);
        queue.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    }
    let compare = step.next();
    for cid in [3, 4] {
        parked.submit(
            &made(command::write(2, 100, 1), cid, 512, Way::Capsule),
            &[1; 512],
        );
    }
    parked.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    assert!(aborts(&mut admin, 3));
    assert_eq!(completions(&mut parked, 1), [(3, Status::ABORT_REQUESTED)]);
    // Everybody goes but the one whose turn it is.
    drop((admin, parked, next));
    eventually("they are gone", || target.stats().connections < 4);
    compare.complete(Err(Status::UNRECOVERED_READ_ERROR));
    let write = step.next();
    assert_eq!(write.op(), Op::Write { fua: false });
    write.complete(Ok(()));
    drop(holder);
    assert_idle(&target);
    assert_eq!(step.pending(), 0);
}

/// A shutdown waits for what waits for the gate.
#[test]
fn a_shutdown_lets_pairs_and_what_waits_for_them_finish() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 1 << 20));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, cntlid) = Raw::admin(address);
    let mut queues: Vec<_> = (1..=3).map(|qid| Raw::io(address, cntlid, qid)).collect();
    let [first, second] = command::compare_and_write(2, 0, 1);
    for queue in &mut queues[..2] {
        submit(queue, first, 1, &[0; 512], Way::Capsule);
        submit(queue, second, 2, &[9; 512], Way::Capsule);
        queue.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    }
    let mut compare = step.next();
    let plain = made(command::write(2, 100, 1), 3, 512, Way::Capsule);
    queues[2].submit(&plain, &[1; 512]);
    queues[2].ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
    let ending = thread::spawn(move || target.shutdown(common::PATIENCE));
    compare.data_mut().fill(0);
    compare.complete(Ok(()));
    let write = step.next();
    assert_eq!(write.data(), [9; 512]);
    write.complete(Ok(()));
    assert_eq!(completions(&mut queues[0], 2), [(1, SUCCESS), (2, SUCCESS)]);
    step.next().complete(Ok(()));
    assert_eq!(completions(&mut queues[2], 1), [(3, SUCCESS)]);
    let mut compare = step.next();
    compare.data_mut().fill(1);
    compare.complete(Ok(()));
    let want = [(1, MISCOMPARE), (2, FAILED)];
    assert_eq!(completions(&mut queues[1], 2), want);
    assert!(ending.join().unwrap());
    assert!(!step.is_held());
}

//! Fused operations: Compare and Write, over the wire and against everything else that writes.

mod common;

use common::raw::{self, Digests, Raw};
use common::step::Step;
use common::{NQN, assert_idle, config, connect, eventually, pattern};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::abort::AbortCommand;
use nvmf_host::nvmf_proto::wire::sqe::Fuse;
use nvmf_host::nvmf_proto::wire::{AdminOpcode, Cqe, SglDescriptor, Sqe, Status};
use nvmf_target::ns::{Inline, Namespace, NsInfo, Op, RamDisk, Support};
use nvmf_target::{Change, NamespaceConfig, Target};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

const SUCCESS: Status = Status::SUCCESS;
const FAILED: Status = Status::ABORTED_FAILED_FUSED;
const MISSING: Status = Status::ABORTED_MISSING_FUSED;
const INVALID: Status = Status::INVALID_FIELD.dnr();
const MISCOMPARE: Status = Status::COMPARE_FAILURE.dnr();

/// A target whose namespace 2 emulates what the first one does itself.
fn target() -> (Target, SocketAddr) {
    let (target, address) = common::target(config());
    let disk = RamDisk::new(64 << 20, 512).unwrap();
    target
        .add_namespace(NQN, 2, Inline::new(Plain(disk)))
        .unwrap();
    (target, address)
}

/// Reads and writes only.
struct Plain(RamDisk);

impl nvmf_target::ns::BlockDevice for Plain {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, (64 << 20) / 512)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), nvmf_target::ns::NsError> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8], fua: bool) -> Result<(), nvmf_target::ns::NsError> {
        self.0.write_at(at, buf, fua)
    }
}

/// How the data of a command gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Capsule,
    R2t,
}

/// A command with its CID and data pointer.
fn made(sqe: Sqe, cid: u16, len: usize, way: Way) -> Sqe {
    let len = u32::try_from(len).unwrap();
    let sgl = match way {
        Way::Capsule => SglDescriptor::in_capsule(len),
        Way::R2t => SglDescriptor::transport(len),
    };
    raw::with_sgl(sqe, cid, sgl)
}

fn submit(queue: &mut Raw, sqe: Sqe, cid: u16, data: &[u8], way: Way) {
    let sqe = made(sqe, cid, data.len(), way);
    queue.submit(&sqe, if way == Way::Capsule { data } else { &[] });
}

/// The next `count` completions, by CID.
fn completions(queue: &mut Raw, count: usize) -> Vec<(u16, Status)> {
    let cqe = |_| {
        let Cqe { cid, status, .. } = queue.recv().cqe();
        (cid, status)
    };
    let mut all: Vec<_> = (0..count).map(cqe).collect();
    all.sort_by_key(|&(cid, _)| cid);
    all
}

/// Runs a Compare and Write whose data is in the capsules.
fn compare_and_write(queue: &mut Raw, nsid: u32, slba: u64, old: &[u8], new: &[u8]) -> [Status; 2] {
    let blocks = u32::try_from(old.len() / 512).unwrap();
    let [first, second] = command::compare_and_write(nsid, slba, blocks);
    submit(queue, first, 1, old, Way::Capsule);
    submit(queue, second, 2, new, Way::Capsule);
    let all = completions(queue, 2);
    [all[0].1, all[1].1]
}

fn io(address: SocketAddr) -> (Raw, Raw) {
    let (admin, cntlid) = Raw::admin(address);
    (admin, Raw::io(address, cntlid, 1))
}

fn blocks_at(queue: &mut Raw, nsid: u32, slba: u64, blocks: u32) -> Vec<u8> {
    let sgl = SglDescriptor::transport(blocks * 512);
    queue.read(&raw::with_sgl(command::read(nsid, slba, blocks), 9, sgl))
}

#[test]
fn writes_if_nothing_differs() {
    let (target, address) = target();
    let (admin, mut queue) = io(address);
    for nsid in [1, 2] {
        let (zeroes, data, other) = (vec![0; 4096], pattern(1, 4096), pattern(2, 4096));
        let run =
            |queue: &mut Raw, old: &[u8], new: &[u8]| compare_and_write(queue, nsid, 8, old, new);
        assert_eq!(run(&mut queue, &zeroes, &data), [SUCCESS, SUCCESS]);
        assert_eq!(blocks_at(&mut queue, nsid, 8, 8), data);
        assert_eq!(run(&mut queue, &zeroes, &other), [MISCOMPARE, FAILED]);
        assert_eq!(blocks_at(&mut queue, nsid, 8, 8), data);
        let mut almost = data.clone();
        almost[4095] ^= 1;
        assert_eq!(run(&mut queue, &almost, &other), [MISCOMPARE, FAILED]);
        assert_eq!(run(&mut queue, &data, &other), [SUCCESS, SUCCESS]);
        assert_eq!(blocks_at(&mut queue, nsid, 8, 8), other);
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// The halves' data by R2T or in the capsule, with and without digests, in any order.
#[test]
fn data_comes_in_any_way_and_order() {
    let (_target, address) = target();
    let (_admin, cntlid) = Raw::admin(address);
    let mut qid = 0;
    for digests in [Digests::default(), Digests::BOTH] {
        for nsid in [1, 2] {
            qid += 1;
            let mut queue = Raw::io_with(address, cntlid, qid, digests);
            let (slba, mut seed) = (u64::from(qid) * 8, 0);
            let mut old = vec![0; 4096];
            for ways in [
                [Way::Capsule, Way::R2t],
                [Way::R2t, Way::Capsule],
                [Way::R2t, Way::R2t],
            ] {
                for backwards in [false, true] {
                    seed += 1;
                    let new = pattern(seed, 4096);
                    let sqes = command::compare_and_write(nsid, slba, 8);
                    let data = [&old, &new];
                    for (half, cid) in (0..2).zip(1..) {
                        submit(&mut queue, sqes[half], cid, data[half], ways[half]);
                    }
                    let wanted = ways.iter().filter(|way| **way == Way::R2t).count();
                    let mut r2ts: Vec<_> = (0..wanted).map(|_| queue.recv().r2t()).collect();
                    if backwards {
                        r2ts.reverse();
                    }
                    for r2t in r2ts {
                        let data = data[usize::from(r2t.cccid) - 1];
                        queue.send(&digests.h2c_data(&r2t, 0, data, true));
                    }
                    let done = completions(&mut queue, 2);
                    assert_eq!(done, [(1, SUCCESS), (2, SUCCESS)], "{ways:?}");
                    old = new;
                }
            }
            assert_eq!(blocks_at(&mut queue, nsid, slba, 8), old);
        }
    }
}

/// What stands on the queue after one another, and how each of it ends. Nothing is written.
#[test]
fn every_wrong_pair() {
    let first = |sqe| command::fused(sqe, Fuse::First);
    let second = |sqe| command::fused(sqe, Fuse::Second);
    let (compare, write) = (command::compare(2, 0, 1), command::write(2, 0, 1));
    let (read, verify) = (command::read(2, 0, 1), command::verify(2, 0, 1));
    let flush = command::flush(2);
    let other_ns = command::write(1, 0, 1);
    let other_slba = command::write(2, 1, 1);
    let outside = command::compare(2, 1 << 40, 1);
    let outside_write = command::write(2, 1 << 40, 1);
    let reserved = command::fused(write, Fuse::Reserved);
    let unknown = Sqe::with_opcode(0xff);
    let range = Status::LBA_OUT_OF_RANGE.dnr();
    let opcode = Status::INVALID_OPCODE.dnr();
    let nowhere = Status::INVALID_NAMESPACE.dnr();
    let cases: &[&[(Sqe, Status)]] = &[
        // The second half is missing.
        &[(first(compare), MISSING), (verify, SUCCESS)],
        &[(first(compare), MISSING), (flush, SUCCESS)],
        &[
            (first(compare), MISSING),
            (first(compare), MISSING),
            (flush, SUCCESS),
        ],
        &[
            (first(compare), MISSING),
            (reserved, INVALID),
            (flush, SUCCESS),
        ],
        // The first half is missing.
        &[(second(write), MISSING)],
        &[(flush, SUCCESS), (second(write), MISSING)],
        &[
            (first(compare), MISSING),
            (verify, SUCCESS),
            (second(write), MISSING),
        ],
        &[(second(write), MISSING), (second(write), MISSING)],
        // What cannot be fused.
        &[(first(write), INVALID), (second(write), FAILED)],
        &[(first(read), INVALID), (second(write), FAILED)],
        &[(first(flush), INVALID), (second(write), FAILED)],
        &[(first(unknown), opcode), (second(write), FAILED)],
        &[(first(compare), FAILED), (second(compare), INVALID)],
        &[(first(compare), FAILED), (second(read), INVALID)],
        &[(first(compare), FAILED), (second(verify), INVALID)],
        &[(first(compare), FAILED), (second(unknown), opcode)],
        // Not the same blocks.
        &[(first(compare), INVALID), (second(other_ns), INVALID)],
        &[(first(compare), INVALID), (second(other_slba), INVALID)],
        &[
            (first(compare), INVALID),
            (second(command::write(2, 0, 2)), INVALID),
        ],
        // One half fails by itself.
        &[(first(outside), range), (second(outside_write), FAILED)],
        &[
            (first(command::compare(3, 0, 1)), nowhere),
            (second(command::write(3, 0, 1)), FAILED),
        ],
        &[
            (first(outside), range),
            (flush, SUCCESS),
            (second(write), MISSING),
        ],
        // The host's mistake is over with the pair.
        &[
            (first(outside), range),
            (second(outside_write), FAILED),
            (second(write), MISSING),
        ],
    ];
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    for (index, case) in cases.iter().enumerate() {
        for (cid, (sqe, _)) in (1..).zip(*case) {
            let data = [0xee; 1024];
            let len = if sqe.opcode() & 3 == 1 {
                512 * sqe.block_count() as usize
            } else {
                0
            };
            let way = if len > 0 { Way::Capsule } else { Way::R2t };
            let sqe = if sqe.opcode() == 0x02 {
                made(*sqe, cid, 512, Way::R2t)
            } else {
                made(*sqe, cid, len, way)
            };
            queue.submit(&sqe, &data[..len]);
        }
        let want: Vec<_> = (1..).zip(case.iter().map(|&(_, status)| status)).collect();
        assert_eq!(completions(&mut queue, case.len()), want, "case {index}");
    }
    for nsid in [1, 2] {
        assert_eq!(blocks_at(&mut queue, nsid, 0, 2), [0; 1024]);
    }
}

#[test]
fn a_digest_error_in_one_half_ends_both() {
    let (_target, address) = target();
    let (_admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io_with(address, cntlid, 1, Digests::BOTH);
    let transient = Status::TRANSIENT_TRANSPORT_ERROR;
    let data = [vec![0; 512], vec![7; 512]];
    for (bad, want) in [
        (0, [(1, transient), (2, FAILED)]),
        (1, [(1, FAILED), (2, transient)]),
    ] {
        let sqes = command::compare_and_write(2, 0, 1);
        for (half, cid) in (0..2).zip(1..) {
            let sqe = made(sqes[half], cid, 512, Way::Capsule);
            let mut capsule = queue.digests.capsule(&sqe, &data[half]);
            if half == bad {
                *capsule.last_mut().unwrap() ^= 1;
            }
            queue.send(&capsule);
        }
        assert_eq!(completions(&mut queue, 2), want);
    }
    assert_eq!(blocks_at(&mut queue, 2, 0, 1), [0; 512]);
}

#[test]
fn more_than_128_kib_is_too_much() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    for (blocks, allowed) in [(256, true), (257, false)] {
        let [first, second] = command::compare_and_write(2, 0, blocks);
        let data = vec![0; blocks as usize * 512];
        submit(&mut queue, first, 1, &data, Way::R2t);
        submit(&mut queue, second, 2, &data, Way::R2t);
        if allowed {
            for _ in 0..2 {
                let r2t = queue.recv().r2t();
                queue.send(&Digests::default().h2c_data(&r2t, 0, &data, true));
            }
            assert_eq!(completions(&mut queue, 2), [(1, SUCCESS), (2, SUCCESS)]);
        } else {
            assert_eq!(completions(&mut queue, 2), [(1, INVALID), (2, FAILED)]);
        }
    }
}

#[test]
fn a_connection_may_end_between_the_halves() {
    let (target, address) = target();
    let sqes = command::compare_and_write(2, 0, 1);
    for way in [Way::Capsule, Way::R2t] {
        let (admin, mut queue) = io(address);
        submit(&mut queue, sqes[0], 1, &[0; 512], way);
        if way == Way::R2t {
            queue.recv().r2t();
        }
        drop((admin, queue));
        assert_idle(&target);
    }
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
    let mut others = before.into_iter();
    for left in [2, 1, 0] {
        let sqe = raw::with_sgl(command::read(2, 50, 1), 4, SglDescriptor::transport(512));
        queues[0].submit(&sqe, &[]);
        let mut read = step.next();
        assert_eq!((read.op(), read.lba_range().slba), (Op::Read, 50), "{left}");
        read.data_mut().fill(0);
        read.complete(Ok(()));
        queues[0].recv().data();
        queues[0].recv().cqe();
        others.next().unwrap().complete(Ok(()));
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
    let mut slbas: Vec<_> = step
        .take(2)
        .into_iter()
        .map(|request| {
            let slba = request.lba_range().slba;
            request.complete(Ok(()));
            slba
        })
        .collect();
    slbas.sort_unstable();
    assert_eq!(slbas, [101, 102]);
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

/// What a backend that compares and writes itself gets, and what its answers become.
#[test]
fn a_native_backend_does_it_in_one_request() {
    let (target, address) = common::target(config());
    let mut info = NsInfo::new(512, 1 << 20);
    info.caps.compare_and_write = Support::Native;
    info.caps.fua = Support::Native;
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, mut queue) = io(address);
    for (outcome, want) in [
        (Ok(()), [(1, SUCCESS), (2, SUCCESS)]),
        (Err(MISCOMPARE), [(1, MISCOMPARE), (2, FAILED)]),
        (
            Err(Status::WRITE_FAULT),
            [(1, FAILED), (2, Status::WRITE_FAULT)],
        ),
    ] {
        let [first, second] = command::compare_and_write(2, 0, 1);
        submit(&mut queue, first, 1, &[4; 512], Way::Capsule);
        submit(
            &mut queue,
            command::with_fua(second),
            2,
            &[5; 512],
            Way::Capsule,
        );
        let request = step.next();
        assert_eq!(request.op(), Op::CompareAndWrite { fua: true });
        assert_eq!(
            (request.compare_data(), request.data()),
            (&[4; 512][..], &[5; 512][..])
        );
        request.complete(outcome);
        assert_eq!(completions(&mut queue, 2), want);
    }
    drop(queue);
    eventually("the queue is closed", || target.stats().connections == 1);
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

/// Aborts a command of queue 1; whether that was immediate.
fn aborts(admin: &mut Raw, cid: u16) -> bool {
    let mut sqe = Sqe::with_opcode(AdminOpcode::ABORT.0);
    AbortCommand { sqid: 1, cid }.encode(&mut sqe);
    sqe.set_cid(100);
    admin.ok(&sqe, &[]).result & 1 == 0
}

/// How far a pair comes before one half of it is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The second half has not come.
    Half,
    /// The data of the second half has not come.
    Data,
    /// The gate closes.
    Gate,
    Compare,
    Write,
}

/// Either half, at every stage: both end, once, and what was held is given back.
#[test]
fn an_abort_of_either_half_ends_both() {
    use Stage::{Compare, Data, Gate, Half, Write};
    const ABORTED: Status = Status::ABORT_REQUESTED;
    let first_ends = [(1, ABORTED), (2, FAILED)];
    let second_ends = [(1, FAILED), (2, ABORTED)];
    for (stage, cid, immediate, want) in [
        (Half, 1, true, first_ends),
        (Data, 1, true, first_ends),
        (Data, 2, false, second_ends),
        (Gate, 1, false, first_ends),
        (Gate, 2, false, second_ends),
        (Compare, 1, true, first_ends),
        (Compare, 2, false, second_ends),
        (Write, 1, false, [(1, SUCCESS), (2, SUCCESS)]),
        (Write, 2, true, second_ends),
    ] {
        let (target, address) = common::target(config());
        let step = Step::new(NsInfo::new(512, 1 << 20));
        step.set_withdraws(true);
        target.add_namespace(NQN, 2, step.clone()).unwrap();
        let (mut admin, cntlid) = Raw::admin(address);
        let mut queue = Raw::io(address, cntlid, 1);
        let mut other = Raw::io(address, cntlid, 2);
        let plain = made(command::write(2, 100, 1), 3, 512, Way::Capsule);
        let before = (stage == Gate).then(|| {
            other.submit(&plain, &[1; 512]);
            step.next()
        });
        let [first, second] = command::compare_and_write(2, 0, 1);
        submit(&mut queue, first, 1, &[0; 512], Way::Capsule);
        let way = if stage == Data {
            Way::R2t
        } else {
            Way::Capsule
        };
        if stage != Half {
            submit(&mut queue, second, 2, &[9; 512], way);
        }
        let r2t = (stage == Data).then(|| queue.recv().r2t());
        // A command behind both has been answered.
        if stage != Half {
            queue.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
        }
        match stage {
            Half => eventually("it is there", || target.stats().buffers_lent > 0),
            Data | Gate => {}
            Compare => eventually("it compares", || step.pending() == 1),
            Write => {
                let mut compare = step.next();
                compare.data_mut().fill(0);
                compare.complete(Ok(()));
                eventually("it writes", || step.pending() == 1);
            }
        }
        // Something that has to wait for the gate.
        if matches!(stage, Compare | Write) {
            other.submit(&plain, &[1; 512]);
            other.ok(&made(command::flush(1), 7, 0, Way::R2t), &[]);
        }
        let what = format!("{stage:?} {cid}");
        assert_eq!(aborts(&mut admin, cid), immediate, "{what}");
        if let Some(before) = before {
            before.complete(Ok(()));
            assert_eq!(other.recv().cqe().cid, 3);
        }
        match (stage, cid) {
            (Half, _) => submit(&mut queue, second, 2, &[9; 512], way),
            (Data, _) => {
                let digests = Digests::default();
                queue.send(&digests.h2c_data(&r2t.unwrap(), 0, &[9; 512], true));
            }
            (Gate | Compare, 2) => {
                let mut compare = step.next();
                assert_eq!(compare.op(), Op::Read);
                compare.data_mut().fill(0);
                compare.complete(Ok(()));
            }
            (Write, 1) => step.next().complete(Ok(())),
            _ => {}
        }
        assert_eq!(completions(&mut queue, 2), want, "{what}");
        if matches!(stage, Compare | Write) {
            step.next().complete(Ok(()));
            assert_eq!(other.recv().cqe().cid, 3);
        }
        assert_eq!(step.pending(), 0, "{what}");
        // The gate is open.
        queue.submit(&plain, &[1; 512]);
        step.next().complete(Ok(()));
        assert_eq!(queue.recv().cqe().cid, 3);
        drop((admin, queue, other));
        assert_idle(&target);
    }
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

//! What comes on a queue: pairs, halves, and what is none.

use super::{FAILED, MISCOMPARE, SUCCESS, Way, blocks_at, completions, io, made, submit, target};
use crate::common::raw::{Digests, Raw};
use crate::common::step::Step;
use crate::common::{self, NQN, assert_idle, config, eventually, pattern};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::sqe::Fuse;
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_target::ns::{NsInfo, Op, Support};

const MISSING: Status = Status::ABORTED_MISSING_FUSED;
const INVALID: Status = Status::INVALID_FIELD.dnr();

/// Runs a Compare and Write whose data is in the capsules.
fn compare_and_write(queue: &mut Raw, nsid: u32, slba: u64, old: &[u8], new: &[u8]) -> [Status; 2] {
    let blocks = u32::try_from(old.len() / 512).unwrap();
    let [first, second] = command::compare_and_write(nsid, slba, blocks);
    submit(queue, first, 1, old, Way::Capsule);
    submit(queue, second, 2, new, Way::Capsule);
    let all = completions(queue, 2);
    [all[0].1, all[1].1]
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

/// What stands on the queue after one another, and how each of it ends.
type Case = Vec<(Sqe, Status)>;

const fn first(sqe: Sqe) -> Sqe {
    command::fused(sqe, Fuse::First)
}

const fn second(sqe: Sqe) -> Sqe {
    command::fused(sqe, Fuse::Second)
}

fn compare() -> Sqe {
    command::compare(2, 0, 1)
}

fn write() -> Sqe {
    command::write(2, 0, 1)
}

fn verify() -> Sqe {
    command::verify(2, 0, 1)
}

fn flush() -> Sqe {
    command::flush(2)
}

fn missing_halves() -> Vec<Case> {
    let reserved = command::fused(write(), Fuse::Reserved);
    vec![
        // The second one.
        vec![(first(compare()), MISSING), (verify(), SUCCESS)],
        vec![(first(compare()), MISSING), (flush(), SUCCESS)],
        vec![
            (first(compare()), MISSING),
            (first(compare()), MISSING),
            (flush(), SUCCESS),
        ],
        vec![
            (first(compare()), MISSING),
            (reserved, INVALID),
            (flush(), SUCCESS),
        ],
        // The first one.
        vec![(second(write()), MISSING)],
        vec![(flush(), SUCCESS), (second(write()), MISSING)],
        vec![
            (first(compare()), MISSING),
            (verify(), SUCCESS),
            (second(write()), MISSING),
        ],
        vec![(second(write()), MISSING), (second(write()), MISSING)],
    ]
}

fn what_cannot_be_fused() -> Vec<Case> {
    let read = command::read(2, 0, 1);
    let unknown = Sqe::with_opcode(0xff);
    let opcode = Status::INVALID_OPCODE.dnr();
    let other_ns = command::write(1, 0, 1);
    let other_slba = command::write(2, 1, 1);
    let longer = command::write(2, 0, 2);
    vec![
        vec![(first(write()), INVALID), (second(write()), FAILED)],
        vec![(first(read), INVALID), (second(write()), FAILED)],
        vec![(first(flush()), INVALID), (second(write()), FAILED)],
        vec![(first(unknown), opcode), (second(write()), FAILED)],
        vec![(first(compare()), FAILED), (second(compare()), INVALID)],
        vec![(first(compare()), FAILED), (second(read), INVALID)],
        vec![(first(compare()), FAILED), (second(verify()), INVALID)],
        vec![(first(compare()), FAILED), (second(unknown), opcode)],
        // Not the same blocks.
        vec![(first(compare()), INVALID), (second(other_ns), INVALID)],
        vec![(first(compare()), INVALID), (second(other_slba), INVALID)],
        vec![(first(compare()), INVALID), (second(longer), INVALID)],
    ]
}

fn halves_that_fail_by_themselves() -> Vec<Case> {
    let outside = first(command::compare(2, 1 << 40, 1));
    let outside_write = second(command::write(2, 1 << 40, 1));
    let range = Status::LBA_OUT_OF_RANGE.dnr();
    let nowhere = Status::INVALID_NAMESPACE.dnr();
    vec![
        vec![(outside, range), (outside_write, FAILED)],
        vec![
            (first(command::compare(3, 0, 1)), nowhere),
            (second(command::write(3, 0, 1)), FAILED),
        ],
        vec![
            (outside, range),
            (flush(), SUCCESS),
            (second(write()), MISSING),
        ],
        // The host's mistake is over with the pair.
        vec![
            (outside, range),
            (outside_write, FAILED),
            (second(write()), MISSING),
        ],
    ]
}

/// Nothing is written.
#[test]
fn every_wrong_pair() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    let mut cases = missing_halves();
    cases.extend(what_cannot_be_fused());
    cases.extend(halves_that_fail_by_themselves());
    for (index, case) in cases.iter().enumerate() {
        for (cid, (sqe, _)) in (1..).zip(case) {
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

//! Write Uncorrectable, and what it does to other commands.

use super::{BLOCKS, Moves, SUCCESS, UNREADABLE, copy, dsm, io, run, target};
use crate::common::raw::{Raw, with_sgl};
use crate::common::step::Step;
use crate::common::{self, NQN, assert_idle, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_target::ns::NsInfo;

#[test]
fn uncorrectable_blocks_cannot_be_read_until_they_are_written() {
    let (target, address) = target();
    let (admin, mut queue) = io(address);
    let data = |count: usize| Moves::FromHost(vec![7; 512 * count]);
    for nsid in [1, 2] {
        let fill = command::write(nsid, 0, 100);
        assert_eq!(run(&mut queue, fill, &data(100)).0, SUCCESS);
        let mark = command::write_uncorrectable(nsid, 10, 10);
        assert_eq!(run(&mut queue, mark, &Moves::Nothing).0, SUCCESS);
        let [first, second] = command::compare_and_write(nsid, 19, 1);
        let fails = |queue: &mut Raw, slba, count: u16, want| {
            let bytes = u32::from(count) * 512;
            for (sqe, data) in [
                (
                    command::read(nsid, slba, count.into()),
                    Moves::ToHost(bytes),
                ),
                (
                    command::compare(nsid, slba, count.into()),
                    data(count.into()),
                ),
                (command::verify(nsid, slba, count.into()), Moves::Nothing),
                copy(nsid, 1000, &[(0, slba, count.into())]),
            ] {
                assert_eq!(run(queue, sqe, &data).0, want, "{sqe:?}");
            }
        };
        fails(&mut queue, 0, 10, SUCCESS);
        fails(&mut queue, 20, 10, SUCCESS);
        fails(&mut queue, 0, 11, UNREADABLE);
        fails(&mut queue, 19, 1, UNREADABLE);
        queue.submit(
            &with_sgl(first, 1, SglDescriptor::in_capsule(512)),
            &[7; 512],
        );
        queue.submit(
            &with_sgl(second, 2, SglDescriptor::in_capsule(512)),
            &[8; 512],
        );
        let statuses = [queue.recv().cqe().status, queue.recv().cqe().status];
        assert_eq!(statuses, [UNREADABLE, Status::ABORTED_FAILED_FUSED]);
        // What writes makes blocks valid; Dataset Management does not write.
        let (sqe, ranges) = dsm(nsid, &[(10, 10)]);
        assert_eq!(run(&mut queue, sqe, &ranges).0, SUCCESS);
        fails(&mut queue, 10, 1, UNREADABLE);
        assert_eq!(
            run(&mut queue, command::write(nsid, 10, 2), &data(2)).0,
            SUCCESS
        );
        let zeroes = command::write_zeroes(nsid, 12, 3, false);
        assert_eq!(run(&mut queue, zeroes, &Moves::Nothing).0, SUCCESS);
        let (sqe, ranges) = copy(nsid, 15, &[(0, 0, 5)]);
        assert_eq!(run(&mut queue, sqe, &ranges).0, SUCCESS);
        let read = command::read(nsid, 0, 100);
        assert_eq!(run(&mut queue, read, &Moves::ToHost(51200)).0, SUCCESS);
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// Blocks are marked behind what is being written, and before what comes later.
#[test]
fn blocks_are_marked_when_nothing_writes() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, BLOCKS));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, cntlid) = Raw::admin(address);
    let mut queues = [1, 2].map(|qid| Raw::io(address, cntlid, qid));
    let write = with_sgl(command::write(2, 5, 1), 3, SglDescriptor::in_capsule(512));
    queues[0].submit(&write, &[1; 512]);
    let before = step.next();
    let mark = with_sgl(
        command::write_uncorrectable(2, 0, 10),
        4,
        SglDescriptor::transport(0),
    );
    queues[1].submit(&mark, &[]);
    queues[1].ok(
        &with_sgl(command::flush(1), 7, SglDescriptor::transport(0)),
        &[],
    );
    before.complete(Ok(()));
    assert_eq!(queues[0].recv().cqe().status, SUCCESS);
    let cqe = queues[1].recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (4, SUCCESS));
    let read = |slba| with_sgl(command::read(2, slba, 1), 5, SglDescriptor::transport(512));
    assert_eq!(queues[0].execute(&read(5), &[]).status, UNREADABLE);
    assert_eq!(step.pending(), 0, "the backend is not asked");
    // A write that fails leaves them as they are.
    queues[0].submit(&write, &[1; 512]);
    step.next().complete(Err(Status::WRITE_FAULT));
    assert_eq!(queues[0].recv().cqe().status, Status::WRITE_FAULT);
    assert_eq!(queues[0].execute(&read(5), &[]).status, UNREADABLE);
    queues[0].submit(&write, &[1; 512]);
    step.next().complete(Ok(()));
    assert_eq!(queues[0].recv().cqe().status, SUCCESS);
    queues[1].submit(&read(5), &[]);
    let mut request = step.next();
    request.data_mut().fill(1);
    request.complete(Ok(()));
    assert_eq!(queues[1].recv().data(), [1; 512]);
}

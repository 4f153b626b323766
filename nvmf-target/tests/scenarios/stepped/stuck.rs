//! What waits where nothing else moves: for a buffer, for a turn, or to be alone with a namespace.

use super::{Host, SECOND, stepped_with};
use crate::common::raw::{Digests, read, with_sgl, write_by_r2t, write_in_capsule};
use crate::common::step::Step;
use crate::common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::pdu::{DataHeader, PduType, capsule_cqe};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, Op, RamDisk, Support};
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::MemConnector;

/// The admin queue of a host and its I/O queue.
fn both(sim: &mut SimTarget, connector: &MemConnector) -> (Host, Host) {
    let (admin, cntlid) = Host::admin(sim, connector, 0);
    (admin, Host::io(sim, connector, cntlid))
}

/// CID and status of the next answer.
fn end(host: &mut Host) -> Option<(u16, Status)> {
    let pdu = host.next()?;
    let cqe = capsule_cqe(pdu.first_chunk().unwrap());
    Some((cqe.cid, cqe.status))
}

/// A pair that is interrupted because its second buffer is not to be had is answered at that moment,
/// though nothing else happens: all other buffers are with devices that end nothing but flushes.
#[test]
fn s65_a_pair_that_is_interrupted_is_answered_at_once() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 1 << 20);
    let mut info = NsInfo::new(512, 1 << 20);
    (info.volatile_cache, info.caps.flush) = (true, Support::Native);
    let step = Step::new(info);
    let second = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    sim.target().add_namespace(NQN, 2, second.clone()).unwrap();
    let (_admin, mut io) = both(&mut sim, &connector);
    let (_admin_of_another, mut flushing) = both(&mut sim, &connector);
    let [mut compare, mut write] = command::compare_and_write(1, 0, 256);
    for (cid, sqe) in [(1, &mut compare), (2, &mut write)] {
        sqe.set_cid(cid);
        sqe.set_sgl(write_by_r2t(cid, 0, 256).sgl());
    }
    io.submit(&compare, &[]);
    sim.settle();
    let r2t = io.next().expect("R2T");
    let header = DataHeader::decode(r2t.first_chunk().unwrap());
    io.send(&Digests::default().h2c_data(&header, 0, &[0; 128 << 10], true));
    sim.settle();
    // Each has its first buffer, and waits for no other.
    let others: Vec<_> = (0..56)
        .map(|at| {
            let (admin, mut io) = both(&mut sim, &connector);
            let mut sqe = read(1, 0, 32);
            sqe.set_nsid(if at < 48 { 1 } else { 2 });
            io.submit(&sqe, &[]);
            sim.settle();
            (admin, io)
        })
        .collect();
    assert_eq!(sim.target().stats().buffers_lent, 1 << 20);
    // What they are given: three quarters of all, and of the rest.
    let kept = (step.take(48), second.take(8));
    io.submit(&write, &[]);
    sim.settle();
    let begun = sim.time();
    while sim.target().stats().buffers_lent == 1 << 20 {
        assert!(io.next().is_none() && sim.time() < begun + 12 * SECOND);
        flushing.submit(&command::flush(1), &[]);
        sim.settle();
        step.next().complete(Ok(()));
        sim.settle();
        assert_eq!(end(&mut flushing), Some((0, Status::SUCCESS)));
        sim.set_time(sim.next_deadline().unwrap());
        sim.settle();
    }
    let ends = [end(&mut io), end(&mut io)];
    let expected = [
        (1, Status::ABORTED_FAILED_FUSED),
        (2, Status::COMMAND_INTERRUPTED),
    ];
    assert_eq!(ends, expected.map(Some));
    drop((others, kept));
    sim.settle();
}

/// Takes whatever it is told to deallocate, on the reactor's thread.
struct Endless;

impl BlockDevice for Endless {
    fn info(&self) -> NsInfo {
        let mut info = NsInfo::new(512, 1 << 32);
        info.caps.deallocate = Support::Native;
        info
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), NsError> {
        Ok(())
    }

    fn deallocate(&self, _: u64, _: u64) -> Result<(), NsError> {
        Ok(())
    }
}

/// A connection that has ended does not wait for the turns of its long commands, with those of all
/// others before it: its host comes back and wants the queue.
#[test]
fn s65_a_queue_that_ends_does_not_wait_for_the_turns_of_its_long_commands() {
    let mut config = config();
    config.reactors = 1;
    let (mut sim, connector) = stepped_with(config, Inline::new(Endless));
    // 128 GiB each.
    let range = DsmRange {
        length: 1 << 23,
        ..DsmRange::default()
    };
    let ranges = range.encode().repeat(32);
    let mut hosts: Vec<_> = (0..100).map(|_| both(&mut sim, &connector)).collect();
    for (_, io) in &mut hosts {
        for cid in 0..4 {
            let mut sqe = command::dataset_management(1, 32, DsmAttributes::DEALLOCATE);
            sqe.set_cid(cid);
            sqe.set_sgl(SglDescriptor::in_capsule(512));
            io.submit(&sqe, &ranges);
        }
    }
    (0..10).for_each(|_| _ = sim.turn(0));
    let before = sim.target().stats();
    assert_eq!((before.io_queues, before.in_flight), (100, 400));
    let (admin, io) = hosts.swap_remove(50);
    drop(io);
    sim.turn(0);
    let after = sim.target().stats();
    assert_eq!((after.io_queues, after.in_flight), (99, 396));
    drop((admin, hosts));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// A write that its backend never completes keeps those waiting who want to be alone with the
/// namespace, and these keep all other writes: until they are aborted, or their connections end.
#[test]
fn s58_who_waits_for_a_write_that_never_completes_may_give_up() {
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config(), step.clone());
    let [(_a, mut hung), (mut admin, mut pair), (_c, mut other)] =
        [(); 3].map(|()| both(&mut sim, &connector));
    hung.submit(&write_in_capsule(1, 0, 1), &[1; 512]);
    sim.settle();
    let never = step.next();
    let halves = command::compare_and_write(1, 8, 1);
    let begin = |sim: &mut SimTarget, pair: &mut Host, other: &mut Host| {
        for (cid, sqe) in (1..).zip(halves) {
            pair.submit(
                &with_sgl(sqe, cid, SglDescriptor::in_capsule(512)),
                &[0; 512],
            );
        }
        sim.settle();
        other.submit(&write_in_capsule(3, 16, 1), &[3; 512]);
        sim.settle();
        assert_eq!((step.pending(), sim.target().stats().in_flight), (0, 3));
    };
    let goes_on = |sim: &mut SimTarget, other: &mut Host| {
        sim.settle();
        assert_eq!(step.pending(), 1);
        step.next().complete(Ok(()));
        sim.settle();
        assert_eq!(end(other), Some((3, Status::SUCCESS)));
        assert_eq!(sim.target().stats().in_flight, 1);
    };
    for (aborted, ends) in [
        (1, [Status::ABORT_REQUESTED, Status::ABORTED_FAILED_FUSED]),
        (2, [Status::ABORTED_FAILED_FUSED, Status::ABORT_REQUESTED]),
    ] {
        begin(&mut sim, &mut pair, &mut other);
        let cqe = admin.execute(&mut sim, &command::abort(1, aborted), &[]);
        assert_eq!((cqe.status, cqe.result & 1), (Status::SUCCESS, 0));
        let ended = [end(&mut pair), end(&mut pair)].map(|end| end.expect("its end").1);
        assert_eq!(ended, ends);
        goes_on(&mut sim, &mut other);
    }
    begin(&mut sim, &mut pair, &mut other);
    drop(pair);
    goes_on(&mut sim, &mut other);
    assert_eq!(sim.target().stats().io_queues, 2);
    drop((admin, other, hung));
    sim.settle();
    never.complete(Ok(()));
    sim.settle();
}

/// A namespace that never answers does not get all buffers, however often hosts come back to it:
/// others go on, on the same queues, too, and what it is sent beside fails and may be tried again.
#[test]
fn s58_a_namespace_that_never_answers_leaves_buffers_to_others() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let disk = Inline::new(RamDisk::new(1 << 20, 512).unwrap());
    sim.target().add_namespace(NQN, 2, disk).unwrap();
    let of_disk = |cid| {
        let sgl = SglDescriptor::transport(128 << 10);
        with_sgl(command::compare(2, 0, 256), cid, sgl)
    };
    // Sends the data that it is asked for; what has ended.
    let serve = |sim: &mut SimTarget, host: &mut Host| {
        let mut ends = Vec::new();
        sim.settle();
        while let Some(pdu) = host.next() {
            if pdu[0] == PduType::R2T.0 {
                let r2t = DataHeader::decode(pdu.first_chunk().unwrap());
                let zeroes = vec![0; r2t.length as usize];
                host.send(&Digests::default().h2c_data(&r2t, r2t.offset, &zeroes, true));
                sim.settle();
            } else if pdu[0] == PduType::CAPSULE_RESP.0 {
                let cqe = capsule_cqe(pdu.first_chunk().unwrap());
                ends.push((cqe.cid, cqe.status));
            }
        }
        ends
    };
    let mut hosts: Vec<_> = (0..16).map(|_| both(&mut sim, &connector)).collect();
    for (_, io) in &mut hosts {
        for cid in 0..4 {
            io.submit(&write_by_r2t(cid, 0, 256), &[]);
            io.submit(&read(4 + cid, 0, 256), &[]);
        }
        assert_eq!(serve(&mut sim, io), []);
    }
    // Half of them are given up and come back.
    hosts.drain(..8);
    hosts.extend((0..8).map(|_| both(&mut sim, &connector)));
    for (_, io) in &mut hosts {
        io.submit(&of_disk(8), &[]);
        io.submit(&write_by_r2t(9, 0, 256), &[]);
    }
    let mut ends: Vec<_> = hosts.iter().map(|_| Vec::new()).collect();
    let until = sim.time() + 30 * SECOND;
    let is_served = |ends: &Vec<(u16, Status)>| ends.contains(&(8, Status::SUCCESS));
    while !ends.iter().all(is_served) && sim.time() < until {
        for ((_, io), ends) in hosts.iter_mut().zip(&mut ends) {
            ends.extend(serve(&mut sim, io));
        }
        sim.set_time(sim.next_deadline().unwrap_or(until).min(until));
    }
    assert!(ends.iter().all(is_served), "{ends:?}");
    for (cid, status) in ends.into_iter().flatten().filter(|&(cid, _)| cid != 8) {
        assert!(
            status.same_code(Status::NAMESPACE_NOT_READY),
            "{cid}: {status:?}"
        );
    }
    let given = step.pending();
    assert!(given > 0 && sim.target().stats().buffers_lent <= 3 << 20);
    // It answers, and takes what it is sent.
    step.take(given)
        .into_iter()
        .for_each(|r| r.complete(Ok(())));
    sim.settle();
    for (_, io) in &mut hosts {
        serve(&mut sim, io);
        io.submit(&read(10, 0, 32), &[]);
    }
    sim.settle();
    assert!(step.pending() >= hosts.len());
    drop(hosts);
    sim.settle();
    step.take(step.pending());
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// What a namespace that never answers has of a connection is no part of that one's share, however
/// much it moves with others meanwhile.
#[test]
fn s58_who_has_lost_buffers_to_a_namespace_goes_on_with_others() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let disk = Step::new(NsInfo::new(512, 1 << 20));
    sim.target().add_namespace(NQN, 2, disk.clone()).unwrap();
    let mut hosts: Vec<_> = (0..3).map(|_| both(&mut sim, &connector)).collect();
    for (_, io) in &mut hosts {
        (0..16).for_each(|cid| io.submit(&read(cid, 0, 256), &[]));
        sim.settle();
    }
    let mut of_disk = read(100, 0, 256);
    of_disk.set_nsid(2);
    let begun = sim.time();
    let mut done = 0;
    for (_, io) in &mut hosts {
        io.submit(&of_disk, &[]);
    }
    while sim.time() < begun + 60 * SECOND {
        sim.settle();
        while disk.pending() > 0 {
            disk.next().complete(Ok(()));
            sim.settle();
        }
        for (_, io) in &mut hosts {
            while let Some(pdu) = io.next() {
                if pdu[0] == PduType::CAPSULE_RESP.0 {
                    continue;
                }
                let data = DataHeader::decode(pdu.first_chunk().unwrap());
                if data.cccid == 100 {
                    done += 1;
                    io.submit(&of_disk, &[]);
                }
            }
        }
        sim.set_time(sim.time() + SECOND / 100);
    }
    assert!(done > 10_000, "{done}");
}

/// A backend that has given back all that it had keeps nothing: it is not one that does not answer
/// when it is given something again, neither in the next shortage nor outside of one.
#[test]
fn s58_a_namespace_that_has_nothing_is_not_one_that_never_answers() {
    for (patience, blocks) in [(1, 256), (12, 8)] {
        let mut config = config();
        (config.reactors, config.buffer_bytes) = (1, 1 << 20);
        let mut info = NsInfo::new(512, 1 << 20);
        info.depth = 4;
        let step = Step::new(info);
        step.set_withdraws(true);
        let (mut sim, connector) = stepped_with(config, step.clone());
        let mut hosts = [(); 2].map(|()| both(&mut sim, &connector));
        for (_, io) in &mut hosts {
            (0..8).for_each(|cid| io.submit(&read(cid, 0, 256), &[]));
        }
        sim.settle();
        let until = sim.time() + patience * SECOND;
        while sim.time() < until {
            sim.set_time(sim.next_deadline().unwrap_or(until).min(until));
            sim.settle();
        }
        for (admin, io) in &mut hosts {
            for cid in 0..8 {
                admin.execute(&mut sim, &command::abort(1, cid), &[]);
            }
            while let Some((_, status)) = end(io) {
                let refused = status.same_code(Status::NAMESPACE_NOT_READY);
                assert!(refused && patience > 5 || status == Status::ABORT_REQUESTED);
            }
        }
        assert_eq!((step.pending(), sim.target().stats().in_flight), (0, 0));
        sim.set_time(sim.time() + 100 * SECOND);
        sim.settle();
        for (_, io) in &mut hosts {
            (0..8).for_each(|cid| io.submit(&read(cid, 0, blocks), &[]));
        }
        sim.settle();
        for (_, io) in &mut hosts {
            assert_eq!(end(io), None, "after {patience} s");
        }
        drop(hosts);
        while step.pending() > 0 {
            step.next().complete(Ok(()));
            sim.settle();
        }
        assert_eq!(sim.target().stats(), Default::default());
    }
}

/// What waits for its namespace's part of the buffers goes on when other namespaces give some back,
/// though its own one never completes what it has.
#[test]
fn s58_one_command_that_never_completes_does_not_keep_those_behind_it() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let steps = [(); 3].map(|()| Step::new(NsInfo::new(512, 1 << 20)));
    let (mut sim, connector) = stepped_with(config, steps[0].clone());
    for (nsid, step) in (2..).zip(&steps[1..]) {
        sim.target().add_namespace(NQN, nsid, step.clone()).unwrap();
    }
    let of = |nsid: u16, cid, blocks| {
        let mut sqe = read(cid, 0, blocks);
        sqe.set_nsid(nsid.into());
        sqe
    };
    let mut hosts: Vec<_> = (0..38).map(|_| both(&mut sim, &connector)).collect();
    hosts[0].1.submit(&of(1, 0, 2048), &[]);
    sim.settle();
    let never = steps[0].next();
    // Three quarters of the rest each: 192 KiB are left.
    for (nsid, blocks) in [(2, 128), (3, 32)] {
        for (_, io) in &mut hosts[1..37] {
            io.submit(&of(nsid, nsid, blocks), &[]);
            sim.settle();
        }
    }
    assert_eq!([1, 2].map(|at| steps[at].pending()), [36, 36]);
    hosts[37].1.submit(&of(1, 1, 8), &[]);
    sim.settle();
    assert_eq!(steps[0].pending(), 0, "there was room");
    assert_eq!(sim.target().stats().buffers_lent, (4 << 20) - (188 << 10));
    for step in &steps[1..] {
        while step.pending() > 0 {
            step.next().complete(Ok(()));
            sim.settle();
        }
    }
    assert_eq!(sim.target().stats().in_flight, 2);
    assert_eq!(steps[0].pending(), 1, "it waits for the other one");
    steps[0].next().complete(Ok(()));
    drop((hosts, never));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// A namespace that ends what needs no buffers, and nothing else, is one that never answers.
#[test]
fn s58_a_namespace_that_only_flushes_leaves_buffers_to_others() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let mut info = NsInfo::new(512, 1 << 20);
    (info.volatile_cache, info.caps.flush) = (true, Support::Native);
    let step = Step::new(info);
    let (mut sim, connector) = stepped_with(config, step.clone());
    let disk = Step::new(NsInfo::new(512, 1 << 20));
    sim.target().add_namespace(NQN, 2, disk.clone()).unwrap();
    let mut hosts: Vec<_> = (0..40).map(|_| both(&mut sim, &connector)).collect();
    for (_, io) in &mut hosts[2..] {
        (0..8).for_each(|cid| io.submit(&read(cid, 0, 256), &[]));
        sim.settle();
    }
    let mut kept = step.take(step.pending());
    let mut of_disk = read(100, 0, 256);
    of_disk.set_nsid(2);
    hosts[1].1.submit(&of_disk, &[]);
    let until = sim.time() + 12 * SECOND;
    while disk.pending() == 0 {
        assert!(sim.time() < until, "others stand still with it");
        hosts[0].1.submit(&command::flush(1), &[]);
        sim.settle();
        while step.pending() > 0 {
            let request = step.next();
            match request.op() {
                Op::Flush => request.complete(Ok(())),
                _ => kept.push(request),
            }
        }
        sim.set_time(sim.time() + SECOND / 10);
        sim.settle();
    }
    disk.next().complete(Ok(()));
    drop((hosts, kept));
    sim.settle();
    step.take(step.pending());
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

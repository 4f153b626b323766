//! What commands do to the blocks, and what a backend gets of them.

use super::{
    BLOCKS, Moves, SUCCESS, UNREADABLE, allow_other_namespaces, blocks, copy, dsm, io, ranged, run,
    target,
};
use crate::common::raw::with_sgl;
use crate::common::step::Step;
use crate::common::{self, NQN, assert_idle, config, connect, eventually, pattern};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::copy::CopyRange;
use nvmf_host::nvmf_proto::wire::{NvmOpcode, SglDescriptor, Status};
use nvmf_target::ns::{Inline, NsInfo, Op, RamDisk, Support};
use std::sync::Arc;

#[test]
fn copies_what_is_there() {
    let (target, address) = target();
    let (mut admin, mut queue) = io(address);
    allow_other_namespaces(&mut admin);
    let mut host = connect(address);
    host.set_queue_count(1).unwrap();
    for nsid in [1, 2] {
        let ns = host.namespace(nsid).unwrap();
        let mut direct = host.io_queue(1).unwrap();
        let data = pattern(u64::from(nsid), 1 << 20);
        direct.write(&ns, 0, &data).unwrap();
        // Ranges that share buffers, that need several, and that touch.
        let ranges = [(100, 3), (0, 1), (1000, 700), (5, 1), (6, 300)];
        let mut want = Vec::new();
        let list: Vec<_> = ranges
            .iter()
            .map(|&(slba, blocks)| {
                let start = usize::try_from(slba * 512).unwrap();
                want.extend(&data[start..start + blocks as usize * 512]);
                CopyRange {
                    slba,
                    blocks,
                    ..CopyRange::default()
                }
            })
            .collect();
        direct.copy(&ns, 50_000, &list).unwrap();
        let mut back = vec![0; want.len()];
        direct.read(&ns, 50_000, &mut back).unwrap();
        assert!(back == want, "{nsid}");
        // From the other one, with FUA.
        let other = 3 - nsid;
        let (sqe, ranges) = copy(other, 7, &[(nsid, 1000, 300)]);
        let status = run(&mut queue, command::with_fua(sqe), &ranges);
        assert_eq!(status, (SUCCESS, 0));
        let got = blocks(&mut queue, other, 7, 300);
        assert!(got == data[1000 * 512..1300 * 512]);
        direct.disconnect().unwrap();
    }
    drop((admin, queue, host));
    assert_idle(&target);
}

/// Dword 0 of a Copy that fails is the first source range that was not copied entirely.
#[test]
fn a_copy_that_fails_says_how_far_it_came() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    let mark = command::write_uncorrectable(1, 5000, 1);
    assert_eq!(run(&mut queue, mark, &Moves::Nothing).0, SUCCESS);
    // 128 KiB, 256 blocks, are written at a time.
    for (ranges, want) in [
        (&[(0, 4000, 2000)][..], 0),
        (&[(0, 0, 8), (0, 5000, 1)], 0),
        (&[(0, 0, 256), (0, 5000, 1)], 1),
        (&[(0, 0, 200), (0, 0, 100), (0, 4744, 257)], 2),
        (&[(0, 0, 200), (0, 0, 100), (0, 0, 7), (0, 5000, 1)], 1),
    ] {
        let (sqe, data) = copy(1, 10_000, ranges);
        assert_eq!(
            run(&mut queue, sqe, &data),
            (UNREADABLE, want),
            "{ranges:?}"
        );
    }
}

/// FUA of what reads is a Flush before it.
#[test]
fn fua_of_what_reads_is_a_flush_before() {
    for volatile in [true, false] {
        let (target, address) = common::target(config());
        let mut info = NsInfo::new(512, BLOCKS);
        if volatile {
            info = info.with_volatile_cache();
        }
        let step = Step::new(info);
        target.add_namespace(NQN, 2, step.clone()).unwrap();
        let (_admin, mut queue) = io(address);
        for (opcode, data) in ranged().into_iter().take(4) {
            if opcode == NvmOpcode::WRITE {
                continue;
            }
            let sqe = command::with_fua(command::on_blocks(opcode, 2, 0, 1));
            let (sgl, payload): (_, &[u8]) = match &data {
                Moves::FromHost(data) => (SglDescriptor::in_capsule(512), data),
                _ => (SglDescriptor::transport(512), &[]),
            };
            queue.submit(&with_sgl(sqe, 1, sgl), payload);
            if volatile {
                let flush = step.next();
                assert_eq!((flush.op(), step.pending()), (Op::Flush, 0));
                flush.complete(Ok(()));
            }
            let mut read = step.next();
            assert_eq!(read.op(), Op::Read);
            read.data_mut().fill(0);
            read.complete(Ok(()));
            if opcode == NvmOpcode::READ {
                queue.recv().data();
            }
            assert_eq!(queue.recv().cqe().status, SUCCESS, "{}", opcode.name());
            assert_eq!(step.pending(), 0);
        }
    }
}

/// A command over much storage comes to a backend in pieces, one after the other.
#[test]
fn much_at_once_comes_in_pieces() {
    const PIECE: u64 = (32 << 20) / 512;
    let (target, address) = common::target(config());
    let mut info = NsInfo::new(512, 1 << 40);
    info.caps.write_zeroes = Support::Native;
    info.caps.deallocate = Support::Native;
    info.caps.verify = Support::Native;
    info.dealloc_reads_zero = true;
    let step = Step::new(info);
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, mut queue) = io(address);
    let none = SglDescriptor::transport(0);
    let whole = command::whole_namespace(command::write_zeroes(2, 77, 1, true));
    queue.submit(&with_sgl(whole, 1, none), &[]);
    for at in 0..3 {
        let request = step.next();
        let range = request.lba_range();
        assert_eq!((range.slba, range.blocks), (at * PIECE, PIECE));
        assert_eq!(step.pending(), 0);
        let outcome = if at < 2 {
            Ok(())
        } else {
            Err(Status::WRITE_FAULT)
        };
        request.complete(outcome);
    }
    assert_eq!(queue.recv().cqe().status, Status::WRITE_FAULT);
    queue.submit(&with_sgl(command::verify(2, 9, 1 << 16), 1, none), &[]);
    let verify = step.next();
    assert_eq!(
        (verify.op(), verify.lba_range().blocks),
        (Op::Verify, PIECE)
    );
    verify.complete(Ok(()));
    assert_eq!(queue.recv().cqe().status, SUCCESS);
    // 8,388,608 blocks of a range are seen to (DMRSL), and 255 ranges (DMRL).
    let ranges = [(5, 1 << 17), (7, 0), (1 << 30, u32::MAX), (0, 3)];
    let (sqe, Moves::FromHost(data)) = dsm(2, &ranges) else {
        unreachable!();
    };
    let len = u32::try_from(data.len()).unwrap();
    queue.submit(&with_sgl(sqe, 2, SglDescriptor::in_capsule(len)), &data);
    let mut seen = Vec::new();
    while seen.iter().all(|&(slba, _)| slba != 0) {
        let request = step.next();
        let total: u64 = request.ranges().iter().map(|range| range.blocks).sum();
        assert!(total <= PIECE);
        seen.extend(request.ranges().iter().map(|r| (r.slba, r.blocks)));
        request.complete(Ok(()));
    }
    assert_eq!(queue.recv().cqe().status, SUCCESS);
    let of = |from: u64| -> u64 {
        let all = seen.iter().filter(|range| range.0 >> 30 == from >> 30);
        all.map(|range| range.1).sum()
    };
    assert_eq!((of(0), of(1 << 30)), ((1 << 17) + 3, 1 << 23));
}

/// Namespace Zeroes says in dword 0 that it has zeroed everything.
#[test]
fn a_whole_namespace_is_zeroed() {
    let (_target, address) = target();
    let (_admin, mut queue) = io(address);
    let data = Moves::FromHost(vec![7; 4096]);
    for slba in [0, BLOCKS - 8] {
        assert_eq!(
            run(&mut queue, command::write(1, slba, 8), &data).0,
            SUCCESS
        );
    }
    let whole = command::whole_namespace(command::write_zeroes(1, u64::MAX, 1, true));
    assert_eq!(run(&mut queue, whole, &Moves::Nothing), (SUCCESS, 1));
    for slba in [0, BLOCKS - 8] {
        assert_eq!(blocks(&mut queue, 1, slba, 8), [0; 4096]);
    }
}

/// One backend under two NSIDs and in two subsystems: what is written by one way is read by all.
#[test]
fn a_backend_may_be_served_more_than_once() {
    const OTHER: &str = "nqn.2026-11.org.example:other";
    let (target, address) = common::target(config());
    let disk = Arc::new(Inline::new(RamDisk::new(1 << 20, 512).unwrap()));
    target.add_namespace(NQN, 2, Arc::clone(&disk)).unwrap();
    target.add_namespace(NQN, 3, Arc::clone(&disk)).unwrap();
    target
        .add_subsystem(nvmf_target::SubsystemConfig::new(OTHER))
        .unwrap();
    target.add_namespace(OTHER, 9, disk).unwrap();
    let mut hosts = [NQN, OTHER].map(|nqn| {
        let options = nvmf_host::ConnectOptions::new(address, nqn).unwrap();
        nvmf_host::Controller::connect(&options).unwrap()
    });
    let mut ways = Vec::new();
    for (host, nsids) in hosts.iter_mut().zip([&[2, 3][..], &[9]]) {
        host.set_queue_count(2).unwrap();
        for (qid, &nsid) in (1..).zip(nsids) {
            let ns = host.namespace(nsid).unwrap();
            ways.push((ns, host.io_queue(qid).unwrap()));
        }
    }
    for writer in 0..ways.len() {
        let data = pattern(writer as u64, 4096);
        let (ns, queue) = &mut ways[writer];
        queue.write(ns, 8, &data).unwrap();
        for (ns, queue) in &mut ways {
            let mut back = vec![0; 4096];
            queue.read(ns, 8, &mut back).unwrap();
            assert_eq!(back, data);
        }
    }
    target.remove_namespace(NQN, 2).unwrap();
    let (ns, queue) = &mut ways[2];
    queue.write(ns, 0, &[1; 512]).unwrap();
    drop((ways, hosts));
    eventually("everything is given back", || {
        target.stats() == Default::default()
    });
}

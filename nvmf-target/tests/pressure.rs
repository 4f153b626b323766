//! Too little memory for what hosts ask: everything gets done all the same, and nobody is stuck.

mod common;

use common::raw::{self, Digests, Raw, read, write_by_r2t, write_in_capsule};
use common::step::Step;
use common::{
    NQN, Witness, assert_idle, config, connect, eventually, pattern, target, verified_io,
};
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::pdu::PduType;
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_host::{Data, command};
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: u32 = 1 << 20;

/// One reactor whose buffers are enough for two of the largest commands.
fn tight() -> TargetConfig {
    let mut config = config();
    config.reactors = 1;
    config.buffer_bytes = 2 << 20;
    config
}

/// Data in a capsule stands in front of the H2CData of earlier commands: it must be taken even
/// though they have all the buffers.
#[test]
fn in_capsule_data_is_taken_while_writes_that_wait_for_data_have_all_buffers() {
    let (target, address) = target(tight());
    let (admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    let (large, small) = (pattern(1, MIB as usize), pattern(2, 4096));
    for cid in 0..3 {
        queue.submit(&write_by_r2t(cid, u64::from(cid) * 2048, 2048), &[]);
    }
    for cid in 3..60 {
        queue.submit(&write_in_capsule(cid, 8192 + u64::from(cid) * 8, 8), &small);
    }
    let mut done = Vec::new();
    while done.len() < 60 {
        let pdu = queue.recv();
        if pdu.ch.pdu_type == PduType::R2T {
            let data = Digests::default().h2c_data(&pdu.r2t(), 0, &large, true);
            queue.send(&data);
        } else {
            let cqe = pdu.cqe();
            assert_eq!(cqe.status, Status::SUCCESS);
            done.push(cqe.cid);
        }
    }
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..60));
    drop((admin, queue));
    assert_idle(&target);
}

/// A reactor that does not spin sleeps only when it has nothing more to give.
#[test]
fn commands_that_wait_for_buffers_need_no_spinning_reactor() {
    let mut config = tight();
    config.busy_poll = Duration::ZERO;
    let (target, address) = target(config);
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let ns = controller.namespace(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    for _ in 0..20 {
        for tag in 0..64 {
            queue
                .submit_read(&ns, tag * 2048 % ns.blocks, vec![0; 128 << 10], tag)
                .unwrap();
        }
        let mut left = 64;
        while left > 0 {
            let done = queue.poll(common::PATIENCE).unwrap();
            assert!(done.len() > 0, "{left} reads are stuck");
            for done in done {
                done.success("Read").unwrap();
                left -= 1;
            }
        }
    }
    drop((controller, queue));
    assert_idle(&target);
}

/// The end of a host is seen although the target does not read from it at the moment.
#[test]
fn a_host_that_ends_while_the_target_does_not_read_is_let_go() {
    let (target, address) = target(tight());
    let mut host = Raw::open(address, Digests::default());
    let mut connect = raw::admin_connect();
    connect.sqsize = 1;
    host.connect_ok(&connect, &raw::connect_data());
    host.ok(&raw::enable(), &[]);
    // Two commands that never end fill the queue of two entries; the third cannot be taken.
    for cid in 0..3 {
        let mut sqe = command::async_event_request();
        sqe.set_cid(cid);
        host.submit(&sqe, &[]);
    }
    drop(host);
    assert_idle(&target);
}

/// Counts; takes its time over writes until it has been read.
#[derive(Default)]
struct Paced {
    writes: AtomicU64,
    written_at_read: AtomicU64,
}

impl BlockDevice for Paced {
    fn info(&self) -> NsInfo {
        NsInfo::new(4096, 1 << 20)
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        let written = self.writes.load(Ordering::SeqCst);
        self.written_at_read.fetch_max(written, Ordering::SeqCst);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if self.written_at_read.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// An emulated Write Zeroes of 256 MiB on a device that completes at once is 2048 writes in a row.
#[test]
fn a_long_command_lets_others_have_their_turns() {
    let (target, address) = target(tight());
    let device = Arc::new(Paced::default());
    target
        .add_namespace(NQN, 2, Inline::new(Arc::clone(&device)))
        .unwrap();
    let mut hosts = [connect(address), connect(address)];
    let mut queues = hosts.each_mut().map(|host| {
        host.set_queue_count(1).unwrap();
        host.io_queue(1).unwrap()
    });
    let ns = hosts[0].namespace(2).unwrap();
    let [long, short] = &mut queues;
    let zeroes = command::write_zeroes(2, 0, 65_536, false);
    let token = long.queue().submit(zeroes, Data::None).unwrap();
    assert!(long.queue().flush().unwrap());
    eventually("it has begun", || device.writes.load(Ordering::SeqCst) > 0);
    short.read(&ns, 0, &mut [1; 4096]).unwrap();
    let done = long.queue().wait_for("Write Zeroes", token).unwrap();
    done.success("Write Zeroes").unwrap();
    assert_eq!(device.writes.load(Ordering::SeqCst), 2048);
    assert!(device.written_at_read.load(Ordering::SeqCst) < 2048);
    drop((hosts, queues));
    assert_idle(&target);
}

/// Hosts that stop reading, or stop sending what they were asked for, hold some of the buffers; not
/// those that others need.
#[test]
fn hosts_that_stop_moving_data_do_not_stop_others() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 16 << 20);
    // However long the machine takes over this.
    config.stall_timeout = Duration::from_secs(3600);
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let mut queues: Vec<Raw> = (1..=8).map(|qid| Raw::io(address, cntlid, qid)).collect();
    let (readers, writers) = queues.split_at_mut(4);
    for queue in &mut *readers {
        for cid in 0..100 {
            queue.submit(&read(cid, u64::from(cid) * 256, 256), &[]);
        }
    }
    for queue in &mut *writers {
        for cid in 0..100 {
            queue.submit(&write_by_r2t(cid, u64::from(cid) * 256, 256), &[]);
        }
    }
    eventually("they have many buffers", || {
        target.stats().buffers_lent > 8 << 20
    });
    for _ in 0..100 {
        witness.works();
    }
    // So do hosts that come only now.
    verified_io(address, 1);
    // And what was begun can be finished.
    for queue in readers {
        let mut data = 0;
        let mut done = 0;
        while done < 100 {
            let pdu = queue.recv();
            if pdu.ch.plen > 24 {
                data += pdu.data().len();
            } else {
                assert_eq!(pdu.cqe().status, Status::SUCCESS);
                done += 1;
            }
        }
        assert_eq!(data, 100 * 256 * 512);
    }
    let block = pattern(1, 128 << 10);
    for queue in writers {
        let mut done = 0;
        while done < 100 {
            let pdu = queue.recv();
            if pdu.ch.pdu_type == PduType::R2T {
                let data = Digests::default().h2c_data(&pdu.r2t(), 0, &block, true);
                queue.send(&data);
            } else {
                assert_eq!(pdu.cqe().status, Status::SUCCESS);
                done += 1;
            }
        }
    }
    drop((admin, queues));
    witness.is_alone();
}

#[test]
fn hosts_that_hold_buffers_and_move_nothing_are_ended_when_others_wait() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 8 << 20);
    config.stall_timeout = Duration::from_millis(200);
    let (target, address) = target(config);
    // More hosts than the pool has room for: each asks for megabytes and reads none of them.
    let stuck: Vec<_> = (0..40)
        .map(|_| {
            let (admin, cntlid) = Raw::admin(address);
            let mut queue = Raw::io(address, cntlid, 1);
            for i in 0..12_u16 {
                queue.submit(&read(i, u64::from(i) * 2048, 2048), &[]);
            }
            (admin, queue)
        })
        .collect();
    verified_io(address, 5);
    drop(stuck);
    assert_idle(&target);
}

/// A first half that waits for a buffer when the next command, or its wrong second half, ends it:
/// it waits no longer, and whatever takes its place in the table has it alone.
#[test]
fn a_first_half_that_is_ended_waits_for_no_buffer() {
    let (target, address) = target(tight());
    let (admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    let large = pattern(1, MIB as usize);
    let [first, _] = command::compare_and_write(1, 0, 8);
    let [_, wrong] = command::compare_and_write(1, 1, 8);
    let small = SglDescriptor::transport(4096);
    let mut flush = command::flush(1);
    flush.set_cid(2);
    let wrong = raw::with_sgl(wrong, 2, small);
    for (next, want) in [
        (flush, [Status::ABORTED_MISSING_FUSED, Status::SUCCESS]),
        (wrong, [Status::INVALID_FIELD.dnr(); 2]),
    ] {
        queue.submit(&write_by_r2t(0, 0, 2048), &[]);
        let r2t = queue.recv().r2t();
        queue.submit(&raw::with_sgl(first, 1, small), &[]);
        queue.submit(&next, &[]);
        for (cid, status) in (1..).zip(want) {
            let cqe = queue.recv().cqe();
            assert_eq!((cqe.cid, cqe.status), (cid, status));
        }
        for cid in 3..6 {
            queue.submit(&read(cid, 4096, 8), &[]);
        }
        queue.send(&Digests::default().h2c_data(&r2t, 0, &large, true));
        assert_eq!(queue.recv().cqe().cid, 0);
        for cid in 3..6 {
            assert_eq!(queue.recv().data(), [0; 4096]);
            assert_eq!(queue.recv().cqe().cid, cid);
        }
        for _ in 0..200 {
            queue.read(&read(6, 4096, 8));
        }
        eventually("buffers are given back", || {
            target.stats().buffers_lent == 0
        });
        assert_eq!(target.stats().in_flight, 0);
    }
    drop((admin, queue));
    assert_idle(&target);
}

/// Tables that are full of writes that wait for their data and of first halves: what these hosts
/// send next cannot be taken, so that nothing there ever ends. They hold buffers that others need.
#[test]
fn hosts_with_a_first_half_in_a_full_queue_are_ended_when_others_wait() {
    let mut config = tight();
    config.stall_timeout = Duration::from_millis(200);
    let (target, address) = target(config);
    let (admin, cntlid) = Raw::admin(address);
    let data = ConnectData {
        cntlid,
        ..raw::connect_data()
    };
    let mut stuck = [1, 2].map(|qid| {
        let mut queue = Raw::open(address, Digests::default());
        let mut connect = raw::io_connect(qid);
        connect.sqsize = 1;
        queue.connect_ok(&connect, &data);
        queue.submit(&write_by_r2t(0, 0, 2048), &[]);
        queue.recv().r2t();
        queue
    });
    let [first, second] = command::compare_and_write(1, 0, 1);
    let block = SglDescriptor::in_capsule(512);
    for queue in &mut stuck {
        queue.submit(&raw::with_sgl(first, 1, block), &[0; 512]);
        queue.submit(&raw::with_sgl(second, 2, block), &[0; 512]);
    }
    let mut other = Raw::io(address, cntlid, 3);
    other.submit(&write_by_r2t(0, 0, 2048), &[]);
    let r2t = other.recv().r2t();
    let large = pattern(1, MIB as usize);
    other.send(&Digests::default().h2c_data(&r2t, 0, &large, true));
    assert_eq!(other.recv().cqe().status, Status::SUCCESS);
    drop((admin, stuck, other));
    assert_idle(&target);
}

/// The data of a second half has room even where its connection has its share already: what the
/// first half holds would not be given back before.
#[test]
fn a_second_half_does_not_wait_for_its_share() {
    const KIB: u32 = 1024;
    let (target, address) = target(tight());
    let (admin, cntlid) = Raw::admin(address);
    let mut queues: Vec<Raw> = (1..=5).map(|qid| Raw::io(address, cntlid, qid)).collect();
    let digests = Digests::default();
    let data = vec![0; 128 << 10];
    let half = SglDescriptor::transport(128 * KIB);
    let [first, second] = command::compare_and_write(1, 0, 256);
    queues[0].submit(&raw::with_sgl(first, 1, half), &[]);
    let r2t = queues[0].recv().r2t();
    queues[0].send(&digests.h2c_data(&r2t, 0, &data, true));
    // Hosts that take what the rules let them have.
    for (queue, kib) in (1..).zip([512, 512, 256, 256]) {
        queues[queue].submit(&write_by_r2t(0, 4096, kib * 2), &[]);
        queues[queue].recv().r2t();
    }
    queues[0].submit(&raw::with_sgl(second, 2, half), &[]);
    let r2t = queues[0].recv().r2t();
    queues[0].send(&digests.h2c_data(&r2t, 0, &data, true));
    for cid in 1..=2 {
        let cqe = queues[0].recv().cqe();
        assert_eq!((cqe.cid, cqe.status), (cid, Status::SUCCESS));
    }
    drop((admin, queues));
    assert_idle(&target);
}

/// Commands of many steps lend a buffer for each: what one step gives back does not go to the next
/// while others wait for it.
#[test]
fn emulated_commands_leave_buffers_to_others() {
    let target = Target::new(tight()).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let step = Step::new(NsInfo::new(512, 1 << 16));
    target.add_namespace(NQN, 1, step.clone()).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let mut busy = Raw::io(address, cntlid, 1);
    for cid in 0..16 {
        let sqe = command::verify(1, 0, 4096);
        busy.submit(&raw::with_sgl(sqe, cid, SglDescriptor::transport(0)), &[]);
    }
    eventually("the verifications have all buffers", || {
        target.stats().buffers_lent == 2 << 20
    });
    let mut other = Raw::io(address, cntlid, 2);
    other.submit(&read(0, 1 << 15, 256), &[]);
    // Answered behind the Read, which waits by now.
    other.submit(&read(1, u64::MAX, 1), &[]);
    assert_eq!(other.recv().cqe().status, Status::LBA_OUT_OF_RANGE.dnr());
    let mut steps = 0;
    loop {
        let request = step.next();
        if request.lba_range().slba == 1 << 15 {
            request.complete(Ok(()));
            break;
        }
        request.complete(Ok(()));
        steps += 1;
        assert!(steps < 64, "the Read of another host gets no buffer");
    }
    drop((admin, busy));
    while target.stats().in_flight > 0 {
        if step.pending() > 0 {
            step.next().complete(Ok(()));
        }
        std::thread::yield_now();
    }
    drop(other);
    assert_idle(&target);
}

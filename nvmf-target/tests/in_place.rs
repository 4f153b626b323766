//! Data that is sent from where a RAM disk has it, and written from where it was received: hosts
//! see no difference.

mod common;

use common::raw::{Digests, Raw, connect_data, io_connect, read, with_sgl, write_in_capsule};
use common::{NQN, assert_idle, config, connect, eventually, options, pattern, target};
use nvmf_host::Controller;
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_target::ns::{BlockDevice, Inline, RamDisk};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const KIB: usize = 1 << 10;

/// Hosts on two reactors, one that writes and one that reads the same 128 KiB, which is what a
/// write is atomic for. With data digests a read that changes while it is sent would be noticed
/// too.
#[test]
fn readers_see_no_half_of_a_write() {
    let (target, address) = target(config());
    let mut writer = connect(address);
    writer.set_queue_count(1).unwrap();
    let ns = writer.namespace(1).unwrap();
    let mut queue = writer.io_queue(1).unwrap();
    queue.write(&ns, 8, &vec![0; 128 * KIB]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for digest in [false, true] {
            let done = &done;
            scope.spawn(move || {
                let mut options = options(address);
                options.data_digest = digest;
                let mut reader = Controller::connect(&options).unwrap();
                reader.set_queue_count(1).unwrap();
                let ns = reader.namespace(1).unwrap();
                let mut queue = reader.io_queue(1).unwrap();
                let (mut large, mut small) = (vec![0; 128 * KIB], vec![0; 4 * KIB]);
                while !done.load(Ordering::Relaxed) {
                    queue.read(&ns, 8, &mut large).unwrap();
                    assert!(large.iter().all(|&b| b == large[0]));
                    queue.read(&ns, 8 + 100, &mut small).unwrap();
                    assert!(small.iter().all(|&b| b == small[0]));
                }
            });
        }
        for fill in (1..=255).cycle().take(600) {
            queue.write(&ns, 8, &vec![fill; 128 * KIB]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    drop((writer, queue));
    assert_idle(&target);
}

/// Reads whose host does not take their data keep it as it was when they were carried out.
#[test]
fn a_host_that_reads_late_gets_what_was_there() {
    for digests in [Digests::default(), Digests::BOTH] {
        let mut config = config();
        config.reactors = 1;
        let (target, address) = target(config);
        let mut writer = connect(address);
        writer.set_queue_count(1).unwrap();
        let ns = writer.namespace(1).unwrap();
        let mut queue = writer.io_queue(1).unwrap();
        let (old, new) = (pattern(1, 16 << 20), pattern(2, 16 << 20));
        for (slba, piece) in (0..).step_by(256).zip(old.chunks(128 * KIB)) {
            queue.write(&ns, slba, piece).unwrap();
        }
        let (_admin, cntlid) = Raw::admin(address);
        let mut late = Raw::io_with(address, cntlid, 1, digests);
        // Small ones and large ones, more than a socket holds.
        for cid in 0..120 {
            let blocks = if cid % 2 == 0 { 256 } else { 8 };
            late.submit(&read(cid, u64::from(cid) * 256, blocks), &[]);
        }
        // All that fit in the socket are sent, and the others have what they need.
        let mut lent = 0;
        eventually("the socket is full", || {
            std::mem::replace(&mut lent, target.stats().buffers_lent) == lent && lent > 0
        });
        for (slba, piece) in (0..).step_by(256).zip(new.chunks(128 * KIB)) {
            queue.write(&ns, slba, piece).unwrap();
        }
        let mut answered = 0;
        while answered < 120 {
            let pdu = late.recv();
            if pdu.ch.pdu_type == common::raw::C2H_DATA {
                let data = pdu.data();
                let at = usize::from(u16::from_le_bytes([pdu.bytes[8], pdu.bytes[9]])) * 128 * KIB;
                let part = at..at + data.len();
                assert!(data == &old[part.clone()] || data == &new[part], "{at}");
            } else {
                assert_eq!(pdu.cqe().status, Status::SUCCESS);
                answered += 1;
            }
        }
        drop((writer, queue, late, _admin));
        assert_idle(&target);
    }
}

/// However the stream is cut, a write in a capsule is the same write.
#[test]
fn writes_cut_anywhere_are_the_same() {
    for digests in [Digests::default(), Digests::BOTH] {
        let (target, address) = target(config());
        let (admin, cntlid) = Raw::admin(address);
        let mut queue = Raw::io_with(address, cntlid, 1, digests);
        let header = 72 + if digests.header { 4 } else { 0 };
        for (seed, cut) in (1..).zip([1, 8, header, header + 1, header + 2000, header + 4096]) {
            let data = pattern(seed, 4096);
            let capsule = digests.capsule(&write_in_capsule(1, 64, 8), &data);
            let (first, second) = capsule.split_at(cut.min(capsule.len()));
            queue.send(first);
            // The first part is received alone: another queue is served behind it.
            let mut other = Raw::io(address, cntlid, 2);
            other.read(&read(3, 0, 1));
            queue.send(second);
            assert_eq!(queue.recv().cqe().status, Status::SUCCESS, "cut at {cut}");
            assert!(queue.read(&read(2, 64, 8)) == data, "cut at {cut}");
        }
        drop((admin, queue));
        assert_idle(&target);
    }
}

/// A digest that is wrong keeps the data away from the device.
#[test]
fn wrong_digests_write_nothing() {
    let (target, address) = target(config());
    let (admin, cntlid) = Raw::admin(address);
    let data = ConnectData {
        cntlid,
        ..connect_data()
    };
    let mut queue = Raw::open(address, Digests::BOTH);
    queue.connect_ok(&io_connect(1), &data);
    let (good, bad) = (pattern(1, 4096), pattern(2, 4096));
    queue.ok(&write_in_capsule(1, 64, 8), &good);
    let mut capsule = Digests::BOTH.capsule(&write_in_capsule(2, 64, 8), &bad);
    *capsule.last_mut().unwrap() ^= 1;
    queue.send(&capsule);
    assert_eq!(queue.recv().cqe().status, Status::TRANSIENT_TRANSPORT_ERROR);
    assert!(queue.read(&read(3, 64, 8)) == good);
    drop((admin, queue));
    assert_idle(&target);
}

/// A piece of a command's data that is, by another format of its namespace, all that the command
/// asks for, is still a piece only: the format may be the old one again when the rest has come.
#[test]
fn a_piece_is_not_taken_for_the_whole() {
    let (target, address) = target(config());
    let large = Arc::new(RamDisk::new(16 << 20, 4096).unwrap());
    let small = Arc::new(RamDisk::new(16 << 20, 512).unwrap());
    let show = |disk: &Arc<RamDisk>| {
        let _ = target.remove_namespace(NQN, 1);
        let disk = Inline::new(Arc::clone(disk));
        target.add_namespace(NQN, 1, disk).unwrap();
    };
    show(&large);
    let (admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    let data = pattern(1, 8192);
    let whole = with_sgl(command::write(1, 8, 2), 1, SglDescriptor::transport(8192));
    queue.submit(&whole, &[]);
    let r2t = queue.recv().r2t();
    show(&small);
    queue.ok(&write_in_capsule(2, 0, 1), &pattern(2, 512));
    queue.send(&Digests::default().h2c_data(&r2t, 0, &data[..1024], false));
    // It is received before this is answered.
    queue.ok(&write_in_capsule(3, 0, 1), &pattern(3, 512));
    show(&large);
    let block = with_sgl(command::write(1, 0, 1), 4, SglDescriptor::in_capsule(4096));
    queue.ok(&block, &pattern(4, 4096));
    queue.send(&Digests::default().h2c_data(&r2t, 1024, &data[1024..], true));
    assert_eq!(queue.recv().cqe().status, Status::SUCCESS);
    let mut now = vec![0; 8192];
    large.read_at(8 * 4096, &mut now).unwrap();
    assert!(now == data);
    drop((admin, queue));
    assert_idle(&target);
}

//! Shortages of buffers: who gives way to others, who stays, and who gets the next buffer.

use super::{Host, MILLISECOND, SECOND, stepped_with};
use crate::common::raw::{Digests, read, write_by_r2t};
use crate::common::step::Step;
use crate::common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::pdu::{DataHeader, PduType, capsule_cqe};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_target::ns::{Inline, NsInfo, RamDisk};
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::MemConnector;

/// Three hosts' reads of 32 KiB that a device or they themselves keep: 2.8 MiB.
fn keep_buffers(
    sim: &mut SimTarget,
    connector: &MemConnector,
    sqe: impl Fn(u16) -> Sqe,
) -> Vec<(Host, Host)> {
    let keep = |_| {
        let (admin, cntlid) = Host::admin(sim, connector, 0);
        let mut io = Host::io(sim, connector, cntlid);
        (0..60).for_each(|cid| io.submit(&sqe(cid), &[]));
        sim.settle();
        (admin, io)
    };
    let keepers = (0..3).map(keep).collect();
    assert!(sim.target().stats().buffers_lent > 5 << 19);
    keepers
}

/// A shortage that nobody is to blame for: a device that hangs has 2.8 of 4 MiB, and a Read of 1 MiB
/// of namespace 2, a RAM disk, waits. What is returned keeps it going.
fn shortage() -> (SimTarget, MemConnector, impl Sized, (Host, Host)) {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let disk = Inline::new(RamDisk::new(4 << 20, 512).unwrap());
    sim.target().add_namespace(NQN, 2, disk).unwrap();
    let keepers = keep_buffers(&mut sim, &connector, |cid| read(cid, 0, 64));
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut large = Host::io(&mut sim, &connector, cntlid);
    large.submit(&of_disk(read(1, 0, 2048)), &[]);
    sim.settle();
    (sim, connector, (step, keepers), (admin, large))
}

fn of_disk(mut sqe: Sqe) -> Sqe {
    sqe.set_nsid(2);
    sqe
}

/// A byte a second is no use of buffers that others wait for, however many hold a little each: who
/// moves less than that is ended, and what comes in its place as well.
#[test]
fn s02_hosts_that_drip_give_way_when_others_wait() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 2 << 20);
    let disk = RamDisk::new(1 << 20, 512).unwrap();
    let (mut sim, connector) = stepped_with(config, Inline::new(disk));
    let mut witness = Host::admin(&mut sim, &connector, 0);
    let mut queue = Host::io(&mut sim, &connector, witness.1);
    let mut drips: Vec<_> = (0..200)
        .map(|_| {
            let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
            let mut io = Host::io(&mut sim, &connector, cntlid);
            io.submit(&write_by_r2t(1, 0, 32), &[]);
            sim.settle();
            (admin, io, None)
        })
        .collect();
    let header = |pdu: Vec<u8>| DataHeader::decode(pdu.first_chunk().unwrap());
    let holding = sim.target().stats().buffers_lent;
    assert_eq!(holding, 2 << 20, "they have it all");
    queue.submit(&read(1, 0, 256), &[]);
    let mut seconds = 0;
    while queue.next().is_none() {
        seconds += 1;
        assert!(seconds <= 15, "the Read gets no buffer");
        sim.set_time(sim.time() + SECOND);
        for (_, io, sent) in &mut drips {
            if let Some(pdu) = io.next() {
                let data = Digests::default().h2c_data(&header(pdu), 0, &[0; 16 << 10], true);
                *sent = Some(data.into_iter());
            }
            if let Some(byte) = sent.as_mut().and_then(Iterator::next) {
                io.send(&[byte]);
            }
        }
        sim.settle();
    }
    assert!(seconds >= 5, "they have their time");
    assert!(!witness.0.is_ended());
    drop((drips, queue, witness));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// Commands that need no buffer are no use of those that wait for data.
#[test]
fn s02_hosts_that_send_anything_but_data_give_way_when_others_wait() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let disk = RamDisk::new(4 << 20, 512).unwrap();
    let (mut sim, connector) = stepped_with(config, Inline::new(disk));
    let mut keepers = keep_buffers(&mut sim, &connector, |cid| write_by_r2t(cid, 0, 64));
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut large = Host::io(&mut sim, &connector, cntlid);
    large.submit(&read(1, 0, 2048), &[]);
    let mut seconds = 0;
    while large.inbox.is_empty() {
        seconds += 1;
        assert!(seconds <= 15, "the Read gets no buffer");
        sim.set_time(sim.time() + SECOND);
        for (_, io) in &mut keepers {
            for _ in 0..600 {
                let mut sqe = read(100, 0, 1);
                sqe.set_nsid(99);
                io.submit(&sqe, &[]);
            }
            sim.settle();
            while io.next().is_some() {}
        }
        sim.settle();
        large.is_ended();
    }
    assert!(seconds >= 5, "they have their time");
    drop((keepers, large, admin));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// What one host that does not send its data gives back the next one gets; each is given less time
/// than those before it, so that a crowd of them does not hold up others by as many timeouts.
#[test]
fn s02_a_crowd_that_sends_nothing_gives_way_ever_faster() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 2 << 20);
    let disk = RamDisk::new(1 << 20, 512).unwrap();
    let (mut sim, connector) = stepped_with(config, Inline::new(disk));
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut queue = Host::io(&mut sim, &connector, cntlid);
    let crowd: Vec<_> = (0..600)
        .map(|_| {
            let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
            let mut io = Host::io(&mut sim, &connector, cntlid);
            (0..5).for_each(|cid| io.submit(&write_by_r2t(cid, 0, 64), &[]));
            sim.settle();
            (admin, io)
        })
        .collect();
    queue.submit(&read(1, 0, 128), &[]);
    let begun = sim.time();
    while queue.next().is_none() {
        let next = sim.next_deadline().unwrap();
        sim.set_time(next.max(sim.time() + MILLISECOND));
        sim.settle();
        assert!(sim.time() < begun + 60 * SECOND, "the Read gets no buffer");
    }
    let took = (sim.time() - begun) / SECOND;
    assert!(took <= 30, "{took} s");
    drop((crowd, queue, admin));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// A host that makes use of what it holds, though slowly, is not ended: what it moves counts, not how
/// long it takes over all of it.
#[test]
fn s02_a_slow_host_that_moves_what_it_holds_stays() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 2 << 20);
    let disk = RamDisk::new(2 << 20, 512).unwrap();
    let (mut sim, connector) = stepped_with(config, Inline::new(disk));
    let (mut admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut slow = Host::io(&mut sim, &connector, cntlid);
    slow.submit(&write_by_r2t(1, 0, 2048), &[]);
    sim.settle();
    let pdu = slow.next().unwrap();
    let header = DataHeader::decode(pdu.first_chunk().unwrap());
    // Others wait for a buffer meanwhile.
    let (other, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut queue = Host::io(&mut sim, &connector, cntlid);
    for cid in 1..=2 {
        queue.submit(&write_by_r2t(cid, 0, 2048), &[]);
    }
    sim.settle();
    let data = Digests::default().h2c_data(&header, 0, &vec![0; 1 << 20], true);
    for piece in data.chunks(32 << 10) {
        sim.set_time(sim.time() + SECOND);
        slow.send(piece);
        sim.settle();
        assert!(!slow.is_ended() && !admin.is_ended());
    }
    let cqe = capsule_cqe(slow.next().unwrap().first_chunk().unwrap());
    assert_eq!(cqe.status, Status::SUCCESS);
    drop((slow, admin, queue, other));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// Writes that a device takes from where they were received are data as well.
#[test]
fn s02_a_host_whose_writes_are_done_in_place_stays() {
    let (mut sim, connector, _keep, _large) = shortage();
    let (_admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut io = Host::io(&mut sim, &connector, cntlid);
    (0..4).for_each(|cid| io.submit(&of_disk(write_by_r2t(cid, 0, 32)), &[]));
    sim.settle();
    for tenth in 0..600 {
        sim.set_time(sim.time() + 100 * MILLISECOND);
        let pdus: Vec<_> = std::iter::from_fn(|| io.next()).collect();
        for pdu in pdus {
            if pdu[0] == PduType::CAPSULE_RESP.0 {
                let cqe = capsule_cqe(pdu.first_chunk().unwrap());
                assert_eq!(cqe.status, Status::SUCCESS);
                io.submit(&of_disk(write_by_r2t(cqe.cid, 0, 32)), &[]);
            } else {
                let header = DataHeader::decode(pdu.first_chunk().unwrap());
                io.send(&Digests::default().h2c_data(&header, 0, &[0; 16 << 10], true));
            }
        }
        sim.settle();
        assert!(!io.is_ended(), "ended after {tenth} tenths of a second");
    }
}

/// A host that moves data all the time may pause, however long the shortage has lasted.
#[test]
fn s02_a_host_that_pauses_in_a_long_shortage_stays() {
    let (mut sim, connector, _keep, _large) = shortage();
    let (_admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut io = Host::io(&mut sim, &connector, cntlid);
    io.submit(&of_disk(write_by_r2t(1, 0, 128)), &[]);
    sim.settle();
    let mut data = Vec::new();
    let mut paused = 0;
    for tenth in 0..500 {
        sim.set_time(sim.time() + 100 * MILLISECOND);
        // In the middle of its data, for three seconds.
        if tenth > 300 && !data.is_empty() && paused < 30 {
            paused += 1;
            sim.settle();
            assert!(!io.is_ended(), "ended after {paused} tenths of a second");
            continue;
        }
        while let Some(pdu) = io.next() {
            if pdu[0] == PduType::CAPSULE_RESP.0 {
                io.submit(&of_disk(write_by_r2t(1, 0, 128)), &[]);
            } else {
                let header = DataHeader::decode(pdu.first_chunk().unwrap());
                data = Digests::default().h2c_data(&header, 0, &[0; 64 << 10], true);
            }
        }
        let piece: Vec<u8> = data.drain(..data.len().min(10_000)).collect();
        io.send(&piece);
        sim.settle();
        assert!(!io.is_ended());
    }
    assert_eq!(paused, 30);
}

/// Sixteen hosts keep a device busy with reads of 128 KiB; between them there is never room for one of
/// 1 MiB. It is not passed over for ever.
#[test]
fn s65_a_large_command_gets_a_buffer_among_many_smaller_ones() {
    const READS: u16 = 100;
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 16 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let mut busy: Vec<_> = (0..16)
        .map(|_| {
            let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
            let mut io = Host::io(&mut sim, &connector, cntlid);
            for cid in 0..READS {
                io.submit(&read(cid, 0, 256), &[]);
            }
            (admin, io)
        })
        .collect();
    sim.settle();
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut io = Host::io(&mut sim, &connector, cntlid);
    io.submit(&read(0, 1 << 16, 2048), &[]);
    sim.settle();
    let mut before = 0;
    loop {
        let request = step.next();
        let is_large = request.lba_range().slba == 1 << 16;
        request.complete(Ok(()));
        if is_large {
            break;
        }
        before += 1;
        assert!(before < 600, "1 MiB is never free");
        sim.settle();
        for (_, io) in &mut busy {
            assert!(!io.is_ended());
            io.inbox.clear();
        }
    }
    assert!(before > 100, "there was no shortage");
    drop((busy, io, admin));
    loop {
        sim.settle();
        if step.pending() == 0 {
            break;
        }
        step.next().complete(Ok(()));
    }
    assert_eq!(sim.target().stats(), Default::default());
}

/// What a device that hangs has cannot be had, whoever waits for it. Others get on with the rest, but
/// for moments in which the one that waits is tried to be helped.
#[test]
fn s65_a_large_command_that_cannot_be_served_stops_nobody_for_long() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 4 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let disk = Inline::new(RamDisk::new(4 << 20, 512).unwrap());
    sim.target().add_namespace(NQN, 2, disk).unwrap();
    let mut keepers = keep_buffers(&mut sim, &connector, |cid| read(cid, 0, 64));
    let of_disk = |cid, blocks| {
        let mut sqe = read(cid, 0, blocks);
        sqe.set_nsid(2);
        sqe
    };
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut other = Host::io(&mut sim, &connector, cntlid);
    let (second, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut large = Host::io(&mut sim, &connector, cntlid);
    large.submit(&of_disk(1, 2048), &[]);
    let mut late = 0;
    for cid in 0..300 {
        sim.set_time(sim.time() + SECOND);
        other.submit(&of_disk(cid, 8), &[]);
        sim.settle();
        for waited in 0.. {
            if other.next().is_some() {
                other.inbox.clear();
                break;
            }
            assert!(waited < 2, "after {cid} s nothing is read any more");
            late += 1;
            sim.set_time(sim.time() + SECOND);
            sim.settle();
        }
    }
    assert!(late < 30, "{late} s of 300");
    // The device goes on, and so does the large one.
    for _ in 0..1000 {
        sim.settle();
        if step.pending() > 0 {
            step.next().complete(Ok(()));
        }
        for (_, io) in &mut keepers {
            assert!(!io.is_ended());
            io.inbox.clear();
        }
        large.is_ended();
    }
    assert!(large.inbox.len() > 1 << 20, "the large one is not served");
    drop((keepers, admin, second, other, large));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// Who gives a claim on buffers up shortly before it lapses, for another of his connections to have
/// the next one, keeps others from theirs no more than by one claim.
#[test]
fn s65_claims_that_are_given_up_rest_like_others() {
    let (mut sim, connector, _keep, first) = shortage();
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let second = (admin, Host::io(&mut sim, &connector, cntlid));
    let mut large = [first, second];
    let (_a, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut taker = Host::io(&mut sim, &connector, cntlid);
    let (_b, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut victim = Host::io(&mut sim, &connector, cntlid);
    let (mut pending, mut late) = (false, 0);
    for tenth in 0..3000_usize {
        sim.set_time(sim.time() + 100 * MILLISECOND);
        if tenth % 24 == 0 {
            // The other one waits, the one that waits goes, others have overtaken enough.
            let turn = tenth / 24;
            let (old, new) = (turn % 2, (turn + 1) % 2);
            large[new].1.submit(&of_disk(read(1, 0, 2048)), &[]);
            sim.settle();
            large[old].0.submit(&command::abort(1, 1), &[]);
            sim.settle();
            for _ in 0..40 {
                (0..8).for_each(|cid| taker.submit(&of_disk(read(cid, 0, 64)), &[]));
                for _ in 0..2 {
                    sim.settle();
                    taker.is_ended();
                    taker.inbox.clear();
                }
            }
        }
        for (admin, io) in &mut large {
            assert!(!admin.is_ended() && !io.is_ended());
            (admin.inbox, io.inbox) = (Vec::new(), Vec::new());
        }
        if !pending {
            victim.submit(&of_disk(read(1, 0, 8)), &[]);
        }
        sim.settle();
        pending = victim.next().is_none();
        victim.inbox.clear();
        late += u32::from(pending);
    }
    assert!(
        late < 300,
        "{late} of 3000 tenths of a second without an answer"
    );
}

/// A host that has sent all that it owes is not ended for what others keep from it: the buffer of the
/// other half of a fused pair.
#[test]
fn s65_half_a_pair_that_waits_for_a_buffer_stays() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 1 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped_with(config, step.clone());
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut pair = Host::io(&mut sim, &connector, cntlid);
    let [mut compare, mut write] = command::compare_and_write(1, 0, 8);
    for (cid, sqe) in [(1, &mut compare), (2, &mut write)] {
        sqe.set_cid(cid);
        sqe.set_sgl(write_by_r2t(cid, 0, 8).sgl());
    }
    pair.submit(&compare, &[]);
    sim.settle();
    let header = DataHeader::decode(pair.next().expect("R2T").first_chunk().unwrap());
    pair.send(&Digests::default().h2c_data(&header, 0, &[0; 4096], true));
    sim.settle();
    // Reads of 4 KiB of as many hosts as it takes until nothing is left.
    let mut busy = Vec::new();
    while sim.target().stats().buffers_lent < 1 << 20 {
        let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
        let mut io = Host::io(&mut sim, &connector, cntlid);
        (0..60).for_each(|cid| io.submit(&read(cid, 0, 8), &[]));
        sim.settle();
        busy.push((admin, io));
    }
    pair.submit(&write, &[]);
    for _ in 0..30 {
        sim.set_time(sim.time() + SECOND);
        sim.settle();
        assert!(!pair.is_ended(), "it is ended for what others have");
    }
    drop((admin, pair, busy));
    loop {
        sim.settle();
        if step.pending() == 0 {
            break;
        }
        step.next().complete(Ok(()));
    }
    assert_eq!(sim.target().stats(), Default::default());
}

/// First halves have all buffers, and each waits for its second, which waits for a buffer. Some of
/// them are interrupted, so that others get on; no host is ended for it.
#[test]
fn s65_pairs_that_wait_for_one_another_get_on() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 1 << 20);
    let disk = RamDisk::new(1 << 20, 512).unwrap();
    let (mut sim, connector) = stepped_with(config, Inline::new(disk));
    let mut hosts: Vec<_> = (0..64)
        .map(|_| {
            let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
            (admin, Host::io(&mut sim, &connector, cntlid))
        })
        .collect();
    let [mut compare, mut write] = command::compare_and_write(1, 0, 32);
    for (cid, sqe) in [(1, &mut compare), (2, &mut write)] {
        sqe.set_cid(cid);
        sqe.set_sgl(write_by_r2t(cid, 0, 32).sgl());
    }
    let send_data = |io: &mut Host, pdu: Vec<u8>| {
        let header = DataHeader::decode(pdu.first_chunk().unwrap());
        io.send(&Digests::default().h2c_data(&header, 0, &[0; 16 << 10], true));
    };
    for (_, io) in &mut hosts {
        io.submit(&compare, &[]);
        sim.settle();
        let pdu = io.next().expect("R2T");
        send_data(io, pdu);
        sim.settle();
    }
    assert_eq!(sim.target().stats().buffers_lent, 1 << 20);
    for (_, io) in &mut hosts {
        io.submit(&write, &[]);
    }
    let mut ended = vec![0; hosts.len()];
    for _ in 0..60 {
        sim.settle();
        for (at, (_, io)) in hosts.iter_mut().enumerate() {
            assert!(!io.is_ended(), "a host is ended");
            while let Some(pdu) = io.next() {
                if pdu[0] == PduType::R2T.0 {
                    send_data(io, pdu);
                } else {
                    let cqe = capsule_cqe(pdu.first_chunk().unwrap());
                    let expected = [
                        Status::SUCCESS,
                        Status::COMMAND_INTERRUPTED,
                        Status::ABORTED_FAILED_FUSED,
                    ];
                    assert!(expected.contains(&cqe.status), "{}", cqe.status);
                    ended[at] += 1;
                }
            }
        }
        let step = sim.time() + 250 * MILLISECOND;
        sim.set_time(step);
    }
    assert_eq!(ended, [2; 64]);
    drop(hosts);
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

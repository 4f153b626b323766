//! What becomes of commands: data in both directions, responses, slots, SQHD.

use super::*;

/// A Connect command with its data in the capsule, from the ICReq to the response.
#[test]
fn in_capsule_write() {
    for (dgst, cpda) in [(0, 0), (1, 0), (2, 7), (3, 31)] {
        let config = Config {
            cpda,
            ..Config::default()
        };
        let mut driver = Driver::open(&config, &QUEUE, 0, dgst);
        let wire = driver.wire;
        let data = pattern(2, 8192);
        let slot = driver.command(&wire.command(&write(5, 8192), &data));
        assert!(driver.is_wait(WaitFor::Command(slot)));
        driver.target.receive(slot, 8192);
        let crc = (dgst & 2 != 0).then_some(0);
        assert_eq!(
            driver.target.need(),
            Need::Payload {
                slot,
                offset: 0,
                len: 8192,
                crc
            }
        );
        assert_eq!(
            driver.feed(&[]),
            [Event::Received {
                slot,
                digest_ok: true
            }]
        );
        assert_eq!(*driver.buffer(slot), data);
        assert!(!driver.target.has_transmit());
        driver.target.complete(slot, OK);
        assert_eq!(driver.send_one().cqe().cid, 5);
    }
}

#[test]
fn r2t_write_in_several_h2c_data() {
    for (dgst, cpda) in [(0, 0), (1, 0), (2, 7), (3, 31)] {
        let config = Config {
            cpda,
            maxh2cdata: 4096,
            ..Config::default()
        };
        let mut driver = Driver::open(&config, &QUEUE, 0, dgst);
        let wire = driver.wire;
        let data = pattern(3, 10_000);
        let slot = driver.command(&wire.command(&write(5, 10_000), &[]));
        driver.target.receive(slot, 10_000);
        let r2t = driver.r2t();
        assert_eq!((r2t.cccid, r2t.offset, r2t.length), (5, 0, 10_000));
        assert_eq!(
            driver.feed(&wire.h2c_data(5, r2t.ttag, 0, &data[..4096], false)),
            []
        );
        // Other commands may stand between the data PDUs.
        let other = driver.command(&wire.command(&flush(6), &[]));
        assert_eq!(
            driver.feed(&wire.h2c_data(5, r2t.ttag, 4096, &data[4096..4100], false)),
            []
        );
        let events = driver.feed(&wire.h2c_data(5, r2t.ttag, 4100, &data[4100..8196], false));
        assert_eq!(events, []);
        let events = driver.feed(&wire.h2c_data(5, r2t.ttag, 8196, &data[8196..], true));
        assert_eq!(
            events,
            [Event::Received {
                slot,
                digest_ok: true
            }]
        );
        assert_eq!(*driver.buffer(slot), data);
        driver.target.complete(other, OK);
        driver.target.complete(slot, OK);
        let cids: Vec<u16> = driver.send().iter().map(|pdu| pdu.cqe().cid).collect();
        assert_eq!(cids, [6, 5]);
    }
}

#[test]
fn read_data() {
    for (dgst, hpda) in [(0, 0), (1, 0), (2, 5), (3, 31), (1, 31)] {
        let mut driver = Driver::open(&Config::default(), &QUEUE, hpda, dgst);
        let wire = driver.wire;
        let slot = driver.command(&wire.command(&read(9, 5000), &[]));
        let data = pattern(4, 5000);
        *driver.buffer(slot) = data.clone();
        driver.target.complete(
            slot,
            Done {
                data_len: 5000,
                ..OK
            },
        );
        let [c2h, resp] = &driver.send()[..] else {
            panic!()
        };
        assert_eq!(c2h.ch.pdu_type, PduType::C2H_DATA);
        assert_eq!(usize::from(c2h.ch.pdo) % ((usize::from(hpda) + 1) * 4), 0);
        assert!(usize::from(c2h.ch.pdo) < 28 + (usize::from(hpda) + 1) * 4);
        assert!(c2h.ch.flags.contains(PduFlags::LAST_PDU));
        assert!(!c2h.ch.flags.contains(PduFlags::SUCCESS));
        let want = DataHeader {
            cccid: 9,
            ttag: 0,
            offset: 0,
            length: 5000,
        };
        assert_eq!((c2h.data_header(), &c2h.data), (want, &data));
        assert_eq!(
            resp.cqe(),
            Cqe {
                result: 0,
                sqhd: 1,
                cid: 9,
                status: Status::SUCCESS
            }
        );
        assert_eq!(driver.target.outstanding(), 0);
    }
}

/// SUCCESS instead of a CapsuleResp: only without SQ flow control, and only if a CQE would say
/// nothing.
#[test]
fn success_flag() {
    let done = |status, result, data_len| Done {
        status,
        result,
        data_len,
    };
    let cases = [
        (false, done(Status::SUCCESS, 0, 512), 1, true),
        (false, done(Status::SUCCESS, 1, 512), 2, false),
        (false, done(Status::SUCCESS.dnr(), 0, 512), 2, false),
        (false, done(Status::SUCCESS, 0, 0), 1, false),
        (
            false,
            done(Status::UNRECOVERED_READ_ERROR, 0, 512),
            1,
            false,
        ),
        (true, done(Status::SUCCESS, 0, 512), 2, false),
        (true, done(Status::UNRECOVERED_READ_ERROR, 0, 512), 1, false),
    ];
    for (flow_control, done, pdus, success) in cases {
        let queue = QueueConfig {
            flow_control,
            ..QUEUE
        };
        let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
        let wire = driver.wire;
        let slot = driver.command(&wire.command(&read(9, 512), &[]));
        *driver.buffer(slot) = pattern(5, 512);
        driver.target.complete(slot, done);
        let sent = driver.send();
        assert_eq!(sent.len(), pdus, "{done:?}");
        assert_eq!(
            sent[0].ch.flags.contains(PduFlags::SUCCESS),
            success,
            "{done:?}"
        );
        if !success {
            let sqhd = if flow_control { 1 } else { u16::MAX };
            let Done { status, result, .. } = done;
            assert_eq!(
                sent[pdus - 1].cqe(),
                Cqe {
                    result,
                    sqhd,
                    cid: 9,
                    status
                }
            );
        }
        assert_eq!(driver.target.outstanding(), 0);
    }
}

#[test]
fn sqhd_counts_commands_taken_and_wraps() {
    let queue = QueueConfig {
        entries: 3,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
    let wire = driver.wire;
    for want in [1, 2, 0, 1, 2, 0] {
        let slot = driver.command(&wire.command(&flush(1), &[]));
        driver.target.complete(slot, OK);
        assert_eq!(driver.send_one().cqe().sqhd, want);
    }
    let slots: Vec<Slot> = (0..3)
        .map(|cid| driver.command(&wire.command(&flush(cid), &[])))
        .collect();
    for slot in slots {
        driver.target.complete(slot, OK);
        assert_eq!(driver.send_one().cqe().sqhd, 0, "all three have been taken");
    }
    let queue = QueueConfig {
        entries: 65_536,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
    for want in (1..=u16::MAX).chain([0, 1]) {
        let slot = driver.command(&wire.command(&flush(1), &[]));
        driver.target.complete(slot, OK);
        assert_eq!(driver.send_one().cqe().sqhd, want);
    }
}

#[test]
fn data_digest_mismatch_spoils_the_command_only() {
    let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 2);
    let wire = driver.wire;
    let mut capsule = wire.command(&write(1, 512), &[1; 512]);
    let at = capsule.len() - 1;
    capsule[at] ^= 0x80;
    let slot = driver.command(&capsule);
    driver.target.receive(slot, 512);
    assert_eq!(
        driver.feed(&[]),
        [Event::Received {
            slot,
            digest_ok: false
        }]
    );
    driver
        .target
        .complete(slot, failed(Status::TRANSIENT_TRANSPORT_ERROR));
    assert_eq!(
        driver.send_one().cqe().status,
        Status::TRANSIENT_TRANSPORT_ERROR
    );

    // First, middle, last, none of three H2CData.
    for bad in 0..4 {
        let slot = driver.command(&wire.command(&write(1, 1536), &[]));
        driver.target.receive(slot, 1536);
        let tag = driver.r2t().ttag;
        let mut events = Vec::new();
        for i in 0..3 {
            let mut pdu = wire.h2c_data(1, tag, i * 512, &[2; 512], i == 2);
            if i == bad {
                pdu[24 + 100] ^= 1;
            }
            events.extend(driver.feed(&pdu));
        }
        assert_eq!(
            events,
            [Event::Received {
                slot,
                digest_ok: bad == 3
            }]
        );
        driver.target.complete(slot, OK);
        assert_eq!(driver.send_one().cqe().status, Status::SUCCESS);
    }

    // A driver that forgets the CRC does not get away with it.
    let slot = driver.command(&wire.command(&write(1, 512), &[1; 512]));
    driver.target.receive(slot, 512);
    driver.input.drain(..512);
    assert_eq!(driver.target.placed(512, None), None);
    assert_eq!(
        driver.feed(&[]),
        [Event::Received {
            slot,
            digest_ok: false
        }]
    );
}

#[test]
fn complete_before_in_capsule_data() {
    for dgst in [0, 2] {
        let mut driver = Driver::open(&Config::default(), &QUEUE, 0, dgst);
        let wire = driver.wire;
        let capsule = wire.command(&write(1, 512), &[1; 512]);
        let slot = driver.command(&capsule[..72]);
        driver.target.complete(slot, failed(Status::INVALID_OPCODE));
        let len = if dgst == 0 { 512 } else { 516 };
        assert_eq!(driver.target.need(), Need::Discard { len });
        // The response does not wait for the data, and the slot is another command's by the time
        // the data has come.
        assert_eq!(driver.send_one().cqe().status, Status::INVALID_OPCODE);
        assert_eq!(driver.target.outstanding(), 0);
        assert_eq!(driver.feed(&capsule[72..]), []);
        let other = driver.command(&wire.command(&flush(2), &[]));
        assert_ne!(slot, other);
        assert_eq!(slot.index(), other.index());
    }
}

#[test]
fn complete_in_the_middle_of_in_capsule_data() {
    // Behind how many bytes of data and digest.
    for behind in [1, 511, 512, 514] {
        let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 2);
        let wire = driver.wire;
        let capsule = wire.command(&write(1, 512), &[1; 512]);
        let slot = driver.command(&capsule[..72]);
        driver.target.receive(slot, 512);
        assert_eq!(driver.feed(&capsule[72..72 + behind]), []);
        driver
            .target
            .complete(slot, failed(Status::ABORT_REQUESTED));
        assert_eq!(driver.send_one().cqe().status, Status::ABORT_REQUESTED);
        assert_eq!(driver.feed(&capsule[72 + behind..]), []);
        driver.command(&wire.command(&flush(2), &[]));
    }
}

#[test]
fn complete_between_receive_and_r2t() {
    let mut driver = plain();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&write(1, 4096), &[]));
    driver.target.receive(slot, 4096);
    driver
        .target
        .complete(slot, failed(Status::ABORT_REQUESTED));
    assert_eq!(
        driver.send_one().cqe().status,
        Status::ABORT_REQUESTED,
        "instead of the R2T"
    );
    assert_eq!(driver.target.outstanding(), 0);
}

/// What an Abort needs to know: which command has a CID, whether it can still be ended and whether
/// its end is told at once.
#[test]
fn find_and_end() {
    let mut driver = plain();
    let wire = driver.wire;
    let gone = failed(Status::ABORT_REQUESTED);
    assert_eq!(driver.target.find(1), None);
    let idle = driver.command(&wire.command(&read(1, 512), &[]));
    let queued = driver.command(&wire.command(&write(2, 512), &[]));
    let twin = driver.command(&wire.command(&write(2, 512), &[]));
    assert_eq!(driver.target.find(1), Some(idle));
    assert_eq!(
        driver.target.find(2),
        Some(queued),
        "the one that was first"
    );
    assert_eq!(driver.target.find(3), None);
    driver
        .target
        .complete(twin, failed(Status::COMMAND_ID_CONFLICT));
    assert!(!driver.target.awaits_data(queued));
    driver.target.receive(queued, 512);
    assert!(driver.target.awaits_data(queued));
    // No R2T has left: nothing stands between the command and its response.
    assert!(driver.target.complete(queued, gone));
    assert!(!driver.target.complete(queued, gone), "once only");
    assert_eq!(driver.target.find(2), None, "it has its outcome");
    assert!(driver.target.complete(idle, gone));
    driver.send();
    // The host sends what the R2T asks for before it can be told.
    let sending = driver.command(&wire.command(&write(4, 512), &[]));
    driver.target.receive(sending, 512);
    let r2t = driver.r2t();
    assert!(driver.target.awaits_data(sending));
    assert!(!driver.target.complete(sending, gone));
    assert!(!driver.target.awaits_data(sending));
    assert_eq!(driver.target.find(4), None);
    assert!(!driver.target.has_transmit());
    driver.feed(&wire.h2c_data(4, r2t.ttag, 0, &[1; 512], true));
    assert_eq!(driver.send_one().cqe().status, Status::ABORT_REQUESTED);
    assert!(!driver.target.complete(sending, gone), "stale");
    assert!(!driver.target.awaits_data(sending), "stale");
}

/// The response to a command waits until the host has sent all that the R2T asked for.
#[test]
fn complete_during_r2t() {
    for dgst in [0, 3] {
        // Completed before which of the H2CData, and behind how many bytes of it.
        for (pdu, behind) in [
            (0, 0),
            (0, 24),
            (0, 100),
            (1, 0),
            (1, 200),
            (2, 0),
            (2, 530),
        ] {
            let mut driver = Driver::open(&Config::default(), &QUEUE, 0, dgst);
            let wire = driver.wire;
            let slot = driver.command(&wire.command(&write(1, 1536), &[]));
            driver.target.receive(slot, 1536);
            let tag = driver.r2t().ttag;
            for i in 0..3 {
                let bytes = wire.h2c_data(1, tag, i * 512, &[2; 512], i == 2);
                let behind = if i == pdu { behind } else { 0 };
                assert_eq!(driver.feed(&bytes[..behind]), []);
                if i == pdu {
                    let done = failed(Status::WRITE_FAULT);
                    driver.target.complete(slot, done);
                    driver.target.complete(slot, OK);
                }
                assert!(!driver.target.has_transmit());
                assert_eq!(driver.feed(&bytes[behind..]), []);
            }
            assert_eq!(driver.send_one().cqe().status, Status::WRITE_FAULT);
            assert_eq!(driver.target.outstanding(), 0);
        }
    }
}

#[test]
fn cid_conflict() {
    let mut driver = plain();
    let wire = driver.wire;
    let conflict = |driver: &mut Driver, cid| {
        let events = driver.feed(&wire.command(&flush(cid), &[]));
        let [
            Event::Command {
                slot, cid_conflict, ..
            },
        ] = events[..]
        else {
            panic!()
        };
        (slot, cid_conflict)
    };
    let (first, no) = conflict(&mut driver, 0xffff);
    assert!(!no);
    let (second, yes) = conflict(&mut driver, 0xffff);
    assert!(yes && first != second);
    driver
        .target
        .complete(second, failed(Status::COMMAND_ID_CONFLICT));
    driver.send();
    let (third, yes) = conflict(&mut driver, 0xffff);
    assert!(yes, "the first is still there");
    let (_, no) = conflict(&mut driver, 0xfffe);
    assert!(!no);
    driver.target.complete(first, OK);
    let (_, yes) = conflict(&mut driver, 0xffff);
    assert!(yes, "its response has not been handed over");
    driver.poll();
    let (_, no) = conflict(&mut driver, 0xffff);
    assert!(
        !no,
        "the host may have the response before transmitted() has been told"
    );
    driver.target.complete(third, OK);
    driver.send();
    let (_, yes) = conflict(&mut driver, 0xffff);
    assert!(yes, "a conflicting command frees nothing");
}

#[test]
fn slot_exhaustion_parks_the_stream() {
    let queue = QueueConfig {
        entries: 2,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 0, 3);
    let wire = driver.wire;
    let first = driver.command(&wire.command(&flush(1), &[]));
    let second = driver.command(&wire.command(&write(2, 512), &[]));
    driver.target.receive(second, 512);
    let tag = driver.r2t().ttag;
    // Data still passes when there is no slot free.
    assert_eq!(driver.target.need(), Need::Bytes { min: 8 });
    let events = driver.feed(&wire.h2c_data(2, tag, 0, &[1; 512], true));
    assert_eq!(
        events,
        [Event::Received {
            slot: second,
            digest_ok: true
        }]
    );

    let third = wire.command(&flush(3), &[]);
    assert_eq!(driver.feed(&third[..8]), []);
    assert!(driver.is_wait(WaitFor::Slot));
    assert_eq!(driver.target.parse(&third).unwrap().used, 0);
    driver.target.complete(first, OK);
    assert!(driver.is_wait(WaitFor::Slot), "the response has not left");
    let bytes = driver.poll();
    driver
        .target
        .transmitted(bytes.len() - 1, |slot| panic!("{slot:?}"));
    assert!(driver.is_wait(WaitFor::Slot), "its last byte has not left");
    let mut released = Vec::new();
    driver.target.transmitted(1, |slot| released.push(slot));
    assert_eq!(released, [first]);
    assert_eq!(driver.target.need(), Need::Bytes { min: 8 });
    let slot = driver.command(&third[8..]);
    assert_eq!(slot.index(), first.index());
    assert_ne!(slot, first);
}

/// Writes whose data has come do not wait for it any more.
#[test]
fn received_data_is_no_deadlock() {
    let queue = QueueConfig {
        entries: 2,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
    let wire = driver.wire;
    let received = |driver: &mut Driver, cid, abandon| {
        let slot = driver.command(&wire.command(&write(cid, 512), &[]));
        driver.target.receive(slot, 512);
        let tag = driver.r2t().ttag;
        if abandon {
            driver.target.complete(slot, failed(Status::WRITE_FAULT));
        }
        driver.feed(&wire.h2c_data(cid, tag, 0, &[1; 512], true));
        slot
    };
    for abandon in [false, true, false] {
        if abandon {
            received(&mut driver, 0, true);
            driver.send();
        }
        let slots = [1, 2].map(|cid| received(&mut driver, cid, false));
        assert_eq!(driver.feed(&wire.command(&flush(3), &[])), []);
        assert!(driver.is_wait(WaitFor::Slot));
        for slot in slots {
            driver.target.complete(slot, OK);
        }
        driver.send();
        let flush = driver.command(&[]);
        driver.target.complete(flush, OK);
        driver.send();
    }
}

/// Progress that is reported before there is any does not count for what comes later.
#[test]
fn transmitted_is_bounded_by_what_was_handed_over() {
    let mut driver = plain();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&flush(1), &[]));
    driver
        .target
        .transmitted(usize::MAX, |slot| panic!("{slot:?}"));
    driver.target.complete(slot, OK);
    driver.target.transmitted(1000, |slot| panic!("{slot:?}"));
    assert_eq!(driver.poll().len(), 24);
    driver.target.transmitted(23, |slot| panic!("{slot:?}"));
    assert_eq!(driver.target.outstanding(), 1);
    driver.target.transmitted(usize::MAX, |_| {});
    assert_eq!(driver.target.outstanding(), 0);
}

/// Half of the slots wait for data behind the parked capsule, the other half do not.
#[test]
fn a_working_command_is_no_deadlock() {
    let queue = QueueConfig {
        entries: 2,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
    let wire = driver.wire;
    let working = driver.command(&wire.command(&flush(1), &[]));
    let slot = driver.command(&wire.command(&write(2, 512), &[]));
    driver.target.receive(slot, 512);
    let tag = driver.r2t().ttag;
    let mut bytes = wire.command(&flush(3), &[]);
    bytes.extend(wire.h2c_data(2, tag, 0, &[1; 512], true));
    assert_eq!(driver.feed(&bytes), []);
    assert!(driver.is_wait(WaitFor::Slot));
    driver.target.complete(working, OK);
    driver.send();
    let events = driver.feed(&[]);
    assert!(
        matches!(events[..], [Event::Command { .. }, Event::Received { .. }]),
        "{events:?}"
    );
}

#[test]
fn stale_slots_and_wrong_moments_are_ignored() {
    let mut driver = plain();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&flush(1), &[]));
    driver.target.receive(slot, 0);
    assert!(!driver.target.has_transmit(), "an R2T for nothing");
    driver.target.complete(slot, OK);
    driver.target.receive(slot, 512);
    driver.target.complete(slot, failed(Status::INTERNAL_ERROR));
    let cqe = driver.send_one().cqe();
    assert_eq!(cqe.status, Status::SUCCESS, "the first answer counts");
    let next = driver.command(&wire.command(&flush(2), &[]));
    for stale in [
        slot,
        Slot::new(7, 0),
        Slot::new(8, 0),
        Slot::new(u16::MAX, 0),
    ] {
        driver.target.complete(stale, OK);
        driver.target.receive(stale, 512);
    }
    assert_eq!(driver.target.placed(512, None), None);
    assert!(!driver.target.has_transmit());
    assert_eq!(driver.target.outstanding(), 1);
    driver.target.complete(next, OK);
    assert_eq!(driver.send_one().cqe().cid, 2);
}

/// A list that is full takes the rest in the next round, in the same order.
#[test]
fn a_full_list_goes_on_later() {
    let queue = QueueConfig {
        entries: 64,
        ..QUEUE
    };
    let mut driver = Driver::open(&Config::default(), &queue, 31, 3);
    let wire = driver.wire;
    let slots: Vec<Slot> = (0..64)
        .map(|cid| driver.command(&wire.command(&read(cid, 8), &[])))
        .collect();
    for &slot in &slots {
        *driver.buffer(slot) = pattern(slot.index() as u32, 8);
        driver.target.complete(slot, Done { data_len: 8, ..OK });
    }
    let mut list = TxList::new(0, 0);
    assert!(driver.target.poll_transmit(&mut list));
    assert!(driver.target.has_transmit());
    assert!(!driver.target.poll_transmit(&mut list), "no room");
    let mut released = Vec::new();
    driver
        .target
        .transmitted(list.remaining(), |slot| released.push(slot));
    assert_eq!(released, slots[..1]);
    let cids: Vec<u16> = driver
        .send()
        .iter()
        .map(|pdu| pdu.data_header().cccid)
        .collect();
    assert_eq!(cids.len(), 126);
    assert_eq!(driver.target.outstanding(), 0);
}

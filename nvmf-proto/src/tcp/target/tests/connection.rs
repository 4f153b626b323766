//! What becomes of a connection: ICReq and ICResp, Connect, deadlines, the end.

use super::*;
use crate::tcp::target::CloseReason;
use crate::tcp::{Negotiated, Time};

#[test]
fn handshake() {
    let config = Config {
        data_digest: false,
        cpda: 7,
        maxh2cdata: 65_536,
        ..Config::default()
    };
    let mut driver = Driver::new(&config);
    assert_eq!(driver.target.need(), Need::Bytes { min: 8 });
    assert_eq!(driver.target.negotiated(), None);
    let agreed = Negotiated {
        header_digest: true,
        data_digest: false,
        hpda: 31,
        cpda: 7,
        maxr2t: 0,
        maxh2cdata: 65_536,
    };
    assert_eq!(driver.feed(&ic_req(31, 3)), [Event::Ready(agreed)]);
    assert_eq!(driver.target.negotiated(), Some(agreed));
    let bytes = driver.poll();
    let want = InitConnection {
        pfv: 0,
        pda: 7,
        dgst: 1,
        max: 65_536,
    };
    assert_eq!(bytes, want.encode(PduType::IC_RESP));
}

#[test]
fn config_is_moved_into_its_bounds() {
    for (given, want) in [((200, 0), (31, 4096)), ((3, 65_539), (3, 65_536))] {
        let (cpda, maxh2cdata) = given;
        let mut driver = Driver::new(&Config {
            cpda,
            maxh2cdata,
            ..Config::default()
        });
        driver.feed(&ic_req(0, 0));
        let agreed = driver.target.negotiated().unwrap();
        assert_eq!((agreed.cpda, agreed.maxh2cdata), want);
    }
    for (entries, want) in [(0, 2), (1, 2), (2, 2), (65_536, 65_536), (u32::MAX, 65_536)] {
        let queue = QueueConfig { entries, ..QUEUE };
        let driver = Driver::open(&Config::default(), &queue, 0, 0);
        assert_eq!(driver.target.slots(), want);
    }
}

#[test]
fn connect() {
    for (flow_control, sqhd) in [(true, 1), (false, u16::MAX)] {
        let mut driver = Driver::new(&Config::default());
        driver.feed(&ic_req(0, 0));
        driver.send();
        assert_eq!(driver.target.slots(), 1);
        let wire = driver.wire;
        let data = pattern(1, 1024);
        let slot = driver.command(&wire.command(&write(0, 1024), &data));
        driver.target.receive(slot, 1024);
        assert_eq!(
            driver.feed(&[]),
            [Event::Received {
                slot,
                digest_ok: true
            }]
        );
        assert_eq!(*driver.buffer(slot), data);

        // The host may not send a second command yet; if it does it waits.
        assert_eq!(driver.feed(&wire.command(&flush(0), &[])), []);
        assert!(driver.is_wait(WaitFor::Slot));
        driver.target.open_queue(&QueueConfig {
            flow_control,
            ..QUEUE
        });
        assert_eq!((driver.target.slots(), driver.target.outstanding()), (8, 1));
        let [Event::Command { cid_conflict, .. }] = driver.feed(&[])[..] else {
            panic!()
        };
        assert!(cid_conflict, "the Connect command still has CID 0");

        driver.target.complete(slot, Done { result: 0x17, ..OK });
        let sqhd = if flow_control { sqhd + 1 } else { sqhd };
        let want = Cqe {
            result: 0x17,
            sqhd,
            cid: 0,
            status: Status::SUCCESS,
        };
        assert_eq!(driver.send_one().cqe(), want);
        assert_eq!(driver.target.outstanding(), 1);
        // A second call changes nothing.
        driver.target.open_queue(&QueueConfig {
            entries: 100,
            ..QUEUE
        });
        assert_eq!(driver.target.slots(), 8);
    }
}

#[test]
fn refused_connect() {
    let mut driver = Driver::new(&Config::default());
    driver.feed(&ic_req(0, 0));
    driver.send();
    let wire = driver.wire;
    for cid in 0..3 {
        let slot = driver.command(&wire.command(&write(cid, 1024), &[0; 1024]));
        driver
            .target
            .complete(slot, failed(Status::CONNECT_INVALID_HOST));
        assert_eq!(driver.feed(&[]), []);
        let cqe = driver.send_one().cqe();
        assert_eq!(
            (cqe.cid, cqe.sqhd, cqe.status),
            (cid, 0, Status::CONNECT_INVALID_HOST)
        );
    }
    // The one that succeeds is the first entry of its queue, whatever came before.
    let slot = driver.command(&wire.command(&write(3, 1024), &[]));
    driver.target.open_queue(&QUEUE);
    driver.target.complete(slot, OK);
    assert_eq!(driver.send_one().cqe().sqhd, 1);
}

#[test]
fn a_connect_whose_data_needs_an_r2t() {
    let mut driver = Driver::new(&Config::default());
    driver.feed(&ic_req(0, 0));
    driver.send();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&write(0, 1024), &[]));
    driver.target.receive(slot, 1024);
    let tag = driver.r2t().ttag;
    let events = driver.feed(&wire.h2c_data(0, tag, 0, &[1; 1024], true));
    assert_eq!(
        events,
        [Event::Received {
            slot,
            digest_ok: true
        }]
    );
    driver.target.open_queue(&QUEUE);
    driver.target.complete(slot, OK);
    assert_eq!(driver.send_one().cqe().status, Status::SUCCESS);
    assert_eq!(driver.target.outstanding(), 0);
}

#[test]
fn the_end_of_the_stream_closes() {
    let mut driver = plain();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&flush(1), &[]));
    driver.target.complete(slot, OK);
    driver.target.peer_closed();
    assert_eq!(driver.target.need(), Need::Closed);
    assert_eq!(driver.target.poll_timeout(), None);
    assert!(!driver.target.has_transmit() && driver.poll().is_empty());
    assert_eq!(driver.feed(&wire.command(&flush(2), &[])), []);
}

#[test]
fn deadlines() {
    let config = Config {
        ic_timeout: 100,
        connect_timeout: 200,
        linger: 300,
        ..Config::default()
    };
    let expires = |driver: &mut Driver, from: u64, after: u64, reason| {
        let target = &mut driver.target;
        assert_eq!(target.poll_timeout(), Some(Time(0)), "to be started");
        assert_eq!(target.handle_timeout(Time(from)), None);
        assert_eq!(target.poll_timeout(), Some(Time(from + after)));
        assert_eq!(target.handle_timeout(Time(from + after - 1)), None);
        assert_eq!(
            target.handle_timeout(Time(from + after)),
            Some(Event::Closed(reason))
        );
        assert_eq!((target.need(), target.poll_timeout()), (Need::Closed, None));
        assert_eq!(target.handle_timeout(Time(u64::MAX)), None);
        assert!(!target.has_transmit());
    };
    expires(
        &mut Driver::new(&config),
        1000,
        100,
        CloseReason::IcReqTimeout,
    );

    let mut driver = Driver::new(&config);
    driver.target.handle_timeout(Time(1000));
    driver.feed(&ic_req(0, 0));
    expires(&mut driver, 1099, 200, CloseReason::ConnectTimeout);

    let mut driver = Driver::open(&config, &QUEUE, 0, 0);
    assert_eq!(
        driver.target.poll_timeout(),
        None,
        "an open queue may be idle"
    );
    driver.feed(&[0xff; 8]);
    driver.send();
    expires(&mut driver, 5000, 300, CloseReason::LingerTimeout);

    let mut driver = Driver::new(&config);
    driver.feed(&[0xff; 8]);
    driver.target.peer_closed();
    assert_eq!(
        driver.target.poll_timeout(),
        None,
        "the host has closed in time"
    );

    let mut driver = Driver::new(&Config {
        ic_timeout: u64::MAX,
        ..config
    });
    assert_eq!(driver.target.handle_timeout(Time(5)), None);
    assert_eq!(driver.target.poll_timeout(), Some(Time(u64::MAX)));
}

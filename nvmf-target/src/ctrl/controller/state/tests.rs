use super::*;
use crate::ctrl::testing::{Rig, conn};
use crate::ctrl::{Expiry, Fault};
use nvmf_proto::wire::fabrics::{PropertySet, PropertySize};
use nvmf_proto::wire::property::PropertyOffset;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
const ASSOCIATION: Duration = Duration::from_secs(120);
const SEQUENCE_ERROR: Refusal = Refusal::status(Status::COMMAND_SEQUENCE_ERROR);

fn caller(conn: &ConnRef, again: bool) -> Caller {
    Caller {
        conn: conn.clone(),
        local_ip: None,
        now: Time(0),
        again,
    }
}

fn set_cc(rig: &Rig, cc: Cc, now: Time) -> Result<(), Fault> {
    let set = PropertySet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CC,
        value: cc.0.into(),
    };
    rig.controller.property_set(&set, now)
}

fn csts(rig: &Rig) -> Csts {
    lock(&rig.controller.state).csts
}

const ON: Cc = Cc(0x0046_0001);
const OFF: Cc = Cc(0x0046_0000);

fn shut(cc: Cc) -> Cc {
    cc.with_shn(Cc::SHN_NORMAL)
}

/// RDY and SHST.
fn status(rig: &Rig) -> (bool, u32) {
    (csts(rig).rdy(), csts(rig).shst())
}

#[test]
fn traffic_on_a_queue_that_is_gone_still_counts() {
    let rig = Rig::nvm();
    let controller = &rig.controller;
    controller.admin_stats().active(Time(1));
    controller.grant_queues(1);
    rig.enable();
    let stats = rig.add_queue(1, Time(2));
    let at = Time(9 * SECOND);
    stats.active(at);
    let deadline = Some((at.after(5 * SECOND), Expiry::KeepAlive));
    assert_eq!(controller.deadline(ASSOCIATION), deadline);
    controller.queue_gone(1);
    assert_eq!(controller.deadline(ASSOCIATION), deadline);
}

/// The Keep Alive Timer runs while the controller is in use; otherwise its time is limited anyway.
#[test]
fn a_controller_that_is_not_in_use_ends_in_time() {
    let rig = Rig::nvm();
    let unused = |since: u64| Some((Time(since).after(120 * SECOND), Expiry::Unused));
    let deadline = || rig.controller.deadline(ASSOCIATION);
    assert_eq!(deadline(), unused(0), "never enabled");
    set_cc(&rig, ON, Time(10)).unwrap();
    rig.controller.admin_stats().active(Time(10));
    let keep_alive = Some((Time(10 + 5 * SECOND), Expiry::KeepAlive));
    assert_eq!(deadline(), keep_alive);
    set_cc(&rig, OFF, Time(20)).unwrap();
    assert_eq!(deadline(), unused(20), "disabled");
    set_cc(&rig, ON, Time(30)).unwrap();
    assert_eq!(deadline(), keep_alive);
    set_cc(&rig, shut(ON), Time(40)).unwrap();
    assert_eq!(deadline(), unused(40), "shut down");
    set_cc(&rig, shut(ON), Time(50)).unwrap();
    assert_eq!(deadline(), unused(40), "nothing new");
}

#[test]
fn resets_and_shutdowns_wait_for_the_queues_and_shutdowns_for_caches() {
    use Csts as C;
    let (normal, occurring, complete) = (C::SHST_NORMAL, C::SHST_OCCURRING, C::SHST_COMPLETE);
    let rig = || {
        let rig = Rig::nvm();
        rig.enable();
        rig.controller.grant_queues(2);
        rig.add_queue(1, Time(0));
        rig
    };
    // A reset.
    let reset = rig();
    set_cc(&reset, OFF, Time(0)).unwrap();
    assert_eq!(status(&reset), (true, normal));
    assert!(!reset.controller.enabled() && !reset.controller.begin_flush());
    reset.controller.queue_gone(1);
    assert_eq!(status(&reset), (false, normal));
    assert_eq!(reset.controller.granted_queues(), None);
    // A shutdown.
    let shutdown = rig();
    set_cc(&shutdown, shut(ON), Time(0)).unwrap();
    assert_eq!(status(&shutdown), (true, occurring));
    assert!(!shutdown.controller.begin_flush(), "there is a queue");
    shutdown.controller.queue_gone(1);
    assert_eq!(status(&shutdown), (true, occurring));
    assert!(shutdown.controller.begin_flush());
    assert!(!shutdown.controller.begin_flush(), "once");
    shutdown.controller.flushed(true);
    assert_eq!(status(&shutdown), (true, complete));
    assert!(!shutdown.controller.enabled() && shutdown.controller.is_ready());
    // Only a reset brings it back.
    set_cc(&shutdown, ON, Time(0)).unwrap();
    assert!(!shutdown.controller.enabled());
    set_cc(&shutdown, OFF, Time(0)).unwrap();
    assert_eq!(status(&shutdown), (false, normal));
    set_cc(&shutdown, ON, Time(0)).unwrap();
    assert!(shutdown.controller.enabled());
    // Both in one write, or a reset on top: the caches first.
    for writes in [&[shut(OFF)][..], &[shut(ON), OFF], &[shut(ON), shut(OFF)]] {
        let both = rig();
        for &cc in writes {
            set_cc(&both, cc, Time(0)).unwrap();
        }
        both.controller.queue_gone(1);
        assert_eq!(status(&both), (true, occurring), "{writes:?}");
        assert!(both.controller.begin_flush(), "{writes:?}");
        both.controller.flushed(true);
        let last = writes.last().map_or(0, |cc| cc.shn());
        let shst = if last == 0 { normal } else { complete };
        assert_eq!(status(&both), (false, shst), "{writes:?}");
    }
    // What could not be flushed is seen as long as the shutdown is.
    for (writes, shown) in [
        (&[shut(ON)][..], true),
        (&[shut(OFF)], true),
        (&[shut(ON), OFF], false),
    ] {
        let broken = rig();
        for &cc in writes {
            set_cc(&broken, cc, Time(0)).unwrap();
        }
        broken.controller.queue_gone(1);
        assert!(broken.controller.begin_flush());
        broken.controller.flushed(false);
        assert_eq!(lock(&broken.controller.state).csts.cfs(), shown);
        set_cc(&broken, OFF, Time(0)).unwrap();
        set_cc(&broken, ON, Time(0)).unwrap();
        assert!(!lock(&broken.controller.state).csts.cfs(), "a new start");
    }
    // Enabled with SHN set: never in use.
    let shut_on = Rig::nvm();
    set_cc(&shut_on, shut(ON), Time(0)).unwrap();
    assert!(shut_on.controller.begin_flush());
    shut_on.controller.flushed(true);
    assert_eq!(status(&shut_on), (true, complete));
    assert!(!shut_on.controller.enabled());
    // Enabled again while the reset is under way.
    let again = rig();
    set_cc(&again, OFF, Time(0)).unwrap();
    set_cc(&again, ON, Time(0)).unwrap();
    assert!(!again.controller.enabled());
    again.controller.queue_gone(1);
    assert_eq!(status(&again), (true, normal));
    assert!(again.controller.enabled());
}

/// Every field of CC with values that are and are not taken; what is not taken changes nothing.
#[test]
fn fields_of_cc() {
    let table: [(&str, Cc, bool); 18] = [
        ("EN", ON, true),
        ("SHN 00b", ON, true),
        ("SHN 01b", ON.with_shn(1), true),
        ("SHN 10b", ON.with_shn(2), true),
        ("SHN 11b", ON.with_shn(3), false),
        ("CSS 001b", ON.with_css(1), false),
        ("CSS 110b", ON.with_css(Cc::CSS_ALL), false),
        ("CSS 111b", ON.with_css(Cc::CSS_ADMIN_ONLY), false),
        ("MPS 1", ON.with_mps(1), false),
        ("AMS 1", ON.with_ams(1), false),
        ("IOSQES 6, IOCQES 4", ON, true),
        ("IOSQES 0", ON.with_iosqes(0), true),
        ("IOSQES 7", ON.with_iosqes(7), false),
        ("IOCQES 0", ON.with_iocqes(0), true),
        ("IOCQES 5", ON.with_iocqes(5), false),
        ("CRIME", ON.with_crime(true), false),
        ("bit 1", Cc(ON.0 | 1 << 1), false),
        ("bit 25", Cc(ON.0 | 1 << 25), false),
    ];
    for (what, cc, taken) in table {
        let rig = Rig::nvm();
        let outcome = set_cc(&rig, cc, Time(0));
        let now = lock(&rig.controller.state).cc;
        if taken {
            assert_eq!((outcome, now), (Ok(()), cc), "{what}");
        } else {
            let refused = Err(Fault::field(48));
            assert_eq!((outcome, now), (refused, Cc::default()), "{what}");
            assert_eq!(csts(&rig), Csts::default(), "{what}");
        }
    }
}

#[test]
fn of_two_that_want_a_queue_id_the_last_gets_it_when_it_is_free() {
    let rig = Rig::nvm();
    let controller = &rig.controller;
    rig.enable();
    controller.grant_queues(2);
    rig.add_queue(1, Time(0));
    let (first, last) = (conn(), conn());
    let ask = |conn: &ConnRef, again| controller.add_queue(1, caller(conn, again));
    assert!(matches!(ask(&first, false), Ok(Join::Later)));
    // Told of something else.
    assert!(matches!(ask(&first, true), Ok(Join::Later)));
    assert!(matches!(ask(&last, false), Ok(Join::Later)));
    assert_eq!(ask(&first, true).unwrap_err(), SEQUENCE_ERROR, "replaced");
    controller.queue_gone(1);
    assert_eq!(ask(&first, true).unwrap_err(), SEQUENCE_ERROR, "still");
    assert!(matches!(ask(&last, true), Ok(Join::Now(_))));
    assert_eq!(controller.io_queue_count(), 1);
    // It has what it wants: being told once more means nothing to others.
    assert_eq!(ask(&first, true).unwrap_err(), SEQUENCE_ERROR);
    // One that gave up is not waited for, and one that comes to a free QID is in time.
    assert!(matches!(ask(&first, false), Ok(Join::Later)));
    controller.forget_held(1, &first);
    controller.queue_gone(1);
    assert_eq!(ask(&first, true).unwrap_err(), SEQUENCE_ERROR);
    assert!(matches!(ask(&last, false), Ok(Join::Now(_))));
    // A reset ends the waiting.
    assert!(matches!(ask(&first, false), Ok(Join::Later)));
    set_cc(&rig, OFF, Time(0)).unwrap();
    assert_eq!(ask(&first, true).unwrap_err(), SEQUENCE_ERROR);
}

#[test]
fn keep_alive_timeouts_are_multiples_of_the_granularity() {
    let rig = Rig::nvm();
    for (asked, kept) in [
        (0, 0),
        (1, 100),
        (100, 100),
        (101, 200),
        (u32::MAX, 4_294_967_200),
    ] {
        rig.controller.set_kato_ms(asked);
        assert_eq!(rig.controller.kato_ms(), kept);
    }
}

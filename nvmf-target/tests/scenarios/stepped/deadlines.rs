//! Deadlines: of Keep Alive, of connections, of a shutdown; and a clock that jumps past all of them.

use super::{DAY, Host, SECOND, START, stepped};
use crate::common::raw::{Digests, disconnect, read, set_cc, write_by_r2t};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::pdu::DataHeader;
use nvmf_host::nvmf_proto::wire::property::Cc;
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::MemConnector;

fn assert_served(sim: &mut SimTarget, connector: &MemConnector) {
    let (mut admin, cntlid) = Host::admin(sim, connector, 0);
    let mut io = Host::io(sim, connector, cntlid);
    let cqe = io.execute(sim, &read(1, 0, 1), &[]);
    assert_eq!(cqe.status, Status::SUCCESS);
    let cqe = admin.execute(sim, &set_cc(Cc(0)), &[]);
    assert_eq!(cqe.status, Status::SUCCESS);
    drop((io, admin));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// At the very moment at which the Keep Alive Timeout expires the host ends its connections in any
/// order, disconnects a queue, resets the controller, or keeps it alive after all; and one reactor
/// learns of it before the other.
#[test]
fn s48_keep_alive_expires_at_the_moment_of_a_disconnect() {
    let (mut sim, connector) = stepped();
    for what in 0..6 {
        for turns in [[0, 1], [1, 0], [0, 0], [1, 1]] {
            for early in [false, true] {
                let (admin, cntlid) = Host::admin(&mut sim, &connector, 1000);
                let io = Host::io(&mut sim, &connector, cntlid);
                let expiry = sim.time() + SECOND;
                assert!(sim.next_deadline().is_some_and(|due| due <= expiry));
                sim.set_time(expiry - 1);
                sim.settle();
                assert_eq!(sim.target().stats().controllers, 1, "not before its time");
                if !early {
                    sim.set_time(expiry);
                    sim.turn(turns[0]);
                }
                let (mut admin, mut io) = (Some(admin), Some(io));
                match what {
                    0 => admin = None,
                    1 => io = None,
                    2 => (admin, io) = (None, None),
                    3 => io.iter_mut().for_each(|io| io.submit(&disconnect(), &[])),
                    4 => admin
                        .iter_mut()
                        .for_each(|admin| admin.submit(&set_cc(Cc(0)), &[])),
                    _ => admin
                        .iter_mut()
                        .for_each(|admin| admin.submit(&command::keep_alive(), &[])),
                }
                if early {
                    // Half of the target hears of it in time.
                    sim.turn(turns[0]);
                    sim.set_time(expiry);
                }
                sim.turn(turns[1]);
                sim.settle();
                drop((admin, io));
                sim.settle();
                let name = format!("{what}, {turns:?}, {early}");
                assert_eq!(sim.target().stats(), Default::default(), "{name}");
            }
        }
    }
    assert_served(&mut sim, &connector);
}

/// A machine that was asleep: time jumps over all deadlines at once. Who had one is ended, who has
/// none is served as ever, and a clock that goes back is not believed.
#[test]
fn s66_time_jumps() {
    for jump in [SECOND, 11 * SECOND, 121 * SECOND, DAY, 400 * DAY] {
        let (mut sim, connector) = stepped();
        let mut silent = Host::new(&connector);
        let mut opened = Host::open(&mut sim, &connector);
        let (mut timed, _) = Host::admin(&mut sim, &connector, 120_000);
        let (mut timeless, cntlid) = Host::admin(&mut sim, &connector, 0);
        let mut io = Host::io(&mut sim, &connector, cntlid);
        sim.settle();
        sim.set_time(START + jump);
        sim.set_time(START);
        assert_eq!(sim.time(), START + jump);
        sim.settle();
        for (host, seconds) in [(&mut silent, 10), (&mut opened, 10), (&mut timed, 120)] {
            assert_eq!(
                host.is_ended(),
                jump >= seconds * SECOND,
                "{seconds} s, {jump}"
            );
        }
        let cqe = io.execute(&mut sim, &read(1, 0, 1), &[]);
        assert_eq!(cqe.status, Status::SUCCESS);
        assert!(!timeless.is_ended());
        let due = sim.next_deadline().unwrap_or(u64::MAX);
        assert!(due > sim.time(), "nothing is overdue");
        drop((silent, opened, timed, timeless, io));
        sim.settle();
        assert_eq!(sim.target().stats(), Default::default());
        assert_served(&mut sim, &connector);
    }
}

/// A target that shuts down with a Write of 128 KiB for which it has asked: the host, which sends so
/// many bytes every tenth of a second, and after how many tenths it was over. True if the Write was
/// answered.
fn shut_down_with_a_host_that_sends(each: usize) -> (u32, bool) {
    let (mut sim, connector) = stepped();
    let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut io = Host::io(&mut sim, &connector, cntlid);
    io.submit(&write_by_r2t(1, 0, 256), &[]);
    sim.settle();
    let pdu = io.next().unwrap();
    let r2t = DataHeader::decode(pdu.first_chunk().unwrap());
    let data = Digests::default().h2c_data(&r2t, 0, &[7; 128 << 10], true);
    let mut pieces = data.chunks(each);
    let mut hosts = Some((admin, io));
    let (mut tenths, mut answered) = (0, false);
    sim.begin_shutdown();
    sim.settle();
    while !sim.is_over() {
        tenths += 1;
        assert!(tenths < 1000, "it does not end");
        sim.set_time(sim.time() + SECOND / 10);
        if let Some((_, io)) = &mut hosts {
            if let Some(piece) = pieces.next() {
                io.send(piece);
            }
            sim.settle();
            answered |= io.next().is_some();
            if io.is_ended() {
                hosts = None;
            }
        }
        sim.settle();
    }
    (tenths, answered)
}

/// A shutdown does not wait for a host that brings a byte now and then, or nothing, for longer than
/// two seconds; but for one whose link is slow until it is done.
#[test]
fn s60_a_shutdown_waits_for_slow_hosts_and_not_for_those_that_drip() {
    for each in [1, 100] {
        assert_eq!(
            shut_down_with_a_host_that_sends(each),
            (20, false),
            "{each}"
        );
    }
    // 64 KiB, and 12 KiB, per second.
    for (each, least) in [(6554, 20), (1229, 100)] {
        let (tenths, answered) = shut_down_with_a_host_that_sends(each);
        assert!(answered && tenths >= least, "{each}: {tenths}");
    }
}

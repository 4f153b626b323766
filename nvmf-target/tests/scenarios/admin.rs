//! Scenarios 45 to 52: admin commands, Keep Alive, authentication.

use crate::common::raw::{
    Digests, Raw, admin_connect, connect_data, disconnect, enable, keep_alive_timeout, read,
    set_cc, with_sgl, write_by_r2t,
};
use crate::common::{NQN, eventually};
use crate::fixture::{STEP, beside, scenario};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{FabricsType, PropertyGet, PropertySet, PropertySize};
use nvmf_host::nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{AdminOpcode, SglDescriptor, Sqe, Status};
use nvmf_target::SubsystemConfig;
use std::collections::BTreeSet;

/// Where the command dwords are in an SQE.
const CDW10: usize = 40;
const CDW11: usize = 44;
const CDW12: usize = 48;

fn set(sqe: &mut Sqe, at: usize, value: u32) {
    sqe.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn event_request(cid: u16) -> Sqe {
    let mut sqe = command::async_event_request();
    sqe.set_cid(cid);
    sqe
}

/// Every identifier of what can be read, with SGLs and offsets of all kinds: each is answered, and
/// never with more than was asked for.
#[test]
fn s45_every_cns_lid_and_fid() {
    scenario(|scene| {
        scene.cases(45);
        let (mut admin, _) = Raw::admin(scene.address);
        for opcode in [
            AdminOpcode::IDENTIFY,
            AdminOpcode::GET_LOG_PAGE,
            AdminOpcode::GET_FEATURES,
        ] {
            for identifier in 0..=255 {
                for (length, lpo) in [
                    (0, 0),
                    (1, 0),
                    (4, 3),
                    (4, !3),
                    (4095, 0),
                    (4096, 4),
                    (4096, 1 << 30),
                    (1 << 31, 0),
                ] {
                    let mut sqe = Sqe::with_opcode(opcode.0);
                    let numd = if opcode == AdminOpcode::GET_LOG_PAGE {
                        0xffff << 16
                    } else {
                        0
                    };
                    set(&mut sqe, CDW10, identifier | numd);
                    set(&mut sqe, CDW12, lpo);
                    let sgl = SglDescriptor::transport(length);
                    admin.submit(&with_sgl(sqe, 1, sgl), &[]);
                    let (_, status, moved) = admin.next_end();
                    assert!(moved <= length as usize, "{opcode:?} {identifier:#x}");
                    assert!(moved <= 1 << 20 && (status.is_success() || moved == 0));
                }
            }
        }
        drop(admin);
    });
}

/// More than there may be, and the end of their controller in every way.
#[test]
fn s46_asynchronous_event_requests() {
    scenario(|scene| {
        scene.cases(46);
        for round in 0..30 {
            let (mut admin, _) = Raw::admin(scene.address);
            for cid in 0..4 {
                admin.submit(&event_request(100 + cid), &[]);
            }
            for cid in 0..round % 8 {
                let cqe = admin.execute(&event_request(200 + cid), &[]);
                assert_eq!(cqe.status, Status::AER_LIMIT_EXCEEDED.dnr());
            }
            match round % 3 {
                // A reset answers them all.
                0 => {
                    admin.submit(&set_cc(Cc(0)), &[]);
                    for cid in 0..4 {
                        let cqe = admin.recv().cqe();
                        let ended = (100 + cid, Status::ABORTED_SQ_DELETION);
                        assert_eq!((cqe.cid, cqe.status), ended);
                    }
                    assert_eq!(admin.recv().cqe().status, Status::SUCCESS);
                }
                1 => {
                    let socket = socket2::SockRef::from(&admin.stream);
                    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
                }
                _ => {}
            }
        }
    });
}

/// Of what is and what is not: each command ends once, and each Abort is answered.
#[test]
fn s47_abort_of_anything() {
    scenario(|scene| {
        scene.cases(47);
        for round in 0..10 {
            let (mut admin, mut io) = scene.queues();
            admin.submit(&event_request(100), &[]);
            io.submit(&write_by_r2t(1, 0, 2), &[]);
            let r2t = io.recv().r2t();
            let mut held = read(2, 0, 8);
            held.set_nsid(STEP);
            io.submit(&held, &[]);
            let request = scene.step.next();
            // The request, the write, the backend's read, the Abort itself, what is unknown, and
            // queues that are not there.
            let mut asked = BTreeSet::new();
            let about = [
                (0, 100),
                (1, 1),
                (1, 2),
                (0, 7),
                (1, 999),
                (9, 1),
                (0xffff, 0),
            ];
            for (cid, (sqid, of)) in (1..).zip(about) {
                let mut abort = command::abort(sqid, of);
                abort.set_cid(cid);
                admin.submit(&abort, &[]);
                asked.insert(cid);
            }
            // Those of the backend and of the write may be waited for.
            if round % 2 == 0 {
                request.complete(Ok(()));
                io.send(&Digests::default().h2c_data(&r2t, 0, &[1; 1024], true));
                let ended: BTreeSet<_> = (0..2).map(|_| io.next_end().0).collect();
                assert_eq!(ended, [1, 2].into());
            } else {
                drop(io);
                request.complete(Ok(()));
            }
            asked.insert(100);
            while !asked.is_empty() {
                let (cid, _, _) = admin.next_end();
                assert!(asked.remove(&cid), "{cid} ends twice");
            }
            drop(admin);
        }
    });
}

/// Hosts with the shortest timeout there is: when the first one's has expired all others vanish, at
/// the moment at which their own does.
#[test]
fn s48_keep_alive_expires_while_hosts_disconnect() {
    scenario(|scene| {
        scene.cases(48);
        for round in 0..6 {
            let mut hosts: Vec<_> = (0..24).map(|_| scene.queues()).collect();
            for (admin, _) in &mut hosts {
                // It runs from here on.
                admin.ok(&keep_alive_timeout(100), &[]);
            }
            hosts[0].0.expect_end();
            for (n, (admin, mut io)) in hosts.into_iter().enumerate() {
                match (round + n) % 3 {
                    0 => drop(admin),
                    1 => drop(io),
                    _ => {
                        // The other end may have gone.
                        let bytes = Digests::default().capsule(&disconnect(), &[]);
                        let _ = std::io::Write::write(&mut io.stream, &bytes);
                    }
                }
            }
            eventually("all are gone", || {
                scene.target.stats() == Default::default()
            });
        }
    });
}

/// Keep Alive is answered while a backend is stalled.
#[test]
fn s48_keep_alive_is_answered_beside_a_backend_that_is_not() {
    scenario(|scene| {
        let (mut admin, mut io) = scene.queues();
        for cid in 0..100 {
            let mut held = read(cid, 0, 8);
            held.set_nsid(STEP);
            io.submit(&held, &[]);
        }
        let held = scene.step.take(100);
        for cid in 0..100 {
            let mut keep_alive = command::keep_alive();
            keep_alive.set_cid(cid);
            admin.ok(&keep_alive, &[]);
        }
        held.into_iter()
            .for_each(|request| request.complete(Ok(())));
        drop((io, admin));
    });
}

/// Every identifier, with and without Save, with no, one and all bits.
#[test]
fn s49_set_features_of_everything() {
    const SAVE: u32 = 1 << 31;
    scenario(|scene| {
        scene.cases(49);
        for fid in 0..=255 {
            // A controller each: a queue count or a timeout may be what is set.
            let mut admin = Raw::open(scene.address, Digests::default());
            admin.connect_ok(&admin_connect(), &connect_data());
            admin.ok(&enable(), &[]);
            for save in [0, SAVE] {
                for value in [0, 1 << 31, u32::MAX] {
                    let mut sqe = command::set_features(0, &SetFeatures::new(Fid(fid), value));
                    set(&mut sqe, CDW10, u32::from(fid) | save);
                    admin.submit(&with_sgl(sqe, 1, SglDescriptor::transport(4096)), &[]);
                    let (_, status, _) = admin.next_end();
                    let saved = save > 0 && status.is_success();
                    assert!(!saved, "{fid:#x} is saved nowhere");
                }
            }
            drop(admin);
        }
    });
}

/// Subsystems come and go while the discovery log is read: what is read is of one generation.
#[test]
fn s50_a_log_that_changes_while_it_is_read() {
    let other = |n| format!("nqn.2026-11.org.example:other-{n}");
    scenario(|scene| {
        scene.cases(50);
        let changes = || {
            for n in 0..8 {
                let config = SubsystemConfig::new(other(n));
                scene.target.add_subsystem(config).unwrap();
            }
            for n in 0..8 {
                scene.target.remove_subsystem(&other(n)).unwrap();
            }
        };
        beside(changes, || {
            for _ in 0..40 {
                let entries = match nvmf_host::discover(scene.address) {
                    Ok(entries) => entries,
                    // It has changed again each time that it was read again.
                    Err(nvmf_host::Error::BadAnswer(_)) => continue,
                    Err(err) => panic!("{err}"),
                };
                let names: BTreeSet<_> = entries.iter().map(|entry| entry.subnqn).collect();
                assert_eq!(names.len(), entries.len(), "an entry twice");
                let here = Nqn::new(NQN).unwrap().to_field();
                assert!(names.contains(&here), "one that was always there");
            }
        });
    });
}

/// Every offset and every size, to get and to set.
#[test]
fn s51_properties_of_every_size_and_offset() {
    scenario(|scene| {
        scene.cases(51);
        let get = PropertyGet {
            size: PropertySize::BYTES_4,
            offset: PropertyOffset::CSTS,
        };
        let set_none = PropertySet {
            size: PropertySize::BYTES_4,
            offset: PropertyOffset::CSTS,
            value: 0,
        };
        let (mut admin, _) = Raw::admin(scene.address);
        for offset in (0..=0x80).chain([0xfff, 0x1000, 0x1100, 1 << 31, u32::MAX]) {
            for size in 0..8 {
                for (mut sqe, sets) in [(get.to_sqe(), false), (set_none.to_sqe(), true)] {
                    sqe.0[CDW10] = size;
                    set(&mut sqe, CDW11, offset);
                    // CC with no bits is a reset, and that is allowed.
                    let status = admin.execute(&sqe, &[]).status;
                    let known = match size {
                        0 => [0x8, 0x14, 0x1c, 0x20, 0x68].contains(&offset),
                        1 => [0, 0x28, 0x30].contains(&offset),
                        _ => false,
                    };
                    let name = format!("{offset:#x}, size {size}, to set {sets}");
                    assert!(known || !status.is_success(), "{name}: {status}");
                }
            }
        }
        drop(admin);
    });
}

/// There is no authentication yet: its commands are refused on every kind of queue, before and
/// after Connect, with data and without, and nobody is told that there is any.
#[test]
fn s52_authentication_is_refused() {
    const SECURITY_SEND: u8 = 0x81;
    const SECURITY_RECEIVE: u8 = 0x82;
    scenario(|scene| {
        scene.cases(52);
        let mut opened = Raw::open(scene.address, Digests::default());
        let (mut admin, mut io) = scene.queues();
        let fabrics = [
            FabricsType::AUTHENTICATION_SEND,
            FabricsType::AUTHENTICATION_RECEIVE,
        ];
        let fabrics = fabrics.map(FabricsType::sqe);
        let security = [SECURITY_SEND, SECURITY_RECEIVE].map(Sqe::with_opcode);
        for length in [0, 1, 7, 8, 4096, u32::MAX] {
            for (n, mut sqe) in fabrics.into_iter().chain(security).enumerate() {
                // SECP E9h, SPSP 0101h, and the length as TL or AL.
                set(&mut sqe, CDW10, 0xe9_0101 << 8);
                set(&mut sqe, CDW11, length);
                let sqe = with_sgl(sqe, 1, SglDescriptor::transport(length));
                for queue in [&mut opened, &mut admin, &mut io] {
                    queue.submit(&sqe, &[]);
                    let (_, status, moved) = queue.next_end();
                    assert!(!status.is_success() && moved == 0, "{n}: {status}");
                }
            }
        }
        // A Connect does not ask for it: AUTHREQ, bits 31:16 of its dword 0, is 0.
        let (status, dw0) = opened.connect(&admin_connect(), &connect_data());
        assert_eq!((status, dw0 >> 16), (Status::SUCCESS, 0));
        drop((opened, io, admin));
    });
}

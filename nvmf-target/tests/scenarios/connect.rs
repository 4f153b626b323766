//! Scenarios 37 to 44: Connect, and what comes too early or too late.

use crate::common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, disconnect, enable, encode, io_connect,
    read, set_cc, set_queues, with_sgl, write_in_capsule,
};
use crate::common::{NQN, config, eventually};
use crate::fixture::{Scene, beside, host_nqn, scenario, scenario_with};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, PropertyGet, PropertySize};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::pdu::PduType;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use nvmf_target::SubsystemConfig;

const OTHER: &str = "nqn.2026-11.org.example:other";
const TOO_EARLY: Status = Status::COMMAND_SEQUENCE_ERROR;

/// Data of the Connect of an I/O queue.
fn joining(cntlid: u16) -> ConnectData {
    ConnectData {
        cntlid,
        ..connect_data()
    }
}

fn identify() -> Sqe {
    let sqe = command::identify(0, &IdentifyCommand::new(Cns::CONTROLLER));
    with_sgl(sqe, 3, SglDescriptor::transport(4096))
}

fn cap() -> Sqe {
    PropertyGet {
        size: PropertySize::BYTES_8,
        offset: PropertyOffset::CAP,
    }
    .to_sqe()
}

/// Beside the cases, which are about fields: every byte of the command and of its data turned over,
/// for both kinds of queue. Whatever is answered, the connection is good for a Connect that is
/// right, or over.
#[test]
fn s37_every_byte_of_connect() {
    scenario(|scene| {
        scene.cases(37);
        let (admin, cntlid) = Raw::admin(scene.address);
        for (command, data) in [
            (admin_connect(), connect_data()),
            (io_connect(1), joining(cntlid)),
        ] {
            let (sqe, bytes) = (connect_sqe(&command), encode(&data));
            // Bytes 2 and 3 are the CID.
            let of_sqe = (0..64)
                .filter(|at| ![2, 3].contains(at))
                .map(|at| (at, None));
            let of_data = (0..1024).step_by(3).map(|at| (0, Some(at)));
            for (at, in_data) in of_sqe.chain(of_data) {
                let (mut sqe, mut bytes) = (sqe, bytes);
                match in_data {
                    Some(at) => bytes[at] ^= 0xff,
                    None => sqe.0[at] ^= 0xff,
                }
                let mut raw = Raw::open(scene.address, Digests::default());
                raw.submit(&sqe, &bytes);
                let answer = raw.recv();
                let is_refused = answer.ch.pdu_type == PduType::CAPSULE_RESP
                    && !answer.cqe().status.is_success();
                if is_refused {
                    raw.connect_ok(&command, &data);
                }
                drop(raw);
                // The QID may be the same.
                eventually("it is gone", || scene.target.stats().connections == 1);
            }
        }
        drop(admin);
    });
}

/// Between the Connect of its admin queue and that of its I/O queue a host is taken off the list:
/// its association ends and it does not come in again, while another works on.
#[test]
fn s38_the_host_list_changes_between_the_connects() {
    scenario(|scene| {
        let target = &scene.target;
        let name = |host| host_nqn(host).as_str().to_owned();
        target.add_host(NQN, &name(1)).unwrap();
        target.allow_any_host(NQN, false).unwrap();
        let stays = scene.load(1);
        let guest = ConnectData {
            hostnqn: host_nqn(2).to_field(),
            ..connect_data()
        };
        for _ in 0..20 {
            target.add_host(NQN, &name(2)).unwrap();
            let mut admin = Raw::open(scene.address, Digests::default());
            let cntlid = admin.connect_ok(&admin_connect(), &guest);
            admin.ok(&enable(), &[]);
            admin.ok(&set_queues(1), &[]);
            let mut io = Raw::open(scene.address, Digests::default());
            target.remove_host(NQN, &name(2)).unwrap();
            let (status, _) = io.connect(&io_connect(1), &ConnectData { cntlid, ..guest });
            assert!(!status.is_success(), "it has slipped in");
            admin.expect_end();
            let mut again = Raw::open(scene.address, Digests::default());
            let (status, _) = again.connect(&admin_connect(), &guest);
            assert_eq!(status, Status::CONNECT_INVALID_HOST.dnr());
        }
        // The same with both at once, whoever is first.
        let slips_in = || {
            let mut admin = Raw::open(scene.address, Digests::default());
            admin.submit(&connect_sqe(&admin_connect()), &encode(&guest));
            let Ok(cqe) = admin.try_recv().map(|pdu| pdu.cqe()) else {
                return;
            };
            let cntlid = u16::try_from(cqe.result & 0xffff).unwrap();
            let mut io = Raw::open(scene.address, Digests::default());
            let data = ConnectData { cntlid, ..guest };
            io.submit(&connect_sqe(&io_connect(1)), &encode(&data));
            // An answer of any kind, or the end.
            let _ = io.try_recv();
        };
        beside(slips_in, || {
            for _ in 0..50 {
                target.add_host(NQN, &name(2)).unwrap();
                eventually("it connects", || target.stats().controllers == 2);
                target.remove_host(NQN, &name(2)).unwrap();
                eventually("it is gone", || target.stats().controllers == 1);
            }
        });
        stays.goes_on(10);
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        stays.end();
        target.allow_any_host(NQN, true).unwrap();
    });
}

#[test]
fn s39_connect_twice_on_one_connection() {
    scenario(|scene| {
        scene.cases(39);
        let (mut admin, cntlid) = Raw::admin(scene.address);
        let mut io = Raw::io(scene.address, cntlid, 1);
        for _ in 0..20 {
            for (command, data) in [
                (admin_connect(), connect_data()),
                (io_connect(1), joining(cntlid)),
                (io_connect(2), joining(cntlid)),
            ] {
                for queue in [&mut admin, &mut io] {
                    assert_eq!(queue.connect(&command, &data), (TOO_EARLY.dnr(), 0));
                }
            }
        }
        io.read(&read(1, 0, 1));
        assert_eq!(scene.target.stats().controllers, 1);
        drop((io, admin));
    });
}

/// Every opcode.
#[test]
fn s40_a_first_command_that_is_no_connect() {
    scenario(|scene| {
        scene.cases(40);
        let mut raw = Raw::open(scene.address, Digests::default());
        for opcode in 0..=255 {
            // Of the Fabrics opcode, type 0 is Property Set.
            let mut sqe = Sqe::with_opcode(opcode);
            sqe.set_cid(9);
            sqe.set_sgl(SglDescriptor::transport(0));
            let status = raw.execute(&sqe, &[]).status;
            assert_eq!(status, TOO_EARLY.dnr(), "opcode {opcode:#x}");
        }
        raw.connect_ok(&admin_connect(), &connect_data());
        drop(raw);
    });
}

/// Before CC.EN, when it is cleared, after a shutdown.
#[test]
fn s41_commands_before_and_after_their_time() {
    const ON: Cc = Cc(0x0046_0001);
    scenario(|scene| {
        scene.cases(41);
        let mut admin = Raw::open(scene.address, Digests::default());
        let cntlid = admin.connect_ok(&admin_connect(), &connect_data());
        let commands = [identify(), set_queues(1), read(1, 0, 1)];
        let refused = |admin: &mut Raw| {
            for sqe in &commands {
                let status = admin.execute(sqe, &[]).status;
                assert_eq!(status, TOO_EARLY.dnr(), "{sqe:?}");
            }
            admin.ok(&cap(), &[]);
            let mut io = Raw::open(scene.address, Digests::default());
            let (status, _) = io.connect(&io_connect(1), &joining(cntlid));
            assert_eq!(status.without_more(), TOO_EARLY);
        };
        refused(&mut admin);
        for _ in 0..5 {
            for end in [Cc(0), ON.with_shn(Cc::SHN_NORMAL)] {
                admin.ok(&enable(), &[]);
                admin.ok(&set_queues(1), &[]);
                let mut io = Raw::io(scene.address, cntlid, 1);
                io.read(&read(1, 0, 1));
                admin.ok(&set_cc(end), &[]);
                io.expect_end();
                drop(io);
                eventually("the queue is gone", || scene.target.stats().io_queues == 0);
                refused(&mut admin);
                admin.ok(&set_cc(Cc(0)), &[]);
            }
        }
        drop(admin);
    });
}

/// Four identifiers, used up again and again.
#[test]
fn s42_controller_identifiers_run_out_and_come_back() {
    scenario(|scene| {
        scene.cases(42);
        let mut few = SubsystemConfig::new(OTHER);
        (few.cntlid_min, few.cntlid_max) = (7, 10);
        scene.target.add_subsystem(few).unwrap();
        let data = ConnectData {
            subnqn: Nqn::new(OTHER).unwrap().to_field(),
            ..connect_data()
        };
        let open = || Raw::open(scene.address, Digests::default());
        let mut last = None;
        for _ in 0..20 {
            let mut ids = Vec::new();
            let all: Vec<_> = (0..4)
                .map(|_| {
                    let mut raw = open();
                    ids.push(raw.connect_ok(&admin_connect(), &data));
                    raw
                })
                .collect();
            // The one that was given back last is not the first to be used again.
            assert_ne!(last, ids.first().copied());
            last = ids.last().copied();
            ids.sort_unstable();
            assert_eq!(ids, [7, 8, 9, 10]);
            for _ in 0..10 {
                let (status, _) = open().connect(&admin_connect(), &data);
                assert_eq!(status, Status::CONNECT_CONTROLLER_BUSY);
            }
            drop(all);
            eventually("all are gone", || scene.target.stats().controllers == 0);
        }
        scene.target.remove_subsystem(OTHER).unwrap();
    });
}

/// All hosts lose a target and come back to another at its address, all at once. The storm of
/// thousands is `nvmfd/tests/storm`.
#[test]
fn s43_many_hosts_come_back_at_once() {
    const HOSTS: usize = 200;
    let mut config = config();
    config.max_connections = 4 * HOSTS;
    scenario_with(config, |scene| {
        scene.cases(43);
        for round in 0..3 {
            reconnect_all(scene, HOSTS, round);
        }
    });
}

/// Each step of all hosts before the next of any.
fn reconnect_all(scene: &Scene, hosts: usize, round: u64) {
    let mut admins: Vec<_> = (0..hosts).map(|_| Raw::tcp(scene.address)).collect();
    let ic_req = Digests::default().ic_req();
    admins.iter_mut().for_each(|raw| raw.send(&ic_req));
    for raw in &mut admins {
        raw.recv();
        raw.submit(&connect_sqe(&admin_connect()), &encode(&connect_data()));
    }
    let mut ios: Vec<_> = admins
        .iter_mut()
        .map(|admin| {
            let cqe = admin.recv().cqe();
            assert_eq!(cqe.status, Status::SUCCESS);
            admin.ok(&enable(), &[]);
            admin.ok(&set_queues(1), &[]);
            let mut io = Raw::open(scene.address, Digests::default());
            let data = joining(u16::try_from(cqe.result).unwrap());
            io.submit(&connect_sqe(&io_connect(1)), &encode(&data));
            io
        })
        .collect();
    for (host, io) in ios.iter_mut().enumerate() {
        assert_eq!(io.recv().cqe().status, Status::SUCCESS);
        let block = crate::common::pattern(round * 1000 + host as u64, 512);
        let slba = 4096 + host as u64;
        io.ok(&write_in_capsule(1, slba, 1), &block);
        assert!(io.read(&read(2, slba, 1)) == block);
    }
    drop((ios, admins));
    eventually("all are gone", || {
        scene.target.stats() == Default::default()
    });
}

/// CVE-2024-42152. The race over and over is `lifecycle::queues_race_with_the_end_of_their_controller`;
/// here the admin queue ends at each point of the Connects of three queues.
#[test]
fn s44_an_io_queue_connects_while_its_controller_ends() {
    scenario(|scene| {
        scene.cases(44);
        for round in 0..90 {
            let (admin, cntlid) = Raw::admin(scene.address);
            let mut admin = Some(admin);
            let capsule = Digests::default().capsule(
                &connect_sqe(&io_connect(1 + round % 2)),
                &encode(&joining(cntlid)),
            );
            let mut joining: Vec<_> = (0..3)
                .map(|_| Raw::open(scene.address, Digests::default()))
                .collect();
            for (n, raw) in joining.iter_mut().enumerate() {
                // Whole, or all but the last byte, which comes when the controller is gone.
                let part = capsule.len() - usize::from(round % 3 == 0);
                raw.send(&capsule[..part]);
                if usize::from(round) / 3 % 3 == n {
                    admin = None;
                }
                raw.send(&capsule[part..]);
            }
            drop(admin);
            for mut raw in joining {
                // An answer or the end.
                let _ = raw.try_recv();
            }
            eventually("nothing is left", || {
                scene.target.stats() == Default::default()
            });
        }
        // A Disconnect crosses with it, too.
        for _ in 0..20 {
            let (admin, mut io) = scene.queues();
            io.submit(&disconnect(), &[]);
            drop(admin);
            let _ = io.try_recv();
        }
    });
}

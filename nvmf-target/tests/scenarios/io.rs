//! Scenarios 53 to 58: I/O commands, namespaces and backends.

use crate::common::load::Load;
use crate::common::raw::{read, with_sgl, write_in_capsule};
use crate::common::reserving::Host;
use crate::common::{NQN, PATIENCE, config, eventually, pattern};
use crate::fixture::{STEP, STEP_BLOCKS, scenario};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::reservation::{ChangePtpl, RegisterAction};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use nvmf_target::ns::{Delay, Delayed, Fault, Faulty, Inline, Op, RamDisk, Rule};
use nvmf_target::{FileReservationStore, NamespaceConfig, SubsystemConfig, Target};
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Blocks of namespace 1.
const BLOCKS: u64 = (64 << 20) / 512;

/// Every command with a range, around the end of the namespace and around 2⁶⁴.
#[test]
fn s53_ranges_beyond_the_end() {
    type Ranged = fn(u32, u64, u32) -> Sqe;
    let none: [Ranged; 3] = [
        |nsid, slba, blocks| command::write_zeroes(nsid, slba, blocks, false),
        command::verify,
        command::write_uncorrectable,
    ];
    let with_data: [Ranged; 3] = [command::read, command::write, command::compare];
    scenario(|scene| {
        scene.cases(53);
        let (admin, mut io) = scene.queues();
        for slba in [
            BLOCKS - 7,
            BLOCKS - 1,
            BLOCKS,
            BLOCKS + 1,
            u64::from(u32::MAX) - 7,
            1 << 32,
            (1 << 55) - 8,
            (1 << 63) - 1,
            u64::MAX - 8,
            u64::MAX - 7,
            u64::MAX,
        ] {
            for (makes, bytes) in [(none, 0), (with_data, 4096)] {
                for make in makes {
                    let sgl = SglDescriptor::transport(bytes);
                    io.submit(&with_sgl(make(1, slba, 8), 1, sgl), &[]);
                    let (_, status, moved) = io.next_end();
                    let refused = (Status::LBA_OUT_OF_RANGE.dnr(), 0);
                    assert_eq!((status, moved), refused, "{slba:#x}");
                }
            }
        }
        io.read(&read(1, BLOCKS - 8, 8));
        drop((io, admin));
    });
}

/// 1 to 256 ranges of which the last is wrong: none of them is carried out.
#[test]
fn s54_dataset_management() {
    scenario(|scene| {
        scene.cases(54);
        let (admin, mut io) = scene.queues();
        let old = pattern(1, 8192);
        io.ok(&write_in_capsule(1, 4096, 16), &old);
        for count in [1, 2, 16, 255, 256_u16] {
            for (slba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, u32::MAX)] {
                let wrong = DsmRange {
                    slba,
                    length: blocks,
                    ..DsmRange::default()
                };
                let right = DsmRange {
                    slba: 4096,
                    length: 16,
                    ..DsmRange::default()
                };
                let ranges = (1..count).map(|_| right.encode()).chain([wrong.encode()]);
                let data: Vec<u8> = ranges.flatten().collect();
                let sgl = SglDescriptor::in_capsule(u32::try_from(data.len()).unwrap());
                let sqe = command::dataset_management(1, count, DsmAttributes::DEALLOCATE);
                let status = io.execute(&with_sgl(sqe, 1, sgl), &data).status;
                assert_eq!(status, Status::LBA_OUT_OF_RANGE.dnr(), "{count} ranges");
            }
        }
        assert!(io.read(&read(1, 4096, 16)) == old, "something was done");
        drop((io, admin));
    });
}

/// Fused pairs of which anything is wrong, over and over: nothing is written.
#[test]
fn s55_fused_pairs_and_limits() {
    scenario(|scene| {
        scene.cases(55);
        let (admin, mut io) = scene.queues();
        let old = pattern(1, 512);
        io.ok(&write_in_capsule(1, 4096, 1), &old);
        let block = SglDescriptor::in_capsule(512);
        for round in 0..50 {
            let [first, second] = command::compare_and_write(1, 4096, 1);
            let [_, elsewhere] = command::compare_and_write(1, 4097, 1);
            let [_, longer] = command::compare_and_write(1, 4096, 2);
            let between = read(3, 0, 1);
            match round % 5 {
                // What is compared is not there.
                0 => {
                    io.submit(&with_sgl(first, 1, block), &[0; 512]);
                    io.submit(&with_sgl(second, 2, block), &[9; 512]);
                    let ends = [io.next_end().1, io.next_end().1];
                    assert!(ends.iter().all(|status| !status.is_success()), "{ends:?}");
                }
                // Another range, another length.
                1 | 2 => {
                    let second = if round % 5 == 1 { elsewhere } else { longer };
                    io.submit(&with_sgl(first, 1, block), &old);
                    io.submit(&with_sgl(second, 2, block), &[9; 512]);
                    let ends = [io.next_end().1, io.next_end().1];
                    assert!(ends.iter().all(|status| !status.is_success()), "{ends:?}");
                }
                // A first half without a second one.
                3 => {
                    io.submit(&with_sgl(first, 1, block), &old);
                    io.submit(&between, &[]);
                    let ends = [io.next_end(), io.next_end()];
                    let status = Status::ABORTED_MISSING_FUSED;
                    assert!(ends.iter().any(|end| end.1 == status), "{ends:?}");
                }
                // And the other way round.
                _ => {
                    io.submit(&with_sgl(second, 2, block), &[9; 512]);
                    assert_eq!(io.next_end().1, Status::ABORTED_MISSING_FUSED);
                }
            }
            assert!(io.read(&read(4, 4096, 1)) == old, "round {round}");
        }
        drop((io, admin));
    });
}

/// A record of reservations that is cut after any of its bytes, or has any turned over, never stops
/// a start. The power cut at each write of a store is `nvmf-target/tests/powercut.rs`.
#[test]
fn s56_reservations_and_their_file() {
    scenario(|scene| {
        scene.cases(56);
        let folder = tempfile::tempdir().unwrap();
        let start = || {
            let target = Target::new(config()).unwrap();
            let mut subsystem = SubsystemConfig::new(NQN);
            let store = FileReservationStore::new(folder.path()).unwrap();
            subsystem.reservation_store = Some(Arc::new(store));
            target.add_subsystem(subsystem).unwrap();
            let disk = RamDisk::new(1 << 20, 512).unwrap();
            target.add_namespace(NQN, 1, Inline::new(disk)).unwrap();
            let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
            (target, address)
        };
        let files = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().path())
        };
        let (target, address) = start();
        let mut host = Host::new(address, 7);
        let status = host.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
        assert_eq!(status, Status::SUCCESS);
        drop(host);
        assert!(target.shutdown(PATIENCE));
        let path = files().next().expect("it persists");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            files().for_each(|file| fs::remove_file(file).unwrap());
            let mut damaged = good.clone();
            if at % 2 == 0 {
                damaged.truncate(at);
            } else {
                damaged[at] ^= 0x40;
            }
            fs::write(&path, damaged).unwrap();
            let (target, address) = start();
            if at % 16 < 2 {
                let mut host = Host::new(address, 7);
                assert_eq!(host.report().status.registrants, 0, "byte {at}");
            }
            assert!(target.shutdown(PATIENCE));
        }
    });
}

/// A namespace goes away and comes back, with the same blocks, a smaller size or write protected,
/// while a host is at work on it and another one beside it.
#[test]
fn s57_a_namespace_changes_under_load() {
    const AWAY: &[Status] = &[Status::INVALID_NAMESPACE, Status::ABORTED_SQ_DELETION];
    scenario(|scene| {
        let disk = Arc::new(Inline::new(RamDisk::new(16 << 20, 512).unwrap()));
        let add = || {
            let config = NamespaceConfig::new(3);
            let disk = Arc::clone(&disk);
            scene.target.add_namespace_with(NQN, config, disk).unwrap();
        };
        add();
        let stays = scene.load(1);
        let moved = scene.load_but(2, 3, AWAY);
        for round in 0..60 {
            // What is in the backend of another namespace is not concerned.
            scene.step.change(|info| {
                info.blocks = STEP_BLOCKS / 2 * (1 + round % 2);
                info.read_only = round % 3 == 0;
            });
            scene.target.remove_namespace(NQN, 3).unwrap();
            if round % 2 == 0 {
                stays.goes_on(2);
            }
            add();
            moved.goes_on(1 + round % 4);
        }
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        stays.end();
        moved.end();
        scene.target.remove_namespace(NQN, 3).unwrap();
        scene.step.change(|info| {
            info.blocks = STEP_BLOCKS;
            info.read_only = false;
        });
    });
}

/// A backend answers in any order, with any status, never, and long after the host is gone; a host
/// beside it is at work all the time.
#[test]
fn s58_backends_that_fail_are_late_or_never_answer() {
    scenario(|scene| {
        let beside = scene.load(1);
        let by_hand = |mut sqe: Sqe| {
            sqe.set_nsid(STEP);
            sqe
        };
        let statuses = [
            Status::SUCCESS,
            Status::UNRECOVERED_READ_ERROR,
            Status::WRITE_FAULT,
            Status::CAPACITY_EXCEEDED.dnr(),
            Status::NAMESPACE_WRITE_PROTECTED.dnr(),
            Status::NAMESPACE_NOT_READY,
            Status::COMMAND_INTERRUPTED,
        ];
        for round in 0..24_u64 {
            let (mut admin, mut io) = scene.queues();
            for cid in 0..16 {
                let slba = u64::from(cid) * 8;
                if cid % 2 == 0 {
                    io.submit(&by_hand(read(cid, slba, 8)), &[]);
                } else {
                    let data = pattern(round, 4096);
                    io.submit(&by_hand(write_in_capsule(cid, slba, 8)), &data);
                }
            }
            let mut held = scene.step.take(16);
            // The order of one round is not that of another.
            held.rotate_left(usize::try_from(round % 16).unwrap());
            if round % 2 == 1 {
                held.reverse();
            }
            let late = held.split_off(8);
            for (request, status) in held.into_iter().zip(statuses.iter().cycle()) {
                let cid = u16::try_from(request.lba_range().slba / 8).unwrap();
                let is_read = request.op() == Op::Read;
                request.complete(match *status {
                    Status::SUCCESS => Ok(()),
                    status => Err(status),
                });
                let moved = if is_read && status.is_success() {
                    4096
                } else {
                    0
                };
                assert_eq!(io.next_end(), (cid, *status, moved));
            }
            // These are never answered in the life of their host, who gives up on them.
            for request in &late {
                let cid = u16::try_from(request.lba_range().slba / 8).unwrap();
                let mut abort = command::abort(1, cid);
                abort.set_cid(cid);
                admin.submit(&abort, &[]);
            }
            if round % 3 == 0 {
                scene.target.remove_namespace(NQN, STEP).unwrap();
            }
            drop((io, admin));
            // Its connection is closed but counted, beside the two of the other host.
            eventually("the host is gone", || scene.target.stats().connections == 3);
            // Those of the other host come and go.
            eventually("its are in flight", || scene.target.stats().in_flight == 8);
            for (n, mut request) in late.into_iter().enumerate() {
                // Its buffer is still the backend's, and nobody else's.
                if request.op() == Op::Read {
                    request.data_mut().fill(0xdb);
                } else {
                    assert!(request.data() == pattern(round, 4096));
                }
                match n % 3 {
                    0 => drop(request),
                    1 => request.complete(Err(Status::WRITE_FAULT)),
                    _ => thread::spawn(|| request.complete(Ok(()))).join().unwrap(),
                }
            }
            if round % 3 == 0 {
                let step = scene.step.clone();
                scene.target.add_namespace(NQN, STEP, step).unwrap();
            }
            beside.goes_on(2);
        }
        assert_eq!(beside.connects(), 1, "it was never disturbed");
        beside.end();
    });
}

/// The same under load, by the library's own wrappers: completions that overtake each other, and
/// every kind of fault but torn writes, which leave nothing that could be verified.
#[test]
fn s58_faults_and_delays_under_load() {
    const FAULTS: &[Status] = &[
        Status::UNRECOVERED_READ_ERROR,
        Status::WRITE_FAULT,
        Status::INTERNAL_ERROR,
        // Until there is another lane for one that has panicked.
        Status::NAMESPACE_NOT_READY,
    ];
    scenario(|scene| {
        let disk = Inline::new(RamDisk::new(16 << 20, 512).unwrap());
        let delay = Delay::random(Duration::ZERO..=Duration::from_millis(2), 5);
        let faulty = Faulty::new(Delayed::new(disk, delay));
        let faults = faulty.faults();
        scene.target.add_namespace(NQN, 3, faulty).unwrap();
        let stays = scene.load(1);
        let loads = [2, 3].map(|host| scene.load_but(host, 3, FAULTS));
        for round in 0..24 {
            let kinds = [
                Fault::Status(Status::UNRECOVERED_READ_ERROR),
                Fault::Late(Status::WRITE_FAULT),
                Fault::Errno(5),
                Fault::Drop,
                Fault::Panic,
                Fault::Hold,
            ];
            let fault = kinds[round % kinds.len()];
            let rule = faults.add(Rule::new(fault).after(round as u64 % 3).times(2));
            eventually("it happens", || faults.hits(rule) == 2);
            faults.remove(rule);
            if fault == Fault::Hold {
                stays.goes_on(4);
                eventually("both are held", || faults.held() == 2);
                assert_eq!(faults.release(), 2);
            }
            loads.iter().for_each(|load| load.goes_on(2));
        }
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        stays.end();
        loads.into_iter().for_each(Load::end);
        scene.target.remove_namespace(NQN, 3).unwrap();
    });
}

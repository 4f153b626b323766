//! What the seed got wrong about survival: reference/SEED.md §11.1, flaws 1 to 15.

use crate::common::load::Load;
use crate::common::mortal::{End, Mortal};
use crate::common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, encode, io_connect, keep_alive_timeout,
    read, set_queues, with_sgl, write_by_r2t,
};
use crate::common::{NQN, eventually};
use crate::fixture::{STEP, allocated, beside, host_nqn, numbered_host, scenario, scenario_with};
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, InvalidParameter};
use nvmf_host::nvmf_proto::wire::log::{ErrorLogEntry, GetLogPage, Lid};
use nvmf_host::nvmf_proto::wire::pdu::{Fes, PduType};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_host::{Controller, Data, command};
use nvmf_target::ns::{FileBackend, FileEngine, FileNamespace, FileOptions, WorkerPool};
use std::ffi::c_int;
use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: usize = 1 << 20;
const FIELD: Fes = Fes::INVALID_HEADER_FIELD;

fn reset(raw: &Raw) {
    let socket = socket2::SockRef::from(&raw.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// As in a program whose `main` is not Rust's: SIGPIPE ends the process. Hosts vanish while the
/// target writes, and targets while hosts do.
#[test]
fn seed_01_sigpipe() {
    scenario(|scene| {
        // SAFETY: the default disposition is a valid one, and no handler is replaced.
        let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        assert_ne!(before, libc::SIG_ERR);
        for round in 0..60 {
            let (admin, mut io) = scene.queues();
            for cid in 0..64 {
                io.submit(&read(cid, 0, 256), &[]);
            }
            if round % 2 == 0 {
                reset(&io);
            }
            drop(io);
            if round % 3 == 0 {
                reset(&admin);
            }
            drop(admin);
        }
        let second = scene.target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let load = Load::start(vec![numbered_host(second, 1)], 1, 8192, GONE);
        for _ in 0..20 {
            scene.target.remove_listener(&second.to_string()).unwrap();
            assert_eq!(scene.target.listen(second).unwrap(), second);
            load.goes_on(2);
        }
        load.end();
        // A host that goes on sending before it looks at what has become of its connection.
        let mut controller = Controller::connect(&numbered_host(second, 2)).unwrap();
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap().into_queue();
        scene.target.remove_listener(&second.to_string()).unwrap();
        eventually("its connections are closed", || {
            scene.target.stats().connections == 0
        });
        for _ in 0..8 {
            let data = Data::Write(vec![1; 4096]);
            let sent = queue.submit(command::write(1, 0, 8), data);
            // Refused or broken, without a signal.
            let _ = sent.map(|_| queue.flush());
        }
    });
}

/// What a host is told whose listener is going away.
const GONE: &[Status] = &[
    Status::CONNECT_INVALID_PARAMETERS,
    Status::COMMAND_SEQUENCE_ERROR,
    Status::ABORTED_SQ_DELETION,
];

#[test]
fn seed_02_silent_hosts_on_the_discovery_port() {
    scenario(|scene| {
        let discovery = scene
            .target
            .listen_discovery("127.0.0.1:0".parse().unwrap())
            .unwrap();
        let mut silent: Vec<_> = (0..32).map(|_| Raw::tcp(discovery)).collect();
        for raw in &mut silent[16..] {
            raw.send(&Digests::default().ic_req()[..100]);
        }
        let entries = nvmf_host::discover(discovery).unwrap();
        assert!(!entries.is_empty());
        scene.serves_beside();
        drop(silent);
        scene
            .target
            .remove_listener(&discovery.to_string())
            .unwrap();
    });
}

#[test]
fn seed_03_a_plen_of_4_gib_before_connect() {
    scenario(|scene| {
        let before = allocated();
        for pdu_type in [0, 2, 4, 6] {
            for plen in [0xffff_fff0, u32::MAX, 1 << 31] {
                let opened = pdu_type != 0;
                let mut raw = Raw::tcp(scene.address);
                if opened {
                    raw.send(&Digests::default().ic_req());
                    assert_eq!(raw.recv().ch.pdu_type, PduType::IC_RESP);
                }
                let hlen = [128, 0, 24, 0, 72, 0, 24][usize::from(pdu_type)];
                let pdo = if pdu_type > 2 { hlen } else { 0 };
                let mut header = vec![pdu_type, 0, hlen, pdo];
                header.extend(plen.to_le_bytes());
                raw.send(&header);
                let (fes, _) = raw.expect_term();
                let expected = match pdu_type {
                    6 => Fes::LIMIT_EXCEEDED,
                    _ => FIELD,
                };
                assert_eq!(fes, expected, "type {pdu_type}, {plen:#x}");
                assert!(allocated() < before + MIB);
            }
        }
    });
}

/// The host keeps the I/O connection open and does nothing: it is closed, and the controller is gone.
#[test]
fn seed_04_the_admin_connection_ends_and_the_io_connection_stays() {
    scenario(|scene| {
        for round in 0..20 {
            let (admin, mut io) = scene.queues();
            if round % 2 == 0 {
                reset(&admin);
            }
            drop(admin);
            io.expect_end();
            eventually("the controller is gone", || {
                scene.target.stats().controllers == 0
            });
        }
    });
}

#[test]
fn seed_05_hosts_that_vanish_are_given_up() {
    scenario(|scene| {
        let mut hosts: Vec<_> = (0..16).map(|_| scene.queues()).collect();
        for (admin, _) in &mut hosts {
            admin.ok(&keep_alive_timeout(400), &[]);
        }
        for (mut admin, mut io) in hosts {
            admin.expect_end();
            io.expect_end();
        }
    });
}

/// Connections, and what is queued on them, cost no threads, and what they cost has a limit.
#[test]
fn seed_06_connections_threads_and_capsules_are_limited() {
    let mut config = crate::common::config();
    (config.max_connections, config.buffer_bytes) = (64, 64 << 20);
    scenario_with(config, |scene| {
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let hosts: Vec<_> = (0..32).map(|_| scene.queues()).collect();
        assert_eq!(scene.target.stats().connections, 64);
        assert_eq!(threads(), before);
        for _ in 0..32 {
            Raw::tcp(scene.address).expect_end();
        }
        let bytes = allocated();
        for (_, io) in &hosts[..8] {
            let mut io = io.stream.try_clone().unwrap();
            // Commands without end: it takes what its queue has entries for, and leaves the rest in
            // the socket.
            io.set_nonblocking(true).unwrap();
            let mut held = read(0, 0, 8);
            held.set_nsid(STEP);
            for cid in 0..u16::MAX {
                held.set_cid(cid);
                let capsule = Digests::default().capsule(&held, &[]);
                if io.write(&capsule).is_err() {
                    break;
                }
            }
        }
        let all = 8 * 128;
        eventually("every entry is used", || {
            scene.target.stats().in_flight == all
        });
        assert_eq!(scene.step.pending(), all);
        assert!(allocated() < bytes + 4 * MIB, "{}", allocated() - bytes);
        drop(hosts);
        // What is left in the sockets may be carried out before their end is seen.
        eventually("they are gone", || {
            for request in scene.step.take(scene.step.pending()) {
                request.complete(Ok(()));
            }
            scene.target.stats().connections == 0
        });
    });
}

#[test]
fn seed_07_no_more_queues_than_there_are() {
    scenario(|scene| {
        let before = allocated();
        let (mut admin, cntlid) = Raw::admin(scene.address);
        let granted = admin.ok(&set_queues(u16::MAX - 1), &[]).result;
        assert_eq!(granted, 63 << 16 | 63, "64 of each, 0's based");
        let data = ConnectData {
            cntlid,
            ..connect_data()
        };
        let mut io = Raw::open(scene.address, Digests::default());
        for qid in [65, 1000, u16::MAX] {
            let (status, _) = io.connect(&io_connect(qid), &data);
            assert_eq!(
                status,
                Status::CONNECT_INVALID_PARAMETERS.dnr(),
                "QID {qid}"
            );
        }
        assert!(allocated() < before + MIB);
        drop((io, admin));
    });
}

/// Connections that both ends close at once, beside a host whose connection has whichever number is
/// free: none is closed twice.
#[test]
fn seed_08_no_descriptor_is_closed_twice() {
    scenario(|scene| {
        let stays = scene.load(1);
        let churns = || {
            for n in 0..20 {
                let mut raw = Raw::open(scene.address, Digests::default());
                // A PDU that is answered by a C2HTermReq, and the end of the host behind it.
                raw.send(&[0xff, 0, 24, 0, 24, 0, 0, 0]);
                if n % 2 == 0 {
                    reset(&raw);
                }
            }
        };
        beside(churns, || {
            beside(churns, || {
                for _ in 0..40 {
                    stays.goes_on(4);
                    scene.serves_beside();
                }
            });
        });
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        stays.end();
    });
}

/// Two hosts fail at the same time, in different ways: each finds its own failures in its log.
#[test]
fn seed_09_errors_are_those_of_their_connection() {
    const FAILURES: usize = 100;
    scenario(|scene| {
        let fails = |nsid: u32, slba: u64, status: Status| {
            let options = scene.host(nsid as usize);
            let mut controller = Controller::connect(&options).unwrap();
            controller.set_queue_count(1).unwrap();
            let mut queue = controller.io_queue(1).unwrap();
            for _ in 0..FAILURES {
                let sqe = command::read(nsid, slba, 1);
                let done = queue.raw(sqe, Data::Read(vec![0; 512])).unwrap();
                assert_eq!(done.status(), status);
            }
            let get = GetLogPage {
                rae: true,
                ..GetLogPage::new(Lid::ERROR_INFORMATION, 0)
            };
            let page = controller.log_page(0, &get, FAILURES * 64).unwrap();
            let entries = page.as_chunks().0.iter().map(ErrorLogEntry::decode);
            for (n, entry) in entries.enumerate() {
                assert_eq!(entry.error_count, (FAILURES - n) as u64);
                assert_eq!(entry.nsid, nsid, "another host's");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| fails(1, 1 << 40, Status::LBA_OUT_OF_RANGE.dnr()));
            scope.spawn(|| fails(77, 5, Status::INVALID_NAMESPACE.dnr()));
        });
    });
}

/// A good Connect stands behind an ICReq that is refused: it is not looked at.
#[test]
fn seed_10_a_failed_icreq_is_the_end() {
    scenario(|scene| {
        let connect = connect_sqe(&admin_connect());
        let connect = Digests::default().capsule(&connect, &encode(&connect_data()));
        for at in [1, 2, 3, 8, 10, 11] {
            let mut bytes = Digests::default().ic_req().to_vec();
            bytes[at] = 0xff;
            bytes.extend(&connect);
            let mut raw = Raw::tcp(scene.address);
            raw.send(&bytes);
            let term = raw.recv().term();
            assert!([FIELD, Fes::UNSUPPORTED_PARAMETER].contains(&term.fes));
            raw.expect_end();
            assert_eq!(scene.target.stats().controllers, 0);
        }
    });
}

/// The largest commands at full depth, from many queues: buffers are what they are, and the heap
/// does not stand in for them.
#[test]
fn seed_11_commands_wait_for_buffers() {
    let mut config = crate::common::config();
    (config.reactors, config.buffer_bytes) = (1, 8 << 20);
    scenario_with(config, |scene| {
        let before = allocated();
        let (admin, cntlid) = Raw::admin(scene.address);
        let mut queues: Vec<_> = (1..=8)
            .map(|qid| Raw::io(scene.address, cntlid, qid))
            .collect();
        for queue in &mut queues {
            // Beyond MDTS nobody waits for anything.
            let status = queue.execute(&read(200, 0, 4096), &[]).status;
            assert_eq!(status, Status::INVALID_FIELD.dnr());
            for cid in 0..100 {
                queue.submit(&write_by_r2t(cid, 0, 2048), &[]);
            }
        }
        eventually("there is much to do", || {
            scene.target.stats().buffers_lent > 4 << 20
        });
        assert!(scene.target.stats().buffers_lent <= 8 << 20);
        assert!(allocated() < before + 8 * MIB, "{}", allocated() - before);
        drop((queues, admin));
    });
}

/// Logs whose NUMD says 16 GiB.
#[test]
fn seed_12_a_log_of_any_length() {
    const CDW10: usize = 40;
    scenario(|scene| {
        let (mut admin, _) = Raw::admin(scene.address);
        let before = allocated();
        for lid in 0..=255 {
            for length in [4, 512, u32::MAX] {
                let mut get = command::get_log_page(0, &GetLogPage::new(Lid(lid), 4));
                get.0[CDW10 + 2..CDW10 + 6].fill(0xff);
                admin.submit(&with_sgl(get, 1, SglDescriptor::transport(length)), &[]);
                let (_, _, moved) = admin.next_end();
                assert!(moved <= length as usize);
            }
        }
        assert!(allocated() < before + MIB);
        drop(admin);
    });
}

/// Hosts that end at any byte, by the hundred: what is left of the second half is not more than of
/// the first.
#[test]
fn seed_13_nothing_leaks() {
    scenario(|scene| {
        let half = |from: usize| {
            for n in from..from + 300 {
                let end = [End::Close, End::Reset, End::HalfClose][n % 3];
                let digests = [Digests::default(), Digests::BOTH][n % 2];
                let mut host = Mortal::new(scene.address, digests, end, 1 + n * 104_729 % 6500);
                let _ = host.session();
            }
            scene.serves();
            allocated()
        };
        let first = half(0);
        let grown = half(300).saturating_sub(first);
        assert!(grown < 32 << 10, "{grown} bytes more after the second half");
    });
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// Signals without SA_RESTART for every thread of the process, all the time: system calls fail with
/// EINTR, and nobody notices. One host works on memory, one on a file.
#[test]
fn seed_14_eintr() {
    scenario(|scene| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let backend = FileBackend::open(file.path(), &FileOptions::default()).unwrap();
        let workers = Arc::new(WorkerPool::new(2));
        let namespace =
            FileNamespace::new(Arc::new(backend), FileEngine::Threads, &workers).unwrap();
        scene.target.add_namespace(NQN, 3, namespace).unwrap();
        // SAFETY: all zeroes are a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = count as extern "C" fn(c_int) as libc::sighandler_t;
        // SAFETY: the handler does nothing that is not allowed in one.
        let set =
            unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        let this = std::process::id();
        let interrupts = || {
            for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
                let tid: c_int = task.file_name().to_str().unwrap().parse().unwrap();
                let pid = c_int::try_from(this).unwrap();
                // SAFETY: numbers only; a thread that has ended is ESRCH.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
            }
        };
        let loads = [scene.load(1), scene.load_but(2, 3, &[])];
        beside(interrupts, || {
            for round in 0..30 {
                loads.iter().for_each(|load| load.goes_on(8));
                let mut host = Mortal::new(
                    scene.address,
                    Digests::BOTH,
                    [End::Close, End::Reset][round % 2],
                    usize::MAX,
                );
                host.session().unwrap();
            }
        });
        assert!(SIGNALS.load(Ordering::SeqCst) > 100);
        for load in loads {
            assert_eq!(load.connects(), 1, "it was never disturbed");
            load.end();
        }
        scene.target.remove_namespace(NQN, 3).unwrap();
        drop(workers);
    });
}

/// CVE-2026-4652: an I/O queue for a controller that is not there.
#[test]
fn seed_15_controllers_that_nobody_has() {
    scenario(|scene| {
        let (admin, cntlid) = Raw::admin(scene.address);
        let dw0 = InvalidParameter::Data(ConnectData::CNTLID).dw0();
        let mut raw = Raw::open(scene.address, Digests::default());
        let around = [0, cntlid + 1, 0xfff0, 0xfffe];
        for unknown in (7..0xfff0).step_by(97).chain(around) {
            if unknown == cntlid {
                continue;
            }
            let data = ConnectData {
                cntlid: unknown,
                hostnqn: host_nqn(9).to_field(),
                ..connect_data()
            };
            let (status, named) = raw.connect(&io_connect(1), &data);
            let refused = (Status::CONNECT_INVALID_PARAMETERS.dnr(), dw0);
            assert_eq!((status, named), refused, "CNTLID {unknown:#x}");
        }
        drop((raw, admin));
    });
}

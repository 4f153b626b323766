//! Scenarios 59 to 68: what the operator, the system and time do.

use crate::common::load::Load;
use crate::common::mortal::{End, Mortal};
use crate::common::raw::{Digests, Raw, keep_alive_timeout, read, write_by_r2t};
use crate::common::{NQN, PATIENCE, config, eventually, options, pattern, verified_io};
use crate::fixture::{allocated, beside, host_nqn, numbered_host, place, scenario, scenario_with};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::feature::{Fid, GetFeatures, SetFeatures};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller, Data, Error, command};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::{AnaState, Change, ListenerConfig, NamespaceConfig, SubsystemConfig, Target};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const OTHER: &str = "nqn.2026-11.org.example:other";
const ANY: &str = "127.0.0.1:0";
/// What a host is told while what it wants is being taken away.
const PASSING: &[Status] = &[
    Status::CONNECT_INVALID_PARAMETERS,
    Status::CONNECT_INVALID_HOST,
    Status::COMMAND_SEQUENCE_ERROR,
    Status::INVALID_NAMESPACE,
    Status::ABORTED_SQ_DELETION,
];

type Disk = Arc<Inline<RamDisk>>;

fn disk() -> Disk {
    Arc::new(Inline::new(RamDisk::new(16 << 20, 512).unwrap()))
}

fn other_host(address: SocketAddr, host: usize) -> ConnectOptions {
    let mut options = numbered_host(address, host);
    options.subsystem = Nqn::new(OTHER).unwrap();
    options
}

/// A subsystem, a listener and a host on a list go away and come back, each under a host at work;
/// others notice nothing.
#[test]
fn s59_what_is_removed_under_load() {
    scenario(|scene| {
        let target = &scene.target;
        let kept = disk();
        let add = || {
            let namespace = Change::AddNamespace {
                nqn: OTHER.to_owned(),
                config: NamespaceConfig::new(1),
                namespace: Arc::clone(&kept) as _,
            };
            let subsystem = Change::AddSubsystem(SubsystemConfig::new(OTHER));
            target.apply(vec![subsystem, namespace]).unwrap();
        };
        add();
        let second = target.listen(ANY.parse().unwrap()).unwrap();
        let stays = scene.load(1);
        let of_subsystem = Load::start(vec![other_host(scene.address, 2)], 1, 0, PASSING);
        let of_listener = Load::start(vec![numbered_host(second, 3)], 1, place(3), PASSING);
        let of_list = Load::start(vec![other_host(scene.address, 4)], 1, 1024, PASSING);
        for _ in 0..15 {
            target.remove_subsystem(OTHER).unwrap();
            stays.goes_on(1);
            add();
            of_subsystem.goes_on(2);
            target.remove_listener(&second.to_string()).unwrap();
            stays.goes_on(1);
            assert_eq!(target.listen(second).unwrap(), second);
            of_listener.goes_on(2);
            let host = host_nqn(4);
            target.add_host(OTHER, host.as_str()).unwrap();
            target.add_host(OTHER, host_nqn(2).as_str()).unwrap();
            target.allow_any_host(OTHER, false).unwrap();
            target.remove_host(OTHER, host.as_str()).unwrap();
            of_subsystem.goes_on(1);
            target.add_host(OTHER, host.as_str()).unwrap();
            of_list.goes_on(2);
        }
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        [stays, of_subsystem, of_listener, of_list]
            .into_iter()
            .for_each(Load::end);
        target.remove_listener(&second.to_string()).unwrap();
        target.remove_subsystem(OTHER).unwrap();
    });
}

/// A target at an address of its own, with a disk that outlives it.
fn restarted(address: SocketAddr, disk: &Disk) -> (Target, SocketAddr) {
    let target = Target::new(config()).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let config = NamespaceConfig::new(1);
    target
        .add_namespace_with(NQN, config, Arc::clone(disk) as _)
        .unwrap();
    let address = target.listen(address).unwrap();
    (target, address)
}

/// The target ends, in order and cut off, and another takes its place: hosts come back and find
/// what was acknowledged. The daemon's signals, and SIGKILL, are `nvmfd/tests/crash`.
#[test]
fn s60_the_target_ends_and_another_takes_its_place() {
    scenario(|_| {
        let disk = disk();
        let (mut target, address) = restarted(ANY.parse().unwrap(), &disk);
        let at = |host| {
            Load::start(
                vec![numbered_host(address, host)],
                1,
                512 * host as u64,
                &[],
            )
        };
        let loads: Vec<_> = (0..4).map(at).collect();
        for round in 0..6 {
            let within = [PATIENCE, Duration::ZERO][round % 2];
            let _ = target.shutdown(within);
            drop(target);
            target = restarted(address, &disk).0;
            loads.iter().for_each(|load| load.goes_on(4));
        }
        loads.into_iter().for_each(Load::end);
        assert!(target.shutdown(PATIENCE));
    });
}

/// Targets that come and go while hosts do nothing but connect.
#[test]
fn s61_the_target_ends_while_hosts_connect() {
    scenario(|_| {
        let disk = disk();
        let (mut target, address) = restarted(ANY.parse().unwrap(), &disk);
        let connect = || match Controller::connect(&options(address)) {
            Ok(mut controller) => drop(controller.io_queue(1)),
            Err(Error::Closed | Error::Io { .. } | Error::Status { .. }) => {}
            Err(err) => panic!("{err}"),
        };
        let restarts = || {
            for round in 0..12 {
                eventually("hosts connect", || target.stats().controllers > 0);
                let _ = target.shutdown([PATIENCE, Duration::ZERO][round % 2]);
                drop(target);
                target = restarted(address, &disk).0;
            }
            target
        };
        let target = beside(connect, || beside(connect, || beside(connect, restarts)));
        verified_io(address, 1);
        assert!(target.shutdown(PATIENCE));
    });
}

/// The paths of hosts at work change places, in two steps; each write goes on by whichever is good.
#[test]
fn s62_ana_states_change_under_load() {
    scenario(|scene| {
        let target = &scene.target;
        let second = target.listen(ANY.parse().unwrap()).unwrap();
        let both = |host| {
            let paths = [scene.address, second].map(|path| numbered_host(path, host));
            Load::start(paths.into(), 1, place(host), &[])
        };
        let loads: Vec<_> = (1..4).map(both).collect();
        let set = |at: SocketAddr, state| Change::SetAnaState {
            nqn: NQN.to_owned(),
            listener: at.to_string(),
            anagrpid: 1,
            state,
        };
        for round in 0..40 {
            let (now, then) = match round % 2 {
                0 => (second, scene.address),
                _ => (scene.address, second),
            };
            let lost = [AnaState::Inaccessible, AnaState::PersistentLoss][round / 2 % 2];
            target
                .apply(vec![
                    set(now, AnaState::NonOptimized),
                    set(then, AnaState::Change),
                ])
                .unwrap();
            target.apply(vec![set(then, lost)]).unwrap();
            loads.iter().for_each(|load| load.goes_on(2));
        }
        target
            .apply(vec![set(scene.address, AnaState::Optimized)])
            .unwrap();
        loads.into_iter().for_each(Load::end);
        target.remove_listener(&second.to_string()).unwrap();
    });
}

/// Three disks change their NSIDs, over and over, while hosts read and write them: what is written
/// to an NSID goes to one disk, whichever that is, and whole; nothing reaches any other.
#[test]
fn s63_namespaces_change_their_nsids_fast() {
    const NSIDS: [u32; 3] = [11, 12, 13];
    const MARK: usize = 512;
    scenario(|scene| {
        let target = &scene.target;
        let disks: Vec<_> = (0..3).map(|_| disk()).collect();
        let add = |n: usize, turn: usize| Change::AddNamespace {
            nqn: NQN.to_owned(),
            config: NamespaceConfig::new(NSIDS[(n + turn) % 3]),
            namespace: Arc::clone(&disks[n]) as _,
        };
        target.apply((0..3).map(|n| add(n, 0)).collect()).unwrap();
        let mut controller = Controller::connect(&scene.host(1)).unwrap();
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        let stays = scene.load(2);
        let mut write = 0_u64;
        let mut carried_out = 0;
        let exchanges = || {
            for turn in 1..=3 {
                let gone = NSIDS.map(|nsid| Change::RemoveNamespace {
                    nqn: NQN.to_owned(),
                    nsid,
                });
                let come = (0..3).map(|n| add(n, turn));
                target
                    .apply(gone.into_iter().chain(come).collect())
                    .unwrap();
            }
        };
        beside(exchanges, || {
            while carried_out < 600 {
                write += 1;
                let nsid = NSIDS[usize::try_from(write % 3).unwrap()];
                let data = pattern(write, 16 * MARK);
                let sqe = command::write(nsid, 64, 16);
                let done = queue.raw(sqe, Data::Write(data)).unwrap();
                let passes = [Status::SUCCESS, Status::INVALID_NAMESPACE];
                assert!(
                    passes.iter().any(|status| status.same_code(done.status())),
                    "{}",
                    done.status()
                );
                carried_out += u64::from(done.status().is_success());
                let sqe = command::read(nsid, 64, 16);
                let done = queue.raw(sqe, Data::Read(vec![0; 16 * MARK])).unwrap();
                if done.status().is_success() {
                    let found = &done.buffer;
                    let whole = (0..=write).rev().any(|write| {
                        let is_empty = write == 0 && found.iter().all(|&byte| byte == 0);
                        is_empty || *found == pattern(write, 16 * MARK)
                    });
                    assert!(whole, "parts of several writes");
                }
            }
        });
        stays.goes_on(4);
        assert_eq!(stays.connects(), 1, "it was never disturbed");
        stays.end();
        drop((queue, controller));
        for nsid in NSIDS {
            target.remove_namespace(NQN, nsid).unwrap();
        }
    });
}

/// Every kind of change that there is, over and over, none of which concerns the hosts at work.
#[test]
fn s64_the_configuration_changes_under_load() {
    scenario(|scene| {
        let target = &scene.target;
        let loads: Vec<_> = (1..4).map(|host| scene.load(host)).collect();
        let shared = disk();
        for round in 0..30 {
            let mut front = ListenerConfig::tcp(ANY.parse().unwrap());
            front.subsystems = Some(vec![OTHER.to_owned()]);
            let mut namespace = NamespaceConfig::new(1);
            namespace.anagrpid = 2;
            let added = target
                .apply(vec![
                    Change::AddSubsystem(SubsystemConfig::new(OTHER)),
                    Change::AddNamespace {
                        nqn: OTHER.to_owned(),
                        config: namespace,
                        namespace: Arc::clone(&shared) as _,
                    },
                    Change::AddListener(front),
                ])
                .unwrap();
            let listener = added[0].socket.unwrap().to_string();
            target.serve(&listener, NQN).unwrap();
            target.stop_serving(&listener, NQN).unwrap();
            target.add_host(OTHER, host_nqn(9).as_str()).unwrap();
            target.allow_any_host(OTHER, round % 2 == 0).unwrap();
            target.set_ana_group(OTHER, 1, 3).unwrap();
            target
                .set_ana_state(OTHER, &listener, 3, AnaState::Inaccessible)
                .unwrap();
            let config = NamespaceConfig::new(20);
            target
                .add_namespace_with(NQN, config, Arc::clone(&shared) as _)
                .unwrap();
            target
                .set_namespace_hosts(NQN, 20, Some(vec![host_nqn(9).as_str().to_owned()]))
                .unwrap();
            loads.iter().for_each(|load| load.goes_on(1));
            target.remove_namespace(NQN, 20).unwrap();
            target.remove_listener(&listener).unwrap();
            target.remove_subsystem(OTHER).unwrap();
        }
        for load in loads {
            assert_eq!(load.connects(), 1, "it was never disturbed");
            load.end();
        }
    });
}

/// More hosts than the pool has room for each ask for megabytes that they do not read; a host that
/// does is served, and small commands are not held up at all.
#[test]
fn s65_buffers_run_out() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 8 << 20);
    config.stall_timeout = Duration::from_secs(1);
    scenario_with(config, |scene| {
        scene.cases(65);
        for _ in 0..2 {
            let stuck: Vec<_> = (0..40)
                .map(|n| {
                    let (admin, cntlid) = Raw::admin(scene.address);
                    let mut queue = Raw::io(scene.address, cntlid, 1);
                    for cid in 0..12_u16 {
                        let slba = u64::from(cid) * 2048;
                        if n % 2 == 0 {
                            queue.submit(&read(cid, slba, 2048), &[]);
                        } else {
                            queue.submit(&write_by_r2t(cid, slba, 2048), &[]);
                        }
                    }
                    (admin, queue)
                })
                .collect();
            scene.serves_beside();
            assert!(scene.target.stats().buffers_lent <= 8 << 20);
            drop(stuck);
        }
    });
}

/// What a host says of the time is its own affair: setting the Timestamp far back and forth changes
/// no deadline. (What the system's clock says does not matter either: see
/// `s66_nothing_looks_at_the_wall_clock`.)
#[test]
fn s66_a_host_sets_its_clock() {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    scenario(|scene| {
        let mut options = scene.host(1);
        options.kato = 600_000;
        let mut controller = Controller::connect(&options).unwrap();
        let stays = scene.load(2);
        for time in [1, 400 * DAY, 20_000 * DAY, (1 << 48) - 1, 0, 20_000 * DAY] {
            let mut data = vec![0; 8];
            data[..6].copy_from_slice(&u64::to_le_bytes(time)[..6]);
            let set = command::set_features(0, &SetFeatures::new(Fid::TIMESTAMP, 0));
            let done = controller.raw(set, Data::Write(data)).unwrap();
            assert_eq!(done.status(), Status::SUCCESS);
            let get = command::get_features(0, &GetFeatures::new(Fid::TIMESTAMP));
            let done = controller.raw(get, Data::Read(vec![0; 8])).unwrap();
            let mut told = [0; 8];
            told[..6].copy_from_slice(&done.buffer[..6]);
            let since = u64::from_le_bytes(told).wrapping_sub(time) & ((1 << 48) - 1);
            assert!(since < DAY, "it runs on from {time}: {since}");
            controller.keep_alive().unwrap();
            stays.goes_on(2);
        }
        drop(controller);
        // A timeout that is due is due all the same.
        let (mut admin, _) = Raw::admin(scene.address);
        admin.ok(&keep_alive_timeout(100), &[]);
        admin.expect_end();
        stays.end();
    });
}

/// The target's code has no clock but the monotonic one, so that the system's may jump as it likes.
#[test]
fn s66_nothing_looks_at_the_wall_clock() {
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    sources(&root.join("nvmf-target/src"), &mut found);
    sources(&root.join("nvmf-proto/src"), &mut found);
    assert!(found.len() > 50);
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        for clock in ["SystemTime", "UNIX_EPOCH", "ClockId::Realtime", "time::now"] {
            assert!(!text.contains(clock), "{}: {clock}", path.display());
        }
    }
}

/// The process has no descriptor left when connections come: those that are there are served, and
/// accepting goes on when there are some. Over the daemon, and that nothing spins: docs/reliability.md.
#[test]
fn s67_no_descriptors_are_left() {
    scenario(|scene| {
        let stays = scene.load(1);
        let open = || TcpStream::connect(scene.address).unwrap();
        let before = getrlimit(Resource::Nofile);
        for _ in 0..3 {
            let highest = open();
            let few = Rlimit {
                current: Some(u64::try_from(highest.as_raw_fd()).unwrap() + 12),
                ..before
            };
            setrlimit(Resource::Nofile, few).unwrap();
            // This process has both ends; it takes what is left for its own.
            let mut ends = Vec::new();
            while let Ok(end) = TcpStream::connect(scene.address) {
                ends.push(end);
            }
            for _ in 0..4 {
                stays.goes_on(16);
                assert_eq!(stays.connects(), 1, "it was never disturbed");
            }
            setrlimit(Resource::Nofile, before).unwrap();
            scene.serves_beside();
            drop((ends, highest));
        }
        stays.end();
    });
}

/// A small soak: the same mixture of everything, over and over; what is left over of the second half
/// is not more than of the first. The long one is docs/reliability.md's.
#[test]
fn s68_everything_at_once_over_and_over() {
    scenario(|scene| {
        let loads: Vec<_> = (1..4).map(|host| scene.load(host)).collect();
        let shared = disk();
        let round = |seed: usize| {
            let end = [End::Close, End::Reset, End::HalfClose][seed % 3];
            for step in 0..20 {
                let cut = 1 + (seed * 7919 + step * 104_729) % 6500;
                let mut host = Mortal::new(scene.address, Digests::default(), end, cut);
                let _ = host.session();
            }
            let config = NamespaceConfig::new(20);
            let disk = Arc::clone(&shared) as _;
            scene.target.add_namespace_with(NQN, config, disk).unwrap();
            scene.serves_beside();
            scene.target.remove_namespace(NQN, 20).unwrap();
            let mut noise = Raw::tcp(scene.address);
            noise.send(&pattern(seed as u64, 300));
            loads.iter().for_each(|load| load.goes_on(2));
        };
        let settled = || {
            // Three hosts with two connections each.
            eventually("the others are gone", || {
                scene.target.stats().connections == 6
            });
            allocated()
        };
        (0..20).for_each(round);
        let half = settled();
        (20..40).for_each(round);
        let whole = settled();
        let grown = whole.saturating_sub(half);
        assert!(grown < 64 << 10, "{grown} bytes more after the second half");
        for load in loads {
            assert_eq!(load.connects(), 1, "it was never disturbed");
            load.end();
        }
    });
}

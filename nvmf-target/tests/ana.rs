//! Asymmetric Namespace Access: what each state does to each kind of command, and failover.

mod common;

use common::raw::HOSTID;
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, options, pattern, target};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{AsyncEventConfig, Fid, GetFeatures, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand, NSID_BROADCAST};
use nvmf_host::nvmf_proto::wire::log::{AnaStateCode, AsyncEvent, GetLogPage, Lid, decode_ana_log};
use nvmf_host::nvmf_proto::wire::reservation::{
    AcquireCommand, RegisterCommand, RegisterData, ReleaseCommand,
};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Controller, Data, IoQueue, Namespace, command};
use nvmf_target::ns::{Inline, NsInfo, RamDisk};
use nvmf_target::{AnaState, Change, NamespaceConfig, Target};
use std::net::SocketAddr;
use std::sync::Arc;

const OK: Status = Status::SUCCESS;

/// The states, and the status of what they refuse.
const STATES: [(AnaState, Status); 5] = [
    (AnaState::Optimized, OK),
    (AnaState::NonOptimized, OK),
    (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
    (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
    (AnaState::Change, Status::ANA_TRANSITION),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Io,
    Admin,
}

/// A kind of command: its name, its queue, whether a state may refuse it, and the command.
type Row = (&'static str, On, bool, fn(u32) -> (Sqe, Data));

fn block() -> Data {
    Data::Write(vec![0; 512])
}

fn identify(nsid: u32, cns: Cns) -> (Sqe, Data) {
    let sqe = command::identify(nsid, &IdentifyCommand::new(cns));
    (sqe, Data::Read(vec![0; 4096]))
}

fn log(nsid: u32, lid: Lid) -> (Sqe, Data) {
    let sqe = command::get_log_page(nsid, &GetLogPage::new(lid, 512));
    (sqe, Data::Read(vec![0; 512]))
}

fn get(nsid: u32, fid: Fid) -> (Sqe, Data) {
    (
        command::get_features(nsid, &GetFeatures::new(fid)),
        Data::None,
    )
}

fn set(nsid: u32, fid: Fid, value: u32) -> (Sqe, Data) {
    let sqe = command::set_features(nsid, &SetFeatures::new(fid, value));
    (sqe, Data::None)
}

/// NVMe Base 2.1 §8.1.1: everything that needs the namespace itself is refused, everything that
/// tells of controllers, paths and names is not.
const TABLE: [Row; 26] = [
    ("Read", On::Io, true, |n| {
        (command::read(n, 0, 1), Data::Read(vec![0; 512]))
    }),
    ("Write", On::Io, true, |n| {
        (command::write(n, 0, 1), block())
    }),
    ("Compare", On::Io, true, |n| {
        (command::compare(n, 0, 1), block())
    }),
    ("Verify", On::Io, true, |n| {
        (command::verify(n, 0, 1), Data::None)
    }),
    ("Flush", On::Io, true, |n| (command::flush(n), Data::None)),
    ("Flush of all", On::Io, true, |_| {
        (command::flush(NSID_BROADCAST), Data::None)
    }),
    ("Write Zeroes", On::Io, true, |n| {
        (command::write_zeroes(n, 0, 1, false), Data::None)
    }),
    ("Dataset Management", On::Io, true, |n| {
        let data = DsmRange::default().encode();
        let sqe = command::dataset_management(n, 1, DsmAttributes::DEALLOCATE);
        (sqe, Data::Write(data.to_vec()))
    }),
    ("Reservation Register", On::Io, true, |n| {
        let mut bytes = [0; RegisterData::SIZE];
        RegisterData { crkey: 0, nrkey: 7 }.encode(&mut bytes);
        let mut sqe = Sqe::with_opcode(0x0d);
        sqe.set_nsid(n);
        RegisterCommand::decode(&sqe).encode(&mut sqe);
        (sqe, Data::Write(bytes.to_vec()))
    }),
    ("Reservation Report", On::Io, true, |n| {
        (
            command::reservation_report(n, 64, true),
            Data::Read(vec![0; 64]),
        )
    }),
    ("Identify Namespace", On::Admin, false, |n| {
        identify(n, Cns::NAMESPACE)
    }),
    ("Identify, descriptors", On::Admin, false, |n| {
        identify(n, Cns::NS_ID_DESCRIPTORS)
    }),
    ("Identify, independent", On::Admin, false, |n| {
        identify(n, Cns::NAMESPACE_INDEPENDENT)
    }),
    ("Identify Controller", On::Admin, false, |_| {
        identify(0, Cns::CONTROLLER)
    }),
    ("Identify, active NSIDs", On::Admin, false, |_| {
        identify(0, Cns::ACTIVE_NSID_LIST)
    }),
    ("Get Log Page, errors", On::Admin, false, |_| {
        log(NSID_BROADCAST, Lid::ERROR_INFORMATION)
    }),
    ("Get Log Page, SMART", On::Admin, false, |_| {
        log(NSID_BROADCAST, Lid::SMART)
    }),
    ("Get Log Page, ANA", On::Admin, false, |_| {
        log(NSID_BROADCAST, Lid::ANA)
    }),
    ("Get Log Page, changed namespaces", On::Admin, false, |_| {
        log(NSID_BROADCAST, Lid::CHANGED_NAMESPACES)
    }),
    ("Get Features, reservation mask", On::Admin, true, |n| {
        get(n, Fid::RESERVATION_NOTIFICATION_MASK)
    }),
    ("Set Features, reservation mask", On::Admin, true, |n| {
        set(n, Fid::RESERVATION_NOTIFICATION_MASK, 0)
    }),
    (
        "Set Features, reservation mask of all",
        On::Admin,
        true,
        |_| set(NSID_BROADCAST, Fid::RESERVATION_NOTIFICATION_MASK, 0),
    ),
    (
        "Get Features, reservation persistence",
        On::Admin,
        true,
        |n| get(n, Fid::RESERVATION_PERSISTENCE),
    ),
    ("Get Features, number of queues", On::Admin, false, |_| {
        get(0, Fid::NUMBER_OF_QUEUES)
    }),
    ("Set Features, events", On::Admin, false, |_| {
        set(0, Fid::ASYNC_EVENT_CONFIG, 0)
    }),
    ("Keep Alive", On::Admin, false, |_| {
        (command::keep_alive(), Data::None)
    }),
];

/// A host with one I/O queue.
struct Path {
    controller: Controller,
    queue: IoQueue,
}

impl Path {
    fn new(address: SocketAddr) -> Self {
        let mut options = options(address);
        options.host_id = HOSTID;
        options.kato = 60_000;
        let mut controller = Controller::connect(&options).unwrap();
        controller.set_queue_count(1).unwrap();
        let queue = controller.io_queue(1).unwrap();
        Self { controller, queue }
    }

    fn status(&mut self, on: On, (sqe, data): (Sqe, Data)) -> Status {
        let done = match on {
            On::Io => self.queue.raw(sqe, data),
            On::Admin => self.controller.raw(sqe, data),
        };
        done.unwrap().status()
    }

    /// State of a group by its namespace.
    fn state(&mut self, nsid: u32) -> AnaStateCode {
        let request = GetLogPage::new(Lid::ANA, 0);
        let page = self
            .controller
            .log_page(0xffff_ffff, &request, 4096)
            .unwrap();
        let (_, groups) = decode_ana_log(&page).unwrap();
        let group = groups.into_iter().find(|g| g.nsids.contains(&nsid));
        group.unwrap().state
    }
}

fn set_state(target: &Target, at: SocketAddr, state: AnaState) {
    target
        .set_ana_state(NQN, &at.to_string(), 1, state)
        .unwrap();
}

/// A target with namespace 1 in group 1 and namespace 2 in group 2.
fn two_groups() -> (Target, SocketAddr) {
    let (target, address) = target(config());
    let mut second = NamespaceConfig::new(2);
    second.anagrpid = 2;
    let disk = Inline::new(RamDisk::new(1 << 20, 512).unwrap());
    target
        .add_namespace_with(NQN, second, Arc::new(disk))
        .unwrap();
    (target, address)
}

#[test]
fn every_state_and_every_kind_of_command() {
    let (target, address) = two_groups();
    let mut path = Path::new(address);
    for (state, refused) in STATES {
        set_state(&target, address, state);
        for (what, on, refusable, make) in TABLE {
            let expected = if refusable { refused } else { OK };
            assert_eq!(path.status(on, make(1)), expected, "{what}, {state}");
            // Of the other group only what names all namespaces is concerned.
            let of_all = what.ends_with("of all") && refusable;
            let expected = if of_all { refused } else { OK };
            assert_eq!(path.status(on, make(2)), expected, "{what}, not {state}");
        }
        // A host that tries again may succeed: never DNR.
        assert!(!refused.is_dnr());
    }
}

#[test]
fn of_several_reasons_the_most_lasting_is_given() {
    let (target, address) = two_groups();
    let mut path = Path::new(address);
    let name = address.to_string();
    let order = [2, 1, 0].map(|n| STATES[[3, 2, 4][n]]);
    for (a, of_a) in order {
        for (b, of_b) in order {
            target.set_ana_state(NQN, &name, 1, a).unwrap();
            target.set_ana_state(NQN, &name, 2, b).unwrap();
            let rank = |status| [3, 2, 4].iter().position(|&n| STATES[n].1 == status);
            let expected = if rank(of_a) <= rank(of_b) { of_a } else { of_b };
            let flush = (command::flush(NSID_BROADCAST), Data::None);
            assert_eq!(path.status(On::Io, flush), expected, "{a}, {b}");
        }
    }
}

/// Reservation commands beyond Register and Report look at the path before they look at keys.
#[test]
fn reservations_are_refused_before_keys_are_looked_at() {
    let (target, address) = two_groups();
    let mut path = Path::new(address);
    let plain = |opcode| {
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(1);
        sqe
    };
    for (state, refused) in STATES.into_iter().filter(|(_, refused)| *refused != OK) {
        set_state(&target, address, state);
        let mut acquire = plain(0x11);
        AcquireCommand::decode(&plain(0x11)).encode(&mut acquire);
        let acquire = (acquire, Data::Write(vec![7; 16]));
        assert_eq!(path.status(On::Io, acquire), refused, "{state}");
        let mut release = plain(0x15);
        ReleaseCommand::decode(&plain(0x15)).encode(&mut release);
        let release = (release, Data::Write(vec![7; 8]));
        assert_eq!(path.status(On::Io, release), refused, "{state}");
    }
}

#[test]
fn a_change_is_announced_at_its_listener_only() {
    let (target, first) = target(config());
    let second = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let [mut a, mut b] = [first, second].map(Path::new);
    for path in [&mut a, &mut b] {
        let controller = &mut path.controller;
        controller
            .set_event_config(AsyncEventConfig::ANA_CHANGE)
            .unwrap();
        controller.submit_event_request().unwrap();
    }
    set_state(&target, first, AnaState::Inaccessible);
    let event = a.controller.poll_event(PATIENCE).unwrap();
    assert_eq!(event, Some(AsyncEvent::ANA_CHANGE));
    assert_eq!(a.state(1), AnaStateCode::INACCESSIBLE);
    assert_eq!(b.state(1), AnaStateCode::OPTIMIZED);
    // The first event of the second is of the second change.
    set_state(&target, second, AnaState::NonOptimized);
    let event = b.controller.poll_event(PATIENCE).unwrap();
    assert_eq!(event, Some(AsyncEvent::ANA_CHANGE));
    assert_eq!(b.state(1), AnaStateCode::NON_OPTIMIZED);
}

#[test]
fn commands_in_the_backend_finish_whatever_the_state_becomes() {
    let (target, address) = target(config());
    let step = Step::new(NsInfo::new(512, 64));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut path = Path::new(address);
    for (state, refused) in STATES {
        set_state(&target, address, AnaState::Optimized);
        let data = Data::Write(vec![3; 512]);
        let token = path
            .queue
            .queue()
            .submit(command::write(2, 0, 1), data)
            .unwrap();
        assert!(path.queue.queue().flush().unwrap());
        let request = step.next();
        set_state(&target, address, state);
        request.complete(Ok(()));
        let done = path.queue.queue().wait_for("Write", token).unwrap();
        assert_eq!(done.status(), OK, "{state}");
        if refused != OK {
            let write = (command::write(2, 0, 1), block());
            assert_eq!(path.status(On::Io, write), refused, "{state}");
            assert_eq!(step.pending(), 0);
        }
    }
}

/// Writes by whichever path takes it, as a host with native multipath does.
fn write(paths: &mut [Path], ns: &Namespace, slba: u64, data: &[u8]) -> usize {
    for _ in 0..100 {
        for (n, path) in paths.iter_mut().enumerate() {
            match path.queue.write(ns, slba, data) {
                Ok(()) => return n,
                Err(err) => {
                    let status = err.status().unwrap_or_else(|| panic!("{err}"));
                    assert!(status.sct().0 == 3 && !status.is_dnr(), "{status}");
                }
            }
        }
    }
    panic!("no path takes it");
}

#[test]
fn failover_and_failback_lose_nothing() {
    let (target, first) = target(config());
    let second = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut paths = [first, second].map(Path::new);
    let ns = paths[0].controller.namespace(1).unwrap();
    let state = |at: SocketAddr, state| Change::SetAnaState {
        nqn: NQN.to_owned(),
        listener: at.to_string(),
        anagrpid: 1,
        state,
    };
    let mut taken = [0, 0];
    for round in 0..64u64 {
        let slba = round * 16;
        let (now, then) = if round % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        };
        // The path that was in use goes away in two steps; the other one is there before.
        target
            .apply(vec![
                state(now, AnaState::Optimized),
                state(then, AnaState::Change),
            ])
            .unwrap();
        target
            .apply(vec![state(then, AnaState::Inaccessible)])
            .unwrap();
        let by = write(&mut paths, &ns, slba, &pattern(round, 8192));
        taken[by] += 1;
    }
    assert_eq!(taken, [32, 32]);
    set_state(&target, first, AnaState::NonOptimized);
    set_state(&target, second, AnaState::NonOptimized);
    for round in 0..64u64 {
        for path in &mut paths {
            let mut back = vec![0; 8192];
            path.queue.read(&ns, round * 16, &mut back).unwrap();
            assert!(back == pattern(round, 8192), "round {round}");
        }
    }
    drop(paths);
    assert_idle(&target);
}

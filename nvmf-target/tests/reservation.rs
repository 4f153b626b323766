//! Reservations between hosts over sockets: conflicts, statuses, reports, notifications.

mod common;
#[path = "tables/reservation.rs"]
mod table;

use common::reserving::{CONFLICT, EXCLUSIVE_ACCESS, Host, INVALID, REGISTRANTS, WRITE_EXCLUSIVE};
use common::{assert_idle, config, eventually};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_host::nvmf_proto::wire::reservation::{
    AcquireAction, CNTLID_NONE, ChangePtpl, NotificationType, RegisterAction, RegisterCommand,
    RegisterData, RegistrantStatus, ReleaseAction, ReleaseCommand, ReservationNotificationLog,
    ReservationType,
};
use nvmf_host::{Data, ReservationReport, command};
use std::time::Duration;
use table::{
    ACCESS, ACQUIRE, After, GROUPS, Group, HOLDINGS, Holding, Is, KEYS, Key, PREEMPT, Prkey,
    RELEASE, Role, register_row,
};

/// The statuses of the commands of a group: the Read and Write groups have several.
fn run_group(host: &mut Host, group: Group, rtype: ReservationType, prkey: u64) -> Vec<Status> {
    let block = || Data::Write(vec![0; 512]);
    let nsid = host.ns.nsid;
    let status = match group {
        Group::Read => {
            return vec![
                host.read(),
                host.run(command::compare(nsid, 0, 1), block()),
                host.run(command::verify(nsid, 0, 1), Data::None),
            ];
        }
        Group::Write => {
            let deallocate = command::dataset_management(nsid, 1, DsmAttributes::DEALLOCATE);
            let range = DsmRange {
                length: 1,
                slba: 5,
                context: 0,
            };
            return vec![
                host.write(),
                host.run(command::write_zeroes(nsid, 0, 1, false), Data::None),
                host.run(deallocate, Data::Write(range.encode().to_vec())),
                host.run(command::flush(nsid), Data::None),
                host.run(command::flush(0xffff_ffff), Data::None),
            ];
        }
        Group::Acquire => host.acquire(rtype),
        Group::Preempt => host.acquire_with(AcquireAction::PREEMPT, rtype, prkey),
        Group::PreemptAndAbort => host.acquire_with(AcquireAction::PREEMPT_AND_ABORT, rtype, prkey),
        Group::Release => host.release(ReleaseAction::RELEASE, rtype),
        Group::Register => host.register_with(RegisterAction::REGISTER, ChangePtpl::NONE),
        Group::Report => host.run(
            command::reservation_report(nsid, 64, true),
            Data::Read(vec![0; 64]),
        ),
    };
    vec![status]
}

#[test]
fn every_cell_of_the_table_of_commands_and_types() {
    let (target, address) = common::target(config());
    let [mut a, mut b, mut stranger] = [1, 2, 3].map(|number| Host::new(address, number));
    for (rtype, role, row) in ACCESS {
        let rtype = ReservationType(rtype);
        for (group, cell) in GROUPS.into_iter().zip(row.chars()) {
            // From the beginning: registered are A and B, and A holds.
            a.register();
            assert_eq!(a.release(ReleaseAction::CLEAR, rtype), Status::SUCCESS);
            a.register();
            b.register();
            assert_eq!(a.acquire(rtype), Status::SUCCESS);
            let key = a.key;
            let host = match role {
                Role::Holder => &mut a,
                Role::Registrant => &mut b,
                Role::Stranger => &mut stranger,
            };
            let prkey = if rtype.is_all_registrants() { 0 } else { key };
            let want = if cell == 'A' {
                Status::SUCCESS
            } else {
                CONFLICT
            };
            for (i, status) in run_group(host, group, rtype, prkey).into_iter().enumerate() {
                assert_eq!(status, want, "{rtype:?} {role:?} {group:?} {i}");
            }
        }
    }
    drop((a, b, stranger));
    assert_idle(&target);
}

/// Three hosts that are registered; the first holds something, or the second, or all do. It is the
/// second that sends the commands.
fn hold(hosts: &mut [Host; 3], holding: Holding) {
    hosts[0].register();
    let cleared = hosts[0].release(ReleaseAction::CLEAR, WRITE_EXCLUSIVE);
    assert_eq!(cleared, Status::SUCCESS);
    hosts.iter_mut().for_each(Host::register);
    let acquired = match holding {
        Holding::Nothing => Status::SUCCESS,
        Holding::Own => hosts[1].acquire(WRITE_EXCLUSIVE),
        Holding::Others => hosts[0].acquire(WRITE_EXCLUSIVE),
        Holding::All => hosts[0].acquire(ReservationType::WRITE_EXCLUSIVE_ALL),
    };
    assert_eq!(acquired, Status::SUCCESS);
}

/// RTYPE of what [`hold`] makes.
const fn held_type(holding: Holding) -> u8 {
    match holding {
        Holding::Nothing => 0,
        Holding::Own | Holding::Others => 1,
        Holding::All => 5,
    }
}

const fn status(is: Is) -> Status {
    match is {
        Is::Success => Status::SUCCESS,
        Is::Conflict => CONFLICT,
        Is::InvalidField => INVALID,
    }
}

#[test]
fn every_row_of_the_tables_of_acquire_and_release() {
    let (_target, address) = common::target(config());
    let mut hosts = [1, 2, 3].map(|number| Host::new(address, number));
    for (what, rtype, want) in ACQUIRE {
        hold(&mut hosts, what);
        let got = hosts[1].acquire(ReservationType(rtype));
        assert_eq!(got, status(want), "{what:?} {rtype}");
        let held = if want == Is::Success {
            rtype
        } else {
            held_type(what)
        };
        assert_eq!(hosts[2].report().status.rtype.0, held, "{what:?} {rtype}");
    }
    for (what, rtype, want, still) in RELEASE {
        hold(&mut hosts, what);
        let got = hosts[1].release(ReleaseAction::RELEASE, ReservationType(rtype));
        assert_eq!(got, status(want), "{what:?} {rtype}");
        let held = if still { held_type(what) } else { 0 };
        assert_eq!(hosts[2].report().status.rtype.0, held, "{what:?} {rtype}");
    }
    assert!(
        HOLDINGS
            .iter()
            .all(|h| ACQUIRE.iter().any(|row| row.0 == *h))
    );
}

#[test]
fn every_row_of_the_table_of_preempt() {
    let (_target, address) = common::target(config());
    let mut hosts = [1, 2, 3].map(|number| Host::new(address, number));
    for (what, prkey, want, left) in PREEMPT {
        for action in [AcquireAction::PREEMPT, AcquireAction::PREEMPT_AND_ABORT] {
            hold(&mut hosts, what);
            let key = match prkey {
                Prkey::Own => hosts[1].key,
                Prkey::Other => hosts[0].key,
                Prkey::Third => hosts[2].key,
                Prkey::Nobody => 0x77,
                Prkey::Zero => 0,
            };
            let got = hosts[1].acquire_with(action, EXCLUSIVE_ACCESS, key);
            let case = format!("{what:?} {prkey:?} {action:?}");
            assert_eq!(got, status(want), "{case}");
            let report = hosts[2].report();
            let registered = |host: &Host| {
                report
                    .registrants
                    .iter()
                    .any(|entry| entry.hostid == host.id)
            };
            let got = [&hosts[1], &hosts[0], &hosts[2]].map(registered);
            assert_eq!(got, left.registered, "{case}");
            let held = if left.taken { 2 } else { held_type(what) };
            assert_eq!(report.status.rtype.0, held, "{case}");
        }
    }
}

#[test]
fn every_row_of_the_table_of_register() {
    let (_target, address) = common::target(config());
    let mut hosts = [1, 2, 3].map(|number| Host::new(address, number));
    hold(&mut hosts, Holding::Others);
    let host = &mut hosts[1];
    for registered in [false, true] {
        for (action, iekey) in (0..8).flat_map(|a| [(a, false), (a, true)]) {
            for (crkey, nrkey) in KEYS.into_iter().flat_map(|c| KEYS.map(|n| (c, n))) {
                host.register();
                if !registered {
                    host.register_with(RegisterAction::UNREGISTER, ChangePtpl::NONE);
                }
                let key = |key| match key {
                    Key::Own => host.key,
                    Key::Other => 0x77,
                    Key::Zero => 0,
                };
                let data = RegisterData {
                    crkey: key(crkey),
                    nrkey: key(nrkey),
                };
                let before = registered.then_some(host.key);
                let command = RegisterCommand {
                    action: RegisterAction(action),
                    iekey,
                    cptpl: ChangePtpl::NONE,
                };
                let got = host.queue.reservation_register(1, &command, &data).unwrap();
                let case = format!("{registered} {action} {iekey} {crkey:?} {nrkey:?}");
                let (want, after) = register_row(registered, action, iekey, crkey, nrkey);
                assert_eq!(got, status(want), "{case}");
                let key = match after {
                    After::Unchanged => before,
                    After::New => Some(data.nrkey),
                    After::Gone => None,
                };
                let report = host.report();
                let mut entries = report.registrants.iter();
                let entry = entries.find(|entry| entry.hostid == host.id);
                assert_eq!(entry.map(|entry| entry.rkey), key, "{case}");
            }
        }
    }
}

#[test]
fn rights_are_of_a_host_on_all_its_controllers() {
    let (_target, address) = common::target(config());
    let [mut first, mut second] = [1, 1].map(|number| Host::new(address, number));
    let mut other = Host::new(address, 2);
    first.register();
    assert_eq!(second.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    for host in [&mut first, &mut second] {
        assert_eq!(
            (host.write(), host.read()),
            (Status::SUCCESS, Status::SUCCESS)
        );
    }
    assert_eq!((other.write(), other.read()), (CONFLICT, CONFLICT));
    let report = other.report();
    assert_eq!(
        (report.status.registrants, report.registrants.len()),
        (1, 1)
    );
    let cntlid = first.controller.identify_controller().unwrap().cntlid;
    let registrant = &report.registrants[0];
    assert_eq!((registrant.hostid, registrant.rkey), (first.id, first.key));
    assert_eq!(registrant.cntlid, cntlid);
    assert_eq!(registrant.status, RegistrantStatus::HOLDER);

    // A reservation outlives the controllers of its holder.
    drop((first, second));
    eventually("the holder is gone", || {
        other.report().registrants[0].cntlid == CNTLID_NONE
    });
    assert_eq!(other.write(), CONFLICT);
    let mut back = Host::new(address, 1);
    assert_eq!(back.write(), Status::SUCCESS);
    assert_eq!(
        back.release(ReleaseAction::RELEASE, EXCLUSIVE_ACCESS),
        Status::SUCCESS
    );
    assert_eq!(other.write(), Status::SUCCESS);
}

#[test]
fn reports_have_any_length() {
    let (_target, address) = common::target(config());
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    a.register();
    b.register();
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::SUCCESS);
    let mut read = |len: u32, extended| {
        let sqe = command::reservation_report(1, len, extended);
        let done = a
            .queue
            .raw(sqe, Data::Read(vec![0xee; len as usize]))
            .unwrap();
        (done.status(), done.buffer)
    };
    let (status, whole) = read(4096, true);
    assert_eq!(status, Status::SUCCESS);
    let report = ReservationReport::decode(&whole).unwrap();
    assert_eq!((report.status.generation, report.registrants.len()), (2, 2));
    assert!(whole[192..].iter().all(|&byte| byte == 0));
    for len in [4, 8, 24, 64, 68, 128, 192, 196, 64 << 10] {
        let (status, part) = read(len, true);
        let same = len.min(4096) as usize;
        assert_eq!(
            (status, &part[..same]),
            (Status::SUCCESS, &whole[..same]),
            "{len}"
        );
    }
    let (status, _) = read(4096, false);
    assert_eq!(status, Status::HOST_ID_INCONSISTENT.dnr());
    // More than MDTS.
    let sqe = command::reservation_report(1, (1 << 20) + 4, true);
    let status = a.run(sqe, Data::Read(vec![0; (1 << 20) + 4]));
    assert_eq!(status, INVALID);
}

#[test]
fn commands_that_are_wrong() {
    let (_target, address) = common::target(config());
    let mut a = Host::new(address, 1);
    a.register();
    // Linux before 6.12 sends 16 bytes with Release, of which 8 count.
    let release = ReleaseCommand {
        action: ReleaseAction::RELEASE,
        iekey: false,
        rtype: WRITE_EXCLUSIVE,
    };
    let sqe = command::reservation_release(1, &release);
    let key = |len: usize| {
        let mut data = vec![0xff; len];
        let bytes = a.key.to_le_bytes();
        data.iter_mut().zip(bytes).for_each(|(d, b)| *d = b);
        data
    };
    let cases = [
        (key(4), Status::DATA_SGL_LENGTH_INVALID.dnr()),
        (key(8), Status::SUCCESS),
        (key(16), Status::SUCCESS),
        (key(4096), Status::SUCCESS),
        (key(4100), Status::DATA_SGL_LENGTH_INVALID.dnr()),
    ];
    for (data, status) in cases {
        let len = data.len();
        assert_eq!(a.run(sqe, Data::Write(data)), status, "{len} bytes");
    }
    a.ns.nsid = 7;
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::INVALID_NAMESPACE.dnr());
    a.ns.nsid = 0xffff_ffff;
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::INVALID_NAMESPACE.dnr());
    a.ns.nsid = 1;
    assert_eq!(a.acquire(ReservationType(7)), INVALID);
    assert_eq!(a.write(), Status::SUCCESS);
}

#[test]
fn a_host_without_identifier() {
    let (_target, address) = common::target(config());
    let [mut nobody, mut a] = [0, 1].map(|number| Host::new(address, number));
    let refused = Status::HOST_ID_NOT_INITIALIZED.dnr();
    let register = nobody.register_with(RegisterAction::REGISTER, ChangePtpl::NONE);
    assert_eq!(register, refused);
    assert_eq!(nobody.acquire(WRITE_EXCLUSIVE), refused);
    assert_eq!(
        nobody.release(ReleaseAction::CLEAR, WRITE_EXCLUSIVE),
        refused
    );
    let report = run_group(&mut nobody, Group::Report, WRITE_EXCLUSIVE, 0);
    assert_eq!(report, [refused]);
    assert_eq!(nobody.write(), Status::SUCCESS);
    a.register();
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::SUCCESS);
    assert_eq!((nobody.write(), nobody.read()), (CONFLICT, Status::SUCCESS));
}

#[test]
fn notifications_reach_every_controller_of_the_hosts_concerned() {
    let (_target, address) = common::target(config());
    let [mut a, mut b, mut b2, mut c] = [1, 2, 2, 3].map(|number| Host::new(address, number));
    for host in [&mut a, &mut b, &mut b2, &mut c] {
        host.controller.submit_event_request().unwrap();
    }
    for host in [&mut a, &mut b, &mut c] {
        host.register();
    }
    assert_eq!(a.acquire(REGISTRANTS), Status::SUCCESS);
    // B is preempted.
    let preempted = NotificationType::REGISTRATION_PREEMPTED;
    let key = b.key;
    assert_eq!(
        a.acquire_with(AcquireAction::PREEMPT, REGISTRANTS, key),
        Status::SUCCESS
    );
    for host in [&mut b, &mut b2] {
        let notice = host.notification();
        assert_eq!((notice.kind, notice.nsid, notice.count), (preempted, 1, 1));
        assert_eq!(host.notice(), ReservationNotificationLog::default());
    }
    // C learns of the release; A, who released, and B, who is no registrant any more, do not.
    let released = NotificationType::RESERVATION_RELEASED;
    assert_eq!(
        a.release(ReleaseAction::RELEASE, REGISTRANTS),
        Status::SUCCESS
    );
    assert_eq!(c.notification().kind, released);
    c.controller.submit_event_request().unwrap();
    // Everything is cleared.
    assert_eq!(
        a.release(ReleaseAction::CLEAR, REGISTRANTS),
        Status::SUCCESS
    );
    let notice = c.notification();
    assert_eq!(notice.kind, NotificationType::RESERVATION_PREEMPTED);
    assert_eq!(notice.count, 2);
    for host in [&mut a, &mut b] {
        assert_eq!(host.notice(), ReservationNotificationLog::default());
        let event = host.controller.poll_event(Duration::ZERO).unwrap();
        assert_eq!(event, None);
    }
    // What is masked does not come.
    c.controller.submit_event_request().unwrap();
    let mask = SetFeatures::new(Fid::RESERVATION_NOTIFICATION_MASK, 0b1000);
    c.controller.set_features(1, &mask).unwrap();
    a.register();
    c.register();
    assert_eq!(
        a.release(ReleaseAction::CLEAR, REGISTRANTS),
        Status::SUCCESS
    );
    assert_eq!(c.notice(), ReservationNotificationLog::default());
}

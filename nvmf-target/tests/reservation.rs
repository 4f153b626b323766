//! Reservations between hosts over sockets: conflicts, notifications, preemption under way, and
//! what outlives the target.

mod common;
#[path = "tables/reservation.rs"]
mod table;

use common::raw::{self, Raw};
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, eventually, options, pattern};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmCommand, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{Fid, GetFeatures, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::Rescap;
use nvmf_host::nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use nvmf_host::nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, CNTLID_NONE, ChangePtpl, NotificationType,
    RegisterAction, RegisterCommand, RegisterData, RegistrantStatus, ReleaseAction, ReleaseCommand,
    ReleaseData, ReservationNotificationLog, ReservationType,
};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Controller, Data, IoQueue, Namespace, ReservationReport, command};
use nvmf_target::ns::{Inline, NsInfo, Op, RamDisk};
use nvmf_target::{
    FileReservationStore, ReservationScope, ReservationStore, SubsystemConfig, Target,
};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use table::{
    ACCESS, ACQUIRE, After, GROUPS, Group, HOLDINGS, Holding, Is, KEYS, Key, PREEMPT, Prkey,
    RELEASE, Role, register_row,
};

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();
const WRITE_EXCLUSIVE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
const EXCLUSIVE_ACCESS: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
const REGISTRANTS: ReservationType = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS;

/// A host with a controller and one I/O queue. Its key is made of its number.
struct Host {
    controller: Controller,
    queue: IoQueue,
    ns: Namespace,
    id: [u8; 16],
    key: u64,
}

impl Host {
    fn new(address: SocketAddr, number: u8) -> Self {
        let mut options = options(address);
        options.host_id = [number; 16];
        let mut controller = Controller::connect(&options).unwrap();
        controller.set_queue_count(4).unwrap();
        let queue = controller.io_queue(1).unwrap();
        let ns = controller.namespace(1).unwrap();
        Self {
            controller,
            queue,
            ns,
            id: [number; 16],
            key: 0x1000 + u64::from(number),
        }
    }

    fn register_with(&mut self, action: RegisterAction, cptpl: ChangePtpl) -> Status {
        let iekey = true;
        let command = RegisterCommand {
            action,
            iekey,
            cptpl,
        };
        let data = RegisterData {
            crkey: 0,
            nrkey: self.key,
        };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_register(nsid, &command, &data)
            .unwrap()
    }

    fn register(&mut self) {
        let status = self.register_with(RegisterAction::REPLACE, ChangePtpl::NONE);
        assert_eq!(status, Status::SUCCESS);
    }

    fn acquire_with(&mut self, action: AcquireAction, rtype: ReservationType, key: u64) -> Status {
        let iekey = false;
        let command = AcquireCommand {
            action,
            iekey,
            rtype,
        };
        let data = AcquireData {
            crkey: self.key,
            prkey: key,
        };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_acquire(nsid, &command, &data)
            .unwrap()
    }

    fn acquire(&mut self, rtype: ReservationType) -> Status {
        self.acquire_with(AcquireAction::ACQUIRE, rtype, 0)
    }

    fn release(&mut self, action: ReleaseAction, rtype: ReservationType) -> Status {
        let iekey = false;
        let command = ReleaseCommand {
            action,
            iekey,
            rtype,
        };
        let data = ReleaseData { crkey: self.key };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_release(nsid, &command, &data)
            .unwrap()
    }

    fn report(&mut self) -> ReservationReport {
        self.queue.reservation_report(self.ns.nsid, 8).unwrap()
    }

    /// Runs a command; its status.
    fn run(&mut self, sqe: Sqe, data: Data) -> Status {
        self.queue.raw(sqe, data).unwrap().status()
    }

    fn write(&mut self) -> Status {
        let sqe = command::write(self.ns.nsid, 0, 1);
        self.run(sqe, Data::Write(vec![0; 512]))
    }

    fn read(&mut self) -> Status {
        let sqe = command::read(self.ns.nsid, 0, 1);
        self.run(sqe, Data::Read(vec![0; 512]))
    }

    /// The statuses of the commands of a group: the Read and Write groups have several.
    fn group(&mut self, group: Group, rtype: ReservationType, prkey: u64) -> Vec<Status> {
        let block = || Data::Write(vec![0; 512]);
        let nsid = self.ns.nsid;
        let status = match group {
            Group::Read => {
                return vec![
                    self.read(),
                    self.run(command::compare(nsid, 0, 1), block()),
                    self.run(command::verify(nsid, 0, 1), Data::None),
                ];
            }
            Group::Write => {
                let mut deallocate = Sqe::with_opcode(0x09);
                deallocate.set_nsid(nsid);
                let attributes = DsmAttributes::DEALLOCATE;
                let range_count = 1;
                DsmCommand {
                    range_count,
                    attributes,
                }
                .encode(&mut deallocate);
                let range = DsmRange {
                    length: 1,
                    slba: 5,
                    context: 0,
                };
                return vec![
                    self.write(),
                    self.run(command::write_zeroes(nsid, 0, 1, false), Data::None),
                    self.run(deallocate, Data::Write(range.encode().to_vec())),
                    self.run(command::flush(nsid), Data::None),
                    self.run(command::flush(0xffff_ffff), Data::None),
                ];
            }
            Group::Acquire => self.acquire(rtype),
            Group::Preempt => self.acquire_with(AcquireAction::PREEMPT, rtype, prkey),
            Group::PreemptAndAbort => {
                self.acquire_with(AcquireAction::PREEMPT_AND_ABORT, rtype, prkey)
            }
            Group::Release => self.release(ReleaseAction::RELEASE, rtype),
            Group::Register => self.register_with(RegisterAction::REGISTER, ChangePtpl::NONE),
            Group::Report => self.run(
                command::reservation_report(nsid, 64, true),
                Data::Read(vec![0; 64]),
            ),
        };
        vec![status]
    }

    /// The next event, and the notification behind it.
    fn notification(&mut self) -> ReservationNotificationLog {
        let event = self.controller.poll_event(PATIENCE).unwrap();
        assert_eq!(event, Some(AsyncEvent::RESERVATION_LOG));
        self.notice()
    }

    /// The oldest notification.
    fn notice(&mut self) -> ReservationNotificationLog {
        let get = GetLogPage::new(Lid::RESERVATION_NOTIFICATION, 64);
        let page = self.controller.log_page(0, &get, 64).unwrap();
        ReservationNotificationLog::decode(page.first_chunk().unwrap())
    }
}

fn ram(target: &Target, nsid: u32) {
    let disk = RamDisk::new(8 << 20, 512).unwrap();
    target.add_namespace(NQN, nsid, Inline::new(disk)).unwrap();
}

/// A target with one RAM disk that keeps its reservations.
fn target_with(store: Arc<dyn ReservationStore>) -> (Target, SocketAddr) {
    let _ = env_logger::builder().is_test(true).try_init();
    let target = Target::new(config()).unwrap();
    let mut subsystem = SubsystemConfig::new(NQN);
    subsystem.reservation_store = Some(store);
    target.add_subsystem(subsystem).unwrap();
    ram(&target, 1);
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    (target, address)
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
            for (i, status) in host.group(group, rtype, prkey).into_iter().enumerate() {
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
    let report = nobody.group(Group::Report, WRITE_EXCLUSIVE, 0);
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

/// A target whose only namespace does what the test says. It has a volatile cache and no FUA.
fn step_target() -> (Target, SocketAddr, Step) {
    let _ = env_logger::builder().is_test(true).try_init();
    let target = Target::new(config()).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let step = Step::new(NsInfo::new(512, 2048).with_volatile_cache());
    target.add_namespace(NQN, 1, step.clone()).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    (target, address, step)
}

/// Queues a Preempt and Abort of another host.
fn preempt_and_abort(host: &mut Host, key: u64) {
    let command = AcquireCommand {
        action: AcquireAction::PREEMPT_AND_ABORT,
        iekey: false,
        rtype: EXCLUSIVE_ACCESS,
    };
    let mut data = [0; AcquireData::SIZE];
    AcquireData {
        crkey: host.key,
        prkey: key,
    }
    .encode(&mut data);
    let sqe = command::reservation_acquire(1, &command);
    let queue = host.queue.queue();
    queue
        .submit_tagged(sqe, Data::Write(data.to_vec()), 99)
        .unwrap();
    queue.flush().unwrap();
}

/// The tags and statuses of `count` completions.
fn completions(host: &mut Host, count: usize) -> Vec<(u64, Status)> {
    let mut all = Vec::new();
    while all.len() < count {
        let done = host.queue.poll(PATIENCE).unwrap();
        all.extend(done.map(|done| (done.tag, done.status())));
    }
    all.sort_by_key(|(tag, _)| *tag);
    all
}

#[test]
fn a_command_that_has_begun_ends_without_a_conflict() {
    let (_target, address, step) = step_target();
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    a.register();
    let fua = command::with_fua(command::write(1, 0, 1));
    for conflict in [EXCLUSIVE_ACCESS, WRITE_EXCLUSIVE] {
        let queue = b.queue.queue();
        queue
            .submit_tagged(fua, Data::Write(vec![1; 512]), 1)
            .unwrap();
        queue.flush().unwrap();
        let write = step.next();
        assert_eq!(a.acquire(conflict), Status::SUCCESS);
        write.complete(Ok(()));
        let flush = step.next();
        assert_eq!(flush.op(), Op::Flush);
        flush.complete(Ok(()));
        assert_eq!(completions(&mut b, 1), [(1, Status::SUCCESS)]);
        // The next one has not.
        assert_eq!(b.write(), CONFLICT);
        assert_eq!(a.release(ReleaseAction::RELEASE, conflict), Status::SUCCESS);
    }
}

#[test]
fn preempt_and_abort_waits_for_the_backend() {
    let (target, address, step) = step_target();
    let [mut a, mut b, mut witness] = [1, 2, 1].map(|number| Host::new(address, number));
    a.register();
    b.register();
    step.set_withdraws(true);
    let ns = b.ns;
    for lba in 0..2 {
        b.queue.submit_write(&ns, lba, vec![1; 512], lba).unwrap();
    }
    b.queue.queue().flush().unwrap();
    // One is under way, one has not been begun.
    let under_way = step.next();
    eventually("both are in the backend", || step.pending() == 1);
    preempt_and_abort(&mut a, b.key);
    assert_eq!(completions(&mut b, 1), [(1, Status::ABORT_REQUESTED)]);
    // The change is made, whoever asks; but it is not completed.
    let report = witness.report();
    assert_eq!(
        (report.status.registrants, report.registrants[0].hostid),
        (1, a.id)
    );
    assert_eq!(a.queue.poll(Duration::from_millis(50)).unwrap().count(), 0);
    under_way.complete(Ok(()));
    assert_eq!(completions(&mut b, 1), [(0, Status::SUCCESS)]);
    assert_eq!(completions(&mut a, 1), [(99, Status::SUCCESS)]);
    drop((a, b, witness));
    assert_idle(&target);
}

#[test]
fn preempt_and_abort_waits_for_what_a_lost_connection_left_in_the_backend() {
    let (target, address, step) = step_target();
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    a.register();
    b.register();
    let ns = b.ns;
    b.queue.submit_write(&ns, 0, vec![1; 512], 0).unwrap();
    b.queue.queue().flush().unwrap();
    let under_way = step.next();
    let (key, before) = (b.key, target.stats().connections);
    drop(b);
    // Its I/O connection stays until the backend is done; that it is closed shows in its fellow.
    eventually("the admin queue is gone", || {
        target.stats().connections < before
    });
    preempt_and_abort(&mut a, key);
    let mut witness = Host::new(address, 1);
    assert_eq!(witness.report().status.registrants, 1);
    assert_eq!(a.queue.poll(Duration::from_millis(50)).unwrap().count(), 0);
    under_way.complete(Ok(()));
    assert_eq!(completions(&mut a, 1), [(99, Status::SUCCESS)]);
    drop((a, witness));
    assert_idle(&target);
}

#[test]
fn preempt_and_abort_does_not_wait_for_a_host_that_owes_data() {
    let (_target, address) = common::target(config());
    let mut a = Host::new(address, 1);
    let (_admin, cntlid) = Raw::admin(address);
    let mut dead = Raw::io(address, cntlid, 1);
    let mut twin = Host::new(address, raw::HOSTID[0]);
    assert_eq!(twin.id, raw::HOSTID);
    a.register();
    twin.register();
    a.queue.write(&a.ns, 3, &[7; 512]).unwrap();
    dead.submit(&raw::write_by_r2t(5, 3, 1), &[]);
    let r2t = dead.recv().r2t();
    assert_eq!(a.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    let key = twin.key;
    let status = a.acquire_with(AcquireAction::PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, key);
    assert_eq!(status, Status::SUCCESS);
    // The data comes at last, and goes nowhere.
    let data = raw::Digests::default().h2c_data(&r2t, 0, &[9; 512], true);
    dead.send(&data);
    let cqe = dead.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (5, Status::ABORT_REQUESTED));
    let mut block = [0; 512];
    a.queue.read(&a.ns, 3, &mut block).unwrap();
    assert_eq!(block, [7; 512]);
}

#[test]
fn preempt_and_abort_under_load() {
    const BLOCKS: u64 = 64;
    const BYTES: usize = 64 * 512;
    let (target, address) = common::target(config());
    let mut a = Host::new(address, 1);
    a.register();
    for round in 0..20 {
        // Two controllers of the other host write everywhere until they are told not to.
        let mut others = [2, 2].map(|number| Host::new(address, number));
        others[0].register();
        assert_eq!(others[0].acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
        let key = others[0].key;
        let begun = AtomicBool::new(false);
        let (begun, ours) = (&begun, pattern(round, BYTES));
        thread::scope(|scope| {
            for other in others {
                scope.spawn(move || {
                    // All of it, with the admin queue.
                    let mut other = other;
                    let ns = other.ns;
                    let mut statuses = Vec::new();
                    for lba in (0..BLOCKS).cycle() {
                        if other.queue.queue().outstanding() < 32 {
                            other
                                .queue
                                .submit_write(&ns, lba, vec![0xee; 512], 0)
                                .unwrap();
                        }
                        let done = other.queue.poll(Duration::ZERO).unwrap();
                        statuses.extend(done.map(|done| done.status()));
                        begun.fetch_or(statuses.len() > 100, Ordering::Relaxed);
                        if statuses.contains(&CONFLICT) {
                            break;
                        }
                    }
                    while other.queue.queue().outstanding() > 0 {
                        let done = other.queue.poll(PATIENCE).unwrap();
                        statuses.extend(done.map(|done| done.status()));
                    }
                    let expected = [Status::SUCCESS, Status::ABORT_REQUESTED, CONFLICT];
                    assert!(statuses.iter().all(|status| expected.contains(status)));
                });
            }
            eventually("they write", || begun.load(Ordering::Relaxed));
            let status = a.acquire_with(AcquireAction::PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, key);
            assert_eq!(status, Status::SUCCESS);
            a.queue.write(&a.ns, 0, &ours).unwrap();
        });
        let mut back = vec![0; ours.len()];
        a.queue.read(&a.ns, 0, &mut back).unwrap();
        assert!(back == ours, "something was written after the completion");
        assert_eq!(
            a.release(ReleaseAction::RELEASE, EXCLUSIVE_ACCESS),
            Status::SUCCESS
        );
    }
    drop(a);
    assert_idle(&target);
}

fn store(dir: &Path) -> Arc<dyn ReservationStore> {
    Arc::new(FileReservationStore::new(dir).unwrap())
}

#[test]
fn what_persists_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (target, address) = target_with(store(dir.path()));
    ram(&target, 2);
    let mut a = Host::new(address, 1);
    let rescap = a.controller.identify_namespace(1).unwrap().rescap;
    assert_eq!(rescap, Rescap::all());
    let status = a.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
    assert_eq!(status, Status::SUCCESS);
    assert_eq!(a.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    let mut b = Host::new(address, 2);
    b.register();
    // Not of namespace 2.
    let mut a2 = Host::new(address, 1);
    a2.ns.nsid = 2;
    a2.register();
    assert_eq!(a2.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    let before = a.report();
    assert_eq!((before.status.ptpls, before.status.generation), (1, 2));
    drop((a, b, a2));
    assert!(target.shutdown(PATIENCE));

    let (target, address) = target_with(store(dir.path()));
    ram(&target, 2);
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    let mut after = a.report();
    after.registrants.iter_mut().for_each(|r| r.cntlid = 0);
    let mut expected = before;
    expected.registrants.iter_mut().for_each(|r| r.cntlid = 0);
    assert_eq!(after, expected);
    assert_eq!((a.write(), b.read()), (Status::SUCCESS, CONFLICT));
    b.ns.nsid = 2;
    assert_eq!(
        (b.read(), b.report().status.registrants),
        (Status::SUCCESS, 0)
    );
    let status = a.register_with(RegisterAction::REPLACE, ChangePtpl::CLEAR);
    assert_eq!(status, Status::SUCCESS);
    b.ns.nsid = 1;
    assert_eq!(b.read(), CONFLICT, "it is held until the power is lost");
    drop((a, b));
    assert!(target.shutdown(PATIENCE));

    let (_target, address) = target_with(store(dir.path()));
    let mut b = Host::new(address, 2);
    assert_eq!(
        (b.read(), b.report().status.registrants),
        (Status::SUCCESS, 0)
    );
}

#[test]
fn persistence_is_a_feature_too() {
    let dir = tempfile::tempdir().unwrap();
    let (target, address) = target_with(store(dir.path()));
    let mut a = Host::new(address, 1);
    a.register();
    let feature = Fid::RESERVATION_PERSISTENCE;
    let get = GetFeatures::new(feature);
    assert_eq!(a.controller.get_features(1, &get).unwrap(), 0);
    let set = SetFeatures::new(feature, 1);
    a.controller.set_features(0xffff_ffff, &set).unwrap();
    assert_eq!(a.controller.get_features(1, &get).unwrap(), 1);
    let report = a.report();
    assert_eq!((report.status.ptpls, report.status.generation), (1, 1));
    let wrong = a.controller.set_features(1, &SetFeatures::new(feature, 2));
    assert_eq!(wrong.unwrap_err().status(), Some(INVALID));
    drop(a);
    assert!(target.shutdown(PATIENCE));
    let (_target, address) = target_with(store(dir.path()));
    let mut a = Host::new(address, 1);
    assert_eq!(a.report().status.registrants, 1);
    assert_eq!(a.controller.get_features(1, &get).unwrap(), 1);
}

#[test]
fn a_damaged_file_is_set_aside_and_the_target_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = || {
        let files = std::fs::read_dir(dir.path()).unwrap();
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let (target, address) = target_with(store(dir.path()));
    let mut a = Host::new(address, 1);
    a.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
    assert_eq!(a.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    drop(a);
    assert!(target.shutdown(PATIENCE));
    let [path] = &file()[..] else {
        panic!("{:?}", file());
    };
    let record = std::fs::read(path).unwrap();
    std::fs::write(path, &record[..record.len() / 2]).unwrap();

    let (target, address) = target_with(store(dir.path()));
    let mut b = Host::new(address, 2);
    assert_eq!(
        (b.write(), b.report().status.registrants),
        (Status::SUCCESS, 0)
    );
    let [damaged] = &file()[..] else {
        panic!("{:?}", file());
    };
    assert_eq!(*damaged, Path::new(&format!("{}.damaged", path.display())));
    assert_eq!(std::fs::read(damaged).unwrap(), record[..record.len() / 2]);
    // And what is kept from now on is kept.
    b.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
    assert_eq!(file(), [path.clone(), damaged.clone()]);
    drop(b);
    assert!(target.shutdown(PATIENCE));
}

/// A store that saves when it is let.
#[derive(Debug)]
struct Slow {
    begun: SyncSender<()>,
    go: Mutex<Receiver<io::Result<()>>>,
}

impl ReservationStore for Slow {
    fn load(&self, _: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn save(&self, _: &ReservationScope, _: &[u8]) -> io::Result<()> {
        self.begun.send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap()
    }

    fn remove(&self, _: &ReservationScope) -> io::Result<()> {
        panic!("as embedders' code may")
    }

    fn set_aside(&self, _: &ReservationScope) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn a_slow_store_holds_up_nobody_else() {
    let (begun, has_begun) = sync_channel(1);
    let (go, may_go) = sync_channel(1);
    let go_on = Mutex::new(may_go);
    let (target, address) = target_with(Arc::new(Slow { begun, go: go_on }));
    let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
    let set = thread::spawn(move || {
        let status = a.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
        (a, status)
    });
    has_begun.recv().unwrap();
    // All reactors work, and what is not kept is not there.
    for _ in 0..4 {
        let mut other = Host::new(address, 3);
        assert_eq!(other.write(), Status::SUCCESS);
        assert_eq!(other.report().status.registrants, 0);
    }
    assert_eq!(b.write(), Status::SUCCESS);
    go.send(Ok(())).unwrap();
    let (mut a, status) = set.join().unwrap();
    assert_eq!((status, a.report().status.ptpls), (Status::SUCCESS, 1));

    // What cannot be kept fails and changes nothing.
    let full: io::Error = io::ErrorKind::StorageFull.into();
    go.send(Err(full)).unwrap();
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::INTERNAL_ERROR);
    assert_eq!((a.report().status.rtype.0, b.write()), (0, Status::SUCCESS));
    // Nor does a store that panics do any harm.
    let clear = a.register_with(RegisterAction::REPLACE, ChangePtpl::CLEAR);
    assert_eq!(
        (clear, a.report().status.ptpls),
        (Status::INTERNAL_ERROR, 1)
    );
    // The connection ends while a change is under way.
    has_begun.try_iter().for_each(drop);
    preempt_and_abort(&mut a, 1);
    has_begun.recv().unwrap();
    drop((a, b));
    go.send(Ok(())).unwrap();
    assert_idle(&target);
}

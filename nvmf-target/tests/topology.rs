//! Listeners, subsystems, hosts and masks that change while hosts work.

mod common;

use common::raw::{Digests, Raw, admin_connect, connect_data};
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, options, pattern, target};
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, InvalidParameter};
use nvmf_host::nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_host::nvmf_proto::wire::log::AsyncEvent;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::{Status, trimmed_text};
use nvmf_host::{ConnectOptions, Controller, Data, Error, IoQueue, Namespace, command};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::{AnaState, Change, ListenerConfig, NamespaceConfig, SubsystemConfig, Target};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const OTHER: &str = "nqn.2026-11.org.example:other";

fn host(name: &str) -> String {
    format!("nqn.2026-11.org.example:host-{name}")
}

fn options_of(name: &str, address: SocketAddr, subsystem: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(address, subsystem).unwrap();
    options.host = Nqn::new(&host(name)).unwrap();
    options
}

fn disk() -> Inline<RamDisk> {
    Inline::new(RamDisk::new(1 << 20, 512).unwrap())
}

/// The status and dword 0 with which a host is turned away.
fn refusal(options: &ConnectOptions) -> (Status, u64) {
    match Controller::connect(options) {
        Err(Error::Status { status, result, .. }) => (status, result),
        other => panic!("{other:?}"),
    }
}

/// A host at work: its I/O is checked at each step.
struct Worker {
    controller: Controller,
    queue: IoQueue,
    ns: Namespace,
    seed: u64,
}

impl Worker {
    fn new(options: &ConnectOptions) -> Self {
        let mut controller = Controller::connect(options).unwrap();
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(1).unwrap();
        Self {
            queue: controller.io_queue(1).unwrap(),
            controller,
            ns,
            seed: 0,
        }
    }

    fn works(&mut self) {
        self.seed += 1;
        let data = pattern(self.seed, 16 << 10);
        self.queue.write(&self.ns, 0, &data).unwrap();
        let mut back = vec![0; data.len()];
        self.queue.read(&self.ns, 0, &mut back).unwrap();
        assert!(back == data);
    }

    /// Both connections are closed by the target.
    fn ends(mut self) {
        let gone = |err: &Error| matches!(err, Error::Closed | Error::Io { .. });
        eventually("the I/O queue ends", || {
            let mut block = vec![0; 512];
            self.queue
                .read(&self.ns, 0, &mut block)
                .is_err_and(|err| gone(&err))
        });
        eventually("the admin queue ends", || {
            self.controller.keep_alive().is_err_and(|err| gone(&err))
        });
    }
}

#[test]
fn a_removed_host_loses_its_controllers_and_nobody_else_does() {
    let (target, address) = target(config());
    target.add_host(NQN, &host("a")).unwrap();
    target.add_host(NQN, &host("b")).unwrap();
    let mut stranger = Worker::new(&options(address));
    stranger.works();
    target.allow_any_host(NQN, false).unwrap();
    stranger.ends();
    let invalid_host = (Status::CONNECT_INVALID_HOST.dnr(), 0);
    assert_eq!(refusal(&options(address)), invalid_host);
    let [mut a, mut b] = ["a", "b"].map(|name| Worker::new(&options_of(name, address, NQN)));
    a.works();
    b.works();
    target.remove_host(NQN, &host("a")).unwrap();
    a.ends();
    for _ in 0..8 {
        b.works();
    }
    assert_eq!(refusal(&options_of("a", address, NQN)), invalid_host);
    target.add_host(NQN, &host("a")).unwrap();
    Worker::new(&options_of("a", address, NQN)).works();
    b.works();
    drop(b);
    assert_idle(&target);
}

#[test]
fn a_removed_listener_gives_its_address_back() {
    let (target, first) = target(config());
    let mut stays = Worker::new(&options(first));
    let second = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut goes = Worker::new(&options(second));
    goes.works();
    let before_connect = Raw::tcp(second);
    assert_eq!(target.listeners().len(), 2);
    target.remove_listener(&second.to_string()).unwrap();
    // At once: nobody else needs to wait for it.
    let again = TcpListener::bind(second).unwrap();
    drop(again);
    goes.ends();
    let mut before_connect = before_connect;
    before_connect.expect_end();
    TcpStream::connect(second).unwrap_err();
    stays.works();
    assert_eq!(target.listeners().len(), 1);
    // And it can be had again.
    assert_eq!(target.listen(second).unwrap(), second);
    Worker::new(&options(second)).works();
    let missing = target.remove_listener("nowhere").unwrap_err();
    assert!(matches!(missing, nvmf_target::Error::NotFound(_)));
    drop(stays);
    assert_idle(&target);
}

#[test]
fn a_removed_subsystem_takes_its_controllers_along() {
    let (target, address) = target(config());
    target.add_subsystem(SubsystemConfig::new(OTHER)).unwrap();
    target.add_namespace(OTHER, 1, disk()).unwrap();
    let mut stays = Worker::new(&options(address));
    let mut goes = Worker::new(&options_of("a", address, OTHER));
    goes.works();
    target.remove_subsystem(OTHER).unwrap();
    goes.ends();
    let subnqn = InvalidParameter::Data(ConnectData::SUBNQN).dw0();
    assert_eq!(
        refusal(&options_of("a", address, OTHER)),
        (Status::CONNECT_INVALID_PARAMETERS.dnr(), subnqn.into())
    );
    stays.works();
    drop(stays);
    assert_idle(&target);
}

#[test]
fn a_listener_serves_its_subsystems_only() {
    let (target, _) = target(config());
    target.add_subsystem(SubsystemConfig::new(OTHER)).unwrap();
    target.add_namespace(OTHER, 1, disk()).unwrap();
    let mut listener = ListenerConfig::tcp("127.0.0.1:0".parse().unwrap());
    listener.name = Some("front".to_owned());
    listener.subsystems = Some(vec![OTHER.to_owned()]);
    let info = target.listen_with(listener).unwrap();
    let address = info.socket.unwrap();
    assert_eq!((&*info.name, info.port_id), ("front", 2));
    let mut worker = Worker::new(&options_of("a", address, OTHER));
    worker.works();
    let subnqn = InvalidParameter::Data(ConnectData::SUBNQN).dw0();
    let refused = (Status::CONNECT_INVALID_PARAMETERS.dnr(), subnqn.into());
    assert_eq!(refusal(&options(address)), refused);
    target.serve("front", NQN).unwrap();
    Worker::new(&options(address)).works();
    target.stop_serving("front", OTHER).unwrap();
    worker.ends();
    Worker::new(&options(address)).works();
    assert_eq!(target.listeners()[1].subsystems, Some(vec![NQN.to_owned()]));
    assert_idle(&target);
}

#[test]
fn a_masked_namespace_is_not_there() {
    let (target, address) = target(config());
    let mut secret = NamespaceConfig::new(2);
    secret.hosts = Some(vec![host("a")]);
    target
        .add_namespace_with(NQN, secret, Arc::new(disk()))
        .unwrap();
    let [mut a, mut b] = ["a", "b"].map(|name| Worker::new(&options_of(name, address, NQN)));
    let read = |worker: &mut Worker| {
        let sqe = command::read(2, 0, 1);
        let done = worker.queue.raw(sqe, Data::Read(vec![0; 512])).unwrap();
        done.status()
    };
    let hidden = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(a.controller.active_namespaces().unwrap(), [1, 2]);
    assert_eq!(b.controller.active_namespaces().unwrap(), [1]);
    assert_eq!((read(&mut a), read(&mut b)), (Status::SUCCESS, hidden));
    assert_eq!(b.controller.identify_namespace(2).unwrap().nsze, 0);
    let unknown = b.controller.namespace_descriptors(2).unwrap_err();
    assert_eq!(unknown.status(), Some(hidden));
    for worker in [&mut a, &mut b] {
        let controller = &mut worker.controller;
        controller
            .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
            .unwrap();
        controller.submit_event_request().unwrap();
    }
    let both = Some(vec![host("a"), host("b")]);
    target.set_namespace_hosts(NQN, 2, both).unwrap();
    assert_eq!(
        b.controller.poll_event(PATIENCE).unwrap(),
        Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED)
    );
    assert_eq!(b.controller.changed_namespaces().unwrap(), [2]);
    assert_eq!(
        (read(&mut a), read(&mut b)),
        (Status::SUCCESS, Status::SUCCESS)
    );
    b.controller.submit_event_request().unwrap();
    target.set_namespace_hosts(NQN, 2, Some(vec![])).unwrap();
    for worker in [&mut a, &mut b] {
        // The first that the other one hears of, for it has lost nothing before.
        let event = worker.controller.poll_event(PATIENCE).unwrap();
        assert_eq!(event, Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED));
        assert_eq!(worker.controller.changed_namespaces().unwrap(), [2]);
        assert_eq!(read(worker), hidden);
        worker.works();
    }
}

#[test]
fn limits_of_a_subsystem_are_advertised_and_kept() {
    let (target, address) = target(config());
    let mut config = SubsystemConfig::new(OTHER);
    config.serial = "SN-7".to_owned();
    config.model = "Model T".to_owned();
    config.firmware = "1.2.3".to_owned();
    config.vendor_id = 0x1af4;
    config.subsystem_vendor_id = 0x1234;
    config.ieee_oui = [0x00, 0x1b, 0x21];
    config.io_queues = Some(2);
    config.io_queue_entries = Some(16);
    config.max_transfer = Some(16 << 10);
    config.event_requests = 2;
    config.max_namespaces = 3;
    config.ana_groups = 9;
    (config.cntlid_min, config.cntlid_max) = (100, 101);
    target.add_subsystem(config).unwrap();
    target.add_namespace(OTHER, 1, disk()).unwrap();
    target.add_namespace(OTHER, 4, disk()).unwrap_err();
    let options = options_of("a", address, OTHER);
    let mut controller = Controller::connect(&options).unwrap();
    let id = controller.identify_controller().unwrap();
    assert_eq!(trimmed_text(&id.sn), "SN-7");
    assert_eq!(trimmed_text(&id.mn), "Model T");
    assert_eq!(trimmed_text(&id.fr), "1.2.3");
    assert_eq!((id.vid, id.ssvid), (0x1af4, 0x1234));
    assert_eq!(id.ieee, [0x21, 0x1b, 0x00]);
    assert_eq!((id.nn, id.mnan, id.nanagrpid), (3, 3, 9));
    assert_eq!((id.mdts, id.aerl, id.cntlid), (2, 1, 100));
    assert_eq!((controller.cap().mqes(), id.maxcmd), (15, 16));
    // Of the controller, not of the subsystem that has the target's limits.
    assert_eq!(connect(address).max_transfer(), Some(1 << 20));
    assert_eq!(controller.set_queue_count(8).unwrap(), 2);
    let ns = controller.namespace(1).unwrap();
    let mut queue = controller.io_queue(2).unwrap();
    let write = |queue: &mut IoQueue, blocks: u32| {
        let data = Data::Write(vec![0; blocks as usize * 512]);
        let done = queue.raw(command::write(1, 0, blocks), data).unwrap();
        done.status()
    };
    assert_eq!(write(&mut queue, 32), Status::SUCCESS);
    assert_eq!(write(&mut queue, 33), Status::INVALID_FIELD.dnr());
    queue.flush(&ns).unwrap();
    for _ in 0..3 {
        controller.submit_event_request().unwrap();
    }
    let limit = controller.poll_event(PATIENCE).unwrap_err();
    assert_eq!(limit.status(), Some(Status::AER_LIMIT_EXCEEDED.dnr()));
    let second = Controller::connect(&options).unwrap();
    assert_eq!(second.cntlid(), 101);
    let (busy, _) = refusal(&options);
    assert!(busy.same_code(Status::CONNECT_CONTROLLER_BUSY));
    drop(second);
    eventually("a CNTLID is free again", || {
        Controller::connect(&options).is_ok_and(|c| c.cntlid() == 101)
    });
}

#[test]
fn limits_of_a_listener_are_advertised_and_kept() {
    let (target, whole) = target(config());
    for (in_capsule, maxh2cdata) in [(0, 4096), (8192, 8192), (16 << 10, 1 << 20)] {
        let mut listener = ListenerConfig::tcp("127.0.0.1:0".parse().unwrap());
        listener.in_capsule = Some(in_capsule);
        listener.maxh2cdata = Some(maxh2cdata);
        let info = target.listen_with(listener).unwrap();
        let mut worker = Worker::new(&options(info.socket.unwrap()));
        let id = worker.controller.identify_controller().unwrap();
        assert_eq!(id.ioccsz, (64 + in_capsule) / 16);
        let admin = worker.controller.admin_queue().negotiated();
        let io = worker.queue.queue().negotiated();
        assert_eq!((admin.maxh2cdata, io.maxh2cdata), (maxh2cdata, maxh2cdata));
        worker.works();
        // What fits goes in the capsule; a byte more does not, and ends the connection.
        let mut raw = Raw::open(info.socket.unwrap(), Digests::default());
        let cntlid = raw.connect_ok(&admin_connect(), &connect_data());
        raw.ok(&common::raw::enable(), &[]);
        raw.ok(&common::raw::set_queues(1), &[]);
        let mut io = Raw::io(info.socket.unwrap(), cntlid, 1);
        let blocks = in_capsule / 512;
        if blocks > 0 {
            let data = pattern(1, in_capsule as usize);
            io.ok(&common::raw::write_in_capsule(1, 0, blocks), &data);
        }
        let data = pattern(1, in_capsule as usize + 512);
        io.submit(&common::raw::write_in_capsule(2, 0, blocks + 1), &data);
        io.expect_term();
    }
    assert_eq!(connect(whole).identity().ioccsz, (64 + (16 << 10)) / 16);
}

#[test]
fn several_changes_are_one() {
    let (target, address) = target(config());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    let changes = |address: SocketAddr| {
        let mut front = ListenerConfig::tcp(address);
        front.subsystems = Some(vec![OTHER.to_owned()]);
        vec![
            Change::AddSubsystem(SubsystemConfig::new(OTHER)),
            Change::AddNamespace {
                nqn: OTHER.to_owned(),
                config: NamespaceConfig::new(1),
                namespace: Arc::new(disk()),
            },
            Change::RemoveNamespace {
                nqn: NQN.to_owned(),
                nsid: 1,
            },
            Change::AddListener(ListenerConfig::tcp("127.0.0.1:0".parse().unwrap())),
            Change::AddListener(front),
        ]
    };
    let err = target.apply(changes(taken.1)).unwrap_err().to_string();
    assert!(
        err.contains("change 4") && err.contains("cannot listen on"),
        "{err}"
    );
    assert_eq!(target.listeners().len(), 1);
    Worker::new(&options(address)).works();
    let added = target
        .apply(changes("127.0.0.1:0".parse().unwrap()))
        .unwrap();
    assert_eq!(added.len(), 2);
    Worker::new(&options_of("a", added[1].socket.unwrap(), OTHER)).works();
    assert_eq!(connect(address).active_namespaces().unwrap(), []);
    assert_idle(&target);
}

#[test]
fn a_host_sees_thousands_of_namespaces() {
    let (target, address): (Target, _) = target(config());
    let backend = Arc::new(disk());
    let change = |nsid| Change::AddNamespace {
        nqn: NQN.to_owned(),
        config: NamespaceConfig::new(nsid),
        namespace: Arc::clone(&backend) as _,
    };
    let mut worker = Worker::new(&options(address));
    target.apply((2..=4096).map(change).collect()).unwrap();
    let nsids = worker.controller.active_namespaces().unwrap();
    assert_eq!(nsids, (1..=4096).collect::<Vec<_>>());
    for nsid in [2, 1000, 4096] {
        let ns = worker.controller.namespace(nsid).unwrap();
        let data = pattern(nsid.into(), 512);
        worker.queue.write(&ns, 7, &data).unwrap();
        let mut back = vec![0; 512];
        worker.queue.read(&ns, 7, &mut back).unwrap();
        assert!(back == data);
    }
    worker.works();
}

/// Whoever connects while it is being taken off the list is gone in the end.
#[test]
fn a_host_does_not_slip_in_while_it_is_removed() {
    let (target, address) = target(config());
    target.allow_any_host(NQN, false).unwrap();
    let options = options_of("a", address, NQN);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Refused or ended at any point: both are fine.
                    drop(Controller::connect(&options));
                }
            });
        }
        for _ in 0..50 {
            target.add_host(NQN, &host("a")).unwrap();
            eventually("it connects", || target.stats().controllers > 0);
            target.remove_host(NQN, &host("a")).unwrap();
            eventually("it is gone", || target.stats().controllers == 0);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_idle(&target);
}

/// I/O that a port refuses is refused until the last of its connections is closed.
#[test]
fn a_removed_listener_does_not_open_what_was_inaccessible() {
    let (target, _) = target(config());
    for _ in 0..20 {
        let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut worker = Worker::new(&options(address));
        let name = address.to_string();
        target
            .set_ana_state(NQN, &name, 1, AnaState::Inaccessible)
            .unwrap();
        let target = &target;
        std::thread::scope(|scope| {
            scope.spawn(move || target.remove_listener(&name).unwrap());
            let block = pattern(1, 512);
            loop {
                let err = worker.queue.write(&worker.ns, 0, &block).unwrap_err();
                match err.status() {
                    Some(status) => assert_eq!(status, Status::ANA_INACCESSIBLE),
                    None => break,
                }
            }
        });
    }
    assert_idle(&target);
}

#[test]
fn one_disk_in_two_subsystems() {
    let (target, address) = target(config());
    target.add_subsystem(SubsystemConfig::new(OTHER)).unwrap();
    let disk: Arc<dyn nvmf_target::ns::Namespace> = Arc::new(disk());
    for (nqn, nsid) in [(NQN, 2), (OTHER, 7)] {
        let config = NamespaceConfig::new(nsid);
        target
            .add_namespace_with(nqn, config, Arc::clone(&disk))
            .unwrap();
    }
    let open = |nqn, nsid| {
        let mut controller = Controller::connect(&options_of("a", address, nqn)).unwrap();
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(nsid).unwrap();
        (controller.io_queue(1).unwrap(), ns, controller)
    };
    let (mut writer, at, _first) = open(NQN, 2);
    let (mut reader, from, second) = open(OTHER, 7);
    let data = pattern(3, 4096);
    writer.write(&at, 5, &data).unwrap();
    let mut back = vec![0; data.len()];
    reader.read(&from, 5, &mut back).unwrap();
    assert!(back == data);
    drop((reader, second));
    target.remove_subsystem(OTHER).unwrap();
    writer.read(&at, 5, &mut back).unwrap();
    assert!(back == data);
}

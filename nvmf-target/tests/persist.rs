//! Reservations that outlive the target, and stores that are slow or fail.

mod common;

use common::reserving::{
    CONFLICT, EXCLUSIVE_ACCESS, Host, INVALID, WRITE_EXCLUSIVE, preempt_and_abort,
};
use common::{NQN, PATIENCE, assert_idle, config};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::feature::{Fid, GetFeatures, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::Rescap;
use nvmf_host::nvmf_proto::wire::reservation::{ChangePtpl, RegisterAction};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::{
    Change, FileReservationStore, NamespaceConfig, ReservationScope, ReservationStore,
    SubsystemConfig, Target,
};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

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
    assert_eq!(*damaged, Path::new(&format!("{}.damaged1", path.display())));
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

impl Slow {
    /// One that nobody will save in.
    fn unused() -> Self {
        let (begun, _) = sync_channel(1);
        let (_, may_go) = sync_channel(1);
        let go = Mutex::new(may_go);
        Self { begun, go }
    }
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

/// A store that keeps one record, when it is let.
#[derive(Debug)]
struct Memory {
    record: Mutex<Option<Vec<u8>>>,
    begun: SyncSender<()>,
    go: Mutex<Receiver<()>>,
}

impl ReservationStore for Memory {
    fn load(&self, _: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        Ok(self.record.lock().unwrap().clone())
    }

    fn save(&self, _: &ReservationScope, record: &[u8]) -> io::Result<()> {
        self.begun.send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        *self.record.lock().unwrap() = Some(record.to_vec());
        Ok(())
    }

    fn remove(&self, _: &ReservationScope) -> io::Result<()> {
        *self.record.lock().unwrap() = None;
        Ok(())
    }

    fn set_aside(&self, _: &ReservationScope) -> io::Result<String> {
        Ok("nowhere".to_owned())
    }
}

/// What a host is told that it has, it has, though the namespace is replaced meanwhile.
#[test]
fn a_namespace_that_is_replaced_keeps_what_is_being_reserved() {
    for at_once in [true, false] {
        let (begun, has_begun) = sync_channel(8);
        let (go, may_go) = sync_channel(8);
        let store = Arc::new(Memory {
            record: Mutex::default(),
            begun,
            go: Mutex::new(may_go),
        });
        let (target, address) = target_with(store.clone());
        let [mut a, mut b] = [1, 2].map(|number| Host::new(address, number));
        go.send(()).unwrap();
        a.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
        has_begun.recv().unwrap();
        let acquire = thread::spawn(move || {
            let status = a.acquire(EXCLUSIVE_ACCESS);
            (a, status)
        });
        has_begun.recv().unwrap();
        let nqn = NQN.to_owned();
        let remove = Change::RemoveNamespace {
            nqn: nqn.clone(),
            nsid: 1,
        };
        let add = Change::AddNamespace {
            nqn,
            config: NamespaceConfig::new(1),
            namespace: Arc::new(Inline::new(RamDisk::new(8 << 20, 512).unwrap())),
        };
        if at_once {
            target.apply(vec![remove, add]).unwrap();
        } else {
            target.apply(vec![remove]).unwrap();
            target.apply(vec![add]).unwrap();
        }
        go.send(()).unwrap();
        let (mut a, status) = acquire.join().unwrap();
        assert_eq!(status, Status::SUCCESS);
        assert_eq!((a.write(), b.read()), (Status::SUCCESS, CONFLICT));
        // And what is saved next knows of it.
        go.send(()).unwrap();
        b.register();
        let held = a.report().status;
        assert_eq!((held.rtype, held.registrants), (EXCLUSIVE_ACCESS, 2));
        drop((a, b));
        assert!(target.shutdown(PATIENCE));
        drop(target);
        let (_target, address) = target_with(store);
        assert_eq!(Host::new(address, 2).read(), CONFLICT);
    }
}

/// What does not persist stays over a replacement, and goes with the namespace.
#[test]
fn without_persistence_reservations_go_with_their_namespace() {
    let (target, address) = target_with(Arc::new(Slow::unused()));
    let mut a = Host::new(address, 1);
    a.register();
    assert_eq!(a.acquire(EXCLUSIVE_ACCESS), Status::SUCCESS);
    let remove = || Change::RemoveNamespace {
        nqn: NQN.to_owned(),
        nsid: 1,
    };
    let add = || Change::AddNamespace {
        nqn: NQN.to_owned(),
        config: NamespaceConfig::new(1),
        namespace: Arc::new(Inline::new(RamDisk::new(8 << 20, 512).unwrap())),
    };
    target.apply(vec![remove(), add()]).unwrap();
    assert_eq!(a.report().status.rtype, EXCLUSIVE_ACCESS);
    target.apply(vec![remove()]).unwrap();
    target.apply(vec![add()]).unwrap();
    let report = a.report().status;
    assert_eq!((report.rtype.0, report.registrants), (0, 0));
}

/// A damaged record of a namespace that is not added after all is left alone.
#[test]
fn a_change_that_fails_sets_nothing_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (target, address) = target_with(store(dir.path()));
    ram(&target, 2);
    let mut a = Host::new(address, 1);
    a.ns.nsid = 2;
    a.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
    drop(a);
    assert!(target.shutdown(PATIENCE));
    let path = std::fs::read_dir(dir.path()).unwrap().next();
    let path = path.unwrap().unwrap().path();
    std::fs::write(&path, b"junk").unwrap();

    let (target, _) = target_with(store(dir.path()));
    let add = |nsid| Change::AddNamespace {
        nqn: NQN.to_owned(),
        config: NamespaceConfig::new(nsid),
        namespace: Arc::new(Inline::new(RamDisk::new(8 << 20, 512).unwrap())),
    };
    target.apply(vec![add(2), add(1)]).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"junk");
    target.apply(vec![add(2)]).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_slow_store_holds_up_nobody_else() {
    let (begun, has_begun) = sync_channel(8);
    let (go, may_go) = sync_channel(8);
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
    // Nor is it kept: what was there before is.
    go.send(Ok(())).unwrap();
    assert_eq!(a.acquire(WRITE_EXCLUSIVE), Status::INTERNAL_ERROR);
    assert_eq!((a.report().status.rtype.0, b.write()), (0, Status::SUCCESS));
    // Nor does a store that panics do any harm; what there was before is saved again.
    go.send(Ok(())).unwrap();
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

/// Panics when it is to save, or to load.
#[derive(Debug)]
struct Bomb {
    loads: bool,
}

impl ReservationStore for Bomb {
    fn load(&self, _: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        assert!(self.loads, "as it should in this test");
        Ok(None)
    }

    fn save(&self, _: &ReservationScope, _: &[u8]) -> io::Result<()> {
        panic!("as it should in this test");
    }

    fn remove(&self, _: &ReservationScope) -> io::Result<()> {
        panic!("as it should in this test");
    }

    fn set_aside(&self, _: &ReservationScope) -> io::Result<String> {
        panic!("as it should in this test");
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("as it should in this test");
    }
}

#[test]
fn a_store_that_panics_fails_the_command_or_the_namespace() {
    let (target, address) = target_with(Arc::new(Bomb { loads: true }));
    let mut host = Host::new(address, 1);
    for _ in 0..2 {
        let status = host.register_with(RegisterAction::REGISTER, ChangePtpl::SET);
        assert_eq!(status, Status::INTERNAL_ERROR);
        assert_eq!(host.report().status.registrants, 0);
    }
    host.register();
    drop(host);
    assert_idle(&target);
    target.remove_subsystem(NQN).unwrap();

    let mut subsystem = SubsystemConfig::new(NQN);
    subsystem.reservation_store = Some(Arc::new(Bomb { loads: false }));
    target.add_subsystem(subsystem).unwrap();
    let disk = RamDisk::new(8 << 20, 512).unwrap();
    let err = target.add_namespace(NQN, 1, Inline::new(disk)).unwrap_err();
    assert!(err.to_string().contains("panicked: as it should"), "{err}");
    target.remove_subsystem(NQN).unwrap();
}

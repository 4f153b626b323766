//! What outlives the target: records, files, and changes that fail because they cannot be kept.

use super::disk::Disk;
use crate::ctrl::reservation::record::{decode, encode};
use crate::ctrl::reservation::state::{Held, HostId, State};
use crate::ctrl::reservation::store::{RealFiles, prepare};
use crate::ctrl::reservation::{Command, Keeper, Reservations};
use crate::{FileReservationStore, ReservationScope, ReservationStore};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::reservation::{
    ChangePtpl, RegisterAction, RegisterCommand, RegisterData, ReservationType,
};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

pub(super) const A: HostId = [0xa; 16];
pub(super) const B: HostId = [0xb; 16];

pub(super) fn scope() -> ReservationScope {
    ReservationScope::new("nqn.2026-11.org.example:a".to_owned(), [7; 16])
}

fn some_state() -> State {
    State {
        generation: 7,
        ptpl: true,
        registrants: [(A, 0xaa), (B, u64::MAX)].into(),
        held: Some(Held::One(ReservationType::EXCLUSIVE_ACCESS, B)),
    }
}

fn states() -> impl Strategy<Value = State> {
    let registrants = proptest::collection::btree_map(1..u128::MAX, 1..u64::MAX, 0..20);
    (
        any::<u32>(),
        registrants,
        0..=6u8,
        any::<prop::sample::Index>(),
    )
        .prop_map(|(generation, registrants, rtype, holder)| {
            let registrants: std::collections::BTreeMap<HostId, u64> = registrants
                .into_iter()
                .map(|(host, key)| (host.to_le_bytes(), key))
                .collect();
            let rtype = ReservationType(rtype);
            let held = match (rtype.is_defined(), registrants.len()) {
                (false, _) | (_, 0) => None,
                _ if rtype.is_all_registrants() => Some(Held::All(rtype)),
                (_, n) => Some(Held::One(
                    rtype,
                    *registrants.keys().nth(holder.index(n)).unwrap(),
                )),
            };
            State {
                generation,
                ptpl: true,
                registrants,
                held,
            }
        })
}

proptest! {
    #[test]
    fn records_come_back(state in states()) {
        let record = encode(&scope(), &state);
        prop_assert_eq!(decode(&scope(), &record), Ok(state));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes: Vec<u8>) {
        let _ = decode(&scope(), &bytes);
    }
}

#[test]
fn a_record_is_text_for_people() {
    let record = String::from_utf8(encode(&scope(), &some_state())).unwrap();
    let lines: Vec<&str> = record.lines().collect();
    assert_eq!(
        lines[..7],
        [
            "nvmf-reservations 1",
            "subsystem nqn.2026-11.org.example:a",
            "namespace 07070707-0707-0707-0707-070707070707",
            "generation 7",
            "reservation 2 0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
            "registrant 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a 00000000000000aa",
            "registrant 0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b ffffffffffffffff",
        ]
    );
    assert!(lines[7].starts_with("crc32c ") && lines.len() == 8);
}

#[test]
fn a_record_that_is_damaged_anywhere_is_refused() {
    let record = encode(&scope(), &some_state());
    for len in 0..record.len() {
        assert!(decode(&scope(), &record[..len]).is_err(), "cut to {len}");
    }
    for at in 0..record.len() {
        for bit in 0..8 {
            let mut damaged = record.clone();
            damaged[at] ^= 1 << bit;
            // A capital letter among the digits of the checksum says the same.
            let same = decode(&scope(), &damaged) == Ok(some_state());
            assert!(
                !same || damaged.eq_ignore_ascii_case(&record),
                "bit {bit} of byte {at}"
            );
            assert!(same || decode(&scope(), &damaged).is_err());
        }
    }
    let longer = [&record[..], b"\n"].concat();
    decode(&scope(), &longer).unwrap_err();
}

/// A record with these lines and the right checksum.
fn record_of(lines: &[&str]) -> Vec<u8> {
    let body = format!("{}\n", lines.join("\n"));
    let sum = crc32c::crc32c(body.as_bytes());
    format!("{body}crc32c {sum:08x}\n").into_bytes()
}

#[test]
fn a_record_that_makes_no_sense_is_refused() {
    const HEAD: [&str; 4] = [
        "nvmf-reservations 1",
        "subsystem nqn.2026-11.org.example:a",
        "namespace 07070707-0707-0707-0707-070707070707",
        "generation 7",
    ];
    const ONE: &str = "registrant 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a 00000000000000aa";
    let with = |rest: &[&str]| record_of(&[&HEAD[..], rest].concat());
    decode(&scope(), &with(&["reservation none", ONE])).unwrap();
    decode(&scope(), &with(&["reservation 5 all", ONE])).unwrap();
    let zero_key = "registrant 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a 0000000000000000";
    let zero_host = "registrant 00000000000000000000000000000000 00000000000000aa";
    let cases: [&[&str]; 12] = [
        &[],
        &[ONE],
        &["reservation none", ONE, ONE],
        &["reservation none", zero_key],
        &["reservation none", zero_host],
        &["reservation none", "registrant 0a 0b"],
        &["reservation none", ""],
        &["reservation 7 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", ONE],
        &["reservation 0 all", ONE],
        &["reservation 1 all", ONE],
        &["reservation 1 0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", ONE],
        &["reservation 5 all"],
    ];
    for case in cases {
        assert!(decode(&scope(), &with(case)).is_err(), "{case:?}");
    }
    let many: Vec<String> = (1..=4097u128)
        .map(|host| format!("registrant {host:032x} 0000000000000001"))
        .collect();
    let mut lines = HEAD.to_vec();
    lines.push("reservation none");
    lines.extend(many.iter().map(String::as_str));
    decode(&scope(), &record_of(&lines)).unwrap_err();
    lines.pop();
    decode(&scope(), &record_of(&lines)).unwrap();
    // Another namespace's, and one of a version to come.
    let other = ReservationScope::new(scope().subsystem, [8; 16]);
    let error = decode(&other, &encode(&scope(), &some_state())).unwrap_err();
    assert!(error.contains("08080808"), "{error}");
    let new = record_of(&["nvmf-reservations 2"]);
    decode(&scope(), &new).unwrap_err();
}

#[test]
fn files_are_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileReservationStore::new(dir.path().join("a/b")).unwrap();
    assert_eq!(store.load(&scope()).unwrap(), None);
    store.remove(&scope()).unwrap();
    for record in [&b"one"[..], b"a longer one", b""] {
        store.save(&scope(), record).unwrap();
        assert_eq!(store.load(&scope()).unwrap().as_deref(), Some(record));
    }
    let path = store.path(&scope());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
    // What a power loss has left of a file that was being written does not matter.
    fs::write(format!("{}.new", path.display()), b"half").unwrap();
    assert_eq!(store.load(&scope()).unwrap().as_deref(), Some(&b""[..]));
    store.save(&scope(), b"next").unwrap();
    let place = store.set_aside(&scope()).unwrap();
    assert!(place.contains(path.to_str().unwrap()), "{place}");
    assert_eq!(store.load(&scope()).unwrap(), None);
    assert_eq!(
        fs::read(format!("{}.damaged1", path.display())).unwrap(),
        b"next"
    );
    store.save(&scope(), b"next").unwrap();
    store.remove(&scope()).unwrap();
    assert_eq!(store.load(&scope()).unwrap(), None);
    // Other subsystems and namespaces have files of their own.
    let paths = [("a", 7), ("b", 7), ("a", 8)]
        .map(|(nqn, uuid)| store.path(&ReservationScope::new(nqn.to_owned(), [uuid; 16])));
    assert!(paths[0] != paths[1] && paths[0] != paths[2] && paths[1] != paths[2]);
    let is_a_file = dir.path().join("file");
    fs::write(&is_a_file, b"").unwrap();
    FileReservationStore::new(is_a_file).unwrap_err();
}

/// A store that fails when told so.
#[derive(Debug, Default)]
struct Fragile {
    record: Mutex<Option<Vec<u8>>>,
    broken: AtomicBool,
}

impl Fragile {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl ReservationStore for Fragile {
    fn load(&self, _: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        self.check()?;
        Ok(self.record.lock().unwrap().clone())
    }

    fn save(&self, _: &ReservationScope, record: &[u8]) -> io::Result<()> {
        self.check()?;
        *self.record.lock().unwrap() = Some(record.to_vec());
        Ok(())
    }

    fn remove(&self, _: &ReservationScope) -> io::Result<()> {
        self.check()?;
        *self.record.lock().unwrap() = None;
        Ok(())
    }

    fn set_aside(&self, _: &ReservationScope) -> io::Result<String> {
        self.check()?;
        *self.record.lock().unwrap() = None;
        Ok("nowhere".to_owned())
    }
}

pub(super) fn register(key: u64, cptpl: ChangePtpl) -> Command {
    let command = RegisterCommand {
        action: RegisterAction::REGISTER,
        iekey: false,
        cptpl,
    };
    let nrkey = key;
    Command::Register(command, RegisterData { crkey: 0, nrkey })
}

/// Something that a host does to reservations.
#[derive(Debug)]
pub(super) enum Scripted {
    Command(Command),
    Ptpl(bool),
}

impl Scripted {
    pub(super) fn run(&self, reservations: &Reservations, host: HostId) -> Result<(), Status> {
        match self {
            Self::Command(command) => reservations.execute(host, command).map(drop),
            Self::Ptpl(ptpl) => reservations.set_ptpl(*ptpl),
        }
    }
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let store = Arc::new(Fragile::default());
    let kept = || store.record.lock().unwrap().clone();
    let open = || Reservations::open(scope(), Some(store.clone()));
    let reservations = open().unwrap();
    // Without PTPL nothing is kept, so nothing can fail.
    store.broken.store(true, Ordering::Relaxed);
    reservations
        .execute(A, &register(1, ChangePtpl::NONE))
        .unwrap();
    let failed = reservations.execute(B, &register(2, ChangePtpl::SET));
    assert_eq!(failed, Err(Status::INTERNAL_ERROR));
    assert_eq!(reservations.set_ptpl(true), Err(Status::INTERNAL_ERROR));
    assert!(!reservations.ptpl());
    let mut report = [0; 64];
    reservations.report(&Default::default(), &mut report);
    assert_eq!(report[5], 1, "one registrant");

    store.broken.store(false, Ordering::Relaxed);
    reservations
        .execute(B, &register(2, ChangePtpl::SET))
        .unwrap();
    assert_eq!(
        kept().map(|r| decode(&scope(), &r).unwrap().registrants.len()),
        Some(2)
    );
    let before = kept();
    store.broken.store(true, Ordering::Relaxed);
    assert_eq!(reservations.set_ptpl(false), Err(Status::INTERNAL_ERROR));
    assert!(reservations.ptpl());
    // What cannot be read must not be taken for nothing.
    open().unwrap_err();
    store.broken.store(false, Ordering::Relaxed);
    assert_eq!(kept(), before);
    assert!(open().unwrap().ptpl());
    reservations.set_ptpl(false).unwrap();
    assert_eq!(kept(), None);
    assert!(!open().unwrap().ptpl());

    // What fails twice may be kept or not; the next change puts it right, whatever it is.
    reservations.set_ptpl(true).unwrap();
    store.broken.store(true, Ordering::Relaxed);
    reservations.set_ptpl(false).unwrap_err();
    store.broken.store(false, Ordering::Relaxed);
    *store.record.lock().unwrap() = None;
    reservations.set_ptpl(true).unwrap();
    assert!(kept().is_some());
    reservations.set_ptpl(false).unwrap();

    // A record that makes no sense is out of the way, and the namespace starts anew.
    *store.record.lock().unwrap() = Some(b"junk".to_vec());
    let anew = open().unwrap();
    assert!(!anew.ptpl());
    // Not before it is clear that it is attached, or the next record would be set aside with it.
    assert_eq!(kept(), Some(b"junk".to_vec()));
    anew.set_aside();
    assert_eq!(kept(), None);
    *store.record.lock().unwrap() = Some(b"junk".to_vec());
    let anew = open().unwrap();
    anew.execute(A, &register(1, ChangePtpl::SET)).unwrap();
    anew.set_aside();
    assert!(open().unwrap().ptpl());
}

#[test]
fn without_a_store_persistence_cannot_be_set() {
    let reservations = Reservations::open(scope(), None).unwrap();
    let failed = reservations.execute(A, &register(1, ChangePtpl::SET));
    assert_eq!(failed, Err(Status::INVALID_FIELD.dnr()));
    assert_eq!(
        reservations.set_ptpl(true),
        Err(Status::FEATURE_NOT_CHANGEABLE.dnr())
    );
    reservations.set_ptpl(false).unwrap();
    reservations
        .execute(A, &register(1, ChangePtpl::CLEAR))
        .unwrap();
}

/// Whatever stands where a record should be: the target starts, and what it was is still there.
#[test]
fn what_is_no_record_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FileReservationStore::new(dir.path()).unwrap());
    let path = store.path(&scope());
    let makers: [&dyn Fn(); 5] = [
        &|| fs::write(&path, b"").unwrap(),
        &|| fs::write(&path, vec![0; 4 << 20]).unwrap(),
        &|| fs::create_dir_all(path.join("with/something")).unwrap(),
        &|| mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        &|| drop(UnixListener::bind(&path).unwrap()),
    ];
    for (make, number) in makers.iter().zip(1..) {
        make();
        let reservations = Reservations::open(scope(), Some(store.clone())).unwrap();
        assert!(reservations.damaged.lock().unwrap().is_some(), "{number}");
        reservations.set_aside();
        let aside = format!("{}.damaged{number}", path.display());
        assert!(fs::symlink_metadata(&aside).is_ok(), "{aside}");
        reservations
            .execute(A, &register(1, ChangePtpl::SET))
            .unwrap();
        let next = Reservations::open(scope(), Some(store.clone())).unwrap();
        assert!(next.ptpl());
        next.set_ptpl(false).unwrap();
    }
    // A record may be elsewhere for the moment; and what is half written is not written through a
    // link.
    let elsewhere = dir.path().join("elsewhere");
    symlink(&elsewhere, format!("{}.new", path.display())).unwrap();
    let reservations = Reservations::open(scope(), Some(store.clone())).unwrap();
    reservations
        .execute(A, &register(1, ChangePtpl::SET))
        .unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert!(!elsewhere.exists());
    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    let error = Reservations::open(scope(), Some(store.clone())).unwrap_err();
    let error = error.to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("a link to a file"), "{error}");
}

#[test]
fn a_directory_that_was_not_there_or_cannot_be_written_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let made = prepare(&path, &RealFiles).unwrap();
    assert!(
        made.len() == 1 && made[0].contains(path.to_str().unwrap()) && made[0].contains("mounted"),
        "{made:?}"
    );
    assert!(prepare(&path, &RealFiles).unwrap().is_empty());
    let disk = Disk::default();
    disk.be_read_only();
    let unwritable = prepare("state".as_ref(), &disk).unwrap();
    assert!(
        unwritable.len() == 1 && unwritable[0].contains("state: nothing can be written"),
        "{unwritable:?}"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not stop root.
    let stops = File::create(path.join("new")).is_err();
    let unwritable = prepare(&path, &RealFiles).unwrap();
    assert_eq!(unwritable.len(), usize::from(stops), "{unwritable:?}");
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileReservationStore::new(dir.path()).unwrap();
    let path = store.path(&scope());
    fs::create_dir(format!("{}.new", path.display())).unwrap();
    let error = store.save(&scope(), b"record").unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    symlink(&path, &path).unwrap();
    let error = Reservations::open(scope(), Some(Arc::new(store))).unwrap_err();
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}

/// A host that has asked for much is not served to the end before another is.
#[test]
fn hosts_take_turns() {
    let keeper = Keeper::default();
    let (done, order) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let job = |what| {
        let done = done.clone();
        Box::new(move || done.send(what).unwrap())
    };
    let (begin, has_begun) = mpsc::channel();
    let first = move || {
        begin.send(()).unwrap();
        may_go.recv().unwrap();
    };
    keeper.run(A, Box::new(first));
    has_begun.recv().unwrap();
    (0..3).for_each(|n| keeper.run(A, job((A, n))));
    (0..2).for_each(|n| keeper.run(B, job((B, n))));
    keeper.run(A, Box::new(|| panic!("as embedders' code may")));
    keeper.run(A, job((A, 3)));
    go.send(()).unwrap();
    let order: Vec<_> = order.iter().take(6).collect();
    assert_eq!(order, [(A, 0), (B, 0), (A, 1), (B, 1), (A, 2), (A, 3)]);
}

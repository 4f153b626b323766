//! The end of a target: what hosts have been promised is kept, and none of them can hold it up.

mod common;

use common::raw::{Digests, Raw, read, write_by_r2t, write_in_capsule};
use common::step::Step;
use common::{NQN, PATIENCE, config, eventually, pattern};
use nvmf_host::nvmf_proto::wire::pdu::PduType;
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_target::ns::{BlockDevice, Inline, Lane, LaneCx, Namespace, NsError, NsInfo, Op, Request};
use nvmf_target::{Error, Target, TargetConfig};
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A host with one I/O queue; namespace 2 is run by hand.
struct Rig {
    target: Target,
    address: SocketAddr,
    step: Step,
    admin: Raw,
    io: Raw,
}

fn rig() -> Rig {
    rig_with(config())
}

fn rig_with(config: TargetConfig) -> Rig {
    let (target, address) = common::target(config);
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let io = Raw::io(address, cntlid, 1);
    Rig {
        target,
        address,
        step,
        admin,
        io,
    }
}

impl Rig {
    /// Shuts the target down on another thread; returns when that has begun.
    fn shut_down(&self, within: Duration) -> JoinHandle<bool> {
        let mut idle = Raw::open(self.address, Digests::default());
        let target = self.target.clone();
        let thread = thread::spawn(move || target.shutdown(within));
        idle.expect_end();
        thread
    }
}

/// The target has said that it says nothing more: an end, not a reset.
fn expect_fin(raw: &mut Raw) {
    let end = raw.try_recv().unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn writes_get_the_data_that_they_wait_for() {
    let mut rig = rig();
    rig.io.submit(&write_by_r2t(1, 0, 128), &[]);
    let r2t = rig.io.recv().r2t();
    let data = pattern(1, 64 << 10);
    let h2c = Digests::default().h2c_data(&r2t, 0, &data, true);
    let (some, rest) = h2c.split_at(10_000);
    rig.io.send(some);
    let shutdown = rig.shut_down(PATIENCE);
    rig.io.send(rest);
    let cqe = rig.io.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (1, Status::SUCCESS));
    expect_fin(&mut rig.io);
    drop(rig.io);
    expect_fin(&mut rig.admin);
    drop(rig.admin);
    assert!(shutdown.join().unwrap());
}

/// Knows whether anything was written since the last Flush.
#[derive(Default)]
struct Cached(AtomicBool);

/// Cannot be flushed.
struct Broken;

impl BlockDevice for Broken {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 4096).with_volatile_cache()
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), NsError> {
        Err(io::Error::other("the medium is gone").into())
    }
}

#[test]
fn a_cache_that_cannot_be_flushed_is_told_of() {
    let mut rig = rig();
    rig.target
        .add_namespace(NQN, 3, Inline::new(Broken))
        .unwrap();
    let mut sqe = write_in_capsule(1, 0, 8);
    sqe.set_nsid(3);
    rig.io.ok(&sqe, &pattern(1, 4096));
    drop((rig.io, rig.admin));
    assert!(!rig.target.shutdown(PATIENCE));
}

impl BlockDevice for Cached {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 4096).with_volatile_cache()
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), NsError> {
        self.0.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Rig {
    /// Writes to namespace 3, which is this.
    fn write_to(&mut self, namespace: impl Namespace) {
        self.target.add_namespace(NQN, 3, namespace).unwrap();
        let mut sqe = write_in_capsule(1, 0, 8);
        sqe.set_nsid(3);
        self.io.ok(&sqe, &pattern(1, 4096));
    }

    fn end(self) -> bool {
        drop((self.io, self.admin));
        self.target.shutdown(PATIENCE)
    }
}

#[test]
fn the_cache_of_a_removed_namespace_is_flushed() {
    let cached = Arc::new(Cached::default());
    let mut intact = rig();
    intact.write_to(Inline::new(Arc::clone(&cached)));
    assert!(cached.0.load(Ordering::SeqCst));
    intact.target.remove_namespace(NQN, 3).unwrap();
    assert!(intact.end());
    assert!(!cached.0.load(Ordering::SeqCst), "acknowledged and lost");
    let mut broken = rig();
    broken.write_to(Inline::new(Broken));
    broken.target.remove_namespace(NQN, 3).unwrap();
    assert!(!broken.end());
}

/// Its last writes may be under way when it is removed: they are flushed as well.
#[test]
fn a_removed_namespace_is_flushed_behind_its_last_write() {
    let mut rig = rig();
    let step = Step::new(NsInfo::new(512, 4096).with_volatile_cache());
    rig.target.add_namespace(NQN, 3, step.clone()).unwrap();
    let mut sqe = write_in_capsule(1, 0, 8);
    sqe.set_nsid(3);
    rig.io.submit(&sqe, &pattern(1, 4096));
    let write = step.next();
    rig.target.remove_namespace(NQN, 3).unwrap();
    // Answered behind the removal.
    rig.io.read(&read(2, 0, 8));
    assert_eq!(step.pending(), 0);
    write.complete(Ok(()));
    let flush = step.next();
    assert_eq!(flush.op(), Op::Flush);
    flush.complete(Ok(()));
    eventually("its lane is dropped", || !step.is_held());
    assert!(rig.end());
}

/// Has a lane that panics at reads, and opens as many as it is told to.
struct Fragile {
    device: Arc<Cached>,
    lanes: AtomicUsize,
}

struct FragileLane(Box<dyn Lane>);

impl Namespace for Fragile {
    fn info(&self) -> NsInfo {
        self.device.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        let left = self.lanes.load(Ordering::SeqCst);
        self.lanes.store(
            left.checked_sub(1).ok_or(Error::ShutDown)?,
            Ordering::SeqCst,
        );
        let lane = Inline::new(Arc::clone(&self.device)).open_lane(cx)?;
        Ok(Box::new(FragileLane(lane)))
    }
}

impl Lane for FragileLane {
    fn submit(&mut self, request: Request) {
        assert_ne!(request.op(), Op::Read, "as it should in this test");
        self.0.submit(request);
    }
}

/// What was written through a lane that has panicked is in the device: another lane flushes it.
#[test]
fn a_cache_behind_a_lane_that_has_panicked_is_flushed_or_told_of() {
    for (lanes, removed, safe) in [(2, false, true), (1, false, false), (2, true, false)] {
        let device = Arc::new(Cached::default());
        let mut rig = rig();
        rig.write_to(Fragile {
            device: Arc::clone(&device),
            lanes: AtomicUsize::new(lanes),
        });
        let mut sqe = read(2, 0, 8);
        sqe.set_nsid(3);
        rig.io.submit(&sqe, &[]);
        assert_eq!(rig.io.recv().cqe().status, Status::INTERNAL_ERROR);
        assert!(device.0.load(Ordering::SeqCst));
        if removed {
            rig.target.remove_namespace(NQN, 3).unwrap();
        }
        assert_eq!(rig.end(), safe, "{lanes} {removed}");
        assert_ne!(device.0.load(Ordering::SeqCst), safe, "{lanes} {removed}");
    }
}

/// Caches are flushed when a shutdown begins, and again if something is written after that.
#[test]
fn what_is_written_in_a_shutdown_is_flushed() {
    let mut rig = rig();
    let cached = Arc::new(Cached::default());
    let device = Inline::new(Arc::clone(&cached));
    rig.target.add_namespace(NQN, 3, device).unwrap();
    let on_cached = |mut sqe: Sqe| {
        sqe.set_nsid(3);
        sqe
    };
    rig.io
        .ok(&on_cached(write_in_capsule(1, 0, 8)), &pattern(1, 4096));
    rig.io.submit(&on_cached(write_by_r2t(2, 8, 8)), &[]);
    let r2t = rig.io.recv().r2t();
    let shutdown = rig.shut_down(PATIENCE);
    eventually("the cache is flushed", || !cached.0.load(Ordering::SeqCst));
    let data = pattern(2, 4096);
    rig.io
        .send(&Digests::default().h2c_data(&r2t, 0, &data, true));
    assert_eq!(rig.io.recv().cqe().status, Status::SUCCESS);
    drop((rig.io, rig.admin));
    assert!(shutdown.join().unwrap());
    assert!(!cached.0.load(Ordering::SeqCst), "acknowledged and lost");
}

/// However much time there is: `scenarios/stepped` says how long.
#[test]
fn hosts_that_do_nothing_are_given_up() {
    let mut rig = rig();
    rig.io.submit(&write_by_r2t(1, 0, 128), &[]);
    rig.io.recv().r2t();
    assert!(rig.target.shutdown(Duration::MAX));
    rig.target.wait();
    assert!(rig.target.shutdown(Duration::MAX), "it is over");
}

/// What a host does not do is no failure of the target, which has nothing in backends and has
/// flushed them.
#[test]
fn a_host_that_is_cut_off_makes_no_shutdown_incomplete() {
    let mut config = config();
    config.reactors = 1;
    let mut rig = rig_with(config);
    let cached = Arc::new(Cached::default());
    rig.write_to(Inline::new(Arc::clone(&cached)));
    rig.io.submit(&write_by_r2t(2, 0, 8), &[]);
    rig.io.recv().r2t();
    let shutdown = rig.shut_down(Duration::MAX);
    eventually("the cache is flushed", || !cached.0.load(Ordering::SeqCst));
    assert!(rig.target.shutdown(Duration::ZERO));
    assert!(shutdown.join().unwrap());
    drop(rig);
}

/// What was answered is not lost, whatever the host sends meanwhile.
#[test]
fn answers_are_not_overtaken_by_the_end() {
    let mut rig = rig();
    for cid in 0..16 {
        rig.io.submit(&read(cid, 0, 64), &[]);
    }
    // The last one has been taken, so all will be answered.
    rig.io.submit(&write_by_r2t(16, 0, 8), &[]);
    eventually("all are taken", || rig.target.stats().buffers_lent > 0);
    let mut answers = 0;
    let mut r2t = None;
    while r2t.is_none() {
        let pdu = rig.io.recv();
        match pdu.ch.pdu_type {
            PduType::R2T => r2t = Some(pdu.r2t()),
            PduType::CAPSULE_RESP => answers += 1,
            _ => {}
        }
    }
    let shutdown = rig.shut_down(PATIENCE);
    // Nobody will answer these any more.
    let data = Digests::default().h2c_data(&r2t.unwrap(), 0, &pattern(1, 4096), true);
    rig.io.send(&data);
    for cid in 17..40 {
        rig.io.submit(&read(cid, 0, 64), &[]);
    }
    rig.io.stream.shutdown(Shutdown::Write).unwrap();
    loop {
        match rig.io.try_recv() {
            Ok(pdu) if pdu.ch.pdu_type == PduType::CAPSULE_RESP => answers += 1,
            Ok(_) => {}
            Err(end) => {
                assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "{end}");
                break;
            }
        }
    }
    assert!(answers >= 17, "{answers}");
    drop((rig.io, rig.admin));
    assert!(shutdown.join().unwrap());
}

/// However much a host has not read yet when the end comes, it gets no half answer.
#[test]
fn the_stream_ends_behind_a_whole_pdu() {
    let mut rig = rig();
    for cid in 0..32 {
        rig.io.submit(&read(cid, 0, 256), &[]);
    }
    // It is about to get some.
    assert_eq!(rig.io.stream.peek(&mut [0]).unwrap(), 1);
    let shutdown = rig.shut_down(PATIENCE);
    let mut bytes = Vec::new();
    rig.io.stream.read_to_end(&mut bytes).unwrap();
    let mut rest = &bytes[..];
    while let Some(head) = rest.first_chunk::<8>() {
        // PLEN of the common header.
        let [.., a, b, c, d] = *head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        assert!((8..=rest.len()).contains(&len), "{len} of {}", rest.len());
        rest = &rest[len..];
    }
    assert_eq!(rest, b"");
    drop((rig.io, rig.admin));
    assert!(shutdown.join().unwrap());
}

/// While one thread waits for a backend, others are told and can cut that short.
#[test]
fn others_are_not_held_up_by_a_shutdown_that_waits() {
    let mut rig = rig();
    let mut sqe = read(1, 0, 8);
    sqe.set_nsid(2);
    rig.io.submit(&sqe, &[]);
    let held = rig.step.next();
    let shutdown = rig.shut_down(PATIENCE * 10);
    let refused = rig.target.listen("127.0.0.1:0".parse().unwrap());
    assert!(matches!(refused, Err(Error::ShutDown)), "{refused:?}");
    assert!(!shutdown.is_finished());
    let cut_off = !rig.target.shutdown(Duration::from_millis(1));
    assert!(cut_off);
    assert!(!shutdown.join().unwrap());
    rig.target.wait();
    let again = rig.target.shutdown(PATIENCE);
    assert!(!again, "it is over, and was not complete");
    held.complete(Ok(()));
}

/// Whoever asks learns what has been achieved, also if another thread shuts down.
#[test]
fn a_second_shutdown_says_what_the_first_one_has_achieved() {
    let mut rig = rig();
    rig.write_to(Inline::new(Broken));
    let mut sqe = read(1, 0, 8);
    sqe.set_nsid(2);
    rig.io.submit(&sqe, &[]);
    let held = rig.step.next();
    let first = rig.shut_down(PATIENCE * 10);
    let target = rig.target.clone();
    let second = thread::spawn(move || target.shutdown(Duration::MAX));
    held.complete(Ok(()));
    drop((rig.io, rig.admin));
    assert!(!first.join().unwrap(), "it cannot be flushed");
    assert!(!second.join().unwrap());
    assert!(!rig.target.shutdown(PATIENCE));
}

/// A device on the reactor's thread that says when it has a Read, and takes its time over it.
struct Stuck {
    entered: SyncSender<()>,
    go: Mutex<Receiver<()>>,
}

impl BlockDevice for Stuck {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 4096)
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let _ = self.entered.send(());
        // Until the test has ended.
        let _ = self.go.lock().unwrap().recv();
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }
}

/// A reactor that cannot be had back, as one whose ring a device in the kernel holds, is left behind.
#[test]
fn a_reactor_that_does_not_come_back_is_left() {
    let mut rig = rig();
    let (entered, is_stuck) = sync_channel(1);
    let (_go, wait) = sync_channel(1);
    let go = Mutex::new(wait);
    rig.target
        .add_namespace(NQN, 3, Inline::new(Stuck { entered, go }))
        .unwrap();
    let mut sqe = read(1, 0, 1);
    sqe.set_nsid(3);
    rig.io.submit(&sqe, &[]);
    is_stuck.recv().unwrap();
    assert!(!rig.target.shutdown(Duration::from_millis(1)));
    assert!(!rig.target.shutdown(Duration::MAX), "the same for all");
}

/// A device on the reactor's thread that shuts the target down in the middle of a Read, when it is told.
struct Impatient {
    entered: SyncSender<()>,
    go: Mutex<Receiver<Target>>,
}

impl BlockDevice for Impatient {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 4096)
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let _ = self.entered.send(());
        let target = self.go.lock().unwrap().recv().unwrap();
        let _ = target.shutdown(Duration::MAX);
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }
}

/// Of a shutdown that another thread has begun, and that waits for the reactor on which the second
/// is called, neither waits for the other for ever.
#[test]
fn a_shutdown_on_a_reactor_that_another_one_waits_for_cuts_that_short() {
    let mut rig = rig();
    let (entered, has_entered) = sync_channel(1);
    let (go, wait) = sync_channel(1);
    let go_wait = Mutex::new(wait);
    let device = Impatient {
        entered,
        go: go_wait,
    };
    rig.target
        .add_namespace(NQN, 3, Inline::new(device))
        .unwrap();
    let mut sqe = read(1, 0, 1);
    sqe.set_nsid(3);
    rig.io.submit(&sqe, &[]);
    has_entered.recv().unwrap();
    let first = rig.shut_down(Duration::MAX);
    go.send(rig.target.clone()).unwrap();
    eventually("neither waits", || first.is_finished());
    assert!(!first.join().unwrap(), "its Read was not answered");
}

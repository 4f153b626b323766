//! A target in steady state allocates nothing: counted over a real connection, in all of its
//! threads.

use nvmf_host::{ConnectOptions, Controller, Data, Queue, command};
use nvmf_target::ns::{
    FileBackend, FileEngine, FileNamespace, FileOptions, Inline, RamDisk, WorkerPool,
};
use nvmf_target::{SubsystemConfig, Target, TargetConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Allocations of all threads but those of the test.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Tests count one after the other.
static COUNTING: Mutex<()> = Mutex::new(());

thread_local! {
    static IS_TEST: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting.
struct Counting;

fn count() {
    if !IS_TEST.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NQN: &str = "nqn.2026-11.org.example:allocations";
const BLOCK: u32 = 4096;
const DISK_BLOCKS: u64 = 4096;
const DEPTH: u64 = 32;

/// Runs `ios` I/Os of `blocks` blocks each, over the whole namespace and again, at depth 32.
fn run(queue: &mut Queue, nsid: u32, write: bool, blocks: u32, ios: u64) {
    let bytes = (blocks * BLOCK) as usize;
    let places = DISK_BLOCKS / u64::from(blocks);
    let mut submitted = 0;
    let mut submit = |queue: &mut Queue, buffer: Vec<u8>| {
        let lba = submitted % places * u64::from(blocks);
        submitted += 1;
        let (sqe, data) = if write {
            (command::write(nsid, lba, blocks), Data::Write(buffer))
        } else {
            (command::read(nsid, lba, blocks), Data::Read(buffer))
        };
        queue.submit(sqe, data).unwrap();
    };
    for _ in 0..DEPTH {
        submit(queue, vec![0x5a; bytes]);
    }
    for completed in 0..ios {
        let done = queue.poll(Duration::from_secs(10)).unwrap().next();
        let done = done.expect("an answer in time").success("I/O").unwrap();
        if completed + DEPTH < ios {
            submit(queue, done.buffer);
        }
    }
    assert_eq!(queue.outstanding(), 0);
}

fn connect(address: SocketAddr, digests: bool, flow_control: bool) -> (Controller, Queue) {
    let mut options = ConnectOptions::new(address, NQN).unwrap();
    options.header_digest = digests;
    options.data_digest = digests;
    options.disable_sq_flow_control = !flow_control;
    let mut controller = Controller::connect(&options).unwrap();
    assert_eq!(controller.set_queue_count(1).unwrap(), 1);
    let queue = controller.io_queue(1).unwrap().into_queue();
    (controller, queue)
}

#[test]
fn no_allocation_per_io() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    IS_TEST.set(true);
    let mut config = TargetConfig::default();
    config.reactors = 1;
    let target = Target::new(config).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let disk = RamDisk::new(DISK_BLOCKS * u64::from(BLOCK), BLOCK).unwrap();
    target.add_namespace(NQN, 1, Inline::new(disk)).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();

    for (digests, flow_control) in [(false, false), (false, true), (true, true)] {
        let (_controller, mut queue) = connect(address, digests, flow_control);
        // 4 KiB goes in the capsule, 128 KiB by R2T.
        for (blocks, ios) in [(1, 20_000), (32, 2_000)] {
            for write in [true, false] {
                // The first round over the disk takes its memory.
                run(&mut queue, 1, write, blocks, ios / 2);
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                run(&mut queue, 1, write, blocks, ios);
                let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
                assert_eq!(
                    allocations, 0,
                    "{ios} I/Os of {blocks} blocks, write: {write}, digests: {digests}"
                );
            }
        }
    }
    let all = ALLOCATIONS.load(Ordering::Relaxed);
    assert_ne!(all, 0, "connections take memory, so nothing was counted");
    assert!(target.shutdown(Duration::from_secs(10)));
}

#[test]
fn no_allocation_per_io_of_a_file_by_io_uring() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    IS_TEST.set(true);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("allocations");
    let file = File::create(&path).unwrap();
    file.set_len(DISK_BLOCKS * u64::from(BLOCK)).unwrap();
    let mut options = FileOptions::default();
    options.block_size = Some(BLOCK);
    let backend = FileBackend::open(&path, &options).unwrap();
    let pool = Arc::new(WorkerPool::new(1));
    // Where it is forbidden, there is nothing to count.
    let Ok(namespace) = FileNamespace::new(backend, FileEngine::Uring, &pool) else {
        return;
    };
    let mut config = TargetConfig::default();
    config.reactors = 1;
    let target = Target::new(config).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    target.add_namespace(NQN, 2, namespace).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (_controller, mut queue) = connect(address, false, false);
    for write in [true, false] {
        run(&mut queue, 2, write, 1, 10_000);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        run(&mut queue, 2, write, 1, 10_000);
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{write}");
    }
    assert!(target.shutdown(Duration::from_secs(10)));
    std::fs::remove_file(&path).unwrap();
}

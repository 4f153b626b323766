//! What every scenario has around it: a process of its own, a target, and the account that is
//! settled at the end.

use crate::common::load::Load;
use crate::common::raw::Raw;
use crate::common::step::Step;
use crate::common::{self, NQN, PATIENCE, assert_idle, config, options, verified_io};
use nvmf_host::ConnectOptions;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::torture::{Options, Torture, Verdict};
use nvmf_target::ns::NsInfo;
use nvmf_target::{Target, TargetConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::any::type_name;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Set in the process of a scenario.
const ALONE: &str = "NVMF_SCENARIO";
/// By how much the heap may be larger than before: the target's records of what has happened (the
/// persistent events and the errors of a subsystem, tables that have grown) are bounded, and stay.
const RECORDS: usize = 512 << 10;
/// What the process around the target may have grown by.
const TRIFLES: usize = 4 << 10;
/// Blocks of the namespace that is run by hand, of 512 bytes.
pub(crate) const STEP_BLOCKS: u64 = 4096;
/// The namespace that is run by hand.
pub(crate) const STEP: u32 = 2;

/// Counts what is allocated and not given back.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; the count beside it is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(at, layout) };
    }
}

/// Bytes that are allocated and not given back.
pub(crate) fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// What the process has.
#[derive(Clone, Copy, Debug)]
struct Account {
    descriptors: usize,
    threads: usize,
    heap: usize,
}

impl Account {
    fn now() -> Self {
        let count = |folder| fs::read_dir(folder).unwrap().count();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            heap: allocated(),
        }
    }

    /// Waits until there is no more than there was; threads and sockets take a moment to go.
    fn settle(self, records: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = Self::now();
            let is_settled = now.descriptors == self.descriptors
                && now.threads == self.threads
                && now.heap <= self.heap + records;
            if is_settled {
                let grown = now.heap.saturating_sub(self.heap);
                println!("scenario: the heap has grown by {grown} bytes");
                return;
            }
            assert!(Instant::now() < end, "{now:?}, and before {self:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A target with a RAM disk (namespace 1) and a namespace that is run by hand ([`STEP`]), which has
/// served a host.
pub(crate) struct Scene {
    pub(crate) target: Target,
    pub(crate) address: SocketAddr,
    pub(crate) step: Step,
}

impl Scene {
    fn new(config: TargetConfig) -> Self {
        let (target, address) = common::target(config);
        let step = Step::new(NsInfo::new(512, STEP_BLOCKS));
        target.add_namespace(NQN, STEP, step.clone()).unwrap();
        Self {
            target,
            address,
            step,
        }
    }

    /// A fresh connection is served, its data is right, and nothing is left behind.
    pub(crate) fn serves(&self) {
        verified_io(self.address, 7);
        assert_idle(&self.target);
    }

    /// A fresh connection is served while those of the scenario are still there.
    pub(crate) fn serves_beside(&self) {
        verified_io(self.address, 8);
    }

    /// All cases of the catalogue that are about a scenario, slow ones included: each is answered as
    /// it must be, and after each a fresh connection is served.
    pub(crate) fn cases(&self, scenario: u8) {
        let mut options = Options::new(self.address);
        options.subsystem = Some(Nqn::new(NQN).unwrap());
        options.scratch = Some(0..64);
        options.patience = PATIENCE;
        options.slow = true;
        options.scenario = Some(scenario);
        let mut count = 0;
        for outcome in Torture::begin(&options).unwrap() {
            assert_eq!(outcome.verdict, Verdict::Conforms, "{outcome:?}");
            count += 1;
        }
        assert!(
            count > 0,
            "the catalogue has no case of scenario {scenario}"
        );
        assert_idle(&self.target);
    }

    /// An admin queue and an I/O queue of its controller.
    pub(crate) fn queues(&self) -> (Raw, Raw) {
        let (admin, cntlid) = Raw::admin(self.address);
        let io = Raw::io(self.address, cntlid, 1);
        (admin, io)
    }

    /// Options of host number `host`.
    pub(crate) fn host(&self, host: usize) -> ConnectOptions {
        numbered_host(self.address, host)
    }

    /// Host number `host` at work on blocks of its own of namespace 1.
    pub(crate) fn load(&self, host: usize) -> Load {
        Load::start(vec![self.host(host)], 1, place(host), &[])
    }

    /// The same, for whom some statuses are a matter of time.
    pub(crate) fn load_but(&self, host: usize, nsid: u32, but: &'static [Status]) -> Load {
        Load::start(vec![self.host(host)], nsid, place(host), but)
    }
}

/// Does `work` over and over on a thread of its own until `body` is over.
pub(crate) fn beside<R>(mut work: impl FnMut() + Send, body: impl FnOnce() -> R) -> R {
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                work();
            }
        });
        let _over = Over(&is_over);
        body()
    })
}

/// Options of host number `host` for the subsystem of all scenarios.
pub(crate) fn numbered_host(address: SocketAddr, host: usize) -> ConnectOptions {
    let mut options = options(address);
    options.host = host_nqn(host);
    options.timeout = PATIENCE;
    options
}

pub(crate) fn host_nqn(host: usize) -> Nqn {
    Nqn::new(&format!("nqn.2026-11.org.example:host-{host}")).unwrap()
}

/// Where host number `host` has its blocks, apart from those of [`verified_io`].
pub(crate) fn place(host: usize) -> u64 {
    4096 + 512 * host as u64
}

/// Plays a scenario with a small target; see [`scenario_with`].
pub(crate) fn scenario<F: FnOnce(&Scene)>(body: F) {
    scenario_with(config(), body);
}

/// Plays a scenario in a process of its own: this program once more, with nothing but the test that
/// `body` is a closure of. So descriptors, threads and memory are counted for one target, and
/// signals and limits of the process are nobody else's. At the end a fresh connection does I/O that
/// is verified; connections, controllers, queues, buffers, requests, descriptors, threads and heap
/// are as they were before; and once the target is gone, as they were before there was one.
pub(crate) fn scenario_with<F: FnOnce(&Scene)>(config: TargetConfig, body: F) {
    let name = test_of::<F>();
    if std::env::var_os(ALONE).is_none() {
        return play(&name);
    }
    // The logger, and whatever else is made once.
    let warm = Scene::new(config.clone());
    warm.serves();
    end(warm);
    let without_target = Account::now();
    let scene = Scene::new(config);
    scene.serves();
    drop(scene.queues());
    scene.serves();
    let before = Account::now();
    body(&scene);
    scene.serves();
    before.settle(RECORDS);
    end(scene);
    without_target.settle(TRIFLES);
}

/// Shuts the target down and waits until nothing of it is left.
fn end(scene: Scene) {
    assert!(scene.target.shutdown(PATIENCE), "nothing is to be cut off");
    drop(scene.target);
    common::eventually("the namespace is let go of", || !scene.step.is_held());
}

/// The name of the test that a closure is of: `scenarios::file::test::{{closure}}`.
fn test_of<F>() -> String {
    let path = type_name::<F>().split("::");
    let parts: Vec<_> = path
        .skip(1)
        .take_while(|part| !part.starts_with('{'))
        .collect();
    parts.join("::")
}

fn play(name: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(ALONE, name)
        // Backtraces of panics that are wanted keep 45 MB of symbols on the heap.
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}", output.status);
    assert!(said.contains("1 passed"), "{name} was not played");
}

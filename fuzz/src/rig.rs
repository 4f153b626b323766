//! A whole target for one input, and streams of hosts that step it when they wait.
//!
//! Everything happens in one thread and at the time that the input says, so that an input always
//! does the same. A host that has to wait lets the target do all it can; if that brings nothing, the
//! next deadlines pass, and if these bring nothing either, the wait ends with
//! [`io::ErrorKind::TimedOut`]: an answer is owed and will not come.

use crate::device::Slow;
use nvmf_host::{ConnectOptions, Connector, Controller, Data, Error, Stream, command};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{Role, SubsystemConfig, Target, TargetConfig, TargetStats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Once};
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// Virtual time that a host waits for an answer: more than a Connect may be held, and less than an
/// association without commands lasts.
const PATIENCE: u64 = 15 * SECOND;
/// How much later it is at least in every step of a wait.
const STEP: u64 = SECOND / 10;
/// Real time, which decides nothing.
pub const NEVER: Duration = Duration::from_secs(3600);

thread_local! {
    /// Streams have to be `Send`, which a target in one thread is not.
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// What hosts say of themselves ends up in log lines: those are made as well, and thrown away.
struct Sink;

static INIT: Once = Once::new();

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        assert!(!line.contains('\n'), "a log line of several: {line:?}");
    }

    fn flush(&self) {}
}

struct Rig {
    sim: SimTarget,
    slow: Arc<Slow>,
}

/// The target of one input. There is one per thread.
#[derive(Debug)]
pub struct TestTarget {
    target: Target,
    slow: Arc<Slow>,
}

impl TestTarget {
    /// A target without anything.
    ///
    /// # Errors
    ///
    /// As [`SimTarget::new`].
    pub fn new(config: TargetConfig) -> Result<Self, nvmf_target::Error> {
        INIT.call_once(|| {
            // Only one per process: somebody else's will do.
            let _ = log::set_logger(&Sink);
            log::set_max_level(log::LevelFilter::Debug);
        });
        let sim = SimTarget::new(config, SECOND)?;
        let target = sim.target().clone();
        let slow = Arc::new(Slow::default());
        RIG.set(Some(Rig {
            sim,
            slow: Arc::clone(&slow),
        }));
        Ok(Self { target, slow })
    }

    /// For management.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The requests that its slow namespaces hold.
    #[must_use]
    pub const fn slow(&self) -> &Arc<Slow> {
        &self.slow
    }

    /// A listener of this name, and the way to it.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn listen(&self, name: &str, role: Role) -> MemConnector {
        let (transport, connector) = MemTransport::new(name).expect("descriptors");
        self.target
            .listen_on(Box::new(transport), role)
            .expect("a valid listener");
        connector
    }

    /// Time passes, and what is due is done.
    pub fn pass(&self, nanos: u64) {
        let later = with(|rig| rig.sim.time().saturating_add(nanos));
        while let Some(due) = with(|rig| rig.sim.next_deadline()).filter(|&due| due < later) {
            with(|rig| rig.sim.set_time(due.max(rig.sim.time() + STEP).min(later)));
            settle();
            if with(|rig| rig.sim.time()) >= later {
                break;
            }
        }
        with(|rig| rig.sim.set_time(later));
        settle();
    }

    /// All hosts have gone: sooner or later nothing is left of them.
    ///
    /// # Panics
    ///
    /// If something is.
    pub fn finish(self) {
        settle();
        for _ in 0..1000 {
            self.slow.release(usize::MAX);
            settle();
            if self.target.stats() == TargetStats::default() {
                return;
            }
            let due = with(|rig| rig.sim.next_deadline());
            self.pass(due.map_or(SECOND, |due| {
                due.saturating_sub(with(|rig| rig.sim.time())).max(STEP)
            }));
        }
        panic!("left behind: {:?}", self.target.stats());
    }
}

/// It goes before its thread does, whose clock and ports it needs.
impl Drop for TestTarget {
    fn drop(&mut self) {
        drop(RIG.take());
    }
}

fn with<T>(f: impl FnOnce(&mut Rig) -> T) -> T {
    RIG.with_borrow_mut(|rig| f(rig.as_mut().expect("a target of this thread")))
}

/// Everybody but the slow namespaces does what there is to do.
pub fn settle() {
    with(|rig| rig.sim.settle());
}

/// What a host connects with.
#[must_use]
pub fn connector(to: &MemConnector) -> Connector {
    let to = to.clone();
    Box::new(move || Ok(Box::new(HostStream(to.connect()?)) as Box<dyn Stream>))
}

/// Options of a host that keeps to the rules.
///
/// # Panics
///
/// If `subsystem` is no NQN.
#[must_use]
pub fn options(subsystem: Option<&str>, host: u8) -> ConnectOptions {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut options = match subsystem {
        Some(nqn) => ConnectOptions::new(address, nqn).expect("an NQN"),
        None => ConnectOptions::discovery(address),
    };
    // Otherwise drawn at random.
    options.host_id = [host + 1; 16];
    options.host = nvmf_proto::wire::nqn::Nqn::from_uuid(&options.host_id);
    options.timeout = NEVER;
    options
}

/// Whether an error says that an answer is owed and will not come.
#[must_use]
pub fn is_stuck(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut)
}

/// A subsystem that no input touches, to see whether others are still served.
pub const VERIFY_NQN: &str = "nqn.2026-11.org.example:verify";

/// Adds the subsystem of [`verify`].
///
/// # Errors
///
/// As [`Target::add_subsystem`] and [`Target::add_namespace`].
pub fn add_verify(target: &Target, bytes: u64) -> Result<(), nvmf_target::Error> {
    target.add_subsystem(SubsystemConfig::new(VERIFY_NQN))?;
    target.add_namespace(VERIFY_NQN, 1, Inline::new(RamDisk::new(bytes, 512)?))
}

/// A new host connects to that subsystem, writes, and reads what it has written.
///
/// # Errors
///
/// The host's.
///
/// # Panics
///
/// If it reads something else.
pub fn verify(listener: &MemConnector, bytes: usize) -> Result<(), Error> {
    let mut options = options(Some(VERIFY_NQN), 0xee);
    options.io_entries = 4;
    let mut controller = Controller::connect_over(connector(listener), &options)?;
    controller.set_queue_count(1)?;
    let mut queue = controller.io_queue(1)?.into_queue();
    let written: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    let blocks = u32::try_from(bytes / 512).unwrap_or(u32::MAX);
    queue
        .execute(
            "Write",
            command::write(1, 3, blocks),
            Data::Write(written.clone()),
        )?
        .success("Write")?;
    let read = queue
        .execute(
            "Read",
            command::read(1, 3, blocks),
            Data::Read(vec![0xee; bytes]),
        )?
        .success("Read")?;
    assert!(read.buffer == written, "not what was written");
    drop(queue);
    controller.disconnect()
}

/// The host's end of a connection.
#[derive(Debug)]
struct HostStream(MemStream);

impl HostStream {
    fn is_ready(&self) -> io::Result<bool> {
        let fd = PollFd::from_borrowed_fd(self.0.readiness(), PollFlags::IN);
        Ok(poll(&mut [fd], Some(&Timespec::default()))? > 0)
    }
}

impl Stream for HostStream {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.writev(bufs)
    }

    fn wait(&mut self, _or_write: bool, _timeout: Duration) -> io::Result<()> {
        let start = with(|rig| rig.sim.time());
        loop {
            settle();
            if self.is_ready()? {
                return Ok(());
            }
            if with(|rig| rig.slow.release(usize::MAX)) > 0 {
                continue;
            }
            let now = with(|rig| rig.sim.time());
            let due = with(|rig| rig.sim.next_deadline());
            let Some(due) = due.filter(|&due| due <= start + PATIENCE) else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            if now > start + PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            with(|rig| rig.sim.set_time(due.max(now + STEP)));
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.readiness())
    }
}

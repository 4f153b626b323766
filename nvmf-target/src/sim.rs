//! A target in one thread with a clock of its own, for tests (feature `sim`).
//!
//! A [`SimTarget`] is a whole target without threads: it accepts, reads, executes and answers only
//! when it is told to, and the time is what it is told. With transports and namespaces that are as
//! deterministic, a test repeats exactly, and hours of it pass in no time. `nvmf-target/tests/sim`
//! in the repository is such a test; an embedder can treat a backend in the same way.
//!
//! ```
//! use nvmf_target::ns::{Inline, RamDisk};
//! use nvmf_target::sim::SimTarget;
//! use nvmf_target::transport::MemTransport;
//! use nvmf_target::{Role, SubsystemConfig, TargetConfig};
//!
//! let second = 1_000_000_000;
//! let mut sim = SimTarget::new(TargetConfig::default(), 1)?;
//! let nqn = "nqn.2026-11.org.example:simulated";
//! sim.target().add_subsystem(SubsystemConfig::new(nqn))?;
//! sim.target().add_namespace(nqn, 1, Inline::new(RamDisk::new(1 << 20, 512)?))?;
//! let (listener, connector) = MemTransport::new("simulation")?;
//! sim.target().listen_on(Box::new(listener), Role::Io)?;
//!
//! let silent = connector.connect()?;
//! sim.settle();
//! assert_eq!(sim.target().stats().connections, 1);
//! // It says nothing for ten seconds.
//! sim.set_time(1 + 10 * second);
//! sim.settle();
//! assert_eq!(sim.target().stats().connections, 0);
//! # drop(silent);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What stays outside: the workers of [`ns::Threaded`](crate::ns::Threaded), and the clock behind the
//! Timestamp feature and the times in log pages.

use crate::ns::LocalPort;
use crate::reactor::{Acceptor, Parts, Reactor, set_time};
use crate::target::Inner;
use crate::{Error, Target, TargetConfig};
use nvmf_proto::tcp::Time;
use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

thread_local! {
    /// Simulated targets of this thread, which share its clock.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// Keeps the thread's clock simulated.
struct Clock;

impl Clock {
    fn new(now: u64) -> Self {
        COUNT.set(COUNT.get() + 1);
        set_time(Some(Time(now)));
        Self
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        COUNT.set(COUNT.get() - 1);
        if COUNT.get() == 0 {
            set_time(None);
        }
    }
}

struct Stepped {
    reactor: Reactor,
    local: Option<LocalPort>,
}

/// A target that does something only when it is told to. Several of them on one thread share the
/// time. Methods of [`SimTarget::target`] may be called at any moment on the same thread; none waits,
/// but [`Target::wait`], and [`Target::shutdown`] cuts everything off: see
/// [`SimTarget::begin_shutdown`].
pub struct SimTarget {
    reactors: Vec<Option<Stepped>>,
    acceptor: Arc<Mutex<Acceptor>>,
    target: Target,
    now: u64,
    _clock: Clock,
}

impl SimTarget {
    /// A target at the time `now`, in nanoseconds since any moment. It does not spin, whatever
    /// [`TargetConfig::busy_poll`] says.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn new(mut config: TargetConfig, now: u64) -> Result<Self, Error> {
        config.busy_poll = Duration::ZERO;
        let clock = Clock::new(now);
        let inner = Inner::new(config)?;
        inner.core.keeper.go_stepwise();
        let reactor = |(index, mailbox)| {
            let reactor = Reactor::new(Parts::new(&inner.core, index, mailbox)?);
            let local = Some(reactor.port().local());
            Ok(Some(Stepped { reactor, local }))
        };
        let reactors = inner.reactors.iter().enumerate().map(reactor);
        let reactors = reactors.collect::<Result<_, Error>>()?;
        let (acceptor, handle) = Acceptor::stepped(&inner.core, inner.reactors.clone())?;
        inner.running().acceptor = Some(handle);
        Ok(Self {
            reactors,
            acceptor,
            target: Target(Arc::new(inner)),
            now,
            _clock: clock,
        })
    }

    /// The target, for its management.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The time.
    #[must_use]
    pub const fn time(&self) -> u64 {
        self.now
    }

    /// Time has passed: it is `now`, of all simulated targets of this thread. Earlier times than the
    /// present one are ignored.
    pub fn set_time(&mut self, now: u64) {
        self.now = self.now.max(now);
        set_time(Some(Time(self.now)));
    }

    /// How many reactors it was made with.
    #[must_use]
    pub const fn reactors(&self) -> usize {
        self.reactors.len()
    }

    /// Accepts the connections that have come; true if there were any.
    pub fn accept(&mut self) -> bool {
        let mut acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        acceptor.step()
    }

    /// Carries out one command on reservations of a namespace with a
    /// [`ReservationStore`](crate::ReservationStore), whose `save` or `remove` it may call; true if
    /// there was one. Also after the reactors have ended.
    pub fn keep(&mut self) -> bool {
        self.target.0.core.keeper.step()
    }

    /// One turn of a reactor; true if there was something to do or there is more. False if it has
    /// ended.
    pub fn turn(&mut self, reactor: usize) -> bool {
        let Some(entry) = self.reactors.get_mut(reactor) else {
            return false;
        };
        let Some(Stepped { reactor, local }) = entry else {
            return false;
        };
        let worked = LocalPort::with(local, || reactor.step());
        if reactor.is_over() {
            let mut local = local.take();
            if let Some(over) = entry.take() {
                LocalPort::with(&mut local, || drop(over));
            }
        }
        worked
    }

    /// Whether the thread of a reactor would sleep now, unless a descriptor that it watches has become
    /// ready since its last turn: who knows of all of them need not try. Also if it has ended.
    #[must_use]
    pub fn would_sleep(&self, reactor: usize) -> bool {
        let entry = self.reactors.get(reactor).and_then(Option::as_ref);
        entry.is_none_or(|stepped| stepped.reactor.would_sleep(Time(self.now)))
    }

    /// Accepts, turns and keeps until nobody has anything to do at this time.
    pub fn settle(&mut self) {
        loop {
            let mut worked = self.accept() | self.keep();
            for reactor in 0..self.reactors() {
                worked |= self.turn(reactor);
            }
            if !worked {
                break;
            }
        }
    }

    /// When a turn of a reactor is due though nothing comes from outside; it may be in the past.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let reactors = self.reactors.iter().flatten();
        reactors
            .filter_map(|stepped| stepped.reactor.due())
            .map(|time| time.0)
            .min()
    }

    /// Begins what [`Target::shutdown`] does; turns carry it out, until [`SimTarget::is_over`].
    pub fn begin_shutdown(&mut self) {
        self.target.0.begin_shutdown();
    }

    /// Whether all reactors have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reactors.iter().all(Option::is_none)
    }
}

/// The reactors end as in a shutdown whose time is over.
impl Drop for SimTarget {
    fn drop(&mut self) {
        self.target.0.begin_shutdown();
        for stepped in self.reactors.drain(..).flatten() {
            let Stepped { reactor, mut local } = stepped;
            LocalPort::with(&mut local, || drop(reactor));
        }
    }
}

impl fmt::Debug for SimTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimTarget")
            .field("now", &self.now)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{
        MemConnector, MemStream, MemTransport, Stream, Transport, TransportAddress,
    };
    use crate::{Role, SubsystemConfig};
    use nvmf_proto::wire::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData};
    use nvmf_proto::wire::nqn::Nqn;
    use nvmf_proto::wire::pdu::{
        CommonHeader, InitConnection, PduFlags, PduType, encode_capsule_cmd,
    };
    use nvmf_proto::wire::{SglDescriptor, Sqe};
    use std::io::{self, IoSlice, IoSliceMut};
    use std::os::fd::BorrowedFd;

    const SECOND: u64 = 1_000_000_000;

    fn sim() -> (SimTarget, MemStream) {
        let config = TargetConfig {
            reactors: 2,
            ..TargetConfig::default()
        };
        let mut sim = SimTarget::new(config, 5).unwrap();
        let (listener, connector) = MemTransport::new("sim").unwrap();
        sim.target()
            .listen_on(Box::new(listener), Role::Io)
            .unwrap();
        let stream = connector.connect().unwrap();
        sim.settle();
        (sim, stream)
    }

    fn is_closed(stream: &mut MemStream) -> bool {
        let mut byte = [0];
        matches!(stream.readv(&mut [IoSliceMut::new(&mut byte)]), Ok(0))
    }

    #[test]
    fn nothing_happens_by_itself_and_time_is_what_it_is_told() {
        let (mut sim, mut stream) = sim();
        assert_eq!(sim.target().stats().connections, 1);
        let due = sim.next_deadline().unwrap();
        assert_eq!(due, 5 + 10 * SECOND);
        sim.set_time(due - 1);
        sim.settle();
        assert!(!is_closed(&mut stream));
        sim.set_time(due);
        assert!(!is_closed(&mut stream));
        sim.settle();
        assert!(is_closed(&mut stream));
        sim.set_time(0);
        assert_eq!(sim.time(), due);
    }

    #[test]
    fn a_listener_is_removed_and_a_shutdown_carried_out_on_one_thread() {
        let (mut sim, mut stream) = sim();
        sim.target().remove_listener("sim").unwrap();
        sim.settle();
        assert!(is_closed(&mut stream));
        assert_eq!(sim.target().stats().connections, 0);
        sim.begin_shutdown();
        assert!(!sim.is_over());
        sim.settle();
        assert!(sim.is_over());
    }

    #[test]
    fn dropping_it_ends_its_connections() {
        let (sim, mut stream) = sim();
        drop(sim);
        assert!(is_closed(&mut stream));
    }

    const NQN: &str = "nqn.2026-11.org.example:sim";

    /// The capsule of a Connect to an admin queue.
    fn connect_capsule() -> Vec<u8> {
        let mut data = [0; 1024];
        ConnectData {
            hostid: [1; 16],
            cntlid: CNTLID_DYNAMIC,
            subnqn: Nqn::new(NQN).unwrap().to_field(),
            hostnqn: Nqn::new("nqn.2026-11.org.example:host").unwrap().to_field(),
        }
        .encode(&mut data);
        let mut sqe: Sqe = ConnectCommand {
            sqsize: 31,
            ..ConnectCommand::default()
        }
        .to_sqe();
        sqe.set_sgl(SglDescriptor::in_capsule(1024));
        let ch = CommonHeader {
            pdu_type: PduType::CAPSULE_CMD,
            flags: PduFlags::empty(),
            hlen: 72,
            pdo: 72,
            plen: 72 + 1024,
        };
        [&encode_capsule_cmd(&ch, &sqe)[..], &data].concat()
    }

    type SharedAcceptor = Arc<Mutex<Acceptor>>;

    /// Accepts streams before which others come in the moment in which their Connects are read.
    struct Overtaking {
        inner: MemTransport,
        acceptor: SharedAcceptor,
        next: MemConnector,
    }

    impl Transport for Overtaking {
        fn address(&self) -> TransportAddress {
            self.inner.address()
        }

        fn readiness(&self) -> BorrowedFd<'_> {
            self.inner.readiness()
        }

        fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
            let (acceptor, next) = (&self.acceptor, &self.next);
            let wrap = |inner| {
                Box::new(Overtaken {
                    inner,
                    acceptor: Arc::clone(acceptor),
                    next: next.clone(),
                    other: None,
                }) as Box<dyn Stream>
            };
            Ok(self.inner.accept()?.map(wrap))
        }
    }

    struct Overtaken {
        inner: Box<dyn Stream>,
        acceptor: SharedAcceptor,
        next: MemConnector,
        other: Option<MemStream>,
    }

    impl Stream for Overtaken {
        fn readiness(&self) -> BorrowedFd<'_> {
            self.inner.readiness()
        }

        fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            let n = self.inner.readv(bufs)?;
            if n > 1024 {
                self.other = Some(self.next.connect()?);
                self.acceptor.lock().unwrap().step();
            }
            Ok(n)
        }

        fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
            self.inner.writev(bufs)
        }

        fn shutdown_write(&mut self) {
            self.inner.shutdown_write();
        }

        fn peer(&self) -> String {
            self.inner.peer()
        }
    }

    /// What came behind the Connect is nobody's any more: `Conn::finish` checks that it does not
    /// stay counted.
    #[test]
    fn a_connection_that_is_ended_for_others_in_its_connect_leaves_nothing_behind() {
        let config = TargetConfig {
            reactors: 1,
            max_unconnected: 1,
            ..TargetConfig::default()
        };
        let mut sim = SimTarget::new(config, 5).unwrap();
        let target = sim.target();
        target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
        let (next, others) = MemTransport::new("others").unwrap();
        target.listen_on(Box::new(next), Role::Io).unwrap();
        let (inner, connector) = MemTransport::new("sim").unwrap();
        let transport = Overtaking {
            inner,
            acceptor: Arc::clone(&sim.acceptor),
            next: others,
        };
        target.listen_on(Box::new(transport), Role::Io).unwrap();
        sim.settle();
        let mut stream = connector.connect().unwrap();
        let icreq = InitConnection::default().encode(PduType::IC_REQ);
        stream.writev(&[IoSlice::new(&icreq)]).unwrap();
        sim.settle();
        let mut capsule = connect_capsule();
        capsule.extend([0; 1000]);
        stream.writev(&[IoSlice::new(&capsule)]).unwrap();
        sim.settle();
        let mut answer = [0; 256];
        let came = stream.readv(&mut [IoSliceMut::new(&mut answer)]).unwrap();
        assert_eq!(came, 128, "the ICResp and nothing else");
        assert!(is_closed(&mut stream));
        assert_eq!(sim.target().stats().controllers, 0);
    }
}

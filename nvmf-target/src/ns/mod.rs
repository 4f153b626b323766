//! Storage behind a target: namespaces, and the three ways to write one.
//!
//! * [`BlockDevice`]: blocking reads and writes; wrap it in [`Inline`] (memory speed) or
//!   [`Threaded`] (disks). The short way.
//! * [`Namespace`] and [`Lane`]: owned [`Request`]s in, completions out, one lane per reactor
//!   thread. The fast way.
//!
//! [`Faulty`], [`Delayed`], [`ReadOnly`], [`Stats`] and [`Trace`] are namespaces around namespaces.
//!
//! The target has checked every request before a backend sees it: the range lies inside the
//! namespace, the data is as long as the range, the operation is one that [`NsInfo::caps`] offers.

mod block;
mod file;
mod info;
mod ram;
mod request;
mod threaded;
mod uncorrectable;
mod wrap;

pub(crate) use block::contained;
pub use block::{BlockDevice, Inline, NsError};
pub(crate) use file::ReactorRing;
pub use file::{Direct, FileBackend, FileEngine, FileId, FileNamespace, FileOptions};
pub use info::{Caps, NsInfo, Support};
pub use ram::RamDisk;
#[cfg(feature = "sim")]
pub(crate) use request::LocalPort;
pub(crate) use request::{Completion, Port, REQUEST_BYTES, RequestPool, Route, SPARE_REQUESTS};
pub use request::{Interceptor, LbaRange, Op, Request, RequestId};
pub use threaded::{Threaded, WorkerPool};
pub(crate) use uncorrectable::Uncorrectable;
pub use wrap::{
    Counters, Delay, Delayed, Fault, Faults, Faulty, Held, Histogram, OpKind, OpStats, Pace,
    ReadOnly, ReadOnlySwitch, Rule, RuleId, Snapshot, Stats, Trace, TraceEvent,
};

use crate::Error;
use std::fmt;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

/// Storage that a subsystem shows to hosts under an NSID.
///
/// Shared by all reactors; what is used per I/O lives in the [`Lane`]s.
pub trait Namespace: Send + Sync + 'static {
    /// Geometry, identity and capabilities at this moment. Cheap; called when the namespace is
    /// added and after each [`NsSink::changed`], on the caller's thread of either.
    fn info(&self) -> NsInfo;

    /// Opens a lane. Called on the reactor thread that will use it, at the first command for this
    /// namespace there; the lane never leaves that thread.
    ///
    /// # Errors
    /// An error fails the command with Namespace Not Ready (DNR clear) and is logged; the next
    /// command tries again.
    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error>;

    /// Hands over the sink by which the backend says that [`Namespace::info`] has changed. Called
    /// once for each time that the namespace is added to a subsystem, with another sink each time.
    fn subscribe(&self, sink: NsSink) {
        let _ = sink;
    }
}

/// What a reactor tells a backend that opens a lane.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LaneCx {
    /// The most requests that will be outstanding on the lane: [`NsInfo::depth`]. Another number
    /// only after the backend has said so ([`NsSink::changed`]), and then in a moment.
    pub depth: u32,
    /// Number of the reactor, from 0.
    pub reactor: usize,
    /// The reactor's io_uring, for backends of this crate.
    pub(crate) uring: ReactorRing,
}

/// One reactor's way into a namespace. Lives and dies on the reactor's thread.
pub trait Lane {
    /// Takes a request. Cannot fail and must not block: an error is a completion like any other.
    /// Completing the request before returning is fine. If this or another method panics the lane
    /// is dropped, with what it has, and the next command opens another.
    fn submit(&mut self, request: Request);

    /// The end of a batch of `submit` calls: the moment to ring a doorbell once for all of them.
    fn commit(&mut self) {}

    /// The host wants a request aborted. A lane that has not begun to work on it, and now never
    /// will, gives it back. `None` (the default): it runs to its end, or the lane cuts it short and
    /// completes it with [`Status::ABORT_REQUESTED`](crate::Status::ABORT_REQUESTED) when it has.
    /// Must not block.
    fn abort(&mut self, id: RequestId) -> Option<Request> {
        let _ = id;
        None
    }

    /// Completes what is finished, at most `budget` requests; returns how many. Called when
    /// [`Lane::wake_fd`] is readable.
    fn poll(&mut self, budget: u32) -> u32 {
        let _ = budget;
        0
    }

    /// A descriptor that is readable when `poll` has something to do: always the same, and this
    /// lane's alone (give a `dup` of one that several lanes share). `None` (the default) for a lane
    /// that completes in `submit` or from another thread.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The device behind a lane that does nothing but call its methods on the reactor's thread,
    /// as [`Inline`]'s does. Asked for once, when the lane has been opened. Where there is one the
    /// target calls it itself for plain reads and writes, without a [`Request`]: writes take their
    /// data from where it was received, and what the device lends ([`BlockDevice::lend`]) is sent
    /// from where it is.
    fn inline_device(&self) -> Option<Arc<dyn BlockDevice>> {
        None
    }
}

/// Bytes of a device that nobody changes while this lives, for sending them to a host without
/// copying them first. So far only a [`RamDisk`] makes any.
pub struct Loan<'a>(ram::Lent<'a>);

impl Deref for Loan<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Loan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("len", &self.len()).finish()
    }
}

/// By which a backend tells its subsystem that its [`NsInfo`] has changed.
#[derive(Clone)]
pub struct NsSink(pub(crate) Weak<dyn Fn() + Send + Sync>);

impl NsSink {
    /// [`Namespace::info`] now says something else (a new size, read-only, ...): the target takes
    /// the new values into use and tells connected hosts. From any thread except from inside
    /// `info` and `subscribe`; does nothing once the namespace has been removed.
    pub fn changed(&self) {
        if let Some(notify) = self.0.upgrade() {
            notify();
        }
    }

    /// Whether the namespace is still attached where this sink leads to.
    #[must_use]
    pub fn is_of_use(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for NsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NsSink")
    }
}

impl<N: Namespace + ?Sized> Namespace for Arc<N> {
    fn info(&self) -> NsInfo {
        (**self).info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        (**self).open_lane(cx)
    }

    fn subscribe(&self, sink: NsSink) {
        (**self).subscribe(sink);
    }
}

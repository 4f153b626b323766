//! Namespaces that hosts must not write.

use crate::Error;
use crate::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A namespace that hosts may read and not write.
///
/// [`NsInfo::read_only`] is set: Identify says that the namespace is write protected, and the
/// target itself refuses with Namespace is Write Protected, Do Not Retry, whatever writes. So this
/// costs no I/O anything, and every other path stays as it is.
///
/// Its [`ReadOnlySwitch`] makes it writable and read-only again while it is in use.
pub struct ReadOnly(ReadOnlySwitch);

/// Switches a [`ReadOnly`]; from any thread.
#[derive(Clone)]
pub struct ReadOnlySwitch(Arc<Shared>);

struct Shared {
    namespace: Arc<dyn Namespace>,
    read_only: AtomicBool,
    sinks: Mutex<Vec<NsSink>>,
}

impl ReadOnly {
    /// The same storage, read-only.
    #[must_use]
    pub fn new(namespace: impl Namespace) -> Self {
        Self(ReadOnlySwitch(Arc::new(Shared {
            namespace: Arc::new(namespace),
            read_only: AtomicBool::new(true),
            sinks: Mutex::default(),
        })))
    }

    /// The way to make it writable. It keeps the namespace alive.
    #[must_use]
    pub fn switch(&self) -> ReadOnlySwitch {
        self.0.clone()
    }
}

impl ReadOnlySwitch {
    /// Switches, and tells hosts. Writes that the target has checked before may still be in the
    /// backend when this returns. False if the namespace is read-only by itself and is to be
    /// written.
    pub fn set(&self, read_only: bool) -> bool {
        let Shared {
            namespace,
            read_only: switch,
            sinks,
        } = &*self.0;
        if !read_only && namespace.info().read_only {
            return false;
        }
        if switch.swap(read_only, Ordering::AcqRel) != read_only {
            // Without the lock: it calls `info`, and the target.
            let sinks = sinks.lock().unwrap_or_else(PoisonError::into_inner).clone();
            sinks.iter().for_each(NsSink::changed);
        }
        true
    }

    /// What the namespace says of itself at this moment.
    #[must_use]
    pub fn info(&self) -> NsInfo {
        let info = self.0.namespace.info();
        let read_only = info.read_only || self.0.read_only.load(Ordering::Acquire);
        info.with_read_only(read_only)
    }
}

impl Namespace for ReadOnly {
    fn info(&self) -> NsInfo {
        self.0.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        self.0.0.namespace.open_lane(cx)
    }

    fn subscribe(&self, sink: NsSink) {
        let Shared {
            namespace, sinks, ..
        } = &*self.0.0;
        let mut sinks = sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.retain(NsSink::is_of_use);
        sinks.push(sink.clone());
        drop(sinks);
        namespace.subscribe(sink);
    }
}

impl fmt::Debug for ReadOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ReadOnlySwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnly")
            .field("read_only", &self.0.read_only)
            .finish_non_exhaustive()
    }
}

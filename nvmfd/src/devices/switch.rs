//! A namespace that an operator can make read-only.

use nvmf_target::Error;
use nvmf_target::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A namespace as it is, but for [`NsInfo::read_only`]; the target refuses the writes.
pub(super) struct ReadOnlySwitch {
    inner: Arc<dyn Namespace>,
    read_only: AtomicBool,
    sink: OnceLock<NsSink>,
}

impl ReadOnlySwitch {
    pub(super) fn new(inner: Arc<dyn Namespace>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            read_only: AtomicBool::new(false),
            sink: OnceLock::new(),
        })
    }

    /// Switches, and tells hosts of it. False if the namespace is read-only by itself and is to be
    /// written.
    pub(super) fn set(&self, read_only: bool) -> bool {
        if !read_only && self.inner.info().read_only {
            return false;
        }
        let changed = self.read_only.swap(read_only, Ordering::AcqRel) != read_only;
        if changed && let Some(sink) = self.sink.get() {
            sink.changed();
        }
        true
    }
}

impl Namespace for ReadOnlySwitch {
    fn info(&self) -> NsInfo {
        let info = self.inner.info();
        let read_only = info.read_only || self.read_only.load(Ordering::Acquire);
        info.with_read_only(read_only)
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        self.inner.open_lane(cx)
    }

    fn subscribe(&self, sink: NsSink) {
        // Each is attached once.
        let _ = self.sink.set(sink.clone());
        self.inner.subscribe(sink);
    }
}

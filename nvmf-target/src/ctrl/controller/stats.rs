//! Counters of queues, and their sums.

use super::super::lock;
use nvmf_proto::tcp::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Counters of one queue, or of one reactor's lane to a namespace; written by that reactor only and
/// read by others.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct QueueStats {
    /// When a command was last seen, as a [`Time`].
    last_active: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl QueueStats {
    /// There is one writer, so an addition needs no atomic instruction.
    fn add(counter: &AtomicU64, n: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn active(&self, now: Time) {
        self.last_active.store(now.0, Ordering::Relaxed);
    }

    /// When a command was last seen.
    pub(super) fn last_active(&self) -> Time {
        Time(self.last_active.load(Ordering::Relaxed))
    }

    pub(crate) fn read(&self, bytes: u64) {
        Self::add(&self.reads, 1);
        Self::add(&self.bytes_read, bytes);
    }

    pub(crate) fn written(&self, bytes: u64) {
        Self::add(&self.writes, 1);
        Self::add(&self.bytes_written, bytes);
    }

    pub(in crate::ctrl) fn totals(&self) -> Totals {
        Totals {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }
}

/// Sums of [`QueueStats`] over queues or lanes: what the SMART log shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

impl Totals {
    pub(in crate::ctrl) const fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads.wrapping_add(other.reads),
            writes: self.writes.wrapping_add(other.writes),
            bytes_read: self.bytes_read.wrapping_add(other.bytes_read),
            bytes_written: self.bytes_written.wrapping_add(other.bytes_written),
        }
    }
}

/// Counters of a namespace over all its hosts, as long as it is attached.
#[derive(Debug, Default)]
pub(crate) struct NsStats {
    /// One per lane: what I/O counts with costs no other reactor anything.
    lanes: Mutex<Vec<Arc<QueueStats>>>,
    media_errors: AtomicU64,
}

impl NsStats {
    /// Counters for a lane that is new.
    pub(crate) fn lane(&self) -> Arc<QueueStats> {
        let stats = Arc::default();
        lock(&self.lanes).push(Arc::clone(&stats));
        stats
    }

    pub(in crate::ctrl) fn totals(&self) -> Totals {
        let lanes = lock(&self.lanes);
        lanes
            .iter()
            .fold(Totals::default(), |sum, lane| sum.plus(lane.totals()))
    }

    pub(super) fn count_media_error(&self) {
        self.media_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn media_errors(&self) -> u64 {
        self.media_errors.load(Ordering::Relaxed)
    }
}

//! The Error Information log of a controller (NVMe Base 2.1, Error Information log page).
//!
//! Only commands that fail come here, and one host's can keep nothing waiting but its own: each
//! controller has a lock and a ring of its own.

use super::super::{Fault, lock};
use super::Controller;
use nvmf_proto::wire::identify::Csi;
use nvmf_proto::wire::log::{AsyncEvent, ErrorLogEntry};
use nvmf_proto::wire::{AdminOpcode, Sqe, Status};
use std::collections::VecDeque;
use std::sync::Mutex;

/// CRDT1, in units of 100 ms: when what passes with time is worth another try.
pub(in crate::ctrl) const CRDT1: u16 = 1;

#[derive(Debug, Default)]
pub(in crate::ctrl) struct ErrorLog(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    /// The newest in front.
    entries: VecDeque<ErrorLogEntry>,
    counts: ErrorCounts,
}

/// Counts over the life of the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ctrl) struct ErrorCounts {
    /// Entries that the Error Information log has had.
    pub(in crate::ctrl) entries: u64,
    /// Media and Data Integrity Errors.
    pub(in crate::ctrl) media: u64,
}

impl ErrorLog {
    /// ELPE + 1.
    pub(in crate::ctrl) const ENTRIES: u8 = 128;
    /// Bytes of the log page.
    pub(in crate::ctrl) const SIZE: usize = Self::ENTRIES as usize * ErrorLogEntry::SIZE;

    fn record(&self, entry: ErrorLogEntry, of_the_medium: bool) {
        let mut ring = lock(&self.0);
        ring.counts.entries += 1;
        ring.counts.media += u64::from(of_the_medium);
        let error_count = ring.counts.entries;
        ring.entries.truncate(usize::from(Self::ENTRIES) - 1);
        ring.entries.push_front(ErrorLogEntry {
            error_count,
            ..entry
        });
    }

    pub(in crate::ctrl) fn counts(&self) -> ErrorCounts {
        lock(&self.0).counts
    }

    /// The log page: the newest entry first, then entries that are none.
    pub(in crate::ctrl) fn page(&self) -> Vec<u8> {
        let mut page = vec![0; Self::SIZE];
        let ring = lock(&self.0);
        for (entry, out) in ring.entries.iter().zip(page.as_chunks_mut().0) {
            entry.encode(out);
        }
        page
    }
}

impl Controller {
    /// Takes note of a command that fails on one of the controller's queues, and returns the status
    /// that the host is to get.
    pub(crate) fn note_failure(&self, qid: u16, sqe: &Sqe, fault: Fault) -> Status {
        let mut status = fault.status;
        // NVMe Base 2.1, Host Behavior Support: only hosts that say so know of CRD.
        if fault.passes_with_time() && self.settings().host_behavior.acre == 1 {
            status = status.with_crd(1);
        }
        if !fault.is_logged() {
            return status;
        }
        status = status.more();
        let fabrics = sqe.opcode() == AdminOpcode::FABRICS.0;
        let trtype = if fault.is_of_the_transport() {
            self.listener.address.trtype.0
        } else {
            0
        };
        let entry = ErrorLogEntry {
            sqid: qid,
            cid: sqe.cid(),
            status: status.bits() << 1,
            parameter_location: fault.location,
            lba: fault.lba(sqe),
            // A Fabrics command has its FCTYPE there.
            nsid: if fabrics { 0 } else { sqe.nsid() },
            trtype,
            csi: Csi::NVM,
            opcode: sqe.opcode(),
            log_page_version: 1,
            ..ErrorLogEntry::default()
        };
        let of_the_medium = fault.is_of_the_medium();
        if of_the_medium && let Some(seen) = self.view().get(sqe.nsid()) {
            seen.entry.shared.stats.count_media_error();
        }
        self.errors.record(entry, of_the_medium);
        if fault.status.same_code(Status::INTERNAL_ERROR) {
            self.raise(AsyncEvent::TRANSIENT_INTERNAL_ERROR);
        }
        status
    }
}

//! What one controller sees of its subsystem's namespaces.

use super::ana::{AnaState, PortStates};
use super::reservation::Rights;
use super::{NsEntry, NsTable};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::nqn::Nqn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Everything that decides whether a command of this controller may touch a namespace, so that I/O
/// looks at nothing else. Made anew when namespaces or their ANA states change; what hosts change
/// themselves, rights and the write cache, changes in place.
#[derive(Debug, Default)]
pub(crate) struct View {
    seen: Vec<Option<Seen>>,
    ana: Arc<PortStates>,
    write_through: AtomicBool,
}

/// A namespace that is there for the controller's host.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) entry: Arc<NsEntry>,
    /// Why any I/O command is refused: the end of the controller, or the state of the ANA group at
    /// the controller's port.
    pub(crate) ana: Option<Status>,
    /// What is refused at the moment, as bits of [`Usage`], and of `ana`.
    refused: AtomicU8,
}

/// What a command does to a namespace, as far as access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Read,
    Flush,
    Write,
}

/// [`Seen::ana`] is a reason.
const ANA: u8 = 1 << 0;
/// Another host's reservation excludes commands that read.
const READS: u8 = 1 << 1;
/// Another host's reservation excludes commands that write, and Flush.
const WRITES: u8 = 1 << 2;
/// The namespace is write protected.
const PROTECTED: u8 = 1 << 3;

impl Usage {
    const fn bits(self) -> u8 {
        match self {
            Self::Read => ANA | READS,
            Self::Flush => ANA | WRITES,
            Self::Write => ANA | WRITES | PROTECTED,
        }
    }
}

impl Seen {
    fn new(entry: &Arc<NsEntry>, ana: Option<Status>, rights: Rights) -> Self {
        let seen = Self {
            entry: Arc::clone(entry),
            ana,
            refused: AtomicU8::new(0),
        };
        seen.set_rights(rights);
        seen
    }

    /// Sets what reservations leave to the host.
    pub(super) fn set_rights(&self, rights: Rights) {
        let bit = |refused, bit| if refused { bit } else { 0 };
        let refused = bit(self.ana.is_some(), ANA)
            | bit(!rights.read, READS)
            | bit(!rights.write, WRITES)
            | bit(self.entry.is_protected(), PROTECTED);
        // Ordered by the generation that queues compare, where that matters.
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// Why a command that does this is refused at the moment.
    #[inline]
    pub(crate) fn refusal(&self, usage: Usage) -> Option<Status> {
        let refused = self.refused.load(Ordering::Relaxed) & usage.bits();
        if refused == 0 {
            return None;
        }
        self.reason(refused)
    }

    #[cold]
    fn reason(&self, refused: u8) -> Option<Status> {
        if refused & ANA != 0 {
            self.ana
        } else if refused & (READS | WRITES) != 0 {
            Some(Status::RESERVATION_CONFLICT.dnr())
        } else {
            Some(Status::NAMESPACE_WRITE_PROTECTED.dnr())
        }
    }
}

impl View {
    /// What `hostnqn` may see of `table` at a port with these ANA states, with what reservations
    /// leave to it. `over` refuses everything.
    pub(crate) fn new(
        table: &NsTable,
        hostnqn: &Nqn,
        ana: Arc<PortStates>,
        over: Option<Status>,
        rights: impl Fn(&NsEntry) -> Rights,
    ) -> Self {
        let mut seen = Vec::new();
        for entry in table.iter().filter(|e| e.visibility.includes(hostnqn)) {
            // They come in ascending order of NSID.
            seen.resize_with(entry.nsid as usize - 1, || None);
            let ana = over.or_else(|| ana.get(entry.anagrpid).refusal());
            seen.push(Some(Seen::new(entry, ana, rights(entry))));
        }
        Self {
            seen,
            ana,
            write_through: AtomicBool::new(false),
        }
    }

    /// The host has turned the volatile write cache off: every write is as with FUA.
    pub(crate) fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    pub(super) fn set_write_through(&self, write_through: bool) {
        self.write_through.store(write_through, Ordering::Relaxed);
    }

    /// In O(1).
    pub(crate) fn get(&self, nsid: u32) -> Option<&Seen> {
        self.seen.get((nsid as usize).wrapping_sub(1))?.as_ref()
    }

    /// In ascending order of NSID.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().flatten()
    }

    /// Why commands to a namespace, or to all of them (FFFFFFFFh), are refused by the states of
    /// their ANA groups. Of several reasons it is the one that lasts longest.
    pub(crate) fn refused_by_ana(&self, nsid: u32) -> Option<Status> {
        if nsid != NSID_BROADCAST {
            return self.get(nsid)?.ana;
        }
        let reasons = self.iter().filter_map(|seen| seen.ana);
        reasons.min_by_key(|status| status.sc())
    }

    pub(crate) fn ana_state(&self, anagrpid: u32) -> AnaState {
        self.ana.get(anagrpid)
    }
}

#[cfg(test)]
mod tests;

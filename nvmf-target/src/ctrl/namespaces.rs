//! The namespaces of a subsystem: a snapshot that is replaced, never changed.

use super::NsStats;
use super::reservation::Reservations;
use crate::chatter::Chatter;
use crate::contain::Guarded;
use crate::ns::{Namespace, NsInfo};
use crate::reactor::Gate;
use nvmf_proto::wire::feature::WriteProtectState;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

/// An attached namespace at one moment.
#[derive(Clone, Debug)]
pub(crate) struct NsEntry {
    pub(crate) nsid: u32,
    /// Tells this attachment from any other that has or had the same NSID.
    pub(crate) uid: u64,
    pub(crate) info: NsInfo,
    /// ANAGRPID: the ANA group that it is in.
    pub(crate) anagrpid: u32,
    pub(crate) visibility: Visibility,
    /// What a host has set (Namespace Write Protection Config), whatever the backend allows.
    pub(crate) write_protect: WriteProtectState,
    pub(crate) shared: Arc<NsShared>,
}

impl NsEntry {
    /// Whether every write fails at the moment.
    pub(crate) fn is_protected(&self) -> bool {
        self.info.read_only || self.write_protect != WriteProtectState::NONE
    }
}

/// What stays the same while a namespace is attached.
pub(crate) struct NsShared {
    /// What it is called in log lines.
    pub(crate) name: String,
    pub(crate) namespace: Guarded<Arc<dyn Namespace>>,
    /// Held while the backend is asked for its information, so that what it says last counts.
    pub(super) asking: Mutex<()>,
    /// What the backend's sink calls: kept, for the backend holds a weak reference.
    pub(crate) _notify: Arc<dyn Fn() + Send + Sync>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) stats: NsStats,
    pub(crate) reservations: Arc<Reservations>,
    /// Of what its backend fails at.
    pub(crate) chatter: Chatter,
    /// The same for its lanes as such: no I/O that fails keeps a line about one of them out.
    pub(crate) lane_chatter: Chatter,
    /// The same for flushes when a controller is shut down: what hosts believe to be safe is not.
    pub(crate) flush_chatter: Chatter,
}

impl fmt::Debug for NsShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NsShared")
    }
}

/// Which hosts a namespace is there for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Visibility {
    #[default]
    All,
    /// Those with these NQNs.
    Hosts(Arc<BTreeSet<Nqn>>),
}

impl Visibility {
    pub(crate) fn includes(&self, hostnqn: &Nqn) -> bool {
        match self {
            Self::All => true,
            Self::Hosts(hosts) => hosts.contains(hostnqn),
        }
    }
}

/// All attached namespaces of a subsystem at one moment, by NSID in O(1).
#[derive(Clone, Debug, Default)]
pub(crate) struct NsTable {
    entries: Vec<Option<Arc<NsEntry>>>,
}

impl NsTable {
    pub(crate) fn get(&self, nsid: u32) -> Option<&Arc<NsEntry>> {
        self.entries.get((nsid as usize).wrapping_sub(1))?.as_ref()
    }

    /// In ascending order of NSID.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<NsEntry>> {
        self.entries.iter().flatten()
    }

    /// Replaces what `nsid` (at least 1) stands for.
    pub(super) fn set(&mut self, nsid: u32, entry: Option<Arc<NsEntry>>) {
        let index = (nsid as usize).saturating_sub(1);
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        self.entries[index] = entry;
        while self.entries.last().is_some_and(Option::is_none) {
            self.entries.pop();
        }
    }

    /// The NSIDs that stand for something else in `other`.
    pub(super) fn differing(&self, other: &Self) -> Vec<u32> {
        let max = self.entries.len().max(other.entries.len());
        (1..=u32::try_from(max).unwrap_or(u32::MAX))
            .filter(|&nsid| match (self.get(nsid), other.get(nsid)) {
                (None, None) => false,
                (Some(a), Some(b)) => !Arc::ptr_eq(a, b),
                _ => true,
            })
            .collect()
    }
}

//! What one controller sees of its subsystem's namespaces.

use super::ana::{AnaState, PortStates};
use super::{NsEntry, NsTable};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::nqn::Nqn;
use std::sync::Arc;

/// Everything that decides whether a command of this controller may touch a namespace. Made anew
/// when the subsystem's generation moves, so that I/O looks at nothing else.
#[derive(Debug, Default)]
pub(crate) struct View {
    seen: Vec<Option<Seen>>,
    ana: Arc<PortStates>,
    /// The host has turned the volatile write cache off: every write is as with FUA.
    pub(crate) write_through: bool,
}

/// A namespace that is there for the controller's host.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) entry: Arc<NsEntry>,
    pub(crate) access: Access,
}

/// Why commands to a namespace are refused at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Any I/O command: the end of the controller, or the state of its ANA group at the
    /// controller's port.
    pub(crate) ana: Option<Status>,
    /// Commands that read: a reservation that another host holds.
    pub(crate) reads: Option<Status>,
    /// Flush: a reservation, as for commands that write.
    pub(crate) flush: Option<Status>,
    /// Commands that write: a reservation, then write protection.
    pub(crate) writes: Option<Status>,
}

impl View {
    /// What `hostnqn` may see of `table` at a port with these ANA states; `access` says what it may
    /// do beyond them.
    pub(crate) fn new(
        table: &NsTable,
        hostnqn: &Nqn,
        ana: Arc<PortStates>,
        access: impl Fn(&NsEntry) -> Access,
    ) -> Self {
        let mut seen = Vec::new();
        for entry in table.iter().filter(|e| e.visibility.includes(hostnqn)) {
            // They come in ascending order of NSID.
            seen.resize_with(entry.nsid as usize - 1, || None);
            let access = access(entry);
            seen.push(Some(Seen {
                access: Access {
                    ana: access.ana.or_else(|| ana.get(entry.anagrpid).refusal()),
                    ..access
                },
                entry: Arc::clone(entry),
            }));
        }
        Self {
            seen,
            ana,
            write_through: false,
        }
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
            return self.get(nsid)?.access.ana;
        }
        let reasons = self.iter().filter_map(|seen| seen.access.ana);
        reasons.min_by_key(|status| status.sc())
    }

    pub(crate) fn ana_state(&self, anagrpid: u32) -> AnaState {
        self.ana.get(anagrpid)
    }
}

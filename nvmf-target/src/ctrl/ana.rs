//! Asymmetric Namespace Access: the state of each ANA group at each subsystem port (NVMe Base 2.1,
//! Asymmetric Namespace Access Reporting).

use super::View;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::log::{AnaGroup, AnaStateCode};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// ANATT: seconds that a group may be in [`AnaState::Change`] before a host gives the path up.
pub(crate) const ANATT: u8 = 10;

/// How the controllers of a listener reach the namespaces of an ANA group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// As well as any controller does.
    #[default]
    Optimized,
    /// At a cost: hosts prefer optimized paths.
    NonOptimized,
    /// Not at the moment: I/O is refused, hosts use other paths and try again.
    Inaccessible,
    /// Not for good: I/O is refused, hosts use other paths.
    PersistentLoss,
    /// Not until the state that follows: I/O is refused, and hosts wait for at most ANATT, 10 s.
    Change,
}

impl AnaState {
    /// Why I/O commands are refused. DNR stays clear: the command may succeed later, or by another
    /// path now.
    pub(crate) const fn refusal(self) -> Option<Status> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Inaccessible => Some(Status::ANA_INACCESSIBLE),
            Self::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
            Self::Change => Some(Status::ANA_TRANSITION),
        }
    }

    const fn code(self) -> AnaStateCode {
        match self {
            Self::Optimized => AnaStateCode::OPTIMIZED,
            Self::NonOptimized => AnaStateCode::NON_OPTIMIZED,
            Self::Inaccessible => AnaStateCode::INACCESSIBLE,
            Self::PersistentLoss => AnaStateCode::PERSISTENT_LOSS,
            Self::Change => AnaStateCode::CHANGE,
        }
    }
}

impl fmt::Display for AnaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optimized => "optimized",
            Self::NonOptimized => "non-optimized",
            Self::Inaccessible => "inaccessible",
            Self::PersistentLoss => "persistent loss",
            Self::Change => "change",
        })
    }
}

/// The states of a subsystem's ANA groups by the uid of the listener. What is not named is
/// optimized.
#[derive(Clone, Debug, Default)]
pub(crate) struct AnaStates {
    ports: BTreeMap<u64, Arc<PortStates>>,
}

/// The states of the ANA groups at one port, by ANAGRPID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortStates {
    groups: BTreeMap<u32, AnaState>,
}

impl AnaStates {
    pub(crate) fn port(&self, listener: u64) -> Arc<PortStates> {
        self.ports.get(&listener).cloned().unwrap_or_default()
    }

    pub(super) fn set(&mut self, listener: u64, anagrpid: u32, state: AnaState) {
        let port = Arc::make_mut(self.ports.entry(listener).or_default());
        port.groups.insert(anagrpid, state);
    }

    /// The listeners at which there are states.
    pub(super) fn listeners(&self) -> impl Iterator<Item = u64> {
        self.ports.keys().copied()
    }

    pub(super) fn forget(&mut self, listener: u64) {
        self.ports.remove(&listener);
    }
}

impl PortStates {
    pub(crate) fn get(&self, anagrpid: u32) -> AnaState {
        self.groups.get(&anagrpid).copied().unwrap_or_default()
    }
}

/// What one controller has had in its ANA log page, for the change counts. They start with the
/// first contents as 1, after each Controller Level Reset anew, because 0 would say that there are
/// none.
#[derive(Debug, Default)]
pub(super) struct AnaHistory {
    chgcnt: u64,
    groups: Vec<AnaGroup>,
}

impl AnaHistory {
    /// Takes note of what the page contains now. Returns its change count and its groups with
    /// theirs.
    pub(super) fn update(&mut self, view: &View) -> (u64, &[AnaGroup]) {
        let mut now: BTreeMap<u32, AnaGroup> = BTreeMap::new();
        for seen in view.iter() {
            let anagrpid = seen.entry.anagrpid;
            let group = now.entry(anagrpid).or_insert_with(|| AnaGroup {
                anagrpid,
                state: view.ana_state(anagrpid).code(),
                chgcnt: 0,
                nsids: Vec::new(),
            });
            group.nsids.push(seen.entry.nsid);
        }
        for group in now.values_mut() {
            let before = self.groups.iter().find(|g| g.anagrpid == group.anagrpid);
            group.chgcnt = match before {
                Some(b) if b.state == group.state && b.nsids == group.nsids => b.chgcnt,
                Some(b) => b.chgcnt.wrapping_add(1).max(1),
                None => 1,
            };
        }
        let now: Vec<AnaGroup> = now.into_values().collect();
        if self.chgcnt == 0 || now != self.groups {
            self.chgcnt = self.chgcnt.wrapping_add(1).max(1);
            self.groups = now;
        }
        (self.chgcnt, &self.groups)
    }
}

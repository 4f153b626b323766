//! What the target was told to show, and when: commands are judged by everything that was true
//! between their submission and their completion.

use nvmf_target::AnaState;
use std::collections::BTreeMap;

/// A value and its past.
#[derive(Clone, Debug)]
pub struct History<T>(Vec<(u64, T)>);

impl<T: PartialEq> History<T> {
    pub fn new(value: T) -> Self {
        Self(vec![(0, value)])
    }

    /// The value from `stamp` on.
    pub fn set(&mut self, stamp: u64, value: T) {
        self.0.push((stamp, value));
    }

    pub fn now(&self) -> &T {
        &self.0.last().expect("there is always one").1
    }

    /// All values since a moment, the one of that moment included.
    pub fn since(&self, start: u64) -> impl Iterator<Item = &T> {
        let later = self.0.iter().rposition(|(at, _)| *at <= start);
        self.0[later.unwrap_or(0)..].iter().map(|(_, value)| value)
    }
}

/// A namespace as a subsystem shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub storage: usize,
    pub blocks: u64,
    pub block_size: u64,
    pub group: u32,
}

/// A subsystem as it was configured.
#[derive(Debug)]
pub struct Subsystem {
    pub nqn: String,
    /// By NSID; `None` while there is none.
    pub namespaces: BTreeMap<u32, History<Option<Namespace>>>,
    /// By listener and ANA group.
    pub ana: BTreeMap<(usize, u32), History<AnaState>>,
    /// Hosts that may not use it, or might not.
    pub barred: BTreeMap<usize, History<bool>>,
}

impl Subsystem {
    pub fn new(nqn: String) -> Self {
        Self {
            nqn,
            namespaces: BTreeMap::new(),
            ana: BTreeMap::new(),
            barred: BTreeMap::new(),
        }
    }

    pub fn namespace(&self, nsid: u32) -> Option<Namespace> {
        self.namespaces.get(&nsid).and_then(|h| *h.now())
    }

    /// What an NSID stood for since a moment.
    pub fn namespaces_since(&self, nsid: u32, start: u64) -> Vec<Option<Namespace>> {
        let history = self.namespaces.get(&nsid);
        history.map_or_else(|| vec![None], |h| h.since(start).copied().collect())
    }

    /// The states that a group was in at a listener since a moment.
    pub fn ana_since(&self, listener: usize, group: u32, start: u64) -> Vec<AnaState> {
        let history = self.ana.get(&(listener, group));
        history.map_or_else(
            || vec![AnaState::Optimized],
            |h| h.since(start).copied().collect(),
        )
    }

    pub fn is_barred(&self, host: usize) -> bool {
        self.barred.get(&host).is_some_and(|h| *h.now())
    }

    /// Whether a host was (`true`) or was not barred at some time since `start`.
    pub fn was_barred(&self, host: usize, start: u64, barred: bool) -> bool {
        let history = self.barred.get(&host);
        history.map_or(!barred, |h| h.since(start).any(|b| *b == barred))
    }

    pub fn set(&mut self, stamp: u64, nsid: u32, namespace: Option<Namespace>) {
        self.namespaces
            .entry(nsid)
            .or_insert_with(|| History::new(None))
            .set(stamp, namespace);
    }
}

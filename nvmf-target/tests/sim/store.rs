//! Where reservations persist: in memory, and it fails as often as is drawn.

use crate::network::lock;
use crate::rng::Rng;
use crate::{note, trace};
use nvmf_target::{ReservationScope, ReservationStore};
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

#[derive(Debug)]
pub struct Store(Mutex<State>);

#[derive(Debug)]
struct State {
    records: HashMap<ReservationScope, Vec<u8>>,
    rng: Rng,
    /// Once in so many calls it fails, 0 for never.
    fails: u64,
    /// When it failed last.
    failed: u64,
    /// When it was called last.
    called: u64,
    /// So many of the last calls about these failed.
    failures: HashMap<ReservationScope, u32>,
}

impl Store {
    pub fn new(fails: u64, rng: Rng) -> Self {
        Self(Mutex::new(State {
            records: HashMap::new(),
            rng,
            fails,
            failed: 0,
            called: 0,
            failures: HashMap::new(),
        }))
    }

    /// From here on nothing fails.
    pub fn behave(&self) {
        lock(&self.0).fails = 0;
    }

    /// Whether a call has failed since `start`.
    pub fn has_failed(&self, start: u64) -> bool {
        lock(&self.0).failed > start
    }

    /// Whether it was called since `start`.
    pub fn was_called(&self, start: u64) -> bool {
        lock(&self.0).called > start
    }

    /// Whether it holds what is true of every namespace: after a failure the target has to put back
    /// what was there, so only two of them in a row excuse it.
    pub fn is_sure(&self) -> bool {
        lock(&self.0).failures.values().all(|count| *count < 2)
    }

    /// Replaces or removes a record. If it fails it may have done so all the same.
    fn put(&self, scope: &ReservationScope, record: Option<&[u8]>) -> io::Result<()> {
        let mut state = lock(&self.0);
        state.called = trace::stamp();
        let odds = state.fails;
        let fails = state.rng.once_in(odds);
        let done = !fails || state.rng.once_in(2);
        let length = record.map_or(0, <[u8]>::len);
        note!(
            "a record of {} bytes, fails {}, done {}",
            length,
            fails,
            done
        );
        match record {
            Some(record) if done => {
                state.records.insert(scope.clone(), record.to_vec());
            }
            None if done => {
                state.records.remove(scope);
            }
            _ => {}
        }
        if fails {
            state.failed = trace::stamp();
            *state.failures.entry(scope.clone()).or_default() += 1;
            return Err(io::Error::other("the store fails"));
        }
        state.failures.remove(scope);
        Ok(())
    }
}

impl ReservationStore for Store {
    fn load(&self, scope: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        Ok(lock(&self.0).records.get(scope).cloned())
    }

    fn save(&self, scope: &ReservationScope, record: &[u8]) -> io::Result<()> {
        self.put(scope, Some(record))
    }

    fn remove(&self, scope: &ReservationScope) -> io::Result<()> {
        self.put(scope, None)
    }

    fn set_aside(&self, scope: &ReservationScope) -> io::Result<String> {
        panic!("a record that the target has saved makes no sense to it: {scope}");
    }
}

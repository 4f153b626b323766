//! What all threads of a run share: the board, what was counted, and what went wrong.

use crate::board::{Board, Moment, Word};
use nvmf_benches::histogram::Histogram;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Error};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After as many failures a run ends: the rest would follow from them.
const FAILURES_MAX: usize = 10;
/// Between two looks at the board.
const LOOK: Duration = Duration::from_millis(20);

/// Where hosts go.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The port of hosts that nothing but a restart may disturb.
    pub(crate) address: SocketAddr,
    /// The port that comes and goes.
    pub(crate) churned: SocketAddr,
    /// Discovery.
    pub(crate) discovery: SocketAddr,
    pub(crate) nqn: String,
}

/// Latencies by what was done.
pub(crate) type Latencies = BTreeMap<&'static str, Histogram>;

/// What the threads of a run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) board: Board,
    pub(crate) place: Place,
    pub(crate) seed: u64,
    /// The target is somebody else's.
    pub(crate) is_foreign: bool,
    /// Longest time that an answer to a host that is watched may take.
    pub(crate) slow: Duration,
    pub(crate) began: Instant,
    counts: Mutex<BTreeMap<String, u64>>,
    latencies: Mutex<Latencies>,
    failures: Mutex<Vec<String>>,
    /// NSIDs that there are, as far as the daemon was told.
    pub(crate) namespaces: Mutex<BTreeSet<u32>>,
}

/// Data behind a lock that a thread has panicked with is as good as before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    pub(crate) fn new(
        board: Board,
        place: Place,
        seed: u64,
        is_foreign: bool,
        slow: Duration,
    ) -> Self {
        Self {
            is_foreign,
            board,
            place,
            seed,
            slow,
            began: Instant::now(),
            counts: Mutex::default(),
            latencies: Mutex::default(),
            failures: Mutex::default(),
            namespaces: Mutex::default(),
        }
    }

    pub(crate) fn count(&self, what: &str, n: u64) {
        let mut counts = lock(&self.counts);
        match counts.get_mut(what) {
            Some(count) => *count += n,
            None => drop(counts.insert(what.to_owned(), n)),
        }
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).clone()
    }

    pub(crate) fn counted(&self, what: &str) -> u64 {
        lock(&self.counts).get(what).copied().unwrap_or(0)
    }

    /// Notes how long something took, which must not have been too long.
    pub(crate) fn took(&self, what: &'static str, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.latencies).entry(what).or_default().record(nanos);
        if time > self.slow {
            self.fail(&format!(
                "{what} took {time:?}; {:?} is the bound",
                self.slow
            ));
        }
    }

    /// Notes how long something took that is only to be told.
    pub(crate) fn note_slowest(&self, what: &str, nanos: u64) {
        let mut counts = lock(&self.counts);
        let most = counts.entry(what.to_owned()).or_default();
        *most = (*most).max(nanos);
    }

    pub(crate) fn latencies(&self) -> Latencies {
        lock(&self.latencies).clone()
    }

    /// Notes that something went wrong that must not.
    pub(crate) fn fail(&self, why: &str) {
        let at = self.began.elapsed().as_secs_f64();
        eprintln!("soak: FAILURE at {at:.1} s: {why}");
        let mut failures = lock(&self.failures);
        failures.push(format!("at {at:.1} s: {why}"));
        if failures.len() >= FAILURES_MAX {
            self.board.set(Word::Stop, 1);
        }
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.board.is_set(Word::Stop)
    }

    /// Whether hosts are to leave.
    pub(crate) fn is_paused(&self) -> bool {
        self.board.is_set(Word::Pause) || self.is_over()
    }

    /// Waits until hosts may connect; `None` once the run is over.
    pub(crate) fn ready(&self) -> Option<Moment> {
        loop {
            if self.is_over() {
                return None;
            }
            let now = self.board.moment();
            if now.run.is_multiple_of(2) && !self.board.is_set(Word::Pause) {
                return Some(now);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sleeps, but not beyond the next pause or the end.
    pub(crate) fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.is_paused() {
            std::thread::sleep(LOOK.min(time));
        }
    }

    /// Options of a host that is one of those who may always connect.
    pub(crate) fn options(&self, number: u16) -> Result<ConnectOptions, Error> {
        let (name, id) = crate::host::host_names(number);
        let mut options = ConnectOptions::new(self.place.address, &self.place.nqn)?;
        options.host = Nqn::new(&name).map_err(|reason| Error::Nqn { name, reason })?;
        options.host_id = id;
        options.timeout = self.slow * 2;
        Ok(options)
    }

    /// Runs a host on which nothing but a restart may have an effect, again and again.
    pub(crate) fn repeat<E: std::fmt::Display>(
        &self,
        who: &str,
        mut session: impl FnMut(Moment) -> Result<(), E>,
    ) {
        while let Some(since) = self.ready() {
            match session(since) {
                Ok(()) => self.count(&format!("sessions of {who}"), 1),
                Err(_) if !self.board.moment().same_run(since) => {
                    self.count(&format!("sessions of {who} that a restart ended"), 1);
                }
                Err(err) => {
                    self.fail(&format!("{who}: {err}"));
                    self.sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

//! Completions that come later than they could.

use super::{Around, Enter, OpKind, Ops, Random};
use crate::Error;
use crate::chatter::error;
use crate::ns::{Interceptor, Lane, LaneCx, Namespace, NsInfo, NsSink, Request, RequestId};
use nvmf_proto::wire::Status;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Completes requests later: after a fixed time, or after random ones, so that they overtake each
/// other.
///
/// The backend carries a request out at once; only its completion is held back, by one thread for
/// all lanes, which is started with the first that is. Reactors are not blocked. When a host aborts
/// a command the rest of its delay is let off, and so are all delays when the target is dropped.
/// Without a delay a request costs nothing but the way through. A device that works on the
/// reactor's thread gets all of its I/O as requests, by way of buffers.
///
/// ```
/// use nvmf_target::ns::{Delay, Delayed, Inline, OpKind, RamDisk};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), nvmf_target::Error> {
/// let millis = Duration::from_millis;
/// let disk = Inline::new(RamDisk::new(1 << 20, 512)?);
/// let slow = Delayed::new(disk, Delay::random(millis(1)..=millis(20), 7).on([OpKind::Read]));
/// let pace = slow.pace();
/// // Later, when the namespace is in use:
/// pace.set(Delay::fixed(millis(5)));
/// assert_eq!(pace.held(), 0);
/// # Ok(())
/// # }
/// ```
pub struct Delayed {
    namespace: Arc<dyn Namespace>,
    owner: Arc<Owner>,
}

/// How long completions are held back.
#[derive(Clone, Debug)]
pub struct Delay {
    least: Duration,
    /// What is added at most, in nanoseconds.
    spread: u64,
    random: Random,
    ops: Ops,
}

impl Delay {
    /// Not at all.
    pub const NONE: Self = Self::fixed(Duration::ZERO);

    /// Always the same time.
    #[must_use]
    pub const fn fixed(delay: Duration) -> Self {
        Self {
            least: delay,
            spread: 0,
            random: Random(0),
            ops: Ops::ALL,
        }
    }

    /// Another time for each request, the same ones in the same order for the same seed.
    #[must_use]
    pub fn random(delay: RangeInclusive<Duration>, seed: u64) -> Self {
        let spread = delay.end().saturating_sub(*delay.start());
        Self {
            spread: u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX - 1),
            random: Random(seed),
            ..Self::fixed(*delay.start())
        }
    }

    /// Of these operations only.
    #[must_use]
    pub fn on(mut self, ops: impl IntoIterator<Item = OpKind>) -> Self {
        self.ops = Ops::of(ops);
        self
    }

    fn next(&mut self) -> Duration {
        match self.spread {
            0 => self.least,
            spread => self.least + Duration::from_nanos(self.random.below(spread + 1)),
        }
    }
}

/// Sets the pace of a [`Delayed`]; from any thread.
#[derive(Clone)]
pub struct Pace(Arc<Timer>);

impl Pace {
    /// Sets the delay of requests that come from now on.
    pub fn set(&self, delay: Delay) {
        self.0.lock().delay = delay;
    }

    /// Completes what is held back now. Returns how many requests.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut self.0.lock().held);
        let count = held.len();
        for (request, result) in held.into_values() {
            request.complete(result);
        }
        count
    }

    /// How many requests have ended and are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.lock().held.len()
    }
}

type Ended = (Request, Result<(), Status>);

struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    delay: Delay,
    /// By the time when they are due, and by number.
    held: BTreeMap<(Instant, u64), Ended>,
    next: u64,
    /// There is a thread.
    is_running: bool,
    /// The namespace and its lanes are gone, which outlive their requests unless the target is cut
    /// off: nothing is held back any more.
    is_over: bool,
}

impl Timer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes what is due, until the namespace is gone.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let over = state.is_over;
            let is_due = |&(due, _): &(Instant, u64)| due <= now || over;
            match state.held.first_entry() {
                Some(first) if is_due(first.key()) => {
                    let (request, result) = first.remove();
                    drop(state);
                    request.complete(result);
                    state = self.lock();
                }
                Some(first) => {
                    let left = first.key().0 - now;
                    let waited = self.changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None if over => return,
                None => {
                    let waited = self.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// How long to hold back a request that comes.
    fn draw(self: &Arc<Self>, op: OpKind) -> Duration {
        let mut state = self.lock();
        if !state.delay.ops.has(op) {
            return Duration::ZERO;
        }
        let delay = state.delay.next();
        if delay.is_zero() || !self.starts(&mut state) {
            return Duration::ZERO;
        }
        delay
    }

    /// Starts the thread if there is none yet.
    fn starts(self: &Arc<Self>, state: &mut State) -> bool {
        if !state.is_running {
            let this = Arc::clone(self);
            let thread = thread::Builder::new().name("nvmf-delay".to_owned());
            match thread.spawn(move || this.run()) {
                Ok(_) => state.is_running = true,
                Err(err) => error!("no thread for delays: {err}; there are none"),
            }
        }
        state.is_running
    }
}

/// Ends the thread as it is dropped.
struct Owner(Arc<Timer>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}

impl Interceptor for Timer {
    fn ended(&self, request: Request, result: Result<(), Status>, delay: u64) {
        let mut state = self.lock();
        if state.is_over {
            drop(state);
            return request.complete(result);
        }
        let key = (Instant::now() + Duration::from_nanos(delay), state.next);
        state.next += 1;
        let is_next = state.held.first_key_value().is_none_or(|(k, _)| key < *k);
        state.held.insert(key, (request, result));
        drop(state);
        if is_next {
            self.changed.notify_one();
        }
    }
}

struct Slowed(Arc<Owner>);

impl Enter for Slowed {
    fn enter(&mut self, mut request: Request) -> Option<Request> {
        let timer = &self.0.0;
        let delay = timer.draw(request.op().into()).as_nanos();
        if delay > 0 {
            let delay = u64::try_from(delay).unwrap_or(u64::MAX);
            request.intercept(Arc::<Timer>::clone(timer), delay);
        }
        Some(request)
    }

    fn cut_short(&mut self, id: RequestId) {
        let mut state = self.0.0.lock();
        let is_it = |(_, (request, _)): &(&_, &Ended)| request.id() == id;
        let key = state.held.iter().find(is_it).map(|(key, _)| *key);
        let ended = key.and_then(|key| state.held.remove(&key));
        drop(state);
        if let Some((request, result)) = ended {
            request.complete(result);
        }
    }
}

impl Delayed {
    /// Puts a delay between a namespace and its hosts.
    #[must_use]
    pub fn new(namespace: impl Namespace, delay: Delay) -> Self {
        let state = State {
            delay,
            held: BTreeMap::new(),
            next: 0,
            is_running: false,
            is_over: false,
        };
        let timer = Timer {
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        Self {
            namespace: Arc::new(namespace),
            owner: Arc::new(Owner(Arc::new(timer))),
        }
    }

    /// The way to another delay.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace(Arc::clone(&self.owner.0))
    }
}

impl Namespace for Delayed {
    fn info(&self) -> NsInfo {
        self.namespace.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(Around {
            lane: self.namespace.open_lane(cx)?,
            enter: Slowed(Arc::clone(&self.owner)),
        }))
    }

    fn subscribe(&self, sink: NsSink) {
        self.namespace.subscribe(sink);
    }
}

impl fmt::Debug for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delayed").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held();
        f.debug_struct("Pace").field("held", &held).finish()
    }
}

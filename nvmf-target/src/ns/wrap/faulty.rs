//! Storage that fails when it is told to.

use super::{Around, Enter, OpKind, Ops, Random};
use crate::Error;
use crate::ns::{
    Interceptor, Lane, LaneCx, LbaRange, Namespace, NsError, NsInfo, NsSink, Op, Request, RequestId,
};
use nvmf_proto::wire::Status;
use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Fails requests by [`Rule`]s that are added and removed while it is in use, with [`Faults`].
///
/// Without rules a request costs a look at a flag. A device that works on the reactor's thread gets
/// all of its I/O as requests, by way of buffers. Reservations, limits and geometry are the
/// target's and are not faulted.
pub struct Faulty {
    namespace: Arc<dyn Namespace>,
    faults: Faults,
}

impl Faulty {
    /// Lets a namespace fail. It does not, before there is a rule.
    #[must_use]
    pub fn new(namespace: impl Namespace) -> Self {
        Self {
            namespace: Arc::new(namespace),
            faults: Faults(Arc::default()),
        }
    }

    /// The way to its rules.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is not carried out, and ends with this status.
    Status(Status),
    /// It is not carried out, and ends with what an I/O error of this number becomes; see
    /// [`NsError`].
    Errno(i32),
    /// It is carried out, and ends with this status all the same.
    Late(Status),
    /// Of a Write or Write Zeroes so many blocks are written, from the first on, and it ends with
    /// this status. Other requests end with the status without being carried out.
    Torn {
        /// Blocks that are written.
        blocks: u64,
        /// How it ends.
        status: Status,
    },
    /// It is carried out, and its completion is held back until [`Faults::release`] or
    /// [`Faults::take_held`]. An Abort ends it with Command Abort Requested.
    Hold,
    /// The same, and an Abort does nothing: only the end of the connection bounds the host's wait.
    Stick,
    /// It is dropped, as by a backend with a bug: Internal Error.
    Drop,
    /// The lane panics.
    Panic,
}

/// Which requests a [`Fault`] happens to: those that meet all conditions. Without conditions, all.
///
/// Conditions are asked in the order of the methods here; counting and chance see only what has
/// met those before.
pub struct Rule {
    fault: Fault,
    ops: Ops,
    blocks: Option<Range<u64>>,
    when: Option<Box<When>>,
    after: u64,
    every: u64,
    chance: Option<(f64, Random)>,
    times: u64,
    seen: u64,
    hits: u64,
}

type When = dyn Fn(&Request) -> bool + Send;

impl Rule {
    /// For all requests.
    #[must_use]
    pub const fn new(fault: Fault) -> Self {
        Self {
            fault,
            ops: Ops::ALL,
            blocks: None,
            when: None,
            after: 0,
            every: 1,
            chance: None,
            times: u64::MAX,
            seen: 0,
            hits: 0,
        }
    }

    /// For these operations.
    #[must_use]
    pub fn on(mut self, ops: impl IntoIterator<Item = OpKind>) -> Self {
        self.ops = Ops::of(ops);
        self
    }

    /// For requests that touch one of these blocks; so never for a Flush.
    #[must_use]
    pub const fn blocks(mut self, blocks: Range<u64>) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// For requests of which this is true. It is asked on a reactor, and must not block nor use the
    /// [`Faults`].
    #[must_use]
    pub fn when(mut self, when: impl Fn(&Request) -> bool + Send + 'static) -> Self {
        self.when = Some(Box::new(when));
        self
    }

    /// Not for the first `requests` of them.
    #[must_use]
    pub const fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// For every `n`th of them only (0 counts as 1).
    #[must_use]
    pub const fn every(mut self, n: u64) -> Self {
        self.every = if n == 0 { 1 } else { n };
        self
    }

    /// With this probability, 0 to 1: for the same ones again with the same seed.
    #[must_use]
    pub const fn chance(mut self, probability: f64, seed: u64) -> Self {
        self.chance = Some((probability, Random(seed)));
        self
    }

    /// No more often than this.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn hits(&mut self, request: &Request) -> bool {
        let met = self.ops.has(request.op().into())
            && self.blocks.as_ref().is_none_or(|b| touches(request, b))
            && self.when.as_ref().is_none_or(|when| when(request));
        if !met || self.hits >= self.times {
            return false;
        }
        self.seen += 1;
        let Some(counted) = self.seen.checked_sub(self.after).filter(|n| *n > 0) else {
            return false;
        };
        let hit = counted.is_multiple_of(self.every)
            && self.chance.as_mut().is_none_or(|(probability, random)| {
                // 53 bits: as many as the number between 0 and 1 has.
                #[expect(clippy::cast_precision_loss, reason = "it has room for 53 bits")]
                let drawn = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
                drawn < *probability
            });
        self.hits += u64::from(hit);
        hit
    }
}

/// Whether a request touches one of the blocks.
fn touches(request: &Request, blocks: &Range<u64>) -> bool {
    let overlaps = |range: &LbaRange| {
        range.blocks > 0 && range.slba < blocks.end && blocks.start < range.slba + range.blocks
    };
    overlaps(&request.lba_range()) || request.ranges().iter().any(overlaps)
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("fault", &self.fault)
            .field("hits", &self.hits)
            .finish_non_exhaustive()
    }
}

/// A rule that has been added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(u64);

/// The rules of a [`Faulty`], and the requests whose completion it holds back. From any thread.
#[derive(Clone)]
pub struct Faults(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// There are rules.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<(RuleId, Rule)>,
    /// Of rules that are gone.
    past_hits: Vec<(RuleId, u64)>,
    next: u64,
    held: Vec<Held>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults {
    /// Adds a rule, behind those that there are: the first that hits a request decides.
    #[must_use = "it is asked for by its id"]
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.0.lock();
        let id = RuleId(state.next);
        state.next += 1;
        state.rules.push((id, rule));
        self.0.any.store(true, Ordering::Release);
        id
    }

    /// Removes a rule. What it has held back stays so.
    pub fn remove(&self, id: RuleId) {
        self.remove_if(|other| other == id);
    }

    /// Removes all rules. What they have held back stays so.
    pub fn clear(&self) {
        self.remove_if(|_| true);
    }

    fn remove_if(&self, goes: impl Fn(RuleId) -> bool) {
        let mut state = self.0.lock();
        let (gone, left) = mem::take(&mut state.rules)
            .into_iter()
            .partition::<Vec<_>, _>(|(id, _)| goes(*id));
        state.rules = left;
        let hits = gone.iter().map(|(id, rule)| (*id, rule.hits));
        state.past_hits.extend(hits);
        self.0.any.store(!state.rules.is_empty(), Ordering::Release);
        // Without the lock: the rules have code of their owner's.
        drop(state);
        drop(gone);
    }

    /// How many requests a rule has hit, also if it is gone.
    #[must_use]
    pub fn hits(&self, id: RuleId) -> u64 {
        let state = self.0.lock();
        let present = state.rules.iter().map(|(id, rule)| (*id, rule.hits));
        let mut all = present.chain(state.past_hits.iter().copied());
        all.find(|(other, _)| *other == id)
            .map_or(0, |(_, hits)| hits)
    }

    /// How many requests are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.lock().held.len()
    }

    /// Completes what is held back, in the order of its coming. Returns how many requests.
    pub fn release(&self) -> usize {
        let held = self.take_held();
        let count = held.len();
        held.into_iter().for_each(Held::release);
        count
    }

    /// Takes over what is held back, in the order of its coming.
    #[must_use]
    pub fn take_held(&self) -> Vec<Held> {
        mem::take(&mut self.0.lock().held)
    }
}

/// A request that has been carried out and not completed. Dropping it completes it with Internal
/// Error.
#[derive(Debug)]
pub struct Held {
    request: Request,
    result: Result<(), Status>,
    sticks: bool,
}

impl Held {
    /// The request. Its buffer stays what it is, whatever has become of its host.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// Its data, to be changed.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.request.data_mut()
    }

    /// Completes it as it has ended.
    pub fn release(self) {
        self.request.complete(self.result);
    }

    /// Completes it otherwise.
    pub fn end(self, result: Result<(), Status>) {
        self.request.complete(result);
    }
}

/// How a request ends with a status. With that of a success, what is not carried out is a lie.
const fn result(status: Status) -> Result<(), Status> {
    if status.is_success() {
        Ok(())
    } else {
        Err(status)
    }
}

/// Ends a request otherwise than it has ended.
struct Fails(Status);

impl Interceptor for Fails {
    fn ended(&self, request: Request, _: Result<(), Status>, _: u64) {
        request.complete(result(self.0));
    }
}

/// Gives a torn write its length back.
struct Tears(Status);

impl Interceptor for Tears {
    fn ended(&self, mut request: Request, _: Result<(), Status>, blocks: u64) {
        request.set_blocks(blocks);
        request.complete(result(self.0));
    }

    fn withdrawn(&self, request: &mut Request, blocks: u64) {
        request.set_blocks(blocks);
    }
}

/// Holds requests back when they have ended.
struct Holds {
    shared: Arc<Shared>,
    sticks: bool,
}

impl Interceptor for Holds {
    fn ended(&self, request: Request, result: Result<(), Status>, _: u64) {
        self.shared.lock().held.push(Held {
            request,
            result,
            sticks: self.sticks,
        });
    }
}

struct Faulted(Arc<Shared>);

impl Faulted {
    fn hold(&self, mut request: Request, sticks: bool) -> Request {
        let shared = Arc::clone(&self.0);
        request.intercept(Arc::new(Holds { shared, sticks }), 0);
        request
    }

    /// Lets a fault happen to a request. What is returned goes on.
    fn strike(&self, fault: Fault, mut request: Request) -> Option<Request> {
        match fault {
            Fault::Status(status) => request.complete(result(status)),
            Fault::Errno(number) => {
                let err = NsError::Io(io::Error::from_raw_os_error(number));
                let status = err.status(request.op());
                request.complete(Err(status));
            }
            Fault::Late(status) => {
                request.intercept(Arc::new(Fails(status)), 0);
                return Some(request);
            }
            Fault::Torn { blocks, status } => {
                let all = request.lba_range().blocks;
                let tears = matches!(request.op(), Op::Write { .. } | Op::WriteZeroes { .. });
                if !tears || blocks == 0 {
                    request.complete(result(status));
                } else {
                    request.intercept(Arc::new(Tears(status)), all);
                    request.set_blocks(blocks.min(all));
                    return Some(request);
                }
            }
            Fault::Hold => return Some(self.hold(request, false)),
            Fault::Stick => return Some(self.hold(request, true)),
            Fault::Drop => drop(request),
            Fault::Panic => panic!("a fault that is wanted"),
        }
        None
    }
}

impl Enter for Faulted {
    fn enter(&mut self, request: Request) -> Option<Request> {
        if !self.0.any.load(Ordering::Acquire) {
            return Some(request);
        }
        let mut state = self.0.lock();
        let mut rules = state.rules.iter_mut().map(|(_, rule)| rule);
        let fault = rules.find_map(|rule| rule.hits(&request).then_some(rule.fault));
        drop(state);
        match fault {
            Some(fault) => self.strike(fault, request),
            None => Some(request),
        }
    }

    fn cut_short(&mut self, id: RequestId) {
        let mut state = self.0.lock();
        let is_it = |held: &Held| held.request.id() == id && !held.sticks;
        let at = state.held.iter().position(is_it);
        let held = at.map(|at| state.held.remove(at));
        drop(state);
        if let Some(held) = held {
            held.end(Err(Status::ABORT_REQUESTED));
        }
    }
}

impl Namespace for Faulty {
    fn info(&self) -> NsInfo {
        self.namespace.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(Around {
            lane: self.namespace.open_lane(cx)?,
            enter: Faulted(Arc::clone(&self.faults.0)),
        }))
    }

    fn subscribe(&self, sink: NsSink) {
        self.namespace.subscribe(sink);
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faulty").field(&self.faults).finish()
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Faults")
            .field("rules", &state.rules)
            .field("held", &state.held.len())
            .finish()
    }
}

//! Owned requests, and the way their completions take back to the reactor.

use crate::buf::IoBuf;
use crate::chatter::error;
use crate::contain::contain;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, thread_local};
use crate::wake::Waker;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Fill [`Request::data_mut`] from the range.
    Read,
    /// Write [`Request::data`] to the range. With `fua` the data is on stable storage before the
    /// request is completed.
    Write {
        /// Force Unit Access.
        fua: bool,
    },
    /// Bring everything written before to stable storage.
    Flush,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// The range may be deallocated (the host set DEAC).
        deallocate: bool,
        /// Force Unit Access.
        fua: bool,
    },
    /// The host has no use for [`Request::ranges`] any more. A hint.
    Deallocate,
    /// Compare the range with [`Request::data`]. Blocks that differ are no error of the backend:
    /// the request is completed with `Status::COMPARE_FAILURE.dnr()`.
    Compare,
    /// Compare the range with [`Request::compare_data`] and, if it is the same, write
    /// [`Request::data`] to it; nothing that writes gets in between. If it is not, the request is
    /// completed as [`Op::Compare`] and nothing is written.
    CompareAndWrite {
        /// Force Unit Access of the write.
        fua: bool,
    },
    /// Find out whether the range can be read, and complete the request as a read would be.
    Verify,
}

impl Op {
    /// Whether blocks may read differently afterwards.
    pub(crate) const fn writes(self) -> bool {
        match self {
            Self::Read | Self::Flush | Self::Compare | Self::Verify => false,
            Self::Write { .. }
            | Self::WriteZeroes { .. }
            | Self::Deallocate
            | Self::CompareAndWrite { .. } => true,
        }
    }
}

/// A run of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaRange {
    /// First block.
    pub slba: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// Where a completion belongs: which connection of the reactor, which of its commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Index and generation of the connection.
    pub(crate) conn: u64,
    /// The command.
    pub(crate) slot: Slot,
    /// Index of the lane that the request was submitted to.
    pub(crate) lane: usize,
}

/// Which request: all requests of one command, and no others that exist at the same time, have
/// the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The reactor, by its port.
    port: usize,
    conn: u64,
    slot: Slot,
}

/// Has a say when requests end; see [`Request::intercept`]. What wrappers of a [`Namespace`] need.
///
/// [`Namespace`]: super::Namespace
pub trait Interceptor: Send + Sync + 'static {
    /// A request has been completed, or dropped, with this result, on this thread, a reactor
    /// perhaps: must not block. It goes on with [`Request::complete`], with the same result or
    /// another one, now or later, on any thread. `mark` is what was given to
    /// [`Request::intercept`].
    ///
    /// A panic is logged; it drops the request, if that has not been passed on.
    fn ended(&self, request: Request, result: Result<(), Status>, mark: u64);

    /// A lane has given a request back for an Abort: it is over without [`Interceptor::ended`].
    fn withdrawn(&self, request: &mut Request, mark: u64) {
        let _ = (request, mark);
    }
}

/// Everything of a request; reused, so that none is allocated per I/O.
pub(crate) struct Inner {
    op: Op,
    lba_shift: u8,
    range: LbaRange,
    ranges: Vec<LbaRange>,
    buf: IoBuf,
    /// What the blocks have to be, in a `CompareAndWrite`.
    expected: IoBuf,
    route: Route,
    status: Status,
    /// What the log is to say of a failure.
    note: Option<String>,
    /// Who has a say in its end, the last first, and the marks.
    interceptors: Vec<(Arc<dyn Interceptor>, u64)>,
    port: Arc<Port>,
}

impl Inner {
    const fn footprint(&self) -> usize {
        self.buf.footprint() + self.expected.footprint()
    }
}

/// One operation on a namespace, owned by whoever works on it.
///
/// To be answered exactly once with [`Request::complete`], from any thread. A request that is
/// dropped completes with Internal Error, so that no host waits for ever.
#[must_use = "a dropped request fails its command"]
pub struct Request(Option<Box<Inner>>);

/// A finished request on its way back through the reactor.
pub(crate) struct Completion(Box<Inner>);

impl Request {
    fn inner(&self) -> &Inner {
        match &self.0 {
            Some(inner) => inner,
            None => unreachable!("only `complete` and `drop` take it, and both end the request"),
        }
    }

    /// Which request it is, for [`super::Lane::abort`].
    #[must_use]
    pub fn id(&self) -> RequestId {
        let Inner { route, port, .. } = self.inner();
        port.request(route.conn, route.slot)
    }

    /// What is asked for.
    #[must_use]
    pub fn op(&self) -> Op {
        self.inner().op
    }

    /// The blocks concerned; empty for Flush and Deallocate.
    #[must_use]
    pub fn lba_range(&self) -> LbaRange {
        self.inner().range
    }

    /// The bytes of the namespace concerned; empty for Flush and Deallocate.
    #[must_use]
    pub fn byte_range(&self) -> Range<u64> {
        let Inner {
            range, lba_shift, ..
        } = self.inner();
        range.slba << lba_shift..(range.slba + range.blocks) << lba_shift
    }

    /// The ranges of a Deallocate, at most 256; they may overlap.
    #[must_use]
    pub fn ranges(&self) -> &[LbaRange] {
        &self.inner().ranges
    }

    /// Log2 of the logical block size.
    #[must_use]
    pub fn lba_shift(&self) -> u8 {
        self.inner().lba_shift
    }

    /// The data to write or to compare with: as long as [`Request::byte_range`], at an address that is a multiple of
    /// 4096 and stays the same while the request lives.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.inner().buf
    }

    /// What a [`Op::CompareAndWrite`] compares with: as long as [`Request::data`], and as aligned.
    #[must_use]
    pub fn compare_data(&self) -> &[u8] {
        &self.inner().expected
    }

    /// What the log is to say about the request's failure, beside its namespace, what it is and
    /// where.
    pub(crate) fn note(&mut self, note: String) {
        if let Some(inner) = &mut self.0 {
            inner.note = Some(note);
        }
    }

    /// Has `by` called when the request ends, before whoever has called this earlier, and instead of
    /// the target: it passes the request on, so that each is called inside the one before. `mark` is
    /// kept for it. Allocates nothing, once requests that are used again have had as many
    /// interceptors.
    pub fn intercept(&mut self, by: Arc<dyn Interceptor>, mark: u64) {
        if let Some(inner) = &mut self.0 {
            inner.interceptors.push((by, mark));
        }
    }

    /// Makes a request with one buffer at most shorter, or as long again as it was.
    pub(crate) fn set_blocks(&mut self, blocks: u64) {
        if let Some(inner) = &mut self.0 {
            inner.range.blocks = blocks;
            let len = usize::try_from(blocks << inner.lba_shift);
            inner.buf.set_len(len.unwrap_or(usize::MAX));
        }
    }

    /// The same request with what to compare with.
    pub(crate) fn expecting(mut self, data: IoBuf) -> Self {
        if let Some(inner) = &mut self.0 {
            inner.expected = data;
        }
        self
    }

    /// Where read data goes: as long as [`Request::byte_range`], at an address as in
    /// [`Request::data`]. All of it must be filled before
    /// the request is completed with success: it holds other hosts' old data.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Some(inner) => &mut inner.buf,
            None => unreachable!("only `complete` and `drop` take it, and both end the request"),
        }
    }

    /// Bytes of the pool that its buffers take up.
    pub(crate) fn footprint(&self) -> usize {
        self.inner().footprint()
    }

    /// Ends a request that no backend has worked on.
    pub(crate) fn withdraw(mut self, status: Status) -> Completion {
        while let Some((by, mark)) = self.0.as_mut().and_then(|inner| inner.interceptors.pop()) {
            let told = contain(|| {
                by.withdrawn(&mut self, mark);
                drop(by);
            });
            if let Err(panic) = told {
                error!("whoever intercepts requests {panic}");
            }
        }
        match self.0.take() {
            Some(mut inner) => {
                inner.status = status;
                Completion(inner)
            }
            None => unreachable!("only `complete` and `drop` take it, and both end the request"),
        }
    }

    /// Ends the request. Only queues the completion: the host is answered by the reactor in its
    /// own time, never from inside this call. What [intercepts](Request::intercept) the request is
    /// called. An error whose status is a success is taken for [`Status::INTERNAL_ERROR`].
    pub fn complete(mut self, result: Result<(), Status>) {
        if let Some(inner) = self.0.take() {
            end(inner, result);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(mut inner) = self.0.take() {
            inner.note = Some("the backend dropped the request; its command fails".to_owned());
            end(inner, Err(Status::INTERNAL_ERROR));
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("op", &self.op())
            .field("lba_range", &self.lba_range())
            .finish_non_exhaustive()
    }
}

fn end(mut inner: Box<Inner>, result: Result<(), Status>) {
    match inner.interceptors.pop() {
        None => send(inner, result),
        Some((by, mark)) => intercepted(Request(Some(inner)), result, by, mark),
    }
}

/// Contained, for it may be in the middle of a panic that requests are dropped.
fn intercepted(request: Request, result: Result<(), Status>, by: Arc<dyn Interceptor>, mark: u64) {
    let called = contain(move || {
        by.ended(request, result, mark);
        drop(by);
    });
    if let Err(panic) = called {
        error!("whoever intercepts requests {panic}");
    }
}

fn send(mut inner: Box<Inner>, result: Result<(), Status>) {
    inner.status = match result {
        Ok(()) => Status::SUCCESS,
        // Nobody knows whether the buffer of a read has been filled.
        Err(status) if status.is_success() => {
            inner.note = Some("the backend failed with a status of success".to_owned());
            Status::INTERNAL_ERROR
        }
        Err(status) => status,
    };
    let mut inner = Some(inner);
    // A thread that ends may have no locals any more: what it drops goes as from any other.
    let _ = LOCAL.try_with(|local| {
        if let Some(local) = &mut *local.borrow_mut() {
            let own = inner.take_if(|inner| Arc::ptr_eq(&local.port, &inner.port));
            local.done.extend(own.map(Completion));
        }
    });
    if let Some(inner) = inner {
        let port = Arc::clone(&inner.port);
        port.push(Completion(inner));
    }
}

impl Completion {
    pub(crate) fn route(&self) -> Route {
        self.0.route
    }

    pub(crate) fn status(&self) -> Status {
        self.0.status
    }

    pub(crate) fn op(&self) -> Op {
        self.0.op
    }

    pub(crate) fn lba_range(&self) -> LbaRange {
        self.0.range
    }

    pub(crate) fn byte_range(&self) -> Range<u64> {
        let Inner {
            range, lba_shift, ..
        } = &*self.0;
        range.slba << lba_shift..(range.slba + range.blocks) << lba_shift
    }

    /// As [`Request::footprint`], until the buffers are taken out.
    pub(crate) fn footprint(&self) -> usize {
        self.0.footprint()
    }

    /// Takes out what the log is to say.
    pub(crate) fn take_note(&mut self) -> Option<String> {
        self.0.note.take()
    }

    /// Takes the buffer out.
    pub(crate) fn take_buf(&mut self) -> IoBuf {
        std::mem::take(&mut self.0.buf)
    }

    /// Takes out what a `CompareAndWrite` compared with.
    pub(crate) fn take_expected(&mut self) -> IoBuf {
        std::mem::take(&mut self.0.expected)
    }
}

/// Where the completions of one reactor's requests arrive.
#[derive(Debug)]
pub(crate) struct Port {
    /// `None`: the reactor has ended. A completion holds its port, so none may stay here then.
    done: Mutex<Option<Vec<Completion>>>,
    any: AtomicBool,
    waker: Waker,
}

/// What a port has on the thread of its reactor.
pub(crate) struct LocalPort {
    port: Arc<Port>,
    done: Vec<Completion>,
}

thread_local! {
    /// The port of the reactor that runs on this thread: completions made here skip the lock.
    static LOCAL: RefCell<Option<LocalPort>> = const { RefCell::new(None) };
}

#[cfg(feature = "sim")]
impl LocalPort {
    /// Calls `f` on behalf of this port's reactor, on a thread that has several.
    pub(crate) fn with<T>(this: &mut Option<Self>, f: impl FnOnce() -> T) -> T {
        let outer = LOCAL.with(|bound| bound.replace(this.take()));
        let result = f();
        *this = LOCAL.with(|bound| bound.replace(outer));
        result
    }
}

impl Port {
    pub(crate) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self {
            done: Mutex::new(Some(Vec::new())),
            any: AtomicBool::new(false),
            waker,
        })
    }

    /// What the requests for a command of this port's reactor are called.
    pub(crate) fn request(&self, conn: u64, slot: Slot) -> RequestId {
        RequestId {
            port: std::ptr::from_ref(self).addr(),
            conn,
            slot,
        }
    }

    /// Declares the calling thread to be this port's reactor.
    pub(crate) fn bind_to_thread(self: &Arc<Self>) {
        let local = self.local();
        drop(LOCAL.with(|bound| bound.replace(Some(local))));
    }

    pub(crate) fn local(self: &Arc<Self>) -> LocalPort {
        LocalPort {
            port: Arc::clone(self),
            done: Vec::with_capacity(AHEAD),
        }
    }

    /// Undoes [`Port::bind_to_thread`].
    pub(crate) fn unbind_from_thread() {
        drop(LOCAL.with(RefCell::take));
    }

    /// Whether the calling thread is this port's reactor.
    pub(crate) fn is_own(self: &Arc<Self>) -> bool {
        let is_it = |local: &LocalPort| Arc::ptr_eq(&local.port, self);
        let own = LOCAL.try_with(|local| local.borrow().as_ref().is_some_and(is_it));
        own.unwrap_or(false)
    }

    fn done(&self) -> MutexGuard<'_, Option<Vec<Completion>>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reactor has ended: what completes from now on is dropped.
    pub(crate) fn close(&self) {
        let left = self.done().take();
        drop(left);
    }

    fn push(&self, completion: Completion) {
        match &mut *self.done() {
            Some(done) => done.push(completion),
            None => return,
        }
        // Written only if it changes, so that completions in a row do not fight for the line.
        if !self.any.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Moves all completions into `out`: those of this thread, then those of others. Only on the
    /// reactor's own thread.
    pub(crate) fn collect(&self, out: &mut Vec<Completion>) {
        LOCAL.with(|local| {
            if let Some(local) = &mut *local.borrow_mut() {
                out.append(&mut local.done);
            }
        });
        if self.any.load(Ordering::Acquire)
            && self.any.swap(false, Ordering::AcqRel)
            && let Some(done) = &mut *self.done()
        {
            out.append(done);
        }
    }
}

/// Makes requests; keeps finished ones to use their memory again.
#[derive(Debug)]
pub(crate) struct RequestPool {
    port: Arc<Port>,
    #[expect(clippy::vec_box, reason = "a request is its box: used again as it is")]
    spare: Vec<Box<Inner>>,
    /// How many there are, here and in backends.
    count: usize,
}

/// Ranges that a request keeps room for while it is not used.
const RANGES_KEPT: usize = 2;
/// Bytes of a request that has no more ranges than that.
pub(crate) const REQUEST_BYTES: usize =
    size_of::<Inner>() + RANGES_KEPT * size_of::<LbaRange>() + 2 * size_of::<Box<Inner>>();

/// Requests that are kept while they are not used, at most.
pub(crate) const SPARE_REQUESTS: usize = 4096;
/// Requests that are made before they are needed, at most.
const AHEAD: usize = 256;

impl RequestPool {
    pub(crate) const fn new(port: Arc<Port>) -> Self {
        Self {
            port,
            spare: Vec::new(),
            count: 0,
        }
    }

    /// Makes requests ahead for a queue of this many entries, so that its first bursts allocate
    /// nothing.
    pub(crate) fn prepare(&mut self, entries: usize) {
        self.spare.reserve(AHEAD);
        while self.count < entries.min(AHEAD) {
            let inner = self.allocate();
            self.spare.push(inner);
        }
    }

    fn allocate(&mut self) -> Box<Inner> {
        self.count += 1;
        Box::new(Inner {
            op: Op::Flush,
            lba_shift: 0,
            range: LbaRange { slba: 0, blocks: 0 },
            ranges: Vec::new(),
            buf: IoBuf::empty(),
            expected: IoBuf::empty(),
            route: Route::default(),
            status: Status::SUCCESS,
            note: None,
            interceptors: Vec::new(),
            port: Arc::clone(&self.port),
        })
    }

    pub(crate) fn make(
        &mut self,
        op: Op,
        lba_shift: u8,
        range: LbaRange,
        buf: IoBuf,
        route: Route,
    ) -> Request {
        let mut inner = self.spare.pop().unwrap_or_else(|| self.allocate());
        inner.op = op;
        inner.lba_shift = lba_shift;
        inner.range = range;
        inner.buf = buf;
        inner.route = route;
        Request(Some(inner))
    }

    pub(crate) fn make_deallocate(
        &mut self,
        lba_shift: u8,
        ranges: impl Iterator<Item = LbaRange>,
        route: Route,
    ) -> Request {
        let range = LbaRange { slba: 0, blocks: 0 };
        let mut request = self.make(Op::Deallocate, lba_shift, range, IoBuf::empty(), route);
        if let Some(inner) = &mut request.0 {
            inner.ranges.extend(ranges);
        }
        request
    }

    /// Takes back a request that has no data and was not submitted.
    pub(crate) fn discard(&mut self, mut request: Request) {
        if let Some(inner) = request.0.take() {
            self.recycle(Completion(inner));
        }
    }

    pub(crate) fn recycle(&mut self, Completion(mut inner): Completion) {
        inner.ranges.clear();
        if inner.ranges.capacity() > RANGES_KEPT {
            inner.ranges = Vec::new();
        }
        if self.spare.len() < SPARE_REQUESTS {
            self.spare.push(inner);
        } else {
            self.count -= 1;
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("op", &self.op)
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    thread_local! {
        /// Requests that a backend keeps with its thread.
        static KEPT: RefCell<Vec<Request>> = const { RefCell::new(Vec::new()) };
    }

    #[test]
    fn a_request_may_go_with_the_locals_of_a_thread() {
        let port = Port::new(Waker::new().unwrap());
        let mut requests = RequestPool::new(Arc::clone(&port));
        let nowhere = LbaRange { slba: 0, blocks: 0 };
        let route = Route::default();
        let mut make = || requests.make(Op::Flush, 9, nowhere, IoBuf::empty(), route);
        let (kept, completed) = (make(), make());
        let ending = move || {
            // So that it is this one's end that comes last.
            KEPT.with_borrow_mut(|list| list.push(kept));
            completed.complete(Ok(()));
        };
        std::thread::spawn(ending).join().unwrap();
        let mut done = Vec::new();
        port.collect(&mut done);
        let mut statuses: Vec<_> = done.iter().map(Completion::status).collect();
        statuses.sort_unstable_by_key(|status| status.bits());
        assert_eq!(statuses, [Status::SUCCESS, Status::INTERNAL_ERROR]);
    }
}

//! Blocking devices on a pool of threads.
//!
//! Each device has a queue of its own in its pool, and they take turns. What may take seconds, on
//! Linux even with others locked out of the device, is bounded in the number of threads that it
//! holds, and a device that shares its pool never has all of them: whatever one device does, or
//! does not do any more, reads of the others go on.

use super::block::run;
use super::{BlockDevice, Lane, LaneCx, Namespace, NsInfo, NsSink, Op, Request, RequestId};
use crate::Error;
use crate::chatter::error;
use crate::contain::let_go;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Runs a [`BlockDevice`] on a bounded pool of threads.
pub struct Threaded {
    line: Arc<Line>,
    pool: Arc<WorkerPool>,
}

impl Threaded {
    /// Wraps a device with `threads` threads of its own.
    #[must_use]
    pub fn new(device: impl BlockDevice, threads: usize) -> Self {
        Self::with_pool(device, &Arc::new(WorkerPool::new(threads)))
    }

    /// Wraps a device with a pool that it shares with others.
    #[must_use]
    pub fn with_pool(device: impl BlockDevice, pool: &Arc<WorkerPool>) -> Self {
        let shared = Arc::clone(&pool.shared);
        let queue = shared.lock().open();
        Self {
            line: Arc::new(Line {
                shared,
                queue,
                device: Box::new(device),
            }),
            pool: Arc::clone(pool),
        }
    }
}

impl fmt::Debug for Threaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threaded")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

struct ThreadedLane {
    line: Arc<Line>,
    pool: Arc<WorkerPool>,
    batch: Vec<Request>,
}

impl Lane for ThreadedLane {
    fn submit(&mut self, request: Request) {
        self.batch.push(request);
    }

    fn commit(&mut self) {
        self.pool.push(&self.line, &mut self.batch);
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        match self.batch.iter().position(|r| r.id() == id) {
            Some(at) => Some(self.batch.remove(at)),
            None => self.line.withdraw(id),
        }
    }
}

impl Namespace for Threaded {
    fn info(&self) -> NsInfo {
        self.line.device.info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(ThreadedLane {
            line: Arc::clone(&self.line),
            pool: Arc::clone(&self.pool),
            batch: Vec::new(),
        }))
    }

    fn subscribe(&self, sink: NsSink) {
        self.line.device.subscribe(sink);
    }
}

/// A device and its queue in a pool. Never dropped under the pool's lock: the device is the
/// embedder's, and this takes the lock.
struct Line {
    shared: Arc<Shared>,
    /// Index of its queue.
    queue: usize,
    device: Box<dyn BlockDevice>,
}

impl Line {
    /// Takes back a request that no thread has begun with.
    fn withdraw(&self, id: RequestId) -> Option<Request> {
        let job = self.shared.lock().withdraw(self.queue, id);
        job.map(|(_, request)| request)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.lock().close(self.queue);
    }
}

type Job = (Arc<Line>, Request);

/// What a device has in the pool.
#[derive(Default)]
struct Queue {
    short: VecDeque<Job>,
    long: VecDeque<Job>,
    /// Threads that work for it, and those of them that do something long.
    busy: usize,
    busy_long: usize,
    /// The next is a long one, if there are both.
    long_is_next: bool,
    /// Its device is gone.
    closed: bool,
}

/// Whether a request may take seconds: how much it does is not bounded by what a command transfers.
const fn is_long(op: Op) -> bool {
    match op {
        Op::Read | Op::Write { .. } | Op::Compare | Op::CompareAndWrite { .. } => false,
        Op::Flush | Op::WriteZeroes { .. } | Op::Deallocate | Op::Verify => true,
    }
}

struct Jobs {
    /// By the index that a [`Line`] has.
    queues: Vec<Queue>,
    /// Those that no device has.
    vacant: Vec<usize>,
    /// Those that have something, in the order of their turns.
    turns: VecDeque<usize>,
    /// Requests in all queues.
    queued: usize,
    /// The most threads, and those of them that may do something long.
    limit: usize,
    limit_long: usize,
    /// Threads that work, and those of them that do something long.
    busy: usize,
    busy_long: usize,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Jobs {
    fn open(&mut self) -> usize {
        self.vacant.pop().unwrap_or_else(|| {
            self.queues.push(Queue::default());
            self.queues.len() - 1
        })
    }

    /// A device is gone, and nothing of it waits any more.
    fn close(&mut self, at: usize) {
        self.queues[at].closed = true;
        self.vacate(at);
    }

    fn vacate(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        if queue.closed && queue.busy == 0 {
            *queue = Queue::default();
            self.vacant.push(at);
        }
    }

    fn put(&mut self, line: &Arc<Line>, batch: &mut Vec<Request>) {
        let queue = &mut self.queues[line.queue];
        if queue.short.is_empty() && queue.long.is_empty() {
            self.turns.push_back(line.queue);
        }
        self.queued += batch.len();
        for request in batch.drain(..) {
            let list = match is_long(request.op()) {
                true => &mut queue.long,
                false => &mut queue.short,
            };
            list.push_back((Arc::clone(line), request));
        }
    }

    /// The turn whose next request a free thread may begin with, and whether that is a long one.
    ///
    /// None is left out for good: what has to wait does so for threads at work, and each looks
    /// again when it is done.
    fn next(&self) -> Option<(usize, bool)> {
        (0..self.turns.len()).find_map(|turn| {
            let long = self.allowed(&self.queues[self.turns[turn]])?;
            Some((turn, long))
        })
    }

    /// The next request that a free thread may begin with.
    fn take(&mut self) -> Option<Job> {
        let (turn, long) = self.next()?;
        let at = self.turns.remove(turn)?;
        let queue = &mut self.queues[at];
        queue.busy += 1;
        self.busy += 1;
        queue.busy_long += usize::from(long);
        self.busy_long += usize::from(long);
        queue.long_is_next = !long;
        let job = match long {
            true => queue.long.pop_front(),
            false => queue.short.pop_front(),
        };
        if !queue.short.is_empty() || !queue.long.is_empty() {
            self.turns.push_back(at);
        }
        self.queued -= 1;
        job
    }

    /// Whether a device may have one thread more, for its next long request (`true`) or its next
    /// short one.
    fn allowed(&self, queue: &Queue) -> Option<bool> {
        let free = self.limit - self.busy;
        let shares = self.queues.len() - self.vacant.len() > 1;
        // What stands still must not take all, and neither must several: the more is taken, the less
        // one may have. The last is for a device that has none.
        if shares && queue.busy > 0 && (free == 1 || queue.busy >= 3 * free) {
            return None;
        }
        // Likewise of what is long: of that one device has half at most, and all together leave
        // threads to what is short.
        let long = !queue.long.is_empty()
            && self.busy_long < self.limit_long
            && queue.busy_long + self.busy_long < self.limit;
        match (long, !queue.short.is_empty()) {
            (true, true) => Some(queue.long_is_next),
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }

    /// A thread is done with what it took.
    fn done(&mut self, at: usize, long: bool) {
        let queue = &mut self.queues[at];
        queue.busy -= 1;
        self.busy -= 1;
        queue.busy_long -= usize::from(long);
        self.busy_long -= usize::from(long);
        self.vacate(at);
    }

    fn withdraw(&mut self, at: usize, id: RequestId) -> Option<Job> {
        let queue = &mut self.queues[at];
        let job = [&mut queue.short, &mut queue.long]
            .into_iter()
            .find_map(|list| {
                let place = list.iter().position(|(_, r)| r.id() == id)?;
                list.remove(place)
            })?;
        if queue.short.is_empty() && queue.long.is_empty() {
            self.turns.retain(|&turn| turn != at);
        }
        self.queued -= 1;
        Some(job)
    }

    /// Everything that waits, to be dropped without the lock.
    fn clear(&mut self) -> Vec<Job> {
        self.turns.clear();
        self.queued = 0;
        let both = |queue: &mut Queue| [mem::take(&mut queue.short), mem::take(&mut queue.long)];
        self.queues.iter_mut().flat_map(both).flatten().collect()
    }
}

struct Shared {
    jobs: Mutex<Jobs>,
    work: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self) {
        let mut jobs = self.lock();
        loop {
            if let Some((line, request)) = jobs.take() {
                drop(jobs);
                let (queue, long) = (line.queue, is_long(request.op()));
                run(&*line.device, request);
                let_go("a device", line);
                jobs = self.lock();
                jobs.done(queue, long);
                // It may have kept more waiting than this thread can take.
                if jobs.idle > 0 && jobs.queued > 1 && jobs.next().is_some() {
                    self.work.notify_one();
                }
            } else if jobs.closed {
                return;
            } else {
                jobs.idle += 1;
                jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            }
        }
    }
}

fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("nvmf-worker".to_owned())
        .spawn(move || shared.worker())
}

/// Threads that carry out blocking requests, started as they are needed, up to a limit.
///
/// Devices that share a pool take turns. Of its threads, what may take seconds (Flush, Write Zeroes,
/// Deallocate, Verify) has at most half for one device, and three in four for all of them, but one
/// less than all in any case; and one device has at most three in four,
/// but one less than all in any case, if there are others, busy or not. The more are busy, the less
/// each may have. So reads of a device go on beside its long requests, unless the device itself keeps
/// them waiting, and those of other devices even if it answers nothing any more; a pool of one
/// thread can only give them turns.
///
/// The queues are bounded by what the target lets be outstanding. Dropping the pool finishes what is
/// queued and joins the threads.
pub struct WorkerPool {
    shared: Arc<Shared>,
    start: fn(Arc<Shared>) -> io::Result<JoinHandle<()>>,
}

impl WorkerPool {
    /// A pool of at most `threads` threads (at least one).
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::starting(threads.max(1), start)
    }

    fn starting(threads: usize, start: fn(Arc<Shared>) -> io::Result<JoinHandle<()>>) -> Self {
        let jobs = Jobs {
            queues: Vec::new(),
            vacant: Vec::new(),
            turns: VecDeque::new(),
            queued: 0,
            limit: threads,
            limit_long: (threads - threads.div_ceil(4)).max(1),
            busy: 0,
            busy_long: 0,
            idle: 0,
            threads: Vec::new(),
            closed: false,
        };
        let shared = Shared {
            jobs: Mutex::new(jobs),
            work: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            start,
        }
    }

    fn push(&self, line: &Arc<Line>, batch: &mut Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        let mut jobs = self.shared.lock();
        let wake = batch.len().min(jobs.idle);
        jobs.put(line, batch);
        let mut refused = Vec::new();
        let wanted = jobs.queued.saturating_sub(jobs.idle);
        for _ in 0..wanted.min(jobs.limit - jobs.threads.len()) {
            match (self.start)(Arc::clone(&self.shared)) {
                Ok(thread) => jobs.threads.push(thread),
                Err(err) if jobs.threads.is_empty() => {
                    error!("no worker thread can be started: {err}; requests fail");
                    refused = jobs.clear();
                    break;
                }
                Err(_) => break,
            }
        }
        drop(jobs);
        for job in refused {
            let_go("a device", job);
        }
        for _ in 0..wake {
            self.shared.work.notify_one();
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        let threads = {
            let mut jobs = self.shared.lock();
            jobs.closed = true;
            mem::take(&mut jobs.threads)
        };
        self.shared.work.notify_all();
        let this = std::thread::current().id();
        for thread in threads {
            // The last handle may be dropped by a worker, with the device that it held.
            if thread.thread().id() != this {
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool")
            .field("limit", &self.shared.lock().limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

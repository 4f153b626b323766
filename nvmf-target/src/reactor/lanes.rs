//! A reactor's lanes: opened when first used, never given more than their depth, nor anything that
//! writes while the namespace's gate is closed, nor most of the reactor's buffers.
//!
//! Requests are handed to a lane in batches, when the batch is committed: so a panic in it is
//! caught once for all of them. A lane that has panicked is given up. It is dropped, what it has
//! not been given yet fails with Namespace Not Ready, and the next command opens another one. Its
//! place is kept until all requests that it had have come back.

use super::gate::Member;
use super::share::{Pulse, Share};
use super::{Mailbox, Poller, now};
use crate::chatter::error;
use crate::chatter::limited;
use crate::contain::{Panic, contain, let_go};
use crate::ctrl::{NsEntry, NsShared, QueueStats};
use crate::ns::{
    BlockDevice, Completion, Lane, LaneCx, LbaRange, Loan, Op, ReactorRing, Request, RequestId,
    contained,
};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::Status;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Poller tokens of lanes have this bit.
pub(super) const LANE_TOKEN: u64 = 1 << 63;
/// Poller token of the ring that lanes share: that of no lane. It only ends the wait, as `commit`
/// looks at the ring in every turn.
const URING_TOKEN: u64 = LANE_TOKEN | 1 << 62;

/// A hash of a uid is the uid: they are handed out in sequence by the target itself.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

struct OpenLane {
    uid: u64,
    /// `None`: it has panicked and is no more.
    lane: Option<Box<dyn Lane>>,
    /// It has panicked and is not called any more.
    panic: Option<Panic>,
    /// See [`Lane::inline_device`].
    device: Option<Arc<dyn BlockDevice>>,
    /// It lends.
    lends: bool,
    depth: u32,
    outstanding: u32,
    /// Bytes of buffers of what is outstanding.
    bytes: usize,
    /// What it gets with the next commit.
    batch: VecDeque<Request>,
    /// What exceeds the depth, or its part of the buffers.
    waiting: VecDeque<Request>,
    pulse: Pulse,
    /// What the namespace's SMART log counts.
    stats: Arc<QueueStats>,
    shared: Arc<NsShared>,
    member: Member,
    /// The gate is closed: what writes is parked.
    closed: bool,
    /// For whom the gate waits for the last request that writes.
    asked: Option<u64>,
    /// Requests that write, outstanding or waiting.
    writers: u32,
    parked: VecDeque<Request>,
    /// In [`Lanes::touched`].
    touched: bool,
    /// In [`Lanes::short`].
    short: bool,
    /// The namespace is gone, or the lane has panicked; its place is free when nothing is
    /// outstanding.
    detached: bool,
    /// There is a volatile cache to be flushed before it goes.
    unflushed: bool,
}

impl OpenLane {
    /// Tells the gate that nothing writes any more, if it has asked.
    fn answer(&mut self) {
        if self.writers == 0
            && let Some(closes_for) = self.asked.take()
        {
            self.member.answer(closes_for);
        }
    }

    fn is_over(&self) -> bool {
        self.detached && self.outstanding == 0 && self.parked.is_empty()
    }

    /// Whether it may be given a request now. A device that works on this thread keeps nothing.
    fn has_room(&self, share: &Share, request: &Request) -> bool {
        let fits = || share.admits(self.bytes, request.footprint());
        self.outstanding < self.depth && (self.device.is_some() || fits())
    }

    /// Counts a request as outstanding.
    fn count(&mut self, share: &mut Share, request: &Request) {
        let bytes = request.footprint();
        self.outstanding += 1;
        self.bytes += bytes;
        share.give(bytes);
    }

    /// Fails what it has not been given, as far as it `is_meant`. True if there was any.
    fn refuse_all(&mut self, share: &mut Share, is_meant: fn(&Request) -> bool) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        let parked = std::mem::take(&mut self.parked);
        let before = self.outstanding;
        for request in waiting {
            match is_meant(&request) {
                true => self.refuse(share, request),
                false => self.waiting.push_back(request),
            }
        }
        for request in parked {
            if is_meant(&request) {
                self.writers += u32::from(request.op().writes());
                self.refuse(share, request);
            } else {
                self.parked.push_back(request);
            }
        }
        self.outstanding > before
    }

    /// Fails a request that it has not been given.
    #[cold]
    fn refuse(&mut self, share: &mut Share, request: Request) {
        self.count(share, &request);
        self.pulse.note_foreign(request.footprint());
        request.complete(Err(Status::NAMESPACE_NOT_READY));
    }

    /// Gives the lane its batch, and ends that if this is the `end` of the turn.
    fn submit(&mut self, end: bool) {
        let Self { lane, batch, .. } = self;
        if let (Some(lane), None) = (lane, &self.panic) {
            let submitted = contain(|| {
                while let Some(request) = batch.pop_front() {
                    lane.submit(request);
                }
                if end {
                    lane.commit();
                }
            });
            self.panic = submitted.err();
        }
    }

    /// Drops the lane, as far as there still is one.
    fn let_go(&mut self, poller: &Poller) {
        let Some(lane) = self.lane.take() else { return };
        // If it panics here, too, it is watched until its descriptor is closed.
        let unwatched = contain(|| lane.wake_fd().map(|fd| poller.remove(fd)));
        if let Err(panic) = unwatched {
            error!("{}: its lane {panic}", self.shared.name);
        }
        let_go(&self.shared.name, lane);
    }
}

impl Drop for OpenLane {
    fn drop(&mut self) {
        let_go(&self.shared.name, self.lane.take());
        let_go(&self.shared.name, self.device.take());
    }
}

/// A lane as its namespace has opened it.
struct Opened {
    lane: Box<dyn Lane>,
    device: Option<Arc<dyn BlockDevice>>,
    lends: bool,
}

/// Opens a lane that is watched under `token`, if there is something to watch.
fn open_lane(entry: &NsEntry, cx: &LaneCx, poller: &Poller, token: u64) -> Result<Opened, String> {
    let lane = contain(|| entry.shared.namespace.open_lane(cx));
    let lane = lane.map_err(|panic| panic.to_string())?;
    let lane = lane.map_err(|err| err.to_string())?;
    let begun = contain(|| {
        let device = lane.inline_device();
        let lends = device.as_ref().is_some_and(|device| device.lends());
        let watched = lane.wake_fd().map(|fd| poller.add_level(fd, token));
        (device, lends, watched.unwrap_or(Ok(())))
    });
    let problem = match begun {
        Ok((device, lends, Ok(()))) => {
            return Ok(Opened {
                lane,
                device,
                lends,
            });
        }
        Ok((_, _, Err(err))) => format!("it cannot be watched: {err}"),
        Err(panic) => panic.to_string(),
    };
    let_go(&entry.shared.name, lane);
    Err(problem)
}

#[derive(Default)]
pub(crate) struct Lanes {
    by_uid: HashMap<u64, usize, BuildHasherDefault<Identity>>,
    /// The latest answer of `get`; no uid is 0.
    last: Cell<(u64, usize)>,
    lanes: Vec<Option<OpenLane>>,
    free: Vec<usize>,
    touched: Vec<usize>,
    /// Lanes that may have more when others have given buffers back.
    short: VecDeque<usize>,
    /// Namespaces whose lane has panicked, and that have no other one yet; and those that were
    /// detached before they could be flushed.
    given_up: Vec<u64>,
    /// Lanes of detached namespaces that have only to be flushed.
    to_flush: Vec<usize>,
    reactor: usize,
    uring: ReactorRing,
    share: Share,
}

impl Lanes {
    /// Of the reactor of that number, which has so many `bytes` of buffers.
    pub(super) fn new(reactor: usize, bytes: usize) -> Self {
        Self {
            reactor,
            share: Share::new(bytes),
            ..Self::default()
        }
    }

    /// The counters of a lane.
    pub(crate) fn stats(&self, index: usize) -> Option<&QueueStats> {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.map(|lane| &*lane.stats)
    }

    /// The lane of a namespace that is open already.
    pub(crate) fn get(&self, uid: u64) -> Option<usize> {
        let (last, index) = self.last.get();
        if last == uid {
            return Some(index);
        }
        let index = *self.by_uid.get(&uid)?;
        self.last.set((uid, index));
        Some(index)
    }

    /// Opens the lane of a namespace that has none here yet.
    pub(crate) fn open(
        &mut self,
        entry: &NsEntry,
        poller: &Poller,
        mailbox: &Arc<Mailbox>,
    ) -> Result<usize, Status> {
        let cx = LaneCx {
            depth: entry.info.depth,
            reactor: self.reactor,
            uring: self.uring.clone(),
        };
        let had_ring = self.uring.is_used();
        let index = self.free.last().copied().unwrap_or(self.lanes.len());
        let name = &entry.shared.name;
        let opened = open_lane(entry, &cx, poller, LANE_TOKEN | index as u64);
        let Opened {
            lane,
            device,
            lends,
        } = opened.map_err(|problem| {
            limited!(
                Error,
                entry.shared.lane_chatter,
                now(),
                "{name}: no lane: {problem}"
            );
            Status::NAMESPACE_NOT_READY
        })?;
        let (member, closed) = entry.shared.gate.join(entry.uid, mailbox);
        let mut open = OpenLane {
            uid: entry.uid,
            lane: Some(lane),
            panic: None,
            device,
            lends,
            depth: entry.info.depth,
            outstanding: 0,
            bytes: 0,
            batch: VecDeque::new(),
            waiting: VecDeque::new(),
            pulse: Pulse::default(),
            stats: entry.shared.stats.lane(),
            shared: Arc::clone(&entry.shared),
            member,
            closed,
            asked: None,
            writers: 0,
            parked: VecDeque::new(),
            touched: false,
            short: false,
            detached: false,
            unflushed: false,
        };
        if !had_ring && let Some(Err(err)) = self.uring.with_fd(|fd| poller.add(fd, URING_TOKEN)) {
            error!("{name}: its ring cannot be watched: {err}");
            self.uring = ReactorRing::default();
            open.let_go(poller);
            return Err(Status::NAMESPACE_NOT_READY);
        }
        self.free.pop();
        if index == self.lanes.len() {
            self.lanes.push(Some(open));
        } else {
            self.lanes[index] = Some(open);
        }
        self.by_uid.insert(entry.uid, index);
        self.given_up.retain(|&uid| uid != entry.uid);
        Ok(index)
    }

    /// Gives a lane a request, now or when gate, depth, and what it has of the buffers allow.
    pub(crate) fn submit(&mut self, index: usize, request: Request) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if lane.closed && request.op().writes() {
            lane.parked.push_back(request);
        } else {
            self.submit_exclusive(index, request);
        }
    }

    /// The same for a request of whoever has closed the gate.
    pub(crate) fn submit_exclusive(&mut self, index: usize, request: Request) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.writers += u32::from(request.op().writes());
        // What needs no buffers does not wait behind what waits for its part of them.
        let is_next = lane.waiting.is_empty() || request.footprint() == 0;
        if is_next && lane.has_room(&self.share, &request) {
            self.start(index, request);
        } else if lane.pulse.is_stopped() && request.footprint() > 0 {
            lane.refuse(&mut self.share, request);
        } else {
            lane.waiting.push_back(request);
            self.start_waiting(index);
        }
    }

    fn start(&mut self, index: usize, request: Request) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.count(&mut self.share, &request);
        if lane.lane.is_none() {
            return request.complete(Err(Status::NAMESPACE_NOT_READY));
        }
        let marked = &lane.shared.gate.uncorrectable;
        if marked.any() && marked.spoils(request.op(), request.lba_range()) {
            // NVM Command Set 1.1, Write Uncorrectable command.
            lane.pulse.note_foreign(request.footprint());
            return request.complete(Err(Status::UNRECOVERED_READ_ERROR.dnr()));
        }
        if !lane.touched {
            lane.touched = true;
            self.touched.push(index);
        }
        lane.batch.push_back(request);
        // A device that works on this thread does so while its data is in the CPU's cache.
        if lane.device.is_some() {
            lane.submit(false);
        }
    }

    /// Whether the data of a read may be lent instead of read into a buffer.
    pub(crate) fn may_lend(&self, index: usize, range: LbaRange) -> bool {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.is_some_and(|lane| {
            let marked = &lane.shared.gate.uncorrectable;
            lane.lends && !(marked.any() && marked.spoils(Op::Read, range))
        })
    }

    /// A loan of a lane's device; see [`BlockDevice::lend`]. Panics if that does.
    ///
    /// [`BlockDevice::lend`]: crate::ns::BlockDevice::lend
    pub(crate) fn lend(&self, index: usize, at: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        let lane = self.lanes.get(index).and_then(Option::as_ref)?;
        let loan = lane.device.as_ref()?.lend(at, len, alone);
        loan.filter(|loan| loan.len() == len)
    }

    /// Whether a lane carries out on this thread what it is given.
    pub(crate) fn is_inline(&self, index: usize) -> bool {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.is_some_and(|lane| lane.device.is_some())
    }

    /// Whether [`Lanes::write`] is possible now.
    pub(crate) fn writes_inline(&self, index: usize) -> bool {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.is_some_and(|lane| {
            lane.device.is_some() && !lane.closed && !lane.shared.gate.uncorrectable.any()
        })
    }

    /// Writes to a lane's device at once.
    pub(crate) fn write(&self, index: usize, op: Op, at: u64, data: &[u8]) -> Result<(), Status> {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        let lane = lane.ok_or(Status::INTERNAL_ERROR)?;
        let device = lane.device.as_ref().ok_or(Status::INTERNAL_ERROR)?;
        let fua = op == Op::Write { fua: true };
        contained(op, || device.write_at(at, data, fua)).map_err(|failure| {
            if let Some(note) = failure.note {
                let (name, bytes) = (&lane.shared.name, at..at + data.len() as u64);
                limited!(
                    Error,
                    lane.shared.chatter,
                    now(),
                    "{name}: {op:?} at {bytes:?}: {note}"
                );
            }
            failure.status
        })
    }

    /// Takes a request back that work has not begun on; it counts as outstanding until
    /// [`Lanes::completed`] is told of it.
    pub(crate) fn withdraw(
        &mut self,
        index: usize,
        id: RequestId,
        poller: &Poller,
    ) -> Option<Request> {
        let lane = self.lanes.get_mut(index).and_then(Option::as_mut)?;
        let place = |queue: &VecDeque<Request>| queue.iter().position(|r| r.id() == id);
        let request = if let Some(at) = place(&lane.waiting) {
            let request = lane.waiting.remove(at)?;
            lane.count(&mut self.share, &request);
            request
        } else if let Some(at) = place(&lane.parked) {
            let request = lane.parked.remove(at)?;
            lane.count(&mut self.share, &request);
            lane.writers += 1;
            request
        } else if let Some(at) = place(&lane.batch) {
            lane.batch.remove(at)?
        } else {
            let inner = lane.lane.as_mut().filter(|_| lane.panic.is_none())?;
            match contain(|| inner.abort(id)) {
                Ok(request) => request.filter(|r| r.id() == id)?,
                Err(panic) => {
                    self.give_up(index, &panic, poller);
                    return None;
                }
            }
        };
        lane.pulse.note_foreign(request.footprint());
        Some(request)
    }

    /// Takes note of a completion, and submits what waited for it.
    pub(crate) fn completed(&mut self, index: usize, done: &mut Completion, poller: &Poller) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if let Some(note) = done.take_note() {
            let (name, op, bytes) = (&lane.shared.name, done.op(), done.byte_range());
            limited!(
                Error,
                lane.shared.chatter,
                now(),
                "{name}: {op:?} at {bytes:?}: {note}"
            );
        }
        lane.outstanding -= 1;
        let bytes = done.footprint();
        lane.bytes -= bytes;
        self.share.take_back(bytes);
        lane.pulse.beat(bytes);
        if lane.bytes == 0 && !lane.closed {
            lane.pulse.rest();
        }
        if done.op().writes() {
            lane.writers -= 1;
            let marked = &lane.shared.gate.uncorrectable;
            if marked.any() && done.status().is_success() {
                marked.clear(done.lba_range());
            }
            lane.answer();
        }
        self.start_waiting(index);
        let lane = self.lanes[index].as_ref();
        if lane.is_some_and(OpenLane::is_over) {
            self.end(index, poller);
        }
    }

    /// Submits what there is room for of what waits.
    fn start_waiting(&mut self, index: usize) {
        loop {
            let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
                return;
            };
            let Some(next) = lane.waiting.front() else {
                return;
            };
            if !lane.has_room(&self.share, next) {
                if lane.outstanding < lane.depth && !lane.short {
                    lane.short = true;
                    self.short.push_back(index);
                }
                return;
            }
            if let Some(request) = lane.waiting.pop_front() {
                self.start(index, request);
            }
        }
    }

    /// The same for lanes whose part of the buffers may have grown: one that never ends what it has
    /// would not come to it by itself.
    fn start_short(&mut self) {
        for _ in 0..self.short.len() {
            let Some(index) = self.short.pop_front() else {
                return;
            };
            if let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) {
                lane.short = false;
                self.start_waiting(index);
            }
        }
    }

    /// Looks for lanes that have buffers and have given none back for `limit` nanoseconds:
    /// what they have not been given yet fails, so that its buffers come back. True if there was
    /// any of that.
    pub(super) fn refuse_stopped(&mut self, now: Time, limit: u64) -> bool {
        let mut refused = false;
        for lane in self.lanes.iter_mut().flatten() {
            let has_some = lane.bytes > 0 || !lane.parked.is_empty();
            if lane.pulse.look(has_some, now, limit) {
                limited!(
                    Warn,
                    lane.shared.lane_chatter,
                    now,
                    "{}: it has ended no request with data for a while, has {} bytes of buffers, and others wait for some; commands beyond its part of them fail",
                    lane.shared.name,
                    lane.bytes
                );
            }
            if lane.pulse.is_stopped() {
                refused |= lane.refuse_all(&mut self.share, |request| request.footprint() > 0);
            }
        }
        refused
    }

    /// Whether a lane has ended nothing for too long.
    pub(crate) fn is_stopped(&self, index: usize) -> bool {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.is_some_and(|lane| lane.pulse.is_stopped())
    }

    /// The gate of a namespace closes for somebody, or opens, for one of its lanes.
    pub(super) fn set_gate(&mut self, uid: u64, member: u64, closes_for: Option<u64>) {
        // The message may be for an earlier lane, which is no more or has panicked.
        let is_it = |lane: &OpenLane| lane.uid == uid && lane.member.id() == member;
        let place = |lane: &Option<OpenLane>| lane.as_ref().is_some_and(is_it);
        let latest = self.get(uid).filter(|&index| place(&self.lanes[index]));
        let found = latest.or_else(|| self.lanes.iter().position(place));
        let Some(index) = found else { return };
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.closed = closes_for.is_some();
        lane.asked = closes_for;
        lane.answer();
        if closes_for.is_none() {
            if lane.bytes == 0 {
                lane.pulse.rest();
            }
            for request in std::mem::take(&mut lane.parked) {
                self.submit_exclusive(index, request);
            }
        }
    }

    /// A lane takes another number of requests at a time from now on.
    pub(super) fn set_depth(&mut self, uid: u64, member: u64, depth: u32) {
        let Some(index) = self.get(uid) else { return };
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if lane.member.id() != member {
            return;
        }
        lane.depth = depth;
        self.start_waiting(index);
    }

    /// Ends the batch: every lane that was submitted to is told so.
    pub(super) fn commit(&mut self, poller: &Poller) {
        self.ring_doorbells(poller);
        self.uring.submit();
    }

    /// The same, and takes what the ring has finished: once per turn.
    pub(super) fn commit_turn(&mut self, poller: &Poller) {
        self.ring_doorbells(poller);
        self.uring.turn();
    }

    fn ring_doorbells(&mut self, poller: &Poller) {
        self.start_short();
        let mut touched = std::mem::take(&mut self.touched);
        for index in touched.drain(..) {
            if let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) {
                lane.touched = false;
                lane.submit(true);
                if let Some(panic) = lane.panic.take() {
                    self.give_up(index, &panic, poller);
                }
            }
        }
        self.touched = touched;
    }

    /// A lane has panicked.
    fn give_up(&mut self, index: usize, panic: &Panic, poller: &Poller) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if lane.lane.is_none() {
            return;
        }
        limited!(
            Error,
            lane.shared.lane_chatter,
            now(),
            "{}: its lane {panic}; it is dropped with what it has, and the next command opens another",
            lane.shared.name
        );
        lane.let_go(poller);
        if !lane.detached || lane.unflushed {
            self.given_up.push(lane.uid);
        }
        lane.detached = true;
        if self.by_uid.get(&lane.uid) == Some(&index) {
            self.by_uid.remove(&lane.uid);
        }
        self.last.take();
        for request in lane.batch.drain(..) {
            request.complete(Err(Status::NAMESPACE_NOT_READY));
        }
        lane.refuse_all(&mut self.share, |_| true);
        if lane.is_over() {
            self.end(index, poller);
        }
    }

    /// Whether there is something to commit that could not be.
    pub(super) fn owes(&self) -> bool {
        self.uring.owes()
    }

    /// A lane's descriptor is readable.
    pub(super) fn poll(&mut self, index: usize, budget: u32, poller: &Poller) {
        let lane = self.lanes.get_mut(index).and_then(Option::as_mut);
        if let Some(lane) = lane.and_then(|lane| lane.lane.as_mut())
            && let Err(panic) = contain(|| lane.poll(budget))
        {
            self.give_up(index, &panic, poller);
        }
    }

    /// The namespace is detached: its lane is dropped as soon as nothing is outstanding, and its
    /// cache is flushed if that is `volatile`. True if there is a cache and no lane any more to flush
    /// it by.
    pub(super) fn detach(&mut self, uid: u64, volatile: bool, poller: &Poller) -> bool {
        let Some(&index) = self.by_uid.get(&uid) else {
            let known = self.given_up.len();
            self.given_up.retain(|&given_up| given_up != uid);
            return volatile && self.given_up.len() < known;
        };
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return false;
        };
        lane.detached = true;
        lane.unflushed = volatile;
        if lane.is_over() {
            self.end(index, poller);
        }
        false
    }

    /// A lane of a detached namespace has nothing outstanding any more.
    fn end(&mut self, index: usize, poller: &Poller) {
        match self.lanes.get_mut(index).and_then(Option::as_mut) {
            Some(lane) if lane.unflushed && lane.lane.is_some() => {
                lane.unflushed = false;
                self.to_flush.push(index);
            }
            _ => self.close(index, poller),
        }
    }

    /// A lane of a detached namespace that the reactor has to flush: then it goes.
    pub(super) fn next_to_flush(&mut self) -> Option<usize> {
        self.to_flush.pop()
    }

    /// The namespaces whose lane has panicked, without another one yet.
    pub(super) fn given_up(&self) -> &[u64] {
        &self.given_up
    }

    fn close(&mut self, index: usize, poller: &Poller) {
        if let Some(mut lane) = self.lanes[index].take() {
            lane.let_go(poller);
            if self.by_uid.get(&lane.uid) == Some(&index) {
                self.by_uid.remove(&lane.uid);
            }
            self.last.take();
            self.free.push(index);
            self.touched.retain(|&t| t != index);
        }
    }
}

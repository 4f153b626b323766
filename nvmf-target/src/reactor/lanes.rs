//! A reactor's lanes: opened when first used, never given more than their depth, nor anything that
//! writes while the namespace's gate is closed.

use super::gate::Member;
use super::{Mailbox, Poller};
use crate::ctrl::{NsEntry, NsShared, QueueStats};
use crate::ns::{
    BlockDevice, Completion, Lane, LaneCx, LbaRange, Loan, Op, ReactorRing, Request, RequestId,
    contained,
};
use log::error;
use nvmf_proto::wire::Status;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    lane: Box<dyn Lane>,
    /// See [`Lane::inline_device`].
    device: Option<Arc<dyn BlockDevice>>,
    /// It lends.
    lends: bool,
    depth: u32,
    outstanding: u32,
    /// What exceeds the depth.
    waiting: VecDeque<Request>,
    /// What the namespace's SMART log counts.
    stats: Arc<QueueStats>,
    shared: Arc<NsShared>,
    member: Member,
    /// The gate is closed: what writes is parked.
    closed: bool,
    /// The gate waits for the last request that writes.
    asked: bool,
    /// Requests that write, outstanding or waiting.
    writers: u32,
    parked: VecDeque<Request>,
    /// Submitted to since the last commit.
    touched: bool,
    /// The namespace is gone; so is the lane when nothing is outstanding.
    detached: bool,
}

impl OpenLane {
    /// Tells the gate that nothing writes any more, if it has asked.
    fn answer(&mut self) {
        if self.asked && self.writers == 0 {
            self.asked = false;
            self.member.answer();
        }
    }

    fn is_over(&self) -> bool {
        self.detached && self.outstanding == 0 && self.parked.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Lanes {
    by_uid: HashMap<u64, usize, BuildHasherDefault<Identity>>,
    /// The latest answer of `get`; no uid is 0.
    last: Cell<(u64, usize)>,
    lanes: Vec<Option<OpenLane>>,
    free: Vec<usize>,
    touched: Vec<usize>,
    reactor: usize,
    uring: ReactorRing,
}

impl Lanes {
    pub(super) fn new(reactor: usize) -> Self {
        Self {
            reactor,
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
        let lane = entry.shared.namespace.open_lane(&cx).map_err(|err| {
            error!("{}: no lane: {err}", entry.shared.name);
            Status::NAMESPACE_NOT_READY
        })?;
        if !had_ring && let Some(Err(err)) = self.uring.with_fd(|fd| poller.add(fd, URING_TOKEN)) {
            error!("{}: its ring cannot be watched: {err}", entry.shared.name);
            self.uring = ReactorRing::default();
            return Err(Status::NAMESPACE_NOT_READY);
        }
        let index = self.free.pop().unwrap_or(self.lanes.len());
        if let Some(fd) = lane.wake_fd()
            && let Err(err) = poller.add_level(fd, LANE_TOKEN | index as u64)
        {
            error!("{}: its lane cannot be watched: {err}", entry.shared.name);
            self.free.push(index);
            return Err(Status::NAMESPACE_NOT_READY);
        }
        let (member, closed) = entry.shared.gate.join(entry.uid, mailbox);
        let device = lane.inline_device();
        let open = OpenLane {
            uid: entry.uid,
            lends: device.as_ref().is_some_and(|device| device.lends()),
            device,
            lane,
            depth: entry.info.depth,
            outstanding: 0,
            waiting: VecDeque::new(),
            stats: entry.shared.stats.lane(),
            shared: Arc::clone(&entry.shared),
            member,
            closed,
            asked: false,
            writers: 0,
            parked: VecDeque::new(),
            touched: false,
            detached: false,
        };
        if index == self.lanes.len() {
            self.lanes.push(Some(open));
        } else {
            self.lanes[index] = Some(open);
        }
        self.by_uid.insert(entry.uid, index);
        Ok(index)
    }

    /// Gives a lane a request, now or when gate and depth allow.
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
        if lane.outstanding >= lane.depth {
            lane.waiting.push_back(request);
        } else {
            self.start(index, request);
        }
    }

    fn start(&mut self, index: usize, request: Request) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.outstanding += 1;
        let marked = &lane.shared.gate.uncorrectable;
        if marked.any() && marked.spoils(request.op(), request.lba_range()) {
            // NVM Command Set 1.1, Write Uncorrectable command.
            return request.complete(Err(Status::UNRECOVERED_READ_ERROR.dnr()));
        }
        if !lane.touched {
            lane.touched = true;
            self.touched.push(index);
        }
        lane.lane.submit(request);
    }

    /// Whether the data of a read may be lent instead of read into a buffer.
    pub(crate) fn may_lend(&self, index: usize, range: LbaRange) -> bool {
        let lane = self.lanes.get(index).and_then(Option::as_ref);
        lane.is_some_and(|lane| {
            let marked = &lane.shared.gate.uncorrectable;
            lane.lends && !(marked.any() && marked.spoils(Op::Read, range))
        })
    }

    /// A loan of a lane's device; see [`BlockDevice::lend`].
    ///
    /// [`BlockDevice::lend`]: crate::ns::BlockDevice::lend
    pub(crate) fn lend(&self, index: usize, at: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        let lane = self.lanes.get(index).and_then(Option::as_ref)?;
        let device = lane.device.as_ref()?;
        // A panic is a refusal.
        let loan = catch_unwind(AssertUnwindSafe(|| device.lend(at, len, alone)));
        loan.ok()?.filter(|loan| loan.len() == len)
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
                error!("{name}: {op:?} at {bytes:?}: {note}");
            }
            failure.status
        })
    }

    /// Takes a request back that work has not begun on; it counts as outstanding until
    /// [`Lanes::completed`] is told of it.
    pub(crate) fn withdraw(&mut self, index: usize, id: RequestId) -> Option<Request> {
        let lane = self.lanes.get_mut(index).and_then(Option::as_mut)?;
        if let Some(at) = lane.waiting.iter().position(|r| r.id() == id) {
            lane.outstanding += 1;
            return lane.waiting.remove(at);
        }
        if let Some(at) = lane.parked.iter().position(|r| r.id() == id) {
            lane.outstanding += 1;
            lane.writers += 1;
            return lane.parked.remove(at);
        }
        lane.lane.abort(id).filter(|r| r.id() == id)
    }

    /// Takes note of a completion, and submits what waited for it.
    pub(crate) fn completed(&mut self, index: usize, done: &mut Completion, poller: &Poller) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if let Some(note) = done.take_note() {
            let (name, op, bytes) = (&lane.shared.name, done.op(), done.byte_range());
            error!("{name}: {op:?} at {bytes:?}: {note}");
        }
        lane.outstanding -= 1;
        if done.op().writes() {
            lane.writers -= 1;
            let marked = &lane.shared.gate.uncorrectable;
            if marked.any() && done.status().is_success() {
                marked.clear(done.lba_range());
            }
            lane.answer();
        }
        let next = if lane.outstanding < lane.depth {
            lane.waiting.pop_front()
        } else {
            None
        };
        if let Some(request) = next {
            self.start(index, request);
        } else if lane.is_over() {
            self.close(index, poller);
        }
    }

    /// The gate of a namespace closes or opens for one of its lanes.
    pub(super) fn set_gate(&mut self, uid: u64, member: u64, closed: bool) {
        let Some(index) = self.get(uid) else { return };
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        // The message may have been for an earlier lane.
        if lane.member.id() != member {
            return;
        }
        lane.closed = closed;
        lane.asked = closed;
        lane.answer();
        if !closed {
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
        let room = depth.saturating_sub(lane.outstanding) as usize;
        let ready = room.min(lane.waiting.len());
        for request in lane.waiting.drain(..ready).collect::<Vec<_>>() {
            self.start(index, request);
        }
    }

    /// Ends the batch: every lane that was submitted to is told so.
    pub(super) fn commit(&mut self) {
        self.ring_doorbells();
        self.uring.submit();
    }

    /// The same, and takes what the ring has finished: once per turn.
    pub(super) fn commit_turn(&mut self) {
        self.ring_doorbells();
        self.uring.turn();
    }

    fn ring_doorbells(&mut self) {
        for index in self.touched.drain(..) {
            if let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) {
                lane.touched = false;
                lane.lane.commit();
            }
        }
    }

    /// Whether there is something to commit that could not be.
    pub(super) fn owes(&self) -> bool {
        self.uring.owes()
    }

    /// A lane's descriptor is readable.
    pub(super) fn poll(&mut self, index: usize, budget: u32) {
        if let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) {
            lane.lane.poll(budget);
        }
    }

    /// The namespace is detached: its lane is dropped as soon as nothing is outstanding.
    pub(super) fn detach(&mut self, uid: u64, poller: &Poller) {
        let Some(&index) = self.by_uid.get(&uid) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.detached = true;
        if lane.is_over() {
            self.close(index, poller);
        }
    }

    fn close(&mut self, index: usize, poller: &Poller) {
        if let Some(lane) = self.lanes[index].take() {
            if let Some(fd) = lane.lane.wake_fd() {
                poller.remove(fd);
            }
            self.by_uid.remove(&lane.uid);
            self.last.take();
            self.free.push(index);
            self.touched.retain(|&t| t != index);
        }
    }

    /// The open lanes: index and uid.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, u64)> {
        self.lanes
            .iter()
            .enumerate()
            .filter_map(|(i, l)| l.as_ref().map(|l| (i, l.uid)))
    }
}

//! A reactor's lanes: opened when first used, never given more than their depth.

use super::Poller;
use crate::ctrl::NsEntry;
use crate::ns::{Lane, LaneCx, Request, RequestId};
use log::error;
use nvmf_proto::wire::Status;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Poller tokens of lanes have this bit.
pub(super) const LANE_TOKEN: u64 = 1 << 63;

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
    depth: u32,
    outstanding: u32,
    /// What exceeds the depth.
    waiting: VecDeque<Request>,
    /// Submitted to since the last commit.
    touched: bool,
    /// The namespace is gone; so is the lane when nothing is outstanding.
    detached: bool,
}

#[derive(Default)]
pub(crate) struct Lanes {
    by_uid: HashMap<u64, usize, BuildHasherDefault<Identity>>,
    lanes: Vec<Option<OpenLane>>,
    free: Vec<usize>,
    touched: Vec<usize>,
    reactor: usize,
}

impl Lanes {
    pub(super) fn new(reactor: usize) -> Self {
        Self {
            reactor,
            ..Self::default()
        }
    }

    /// The lane of a namespace that is open already.
    pub(crate) fn get(&self, uid: u64) -> Option<usize> {
        self.by_uid.get(&uid).copied()
    }

    /// Opens the lane of a namespace that has none here yet.
    pub(crate) fn open(&mut self, entry: &NsEntry, poller: &Poller) -> Result<usize, Status> {
        let cx = LaneCx {
            depth: entry.info.depth,
            reactor: self.reactor,
        };
        let lane = entry.shared.namespace.open_lane(&cx).map_err(|err| {
            error!("namespace {}: no lane: {err}", entry.nsid);
            Status::NAMESPACE_NOT_READY
        })?;
        let index = self.free.pop().unwrap_or(self.lanes.len());
        if let Some(fd) = lane.wake_fd()
            && let Err(err) = poller.add_level(fd, LANE_TOKEN | index as u64)
        {
            error!(
                "namespace {}: its lane cannot be watched: {err}",
                entry.nsid
            );
            self.free.push(index);
            return Err(Status::NAMESPACE_NOT_READY);
        }
        let open = OpenLane {
            uid: entry.uid,
            lane,
            depth: entry.info.depth,
            outstanding: 0,
            waiting: VecDeque::new(),
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

    /// Gives a lane a request, now or when its depth allows.
    pub(crate) fn submit(&mut self, index: usize, request: Request) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if lane.outstanding >= lane.depth {
            lane.waiting.push_back(request);
            return;
        }
        lane.outstanding += 1;
        if !lane.touched {
            lane.touched = true;
            self.touched.push(index);
        }
        lane.lane.submit(request);
    }

    /// Takes a request back that work has not begun on; it counts as outstanding until
    /// [`Lanes::completed`] is told of it.
    pub(crate) fn withdraw(&mut self, index: usize, id: RequestId) -> Option<Request> {
        let lane = self.lanes.get_mut(index).and_then(Option::as_mut)?;
        let Some(at) = lane.waiting.iter().position(|r| r.id() == id) else {
            return lane.lane.abort(id).filter(|r| r.id() == id);
        };
        lane.outstanding += 1;
        lane.waiting.remove(at)
    }

    /// Takes note of a completion, and submits what waited for it.
    pub(crate) fn completed(&mut self, index: usize, poller: &Poller) {
        let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        lane.outstanding -= 1;
        let next = if lane.outstanding < lane.depth {
            lane.waiting.pop_front()
        } else {
            None
        };
        if let Some(request) = next {
            self.submit(index, request);
        } else if lane.detached && lane.outstanding == 0 {
            self.close(index, poller);
        }
    }

    /// Ends the batch: every lane that was submitted to is told so.
    pub(super) fn commit(&mut self) {
        for index in self.touched.drain(..) {
            if let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) {
                lane.touched = false;
                lane.lane.commit();
            }
        }
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
        if lane.outstanding == 0 {
            self.close(index, poller);
        }
    }

    fn close(&mut self, index: usize, poller: &Poller) {
        if let Some(lane) = self.lanes[index].take() {
            if let Some(fd) = lane.lane.wake_fd() {
                poller.remove(fd);
            }
            self.by_uid.remove(&lane.uid);
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

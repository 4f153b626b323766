//! A backend that the simulation runs: it answers when it is told to, in any order, and may fail,
//! tear a write, answer an Abort or not.

use crate::content::{self, SECTOR};
use crate::network::lock;
use crate::rng::Rng;
use crate::{note, trace};
use nvmf_target::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink, Op, Request, RequestId};
use nvmf_target::{Error, Status};
use std::sync::{Arc, Mutex};

/// How a disk behaves. Each number says "once in so many", 0 never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// A request is answered before `submit` returns.
    pub prompt: u64,
    /// It takes effect at once but is answered later.
    pub early: u64,
    pub fails: u64,
    /// A write fails after some of its sectors have been written.
    pub tears: u64,
    /// A request is dropped.
    pub drops: u64,
    /// A request is not answered before the faults are over.
    pub hangs: u64,
    /// `open_lane` fails.
    pub closed: u64,
    /// 0: an Abort is ignored. 1: the request is given back. 2: it is cut short.
    pub abort: u64,
}

struct Held {
    request: Request,
    /// What it will be answered with, once it has taken effect.
    result: Option<Result<(), Status>>,
    hangs: bool,
    cut_short: bool,
}

/// What has happened, for the model to judge statuses by.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub stamp: u64,
    pub status: Status,
}

struct State {
    id: usize,
    info: NsInfo,
    data: Vec<u8>,
    manners: Manners,
    rng: Rng,
    held: Vec<Held>,
    sinks: Vec<NsSink>,
    failures: Vec<Failure>,
    lanes: usize,
    /// By sector: when it was written last, or 0 if that is on stable storage.
    dirty: Vec<u64>,
}

/// The handle that simulation, target and lanes share.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

/// The bytes of a run of logical blocks.
fn bytes(request: &Request) -> std::ops::Range<usize> {
    let range = request.byte_range();
    range.start as usize..range.end as usize
}

impl Disk {
    pub fn new(id: usize, info: NsInfo, capacity: u64, manners: Manners, rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(State {
            id,
            data: vec![0; capacity as usize],
            dirty: vec![0; capacity as usize / SECTOR],
            info,
            manners,
            rng,
            held: Vec::new(),
            sinks: Vec::new(),
            failures: Vec::new(),
            lanes: 0,
        })))
    }

    /// Requests that wait to be answered.
    pub fn pending(&self) -> usize {
        lock(&self.0).held.len()
    }

    pub fn lanes(&self) -> usize {
        lock(&self.0).lanes
    }

    /// Answers one request, whichever; false if there is none that may be.
    pub fn answer_one(&self) -> bool {
        lock(&self.0).answer_one()
    }

    /// From here on nothing fails and nothing hangs.
    pub fn behave(&self) {
        let mut state = lock(&self.0);
        state.manners = Manners {
            prompt: 3,
            abort: state.manners.abort,
            ..Manners::default()
        };
        for held in &mut state.held {
            held.hangs = false;
        }
    }

    /// Changes the size.
    pub fn resize(&self, blocks: u64) {
        let sinks = {
            let mut state = lock(&self.0);
            state.info.blocks = blocks;
            state.sinks.clone()
        };
        for sink in sinks {
            sink.changed();
        }
    }

    pub fn info(&self) -> NsInfo {
        lock(&self.0).info.clone()
    }

    /// Whether a request has failed with this status since `start`.
    pub fn has_failed(&self, start: u64, status: Status) -> bool {
        let state = lock(&self.0);
        let mut failures = state.failures.iter().rev();
        failures.any(|f| f.stamp > start && f.status.same_code(status))
    }

    /// Whether any request has failed since `start`.
    pub fn has_failed_at_all(&self, start: u64) -> bool {
        let state = lock(&self.0);
        state.failures.last().is_some_and(|f| f.stamp > start)
    }

    /// Whether one of these sectors was last written before `start` and is not on stable storage.
    pub fn owes(&self, sectors: std::ops::Range<u64>, start: u64) -> Option<u64> {
        let state = lock(&self.0);
        if !state.info.volatile_cache {
            return None;
        }
        let dirty = |sector: &u64| {
            let written = state.dirty[*sector as usize];
            written != 0 && written < start
        };
        sectors.into_iter().find(dirty)
    }

    /// Whether one of these sectors holds what a write has put there, and only in the cache.
    pub fn owes_write(&self, sectors: std::ops::Range<u64>, write: u32) -> Option<u64> {
        let state = lock(&self.0);
        let owed = |&sector: &u64| {
            let at = sector as usize * SECTOR;
            let tag = content::read(&state.data[at..at + SECTOR]);
            state.dirty[sector as usize] != 0 && tag == Some(content::tag(write, sector))
        };
        let mut sectors = sectors;
        state.info.volatile_cache.then(|| sectors.find(owed))?
    }

    /// Shows what the disk holds.
    pub fn with_data<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&lock(&self.0).data)
    }

    pub fn sectors(&self) -> u64 {
        lock(&self.0).dirty.len() as u64
    }
}

impl State {
    fn submit(&mut self, request: Request) {
        let Manners {
            prompt,
            early,
            drops,
            hangs,
            ..
        } = self.manners;
        let range = request.lba_range();
        note!(
            "disk {} takes {:?} of {} blocks at {}",
            self.id,
            OpWord(request.op()),
            range.blocks,
            range.slba
        );
        if self.rng.once_in(drops) {
            self.failed(Status::INTERNAL_ERROR);
            drop(request);
            return;
        }
        let mut held = Held {
            request,
            result: None,
            hangs: self.rng.once_in(hangs),
            cut_short: false,
        };
        if !held.hangs && self.rng.once_in(prompt) {
            return self.answer(held);
        }
        if self.rng.once_in(early) {
            held.result = Some(self.carry_out(&mut held.request));
        }
        self.held.push(held);
    }

    fn answer_one(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let start = self.rng.index(self.held.len());
        let count = self.held.len();
        let free = (0..count)
            .map(|i| (start + i) % count)
            .find(|&i| !self.held[i].hangs);
        let Some(index) = free else {
            return false;
        };
        let held = self.held.swap_remove(index);
        self.answer(held);
        true
    }

    fn answer(&mut self, mut held: Held) {
        let result = match held.result {
            Some(result) => result,
            None if held.cut_short => {
                self.failed(Status::ABORT_REQUESTED);
                Err(Status::ABORT_REQUESTED)
            }
            None => self.carry_out(&mut held.request),
        };
        note!(
            "disk {} answers {:?} at {}: {}",
            self.id,
            OpWord(held.request.op()),
            held.request.lba_range().slba,
            result.err().unwrap_or(Status::SUCCESS)
        );
        held.request.complete(result);
    }

    fn failed(&mut self, status: Status) {
        let stamp = trace::stamp();
        self.failures.push(Failure { stamp, status });
    }

    fn carry_out(&mut self, request: &mut Request) -> Result<(), Status> {
        let stamp = trace::stamp();
        let op = request.op();
        if self.rng.once_in(self.manners.fails) {
            let status = self.error_of(op);
            self.failed(status);
            return Err(status);
        }
        let range = bytes(request);
        assert!(
            range.end <= self.data.len(),
            "a request beyond the namespace: {request:?}"
        );
        match op {
            Op::Read => request.data_mut().copy_from_slice(&self.data[range]),
            Op::Write { fua } => {
                if self.rng.once_in(self.manners.tears) {
                    self.tear(range, request.data(), stamp);
                    self.failed(Status::WRITE_FAULT);
                    return Err(Status::WRITE_FAULT);
                }
                self.data[range.clone()].copy_from_slice(request.data());
                self.written(range, if fua { 0 } else { stamp });
            }
            Op::WriteZeroes { fua, .. } => {
                self.data[range.clone()].fill(0);
                self.written(range, if fua { 0 } else { stamp });
            }
            Op::Flush => self.dirty.fill(0),
            Op::Deallocate => self.deallocate(request, stamp),
            Op::Compare => {
                if self.data[range] != *request.data() {
                    return Err(Status::COMPARE_FAILURE.dnr());
                }
            }
            Op::CompareAndWrite { fua } => {
                if self.data[range.clone()] != *request.compare_data() {
                    return Err(Status::COMPARE_FAILURE.dnr());
                }
                self.data[range.clone()].copy_from_slice(request.data());
                self.written(range, if fua { 0 } else { stamp });
            }
            Op::Verify => {}
            other => panic!("the target has sent {other:?}"),
        }
        Ok(())
    }

    /// As if written up to somewhere, or here and there.
    fn tear(&mut self, range: std::ops::Range<usize>, data: &[u8], stamp: u64) {
        let first = range.start / SECTOR;
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            if self.rng.once_in(2) {
                let at = (first + index) * SECTOR;
                self.data[at..at + SECTOR].copy_from_slice(sector);
                self.dirty[first + index] = stamp;
            }
        }
    }

    fn written(&mut self, range: std::ops::Range<usize>, stamp: u64) {
        self.dirty[range.start / SECTOR..range.end / SECTOR].fill(stamp);
    }

    fn deallocate(&mut self, request: &Request, stamp: u64) {
        for range in request.ranges() {
            let shift = request.lba_shift();
            let start = (range.slba << shift) as usize;
            let end = start + (range.blocks << shift) as usize;
            self.data[start..end].fill(0);
            self.written(start..end, stamp);
        }
    }

    fn error_of(&mut self, op: Op) -> Status {
        let of_writes = [
            Status::WRITE_FAULT,
            Status::CAPACITY_EXCEEDED,
            Status::NAMESPACE_NOT_READY,
            Status::INTERNAL_ERROR,
        ];
        match op {
            Op::Read | Op::Compare | Op::Verify | Op::CompareAndWrite { .. } => {
                Status::UNRECOVERED_READ_ERROR.dnr()
            }
            _ => self.rng.pick(&of_writes),
        }
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        let at = self
            .held
            .iter()
            .position(|h| h.request.id() == id && h.result.is_none())?;
        match self.manners.abort {
            1 => {
                note!("disk {} gives a request back", self.id);
                Some(self.held.swap_remove(at).request)
            }
            2 => {
                self.held[at].cut_short = true;
                self.held[at].hangs = false;
                None
            }
            _ => None,
        }
    }
}

/// An operation in the trace.
struct OpWord(Op);

impl std::fmt::Debug for OpWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl trace::Word for OpWord {
    fn word(&self) -> u64 {
        match self.0 {
            Op::Read => 1,
            Op::Write { fua } => 2 + u64::from(fua),
            Op::Flush => 4,
            Op::WriteZeroes { deallocate, fua } => 5 + u64::from(fua) + 2 * u64::from(deallocate),
            Op::Deallocate => 9,
            Op::Compare => 10,
            Op::CompareAndWrite { fua } => 11 + u64::from(fua),
            Op::Verify => 13,
            _ => 14,
        }
    }
}

impl Namespace for Disk {
    fn info(&self) -> NsInfo {
        self.info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        let mut state = lock(&self.0);
        let odds = state.manners.closed;
        if state.rng.once_in(odds) {
            state.failed(Status::NAMESPACE_NOT_READY);
            return Err(Error::NotFound("the disk is not there yet".to_owned()));
        }
        state.lanes += 1;
        Ok(Box::new(DiskLane(Arc::clone(&self.0))))
    }

    fn subscribe(&self, sink: NsSink) {
        let mut state = lock(&self.0);
        state.sinks.retain(NsSink::is_of_use);
        state.sinks.push(sink);
    }
}

struct DiskLane(Arc<Mutex<State>>);

impl Lane for DiskLane {
    fn submit(&mut self, request: Request) {
        lock(&self.0).submit(request);
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        lock(&self.0).abort(id)
    }
}

impl Drop for DiskLane {
    fn drop(&mut self) {
        lock(&self.0).lanes -= 1;
    }
}

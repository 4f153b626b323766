//! A lane without a reactor, for tests.

use super::{FileBackend, FileEngine, FileNamespace, ReactorRing};
use crate::buf::BufPool;
use crate::ns::{
    Completion, Lane, LaneCx, LbaRange, Namespace, Op, Port, Request, RequestPool, Route,
    WorkerPool,
};
use crate::wake::Waker;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::sync::Arc;

const SHIFT: u8 = 9;

pub(super) struct Rig {
    pub(super) lane: Box<dyn Lane>,
    pub(super) pool: BufPool,
    ring: ReactorRing,
    port: Arc<Port>,
    waker: Waker,
    requests: RequestPool,
    finished: VecDeque<Completion>,
}

struct NoLane;

impl Lane for NoLane {
    fn submit(&mut self, _: Request) {}
}

impl Rig {
    /// A lane that `open` makes of the reactor's ring.
    pub(super) fn new(ring: ReactorRing, open: impl FnOnce(&LaneCx) -> Box<dyn Lane>) -> Self {
        let waker = Waker::new().unwrap();
        let port = Port::new(waker.clone());
        let cx = LaneCx {
            depth: 1024,
            reactor: 0,
            uring: ring.clone(),
        };
        Self {
            lane: open(&cx),
            pool: BufPool::new(16 << 20, 8 << 20, waker.clone()).unwrap(),
            ring,
            requests: RequestPool::new(Arc::clone(&port)),
            port,
            waker,
            finished: VecDeque::new(),
        }
    }

    /// A lane of a file.
    pub(super) fn of(file: &Arc<FileBackend>, engine: FileEngine, ring: ReactorRing) -> Self {
        let workers = Arc::new(WorkerPool::new(4));
        let namespace = FileNamespace::new(Arc::clone(file), engine, &workers).unwrap();
        Self::new(ring, |cx| namespace.open_lane(cx).unwrap())
    }

    /// A request with data, named after its offset.
    pub(super) fn request(&mut self, op: Op, offset: u64, len: usize) -> Request {
        self.pool.reclaim();
        let buf = match op {
            Op::Read | Op::Write { .. } => self.pool.take(len).unwrap(),
            _ => self.pool.take(0).unwrap(),
        };
        let range = LbaRange {
            slba: offset >> SHIFT,
            blocks: len as u64 >> SHIFT,
        };
        let route = Route {
            conn: offset,
            slot: Slot::default(),
            lane: 0,
        };
        match op {
            Op::Deallocate => {
                let ranges = [range];
                self.requests
                    .make_deallocate(SHIFT, ranges.into_iter(), route)
            }
            _ => self.requests.make(op, SHIFT, range, buf, route),
        }
    }

    pub(super) fn submit(&mut self, op: Op, offset: u64, data: &[u8]) {
        let mut request = self.request(op, offset, data.len());
        if let Op::Write { .. } = op {
            request.data_mut().copy_from_slice(data);
        }
        self.lane.submit(request);
    }

    /// What a reactor does in a turn. Returns how many completions there are.
    pub(super) fn turn(&mut self) -> usize {
        self.lane.commit();
        self.ring.turn();
        self.collect()
    }

    /// As [`Rig::turn`], but nothing is done.
    pub(super) fn collect(&mut self) -> usize {
        let mut new = Vec::new();
        self.port.collect(&mut new);
        self.finished.extend(new);
        self.finished.len()
    }

    /// Turns until something is finished, and returns it.
    pub(super) fn next(&mut self) -> Completion {
        while self.turn() == 0 {
            if !self.ring.owes() && self.waker.prepare_sleep() {
                let waker = PollFd::new(&self.waker, PollFlags::IN);
                let by_ring = self.ring.with_fd(|ring| {
                    poll(
                        &mut [waker.clone(), PollFd::new(&ring, PollFlags::IN)],
                        None,
                    )
                    .unwrap();
                    // Not read where it is watched edge-triggered.
                    let _ = rustix::io::read(ring, &mut [0; 8]);
                });
                if by_ring.is_none() {
                    poll(&mut [waker], None).unwrap();
                }
            }
            self.waker.awake();
            self.waker.drain();
        }
        self.finished.pop_front().unwrap()
    }

    /// The reactor ends: its lanes go, and with them the ring.
    pub(super) fn close(&mut self) {
        self.ring = ReactorRing::default();
        self.lane = Box::new(NoLane);
        self.turn();
        self.finished.clear();
    }

    /// Carries out one request; data goes both ways.
    pub(super) fn run(&mut self, op: Op, offset: u64, data: &mut [u8]) -> Result<(), Status> {
        self.submit(op, offset, data);
        let mut done = self.next();
        if op == Op::Read {
            data.copy_from_slice(&done.take_buf());
        }
        match done.status() {
            Status::SUCCESS => Ok(()),
            status => Err(status),
        }
    }
}

//! Namespaces for fuzzed targets: one that is slow, one that claims anything.

use nvmf_target::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink, Op, Request, RequestId};
use nvmf_target::{Error, Status};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests that wait until somebody wants them done, in the order in which they came.
#[derive(Default)]
pub struct Slow {
    held: Mutex<VecDeque<(Arc<SlowDisk>, Request)>>,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slow({})", lock(&self.held).len())
    }
}

impl Slow {
    /// Completes at most so many; returns how many.
    pub fn release(&self, most: usize) -> usize {
        let mut released = 0;
        while released < most {
            let Some((disk, request)) = lock(&self.held).pop_front() else {
                break;
            };
            disk.carry_out(request);
            released += 1;
        }
        released
    }

    /// Fails the request that has waited longest.
    pub fn fail(&self, status: Status) {
        let first = lock(&self.held).pop_front();
        if let Some((_, request)) = first {
            request.complete(Err(status));
        }
    }
}

/// A small disk whose requests are carried out when [`Slow`] says so.
pub struct SlowDisk {
    info: Mutex<NsInfo>,
    bytes: Mutex<Vec<u8>>,
    sinks: Mutex<Vec<NsSink>>,
    slow: Arc<Slow>,
}

impl fmt::Debug for SlowDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowDisk")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl SlowDisk {
    /// As large as `info` says.
    #[must_use]
    pub fn new(info: NsInfo, slow: &Arc<Slow>) -> Arc<Self> {
        let len = usize::try_from(info.bytes()).unwrap_or(0);
        Arc::new(Self {
            info: Mutex::new(info),
            bytes: Mutex::new(vec![0; len]),
            sinks: Mutex::default(),
            slow: Arc::clone(slow),
        })
    }

    /// Says something else of itself from now on. What it does not have reads as zeroes.
    pub fn change(&self, change: impl FnOnce(&mut NsInfo)) {
        change(&mut lock(&self.info));
        let sinks = lock(&self.sinks).clone();
        sinks.iter().for_each(NsSink::changed);
    }

    fn carry_out(&self, mut request: Request) {
        let range = request.byte_range();
        let mut bytes = lock(&self.bytes);
        let end = usize::try_from(range.end).unwrap_or(usize::MAX);
        if bytes.len() < end && end <= 1 << 22 {
            bytes.resize(end, 0);
        }
        let at = usize::try_from(range.start).unwrap_or(usize::MAX)..end;
        let Some(place) = bytes.get_mut(at) else {
            request.data_mut().fill(0);
            return request.complete(Ok(()));
        };
        let result = match request.op() {
            Op::Read => {
                request.data_mut().copy_from_slice(place);
                Ok(())
            }
            Op::Write { .. } => {
                place.copy_from_slice(request.data());
                Ok(())
            }
            Op::WriteZeroes { .. } => {
                place.fill(0);
                Ok(())
            }
            Op::Compare if place != request.data() => Err(Status::COMPARE_FAILURE.dnr()),
            Op::CompareAndWrite { .. } if place != request.compare_data() => {
                Err(Status::COMPARE_FAILURE.dnr())
            }
            Op::CompareAndWrite { .. } => {
                place.copy_from_slice(request.data());
                Ok(())
            }
            _ => Ok(()),
        };
        drop(bytes);
        request.complete(result);
    }
}

/// A [`SlowDisk`] as a namespace.
#[derive(Clone, Debug)]
pub struct SlowNamespace(pub Arc<SlowDisk>);

impl Namespace for SlowNamespace {
    fn info(&self) -> NsInfo {
        lock(&self.0.info).clone()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(SlowLane(Arc::clone(&self.0))))
    }

    fn subscribe(&self, sink: NsSink) {
        lock(&self.0.sinks).push(sink);
    }
}

struct SlowLane(Arc<SlowDisk>);

impl Lane for SlowLane {
    fn submit(&mut self, request: Request) {
        lock(&self.0.slow.held).push_back((Arc::clone(&self.0), request));
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        let mut held = lock(&self.0.slow.held);
        let at = held.iter().position(|(_, request)| request.id() == id)?;
        held.remove(at).map(|(_, request)| request)
    }
}

/// Whatever it says of itself, there is nothing but zeroes in it, and everything succeeds.
#[derive(Debug)]
pub struct Claim {
    info: Mutex<NsInfo>,
    sinks: Mutex<Vec<NsSink>>,
}

impl Claim {
    /// A namespace that says this of itself.
    #[must_use]
    pub fn new(info: NsInfo) -> Arc<Self> {
        Arc::new(Self {
            info: Mutex::new(info),
            sinks: Mutex::default(),
        })
    }

    /// Says something else of itself from now on.
    pub fn change(&self, change: impl FnOnce(&mut NsInfo)) {
        change(&mut lock(&self.info));
        let sinks = lock(&self.sinks).clone();
        sinks.iter().for_each(NsSink::changed);
    }
}

impl Namespace for Claim {
    fn info(&self) -> NsInfo {
        lock(&self.info).clone()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(ZeroesLane))
    }

    fn subscribe(&self, sink: NsSink) {
        lock(&self.sinks).push(sink);
    }
}

struct ZeroesLane;

impl Lane for ZeroesLane {
    fn submit(&mut self, mut request: Request) {
        if request.op() == Op::Read {
            request.data_mut().fill(0);
        }
        request.complete(Ok(()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

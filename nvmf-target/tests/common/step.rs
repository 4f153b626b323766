//! A namespace whose every request is ended by the test, when and as it likes.

use super::PATIENCE;
use nvmf_target::Error;
use nvmf_target::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink, Request, RequestId};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

#[derive(Clone)]
pub struct Step(Arc<Shared>);

struct Shared {
    info: Mutex<NsInfo>,
    sink: Mutex<Option<NsSink>>,
    requests: Mutex<VecDeque<Request>>,
    arrived: Condvar,
    /// `open_lane` fails.
    broken: Mutex<bool>,
    /// Lanes give back what was not taken yet.
    withdraws: Mutex<bool>,
}

impl Step {
    pub fn new(info: NsInfo) -> Self {
        Self(Arc::new(Shared {
            info: Mutex::new(info),
            sink: Mutex::default(),
            requests: Mutex::default(),
            arrived: Condvar::new(),
            broken: Mutex::default(),
            withdraws: Mutex::default(),
        }))
    }

    /// The oldest request that was not taken yet; waits for one.
    pub fn next(&self) -> Request {
        let requests = self.0.requests.lock().unwrap();
        let (mut requests, _) = self
            .0
            .arrived
            .wait_timeout_while(requests, PATIENCE, |requests| requests.is_empty())
            .unwrap();
        let request = requests.pop_front().expect("no request came");
        let bytes = request.byte_range();
        assert_eq!(request.data().len() as u64 % 512, 0);
        if !request.data().is_empty() {
            assert_eq!(request.data().len() as u64, bytes.end - bytes.start);
        }
        request
    }

    pub fn take(&self, count: usize) -> Vec<Request> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Requests that were not taken yet.
    pub fn pending(&self) -> usize {
        self.0.requests.lock().unwrap().len()
    }

    /// Changes what the namespace says of itself, and tells the target.
    pub fn change(&self, change: impl FnOnce(&mut NsInfo)) {
        change(&mut self.0.info.lock().unwrap());
        let sink = self.0.sink.lock().unwrap().clone();
        sink.expect("it was added").changed();
    }

    pub fn set_broken(&self, broken: bool) {
        *self.0.broken.lock().unwrap() = broken;
    }

    pub fn set_withdraws(&self, withdraws: bool) {
        *self.0.withdraws.lock().unwrap() = withdraws;
    }

    /// Whether the target still holds the namespace or a lane of it.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Namespace for Step {
    fn info(&self) -> NsInfo {
        self.0.info.lock().unwrap().clone()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        if *self.0.broken.lock().unwrap() {
            return Err(Error::ShutDown);
        }
        Ok(Box::new(StepLane(Arc::clone(&self.0))))
    }

    fn subscribe(&self, sink: NsSink) {
        *self.0.sink.lock().unwrap() = Some(sink);
    }
}

struct StepLane(Arc<Shared>);

impl Lane for StepLane {
    fn submit(&mut self, request: Request) {
        self.0.requests.lock().unwrap().push_back(request);
        self.0.arrived.notify_all();
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        if !*self.0.withdraws.lock().unwrap() {
            return None;
        }
        let mut requests = self.0.requests.lock().unwrap();
        let at = requests.iter().position(|r| r.id() == id)?;
        requests.remove(at)
    }
}

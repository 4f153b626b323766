use super::*;
use crate::buf::IoBuf;
use crate::ns::{Completion, Interceptor, LbaRange, NsError, Port, RequestPool, Route};
use crate::wake::Waker;
use nvmf_proto::wire::Status;
use rustix::event::{PollFd, PollFlags, poll};

const ZEROES: Op = Op::WriteZeroes {
    deallocate: false,
    fua: false,
};

/// Keeps those waiting who come to it while it is shut.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    waiting: usize,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.change.notify_all();
        state = self.change.wait_while(state, |state| !state.open).unwrap();
        state.waiting -= 1;
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.change.notify_all();
    }

    /// Returns when so many wait.
    fn has(&self, waiting: usize) {
        let state = self.state.lock().unwrap();
        let more = |state: &mut State| state.waiting < waiting;
        let state = self.change.wait_while(state, more).unwrap();
        assert_eq!(state.waiting, waiting);
    }
}

/// A device whose long requests, and whose reads perhaps, wait at a gate.
#[derive(Clone, Default)]
struct Device {
    gate: Arc<Gate>,
    reads_wait: bool,
}

impl Device {
    fn still() -> Self {
        Self {
            reads_wait: true,
            ..Self::default()
        }
    }

    fn quick() -> Self {
        let device = Self::default();
        device.gate.open();
        device
    }
}

impl BlockDevice for Device {
    fn info(&self) -> NsInfo {
        NsInfo::new(9, 1 << 10)
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
        if self.reads_wait {
            self.gate.pass();
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), NsError> {
        self.gate.pass();
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), NsError> {
        self.gate.pass();
        Ok(())
    }
}

/// What a reactor is to lanes. Requests are named by their first block.
struct Rig {
    requests: RequestPool,
    port: Arc<Port>,
    waker: Waker,
    finished: VecDeque<Completion>,
}

impl Rig {
    fn new() -> Self {
        let waker = Waker::new().unwrap();
        let port = Port::new(waker.clone());
        Self {
            requests: RequestPool::new(Arc::clone(&port)),
            port,
            waker,
            finished: VecDeque::new(),
        }
    }

    fn lane(threaded: &Threaded) -> Box<dyn Lane> {
        let cx = LaneCx {
            depth: 1024,
            reactor: 0,
            uring: crate::ns::ReactorRing::default(),
        };
        threaded.open_lane(&cx).unwrap()
    }

    fn request(&mut self, op: Op, slba: u64) -> Request {
        let route = Route {
            conn: slba,
            ..Route::default()
        };
        let range = LbaRange { slba, blocks: 0 };
        self.requests.make(op, 9, range, IoBuf::empty(), route)
    }

    fn submit(&mut self, lane: &mut dyn Lane, op: Op, names: std::ops::Range<u64>) {
        for slba in names {
            lane.submit(self.request(op, slba));
        }
        lane.commit();
    }

    /// Waits for something that is finished, and says what.
    fn next(&mut self) -> (u64, Status) {
        while self.finished.is_empty() {
            if self.waker.prepare_sleep() {
                poll(&mut [PollFd::new(&self.waker, PollFlags::IN)], None).unwrap();
            }
            self.waker.awake();
            self.waker.drain();
            let mut new = Vec::new();
            self.port.collect(&mut new);
            self.finished.extend(new);
        }
        let done = self.finished.pop_front().unwrap();
        (done.lba_range().slba, done.status())
    }

    /// Waits for `count` that succeed; their names in order.
    fn names(&mut self, count: usize) -> Vec<u64> {
        let one = |_| match self.next() {
            (name, Status::SUCCESS) => name,
            failed => panic!("{failed:?}"),
        };
        let mut names: Vec<_> = (0..count).map(one).collect();
        names.sort_unstable();
        names
    }
}

#[test]
fn long_requests_leave_threads_to_reads_of_the_same_and_of_other_devices() {
    for op in [ZEROES, Op::Flush] {
        let pool = Arc::new(WorkerPool::new(4));
        let slow = Device::default();
        let mut rig = Rig::new();
        let mut slow_lane = Rig::lane(&Threaded::with_pool(slow.clone(), &pool));
        let mut lane = Rig::lane(&Threaded::with_pool(Device::quick(), &pool));
        rig.submit(&mut *slow_lane, op, 0..50);
        slow.gate.has(2);
        rig.submit(&mut *lane, Op::Read, 100..120);
        assert_eq!(rig.names(20), (100..120).collect::<Vec<_>>());
        rig.submit(&mut *slow_lane, Op::Read, 200..220);
        assert_eq!(rig.names(20), (200..220).collect::<Vec<_>>());
        // What is long of others is not kept out either.
        rig.submit(&mut *lane, ZEROES, 300..320);
        assert_eq!(rig.names(20), (300..320).collect::<Vec<_>>());
        slow.gate.has(2);
        slow.gate.open();
        assert_eq!(rig.names(50), (0..50).collect::<Vec<_>>());
    }
}

#[test]
fn devices_that_stand_still_leave_threads_to_others() {
    let pool = Arc::new(WorkerPool::new(32));
    let still = [Device::still(), Device::still()];
    let mut rig = Rig::new();
    let mut lanes = still
        .clone()
        .map(|device| Rig::lane(&Threaded::with_pool(device, &pool)));
    let mut lane = Rig::lane(&Threaded::with_pool(Device::quick(), &pool));
    rig.submit(&mut *lanes[0], Op::Read, 0..50);
    still[0].gate.has(24);
    rig.submit(&mut *lanes[1], Op::Read, 50..100);
    still[1].gate.has(6);
    rig.submit(&mut *lane, Op::Read, 100..150);
    assert_eq!(rig.names(50), (100..150).collect::<Vec<_>>());
    still.iter().for_each(|device| device.gate.open());
    assert_eq!(rig.names(100), (0..100).collect::<Vec<_>>());
}

/// However many devices flush slowly, a thread is left to what is short; and what waits for them is
/// begun when one is done, although its thread may have found something else.
#[test]
fn long_requests_of_many_devices_leave_threads_to_reads_of_others() {
    for (threads, begun) in [(2, &[1][..]), (4, &[2, 1]), (32, &[16, 8])] {
        let pool = Arc::new(WorkerPool::new(threads));
        let slow: Vec<_> = (0..6).map(|_| Device::default()).collect();
        let mut rig = Rig::new();
        let open = |device: &Device| Rig::lane(&Threaded::with_pool(device.clone(), &pool));
        let mut lanes: Vec<_> = slow.iter().map(open).collect();
        let still = Device::still();
        let mut still_lane = open(&still);
        let mut quick_lane = open(&Device::quick());
        for (at, lane) in lanes.iter_mut().enumerate() {
            let first = 100 * at as u64;
            rig.submit(&mut **lane, Op::Flush, first..first + 20);
            if let Some(&begun) = begun.get(at) {
                slow[at].gate.has(begun);
            }
        }
        rig.submit(&mut *quick_lane, Op::Read, 1000..1020);
        assert_eq!(rig.names(20), (1000..1020).collect::<Vec<_>>());
        // Those that wait do not wait for reads that stand still.
        if threads > 2 {
            rig.submit(&mut *still_lane, Op::Read, 2000..2001);
            still.gate.has(1);
        }
        slow.iter().for_each(|device| device.gate.open());
        let all = (0..6).flat_map(|at| 100 * at..100 * at + 20);
        assert_eq!(rig.names(120), all.collect::<Vec<_>>());
        still.gate.open();
        rig.names(usize::from(threads > 2));
    }
}

#[test]
fn a_device_that_shares_with_none_has_all_threads_and_its_long_requests_half() {
    let pool = Arc::new(WorkerPool::new(4));
    let gone = Threaded::with_pool(Device::quick(), &pool);
    let device = Device::still();
    let mut rig = Rig::new();
    let mut lane = Rig::lane(&Threaded::with_pool(device.clone(), &pool));
    drop(gone);
    rig.submit(&mut *lane, ZEROES, 0..8);
    device.gate.has(2);
    rig.submit(&mut *lane, Op::Read, 8..16);
    device.gate.has(4);
    device.gate.open();
    assert_eq!(rig.names(16), (0..16).collect::<Vec<_>>());
}

#[test]
fn devices_take_turns_and_so_do_long_and_short_requests() {
    let pool = Arc::new(WorkerPool::new(1));
    let device = Device::still();
    let mut rig = Rig::new();
    let mut first = Rig::lane(&Threaded::with_pool(device.clone(), &pool));
    let mut other = Rig::lane(&Threaded::with_pool(Device::quick(), &pool));
    rig.submit(&mut *first, Op::Read, 0..4);
    device.gate.has(1);
    rig.submit(&mut *first, Op::Flush, 10..12);
    rig.submit(&mut *other, Op::Read, 20..22);
    // What is taken back loses no turn.
    let unwanted = rig.request(Op::Read, 99);
    let id = unwanted.id();
    other.submit(unwanted);
    other.commit();
    assert!(first.abort(id).is_none(), "it is another device's");
    let back = other.abort(id).unwrap();
    assert_eq!(back.id(), id);
    drop(back.withdraw(Status::ABORT_REQUESTED));
    device.gate.open();
    let order: Vec<_> = (0..8).map(|_| rig.next().0).collect();
    assert_eq!(order, [0, 10, 20, 1, 21, 11, 2, 3]);
}

/// Drops a namespace when a request ends.
struct Dropping(Mutex<Option<Threaded>>);

impl Interceptor for Dropping {
    fn ended(&self, request: Request, result: Result<(), Status>, _: u64) {
        drop(self.0.lock().unwrap().take());
        request.complete(result);
    }
}

#[test]
fn what_no_thread_can_be_had_for_fails_without_the_pools_lock() {
    let pool = Arc::new(WorkerPool::starting(1, |_| {
        Err(io::Error::from(io::ErrorKind::OutOfMemory))
    }));
    let mut rig = Rig::new();
    let mut lane = Rig::lane(&Threaded::with_pool(Device::quick(), &pool));
    // It takes the lock as it goes.
    let other = Threaded::with_pool(Device::quick(), &pool);
    let mut request = rig.request(Op::Read, 7);
    request.intercept(Arc::new(Dropping(Mutex::new(Some(other)))), 0);
    lane.submit(request);
    lane.commit();
    assert_eq!(rig.next(), (7, Status::INTERNAL_ERROR));
}

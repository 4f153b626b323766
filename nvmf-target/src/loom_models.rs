//! Models of what threads hand to each other. loom runs each in every order of its steps, and with
//! every value that the memory model lets an atomic load return, up to a number of preemptions.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p nvmf-target --lib loom_
//! ```
//!
//! What runs is the code of the target itself: [`crate::sync`] gives it loom's types. A model
//! leaves out the descriptors of connections: its reactor waits for its waker only, so that one
//! that is not woken is a deadlock, which loom reports.

use crate::buf::{BLOCK, BufPool, IoBuf};
use crate::ns::{Completion, LbaRange, Op, Port, Request, RequestPool, Route};
use crate::reactor::{Mailbox, Message};
use crate::wake::Waker;
use loom::cell::UnsafeCell;
use loom::thread;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::sync::Arc;

/// Forced switches of threads in one run; without `LOOM_MAX_PREEMPTIONS`. Most bugs of this kind
/// need two.
const PREEMPTIONS: usize = 3;

/// Runs a model in every order.
pub(crate) fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(PREEMPTIONS));
    builder.check(run);
}

/// What a reactor does about its waker in a turn: as `Reactor::wait`.
pub(crate) fn wait(waker: &Waker) {
    if waker.prepare_sleep() {
        waker.wait();
        waker.drain();
    }
    waker.awake();
}

mod messages {
    use super::*;
    use crate::config::Role;
    use crate::ctrl::Listener;
    use crate::transport::TransportAddress;

    fn listener() -> Arc<Listener> {
        Arc::new(Listener {
            uid: 0,
            name: String::new(),
            port_id: 1,
            address: TransportAddress::tcp(([127, 0, 0, 1], 4420).into()),
            role: Role::Io,
            socket: None,
            in_capsule: 8192,
            maxh2cdata: 1 << 17,
        })
    }

    fn stops(messages: &mut Vec<Message>) -> impl Iterator<Item = u64> {
        messages.drain(..).map(|message| match message {
            Message::Stop(id) => id,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn none_is_lost_and_nobody_sleeps_over_one() {
        model(|| {
            let mailbox = Mailbox::new().unwrap();
            let senders = [10, 20].map(|first| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    mailbox.send(Message::Stop(first));
                    mailbox.send(Message::Stop(first + 1));
                })
            });
            let (mut taken, mut got) = (Vec::new(), Vec::new());
            while got.len() < 4 {
                wait(&mailbox.waker);
                mailbox.take(&mut taken);
                got.extend(stops(&mut taken));
            }
            senders.into_iter().for_each(|s| s.join().unwrap());
            for first in [10, 20] {
                let of = got.iter().filter(|id| (first..=first + 1).contains(*id));
                assert_eq!(of.copied().collect::<Vec<_>>(), [first, first + 1]);
            }
        });
    }

    #[test]
    fn what_they_hold_is_let_go_when_the_reactor_ends() {
        model(|| {
            let mailbox = Mailbox::new().unwrap();
            let held = listener();
            let senders = [(); 2].map(|()| {
                let (mailbox, held) = (Arc::clone(&mailbox), Arc::clone(&held));
                thread::spawn(move || mailbox.send(Message::Unlistened(held)))
            });
            let mut taken = Vec::new();
            mailbox.take(&mut taken);
            mailbox.close();
            drop(taken);
            senders.into_iter().for_each(|s| s.join().unwrap());
            assert_eq!(Arc::strong_count(&held), 1);
        });
    }
}

mod completions {
    use super::*;

    /// What a reactor makes requests with.
    struct Maker {
        waker: Waker,
        port: Arc<Port>,
        pool: BufPool,
        requests: RequestPool,
    }

    impl Maker {
        fn new() -> Self {
            let waker = Waker::new().unwrap();
            let port = Port::new(waker.clone());
            Self {
                pool: BufPool::new(2 * BLOCK, BLOCK, waker.clone()).unwrap(),
                requests: RequestPool::new(Arc::clone(&port)),
                port,
                waker,
            }
        }

        fn make(&mut self, conn: u64) -> Request {
            let buf = self.pool.take(BLOCK).unwrap();
            let (slot, lane) = (Slot::default(), 0);
            let route = Route { conn, slot, lane };
            let range = LbaRange { slba: 0, blocks: 1 };
            self.requests.make(Op::Read, 12, range, buf, route)
        }

        /// What a reactor does until so many requests have completed.
        fn gather(&mut self, count: usize) -> Vec<(u64, Status, u8)> {
            let (mut batch, mut got) = (Vec::<Completion>::new(), Vec::new());
            loop {
                self.port.collect(&mut batch);
                for mut completion in batch.drain(..) {
                    let buf = completion.take_buf();
                    got.push((completion.route().conn, completion.status(), buf[0]));
                    self.pool.give(buf);
                    self.requests.recycle(completion);
                }
                if got.len() >= count {
                    got.sort_unstable_by_key(|&(conn, ..)| conn);
                    return got;
                }
                wait(&self.waker);
            }
        }
    }

    #[test]
    fn each_arrives_once_with_its_data_from_whatever_thread() {
        model(|| {
            let mut reactor = Maker::new();
            reactor.port.bind_to_thread();
            let backends = [1, 2].map(|conn| {
                let mut request = reactor.make(conn);
                thread::spawn(move || {
                    request.data_mut()[0] = 40 + u8::try_from(conn).unwrap();
                    request.complete(Ok(()));
                })
            });
            let got = reactor.gather(2);
            assert_eq!(got, [(1, Status::SUCCESS, 41), (2, Status::SUCCESS, 42)]);
            let mut own = reactor.make(3);
            own.data_mut()[0] = 43;
            drop(own);
            assert_eq!(reactor.gather(1), [(3, Status::INTERNAL_ERROR, 43)]);
            backends.into_iter().for_each(|b| b.join().unwrap());
            Port::unbind_from_thread();
        });
    }

    #[test]
    fn one_reactor_may_complete_what_another_has_asked_for() {
        model(|| {
            let mut asking = Maker::new();
            let mut working = Maker::new();
            asking.port.bind_to_thread();
            let (foreign, own) = (asking.make(1), working.make(2));
            let other = thread::spawn(move || {
                working.port.bind_to_thread();
                foreign.complete(Err(Status::ABORT_REQUESTED));
                own.complete(Ok(()));
                let got: Vec<_> = working.gather(1).iter().map(|&(conn, ..)| conn).collect();
                assert_eq!(got, [2]);
                Port::unbind_from_thread();
            });
            let got: Vec<_> = asking.gather(1).iter().map(|&(conn, ..)| conn).collect();
            assert_eq!(got, [1]);
            other.join().unwrap();
            Port::unbind_from_thread();
        });
    }

    /// That nothing is left is what loom sees: the request has a buffer, and that a share of the
    /// pool's memory.
    #[test]
    fn a_request_that_outlives_its_reactor_is_let_go() {
        model(|| {
            let mut reactor = Maker::new();
            reactor.port.bind_to_thread();
            let requests = [1, 2].map(|conn| reactor.make(conn));
            let backends = requests.map(|mut request| {
                thread::spawn(move || {
                    request.data_mut()[0] = 1;
                    request.complete(Ok(()));
                })
            });
            let mut batch = Vec::new();
            reactor.port.collect(&mut batch);
            reactor.port.close();
            drop(batch);
            drop(reactor);
            Port::unbind_from_thread();
            backends.into_iter().for_each(|b| b.join().unwrap());
        });
    }
}

mod buffers {
    use super::*;

    fn pool(blocks: usize) -> (BufPool, Waker) {
        let waker = Waker::new().unwrap();
        let bytes = blocks * BLOCK;
        (BufPool::new(bytes, bytes, waker.clone()).unwrap(), waker)
    }

    /// Tells loom of accesses to the memory of buffers.
    struct Watched {
        start: usize,
        blocks: [UnsafeCell<()>; 2],
    }

    impl Watched {
        fn write(&self, buf: &mut IoBuf, value: u8) {
            let first = (buf.as_ptr().addr() - self.start) / BLOCK;
            for cell in &self.blocks[first..first + buf.len() / BLOCK] {
                cell.with_mut(|_| ());
            }
            buf.fill(value);
        }
    }

    #[test]
    fn a_reactor_that_waits_for_memory_gets_it_whoever_drops_it() {
        model(|| {
            let (mut pool, waker) = pool(2);
            let halves = [(); 2].map(|()| pool.take(BLOCK).unwrap());
            let addresses = halves.each_ref().map(|buf| buf.as_ptr().addr());
            let watched = Arc::new(Watched {
                start: addresses[0].min(addresses[1]),
                blocks: [UnsafeCell::new(()), UnsafeCell::new(())],
            });
            let backends = halves.map(|mut buf| {
                let watched = Arc::clone(&watched);
                thread::spawn(move || watched.write(&mut buf, 1))
            });
            let mut whole = loop {
                pool.reclaim();
                match pool.take(2 * BLOCK) {
                    Some(buf) => break buf,
                    None => wait(&waker),
                }
            };
            watched.write(&mut whole, 2);
            assert_eq!(pool.free_bytes(), 0);
            pool.give(whole);
            assert_eq!(pool.free_bytes(), 2 * BLOCK);
            backends.into_iter().for_each(|b| b.join().unwrap());
        });
    }

    #[test]
    fn the_memory_goes_with_the_last_of_pool_and_buffers() {
        model(|| {
            let (mut pool, _) = pool(2);
            let backends = [(); 2].map(|()| {
                let mut buf = pool.take(BLOCK).unwrap();
                thread::spawn(move || buf.fill(1))
            });
            pool.reclaim();
            drop(pool);
            backends.into_iter().for_each(|b| b.join().unwrap());
        });
    }
}

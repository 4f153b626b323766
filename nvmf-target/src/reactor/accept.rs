//! Accepting connections: a thread of its own, so that no storm of them delays I/O.

use super::{Mailbox, Message, Poller, now};
use crate::Error;
use crate::chatter::limited;
use crate::chatter::{debug, error, warn};
use crate::conn::Wire;
use crate::contain::{Guarded, Panic, contain};
use crate::ctrl::{Core, Listener};
use crate::transport::{Stream, Transport};
use crate::wake::Waker;
use nvmf_proto::tcp::Time;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const WAKER_TOKEN: u64 = u64::MAX;
/// Pause after an error that does not go away by itself, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_NANOS: u64 = 100_000_000;
/// Connections taken from one listener before the others have their turn.
const BATCH: usize = 64;

/// What the accepting thread is told.
enum Order {
    Open(Box<dyn Transport>, Arc<Listener>),
    /// Hands over what is to be dropped when it is done.
    Close(Arc<Listener>, SyncSender<Closed>),
}

/// A listener that is being closed. `None`: a transport closes it, on the accepting thread, which
/// does so when that has returned.
pub(crate) struct Closing(Option<Receiver<Closed>>);

impl Closing {
    /// Waits until the listener is closed. No lock may be held: the accepting thread may be in a
    /// transport that calls the target, and the drop of a transport may want the locks, too.
    pub(crate) fn wait(self) {
        // An error means that the thread has ended, and all listeners with it.
        let closed = self.0.and_then(|closed| closed.recv().ok());
        drop(closed);
    }
}

/// What was a listener's transport. Dropping it is what frees the address.
type Closed = Option<Listening>;
type Listening = Guarded<Box<dyn Transport>>;

/// `None` once the thread has ended: nobody carries out any more.
type Orders = Mutex<Option<Vec<Order>>>;

/// The way to the accepting thread.
pub(crate) struct AcceptorHandle {
    orders: Arc<Orders>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    /// In a simulation, where orders are carried out as they are given.
    #[cfg(feature = "sim")]
    stepped: Option<Arc<Mutex<Acceptor>>>,
}

impl AcceptorHandle {
    pub(crate) fn listen(&self, transport: Box<dyn Transport>, listener: Arc<Listener>) {
        self.order(Order::Open(transport, listener));
    }

    /// Closes a listener and, by way of the reactors, its connections.
    pub(crate) fn close(&self, listener: Arc<Listener>) -> Closing {
        let (done, closed) = sync_channel(1);
        self.order(Order::Close(listener, done));
        let is_own = self.thread.as_ref().is_some_and(is_current);
        Closing((!is_own).then_some(closed))
    }

    fn order(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(orders) = &mut *orders {
            orders.push(order);
        }
        drop(orders);
        self.waker.wake();
        #[cfg(feature = "sim")]
        if let Some(acceptor) = &self.stepped {
            let mut acceptor = acceptor.lock().unwrap_or_else(PoisonError::into_inner);
            acceptor.take_orders();
        }
    }

    /// Closes all listeners. If a transport calls this, that is done when it has returned; a
    /// transport that does not return is left behind, with all listeners.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && !is_current(&thread)
        {
            let _ = join(thread, Instant::now() + LEAVE_WITHIN);
        }
        #[cfg(feature = "sim")]
        if let Some(acceptor) = self.stepped.take() {
            let mut acceptor = acceptor.lock().unwrap_or_else(PoisonError::into_inner);
            acceptor.listeners.clear();
        }
    }
}

/// How long threads that are told to leave everything as it is may take for that.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// How often it is looked whether a thread has ended.
pub(crate) const JOIN_STEP: Duration = Duration::from_millis(2);

/// Whether the calling thread is this one, and so cannot wait for its end.
pub(crate) fn is_current<T>(thread: &JoinHandle<T>) -> bool {
    thread.thread().id() == std::thread::current().id()
}

/// Waits for the end of a thread until `last`. One that does not end then is left behind with what
/// it has, and there is no result: the kernel holds it for a device that hangs, or the embedder's
/// code does.
pub(crate) fn join<T>(thread: JoinHandle<T>, last: Instant) -> Option<T> {
    while !thread.is_finished() && Instant::now() < last {
        std::thread::sleep(JOIN_STEP);
    }
    if !thread.is_finished() {
        let name = thread.thread().name().unwrap_or_default();
        error!(
            "shutdown: {name} does not end, held up by a device, a backend or a transport; it is left"
        );
        return None;
    }
    thread.join().ok()
}

pub(crate) struct Acceptor {
    core: Arc<Core>,
    reactors: Vec<Arc<Mailbox>>,
    orders: Arc<Orders>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    poller: Poller,
    /// Watches nothing but the waker, for the time when nothing is to be accepted.
    quiet: Poller,
    /// By poller token.
    listeners: BTreeMap<u64, Watched>,
    next_token: u64,
}

struct Watched {
    transport: Listening,
    listener: Arc<Listener>,
    /// It is not watched until then.
    paused: Option<Time>,
}

impl Watched {
    fn unwatch(&self, poller: &Poller) {
        if let Err(panic) = contain(|| poller.remove(self.transport.readiness())) {
            error!("listener {}: its transport {panic}", self.listener.name);
        }
    }
}

/// Starts the accepting thread.
pub(crate) fn spawn_acceptor(
    core: &Arc<Core>,
    reactors: Vec<Arc<Mailbox>>,
) -> Result<AcceptorHandle, Error> {
    let (mut acceptor, mut handle) = Acceptor::new(core, reactors).map_err(cannot_start)?;
    let thread = std::thread::Builder::new()
        .name("nvmf-accept".to_owned())
        .spawn(move || acceptor.run())
        .map_err(cannot_start)?;
    handle.thread = Some(thread);
    Ok(handle)
}

fn cannot_start(err: io::Error) -> Error {
    Error::io("cannot start the accepting thread", err)
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Whoever waits for an order sees that it is dropped.
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let left = orders.take();
        drop(orders);
        drop(left);
    }
}

impl Acceptor {
    fn new(core: &Arc<Core>, reactors: Vec<Arc<Mailbox>>) -> io::Result<(Self, AcceptorHandle)> {
        let waker = Waker::new()?;
        let poller = Poller::new()?;
        poller.add_level(&waker, WAKER_TOKEN)?;
        let quiet = Poller::new()?;
        quiet.add_level(&waker, WAKER_TOKEN)?;
        core.door.set_acceptor(waker.clone());
        let orders = Arc::new(Orders::new(Some(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let handle = AcceptorHandle {
            orders: Arc::clone(&orders),
            stop: Arc::clone(&stop),
            waker: waker.clone(),
            thread: None,
            #[cfg(feature = "sim")]
            stepped: None,
        };
        let acceptor = Self {
            core: Arc::clone(core),
            reactors,
            orders,
            stop,
            waker,
            poller,
            quiet,
            listeners: BTreeMap::new(),
            next_token: 0,
        };
        Ok((acceptor, handle))
    }

    fn run(&mut self) {
        let mut ready = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            let next = self.resume(now());
            // Listeners stay readable while nothing can be accepted: do not even look. Whoever ends
            // the last connection that is too many wakes this thread.
            let poller = if all_crowded(&self.reactors) {
                &self.quiet
            } else {
                &self.poller
            };
            let timeout = if self.waker.prepare_sleep() {
                next
            } else {
                Some(Duration::ZERO)
            };
            ready.clear();
            if let Err(err) = poller.wait(timeout, |token, _| ready.push(token)) {
                warn!("waiting for connections failed: {err}");
                std::thread::park_timeout(PAUSE);
            }
            self.waker.awake();
            self.waker.drain();
            self.take_orders();
            for &token in &ready {
                self.accept(token);
            }
        }
    }

    /// Watches those listeners again whose pause is over, and says how long the next one takes.
    fn resume(&mut self, now: Time) -> Option<Duration> {
        let is_over = |watched: &Watched| watched.paused.is_some_and(|until| until <= now);
        let over = self.listeners.iter().filter(|(_, w)| is_over(w));
        let over: Vec<u64> = over.map(|(&token, _)| token).collect();
        for token in over {
            self.watch(token);
        }
        let next = self.listeners.values().filter_map(|w| w.paused).min()?;
        Some(Duration::from_nanos(next.0.saturating_sub(now.0)))
    }

    /// Watches a listener. If that cannot be, then for a lack of memory or the like, so it is tried
    /// again after a pause: whoever asked for the listener takes it that it listens.
    fn watch(&mut self, token: u64) {
        let Some(watched) = self.listeners.get_mut(&token) else {
            return;
        };
        watched.paused = None;
        match contain(|| self.poller.add_level(watched.transport.readiness(), token)) {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                let now = now();
                limited!(
                    Warn,
                    self.core.chatters.listen,
                    now,
                    "listener {}: it cannot be watched: {err}",
                    watched.listener.name
                );
                watched.paused = Some(now.after(PAUSE_NANOS));
            }
            Err(panic) => self.give_up(token, &panic),
        }
    }

    /// Closes a listener whose transport has panicked.
    fn give_up(&mut self, token: u64, panic: &Panic) {
        if let Some(watched) = self.listeners.get(&token) {
            let name = &watched.listener.name;
            error!("listener {name}: its transport {panic}; it accepts no more connections");
        }
        drop(self.unwatch(token));
    }

    /// One that accepts when it is told to, and the way to it.
    #[cfg(feature = "sim")]
    pub(crate) fn stepped(
        core: &Arc<Core>,
        reactors: Vec<Arc<Mailbox>>,
    ) -> Result<(Arc<Mutex<Self>>, AcceptorHandle), Error> {
        let (acceptor, mut handle) = Self::new(core, reactors).map_err(cannot_start)?;
        let acceptor = Arc::new(Mutex::new(acceptor));
        handle.stepped = Some(Arc::clone(&acceptor));
        Ok((acceptor, handle))
    }

    /// Accepts what there is; true if there was any.
    #[cfg(feature = "sim")]
    pub(crate) fn step(&mut self) -> bool {
        // Here a pause lasts until the next step.
        self.resume(Time(u64::MAX));
        let mut ready = Vec::new();
        let looked = self.poller.wait(Some(Duration::ZERO), |token, _| {
            ready.push(token);
        });
        if let Err(err) = looked {
            warn!("looking for connections failed: {err}");
        }
        self.waker.drain();
        let before = self.core.door.counts().connections;
        for &token in &ready {
            self.accept(token);
        }
        self.core.door.counts().connections != before
    }

    fn take_orders(&mut self) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let todo = orders.as_mut().map(std::mem::take).unwrap_or_default();
        drop(orders);
        for order in todo {
            match order {
                Order::Open(transport, listener) => {
                    let token = self.next_token;
                    self.next_token += 1;
                    let transport = Guarded::new("a transport", transport);
                    let watched = Watched {
                        transport,
                        listener,
                        paused: None,
                    };
                    self.listeners.insert(token, watched);
                    self.watch(token);
                }
                Order::Close(listener, done) => {
                    let gone = |(_, other): &(_, &Watched)| Arc::ptr_eq(&other.listener, &listener);
                    let token = self.listeners.iter().find(gone).map(|(&token, _)| token);
                    let closed = token.and_then(|token| self.unwatch(token));
                    // Behind the connections that it has brought.
                    for mailbox in &self.reactors {
                        mailbox.send(Message::Unlistened(Arc::clone(&listener)));
                    }
                    let _ = done.send(closed);
                }
            }
        }
    }

    /// Takes a transport out of those that are watched.
    fn unwatch(&mut self, token: u64) -> Closed {
        let watched = self.listeners.remove(&token)?;
        watched.unwatch(&self.poller);
        Some(watched.transport)
    }

    /// Takes what a listener has.
    fn accept(&mut self, token: u64) {
        let Some(watched) = self.listeners.get_mut(&token) else {
            return;
        };
        for _ in 0..BATCH {
            if all_crowded(&self.reactors) || watched.paused.is_some() {
                return;
            }
            let accepted = match contain(|| watched.transport.accept()) {
                Ok(accepted) => accepted,
                Err(panic) => return self.give_up(token, &panic),
            };
            match accepted {
                Ok(None) => return,
                Ok(Some(stream)) => admit(&self.core, &self.reactors, &watched.listener, stream),
                // The peer gave up, or a signal came: there may be more.
                Err(err)
                    if matches!(
                        err.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(err) => return self.pause(token, &err),
            }
        }
    }

    /// A listener cannot accept. It is tried again after a while; so are the others if it is for a
    /// lack of what all of them need.
    fn pause(&mut self, token: u64, err: &io::Error) {
        let now = now();
        let short = is_short(err);
        if short {
            self.core.door.give_way();
        }
        for (&other, watched) in &mut self.listeners {
            if other == token {
                limited!(
                    Warn,
                    self.core.chatters.listen,
                    now,
                    "listener {}: cannot accept a connection: {err}",
                    watched.listener.name
                );
            }
            if (short || other == token) && watched.paused.is_none() {
                watched.unwatch(&self.poller);
                watched.paused = Some(now.after(PAUSE_NANOS));
            }
        }
    }
}

/// Whether the system has too few descriptors or too little memory.
fn is_short(err: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(err),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// No reactor should get further connections before some of its own have ended.
fn all_crowded(reactors: &[Arc<Mailbox>]) -> bool {
    let mut living = reactors
        .iter()
        .filter(|m| !m.ended.load(Ordering::Acquire))
        .peekable();
    living.peek().is_some() && living.all(|m| m.is_crowded())
}

/// Hands a connection to the reactor that has the fewest, if it may come in; a reactor that does not
/// get round to ending connections gets no others.
fn admit(
    core: &Core,
    reactors: &[Arc<Mailbox>],
    listener: &Arc<Listener>,
    stream: Box<dyn Stream>,
) {
    let stream = Wire::new(stream);
    let least = reactors
        .iter()
        .filter(|m| !m.ended.load(Ordering::Acquire) && !m.is_crowded())
        .min_by_key(|m| m.connections.load(Ordering::Acquire));
    let Some(mailbox) = least else {
        limited!(
            Error,
            core.chatters.ended,
            now(),
            "{}: refused, no reactor is left",
            stream.peer()
        );
        return;
    };
    match core.door.enter(stream.peer_ip(), mailbox) {
        Ok(guest) => {
            debug!("{}: connected", stream.peer());
            mailbox.send(Message::Accept(stream, Arc::clone(listener), guest));
        }
        Err(full) => limited!(
            Warn,
            core.chatters.accept,
            now(),
            "{}: refused, {full}",
            stream.peer()
        ),
    }
}

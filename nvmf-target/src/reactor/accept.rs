//! Accepting connections: a thread of its own, so that no storm of them delays I/O.

use super::{Mailbox, Message, Poller};
use crate::Error;
use crate::ctrl::{Core, Listener};
use crate::transport::Transport;
use crate::wake::Waker;
use log::{debug, error, warn};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const WAKER_TOKEN: u64 = u64::MAX;
/// Pause after an error that does not go away by itself, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections taken from one listener before the others have their turn.
const BATCH: usize = 64;

type Incoming = Mutex<Vec<(Box<dyn Transport>, Arc<Listener>)>>;

/// The way to the accepting thread.
pub(crate) struct AcceptorHandle {
    incoming: Arc<Incoming>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl AcceptorHandle {
    pub(crate) fn listen(&self, transport: Box<dyn Transport>, listener: Arc<Listener>) {
        self.incoming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((transport, listener));
        self.waker.wake();
    }

    /// Closes all listeners.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Acceptor {
    core: Arc<Core>,
    reactors: Vec<Arc<Mailbox>>,
    incoming: Arc<Incoming>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    poller: Poller,
    listeners: Vec<(Box<dyn Transport>, Arc<Listener>)>,
}

/// Starts the accepting thread.
pub(crate) fn spawn_acceptor(
    core: &Arc<Core>,
    reactors: Vec<Arc<Mailbox>>,
) -> Result<AcceptorHandle, Error> {
    let failed = |err| Error::io("cannot start the accepting thread", err);
    let waker = Waker::new().map_err(failed)?;
    let poller = Poller::new().map_err(failed)?;
    poller.add_level(&waker, WAKER_TOKEN).map_err(failed)?;
    let (incoming, stop) = (Arc::<Incoming>::default(), Arc::new(AtomicBool::new(false)));
    let mut acceptor = Acceptor {
        core: Arc::clone(core),
        reactors,
        incoming: Arc::clone(&incoming),
        stop: Arc::clone(&stop),
        waker: waker.clone(),
        poller,
        listeners: Vec::new(),
    };
    let thread = std::thread::Builder::new()
        .name("nvmf-accept".to_owned())
        .spawn(move || acceptor.run())
        .map_err(failed)?;
    Ok(AcceptorHandle {
        incoming,
        stop,
        waker,
        thread: Some(thread),
    })
}

impl Acceptor {
    fn run(&mut self) {
        let mut ready = Vec::new();
        let mut paused = false;
        while !self.stop.load(Ordering::SeqCst) {
            let timeout = if paused {
                Some(PAUSE)
            } else if self.waker.prepare_sleep() {
                None
            } else {
                Some(Duration::ZERO)
            };
            ready.clear();
            if paused {
                // Listeners stay readable while nothing can be accepted: do not even look.
                std::thread::park_timeout(PAUSE);
                ready.extend(0..self.listeners.len() as u64);
            } else if let Err(err) = self.poller.wait(timeout, |token, _| ready.push(token)) {
                warn!("waiting for connections failed: {err}");
                std::thread::park_timeout(PAUSE);
            }
            self.waker.awake();
            self.waker.drain();
            self.take_incoming();
            paused = false;
            for &token in &ready {
                paused |= self.accept(token);
            }
        }
    }

    fn take_incoming(&mut self) {
        let new =
            std::mem::take(&mut *self.incoming.lock().unwrap_or_else(PoisonError::into_inner));
        for (transport, listener) in new {
            let token = self.listeners.len() as u64;
            if let Err(err) = self.poller.add_level(transport.readiness(), token) {
                warn!("a listener cannot be watched: {err}");
            }
            self.listeners.push((transport, listener));
        }
    }

    /// Takes what a listener has; true if accepting has to pause.
    fn accept(&mut self, token: u64) -> bool {
        let index = usize::try_from(token).unwrap_or(usize::MAX);
        let Some((transport, listener)) = self.listeners.get_mut(index) else {
            return false;
        };
        for _ in 0..BATCH {
            match transport.accept() {
                Ok(None) => return false,
                Ok(Some(stream)) => {
                    let live = self.core.connections.fetch_add(1, Ordering::AcqRel);
                    if live >= self.core.config.max_connections {
                        warn!(
                            "{}: refused, {live} connections are the limit",
                            stream.peer()
                        );
                        self.core.connections.fetch_sub(1, Ordering::AcqRel);
                        continue;
                    }
                    let least = self
                        .reactors
                        .iter()
                        .filter(|m| !m.ended.load(Ordering::Acquire))
                        .min_by_key(|m| m.connections.load(Ordering::Acquire));
                    if let Some(mailbox) = least {
                        debug!("{}: connected", stream.peer());
                        mailbox.connections.fetch_add(1, Ordering::AcqRel);
                        mailbox.send(Message::Accept(stream, Arc::clone(listener)));
                    } else {
                        error!("{}: refused, no reactor is left", stream.peer());
                        self.core.connections.fetch_sub(1, Ordering::AcqRel);
                    }
                }
                // The peer gave up, or a signal came: there may be more.
                Err(err)
                    if matches!(
                        err.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(err) => {
                    warn!("cannot accept a connection: {err}");
                    return true;
                }
            }
        }
        false
    }
}

//! The target: what an embedder starts and shuts down. How it is changed meanwhile is in `manage`.

use crate::Error;
use crate::chatter::{debug, error, warn};
use crate::config::TargetConfig;
use crate::ctrl::Core;
use crate::reactor::{
    self, AcceptorHandle, JOIN_STEP, LEAVE_WITHIN, Mailbox, Message, is_current, join,
    spawn_acceptor,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running target. Cheap to clone; every method may be called from any thread.
///
/// When the last clone is dropped, the target is shut down without waiting for hosts.
#[derive(Clone)]
pub struct Target(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) reactors: Vec<Arc<Mailbox>>,
    /// Held while changes are made: one after the other.
    pub(crate) changing: Mutex<()>,
    running: Mutex<Running>,
    /// Somebody has no time to wait for a shutdown that another thread has begun.
    hurried: AtomicBool,
    /// Once the target is shut down: whether everything was done, for those who wait for it and
    /// those who come later.
    over: Mutex<Option<bool>>,
    ended: Condvar,
}

#[derive(Default)]
pub(crate) struct Running {
    pub(crate) acceptor: Option<AcceptorHandle>,
    /// Each says whether it had come to its end.
    threads: Vec<JoinHandle<bool>>,
}

/// What a target has at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetStats {
    /// Connections, whatever their state.
    pub connections: usize,
    /// Those of them that have no accepted Connect yet.
    pub unconnected: usize,
    /// Bytes that queues are charged with, of [`TargetConfig::queue_bytes`].
    pub queue_bytes: usize,
    /// Controllers of all subsystems, discovery controllers included.
    pub controllers: usize,
    /// I/O queues of all controllers.
    pub io_queues: usize,
    /// Bytes of I/O buffers that are lent out.
    pub buffers_lent: usize,
    /// Requests that are in backends.
    pub in_flight: usize,
}

impl Target {
    /// Checks the configuration and starts the reactor threads.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of its bounds, [`Error::Io`] if the system gives no
    /// thread, descriptor or memory.
    pub fn new(config: TargetConfig) -> Result<Self, Error> {
        let inner = Inner::new(config)?;
        {
            let mut running = inner.running();
            for (index, mailbox) in inner.reactors.iter().enumerate() {
                running
                    .threads
                    .push(reactor::spawn(&inner.core, index, mailbox)?);
            }
            running.acceptor = Some(spawn_acceptor(&inner.core, inner.reactors.clone())?);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// What there is at this moment. The figures are taken one after the other, not all at once.
    #[must_use]
    pub fn stats(&self) -> TargetStats {
        let core = &self.0.core;
        let counts = core.door.counts();
        let subsystems = core.subsystems();
        let sum = |f: fn(&Mailbox) -> usize| self.0.reactors.iter().map(|m| f(m)).sum();
        TargetStats {
            connections: counts.connections,
            unconnected: counts.unconnected,
            queue_bytes: counts.queue_bytes,
            controllers: subsystems
                .iter()
                .map(|s| s.controller_count())
                .sum::<usize>()
                + core.discovery.controller_count(),
            io_queues: subsystems
                .iter()
                .flat_map(|s| s.controllers())
                .map(|c| c.io_queue_count())
                .sum(),
            buffers_lent: sum(|m| m.buffers_lent.load(Ordering::Relaxed)),
            in_flight: sum(|m| m.in_flight.load(Ordering::Relaxed)),
        }
    }

    /// Connections that have been accepted since the target was made.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.0.core.door.accepted()
    }

    /// Blocks until another thread has shut the target down.
    pub fn wait(&self) {
        self.0.wait();
    }

    /// Shuts down: closes the listeners, lets connections finish what has begun (commands in
    /// backends, and writes whose data is on its way), flushes the backends, and closes the
    /// connections when their hosts have seen the end. A host that does nothing, or too little for
    /// what it has asked for, is given up after two seconds; what is not done `within` the time is
    /// cut off ([`Duration::MAX`]: it takes as long as it takes). A thread that a transport, a
    /// backend or the kernel does not let go within another three seconds is left behind with what
    /// it has. No listener can be added from here on.
    ///
    /// Code that the target calls on a thread of its own had better leave this, and
    /// [`Target::wait`], to another thread: a reactor on which this is called cannot wait for what it
    /// has in hand itself. It waits for three seconds at most, and then that is cut off.
    ///
    /// True if everything that backends were given was done, and flushed, the caches of namespaces
    /// that were removed earlier and of those whose lanes have panicked included. Hosts that were
    /// given up or cut off, which the log names, make no difference: they had no answer. If another
    /// thread is shutting down, the shorter time counts for both, and both return the same; so does
    /// a call that comes later.
    #[must_use = "false means that commands were cut off, or caches not flushed"]
    pub fn shutdown(&self, within: Duration) -> bool {
        self.0.shutdown(within)
    }
}

impl Inner {
    /// All but the threads.
    pub(crate) fn new(config: TargetConfig) -> Result<Self, Error> {
        config.validate()?;
        let core = Core::new(config);
        let failed = |err| Error::io("cannot start a reactor", err);
        let reactors = (0..core.config.reactors)
            .map(|_| Mailbox::new())
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        Ok(Self {
            core,
            reactors,
            changing: Mutex::default(),
            running: Mutex::default(),
            hurried: AtomicBool::new(false),
            over: Mutex::new(None),
            ended: Condvar::new(),
        })
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shutdown(&self, within: Duration) -> bool {
        // A reactor that a backend calls this on cannot wait for itself, and others wait for it.
        let within = match self.reactors.iter().any(|reactor| reactor.port.is_own()) {
            true => within.min(LEAVE_WITHIN),
            false => within,
        };
        let Some(threads) = self.begin_shutdown() else {
            return self.hurry(within);
        };
        // None: as long as it takes.
        let deadline = Instant::now().checked_add(within);
        let left = || deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let is_late = || left().is_some_and(|left| left.is_zero());
        let is_running = || threads.iter().any(|thread| !thread.is_finished());
        let is_hurried = || self.hurried.load(Ordering::Acquire);
        while is_running() && !is_late() && !is_hurried() {
            std::thread::sleep(JOIN_STEP.min(left().unwrap_or(JOIN_STEP)));
        }
        if is_running() && is_hurried() {
            warn!("shutdown: another caller's time has passed, the rest is cut off");
        } else if is_running() && !within.is_zero() {
            warn!("shutdown: {within:?} have passed, the rest is cut off");
        }
        for mailbox in &self.reactors {
            mailbox.send(Message::Quit);
        }
        let mut complete = true;
        let last = Instant::now() + LEAVE_WITHIN;
        for thread in threads {
            complete &= !is_current(&thread) && join(thread, last) == Some(true);
        }
        if self.core.unflushed.load(Ordering::Acquire) {
            error!("shutdown: what hosts have written may not be on stable storage");
            complete = false;
        } else if !complete && !within.is_zero() {
            warn!("shutdown: backends had not finished, or not flushed, what they were given");
        }
        debug!("the target is shut down");
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = Some(complete);
        self.ended.notify_all();
        complete
    }

    /// Closes the listeners and tells the reactors to come to an end; the threads to wait for.
    /// `None` if that has been done before.
    pub(crate) fn begin_shutdown(&self) -> Option<Vec<JoinHandle<bool>>> {
        let Running { acceptor, threads } = std::mem::take(&mut *self.running());
        if acceptor.is_none() && threads.is_empty() {
            return None;
        }
        if let Some(mut acceptor) = acceptor {
            acceptor.stop();
        }
        for mailbox in &self.reactors {
            mailbox.send(Message::Drain);
        }
        Some(threads)
    }

    /// Another thread shuts down, or has done so: waits for it, and cuts the rest off after
    /// `within`.
    fn hurry(&self, within: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let (over, _) = self
            .ended
            .wait_timeout_while(over, within, |over| over.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(complete) = *over {
            return complete;
        }
        drop(over);
        self.hurried.store(true, Ordering::Release);
        self.wait()
    }

    /// Waits until the target is shut down; whether everything was done.
    fn wait(&self) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let over = self
            .ended
            .wait_while(over, |over| over.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *over == Some(true)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without threads it is over already, or its first thread could not be started: there is
        // nobody to wait for.
        let running = self.running();
        let is_running = running.acceptor.is_some() || !running.threads.is_empty();
        drop(running);
        if is_running {
            let _ = self.shutdown(Duration::ZERO);
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left when the system gives no memory or descriptor for the first reactor.
    #[test]
    fn a_target_without_threads_waits_for_nobody_when_it_is_dropped() {
        drop(Inner::new(TargetConfig::default()).unwrap());
    }
}

//! The target: what an embedder starts, changes while it runs, and shuts down.

use crate::Error;
use crate::config::{SubsystemConfig, TargetConfig};
use crate::ctrl::{Core, Role, Subsystem};
use crate::ns::Namespace;
use crate::reactor::{self, AcceptorHandle, Mailbox, Message, spawn_acceptor};
use crate::transport::{TcpTransport, Transport};
use log::{debug, warn};
use nvmf_proto::wire::nqn::Nqn;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a bounded shutdown looks whether the reactors have ended.
const SHUTDOWN_STEP: Duration = Duration::from_millis(2);

/// A running target. Cheap to clone; every method may be called from any thread.
///
/// When the last clone is dropped, the target is shut down without waiting for hosts.
#[derive(Clone)]
pub struct Target(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    reactors: Vec<Arc<Mailbox>>,
    running: Mutex<Running>,
    /// Whether the target is shut down, for those who wait for it.
    over: Mutex<bool>,
    ended: Condvar,
}

struct Running {
    acceptor: Option<AcceptorHandle>,
    threads: Vec<JoinHandle<()>>,
}

/// What a target has at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetStats {
    /// Connections, whatever their state.
    pub connections: usize,
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
        config.validate()?;
        let core = Core::new(config);
        let failed = |err| Error::io("cannot start a reactor", err);
        let reactors: Vec<_> = (0..core.config.reactors)
            .map(|_| Mailbox::new())
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let inner = Inner {
            core,
            reactors,
            running: Mutex::new(Running {
                acceptor: None,
                threads: Vec::new(),
            }),
            over: Mutex::new(false),
            ended: Condvar::new(),
        };
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

    /// Adds an NVM subsystem.
    ///
    /// # Errors
    /// [`Error::Config`] if a value is not acceptable or the NQN is taken.
    pub fn add_subsystem(&self, config: SubsystemConfig) -> Result<(), Error> {
        let nqn = config.validate()?;
        if self.0.core.add_subsystem(Subsystem::nvm(nqn, &config)) {
            Ok(())
        } else {
            Err(Error::config(format!(
                "there is a subsystem {} already",
                config.nqn
            )))
        }
    }

    /// Attaches a namespace to a subsystem under an NSID. Hosts that are connected are told.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem, [`Error::Config`] if the NSID is taken or out
    /// of range or the namespace's information is not acceptable.
    pub fn add_namespace(&self, nqn: &str, nsid: u32, ns: impl Namespace) -> Result<(), Error> {
        let (info, max) = (ns.info(), self.0.core.config.max_transfer);
        info.validate()?;
        let block = info.block_size();
        if block > max {
            return Err(Error::config(format!(
                "block size {block}: at most max_transfer, {max} bytes, is wanted"
            )));
        }
        let uid = self.0.core.new_uid();
        self.subsystem(nqn)?.add_namespace(nsid, uid, Arc::new(ns))
    }

    /// Detaches a namespace. Hosts that are connected are told; commands that are in the backend
    /// finish, later ones fail with Invalid Namespace or Format. The namespace is dropped when the
    /// last of its commands is done, not before this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem or namespace.
    pub fn remove_namespace(&self, nqn: &str, nsid: u32) -> Result<(), Error> {
        let uid = self.subsystem(nqn)?.remove_namespace(nsid)?;
        for mailbox in &self.0.reactors {
            mailbox.send(Message::Detached(uid));
        }
        Ok(())
    }

    fn subsystem(&self, nqn: &str) -> Result<Arc<Subsystem>, Error> {
        let missing = || Error::NotFound(format!("no subsystem {nqn:?}"));
        let name = Nqn::new(nqn).map_err(|_| missing())?;
        self.0
            .core
            .subsystem(&name)
            .filter(|_| !name.is_discovery())
            .ok_or_else(missing)
    }

    /// Listens for NVMe/TCP on an address, for all subsystems and for discovery; port 0 takes any.
    /// Returns the address that was bound.
    ///
    /// # Errors
    /// [`Error::Io`] if the address cannot be bound.
    pub fn listen(&self, address: SocketAddr) -> Result<SocketAddr, Error> {
        self.listen_tcp(address, Role::Io)
    }

    /// Listens for NVMe/TCP on an address, for discovery only.
    ///
    /// # Errors
    /// [`Error::Io`] if the address cannot be bound.
    pub fn listen_discovery(&self, address: SocketAddr) -> Result<SocketAddr, Error> {
        self.listen_tcp(address, Role::Discovery)
    }

    fn listen_tcp(&self, address: SocketAddr, role: Role) -> Result<SocketAddr, Error> {
        let transport = TcpTransport::bind(address)?;
        let bound = transport.local_addr();
        self.listen_on(Box::new(transport), role)?;
        Ok(bound)
    }

    /// Accepts connections from a transport of the embedder's.
    ///
    /// # Errors
    /// [`Error::ShutDown`] after [`Target::shutdown`].
    pub fn listen_on(&self, transport: Box<dyn Transport>, role: Role) -> Result<(), Error> {
        let running = self.0.running();
        let acceptor = running.acceptor.as_ref().ok_or(Error::ShutDown)?;
        let listener = self.0.core.add_listener(transport.address(), role);
        acceptor.listen(transport, listener);
        Ok(())
    }

    /// What there is at this moment. The figures are taken one after the other, not all at once.
    #[must_use]
    pub fn stats(&self) -> TargetStats {
        let core = &self.0.core;
        let subsystems = core.subsystems();
        let sum = |f: fn(&Mailbox) -> usize| self.0.reactors.iter().map(|m| f(m)).sum();
        TargetStats {
            connections: core.connections.load(Ordering::Acquire),
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

    /// Blocks until another thread has shut the target down.
    pub fn wait(&self) {
        let mut over = self.0.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            over = self
                .0
                .ended
                .wait(over)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Shuts down: closes the listeners, lets connections finish the commands that are in backends,
    /// flushes the backends, closes the connections. What is not done `within` the time is cut
    /// off. True if everything was done; also if it was shut down before.
    #[must_use = "false means that commands were cut off"]
    pub fn shutdown(&self, within: Duration) -> bool {
        self.0.shutdown(within)
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shutdown(&self, within: Duration) -> bool {
        let mut running = self.running();
        if running.acceptor.is_none() && running.threads.is_empty() {
            return true;
        }
        if let Some(mut acceptor) = running.acceptor.take() {
            acceptor.stop();
        }
        let deadline = Instant::now() + within;
        for mailbox in &self.reactors {
            mailbox.send(Message::Drain);
        }
        while running.threads.iter().any(|t| !t.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(
                SHUTDOWN_STEP.min(deadline.saturating_duration_since(Instant::now())),
            );
        }
        let complete = running.threads.iter().all(JoinHandle::is_finished);
        if !complete && !within.is_zero() {
            warn!("shutdown: not everything was finished in {within:?}, the rest is cut off");
        }
        for mailbox in &self.reactors {
            mailbox.send(Message::Quit);
        }
        for thread in running.threads.drain(..) {
            // Dropped by one of its own reactors' backends, a target cannot wait for that one.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        debug!("the target is shut down");
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.notify_all();
        complete
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.shutdown(Duration::ZERO);
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

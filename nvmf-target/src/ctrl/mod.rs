//! Subsystems and controllers: the part of a target that is asked a few times per second.
//!
//! State here is shared between reactors behind locks that no I/O takes. An I/O queue learns of a
//! reset, a shutdown or the end of its association by a message to its reactor, and of namespace
//! changes by a generation number that it compares before each command.

pub(crate) mod admin;
mod ana;
pub(crate) mod connect;
mod controller;
mod door;
mod draft;
mod fault;
mod namespaces;
mod persistent;
mod property;
pub(crate) mod reservation;
mod subsystem;
#[cfg(test)]
mod testing;
mod topology;
mod view;

pub use ana::AnaState;
pub(crate) use controller::{
    CONTROLLER_BYTES, Controller, Expiry, Inquired, Inquiry, NsStats, Opening, QueueStats,
};
pub(crate) use door::{Door, ENDING_MAX, Guest};
pub(crate) use draft::Effects;
pub(crate) use fault::Fault;
pub(crate) use namespaces::{NsEntry, NsShared, NsTable, Visibility};
pub(crate) use subsystem::{Kind, Snapshot, Subsystem};
pub(crate) use topology::{Port, Reach, Topology};
pub(crate) use view::{Seen, Usage, View};

use crate::chatter::Chatters;
use crate::config::{Role, SubsystemConfig, TargetConfig};
use crate::ns::Namespace;
use crate::reactor::{Gate, Mailbox, Message};
use crate::transport::TransportAddress;
use nvmf_proto::tcp::Slot;
use reservation::Keeper;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// A listener as controllers and the discovery log see it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Tells it from any other that has or had the same name or PORTID.
    pub(crate) uid: u64,
    pub(crate) name: String,
    /// PORTID.
    pub(crate) port_id: u16,
    pub(crate) address: TransportAddress,
    pub(crate) role: Role,
    /// The socket of a TCP listener.
    pub(crate) socket: Option<SocketAddr>,
    /// In-capsule data of commands on I/O queues, bytes.
    pub(crate) in_capsule: u32,
    /// MAXH2CDATA in bytes.
    pub(crate) maxh2cdata: u32,
}

/// What a controller offers its host, from the settings of target, subsystem and listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// I/O queues that Set Features may grant.
    pub(crate) io_queues: u16,
    /// CAP.MQES + 1.
    pub(crate) io_queue_entries: u32,
    /// MDTS in bytes: a power of two.
    pub(crate) max_transfer: u32,
    /// In-capsule data of commands on I/O queues, bytes.
    pub(crate) in_capsule: u32,
    /// AERL + 1.
    pub(crate) event_requests: u16,
}

impl Limits {
    /// What a subsystem offers by a listener that sets no limits.
    pub(crate) fn of_subsystem(target: &TargetConfig, subsystem: &SubsystemConfig) -> Self {
        Self {
            io_queues: subsystem.io_queues.unwrap_or(target.io_queues),
            io_queue_entries: subsystem
                .io_queue_entries
                .unwrap_or(target.io_queue_entries),
            max_transfer: subsystem.max_transfer.unwrap_or(target.max_transfer),
            in_capsule: target.in_capsule,
            event_requests: subsystem.event_requests,
        }
    }

    /// What is left of them by a listener.
    pub(crate) const fn by(self, listener: &Listener) -> Self {
        Self {
            in_capsule: listener.in_capsule,
            ..self
        }
    }
}

/// A backend and its write gate.
type KnownGate = (Weak<dyn Namespace>, Weak<Gate>);

/// What all parts of one target share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: TargetConfig,
    topology: RwLock<Arc<Topology>>,
    pub(crate) discovery: Arc<Subsystem>,
    /// The PORTID to try next: they are used again as late as possible.
    next_port: AtomicU16,
    /// The next uid of a namespace that is attached, or of a listener.
    next_uid: AtomicU64,
    /// Counts connections, accepted but not yet gone.
    pub(crate) door: Arc<Door>,
    pub(crate) chatters: Chatters,
    /// Makes changes of reservations that may block.
    pub(crate) keeper: Keeper,
    /// The write gates of backends that are attached, or still have requests from when they were.
    gates: Mutex<Vec<KnownGate>>,
    /// A cache could not be flushed when the target was shut down, or its namespace detached.
    pub(crate) unflushed: AtomicBool,
}

impl Core {
    pub(crate) fn new(config: TargetConfig) -> Arc<Self> {
        Arc::new(Self {
            discovery: Subsystem::discovery(&config),
            door: Door::new(&config),
            config,
            topology: RwLock::default(),
            gates: Mutex::default(),
            next_port: AtomicU16::new(1),
            next_uid: AtomicU64::new(1),
            chatters: Chatters::default(),
            keeper: Keeper::default(),
            unflushed: AtomicBool::new(false),
        })
    }

    /// Subsystems, ports and who may use them, at this moment.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The NVM subsystems at this moment.
    pub(crate) fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        let topology = self.topology();
        let members = topology.subsystems.values();
        members
            .map(|member| Arc::clone(&member.subsystem))
            .collect()
    }

    /// The write gate of a backend: the one that it has already, if it is attached elsewhere, or was
    /// and has requests from then: what is atomic must be so against those as well.
    fn gate_of(&self, namespace: &Arc<dyn Namespace>) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        gates.retain(|(_, gate)| gate.strong_count() > 0);
        let same =
            |of: &Weak<dyn Namespace>| std::ptr::addr_eq(of.as_ptr(), Arc::as_ptr(namespace));
        let known = gates.iter().find(|(of, _)| same(of));
        if let Some(gate) = known.and_then(|(_, gate)| gate.upgrade()) {
            return gate;
        }
        let gate = Arc::default();
        gates.push((Arc::downgrade(namespace), Arc::downgrade(&gate)));
        gate
    }

    fn new_uid(&self) -> u64 {
        self.next_uid.fetch_add(1, Ordering::Relaxed)
    }

    /// A PORTID that none of `ports` has. There are fewer than 65,535.
    fn new_port_id(&self, ports: &BTreeMap<u16, Port>) -> u16 {
        loop {
            let id = self.next_port.fetch_add(1, Ordering::Relaxed);
            if id != 0 && !ports.contains_key(&id) {
                return id;
            }
        }
    }
}

/// A connection as others see it: where to send it messages.
#[derive(Clone, Debug)]
pub(crate) struct ConnRef {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) id: u64,
}

impl ConnRef {
    /// Ends the connection.
    pub(crate) fn stop(&self) {
        self.mailbox.send(Message::Stop(self.id));
    }

    /// Tells an admin queue what became of a command that one of its Aborts has named.
    pub(crate) fn aborted(&self, slot: Slot, aborted: bool) {
        self.mailbox.send(Message::Aborted {
            conn: self.id,
            slot,
            aborted,
        });
    }

    /// Tells an admin queue that its controller has something for it.
    pub(crate) fn notify(&self) {
        self.mailbox.send(Message::Notify(self.id));
    }
}

impl PartialEq for ConnRef {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.mailbox, &other.mailbox)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

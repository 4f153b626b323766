//! Subsystems and controllers: the part of a target that is asked a few times per second.
//!
//! State here is shared between reactors behind locks that no I/O takes. An I/O queue learns of a
//! reset, a shutdown or the end of its association by a message to its reactor, and of namespace
//! changes by a generation number that it compares before each command.

pub(crate) mod admin;
pub(crate) mod connect;
mod controller;
mod fault;
mod namespaces;
mod persistent;
mod property;
pub(crate) mod reservation;
mod subsystem;
#[cfg(test)]
mod testing;
mod view;

pub(crate) use controller::{Controller, Opening, QueueStats};
pub(crate) use fault::Fault;
pub(crate) use namespaces::{NsEntry, NsShared, NsTable, Visibility};
pub(crate) use subsystem::{Kind, Subsystem};
pub(crate) use view::{Access, Seen, View};

use crate::TargetConfig;
use crate::reactor::{Mailbox, Message};
use crate::transport::TransportAddress;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::log::AsyncEvent;
use nvmf_proto::wire::nqn::Nqn;
use reservation::Keeper;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Which subsystems a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// All of them, and the discovery service.
    Io,
    /// The discovery service only.
    Discovery,
}

/// A listener as controllers and the discovery log see it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// PORTID.
    pub(crate) port_id: u16,
    pub(crate) address: TransportAddress,
    pub(crate) role: Role,
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
}

impl Limits {
    pub(crate) const fn new(config: &TargetConfig) -> Self {
        Self {
            io_queues: config.io_queues,
            io_queue_entries: config.io_queue_entries,
            max_transfer: config.max_transfer,
            in_capsule: config.in_capsule,
        }
    }
}

/// What all parts of one target share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: TargetConfig,
    subsystems: RwLock<BTreeMap<Nqn, Arc<Subsystem>>>,
    pub(crate) discovery: Arc<Subsystem>,
    pub(crate) listeners: RwLock<Vec<Arc<Listener>>>,
    /// GENCTR of the discovery log.
    genctr: AtomicU64,
    /// The uid of the next namespace to be attached.
    next_uid: AtomicU64,
    /// Connections that exist, accepted but not yet gone.
    pub(crate) connections: AtomicUsize,
    /// Makes changes of reservations that may block.
    pub(crate) keeper: Keeper,
}

impl Core {
    pub(crate) fn new(config: TargetConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            subsystems: RwLock::default(),
            discovery: Subsystem::discovery(),
            listeners: RwLock::default(),
            // A host that kept 0 from an empty log must see a change.
            genctr: AtomicU64::new(1),
            next_uid: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            keeper: Keeper::default(),
        })
    }

    pub(crate) fn subsystem(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        if nqn.is_discovery() {
            return Some(Arc::clone(&self.discovery));
        }
        self.subsystems
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(nqn)
            .cloned()
    }

    pub(crate) fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        self.subsystems
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Adds a subsystem; false if there is one of that name.
    pub(crate) fn add_subsystem(&self, subsystem: Arc<Subsystem>) -> bool {
        let added = {
            let mut all = self
                .subsystems
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let name = subsystem.nqn.clone();
            !all.contains_key(&name) && all.insert(name, subsystem).is_none()
        };
        if added {
            self.discovery_changed();
        }
        added
    }

    pub(crate) fn add_listener(&self, address: TransportAddress, role: Role) -> Arc<Listener> {
        let listener = {
            let mut all = self
                .listeners
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let port_id = u16::try_from(all.len() + 1).unwrap_or(u16::MAX);
            let listener = Arc::new(Listener {
                port_id,
                address,
                role,
            });
            all.push(Arc::clone(&listener));
            listener
        };
        self.discovery_changed();
        listener
    }

    pub(crate) fn new_uid(&self) -> u64 {
        self.next_uid.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn genctr(&self) -> u64 {
        self.genctr.load(Ordering::Acquire)
    }

    /// The discovery log says something else now.
    fn discovery_changed(&self) {
        self.genctr.fetch_add(1, Ordering::AcqRel);
        for controller in self.discovery.controllers() {
            controller.raise(AsyncEvent::DISCOVERY_LOG_CHANGED);
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

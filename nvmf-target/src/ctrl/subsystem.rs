//! A subsystem: a name, namespaces, and the controllers that hosts have opened.

use super::persistent::PersistentLog;
use super::reservation::{ReservationScope, ReservationStore, Reservations};
use super::{Access, Controller, NsEntry, NsShared, NsTable, Opening, View, Visibility, lock};
use crate::ns::{Namespace, NsInfo, NsSink};
use crate::{Error, SubsystemConfig};
use nvmf_proto::wire::fabrics::CNTLID_MAX;
use nvmf_proto::wire::log::NamespaceChange;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::{Status, padded_ascii};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use uuid::Uuid;

/// FR.
const FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// What the controllers of a subsystem are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nvm,
    Discovery,
}

#[derive(Debug)]
pub(crate) struct Subsystem {
    pub(crate) nqn: Nqn,
    pub(crate) kind: Kind,
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) max_namespaces: u32,
    /// Where reservations are kept that are to outlive the target.
    reservation_store: Option<Arc<dyn ReservationStore>>,
    table: Mutex<Arc<NsTable>>,
    /// See [`Subsystem::generation`]: what I/O queues compare before each command.
    generation: AtomicU64,
    controllers: Mutex<Controllers>,
    pub(crate) persistent: PersistentLog,
}

#[derive(Debug)]
struct Controllers {
    live: BTreeMap<u16, Arc<Controller>>,
    /// The CNTLID to try next: ids are used again as late as possible.
    next: u16,
}

impl Subsystem {
    pub(crate) fn nvm(nqn: Nqn, config: &SubsystemConfig) -> Arc<Self> {
        let (serial, model) = (config.serial.clone(), config.model.clone());
        let store = config.reservation_store.clone();
        Self::new(nqn, Kind::Nvm, serial, model, config.max_namespaces, store)
    }

    pub(crate) fn discovery() -> Arc<Self> {
        let serial = "nvmf-discovery".to_owned();
        Self::new(
            Nqn::discovery(),
            Kind::Discovery,
            serial,
            "nvmf discovery service".to_owned(),
            0,
            None,
        )
    }

    fn new(
        nqn: Nqn,
        kind: Kind,
        serial: String,
        model: String,
        max_namespaces: u32,
        reservation_store: Option<Arc<dyn ReservationStore>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            nqn,
            kind,
            serial,
            model,
            max_namespaces,
            reservation_store,
            table: Mutex::default(),
            // A view that was never made is of generation 0.
            generation: AtomicU64::new(1),
            controllers: Mutex::new(Controllers {
                live: BTreeMap::new(),
                next: 1,
            }),
            persistent: PersistentLog::new(padded_ascii(FIRMWARE)),
        })
    }

    /// The namespaces at this moment.
    pub(crate) fn table(&self) -> Arc<NsTable> {
        Arc::clone(&lock(&self.table))
    }

    /// Moves with every change of what a controller may see of the namespaces or do with them.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What a controller sees of the namespaces; see [`Controller::view`].
    pub(super) fn view_of(&self, controller: &Controller) -> View {
        View::new(&self.table(), &controller.hostnqn, |entry| {
            let rights = entry.shared.reservations.rights(&controller.hostid);
            let unless = |right: bool| (!right).then_some(Status::RESERVATION_CONFLICT.dnr());
            let protected = (entry.info.read_only || entry.write_protected)
                .then_some(Status::NAMESPACE_WRITE_PROTECTED.dnr());
            Access {
                reads: unless(rights.read),
                flush: unless(rights.write),
                writes: unless(rights.write).or(protected),
                ..Access::default()
            }
        })
    }

    /// What hosts may do with namespaces has changed, other than by a change of `table`.
    pub(super) fn access_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn add_namespace(
        self: &Arc<Self>,
        nsid: u32,
        uid: u64,
        namespace: Arc<dyn Namespace>,
    ) -> Result<(), Error> {
        if nsid == 0 || nsid > self.max_namespaces {
            return Err(Error::config(format!(
                "NSID {nsid}: 1 to {} is wanted in {}",
                self.max_namespaces, self.nqn
            )));
        }
        let info = self.checked_info(nsid, &*namespace)?;
        let scope = ReservationScope::new(self.nqn.to_string(), info.uuid);
        let reservations = Reservations::open(scope, self.reservation_store.clone())?;
        let weak: Weak<Self> = Arc::downgrade(self);
        let notify: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(subsystem) = weak.upgrade() {
                subsystem.namespace_info_changed(nsid, uid);
            }
        });
        let sink = NsSink(Arc::downgrade(&notify));
        {
            let mut table = lock(&self.table);
            if table.get(nsid).is_some() {
                return Err(Error::config(format!(
                    "NSID {nsid} is in use in {}",
                    self.nqn
                )));
            }
            let namespace = Arc::clone(&namespace);
            let entry = NsEntry {
                nsid,
                uid,
                info,
                anagrpid: 1,
                visibility: Visibility::All,
                write_protected: false,
                shared: Arc::new(NsShared {
                    namespace,
                    _notify: notify,
                    gate: Arc::default(),
                    reservations,
                }),
            };
            self.log_namespace(&entry, NamespaceChange::CREATED);
            *table = Arc::new(table.with(nsid, Some(Arc::new(entry))));
            self.generation.fetch_add(1, Ordering::Release);
        }
        namespace.subscribe(sink);
        self.tell_controllers(nsid);
        Ok(())
    }

    /// Detaches a namespace and returns its uid, by which the reactors drop their lanes.
    pub(crate) fn remove_namespace(&self, nsid: u32) -> Result<u64, Error> {
        let uid = {
            let mut table = lock(&self.table);
            let Some(entry) = table.get(nsid) else {
                return Err(Error::NotFound(format!(
                    "no namespace {nsid} in {}",
                    self.nqn
                )));
            };
            let uid = entry.uid;
            self.log_namespace(entry, NamespaceChange::DELETED);
            *table = Arc::new(table.with(nsid, None));
            self.generation.fetch_add(1, Ordering::Release);
            uid
        };
        self.tell_controllers(nsid);
        Ok(uid)
    }

    fn namespace_info_changed(&self, nsid: u32, uid: u64) {
        let changed = {
            let mut table = lock(&self.table);
            let Some(old) = table.get(nsid).filter(|entry| entry.uid == uid) else {
                return;
            };
            let info = match self.checked_info(nsid, &*old.shared.namespace) {
                Ok(info) => info,
                Err(err) => {
                    log::error!(
                        "{}: namespace {nsid} keeps its old geometry: {err}",
                        self.nqn
                    );
                    return;
                }
            };
            let changed = info != old.info;
            if changed {
                let entry = NsEntry {
                    info,
                    ..NsEntry::clone(old)
                };
                *table = Arc::new(table.with(nsid, Some(Arc::new(entry))));
                self.generation.fetch_add(1, Ordering::Release);
            }
            changed
        };
        if changed {
            self.tell_controllers(nsid);
        }
    }

    /// The backend's information, checked, with the identifiers that it left open derived from
    /// subsystem and NSID: stable, and unique as far as the NQN is.
    fn checked_info(&self, nsid: u32, namespace: &dyn Namespace) -> Result<NsInfo, Error> {
        let mut info = namespace.info();
        info.validate()?;
        let name = format!("{}/{nsid}", self.nqn);
        let derived = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes());
        if info.uuid == [0; 16] {
            info.uuid = *derived.as_bytes();
        }
        if info.nguid == [0; 16] {
            info.nguid = info.uuid;
        }
        if info.eui64 == [0; 8]
            && let Some(half) = info.nguid.last_chunk()
        {
            info.eui64 = *half;
        }
        Ok(info)
    }

    fn tell_controllers(&self, nsid: u32) {
        for controller in self.controllers() {
            controller.namespace_changed(nsid);
        }
    }

    pub(crate) fn controllers(&self) -> Vec<Arc<Controller>> {
        lock(&self.controllers).live.values().cloned().collect()
    }

    pub(crate) fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        lock(&self.controllers).live.get(&cntlid).cloned()
    }

    pub(crate) fn controller_count(&self) -> usize {
        lock(&self.controllers).live.len()
    }

    /// A new controller for a host; `None` if every CNTLID is taken.
    pub(crate) fn open_controller(self: &Arc<Self>, opening: Opening) -> Option<Arc<Controller>> {
        let mut controllers = lock(&self.controllers);
        let first = controllers.next;
        let mut cntlid = first;
        while controllers.live.contains_key(&cntlid) {
            cntlid = following(cntlid);
            if cntlid == first {
                return None;
            }
        }
        controllers.next = following(cntlid);
        let controller = Arc::new(Controller::new(Arc::clone(self), cntlid, opening));
        controllers.live.insert(cntlid, Arc::clone(&controller));
        Some(controller)
    }

    /// Forgets a controller whose last queue is gone.
    pub(super) fn close_controller(&self, cntlid: u16) {
        let closed = lock(&self.controllers).live.remove(&cntlid);
        if let Some(controller) = closed {
            controller.log_end();
        }
    }

    /// FR.
    pub(super) fn firmware(&self) -> [u8; 8] {
        padded_ascii(FIRMWARE)
    }
}

/// The CNTLID after this one, in the range of the dynamic controller model.
const fn following(cntlid: u16) -> u16 {
    if cntlid >= CNTLID_MAX { 1 } else { cntlid + 1 }
}

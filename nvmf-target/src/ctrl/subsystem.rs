//! A subsystem: a name, namespaces, and the controllers that hosts have opened.

use super::ana::AnaStates;
use super::connect::{Limit, Refusal};
use super::persistent::PersistentLog;
use super::reservation::{Known, ReservationScope, ReservationStore};
use super::{
    Controller, Limits, NsEntry, NsShared, NsStats, NsTable, Opening, View, Visibility, lock,
};
use crate::chatter::{Chatter, error};
use crate::contain::{Guarded, contain};
use crate::ns::{Namespace, NsInfo, NsSink};
use crate::reactor::Gate;
use crate::{Error, NamespaceConfig, SubsystemConfig, TargetConfig};
use nvmf_proto::wire::feature::WriteProtectState;
use nvmf_proto::wire::log::NamespaceChange;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::Csts;
use nvmf_proto::wire::{Status, padded_ascii};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use uuid::Uuid;

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
    /// FR.
    firmware: [u8; 8],
    /// VID and SSVID.
    pub(crate) vendor: (u16, u16),
    pub(crate) ieee_oui: [u8; 3],
    pub(crate) max_namespaces: u32,
    /// ANAGRPMAX and NANAGRPID.
    pub(crate) ana_groups: u32,
    /// What its controllers offer; a listener may allow less.
    pub(crate) limits: Limits,
    cntlid_min: u16,
    cntlid_max: u16,
    /// CAP.NSSRS.
    pub(super) resettable: bool,
    /// CSTS.NSSRO: there was an NVM Subsystem Reset.
    was_reset: AtomicBool,
    /// Where reservations are kept that are to outlive the target.
    reservation_store: Option<Guarded<Arc<dyn ReservationStore>>>,
    reservations: Known,
    snapshot: Mutex<Snapshot>,
    /// See [`Subsystem::generation`]: what I/O queues compare before each command.
    generation: AtomicU64,
    /// Held while the generation moves.
    changes: Mutex<Changes>,
    controllers: Mutex<Controllers>,
    pub(crate) persistent: PersistentLog,
    /// Of its resets.
    pub(super) chatter: Chatter,
}

/// The namespaces of a subsystem and how they are reached, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) table: Arc<NsTable>,
    pub(crate) ana: Arc<AnaStates>,
}

/// What has happened in which generation, as far as controllers need it that have a view of an
/// earlier one. A host that changes rights as fast as it can costs others the namespaces that it
/// has changed, each once.
#[derive(Debug, Default)]
struct Changes {
    /// Views of earlier generations are of no use any more.
    all: u64,
    /// Namespaces whose reservations have changed rights after that, by the latest generation.
    rights: BTreeMap<u64, u32>,
    /// The same by NSID.
    latest: BTreeMap<u32, u64>,
}

/// What a controller has to look at again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// Its rights on these namespaces.
    Rights(Vec<u32>),
    All,
}

/// What a namespace is attached with, besides its configuration.
pub(super) struct Attached {
    pub(super) uid: u64,
    pub(super) visibility: Visibility,
    pub(super) namespace: Arc<dyn Namespace>,
    pub(super) gate: Arc<Gate>,
}

#[derive(Debug)]
struct Controllers {
    live: BTreeMap<u16, Arc<Controller>>,
    /// The CNTLID to try next: ids are used again as late as possible.
    next: u16,
}

/// New information of a namespace, if it is about the same one: hosts know it by its identifiers,
/// and so do its reservations and whoever looks that no other has them.
fn same_identity(old: &NsInfo, info: NsInfo) -> Result<NsInfo, Error> {
    let ids = |info: &NsInfo| (info.uuid, info.nguid, info.eui64);
    if ids(old) == ids(&info) {
        Ok(info)
    } else {
        Err(Error::config(
            "UUID, NGUID or EUI64 is another: those of before are wanted".to_owned(),
        ))
    }
}

impl Subsystem {
    /// A subsystem of a configuration that is valid for the target.
    pub(crate) fn nvm(nqn: Nqn, config: &SubsystemConfig, target: &TargetConfig) -> Arc<Self> {
        Self::new(nqn, Kind::Nvm, config, target)
    }

    pub(crate) fn discovery(target: &TargetConfig) -> Arc<Self> {
        let nqn = target.discovery_nqn();
        let config = SubsystemConfig {
            serial: "nvmf-discovery".to_owned(),
            model: "nvmf discovery service".to_owned(),
            max_namespaces: 0,
            ..SubsystemConfig::new(nqn.as_str())
        };
        Self::new(nqn, Kind::Discovery, &config, target)
    }

    fn new(nqn: Nqn, kind: Kind, config: &SubsystemConfig, target: &TargetConfig) -> Arc<Self> {
        let firmware = padded_ascii(&config.firmware);
        Arc::new(Self {
            nqn,
            kind,
            serial: config.serial.clone(),
            model: config.model.clone(),
            firmware,
            vendor: (config.vendor_id, config.subsystem_vendor_id),
            ieee_oui: config.ieee_oui,
            max_namespaces: config.max_namespaces,
            ana_groups: config.ana_groups,
            limits: Limits::of_subsystem(target, config),
            cntlid_min: config.cntlid_min,
            cntlid_max: config.cntlid_max,
            resettable: config.subsystem_reset,
            was_reset: AtomicBool::new(false),
            reservation_store: (config.reservation_store.clone())
                .map(|store| Guarded::new("a reservation store", store)),
            reservations: Known::default(),
            snapshot: Mutex::default(),
            // A view that was never made is of generation 0.
            generation: AtomicU64::new(1),
            changes: Mutex::default(),
            controllers: Mutex::new(Controllers {
                live: BTreeMap::new(),
                next: config.cntlid_min,
            }),
            persistent: PersistentLog::new(firmware),
            chatter: Chatter::default(),
        })
    }

    /// The namespaces at this moment.
    pub(crate) fn table(&self) -> Arc<NsTable> {
        Arc::clone(&lock(&self.snapshot).table)
    }

    /// The namespaces and how they are reached, at this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }

    /// Moves with every change of what a controller may see of the namespaces or do with them.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What a controller sees of the namespaces; see [`Controller::view`].
    pub(super) fn view_of(&self, controller: &Controller) -> View {
        let Snapshot { table, ana } = self.snapshot();
        let ana = ana.port(controller.listener.uid);
        // What comes before its connections are closed has no right to anything any more.
        let over = controller
            .is_ending()
            .then_some(Status::ABORTED_SQ_DELETION);
        View::new(&table, &controller.hostnqn, ana, over, |entry| {
            controller.rights(entry)
        })
    }

    /// The generation of this moment, and what has changed since another one.
    pub(super) fn changed_since(&self, generation: u64) -> (u64, Changed) {
        let changes = lock(&self.changes);
        let changed = if generation < changes.all {
            Changed::All
        } else {
            let later = changes.rights.range(generation + 1..);
            Changed::Rights(later.map(|(_, &nsid)| nsid).collect())
        };
        (self.generation(), changed)
    }

    /// What hosts may do with any namespace has changed, other than by a change of the snapshot.
    pub(super) fn access_changed(&self) {
        let mut changes = lock(&self.changes);
        *changes = Changes {
            all: self.generation() + 1,
            ..Changes::default()
        };
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What hosts may do with a namespace has changed, by a reservation.
    pub(super) fn rights_changed(&self, nsid: u32) {
        let mut changes = lock(&self.changes);
        let next = self.generation() + 1;
        if let Some(before) = changes.latest.insert(nsid, next) {
            changes.rights.remove(&before);
        }
        changes.rights.insert(next, nsid);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Settings of a controller have changed that its I/O queues look at.
    pub(super) fn settings_changed(&self) {
        let _changes = lock(&self.changes);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Changes the namespaces or how they are reached. Controllers to which that makes a difference
    /// are told.
    pub(super) fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.update_if(None, |snapshot| {
            change(snapshot);
            true
        });
    }

    /// The same if `change` says that it has changed anything, for a controller whose host has
    /// asked for it and need not be told.
    fn update_if(&self, by: Option<u16>, change: impl FnOnce(&mut Snapshot) -> bool) {
        let (old, new) = {
            let mut snapshot = lock(&self.snapshot);
            let old = snapshot.clone();
            if !change(&mut snapshot) {
                return;
            }
            self.access_changed();
            (old, snapshot.clone())
        };
        let differing = old.table.differing(&new.table);
        for &nsid in &differing {
            let (old, new) = (old.table.get(nsid), new.table.get(nsid));
            if old.map(|e| e.uid) != new.map(|e| e.uid) {
                old.inspect(|e| self.log_namespace(e, NamespaceChange::DELETED));
                new.inspect(|e| self.log_namespace(e, NamespaceChange::CREATED));
            }
        }
        for controller in self.controllers() {
            if by != Some(controller.cntlid) {
                controller.namespaces_changed(&old, &new, &differing);
            }
        }
    }

    /// Sets the write protection of namespaces for the host of a controller. Returns those that
    /// there still are; none is changed if one may not be before the next power cycle.
    pub(super) fn set_write_protect(
        &self,
        by: u16,
        nsids: &[u32],
        state: WriteProtectState,
    ) -> Option<Vec<Arc<NsEntry>>> {
        let mut changed = Some(Vec::new());
        self.update_if(Some(by), |snapshot| {
            let all = nsids.iter().filter_map(|&nsid| snapshot.table.get(nsid));
            let all: Vec<_> = all.cloned().collect();
            let fixed = |e: &Arc<NsEntry>| {
                e.write_protect == WriteProtectState::UNTIL_POWER_CYCLE && e.write_protect != state
            };
            if all.iter().any(fixed) {
                changed = None;
                return false;
            }
            for entry in &all {
                let entry = NsEntry {
                    write_protect: state,
                    ..NsEntry::clone(entry)
                };
                snapshot.set(entry.nsid, Some(Arc::new(entry)));
            }
            changed = Some(all);
            true
        });
        changed
    }

    /// An entry for a namespace that is to be attached, with what its backend is to be given after
    /// that: the way to say that its information has changed.
    pub(super) fn entry(
        self: &Arc<Self>,
        config: &NamespaceConfig,
        attached: Attached,
    ) -> Result<(Arc<NsEntry>, NsSink), Error> {
        let nsid = config.nsid;
        let Attached {
            uid,
            visibility,
            namespace,
            gate,
        } = attached;
        if nsid == 0 || nsid > self.max_namespaces {
            return Err(Error::config(format!(
                "NSID {nsid}: 1 to {} is wanted in {}",
                self.max_namespaces, self.nqn
            )));
        }
        let info = self.checked_info(nsid, &*namespace)?;
        let scope = ReservationScope::new(self.nqn.to_string(), info.uuid);
        let store = self.reservation_store.as_deref().cloned();
        let reservations = self.reservations.get(scope, store)?;
        let weak: Weak<Self> = Arc::downgrade(self);
        let notify: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(subsystem) = weak.upgrade() {
                subsystem.namespace_info_changed(nsid, uid);
            }
        });
        let sink = NsSink(Arc::downgrade(&notify));
        let entry = NsEntry {
            nsid,
            uid,
            info,
            anagrpid: config.anagrpid,
            visibility,
            write_protect: WriteProtectState::NONE,
            shared: Arc::new(NsShared {
                name: format!("{} namespace {nsid}", self.nqn),
                namespace: Guarded::new("a namespace", namespace),
                asking: Mutex::default(),
                _notify: notify,
                gate,
                chatter: Chatter::default(),
                lane_chatter: Chatter::default(),
                flush_chatter: Chatter::default(),
                stats: NsStats::default(),
                reservations,
            }),
        };
        Ok((Arc::new(entry), sink))
    }

    fn namespace_info_changed(&self, nsid: u32, uid: u64) {
        let attached = |table: &NsTable| {
            let entry = table.get(nsid).filter(|entry| entry.uid == uid);
            entry.cloned()
        };
        let Some(entry) = attached(&self.table()) else {
            return;
        };
        let shared = &entry.shared;
        // The backend takes its time, and may have locks of its own: no other lock is held.
        let _alone = lock(&shared.asking);
        let info = self.checked_info(nsid, &**shared.namespace);
        let info = match info.and_then(|info| same_identity(&entry.info, info)) {
            Ok(info) => info,
            Err(err) => {
                error!(
                    "{}: it keeps what it said of itself before: {err}",
                    shared.name
                );
                return;
            }
        };
        let mut depth = None;
        self.update_if(None, |snapshot| {
            let Some(old) = attached(&snapshot.table).filter(|old| old.info != info) else {
                return false;
            };
            depth = Some(info.depth).filter(|&depth| depth != old.info.depth);
            let entry = NsEntry {
                info,
                ..NsEntry::clone(&old)
            };
            snapshot.set(nsid, Some(Arc::new(entry)));
            true
        });
        if let Some(depth) = depth {
            shared.gate.tell_depth(uid, depth);
        }
    }

    /// The backend's information, checked, with the identifiers that it left open derived from
    /// subsystem and NSID: stable, and unique as far as the NQN is.
    fn checked_info(&self, nsid: u32, namespace: &dyn Namespace) -> Result<NsInfo, Error> {
        let info = contain(|| namespace.info());
        let mut info = info.map_err(|panic| Error::config(format!("the namespace {panic}")))?;
        info.validate()?;
        let (block, max) = (info.block_size(), self.limits.max_transfer);
        if block > max {
            return Err(Error::config(format!(
                "block size {block}: at most max_transfer, {max} bytes, is wanted"
            )));
        }
        let name = format!("{}/{nsid}", self.nqn);
        let derived = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes());
        if info.uuid == [0; 16] {
            info.uuid = *derived.as_bytes();
        }
        if info.nguid == [0; 16] {
            info.nguid = nguid(info.uuid, info.eui64);
        }
        if info.eui64 == [0; 8]
            && let Some(half) = info.nguid.last_chunk()
        {
            info.eui64 = *half;
        }
        Ok(info)
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

    /// A new controller for a host. `admits` is asked once no change of the topology can miss the
    /// controller any more.
    pub(crate) fn open_controller(
        self: &Arc<Self>,
        opening: Opening,
        admits: impl FnOnce(&Nqn) -> Result<(), Refusal>,
    ) -> Result<Arc<Controller>, Refusal> {
        let mut controllers = lock(&self.controllers);
        // Whoever changes the topology looks through the controllers after that, under this lock:
        // either it finds this one there, or the change is seen here.
        admits(&opening.hostnqn)?;
        let of_host = |c: &&Arc<Controller>| c.hostnqn == opening.hostnqn && !c.is_ending();
        if controllers.live.values().filter(of_host).count() >= opening.most {
            return Err(Refusal::busy(Limit::ControllersPerHost));
        }
        let first = controllers.next;
        let mut cntlid = first;
        while controllers.live.contains_key(&cntlid) {
            cntlid = self.following(cntlid);
            if cntlid == first {
                return Err(Refusal::busy(Limit::Cntlids));
            }
        }
        controllers.next = self.following(cntlid);
        let controller = Arc::new(Controller::new(Arc::clone(self), cntlid, opening));
        controllers.live.insert(cntlid, Arc::clone(&controller));
        Ok(controller)
    }

    /// The CNTLID after this one.
    const fn following(&self, cntlid: u16) -> u16 {
        if cntlid >= self.cntlid_max {
            self.cntlid_min
        } else {
            cntlid + 1
        }
    }

    /// NVM Subsystem Reset: every controller ends, with its connections (NVMe Base 2.1 §3.7.1).
    pub(super) fn reset(&self) {
        self.was_reset.store(true, Ordering::Release);
        for controller in self.controllers() {
            controller.end();
        }
    }

    /// CSTS of a new controller.
    pub(super) fn initial_status(&self) -> Csts {
        Csts::default().with_nssro(self.was_reset.load(Ordering::Acquire))
    }

    /// Forgets a controller whose last queue is gone.
    pub(super) fn close_controller(&self, cntlid: u16) {
        let closed = lock(&self.controllers).live.remove(&cntlid);
        if let Some(controller) = closed {
            controller.log_end();
        }
    }

    /// FR.
    pub(super) const fn firmware(&self) -> [u8; 8] {
        self.firmware
    }
}

/// An NGUID for a namespace that has none: its second half is an EUI64 (NVMe Base 2.1, NGUID), which
/// unless there is one comes from the UUID and says so by being locally administered.
fn nguid(uuid: [u8; 16], eui64: [u8; 8]) -> [u8; 16] {
    const GROUP: u8 = 1 << 0;
    const LOCAL: u8 = 1 << 1;
    let mut nguid = uuid;
    if eui64 == [0; 8] {
        nguid[8] = nguid[8] & !GROUP | LOCAL;
    } else {
        nguid[8..].copy_from_slice(&eui64);
    }
    nguid
}

impl Snapshot {
    pub(super) fn set(&mut self, nsid: u32, entry: Option<Arc<NsEntry>>) {
        Arc::make_mut(&mut self.table).set(nsid, entry);
    }
}

//! Changes of the topology and of namespaces: all of several, or none.
//!
//! A [`Draft`] is a copy of what there is. Steps are checked against it and carried out on it, one
//! after the other; sockets are bound on the way. If all succeed the draft is published, and what
//! follows from it is done; if one fails the draft is dropped, and nothing has happened.

use super::reservation::Reservations;
use super::subsystem::{Attached, Snapshot};
use super::topology::{Member, Port};
use super::{AnaState, Controller, Core, Kind, Listener, NsEntry, Subsystem, Topology, Visibility};
use crate::change::Change;
use crate::chatter::info;
use crate::config::{self, hosts};
use crate::contain::contain;
use crate::ns::{Namespace, NsSink};
use crate::transport::Transport;
use crate::{
    Error, ListenerConfig, ListenerInfo, NamespaceConfig, Referral, Role, SubsystemConfig,
};
use nvmf_proto::wire::log::AsyncEvent;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

/// Listeners of a target. There are more PORTIDs, so that one is free at any time.
const PORTS_MAX: usize = 4096;

/// What is left to do when a draft is published, by those who have the threads. It has all that a
/// draft takes from its changes; what it drops that was there before is in here, too. For dropping
/// code of the embedder's may call the target, and so has to wait until no lock is held.
#[derive(Default)]
pub(crate) struct Effects {
    /// To be accepted from.
    pub(crate) opened: Vec<(Box<dyn Transport>, Arc<Listener>)>,
    /// Not to be accepted from after all.
    pub(crate) withdrawn: Vec<Box<dyn Transport>>,
    /// To be closed, with their connections.
    pub(crate) closed: Vec<Arc<Listener>>,
    /// The uids of namespaces whose lanes are to be closed, and whether they have a volatile cache.
    pub(crate) detached: Vec<(u64, bool)>,
    /// To be given their sinks, once no lock is held.
    pub(crate) attached: Vec<(Arc<dyn Namespace>, NsSink)>,
    /// Of what is attached. Damaged records are to be set aside once no lock is held.
    pub(crate) reservations: Vec<Arc<Reservations>>,
    /// Perhaps the last references to backends.
    pub(crate) dropped: Vec<Arc<NsEntry>>,
    /// Perhaps the last reference to subsystems and their stores of reservations.
    pub(crate) replaced: Option<Arc<Topology>>,
    /// The listeners of `opened` for their owner.
    pub(crate) listeners: Vec<ListenerInfo>,
}

struct Draft<'a> {
    core: &'a Core,
    topology: Topology,
    /// Whether `topology` differs from what there is.
    is_other: bool,
    /// Subsystems whose namespaces change.
    edited: BTreeMap<Nqn, Edited>,
    effects: &'a mut Effects,
}

struct Edited {
    subsystem: Arc<Subsystem>,
    /// As it will be.
    snapshot: Snapshot,
    edits: Vec<Edit>,
}

/// A change of a subsystem's snapshot that cannot fail. Edits are made on the draft's copy, and
/// again when it is published: backends and hosts may have changed other things meanwhile.
enum Edit {
    Attach(Arc<NsEntry>),
    Detach(u32),
    Show(u32, Visibility),
    Move(u32, u32),
    State(u64, u32, AnaState),
    Forget(u64),
}

impl Edit {
    fn make(&self, snapshot: &mut Snapshot) {
        let with = |snapshot: &mut Snapshot, nsid, change: &dyn Fn(&mut NsEntry)| {
            if let Some(entry) = snapshot.table.get(nsid) {
                let mut entry = NsEntry::clone(entry);
                change(&mut entry);
                snapshot.set(nsid, Some(Arc::new(entry)));
            }
        };
        match *self {
            Self::Attach(ref entry) => snapshot.set(entry.nsid, Some(Arc::clone(entry))),
            Self::Detach(nsid) => snapshot.set(nsid, None),
            Self::Show(nsid, ref visibility) => {
                with(snapshot, nsid, &|entry| {
                    entry.visibility = visibility.clone()
                });
            }
            Self::Move(nsid, anagrpid) => with(snapshot, nsid, &|entry| entry.anagrpid = anagrpid),
            Self::State(listener, anagrpid, state) => {
                Arc::make_mut(&mut snapshot.ana).set(listener, anagrpid, state);
            }
            Self::Forget(listener) => Arc::make_mut(&mut snapshot.ana).forget(listener),
        }
    }
}

impl Core {
    /// Carries out all changes, or none. One caller at a time. What is left of `changes` and
    /// `effects` is to be dropped when no lock is held; after an error `effects` is good for nothing
    /// else.
    pub(crate) fn carry_out(
        &self,
        changes: &mut [Change],
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let mut draft = Draft {
            core: self,
            topology: Topology::clone(&self.topology()),
            is_other: false,
            edited: BTreeMap::new(),
            effects,
        };
        let single = changes.len() == 1;
        for (index, change) in changes.iter_mut().enumerate() {
            let what = change.to_string();
            draft.step(change).map_err(|source| {
                if single {
                    return source;
                }
                let source = Box::new(source);
                Error::Change {
                    index,
                    what,
                    source,
                }
            })?;
        }
        draft.publish();
        Ok(())
    }
}

impl Draft<'_> {
    fn step(&mut self, change: &mut Change) -> Result<(), Error> {
        self.is_other |= !matches!(
            *change,
            Change::AddNamespace { .. }
                | Change::RemoveNamespace { .. }
                | Change::SetNamespaceHosts { .. }
                | Change::SetAnaGroup { .. }
                | Change::SetAnaState { .. }
        );
        match change {
            Change::AddSubsystem(config) => self.add_subsystem(config),
            Change::RemoveSubsystem { nqn } => self.remove_subsystem(nqn),
            Change::AddNamespace {
                nqn,
                config,
                namespace,
            } => self.add_namespace(nqn, config, namespace),
            Change::RemoveNamespace { nqn, nsid } => self.remove_namespace(nqn, *nsid),
            Change::SetNamespaceHosts { nqn, nsid, hosts } => {
                let visibility = visibility(hosts.as_deref())?;
                self.namespace(nqn, *nsid)?
                    .make(Edit::Show(*nsid, visibility));
                Ok(())
            }
            Change::SetAnaGroup {
                nqn,
                nsid,
                anagrpid,
            } => {
                let edited = self.namespace(nqn, *nsid)?;
                check_group(&edited.subsystem, *anagrpid)?;
                edited.make(Edit::Move(*nsid, *anagrpid));
                Ok(())
            }
            Change::SetAnaState {
                nqn,
                listener,
                anagrpid,
                state,
            } => {
                let port = self.listener(listener)?;
                if port.role != Role::Io {
                    let text = format!("listener {listener:?} serves discovery only");
                    return Err(Error::config(text));
                }
                let edited = self.edit(nqn)?;
                check_group(&edited.subsystem, *anagrpid)?;
                edited.make(Edit::State(port.uid, *anagrpid, *state));
                Ok(())
            }
            Change::AllowAnyHost { nqn, allow } => {
                self.member(nqn)?.allow_any_host = *allow;
                Ok(())
            }
            Change::AddHost { nqn, host } => {
                let host = config::nqn("host NQN", host)?;
                self.member(nqn)?.hosts.insert(host);
                Ok(())
            }
            Change::RemoveHost { nqn, host } => self.remove_host(nqn, host),
            Change::AddListener(config) => self.add_listener(config),
            Change::RemoveListener { listener } => self.remove_listener(listener),
            Change::Serve { listener, nqn } => self.serve(listener, nqn, true),
            Change::StopServing { listener, nqn } => self.serve(listener, nqn, false),
            Change::AddReferral(referral) => self.add_referral(referral.clone()),
            Change::RemoveReferral(referral) => self.remove_referral(referral),
        }
    }

    /// The subsystem of an NQN.
    fn member(&mut self, nqn: &str) -> Result<&mut Member, Error> {
        let name = Nqn::new(nqn).ok();
        name.and_then(|name| self.topology.subsystems.get_mut(&name))
            .ok_or_else(|| Error::NotFound(format!("no subsystem {nqn:?}")))
    }

    /// A subsystem of which the namespaces are to be changed.
    fn edit(&mut self, nqn: &str) -> Result<&mut Edited, Error> {
        let subsystem = Arc::clone(&self.member(nqn)?.subsystem);
        let name = subsystem.nqn.clone();
        Ok(self.edited.entry(name).or_insert_with(|| Edited {
            snapshot: subsystem.snapshot(),
            subsystem,
            edits: Vec::new(),
        }))
    }

    /// The same, if it has a namespace of that NSID.
    fn namespace(&mut self, nqn: &str, nsid: u32) -> Result<&mut Edited, Error> {
        let edited = self.edit(nqn)?;
        if edited.snapshot.table.get(nsid).is_some() {
            Ok(edited)
        } else {
            Err(Error::NotFound(format!("no namespace {nsid} in {nqn}")))
        }
    }

    fn listener(&self, name: &str) -> Result<Arc<Listener>, Error> {
        let found = self.topology.listener(name).cloned();
        found.ok_or_else(|| Error::NotFound(format!("no listener {name:?}")))
    }

    fn add_subsystem(&mut self, config: &SubsystemConfig) -> Result<(), Error> {
        let nqn = config.validate(&self.core.config)?;
        if self.topology.subsystems.contains_key(&nqn) {
            let text = format!("there is a subsystem {} already", config.nqn);
            return Err(Error::config(text));
        }
        let member = Member {
            subsystem: Subsystem::nvm(nqn.clone(), config, &self.core.config),
            allow_any_host: config.allow_any_host,
            hosts: hosts(&config.hosts)?,
        };
        self.topology.subsystems.insert(nqn, member);
        Ok(())
    }

    fn remove_subsystem(&mut self, nqn: &str) -> Result<(), Error> {
        let Edited {
            subsystem,
            snapshot,
            ..
        } = self.edit(nqn)?;
        let name = subsystem.nqn.clone();
        let nsids: Vec<u32> = snapshot.table.iter().map(|entry| entry.nsid).collect();
        for nsid in nsids {
            self.remove_namespace(nqn, nsid)?;
        }
        self.topology.subsystems.remove(&name);
        // Its namespaces stay as they are for the controllers that are about to end.
        self.edited.remove(&name);
        for port in self.topology.ports.values_mut() {
            if let Some(list) = &mut port.subsystems {
                list.remove(&name);
            }
        }
        Ok(())
    }

    fn add_namespace(
        &mut self,
        nqn: &str,
        config: &NamespaceConfig,
        namespace: &Arc<dyn Namespace>,
    ) -> Result<(), Error> {
        let visibility = visibility(config.hosts.as_deref())?;
        let uid = self.core.new_uid();
        let edited = self.edit(nqn)?;
        check_group(&edited.subsystem, config.anagrpid)?;
        if edited.snapshot.table.get(config.nsid).is_some() {
            let text = format!("NSID {} is in use in {nqn}", config.nsid);
            return Err(Error::config(text));
        }
        let subsystem = Arc::clone(&edited.subsystem);
        let attached = Attached {
            uid,
            visibility,
            namespace: Arc::clone(namespace),
            gate: self.core.gate_of(namespace),
        };
        let (entry, sink) = subsystem.entry(config, attached)?;
        let edited = self.edit(nqn)?;
        let same = |other: &&Arc<NsEntry>| other.info.uuid == entry.info.uuid;
        if let Some(other) = edited.snapshot.table.iter().find(same) {
            // NVMe Base 2.1, UUID: what tells namespaces apart, for hosts and in the store of
            // reservations.
            return Err(Error::config(format!(
                "NSID {} in {nqn} has the UUID of {}",
                config.nsid, other.nsid
            )));
        }
        let reservations = Arc::clone(&entry.shared.reservations);
        edited.make(Edit::Attach(entry));
        self.effects.reservations.push(reservations);
        self.effects.attached.push((Arc::clone(namespace), sink));
        Ok(())
    }

    fn remove_namespace(&mut self, nqn: &str, nsid: u32) -> Result<(), Error> {
        let edited = self.namespace(nqn, nsid)?;
        let entry = edited.snapshot.table.get(nsid).cloned();
        edited.make(Edit::Detach(nsid));
        let detached = entry.as_ref().map(|e| (e.uid, e.info.volatile_cache));
        self.effects.detached.extend(detached);
        self.effects.dropped.extend(entry);
        Ok(())
    }

    fn remove_host(&mut self, nqn: &str, host: &str) -> Result<(), Error> {
        let name = Nqn::new(host).ok();
        let hosts = &mut self.member(nqn)?.hosts;
        if name.is_some_and(|name| hosts.remove(&name)) {
            Ok(())
        } else {
            Err(Error::NotFound(format!("no host {host:?} in {nqn}")))
        }
    }

    fn add_listener(&mut self, config: &mut ListenerConfig) -> Result<(), Error> {
        let target = &self.core.config;
        config.validate(target)?;
        let list = config.subsystems.as_deref();
        let list = list.map(|names| self.listed(names)).transpose()?;
        let ports = &self.topology.ports;
        let port_id = match config.port_id {
            Some(id) if ports.contains_key(&id) => {
                return Err(Error::config(format!("PORTID {id} is in use")));
            }
            Some(id) => id,
            None if ports.len() >= PORTS_MAX => {
                return Err(Error::config(format!(
                    "{PORTS_MAX} listeners are the limit"
                )));
            }
            None => self.core.new_port_id(ports),
        };
        let (wanted, role) = (config.name.clone(), config.role);
        let in_capsule = config.in_capsule.unwrap_or(target.in_capsule);
        let maxh2cdata = config.maxh2cdata.unwrap_or(target.maxh2cdata);
        if let Some(name) = &wanted
            && self.topology.listener(name).is_some()
        {
            return Err(Error::config(format!(
                "there is a listener {name:?} already"
            )));
        }
        self.forget_states()?;
        let (transport, socket) = config.bind()?;
        let address = match contain(|| transport.address()) {
            Ok(address) => address,
            Err(panic) => {
                self.effects.withdrawn.push(transport);
                return Err(Error::config(format!("the transport {panic}")));
            }
        };
        if let Err(err) = address.validate() {
            self.effects.withdrawn.push(transport);
            return Err(err);
        }
        let name = wanted.unwrap_or_else(|| {
            let name = socket.map_or_else(|| address.traddr.clone(), |socket| socket.to_string());
            match self.topology.listener(&name) {
                None => name,
                Some(_) => format!("{name}#{port_id}"),
            }
        });
        let listener = Arc::new(Listener {
            uid: self.core.new_uid(),
            name,
            port_id,
            address,
            role,
            socket,
            in_capsule,
            maxh2cdata,
        });
        let port = Port {
            listener: Arc::clone(&listener),
            subsystems: list,
        };
        self.effects.listeners.push(port.info());
        self.effects.opened.push((transport, listener));
        self.topology.ports.insert(port_id, port);
        Ok(())
    }

    /// Forgets ANA states of listeners that are gone. Not while there are controllers that have come
    /// by them: what is inaccessible to these stays so until they have ended.
    fn forget_states(&mut self) -> Result<(), Error> {
        let ports = self.topology.ports.values();
        let live: BTreeSet<u64> = ports.map(|port| port.listener.uid).collect();
        let mut gone = Vec::new();
        for (nqn, member) in &self.topology.subsystems {
            let controllers = member.subsystem.controllers();
            let used: BTreeSet<u64> = controllers.iter().map(|c| c.listener.uid).collect();
            let states = member.subsystem.snapshot().ana;
            let unused = |uid: &u64| !live.contains(uid) && !used.contains(uid);
            gone.extend(
                states
                    .listeners()
                    .filter(unused)
                    .map(|uid| (nqn.clone(), uid)),
            );
        }
        for (nqn, uid) in gone {
            self.edit(nqn.as_str())?.make(Edit::Forget(uid));
        }
        Ok(())
    }

    /// Subsystems that there are.
    fn listed(&mut self, names: &[String]) -> Result<BTreeSet<Nqn>, Error> {
        let nqn = |name: &String| self.member(name).map(|m| m.subsystem.nqn.clone());
        names.iter().map(nqn).collect()
    }

    fn remove_listener(&mut self, name: &str) -> Result<(), Error> {
        let listener = self.listener(name)?;
        self.topology.ports.remove(&listener.port_id);
        // One that the same draft has opened is not even announced.
        let Effects {
            opened,
            closed,
            withdrawn,
            ..
        } = &mut *self.effects;
        let same = |(_, other): &(_, Arc<Listener>)| Arc::ptr_eq(other, &listener);
        match opened.iter().position(same) {
            Some(at) => withdrawn.push(opened.remove(at).0),
            None => closed.push(listener),
        }
        Ok(())
    }

    fn serve(&mut self, listener: &str, nqn: &str, add: bool) -> Result<(), Error> {
        let port_id = self.listener(listener)?.port_id;
        let name = self.member(nqn)?.subsystem.nqn.clone();
        let port = self.topology.ports.get_mut(&port_id);
        let Some(list) = port.and_then(|port| port.subsystems.as_mut()) else {
            let text = format!("listener {listener:?} serves all subsystems, not a list");
            return Err(Error::config(text));
        };
        if add {
            list.insert(name);
        } else if !list.remove(&name) {
            let text = format!("listener {listener:?} does not serve {nqn}");
            return Err(Error::NotFound(text));
        }
        Ok(())
    }

    fn add_referral(&mut self, referral: Referral) -> Result<(), Error> {
        referral.validate()?;
        if self.topology.referrals.iter().any(|r| **r == referral) {
            let text = format!("there is a referral to {} already", referral.address);
            return Err(Error::config(text));
        }
        self.topology.referrals.push(Arc::new(referral));
        Ok(())
    }

    fn remove_referral(&mut self, referral: &Referral) -> Result<(), Error> {
        let referrals = &mut self.topology.referrals;
        let before = referrals.len();
        referrals.retain(|r| **r != *referral);
        if referrals.len() == before {
            let text = format!("no referral to {}", referral.address);
            return Err(Error::NotFound(text));
        }
        Ok(())
    }

    /// The draft becomes what there is.
    fn publish(self) {
        let Self {
            core,
            mut topology,
            is_other,
            edited,
            effects,
        } = self;
        let old = core.topology();
        // A subsystem that comes has its namespaces when hosts find it. One that is there changes
        // when hosts that go have been told to.
        let (comes, is_there): (Vec<_>, Vec<_>) = edited
            .into_values()
            .partition(|edited| !old.has(&edited.subsystem));
        comes.into_iter().for_each(Edited::publish);
        if is_other {
            topology.succeed(&old);
            core.replace_topology(&old, Arc::new(topology));
        }
        is_there.into_iter().for_each(Edited::publish);
        effects.replaced = Some(old);
    }
}

impl Edited {
    fn make(&mut self, edit: Edit) {
        edit.make(&mut self.snapshot);
        self.edits.push(edit);
    }

    fn publish(self) {
        self.restart_reservations();
        self.subsystem.update(|snapshot| {
            for edit in &self.edits {
                edit.make(snapshot);
            }
        });
    }

    /// Reservations go with their namespace, unless it is replaced within the draft.
    fn restart_reservations(&self) {
        let table = self.subsystem.table();
        for edit in &self.edits {
            if let Edit::Attach(entry) = edit {
                let new = &entry.shared.reservations;
                let mut old = table.iter().map(|old| &old.shared.reservations);
                if !old.any(|old| Arc::ptr_eq(old, new)) {
                    new.restart();
                }
            }
        }
    }
}

impl Core {
    fn replace_topology(&self, old: &Topology, new: Arc<Topology>) {
        let mut current = self
            .topology
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(&new);
        drop(current);
        self.end_strangers(old, &new);
        for controller in self.discovery.controllers() {
            let generation =
                |topology: &Topology| topology.generation(&controller.hostnqn, controller.reach());
            if generation(old) != generation(&new) {
                controller.raise(AsyncEvent::DISCOVERY_LOG_CHANGED);
            }
        }
    }

    /// Ends the controllers that the new topology does not admit.
    fn end_strangers(&self, old: &Topology, new: &Topology) {
        let admitted = |controller: &Controller| match controller.subsystem.kind {
            Kind::Discovery => new.port(&controller.listener).is_some(),
            Kind::Nvm => new
                .admit(
                    &controller.subsystem.nqn,
                    &controller.hostnqn,
                    &controller.listener,
                )
                .is_ok_and(|subsystem| Arc::ptr_eq(subsystem, &controller.subsystem)),
        };
        let subsystems = old.subsystems.values().map(|member| &member.subsystem);
        for subsystem in subsystems.chain([&self.discovery]) {
            let mut strangers = subsystem.controllers();
            strangers.retain(|controller| !admitted(controller));
            for controller in &strangers {
                info!(
                    "controller {} of {:?}: {:?} may not use it any more",
                    controller.cntlid, subsystem.nqn, controller.hostnqn
                );
                controller.end();
            }
            if !strangers.is_empty() {
                // Reactors close the connections in their time, but take no command from now on.
                subsystem.access_changed();
            }
        }
    }
}

fn visibility(names: Option<&[String]>) -> Result<Visibility, Error> {
    Ok(match names {
        None => Visibility::All,
        Some(names) => Visibility::Hosts(Arc::new(hosts(names)?)),
    })
}

fn check_group(subsystem: &Subsystem, anagrpid: u32) -> Result<(), Error> {
    if (1..=subsystem.ana_groups).contains(&anagrpid) {
        return Ok(());
    }
    Err(Error::config(format!(
        "ANA group {anagrpid}: 1 to {} is wanted in {}",
        subsystem.ana_groups, subsystem.nqn
    )))
}

#[cfg(test)]
mod tests;

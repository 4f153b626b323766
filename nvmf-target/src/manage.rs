//! How a target is changed while it runs.

use crate::change::Change;
use crate::chatter::error;
use crate::contain::{contain, let_go};
use crate::ctrl::{AnaState, Effects};
use crate::ns::Namespace;
use crate::reactor::{Closing, Message};
use crate::transport::Transport;
use crate::{
    Error, ListenerConfig, ListenerInfo, NamespaceConfig, Referral, Role, SubsystemConfig, Target,
};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

/// Each of these methods makes one [`Change`]; [`Target::apply`] makes several as one. All take
/// effect before they return. Hosts are told by the events that they have asked for. After an error
/// nothing has changed.
///
/// Errors, where nothing else is said: [`Error::NotFound`] for a subsystem, namespace, listener or
/// host that is not there, [`Error::Config`] for a value that cannot be accepted, in words.
impl Target {
    /// Makes all changes, in order, or none: each is checked on top of those before it, sockets are
    /// bound, and if nothing is refused everything takes effect at once. An address is bound while
    /// listeners that are to be removed still have theirs.
    ///
    /// Returns the listeners that were added.
    ///
    /// # Errors
    /// [`Error::Change`] with the first change that is refused and why; the error itself if there is
    /// only one change. [`Error::ShutDown`] for a listener after [`Target::shutdown`].
    pub fn apply(&self, mut changes: Vec<Change>) -> Result<Vec<ListenerInfo>, Error> {
        let mut effects = Effects::default();
        let done = self.apply_locked(&mut changes, &mut effects);
        // No lock is held any more: dropping what is the embedder's may call the target.
        for change in changes {
            let_go("a change", change);
        }
        let (attached, listeners) = (effects.attached, effects.listeners);
        let refused = effects.opened.into_iter().map(|(transport, _)| transport);
        for transport in refused.chain(effects.withdrawn) {
            let_go("a listener", transport);
        }
        drop((effects.dropped, effects.replaced));
        // The addresses of listeners that are closed become free here.
        let done = done.map(|closing| closing.into_iter().for_each(Closing::wait));
        if done.is_ok() {
            for reservations in &effects.reservations {
                reservations.set_aside();
            }
        }
        for (namespace, sink) in attached {
            if done.is_ok() {
                if let Err(panic) = contain(|| namespace.subscribe(sink.clone())) {
                    error!("a namespace {panic} as it was given its sink");
                }
                // What has changed since it was asked it could tell nobody.
                sink.changed();
            }
            let_go("a namespace", namespace);
        }
        done.map(|()| listeners)
    }

    /// The part of [`Target::apply`] for which others that change something have to wait. Returns
    /// the listeners that are being closed.
    fn apply_locked(
        &self,
        changes: &mut [Change],
        effects: &mut Effects,
    ) -> Result<Vec<Closing>, Error> {
        let inner = &self.0;
        let _changing = inner
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Held until the listeners are with the accepting thread, if there are any.
        let listens = |c: &Change| matches!(c, Change::AddListener(_));
        let closes = |c: &Change| matches!(c, Change::RemoveListener { .. });
        let running = changes.iter().any(|c| listens(c) || closes(c));
        let running = running.then(|| inner.running());
        let acceptor = running.as_ref().and_then(|r| r.acceptor.as_ref());
        if acceptor.is_none() && changes.iter().any(listens) {
            return Err(Error::ShutDown);
        }
        inner.core.carry_out(changes, effects)?;
        let mut closing = Vec::new();
        if let Some(acceptor) = acceptor {
            closing.extend(effects.closed.drain(..).map(|l| acceptor.close(l)));
            for (transport, listener) in effects.opened.drain(..) {
                acceptor.listen(transport, listener);
            }
        }
        for &(uid, volatile) in &effects.detached {
            for mailbox in &inner.reactors {
                mailbox.send(Message::Detached { uid, volatile });
            }
        }
        Ok(closing)
    }

    fn change(&self, change: Change) -> Result<(), Error> {
        self.apply(vec![change]).map(|_| ())
    }

    /// Adds an NVM subsystem.
    ///
    /// # Errors
    /// [`Error::Config`] if a value is not acceptable or the NQN is taken.
    pub fn add_subsystem(&self, config: SubsystemConfig) -> Result<(), Error> {
        self.change(Change::AddSubsystem(config))
    }

    /// Removes a subsystem with its namespaces. Its controllers end; listeners do not list it any
    /// more.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem.
    pub fn remove_subsystem(&self, nqn: &str) -> Result<(), Error> {
        let nqn = nqn.to_owned();
        self.change(Change::RemoveSubsystem { nqn })
    }

    /// Attaches a namespace to a subsystem under an NSID, for all hosts.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem, [`Error::Config`] if the NSID is taken or out
    /// of range, or the namespace's information is not acceptable or its UUID another namespace's.
    pub fn add_namespace(&self, nqn: &str, nsid: u32, ns: impl Namespace) -> Result<(), Error> {
        self.add_namespace_with(nqn, NamespaceConfig::new(nsid), Arc::new(ns))
    }

    /// Attaches a namespace to a subsystem. The same one may be attached several times, to several
    /// subsystems too, but not to one under the same UUID: it gets a sink each time, and fused commands are atomic across all of them.
    /// Reservations are not shared.
    ///
    /// # Errors
    /// As [`Target::add_namespace`]; also [`Error::Config`] if the ANA group is out of range or a
    /// host's name is no NQN.
    pub fn add_namespace_with(
        &self,
        nqn: &str,
        config: NamespaceConfig,
        namespace: Arc<dyn Namespace>,
    ) -> Result<(), Error> {
        self.change(Change::AddNamespace {
            nqn: nqn.to_owned(),
            config,
            namespace,
        })
    }

    /// Detaches a namespace. Commands that are in the backend finish, later ones fail with Invalid
    /// Namespace or Format. What hosts have written is flushed then, if there is a volatile cache; if
    /// that fails, [`Target::shutdown`] says so in the end. The namespace is dropped when the last of its commands is done, not
    /// before this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem or namespace.
    pub fn remove_namespace(&self, nqn: &str, nsid: u32) -> Result<(), Error> {
        let nqn = nqn.to_owned();
        self.change(Change::RemoveNamespace { nqn, nsid })
    }

    /// Says which hosts a namespace is there for: those with the NQNs, or all with `None`. For any
    /// other its NSID is inactive. Hosts for which it comes or goes are told, others are not.
    ///
    /// # Errors
    /// As for all changes.
    pub fn set_namespace_hosts(
        &self,
        nqn: &str,
        nsid: u32,
        hosts: Option<Vec<String>>,
    ) -> Result<(), Error> {
        let nqn = nqn.to_owned();
        self.change(Change::SetNamespaceHosts { nqn, nsid, hosts })
    }

    /// Moves a namespace to another ANA group of its subsystem.
    ///
    /// # Errors
    /// As for all changes.
    pub fn set_ana_group(&self, nqn: &str, nsid: u32, anagrpid: u32) -> Result<(), Error> {
        self.change(Change::SetAnaGroup {
            nqn: nqn.to_owned(),
            nsid,
            anagrpid,
        })
    }

    /// Sets the state of an ANA group of a subsystem as the controllers of a listener see it.
    /// Commands that are in backends finish; later ones are refused if the state says so.
    ///
    /// For a transition that takes time set [`AnaState::Change`], do what is to be done, and set the
    /// final state within ANATT, 10 seconds: after that hosts give the path up. Nothing but the next
    /// call ends the state.
    ///
    /// # Errors
    /// As for all changes.
    pub fn set_ana_state(
        &self,
        nqn: &str,
        listener: &str,
        anagrpid: u32,
        state: AnaState,
    ) -> Result<(), Error> {
        self.change(Change::SetAnaState {
            nqn: nqn.to_owned(),
            listener: listener.to_owned(),
            anagrpid,
            state,
        })
    }

    /// Lets any host use a subsystem, or only those that it lists. In the latter case controllers of
    /// other hosts end.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem.
    pub fn allow_any_host(&self, nqn: &str, allow: bool) -> Result<(), Error> {
        let nqn = nqn.to_owned();
        self.change(Change::AllowAnyHost { nqn, allow })
    }

    /// Lists a host of a subsystem. A host that is listed already is no error.
    ///
    /// # Errors
    /// As for all changes.
    pub fn add_host(&self, nqn: &str, host: &str) -> Result<(), Error> {
        let (nqn, host) = (nqn.to_owned(), host.to_owned());
        self.change(Change::AddHost { nqn, host })
    }

    /// Takes a host off the list of a subsystem. Its controllers of that subsystem end unless any
    /// host may use it.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a subsystem, or if the host is not listed.
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), Error> {
        let (nqn, host) = (nqn.to_owned(), host.to_owned());
        self.change(Change::RemoveHost { nqn, host })
    }

    /// Listens for NVMe/TCP on an address, for all subsystems and for discovery; port 0 takes any.
    /// Returns the address that was bound; as text it is the listener's name.
    ///
    /// # Errors
    /// [`Error::Io`] if the address cannot be bound, [`Error::ShutDown`] after [`Target::shutdown`].
    pub fn listen(&self, address: SocketAddr) -> Result<SocketAddr, Error> {
        let info = self.listen_with(ListenerConfig::tcp(address))?;
        Ok(info.socket.unwrap_or(address))
    }

    /// Listens for NVMe/TCP on an address, for discovery only.
    ///
    /// # Errors
    /// As [`Target::listen`].
    pub fn listen_discovery(&self, address: SocketAddr) -> Result<SocketAddr, Error> {
        let info = self.listen_with(ListenerConfig::tcp(address).discovery_only())?;
        Ok(info.socket.unwrap_or(address))
    }

    /// Accepts connections from a transport of the embedder's.
    ///
    /// # Errors
    /// [`Error::ShutDown`] after [`Target::shutdown`].
    pub fn listen_on(&self, transport: Box<dyn Transport>, role: Role) -> Result<(), Error> {
        let mut config = ListenerConfig::on(transport);
        config.role = role;
        self.listen_with(config).map(|_| ())
    }

    /// Adds a listener.
    ///
    /// # Errors
    /// [`Error::Io`] if the address cannot be bound, [`Error::Config`] for a value that cannot be
    /// accepted or a name or PORTID that is in use, [`Error::NotFound`] for a subsystem that is not
    /// there, [`Error::ShutDown`] after [`Target::shutdown`].
    pub fn listen_with(&self, config: ListenerConfig) -> Result<ListenerInfo, Error> {
        let mut added = self.apply(vec![Change::AddListener(config)])?;
        added.pop().ok_or(Error::ShutDown)
    }

    /// Closes a listener and ends its connections, and with them their controllers.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a listener.
    pub fn remove_listener(&self, listener: &str) -> Result<(), Error> {
        let listener = listener.to_owned();
        self.change(Change::RemoveListener { listener })
    }

    /// Lets a listener that serves a list of subsystems serve one more. One that it serves already
    /// is no error.
    ///
    /// # Errors
    /// As for all changes; [`Error::Config`] if the listener serves all subsystems.
    pub fn serve(&self, listener: &str, nqn: &str) -> Result<(), Error> {
        let (listener, nqn) = (listener.to_owned(), nqn.to_owned());
        self.change(Change::Serve { listener, nqn })
    }

    /// Takes a subsystem off a listener's list. Controllers that were opened there end.
    ///
    /// # Errors
    /// As for all changes; [`Error::Config`] if the listener serves all subsystems.
    pub fn stop_serving(&self, listener: &str, nqn: &str) -> Result<(), Error> {
        let (listener, nqn) = (listener.to_owned(), nqn.to_owned());
        self.change(Change::StopServing { listener, nqn })
    }

    /// The listeners by PORTID.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        let topology = self.0.core.topology();
        topology.ports.values().map(|port| port.info()).collect()
    }

    /// Tells hosts of another discovery service, in the discovery log.
    ///
    /// # Errors
    /// [`Error::Config`] if its address is a wildcard, its name is no NQN, or there is the same
    /// referral already.
    pub fn add_referral(&self, referral: Referral) -> Result<(), Error> {
        self.change(Change::AddReferral(referral))
    }

    /// Takes a referral back.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none like it.
    pub fn remove_referral(&self, referral: Referral) -> Result<(), Error> {
        self.change(Change::RemoveReferral(referral))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{Lane, LaneCx, NsInfo};
    use crate::transport::{Stream, TransportAddress};
    use crate::{SubsystemConfig, TargetConfig};
    use rustix::event::{EventfdFlags, eventfd};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Sender, channel};

    const NQN: &str = "nqn.2014-08.org.example:disks";

    fn target() -> Target {
        let target = Target::new(TargetConfig {
            reactors: 1,
            ..TargetConfig::default()
        })
        .unwrap();
        target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
        target
    }

    /// It grows whenever it is asked.
    struct Growing(AtomicU64);

    impl Namespace for Growing {
        fn info(&self) -> NsInfo {
            NsInfo::new(512, 1 + self.0.fetch_add(1, Ordering::Relaxed))
        }

        fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
            Err(Error::NotFound("no lane".to_owned()))
        }
    }

    #[test]
    fn a_backend_that_changes_before_it_can_tell_is_asked_again() {
        let target = target();
        let namespace = Growing(AtomicU64::new(0));
        target.add_namespace(NQN, 1, namespace).unwrap();
        let subsystems = target.0.core.subsystems();
        let table = subsystems[0].table();
        assert_eq!(table.get(1).unwrap().info.blocks, 2);
    }

    /// It panics when it is to accept, and says when it is gone.
    struct Bad(OwnedFd, #[expect(dead_code, reason = "dropped")] Sender<()>);

    impl Transport for Bad {
        fn address(&self) -> TransportAddress {
            TransportAddress::tcp(([192, 0, 2, 9], 1).into())
        }

        fn readiness(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
            panic!("as it should in this test");
        }
    }

    #[test]
    fn a_listener_whose_transport_has_panicked_can_be_removed() {
        let target = target();
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let (sender, gone) = channel();
        target
            .listen_on(Box::new(Bad(ready, sender)), Role::Io)
            .unwrap();
        gone.recv().unwrap_err();
        target.remove_listener("192.0.2.9").unwrap();
        assert!(target.listeners().is_empty());
    }
}

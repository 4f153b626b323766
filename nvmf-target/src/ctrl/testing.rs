//! A controller without reactors, for the tests of this part.

use super::admin::AdminCx;
use super::connect::Caller;
use super::controller::Join;
use super::{ConnRef, Controller, Core, Effects, Listener, Opening, QueueStats, Subsystem};
use crate::change::Change;
use crate::ns::{Lane, LaneCx, Namespace, NsInfo};
use crate::reactor::Mailbox;
use crate::transport::{Stream, Transport, TransportAddress};
use crate::{Error, ListenerConfig, NamespaceConfig, Role, SubsystemConfig, TargetConfig};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::fabrics::{PropertySet, PropertySize};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, PropertyOffset};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

pub(super) const HOST_ID: [u8; 16] = *b"the host's id...";
pub(super) const NN: u32 = 2000;

/// A namespace that is only looked at.
pub(super) struct Described(pub(super) NsInfo);

impl Namespace for Described {
    fn info(&self) -> NsInfo {
        self.0.clone()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Err(Error::NotFound("no lane".to_owned()))
    }
}

/// A host's controller, and what belongs to it.
pub(super) struct Rig {
    pub(super) core: Arc<Core>,
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) controller: Arc<Controller>,
}

/// A controller for a host.
pub(super) fn open(
    subsystem: &Arc<Subsystem>,
    host: &str,
    listener: Arc<Listener>,
    local_ip: Option<IpAddr>,
) -> Arc<Controller> {
    let opening = Opening {
        hostnqn: nqn(host),
        hostid: HOST_ID,
        kato_ms: 5000,
        limits: subsystem.limits.by(&listener),
        most: usize::MAX,
        listener,
        local_ip,
        admin: conn(),
        now: Time(0),
    };
    subsystem.open_controller(opening, |_| Ok(())).unwrap()
}

pub(super) fn tcp_address(ip: &str, port: u16) -> TransportAddress {
    TransportAddress::tcp((ip.parse::<IpAddr>().unwrap(), port).into())
}

pub(super) fn nqn(name: &str) -> Nqn {
    Nqn::new(&format!("nqn.2014-08.org.example:{name}")).unwrap()
}

pub(super) fn conn() -> ConnRef {
    ConnRef {
        mailbox: Mailbox::new().unwrap(),
        id: 1,
    }
}

pub(super) fn nvm_subsystem(core: &Core, name: &str) -> Arc<Subsystem> {
    let mut config = SubsystemConfig::new(nqn(name).as_str());
    config.serial = "S123".to_owned();
    config.max_namespaces = NN;
    apply(core, Change::AddSubsystem(config));
    let topology = core.topology();
    Arc::clone(&topology.subsystems[&nqn(name)].subsystem)
}

/// Makes a change as the management of a target would.
impl Core {
    /// Carries out all changes, or none, where nobody minds what is dropped when.
    pub(super) fn apply(&self, mut changes: Vec<Change>) -> Result<Effects, Error> {
        let mut effects = Effects::default();
        self.carry_out(&mut changes, &mut effects)?;
        Ok(effects)
    }
}

pub(super) fn apply(core: &Core, change: Change) {
    core.apply(vec![change]).unwrap();
}

/// A listener that never accepts.
struct Deaf(TransportAddress, OwnedFd);

impl Transport for Deaf {
    fn address(&self) -> TransportAddress {
        self.0.clone()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        Ok(None)
    }
}

/// Adds a listener at an address.
pub(super) fn listen(core: &Core, address: TransportAddress, role: Role) -> Arc<Listener> {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut config = ListenerConfig::on(Box::new(Deaf(address, event)));
    config.role = role;
    let effects = core.apply(vec![Change::AddListener(config)]).unwrap();
    Arc::clone(&effects.opened[0].1)
}

impl Rig {
    pub(super) fn new(subsystem: impl FnOnce(&Core) -> Arc<Subsystem>) -> Self {
        let config = TargetConfig {
            io_queues: 8,
            max_transfer: 64 << 10,
            ..TargetConfig::default()
        };
        Self::with(config, subsystem)
    }

    /// The same on a target of one's own configuration.
    pub(super) fn with(
        config: TargetConfig,
        subsystem: impl FnOnce(&Core) -> Arc<Subsystem>,
    ) -> Self {
        let core = Core::new(config);
        let listener = listen(&core, tcp_address("192.0.2.1", 4420), Role::Io);
        let subsystem = subsystem(&core);
        let local_ip = Some([192, 0, 2, 1].into());
        let controller = open(&subsystem, "host", listener, local_ip);
        Self {
            core,
            subsystem,
            controller,
        }
    }

    /// The host comes by another listener, at this address of the target.
    pub(super) fn come_by(&mut self, listener: Arc<Listener>, local_ip: Option<IpAddr>) {
        self.controller = open(&self.subsystem, "host", listener, local_ip);
    }

    /// A controller for another host, by the same listener.
    pub(super) fn other(&self, host: &str) -> Self {
        let (listener, local_ip) = (&self.controller.listener, self.controller.local_ip);
        Self {
            core: Arc::clone(&self.core),
            subsystem: Arc::clone(&self.subsystem),
            controller: open(&self.subsystem, host, Arc::clone(listener), local_ip),
        }
    }

    /// An I/O controller of a subsystem with the namespaces 1 and 3.
    pub(super) fn nvm() -> Self {
        let rig = Self::new(|core| nvm_subsystem(core, "disks"));
        rig.attach(1, NsInfo::new(512, 2048));
        rig.attach(
            3,
            NsInfo::new(4096, 16)
                .with_read_only(true)
                .with_volatile_cache(),
        );
        rig
    }

    pub(super) fn discovery() -> Self {
        Self::new(|core| Arc::clone(&core.discovery))
    }

    pub(super) fn attach(&self, nsid: u32, info: NsInfo) {
        self.attach_with(NamespaceConfig::new(nsid), info);
    }

    pub(super) fn attach_with(&self, config: NamespaceConfig, info: NsInfo) {
        self.apply(Change::AddNamespace {
            nqn: self.nqn(),
            config,
            namespace: Arc::new(Described(info)),
        });
    }

    pub(super) fn nqn(&self) -> String {
        self.subsystem.nqn.as_str().to_owned()
    }

    pub(super) fn apply(&self, change: Change) {
        apply(&self.core, change);
    }

    /// CC.EN, as before I/O queues.
    pub(super) fn enable(&self) {
        self.set_cc(Cc::default().with_en(true).with_iosqes(6).with_iocqes(4));
    }

    /// A Controller Level Reset.
    pub(super) fn reset(&self) {
        self.set_cc(Cc::default());
    }

    fn set_cc(&self, cc: Cc) {
        let (size, offset) = (PropertySize::BYTES_4, PropertyOffset::CC);
        let set = PropertySet {
            size,
            offset,
            value: cc.0.into(),
        };
        self.controller.property_set(&set, Time(0)).unwrap();
    }

    /// An I/O queue joins at a time.
    pub(super) fn add_queue(&self, qid: u16, now: Time) -> Arc<QueueStats> {
        let caller = Caller {
            conn: conn(),
            local_ip: None,
            now,
            again: false,
        };
        match self.controller.add_queue(qid, caller) {
            Ok(Join::Now(stats)) => stats,
            other => panic!("queue {qid}: {other:?}"),
        }
    }

    pub(super) fn cx(&self) -> AdminCx<'_> {
        AdminCx {
            core: &self.core,
            controller: &self.controller,
        }
    }
}

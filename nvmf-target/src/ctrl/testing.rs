//! A controller without reactors, for the tests of this part.

use super::admin::AdminCx;
use super::{ConnRef, Controller, Core, Limits, Listener, Opening, Role, Subsystem};
use crate::ns::{Lane, LaneCx, Namespace, NsInfo};
use crate::reactor::Mailbox;
use crate::transport::TransportAddress;
use crate::{Error, SubsystemConfig, TargetConfig};
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use nvmf_proto::wire::fabrics::{PropertySet, PropertySize};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, PropertyOffset};
use std::net::IpAddr;
use std::sync::Arc;

pub(super) const HOST_ID: [u8; 16] = *b"the host's id...";
pub(super) const NN: u32 = 2000;

/// A namespace that is only looked at.
struct Described(NsInfo);

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
    pub(super) local_ip: Option<IpAddr>,
}

pub(super) fn tcp_address(ip: &str, port: u16) -> TransportAddress {
    let ip: IpAddr = ip.parse().unwrap();
    TransportAddress {
        trtype: TransportType::TCP,
        adrfam: if ip.is_ipv4() {
            AddressFamily::IPV4
        } else {
            AddressFamily::IPV6
        },
        traddr: ip.to_string(),
        trsvcid: port.to_string(),
        wildcard: ip.is_unspecified(),
    }
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
    let subsystem = Subsystem::nvm(nqn(name), &config);
    assert!(core.add_subsystem(Arc::clone(&subsystem)));
    subsystem
}

fn opening(core: &Core, listener: Arc<Listener>) -> Opening {
    Opening {
        hostnqn: nqn("host"),
        hostid: HOST_ID,
        kato_ms: 5000,
        listener,
        limits: Limits::new(&core.config),
        admin: conn(),
    }
}

impl Rig {
    pub(super) fn new(subsystem: impl FnOnce(&Core) -> Arc<Subsystem>) -> Self {
        let config = TargetConfig {
            io_queues: 8,
            max_transfer: 64 << 10,
            ..TargetConfig::default()
        };
        let core = Core::new(config);
        let listener = core.add_listener(tcp_address("192.0.2.1", 4420), Role::Io);
        let subsystem = subsystem(&core);
        let opening = opening(&core, listener);
        let controller = subsystem.open_controller(opening).unwrap();
        Self {
            core,
            subsystem,
            controller,
            local_ip: Some([192, 0, 2, 1].into()),
        }
    }

    /// The host comes by another listener.
    pub(super) fn come_by(&mut self, listener: Arc<Listener>) {
        let opening = opening(&self.core, listener);
        self.controller = self.subsystem.open_controller(opening).unwrap();
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
        let uid = self.core.new_uid();
        self.subsystem
            .add_namespace(nsid, uid, Arc::new(Described(info)))
            .unwrap();
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
        self.controller.property_set(&set).unwrap();
    }

    pub(super) fn cx(&self) -> AdminCx<'_> {
        AdminCx {
            core: &self.core,
            controller: &self.controller,
            local_ip: self.local_ip,
        }
    }
}

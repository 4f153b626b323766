//! Tests of the admin commands, on controllers without a reactor.

mod discovery;
mod feature;
mod identify;
mod log;

use super::{AdminCx, Reply, Transfer, execute, transfer};
use crate::ctrl::{ConnRef, Controller, Core, Listener, Role, Subsystem};
use crate::ns::{Lane, LaneCx, Namespace, NsInfo};
use crate::reactor::Mailbox;
use crate::transport::TransportAddress;
use crate::{Error, SubsystemConfig, TargetConfig};
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use nvmf_proto::wire::fabrics::{PropertySet, PropertySize};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_proto::wire::{AdminOpcode, Sqe, Status};
use proptest::prelude::*;
use std::net::IpAddr;
use std::sync::Arc;

const HOST_ID: [u8; 16] = *b"the host's id...";
const NN: u32 = 2000;

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
struct Rig {
    core: Arc<Core>,
    subsystem: Arc<Subsystem>,
    controller: Arc<Controller>,
    listener: Arc<Listener>,
    local_ip: Option<IpAddr>,
}

fn tcp_address(ip: &str, port: u16) -> TransportAddress {
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

fn nqn(name: &str) -> Nqn {
    Nqn::new(&format!("nqn.2014-08.org.example:{name}")).unwrap()
}

fn conn() -> ConnRef {
    ConnRef {
        mailbox: Mailbox::new().unwrap(),
        id: 1,
    }
}

fn nvm_subsystem(core: &Core, name: &str) -> Arc<Subsystem> {
    let mut config = SubsystemConfig::new(nqn(name).as_str());
    config.serial = "S123".to_owned();
    config.max_namespaces = NN;
    let subsystem = Subsystem::nvm(nqn(name), &config);
    assert!(core.add_subsystem(Arc::clone(&subsystem)));
    subsystem
}

impl Rig {
    fn new(subsystem: impl FnOnce(&Core) -> Arc<Subsystem>) -> Self {
        let config = TargetConfig {
            io_queues: 8,
            max_transfer: 64 << 10,
            ..TargetConfig::default()
        };
        let core = Core::new(config);
        let listener = core.add_listener(tcp_address("192.0.2.1", 4420), Role::Io);
        let subsystem = subsystem(&core);
        let controller = subsystem
            .open_controller(nqn("host"), HOST_ID, 5000, conn())
            .unwrap();
        Self {
            core,
            subsystem,
            controller,
            listener,
            local_ip: Some([192, 0, 2, 1].into()),
        }
    }

    /// An I/O controller of a subsystem with the namespaces 1 and 3.
    fn nvm() -> Self {
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

    fn discovery() -> Self {
        Self::new(|core| Arc::clone(&core.discovery))
    }

    fn attach(&self, nsid: u32, info: NsInfo) {
        let uid = self.core.new_uid();
        self.subsystem
            .add_namespace(nsid, uid, Arc::new(Described(info)))
            .unwrap();
    }

    /// CC.EN, as before I/O queues.
    fn enable(&self) {
        let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
        let (size, offset) = (PropertySize::BYTES_4, PropertyOffset::CC);
        let set = PropertySet {
            size,
            offset,
            value: cc.0.into(),
        };
        self.controller.property_set(&set).unwrap();
    }

    fn cx(&self) -> AdminCx<'_> {
        AdminCx {
            core: &self.core,
            controller: &self.controller,
            listener: &self.listener,
            local_ip: self.local_ip,
        }
    }

    /// What a command answers: dword 0 and data, or a status. Both halves of it must agree, and
    /// every byte of the data must have been written: the command runs twice, over different rubbish.
    fn run(&self, sqe: &Sqe) -> Result<(u64, Vec<u8>), Status> {
        let len = match transfer(&self.cx(), sqe) {
            Ok(Transfer::None) => 0,
            Ok(Transfer::ToHost(len)) => len as usize,
            Ok(Transfer::FromHost(_)) => panic!("no command here takes data"),
            Err(status) => {
                let result = 0;
                assert_eq!(execute(&self.cx(), sqe, &mut []), Reply { status, result });
                return Err(status);
            }
        };
        let (mut data, mut again) = (vec![0xa5; len], vec![0x5a; len]);
        let reply = execute(&self.cx(), sqe, &mut data);
        if !reply.status.is_success() {
            return Err(reply.status);
        }
        assert_eq!(execute(&self.cx(), sqe, &mut again), reply);
        assert!(data == again, "a byte was left as it was");
        Ok((reply.result, data))
    }

    /// The status of a command.
    fn status(&self, sqe: &Sqe) -> Status {
        self.run(sqe).err().unwrap_or(Status::SUCCESS)
    }
}

#[test]
fn other_opcodes_are_invalid() {
    let known = [
        AdminOpcode::IDENTIFY.0,
        AdminOpcode::GET_LOG_PAGE.0,
        AdminOpcode::GET_FEATURES.0,
        AdminOpcode::SET_FEATURES.0,
    ];
    for rig in [Rig::nvm(), Rig::discovery()] {
        for opcode in (0..=u8::MAX).filter(|opcode| !known.contains(opcode)) {
            let status = rig.status(&Sqe::with_opcode(opcode));
            assert_eq!(status, Status::INVALID_OPCODE.dnr(), "{opcode:02x}h");
        }
    }
}

#[test]
fn a_buffer_that_is_too_short_is_no_panic() {
    let rig = Rig::nvm();
    for opcode in [AdminOpcode::IDENTIFY, AdminOpcode::GET_FEATURES] {
        let mut sqe = Sqe::with_opcode(opcode.0);
        let cdw10 = if opcode == AdminOpcode::IDENTIFY {
            1
        } else {
            0x81
        };
        sqe.set_cdw10_15([cdw10, 1, 0, 0, 0, 0]);
        let status = execute(&rig.cx(), &sqe, &mut [0; 15]).status;
        assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
}

proptest! {
    /// Whatever a host sends: no panic, no byte of a buffer left unwritten, and what is refused
    /// for good says so.
    #[test]
    fn any_command_is_answered(
        discovery: bool,
        opcode in prop::sample::select(vec![0x02, 0x06, 0x09, 0x0a]),
        nsid in prop_oneof![0..5u32, NN - 1..NN + 2, u32::MAX - 2..=u32::MAX, any::<u32>()],
        // RAE is set: without it a log page changes by being read.
        cdw10 in prop_oneof![0..0x90u32, any::<u32>()],
        cdw11 in prop_oneof![0..0x10u32, any::<u32>()],
        cdw12 in prop_oneof![0..0x40u32, any::<u32>()],
        cdw13 in prop_oneof![Just(0u32), any::<u32>()],
        cdw14 in prop_oneof![Just(0u32), any::<u32>()],
    ) {
        let rig = if discovery { Rig::discovery() } else { Rig::nvm() };
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(nsid);
        let cdw10 = if opcode == 0x02 { cdw10 | 0x8000 } else { cdw10 };
        sqe.set_cdw10_15([cdw10, cdw11, cdw12, cdw13, cdw14, 0]);
        if let Err(status) = rig.run(&sqe) {
            prop_assert!(status.is_dnr(), "{status}");
        }
    }
}

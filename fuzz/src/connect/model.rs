//! What there is to connect to, who may, and which controllers there are: the model that answers
//! are judged by.

use super::Command;
use crate::rig::{self, TestTarget, VERIFY_NQN};
use arbitrary::Arbitrary;
use nvmf_host::Completion;
use nvmf_proto::wire::discovery::SubsystemType;
use nvmf_proto::wire::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, InvalidParameter};
use nvmf_proto::wire::feature::NumberOfQueues;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_target::transport::{MemConnector, MemTransport};
use nvmf_target::{Error, ListenerConfig, Referral, Role, SubsystemConfig, Target, TargetConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// Entries of an I/O queue, and of an admin queue.
const ENTRIES: u32 = 64;
const ADMIN_ENTRIES: u16 = 96;
/// The discovery service's own name.
const DISCOVERY: &str = "nqn.2026-11.org.example:discovery";
const NAMES: [&str; 3] = [
    "nqn.2026-11.org.example:a",
    "nqn.2026-11.org.example:b",
    "nqn.2026-11.org.example:c",
];
/// The listeners: one for all subsystems, one for those of a list, one for the discovery service,
/// and one that comes and goes.
const ALL: &str = "all";
const LISTED: &str = "listed";
const ONLY: &str = "only";
const EXTRA: &str = "extra";

/// What an administrator does. Numbers stand for subsystems, hosts and referrals.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Change {
    AddSubsystem(u8, bool),
    RemoveSubsystem(u8),
    AllowAnyHost(u8, bool),
    AddHost(u8, u8),
    RemoveHost(u8, u8),
    Serve(u8),
    StopServing(u8),
    AddReferral(u8),
    RemoveReferral(u8),
    AddListener(bool),
    RemoveListener,
}

#[derive(Debug)]
struct Member {
    any_host: bool,
    hosts: BTreeSet<Nqn>,
}

/// A subsystem port.
#[derive(Debug)]
struct Port {
    name: &'static str,
    role: Role,
    /// The subsystems that it serves, unless it serves all.
    list: Option<BTreeSet<Nqn>>,
}

impl Port {
    fn serves(&self, subsystem: &Nqn) -> bool {
        let listed = self.list.as_ref();
        self.role == Role::Io && listed.is_none_or(|list| list.contains(subsystem))
    }
}

/// What there is.
#[derive(Debug)]
pub(super) struct Topology {
    subsystems: BTreeMap<Nqn, Member>,
    ports: Vec<Port>,
    referrals: BTreeSet<u16>,
}

/// What is wrong with a Connect.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// The fields that may be blamed.
    pub(super) fields: Vec<InvalidParameter>,
    /// Something that is no field's fault.
    pub(super) other: bool,
}

/// A target with three listeners, and a model of it.
pub(super) fn start() -> Result<(TestTarget, Vec<MemConnector>, Topology), Error> {
    let mut config = TargetConfig::default();
    config.reactors = 1;
    config.buffer_bytes = 2 << 20;
    config.max_transfer = 1 << 17;
    config.io_queue_entries = ENTRIES;
    config.admin_queue_entries = ADMIN_ENTRIES;
    config.io_queues = 4;
    config.discovery_nqn = Some(DISCOVERY.to_owned());
    let rig = TestTarget::new(config)?;
    let target = rig.target();
    rig::add_verify(target, 1 << 16)?;
    let mut topology = Topology {
        subsystems: BTreeMap::new(),
        ports: Vec::new(),
        referrals: BTreeSet::new(),
    };
    let verify = Member {
        any_host: true,
        hosts: BTreeSet::new(),
    };
    topology.subsystems.insert(name(VERIFY_NQN), verify);
    topology.apply(target, &Change::AddSubsystem(0, true));
    let all = rig.listen(ALL, Role::Io);
    let (transport, listed) = MemTransport::new(LISTED).map_err(|e| Error::io("a listener", e))?;
    let mut config = ListenerConfig::on(Box::new(transport));
    config.subsystems = Some(vec![NAMES[0].to_owned()]);
    target.listen_with(config)?;
    let only = rig.listen(ONLY, Role::Discovery);
    topology.ports = vec![
        Port {
            name: ALL,
            role: Role::Io,
            list: None,
        },
        Port {
            name: LISTED,
            role: Role::Io,
            list: Some([name(NAMES[0])].into()),
        },
        Port {
            name: ONLY,
            role: Role::Discovery,
            list: None,
        },
    ];
    Ok((rig, vec![all, listed, only], topology))
}

fn name(text: &str) -> Nqn {
    Nqn::new(text).expect("an NQN")
}

fn listed(index: u8) -> &'static str {
    NAMES[usize::from(index) % NAMES.len()]
}

fn host(index: u8) -> Nqn {
    rig::options(None, index % 3).host
}

impl Topology {
    /// The NQN of a subsystem, one that there may be, or of the discovery service.
    pub(super) fn subsystem(&self, index: u8) -> Nqn {
        match index % 8 {
            0..5 => name(listed(index % 8 % 3)),
            5 => name(VERIFY_NQN),
            6 => Nqn::discovery(),
            _ => name(DISCOVERY),
        }
    }

    /// The most records that a log has.
    pub(super) const fn records_max() -> usize {
        1 + 4 * 3 + 4
    }

    /// Whether a host may have a controller by a port.
    pub(super) fn admits(&self, port: usize, subsystem: &Nqn, host: &Nqn) -> bool {
        let wrong = self.wrong_names(port, subsystem, host);
        wrong.fields.is_empty() && !wrong.other
    }

    fn wrong_names(&self, port: usize, subsystem: &Nqn, host: &Nqn) -> Wrong {
        let mut wrong = Wrong::default();
        if is_discovery(subsystem) {
            return wrong;
        }
        let served = self.ports[port].serves(subsystem);
        match self.subsystems.get(subsystem).filter(|_| served) {
            None => wrong
                .fields
                .push(InvalidParameter::Data(ConnectData::SUBNQN)),
            Some(member) => wrong.other = !member.any_host && !member.hosts.contains(host),
        }
        wrong
    }

    /// What is wrong with a Connect with so many bytes of data.
    pub(super) fn wrong(
        &self,
        port: usize,
        command: &ConnectCommand,
        data: &ConnectData,
        length: usize,
        controllers: &BTreeMap<u64, Controller>,
    ) -> Wrong {
        let mut wrong = match (data.subsystem_nqn(), data.host_nqn()) {
            (Ok(subsystem), Ok(host)) => self.wrong_names(port, &subsystem, &host),
            (subsystem, host) => {
                let mut wrong = Wrong::default();
                let mut blame = |is_wrong: bool, offset| {
                    if is_wrong {
                        wrong.fields.push(InvalidParameter::Data(offset));
                    }
                };
                blame(subsystem.is_err(), ConnectData::SUBNQN);
                blame(host.is_err(), ConnectData::HOSTNQN);
                wrong
            }
        };
        wrong.other |= command.recfmt != 0;
        let mut blame = |is_wrong: bool, parameter| {
            if is_wrong {
                wrong.fields.push(parameter);
            }
        };
        blame(
            !(1024..=8192).contains(&length),
            InvalidParameter::Command(ConnectCommand::SGL1),
        );
        let entries = u32::from(command.sqsize) + 1;
        let sqsize = InvalidParameter::Command(ConnectCommand::SQSIZE);
        blame(entries < 2, sqsize);
        let cntlid = InvalidParameter::Data(ConnectData::CNTLID);
        if command.qid == 0 {
            blame(entries > ADMIN_ENTRIES.into(), sqsize);
            blame(data.cntlid != CNTLID_DYNAMIC, cntlid);
            return wrong;
        }
        let qid = InvalidParameter::Command(ConnectCommand::QID);
        blame(
            data.subsystem_nqn().is_ok_and(|nqn| is_discovery(&nqn)),
            qid,
        );
        blame(entries > ENTRIES, sqsize);
        let Some(controller) = controllers.values().find(|c| c.is_meant_by(data)) else {
            blame(true, cntlid);
            return wrong;
        };
        blame(controller.port != port, cntlid);
        let fields = [
            (controller.hostid != data.hostid, ConnectData::HOSTID),
            (
                data.host_nqn().is_ok_and(|host| controller.hostnqn != host),
                ConnectData::HOSTNQN,
            ),
        ];
        for (is_wrong, offset) in fields {
            blame(is_wrong, InvalidParameter::Data(offset));
        }
        match controller.granted {
            Granted::Queues(count) => blame(command.qid > count, qid),
            Granted::Unknown => {}
            Granted::None => wrong.other = true,
        }
        wrong.other |= controller.enabled == Some(false);
        wrong
    }

    /// Makes a change of the target and of the model; both agree whether it can be made.
    pub(super) fn apply(&mut self, target: &Target, change: &Change) {
        let (made, expected) = match *change {
            Change::AddSubsystem(at, any_host) => {
                let mut config = SubsystemConfig::new(listed(at));
                config.allow_any_host = any_host;
                let member = Member {
                    any_host,
                    hosts: BTreeSet::new(),
                };
                let new = !self.subsystems.contains_key(listed(at));
                if new {
                    self.subsystems.insert(name(listed(at)), member);
                }
                (target.add_subsystem(config), new)
            }
            Change::RemoveSubsystem(at) => {
                let gone = self.subsystems.remove(listed(at)).is_some();
                for list in self.ports.iter_mut().filter_map(|port| port.list.as_mut()) {
                    list.remove(listed(at));
                }
                (target.remove_subsystem(listed(at)), gone)
            }
            Change::AllowAnyHost(at, allow) => {
                let member = self.subsystems.get_mut(listed(at));
                let there = member.map(|member| member.any_host = allow).is_some();
                (target.allow_any_host(listed(at), allow), there)
            }
            Change::AddHost(at, number) => {
                let member = self.subsystems.get_mut(listed(at));
                let there = member.map(|member| member.hosts.insert(host(number)));
                let made = target.add_host(listed(at), host(number).as_str());
                (made, there.is_some())
            }
            Change::RemoveHost(at, number) => {
                let member = self.subsystems.get_mut(listed(at));
                let there = member.is_some_and(|member| member.hosts.remove(&host(number)));
                let made = target.remove_host(listed(at), host(number).as_str());
                (made, there)
            }
            Change::Serve(at) => {
                let there = self.subsystems.contains_key(listed(at));
                if let Some(list) = self.ports[1].list.as_mut().filter(|_| there) {
                    list.insert(name(listed(at)));
                }
                (target.serve(LISTED, listed(at)), there)
            }
            Change::StopServing(at) => {
                let list = self.ports[1].list.as_mut();
                let there = list.is_some_and(|list| list.remove(listed(at)));
                (target.stop_serving(LISTED, listed(at)), there)
            }
            Change::AddReferral(at) => {
                let new = self.referrals.insert(port_of(at));
                (target.add_referral(referral(port_of(at))), new)
            }
            Change::RemoveReferral(at) => {
                let there = self.referrals.remove(&port_of(at));
                (target.remove_referral(referral(port_of(at))), there)
            }
            Change::AddListener(discovery) => self.add_extra(target, discovery),
            Change::RemoveListener => {
                let before = self.ports.len();
                self.ports.retain(|port| port.name != EXTRA);
                (target.remove_listener(EXTRA), self.ports.len() < before)
            }
        };
        match made {
            Ok(()) => assert!(expected, "{change:?} was accepted"),
            Err(error) => assert!(!expected, "{change:?}: {error}"),
        }
    }

    fn add_extra(&mut self, target: &Target, discovery: bool) -> (Result<(), Error>, bool) {
        let role = if discovery { Role::Discovery } else { Role::Io };
        let new = self.ports.iter().all(|port| port.name != EXTRA);
        let (transport, _) = MemTransport::new(EXTRA).expect("descriptors");
        let mut config = ListenerConfig::on(Box::new(transport));
        config.role = role;
        config.name = Some(EXTRA.to_owned());
        if new {
            self.ports.push(Port {
                name: EXTRA,
                role,
                list: None,
            });
        }
        (target.listen_with(config).map(|_| ()), new)
    }

    /// What the log is to say to a host that has come by a port: subtype, NQN, address.
    pub(super) fn records(&self, port: usize, host: &Nqn) -> Vec<(SubsystemType, String, String)> {
        let mut records = vec![(
            SubsystemType::CURRENT_DISCOVERY,
            DISCOVERY.to_owned(),
            self.ports[port].name.to_owned(),
        )];
        for (nqn, member) in &self.subsystems {
            if !member.any_host && !member.hosts.contains(host) {
                continue;
            }
            let ports = self.ports.iter().filter(|port| port.serves(nqn));
            records.extend(ports.map(|port| {
                let (nqn, at) = (nqn.as_str().to_owned(), port.name.to_owned());
                (SubsystemType::NVM, nqn, at)
            }));
        }
        records.extend(self.referrals.iter().map(|port| {
            let nqn = Nqn::discovery().as_str().to_owned();
            (SubsystemType::REFERRAL, nqn, referral(*port).address.traddr)
        }));
        records
    }
}

fn is_discovery(nqn: &Nqn) -> bool {
    nqn.is_discovery() || nqn.as_str() == DISCOVERY
}

fn port_of(index: u8) -> u16 {
    8009 + u16::from(index % 4)
}

fn referral(port: u16) -> Referral {
    Referral::tcp(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port)))
}

/// How many I/O queues a controller has been granted.
#[derive(Clone, Copy, Debug)]
enum Granted {
    None,
    Queues(u16),
    Unknown,
}

/// A controller as its host knows it.
#[derive(Debug)]
pub(super) struct Controller {
    port: usize,
    cntlid: u16,
    hostid: [u8; 16],
    pub(super) hostnqn: Nqn,
    subnqn: Nqn,
    /// If it is known.
    pub(super) enabled: Option<bool>,
    granted: Granted,
}

impl Controller {
    pub(super) fn new(port: usize, cntlid: u16, data: &ConnectData) -> Self {
        Self {
            port,
            cntlid,
            hostid: data.hostid,
            hostnqn: data.host_nqn().expect("it was accepted"),
            subnqn: data.subsystem_nqn().expect("it was accepted"),
            enabled: Some(false),
            granted: Granted::None,
        }
    }

    pub(super) fn is_discovery(&self) -> bool {
        is_discovery(&self.subnqn)
    }

    /// Whether both are controllers of one subsystem with one CNTLID.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_subsystem =
            self.subnqn == other.subnqn || (self.is_discovery() && other.is_discovery());
        same_subsystem && self.cntlid == other.cntlid
    }

    /// Whether it is the one that the data of a Connect names.
    pub(super) fn is_meant_by(&self, data: &ConnectData) -> bool {
        data.cntlid == self.cntlid && data.subsystem_nqn().is_ok_and(|nqn| nqn == self.subnqn)
    }

    /// Valid data for a Connect of an I/O queue.
    pub(super) fn connect_data(&self) -> ConnectData {
        ConnectData {
            hostid: self.hostid,
            cntlid: self.cntlid,
            subnqn: self.subnqn.to_field(),
            hostnqn: self.hostnqn.to_field(),
        }
    }

    /// A command of its host has been answered.
    pub(super) fn note(&mut self, command: &Command, qid: u16, done: &Completion) {
        if qid != 0 || !done.cqe.status.is_success() {
            return;
        }
        match command {
            Command::Enable => self.enabled = self.enabled.map(|_| true),
            Command::Disable => {
                self.enabled = Some(false);
                self.granted = Granted::None;
            }
            Command::Shutdown | Command::PropertySet(..) => {
                self.enabled = None;
                self.granted = Granted::Unknown;
            }
            Command::Queues(_) => {
                #[expect(clippy::cast_possible_truncation, reason = "dword 0 is meant")]
                let given = NumberOfQueues::from_bits(done.cqe.result as u32);
                self.granted = Granted::Queues(u16::try_from(given.pair_count()).unwrap_or(0));
            }
            _ => {}
        }
    }
}

//! Connect and discovery: every field of Connect on both kinds of queue, commands before their time,
//! and the discovery log while what it tells of changes. A model says which Connects may succeed and
//! which fields may be blamed.

mod model;

use self::model::{Controller, Topology, Wrong};
use crate::list::List;
use crate::rig::{self, TestTarget};
use arbitrary::{Arbitrary, Unstructured};
use nvmf_host::command as host;
use nvmf_host::{Completion, Data, Error, Queue};
use nvmf_proto::tcp::host::Config;
use nvmf_proto::wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, SubsystemType};
use nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, Cattr, ConnectCommand, ConnectData, ConnectResponse, FabricsType,
    InvalidParameter, PropertyGet, PropertySet, PropertySize,
};
use nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_proto::wire::log::{GetLogPage, Lid};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_proto::wire::{Sqe, Status};
use nvmf_target::transport::MemConnector;
use std::collections::BTreeMap;

/// What hosts and an administrator do.
#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    ops: List<Op>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Op {
    /// A connection to a port, without a Connect.
    Open {
        port: u8,
        digests: u8,
        hpda: u8,
    },
    Close(u8),
    Connect(u8, Connect),
    /// All that it takes to use an I/O queue, of a host that keeps to the rules.
    Whole {
        port: u8,
        host: u8,
        subsystem: u8,
    },
    Command(u8, Command),
    Log(u8, Read),
    Manage(model::Change),
    /// Tenths of a second.
    Pass(u8),
}

/// The fields of a Connect: valid, but for what `lies` say.
#[derive(Arbitrary, Clone, Debug)]
struct Connect {
    host: u8,
    subsystem: u8,
    /// 0: an admin queue.
    qid: u8,
    entries: u8,
    kato: u16,
    /// The controller, among those that there are.
    controller: u8,
    by_r2t: bool,
    lie: Option<Lie>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Lie {
    Recfmt(u16),
    Qid(u16),
    Sqsize(u16),
    Cattr(u8),
    Kato(u32),
    Length(u16),
    Hostid(u8),
    Cntlid(u16),
    Subnqn(u8, u8),
    Hostnqn(u8, u8),
    /// A byte of the SQE that has no meaning to the host's machine.
    Sqe(u8, u8),
}

/// Commands at any time.
#[derive(Arbitrary, Clone, Debug)]
enum Command {
    Enable,
    Disable,
    Shutdown,
    Queues(u8),
    PropertyGet(u8, bool),
    PropertySet(u8, bool, u32),
    KeepAlive,
    Identify(u8),
    EventRequest,
    Disconnect(u16),
    Flush,
    Read,
    Authenticate(bool),
}

/// A read of the discovery log.
#[derive(Arbitrary, Clone, Debug)]
struct Read {
    offset: u16,
    dwords: u16,
    whole: bool,
    high: bool,
    lsp: u8,
    rae: bool,
}

/// Connections that there are at a time.
const CONNECTIONS: usize = 6;
/// Entries of a queue as the host's machine knows it. A Connect may lie about it: then the connection
/// is given up before the host would notice.
const ENTRIES: u32 = 128;

/// Runs one input of bytes.
///
/// # Panics
///
/// On a finding.
pub fn run_bytes(data: &[u8]) {
    if let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) {
        run(&case);
    }
}

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(case: &Case) {
    let mut world = World::new().expect("a valid configuration");
    for op in &case.ops.0 {
        world.apply(op);
    }
    world.finish();
}

/// What a connection has become.
#[derive(Debug)]
enum Role {
    None,
    /// A queue of a controller.
    Queue {
        controller: u64,
        qid: u16,
    },
}

struct Connection {
    queue: Queue,
    port: usize,
    role: Role,
    /// Its Connect asks to disable SQ flow control. The host's machine learns from the first
    /// completion whether it is disabled, so if that is another one the connection is of no use.
    asks: bool,
    /// Asynchronous Event Requests that have been sent.
    waiting: u16,
    /// SQSIZE of its Connect.
    sqsize: u16,
    /// Commands that have been sent.
    sent: u32,
}

struct World {
    rig: TestTarget,
    ports: Vec<MemConnector>,
    topology: Topology,
    connections: Vec<Option<Connection>>,
    /// By a number of our own: CNTLIDs are used again.
    controllers: BTreeMap<u64, Controller>,
    next: u64,
    /// What each host has seen under each GENCTR, by port.
    logs: BTreeMap<(usize, Nqn, u64), Vec<u8>>,
}

impl World {
    fn new() -> Result<Self, nvmf_target::Error> {
        let (rig, ports, topology) = model::start()?;
        Ok(Self {
            rig,
            ports,
            topology,
            connections: (0..CONNECTIONS).map(|_| None).collect(),
            controllers: BTreeMap::new(),
            next: 0,
            logs: BTreeMap::new(),
        })
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Open {
                port,
                digests,
                hpda,
            } => self.open(*port, *digests, *hpda),
            Op::Close(at) => self.connections[usize::from(*at) % CONNECTIONS] = None,
            Op::Connect(at, connect) => self.connect(*at, connect),
            Op::Whole {
                port,
                host,
                subsystem,
            } => self.whole(*port, *host, *subsystem),
            Op::Command(at, command) => self.command(*at, command),
            Op::Log(at, read) => self.log(*at, read),
            Op::Manage(change) => {
                rig::settle();
                self.topology.apply(self.rig.target(), change);
                rig::settle();
            }
            Op::Pass(tenths) => self.rig.pass(u64::from(*tenths) * 100_000_000),
        }
        self.sweep();
    }

    /// Takes note of the connections that have ended, and with an admin queue its controller.
    fn sweep(&mut self) {
        rig::settle();
        for connection in &mut self.connections {
            let over = connection
                .as_mut()
                .is_some_and(|c| c.sent >= ENTRIES - 8 || c.queue.progress().is_err());
            if over {
                *connection = None;
            }
        }
        let connections = &self.connections;
        self.controllers.retain(|number, _| {
            connections.iter().flatten().any(|connection| {
                matches!(connection.role, Role::Queue { controller, qid: 0 } if controller == *number)
            })
        });
    }

    fn open(&mut self, port: u8, digests: u8, hpda: u8) {
        let port = usize::from(port) % self.ports.len();
        let Some(at) = self.connections.iter().position(Option::is_none) else {
            return;
        };
        let config = Config {
            header_digest: digests & 1 != 0,
            data_digest: digests & 2 != 0,
            hpda: hpda & 31,
            entries: ENTRIES,
            flow_control: digests & 4 == 0,
            ..Config::default()
        };
        let mut connector = rig::connector(&self.ports[port]);
        let stream = connector().expect("descriptors");
        match Queue::open(stream, &config, rig::NEVER) {
            Ok(queue) => {
                self.connections[at] = Some(Connection {
                    queue,
                    port,
                    role: Role::None,
                    asks: digests & 4 != 0,
                    waiting: 0,
                    sqsize: 0,
                    sent: 0,
                });
            }
            Err(error) => panic!("no connection: {error}"),
        }
    }

    fn connect(&mut self, at: u8, connect: &Connect) {
        let at = usize::from(at) % CONNECTIONS;
        let picked = usize::from(connect.controller) % self.controllers.len().max(1);
        let controller = self.controllers.iter().nth(picked);
        let Some(connection) = self.connections[at].as_mut() else {
            return;
        };
        let (command, mut data) = connect.fields(&self.topology, controller.map(|(_, c)| c));
        let mut sqe = command.to_sqe();
        let mut length = 1024;
        match connect.lie {
            Some(Lie::Length(len)) => length = usize::from(len) % 10_000,
            // Not the SGL descriptor, which is the host's own, nor opcode, FUSE, CID and FCTYPE.
            Some(Lie::Sqe(byte, value)) if byte % 64 > 4 && !(24..40).contains(&(byte % 64)) => {
                sqe.0[usize::from(byte % 64)] = value;
            }
            Some(Lie::Subnqn(byte, value)) => data[256 + usize::from(byte)] = value,
            Some(Lie::Hostnqn(byte, value)) => data[512 + usize::from(byte)] = value,
            _ => {}
        }
        let disable = Cattr::DISABLE_SQ_FLOW_CONTROL.bits();
        sqe.0[46] = (sqe.0[46] & !disable) | if connection.asks { disable } else { 0 };
        let command = ConnectCommand::decode(&sqe);
        let fields = ConnectData::decode(&data);
        let mut bytes = data.to_vec();
        bytes.resize(length, 0);
        let bytes = if connect.by_r2t {
            Data::WriteByR2t(bytes)
        } else {
            Data::Write(bytes)
        };
        let wrong = self.topology.wrong(
            connection.port,
            &command,
            &fields,
            length,
            &self.controllers,
        );
        let first = matches!(connection.role, Role::None);
        connection.sent += 1;
        let done = match connection.queue.execute("Connect", sqe, bytes) {
            Ok(done) => done,
            Err(error) => {
                judge(&error);
                return;
            }
        };
        if !done.cqe.status.is_success() {
            check_refusal(&done, first, &wrong);
            if first && connection.asks {
                self.connections[at] = None;
            }
            return;
        }
        assert!(first, "a second Connect on a queue");
        assert!(
            wrong.fields.is_empty() && !wrong.other,
            "{wrong:?}, and Connect succeeded"
        );
        let response = ConnectResponse::from_dw0(low(done.cqe.result));
        assert!(response.authreq.is_empty());
        let number = if command.qid == 0 {
            let number = self.next;
            self.next += 1;
            let controller = Controller::new(connection.port, response.cntlid, &fields);
            let is_new = |other: &Controller| !other.is_same(&controller);
            assert!(self.controllers.values().all(is_new), "CNTLID in use");
            self.controllers.insert(number, controller);
            number
        } else {
            assert_eq!(response.cntlid, fields.cntlid);
            let known = self
                .controllers
                .iter()
                .find(|(_, c)| c.is_meant_by(&fields));
            *known.expect("a controller of nobody's").0
        };
        connection.sqsize = command.sqsize;
        connection.role = Role::Queue {
            controller: number,
            qid: command.qid,
        };
    }

    /// A host does everything right and gets an I/O queue, if the topology lets it.
    fn whole(&self, port: u8, host: u8, subsystem: u8) {
        let port = usize::from(port) % self.ports.len();
        let subnqn = self.topology.subsystem(subsystem % 6);
        let mut options = rig::options(Some(subnqn.as_str()), host % 3);
        options.io_entries = 8;
        let admitted = self.topology.admits(port, &subnqn, &options.host);
        let connector = rig::connector(&self.ports[port]);
        let controller = nvmf_host::Controller::connect_over(connector, &options);
        match controller {
            Ok(mut controller) => {
                assert!(admitted, "{subnqn} lets everybody in");
                controller.set_queue_count(2).expect("a valid request");
                let queue = controller.io_queue(1);
                let mut queue = queue.expect("a valid Connect").into_queue();
                let done = queue.execute("Flush", host::flush(u32::MAX), Data::None);
                assert!(done.is_ok_and(|done| done.cqe.status.is_success()));
                drop(queue);
                rig::settle();
                controller.disconnect().expect("a valid shutdown");
            }
            Err(error) => {
                assert!(!admitted, "{subnqn}: {error}");
                judge(&error);
            }
        }
    }

    fn command(&mut self, at: u8, command: &Command) {
        let Some(connection) = self.connections[usize::from(at) % CONNECTIONS].as_mut() else {
            return;
        };
        let (sqe, data) = command.encode();
        let waits = matches!(command, Command::EventRequest);
        connection.sent += 1;
        let queue = &mut connection.queue;
        let done = if waits {
            // It may be answered at once, or when something happens. Another command needs an entry.
            if connection.waiting + 2 > connection.sqsize.min(8) {
                return;
            }
            connection.waiting += 1;
            match queue.submit(sqe, data) {
                Ok(_) => queue.flush().map(|_| None),
                Err(refused) => Err(refused.error),
            }
        } else {
            queue.execute("command", sqe, data).map(Some)
        };
        let done = match done {
            Ok(done) => done,
            Err(error) => return judge(&error),
        };
        let Some(done) = done else { return };
        let success = done.cqe.status.is_success();
        match connection.role {
            Role::None => {
                assert!(!success, "{command:?} before Connect");
                if connection.asks {
                    self.connections[usize::from(at) % CONNECTIONS] = None;
                }
            }
            Role::Queue { controller, qid } => {
                if let Some(controller) = self.controllers.get_mut(&controller) {
                    controller.note(command, qid, &done);
                }
            }
        }
    }

    fn log(&mut self, at: u8, read: &Read) {
        let Some(connection) = self.connections[usize::from(at) % CONNECTIONS].as_mut() else {
            return;
        };
        let Role::Queue { controller, qid: 0 } = connection.role else {
            return;
        };
        let Some(controller) = self.controllers.get(&controller) else {
            return;
        };
        if !controller.is_discovery() || controller.enabled != Some(true) {
            return;
        }
        connection.sent += 8;
        // All of it, which is what a part of it is compared with.
        let mut whole = Vec::new();
        let length = (Topology::records_max() + 1) * DiscoveryLogEntry::SIZE;
        for part in (0..length).step_by(4096) {
            let page = GetLogPage {
                rae: true,
                ..page(part as u64, 4096)
            };
            match read_log(&mut connection.queue, &page) {
                Ok(bytes) => whole.extend(bytes),
                Err(error) => return judge(&error),
            }
        }
        let key = (connection.port, controller.hostnqn.clone());
        let genctr = check_log(&whole, &self.topology, &key);
        let known = self
            .logs
            .entry((key.0, key.1, genctr))
            .or_insert_with(|| whole.clone());
        assert!(*known == whole, "another log of the same GENCTR");
        let (offset, high) = (u64::from(read.offset), u64::from(read.high) << 40);
        let page = GetLogPage {
            rae: read.rae,
            lsp: if read.whole { 0 } else { read.lsp },
            ..page(offset | high, 4 * (u32::from(read.dwords % 4096) + 1))
        };
        let bytes = match read_log(&mut connection.queue, &page) {
            Ok(bytes) => bytes,
            Err(error) => return judge(&error),
        };
        // The whole log of another kind is another one.
        if page.lsp == 0 {
            let at = usize::try_from(page.lpo)
                .unwrap_or(usize::MAX)
                .min(whole.len());
            let expected = &whole[at..whole.len().min(at + bytes.len())];
            assert!(
                bytes[..expected.len()] == *expected,
                "a part of another log"
            );
            assert!(bytes[expected.len()..].iter().all(|&b| b == 0));
        }
    }

    /// Everybody goes; whoever comes is served.
    fn finish(mut self) {
        for connection in self.connections.iter_mut().filter_map(Option::take) {
            drop(connection);
        }
        if let Err(error) = rig::verify(&self.ports[0], 1024) {
            panic!("not served any more: {error}");
        }
        drop(self.ports);
        self.rig.finish();
    }
}

fn page(offset: u64, length: u32) -> GetLogPage {
    GetLogPage {
        lpo: offset & !3,
        ..GetLogPage::new(Lid::DISCOVERY, length)
    }
}

fn read_log(queue: &mut Queue, page: &GetLogPage) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(page.length()).unwrap_or(usize::MAX);
    let sqe = host::get_log_page(0, page);
    let done = queue.execute("Get Log Page", sqe, Data::Read(vec![0xee; length]))?;
    Ok(done.success("Get Log Page")?.buffer)
}

/// A whole log says what the topology says; returns its GENCTR.
fn check_log(bytes: &[u8], topology: &Topology, key: &(usize, Nqn)) -> u64 {
    let blocks = bytes.chunks_exact(DiscoveryLogEntry::SIZE);
    let mut blocks = blocks.map(|block| block.first_chunk::<1024>().expect("1024 bytes"));
    let header = DiscoveryLogHeader::decode(blocks.next().expect("a header"));
    assert_eq!(header.recfmt, 0);
    let count = usize::try_from(header.numrec).expect("a small number");
    let mut told: Vec<(SubsystemType, String, String)> = Vec::new();
    for (index, block) in blocks.enumerate() {
        if index >= count {
            assert_eq!(*block, [0; 1024], "something behind the last record");
            continue;
        }
        let entry = DiscoveryLogEntry::decode(block);
        let name = entry.subsystem_nqn().expect("an NQN").as_str().to_owned();
        told.push((entry.subtype, name, entry.address()));
    }
    let mut expected = topology.records(key.0, &key.1);
    told.sort_by_key(|(subtype, name, at)| (subtype.0, name.clone(), at.clone()));
    expected.sort_by_key(|(subtype, name, at)| (subtype.0, name.clone(), at.clone()));
    assert_eq!(told, expected, "the discovery log");
    header.genctr
}

/// A Connect is refused for something that is wrong with it, or because of the state of its
/// controller.
fn check_refusal(done: &Completion, first: bool, wrong: &Wrong) {
    let status = done.status();
    if !first {
        assert!(
            status.same_code(Status::COMMAND_SEQUENCE_ERROR),
            "{status} to a second Connect"
        );
    } else if status.same_code(Status::CONNECT_INVALID_PARAMETERS) {
        let blamed = InvalidParameter::from_dw0(low(done.cqe.result));
        assert!(
            wrong.fields.contains(&blamed),
            "{blamed:?} is blamed, not {wrong:?}"
        );
    } else {
        let known = [
            Status::CONNECT_INCOMPATIBLE_FORMAT,
            Status::CONNECT_CONTROLLER_BUSY,
            Status::CONNECT_INVALID_HOST,
            Status::COMMAND_SEQUENCE_ERROR,
            Status::DATA_SGL_LENGTH_INVALID,
        ];
        assert!(
            known.iter().any(|&known| status.same_code(known)),
            "{status} to Connect"
        );
    }
}

/// Hosts here keep to NVMe/TCP: they are never accused, lied to or left without an answer.
fn judge(error: &Error) {
    let fine = match error {
        error if rig::is_stuck(error) => false,
        Error::Status { .. } | Error::Closed | Error::Io { .. } | Error::QueueFull => true,
        _ => false,
    };
    assert!(fine, "{error}");
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low(result: u64) -> u32 {
    result as u32
}

impl Connect {
    fn fields(
        &self,
        topology: &Topology,
        controller: Option<&Controller>,
    ) -> (ConnectCommand, [u8; 1024]) {
        let io = !self.qid.is_multiple_of(4) && controller.is_some();
        let options = rig::options(None, self.host % 3);
        let mut command = ConnectCommand {
            recfmt: 0,
            qid: if io { u16::from(self.qid % 4) } else { 0 },
            sqsize: 15 + u16::from(self.entries % 48),
            cattr: Cattr::empty(),
            kato: u32::from(self.kato.saturating_sub(0xc000)),
        };
        let mut data = match controller.filter(|_| io) {
            Some(controller) => controller.connect_data(),
            None => ConnectData {
                hostid: options.host_id,
                cntlid: CNTLID_DYNAMIC,
                subnqn: topology.subsystem(self.subsystem).to_field(),
                hostnqn: options.host.to_field(),
            },
        };
        match self.lie {
            Some(Lie::Recfmt(value)) => command.recfmt = value,
            Some(Lie::Qid(value)) => command.qid = value,
            Some(Lie::Sqsize(value)) => command.sqsize = value,
            Some(Lie::Cattr(value)) => command.cattr = Cattr::from_bits_retain(value),
            Some(Lie::Kato(value)) => command.kato = value,
            Some(Lie::Hostid(value)) => data.hostid = [value; 16],
            Some(Lie::Cntlid(value)) => data.cntlid = value,
            _ => {}
        }
        let mut bytes = [0; 1024];
        data.encode(&mut bytes);
        (command, bytes)
    }
}

impl Command {
    fn encode(&self) -> (Sqe, Data) {
        let property = |at: u8| {
            let known = [0x00, 0x08, 0x14, 0x1c, 0x20, 0x64, 0x68, 0x0c];
            PropertyOffset(known[usize::from(at) % known.len()] + u32::from(at & 0x80) / 0x40)
        };
        let size = |large: bool| {
            if large {
                PropertySize::BYTES_8
            } else {
                PropertySize::BYTES_4
            }
        };
        let cc = |cc: Cc| {
            PropertySet {
                size: PropertySize::BYTES_4,
                offset: PropertyOffset::CC,
                value: u64::from(cc.with_iosqes(6).with_iocqes(4).0),
            }
            .to_sqe()
        };
        let on = Cc::default().with_en(true);
        let sqe = match *self {
            Self::Enable => cc(on),
            Self::Disable => cc(Cc::default()),
            Self::Shutdown => cc(on.with_shn(Cc::SHN_NORMAL)),
            Self::Queues(count) => {
                let count = u32::from(count % 8);
                host::set_features(
                    0,
                    &SetFeatures::new(Fid::NUMBER_OF_QUEUES, count | count << 16),
                )
            }
            Self::PropertyGet(at, large) => PropertyGet {
                size: size(large),
                offset: property(at),
            }
            .to_sqe(),
            Self::PropertySet(at, large, value) => PropertySet {
                size: size(large),
                offset: property(at),
                value: value.into(),
            }
            .to_sqe(),
            Self::KeepAlive => host::keep_alive(),
            Self::Identify(cns) => {
                let mut sqe = Sqe::with_opcode(0x06);
                sqe.set_cdw10_15([u32::from(cns % 4), 0, 0, 0, 0, 0]);
                return (sqe, Data::Read(vec![0xee; 4096]));
            }
            Self::EventRequest => host::async_event_request(),
            Self::Disconnect(recfmt) => {
                let mut sqe = FabricsType::DISCONNECT.sqe();
                // Mostly 0.
                let recfmt = if recfmt > 0xf000 { recfmt } else { 0 };
                sqe.0[40..42].copy_from_slice(&recfmt.to_le_bytes());
                sqe
            }
            Self::Flush => host::flush(1),
            Self::Read => return (host::read(1, 0, 1), Data::Read(vec![0xee; 512])),
            Self::Authenticate(send) => {
                let (kind, data) = if send {
                    (FabricsType::AUTHENTICATION_SEND, Data::Write(vec![0; 64]))
                } else {
                    (FabricsType::AUTHENTICATION_RECEIVE, Data::Read(vec![0; 64]))
                };
                return (kind.sqe(), data);
            }
        };
        (sqe, Data::None)
    }
}

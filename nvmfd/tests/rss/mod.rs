//! The memory of a daemon whose hosts take all that they can get: at most what the formula says.

use super::common::*;
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectResponse, PropertySet, PropertySize,
};
use nvmf_host::nvmf_proto::wire::feature::{Fid, NumberOfQueues, SetFeatures};
use nvmf_host::nvmf_proto::wire::log::{GetLogPage, Lid, PersistentEventAction};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::pdu::{CommonHeader, InitConnection, PduType, capsule_cqe};
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{Cqe, SglDescriptor, Sqe, Status};
use nvmf_host::raw::{RawPdu, Terms};
use nvmf_target::TargetConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a machine that is busy may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that reads what it likes: its connection, and a number that is part of its HOSTNQN.
struct Host(TcpStream, usize);

impl Host {
    fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream, 0)
    }

    fn open(address: SocketAddr) -> Self {
        let mut host = Self::tcp(address);
        host.send(&icreq());
        assert_eq!(host.recv().0, PduType::IC_RESP);
        host
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn recv(&mut self) -> (PduType, Vec<u8>) {
        let mut head = [0; 8];
        self.0.read_exact(&mut head).unwrap();
        let common = CommonHeader::decode(&head);
        let mut bytes = vec![0; common.plen as usize];
        bytes[..8].copy_from_slice(&head);
        self.0.read_exact(&mut bytes[8..]).unwrap();
        (common.pdu_type, bytes)
    }

    /// Runs a command; data that comes back is thrown away.
    fn execute(&mut self, sqe: &Sqe, data: &[u8]) -> Cqe {
        self.send(&capsule(sqe, data));
        loop {
            let (pdu_type, bytes) = self.recv();
            if pdu_type == PduType::CAPSULE_RESP {
                return capsule_cqe(bytes.first_chunk().unwrap());
            }
        }
    }

    /// Connect; the CNTLID, or why not.
    fn connect(&mut self, qid: u16, entries: u16, cntlid: u16) -> Result<u16, Status> {
        let command = ConnectCommand {
            qid,
            sqsize: entries - 1,
            ..ConnectCommand::default()
        };
        let cqe = self.execute(&connect_sqe(&command), &connect_data(self.1, cntlid));
        if cqe.status.is_success() {
            let dw0 = u32::try_from(cqe.result & 0xffff_ffff).unwrap();
            return Ok(ConnectResponse::from_dw0(dw0).cntlid);
        }
        Err(cqe.status)
    }

    /// The admin queue of a controller that has all that a controller can have.
    fn controller(address: SocketAddr, number: usize) -> Result<(Self, u16), Status> {
        let mut host = Self::open(address);
        host.1 = number;
        let cntlid = host.connect(0, 128, CNTLID_DYNAMIC)?;
        let cc = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
        let enable = PropertySet {
            size: PropertySize::BYTES_4,
            offset: PropertyOffset::CC,
            value: cc.0.into(),
        };
        assert!(host.execute(&enable.to_sqe(), &[]).status.is_success());
        let pairs = NumberOfQueues::pairs(8).to_bits();
        let queues = SetFeatures::new(Fid::NUMBER_OF_QUEUES, pairs);
        host.execute(&command::set_features(0, &queues), &[]);
        for _ in 0..130 {
            host.execute(&Sqe::with_opcode(0xff), &[]);
        }
        let page = GetLogPage {
            lsp: PersistentEventAction::ESTABLISH.0,
            ..GetLogPage::new(Lid::PERSISTENT_EVENT, 512)
        };
        let mut sqe = command::get_log_page(0, &page);
        sqe.set_sgl(SglDescriptor::transport(512));
        assert!(host.execute(&sqe, &[]).status.is_success());
        Ok((host, cntlid))
    }

    /// Sends commands until the target takes no more, and reads nothing.
    fn stuff(&mut self, sqe: &Sqe) {
        let capsules = capsule(sqe, &[]).repeat(64);
        self.0.set_nonblocking(true).unwrap();
        let mut refused = 0;
        while refused < 50 {
            match self.0.write(&capsules) {
                Ok(n) if n == capsules.len() => refused = 0,
                // The rest of a capsule would have to follow.
                Ok(_) => break,
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    refused += 1;
                    std::thread::yield_now();
                }
                Err(err) => panic!("{err}"),
            }
        }
    }
}

fn icreq() -> Vec<u8> {
    RawPdu::ic_req(&InitConnection::default()).bytes()
}

fn capsule(sqe: &Sqe, data: &[u8]) -> Vec<u8> {
    RawPdu::capsule(sqe, data, Terms::default()).bytes()
}

fn connect_sqe(command: &ConnectCommand) -> Sqe {
    let mut sqe = command.to_sqe();
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    sqe
}

fn connect_data(host: usize, cntlid: u16) -> [u8; 1024] {
    let mut data = [0; 1024];
    ConnectData {
        hostid: [7; 16],
        cntlid,
        subnqn: Nqn::new(NQN).unwrap().to_field(),
        hostnqn: Nqn::new(&format!("nqn.2014-08.org.example:host-{host}"))
            .unwrap()
            .to_field(),
    }
    .encode(&mut data);
    data
}

impl Daemon {
    /// VmRSS in bytes.
    fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse::<u64>().unwrap() << 10
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(folder).unwrap().count()
    }

    /// Waits until it has as many descriptors as the condition wants.
    fn until(&self, what: &str, condition: impl Fn(usize) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self.descriptors()) {
            assert!(Instant::now() < end, "{what}: {}", self.descriptors());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// So many descriptors as this process, and so a daemon that it starts, may have.
fn descriptors_allowed() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    maximum.map_or(100_000, |most| usize::try_from(most).unwrap())
}

/// Thousands of connections before their Connect, silent or with half of one: 8 KiB each at the
/// most, all of the process included.
#[test]
fn scenario_09_connections_before_connect_take_less_than_8_kib_each() {
    let count = (descriptors_allowed() / 2).min(6000);
    let most = count.to_string();
    let mut options = vec!["-n", NQN, "--threads", "2", "ramdisk:4m"];
    for limit in ["--connections", "--silent-per-address"] {
        options.extend([limit, &most]);
    }
    let hour = "3600";
    options.extend(["--icreq-timeout", hour, "--connect-timeout", hour]);
    let daemon = Daemon::start(&options);
    let address = daemon.address("nvme connect");
    let descriptors = daemon.descriptors();
    drop(daemon.connect(|_| {}));
    daemon.until("the first host is gone", |n| n <= descriptors);
    let rss = daemon.rss();
    let half = capsule(
        &connect_sqe(&ConnectCommand::default()),
        &connect_data(0, 0),
    );
    let wanted = count - 100;
    let hosts: Vec<Host> = (0..wanted)
        .map(|number| {
            let mut host = Host::tcp(address);
            if number % 2 == 0 {
                host.send(&icreq());
                host.send(&half[..600]);
            }
            host
        })
        .collect();
    daemon.until("all are there", |n| n >= descriptors + wanted);
    let each = (daemon.rss() - rss) / wanted as u64;
    println!("{wanted} connections before Connect: {each} bytes each");
    assert!(each < 8 << 10, "{each} bytes for each of {wanted}");
    // And a host is served beside them.
    let mut controller = daemon.connect(|_| {});
    let namespace = controller.namespace(1).unwrap();
    write_and_read_back(&mut io_queue(&mut controller), &namespace, 0, 8);
    drop((hosts, controller));
    daemon.until("all are gone", |n| n <= descriptors);
}

/// Scenario 65, SEED 11: every place is taken, by controllers with full logs, queues whose hosts do
/// not read, connections with half a Connect; and all buffers have been used.
#[test]
fn scenario_65_a_process_at_its_limits_takes_what_the_formula_says() {
    assert!(descriptors_allowed() >= 1024, "too few descriptors");
    let mut config = TargetConfig::default();
    config.reactors = 2;
    config.buffer_bytes = 8 << 20;
    config.max_connections = 400;
    config.max_unconnected = 200;
    config.queue_bytes = 64 << 20;
    let most = config.memory_max();
    let daemon = Daemon::start(
        &[
            ["-n", NQN, "ramdisk:4m"].as_slice(),
            &["--threads", "2", "--buffers", "8m", "--queue-memory", "64m"],
            &["--connections", "400", "--unconnected", "200"],
            &["--icreq-timeout", "3600", "--connect-timeout", "3600"],
        ]
        .concat(),
    );
    let address = daemon.address("nvme connect");
    let descriptors = daemon.descriptors();
    // The RAM disk is in it from the beginning.
    let mut witness = daemon.connect(|_| {});
    let namespace = witness.namespace(1).unwrap();
    let mut queue = io_queue(&mut witness);
    write_and_read_back(&mut queue, &namespace, 0, 8192);
    drop((queue, witness));
    daemon.until("the first host is gone", |n| n <= descriptors);
    let before = daemon.rss();

    // The log of persistent events, as long as it gets.
    for _ in 0..150 {
        Host::open(address).connect(0, 32, CNTLID_DYNAMIC).unwrap();
    }
    // All buffers, of both reactors: connections take turns with them.
    let mut writers: Vec<_> = (0..4)
        .map(|_| {
            let mut controller = daemon.connect(|_| {});
            let queue = io_queue(&mut controller);
            (controller, queue)
        })
        .collect();
    for (_, queue) in &mut writers {
        for tag in 0..8 {
            let data = vec![1; 1 << 20];
            queue.submit_write(&namespace, 0, data, tag).unwrap();
        }
        let mut left = 8;
        while left > 0 {
            for done in queue.poll(PATIENCE).unwrap() {
                done.success("Write").unwrap();
                left -= 1;
            }
        }
    }
    drop(writers);

    // Queues, until there is no room for more, of many hosts, for none gets all; a small one may
    // find some still.
    let mut hosts = Vec::new();
    let mut number = 0;
    let mut busy = 0;
    while busy < 3 {
        let Ok((admin, cntlid)) = Host::controller(address, number) else {
            busy += 1;
            number += 1;
            continue;
        };
        busy = 0;
        hosts.push(admin);
        for qid in 1..=2 {
            let mut queue = Host::open(address);
            queue.1 = number;
            match queue.connect(qid, 1024, cntlid) {
                Ok(_) => hosts.push(queue),
                Err(status) => assert_eq!(status, Status::CONNECT_CONTROLLER_BUSY),
            }
        }
    }
    let queues = hosts.len();
    for host in &mut hosts {
        // An error for an admin queue, and data for an I/O queue; nobody reads either.
        let mut sqe = command::read(1, 0, 8);
        sqe.set_sgl(SglDescriptor::transport(4096));
        host.stuff(&sqe);
    }
    let half = capsule(
        &connect_sqe(&ConnectCommand::default()),
        &connect_data(0, 0),
    );
    for _ in 0..(400 - queues).min(200) {
        let mut host = Host::tcp(address);
        host.send(&icreq());
        host.send(&half[..600]);
        hosts.push(host);
    }
    daemon.until("all are there", |n| n >= descriptors + hosts.len());
    let taken = daemon.rss() - before;
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{queues} queues, {} connections: {} of {} MiB",
        hosts.len(),
        mib(taken),
        mib(most)
    );
    assert!(taken <= most, "{taken} of {most} bytes");
    assert!(
        taken > most / 4,
        "{taken} of {most} bytes: that was not much"
    );

    drop(hosts);
    daemon.until("all are gone", |n| n <= descriptors);
    let mut controller = daemon.connect(|_| {});
    write_and_read_back(&mut io_queue(&mut controller), &namespace, 0, 64);
}

//! Limits and deadlines at their edges: who is over one pays for it, and nobody else.

mod common;

use common::raw::{
    self, Digests, Raw, admin_connect, connect_data, enable, io_connect, set_queues,
};
use common::{Witness, assert_idle, config, connect_in_memory, eventually, options, target};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_target::transport::{MemTransport, Stream, Transport, TransportAddress};
use nvmf_target::{Role, TargetConfig};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BUSY: (Status, u32) = (Status::CONNECT_CONTROLLER_BUSY, 0);

/// Connect data of another host.
fn host(name: &str) -> ConnectData {
    let hostnqn = Nqn::new(&format!("nqn.2014-08.org.example:{name}")).unwrap();
    ConnectData {
        hostnqn: hostnqn.to_field(),
        ..connect_data()
    }
}

fn open(address: SocketAddr) -> Raw {
    Raw::open(address, Digests::default())
}

/// An admin queue of a host, enabled and with I/O queues granted.
fn admin(address: SocketAddr, data: &ConnectData) -> (Raw, u16) {
    let mut raw = open(address);
    let cntlid = raw.connect_ok(&admin_connect(), data);
    raw.ok(&enable(), &[]);
    raw.ok(&set_queues(8), &[]);
    (raw, cntlid)
}

/// Connections that send nothing.
fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(address).unwrap();
    (0..count).map(connect).collect()
}

/// Scenarios 1, 9 and 11; SEED 6: silent connections, ever more of them, some with their ICReq and
/// some with half a Connect, and hosts come and go as if they were not there.
#[test]
fn scenario_09_a_flood_of_silent_connections_keeps_nobody_out() {
    let mut config = config();
    config.max_connections = 40;
    config.max_unconnected = 32;
    // Nothing ends by itself while this lasts.
    config.icreq_timeout = Duration::from_secs(3600);
    config.connect_timeout = Duration::from_secs(3600);
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let mut flood = Vec::new();
    for round in 0..20 {
        flood.extend(silent(address, 24));
        for _ in 0..4 {
            let mut raw = Raw::tcp(address);
            raw.send(&Digests::default().ic_req());
            flood.push(raw.stream);
            let mut raw = Raw::tcp(address);
            raw.send(&Digests::default().ic_req());
            let connect = raw::connect_sqe(&admin_connect());
            let capsule = Digests::default().capsule(&connect, &raw::encode(&connect_data()));
            raw.send(&capsule[..600]);
            flood.push(raw.stream);
        }
        common::verified_io(address, round);
        witness.works();
        let stats = target.stats();
        assert!(stats.connections <= 40 + 64, "{stats:?}");
    }
    eventually("the oldest are gone", || {
        target.stats().connections <= 2 + 32
    });
    drop(flood);
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// Hosts that open the connections of all their queues before they send a Connect, as Linux does, and
/// others in between that never send anything: those make room, whoever came first.
#[test]
fn scenario_09_silent_connections_make_room_for_hosts_that_are_about_to_connect() {
    let mut config = config();
    config.max_connections = 64;
    config.max_unconnected = 64;
    config.icreq_timeout = Duration::from_secs(3600);
    config.connect_timeout = Duration::from_secs(3600);
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let names = ["a", "b", "c"];
    let mut admins = names.map(|name| admin(address, &host(name)));
    let mut queues: Vec<Vec<_>> = names
        .iter()
        .map(|_| (0..8).map(|_| open(address)).collect())
        .collect();
    let flood = silent(address, 200);
    eventually("those that are too many are gone", || {
        target.stats().connections <= 64
    });
    for ((queues, (_, cntlid)), name) in queues.iter_mut().zip(&admins).zip(names) {
        for (queue, qid) in queues.iter_mut().zip(1..) {
            let data = ConnectData {
                cntlid: *cntlid,
                ..host(name)
            };
            queue.connect_ok(&io_connect(qid), &data);
            queue.read(&raw::read(1, 0, 1));
        }
    }
    for (admin, _) in &mut admins {
        admin.ok(&enable(), &[]);
    }
    drop((flood, admins, queues));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// All places are taken, most by connections that never became queues: those are what makes room.
#[test]
fn scenario_09_a_full_target_ends_what_is_no_queue_before_it_refuses() {
    let mut config = config();
    config.max_connections = 8;
    config.max_unconnected = 8;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let flood = silent(address, 6);
    eventually("it is full", || target.stats().connections == 8);
    let (mut admin, cntlid) = admin(address, &connect_data());
    let mut queues: Vec<_> = (1..=5).map(|qid| Raw::io(address, cntlid, qid)).collect();
    // Nothing is left to end.
    Raw::tcp(address).expect_end();
    admin.ok(&enable(), &[]);
    for queue in &mut queues {
        queue.read(&raw::read(1, 0, 1));
    }
    drop((flood, admin, queues));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// What one address has too much of it loses itself; those without an address are not limited by
/// one.
#[test]
fn scenario_09_one_address_ends_its_own_connections() {
    let mut config = config();
    config.max_unconnected = 100;
    config.max_silent_per_address = 4;
    let (target, address) = target(config);
    let connector = common::in_memory(&target);
    let mut witness = Witness::new(&target, address);
    let before = target.stats().connections;
    let unaddressed: Vec<_> = (0..20).map(|_| connector.connect().unwrap()).collect();
    eventually("they are there", || {
        target.stats().connections == before + 20
    });
    let mut flood = silent(address, 4);
    eventually("so are these", || target.stats().connections == before + 24);
    let mut fresh = open(address);
    // The first to come is the first to go.
    flood[0].set_read_timeout(Some(common::PATIENCE)).unwrap();
    assert_eq!(io::Read::read(&mut flood[0], &mut [0]).unwrap(), 0);
    eventually("one made room", || {
        target.stats().connections == before + 24
    });
    flood[3].write_all(&[0]).unwrap();
    fresh.connect_ok(&admin_connect(), &connect_data());
    drop(connect_in_memory(&connector, &options(address)));
    drop((unaddressed, flood, fresh));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

#[test]
fn connections_of_one_host_are_limited_and_others_are_not_concerned() {
    let mut config = config();
    config.max_connections_per_host = 3;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let (first, cntlid) = admin(address, &host("a"));
    let io = |qid| {
        let data = ConnectData {
            cntlid,
            ..host("a")
        };
        let mut raw = open(address);
        let outcome = raw.connect(&io_connect(qid), &data);
        (raw, outcome)
    };
    let (one, outcome) = io(1);
    assert_eq!(outcome.0, Status::SUCCESS);
    let (two, outcome) = io(2);
    assert_eq!(outcome.0, Status::SUCCESS);
    // Neither a queue nor a controller more; the connection may try again later.
    let (mut three, outcome) = io(3);
    assert_eq!(outcome, BUSY);
    let mut second = open(address);
    assert_eq!(second.connect(&admin_connect(), &host("a")), BUSY);
    let other = admin(address, &host("b"));
    drop(two);
    eventually("a place is free", || {
        let data = ConnectData {
            cntlid,
            ..host("a")
        };
        three.connect(&io_connect(3), &data).0 == Status::SUCCESS
    });
    drop((first, one, three, second, other));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

#[test]
fn controllers_of_one_host_are_limited_in_each_subsystem() {
    let mut config = config();
    config.max_controllers_per_host = 2;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let two = [admin(address, &host("a")), admin(address, &host("a"))];
    let mut third = open(address);
    assert_eq!(third.connect(&admin_connect(), &host("a")), BUSY);
    let other = admin(address, &host("b"));
    let discovery = ConnectData {
        subnqn: Nqn::discovery().to_field(),
        ..host("a")
    };
    let mut fourth = open(address);
    fourth.connect_ok(&admin_connect(), &discovery);
    drop(two);
    eventually("a place is free", || {
        third.connect(&admin_connect(), &host("a")).0 == Status::SUCCESS
    });
    drop((third, fourth, other));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// Everybody may ask the discovery service, and so take nothing that those need who may do more.
#[test]
fn scenario_65_discovery_controllers_are_limited_and_hosts_are_not_concerned() {
    let mut config = config();
    config.max_discovery_controllers = 2;
    // The witness has two.
    config.max_connections_per_host = 2;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let discovery = |name| ConnectData {
        subnqn: Nqn::discovery().to_field(),
        ..host(name)
    };
    let ask = |name| {
        let mut raw = open(address);
        raw.connect_ok(&admin_connect(), &discovery(name));
        raw
    };
    let two = [ask("a"), ask("a")];
    let mut third = open(address);
    assert_eq!(third.connect(&admin_connect(), &discovery("b")), BUSY);
    // Nor do they count as connections of the host in whose name they are.
    let own = [admin(address, &host("a")), admin(address, &host("a"))];
    drop(two);
    eventually("a place is free", || {
        third.connect(&admin_connect(), &discovery("b")).0 == Status::SUCCESS
    });
    drop((third, own));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

#[test]
fn connections_from_one_address_are_limited_if_so_configured() {
    let mut config = config();
    config.max_connections_per_address = Some(4);
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let queues = [admin(address, &host("a")), admin(address, &host("b"))];
    Raw::tcp(address).expect_end();
    let connector = common::in_memory(&target);
    drop(connect_in_memory(&connector, &options(address)));
    drop(queues);
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// The times to ICReq and to Connect are two: each ends what it is for and nothing else.
#[test]
fn scenario_11_icreq_and_connect_have_a_time_each() {
    let hour = Duration::from_secs(3600);
    let with = |icreq, connect| -> TargetConfig {
        let mut config = config();
        config.icreq_timeout = icreq;
        config.connect_timeout = connect;
        config
    };
    // Next to no time for one of them, and any for the other.
    let moment = Duration::from_nanos(1);
    let (first, address) = target(with(moment, hour));
    Raw::tcp(address).expect_end();
    assert_idle(&first);
    let (second, address) = target(with(hour, moment));
    let silent = Raw::tcp(address);
    let mut raw = Raw::tcp(address);
    raw.send(&Digests::default().ic_req());
    while raw.try_recv().is_ok() {}
    eventually("only the silent one stays", || {
        second.stats().connections == 1
    });
    drop(silent);
    assert_idle(&second);
}

/// A listener that fails while `short` is set.
struct Short {
    error: Errno,
    inner: MemTransport,
    /// Readable all the time, as a listener is whose connections cannot be taken.
    event: OwnedFd,
    short: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
}

impl Short {
    fn new(error: Errno, inner: MemTransport) -> Self {
        Self {
            error,
            inner,
            event: eventfd(1, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap(),
            short: Arc::new(AtomicBool::new(true)),
            failed: Arc::default(),
        }
    }
}

impl Transport for Short {
    fn address(&self) -> TransportAddress {
        self.inner.address()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        if self.short.load(Ordering::SeqCst) {
            self.failed.fetch_add(1, Ordering::SeqCst);
            return Err(self.error.into());
        }
        let accepted = self.inner.accept()?;
        if accepted.is_none() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.event, &mut count);
        }
        Ok(accepted)
    }
}

/// Accept is tried ten times a second while descriptors are short, however ready the listener is;
/// who waits is let in as soon as there are some. What is no queue yet makes way meanwhile.
#[test]
fn scenario_67_accepting_without_descriptors_neither_spins_nor_stops_for_good() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let mut silent = Raw::tcp(address);
    eventually("it is there", || target.stats().unconnected == 1);

    let (inner, connector) = MemTransport::new("short").unwrap();
    let transport = Short::new(Errno::MFILE, inner);
    let (short, failed) = (Arc::clone(&transport.short), Arc::clone(&transport.failed));
    let start = Instant::now();
    target.listen_on(Box::new(transport), Role::Io).unwrap();
    silent.expect_end();
    for _ in 0..3 {
        let before = failed.load(Ordering::SeqCst);
        eventually("it tries again", || failed.load(Ordering::SeqCst) > before);
        witness.works();
    }
    // The other way round: on whatever machine, no more calls than there were pauses.
    let calls = failed.load(Ordering::SeqCst);
    let pauses = start.elapsed().as_millis() / 100;
    assert!(
        u128::from(calls) <= pauses + 2,
        "{calls} calls in {pauses} pauses"
    );
    short.store(false, Ordering::SeqCst);
    drop(connect_in_memory(&connector, &options(address)));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// A listener that fails for ever, and not for a lack of what all need: nobody makes way for it, and
/// the others go on.
#[test]
fn scenario_67_a_transport_that_cannot_accept_is_alone_with_that() {
    let mut config = config();
    config.icreq_timeout = Duration::from_secs(3600);
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let mut silent = Raw::tcp(address);
    eventually("it is there", || target.stats().unconnected == 1);
    let (inner, _connector) = MemTransport::new("broken").unwrap();
    let transport = Short::new(Errno::PROTO, inner);
    let failed = Arc::clone(&transport.failed);
    target.listen_on(Box::new(transport), Role::Io).unwrap();
    for _ in 0..3 {
        let before = failed.load(Ordering::SeqCst);
        eventually("it is tried again", || {
            failed.load(Ordering::SeqCst) > before
        });
        drop(admin(address, &host("a")));
        witness.works();
    }
    silent.send(&Digests::default().ic_req());
    silent.recv();
    drop(silent);
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// A listener of which [`Short`] is a part, and whose descriptor cannot be watched now and then.
struct Unwatchable {
    short: Short,
    /// epoll refuses files.
    file: File,
    /// Whether it cannot, call by call, from the lowest bit on.
    calls: Arc<AtomicU64>,
}

impl Transport for Unwatchable {
    fn address(&self) -> TransportAddress {
        self.short.address()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        let calls = self.calls.load(Ordering::SeqCst);
        self.calls.store(calls >> 1, Ordering::SeqCst);
        if calls & 1 == 1 {
            self.file.as_fd()
        } else {
            self.short.readiness()
        }
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        let accepted = self.short.accept();
        if accepted.is_err() {
            // Once is enough. It is taken out of what is watched, and twice cannot be put back.
            self.short.short.store(false, Ordering::SeqCst);
            self.calls.store(0b110, Ordering::SeqCst);
        }
        accepted
    }
}

/// Watching may fail for a lack of memory as accepting may, and is tried again as that is: at first,
/// and after a pause.
#[test]
fn scenario_67_a_listener_that_cannot_be_watched_for_a_while_is_watched_again() {
    let (target, address) = target(config());
    let mut witness = Witness::new(&target, address);
    let (inner, connector) = MemTransport::new("unwatchable").unwrap();
    let transport = Unwatchable {
        short: Short::new(Errno::PROTO, inner),
        file: File::open(std::env::current_exe().unwrap()).unwrap(),
        calls: Arc::new(AtomicU64::new(0b11)),
    };
    let (failed, calls) = (
        Arc::clone(&transport.short.failed),
        Arc::clone(&transport.calls),
    );
    target.listen_on(Box::new(transport), Role::Io).unwrap();
    eventually("it is watched, and accepts", || {
        failed.load(Ordering::SeqCst) == 1
    });
    eventually("it cannot be watched again", || {
        calls.load(Ordering::SeqCst) == 0
    });
    witness.works();
    drop(connect_in_memory(&connector, &options(address)));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// Scenario 2 after Connect: half a capsule for ever, and answers taken a byte at a time, cost nobody
/// else anything.
#[test]
fn scenario_02_hosts_that_drip_cost_only_themselves() {
    let mut config = config();
    // A few large commands have it all.
    config.buffer_bytes = 4 << 20;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let capsule = Digests::default().capsule(&raw::write_in_capsule(1, 0, 8), &[1; 4096]);
    let mut halves: Vec<_> = (1..=4)
        .map(|qid| {
            let mut queue = Raw::io(address, cntlid, qid);
            queue.send(&capsule[..2000]);
            queue
        })
        .collect();
    let mut slow: Vec<_> = (5..=8)
        .map(|qid| {
            let mut queue = Raw::io(address, cntlid, qid);
            for cid in 0..100 {
                queue.submit(&raw::read(cid, 0, 128), &[]);
            }
            queue
        })
        .collect();
    for byte in 2000..2100 {
        for queue in &mut halves {
            queue.send(&capsule[byte..=byte]);
        }
        for queue in &mut slow {
            io::Read::read_exact(&mut queue.stream, &mut [0]).unwrap();
        }
        witness.works();
    }
    // They are still what they were, and finish if they like.
    for queue in &mut halves {
        queue.send(&capsule[2100..]);
        assert_eq!(queue.recv().cqe().status, Status::SUCCESS);
    }
    drop((admin, halves, slow));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

/// Bytes that make no command are no sign of life: the Keep Alive Timeout ends who sends crumbs.
#[test]
fn scenario_02_crumbs_keep_no_controller_alive() {
    let (target, address) = target(config());
    let mut admin = open(address);
    let mut command = admin_connect();
    command.kato = 300;
    admin.connect_ok(&command, &connect_data());
    admin.ok(&enable(), &[]);
    let capsule = Digests::default().capsule(&enable(), &[]);
    // Long before a capsule is whole it is over.
    for byte in capsule.iter().cycle().take(capsule.len() - 1) {
        if admin.stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    admin.expect_end();
    assert_idle(&target);
}

/// Every queue has so many bytes that it may come to take, and all of them together no more than
/// `queue_bytes`; what does not fit is Busy, and fits when another queue is gone.
#[test]
fn scenario_65_queues_beyond_their_memory_are_refused() {
    let mut config = config();
    config.queue_bytes = 5 * TargetConfig::queue_bytes_min(128);
    let limit = config.queue_bytes;
    let (target, address) = target(config);
    let mut witness = Witness::new(&target, address);
    let (admin, cntlid) = Raw::admin(address);
    let mut queue = open(address);
    let data = ConnectData {
        cntlid,
        ..connect_data()
    };
    let mut large = io_connect(1);
    large.sqsize = 1023;
    assert_eq!(queue.connect(&large, &data), BUSY);
    // A smaller one is let in, on the same connection.
    queue.connect_ok(&io_connect(1), &data);
    queue.read(&raw::read(1, 0, 1));
    let charged = target.stats().queue_bytes;
    assert!(charged <= limit, "{charged} of {limit}");
    drop((admin, queue));
    witness.is_alone();
    drop(witness);
    assert_idle(&target);
}

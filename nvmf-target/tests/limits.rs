//! Limits and deadlines at their edges: who is over one pays for it, and nobody else.

mod common;

use common::raw::{
    self, Digests, Raw, admin_connect, connect_data, enable, io_connect, set_queues,
};
use common::{Witness, assert_idle, config, connect_in_memory, eventually, options, target};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_target::TargetConfig;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

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
    config.max_unconnected_per_address = 4;
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
    assert_eq!(std::io::Read::read(&mut flood[0], &mut [0]).unwrap(), 0);
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
    // No time at all for one of them, and any for the other.
    let (first, address) = target(with(Duration::ZERO, hour));
    Raw::tcp(address).expect_end();
    assert_idle(&first);
    let (second, address) = target(with(hour, Duration::ZERO));
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

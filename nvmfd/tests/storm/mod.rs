//! Storms: hosts by the thousand, and the daemon as a process of its own.
//!
//! Nothing here depends on how long anything takes; the seconds that are printed (`--nocapture`)
//! are for the documents. `STORM_HOSTS=n` and `STORM_IDLE=n` say how many there are.

use crate::common::*;
use nvmf_host::nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_host::{Controller, Data, IoQueue, Namespace, command};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Bound of every wait; only a failure reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

const ARGUMENTS: [&str; 6] = [
    "-n",
    NQN,
    "--threads",
    "2",
    "--stdin-control",
    "ramdisk:64m",
];

/// A number from the environment.
fn from_env(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Sockets for all hosts are in this process.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
}

/// What the system says of the daemon's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    rss: u64,
    descriptors: usize,
    threads: usize,
    /// Processor time, in ticks of 10 ms.
    ticks: u64,
}

impl Usage {
    /// Of a daemon that has started all its threads: that for its input answers.
    fn at_rest(daemon: &mut Daemon) -> Self {
        daemon.tell("stats");
        Self::of(daemon)
    }

    fn of(daemon: &Daemon) -> Self {
        let proc = format!("/proc/{}", daemon.child.id());
        let read = |name: &str| std::fs::read_to_string(format!("{proc}/{name}")).unwrap();
        let count = |name: &str| std::fs::read_dir(format!("{proc}/{name}")).unwrap().count();
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let stat = read("stat");
        let behind_name = stat.rsplit(')').next().unwrap();
        let field = |n: usize| {
            behind_name
                .split_whitespace()
                .nth(n)
                .unwrap()
                .parse::<u64>()
        };
        Self {
            rss: kib << 10,
            descriptors: count("fd"),
            threads: count("task"),
            ticks: field(11).unwrap() + field(12).unwrap(),
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Nothing of any host is left.
fn assert_nothing_left(daemon: &mut Daemon, before: Usage) {
    const NOTHING: &str = "connections 0 controllers 0 io-queues 0 buffer-bytes 0 in-flight 0 \
                           unconnected 0 queue-bytes 0";
    eventually("the daemon forgets its hosts", || {
        daemon.tell("stats").ends_with(NOTHING)
    });
    let after = Usage::of(daemon);
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.threads, before.threads);
    println!("resident memory before {} after {}", before.rss, after.rss);
    // What reactors keep for use is touched by then.
    eventually("memory goes back to the system", || {
        Usage::of(daemon).rss < before.rss + (24 << 20)
    });
}

/// A host with an I/O queue.
struct Host {
    controller: Controller,
    queue: IoQueue,
    namespace: Namespace,
}

impl Host {
    fn connect(address: SocketAddr) -> Result<Self, nvmf_host::Error> {
        let mut options = nvmf_host::ConnectOptions::new(address, NQN)?;
        options.timeout = PATIENCE;
        options.io_entries = 32;
        let mut controller = Controller::connect(&options)?;
        controller.set_queue_count(1)?;
        Ok(Self {
            queue: controller.io_queue(1)?,
            namespace: controller.namespace(1)?,
            controller,
        })
    }

    /// Writes blocks of its own and reads them back.
    fn works(&mut self, number: usize) {
        let slba = 8 * number as u64;
        let byte = u8::try_from(number % 251).unwrap();
        let data: Vec<u8> = (0..4096)
            .map(|i| byte ^ u8::try_from(i % 256).unwrap())
            .collect();
        self.queue.write(&self.namespace, slba, &data).unwrap();
        let mut back = vec![0; data.len()];
        self.queue.read(&self.namespace, slba, &mut back).unwrap();
        assert!(back == data, "host {number}");
    }

    /// Waits for the end of its I/O queue.
    fn wait_for_the_end(self) {
        let mut queue = self.queue.into_queue();
        while queue.poll(PATIENCE).is_ok() {}
        drop(self.controller);
    }
}

/// The largest of some times, and the one in the middle.
fn max_and_median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() - 1], times[times.len() / 2])
}

/// Each is served at its first attempt, though all come at once: nobody is turned away, or left
/// until a timer of TCP has it try again.
#[test]
fn hosts_by_the_thousand_come_back_at_once_after_a_kill() {
    raise_descriptor_limit();
    let count = from_env("STORM_HOSTS", 1000);
    let daemon = Daemon::start(&ARGUMENTS);
    let address = daemon.address("nvme connect");
    let (connected, restarted) = (Barrier::new(count + 1), Barrier::new(count + 1));
    let served = Barrier::new(count + 1);
    let life = |number: usize| {
        let mut host = Host::connect(address).unwrap();
        host.works(number);
        connected.wait();
        host.wait_for_the_end();
        restarted.wait();
        let start = Instant::now();
        let mut host = Host::connect(address).unwrap();
        host.works(number);
        let took = start.elapsed();
        served.wait();
        took
    };
    let times = thread::scope(|scope| {
        let hosts: Vec<_> = (0..count)
            .map(|number| {
                let thread = thread::Builder::new().stack_size(512 << 10);
                thread.spawn_scoped(scope, move || life(number)).unwrap()
            })
            .collect();
        connected.wait();
        daemon.signal(Signal::KILL);
        drop(daemon);
        let port = address.port().to_string();
        let ports = ["--bind", "127.0.0.1", "-p", &port, "-P", "0"];
        let mut daemon = Daemon::start_at(&[&ports[..], &ARGUMENTS].concat());
        let before = Usage::at_rest(&mut daemon);
        restarted.wait();
        served.wait();
        let times = hosts.into_iter().map(|host| host.join().unwrap());
        let times: Vec<_> = times.collect();
        assert_nothing_left(&mut daemon, before);
        Host::connect(address).unwrap().works(1);
        times
    });
    let (max, median) = max_and_median(times);
    println!("{count} hosts back and verified: last after {max:?}, median {median:?}");
}

/// Half of the connections are admin queues, the other half I/O queues.
#[test]
fn idle_connections_by_the_thousand_cost_memory_and_nothing_else() {
    raise_descriptor_limit();
    let pairs = from_env("STORM_IDLE", 1000) / 2;
    let limit = (2 * pairs + 16).to_string();
    let mut daemon = Daemon::start(&[&ARGUMENTS[..], &["--connections", &limit]].concat());
    let address = daemon.address("nvme connect");
    let nothing = Usage::at_rest(&mut daemon);
    let mut witness = Host::connect(address).unwrap();
    witness.works(0);
    let before = Usage::of(&daemon);

    let connect = || -> Vec<_> {
        (0..pairs / 4)
            .map(|_| Host::connect(address).unwrap())
            .collect()
    };
    let mut hosts: Vec<Host> = thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(connect));
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    let connections = 2 * hosts.len();
    let said = daemon.tell("stats");
    assert!(
        said.contains(&format!("connections {} ", connections + 2)),
        "{said}"
    );
    let held = Usage::of(&daemon);
    assert_eq!(held.descriptors - before.descriptors, connections);
    assert_eq!(held.threads, before.threads);
    let each = (held.rss - before.rss) / connections as u64;
    println!("{connections} idle connections: {each} bytes of resident memory each");
    // Some 42 KiB for an I/O queue of 32 entries, and less for an admin queue.
    assert!(each < 64 << 10, "{each} bytes");

    let (start, idle) = (Instant::now(), Usage::of(&daemon).ticks);
    if std::env::var_os("STORM_IDLE").is_some() {
        thread::sleep(Duration::from_secs(10));
        let ticks = Usage::of(&daemon).ticks - idle;
        println!("idle: {ticks} ticks of 10 ms in {:?}", start.elapsed());
    }
    (0..100).for_each(|_| witness.works(0));

    // A half of them falls silent for good, and is timed out; the other goes.
    let silent = hosts.split_off(hosts.len() / 2);
    drop(hosts);
    let mut expiring = Vec::new();
    for mut host in silent {
        let kato = SetFeatures::new(Fid::KEEP_ALIVE_TIMER, 1000);
        let done = host
            .controller
            .raw(command::set_features(0, &kato), Data::None);
        done.unwrap().success("Set Features").unwrap();
        expiring.push(host);
    }
    expiring.into_iter().for_each(Host::wait_for_the_end);
    witness.works(0);
    drop(witness);
    assert_nothing_left(&mut daemon, nothing);
}

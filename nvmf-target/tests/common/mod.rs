//! What the integration tests share: a target with a RAM namespace, and hosts for it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod ledger;
pub mod load;
pub mod mortal;
pub mod raw;
pub mod reserving;
pub mod step;
pub mod volatile;
pub mod writer;

use nvmf_host::{ConnectOptions, Controller, IoQueue, Namespace};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{Role, SubsystemConfig, Target, TargetConfig, TargetStats};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub const NQN: &str = "nqn.2026-11.org.example:test";
/// How long a state that must come about may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A target with one RAM namespace of 64 MiB (blocks of 512 bytes), listening on TCP.
pub fn target(config: TargetConfig) -> (Target, SocketAddr) {
    let _ = env_logger::builder().is_test(true).try_init();
    let target = Target::new(config).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    let disk = RamDisk::new(64 << 20, 512).unwrap();
    target.add_namespace(NQN, 1, Inline::new(disk)).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    (target, address)
}

/// A small target: two reactors, 16 MiB of buffers.
pub fn config() -> TargetConfig {
    let mut config = TargetConfig::default();
    config.reactors = 2;
    config.buffer_bytes = 16 << 20;
    config
}

pub fn options(address: SocketAddr) -> ConnectOptions {
    ConnectOptions::new(address, NQN).unwrap()
}

pub fn connect(address: SocketAddr) -> Controller {
    Controller::connect(&options(address)).unwrap()
}

/// Waits until a condition holds; panics if it does not come to hold at all.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything that hosts have caused is gone.
pub fn assert_idle(target: &Target) {
    eventually("everything is given back", || {
        target.stats() == Default::default()
    });
}

/// A new host that is served as if nothing had happened, and whose data is right.
pub fn verified_io(address: SocketAddr, seed: u64) {
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let data = pattern(seed, 96 << 10);
    queue.write(&ns, 1000, &data).unwrap();
    let mut back = vec![0; data.len()];
    queue.read(&ns, 1000, &mut back).unwrap();
    assert!(back == data);
}

/// A host that is served as ever, whatever others do.
pub struct Witness {
    target: Target,
    before: TargetStats,
    _controller: Controller,
    queue: IoQueue,
    ns: Namespace,
    seed: u64,
}

impl Witness {
    pub fn new(target: &Target, address: SocketAddr) -> Self {
        let mut controller = connect(address);
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(1).unwrap();
        let queue = controller.io_queue(1).unwrap();
        let mut witness = Self {
            target: target.clone(),
            before: TargetStats::default(),
            _controller: controller,
            queue,
            ns,
            seed: 0,
        };
        witness.works();
        eventually("its I/O is over", || target.stats().buffers_lent == 0);
        witness.before = target.stats();
        witness
    }

    /// Writes and reads back the last mebibyte of the namespace.
    pub fn works(&mut self) {
        self.seed += 1;
        let data = pattern(self.seed, 64 << 10);
        let slba = self.ns.blocks - 2048 + self.seed % 8 * 128;
        self.queue.write(&self.ns, slba, &data).unwrap();
        let mut back = vec![0; data.len()];
        self.queue.read(&self.ns, slba, &mut back).unwrap();
        assert!(back == data, "other data than was written");
    }

    /// The others have left nothing behind, and this one still works.
    pub fn is_alone(&mut self) {
        self.works();
        eventually("what the others had is given back", || {
            self.target.stats() == self.before
        });
    }
}

/// The host's end of an in-memory connection.
#[derive(Debug)]
pub struct HostStream(MemStream);

impl HostStream {
    pub const fn new(stream: MemStream) -> Self {
        Self(stream)
    }
}

impl nvmf_host::Stream for HostStream {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.writev(bufs)
    }

    fn wait(&mut self, _writable: bool, timeout: Duration) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        poll(
            &mut [PollFd::from_borrowed_fd(self.0.readiness(), PollFlags::IN)],
            Some(&timeout),
        )?;
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.readiness())
    }
}

/// Adds an in-memory listener to a target and returns the way to it.
pub fn in_memory(target: &Target) -> MemConnector {
    let (transport, connector) = MemTransport::new("test").unwrap();
    target.listen_on(Box::new(transport), Role::Io).unwrap();
    connector
}

pub fn connect_in_memory(connector: &MemConnector, options: &ConnectOptions) -> Controller {
    let connector = connector.clone();
    let open = move || Ok(Box::new(HostStream(connector.connect()?)) as Box<dyn nvmf_host::Stream>);
    Controller::connect_over(Box::new(open), options).unwrap()
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[0]
    })
    .take(len)
    .collect()
}

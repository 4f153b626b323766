//! The daemon ends at any moment under load, and is started again over the same storage: whatever
//! it has acknowledged is there, and every block is one that was written.
//!
//! `CRASH_SEED=n` makes the same choices again (not the same timing: that is the machine's),
//! `CRASH_ROUNDS=n` ends each daemon so many times.

#[path = "../../../nvmf-target/tests/common/ledger.rs"]
mod ledger;
mod reserve;
mod storage;
mod term;
#[path = "../../../nvmf-target/tests/common/writer.rs"]
mod writer;

use crate::common::*;
use ledger::{Clock, Journal, Ledger, Promise, Rng, SECTOR};
use nvmf_host::{Controller, Namespace};
use rustix::process::Signal;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use storage::Storage;
use writer::Writer;

/// Bytes of the namespace: small, so that writes meet.
const BYTES: u64 = 2 * MIB;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Storage that outlives daemons, and what it may hold.
struct Bed {
    name: String,
    storage: Storage,
    arguments: Vec<&'static str>,
    ledger: Ledger,
    clock: Clock,
    rng: Rng,
}

/// What the rounds of a bed have come to.
#[derive(Default)]
struct Sum {
    kills: u64,
    ends: u64,
    acknowledged: usize,
}

impl Bed {
    fn new(storage: Storage, block_size: u64, direct: &'static str, engine: &'static str) -> Self {
        let name = format!("{storage}, {block_size}, direct {direct}, {engine}");
        let seed = from_env("CRASH_SEED", u64::from(std::process::id()));
        // For who reads a failure.
        eprintln!("CRASH_SEED={seed}: {name}");
        let block = if block_size == 512 { "512" } else { "4k" };
        let arguments = vec![
            "-n",
            NQN,
            "--threads",
            "2",
            "--block-size",
            block,
            "--direct",
            direct,
            "--io-engine",
            engine,
        ];
        let sectors = usize::try_from(BYTES).unwrap() / SECTOR;
        let salt = name
            .bytes()
            .fold(0, |sum: u64, b| sum * 31 % 65_521 + u64::from(b));
        Self {
            name,
            storage,
            arguments,
            ledger: Ledger::new(sectors, block_size / SECTOR as u64),
            clock: Clock::default(),
            rng: Rng(seed << 16 ^ salt),
        }
    }

    fn start(&self) -> Daemon {
        let path = self.storage.path();
        Daemon::start(&[&self.arguments[..], &[path]].concat())
    }

    /// Reads everything, as a host that comes after the end of a daemon, and judges it.
    fn check(&mut self, daemon: &Daemon) -> usize {
        let mut controller = daemon.connect(|options| options.data_digest = true);
        let ns = controller.namespace(1).unwrap();
        let mut queue = io_queue(&mut controller);
        let mut data = vec![0; usize::try_from(BYTES).unwrap()];
        queue.read(&ns, 0, &mut data).unwrap();
        // The kernel has all that was written, whether or not it was flushed.
        let found = self.ledger.check(&data, Promise::Acknowledged, true);
        found
            .unwrap_or_else(|what| panic!("{}: {what}", self.name))
            .kept
    }

    /// Hosts write to a daemon until it has acknowledged some of it, and a signal ends it.
    fn round(&mut self, daemon: Daemon, signal: Signal) {
        let left = AtomicI64::new(1 + i64::try_from(self.rng.below(400)).unwrap());
        let acknowledged = || {
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                daemon.signal(signal);
            }
        };
        let hosts = 1 + self.rng.below(3);
        let mut controllers: Vec<Controller> = (0..hosts)
            .map(|_| {
                let digests = self.rng.one_in(3);
                daemon.connect(|options| {
                    (options.header_digest, options.data_digest) = (digests, digests);
                    options.timeout = writer::PATIENCE;
                })
            })
            .collect();
        let mut writers = Vec::new();
        for controller in &mut controllers {
            let queues = u16::try_from(1 + self.rng.below(2)).unwrap();
            controller.set_queue_count(queues).unwrap();
            let ns = controller.namespace(1).unwrap();
            for qid in 1..=queues {
                writers.push(Writer {
                    queue: controller.io_queue(qid).unwrap(),
                    ns,
                    clock: self.clock.clone(),
                    rng: Rng(self.rng.next()),
                    parts: Vec::new(),
                    write_through: false,
                    acknowledged: &acknowledged,
                    journal: Journal::default(),
                });
            }
        }
        self.share_out(&mut writers);
        let depth = 1 + usize::try_from(self.rng.below(24)).unwrap();
        let journals: Vec<Journal> = thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(writers)
                .map(|(index, mut writer)| {
                    scope.spawn(move || {
                        // The first has blocks of its own, and does more with them.
                        match index {
                            0 => writer.steps(usize::MAX),
                            _ => writer.stream(depth, usize::MAX),
                        }
                        writer.journal
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        drop(controllers);
        let status = daemon.end();
        let expected = (signal == Signal::TERM).then_some(0);
        assert_eq!(status, expected, "{}", self.name);
        for journal in journals {
            self.ledger.add(journal);
        }
    }

    /// Cuts the namespace into small parts. Some are the first writer's alone, some of one of the
    /// others, some of all others.
    fn share_out(&mut self, writers: &mut [Writer<'_>]) {
        let ns: Namespace = writers[0].ns;
        let count = writers.len() as u64;
        let mut start = 0;
        while start < ns.blocks {
            let end = (start + 1 + self.rng.below(48)).min(ns.blocks);
            let part: Range<u64> = start..end;
            start = end;
            if count == 1 || self.rng.one_in(3) {
                writers[0].parts.push(part);
            } else if self.rng.one_in(3) {
                let others = writers[1..].iter_mut();
                others.for_each(|writer| writer.parts.push(part.clone()));
            } else {
                let one = 1 + usize::try_from(self.rng.below(count - 1)).unwrap();
                writers[one].parts.push(part);
            }
        }
        for writer in writers {
            if writer.parts.is_empty() {
                writer.parts.push(0..1);
            }
        }
    }

    fn run(&mut self) -> Sum {
        let mut sum = Sum::default();
        let mut daemon = self.start();
        for _ in 0..from_env("CRASH_ROUNDS", 4) {
            let signal = match self.rng.below(3) {
                0 => Signal::TERM,
                _ => Signal::KILL,
            };
            self.round(daemon, signal);
            daemon = self.start();
            sum.acknowledged += self.check(&daemon);
            match signal {
                Signal::TERM => sum.ends += 1,
                _ => sum.kills += 1,
            }
        }
        sum
    }
}

/// All engines, through the page cache and past it.
fn crash(open: impl Fn(u64) -> Option<Storage>) {
    for engine in ["uring", "threads"] {
        if engine == "uring" && !has_uring() {
            eprintln!("skipped: no io_uring here");
            continue;
        }
        for (direct, block_size) in [("off", 512), ("on", 4096)] {
            let Some(storage) = open(block_size) else {
                eprintln!("skipped: this storage is not to be had here");
                continue;
            };
            let mut bed = Bed::new(storage, block_size, direct, engine);
            let Sum {
                kills,
                ends,
                acknowledged,
            } = bed.run();
            let name = &bed.name;
            println!(
                "{name}: {kills} times killed, {ends} ended, {acknowledged} acknowledged commands checked"
            );
        }
    }
}

#[test]
fn a_file_holds_what_was_acknowledged() {
    crash(|_| Some(Storage::file(BYTES)));
}

#[test]
fn a_block_device_holds_what_was_acknowledged() {
    crash(|block_size| Storage::device(BYTES, block_size));
}

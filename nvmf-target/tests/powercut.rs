//! The power goes under a target at any moment: what was acknowledged as durable is there when a new
//! target is started over what the device has kept, and every block is one that was written.
//!
//! `POWERCUT_SEED=n` makes the same choices again, `POWERCUT_ROUNDS=n` makes so many cuts.

mod common;

use common::ledger::{Clock, Found, Journal, Ledger, Promise, Rng, SECTOR};
use common::volatile::{Lie, Volatile};
use common::writer::Writer;
use common::{NQN, PATIENCE, config, options};
use nvmf_host::Controller;
use nvmf_host::nvmf_proto::wire::feature::{Fid, SetFeatures};
use nvmf_target::ns::{Inline, Threaded};
use nvmf_target::{SubsystemConfig, Target};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

const BLOCKS: u64 = 512;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The power goes.
    Cut,
    /// The target is shut down under load, and then the power goes.
    Shutdown,
    /// Hosts shut their controllers down, and then the power goes.
    Leave,
}

/// A medium, and what it may hold.
struct Bed {
    rng: Rng,
    block: u32,
    /// Logical blocks do not tear.
    whole: bool,
    native: bool,
    threaded: bool,
    lie: Option<Lie>,
    medium: Vec<u8>,
    ledger: Ledger,
    clock: Clock,
}

impl Bed {
    fn new(seed: u64, lie: Option<Lie>) -> Self {
        let mut rng = Rng(seed);
        let mut coin = || rng.one_in(2);
        let (whole, native, threaded) = (coin(), lie == Some(Lie::Fua) || coin(), coin());
        let block: u32 = if coin() { 512 } else { 4096 };
        let bytes = usize::try_from(BLOCKS * u64::from(block)).unwrap();
        Self {
            block,
            whole,
            native,
            threaded,
            lie,
            medium: vec![0; bytes],
            ledger: Ledger::new(bytes / SECTOR, u64::from(block) / SECTOR as u64),
            clock: Clock::default(),
            rng,
        }
    }

    /// A target over what the device has kept.
    fn start(&self) -> (Target, SocketAddr, Arc<Volatile>) {
        let unit = if self.whole {
            self.block as usize
        } else {
            SECTOR
        };
        let device = Volatile::new(self.medium.clone(), self.block, unit, self.native);
        let device = Arc::new(device.lying(self.lie));
        let target = Target::new(config()).unwrap();
        target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
        let backend = Arc::clone(&device);
        match self.threaded {
            true => target.add_namespace(NQN, 1, Threaded::new(backend, 4)),
            false => target.add_namespace(NQN, 1, Inline::new(backend)),
        }
        .unwrap();
        let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        (target, address, device)
    }

    /// Hosts write, the power goes, and a new target has what it must have.
    fn round(&mut self) -> Result<Found, String> {
        let end = match self.rng.below(4) {
            0 => End::Shutdown,
            1 => End::Leave,
            _ => End::Cut,
        };
        let (target, address, device) = self.start();
        if end == End::Cut {
            device.goes_after(self.rng.below(4000));
        }
        let stops = 20 + self.rng.below(300);
        let left = std::sync::atomic::AtomicU64::new(stops);
        let (stop, stopped) = std::sync::mpsc::channel();
        let acknowledged = move || {
            let before = left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            if before == 1 && end == End::Shutdown {
                // The receiver has gone if the hosts were faster.
                let _ = stop.send(());
            }
        };
        let count = if end == End::Leave { 200 } else { 100_000 };
        let depth = 1 + usize::try_from(self.rng.below(16)).unwrap();
        let seeds: Vec<u64> = (0..1 + self.rng.below(3))
            .map(|_| self.rng.next())
            .collect();
        let parts = self.share_out(seeds.len());
        let (clock, acknowledged) = (&self.clock, &acknowledged);
        let journals: Vec<Journal> = thread::scope(|scope| {
            let hosts: Vec<_> = seeds
                .into_iter()
                .zip(parts)
                .enumerate()
                .map(|(index, (seed, parts))| {
                    let host = Host {
                        address,
                        clock: clock.clone(),
                        rng: Rng(seed),
                        parts,
                        acknowledged,
                        leaves: end == End::Leave,
                    };
                    scope.spawn(move || host.run(index == 0, depth, count))
                })
                .collect();
            if end == End::Shutdown && stopped.recv().is_ok() {
                assert!(target.shutdown(PATIENCE), "not all was finished");
            }
            hosts.into_iter().map(|host| host.join().unwrap()).collect()
        });
        self.medium = device.cut(&mut self.rng);
        // Unless it was already; there is nothing left that could be flushed.
        let _ = target.shutdown(PATIENCE);
        drop(target);
        for journal in journals {
            self.ledger.add(journal);
        }
        let promise = match end {
            End::Shutdown => Promise::Acknowledged,
            End::Cut | End::Leave => Promise::Durable,
        };
        let found = self.ledger.check(&self.read(), promise, self.whole);
        found.map_err(|what| format!("{end:?}: {what}"))
    }

    /// Everything, as a host reads it from a new target.
    fn read(&self) -> Vec<u8> {
        let (target, address, _) = self.start();
        let mut controller = common::connect(address);
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        let mut data = vec![0; self.medium.len()];
        queue.read(&ns, 0, &mut data).unwrap();
        drop((controller, queue));
        assert!(target.shutdown(PATIENCE));
        data
    }

    /// Small parts of the namespace: some for the first host alone, the others for all others.
    fn share_out(&mut self, hosts: usize) -> Vec<Vec<Range<u64>>> {
        let mut parts = vec![Vec::new(); hosts];
        let mut start = 0;
        while start < BLOCKS {
            let end = (start + 1 + self.rng.below(40)).min(BLOCKS);
            let first = hosts == 1 || start == 0 || (end != BLOCKS && self.rng.one_in(3));
            let (own, others) = parts.split_at_mut(1);
            let of = if first { own } else { others };
            of.iter_mut().for_each(|parts| parts.push(start..end));
            start = end;
        }
        parts
    }
}

struct Host<'a> {
    address: SocketAddr,
    clock: Clock,
    rng: Rng,
    parts: Vec<Range<u64>>,
    acknowledged: &'a (dyn Fn() + Sync),
    /// There is power until it has gone.
    leaves: bool,
}

impl Host<'_> {
    /// Writes until it is done or the target is gone, and takes its leave.
    fn run(mut self, alone: bool, depth: usize, count: usize) -> Journal {
        let mut options = options(self.address);
        options.data_digest = self.rng.one_in(4);
        options.timeout = PATIENCE;
        // It may come too late.
        let Ok(mut controller) = Controller::connect(&options) else {
            return Journal::default();
        };
        let write_through = self.rng.one_in(3);
        if write_through {
            let off = SetFeatures::new(Fid::VOLATILE_WRITE_CACHE, 0);
            if controller.set_features(0, &off).is_err() {
                return Journal::default();
            }
        }
        let queue = controller
            .set_queue_count(1)
            .and_then(|_| controller.namespace(1))
            .and_then(|ns| Ok((ns, controller.io_queue(1)?)));
        let Ok((ns, queue)) = queue else {
            return Journal::default();
        };
        let mut writer = Writer {
            queue,
            ns,
            clock: self.clock.clone(),
            rng: self.rng,
            parts: self.parts,
            write_through,
            acknowledged: self.acknowledged,
            journal: Journal::default(),
        };
        match alone {
            true => writer.steps(count),
            false => writer.stream(depth, count),
        }
        let Writer {
            mut journal, queue, ..
        } = writer;
        // A shutdown flushes. That it could not, a controller has no way to say.
        let begun = self.clock.tick();
        drop(queue);
        if controller.shutdown().is_ok() && self.leaves {
            journal.flushes.push(begun);
        }
        journal
    }
}

#[test]
fn what_is_durable_outlives_the_power() {
    let seed = from_env("POWERCUT_SEED", u64::from(std::process::id()) << 16);
    let rounds = from_env("POWERCUT_ROUNDS", 24);
    let mut sum = Found::default();
    for seed in (seed..).take(usize::try_from(rounds.div_ceil(3)).unwrap()) {
        let mut bed = Bed::new(seed, None);
        for _ in 0..3 {
            let found = bed
                .round()
                .unwrap_or_else(|what| panic!("POWERCUT_SEED={seed} POWERCUT_ROUNDS=3: {what}"));
            sum.kept += found.kept;
            sum.lost += found.lost;
        }
    }
    let Found { kept, lost } = sum;
    println!("{rounds} power cuts: {kept} commands kept, {lost} sectors lost that may be");
    assert!(kept > 0 && lost > 0, "{sum:?}");
}

/// Without this the test above says nothing.
#[test]
fn devices_that_lie_are_found_out() {
    for lie in [Lie::Flush, Lie::Fua] {
        let mut rounds = (0..40).map(|seed| Bed::new(seed, Some(lie)).round());
        assert!(rounds.any(|found| found.is_err()), "{lie:?}");
    }
}

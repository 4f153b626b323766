//! Whole targets and hosts in one thread, in virtual time, from one seed: see docs/simulation.md.
//!
//!     cargo test --profile sim -p nvmf-target --features sim --test sim
//!     SIM_SEEDS=0..1000000 ...         runs these seeds
//!     SIM_KEEP_GOING=1 ...             does not stop at the first that fails
//!     SIM_STATS=1 ...                  says how often which command ended how
//!     SIM_SEED=4711 SIM_TRACE=1 ...    replays one and prints what happens

#![expect(unreachable_pub, reason = "it is all one program")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers that a simulation draws are small"
)]

mod again;
mod association;
mod command;
mod completions;
mod connections;
mod content;
mod discovery;
mod disk;
mod end;
mod facts;
mod faults;
mod limits;
mod model;
mod network;
mod plan;
mod queries;
mod queue;
mod regressions;
mod reservations;
mod rng;
mod stats;
mod steps;
mod store;
mod trace;
mod versions;
mod work;
mod world;

use plan::Plan;
use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use trace::Mode;
use world::World;

/// Seeds of a run that nobody has asked more of.
const SEEDS: u64 = 100;
/// Threads that share the seeds.
const THREADS: u64 = 2;
/// Seeds after which a run says how far it is.
const PROGRESS: u64 = 10_000;

/// Runs one seed: the hash of its trace, or what went wrong.
fn run(seed: u64, mode: Mode) -> Result<u64, String> {
    run_with(seed, mode, |_| {})
}

/// The same with a plan that is drawn and then adjusted.
fn run_with(seed: u64, mode: Mode, adjust: impl Fn(&mut Plan)) -> Result<u64, String> {
    trace::begin(mode, world::START);
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng);
        adjust(&mut plan);
        if trace::wants_lines() {
            trace::line(format_args!("{plan:#?}"));
        }
        World::new(plan, rng).play()
    }));
    match played {
        Ok(result) => result.map(|()| trace::hash()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

/// Runs a seed, and once more with its trace if it fails.
fn check(seed: u64) {
    let Err(why) = run(seed, Mode::Hash) else {
        return;
    };
    trace::take_log();
    let again = run(seed, Mode::Tail);
    for line in trace::tail() {
        println!("{line}");
    }
    let same = again.as_ref().err() == Some(&why);
    panic!(
        "seed {seed}: {why}\n{}replay: SIM_SEED={seed} SIM_TRACE=1 cargo test --profile sim -p nvmf-target --features sim --test sim -- --nocapture",
        if same { "" } else { "IT DOES NOT REPLAY\n" }
    );
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// The seeds that the environment asks for.
fn seeds() -> std::ops::Range<u64> {
    let Ok(range) = std::env::var("SIM_SEEDS") else {
        return 0..SEEDS;
    };
    let (from, to) = range.split_once("..").expect("SIM_SEEDS=from..to");
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number("SIM_SEED") {
        if std::env::var_os("SIM_TRACE").is_some() {
            trace::take_log();
            println!("{:?}", run(seed, Mode::Print));
        }
        return check(seed);
    }
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicBool::new(false);
    let began = Instant::now();
    let on = std::env::var_os("SIM_KEEP_GOING").is_some();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while on || !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if seed > seeds.start && seed.is_multiple_of(PROGRESS) {
                        println!("seed {seed}, {:.0?}", began.elapsed());
                    }
                    if catch_unwind(|| check(seed)).is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    stats::print();
    assert!(!failed.into_inner(), "a seed failed, see above");
}

/// The same seed gives the same events, to the last one.
#[test]
fn seeds_replay_exactly() {
    for seed in 0..20 {
        let first = run(seed, Mode::Hash);
        assert_eq!(first, run(seed, Mode::Hash), "seed {seed}");
    }
}

//! The fuzz targets without a fuzzer: their corpus, and mutations of it drawn from a fixed seed.
//!
//! `NVMF_FUZZ_RUNS` says how many mutations per target, `NVMF_FUZZ_SEED` from which seed;
//! `NVMF_FUZZ_CORPORA` names further folders with a folder of inputs per target. A finding prints
//! the input.

use nvmf_proto::tcp::pair::Rng;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let others = env::var("NVMF_FUZZ_CORPORA").unwrap_or_default();
    let others = others.split_whitespace().map(PathBuf::from);
    let mut inputs = Vec::new();
    for folder in [own].into_iter().chain(others) {
        let entries = fs::read_dir(folder.join(target)).into_iter().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        // The order of a folder is anyone's guess, and the mutations depend on it.
        paths.sort();
        inputs.extend(paths.iter().map(|path| fs::read(path).unwrap()));
    }
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

fn run(target: &str, input: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| nvmf_fuzz::run(target, input)));
    match result {
        Ok(known) => assert!(known, "no such target"),
        Err(_) => panic!("{target} fails on {input:02x?}"),
    }
}

/// Changes a few bytes of an input, or its length.
fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..=rng.below(6) {
        let at = rng.below(input.len());
        match rng.below(8) {
            0 => input.insert(at, u8::try_from(rng.below(256)).unwrap()),
            1 if at < input.len() => drop(input.remove(at)),
            2 => input.truncate(at),
            3 => {
                let from = rng.below(other.len());
                let len = 1 + rng.below(other.len() - from);
                let end = input.len().min(at + rng.below(96));
                input.splice(at..end, other[from..from + len].iter().copied());
            }
            4 if at < input.len() => input[at] = [0, 1, 2, 4, 0x7f, 0x80, 0xff][rng.below(7)],
            _ if at < input.len() => input[at] ^= 1 << rng.below(8),
            _ => {}
        }
    }
    input.truncate(1 << 14);
}

/// Runs of a target whose input is over in no time, and of one that makes a whole target of its own.
const QUICK: u64 = 3_000;
const WHOLE: u64 = 600;

fn replay(target: &str, runs: u64) {
    let corpus = corpus(target);
    for input in &corpus {
        run(target, input);
    }
    let mut rng = Rng::new(setting("NVMF_FUZZ_SEED", 1));
    for _ in 0..setting("NVMF_FUZZ_RUNS", runs) {
        let mut input = corpus[rng.below(corpus.len())].clone();
        mutate(&mut input, &corpus[rng.below(corpus.len())], &mut rng);
        run(target, &input);
    }
}

#[test]
fn rx() {
    replay("rx", QUICK);
}

#[test]
fn ops() {
    replay("ops", QUICK);
}

#[test]
fn host_rx() {
    replay("host_rx", QUICK);
}

#[test]
fn target() {
    replay("target", WHOLE);
}

#[test]
fn connect() {
    replay("connect", WHOLE);
}

#[test]
fn config() {
    replay("config", WHOLE);
}

#[test]
fn wire() {
    replay("wire", QUICK);
}

//! What happens in a run: its virtual time, the order of its events, a hash of all of them, and on
//! request the events themselves with the target's log lines among them.
//!
//! A run is the business of one thread, and so is this: streams and backends inside the target
//! reach it without being handed anything.

use log::{LevelFilter, Log, Metadata, Record};
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};

/// Lines that are kept for a failure's report.
const TAIL: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The hash only.
    Hash,
    /// The last lines are kept, too.
    Tail,
    /// Every line is printed.
    Print,
}

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static STAMP: Cell<u64> = const { Cell::new(0) };
    static HASH: Cell<u64> = const { Cell::new(0) };
    static MODE: Cell<Mode> = const { Cell::new(Mode::Hash) };
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Begins a run on this thread.
pub fn begin(mode: Mode, now: u64) {
    NOW.set(now);
    STAMP.set(1);
    HASH.set(0);
    MODE.set(mode);
    LINES.with_borrow_mut(Vec::clear);
}

/// Virtual time, nanoseconds.
pub fn now() -> u64 {
    NOW.get()
}

pub fn set_now(now: u64) {
    NOW.set(now);
}

/// A moment in the order of events: each call returns a later one.
pub fn stamp() -> u64 {
    STAMP.set(STAMP.get() + 1);
    STAMP.get()
}

/// The hash of everything noted since the run began.
pub fn hash() -> u64 {
    HASH.get()
}

/// The last lines, if they were kept.
pub fn tail() -> Vec<String> {
    LINES.take()
}

pub fn wants_lines() -> bool {
    MODE.get() != Mode::Hash
}

/// What can be part of the hash.
pub trait Word {
    fn word(&self) -> u64;
}

macro_rules! words {
    ($($t:ty)*) => { $(impl Word for $t { fn word(&self) -> u64 { *self as u64 } })* }
}

words! { u8 u16 u32 u64 usize bool }

impl Word for nvmf_target::Status {
    fn word(&self) -> u64 {
        self.bits().into()
    }
}

impl Word for &str {
    fn word(&self) -> u64 {
        self.bytes().fold(7, |h, b| mix(h, b.into()))
    }
}

const fn mix(hash: u64, word: u64) -> u64 {
    let h = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 29)
}

pub fn absorb(words: &[u64]) {
    let at = mix(HASH.get(), NOW.get());
    HASH.set(words.iter().fold(at, |h, w| mix(h, *w)));
}

pub fn line(text: fmt::Arguments<'_>) {
    let now = NOW.get();
    let mut line = format!("{:>5}.{:06} ", now / 1_000_000_000, now / 1000 % 1_000_000);
    let _ = line.write_fmt(text);
    if MODE.get() == Mode::Print {
        println!("{line}");
        return;
    }
    LINES.with_borrow_mut(|lines| {
        if lines.len() >= 2 * TAIL {
            lines.drain(..TAIL);
        }
        lines.push(line);
    });
}

/// Notes an event: its place in the source and its values are hashed, and its text is kept if that
/// is wanted.
#[macro_export]
macro_rules! note {
    ($format:literal $(, $value:expr)* $(,)?) => {{
        $crate::trace::absorb(&[line!().into(), $($crate::trace::Word::word(&$value)),*]);
        if $crate::trace::wants_lines() {
            $crate::trace::line(format_args!($format $(, $value)*));
        }
    }};
}

/// The target's log lines stand among the events.
struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        wants_lines()
    }

    fn log(&self, record: &Record<'_>) {
        if wants_lines() {
            line(format_args!("    {} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Lets the target's log lines through. For the whole process.
pub fn take_log() {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}

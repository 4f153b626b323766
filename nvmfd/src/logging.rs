//! The log on standard error.
//!
//! A thread of its own writes it, for whoever reads it may stop doing so: a terminal that is held, a
//! pager, a service that hangs. Threads that serve hosts must not wait for that. What exceeds a
//! bounded number of lines is left out, and their number told as soon as somebody reads again.

use log::{LevelFilter, error};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait for their reader at the most; some hundred bytes each.
const LINES: usize = 4096;
/// How long the end of the process waits for a reader.
const END_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether there is room for the end.
const STEP: Duration = Duration::from_millis(5);

static LOG: OnceLock<SyncSender<Message>> = OnceLock::new();
/// Lines that there was no room for, and that have not been told of.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

enum Message {
    Line(Vec<u8>),
    /// Everything before it has been written when this is dropped.
    End(SyncSender<()>),
}

/// Starts the log, `RUST_LOG` permitting at a level. Panics are told of in it.
pub(crate) fn start(level: LevelFilter) -> io::Result<()> {
    let (sender, lines) = sync_channel(LINES);
    std::thread::Builder::new()
        .name("nvmfd-log".to_owned())
        .spawn(move || write(&lines))?;
    // There is one start of the process.
    let _ = LOG.set(sender);
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .target(env_logger::Target::Pipe(Box::new(Lines)))
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            error!("{panic}\n{trace}");
        } else {
            error!("{panic}");
        }
    }));
    Ok(())
}

/// Says something that is no line of the log, whatever its level.
pub(crate) fn say(text: &str) {
    let line = format!("nvmfd: {text}\n").into_bytes();
    match LOG.get() {
        Some(log) => send(log, line),
        // Nobody is served yet.
        None => _ = io::stderr().write_all(&line),
    }
}

/// Waits until everything has been written, if somebody reads it.
pub(crate) fn end() {
    let Some(log) = LOG.get() else { return };
    let (done, written) = sync_channel(0);
    let until = Instant::now() + END_WITHIN;
    let mut end = Message::End(done);
    while let Err(TrySendError::Full(message)) = log.try_send(end) {
        if Instant::now() >= until {
            return;
        }
        end = message;
        std::thread::sleep(STEP);
    }
    // It is dropped, or it is too late.
    let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
}

fn send(log: &SyncSender<Message>, line: Vec<u8>) {
    if log.try_send(Message::Line(line)).is_err() {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
    }
}

fn write(lines: &Receiver<Message>) {
    loop {
        let message = match lines.try_recv() {
            Err(TryRecvError::Empty) => {
                tell_left_out();
                lines.recv()
            }
            Ok(message) => Ok(message),
            Err(TryRecvError::Disconnected) => return,
        };
        match message {
            Ok(Message::Line(line)) => put(&line),
            Ok(Message::End(done)) => {
                tell_left_out();
                drop(done);
            }
            Err(_) => return,
        }
    }
}

/// Writes a line. A reader that is gone is no reason to stop: the queue must not fill up.
fn put(line: &[u8]) {
    let _ = io::stderr().write_all(line);
}

fn tell_left_out() {
    let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
    if left_out > 0 {
        put(format!("nvmfd: {left_out} lines were left out: nobody read the log\n").as_bytes());
    }
}

/// What the logger writes to: a line at a time.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(log) = LOG.get() {
            send(log, line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! What the daemon costs besides I/O: system calls, idle time, memory, starting.

use crate::Setup;
use crate::cases::{Case, READ_32, WRITE_32};
use crate::page::{Page, median, mib};
use crate::servers::Server;
use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::system::{CpuTime, resident_bytes};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Connections that do nothing.
const IDLE: u32 = 1000;
/// Entries of a queue less one, as Linux has them by default.
const IDLE_DEPTH: u32 = 127;

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line("| upkeep of nvmfd | |\n|---|---|");
    let server = Server::nvmfd(setup, &[])?;
    server.goal().fill(setup)?;
    for case in [&READ_32, &WRITE_32] {
        page.line(system_calls(setup, case, &server)?);
    }
    drop(server);
    idle(setup, page)?;
    page.line(start(setup)?);
    Ok(())
}

/// System calls of the server per I/O. Counted by strace, which slows the server down but counts
/// right.
fn system_calls(setup: &Setup, case: &Case, server: &Server) -> Result<String, Error> {
    let name = format!("| system calls per I/O, {} |", case.name);
    let mut options = case.load(setup, &server.goal());
    options.window.warm_up = Duration::ZERO;
    let mut load = Load::connect(options)?;
    let strace = Command::new("strace")
        .args(["-c", "-f", "-p", &server.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn();
    let mut strace = match strace {
        Ok(strace) => strace,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(format!("{name} not counted: there is no strace |"));
        }
        Err(error) => return Err(error.into()),
    };
    let mut err = BufReader::new(strace.stderr.take().ok_or("no standard error")?);
    let mut text = String::new();
    // "strace: Process 1 attached with 2 threads"
    err.read_line(&mut text)?;
    if !text.contains("attached") {
        return Ok(format!("{name} not counted: {} |", text.trim()));
    }
    let report = load.run()?;
    let pid = i32::try_from(strace.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("no process")?;
    kill_process(pid, Signal::INT)?;
    text.clear();
    err.read_to_string(&mut text)?;
    strace.wait()?;
    load.disconnect()?;

    let ios = report.latency.count().max(1) as f64;
    let (mut total, mut by_name) = (0.0, String::new());
    for (call, calls) in text.lines().filter_map(parse_line) {
        if call == "total" {
            total = calls / ios;
        } else if calls / ios > 0.001 {
            write!(by_name, ", {call} {:.3}", calls / ios)?;
        }
    }
    Ok(format!("{name} {total:.3}{by_name} |"))
}

/// A line of strace's summary: `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn parse_line(line: &str) -> Option<(&str, f64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [share, _, _, calls, .., name] = fields[..] else {
        return None;
    };
    share.parse::<f64>().ok()?;
    Some((name, calls.parse().ok()?))
}

/// Processor time and memory of a server that nobody uses.
fn idle(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    let server = Server::nvmfd(setup, &[])?;
    let pid = server.pid();
    let options = |connections, idle| LoadOptions {
        connections,
        idle,
        depth: IDLE_DEPTH,
        ..server.goal().load(setup)
    };
    let alone = resident_bytes(pid)?;
    page.line(format!(
        "| idle, no connection: processor | {} |",
        idle_cpu(pid)?
    ));
    let load = Load::connect(options(1, 0))?;
    page.line(format!(
        "| idle, one host with one I/O queue: processor | {} |",
        idle_cpu(pid)?
    ));
    let one = resident_bytes(pid)?;
    load.disconnect()?;
    let load = Load::connect(options(1, IDLE - 1))?;
    page.line(format!(
        "| idle, {IDLE} I/O queues: processor | {} |",
        idle_cpu(pid)?
    ));
    let many = resident_bytes(pid)?;
    load.disconnect()?;
    let mut load = Load::connect(LoadOptions {
        depth: 32,
        ..options(IDLE, 0)
    })?;
    load.run()?;
    page.line(format!(
        "| idle, {IDLE} I/O queues that were all used: processor | {} |",
        idle_cpu(pid)?
    ));
    let used = resident_bytes(pid)?;
    load.disconnect()?;

    let each = |all: u64| all.saturating_sub(one) as f64 / f64::from(IDLE - 1) / 1024.0;
    page.line(format!(
        "| resident memory, RAM disk of {:.0} MiB never written: alone | {:.1} MiB |\n\
         | the same with one host | {:.1} MiB |\n\
         | for each further I/O queue of {} entries, never used | {:.1} KiB |\n\
         | for each further I/O queue of 33 entries, used with depth 32 and idle again | {:.1} KiB |",
        mib(setup.ramdisk),
        mib(alone),
        mib(one),
        IDLE_DEPTH + 1,
        each(many),
        each(used),
    ));
    Ok(())
}

/// The share of a processor that a process uses while it is left alone.
fn idle_cpu(pid: u32) -> Result<String, Error> {
    // What connecting takes is not idleness, nor is the spinning that follows it.
    thread::sleep(Duration::from_millis(300));
    let (before, watched) = (CpuTime::of(pid)?, Duration::from_secs(2));
    thread::sleep(watched);
    let used = CpuTime::of(pid)? - before;
    let percent = used.busy.as_secs_f64() / watched.as_secs_f64() * 100.0;
    Ok(format!("{percent:.3} %"))
}

/// Time from starting the process to listening.
fn start(setup: &Setup) -> Result<String, Error> {
    let mut millis = Vec::new();
    for _ in 0..9 {
        let server = Server::nvmfd(setup, &[])?;
        millis.push(server.started_within.as_secs_f64() * 1e3);
    }
    Ok(format!(
        "| start to listening (median of {}) | {:.1} ms |",
        millis.len(),
        median(&mut millis)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace() {
        assert_eq!(
            parse_line(" 60.00    0.1   2   50000    12 recvfrom"),
            Some(("recvfrom", 50e3))
        );
        assert_eq!(
            parse_line("100.00    0.2   1   90000    12 total"),
            Some(("total", 90e3))
        );
        assert_eq!(
            parse_line("------ ----------- ----------- --------- --------- ---------"),
            None
        );
        assert_eq!(
            parse_line("% time     seconds  usecs/call     calls    errors syscall"),
            None
        );
    }
}

//! What the daemon costs besides I/O: system calls, idle time, memory, starting.

use crate::Setup;
use crate::cases::{CASES, case_options, median};
use crate::servers::Server;
use nvmf_benches::load::{Error, Load};
use nvmf_benches::system::{CpuTime, resident_bytes};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// System calls of the server per 4 KiB read at depth 32. Counted by strace, which slows the server
/// down but counts right.
pub(crate) fn system_calls(setup: &Setup, target: &Server) -> Result<String, Error> {
    const NAME: &str = "| system calls per 4 KiB read, depth 32 |";
    let case = CASES
        .iter()
        .find(|case| case.name == "4 KiB random read, depth 32");
    let case = case.ok_or("no such case")?;
    let mut options = case_options(setup, case, target);
    options.window.warm_up = Duration::ZERO;
    let mut load = Load::connect(options)?;
    let strace = Command::new("strace")
        .args(["-c", "-f", "-p", &target.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn();
    let mut strace = match strace {
        Ok(strace) => strace,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(format!("{NAME} not counted: there is no strace |"));
        }
        Err(error) => return Err(error.into()),
    };
    let mut err = BufReader::new(strace.stderr.take().ok_or("no standard error")?);
    let mut text = String::new();
    // "strace: Process 1 attached with 2 threads"
    err.read_line(&mut text)?;
    if !text.contains("attached") {
        return Ok(format!("{NAME} not counted: {} |", text.trim()));
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
    for (name, calls) in text.lines().filter_map(parse_line) {
        if name == "total" {
            total = calls / ios;
        } else if calls / ios > 0.001 {
            write!(by_name, ", {name} {:.3}", calls / ios)?;
        }
    }
    Ok(format!("{NAME} {total:.3}{by_name} |"))
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
pub(crate) fn idle(setup: &Setup) -> Result<String, Error> {
    let server = Server::nvmfd(setup, 1 << 30)?;
    let alone = resident_bytes(server.pid())?;
    let load = Load::connect(case_options(setup, &CASES[0], &server))?;
    // What connecting takes is not idleness, nor is the spinning that follows it.
    thread::sleep(Duration::from_millis(200));
    let (before, watched) = (CpuTime::of(server.pid())?, Duration::from_secs(3));
    thread::sleep(watched);
    let used = CpuTime::of(server.pid())? - before;
    let connected = resident_bytes(server.pid())?;
    load.disconnect()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(format!(
        "| idle with one connected host: processor | {:.3} % |\n\
         | resident memory, RAM disk of 1 GiB never written: alone | {:.1} MiB |\n\
         | the same with one connected host | {:.1} MiB |",
        used.busy.as_secs_f64() / watched.as_secs_f64() * 100.0,
        mib(alone),
        mib(connected)
    ))
}

/// Time from starting the process to listening.
pub(crate) fn start(setup: &Setup) -> Result<String, Error> {
    let mut millis = Vec::new();
    for _ in 0..9 {
        let server = Server::nvmfd(setup, 1 << 30)?;
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

//! What the system knows about threads and processes, and sizes on command lines.

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::ops::Sub;
use std::time::Duration;

/// Clock ticks per second in `/proc`: USER_HZ, part of Linux's interface on every architecture
/// that this runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of a process, all its threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// All of it, to the nanosecond.
    pub busy: Duration,
    /// In its own code; known to 10 ms.
    pub user: Duration,
    /// In the kernel on its behalf; known to 10 ms.
    pub system: Duration,
}

impl CpuTime {
    /// What a process has used since it started.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold spaces and parentheses; the state follows it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = |index| {
            let field = fields.split_whitespace().nth(index);
            let ticks: Option<u64> = field.and_then(|field| field.parse().ok());
            ticks.ok_or_else(|| io::Error::other(format!("cannot read /proc/{pid}/stat: {stat}")))
        };
        let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        Ok(Self {
            busy: busy_time(pid)?,
            user: time(ticks(11)?),
            system: time(ticks(12)?),
        })
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// Threads that have ended do not count.
fn busy_time(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = match std::fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => text,
            // The thread has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let busy = text
            .split_whitespace()
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok());
        nanos += busy.ok_or_else(|| io::Error::other("no time in schedstat"))?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process in bytes.
///
/// # Errors
///
/// There is no such process.
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most memory that was resident in a process since [`reset_peak`], or since it began.
///
/// # Errors
///
/// There is no such process.
pub fn peak_bytes(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Begins [`peak_bytes`] anew.
///
/// # Errors
///
/// There is no such process, or it is somebody else's.
pub fn reset_peak(pid: u32) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn status_bytes(pid: u32, name: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other(format!("no {name}")))
}

/// Numbers of the threads of a process whose names begin with `name`, in order.
///
/// # Errors
///
/// There is no such process.
pub fn threads_named(pid: u32, name: &str) -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // It may have ended meanwhile.
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if comm.starts_with(name) {
            threads.extend(task.file_name().to_string_lossy().parse::<i32>());
        }
    }
    threads.sort_unstable();
    Ok(threads)
}

/// Raises the number of descriptors that this process, and those that it starts, may have, as far
/// as it is allowed to.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it is refused, whatever needs more descriptors says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Keeps the calling thread on one processor.
///
/// # Errors
///
/// There is no such processor.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no processor {cpu}"),
        ));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| {
        let source = io::Error::from(errno);
        io::Error::new(
            source.kind(),
            format!("cannot run on processor {cpu}: {source}"),
        )
    })
}

/// A number of bytes with an optional suffix k, m, g or t (powers of 1024).
///
/// # Errors
///
/// It is something else, or too large.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let shift = match lower.bytes().last() {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        _ => 0,
    };
    let digits = if shift > 0 {
        &lower[..lower.len() - 1]
    } else {
        &lower[..]
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a size"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

/// [`parse_size`] for what has to fit in 32 bits and be more than nothing.
///
/// # Errors
///
/// As there.
pub fn parse_block_size(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_size(text)?) {
        Ok(0) | Err(_) => Err(format!("'{text}' is out of range")),
        Ok(size) => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        for bad in ["", "k", "-1", "4kk", "99999999999t"] {
            parse_size(bad).expect_err(bad);
        }
        parse_block_size("0").unwrap_err();
        parse_block_size("4g").unwrap_err();
    }

    #[test]
    fn this_process() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 0);
        assert!(peak_bytes(pid).unwrap() > 0);
        assert_eq!(threads_named(pid, "no such thread").unwrap(), []);
        let before = CpuTime::of(pid).unwrap();
        let after = CpuTime::of(pid).unwrap();
        assert!(after.user >= before.user && after.busy > Duration::ZERO);
        CpuTime::of(u32::MAX).unwrap_err();
    }
}

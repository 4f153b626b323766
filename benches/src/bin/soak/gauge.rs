//! What a daemon takes up, measured when nobody is connected.

use nvmf_benches::system::resident_bytes;
use std::time::Duration;

/// What a process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// Descriptors.
    pub(crate) descriptors: usize,
    /// Threads, those of the kernel on its behalf not counted.
    pub(crate) threads: usize,
}

impl Usage {
    /// Of a process.
    pub(crate) fn of(pid: u32) -> std::io::Result<Self> {
        let mut threads = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = std::fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
            // Workers of io_uring come and go as the kernel likes.
            threads += usize::from(!name.starts_with("iou-"));
        }
        Ok(Self {
            resident: resident_bytes(pid)?,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads,
        })
    }
}

/// A measurement at a quiet point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Since the run began.
    pub(crate) at: Duration,
    /// Generation of the daemon.
    pub(crate) run: u64,
    pub(crate) usage: Usage,
    /// How long it took until nothing was left of the hosts.
    pub(crate) settled: Duration,
}

/// How long a daemon has to be measured for its growth to say anything: buffers and RAM disks take
/// their memory as they are used.
const LONG: Duration = Duration::from_secs(600);

/// Growth of resident memory from the middle third to the last of the readings of one daemon, in
/// bytes, medians of both; `None` of fewer than nine, or in less than ten minutes.
pub(crate) fn growth(readings: &[Reading]) -> Option<i64> {
    let [first, .., last] = readings else {
        return None;
    };
    if readings.len() < 9 || last.at.saturating_sub(first.at) < LONG {
        return None;
    }
    let third = readings.len() / 3;
    let median = |part: &[Reading]| {
        let mut sizes: Vec<u64> = part.iter().map(|r| r.usage.resident).collect();
        sizes.sort_unstable();
        i64::try_from(sizes[sizes.len() / 2]).unwrap_or(i64::MAX)
    };
    let last = readings.len() - third;
    Some(median(&readings[last..]) - median(&readings[third..last]))
}

/// Readings of the same daemon, one after the other.
pub(crate) fn by_daemon(readings: &[Reading]) -> impl Iterator<Item = &[Reading]> {
    readings.chunk_by(|a, b| a.run == b.run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(run: u64, minute: u64, resident: u64) -> Reading {
        Reading {
            at: Duration::from_secs(minute * 60),
            run,
            usage: Usage {
                resident,
                ..Usage::default()
            },
            settled: Duration::ZERO,
        }
    }

    #[test]
    fn growth_is_what_goes_on_after_the_beginning() {
        let readings = |step: u64, sizes: [u64; 9]| {
            let all = (0..).zip(sizes);
            let all = all.map(|(number, size)| reading(0, number * step, size));
            all.collect::<Vec<_>>()
        };
        let warm_up = [1, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(growth(&readings(2, warm_up)), Some(0));
        assert_eq!(growth(&readings(1, warm_up)), None, "too short");
        let leak = readings(2, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(growth(&leak), Some(3));
        assert_eq!(growth(&leak[1..]), None, "too few");
        let two = [reading(0, 1, 1), reading(2, 2, 1), reading(2, 3, 1)];
        let lens: Vec<_> = by_daemon(&two).map(<[_]>::len).collect();
        assert_eq!(lens, [1, 2]);
    }

    #[test]
    fn this_process_has_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident > 0 && usage.descriptors > 0 && usage.threads > 0);
    }
}

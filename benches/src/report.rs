//! What a run has measured.

use crate::histogram::Histogram;
use crate::system::CpuTime;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How long a run takes, and whose processor time it reports.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Before anything is counted.
    pub warm_up: Duration,
    /// While it is counted.
    pub measured: Duration,
    /// Process on the other side.
    pub pid: Option<u32>,
}

/// What one thread has counted.
#[derive(Clone, Debug)]
pub struct Tally {
    epoch: Instant,
    begin: u64,
    end: u64,
    bytes: u64,
    latency: Histogram,
}

impl Tally {
    fn new(epoch: Instant, window: &Window) -> Self {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 2);
        let begin = nanos(window.warm_up);
        Self {
            epoch,
            begin,
            end: begin + nanos(window.measured),
            bytes: 0,
            latency: Histogram::default(),
        }
    }

    /// Nanoseconds since the run began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether the run is over at that time.
    #[must_use]
    pub const fn is_over(&self, now: u64) -> bool {
        now >= self.end
    }

    /// An I/O of so many bytes, submitted at `started`, is complete; what does not complete within
    /// the measured time does not count. Whether it did.
    pub fn record(&mut self, started: u64, now: u64, bytes: u32) -> bool {
        let counts = (self.begin..self.end).contains(&now);
        if counts {
            self.latency.record(now - started);
            self.bytes += u64::from(bytes);
        }
        counts
    }
}

/// What a run has measured, all threads together.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Latencies of the I/Os that were counted.
    pub latency: Histogram,
    /// Bytes that they moved.
    pub bytes: u64,
    /// The time in which they completed.
    pub elapsed: Duration,
    /// Processor time that the process on the other side used in that time.
    pub cpu: Option<CpuTime>,
}

/// Runs `worker` in each of so many threads for the time of the window. The first error of any
/// ends the run, as soon as the others come to its end.
///
/// # Errors
///
/// What a worker returned, or there is no process of that number.
pub fn run<E: From<io::Error> + Send>(
    threads: usize,
    window: &Window,
    worker: impl Fn(usize, &mut Tally) -> Result<(), E> + Sync,
) -> Result<Report, E> {
    let epoch = Instant::now();
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let spawn = |index| {
            let (worker, failed) = (&worker, &failed);
            scope.spawn(move || {
                let mut tally = Tally::new(epoch, window);
                let result = worker(index, &mut tally);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result.map(|()| tally)
            })
        };
        let workers: Vec<ScopedJoinHandle<'_, Result<Tally, E>>> =
            (0..threads).map(spawn).collect();
        let cpu = || window.pid.map(CpuTime::of).transpose();
        sleep_until(epoch + window.warm_up, &failed);
        let before = cpu()?;
        sleep_until(epoch + window.warm_up + window.measured, &failed);
        let after = cpu()?;
        let mut report = Report {
            elapsed: window.measured,
            ..Report::default()
        };
        report.cpu = after.zip(before).map(|(after, before)| after - before);
        for worker in workers {
            let tally = worker
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
            report.latency.merge(&tally.latency);
            report.bytes += tally.bytes;
        }
        Ok(report)
    })
}

fn sleep_until(when: Instant, failed: &AtomicBool) {
    while let Some(left) = when.checked_duration_since(Instant::now())
        && !failed.load(Ordering::Relaxed)
    {
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

impl Report {
    /// I/Os per second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        self.latency.count() as f64 / self.elapsed.as_secs_f64()
    }

    /// MiB (2^20 bytes) per second.
    #[must_use]
    pub fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.elapsed.as_secs_f64()
    }

    /// Processor time of the other side per I/O in microseconds: all, user, system. The split is
    /// coarse in short runs.
    #[must_use]
    pub fn cpu_per_io(&self) -> Option<[f64; 3]> {
        let per_io = |time: Duration| time.as_secs_f64() * 1e6 / self.latency.count().max(1) as f64;
        self.cpu
            .map(|cpu| [cpu.busy, cpu.user, cpu.system].map(per_io))
    }

    /// One JSON object; times in microseconds.
    #[must_use]
    pub fn to_json(&self) -> String {
        let micros = |per_mille| self.latency.per_mille(per_mille) as f64 / 1e3;
        let mut json = format!(
            "{{\"ios\":{},\"iops\":{:.0},\"mib_s\":{:.1},\"mean_us\":{:.3},\"p50_us\":{:.3},\
             \"p99_us\":{:.3},\"p999_us\":{:.3},\"max_us\":{:.3}",
            self.latency.count(),
            self.iops(),
            self.mib_per_second(),
            self.latency.mean() / 1e3,
            micros(500),
            micros(990),
            micros(999),
            self.latency.max() as f64 / 1e3,
        );
        if let Some([busy, user, system]) = self.cpu_per_io() {
            json += &format!(
                ",\"cpu_us\":{busy:.4},\"cpu_user_us\":{user:.4},\"cpu_system_us\":{system:.4}"
            );
        }
        json + "}"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |per_mille| self.latency.per_mille(per_mille) as f64 / 1e3;
        writeln!(
            f,
            "{:.0} IOPS, {:.1} MiB/s ({} I/Os in {:.1} s)",
            self.iops(),
            self.mib_per_second(),
            self.latency.count(),
            self.elapsed.as_secs_f64()
        )?;
        write!(
            f,
            "latency us: mean {:.1}, p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
            self.latency.mean() / 1e3,
            micros(500),
            micros(990),
            micros(999),
            self.latency.max() as f64 / 1e3
        )?;
        if let Some([total, user, system]) = self.cpu_per_io() {
            write!(
                f,
                "\nserver CPU us per I/O: {total:.2} (user {user:.2}, system {system:.2})"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_completes_in_the_window_counts() {
        let window = Window {
            warm_up: Duration::from_nanos(100),
            measured: Duration::from_nanos(900),
            pid: None,
        };
        let mut tally = Tally::new(Instant::now(), &window);
        for now in [50, 100, 999, 1000] {
            tally.record(10, now, 4096);
        }
        assert_eq!((tally.latency.count(), tally.bytes), (2, 8192));
        assert!(!tally.is_over(999) && tally.is_over(1000));
    }

    #[test]
    fn a_worker_that_fails_ends_the_run() {
        let forever = Duration::from_secs(3600);
        let window = Window {
            warm_up: forever,
            measured: forever,
            pid: None,
        };
        let report = run(2, &window, |_, _| Err(io::Error::other("no")));
        assert_eq!(report.unwrap_err().to_string(), "no");
    }
}

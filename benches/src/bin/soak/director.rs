//! The run itself: who works, what is done to the daemon, when all is quiet, and when it is over.

use crate::board::Word;
use crate::churn;
use crate::daemon::{Daemon, Recipe};
use crate::gauge::{Reading, Usage, by_daemon, growth};
use crate::herd::Herd;
use crate::random::Random;
use crate::run::{Run, lock};
use crate::stage::{self, Stage};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it may take until nothing is left of hosts that have gone.
const SETTLING: Duration = Duration::from_secs(60);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(20);
/// Resident memory that a daemon may have beyond what it began with, its buffers and its RAM disks.
const SLACK: u64 = 24 << 20;
/// How much resident memory may grow in the last third of a daemon's life.
const GROWTH: i64 = 4 << 20;
/// Threads that a daemon may have beyond those that it began with and `--io-threads`: the one that
/// takes commands and the one that gives memory back begin after it serves, and one keeps
/// reservations when there are any.
const MORE_THREADS: usize = 3;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Time(Duration),
    /// So many commands of load hosts, and everything at least once.
    Commands(u64),
}

/// When which things are done next.
#[derive(Debug)]
struct Schedule {
    churn: Instant,
    kill: Instant,
    quiet: Instant,
    restart: Instant,
    progress: Instant,
}

/// The run.
pub(crate) struct Director<'a> {
    run: &'a Arc<Run>,
    stage: &'a Stage,
    herd: Herd,
    length: Length,
    random: Random,
    daemon: Option<Daemon>,
    /// Process whose usage is measured.
    pid: Option<u32>,
    /// What it had before anybody connected.
    beginning: Usage,
    /// Where engines and other things differ from one daemon to the next.
    pub(crate) daemons: Vec<String>,
    pub(crate) readings: Vec<Reading>,
}

impl<'a> Director<'a> {
    /// Starts the daemon, unless the target is somebody else's, whose process is `pid`.
    pub(crate) fn new(
        run: &'a Arc<Run>,
        stage: &'a Stage,
        herd: Herd,
        length: Length,
        pid: Option<u32>,
    ) -> Result<Self, String> {
        let mut director = Self {
            run,
            stage,
            herd,
            length,
            random: Random::new(run.seed, 1),
            daemon: None,
            pid,
            beginning: Usage::default(),
            daemons: Vec::new(),
            readings: Vec::new(),
        };
        match &stage.recipe {
            Some(recipe) => director.start(recipe)?,
            None => director.measure_beginning()?,
        }
        Ok(director)
    }

    fn start(&mut self, recipe: &Recipe) -> Result<(), String> {
        let engine = ["auto", "threads"][self.random.index(2)];
        let direct = ["auto", "off"][self.random.index(2)];
        let threads = self.random.within(1, 3).to_string();
        let busy = ["0", "50"][self.random.index(2)];
        let more: Vec<String> = [
            ("--io-engine", engine),
            ("--direct", direct),
            ("--threads", &threads),
            ("--busy-poll", busy),
        ]
        .iter()
        .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
        .collect();
        let began = Instant::now();
        let daemon = Daemon::start(self.run, recipe, &more)?;
        self.run.note_slowest(
            "longest start of the daemon, ns",
            u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        );
        self.pid = Some(daemon.pid());
        self.daemon = Some(daemon);
        self.daemons.push(more.join(" "));
        self.measure_beginning()
    }

    /// Nobody is connected.
    fn measure_beginning(&mut self) -> Result<(), String> {
        lock(&self.run.namespaces).clone_from(&self.stage.namespaces);
        if let Some(pid) = self.pid {
            self.beginning = Usage::of(pid).map_err(|err| format!("process {pid}: {err}"))?;
        }
        Ok(())
    }

    /// Does everything, until it is enough.
    pub(crate) fn direct(&mut self) {
        let now = Instant::now();
        let mut next = Schedule {
            churn: now,
            kill: now + self.pace(120),
            quiet: now + self.pace(40),
            restart: now,
            progress: now + self.progress_interval(),
        };
        while !self.run.is_over() && !self.is_enough() {
            self.herd.keep_up(self.run);
            if let Err(why) = self.step(&mut next) {
                self.run.fail(&why);
                if self.daemon_is_gone() {
                    break;
                }
            }
            std::thread::sleep(LOOK);
        }
        // The last of what is there to be measured.
        if !self.daemon_is_gone()
            && let Err(why) = self.quiet()
        {
            self.run.fail(&why);
        }
        self.run.board.set(Word::Stop, 1);
        self.herd.end(self.run);
        self.judge_growth();
    }

    /// Ends the daemon in order.
    pub(crate) fn end(mut self) -> (Vec<String>, Vec<Reading>) {
        if let Some(daemon) = self.daemon.take()
            && let Err(why) = daemon.terminate()
        {
            self.run.fail(&why);
        }
        (self.daemons, self.readings)
    }

    fn step(&mut self, next: &mut Schedule) -> Result<(), String> {
        let now = Instant::now();
        if now >= next.progress {
            next.progress = now + self.progress_interval();
            self.print_progress();
        }
        if self.daemon_is_gone() {
            return Err("the daemon has ended by itself".to_owned());
        }
        if now >= next.kill {
            next.kill = now + self.pace(240);
            self.herd.kill_one(self.run, &mut self.random);
        }
        if now >= next.quiet {
            self.quiet()?;
            next.quiet = Instant::now() + self.pace(40);
        }
        if now >= next.restart && self.is_time_for_restarts() {
            self.restart()?;
            next.restart = Instant::now() + self.pace(80);
        }
        if now >= next.churn
            && let (Some(daemon), Some(churned)) = (&mut self.daemon, &self.stage.churned)
        {
            churn::disturb(self.run, daemon, churned, &mut self.random)?;
            let millis = self.random.within(500, 4000);
            next.churn = Instant::now() + Duration::from_millis(millis);
        }
        Ok(())
    }

    /// Whether there should be a daemon and is none.
    fn daemon_is_gone(&mut self) -> bool {
        match &mut self.daemon {
            Some(daemon) => daemon.has_ended().is_some(),
            None => self.stage.recipe.is_some(),
        }
    }

    /// A random time, on average this part of the run; not less than two seconds, nor more than
    /// two minutes.
    fn pace(&mut self, part: u32) -> Duration {
        let length = match self.length {
            Length::Time(length) => length,
            Length::Commands(_) => Duration::from_secs(30),
        };
        let mean = (length / part).clamp(Duration::from_secs(2), Duration::from_secs(120));
        mean * u32::try_from(self.random.within(50, 150)).unwrap_or(100) / 100
    }

    fn progress_interval(&self) -> Duration {
        match self.length {
            Length::Time(length) => Duration::from_secs(60).min(length / 4),
            Length::Commands(_) => Duration::from_secs(10),
        }
    }

    /// How much is done, from 0 to 1.
    fn progress(&self) -> f64 {
        match self.length {
            Length::Time(length) => self.run.began.elapsed().as_secs_f64() / length.as_secs_f64(),
            Length::Commands(all) => self.run.counted("load: commands") as f64 / all.max(1) as f64,
        }
    }

    fn is_enough(&self) -> bool {
        let everything = match self.length {
            Length::Time(_) => true,
            Length::Commands(_) => {
                let own = self.daemon.is_some();
                let deeds = self.stage.churned.is_none()
                    || churn::all().all(|deed| self.run.counted(deed) > 0);
                deeds
                    && (!own || self.both_restarts_done())
                    && self.run.counted("hosts killed") > 0
                    && self.readings.len() > 1
            }
        };
        everything && self.progress() >= 1.0
    }

    fn both_restarts_done(&self) -> bool {
        self.run.counted("daemon killed") > 0 && self.run.counted("daemon terminated") > 0
    }

    /// In the middle third, so that two daemons live for a third each. With a number of commands,
    /// until both ways were taken.
    fn is_time_for_restarts(&self) -> bool {
        if self.daemon.is_none() {
            return false;
        }
        let progress = self.progress();
        match self.length {
            Length::Time(_) => (0.33..0.66).contains(&progress),
            Length::Commands(_) => progress >= 0.33 && !self.both_restarts_done(),
        }
    }

    /// Ends the daemon in one of two ways while hosts are at work, and starts the next one.
    fn restart(&mut self) -> Result<(), String> {
        let (Some(recipe), Some(mut daemon)) = (&self.stage.recipe, self.daemon.take()) else {
            return Ok(());
        };
        if let Some(status) = daemon.has_ended() {
            return Err(format!("the daemon has ended by itself: {status}"));
        }
        let is_first = self.run.counted("daemon killed") == 0;
        let kill = is_first || self.both_restarts_done() && self.random.percent(50);
        self.run.board.turn(Word::Run);
        if kill {
            drop(daemon);
            self.run.count("daemon killed", 1);
        } else {
            let took = daemon.terminate()?;
            self.run.took("end of the daemon by SIGTERM", took);
            self.run.count("daemon terminated", 1);
        }
        self.start(recipe)?;
        self.run.board.turn(Word::Run);
        Ok(())
    }

    /// Lets all hosts leave, and measures what is left of them.
    fn quiet(&mut self) -> Result<(), String> {
        let Some(pid) = self.pid else { return Ok(()) };
        self.run.board.set(Word::Pause, 1);
        let settled = self.settle();
        let usage = Usage::of(pid).map_err(|err| format!("process {pid}: {err}"));
        self.run.board.set(Word::Pause, 0);
        let (settled, usage) = (settled?, usage?);
        let reading = Reading {
            at: self.run.began.elapsed(),
            run: self.run.board.get(Word::Run),
            usage,
            settled,
        };
        self.run.count("quiet points", 1);
        self.readings.push(reading);
        self.judge(&reading)
    }

    /// Waits until the daemon says that there is nothing left, or its descriptors do.
    fn settle(&mut self) -> Result<Duration, String> {
        let began = Instant::now();
        loop {
            let left = match (&mut self.daemon, self.pid) {
                (Some(daemon), _) => {
                    let mut stats = daemon.stats()?;
                    stats.retain(|(_, n)| *n != 0);
                    (!stats.is_empty()).then(|| format!("{stats:?}"))
                }
                (None, Some(pid)) => {
                    let usage = Usage::of(pid).map_err(|err| format!("process {pid}: {err}"))?;
                    let more = usage.descriptors > self.beginning.descriptors;
                    more.then(|| format!("{} descriptors", usage.descriptors))
                }
                (None, None) => None,
            };
            let Some(left) = left else {
                return Ok(began.elapsed());
            };
            if began.elapsed() > SETTLING {
                return Err(format!(
                    "LEAK: {SETTLING:?} after all have left there are {left}"
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether nothing has been left behind.
    fn judge(&self, reading: &Reading) -> Result<(), String> {
        let (now, then) = (reading.usage, self.beginning);
        // What is made on first use, such as a ring per reactor, is there at the second quiet point.
        let of_daemon = self.readings.iter().filter(|r| r.run == reading.run);
        let begun = of_daemon.take(2).map(|r| r.usage.descriptors);
        let descriptors = begun.max().unwrap_or(0);
        if now.descriptors > descriptors {
            return Err(format!(
                "LEAK: {} descriptors, {descriptors} is the bound",
                now.descriptors
            ));
        }
        if self.daemon.is_none() {
            return Ok(());
        }
        let threads = then.threads + stage::IO_THREADS + MORE_THREADS;
        if now.threads > threads {
            return Err(format!(
                "LEAK: {} threads, {threads} is the bound",
                now.threads
            ));
        }
        let most = then.resident + stage::BUFFERS + stage::RAM + SLACK;
        if now.resident > most {
            return Err(format!(
                "LEAK: {} bytes of resident memory, {most} is the bound",
                now.resident
            ));
        }
        Ok(())
    }

    fn judge_growth(&self) {
        for daemon in by_daemon(&self.readings) {
            if let Some(growth) = growth(daemon).filter(|&growth| growth > GROWTH) {
                self.run.fail(&format!(
                    "LEAK: resident memory grows, {growth} bytes in the last third of {} quiet points",
                    daemon.len()
                ));
            }
        }
    }

    fn print_progress(&self) {
        let run = self.run;
        let n = |what| run.counted(what);
        let seconds = run.began.elapsed().as_secs();
        let slowest = run.latencies().values().map(|h| h.max()).max().unwrap_or(0);
        let usage = self.pid.and_then(|pid| Usage::of(pid).ok());
        let usage = usage.unwrap_or_default();
        println!(
            "{:3}:{:02} commands {} verified {} MiB connects {} cuts {} kills {} restarts {} hostile {} churn {} | \
             slowest {:.2} s, RSS {} MiB, {} fds, {} threads | failures {}",
            seconds / 60,
            seconds % 60,
            n("load: commands"),
            n("load: bytes-verified") >> 20,
            n("load: connects"),
            n("load: cuts"),
            n("hosts killed"),
            n("daemon killed") + n("daemon terminated"),
            n("hostile cases"),
            churn::all().map(n).sum::<u64>(),
            slowest as f64 / 1e9,
            usage.resident >> 20,
            usage.descriptors,
            usage.threads,
            run.failures().len(),
        );
    }
}

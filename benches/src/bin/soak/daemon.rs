//! The daemon under test: started, told what to do, listened to, ended.

use crate::run::Run;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a daemon may take to end by SIGTERM: its own bound, and as much again for a machine
/// that is loaded.
const ENDING: Duration = Duration::from_secs(20);
/// How long the next one tries to begin: whoever was killed may hold its files for a moment.
const BEGINNING: Duration = Duration::from_secs(20);

/// How long it may take to answer a command: `remove` waits five seconds for a device, and the
/// machine is loaded. Who takes longer hangs, and that is what the soak is there to find.
const ANSWERING: Duration = Duration::from_secs(60);

/// How to start it.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Where its log goes.
    pub(crate) log: PathBuf,
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    input: ChildStdin,
    /// Its lines on standard output.
    output: Receiver<String>,
    log: Option<JoinHandle<()>>,
}

/// What `stats` says.
pub(crate) type Stats = Vec<(String, u64)>;

impl Daemon {
    /// Started with more arguments, and serving.
    pub(crate) fn start(run: &Arc<Run>, recipe: &Recipe, more: &[String]) -> Result<Self, String> {
        let deadline = Instant::now() + BEGINNING;
        loop {
            match Self::try_start(run, recipe, more) {
                Ok(daemon) => return Ok(daemon),
                Err(why) if Instant::now() > deadline => {
                    return Err(format!("the daemon does not start: {why}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn try_start(run: &Arc<Run>, recipe: &Recipe, more: &[String]) -> Result<Self, String> {
        let said = |err: io::Error| err.to_string();
        let mut child = Command::new(&recipe.program)
            .args(more)
            .args(&recipe.arguments)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for this program, which has to end it in order.
            .process_group(0)
            .spawn()
            .map_err(|err| format!("{}: {err}", recipe.program.display()))?;
        let (Some(input), Some(output), Some(log)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("no pipes".to_owned());
        };
        let file = File::options().create(true).append(true).open(&recipe.log);
        let file = file.map_err(said)?;
        let with = Arc::clone(run);
        let log = std::thread::spawn(move || keep_log(&with, BufReader::new(log), file));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || pass_on(BufReader::new(output), &sender));
        let daemon = Self {
            child,
            input,
            output: lines,
            log: Some(log),
        };
        let deadline = Instant::now() + BEGINNING;
        while daemon.line(deadline)? != "nvmfd: serving" {}
        Ok(daemon)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&self, deadline: Instant) -> Result<String, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.output.recv_timeout(left).map_err(|err| match err {
            RecvTimeoutError::Timeout => "it hangs".to_owned(),
            RecvTimeoutError::Disconnected => "it has ended; its log says why".to_owned(),
        })
    }

    /// Gives a command and returns the answer. A daemon that does not answer is killed: its answer
    /// would be taken for the next one's.
    pub(crate) fn tell(&mut self, line: &str) -> Result<String, String> {
        writeln!(self.input, "{line}")
            .map_err(|err| format!("the daemon takes no command: {err}"))?;
        match self.line(Instant::now() + ANSWERING) {
            Ok(answer) if answer.starts_with("ok ") => Ok(answer),
            Ok(answer) => Err(format!("the daemon answers to {line:?}: {answer:?}")),
            Err(why) => {
                self.kill();
                Err(format!(
                    "the daemon has not answered to {line:?} within {ANSWERING:?}: {why}"
                ))
            }
        }
    }

    /// Returns whether it has ended, which takes longer where a device hangs.
    fn kill(&mut self) -> bool {
        // It may have ended already.
        let _ = self.child.kill();
        let deadline = Instant::now() + ENDING;
        while self.has_ended().is_none() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// What there is of what hosts take up.
    pub(crate) fn stats(&mut self) -> Result<Stats, String> {
        let answer = self.tell("stats")?;
        let mut words = answer.split_whitespace().skip(1);
        let mut stats = Vec::new();
        while let (Some(name), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) {
            stats.push((name.to_owned(), number));
        }
        Ok(stats)
    }

    /// Whether it has ended by itself, which it must not.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGTERM; it has to end in time and with status 0.
    pub(crate) fn terminate(mut self) -> Result<Duration, String> {
        if let Some(status) = self.has_ended() {
            return Err(format!("the daemon has ended by itself: {status}"));
        }
        let began = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|err| format!("SIGTERM: {err}"))?;
        while began.elapsed() < ENDING {
            if let Some(status) = self.has_ended() {
                return match status.code() {
                    Some(0) => Ok(began.elapsed()),
                    _ => Err(format!("the daemon ended by SIGTERM with {status}")),
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("SIGTERM did not end the daemon within {ENDING:?}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The log ends with the process.
        if self.kill()
            && let Some(log) = self.log.take()
        {
            let _ = log.join();
        }
    }
}

/// Passes on what the daemon says on standard output, line by line.
fn pass_on(lines: impl BufRead, to: &Sender<String>) {
    for line in lines.lines().map_while(Result::ok) {
        if to.send(line).is_err() {
            return;
        }
    }
}

/// Keeps what the daemon says on standard error, and looks for what it must not say.
fn keep_log(run: &Run, mut lines: impl BufRead, mut file: File) {
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        if text.contains(" ERROR ") || text.contains("panicked") {
            run.fail(&format!("the daemon's log: {}", text.trim_end()));
        } else if text.contains(" WARN ") {
            run.count("warnings in the daemon's log", 1);
        }
        // The disk may be full; what counts has been seen.
        let _ = file.write_all(&line);
        line.clear();
    }
}

/// A loop device over a file; gone when dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` where there are none, as without root.
    pub(crate) fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| Self(PathBuf::from(path.trim_end())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Nothing can be done if it stays.
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

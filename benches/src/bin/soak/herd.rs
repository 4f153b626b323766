//! The load hosts: processes that are started, listened to, killed and started again.

use crate::random::Random;
use crate::run::Run;
use rustix::process::Signal;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a load host may take to leave when the run is over, if six times `--slow` is not more:
/// a command may take three times that.
const LEAVING: Duration = Duration::from_secs(60);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// A load host.
#[derive(Debug)]
pub(crate) struct Member {
    /// What it is called in messages.
    name: String,
    /// What it is told, but for its life.
    arguments: Vec<String>,
    /// How many were there before.
    life: u16,
    process: Option<(Child, JoinHandle<()>)>,
    /// It has seen something wrong: what it knows of its region is nothing to go on with.
    has_failed: bool,
}

impl Member {
    pub(crate) const fn new(name: String, arguments: Vec<String>) -> Self {
        Self {
            name,
            arguments,
            life: 0,
            process: None,
            has_failed: false,
        }
    }

    fn start(&mut self, run: &Arc<Run>) -> io::Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("host")
            .args(&self.arguments)
            .args(["--seed", &run.seed.to_string()])
            .args(["--life", &self.life.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let Some(output) = child.stdout.take() else {
            return Err(io::Error::other("no pipe"));
        };
        let with = Arc::clone(run);
        let name = self.name.clone();
        let listener = std::thread::spawn(move || listen(&with, &name, BufReader::new(output)));
        self.life += 1;
        self.process = Some((child, listener));
        Ok(())
    }

    /// Waits for its end, and looks at how it was. One that does not leave is killed.
    fn join(&mut self, run: &Run) {
        let Some((mut child, listener)) = self.process.take() else {
            return;
        };
        let deadline = Instant::now() + LEAVING.max(run.slow * 6);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                run.fail(&format!("{} does not leave", self.name));
                // It may have ended meanwhile.
                let _ = child.kill();
                break;
            }
            std::thread::sleep(LOOK);
        }
        let status = child.wait();
        let _ = listener.join();
        let killed = Some(Signal::KILL.as_raw());
        match status {
            Ok(status) if status.success() || status.signal() == killed => return,
            // It has said why.
            Ok(status) if status.code() == Some(1) => {}
            Ok(status) => run.fail(&format!("{}: {status}", self.name)),
            Err(err) => run.fail(&format!("{}: {err}", self.name)),
        }
        self.has_failed = true;
    }
}

/// Adds up what a host says.
fn listen(run: &Run, name: &str, lines: impl BufRead) {
    for line in lines.lines().map_while(Result::ok) {
        if let Some(why) = line.strip_prefix("fail ") {
            run.fail(&format!("{name}: {why}"));
            continue;
        }
        let mut words = line.split_whitespace().skip(1);
        while let (Some(what), Some(Ok(n))) = (words.next(), words.next().map(str::parse)) {
            if what == "slowest" {
                run.note_slowest("longest command of a load host, ns", n);
            } else {
                run.count(&format!("load: {what}"), n);
            }
        }
    }
}

/// All load hosts.
#[derive(Debug)]
pub(crate) struct Herd(pub(crate) Vec<Member>);

impl Herd {
    /// Starts those that are not there.
    pub(crate) fn keep_up(&mut self, run: &Arc<Run>) {
        for member in &mut self.0 {
            let has_ended = match &mut member.process {
                None => true,
                Some((child, _)) => !matches!(child.try_wait(), Ok(None)),
            };
            if member.has_failed || !has_ended {
                continue;
            }
            member.join(run);
            if member.has_failed {
                continue;
            }
            if let Err(err) = member.start(run) {
                run.fail(&format!("{} does not start: {err}", member.name));
                member.has_failed = true;
            }
        }
    }

    /// Kills one of them, wherever it is.
    pub(crate) fn kill_one(&mut self, run: &Run, random: &mut Random) {
        let index = random.index(self.0.len());
        if let Some((child, _)) = &mut self.0[index].process
            && child.kill().is_ok()
        {
            run.count("hosts killed", 1);
        }
    }

    /// Waits for those that are there, once the board says that the run is over.
    pub(crate) fn end(&mut self, run: &Run) {
        for member in &mut self.0 {
            member.join(run);
        }
    }
}

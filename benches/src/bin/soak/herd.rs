//! The load hosts: processes that are started, listened to, killed and started again.

use crate::random::Random;
use crate::run::Run;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A load host.
#[derive(Debug)]
pub(crate) struct Member {
    /// What it is told, but for its life.
    pub(crate) arguments: Vec<String>,
    /// How many were there before.
    life: u16,
    process: Option<(Child, JoinHandle<()>)>,
    /// It has seen something wrong: what it knows of its region is nothing to go on with.
    has_failed: bool,
}

impl Member {
    pub(crate) const fn new(arguments: Vec<String>) -> Self {
        Self {
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
        let name = format!("host {}", self.arguments.join(" "));
        let listener = std::thread::spawn(move || listen(&with, &name, BufReader::new(output)));
        self.life += 1;
        self.process = Some((child, listener));
        Ok(())
    }

    /// Waits for its end; whether that was by a signal, or in order.
    fn join(&mut self) -> bool {
        let Some((mut child, listener)) = self.process.take() else {
            return true;
        };
        let status = child.wait();
        let _ = listener.join();
        status.is_ok_and(|status| status.success() || status.signal() == Some(9))
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
            if !member.join() {
                // It has said why, unless it has panicked; that is on standard error.
                run.fail(&format!(
                    "a load host failed: {}",
                    member.arguments.join(" ")
                ));
                member.has_failed = true;
                continue;
            }
            if let Err(err) = member.start(run) {
                run.fail(&format!("a load host does not start: {err}"));
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
            if !member.join() && !member.has_failed {
                run.fail(&format!(
                    "a load host failed: {}",
                    member.arguments.join(" ")
                ));
            }
        }
    }
}

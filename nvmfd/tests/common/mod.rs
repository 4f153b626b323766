//! A daemon process and what its tests do with it.

use nvmf_host::{ConnectOptions, Controller, IoQueue, Namespace};
use nvmf_target::ns::{FileBackend, FileEngine, FileNamespace, FileOptions, WorkerPool};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use tempfile::{NamedTempFile, TempDir};

pub(crate) const NQN: &str = "nqn.2014-08.org.example:daemon-test";
pub(crate) const MIB: u64 = 1 << 20;

/// A running daemon on ports of its own; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) input: Option<ChildStdin>,
    pub(crate) output: BufReader<ChildStdout>,
    pub(crate) banner: Vec<String>,
}

/// Ports of the loopback address that nobody else has.
pub(crate) const ANY_PORT: [&str; 6] = ["--bind", "127.0.0.1", "-p", "0", "-P", "0"];

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmfd"));
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Daemon {
    /// Started, and serving.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_at(&[&ANY_PORT, arguments].concat())
    }

    /// The same on the ports that the arguments say.
    pub(crate) fn start_at(all: &[&str]) -> Self {
        // Its log is for who reads a failure; RUST_LOG asks for more.
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned());
        let mut command = command(all);
        let child = command
            .env("RUST_LOG", log)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self::of(child)
    }

    /// A process that was started, once it serves.
    pub(crate) fn of(mut child: Child) -> Self {
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut daemon = Self {
            child,
            input,
            output: BufReader::new(output),
            banner: Vec::new(),
        };
        loop {
            let line = daemon.line();
            assert_ne!(line, "", "nvmfd has ended: {:?}", daemon.banner);
            if line == "nvmfd: serving" {
                return daemon;
            }
            daemon.banner.push(line);
        }
    }

    /// The next line of standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Gives a command on standard input and returns the answer.
    pub(crate) fn tell(&mut self, line: &str) -> String {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
        self.line()
    }

    /// What follows `flag` in the line of the banner that begins with `start`.
    pub(crate) fn word(&self, start: &str, flag: &str) -> &str {
        let line = self
            .banner
            .iter()
            .find(|line| line.starts_with(start))
            .unwrap();
        let mut words = line.split(' ').skip_while(|word| *word != flag);
        words.nth(1).unwrap()
    }

    pub(crate) fn address(&self, start: &str) -> SocketAddr {
        let (ip, port) = (self.word(start, "-a"), self.word(start, "-s"));
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    }

    /// Connects as the printed line says.
    pub(crate) fn connect(&self, change: impl FnOnce(&mut ConnectOptions)) -> Controller {
        let nqn = self.word("nvme connect", "-n");
        let mut options = ConnectOptions::new(self.address("nvme connect"), nqn).unwrap();
        change(&mut options);
        Controller::connect(&options).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; returns the exit status.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn io_queue(controller: &mut Controller) -> IoQueue {
    controller.set_queue_count(1).unwrap();
    controller.io_queue(1).unwrap()
}

pub(crate) fn write_and_read_back(
    queue: &mut IoQueue,
    namespace: &Namespace,
    slba: u64,
    blocks: usize,
) {
    let data: Vec<u8> = (0..blocks * namespace.block_size as usize)
        .map(|i| u8::try_from((i + i / 512) % 251).unwrap())
        .collect();
    queue.write(namespace, slba, &data).unwrap();
    queue.flush(namespace).unwrap();
    let mut back = vec![0; data.len()];
    queue.read(namespace, slba, &mut back).unwrap();
    assert!(back == data, "{namespace:?} {slba}");
}

/// Runs it to its end, which must come before it serves: exit status and standard error.
pub(crate) fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.stdout, b"", "{arguments:?}");
    (output.status.code(), text)
}

pub(crate) fn file_of(dir: &TempDir, name: &str, bytes: u64) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Whether there is io_uring for this process: a sandbox may forbid it.
pub(crate) fn has_uring() -> bool {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let backend = FileBackend::open(file.path(), &FileOptions::default()).unwrap();
    let pool = Arc::new(WorkerPool::new(1));
    FileNamespace::new(backend, FileEngine::Uring, &pool).is_ok()
}

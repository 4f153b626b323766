//! nvmfd: serves RAM disks, files and block devices to NVMe/TCP hosts.

mod cli;
mod control;
mod devices;
mod identity;
mod listen;
mod logging;
mod memory;

use cli::{Cli, one_line, quoted};
use control::Control;
use devices::Devices;
use identity::Machine;
use listen::{Listeners, reachable};
use log::{LevelFilter, info, warn};
use nvmf_target::ns::WorkerPool;
use nvmf_target::{FileReservationStore, Role, SubsystemConfig, Target, TargetConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long what is in flight may take to finish when the daemon ends.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(10);

/// What the daemon needs of them beside connections, roughly: devices, reactors, listeners.
const OTHER_DESCRIPTORS: u64 = 100;

/// Why the daemon does not run, or an operator's command was not done: one line.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It makes sense, but cannot be had.
    #[error("{0}")]
    Environment(String),
}

impl Failure {
    /// An error about what the command line asks for.
    fn asked_for(err: nvmf_target::Error) -> Self {
        match err {
            nvmf_target::Error::Config(text) | nvmf_target::Error::NotFound(text) => {
                Self::Usage(text)
            }
            err => err.into(),
        }
    }

    /// With the `--command` that it is about.
    fn of_command(self, command: &str) -> Self {
        let named = |text: String| format!("--command {}: {text}", quoted(command));
        match self {
            Self::Usage(text) => Self::Usage(named(text)),
            Self::Environment(text) => Self::Environment(named(text)),
        }
    }
}

impl From<nvmf_target::Error> for Failure {
    fn from(err: nvmf_target::Error) -> Self {
        // The index of a change says nothing to an operator.
        let text = match err {
            nvmf_target::Error::Change { what, source, .. } => format!("{what}: {source}"),
            err => err.to_string(),
        };
        Self::Environment(text)
    }
}

fn main() -> ExitCode {
    let ended = Cli::read().map(|cli| run(&cli));
    let status = match ended {
        Ok(Ok(())) | Err(None) => ExitCode::SUCCESS,
        Ok(Err(failure)) | Err(Some(failure)) => failed(&failure),
    };
    logging::end();
    status
}

fn failed(failure: &Failure) -> ExitCode {
    logging::say(&one_line(&failure.to_string()));
    match failure {
        Failure::Environment(_) => ExitCode::FAILURE,
        Failure::Usage(_) => ExitCode::from(2),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let level = if cli.debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    logging::start(level)
        .map_err(|err| Failure::Environment(format!("no thread for the log: {err}")))?;
    raise_descriptor_limit(&cli.target_config());
    let machine = Machine::of(Path::new("/"));
    let nqn = cli.nqn.clone().unwrap_or_else(|| machine.nqn());

    let pool = Arc::new(WorkerPool::new(cli.io_threads as usize));
    let mut devices = Devices::new(cli, machine, &nqn, &pool);
    for (nsid, device) in (1..).zip(&cli.devices) {
        devices.open(nsid, device)?;
    }
    let listeners = Listeners::bind(cli)?;
    let (stopping, signals) = catch_signals()
        .map_err(|err| Failure::Environment(format!("signals cannot be caught: {err}")))?;

    let target = Target::new(cli.target_config()).map_err(Failure::asked_for)?;
    target
        .add_subsystem(subsystem(cli, &machine, &nqn)?)
        .map_err(Failure::asked_for)?;
    devices.add_to(&target)?;
    let mut control = Control {
        target: target.clone(),
        nqn,
        devices,
    };
    control.start(listeners.configs(), &cli.commands)?;
    print(&banner(&control))?;
    print("nvmfd: serving\n")?;

    // It keeps the target: from here on nothing but a shutdown ends that.
    memory::start(&target)
        .map_err(|err| Failure::Environment(format!("no thread that gives memory back: {err}")))?;
    if cli.stdin_control {
        control_by_stdin(control, signals.handle())?;
    }
    wait(signals);
    stopping.store(true, Ordering::Relaxed);
    if !target.shutdown(SHUTDOWN_WITHIN) {
        logging::say(&format!(
            "a device has not finished, or not flushed, what it was given, within {SHUTDOWN_WITHIN:?}"
        ));
        // Not by returning: that would wait for the pool's threads, which may hang in a device.
        logging::end();
        std::process::exit(1);
    }
    Ok(())
}

/// Lets the process have as many descriptors as it may: each connection is one, also those that are
/// on their way out while others come.
fn raise_descriptor_limit(config: &TargetConfig) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let has = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(err) => {
            warn!("the limit of open files cannot be raised: {err}");
            limit.current
        }
    };
    let wants = (config.connections_max() as u64).saturating_add(OTHER_DESCRIPTORS);
    if let Some(has) = has.filter(|&has| has < wants) {
        warn!(
            "{} connections (--connections), and 64 per thread on their way out, want some {wants} descriptors, and the limit of open files is {has}",
            config.max_connections
        );
    }
}

/// The subsystem that the command line describes.
fn subsystem(cli: &Cli, machine: &Machine, nqn: &str) -> Result<SubsystemConfig, Failure> {
    let mut subsystem = SubsystemConfig::new(nqn);
    subsystem.serial = cli.serial.clone().unwrap_or_else(|| machine.serial(nqn));
    if let Some(model) = &cli.model {
        subsystem.model.clone_from(model);
    }
    subsystem.allow_any_host = cli.host.is_empty();
    subsystem.hosts.clone_from(&cli.host);
    subsystem.subsystem_reset = cli.subsystem_reset;
    if let Some(requests) = cli.event_requests() {
        subsystem.event_requests = requests;
    }
    if let Some(dir) = &cli.state_dir {
        let store = FileReservationStore::new(dir)
            .map_err(|err| Failure::Environment(format!("--state-dir {}: {err}", dir.display())))?;
        subsystem.reservation_store = Some(Arc::new(store));
    }
    Ok(subsystem)
}

/// Signals are caught from here on. Once the flag is set, SIGINT and SIGTERM end the process at
/// once; the first of them sets it.
fn catch_signals() -> io::Result<(Arc<AtomicBool>, Signals)> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal must not meet the flag that it sets.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    Ok((stopping, Signals::new([SIGINT, SIGTERM, SIGHUP])?))
}

/// Returns when the daemon is to end.
fn wait(mut signals: Signals) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("shutting down");
            return;
        }
        info!("SIGHUP is ignored: there is nothing to read again");
    }
}

/// Starts the thread that reads commands; `quit` closes `signals`.
fn control_by_stdin(mut control: Control, signals: Handle) -> Result<(), Failure> {
    let serve = move || match control.serve(io::stdin().lock(), io::stdout()) {
        Ok(true) => signals.close(),
        Ok(false) => info!("end of standard input: no more commands"),
        Err(err) => warn!("no more commands: {err}"),
    };
    std::thread::Builder::new()
        .name("nvmfd-control".to_owned())
        .spawn(serve)
        .map(drop)
        .map_err(|err| Failure::Environment(format!("no thread for commands: {err}")))
}

/// What is printed at the start: what is served, where, and how a host gets it.
fn banner(control: &Control) -> String {
    let nqn = &control.nqn;
    let listeners = control.target.listeners();
    // Listeners are named as their addresses.
    let sockets = |role| -> Vec<SocketAddr> {
        let those = listeners.iter().filter(|listener| listener.role == role);
        those.filter_map(|l| l.name.parse().ok()).collect()
    };
    let (io, discovery) = (sockets(Role::Io), sockets(Role::Discovery));
    let mut text = format!("nvmfd {}: subsystem {nqn}\n", env!("CARGO_PKG_VERSION"));
    for line in control.devices.describe_all() {
        text += &format!("{line}\n");
    }
    for address in &io {
        text += &format!("listening on {address} for I/O and discovery\n");
    }
    for address in &discovery {
        text += &format!("listening on {address} for discovery\n");
    }
    let command = |what: &str, listener| {
        format!(
            "nvme {what} -t tcp -a {} -s {}",
            reachable(listener),
            listener.port()
        )
    };
    if let Some(&listener) = discovery.first().or_else(|| io.first()) {
        text += &format!("{}\n", command("discover", listener));
    }
    if let Some(&listener) = io.first() {
        text += &format!("{} -n {nqn}\n", command("connect", listener));
    }
    text
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|err| Failure::Environment(format!("standard output: {err}")))
}

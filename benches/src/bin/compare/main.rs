//! Target and raw-socket stub side by side.

mod cases;
mod fairness;
mod files;
mod page;
mod scaling;
mod servers;
mod shortage;
mod table;
mod upkeep;

use clap::Parser;
use nvmf_benches::load::Error;
use nvmf_benches::system::{parse_size, raise_descriptor_limit};
use page::Page;
use servers::{Goal, build};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Measures nvmfd against the raw-socket stub on this machine, and perhaps against another NVMe/TCP
/// target, and prints Markdown tables.
///
/// Both servers run on one processor and their clients on another, taking turns in several rounds;
/// the figures are medians, and ratios are medians of the ratios within a round, for timings drift.
/// The stub moves the same bytes and does nothing else; it is measured asleep between requests and
/// spinning, and the better of the two counts. All clients spin. Nothing else should be running.
///
/// Sections: `table` (throughput and latency), `upkeep`, `scaling`, `shortage` (large I/O with
/// little memory), `fairness` and `files` (against fio).
///
/// The binaries are built first, unless they are named: `cargo run --release -p nvmf-benches --bin
/// compare -- --quick`
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// One short round: for a first look, and to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Rounds of `table` and `files`; half as many of the others [default: 5, quick: 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds per measurement [default: 1000, quick: 200].
    #[arg(long)]
    millis: Option<u64>,
    /// Processor of the servers.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Processor of the clients.
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Size of the RAM disk, of the stub's region and of the file: at least 512m [default: 1g,
    /// quick: 512m].
    #[arg(long, value_parser = parse_size)]
    ramdisk: Option<u64>,
    /// Folder for the file; its file system has to know O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Only sections, or rows of the table, whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Put the sections that are measured in full between their markers in this document:
    /// `<!-- compare:SECTION -->` to `<!-- /compare:SECTION -->`.
    #[arg(long, value_name = "DOCUMENT")]
    write: Option<PathBuf>,
    /// Another NVMe/TCP target to take turns with nvmfd in the table, pinned and set up by you.
    /// ITS NAMESPACE IS OVERWRITTEN, as much of it as the RAM disk's size.
    #[arg(long, value_name = "ADDRESS")]
    against: Option<SocketAddr>,
    /// Process of that target, whose processor time is shown.
    #[arg(long, requires = "against", value_name = "PID")]
    against_pid: Option<u32>,
    /// Its subsystem [default: the first that the discovery service at the address names].
    #[arg(long, requires = "against", value_name = "NQN")]
    against_nqn: Option<String>,
    /// The daemon to measure, instead of building one.
    #[arg(long, requires = "stub")]
    nvmfd: Option<PathBuf>,
    /// The stub to measure against, instead of building one; loadgen is beside it.
    #[arg(long, requires = "nvmfd")]
    stub: Option<PathBuf>,
    /// More arguments for nvmfd, after `--`.
    #[arg(last = true)]
    nvmfd_args: Vec<String>,
}

/// What all measurements have in common.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    nvmfd: PathBuf,
    stub: PathBuf,
    nvmfd_args: Vec<String>,
    against: Option<Goal>,
    server_cpu: usize,
    client_cpu: usize,
    ramdisk: u64,
    folder: PathBuf,
    rounds: usize,
    measured: Duration,
}

impl Setup {
    fn new(cli: &Cli) -> Result<Self, Error> {
        let (nvmfd, stub) = match (&cli.nvmfd, &cli.stub) {
            (Some(nvmfd), Some(stub)) => (nvmfd.clone(), stub.clone()),
            _ => build()?,
        };
        let (rounds, millis) = if cli.quick { (1, 200) } else { (5, 1000) };
        let ramdisk = cli
            .ramdisk
            .unwrap_or(if cli.quick { 512 << 20 } else { 1 << 30 });
        if ramdisk < 512 << 20 {
            return Err("--ramdisk: at least 512m is wanted".into());
        }
        Ok(Self {
            nvmfd,
            stub,
            nvmfd_args: cli.nvmfd_args.clone(),
            against: cli.against.map(|address| Goal {
                address,
                nqn: cli.against_nqn.clone(),
                pid: cli.against_pid,
            }),
            server_cpu: cli.server_cpu,
            client_cpu: cli.client_cpu,
            ramdisk,
            folder: cli.folder.clone(),
            rounds: cli.rounds.unwrap_or(rounds).max(1),
            measured: Duration::from_millis(cli.millis.unwrap_or(millis)),
        })
    }

    /// Rounds of the sections that are about processor time and shares, which are steadier.
    const fn few(&self) -> usize {
        self.rounds.div_ceil(2)
    }

    /// Where and how the figures came about.
    fn describe(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let mut lines = cpuinfo.lines();
        let model = lines.find_map(|line| line.strip_prefix("model name"));
        let model = model
            .unwrap_or_default()
            .trim_start_matches([' ', '\t', ':']);
        format!(
            "Commit {}; {} processors, {model}; Linux {}; load average before {}; {} rounds of {} ms; disk of {} MiB; nvmfd {}.\n",
            commit(),
            cpuinfo.matches("processor\t").count(),
            read("/proc/sys/kernel/osrelease").trim(),
            read("/proc/loadavg").split(' ').next().unwrap_or_default(),
            self.rounds,
            self.measured.as_millis(),
            self.ramdisk >> 20,
            servers::nvmfd_options(self).join(" "),
        )
    }
}

/// What is checked out here.
fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let commit = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    commit
        .ok()
        .filter(|commit| !commit.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

/// A section but for the table: its name and what measures it.
type Section = (&'static str, fn(&Setup, &mut Page) -> Result<(), Error>);

const SECTIONS: &[Section] = &[
    ("upkeep", upkeep::measure),
    ("scaling", scaling::measure),
    ("shortage", shortage::measure),
    ("fairness", fairness::measure),
    ("files", files::measure),
];

fn run(cli: &Cli) -> Result<(), Error> {
    raise_descriptor_limit();
    let setup = Setup::new(cli)?;
    let all = "table".contains(&cli.only);
    if all || table::is_wanted(cli) {
        let mut page = Page::default();
        page.line(setup.describe());
        table::measure(&setup, &mut page, if all { "" } else { &cli.only })?;
        match &cli.write {
            Some(document) if all => page.write(document, "table")?,
            Some(_) => eprintln!("compare: some rows are not the table; they are not written"),
            None => {}
        }
    }
    for (name, measure) in SECTIONS.iter().filter(|(name, _)| name.contains(&cli.only)) {
        println!();
        let mut page = Page::default();
        measure(&setup, &mut page).map_err(|error| format!("{name}: {error}"))?;
        if let Some(document) = &cli.write {
            page.write(document, name)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Err(error) = run(&Cli::parse()) {
        eprintln!("compare: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

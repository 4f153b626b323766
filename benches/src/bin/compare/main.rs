//! Target and raw-socket stub side by side.

mod cases;
mod servers;
mod upkeep;

use cases::{CASES, Case, Row, Servers};
use clap::Parser;
use nvmf_benches::load::Error;
use nvmf_benches::system::parse_size;
use servers::{Server, build};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures nvmfd against the raw-socket stub on this machine and prints Markdown tables.
///
/// Both servers run on one processor and their clients on another, taking turns in several rounds;
/// the figures are medians, and ratios are medians of the ratios within a round, for timings drift.
/// The stub moves the same bytes and does nothing else; it is measured asleep between requests and
/// spinning, and the better of the two counts. All clients spin. Nothing else should be running.
///
/// The binaries are built first, unless they are named: `cargo run --release -p nvmf-benches --bin
/// compare -- --quick`
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// One short round: for a first look, and to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 5, quick: 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds per measurement [default: 2000, quick: 500].
    #[arg(long)]
    millis: Option<u64>,
    /// Processor of the servers.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// Processor of the clients.
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Size of the RAM disk, and of the stub's region.
    #[arg(long, default_value = "1g", value_parser = parse_size)]
    ramdisk: u64,
    /// Only cases whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// The daemon to measure, instead of building one.
    #[arg(long, requires = "stub")]
    nvmfd: Option<PathBuf>,
    /// The stub to measure against, instead of building one.
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
    server_cpu: usize,
    client_cpu: usize,
    ramdisk: u64,
    rounds: usize,
    measured: Duration,
}

fn run(cli: Cli) -> Result<(), Error> {
    let (nvmfd, stub) = match (cli.nvmfd, cli.stub) {
        (Some(nvmfd), Some(stub)) => (nvmfd, stub),
        _ => build()?,
    };
    let (rounds, millis) = if cli.quick { (1, 500) } else { (5, 2000) };
    let setup = Setup {
        nvmfd,
        stub,
        nvmfd_args: cli.nvmfd_args,
        server_cpu: cli.server_cpu,
        client_cpu: cli.client_cpu,
        ramdisk: cli.ramdisk,
        rounds: cli.rounds.unwrap_or(rounds).max(1),
        measured: Duration::from_millis(cli.millis.unwrap_or(millis)),
    };
    describe(&setup);
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(&cli.only))
        .collect();
    println!("{}", Row::HEAD);
    let servers = Servers {
        target: Server::nvmfd(&setup, setup.ramdisk)?,
        asleep: Server::stub(&setup, false)?,
        spinning: Server::stub(&setup, true)?,
    };
    cases::fill(&setup, &servers.target)?;
    for case in chosen {
        println!("{}", cases::measure(&setup, case, &servers)?);
    }
    println!("\n| upkeep of nvmfd | |\n|---|---|");
    println!("{}", upkeep::system_calls(&setup, &servers.target)?);
    drop(servers);
    println!("{}", upkeep::idle(&setup)?);
    println!("{}", upkeep::start(&setup)?);
    Ok(())
}

/// Where and how the figures came about.
fn describe(setup: &Setup) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    println!(
        "{} processors,{}; Linux {}; load average before the run {}. {} rounds of {} ms, RAM disk of {} MiB, nvmfd {}.\n",
        cpuinfo.matches("processor\t").count(),
        model
            .trim_start_matches([' ', '\t', ':'])
            .split_whitespace()
            .fold(String::new(), |a, w| a + " " + w),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        setup.rounds,
        setup.measured.as_millis(),
        setup.ramdisk >> 20,
        servers::nvmfd_options(setup).join(" "),
    );
}

fn main() -> ExitCode {
    if let Err(error) = run(Cli::parse()) {
        eprintln!("compare: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

//! The soak test: a daemon under everything at once, for as long as one likes.

mod board;
mod churn;
mod cut;
mod daemon;
mod director;
mod gauge;
mod guests;
mod herd;
mod host;
mod hostile;
mod model;
mod quarrel;
mod random;
mod report;
mod run;
mod stage;

use board::{Board, Word};
use clap::{Args, Parser, Subcommand};
use director::{Director, Length};
use herd::Herd;
use host::HostArgs;
use nvmf_benches::load::discover_one;
use nvmf_benches::system::raise_descriptor_limit;
use random::Random;
use run::Run;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use stage::{Manner, Stage};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs nvmfd under verified load of all kinds, with hosts that connect, vanish and are killed,
/// hostile traffic, an operator that changes everything, and restarts; fails on wrong data, an
/// unexpected status, anything that is left behind, a slow answer, and whatever the daemon calls an
/// error.
///
///     cargo build --release -p nvmfd -p nvmf-benches
///     target/release/soak --minutes 60
///
/// Ctrl-C ends it with the report. With --address it goes for a target that runs already, without
/// an operator and restarts: ITS FIRST NAMESPACE IS OVERWRITTEN.
///
/// The exit status is 0 if nothing failed, 1 if something did, 2 if it could not begin.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: SoakOptions,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// One load host; the program starts these itself.
    #[command(hide = true)]
    Host(HostArgs),
}

#[derive(Args, Debug)]
struct SoakOptions {
    /// How long.
    #[arg(long, default_value_t = 60.0, value_parser = minutes)]
    minutes: f64,
    /// Instead: until load hosts have done so many commands, and everything else was done once.
    #[arg(long, conflicts_with = "minutes")]
    commands: Option<u64>,
    /// What is done is decided by it, though not when [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// The daemon [default: nvmfd beside this program].
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// A target that runs already, instead of a daemon of its own.
    #[arg(long, conflicts_with = "daemon")]
    address: Option<SocketAddr>,
    /// Its subsystem [default: the first that discovery names].
    #[arg(long, requires = "address")]
    nqn: Option<String>,
    /// Its process, to be measured.
    #[arg(long, requires = "address")]
    pid: Option<u32>,
    /// Most commands a second of each load host; 0: as many as there can be.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Seconds that an answer to a host that is watched may take.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    slow: u64,
    /// Folder for files, models and the daemon's log [default: one in the system's for temporary
    /// files, which is removed if nothing failed].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the report goes as well as to standard output.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("a number of minutes, at least 0.1, is wanted".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Part::Host(args)) = cli.part {
        return host::run(args);
    }
    match soak(&cli.options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("soak: {why}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing failed.
fn soak(options: &SoakOptions) -> Result<bool, String> {
    raise_descriptor_limit();
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    let name = format!("nvmf-soak-{}", std::process::id());
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(name));
    std::fs::create_dir_all(&dir).map_err(|err| format!("{}: {err}", dir.display()))?;
    let mut stage = set_stage(options, &dir, seed)?;
    let board = Board::create(&dir.join("board")).map_err(|err| format!("board: {err}"))?;
    let slow = Duration::from_secs(options.slow);
    let place = stage.place.clone();
    let run = Arc::new(Run::new(board, place, seed, stage.recipe.is_none(), slow));
    let length = match options.commands {
        Some(commands) => Length::Commands(commands),
        None => Length::Time(Duration::from_secs_f64(options.minutes * 60.0)),
    };
    println!("soak: seed {seed}, in {}", dir.display());
    let signals = end_by_signal(&run)?;
    let herd = Herd(std::mem::take(&mut stage.herd));
    let mut director = Director::new(&run, &stage, herd, length, options.pid)?;
    std::thread::scope(|scope| {
        let guests = guests(&run, &stage);
        for guest in guests {
            scope.spawn(guest);
        }
        director.direct();
    });
    let (daemons, readings) = director.end();
    signals.close();
    let text = report::markdown(&run, &stage, &daemons, &readings);
    println!("{text}");
    if let Some(path) = &options.report {
        std::fs::write(path, &text).map_err(|err| format!("{}: {err}", path.display()))?;
    }
    let passed = run.failures().is_empty();
    if passed && options.dir.is_none() {
        // What is left of it does no harm.
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        println!("The daemon's log and all files are in {}.", dir.display());
    }
    Ok(passed)
}

fn set_stage(options: &SoakOptions, dir: &Path, seed: u64) -> Result<Stage, String> {
    let manner = Manner {
        dir,
        rate: options.rate,
        patience: options.slow * 3,
    };
    if let Some(address) = options.address {
        let nqn = match &options.nqn {
            Some(nqn) => nqn.clone(),
            None => discover_one(address).map_err(|err| err.to_string())?,
        };
        return stage::foreign(manner, address, nqn);
    }
    let program = match &options.daemon {
        Some(program) => program.clone(),
        None => std::env::current_exe()
            .map_err(|err| err.to_string())?
            .with_file_name("nvmfd"),
    };
    if !program.is_file() {
        return Err(format!(
            "there is no {}; --daemon says where nvmfd is",
            program.display()
        ));
    }
    let mut random = Random::new(seed, 0);
    let stage = stage::own(manner, program, &mut random);
    stage.map_err(|err| format!("{}: {err}", dir.display()))
}

/// Who works beside the load hosts.
fn guests<'a>(run: &'a Run, stage: &'a Stage) -> Vec<Box<dyn FnOnce() + Send + 'a>> {
    let stable = stage.stable[0];
    let mut guests: Vec<Box<dyn FnOnce() + Send + 'a>> = vec![
        Box::new(|| guests::probe(run, &stage.probed)),
        Box::new(|| guests::reader(run, &stage.stable)),
        Box::new(|| guests::watcher(run)),
        Box::new(move || guests::idlers(run, stable)),
        Box::new(move || hostile::crowds(run, stable)),
    ];
    if let Some(nsid) = stage.reserved {
        guests.push(Box::new(move || guests::rivals(run, nsid)));
    }
    if let Some(scratch) = &stage.scratch {
        guests.push(Box::new(|| hostile::torture(run, scratch)));
    }
    guests
}

/// The first SIGINT or SIGTERM ends the run with a report.
fn end_by_signal(run: &Arc<Run>) -> Result<signal_hook::iterator::Handle, String> {
    let said = |err: std::io::Error| format!("signals: {err}");
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(said)?;
    let handle = signals.handle();
    let run = Arc::clone(run);
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("soak: ending");
            run.board.set(Word::Stop, 1);
        }
    });
    Ok(handle)
}

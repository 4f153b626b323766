//! Instructions per I/O of the target's hot path, and the gate on them.

mod callgrind;
mod player;

use callgrind::{Cost, Counts};
use clap::{Parser, Subcommand};
use player::{CASES, Case};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is expected; this file is part of the repository.
const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
/// By how much a count may exceed what is expected, as a part of it and in instructions: other
/// compilers and C libraries count a little otherwise.
const TOLERANCE: f64 = 0.05;
const SLACK: f64 = 20.0;
/// Functions that `--functions` shows.
const FUNCTIONS: usize = 40;

/// Counts the instructions that the target spends on an I/O, and fails if they have become more
/// than benches/instructions.txt expects.
///
/// A target with one reactor and a RAM disk runs under `valgrind --tool=callgrind`, loaded through
/// a stream that plays a host within the reactor's own thread: the same batches in every run, no
/// socket, no clock, and so the same count. All user-space instructions of the process count from
/// one batch to a later one (poll, parse, backend, copies, answers), but for those of the played
/// host and its stream. The kernel's do not count, nor does the wrapper of the socket calls.
/// Valgrind shows no AVX-512 to the program: digests are computed as on processors without it.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Write what is counted to benches/instructions.txt, instead of comparing with it.
    #[arg(long)]
    update: bool,
    /// Only cases whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Also print what costs most in each case.
    #[arg(long)]
    functions: bool,
    #[command(subcommand)]
    command: Option<Play>,
}

#[derive(Debug, Subcommand)]
enum Play {
    /// What runs under valgrind: one case, without counting anything.
    #[command(hide = true)]
    Play {
        case: String,
        warm_up: u64,
        batches: u64,
    },
}

fn run(cli: &Cli) -> Result<ExitCode, Error> {
    if let Some(Play::Play {
        case,
        warm_up,
        batches,
    }) = &cli.command
    {
        let case = CASES.iter().find(|known| known.name == case);
        player::play(case.ok_or("no such case")?, *warm_up, *batches)?;
        return Ok(ExitCode::SUCCESS);
    }
    let made_with = format!("{}, {}", rustc_version()?, callgrind::version()?);
    let before = std::fs::read_to_string(EXPECTED).unwrap_or_default();
    let folder = Folder::new()?;
    println!("instructions per I/O    copying  (expected)   the rest  (expected)        all");
    let mut after = header(&made_with);
    let (mut exceeded, mut undercut) = (Vec::new(), Vec::new());
    for case in CASES {
        let expected = expected(&before, case);
        if !case.name.contains(&cli.only) {
            after += &expected.map_or_else(String::new, |cost| line(case, cost));
            continue;
        }
        let counts = callgrind::count(case, &folder.0)?;
        after += &line(case, counts.cost);
        show(cli, case, &counts, expected);
        match expected {
            Some(limit) if !counts.cost.exceeds(limit) => {
                if limit.exceeds(counts.cost) {
                    undercut.push(case.name);
                }
            }
            _ => exceeded.push(case.name),
        }
    }
    if cli.update {
        std::fs::write(EXPECTED, after)?;
        println!("written to {EXPECTED}");
        return Ok(ExitCode::SUCCESS);
    }
    if !undercut.is_empty() {
        let names = undercut.join(", ");
        println!("\nmuch less than expected: {names}. Lower the limits with --update.");
    }
    if exceeded.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nmore than expected, by over {:.0} % and {SLACK}: {}. If that is what it should cost:\n    \
         cargo run --release -p nvmf-benches --bin instructions -- --update\nand commit \
         benches/instructions.txt with the reason.",
        TOLERANCE * 100.0,
        exceeded.join(", ")
    );
    if !before.contains(&made_with) {
        println!("This is {made_with}; the file names another, which may count otherwise.");
    }
    Ok(ExitCode::FAILURE)
}

/// Prints what a case costs.
fn show(cli: &Cli, case: &Case, counts: &Counts, expected: Option<Cost>) {
    let Cost { copying, rest } = counts.cost;
    let shown = |value: fn(Cost) -> f64| expected.map_or(f64::NAN, value);
    println!(
        "{:<20} {copying:>10.0}  {:>10.0} {rest:>10.0}  {:>10.0} {:>10.0}",
        case.name,
        shown(|cost| cost.copying),
        shown(|cost| cost.rest),
        copying + rest,
    );
    if cli.functions {
        for (name, cost) in counts.functions.iter().take(FUNCTIONS) {
            println!("    {cost:>9.1}  {name}");
        }
    }
}

impl Cost {
    /// Whether either part is more than the tolerance allows.
    fn exceeds(self, limit: Self) -> bool {
        exceeds(self.copying, limit.copying) || exceeds(self.rest, limit.rest)
    }
}

fn exceeds(count: f64, expected: f64) -> bool {
    count > expected.mul_add(1.0 + TOLERANCE, SLACK)
}

fn header(made_with: &str) -> String {
    format!(
        "# Instructions per I/O of the target in user space: see `instructions --help`.\n\
         # case, in copies of memory, in the rest. Each may be exceeded by {:.0} % and {SLACK}.\n\
         # After an improvement, lower them with --update.\n\
         # Counted with {made_with}.\n",
        TOLERANCE * 100.0
    )
}

fn line(case: &Case, Cost { copying, rest }: Cost) -> String {
    format!("{} {copying:.0} {rest:.0}\n", case.name)
}

fn expected(file: &str, case: &Case) -> Option<Cost> {
    let mut lines = file.lines();
    let line = lines.find_map(|line| line.strip_prefix(case.name)?.strip_prefix(' '))?;
    let (copying, rest) = line.split_once(' ')?;
    Some(Cost {
        copying: copying.parse().ok()?,
        rest: rest.parse().ok()?,
    })
}

fn rustc_version() -> Result<String, Error> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("--version")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A folder for callgrind's files, which goes with this.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Error> {
        let folder: &Path = &std::env::temp_dir();
        let folder = folder.join(format!("nvmf-instructions-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over in the folder of temporary files does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_expected() {
        let cost = Cost {
            copying: 413.0,
            rest: 2455.0,
        };
        let file = header("rustc") + &line(&CASES[1], cost) + &line(&CASES[0], cost);
        assert_eq!(expected(&file, &CASES[0]), Some(cost));
        assert_eq!(expected(&file, &CASES[2]), None);
        assert!(!exceeds(1040.0, 1000.0) && exceeds(1080.0, 1000.0));
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

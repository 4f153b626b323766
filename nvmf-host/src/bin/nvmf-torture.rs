//! The malformed-traffic client.

use clap::Parser;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::torture::{CaseInfo, Options, Outcome, Torture, Verdict, cases};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

/// Plays a catalogue of hosts that break the rules against an NVMe/TCP target, prints what it
/// answers to each, and checks after each that it still serves others.
///
/// Without --write, nothing is written and cases that would are skipped:
///
///     nvmf-torture 192.0.2.7:4420
///     nvmf-torture 192.0.2.7:4420 --write --scratch 2048..4096
///
/// THE SCRATCH BLOCKS ARE OVERWRITTEN with --write. Do not point it at a target in production: it
/// is there to find out what breaks.
///
/// The exit status is 0 if the target was never harmed (with --strict: and violated nothing), 1 if
/// it was, 2 if the catalogue could not be played.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    /// Where the target listens.
    #[arg(required_unless_present = "list")]
    address: Option<SocketAddr>,
    /// NQN of the subsystem; by default the first that the discovery service at the address names.
    #[arg(long)]
    nqn: Option<String>,
    /// NQN of this host, for targets that have a list; by default a random one.
    #[arg(long)]
    hostnqn: Option<String>,
    /// Namespace; by default the first active one.
    #[arg(long)]
    nsid: Option<u32>,
    /// Allow writes to the scratch blocks.
    #[arg(long)]
    write: bool,
    /// Logical blocks that may be overwritten, FIRST..END, at least 64.
    #[arg(long, default_value = "0..64", value_parser = range)]
    scratch: Range<u64>,
    /// Only cases in whose name this text is.
    #[arg(long)]
    only: Option<String>,
    /// Only cases that are about this scenario of docs/reliability.md, 1 to 68.
    #[arg(long)]
    scenario: Option<u8>,
    /// Also wait for deadlines of the target; takes minutes.
    #[arg(long)]
    slow: bool,
    /// How long an answer may take before it counts as silence.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
    /// Print the catalogue and end.
    #[arg(long)]
    list: bool,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    /// Only what neither conforms nor is skipped.
    #[arg(long, short)]
    quiet: bool,
    /// Fail on violations, too.
    #[arg(long)]
    strict: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = |number: &str| number.trim().parse().map_err(|err| format!("{err}"));
    let (start, end) = text.split_once("..").ok_or("wants FIRST..END")?;
    Ok(parse(start)?..parse(end)?)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(is_well) => ExitCode::from(u8::from(!is_well)),
        Err(message) => {
            eprintln!("nvmf-torture: {message}");
            ExitCode::from(2)
        }
    }
}

fn nqn(name: Option<&String>) -> Result<Option<Nqn>, String> {
    let parse = |name: &String| Nqn::new(name).map_err(|reason| format!("{name:?}: {reason}"));
    name.map(parse).transpose()
}

/// Whether the target did well enough.
fn run(cli: &Cli) -> Result<bool, String> {
    let lost = |err| format!("standard output: {err}");
    let mut out = io::stdout();
    let Some(address) = cli.address.filter(|_| !cli.list) else {
        list(cli, &mut out).map_err(lost)?;
        return Ok(true);
    };
    let mut options = Options::new(address);
    options.subsystem = nqn(cli.nqn.as_ref())?;
    options.host = nqn(cli.hostnqn.as_ref())?;
    options.nsid = cli.nsid;
    options.scratch = cli.write.then(|| cli.scratch.clone());
    options.only = cli.only.clone();
    options.scenario = cli.scenario;
    options.slow = cli.slow;
    options.patience = Duration::from_millis(cli.patience);
    let mut counts: BTreeMap<Verdict, u32> = BTreeMap::new();
    let torture = Torture::begin(&options).map_err(|err| err.to_string())?;
    for outcome in torture {
        *counts.entry(outcome.verdict).or_default() += 1;
        let is_dull = matches!(outcome.verdict, Verdict::Conforms | Verdict::Skipped);
        if !(cli.quiet && is_dull) {
            print(cli, &outcome, &mut out).map_err(lost)?;
        }
    }
    if counts.is_empty() {
        return Err("no such case; --list names all".to_owned());
    }
    if !cli.json {
        let words = counts
            .iter()
            .map(|(verdict, count)| format!("{count} {verdict}"));
        writeln!(out, "{}", words.collect::<Vec<_>>().join(", ")).map_err(lost)?;
    }
    let is_none = |verdict| !counts.contains_key(&verdict);
    Ok(is_none(Verdict::Harmed) && (!cli.strict || is_none(Verdict::Violates)))
}

fn list(cli: &Cli, out: &mut impl Write) -> io::Result<()> {
    let wanted = |case: &CaseInfo| {
        let named = |text: &String| case.name.contains(text);
        let about = |scenario| case.scenarios.contains(&scenario);
        cli.only.as_ref().is_none_or(named) && cli.scenario.is_none_or(about)
    };
    for case in cases().iter().filter(|case| wanted(case)) {
        if cli.json {
            writeln!(out, "{{{}}}", fields(case))?;
        } else {
            writeln!(out, "{:3} {}: {}", case.number, case.name, case.sends)?;
            writeln!(out, "    {} [{}]", case.demands, case.source)?;
        }
    }
    Ok(())
}

fn print(cli: &Cli, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let (case, answer) = (&outcome.case, &outcome.answer);
    if cli.json {
        let verdict = json(&outcome.verdict.to_string());
        writeln!(
            out,
            "{{{},\"answer\":{},\"verdict\":{verdict}}}",
            fields(case),
            json(answer)
        )?;
        return Ok(());
    }
    writeln!(
        out,
        "{:9} {:3} {}: {answer}",
        outcome.verdict, case.number, case.name
    )?;
    if !matches!(outcome.verdict, Verdict::Conforms | Verdict::Skipped) {
        writeln!(out, "              sent: {}", case.sends)?;
        writeln!(
            out,
            "              wanted: {} [{}]",
            case.demands, case.source
        )?;
    }
    Ok(())
}

/// A case as fields of a JSON object.
fn fields(case: &CaseInfo) -> String {
    let scenarios: Vec<_> = case.scenarios.iter().map(ToString::to_string).collect();
    format!(
        "\"number\":{},\"name\":{},\"sends\":{},\"demands\":{},\"source\":{},\"scenarios\":[{}]",
        case.number,
        json(case.name),
        json(case.sends),
        json(&case.demands),
        json(case.source),
        scenarios.join(",")
    )
}

/// A JSON string.
fn json(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_json() {
        assert_eq!(json("a \"b\"\\\n"), r#""a \"b\"\\\u000a""#);
    }

    #[test]
    fn ranges() {
        assert_eq!(range("3..20"), Ok(3..20));
        assert!(range("3").is_err() && range("..").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

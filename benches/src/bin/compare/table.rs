//! The table of throughput and latency: target, stub and perhaps another target, in turns.

use crate::cases::{CASES, Case};
use crate::page::{Page, median};
use crate::servers::{Goal, Server};
use crate::{Cli, Setup};
use nvmf_benches::load::{Error, Load};
use nvmf_benches::report::Report;
use nvmf_benches::stub::{self, ClientOptions};

/// What is compared. Only the one with a client does anything.
#[derive(Debug)]
struct Servers {
    target: Server,
    /// The target without busy poll, if a case wants it.
    sleeper: Option<Server>,
    asleep: Server,
    spinning: Server,
}

/// One round's figures.
#[derive(Debug)]
struct Round {
    /// The target sleeps whenever it has nothing to do, and so has its stub to.
    sleeps: bool,
    target: Report,
    asleep: Report,
    spinning: Report,
    /// The stub that copies what is written.
    placing: Option<Report>,
    other: Option<Report>,
}

/// All rounds of a case.
#[derive(Debug)]
struct Row {
    name: &'static str,
    rounds: Vec<Round>,
}

/// Measures the cases whose names contain what the command line says, or all.
pub(crate) fn measure(setup: &Setup, page: &mut Page, only: &str) -> Result<(), Error> {
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(only))
        .collect();
    let sleeper = chosen.iter().any(|case| case.no_busy_poll);
    let servers = Servers {
        target: Server::nvmfd(setup, &[])?,
        sleeper: sleeper
            .then(|| Server::nvmfd(setup, &["--busy-poll", "0"]))
            .transpose()?,
        asleep: Server::stub(setup, false)?,
        spinning: Server::stub(setup, true)?,
    };
    for goal in [Some(&servers.target), servers.sleeper.as_ref()] {
        goal.map_or(Ok(()), |server| server.goal().fill(setup))?;
    }
    setup
        .against
        .as_ref()
        .map_or(Ok(()), |other| other.fill(setup))?;
    page.line(HEAD);
    let mut rows = Vec::new();
    for case in chosen {
        let row = row(setup, case, &servers)?;
        page.line(row.line());
        rows.push(row);
    }
    if let Some(other) = &setup.against {
        page.line(format!(
            "\nnvmfd and the target at {}, of the same rounds:\n",
            other.address
        ));
        page.line(OTHER_HEAD);
        for row in &rows {
            page.line(row.other_line());
        }
    }
    Ok(())
}

/// Whether the command line wants any row.
pub(crate) fn is_wanted(cli: &Cli) -> bool {
    CASES.iter().any(|case| case.name.contains(&cli.only))
}

fn row(setup: &Setup, case: &Case, servers: &Servers) -> Result<Row, Error> {
    let target = match &servers.sleeper {
        Some(sleeper) if case.no_busy_poll => sleeper,
        _ => &servers.target,
    };
    let mut rounds = Vec::new();
    for _ in 0..setup.rounds {
        rounds.push(Round {
            sleeps: case.no_busy_poll,
            target: load(setup, case, &target.goal())?,
            asleep: load_stub(setup, case, &servers.asleep, false)?,
            spinning: load_stub(setup, case, &servers.spinning, false)?,
            placing: case
                .write
                .then(|| load_stub(setup, case, &servers.spinning, true))
                .transpose()?,
            other: setup
                .against
                .as_ref()
                .map(|other| load(setup, case, other))
                .transpose()?,
        });
    }
    Ok(Row {
        name: case.name,
        rounds,
    })
}

fn load(setup: &Setup, case: &Case, goal: &Goal) -> Result<Report, Error> {
    let mut load = Load::connect(case.load(setup, goal))?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report)
}

fn load_stub(setup: &Setup, case: &Case, server: &Server, place: bool) -> Result<Report, Error> {
    let report = stub::load(&ClientOptions {
        address: server.address,
        shape: case.shape(place),
        depth: case.depth,
        connections: case.connections,
        spin: true,
        cpu: Some(setup.client_cpu),
        window: setup.window(Some(server.pid())),
    })?;
    Ok(report)
}

const HEAD: &str = "\
| case | nvmfd IOPS (min-max) | us: mean | p99 | CPU us per I/O | user/system % | nvmfd / stub \
| stub IOPS: asleep | spinning | placing, spinning | stub us: mean | p99 | stub CPU us, asleep |
|---|---|---|---|---|---|---|---|---|---|---|---|---|";

const OTHER_HEAD: &str = "\
| case | nvmfd IOPS | other IOPS (min-max) | nvmfd / other | us: mean, nvmfd | other | p99, nvmfd | other \
| CPU us per I/O, nvmfd | other | nvmfd / other |
|---|---|---|---|---|---|---|---|---|---|---|";

fn mean(report: &Report) -> f64 {
    report.latency.mean() / 1e3
}

fn p99(report: &Report) -> f64 {
    report.latency.per_mille(990) as f64 / 1e3
}

fn cpu(report: &Report) -> f64 {
    report.cpu_per_io().map_or(f64::NAN, |[busy, ..]| busy)
}

impl Round {
    /// The better of the stub's two modes, if both are like the target's.
    fn stub(&self) -> &Report {
        if self.sleeps || self.asleep.iops() > self.spinning.iops() {
            &self.asleep
        } else {
            &self.spinning
        }
    }
}

impl Row {
    fn median(&self, value: impl Fn(&Round) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(value).collect();
        median(&mut values)
    }

    /// The median of a participant's IOPS, its least and its most.
    fn iops(&self, report: impl Fn(&Round) -> Option<&Report>) -> String {
        let iops = |round: &Round| report(round).map_or(f64::NAN, Report::iops);
        let all = || self.rounds.iter().map(&iops);
        format!(
            "{:.0} ({:.0}-{:.0})",
            self.median(iops),
            all().fold(f64::INFINITY, f64::min),
            all().fold(0.0, f64::max)
        )
    }

    /// The shares of user and system time in the target's, over all rounds: the clock is coarse.
    fn split(&self) -> String {
        let sum = |index: usize| -> f64 {
            let times = self.rounds.iter().filter_map(|round| round.target.cpu);
            times
                .map(|cpu| [cpu.user, cpu.system][index].as_secs_f64())
                .sum()
        };
        let (user, system) = (sum(0), sum(1));
        let percent = |part: f64| part / (user + system) * 100.0;
        format!("{:.0}/{:.0}", percent(user), percent(system))
    }

    fn line(&self) -> String {
        let placing = |value: fn(&Report) -> f64| {
            self.median(|round| round.placing.as_ref().map_or(f64::NAN, value))
        };
        let ratio = |round: &Round| {
            let placing = round.placing.as_ref().map_or(f64::NAN, Report::iops);
            round.target.iops() / placing
        };
        let placing = match placing(Report::iops) {
            iops if iops.is_nan() => "-".to_owned(),
            iops => format!("{iops:.0} (nvmfd {:.2})", self.median(ratio)),
        };
        format!(
            "| {} | {} | {:.1} | {:.1} | {:.2} | {} | **{:.2}** | {:.0} | {:.0} | {placing} | {:.1} | {:.1} | {:.2} |",
            self.name,
            self.iops(|round| Some(&round.target)),
            self.median(|round| mean(&round.target)),
            self.median(|round| p99(&round.target)),
            self.median(|round| cpu(&round.target)),
            self.split(),
            self.median(|round| round.target.iops() / round.stub().iops()),
            self.median(|round| round.asleep.iops()),
            self.median(|round| round.spinning.iops()),
            self.median(|round| mean(round.stub())),
            self.median(|round| p99(round.stub())),
            // What a spinning server uses says nothing.
            self.median(|round| cpu(&round.asleep)),
        )
    }

    fn other_line(&self) -> String {
        let other = |value: fn(&Report) -> f64| {
            self.median(|round| round.other.as_ref().map_or(f64::NAN, value))
        };
        let ratio = |value: fn(&Report) -> f64| {
            let of =
                |round: &Round| value(&round.target) / round.other.as_ref().map_or(f64::NAN, value);
            self.median(of)
        };
        format!(
            "| {} | {:.0} | {} | **{:.2}** | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} |",
            self.name,
            self.median(|round| round.target.iops()),
            self.iops(|round| round.other.as_ref()),
            ratio(Report::iops),
            self.median(|round| mean(&round.target)),
            other(mean),
            self.median(|round| p99(&round.target)),
            other(p99),
            self.median(|round| cpu(&round.target)),
            other(cpu),
            ratio(cpu),
        )
    }
}

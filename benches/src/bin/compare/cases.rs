//! The table of throughput and latency.

use crate::Setup;
use crate::servers::Server;
use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::report::{Report, Window};
use nvmf_benches::stub::{self, ClientOptions, Shape};
use std::fmt;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    write: bool,
    size: u32,
    depth: u32,
    connections: u32,
    digests: bool,
    sq_flow_control: bool,
}

const READ: Case = Case {
    name: "",
    write: false,
    size: 4096,
    depth: 1,
    connections: 1,
    digests: false,
    sq_flow_control: false,
};
const WRITE: Case = Case {
    write: true,
    ..READ
};
const LARGE: Case = Case {
    size: 128 << 10,
    depth: 8,
    ..READ
};

/// The rows of the table.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "4 KiB random read, depth 1",
        ..READ
    },
    Case {
        name: "4 KiB random read, depth 32",
        depth: 32,
        ..READ
    },
    Case {
        name: "4 KiB random read, depth 32, SQ flow control",
        depth: 32,
        sq_flow_control: true,
        ..READ
    },
    Case {
        name: "4 KiB random read, depth 128",
        depth: 128,
        ..READ
    },
    Case {
        name: "4 KiB random write, depth 1",
        ..WRITE
    },
    Case {
        name: "4 KiB random write, depth 32",
        depth: 32,
        ..WRITE
    },
    Case {
        name: "4 KiB random write, depth 128",
        depth: 128,
        ..WRITE
    },
    Case {
        name: "128 KiB read, depth 8",
        ..LARGE
    },
    Case {
        name: "128 KiB write, depth 8",
        write: true,
        ..LARGE
    },
    Case {
        name: "4 KiB random read, depth 32, both digests",
        depth: 32,
        digests: true,
        ..READ
    },
    Case {
        name: "4 KiB random write, depth 32, both digests",
        depth: 32,
        digests: true,
        ..WRITE
    },
    Case {
        name: "128 KiB read, depth 8, both digests",
        digests: true,
        ..LARGE
    },
    Case {
        name: "128 KiB write, depth 8, both digests",
        write: true,
        digests: true,
        ..LARGE
    },
    Case {
        name: "4 KiB random read, 8 connections of depth 16",
        depth: 16,
        connections: 8,
        ..READ
    },
    Case {
        name: "4 KiB random read, 64 connections of depth 2",
        depth: 2,
        connections: 64,
        ..READ
    },
];

/// What is compared. Only the one with a client does anything.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) target: Server,
    pub(crate) asleep: Server,
    pub(crate) spinning: Server,
}

/// Writes the whole namespace, so that its memory is its own.
pub(crate) fn fill(setup: &Setup, target: &Server) -> Result<(), Error> {
    let window = window(setup, None);
    let options = LoadOptions {
        fill: true,
        size: 128 << 10,
        ..LoadOptions::new(target.address, window)
    };
    Load::connect(options)?.disconnect()
}

fn window(setup: &Setup, pid: Option<u32>) -> Window {
    Window {
        warm_up: setup.measured / 5,
        measured: setup.measured,
        pid,
    }
}

/// Measures a case in all rounds, target and stub in turn.
pub(crate) fn measure(setup: &Setup, case: &Case, servers: &Servers) -> Result<Row, Error> {
    let mut row = Row {
        name: case.name,
        rounds: Vec::new(),
    };
    for _ in 0..setup.rounds {
        let target = load_target(setup, case, &servers.target)?;
        let asleep = load_stub(setup, case, &servers.asleep)?;
        let spinning = load_stub(setup, case, &servers.spinning)?;
        row.rounds.push(Round {
            target,
            asleep,
            spinning,
        });
    }
    Ok(row)
}

fn load_target(setup: &Setup, case: &Case, target: &Server) -> Result<Report, Error> {
    let mut load = Load::connect(case_options(setup, case, target))?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report)
}

/// The load that a case means.
pub(crate) fn case_options(setup: &Setup, case: &Case, target: &Server) -> LoadOptions {
    LoadOptions {
        read_percent: if case.write { 0 } else { 100 },
        size: case.size,
        depth: case.depth,
        connections: case.connections,
        cpus: vec![setup.client_cpu],
        spin: true,
        header_digest: case.digests,
        data_digest: case.digests,
        sq_flow_control: case.sq_flow_control,
        ..LoadOptions::new(target.address, window(setup, Some(target.pid())))
    }
}

fn load_stub(setup: &Setup, case: &Case, server: &Server) -> Result<Report, Error> {
    let report = stub::load(&ClientOptions {
        address: server.address,
        shape: Shape {
            write: case.write,
            size: case.size,
            digests: case.digests,
            success: !case.sq_flow_control,
        },
        depth: case.depth,
        connections: case.connections,
        spin: true,
        cpu: Some(setup.client_cpu),
        window: window(setup, Some(server.pid())),
    })?;
    Ok(report)
}

/// One round's figures.
#[derive(Clone, Debug)]
struct Round {
    target: Report,
    asleep: Report,
    spinning: Report,
}

impl Round {
    /// Of the target's IOPS to those of the better stub.
    fn ratio(&self) -> f64 {
        self.target.iops() / self.asleep.iops().max(self.spinning.iops())
    }
}

/// A line of the table: all rounds of a case.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    rounds: Vec<Round>,
}

impl Row {
    /// The head of the table.
    pub(crate) const HEAD: &'static str = "\
| case | nvmfd IOPS (min-max) | stub IOPS: asleep | spinning | nvmfd / stub | nvmfd us: mean | p99 \
| stub us: mean | p99 | nvmfd CPU us per I/O | of it user | stub, asleep |
|---|---|---|---|---|---|---|---|---|---|---|---|";

    fn median(&self, value: impl Fn(&Round) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(value).collect();
        median(&mut values)
    }
}

/// The middle one; of an even number, the higher of the two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = |report: &Report| report.latency.mean() / 1e3;
        let p99 = |report: &Report| report.latency.per_mille(990) as f64 / 1e3;
        let cpu = |report: &Report| report.cpu_per_io().unwrap_or([f64::NAN; 3]);
        let iops = || self.rounds.iter().map(|round| round.target.iops());
        let better = |round: &Round| {
            let asleep = round.asleep.iops() > round.spinning.iops();
            if asleep {
                round.asleep.clone()
            } else {
                round.spinning.clone()
            }
        };
        write!(
            f,
            "| {} | {:.0} ({:.0}-{:.0}) | {:.0} | {:.0} | **{:.2}** | {:.1} | {:.1} | {:.1} | {:.1} \
             | {:.2} | {:.2} | {:.2} |",
            self.name,
            self.median(|round| round.target.iops()),
            iops().fold(f64::INFINITY, f64::min),
            iops().fold(0.0, f64::max),
            self.median(|round| round.asleep.iops()),
            self.median(|round| round.spinning.iops()),
            self.median(Round::ratio),
            self.median(|round| mean(&round.target)),
            self.median(|round| p99(&round.target)),
            self.median(|round| mean(&better(round))),
            self.median(|round| p99(&better(round))),
            self.median(|round| cpu(&round.target)[0]),
            self.median(|round| cpu(&round.target)[1]),
            // What a spinning server uses says nothing.
            self.median(|round| cpu(&round.asleep)[0]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 4.0);
        assert!(median(&mut []).is_nan());
    }
}

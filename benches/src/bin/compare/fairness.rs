//! A reader with one small I/O at a time beside a connection that floods the same reactor.

use crate::Setup;
use crate::page::Page;
use crate::servers::Server;
use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::report::Report;
use rustix::process::setpriority_process;
use std::thread;

/// The least priority: the flood's client is not to keep the reader's client from its processor.
const NICE: i32 = 19;

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    let server = Server::nvmfd(setup, &[])?;
    server.goal().fill(setup)?;
    // Both clients are on one processor and sleep; else the one that spins would starve the other.
    let reader = LoadOptions {
        depth: 1,
        spin: false,
        ..server.goal().load(setup)
    };
    let flood = LoadOptions {
        depth: 128,
        size: 128 << 10,
        read_percent: 0,
        spin: false,
        ..server.goal().load(setup)
    };
    let (mut alone, mut beside, mut flood_alone, mut flood_beside) = (
        Report::default(),
        Report::default(),
        Report::default(),
        Report::default(),
    );
    for _ in 0..setup.rounds {
        add(&mut alone, &run(reader.clone())?);
        add(&mut flood_alone, &run(flood.clone())?);
        let (small, large) = thread::scope(|scope| {
            let large = scope.spawn(|| {
                setpriority_process(None, NICE)?;
                run(flood.clone())
            });
            let small = run(reader.clone());
            (small, large.join())
        });
        add(&mut beside, &small?);
        add(&mut flood_beside, &large.map_err(|_| "a thread panicked")??);
    }
    let mean = alone.latency.mean() / 1e3;
    let p99 = |report: &Report| report.latency.per_mille(990) as f64 / 1e3;
    let one = flood_alone.cpu_per_io().map_or(f64::NAN, |[busy, ..]| busy);
    let fair = mean + one;
    page.line("| 4 KiB reads at depth 1 | us: mean | p99 | p99 / fair share time | flood of 128 KiB writes at depth 128 |\n|---|---|---|---|---|");
    page.line(format!(
        "| alone | {mean:.1} | {:.1} | | alone {:.0} MiB/s |",
        p99(&alone),
        flood_alone.mib_per_second()
    ));
    page.line(format!(
        "| beside the flood | {:.1} | {:.1} | **{:.2}** | beside the reader {:.0} MiB/s |",
        beside.latency.mean() / 1e3,
        p99(&beside),
        p99(&beside) / fair,
        flood_beside.mib_per_second(),
    ));
    page.line(format!(
        "\nThe fair share time is {fair:.1} us: if the reactor took one I/O of each connection in turn, a read would take its \
         own time alone ({mean:.1}) and wait for one write of the flood ({one:.1} of processor time).",
    ));
    Ok(())
}

/// Adds the figures of a further round.
fn add(all: &mut Report, round: &Report) {
    all.latency.merge(&round.latency);
    all.bytes += round.bytes;
    all.elapsed += round.elapsed;
    if let Some(cpu) = round.cpu {
        let sum = all.cpu.get_or_insert_default();
        sum.busy += cpu.busy;
        sum.user += cpu.user;
        sum.system += cpu.system;
    }
}

fn run(options: LoadOptions) -> Result<Report, Error> {
    let mut load = Load::connect(options)?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report)
}

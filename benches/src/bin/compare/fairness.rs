//! A reader with one small I/O at a time beside a connection that floods the same reactor.

use crate::Setup;
use crate::page::{Page, median};
use crate::servers::Server;
use nvmf_benches::load::{Error, Load, LoadOptions};
use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Before the reader begins.
const HEAD_START: Duration = Duration::from_millis(500);

/// Socket buffers of the flood's client. It shares a processor with the reader's, and a kernel
/// without preemption lets nobody else run while it copies a send buffer full of data: with the
/// system's own, megabytes.
const SEND_BUFFERS: &[(&str, &[&str])] = &[
    ("sends of 256 KiB", &["--send-buffer", "128k"]),
    ("sends of any size", &[]),
];

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    let server = Server::nvmfd(setup, &[])?;
    server.goal().fill(setup)?;
    page.line(
        "| flood: 128 KiB writes, depth 128 | MiB/s alone | beside the reader | 4 KiB reads, depth 1, us: mean alone | p99 \
         | beside the flood: mean | p99 | fair share time | p99 / fair share time |\n|---|---|---|---|---|---|---|---|---|",
    );
    for (name, options) in SEND_BUFFERS {
        let mut figures: [Vec<f64>; 8] = Default::default();
        for _ in 0..setup.few() {
            let (mean, p99) = reader(setup, &server)?;
            let Some(flood) = flood(setup, &server, options)? else {
                page.line("\nnot measured: there is no chrt to run the flood with");
                return Ok(());
            };
            let (alone, write) = end(flood)?;
            let flood = self::flood(setup, &server, options)?;
            thread::sleep(HEAD_START);
            let (mean_beside, p99_beside) = reader(setup, &server)?;
            let (beside, _) = flood.map_or(Ok((f64::NAN, f64::NAN)), end)?;
            let fair = mean + write;
            let round = [
                alone,
                beside,
                mean,
                p99,
                mean_beside,
                p99_beside,
                fair,
                p99_beside / fair,
            ];
            for (figure, value) in figures.iter_mut().zip(round) {
                figure.push(value);
            }
        }
        let [
            alone,
            beside,
            mean,
            p99,
            mean_beside,
            p99_beside,
            fair,
            ratio,
        ] = figures.map(|mut figure| median(&mut figure));
        page.line(format!(
            "| {name} | {alone:.0} | {beside:.0} | {mean:.1} | {p99:.1} | {mean_beside:.1} | {p99_beside:.1} | {fair:.1} | **{ratio:.2}** |"
        ));
    }
    page.line(
        "\nThe fair share time is what a read would take if the reactor took one I/O of each connection in turn: its mean alone, and \
         the processor time of one write of the flood. Both clients are on one processor and sleep while they wait; the flood's is \
         scheduled as idle. What its sends keep the reader's from its processor counts as the reader's latency.",
    );
    Ok(())
}

/// Mean and p99 of 4 KiB reads at depth 1, microseconds.
fn reader(setup: &Setup, server: &Server) -> Result<(f64, f64), Error> {
    let mut load = Load::connect(LoadOptions {
        depth: 1,
        spin: false,
        ..server.goal().load(setup)
    })?;
    let latency = load.run()?.latency;
    load.disconnect()?;
    Ok((latency.mean() / 1e3, latency.per_mille(990) as f64 / 1e3))
}

/// A process that floods the server for longer than the reader takes; nothing without `chrt`.
fn flood(setup: &Setup, server: &Server, options: &[&str]) -> Result<Option<Child>, Error> {
    let seconds = (HEAD_START + setup.measured * 6 / 5).as_secs() + 1;
    let child = Command::new("chrt")
        .args(["--idle", "0"])
        .arg(setup.stub.with_file_name("loadgen"))
        .arg(server.address.to_string())
        .args("--reads 0 --size 128k --depth 128 --warm-up 0 --json".split(' '))
        .args(["--region", &setup.ramdisk.to_string()])
        .args(["--cpu", &setup.client_cpu.to_string()])
        .args(["--seconds", &seconds.to_string()])
        .args(["--pid", &server.pid().to_string()])
        .args(options)
        .stdout(Stdio::piped())
        .spawn();
    match child {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a flood; its MiB/s and the server's processor time per write, microseconds.
fn end(flood: Child) -> Result<(f64, f64), Error> {
    let output = flood.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |name: &str| {
        let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
        rest.split([',', '}']).next()?.parse::<f64>().ok()
    };
    let figures = value("mib_s").zip(value("cpu_us"));
    figures.ok_or_else(|| format!("loadgen says: {text}").into())
}

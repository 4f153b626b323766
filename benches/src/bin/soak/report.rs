//! What a run has come to, in Markdown.

use crate::gauge::{Reading, growth};
use crate::run::Run;
use crate::stage::Stage;
use std::fmt::Write;

/// The report.
pub(crate) fn markdown(
    run: &Run,
    stage: &Stage,
    daemons: &[String],
    readings: &[Reading],
) -> String {
    let mut text = String::new();
    // A String takes everything.
    let _ = write_all(&mut text, run, stage, daemons, readings);
    text
}

fn millis(nanos: u64) -> String {
    format!("{:.1}", nanos as f64 / 1e6)
}

fn write_all(
    out: &mut String,
    run: &Run,
    stage: &Stage,
    daemons: &[String],
    readings: &[Reading],
) -> std::fmt::Result {
    let failures = run.failures();
    let verdict = match failures.len() {
        0 => "passed".to_owned(),
        n => format!("FAILED, {n} failures"),
    };
    let minutes = run.began.elapsed().as_secs_f64() / 60.0;
    writeln!(out, "# Soak: {verdict}\n")?;
    writeln!(
        out,
        "{minutes:.1} minutes, seed {}, blocks of {} bytes; {}.\n",
        run.seed,
        stage.block_size,
        stage.devices.join(", ")
    )?;
    for failure in &failures {
        writeln!(out, "- {failure}")?;
    }
    if !failures.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "| what | how often |\n|---|---:|")?;
    for (what, n) in run.counts() {
        match what.strip_suffix(", ns") {
            Some(what) => writeln!(out, "| {what} | {} ms |", millis(n))?,
            None => writeln!(out, "| {what} | {n} |")?,
        }
    }
    writeln!(
        out,
        "\nNo answer may take longer than {:?}.\n\n| latency, ms | number | median | 99 % | 99.9 % | longest |\n|---|---:|---:|---:|---:|---:|",
        run.slow
    )?;
    for (what, times) in run.latencies() {
        writeln!(
            out,
            "| {what} | {} | {} | {} | {} | {} |",
            times.count(),
            millis(times.per_mille(500)),
            millis(times.per_mille(990)),
            millis(times.per_mille(999)),
            millis(times.max())
        )?;
    }
    write_usage(out, daemons, readings)
}

fn write_usage(out: &mut String, daemons: &[String], readings: &[Reading]) -> std::fmt::Result {
    writeln!(
        out,
        "\nWhat the daemon had at quiet points, when nobody was connected:\n\n| minute | daemon | RSS, KiB | descriptors | threads | settled after, ms |\n|---:|---:|---:|---:|---:|---:|"
    )?;
    for reading in readings {
        writeln!(
            out,
            "| {:.1} | {} | {} | {} | {} | {} |",
            reading.at.as_secs_f64() / 60.0,
            reading.run / 2 + 1,
            reading.usage.resident >> 10,
            reading.usage.descriptors,
            reading.usage.threads,
            reading.settled.as_millis()
        )?;
    }
    for daemon in crate::gauge::by_daemon(readings) {
        if let (Some(growth), Some(first), Some(last)) =
            (growth(daemon), daemon.first(), daemon.last())
        {
            writeln!(
                out,
                "\nDaemon {}: {growth} bytes more resident in the last third of {} quiet points than in the middle third, over {:.0} minutes.",
                first.run / 2 + 1,
                daemon.len(),
                last.at.saturating_sub(first.at).as_secs_f64() / 60.0
            )?;
        }
    }
    if !daemons.is_empty() {
        writeln!(out, "\nDaemons:\n")?;
    }
    for (number, options) in (1..).zip(daemons) {
        writeln!(out, "{number}. `{options}`")?;
    }
    Ok(())
}

//! nvmfd on a file, and fio on the same file.

use crate::Setup;
use crate::page::{Page, median};
use crate::servers::{Server, nvmfd_options};
use nvmf_benches::load::{Error, Load, LoadOptions};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

/// Bytes that are written to the file at once.
const PIECE: usize = 1 << 20;

/// A file full of data, which goes with this.
#[derive(Debug)]
pub(crate) struct DiskFile(PathBuf);

impl DiskFile {
    /// A file of the RAM disk's size.
    pub(crate) fn new(setup: &Setup) -> Result<Self, Error> {
        let path = setup
            .folder
            .join(format!("nvmf-compare-{}", std::process::id()));
        let failed = |error| format!("{}: {error}", path.display());
        let mut file = File::create_new(&path).map_err(failed)?;
        let disk = Self(path.clone());
        let piece: Vec<u8> = (0..=u8::MAX).cycle().take(PIECE).collect();
        for _ in 0..setup.ramdisk / PIECE as u64 {
            file.write_all(&piece).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        Ok(disk)
    }

    /// As nvmfd wants it named.
    pub(crate) fn device(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        // If it has gone already, all the better.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line(
        "| 4 KiB random reads of a file | fio, io_uring: IOPS | nvmfd, `--io-engine auto`: IOPS | nvmfd / fio \
         | nvmfd, `--io-engine threads`: IOPS | nvmfd / fio |\n|---|---|---|---|---|---|",
    );
    let file = DiskFile::new(setup)?;
    let mut without_fio = false;
    for (name, direct) in [("O_DIRECT", true), ("buffered", false)] {
        for depth in [32, 128] {
            let mut figures: [Vec<f64>; 5] = Default::default();
            for _ in 0..setup.rounds {
                let fio = fio(setup, &file, direct, depth)?;
                without_fio |= fio.is_none();
                let fio = fio.unwrap_or(f64::NAN);
                let auto = nvmfd(setup, &file, direct, "auto", depth)?;
                let threads = nvmfd(setup, &file, direct, "threads", depth)?;
                let round = [fio, auto, auto / fio, threads, threads / fio];
                for (figure, value) in figures.iter_mut().zip(round) {
                    figure.push(value);
                }
            }
            let [fio, auto, auto_ratio, threads, threads_ratio] =
                figures.map(|mut figure| median(&mut figure));
            page.line(format!(
                "| {name}, depth {depth} | {fio:.0} | {auto:.0} | **{auto_ratio:.2}** | {threads:.0} | {threads_ratio:.2} |"
            ));
        }
    }
    if without_fio {
        page.line("\nfio is not installed: there is nothing to compare with.");
    }
    Ok(())
}

/// IOPS of an nvmfd of its own: a file is served by one at a time.
fn nvmfd(
    setup: &Setup,
    file: &DiskFile,
    direct: bool,
    engine: &str,
    depth: u32,
) -> Result<f64, Error> {
    let more = [
        "--direct",
        if direct { "on" } else { "off" },
        "--io-engine",
        engine,
    ];
    let server = Server::nvmfd_with(setup, &nvmfd_options(setup), &more, &[file.device()])?;
    let mut load = Load::connect(LoadOptions {
        depth,
        ..server.goal().load(setup)
    })?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report.iops())
}

/// What fio gets on the servers' processor; nothing if there is no fio.
fn fio(setup: &Setup, file: &DiskFile, direct: bool, depth: u32) -> Result<Option<f64>, Error> {
    let window = setup.window(None);
    let output = Command::new("fio")
        .args([
            "--name=compare",
            "--ioengine=io_uring",
            "--rw=randread",
            "--bs=4k",
        ])
        .args([
            "--norandommap",
            "--randrepeat=0",
            "--time_based",
            "--invalidate=0",
        ])
        .args(["--output-format=terse", "--terse-version=3"])
        .arg(format!("--filename={}", file.0.display()))
        .arg(format!("--direct={}", u8::from(direct)))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--cpus_allowed={}", setup.server_cpu))
        .arg(format!("--ramp_time={}ms", window.warm_up.as_millis()))
        .arg(format!("--runtime={}ms", window.measured.as_millis()))
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    read_iops(&text).map(Some).ok_or_else(|| {
        let err = String::from_utf8_lossy(&output.stderr);
        format!("fio says: {text}{err}").into()
    })
}

/// The eighth field of fio's terse format, version 3.
fn read_iops(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("3;"))?;
    line.split(';').nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fio() {
        let text = "note\n3;fio-3.33;compare;0;0;4000;400000;100000;10;0\n";
        assert_eq!(read_iops(text), Some(100_000.0));
        assert_eq!(read_iops("fio: failed"), None);
    }
}

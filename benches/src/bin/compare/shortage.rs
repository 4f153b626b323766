//! Large I/O with little memory: whether it makes progress, fairly and without growth.

use crate::Setup;
use crate::files::DiskFile;
use crate::page::{Page, mib};
use crate::servers::{Server, nvmfd_options};
use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::system::{peak_bytes, reset_peak, resident_bytes};

const CONNECTIONS: u32 = 4;
const DEPTH: u32 = 128;
const SIZE: u32 = 1 << 20;
const BUFFERS: &str = "64m";

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line(format!(
        "| {CONNECTIONS} connections, each with depth {DEPTH} of 1 MiB; `--buffers {BUFFERS}` | MiB/s | I/Os per connection \
         | least to most | resident before | most meanwhile |\n|---|---|---|---|---|---|"
    ));
    let file = DiskFile::new(setup)?;
    let ram = format!("ramdisk:{}", setup.ramdisk);
    for (name, device) in [("RAM disk", ram), ("file", file.device())] {
        let options = nvmfd_options(setup);
        let server = Server::nvmfd_with(setup, &options, &["--buffers", BUFFERS], &[device])?;
        server.goal().fill(setup)?;
        for (kind, read_percent) in [("reads", 100), ("writes", 0)] {
            let mut load = Load::connect(LoadOptions {
                connections: CONNECTIONS,
                depth: DEPTH,
                size: SIZE,
                read_percent,
                ..server.goal().load(setup)
            })?;
            let before = resident_bytes(server.pid())?;
            reset_peak(server.pid())?;
            let report = load.run()?;
            let peak = peak_bytes(server.pid())?;
            let ios = load.ios_per_connection();
            load.disconnect()?;
            let least = ios.iter().min().copied().unwrap_or(0);
            let most = ios.iter().max().copied().unwrap_or(0);
            let ios: Vec<String> = ios.iter().map(u64::to_string).collect();
            page.line(format!(
                "| {name}, {kind} | {:.0} | {} | **{:.2}** | {:.1} MiB | {:.1} MiB |",
                report.mib_per_second(),
                ios.join(", "),
                least as f64 / most.max(1) as f64,
                mib(before),
                mib(peak),
            ));
        }
    }
    Ok(())
}

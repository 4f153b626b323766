//! What an I/O costs with more connections, more namespaces and more reactors.

use crate::Setup;
use crate::cases::READ_32;
use crate::page::{Page, median};
use crate::servers::{Server, nvmfd_options};
use nvmf_benches::load::{Error, Load, LoadOptions};
use nvmf_benches::report::Report;
use nvmf_benches::stub::{self, ClientOptions};
use nvmf_benches::system::threads_named;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// Connections, and those of them that are used.
const CONNECTIONS: &[(u32, u32)] = &[
    (1, 1),
    (64, 1),
    (64, 16),
    (1024, 1),
    (1024, 64),
    (1024, 256),
    (1024, 1024),
];
/// Outstanding I/Os on each connection that is used.
const DEPTH: u32 = 32;
const NAMESPACES: u64 = 4096;

/// Measures all of it.
pub(crate) fn measure(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    connections(setup, page)?;
    page.line("");
    namespaces(setup, page)?;
    page.line("");
    reactors(setup, page)
}

fn busy(report: &Report) -> f64 {
    report.cpu_per_io().map_or(f64::NAN, |[busy, ..]| busy)
}

fn run(options: LoadOptions) -> Result<Report, Error> {
    let mut load = Load::connect(options)?;
    let report = load.run()?;
    load.disconnect()?;
    Ok(report)
}

/// Processor time per I/O by the number of connections, of nvmfd and of the stub, which has the
/// active ones only.
fn connections(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line(format!(
        "| 4 KiB random reads, depth {DEPTH} on each active connection: connections | active | IOPS \
         | nvmfd CPU us per I/O | to 1 connection | stub CPU us per I/O (active ones only) | to 1 connection |\n\
         |---|---|---|---|---|---|---|"
    ));
    let server = Server::nvmfd(setup, &[])?;
    let stub = Server::stub(setup, false)?;
    server.goal().fill(setup)?;
    let mut first = None;
    for &(connections, active) in CONNECTIONS {
        let (mut iops, mut nvmfd_cpu, mut stub_cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.few() {
            let report = run(LoadOptions {
                depth: DEPTH,
                connections: active,
                idle: connections - active,
                ..server.goal().load(setup)
            })?;
            iops.push(report.iops());
            nvmfd_cpu.push(busy(&report));
            stub_cpu.push(busy(&stub::load(&ClientOptions {
                address: stub.address,
                shape: READ_32.shape(false),
                depth: DEPTH,
                connections: active,
                spin: true,
                cpu: Some(setup.client_cpu),
                window: setup.window(Some(stub.pid())),
            })?));
        }
        let (nvmfd_cpu, stub_cpu) = (median(&mut nvmfd_cpu), median(&mut stub_cpu));
        let (one, stub_one) = *first.get_or_insert((nvmfd_cpu, stub_cpu));
        page.line(format!(
            "| {connections} | {active} | {:.0} | {nvmfd_cpu:.2} | **{:.2}** | {stub_cpu:.2} | {:.2} |",
            median(&mut iops),
            nvmfd_cpu / one,
            stub_cpu / stub_one
        ));
    }
    Ok(())
}

/// One namespace; the same among many small ones that are not used; and many that are all used.
fn namespaces(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line(
        "| 4 KiB random reads, depth 32: namespaces | used | IOPS | CPU us per I/O | to 1 namespace |\n\
         |---|---|---|---|---|",
    );
    let disk = |bytes: u64| format!("ramdisk:{bytes}");
    let small = disk(setup.ramdisk / NAMESPACES);
    let one = vec![disk(setup.ramdisk)];
    let mut among = vec![small.clone(); usize::try_from(NAMESPACES)?];
    let many = among.clone();
    among[0].clone_from(&one[0]);
    let mut figures = Vec::new();
    for (devices, used) in [(one, 1), (among, 1), (many, u32::try_from(NAMESPACES)?)] {
        let server = Server::nvmfd_with(setup, &nvmfd_options(setup), &[], &devices)?;
        let options = LoadOptions {
            namespaces: used,
            ..server.goal().load(setup)
        };
        let filled = LoadOptions {
            fill: true,
            size: 64 << 10,
            ..options.clone()
        };
        Load::connect(filled)?.disconnect()?;
        figures.push((server, options, devices.len(), Vec::new(), Vec::new()));
    }
    for _ in 0..setup.few() {
        for (_, options, _, iops, cpu) in &mut figures {
            let report = run(options.clone())?;
            iops.push(report.iops());
            cpu.push(busy(&report));
        }
    }
    let mut base = None;
    for (_, options, count, iops, cpu) in &mut figures {
        let cpu = median(cpu);
        let ratio = cpu / *base.get_or_insert(cpu);
        let (used, iops) = (options.namespaces, median(iops));
        page.line(format!(
            "| {count} | {used} | {iops:.0} | {cpu:.2} | **{ratio:.2}** |"
        ));
    }
    Ok(())
}

/// A reactor and its client share a processor; then two pairs on two. Nothing spins.
fn reactors(setup: &Setup, page: &mut Page) -> Result<(), Error> {
    page.line(
        "| 4 KiB random reads, depth 32 per connection; each reactor shares a processor with its client, nobody spins \
         | IOPS | CPU us per I/O |\n|---|---|---|",
    );
    let cpus = [setup.server_cpu, setup.client_cpu];
    let mut medians = Vec::new();
    let servers = [
        Server::nvmfd(setup, &["--busy-poll", "0"])?,
        Server::nvmfd(setup, &["--busy-poll", "0", "--threads", "2"])?,
    ];
    for (server, count) in servers.iter().zip(1..) {
        server.goal().fill(setup)?;
        let threads = threads_named(server.pid(), "nvmf-reactor-")?;
        if threads.len() != count {
            return Err(format!("{} reactors instead of {count}", threads.len()).into());
        }
        for (thread, &cpu) in threads.into_iter().zip(&cpus) {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(Pid::from_raw(thread), &set)?;
        }
    }
    let mut figures = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for _ in 0..setup.few() {
        for ((server, count), (iops, cpu)) in servers.iter().zip(1_u32..).zip(&mut figures) {
            let report = run(LoadOptions {
                connections: count,
                threads: count as usize,
                cpus: cpus.to_vec(),
                spin: false,
                ..server.goal().load(setup)
            })?;
            iops.push(report.iops());
            cpu.push(busy(&report));
        }
    }
    for (count, (iops, cpu)) in (1..).zip(&mut figures) {
        let iops = median(iops);
        medians.push(iops);
        let name = if count == 1 {
            "one reactor"
        } else {
            "two reactors"
        };
        page.line(format!("| {name} | {iops:.0} | {:.2} |", median(cpu)));
    }
    page.line(format!(
        "| two to one | **{:.2}** | |",
        medians[1] / medians[0]
    ));
    Ok(())
}

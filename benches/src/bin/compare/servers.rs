//! The processes that are measured.

use crate::Setup;
use nvmf_benches::load::{Error, LoadOptions};
use nvmf_benches::report::Window;
use nvmf_benches::system::pin;
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// From starting the process to its saying that it listens.
    pub(crate) started_within: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a load goes: a server of ours, or somebody else's.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    pub(crate) address: SocketAddr,
    /// By default the first subsystem that the discovery service at the address names.
    pub(crate) nqn: Option<String>,
    /// The process whose processor time counts.
    pub(crate) pid: Option<u32>,
}

impl Goal {
    /// A load of 4 KiB random reads at depth 32 by a client that spins on its own processor.
    pub(crate) fn load(&self, setup: &Setup) -> LoadOptions {
        LoadOptions {
            subsystem: self.nqn.clone(),
            region: Some(setup.ramdisk),
            cpus: vec![setup.client_cpu],
            spin: true,
            ..LoadOptions::new(self.address, setup.window(self.pid))
        }
    }

    /// Writes the whole region, so that its memory is its own.
    pub(crate) fn fill(&self, setup: &Setup) -> Result<(), Error> {
        let options = LoadOptions {
            fill: true,
            size: 128 << 10,
            ..self.load(setup)
        };
        nvmf_benches::load::Load::connect(options)?.disconnect()
    }
}

impl Setup {
    /// How long a measurement takes.
    pub(crate) fn window(&self, pid: Option<u32>) -> Window {
        Window {
            warm_up: self.measured / 5,
            measured: self.measured,
            pid,
        }
    }
}

/// Builds nvmfd, the stub and loadgen in this workspace; the paths of the first two.
pub(crate) fn build() -> Result<(PathBuf, PathBuf), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "nvmfd",
            "--package",
            "nvmf-benches",
        ])
        .args(["--bin", "nvmfd", "--bin", "stub", "--bin", "loadgen"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .status()?;
    if !status.success() {
        return Err("cargo cannot build nvmfd and the stub".into());
    }
    let this = std::env::current_exe()?;
    let folder = this.parent().ok_or("no folder of binaries")?;
    // Also right if this very program was built without optimization.
    let release = folder.with_file_name("release");
    Ok((release.join("nvmfd"), release.join("stub")))
}

/// What nvmfd is started with besides its port and devices, unless `more` says otherwise.
pub(crate) fn nvmfd_options(setup: &Setup) -> Vec<String> {
    let options = "--threads 1 --block-size 4k".split(' ').map(str::to_owned);
    options.chain(setup.nvmfd_args.iter().cloned()).collect()
}

impl Server {
    /// nvmfd with a RAM disk, and more options.
    pub(crate) fn nvmfd(setup: &Setup, more: &[&str]) -> Result<Self, Error> {
        let disk = format!("ramdisk:{}", setup.ramdisk);
        Self::nvmfd_with(setup, &nvmfd_options(setup), more, &[disk])
    }

    /// nvmfd with devices, and options that come last.
    pub(crate) fn nvmfd_with(
        setup: &Setup,
        options: &[String],
        more: &[&str],
        devices: &[String],
    ) -> Result<Self, Error> {
        let mut command = Command::new(&setup.nvmfd);
        command
            .args(["--bind", "127.0.0.1", "--port", "0"])
            .args(["--discovery-port", "none"])
            .args(options)
            .args(more)
            .args(devices)
            .env("RUST_LOG", "warn");
        Self::start(setup, command, "nvmfd: serving")
    }

    /// The stub, asleep between requests or spinning.
    pub(crate) fn stub(setup: &Setup, spin: bool) -> Result<Self, Error> {
        let mut command = Command::new(&setup.stub);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--region"])
            .arg(setup.ramdisk.to_string());
        if spin {
            command.arg("--spin");
        }
        Self::start(setup, command, "serving")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn goal(&self) -> Goal {
        Goal {
            address: self.address,
            nqn: None,
            pid: Some(self.pid()),
        }
    }

    /// Starts a server on its processor and reads what it prints up to the line `ready`; one line
    /// before it says "listening on ADDRESS".
    fn start(setup: &Setup, mut command: Command, ready: &str) -> Result<Self, Error> {
        let name = command.get_program().to_string_lossy().into_owned();
        // A process runs where the thread that starts it may run.
        let everywhere = sched_getaffinity(None)?;
        pin(setup.server_cpu)?;
        let before = Instant::now();
        let child = command.stdout(Stdio::piped()).spawn();
        sched_setaffinity(None, &everywhere)?;
        let mut child = child.map_err(|error| format!("{name}: {error}"))?;
        let out = child.stdout.take().ok_or("no standard output")?;
        let mut address = None;
        for line in BufReader::new(out).lines() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("listening on ") {
                address = rest.split(' ').next().and_then(|text| text.parse().ok());
            }
            if line == ready {
                let address = address.ok_or("the server names no address")?;
                return Ok(Self {
                    child,
                    address,
                    started_within: before.elapsed(),
                });
            }
        }
        let _ = child.wait();
        Err(format!("{name} has ended before it listened").into())
    }
}

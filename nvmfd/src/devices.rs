//! The namespaces: what the command line or the operator names, opened.

use crate::Failure;
use crate::cli::{Cli, Device};
use crate::identity::Machine;
use nvmf_target::Target;
use nvmf_target::ns::{
    FileBackend, FileEngine, FileId, FileNamespace, FileOptions, Inline, Namespace, RamDisk,
    ReadOnly, WorkerPool,
};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long requests of a removed namespace may take before its device counts as still in use,
/// and how often that is looked at.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
const CLOSE_STEP: Duration = Duration::from_millis(1);

/// How long a file or device that is in use may take to be free: one that a killed daemon has served
/// is when the kernel has finished what was under way.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// What all namespaces have in common, and those that there are.
pub(crate) struct Devices {
    machine: Machine,
    nqn: String,
    block_size: Option<u32>,
    options: FileOptions,
    engine: FileEngine,
    pool: Arc<WorkerPool>,
    /// RAM disks that there have been: the next one's identity is its number.
    ram_disks: u32,
    open: BTreeMap<u32, Open>,
}

/// An opened device.
struct Open {
    /// As the operator would write it.
    name: String,
    namespace: Arc<ReadOnly>,
    /// For what only files and block devices have.
    file: Option<Arc<FileBackend>>,
}

impl Devices {
    /// None yet, for a subsystem `nqn` with the options of the command line. `pool` reads and
    /// writes files where io_uring does not.
    pub(crate) fn new(cli: &Cli, machine: Machine, nqn: &str, pool: &Arc<WorkerPool>) -> Self {
        let mut options = FileOptions::default();
        options.block_size = cli.block_size;
        options.read_only = cli.read_only;
        options.direct = cli.direct.into();
        options.wait = OPEN_WITHIN;
        Self {
            machine,
            nqn: nqn.to_owned(),
            block_size: cli.block_size,
            options,
            engine: cli.io_engine.into(),
            pool: Arc::clone(pool),
            ram_disks: 0,
            open: BTreeMap::new(),
        }
    }

    /// Opens a device to be namespace `nsid`.
    ///
    /// # Errors
    /// If the NSID is taken, the device is served already, or it cannot be opened.
    pub(crate) fn open(&mut self, nsid: u32, device: &Device) -> Result<(), Failure> {
        let open = self.open_new(nsid, device)?;
        self.keep(nsid, open);
        Ok(())
    }

    fn keep(&mut self, nsid: u32, open: Open) {
        self.ram_disks += u32::from(open.file.is_none());
        self.open.insert(nsid, open);
    }

    fn open_new(&self, nsid: u32, device: &Device) -> Result<Open, Failure> {
        if let Some(other) = self.open.get(&nsid) {
            return Err(Failure::Usage(format!(
                "namespace {nsid} is there already: {}",
                other.name
            )));
        }
        let name = device.to_string();
        match device {
            Device::RamDisk { bytes } => self.open_ram_disk(name, *bytes),
            Device::File(path) => self.open_file(name, path),
        }
    }

    fn open_ram_disk(&self, name: String, bytes: u64) -> Result<Open, Failure> {
        let disk = RamDisk::new(bytes, self.block_size.unwrap_or(512)).map_err(|err| {
            match Failure::asked_for(err) {
                Failure::Usage(text) => Failure::Usage(format!("{name}: {text}")),
                Failure::Environment(text) => Failure::Environment(format!("{name}: {text}")),
            }
        })?;
        let number = self.ram_disks + 1;
        let ids = self
            .machine
            .namespace(&self.nqn, format!("ramdisk:{number}").as_bytes());
        let read_only = self.options.read_only;
        let disk = disk.with_info(|info| {
            info.with_uuid(ids.uuid)
                .with_ids(ids.nguid, ids.eui64)
                .with_read_only(read_only)
        });
        Ok(Open {
            name,
            namespace: switchable(Inline::new(disk)),
            file: None,
        })
    }

    fn open_file(&self, name: String, path: &Path) -> Result<Open, Failure> {
        // Before it is opened: the lock on the first would say only that it is in use.
        let id = FileId::of(path)?;
        let same = |open: &&Open| open.file.as_ref().is_some_and(|file| file.id() == id);
        if let Some(other) = self.open.values().find(same) {
            let text = if other.name == name {
                format!("{name} is given twice; a device can be one namespace only")
            } else {
                format!(
                    "{name} is the same as {}; a device can be one namespace only",
                    other.name
                )
            };
            return Err(Failure::Usage(text));
        }
        let place = path
            .canonicalize()
            .map_err(|err| Failure::Environment(format!("{name}: {err}")))?;
        let place = [b"file:", place.as_os_str().as_bytes()].concat();
        let ids = self.machine.namespace(&self.nqn, &place);
        let mut options = self.options.clone();
        (options.uuid, options.nguid, options.eui64) = (ids.uuid, ids.nguid, ids.eui64);
        let file = Arc::new(FileBackend::open(path, &options)?);
        let namespace = FileNamespace::new(Arc::clone(&file), self.engine, &self.pool)?;
        Ok(Open {
            name,
            namespace: switchable(namespace),
            file: Some(file),
        })
    }

    /// Shows all opened devices to hosts.
    ///
    /// # Errors
    /// The target's.
    pub(crate) fn add_to(&self, target: &Target) -> Result<(), Failure> {
        for (&nsid, open) in &self.open {
            let added = target.add_namespace(&self.nqn, nsid, Arc::clone(&open.namespace));
            added.map_err(Failure::asked_for)?;
        }
        Ok(())
    }

    /// Opens a device and shows it to hosts; returns a line about it.
    ///
    /// # Errors
    /// As [`Devices::open`], or the target's; nothing has changed then.
    pub(crate) fn add(
        &mut self,
        target: &Target,
        nsid: u32,
        device: &Device,
    ) -> Result<String, Failure> {
        let open = self.open_new(nsid, device)?;
        let added = target.add_namespace(&self.nqn, nsid, Arc::clone(&open.namespace));
        added.map_err(Failure::asked_for)?;
        let text = open.describe(nsid);
        self.keep(nsid, open);
        Ok(text)
    }

    /// Takes a namespace from hosts and waits, within bounds, until its device is closed: it is
    /// free for other use then. Returns whether it is.
    ///
    /// # Errors
    /// If there is none of that NSID.
    pub(crate) fn remove(&mut self, target: &Target, nsid: u32) -> Result<bool, Failure> {
        let Entry::Occupied(entry) = self.open.entry(nsid) else {
            return Err(none_of(nsid));
        };
        target.remove_namespace(&self.nqn, nsid)?;
        let open = entry.remove();
        let file = open.file.as_ref().map(Arc::downgrade).unwrap_or_default();
        drop(open);
        let deadline = Instant::now() + CLOSE_WITHIN;
        while file.strong_count() != 0 && Instant::now() < deadline {
            std::thread::sleep(CLOSE_STEP);
        }
        Ok(file.strong_count() == 0)
    }

    /// Looks at the size of a file or block device again; hosts are told of a change. Returns a
    /// line about the namespace.
    ///
    /// # Errors
    /// If there is none of that NSID, it is a RAM disk, or the new size is not possible.
    pub(crate) fn resize(&self, nsid: u32) -> Result<String, Failure> {
        let open = self.open.get(&nsid).ok_or_else(|| none_of(nsid))?;
        let Some(file) = &open.file else {
            return Err(Failure::Usage(format!(
                "namespace {nsid} is a RAM disk, whose size is fixed"
            )));
        };
        file.refresh()?;
        Ok(open.describe(nsid))
    }

    /// Makes a namespace read-only, or writable again; hosts are told. Returns a line about it.
    ///
    /// # Errors
    /// If there is none of that NSID, or it cannot be written because it was opened so.
    pub(crate) fn set_read_only(&self, nsid: u32, read_only: bool) -> Result<String, Failure> {
        let open = self.open.get(&nsid).ok_or_else(|| none_of(nsid))?;
        if !open.namespace.switch().set(read_only) {
            return Err(Failure::Usage(format!(
                "namespace {nsid} was opened read-only (--read-only)"
            )));
        }
        Ok(open.describe(nsid))
    }

    /// One line about each namespace, by NSID.
    pub(crate) fn describe_all(&self) -> impl Iterator<Item = String> {
        self.open.iter().map(|(nsid, open)| open.describe(*nsid))
    }
}

impl Open {
    fn describe(&self, nsid: u32) -> String {
        let info = self.namespace.info();
        format!(
            "namespace {nsid}: {}, {} bytes, block size {}, uuid {}{}",
            self.name,
            info.bytes(),
            info.block_size(),
            Uuid::from_bytes(info.uuid),
            if info.read_only { ", read-only" } else { "" },
        )
    }
}

/// A namespace as it is, until the operator makes it read-only.
fn switchable(namespace: impl Namespace) -> Arc<ReadOnly> {
    let namespace = ReadOnly::new(namespace);
    namespace.switch().set(false);
    Arc::new(namespace)
}

fn none_of(nsid: u32) -> Failure {
    Failure::Usage(format!("there is no namespace {nsid}"))
}

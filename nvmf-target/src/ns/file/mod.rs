//! A namespace in a file or on a block device.

mod io;
mod namespace;
#[cfg(test)]
mod rig;
#[expect(unsafe_code, reason = "an ioctl is beyond what the compiler can check")]
mod sys;
#[cfg(test)]
mod tests;
mod trust;
mod uring;

use self::io::RawFile;
use self::sys::Limits;
use super::{BlockDevice, NsError, NsInfo, NsSink, Op, Support};
use crate::Error;
use crate::chatter::info;
pub use namespace::{FileEngine, FileNamespace};
use rustix::fs::{
    FallocateFlags, FlockOperation, FsWord, OFlags, PROC_SUPER_MAGIC, fallocate, flock, fstatfs,
    ioctl_blksszget,
};
use rustix::io::{Errno, retry_on_intr};
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use trust::Trust;
pub(crate) use uring::ReactorRing;

/// How often it is tried to get a file that is in use.
const WAIT_STEP: Duration = Duration::from_millis(5);

/// The largest preferred size that is passed on to hosts; what exceeds it is no block size but a
/// network file system's wish for long transfers.
const MAX_PREFERRED: u64 = 16 << 20;

/// File systems whose files are no storage but talk to the kernel, by `f_type` of `statfs`.
const NO_STORAGE: [(FsWord, &str); 2] = [(PROC_SUPER_MAGIC, "procfs"), (0x6265_6572, "sysfs")];

/// How a file or block device is to be served.
///
/// ```
/// use nvmf_target::ns::{Direct, FileOptions};
/// let mut options = FileOptions::default();
/// options.block_size = Some(4096);
/// options.direct = Direct::Off;
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FileOptions {
    /// Logical block size in bytes, a power of two from 512 to 65536 and no smaller than the
    /// device's. Default: the device's, 512 for files.
    pub block_size: Option<u32>,
    /// Refuse writes. A block device that is mounted can be served only so.
    pub read_only: bool,
    /// Whether data goes past the page cache.
    pub direct: Direct,
    /// UUID of the namespace; see [`NsInfo::uuid`].
    pub uuid: [u8; 16],
    /// NGUID, big endian; see [`NsInfo::nguid`].
    pub nguid: [u8; 16],
    /// EUI64, big endian; see [`NsInfo::eui64`].
    pub eui64: [u8; 8],
    /// How long to wait for a file or device that somebody else has. Default: not at all. A process
    /// that was killed may have ended a while before the kernel is done with its I/O and lets go
    /// of its files.
    pub wait: Duration,
}

/// Whether data goes past the page cache (`O_DIRECT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direct {
    /// If the file system or device has direct I/O for blocks of this size; else through the page
    /// cache, and the log says why.
    #[default]
    Auto,
    /// Always; opening fails where it cannot be had.
    On,
    /// Never.
    Off,
}

/// Which file or device it is, whatever the path: equal for hard links, symbolic links and device
/// nodes of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileId {
    /// A regular file.
    File {
        /// Number of the device that holds it.
        dev: u64,
        /// Inode number.
        inode: u64,
    },
    /// A block device.
    Device {
        /// The device's own number.
        rdev: u64,
    },
}

impl FileId {
    /// The file or device that `path` leads to, without opening it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is nothing or it cannot be looked at, [`Error::Config`] if it is
    /// neither a regular file nor a block device.
    pub fn of(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let metadata =
            std::fs::metadata(path).map_err(|err| Error::io(path.display().to_string(), err))?;
        Self::from_metadata(path, &metadata)
    }

    fn from_metadata(path: &Path, metadata: &Metadata) -> Result<Self, Error> {
        let kind = metadata.file_type();
        if kind.is_file() {
            return Ok(Self::File {
                dev: metadata.dev(),
                inode: metadata.ino(),
            });
        }
        if kind.is_block_device() {
            return Ok(Self::Device {
                rdev: metadata.rdev(),
            });
        }
        let kind = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_char_device() => "a character device",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "something else",
        };
        Err(Error::config(format!(
            "{} is {kind}; a regular file or a block device is wanted",
            path.display()
        )))
    }
}

/// A file or block device, by blocking calls: make it a namespace with [`FileNamespace`], which
/// uses io_uring where it can, or wrap it in [`super::Threaded`].
///
/// What is served is locked against other users as far as the system allows: a writable block
/// device is opened exclusively (it cannot be mounted then), a file gets an advisory lock.
///
/// Data is on stable storage after Flush or with FUA, not before.
#[derive(Debug)]
pub struct FileBackend {
    path: PathBuf,
    raw: RawFile,
    id: FileId,
    /// As it was when opened; only the size changes.
    info: NsInfo,
    blocks: AtomicU64,
    /// Not yet refused by the file system: making holes, making zeroes.
    punches: AtomicBool,
    zeroes: AtomicBool,
    trust: Trust,
    /// One for each subsystem that it is attached to.
    sinks: Mutex<Vec<NsSink>>,
}

impl FileBackend {
    /// Opens and locks a file or block device and finds out what it can do. Blocks for as long as
    /// the system takes.
    ///
    /// # Errors
    /// [`Error::Io`] with the path if the system refuses, [`Error::Config`] with the path and what
    /// would be accepted if it is no regular file or block device, cannot be written although it
    /// should, is in use, or block size and size do not fit.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display();
        // Looked at before it is opened, because opening a character device may do something.
        let id = FileId::of(path)?;
        let file = acquire(path, id, options)?;
        let metadata = file
            .metadata()
            .map_err(|err| Error::io(name.to_string(), err))?;

        let limits = match id {
            FileId::Device { rdev } => Some(Limits::of(rdev)),
            FileId::File { .. } => None,
        };
        if limits.is_none() {
            is_storage(path, &file)?;
        }
        if limits.is_some_and(|limits| limits.read_only) && !options.read_only {
            return Err(not_writable(path, &"the device is read-only"));
        }
        let block_size = block_size(path, &file, id, options.block_size)?;
        let fua = match options.read_only {
            true => None,
            false => Some(open_again(path, id)?),
        };
        let mut raw = RawFile::buffered(file, fua);
        let bytes = raw.size().map_err(|err| Error::io(name.to_string(), err))?;
        let blocks = whole_blocks(path, bytes, block_size)?;
        go_direct(path, &mut raw, options.direct, block_size)?;

        let mut info = NsInfo::new(block_size, blocks)
            .with_read_only(options.read_only)
            .with_uuid(options.uuid)
            .with_ids(options.nguid, options.eui64)
            .with_volatile_cache();
        info.caps.fua = Support::Native;
        info.caps.write_zeroes = Support::Native;
        if !options.read_only
            && limits.map_or_else(|| punches_holes(&raw.file, bytes), |l| l.discard)
        {
            info.caps.deallocate = Support::Native;
            // What a device returns for discarded blocks is its own affair.
            info.dealloc_reads_zero = limits.is_none();
        }
        let write = limits.map_or_else(|| metadata.blksize(), |l| l.minimum_io);
        let deallocate = limits.map_or_else(|| metadata.blksize(), |l| l.discard_granularity);
        info.preferred_write = preferred(write, block_size);
        info.preferred_deallocate = preferred(deallocate, block_size);
        info.validate()
            .map_err(|err| Error::config(format!("{name}: {err}")))?;
        Ok(Self {
            path: path.to_owned(),
            raw,
            id,
            info,
            blocks: AtomicU64::new(blocks),
            punches: AtomicBool::new(true),
            zeroes: AtomicBool::new(true),
            trust: Trust::default(),
            sinks: Mutex::default(),
        })
    }

    /// Which file or device this is: to notice that one is served twice.
    #[must_use]
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// The same with another file behind it.
    #[cfg(test)]
    fn reading(self, file: File) -> Self {
        Self {
            raw: RawFile::buffered(file, None),
            ..self
        }
    }

    /// As the log calls it.
    fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Whether data goes past the page cache.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.raw.is_direct()
    }

    /// Whether a read or write may hold up the reactor that hands it to io_uring. The page cache of
    /// a block device is behind a lock that the kernel (seen with Linux 6.18) waits for even where
    /// it has been told not to wait, and that Write Zeroes and discards of the device hold for as
    /// long as they take.
    const fn blocks_submitter(&self) -> bool {
        matches!(self.id, FileId::Device { .. }) && !self.is_direct()
    }

    /// Looks at the size again; if it has changed, hosts are told. Returns whether it has. A file
    /// that has been seen to be too short is trusted again at the size that it has now. From any
    /// thread.
    ///
    /// # Errors
    /// As [`FileBackend::open`] about sizes, or the path leads to nothing or to something else by
    /// now, which is not what is served. Everything stays as it was then.
    pub fn refresh(&self) -> Result<bool, Error> {
        self.is_in_place()?;
        let bytes = self
            .raw
            .size()
            .map_err(|err| Error::io(self.path.display().to_string(), err))?;
        let blocks = whole_blocks(&self.path, bytes, self.info.block_size())?;
        NsInfo {
            blocks,
            ..self.info.clone()
        }
        .validate()
        .map_err(|err| Error::config(format!("{}: {err}", self.path.display())))?;
        let changed = self.blocks.swap(blocks, Ordering::AcqRel) != blocks;
        self.trust.whole_again();
        if changed {
            let sinks = self.sinks.lock();
            let sinks = sinks.unwrap_or_else(PoisonError::into_inner).clone();
            sinks.iter().for_each(NsSink::changed);
        }
        Ok(changed)
    }

    /// Lets the file system make zeroes or holes; `false` if it cannot, which `able` remembers.
    fn allocate(
        &self,
        able: &AtomicBool,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<bool, NsError> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match retry_on_intr(|| fallocate(&self.raw.file, mode, offset, len)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                able.store(false, Ordering::Relaxed);
                info!(
                    "{}: no {mode:?} here; zeroes are written instead",
                    self.path.display()
                );
                Ok(false)
            }
            Err(err) => Err(std::io::Error::from(err).into()),
        }
    }
}

/// Makes a hole in a file, or zeroes on a device, where it may give its blocks back.
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

impl BlockDevice for FileBackend {
    fn info(&self) -> NsInfo {
        NsInfo {
            blocks: self.blocks.load(Ordering::Acquire),
            ..self.info.clone()
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        self.covers(offset, buf.len() as u64)?;
        let n = self.raw.read(offset, buf)?;
        if n < buf.len() {
            return Err(self.ended(offset + n as u64).into());
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        self.covers(offset, buf.len() as u64)?;
        let done = self.raw.write(offset, buf, fua);
        Ok(self.promised(Op::Write { fua }, done)?)
    }

    fn flush(&self) -> Result<(), NsError> {
        Ok(self.promised(Op::Flush, self.raw.flush())?)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        deallocate: bool,
        fua: bool,
    ) -> Result<(), NsError> {
        self.covers(offset, len)?;
        // On a block device the kernel maps both modes to the device's own commands, and the
        // second to plain writes where there is none.
        let done = (deallocate && self.allocate(&self.punches, PUNCH, offset, len)?)
            || self.allocate(&self.zeroes, FallocateFlags::ZERO_RANGE, offset, len)?;
        if !done {
            self.raw.write_zero_bytes(offset, len)?;
        }
        if fua {
            self.flush()?;
        }
        Ok(())
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        self.covers(offset, len)?;
        let done = match self.id {
            FileId::File { .. } => retry_on_intr(|| fallocate(&self.raw.file, PUNCH, offset, len)),
            FileId::Device { .. } => sys::discard(&self.raw.file, offset, len),
        };
        match done {
            // A hint: not being able to follow it is no failure.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(err) => Err(std::io::Error::from(err).into()),
        }
    }

    fn subscribe(&self, sink: NsSink) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.retain(NsSink::is_of_use);
        sinks.push(sink);
    }
}

/// Opens and locks it, once nobody else has it.
fn acquire(path: &Path, id: FileId, options: &FileOptions) -> Result<File, Error> {
    let started = Instant::now();
    let mut told = false;
    loop {
        if let Some(file) = try_acquire(path, id, options.read_only)? {
            return Ok(file);
        }
        if started.elapsed() >= options.wait {
            return Err(in_use(path));
        }
        if !told {
            info!("{}: in use; {:?} to wait", path.display(), options.wait);
            told = true;
        }
        thread::sleep(WAIT_STEP.min(options.wait));
    }
}

/// The same without waiting; `None`: somebody else has it.
fn try_acquire(path: &Path, id: FileId, read_only: bool) -> Result<Option<File>, Error> {
    let Some(file) = open_file(path, id, read_only)? else {
        return Ok(None);
    };
    is_still(path, &file, id)?;
    let free = matches!(id, FileId::Device { .. }) || lock(&file, read_only);
    Ok(free.then_some(file))
}

/// Opens what has been acquired once more, to be written.
fn open_again(path: &Path, id: FileId) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|err| Error::io(path.display().to_string(), err))?;
    is_still(path, &file, id)?;
    Ok(file)
}

/// Whether what was opened is what had been looked at.
fn is_still(path: &Path, file: &File, id: FileId) -> Result<(), Error> {
    let name = path.display();
    let metadata = file
        .metadata()
        .map_err(|err| Error::io(name.to_string(), err))?;
    if FileId::from_metadata(path, &metadata)? == id {
        return Ok(());
    }
    Err(Error::config(format!(
        "{name} was replaced while it was being opened"
    )))
}

/// Opens it; `None`: it is a device that somebody else has.
fn open_file(path: &Path, id: FileId, read_only: bool) -> Result<Option<File>, Error> {
    let mut how = OpenOptions::new();
    how.read(true).write(!read_only);
    // On a block device O_EXCL (without O_CREAT) fails if it is mounted, part of another device,
    // or opened so before.
    let exclusive = matches!(id, FileId::Device { .. }) && !read_only;
    if exclusive {
        how.custom_flags(OFlags::EXCL.bits().cast_signed());
    }
    let err = match how.open(path) {
        Ok(file) => return Ok(Some(file)),
        Err(err) => err,
    };
    match Errno::from_io_error(&err) {
        Some(Errno::BUSY) if exclusive => Ok(None),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS)
            if !read_only && File::open(path).is_ok() =>
        {
            Err(not_writable(path, &err))
        }
        _ => Err(Error::io(path.display().to_string(), err)),
    }
}

/// Locks a file, if nobody else has: several may serve it read-only, or one writable. Not for
/// devices: on them udev takes such locks for moments.
fn lock(file: &File, read_only: bool) -> bool {
    let how = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    // Not every file system has locks.
    flock(file, how) != Err(Errno::WOULDBLOCK)
}

/// Whether what looks like a regular file is one.
fn is_storage(path: &Path, file: &File) -> Result<(), Error> {
    let kind = fstatfs(file)
        .map_err(|err| Error::io(path.display().to_string(), err))?
        .f_type;
    match NO_STORAGE.iter().find(|(magic, _)| *magic == kind) {
        None => Ok(()),
        Some((_, name)) => Err(Error::config(format!(
            "{} is a file of {name}, which stores nothing; a regular file or a block device is wanted",
            path.display()
        ))),
    }
}

fn in_use(path: &Path) -> Error {
    Error::config(format!(
        "{} is in use: mounted, part of another device, or served already",
        path.display()
    ))
}

fn not_writable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::config(format!(
        "{} cannot be written ({why}); make it writable or serve it read-only",
        path.display()
    ))
}

/// The logical block size: the one asked for, if the device can do it.
fn block_size(path: &Path, file: &File, id: FileId, wanted: Option<u32>) -> Result<u32, Error> {
    let least = match id {
        FileId::File { .. } => 512,
        FileId::Device { .. } => {
            ioctl_blksszget(file).map_err(|err| Error::io(path.display().to_string(), err))?
        }
    };
    let size = wanted.unwrap_or(least);
    if size.is_power_of_two() && (least..=65536).contains(&size) {
        return Ok(size);
    }
    Err(Error::config(format!(
        "{}: block size {size} is not possible; a power of two from {least} to 65536 bytes is wanted",
        path.display()
    )))
}

fn whole_blocks(path: &Path, bytes: u64, block_size: u32) -> Result<u64, Error> {
    let block_size = u64::from(block_size);
    if bytes == 0 || !bytes.is_multiple_of(block_size) {
        return Err(Error::config(format!(
            "{}: its size, {bytes} bytes, is not a multiple (1 or more) of the block size, {block_size} bytes",
            path.display()
        )));
    }
    Ok(bytes / block_size)
}

fn go_direct(path: &Path, raw: &mut RawFile, direct: Direct, block_size: u32) -> Result<(), Error> {
    if direct == Direct::Off {
        return Ok(());
    }
    let Err(why) = raw.enable_direct(block_size) else {
        return Ok(());
    };
    if direct == Direct::On {
        return Err(Error::config(format!(
            "{}: direct I/O is not possible: {why}",
            path.display()
        )));
    }
    info!(
        "{}: through the page cache, without direct I/O: {why}",
        path.display()
    );
    Ok(())
}

/// Whether the file system can make holes: asked behind the end of the file, where it does nothing.
fn punches_holes(file: &File, bytes: u64) -> bool {
    const ASIDE: u64 = 1 << 20;
    let offset = bytes.next_multiple_of(ASIDE);
    !matches!(
        fallocate(file, PUNCH, offset, ASIDE),
        Err(Errno::OPNOTSUPP | Errno::NOSYS)
    )
}

/// A size in bytes that hosts are told to align to, 0 if it does not suit them.
fn preferred(bytes: u64, block_size: u32) -> u32 {
    let suits = (1..=MAX_PREFERRED).contains(&bytes) && bytes.is_multiple_of(u64::from(block_size));
    u32::try_from(bytes).ok().filter(|_| suits).unwrap_or(0)
}

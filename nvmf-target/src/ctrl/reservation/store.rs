//! Where reservations outlive the target: the embedder's store, and one that keeps files.

use crate::chatter::warn;
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;
use std::fmt::{self, Debug};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Which namespace a record of reservations is about. The pair stays the same when the target is
/// started again, as long as the namespace has its UUID from its backend, or its NSID again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ReservationScope {
    /// NQN of the subsystem.
    pub subsystem: String,
    /// UUID of the namespace.
    pub uuid: [u8; 16],
}

impl ReservationScope {
    pub(crate) const fn new(subsystem: String, uuid: [u8; 16]) -> Self {
        Self { subsystem, uuid }
    }
}

impl fmt::Display for ReservationScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uuid = Uuid::from_bytes(self.uuid);
        write!(f, "namespace {uuid} of {}", self.subsystem)
    }
}

/// Keeps what hosts want to outlive a power loss (Persist Through Power Loss): registrants and
/// reservation of a namespace, as a record of bytes that only the target looks into. A record has
/// a checksum and names the namespace that it is about; it is at most 1 MiB.
///
/// `load` is called by [`Target::add_namespace`](crate::Target::add_namespace), on its caller's
/// thread; `save` and `remove` on a thread of the target that does nothing else, one at a time;
/// `set_aside` on either, before anything else is saved. They may block: the host's command
/// completes when they have returned.
pub trait ReservationStore: Debug + Send + Sync {
    /// The record of a namespace, if there is one. Called while the namespace is attached, under
    /// locks of the target: it must not call a method of the target, which would wait for itself.
    ///
    /// # Errors
    ///
    /// There may be a record, but it cannot be read. The namespace is not added then: hosts could
    /// write to it that are excluded.
    fn load(&self, scope: &ReservationScope) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the record of a namespace, as a whole or not at all. It must be on stable storage
    /// when this returns.
    ///
    /// # Errors
    ///
    /// It may have been replaced or not. The host's command fails with Internal Error and changes
    /// nothing: what was there before is saved again, at once and if need be with the next change.
    fn save(&self, scope: &ReservationScope, record: &[u8]) -> io::Result<()>;

    /// Removes the record of a namespace, if there is one, for good.
    ///
    /// # Errors
    ///
    /// As of [`ReservationStore::save`].
    fn remove(&self, scope: &ReservationScope) -> io::Result<()>;

    /// The record makes no sense. It is to be kept for people to look at, but not to be loaded
    /// again. Returns words for the log: what it was and where it is now.
    ///
    /// # Errors
    ///
    /// It is still where it was; the next `save` may overwrite it.
    fn set_aside(&self, scope: &ReservationScope) -> io::Result<String>;
}

/// Records longer than this are not read to their end.
const RECORD_MAX: u64 = 1 << 20;
/// Damaged files of one namespace that are kept.
const ASIDE_MAX: u32 = 1000;

/// A [`ReservationStore`] with one file per namespace in a directory of its own.
///
/// A file is replaced by writing a new one beside it, syncing that, renaming it and syncing the
/// directory: whatever happens, there is the old record or the new one. The files are text; their
/// names begin with the namespace's UUID and end with `.reservations`. A file that is damaged, or is
/// no regular file, gets `.damaged` and a number added to its name.
#[derive(Debug)]
pub struct FileReservationStore {
    dir: PathBuf,
    files: Box<dyn Files>,
}

impl FileReservationStore {
    /// Keeps files in a directory, which is made if it does not exist. The log says at level warn
    /// if it was, and if nothing can be written there.
    ///
    /// # Errors
    ///
    /// The directory does not exist and cannot be made, or it is none. The path is not in the text.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        Self::with(dir.into(), Box::new(RealFiles))
    }

    /// The same with a file system of one's own.
    pub(super) fn with(dir: PathBuf, files: Box<dyn Files>) -> io::Result<Self> {
        for remark in prepare(&dir, &*files)? {
            warn!("{remark}");
        }
        Ok(Self { dir, files })
    }

    /// The file of a namespace.
    #[must_use]
    pub fn path(&self, scope: &ReservationScope) -> PathBuf {
        // An NQN may be longer than a file name, and have characters that those must not have.
        let subsystem = Uuid::new_v5(&Uuid::NAMESPACE_URL, scope.subsystem.as_bytes()).simple();
        let uuid = Uuid::from_bytes(scope.uuid);
        self.dir.join(format!("{uuid}-{subsystem}.reservations"))
    }

    fn replace(&self, path: &Path, record: &[u8]) -> io::Result<()> {
        let new = with_suffix(path, ".new");
        self.files.write(&new, record)?;
        self.files.sync(&new)?;
        self.files.rename(&new, path)?;
        self.files.sync(&self.dir)
    }
}

/// Makes the directory if there is none; returns what the log should say of it.
pub(super) fn prepare(dir: &Path, files: &dyn Files) -> io::Result<Vec<String>> {
    let mut remarks = Vec::new();
    let name = dir.display();
    if files.make_dir(dir)? {
        remarks.push(format!(
            "{name}: made, for there was no such directory; no reservations are known of earlier runs. If there should be some, stop, put the directory back (is a file system not mounted?) and start again"
        ));
    }
    if let Err(err) = files.is_writable(dir) {
        remarks.push(format!(
            "{name}: nothing can be written there ({err}): reservations that are to outlive a power loss will fail. Let this process make files in it"
        ));
    }
    Ok(remarks)
}

/// The error with the path that it is about.
fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |err| io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

/// The path with something added to the file's name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl ReservationStore for FileReservationStore {
    fn load(&self, scope: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(scope);
        self.files.read(&path).map_err(about(&path))
    }

    fn save(&self, scope: &ReservationScope, record: &[u8]) -> io::Result<()> {
        let path = self.path(scope);
        self.replace(&path, record).map_err(about(&path))
    }

    fn remove(&self, scope: &ReservationScope) -> io::Result<()> {
        let path = self.path(scope);
        match self.files.remove(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(about(&path)(err)),
            // Also if there is none: an earlier removal may not have been synced.
            Ok(()) | Err(_) => {}
        }
        self.files.sync(&self.dir).map_err(about(&self.dir))
    }

    fn set_aside(&self, scope: &ReservationScope) -> io::Result<String> {
        let path = self.path(scope);
        let names = (1..=ASIDE_MAX).map(|n| with_suffix(&path, &format!(".damaged{n}")));
        let mut free = names.filter(|name| !self.files.exists(name));
        let aside = free.next().ok_or_else(|| {
            let text = format!("{}: {ASIDE_MAX} are aside already", path.display());
            io::Error::new(io::ErrorKind::AlreadyExists, text)
        })?;
        self.files.rename(&path, &aside).map_err(about(&path))?;
        self.files.sync(&self.dir).map_err(about(&self.dir))?;
        let (path, aside) = (path.display(), aside.display());
        Ok(format!("{path}, which is {aside} now"))
    }
}

/// What is asked of the file system. Power may be lost before and after each of these; a test stands
/// in for the file system, and loses it.
pub(super) trait Files: Debug + Send + Sync {
    /// Makes a directory, with those above it, on stable storage. False if it is there already.
    fn make_dir(&self, path: &Path) -> io::Result<bool>;

    /// Whether files can be made in a directory, as far as permissions tell.
    fn is_writable(&self, path: &Path) -> io::Result<()>;

    /// What a file holds; of what is no regular file, nothing. A link to nowhere is an error: the
    /// file is somewhere else, and may be back later.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Makes a file, in the place of one that was left there.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Brings to stable storage what a file holds, or which names a directory has.
    fn sync(&self, path: &Path) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    fn exists(&self, path: &Path) -> bool;
}

/// The file system.
#[derive(Debug)]
pub(super) struct RealFiles;

impl Files for RealFiles {
    fn make_dir(&self, path: &Path) -> io::Result<bool> {
        if path.exists() && !path.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is no directory; one is wanted, or a path where one can be made",
            ));
        }
        let new: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        fs::create_dir_all(path)?;
        // A record is safe only if the way to it is.
        for parent in new.iter().copied().filter_map(Path::parent) {
            let here = parent.as_os_str().is_empty();
            self.sync(if here { Path::new(".") } else { parent })?;
        }
        Ok(!new.is_empty())
    }

    fn is_writable(&self, path: &Path) -> io::Result<()> {
        let how = Access::WRITE_OK | Access::EXEC_OK;
        Ok(accessat(CWD, path, how, AtFlags::EACCESS)?)
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut how = OpenOptions::new();
        // Opening a FIFO must not wait for somebody who writes.
        how.read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = match how.open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound && self.exists(path) => {
                return Err(io::Error::new(
                    err.kind(),
                    "it is a link to a file that is not there; put that back, or remove the link if there are to be no reservations",
                ));
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A socket.
            Err(err) if Errno::from_io_error(&err) == Some(Errno::NXIO) => {
                return Ok(Some(Vec::new()));
            }
            Err(err) => return Err(err),
        };
        let mut record = Vec::new();
        if file.metadata()?.is_file() {
            file.take(RECORD_MAX).read_to_end(&mut record)?;
        }
        Ok(Some(record))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // It may be another user's, or a link to somewhere else.
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            Ok(()) | Err(_) => {}
        }
        let mut how = OpenOptions::new();
        // Keys are what keeps hosts apart.
        let mut file = how.write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn exists(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok()
    }
}

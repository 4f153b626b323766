//! Where reservations outlive the target: the embedder's store, and one that keeps files.

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
/// `load` and `set_aside` are called by [`Target::add_namespace`](crate::Target::add_namespace), on
/// its caller's thread; `save` and `remove` on a thread of the target that does nothing else, one
/// at a time. They may block: the host's command completes when they have returned.
pub trait ReservationStore: Debug + Send + Sync {
    /// The record of a namespace, if there is one.
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
    /// The host's command fails with Internal Error and changes nothing.
    fn save(&self, scope: &ReservationScope, record: &[u8]) -> io::Result<()>;

    /// Removes the record of a namespace, if there is one, for good.
    ///
    /// # Errors
    ///
    /// The host's command fails with Internal Error and changes nothing.
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

/// A [`ReservationStore`] with one file per namespace in a directory of its own.
///
/// A file is replaced by writing a new one beside it, syncing that, renaming it and syncing the
/// directory: whatever happens, there is the old record or the new one. The files are text; their
/// names begin with the namespace's UUID and end with `.reservations`. A file that is damaged gets
/// `.damaged` added to its name.
#[derive(Debug)]
pub struct FileReservationStore {
    dir: PathBuf,
}

impl FileReservationStore {
    /// Keeps files in a directory, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// The directory does not exist and cannot be made, or it is none.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The file of a namespace.
    #[must_use]
    pub fn path(&self, scope: &ReservationScope) -> PathBuf {
        // An NQN may be longer than a file name, and have characters that those must not have.
        let subsystem = Uuid::new_v5(&Uuid::NAMESPACE_URL, scope.subsystem.as_bytes()).simple();
        let uuid = Uuid::from_bytes(scope.uuid);
        self.dir.join(format!("{uuid}-{subsystem}.reservations"))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// The path with something added to the file's name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl ReservationStore for FileReservationStore {
    fn load(&self, scope: &ReservationScope) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(scope)) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        let mut record = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut record)?;
        Ok(Some(record))
    }

    fn save(&self, scope: &ReservationScope, record: &[u8]) -> io::Result<()> {
        let path = self.path(scope);
        let new = with_suffix(&path, ".new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // Keys are what keeps hosts apart.
            .mode(0o600)
            .open(&new)?;
        file.write_all(record)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        self.sync_dir()
    }

    fn remove(&self, scope: &ReservationScope) -> io::Result<()> {
        match fs::remove_file(self.path(scope)) {
            Ok(()) => self.sync_dir(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn set_aside(&self, scope: &ReservationScope) -> io::Result<String> {
        let path = self.path(scope);
        let aside = with_suffix(&path, ".damaged");
        fs::rename(&path, &aside)?;
        self.sync_dir()?;
        let (path, aside) = (path.display(), aside.display());
        Ok(format!("{path}, which is {aside} now"))
    }
}

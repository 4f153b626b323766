//! A file or block device as a namespace, by io_uring or by threads.

use super::FileBackend;
use super::uring::{UringLane, is_lasting, probe};
use crate::Error;
use crate::chatter::info;
use crate::ns::{Lane, LaneCx, Namespace, NsInfo, NsSink, Threaded, WorkerPool};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// By what means a file or block device is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FileEngine {
    /// By io_uring where the system lets the process use it; else by threads, and the log says why
    /// at level info. What only could not be had at the moment is tried again for the next queue.
    #[default]
    Auto,
    /// By io_uring.
    Uring,
    /// By blocking calls on the threads of a pool.
    Threads,
}

/// A [`FileBackend`] as a namespace.
///
/// With io_uring (Linux 5.6 or later, best from 6.1 on) the reactors themselves submit reads,
/// writes and flushes, all of one turn with one system call, and no thread changes; each reactor
/// has one ring for all its files. The pool carries out the rest then (Write Zeroes, Deallocate),
/// and everything without io_uring.
///
/// ```no_run
/// # use nvmf_target::{Target, Error, ns::{FileBackend, FileEngine, FileNamespace, FileOptions, WorkerPool}};
/// # use std::sync::Arc;
/// # fn add(target: &Target, nqn: &str) -> Result<(), Error> {
/// let pool = Arc::new(WorkerPool::new(8));
/// let disk = Arc::new(FileBackend::open("disk.img", &FileOptions::default())?);
/// target.add_namespace(nqn, 1, FileNamespace::new(Arc::clone(&disk), FileEngine::Auto, &pool)?)?;
/// // Later, after the file has grown:
/// disk.refresh()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileNamespace {
    file: Arc<FileBackend>,
    threads: Threaded,
    engine: FileEngine,
    /// The log knows that a reactor has no ring.
    told: AtomicBool,
}

impl FileNamespace {
    /// Chooses how to read and write `file`. Several may share a pool.
    ///
    /// # Errors
    /// [`Error::Io`] if `engine` is [`FileEngine::Uring`] and the system refuses io_uring.
    pub fn new(
        file: impl Into<Arc<FileBackend>>,
        engine: FileEngine,
        pool: &Arc<WorkerPool>,
    ) -> Result<Self, Error> {
        let usable = match engine {
            FileEngine::Threads => Ok(()),
            FileEngine::Auto | FileEngine::Uring => probe(),
        };
        Self::choose(file.into(), engine, pool, usable)
    }

    /// `usable`: whether there is io_uring.
    pub(super) fn choose(
        file: Arc<FileBackend>,
        engine: FileEngine,
        pool: &Arc<WorkerPool>,
        usable: io::Result<()>,
    ) -> Result<Self, Error> {
        let engine = match (engine, usable) {
            (engine, Ok(())) => engine,
            // The reactors may be luckier.
            (FileEngine::Auto, Err(err)) if !is_lasting(&err) => FileEngine::Auto,
            (FileEngine::Uring, Err(err)) => {
                return Err(Error::io(format!("{}: no io_uring", file.name()), err));
            }
            (_, Err(err)) => {
                info!("{}: by threads, without io_uring: {err}", file.name());
                FileEngine::Threads
            }
        };
        Ok(Self {
            threads: Threaded::with_pool(Arc::clone(&file), pool),
            file,
            engine,
            told: AtomicBool::new(false),
        })
    }

    /// What it reads and writes.
    #[must_use]
    pub const fn file(&self) -> &Arc<FileBackend> {
        &self.file
    }

    /// Whether io_uring is used, as far as is known before a reactor has tried.
    #[must_use]
    pub fn is_uring(&self) -> bool {
        self.engine != FileEngine::Threads
    }
}

impl Namespace for FileNamespace {
    fn info(&self) -> NsInfo {
        self.threads.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        let threads = self.threads.open_lane(cx)?;
        if self.engine == FileEngine::Threads {
            return Ok(threads);
        }
        match UringLane::new(&cx.uring, &self.file, threads) {
            Ok(lane) => Ok(Box::new(lane)),
            Err(why) if self.engine == FileEngine::Uring => Err(Error::io(
                format!("{}: no io_uring", self.file.name()),
                io::Error::other(why),
            )),
            Err(why) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    info!("{}: by threads, without io_uring: {why}", self.file.name());
                }
                self.threads.open_lane(cx)
            }
        }
    }

    fn subscribe(&self, sink: NsSink) {
        self.threads.subscribe(sink);
    }
}

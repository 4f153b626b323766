//! What is not believed of a file any more: that it keeps what it was given, that it is as long as it
//! was, and that its path still leads to it.

use super::io::truncated;
use super::{FileBackend, FileId, Op};
use crate::Error;
use crate::chatter::error;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What was seen of a file that is not forgotten with the command that saw it.
#[derive(Debug)]
pub(super) struct Trust {
    /// The kernel could not write back what was in the page cache.
    lost: AtomicBool,
    /// The byte at which the file was seen to end too early; what lies behind it is lost.
    /// `u64::MAX` as long as nothing is missing.
    end: AtomicU64,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            lost: AtomicBool::new(false),
            end: AtomicU64::new(u64::MAX),
        }
    }
}

impl Trust {
    /// The file is as long as it should be, as far as is known.
    pub(super) fn whole_again(&self) {
        self.end.store(u64::MAX, Ordering::Release);
    }
}

impl FileBackend {
    /// Whether what was acknowledged may still be in the page cache. Of a regular file that is so
    /// past the page cache, too: the file system zeroes there what Write Zeroes does not cover of
    /// its blocks, may fall back to it, and writes back later where it has put the data.
    const fn keeps_pages(&self) -> bool {
        matches!(self.id, FileId::File { .. }) || !self.is_direct()
    }

    /// What a command has come to, if it promises that data is on stable storage.
    ///
    /// Of what is in the page cache, the kernel reports once per open file that it could not be
    /// written back, to whoever asks next, and forgets the data. It may be anybody's, so after a
    /// Flush has been told nobody is told any more that his is safe. A write with FUA is told by
    /// another open file ([`RawFile`](super::RawFile)), one after the other, and is about its own data
    /// only; what it is told may have been meant for all, and the next Flush hears it, too.
    pub(super) fn promised(&self, op: Op, done: io::Result<()>) -> io::Result<()> {
        let is_promise = matches!(op, Op::Flush | Op::Write { fua: true });
        if !is_promise || !self.keeps_pages() {
            return done;
        }
        let lost = &self.trust.lost;
        match done {
            Ok(()) if lost.load(Ordering::Acquire) => Err(io::Error::other(
                "what was written earlier is lost; the file has to be opened anew",
            )),
            Ok(()) => Ok(()),
            Err(err) => {
                if op == Op::Flush && !lost.swap(true, Ordering::AcqRel) {
                    error!(
                        "{}: the system could not write back what hosts have written: {err}; no Flush and no write with FUA succeeds until it is opened anew",
                        self.name()
                    );
                }
                Err(err)
            }
        }
    }

    /// Whether there is something to read or to write over: nothing is where the file was seen to
    /// have ended before it should. Written to, it would grow again, and zeroes would stand where
    /// data was.
    pub(super) fn covers(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = self.trust.end.load(Ordering::Acquire);
        if offset.saturating_add(len) <= end {
            return Ok(());
        }
        Err(truncated(end))
    }

    /// A read has found the file to end at byte `at`. Returns the read's error.
    #[cold]
    pub(super) fn ended(&self, at: u64) -> io::Error {
        // A read may have begun behind the end. What is no file, as in tests, has no size.
        let end = self.raw.size().map_or(at, |size| size.min(at));
        // Not of what has become shorter because the operator wanted it so meanwhile.
        let bytes = self.blocks.load(Ordering::Acquire) * u64::from(self.info.block_size());
        // No write makes a device longer: it says itself what it has.
        let is_file = matches!(self.id, FileId::File { .. });
        if is_file && end < bytes && self.trust.end.fetch_min(end, Ordering::AcqRel) == u64::MAX {
            error!(
                "{}: it was truncated: {end} bytes are left of {bytes}; what lay behind them is lost, and reads and writes there fail until the size is looked at again (`resize`)",
                self.name()
            );
        }
        truncated(at)
    }

    /// Whether its path still leads to it.
    pub(super) fn is_in_place(&self) -> Result<(), Error> {
        let not_served = |what: &str| {
            Error::config(format!(
                "{}: {what}; served is still what was opened, which is lost when it is closed if it has no other name",
                self.name()
            ))
        };
        // As long as it is open, no other file gets its inode number.
        match FileId::of(&self.path) {
            Ok(id) if id == self.id => Ok(()),
            Ok(_) | Err(Error::Config(_)) => Err(not_served("it was replaced by something else")),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(not_served("it was deleted or moved"))
            }
            // It cannot be looked at, which says nothing of the file.
            Err(_) => Ok(()),
        }
    }
}

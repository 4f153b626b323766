//! A namespace in memory.

use super::{BlockDevice, Caps, NsError, NsInfo, Support};
use crate::buf::zeroed;
use crate::{Error, Status};
use std::fmt;
use std::sync::{PoisonError, RwLock};

/// Memory is taken in chunks of this size, and the kernel gives a chunk's pages as they are first
/// written.
const CHUNK: usize = 2 << 20;

#[expect(clippy::cast_possible_truncation, reason = "2 MiB")]
const CHUNK_U32: u32 = CHUNK as u32;

type Chunk = RwLock<Option<Box<[u8]>>>;

/// A sparse RAM disk: memory is taken when it is written and given back, a chunk at a time, when
/// it is deallocated. What was never written reads as zeroes.
///
/// Wrap it in [`super::Inline`]. What is written inside a chunk is never seen half written: chunks
/// are locked while bytes are copied.
pub struct RamDisk {
    info: NsInfo,
    chunks: Box<[Chunk]>,
}

impl RamDisk {
    /// A disk of `bytes` bytes in blocks of `block_size` bytes.
    ///
    /// # Errors
    /// [`Error::Config`] if the block size is none or `bytes` is not a multiple of it.
    pub fn new(bytes: u64, block_size: u32) -> Result<Self, Error> {
        let info = NsInfo::new(block_size, bytes / u64::from(block_size.max(1)));
        if block_size != 0 && !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(Error::config(format!(
                "{bytes} bytes is no multiple of the block size, {block_size} bytes"
            )));
        }
        info.validate()?;
        let count = usize::try_from(bytes.div_ceil(CHUNK as u64))
            .map_err(|_| Error::config(format!("{bytes} bytes do not fit this machine")))?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).map_err(|_| {
            Error::config(format!("{bytes} bytes: no memory for the table of chunks"))
        })?;
        chunks.resize_with(count, || RwLock::new(None));
        let chunks = chunks.into_boxed_slice();
        let caps = Caps {
            fua: Support::Native,
            write_zeroes: Support::Native,
            deallocate: Support::Native,
            compare: Support::Native,
            compare_and_write: Support::Native,
            verify: Support::Native,
            ..Caps::default()
        };
        let mut info = info.with_caps(caps);
        info.dealloc_reads_zero = true;
        // Inside a chunk.
        info.atomic_write = NsInfo::ATOMIC_MAX;
        info.atomic_boundary = CHUNK_U32;
        Ok(Self { info, chunks })
    }

    /// The same disk with other identifiers or read-only; geometry and capabilities stay.
    #[must_use]
    pub fn with_info(mut self, change: impl FnOnce(NsInfo) -> NsInfo) -> Self {
        let changed = change(self.info.clone());
        self.info.uuid = changed.uuid;
        self.info.nguid = changed.nguid;
        self.info.eui64 = changed.eui64;
        self.info.read_only = changed.read_only;
        self
    }

    /// Bytes of memory taken, in whole chunks.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let taken = |c: &&Chunk| c.read().unwrap_or_else(PoisonError::into_inner).is_some();
        self.chunks.iter().filter(taken).count() as u64 * CHUNK as u64
    }

    /// Walks the chunks of a byte range: the chunk, the offset in it, the length.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Chunk, usize, usize)> {
        let mut at = offset;
        let end = offset + len;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (index, start) = (at / CHUNK as u64, at % CHUNK as u64);
            let n = (CHUNK as u64 - start).min(end - at);
            at += n;
            Some((
                self.chunks.get(as_usize(index))?,
                as_usize(start),
                as_usize(n),
            ))
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the number of chunks fits, see `new`"
)]
const fn as_usize(n: u64) -> usize {
    n as usize
}

/// A chunk's memory, taken now if it was not. Memory that is refused fails the command, not the
/// process.
fn taken(chunk: &mut Option<Box<[u8]>>) -> Result<&mut [u8], NsError> {
    match chunk {
        Some(bytes) => Ok(bytes),
        None => Ok(chunk.insert(zeroed(CHUNK).ok_or(Status::CAPACITY_EXCEEDED.dnr())?)),
    }
}

/// Whether a chunk has these bytes from `start` on.
fn holds(chunk: Option<&[u8]>, start: usize, bytes: &[u8]) -> bool {
    match chunk {
        Some(chunk) => chunk[start..start + bytes.len()] == *bytes,
        None => bytes.iter().all(|&byte| byte == 0),
    }
}

impl BlockDevice for RamDisk {
    fn info(&self) -> NsInfo {
        self.info.clone()
    }

    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> Result<(), NsError> {
        for (chunk, start, n) in self.pieces(offset, buf.len() as u64) {
            let (to, rest) = buf.split_at_mut(n);
            buf = rest;
            match &*chunk.read().unwrap_or_else(PoisonError::into_inner) {
                Some(bytes) => to.copy_from_slice(&bytes[start..start + n]),
                None => to.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, mut buf: &[u8], _fua: bool) -> Result<(), NsError> {
        for (chunk, start, n) in self.pieces(offset, buf.len() as u64) {
            let (from, rest) = buf.split_at(n);
            buf = rest;
            let mut chunk = chunk.write().unwrap_or_else(PoisonError::into_inner);
            taken(&mut chunk)?[start..start + n].copy_from_slice(from);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, _: bool) -> Result<(), NsError> {
        for (chunk, start, n) in self.pieces(offset, len) {
            let mut chunk = chunk.write().unwrap_or_else(PoisonError::into_inner);
            if n == CHUNK {
                *chunk = None;
            } else if let Some(bytes) = &mut *chunk {
                bytes[start..start + n].fill(0);
            }
        }
        Ok(())
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        self.write_zeroes(offset, len, true, false)
    }

    fn compare(&self, offset: u64, mut data: &[u8]) -> Result<bool, NsError> {
        for (chunk, start, n) in self.pieces(offset, data.len() as u64) {
            let (expected, rest) = data.split_at(n);
            data = rest;
            let chunk = chunk.read().unwrap_or_else(PoisonError::into_inner);
            if !holds(chunk.as_deref(), start, expected) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare_and_write(
        &self,
        offset: u64,
        mut expected: &[u8],
        mut data: &[u8],
        _fua: bool,
    ) -> Result<bool, NsError> {
        // All chunks are locked, in ascending order, before the first is looked at.
        let mut chunks: Vec<_> = self
            .pieces(offset, data.len() as u64)
            .map(|(chunk, start, n)| {
                let chunk = chunk.write().unwrap_or_else(PoisonError::into_inner);
                (chunk, start, n)
            })
            .collect();
        for (chunk, start, n) in &chunks {
            let (now, rest) = expected.split_at(*n);
            expected = rest;
            if !holds(chunk.as_deref(), *start, now) {
                return Ok(false);
            }
        }
        // And all have their memory before the first is changed.
        for (chunk, ..) in &mut chunks {
            taken(chunk)?;
        }
        for (chunk, start, n) in &mut chunks {
            let (now, rest) = data.split_at(*n);
            data = rest;
            taken(chunk)?[*start..*start + *n].copy_from_slice(now);
        }
        Ok(true)
    }

    fn verify(&self, _offset: u64, _len: u64) -> Result<(), NsError> {
        Ok(())
    }
}

impl fmt::Debug for RamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamDisk")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_across_chunks() {
        let disk = RamDisk::new(8 << 20, 512).unwrap();
        let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 251) as u8).collect();
        let at = (1 << 20) + 512;
        disk.write_at(at, &data, false).unwrap();
        let mut back = vec![1; data.len() + 1024];
        disk.read_at(at - 512, &mut back).unwrap();
        assert!(
            back[..512]
                .iter()
                .chain(&back[512 + data.len()..])
                .all(|&b| b == 0)
        );
        assert_eq!(back[512..512 + data.len()], data);
    }

    #[test]
    fn memory_is_taken_by_writing_and_given_back_by_deallocating() {
        let disk = RamDisk::new(1 << 40, 4096).unwrap();
        assert_eq!(disk.resident_bytes(), 0);
        let mut buf = vec![9; 4096];
        disk.read_at(1 << 39, &mut buf).unwrap();
        assert_eq!((disk.resident_bytes(), buf[0]), (0, 0));
        disk.write_at(1 << 39, &[7; 4096], true).unwrap();
        assert_eq!(disk.resident_bytes(), CHUNK as u64);
        disk.write_zeroes(1 << 39, 512, false, false).unwrap();
        disk.read_at(1 << 39, &mut buf).unwrap();
        assert_eq!((buf[0], buf[511], buf[512]), (0, 0, 7));
        disk.deallocate((1 << 39) - 4096, 2 * CHUNK as u64).unwrap();
        assert_eq!(disk.resident_bytes(), 0);
    }

    #[test]
    fn compares_and_writes_across_chunks_or_not_at_all() {
        let disk = RamDisk::new(8 << 20, 512).unwrap();
        let at = CHUNK as u64 - 512;
        let (zeroes, ones, twos) = ([0; 1024], [1; 1024], [2; 1024]);
        assert!(disk.compare(at, &zeroes).unwrap());
        assert!(!disk.compare_and_write(at, &ones, &twos, false).unwrap());
        assert_eq!(disk.resident_bytes(), 0);
        assert!(disk.compare_and_write(at, &zeroes, &ones, true).unwrap());
        assert!(disk.compare(at, &ones).unwrap());
        disk.write_at(at + 1023, &[7], false).unwrap();
        assert!(!disk.compare(at, &ones).unwrap());
        assert!(!disk.compare_and_write(at, &ones, &twos, false).unwrap());
        assert!(disk.compare(at, &ones[..512]).unwrap());
    }

    #[test]
    fn sizes_are_checked() {
        for (bytes, block) in [(1000, 512), (0, 512), (4096, 0), (4096, 1000)] {
            assert!(RamDisk::new(bytes, block).is_err(), "{bytes} {block}");
        }
    }
}

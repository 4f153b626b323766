//! A namespace in memory.

#[expect(
    unsafe_code,
    reason = "memory that many threads use at a time, and the kernel"
)]
mod memory;

use self::memory::{Memory, Shared};
use super::{BlockDevice, Caps, Loan, NsError, NsInfo, Support};
use crate::Error;
use std::fmt;

/// Bytes of a [`RamDisk`] that stay as they are while this lives; see [`Loan`].
pub(in crate::ns) type Lent<'a> = Shared<'a>;

/// A sparse RAM disk: memory is taken when it is written, in chunks of 2 MiB (huge pages where the
/// system gives them), and given back when whole chunks are deallocated or zeroed. What was never
/// written reads as zeroes and takes none.
///
/// Wrap it in [`super::Inline`]. Reads are sent to hosts from where the data lies. No command sees
/// another one's write half done: pages of 4 KiB are locked while their bytes are copied.
pub struct RamDisk {
    info: NsInfo,
    memory: Memory,
}

impl RamDisk {
    /// A disk of `bytes` bytes in blocks of `block_size` bytes.
    ///
    /// # Errors
    /// [`Error::Config`] if the block size is none, or `bytes` is not a multiple of it,
    /// [`Error::Io`] if there is no room for so much in the process's memory.
    pub fn new(bytes: u64, block_size: u32) -> Result<Self, Error> {
        let info = NsInfo::new(block_size, bytes / u64::from(block_size.max(1)));
        if block_size != 0 && !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(Error::config(format!(
                "{bytes} bytes is no multiple of the block size, {block_size} bytes"
            )));
        }
        info.validate()?;
        let memory = usize::try_from(bytes)
            .map_err(std::io::Error::other)
            .and_then(Memory::new)
            .map_err(|err| Error::io(format!("no RAM disk of {bytes} bytes"), err))?;
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
        info.atomic_write = NsInfo::ATOMIC_MAX;
        Ok(Self { info, memory })
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
        self.memory.taken_bytes() as u64
    }
}

/// A place on a disk that fits the process's memory.
#[expect(clippy::cast_possible_truncation, reason = "see `RamDisk::new`")]
const fn as_usize(n: u64) -> usize {
    n as usize
}

impl BlockDevice for RamDisk {
    fn info(&self) -> NsInfo {
        self.info.clone()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.copy_from_slice(&self.memory.share(as_usize(offset), buf.len()));
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], _fua: bool) -> Result<(), NsError> {
        let mut to = self.memory.exclude(as_usize(offset), buf.len());
        to.copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, _: bool) -> Result<(), NsError> {
        // A piece at a time: nobody is kept waiting for gigabytes, and nothing this long is
        // promised to be atomic.
        let (mut at, end) = (as_usize(offset), as_usize(offset + len));
        while at < end {
            let next = (at + 1).next_multiple_of(memory::CHUNK).min(end);
            if self.memory.is_taken(at / memory::CHUNK) {
                self.memory.exclude(at, next - at).clear();
            }
            at = next;
        }
        Ok(())
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        self.write_zeroes(offset, len, true, false)
    }

    fn compare(&self, offset: u64, data: &[u8]) -> Result<bool, NsError> {
        Ok(*self.memory.share(as_usize(offset), data.len()) == *data)
    }

    fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        data: &[u8],
        _fua: bool,
    ) -> Result<bool, NsError> {
        let mut now = self.memory.exclude(as_usize(offset), data.len());
        let same = *now == *expected;
        if same {
            now.copy_from_slice(data);
        }
        Ok(same)
    }

    fn verify(&self, _offset: u64, _len: u64) -> Result<(), NsError> {
        Ok(())
    }

    fn lends(&self) -> bool {
        true
    }

    fn lend(&self, offset: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        let at = as_usize(offset);
        let lent = match alone {
            true => self.memory.share(at, len),
            false => self.memory.try_share(at, len)?,
        };
        Some(Loan(lent))
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
    use super::memory::CHUNK;
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

//! Positioned I/O on one descriptor, through the page cache or past it.

use rustix::fs::{
    AtFlags, OFlags, SeekFrom, StatxFlags, fcntl_getfl, fcntl_setfl, fdatasync, seek, statx,
};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2, retry_on_intr};
use std::fs::File;
use std::io::{self, IoSlice};
use std::iter;
use std::sync::{Mutex, PoisonError};

/// What is written where no command of the kernel makes zeroes.
static ZEROES: Page<{ 64 << 10 }> = Page([0; 64 << 10]);

/// Memory aligned for direct I/O on every device.
#[repr(align(4096))]
struct Page<const N: usize>([u8; N]);

/// An open file or block device.
#[derive(Debug)]
pub(super) struct RawFile {
    pub(super) file: File,
    /// The same, opened once more for writes with FUA. These ask, as a flush does, for what could
    /// not be written back of anybody's data, and the kernel tells each open file once: what they
    /// are told must not be missing when a flush asks.
    fua: Option<File>,
    /// Held for a write with FUA through the page cache. Of two at a time the one would be told what
    /// could not be written back of the other's data, which would be told nothing.
    fua_turn: Mutex<()>,
    direct: bool,
    /// What the addresses of buffers must be multiples of.
    memory_align: usize,
}

impl RawFile {
    /// I/O through the page cache. `fua` is the same file, opened once more, if it is written.
    pub(super) const fn buffered(file: File, fua: Option<File>) -> Self {
        Self {
            file,
            fua,
            fua_turn: Mutex::new(()),
            direct: false,
            memory_align: 1,
        }
    }

    /// Goes past the page cache from now on. `block_size` is what all offsets and lengths will be
    /// multiples of.
    ///
    /// All requests go direct or none does: requests of both kinds on neighbouring blocks may
    /// leave stale data in the page cache.
    ///
    /// # Errors
    /// Says in words why direct I/O is not to be had; everything stays as it was.
    pub(super) fn enable_direct(&mut self, block_size: u32) -> Result<(), String> {
        let flags = fcntl_getfl(&self.file).map_err(|err| err.to_string())?;
        self.set_flags(flags | OFlags::DIRECT)
            .map_err(|_| "the file system has none".to_owned())?;
        match self.direct_alignment(block_size) {
            Ok(memory_align) => {
                (self.direct, self.memory_align) = (true, memory_align);
                Ok(())
            }
            Err(why) => {
                self.set_flags(flags).map_err(|err| err.to_string())?;
                Err(why)
            }
        }
    }

    fn set_flags(&self, flags: OFlags) -> rustix::io::Result<()> {
        let mut files = iter::once(&self.file).chain(&self.fua);
        files.try_for_each(|file| fcntl_setfl(file, flags))
    }

    /// The alignment of memory that direct I/O wants, if it can do blocks of `block_size` bytes.
    fn direct_alignment(&self, block_size: u32) -> Result<usize, String> {
        let wanted = |align: u32| format!("it takes blocks of {align} bytes, not {block_size}");
        // Since Linux 6.1, and not every file system tells.
        if let Ok(stat) = statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        {
            return match (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align) {
                (0, _) | (_, 0) => Err("the file system has none for this file".to_owned()),
                (_, align) if !block_size.is_multiple_of(align) => Err(wanted(align)),
                (memory, _) => Ok(memory),
            };
        }
        let mut page = Page([0; 4096]);
        let mut reads =
            |len: usize| match retry_on_intr(|| pread(&self.file, &mut page.0[..len], 0)) {
                Err(Errno::INVAL) => Ok(false),
                Err(err) => Err(err.to_string()),
                Ok(_) => Ok(true),
            };
        if reads(512)? {
            Ok(512)
        } else if !reads(4096)? {
            Err("reads are refused".to_owned())
        } else if block_size.is_multiple_of(4096) {
            Ok(4096)
        } else {
            Err(wanted(4096))
        }
    }

    pub(super) const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Fills `buf` from `offset`. Returns how many bytes there are: fewer only if the file ends
    /// behind them.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_aligned(buf) {
            return self.read_aligned(offset, buf);
        }
        let mut bounce = Bounce::new(buf.len(), self.memory_align);
        let n = self.read_aligned(offset, bounce.bytes_mut())?;
        buf.copy_from_slice(bounce.bytes_mut());
        Ok(n)
    }

    /// Writes `buf` at `offset`, with `fua` to stable storage.
    pub(super) fn write(&self, offset: u64, buf: &[u8], fua: bool) -> io::Result<()> {
        if self.is_aligned(buf) {
            return self.write_aligned(offset, buf, fua);
        }
        let mut bounce = Bounce::new(buf.len(), self.memory_align);
        bounce.bytes_mut().copy_from_slice(buf);
        self.write_aligned(offset, bounce.bytes_mut(), fua)
    }

    /// Writes `len` zero bytes.
    pub(super) fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len != 0 {
            let n = usize::try_from(len).map_or(ZEROES.0.len(), |len| len.min(ZEROES.0.len()));
            self.write(offset, &ZEROES.0[..n], false)?;
            offset += n as u64;
            len -= n as u64;
        }
        Ok(())
    }

    /// Brings what was written to stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| fdatasync(&self.file))?)
    }

    /// What is to be written to, with FUA or without.
    pub(super) fn written(&self, fua: bool) -> &File {
        self.fua.as_ref().filter(|_| fua).unwrap_or(&self.file)
    }

    /// Whether a write has to wait until others are over.
    pub(super) const fn takes_turns(&self, fua: bool) -> bool {
        fua && !self.direct
    }

    /// Whether memory suits the file, or has to be bounced.
    pub(super) fn is_aligned(&self, buf: &[u8]) -> bool {
        buf.as_ptr().addr().is_multiple_of(self.memory_align)
    }

    fn read_aligned(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let n = retry_on_intr(|| pread(&self.file, &mut *rest, offset + done as u64))?;
            if n == 0 {
                break;
            }
            done += n;
        }
        Ok(done)
    }

    fn write_aligned(&self, mut offset: u64, mut buf: &[u8], fua: bool) -> io::Result<()> {
        let file = self.written(fua);
        let turn = || self.fua_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _turn = self.takes_turns(fua).then(turn);
        while !buf.is_empty() {
            let n = retry_on_intr(|| match fua {
                true => pwritev2(file, &[IoSlice::new(buf)], offset, ReadWriteFlags::DSYNC),
                false => pwrite(file, buf, offset),
            })?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buf = &buf[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// Size in bytes of the file or device.
    pub(super) fn size(&self) -> io::Result<u64> {
        // Positioned reads and writes do not care for the file's position.
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }
}

/// Nothing could be read at `offset`, where there should be something.
pub(super) fn truncated(offset: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the file ends at byte {offset}: it has been truncated"),
    )
}

/// Memory for a caller whose own is not aligned; the target's buffers always are.
struct Bounce {
    mem: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn new(len: usize, align: usize) -> Self {
        let mem = vec![0; len + align];
        let start = mem.as_ptr().addr().next_multiple_of(align) - mem.as_ptr().addr();
        Self { mem, start, len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.mem[self.start..self.start + self.len]
    }
}

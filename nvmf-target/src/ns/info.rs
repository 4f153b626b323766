//! What a namespace is and can do.

use crate::Error;

/// Whether a backend has an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Support {
    /// Not offered to hosts.
    #[default]
    None,
    /// The target does it with reads, writes and flushes.
    Emulate,
    /// Requests for it reach the lane.
    Native,
}

/// Operations beyond Read and Write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// Flush. Used only with [`NsInfo::volatile_cache`], and then it has to be `Native`; without
    /// such a cache there is nothing to flush, and the command succeeds at once.
    pub flush: Support,
    /// Force Unit Access. `Native`: [`crate::ns::Op::Write`] carries it. Otherwise a write with
    /// FUA is followed by a Flush, if there is a volatile cache.
    pub fua: Support,
    /// Write Zeroes. `Emulate`: the target writes zeroes. `None`: Invalid Command Opcode.
    pub write_zeroes: Support,
    /// Dataset Management with the deallocate attribute. `None` and `Emulate`: a hint that is
    /// not taken, the command succeeds.
    pub deallocate: Support,
    /// Compare. `Native`: [`crate::ns::Op::Compare`]. `Emulate`: the target reads and compares.
    /// `None`: Invalid Command Opcode.
    pub compare: Support,
    /// The fused operation Compare and Write. `Native`: [`crate::ns::Op::CompareAndWrite`].
    /// `Emulate`: the target reads, compares and writes, and holds back everything else that it
    /// writes to this backend meanwhile, wherever that is attached. `None`: Invalid Field in Command.
    pub compare_and_write: Support,
    /// Verify. `Native`: [`crate::ns::Op::Verify`]. `Emulate`: the target reads. `None`: Invalid
    /// Command Opcode.
    pub verify: Support,
    /// Copy. `Native`, `Emulate`: the target reads and writes. `None`: Invalid Command Opcode.
    pub copy: Support,
    /// Write Uncorrectable. `Native`, `Emulate`: the target remembers the blocks, as long as the
    /// backend is attached anywhere, and fails what reads them. `None`: Invalid Command Opcode.
    pub write_uncorrectable: Support,
}

/// Geometry, identity and capabilities of a namespace.
///
/// ```
/// use nvmf_target::ns::NsInfo;
/// let info = NsInfo::new(512, 2048).with_uuid([7; 16]);
/// assert_eq!(info.bytes(), 1 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NsInfo {
    /// LBADS: log2 of the logical block size in bytes, 9 to 16.
    pub lba_shift: u8,
    /// NSZE: number of logical blocks.
    pub blocks: u64,
    /// Writes are refused with Namespace is Write Protected.
    pub read_only: bool,
    /// UUID of the namespace; all zero: the target derives one from the subsystem NQN and NSID.
    pub uuid: [u8; 16],
    /// NGUID, big endian; all zero: derived likewise.
    pub nguid: [u8; 16],
    /// EUI64, big endian; all zero: derived likewise.
    pub eui64: [u8; 8],
    /// Operations beyond Read and Write.
    pub caps: Caps,
    /// There is a volatile write cache: data is safe only after Flush or FUA.
    pub volatile_cache: bool,
    /// Deallocated blocks read as zeroes.
    pub dealloc_reads_zero: bool,
    /// Blocks below this size (in bytes) are written by read-modify-write; 0: unknown. Hosts align
    /// to it (NPWG, NPWA).
    pub preferred_write: u32,
    /// Preferred size of a deallocation in bytes (NPDG, NPDA); 0: unknown.
    pub preferred_deallocate: u32,
    /// Bytes that one write changes in such a way that no read or other write sees half of it
    /// (NAWUN), a multiple of the block size up to 128 KiB; 0: one logical block.
    pub atomic_write: u32,
    /// Bytes of which a power failure leaves all or nothing written (NAWUPF), at most
    /// `atomic_write`; 0: one logical block.
    pub atomic_write_power_fail: u32,
    /// Bytes whose multiples no write may cross that is to be atomic (NABSN, NABSPF), at least
    /// `atomic_write`; 0: there is no such boundary.
    pub atomic_boundary: u32,
    /// The most requests a lane takes at a time.
    pub depth: u32,
}

impl NsInfo {
    /// A namespace of `blocks` logical blocks of `block_size` bytes: writable, nothing but Read
    /// and Write native, no volatile cache. Checked when the namespace is added.
    #[must_use]
    pub const fn new(block_size: u32, blocks: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
        let lba_shift = if block_size.is_power_of_two() {
            block_size.trailing_zeros() as u8
        } else {
            0
        };
        Self {
            lba_shift,
            blocks,
            read_only: false,
            uuid: [0; 16],
            nguid: [0; 16],
            eui64: [0; 8],
            caps: Caps {
                flush: Support::None,
                fua: Support::Emulate,
                write_zeroes: Support::Emulate,
                deallocate: Support::None,
                compare: Support::Emulate,
                compare_and_write: Support::Emulate,
                verify: Support::Emulate,
                copy: Support::Emulate,
                write_uncorrectable: Support::Emulate,
            },
            volatile_cache: false,
            dealloc_reads_zero: false,
            preferred_write: 0,
            preferred_deallocate: 0,
            atomic_write: 0,
            atomic_write_power_fail: 0,
            atomic_boundary: 0,
            depth: 1024,
        }
    }

    /// Sets the UUID. Should be the same whenever the same storage is served, and of no other.
    #[must_use]
    pub const fn with_uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = uuid;
        self
    }

    /// Sets NGUID and EUI64.
    #[must_use]
    pub const fn with_ids(mut self, nguid: [u8; 16], eui64: [u8; 8]) -> Self {
        self.nguid = nguid;
        self.eui64 = eui64;
        self
    }

    /// Makes the namespace read-only or writable.
    #[must_use]
    pub const fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Declares a volatile write cache with a native Flush.
    #[must_use]
    pub const fn with_volatile_cache(mut self) -> Self {
        self.volatile_cache = true;
        self.caps.flush = Support::Native;
        self
    }

    /// Sets what is supported beyond Read and Write.
    #[must_use]
    pub const fn with_caps(mut self, caps: Caps) -> Self {
        self.caps = caps;
        self
    }

    /// Logical block size in bytes.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        1 << self.lba_shift
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks << self.lba_shift
    }

    /// Checks what the rest of the target relies on.
    ///
    /// # Errors
    /// [`Error::Config`] names the value and what would be accepted.
    pub fn validate(&self) -> Result<(), Error> {
        if !(9..=16).contains(&self.lba_shift) {
            return Err(Error::config(format!(
                "block size: log2 is {}; a power of two from 512 to 65536 bytes is wanted",
                self.lba_shift
            )));
        }
        if self.blocks == 0 || self.blocks > (i64::MAX as u64) >> self.lba_shift {
            return Err(Error::config(format!(
                "{} blocks of {} bytes: 1 block to 8 EiB is wanted",
                self.blocks,
                self.block_size()
            )));
        }
        if self.volatile_cache && self.caps.flush != Support::Native {
            return Err(Error::config(
                "a volatile cache without Flush: caps.flush has to be Native".to_owned(),
            ));
        }
        self.validate_atomicity()?;
        if self.depth == 0 {
            return Err(Error::config(
                "lane depth 0: at least 1 is wanted".to_owned(),
            ));
        }
        Ok(())
    }
}

impl NsInfo {
    fn validate_atomicity(&self) -> Result<(), Error> {
        let block = self.block_size();
        let write = self.atomic_write.max(block);
        let (fail, boundary) = (self.atomic_write_power_fail, self.atomic_boundary);
        let whole = [self.atomic_write, fail, boundary]
            .iter()
            .all(|bytes| bytes.is_multiple_of(block));
        let boundary_fits =
            boundary == 0 || (boundary >= write && boundary >> self.lba_shift <= 1 << 16);
        // A write is made of pieces beyond this size, in Copy.
        if whole && write <= Self::ATOMIC_MAX && fail <= write && boundary_fits {
            Ok(())
        } else {
            Err(Error::config(format!(
                "atomic writes of {} bytes, {fail} over a power failure, inside {boundary} bytes: multiples of the \
                 block size are wanted, at most {} bytes, no more over a power failure, and a boundary no smaller",
                self.atomic_write,
                Self::ATOMIC_MAX
            )))
        }
    }

    /// The most that `atomic_write` can be, bytes.
    pub(crate) const ATOMIC_MAX: u32 = 128 << 10;
}

impl Default for Caps {
    fn default() -> Self {
        NsInfo::new(512, 1).caps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_names_what_is_wrong() {
        NsInfo::new(512, 1).validate().unwrap();
        NsInfo::new(65536, 1).validate().unwrap();
        for bad in [
            NsInfo::new(0, 1),
            NsInfo::new(256, 1),
            NsInfo::new(513, 1),
            NsInfo::new(131_072, 1),
        ] {
            assert!(
                bad.validate()
                    .unwrap_err()
                    .to_string()
                    .contains("block size")
            );
        }
        assert!(NsInfo::new(512, 0).validate().is_err());
        let atomic = |write, fail, boundary| {
            let mut info = NsInfo::new(4096, 1);
            (info.atomic_write, info.atomic_write_power_fail) = (write, fail);
            info.atomic_boundary = boundary;
            info.validate().is_ok()
        };
        for (write, fail, boundary) in [
            (0, 0, 0),
            (4096, 4096, 4096),
            (128 << 10, 8192, 128 << 10),
            (0, 4096, 256 << 20),
        ] {
            assert!(atomic(write, fail, boundary), "{write} {fail} {boundary}");
        }
        for (write, fail, boundary) in [
            (512, 0, 0),
            (256 << 10, 0, 0),
            (4096, 8192, 0),
            (0, 8192, 0),
            (8192, 0, 4096),
            (0, 0, 512),
            (0, 0, (256 << 20) + 4096),
        ] {
            assert!(!atomic(write, fail, boundary), "{write} {fail} {boundary}");
        }
        assert!(NsInfo::new(512, 1 << 54).validate().is_err());
    }
}

//! What the kernel offers for block devices only by `ioctl` and sysfs.

use rustix::fs::{Dev, major, minor};
use rustix::io::Result;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::fs;
use std::os::fd::AsFd;

/// Discards `len` bytes from `offset` of a block device; both are multiples of its block size.
pub(super) fn discard(fd: impl AsFd, offset: u64, len: u64) -> Result<()> {
    // SAFETY: BLKDISCARD (linux/fs.h) reads two 64-bit integers, offset and length in bytes, and
    // touches no other memory of this process. On anything but a block device it fails.
    unsafe {
        ioctl(
            fd,
            Setter::<{ opcode::none(0x12, 119) }, [u64; 2]>::new([offset, len]),
        )
    }
}

/// What sysfs tells about a block device. Values that cannot be read are 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The device refuses writes.
    pub(super) read_only: bool,
    /// Writes of this many bytes, so aligned, are not read-modify-write.
    pub(super) minimum_io: u64,
    /// Size and alignment of what can be discarded.
    pub(super) discard_granularity: u64,
    /// The device can discard.
    pub(super) discard: bool,
}

impl Limits {
    pub(super) fn of(device: Dev) -> Self {
        let dir = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let number = |file: &str| -> u64 {
            let text = fs::read_to_string(format!("{dir}/{file}"));
            text.ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        // A partition has no queue of its own; its disk's is one folder up.
        let queue =
            |file: &str| number(&format!("queue/{file}")).max(number(&format!("../queue/{file}")));
        Self {
            read_only: number("ro") != 0,
            minimum_io: queue("minimum_io_size"),
            discard_granularity: queue("discard_granularity"),
            discard: queue("discard_max_bytes") != 0,
        }
    }
}

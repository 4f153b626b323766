//! The NVMe/TCP transport as two state machines, one per end of a connection.
//!
//! A machine never moves payload: [`Need`] says where the next bytes of the stream belong and the
//! driver (socket loop, test, fuzzer) puts them there; [`TxList`] says which bytes leave next and
//! the driver gathers them into one write. The contract of both machines, each line a test:
//!
//! 1. *Split invariance*: however the input stream is cut, events and output are the same.
//! 2. `need()` never asks for more than the configuration allows.
//! 3. `parse` never consumes payload; called with too few bytes it consumes nothing.
//! 4. Every call is legal in any state and O(1), but for `TcpTarget::find`; a stale [`Slot`] is
//!    ignored.
//! 5. Nothing is allocated outside `new` and the one call that sizes a queue.
//! 6. Payload bytes never enter the machine: a digest is a number passed in.
//! 7. A PDU is fully validated before its first effect or causes exactly one [`Violation`], after
//!    which at most one TermReq leaves and then nothing.
//! 8. `transmitted` may be called with any split of what [`TxList`] held.
//! 9. Equal input gives equal output.

pub mod host;
#[cfg(any(test, feature = "test-util"))]
pub mod pair;
pub mod target;
mod tx;

pub use tx::{Digest, Seg, TxList};

use crate::wire::pdu::{Fes, TermReq};
use core::fmt;
use crc_fast::{CrcAlgorithm, Digest as Crc};

/// A point in the caller's monotonic time, in nanoseconds since any fixed moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// This moment and `nanos` nanoseconds more, saturating.
    #[must_use]
    pub const fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

/// One command in a machine's table: an index, and a generation that tells a slot's users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Slot {
    index: u16,
    generation: u16,
}

impl Slot {
    pub(crate) const fn new(index: u16, generation: u16) -> Self {
        Self { index, generation }
    }

    /// Index into a table of as many entries as the machine has slots.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    pub(crate) const fn generation(self) -> u16 {
        self.generation
    }
}

/// What a machine wants to happen with the next bytes of the stream. The answer stays the same
/// until a call changes the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Show `parse` at least `min` contiguous bytes (at most 255).
    Bytes {
        /// How many bytes the next step takes at least.
        min: usize,
    },
    /// Put the next `len` bytes at `offset` of the slot's buffer and report them with `placed`.
    Payload {
        /// The command that the data belongs to.
        slot: Slot,
        /// Byte offset into the command's data.
        offset: u32,
        /// How many bytes of this PDU's data are still to come.
        len: u32,
        /// With a data digest: the CRC32C so far, to be continued over the bytes placed.
        crc: Option<u32>,
    },
    /// Swallow the next `len` bytes and report them with `placed`.
    Discard {
        /// How many bytes.
        len: u32,
    },
    /// Do not read: the machine cannot go on before something else happens.
    Wait(WaitFor),
    /// Read and throw away until the peer closes: a TermReq is on its way, and closing with unread
    /// data could destroy it before the peer sees it.
    Drain,
    /// The connection is over; close it.
    Closed,
}

/// What a machine that does not read is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// A free slot: every command of the queue is still being worked on.
    Slot,
    /// The driver's decision on a command whose data is next in the stream.
    Command(Slot),
}

/// The peer broke NVMe/TCP: what to say in the TermReq (NVMe/TCP 1.1 §3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation(pub TermReq);

impl Violation {
    pub(crate) const fn new(fes: Fes, fei: u32) -> Self {
        Self(TermReq { fes, fei })
    }

    /// A header field at byte `offset` has a value that is not allowed.
    pub(crate) const fn field(offset: u32) -> Self {
        Self::new(Fes::INVALID_HEADER_FIELD, offset)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (FES {}, FEI {:#x})",
            self.0.fes, self.0.fes.0, self.0.fei
        )
    }
}

/// What both ends agreed on in ICReq and ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// Header digests in both directions.
    pub header_digest: bool,
    /// Data digests in both directions.
    pub data_digest: bool,
    /// HPDA: alignment of data that the host receives, dwords, 0's based.
    pub hpda: u8,
    /// CPDA: alignment of data that the controller receives, dwords, 0's based.
    pub cpda: u8,
    /// MAXR2T, 0's based.
    pub maxr2t: u32,
    /// MAXH2CDATA in bytes.
    pub maxh2cdata: u32,
}

/// CRC32C as NVMe/TCP uses it for both digests: initial value FFFFFFFFh and final inversion.
///
/// `crc` is 0 for the first bytes and the value so far for those that follow.
#[must_use]
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    /// Below this the wider instructions take longer to begin than they save.
    const LONG: usize = 512;
    if bytes.len() < LONG {
        return crc32c::crc32c_append(crc, bytes);
    }
    let mut digest = Crc::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "a CRC of 32 bits")]
    {
        digest.finalize() as u32
    }
}

/// Whether a received digest is right. When fuzzing every digest is, or no input would get past.
pub(crate) fn digest_matches(received: u32, computed: u32) -> bool {
    cfg!(fuzzing) || received == computed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_computing_a_digest_agree() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        let data: Vec<u8> = (0..=250).cycle().take(5000).collect();
        for len in [0, 1, 8, 72, 511, 512, 513, 1000, 4095, 4096, 5000] {
            let want = crc32c::crc32c(&data[..len]);
            assert_eq!(crc32c(0, &data[..len]), want, "{len} bytes");
            for first in [0, 1, 100, 511, 512, 2048] {
                let (a, b) = data[..len].split_at(first.min(len));
                assert_eq!(crc32c(crc32c(0, a), b), want, "{first} of {len} bytes");
            }
        }
    }
}

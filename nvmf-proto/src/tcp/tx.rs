//! What leaves next on a connection: PDU headers by value, payload by reference.

use super::{Slot, crc32c};
use crate::wire::pdu::DIGEST_LEN;

/// A run of bytes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seg {
    /// `len` bytes of [`TxList::heads`] from `start`.
    Head {
        /// First byte.
        start: u32,
        /// Number of bytes.
        len: u32,
    },
    /// `len` bytes of the slot's buffer from `offset`.
    Data {
        /// The command whose buffer is meant.
        slot: Slot,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
    },
}

impl Seg {
    const fn len(&self) -> u32 {
        match *self {
            Self::Head { len, .. } | Self::Data { len, .. } => len,
        }
    }

    const fn skip(&mut self, n: u32) {
        match self {
            Self::Head { start: at, len }
            | Self::Data {
                offset: at, len, ..
            } => {
                *at += n;
                *len -= n;
            }
        }
    }
}

/// A data digest that is still to be computed: the CRC32C of a run of a slot's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    at: usize,
    /// The command whose buffer is meant.
    pub slot: Slot,
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

/// An ordered list of bytes to send: headers in an arena of its own, payload by reference to the
/// driver's buffers, many PDUs in one list and so in one gather write.
///
/// A machine appends PDUs until the list is full; the driver then fills in the data digests
/// ([`TxList::fill_digests`]), writes what [`TxList::segments`] says and reports progress to the
/// list ([`TxList::advance`]) and to the machine. Bounded by what `new` was given; never grows.
#[derive(Debug)]
pub struct TxList {
    heads: Box<[u8]>,
    used: usize,
    /// Bytes still to be sent.
    bytes: usize,
    segs: Vec<Seg>,
    first: usize,
    digests: Vec<Digest>,
}

impl TxList {
    /// A list for at most `head_bytes` bytes of headers and `segs` runs.
    ///
    /// A machine needs room for 256 bytes and 4 runs to make progress; less is raised to that.
    #[must_use]
    pub fn new(head_bytes: usize, segs: usize) -> Self {
        let segs = segs.max(4);
        Self {
            heads: vec![0; head_bytes.max(256)].into_boxed_slice(),
            used: 0,
            bytes: 0,
            segs: Vec::with_capacity(segs),
            first: 0,
            digests: Vec::with_capacity(segs),
        }
    }

    /// Bytes on the heap of a list for `head_bytes` and `segs`, itself included.
    #[must_use]
    pub const fn bytes(head_bytes: usize, segs: usize) -> usize {
        size_of::<Self>() + head_bytes + segs * (size_of::<Seg>() + size_of::<Digest>())
    }

    /// Whether everything in the list has been sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == self.segs.len()
    }

    /// Makes the list empty.
    pub fn clear(&mut self) {
        self.used = 0;
        self.bytes = 0;
        self.first = 0;
        self.segs.clear();
        self.digests.clear();
    }

    /// What is still to be sent, in order.
    #[must_use]
    pub fn segments(&self) -> &[Seg] {
        self.segs.get(self.first..).unwrap_or_default()
    }

    /// The arena that [`Seg::Head`] refers to.
    #[must_use]
    pub const fn heads(&self) -> &[u8] {
        &self.heads
    }

    /// Bytes still to be sent.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.bytes
    }

    /// Takes note that the next `n` bytes have been sent; more than there are is the same as all.
    /// An emptied list is ready to be filled again.
    pub fn advance(&mut self, mut n: usize) {
        if n >= self.bytes {
            return self.clear();
        }
        self.bytes -= n;
        while let Some(seg) = self.segs.get_mut(self.first) {
            let len = seg.len() as usize;
            if n < len {
                #[expect(clippy::cast_possible_truncation, reason = "less than a u32")]
                seg.skip(n as u32);
                return;
            }
            n -= len;
            self.first += 1;
        }
    }

    /// Computes the data digests that the machine left open; `data` gives the bytes of a run of a
    /// slot's buffer. To be called once after the machine has filled the list, before sending.
    pub fn fill_digests<'a>(&mut self, mut data: impl FnMut(&Digest) -> &'a [u8]) {
        for digest in self.digests.drain(..) {
            let crc = crc32c(0, data(&digest));
            if let Some(bytes) = self.heads.get_mut(digest.at..digest.at + DIGEST_LEN) {
                bytes.copy_from_slice(&crc.to_le_bytes());
            }
        }
    }

    /// Room for a PDU of `head_bytes` bytes of header, digests and padding, with or without data?
    pub(crate) fn has_room(&self, head_bytes: usize) -> bool {
        self.heads.len() - self.used >= head_bytes
            && self.segs.capacity() - self.segs.len() >= 3
            && self.digests.len() < self.digests.capacity()
    }

    /// Appends header bytes. The caller has asked [`TxList::has_room`].
    pub(crate) fn push_head(&mut self, bytes: &[u8]) {
        if let Some(to) = self.heads.get_mut(self.used..self.used + bytes.len()) {
            to.copy_from_slice(bytes);
            self.extend_heads(bytes.len());
        }
    }

    /// The same for a header whose length the compiler knows: no call of `memcpy`.
    #[inline]
    pub(crate) fn push_header<const N: usize>(&mut self, header: &[u8; N]) {
        if let Some(to) = self.heads.get_mut(self.used..)
            && let Some(to) = to.first_chunk_mut()
        {
            *to = *header;
            self.extend_heads(N);
        }
    }

    /// Counts the next `len` bytes of the arena in.
    #[inline]
    fn extend_heads(&mut self, len: usize) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the arena is far below 4 GiB"
        )]
        let (at, n) = (self.used as u32, len as u32);
        self.used += len;
        self.bytes += len;
        // Headers that follow each other in the list follow each other in the arena: one run.
        if let Some(Seg::Head { start, len }) =
            self.segs.get_mut(self.first..).and_then(<[_]>::last_mut)
            && *start + *len == at
        {
            *len += n;
            return;
        }
        self.segs.push(Seg::Head { start: at, len: n });
    }

    /// Appends a run of a slot's buffer and, with `digest`, room for the digest of that run.
    #[inline]
    pub(crate) fn push_data(&mut self, slot: Slot, offset: u32, len: u32, digest: bool) {
        self.bytes += len as usize;
        self.segs.push(Seg::Data { slot, offset, len });
        if digest {
            self.digests.push(Digest {
                at: self.used,
                slot,
                offset,
                len,
            });
            self.push_head(&[0; DIGEST_LEN]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(list: &TxList, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for seg in list.segments() {
            let (from, start, len) = match *seg {
                Seg::Head { start, len } => (list.heads(), start, len),
                Seg::Data { offset, len, .. } => (data, offset, len),
            };
            out.extend_from_slice(&from[start as usize..(start + len) as usize]);
        }
        out
    }

    #[test]
    fn any_split_gives_the_same_bytes() {
        let slot = Slot::new(0, 0);
        let data: Vec<u8> = (0..=255).collect();
        let fill = |list: &mut TxList| {
            list.push_head(b"head");
            list.push_head(b"er");
            list.push_data(slot, 3, 100, true);
            list.push_head(b"tail");
            list.fill_digests(|d| &data[d.offset as usize..(d.offset + d.len) as usize]);
        };
        let mut whole = TxList::new(256, 8);
        fill(&mut whole);
        let want = bytes(&whole, &data);
        assert_eq!(want.len(), 4 + 2 + 100 + 4 + 4);
        assert_eq!(want[106..110], crc32c(0, &data[3..103]).to_le_bytes());
        assert_eq!(whole.segments().len(), 3, "adjacent headers are one run");
        for step in 1..=want.len() {
            let mut list = TxList::new(256, 8);
            fill(&mut list);
            let mut got = Vec::new();
            while !list.is_empty() {
                let n = step.min(list.remaining());
                got.extend_from_slice(&bytes(&list, &data)[..n]);
                list.advance(n);
            }
            assert_eq!(got, want, "step {step}");
            assert!(list.has_room(256));
        }
    }
}

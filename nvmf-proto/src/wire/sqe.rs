//! Submission queue entry.

use super::SglDescriptor;
use byteorder::{ByteOrder, LittleEndian};
use core::fmt;

/// A 64-byte submission queue entry (NVMe Base 2.1, Submission Queue Entry).
///
/// Kept as the bytes that came, read through accessors: a command is looked at once and most of
/// its dwords never.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Sqe(pub [u8; 64]);

/// FUSE: bits 1:0 of SQE byte 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: a command by itself.
    None,
    /// 01b: first of a fused pair.
    First,
    /// 10b: second of a fused pair.
    Second,
    /// 11b: reserved.
    Reserved,
}

impl Default for Sqe {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Sqe {
    /// An entry with an opcode and, as NVMe over Fabrics wants it, PSDT 01b (SGL).
    #[must_use]
    pub fn with_opcode(opcode: u8) -> Self {
        let mut sqe = Self::default();
        sqe.0[0] = opcode;
        sqe.0[1] = 0x40;
        sqe
    }

    /// Byte 0: opcode.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Byte 1, bits 1:0: FUSE.
    #[must_use]
    pub const fn fuse(&self) -> Fuse {
        match self.0[1] & 3 {
            0 => Fuse::None,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Byte 1, bits 7:6: PSDT. 01b says that the data pointer is an SGL.
    #[must_use]
    pub const fn psdt(&self) -> u8 {
        self.0[1] >> 6
    }

    /// Bytes 3:2: command identifier.
    #[must_use]
    pub const fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Sets the command identifier.
    pub const fn set_cid(&mut self, cid: u16) {
        let [a, b] = cid.to_le_bytes();
        self.0[2] = a;
        self.0[3] = b;
    }

    /// Byte 4 of a Fabrics command: FCTYPE.
    #[must_use]
    pub const fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// Bytes 7:4: namespace identifier.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        LittleEndian::read_u32(&self.0[4..8])
    }

    /// Sets the namespace identifier.
    pub fn set_nsid(&mut self, nsid: u32) {
        LittleEndian::write_u32(&mut self.0[4..8], nsid);
    }

    /// Bytes 39:24: SGL descriptor 1.
    #[must_use]
    pub fn sgl(&self) -> SglDescriptor {
        SglDescriptor {
            address: LittleEndian::read_u64(&self.0[24..32]),
            length: LittleEndian::read_u32(&self.0[32..36]),
            kind: self.0[39],
        }
    }

    /// Sets SGL descriptor 1.
    pub fn set_sgl(&mut self, sgl: SglDescriptor) {
        self.0[24..40].copy_from_slice(&sgl.encode());
    }

    /// Command dword 10.
    #[must_use]
    pub fn cdw10(&self) -> u32 {
        LittleEndian::read_u32(&self.0[40..44])
    }

    /// Command dword 11.
    #[must_use]
    pub fn cdw11(&self) -> u32 {
        LittleEndian::read_u32(&self.0[44..48])
    }

    /// Command dword 12.
    #[must_use]
    pub fn cdw12(&self) -> u32 {
        LittleEndian::read_u32(&self.0[48..52])
    }

    /// Command dword 13.
    #[must_use]
    pub fn cdw13(&self) -> u32 {
        LittleEndian::read_u32(&self.0[52..56])
    }

    /// Command dword 14.
    #[must_use]
    pub fn cdw14(&self) -> u32 {
        LittleEndian::read_u32(&self.0[56..60])
    }

    /// Command dword 15.
    #[must_use]
    pub fn cdw15(&self) -> u32 {
        LittleEndian::read_u32(&self.0[60..64])
    }

    /// Sets command dwords 10 to 15 at once, in order.
    pub fn set_cdw10_15(&mut self, cdw: [u32; 6]) {
        for (bytes, value) in self.0[40..64].chunks_exact_mut(4).zip(cdw) {
            LittleEndian::write_u32(bytes, value);
        }
    }

    /// Starting LBA of an NVM command: CDW11:CDW10.
    #[must_use]
    pub fn slba(&self) -> u64 {
        LittleEndian::read_u64(&self.0[40..48])
    }

    /// Number of logical blocks of an NVM command: NLB is 0's based, the result is not (1 to 65,536).
    #[must_use]
    pub fn block_count(&self) -> u32 {
        (self.cdw12() & 0xffff) + 1
    }

    /// FUA of Read, Write and Write Zeroes: CDW12 bit 30.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.cdw12() & (1 << 30) != 0
    }

    /// Sets CDW12 bit 30: Force Unit Access.
    pub const fn set_fua(&mut self) {
        self.0[51] |= 1 << 6;
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:02x}h", self.opcode()))
            .field("cid", &self.cid())
            .field("nsid", &self.nsid())
            .field("sgl", &self.sgl())
            .field(
                "cdw10_15",
                &format_args!(
                    "{:08x} {:08x} {:08x} {:08x} {:08x} {:08x}",
                    self.cdw10(),
                    self.cdw11(),
                    self.cdw12(),
                    self.cdw13(),
                    self.cdw14(),
                    self.cdw15()
                ),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let mut sqe = Sqe::with_opcode(0x02);
        sqe.set_cid(0x1234);
        sqe.set_nsid(7);
        sqe.set_sgl(SglDescriptor::transport(4096));
        sqe.set_cdw10_15([0x10, 0x11, 0x4000_0007, 0x13, 0x14, 0x15]);
        assert_eq!(sqe.0[0..8], [2, 0x40, 0x34, 0x12, 7, 0, 0, 0]);
        assert_eq!(sqe.0[39], 0x5a);
        assert_eq!(sqe.sgl(), SglDescriptor::transport(4096));
        assert_eq!(sqe.slba(), 0x11_0000_0010);
        assert_eq!((sqe.block_count(), sqe.fua()), (8, true));
        assert_eq!((sqe.cdw13(), sqe.cdw14(), sqe.cdw15()), (0x13, 0x14, 0x15));
        assert_eq!((sqe.psdt(), sqe.fuse()), (1, Fuse::None));
    }
}

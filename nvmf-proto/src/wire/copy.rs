//! Copy (NVM Command Set 1.1, Copy command).

use super::Sqe;
use byteorder::{ByteOrder, LittleEndian};

/// DESFMT: what the source ranges of a Copy look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyFormat(pub u8);

impl CopyFormat {
    /// 0h: from the namespace that is written to.
    pub const SAME_NAMESPACE: Self = Self(0);
    /// 2h: every range names its namespace. Only where the host has said so in Host Behavior
    /// Support.
    pub const ANY_NAMESPACE: Self = Self(2);

    /// The bit of the format in CDFS of Identify Controller and CDFE of Host Behavior Support.
    #[must_use]
    pub const fn bit(self) -> u16 {
        1 << (self.0 & 0xf)
    }
}

/// The command dwords of a Copy command, but for protection information and directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyCommand {
    /// SDLBA: first block to be written. CDW11:CDW10.
    pub sdlba: u64,
    /// Number of source ranges, 1 to 256 (NR in CDW12 bits 7:0 is 0's based).
    pub range_count: u16,
    /// DESFMT: CDW12 bits 11:8.
    pub format: CopyFormat,
}

impl CopyCommand {
    /// Reads CDW10 to CDW12.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [nr, format, ..] = sqe.cdw12().to_le_bytes();
        Self {
            sdlba: sqe.slba(),
            range_count: u16::from(nr) + 1,
            format: CopyFormat(format & 0xf),
        }
    }

    /// Sets CDW10 to CDW15. A `range_count` of 0 becomes 1, more than 256 becomes 256.
    pub fn encode(&self, sqe: &mut Sqe) {
        let nr = u32::from(self.range_count.clamp(1, 256) - 1);
        let [a, b, c, d, e, f, g, h] = self.sdlba.to_le_bytes();
        sqe.set_cdw10_15([
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
            nr | u32::from(self.format.0 & 0xf) << 8,
            0,
            0,
            0,
        ]);
    }

    /// Bytes of range data that go with the command in the formats 0h and 2h.
    #[must_use]
    pub fn data_length(&self) -> usize {
        usize::from(self.range_count) * CopyRange::SIZE
    }
}

/// One source range in the formats 0h and 2h, but for protection information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyRange {
    /// SNSID: bytes 3:0; reserved in format 0h.
    pub snsid: u32,
    /// SLBA: bytes 15:8.
    pub slba: u64,
    /// Number of blocks, 1 to 65,536 (NLB in bytes 17:16 is 0's based).
    pub blocks: u32,
    /// FCO, bit 15 of bytes 23:22: fail rather than copy slowly; reserved in format 0h.
    pub fast_only: bool,
}

impl CopyRange {
    /// Size on the wire, in bytes.
    pub const SIZE: usize = 32;

    /// The 32 bytes of the range. `blocks` of 0 becomes 1, more than 65,536 becomes 65,536.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        LittleEndian::write_u32(&mut out[0..4], self.snsid);
        LittleEndian::write_u64(&mut out[8..16], self.slba);
        LittleEndian::write_u32(&mut out[16..20], self.blocks.clamp(1, 1 << 16) - 1);
        LittleEndian::write_u16(&mut out[22..24], u16::from(self.fast_only) << 15);
        out
    }

    /// Reads a range.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            snsid: LittleEndian::read_u32(&bytes[0..4]),
            slba: LittleEndian::read_u64(&bytes[8..16]),
            blocks: u32::from(LittleEndian::read_u16(&bytes[16..18])) + 1,
            fast_only: LittleEndian::read_u16(&bytes[22..24]) >> 15 == 1,
        }
    }

    /// The range with this number in the data of a command.
    #[must_use]
    pub fn nth(data: &[u8], number: usize) -> Option<Self> {
        let start = number.checked_mul(Self::SIZE)?;
        data.get(start..)?.first_chunk().map(Self::decode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_dwords() {
        let mut sqe = Sqe::with_opcode(0x19);
        let command = CopyCommand {
            sdlba: 0x0102_0304_0506_0708,
            range_count: 128,
            format: CopyFormat::ANY_NAMESPACE,
        };
        command.encode(&mut sqe);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (0x0506_0708, 0x0102_0304));
        assert_eq!(sqe.cdw12(), 0x27f);
        assert_eq!(CopyCommand::decode(&sqe), command);
        assert_eq!(command.data_length(), 4096);
        assert_eq!(command.format.bit(), 4);
    }

    #[test]
    fn ranges() {
        let range = CopyRange {
            snsid: 0x0403_0201,
            slba: 0x1817_1615_1413_1211,
            blocks: 0x2222,
            fast_only: true,
        };
        let bytes = range.encode();
        assert_eq!(bytes[..4], [1, 2, 3, 4]);
        assert_eq!(
            bytes[8..16],
            [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]
        );
        assert_eq!(bytes[16..24], [0x21, 0x22, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(CopyRange::decode(&bytes), range);
        let data = [[0; 32], bytes].concat();
        assert_eq!(CopyRange::nth(&data, 1), Some(range));
        assert_eq!(CopyRange::nth(&data[..63], 1), None);
        assert_eq!(CopyRange::nth(&data, usize::MAX), None);
        let all = CopyRange {
            blocks: 1 << 16,
            ..CopyRange::default()
        };
        assert_eq!(CopyRange::decode(&all.encode()).blocks, 1 << 16);
    }
}

//! Dataset Management (NVM Command Set 1.1, Dataset Management command).

use super::Sqe;
use bitflags::bitflags;
use byteorder::{ByteOrder, LittleEndian};

bitflags! {
    /// Attributes of a Dataset Management command: CDW11.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DsmAttributes: u32 {
        /// IDR: integral dataset for read.
        const INTEGRAL_READ = 1 << 0;
        /// IDW: integral dataset for write.
        const INTEGRAL_WRITE = 1 << 1;
        /// AD: deallocate. The only attribute that does something; the others are hints.
        const DEALLOCATE = 1 << 2;
    }
}

/// The command dwords of a Dataset Management command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsmCommand {
    /// Number of ranges, 1 to 256 (NR in CDW10 bits 7:0 is 0's based).
    pub range_count: u16,
    /// CDW11.
    pub attributes: DsmAttributes,
}

impl DsmCommand {
    /// Most ranges that one command can carry.
    pub const MAX_RANGES: usize = 256;

    /// Reads CDW10 and CDW11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [nr, ..] = sqe.cdw10().to_le_bytes();
        Self {
            range_count: u16::from(nr) + 1,
            attributes: DsmAttributes::from_bits_retain(sqe.cdw11()),
        }
    }

    /// Sets CDW10 to CDW15. A `range_count` of 0 becomes 1, more than 256 becomes 256.
    pub fn encode(&self, sqe: &mut Sqe) {
        let nr = u32::from(self.range_count.clamp(1, 256) - 1);
        sqe.set_cdw10_15([nr, self.attributes.bits(), 0, 0, 0, 0]);
    }

    /// Bytes of range data that go with the command.
    #[must_use]
    pub fn data_length(&self) -> usize {
        usize::from(self.range_count) * DsmRange::SIZE
    }
}

/// One range of a Dataset Management command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DsmRange {
    /// Context Attributes: bytes 3:0; hints.
    pub context: u32,
    /// Length in logical blocks: bytes 7:4. Not 0's based; 0 is an empty range.
    pub length: u32,
    /// Starting LBA: bytes 15:8.
    pub slba: u64,
}

impl DsmRange {
    /// Size on the wire, in bytes.
    pub const SIZE: usize = 16;

    /// The 16 bytes of the range.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        LittleEndian::write_u32(&mut out[0..4], self.context);
        LittleEndian::write_u32(&mut out[4..8], self.length);
        LittleEndian::write_u64(&mut out[8..16], self.slba);
        out
    }

    /// Reads a range.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            context: LittleEndian::read_u32(&bytes[0..4]),
            length: LittleEndian::read_u32(&bytes[4..8]),
            slba: LittleEndian::read_u64(&bytes[8..16]),
        }
    }

    /// The ranges in the data of a command; a last partial range is left out.
    pub fn decode_all(data: &[u8]) -> impl Iterator<Item = Self> + '_ {
        data.chunks_exact(Self::SIZE)
            .filter_map(|chunk| chunk.first_chunk().map(Self::decode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_dwords() {
        let mut sqe = Sqe::with_opcode(0x09);
        let command = DsmCommand {
            range_count: 256,
            attributes: DsmAttributes::DEALLOCATE,
        };
        command.encode(&mut sqe);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (255, 4));
        assert_eq!(DsmCommand::decode(&sqe), command);
        assert_eq!(command.data_length(), 4096);
        // Reserved bits of CDW10 do not count, unknown attributes survive.
        sqe.set_cdw10_15([0xffff_ff00, 0x8000_0000, 0, 0, 0, 0]);
        let command = DsmCommand::decode(&sqe);
        assert_eq!(
            (command.range_count, command.attributes.bits()),
            (1, 0x8000_0000)
        );
    }

    #[test]
    fn ranges() {
        let range = DsmRange {
            context: 0x0102_0304,
            length: 0x0506_0708,
            slba: 0x090a_0b0c_0d0e_0f10,
        };
        let bytes = range.encode();
        let expected = [4, 3, 2, 1, 8, 7, 6, 5, 16, 15, 14, 13, 12, 11, 10, 9];
        assert_eq!(bytes, expected);
        assert_eq!(DsmRange::decode(&bytes), range);
        let mut data = [bytes, bytes].concat();
        assert_eq!(
            DsmRange::decode_all(&data).collect::<Vec<_>>(),
            [range, range]
        );
        data.pop();
        assert_eq!(DsmRange::decode_all(&data).count(), 1);
    }
}

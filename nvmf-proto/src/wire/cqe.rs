//! Completion queue entry.

use super::Status;
use byteorder::{ByteOrder, LittleEndian};

/// A 16-byte completion queue entry (NVMe Base 2.1, Completion Queue Entry; NVMe over Fabrics has
/// no phase tag).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    /// Dwords 1:0: the command's result.
    pub result: u64,
    /// Bytes 9:8: SQ head pointer, FFFFh where SQ flow control is disabled.
    pub sqhd: u16,
    /// Bytes 13:12: command identifier.
    pub cid: u16,
    /// Bytes 15:14, bits 15:1: status.
    pub status: Status,
}

impl Cqe {
    /// Reads an entry.
    #[must_use]
    pub fn decode(bytes: &[u8; 16]) -> Self {
        Self {
            result: LittleEndian::read_u64(&bytes[0..8]),
            sqhd: LittleEndian::read_u16(&bytes[8..10]),
            cid: LittleEndian::read_u16(&bytes[12..14]),
            status: Status::from_bits(LittleEndian::read_u16(&bytes[14..16]) >> 1),
        }
    }

    /// Writes an entry; SQID is reserved in NVMe over Fabrics and zero.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        LittleEndian::write_u64(&mut bytes[0..8], self.result);
        LittleEndian::write_u16(&mut bytes[8..10], self.sqhd);
        LittleEndian::write_u16(&mut bytes[12..14], self.cid);
        LittleEndian::write_u16(&mut bytes[14..16], self.status.bits() << 1);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_offsets() {
        let cqe = Cqe {
            result: 0x0807_0605_0403_0201,
            sqhd: 0x1122,
            cid: 0x3344,
            status: Status::INVALID_FIELD.dnr(),
        };
        let b = cqe.encode();
        assert_eq!(
            b,
            [
                1, 2, 3, 4, 5, 6, 7, 8, 0x22, 0x11, 0, 0, 0x44, 0x33, 0x04, 0x80
            ]
        );
        assert_eq!(Cqe::decode(&b), cqe);
    }
}

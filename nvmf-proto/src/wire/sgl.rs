//! The one SGL descriptor that an NVMe/TCP command carries.

use byteorder::{ByteOrder, LittleEndian};

/// A 16-byte SGL descriptor (NVMe Base 2.1, Scatter Gather List), as it stands in SQE bytes 39:24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SglDescriptor {
    /// Bytes 7:0. An address, or for an offset descriptor the offset into the capsule's data.
    pub address: u64,
    /// Bytes 11:8. Length in bytes.
    pub length: u32,
    /// Byte 15: descriptor type in bits 7:4, sub type in bits 3:0.
    pub kind: u8,
}

impl SglDescriptor {
    /// SGL Data Block descriptor, sub type Offset: the data is in the capsule.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Transport SGL Data Block descriptor, sub type Transport Specific: the data travels in PDUs
    /// of its own.
    pub const TRANSPORT: u8 = 0x5a;

    /// A descriptor for `length` bytes in the capsule.
    #[must_use]
    pub const fn in_capsule(length: u32) -> Self {
        Self {
            address: 0,
            length,
            kind: Self::IN_CAPSULE,
        }
    }

    /// A descriptor for `length` bytes in data PDUs.
    #[must_use]
    pub const fn transport(length: u32) -> Self {
        Self {
            address: 0,
            length,
            kind: Self::TRANSPORT,
        }
    }

    /// Reads a descriptor.
    #[must_use]
    pub fn decode(bytes: &[u8; 16]) -> Self {
        Self {
            address: LittleEndian::read_u64(&bytes[0..8]),
            length: LittleEndian::read_u32(&bytes[8..12]),
            kind: bytes[15],
        }
    }

    /// Writes a descriptor; reserved bytes are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        LittleEndian::write_u64(&mut bytes[0..8], self.address);
        LittleEndian::write_u32(&mut bytes[8..12], self.length);
        bytes[15] = self.kind;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let d = SglDescriptor {
            address: 0x0102_0304_0506_0708,
            length: 0x1122_3344,
            kind: 0x5a,
        };
        let b = d.encode();
        assert_eq!(b[15], 0x5a);
        assert_eq!(&b[8..12], &[0x44, 0x33, 0x22, 0x11]);
        assert_eq!(SglDescriptor::decode(&b), d);
    }
}

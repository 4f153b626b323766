//! NVMe/TCP protocol data units (NVMe/TCP 1.1 §3.6).
//!
//! Every PDU starts with an 8-byte common header. These types hold the fields; which values are
//! legal when is the business of the state machines in [`crate::tcp`].

use super::{Cqe, Sqe};
use bitflags::bitflags;
use byteorder::{ByteOrder, LittleEndian};
use core::fmt;

/// PDU-Type: byte 0 of every PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PduType(pub u8);

impl PduType {
    /// Initialize Connection Request, host to controller.
    pub const IC_REQ: Self = Self(0x00);
    /// Initialize Connection Response, controller to host.
    pub const IC_RESP: Self = Self(0x01);
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM_REQ: Self = Self(0x02);
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: Self = Self(0x03);
    /// Command Capsule, host to controller.
    pub const CAPSULE_CMD: Self = Self(0x04);
    /// Response Capsule, controller to host.
    pub const CAPSULE_RESP: Self = Self(0x05);
    /// Host to Controller Data.
    pub const H2C_DATA: Self = Self(0x06);
    /// Controller to Host Data.
    pub const C2H_DATA: Self = Self(0x07);
    /// Ready to Transfer, controller to host.
    pub const R2T: Self = Self(0x09);
}

bitflags! {
    /// FLAGS: byte 1 of every PDU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PduFlags: u8 {
        /// HDGSTF: a header digest follows the header.
        const HDGST = 1 << 0;
        /// DDGSTF: a data digest follows the data.
        const DDGST = 1 << 1;
        /// LAST_PDU: the last data PDU of a transfer.
        const LAST_PDU = 1 << 2;
        /// SUCCESS (C2HData only): the command succeeded and no CapsuleResp follows.
        const SUCCESS = 1 << 3;
    }
}

/// Length of the common header.
pub const COMMON_LEN: usize = 8;
/// Length of ICReq and ICResp.
pub const IC_LEN: usize = 128;
/// HLEN of both TermReq PDUs.
pub const TERM_LEN: usize = 24;
/// The longest TermReq: its header and up to 128 bytes of the offending PDU's header.
pub const TERM_MAX_LEN: usize = 152;
/// HLEN of CapsuleCmd.
pub const CMD_LEN: usize = 72;
/// HLEN of CapsuleResp.
pub const RESP_LEN: usize = 24;
/// HLEN of H2CData and C2HData.
pub const DATA_LEN: usize = 24;
/// HLEN of R2T.
pub const R2T_LEN: usize = 24;
/// Length of a header or data digest.
pub const DIGEST_LEN: usize = 4;
/// In-capsule data that every admin queue takes, whatever IOCCSZ says (NVMe/TCP 1.1 §3.3.2.1).
pub const ADMIN_IN_CAPSULE_MAX: u32 = 8192;
/// The largest HPDA or CPDA: 128-byte alignment, in dwords, 0's based.
pub const PDA_MAX: u8 = 31;
/// The smallest MAXH2CDATA that a controller may offer; it is also a multiple of 4.
pub const MAXH2CDATA_MIN: u32 = 4096;

/// The common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// Byte 0.
    pub pdu_type: PduType,
    /// Byte 1, reserved bits retained.
    pub flags: PduFlags,
    /// Byte 2: header length without digest.
    pub hlen: u8,
    /// Byte 3: where the data starts in the PDU, 0 without data.
    pub pdo: u8,
    /// Bytes 7:4: length of the whole PDU with digests, padding and data.
    pub plen: u32,
}

impl CommonHeader {
    /// Reads the header.
    #[must_use]
    pub fn decode(b: &[u8; COMMON_LEN]) -> Self {
        Self {
            pdu_type: PduType(b[0]),
            flags: PduFlags::from_bits_retain(b[1]),
            hlen: b[2],
            pdo: b[3],
            plen: LittleEndian::read_u32(&b[4..8]),
        }
    }

    /// Writes the header.
    pub fn encode(&self, b: &mut [u8; COMMON_LEN]) {
        b[0] = self.pdu_type.0;
        b[1] = self.flags.bits();
        b[2] = self.hlen;
        b[3] = self.pdo;
        LittleEndian::write_u32(&mut b[4..8], self.plen);
    }
}

/// Initialize Connection Request or Response, bytes 127:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InitConnection {
    /// Bytes 9:8: PDU Format Version.
    pub pfv: u16,
    /// Byte 10: HPDA (in ICReq) or CPDA (in ICResp): alignment of data in PDUs that the sender of
    /// this PDU receives; dwords, 0's based.
    pub pda: u8,
    /// Byte 11: DGST. Bit 0 header digest, bit 1 data digest; the rest is reserved and retained.
    pub dgst: u8,
    /// Bytes 15:12: MAXR2T (in ICReq, 0's based) or MAXH2CDATA (in ICResp, bytes).
    pub max: u32,
}

impl InitConnection {
    /// DGST bit 0.
    pub const HDGST_ENABLE: u8 = 1;
    /// DGST bit 1.
    pub const DDGST_ENABLE: u8 = 2;

    /// Reads the PDU-specific part; the common header is not looked at.
    #[must_use]
    pub fn decode(b: &[u8; IC_LEN]) -> Self {
        Self {
            pfv: LittleEndian::read_u16(&b[8..10]),
            pda: b[10],
            dgst: b[11],
            max: LittleEndian::read_u32(&b[12..16]),
        }
    }

    /// A whole PDU of type ICReq or ICResp.
    #[must_use]
    pub fn encode(&self, pdu_type: PduType) -> [u8; IC_LEN] {
        let mut b = [0; IC_LEN];
        b[0] = pdu_type.0;
        b[2] = 128;
        b[4] = 128;
        LittleEndian::write_u16(&mut b[8..10], self.pfv);
        b[10] = self.pda;
        b[11] = self.dgst;
        LittleEndian::write_u32(&mut b[12..16], self.max);
        b
    }
}

/// Fatal Error Status of a TermReq PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fes(pub u16);

impl Fes {
    /// Invalid PDU Header Field; FEI is the field's byte offset.
    pub const INVALID_HEADER_FIELD: Self = Self(1);
    /// PDU Sequence Error.
    pub const PDU_SEQUENCE: Self = Self(2);
    /// Header Digest Error; FEI is the digest received.
    pub const HEADER_DIGEST: Self = Self(3);
    /// Data Transfer Out of Range.
    pub const DATA_OUT_OF_RANGE: Self = Self(4);
    /// Data Transfer Limit Exceeded in a C2HTermReq, R2T Limit Exceeded in an H2CTermReq.
    pub const LIMIT_EXCEEDED: Self = Self(5);
    /// Unsupported Parameter; FEI is the field's byte offset.
    pub const UNSUPPORTED_PARAMETER: Self = Self(6);
}

impl fmt::Display for Fes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INVALID_HEADER_FIELD => f.write_str("invalid PDU header field"),
            Self::PDU_SEQUENCE => f.write_str("PDU sequence error"),
            Self::HEADER_DIGEST => f.write_str("header digest error"),
            Self::DATA_OUT_OF_RANGE => f.write_str("data transfer out of range"),
            Self::LIMIT_EXCEEDED => f.write_str("transfer limit exceeded"),
            Self::UNSUPPORTED_PARAMETER => f.write_str("unsupported parameter"),
            Self(other) => write!(f, "fatal error status {other}"),
        }
    }
}

/// FES and FEI of a TermReq PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermReq {
    /// Bytes 9:8: Fatal Error Status.
    pub fes: Fes,
    /// Bytes 13:10: Fatal Error Information.
    pub fei: u32,
}

impl TermReq {
    /// Reads the PDU-specific part.
    #[must_use]
    pub fn decode(b: &[u8; TERM_LEN]) -> Self {
        Self {
            fes: Fes(LittleEndian::read_u16(&b[8..10])),
            fei: LittleEndian::read_u32(&b[10..14]),
        }
    }

    /// The header of a TermReq PDU that carries `quoted` bytes of the offending header.
    #[must_use]
    pub fn encode(&self, pdu_type: PduType, quoted: u8) -> [u8; TERM_LEN] {
        let mut b = [0; TERM_LEN];
        b[0] = pdu_type.0;
        b[2] = 24;
        LittleEndian::write_u32(&mut b[4..8], 24 + u32::from(quoted));
        LittleEndian::write_u16(&mut b[8..10], self.fes.0);
        LittleEndian::write_u32(&mut b[10..14], self.fei);
        b
    }
}

/// PDU-specific header of H2CData, C2HData and R2T: the same layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// Bytes 9:8: CCCID, the command's identifier.
    pub cccid: u16,
    /// Bytes 11:10: TTAG, chosen by the controller; reserved in C2HData.
    pub ttag: u16,
    /// Bytes 15:12: DATAO or R2TO, offset into the command's data.
    pub offset: u32,
    /// Bytes 19:16: DATAL or R2TL.
    pub length: u32,
}

impl DataHeader {
    /// Reads the PDU-specific part.
    #[must_use]
    pub fn decode(b: &[u8; DATA_LEN]) -> Self {
        Self {
            cccid: LittleEndian::read_u16(&b[8..10]),
            ttag: LittleEndian::read_u16(&b[10..12]),
            offset: LittleEndian::read_u32(&b[12..16]),
            length: LittleEndian::read_u32(&b[16..20]),
        }
    }

    /// Header of a PDU: the common header as given, then this.
    #[must_use]
    pub fn encode(&self, ch: &CommonHeader) -> [u8; DATA_LEN] {
        let mut b = [0; DATA_LEN];
        if let Some(head) = b.first_chunk_mut() {
            ch.encode(head);
        }
        LittleEndian::write_u16(&mut b[8..10], self.cccid);
        LittleEndian::write_u16(&mut b[10..12], self.ttag);
        LittleEndian::write_u32(&mut b[12..16], self.offset);
        LittleEndian::write_u32(&mut b[16..20], self.length);
        b
    }
}

/// The SQE of a CapsuleCmd header.
#[must_use]
pub fn capsule_sqe(b: &[u8; CMD_LEN]) -> Sqe {
    let mut sqe = Sqe::default();
    sqe.0.copy_from_slice(&b[8..72]);
    sqe
}

/// Header of a CapsuleCmd: the common header as given, then the SQE.
#[must_use]
pub fn encode_capsule_cmd(ch: &CommonHeader, sqe: &Sqe) -> [u8; CMD_LEN] {
    let mut b = [0; CMD_LEN];
    if let Some(head) = b.first_chunk_mut() {
        ch.encode(head);
    }
    b[8..72].copy_from_slice(&sqe.0);
    b
}

/// The CQE of a CapsuleResp.
#[must_use]
pub fn capsule_cqe(b: &[u8; RESP_LEN]) -> Cqe {
    let mut cqe = [0; 16];
    cqe.copy_from_slice(&b[8..24]);
    Cqe::decode(&cqe)
}

/// Header of a CapsuleResp: the common header as given, then the CQE.
#[must_use]
pub fn encode_capsule_resp(ch: &CommonHeader, cqe: &Cqe) -> [u8; RESP_LEN] {
    let mut b = [0; RESP_LEN];
    if let Some(head) = b.first_chunk_mut() {
        ch.encode(head);
    }
    b[8..24].copy_from_slice(&cqe.encode());
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Status;

    const CH: CommonHeader = CommonHeader {
        pdu_type: PduType::H2C_DATA,
        flags: PduFlags::LAST_PDU,
        hlen: 24,
        pdo: 24,
        plen: 24 + 4096,
    };

    #[test]
    fn common_header() {
        let mut b = [0; 8];
        CH.encode(&mut b);
        assert_eq!(b, [6, 4, 24, 24, 0x18, 0x10, 0, 0]);
        assert_eq!(CommonHeader::decode(&b), CH);
    }

    #[test]
    fn data_header() {
        let d = DataHeader {
            cccid: 0x0102,
            ttag: 0x0304,
            offset: 0x0506_0708,
            length: 4096,
        };
        let b = d.encode(&CH);
        assert_eq!(b[8..24], [2, 1, 4, 3, 8, 7, 6, 5, 0, 16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(DataHeader::decode(&b), d);
    }

    #[test]
    fn init_connection() {
        let ic = InitConnection {
            pfv: 0,
            pda: 3,
            dgst: 3,
            max: 0x0002_0000,
        };
        let b = ic.encode(PduType::IC_RESP);
        assert_eq!(
            b[0..16],
            [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 3, 0, 0, 2, 0]
        );
        assert!(b[16..].iter().all(|&x| x == 0));
        assert_eq!(InitConnection::decode(&b), ic);
    }

    #[test]
    fn term_req() {
        let t = TermReq {
            fes: Fes::HEADER_DIGEST,
            fei: 0x1122_3344,
        };
        let b = t.encode(PduType::C2H_TERM_REQ, 72);
        assert_eq!(
            b[0..14],
            [3, 0, 24, 0, 96, 0, 0, 0, 3, 0, 0x44, 0x33, 0x22, 0x11]
        );
        assert_eq!(TermReq::decode(&b), t);
    }

    #[test]
    fn capsules() {
        let ch = CommonHeader {
            pdu_type: PduType::CAPSULE_RESP,
            hlen: 24,
            pdo: 0,
            plen: 24,
            ..CH
        };
        let cqe = Cqe {
            result: 9,
            sqhd: 1,
            cid: 2,
            status: Status::SUCCESS,
        };
        assert_eq!(capsule_cqe(&encode_capsule_resp(&ch, &cqe)), cqe);
        let sqe = Sqe::with_opcode(1);
        assert_eq!(capsule_sqe(&encode_capsule_cmd(&ch, &sqe)), sqe);
    }
}

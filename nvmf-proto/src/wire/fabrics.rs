//! Fabrics commands: Connect and its data, Property Get and Set, Disconnect.
//! (NVMe Base 2.1, Fabrics Command Set.)

use super::layout::{flag_fields, wire_struct};
use super::nqn::{Nqn, NqnError};
use super::property::PropertyOffset;
use super::{AdminOpcode, Sqe};
use bitflags::bitflags;
use byteorder::{ByteOrder, LittleEndian};

/// FCTYPE: which Fabrics command this is (SQE byte 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FabricsType(pub u8);

impl FabricsType {
    /// Property Set.
    pub const PROPERTY_SET: Self = Self(0x00);
    /// Connect.
    pub const CONNECT: Self = Self(0x01);
    /// Property Get.
    pub const PROPERTY_GET: Self = Self(0x04);
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: Self = Self(0x05);
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: Self = Self(0x06);
    /// Disconnect.
    pub const DISCONNECT: Self = Self(0x08);

    /// FCTYPE of a Fabrics command.
    #[must_use]
    pub const fn of(sqe: &Sqe) -> Self {
        Self(sqe.fctype())
    }

    /// An SQE with the Fabrics opcode and this FCTYPE; command identifier, SGL and all command
    /// specific bytes are zero.
    #[must_use]
    pub fn sqe(self) -> Sqe {
        let mut sqe = Sqe::with_opcode(AdminOpcode::FABRICS.0);
        sqe.0[4] = self.0;
        sqe
    }
}

/// CNTLID FFFFh in Connect: the subsystem chooses (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID FFFEh in Connect: any controller (static controller model).
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;
/// Highest CNTLID that a controller may have.
pub const CNTLID_MAX: u16 = 0xffef;

bitflags! {
    /// CATTR: Connect attributes. Bits 1:0 hold the priority class and have no name here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Cattr: u8 {
        /// Disable SQ flow control: SQHD in responses is not used.
        const DISABLE_SQ_FLOW_CONTROL = 1 << 2;
        /// The host supports deletion of single I/O queues (Disconnect).
        const INDIVIDUAL_DELETION = 1 << 3;
    }
}

flag_fields! { Cattr(u8) }

/// The command specific part of a Connect command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectCommand {
    /// RECFMT: Record Format; 0 is the only one defined.
    pub recfmt: u16,
    /// QID: 0 is the Admin Queue.
    pub qid: u16,
    /// SQSIZE: entries of the submission queue, 0's based.
    pub sqsize: u16,
    /// CATTR: Connect Attributes.
    pub cattr: Cattr,
    /// KATO: Keep Alive Timeout in milliseconds; 0 disables. Admin Queue only.
    pub kato: u32,
}

impl ConnectCommand {
    /// Byte offset of RECFMT in the SQE.
    pub const RECFMT: u16 = 40;
    /// Byte offset of QID in the SQE.
    pub const QID: u16 = 42;
    /// Byte offset of SQSIZE in the SQE.
    pub const SQSIZE: u16 = 44;
    /// Byte offset of CATTR in the SQE.
    pub const CATTR: u16 = 46;
    /// Byte offset of KATO in the SQE.
    pub const KATO: u16 = 48;
    /// Byte offset of SGL descriptor 1 in the SQE.
    pub const SGL1: u16 = 24;

    /// Reads the command specific bytes; opcode and FCTYPE are the caller's business.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            recfmt: LittleEndian::read_u16(&sqe.0[40..42]),
            qid: LittleEndian::read_u16(&sqe.0[42..44]),
            sqsize: LittleEndian::read_u16(&sqe.0[44..46]),
            cattr: Cattr::from_bits_retain(sqe.0[46]),
            kato: LittleEndian::read_u32(&sqe.0[48..52]),
        }
    }

    /// A Connect SQE; the caller adds command identifier and SGL.
    #[must_use]
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = FabricsType::CONNECT.sqe();
        LittleEndian::write_u16(&mut sqe.0[40..42], self.recfmt);
        LittleEndian::write_u16(&mut sqe.0[42..44], self.qid);
        LittleEndian::write_u16(&mut sqe.0[44..46], self.sqsize);
        sqe.0[46] = self.cattr.bits();
        LittleEndian::write_u32(&mut sqe.0[48..52], self.kato);
        sqe
    }
}

wire_struct! {
    /// Connect data: 1,024 bytes.
    pub struct ConnectData[1024] {
        /// HOSTID: 128-bit Host Identifier; not all zero.
        0 => hostid: [u8; 16],
        /// CNTLID: the controller to connect to; [`CNTLID_DYNAMIC`] on the Admin Queue.
        16 => cntlid: u16,
        /// SUBNQN as it came; see [`ConnectData::subsystem_nqn`].
        256 => subnqn: [u8; 256],
        /// HOSTNQN as it came; see [`ConnectData::host_nqn`].
        512 => hostnqn: [u8; 256],
    }
}

impl ConnectData {
    /// Byte offset of HOSTID.
    pub const HOSTID: u16 = 0;
    /// Byte offset of CNTLID.
    pub const CNTLID: u16 = 16;
    /// Byte offset of SUBNQN.
    pub const SUBNQN: u16 = 256;
    /// Byte offset of HOSTNQN.
    pub const HOSTNQN: u16 = 512;

    /// SUBNQN as a name.
    ///
    /// # Errors
    ///
    /// What [`Nqn::from_field`] says.
    pub fn subsystem_nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// HOSTNQN as a name.
    ///
    /// # Errors
    ///
    /// What [`Nqn::from_field`] says.
    pub fn host_nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.hostnqn)
    }
}

bitflags! {
    /// AUTHREQ of a Connect response: what must happen before other commands.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AuthReq: u16 {
        /// ATR: an NVMe in-band authentication transaction.
        const TRANSACTION = 1 << 1;
        /// ASCR: authentication and a secure channel.
        const SECURE_CHANNEL = 1 << 2;
    }
}

/// Dword 0 of a successful Connect response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// CNTLID: bits 15:0.
    pub cntlid: u16,
    /// AUTHREQ: bits 31:16.
    pub authreq: AuthReq,
}

impl ConnectResponse {
    /// CQE dword 0.
    #[must_use]
    pub const fn dw0(self) -> u32 {
        let ([a, b], [c, d]) = (self.cntlid.to_le_bytes(), self.authreq.bits().to_le_bytes());
        u32::from_le_bytes([a, b, c, d])
    }

    /// From CQE dword 0.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        let [a, b, c, d] = dw0.to_le_bytes();
        Self {
            cntlid: u16::from_le_bytes([a, b]),
            authreq: AuthReq::from_bits_retain(u16::from_le_bytes([c, d])),
        }
    }
}

/// Which field a Connect was refused for: goes with the status Connect Invalid Parameters into
/// dword 0 of the response, IPO in bits 15:0 and IATTR in bit 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidParameter {
    /// Byte offset in the SQE (IATTR 0).
    Command(u16),
    /// Byte offset in the Connect data (IATTR 1).
    Data(u16),
}

impl InvalidParameter {
    /// CQE dword 0.
    #[must_use]
    pub const fn dw0(self) -> u32 {
        let (offset, iattr) = match self {
            Self::Command(offset) => (offset, 0),
            Self::Data(offset) => (offset, 1),
        };
        let [a, b] = offset.to_le_bytes();
        u32::from_le_bytes([a, b, iattr, 0])
    }

    /// From CQE dword 0 of a response with Connect Invalid Parameters.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        let [a, b, iattr, _] = dw0.to_le_bytes();
        let offset = u16::from_le_bytes([a, b]);
        if iattr & 1 == 0 {
            Self::Command(offset)
        } else {
            Self::Data(offset)
        }
    }
}

/// ATTRIB bits 2:0 of the property commands: how many bytes the property has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySize(pub u8);

impl PropertySize {
    /// 000b: 4 bytes.
    pub const BYTES_4: Self = Self(0);
    /// 001b: 8 bytes.
    pub const BYTES_8: Self = Self(1);

    const fn of(attrib: u8) -> Self {
        Self(attrib & 7)
    }
}

/// Property Get: the value comes back in dwords 0 and 1 of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// ATTRIB bits 2:0.
    pub size: PropertySize,
    /// OFST.
    pub offset: PropertyOffset,
}

impl PropertyGet {
    /// Reads the command specific bytes.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            size: PropertySize::of(sqe.0[40]),
            offset: PropertyOffset(LittleEndian::read_u32(&sqe.0[44..48])),
        }
    }

    /// A Property Get SQE; the caller adds the command identifier.
    #[must_use]
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = FabricsType::PROPERTY_GET.sqe();
        sqe.0[40] = self.size.0 & 7;
        LittleEndian::write_u32(&mut sqe.0[44..48], self.offset.0);
        sqe
    }
}

/// Property Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// ATTRIB bits 2:0.
    pub size: PropertySize,
    /// OFST.
    pub offset: PropertyOffset,
    /// VALUE; only the low 4 bytes count if the size is 4.
    pub value: u64,
}

impl PropertySet {
    /// Reads the command specific bytes.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            size: PropertySize::of(sqe.0[40]),
            offset: PropertyOffset(LittleEndian::read_u32(&sqe.0[44..48])),
            value: LittleEndian::read_u64(&sqe.0[48..56]),
        }
    }

    /// A Property Set SQE; the caller adds the command identifier.
    #[must_use]
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = FabricsType::PROPERTY_SET.sqe();
        sqe.0[40] = self.size.0 & 7;
        LittleEndian::write_u32(&mut sqe.0[44..48], self.offset.0);
        LittleEndian::write_u64(&mut sqe.0[48..56], self.value);
        sqe
    }
}

/// RECFMT of a Disconnect command; 0 is the only one defined.
#[must_use]
pub fn disconnect_recfmt(sqe: &Sqe) -> u16 {
    LittleEndian::read_u16(&sqe.0[40..42])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    #[test]
    fn connect_command_offsets() {
        let connect = ConnectCommand {
            recfmt: 0x0102,
            qid: 0x0304,
            sqsize: 0x0506,
            cattr: Cattr::from_bits_retain(0x8d),
            kato: 0x0708_090a,
        };
        let sqe = connect.to_sqe();
        assert_eq!(sqe.0[..8], [0x7f, 0x40, 0, 0, 1, 0, 0, 0]);
        assert!(sqe.0[8..40].iter().all(|&b| b == 0));
        assert_eq!(sqe.0[40..52], [2, 1, 4, 3, 6, 5, 0x8d, 0, 0x0a, 9, 8, 7]);
        assert!(sqe.0[52..].iter().all(|&b| b == 0));
        assert_eq!(FabricsType::of(&sqe), FabricsType::CONNECT);
        assert_eq!(ConnectCommand::decode(&sqe), connect);
    }

    #[test]
    fn connect_data_offsets() {
        assert_offsets!(ConnectData {
            hostid: [7; 16] => 0..16;
            cntlid: 0xfffe => 16..18;
            subnqn: [b's'; 256] => 256..512;
            hostnqn: [b'h'; 256] => 512..768;
        });
        let data = ConnectData {
            subnqn: Nqn::discovery().to_field(),
            ..ConnectData::default()
        };
        assert_eq!(data.subsystem_nqn(), Ok(Nqn::discovery()));
        assert_eq!(data.host_nqn(), Err(NqnError::Empty));
        let data = ConnectData {
            subnqn: [b's'; 256],
            ..data
        };
        assert_eq!(data.subsystem_nqn(), Err(NqnError::NotTerminated));
    }

    #[test]
    fn connect_responses() {
        let response = ConnectResponse {
            cntlid: 0x1234,
            authreq: AuthReq::TRANSACTION,
        };
        assert_eq!(response.dw0(), 0x0002_1234);
        assert_eq!(ConnectResponse::from_dw0(response.dw0()), response);

        let table = [
            (InvalidParameter::Command(ConnectCommand::SQSIZE), 44),
            (InvalidParameter::Data(ConnectData::HOSTID), 0x1_0000),
            (InvalidParameter::Data(ConnectData::SUBNQN), 0x1_0100),
            (InvalidParameter::Data(ConnectData::HOSTNQN), 0x1_0200),
        ];
        for (parameter, dw0) in table {
            assert_eq!(parameter.dw0(), dw0);
            assert_eq!(InvalidParameter::from_dw0(dw0), parameter);
        }
    }

    #[test]
    fn property_commands() {
        let get = PropertyGet {
            size: PropertySize::BYTES_8,
            offset: PropertyOffset::CAP,
        };
        assert_eq!(get.to_sqe().0[4], 4);
        assert_eq!(get.to_sqe().0[40], 1);
        assert_eq!(PropertyGet::decode(&get.to_sqe()), get);

        let set = PropertySet {
            size: PropertySize::BYTES_4,
            offset: PropertyOffset::CC,
            value: 0x0102_0304_0506_0708,
        };
        let mut sqe = set.to_sqe();
        assert_eq!(sqe.0[4], 0);
        assert_eq!(
            sqe.0[40..56],
            [0, 0, 0, 0, 0x14, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]
        );
        sqe.0[40] |= 0xf8;
        assert_eq!(PropertySet::decode(&sqe), set);
    }

    #[test]
    fn disconnect() {
        let mut sqe = FabricsType::DISCONNECT.sqe();
        assert_eq!((sqe.0[4], disconnect_recfmt(&sqe)), (8, 0));
        sqe.0[41] = 1;
        assert_eq!(disconnect_recfmt(&sqe), 256);
    }
}

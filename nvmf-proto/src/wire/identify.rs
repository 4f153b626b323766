//! Identify: the command, its data structures and its lists.
//!
//! One structure per CNS value; each is written as a table of fields beside their byte offsets.
//! NVMe Base 2.1, Identify command; NVM Command Set 1.1 for the structures of the NVM command set.

mod controller;
mod namespace;

pub use controller::{
    AnaCapabilities, Cmic, ControllerType, Ctratt, Frmw, Fuses, IdentifyController,
    IdentifyControllerNvm, Lpa, Oacs, Oaes, Ofcs, Oncs, PowerState, Sgls, Vwc,
};
pub use namespace::{
    Dlfeat, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm, LbaFormat,
    MalformedDescriptor, Nmic, NsFeatures, NsFeaturesIndependent, NsIdDescriptors, Nsattr, Nstat,
    Rescap,
};

use super::Sqe;
use byteorder::{ByteOrder, LittleEndian};

/// Controller or Namespace Structure: which structure an Identify command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cns(pub u8);

impl Cns {
    /// Identify Namespace (NVM command set) of NSID.
    pub const NAMESPACE: Self = Self(0x00);
    /// Identify Controller.
    pub const CONTROLLER: Self = Self(0x01);
    /// Active NSIDs greater than NSID.
    pub const ACTIVE_NSID_LIST: Self = Self(0x02);
    /// Namespace Identification Descriptor list of NSID.
    pub const NS_ID_DESCRIPTORS: Self = Self(0x03);
    /// NVM Set list.
    pub const NVM_SET_LIST: Self = Self(0x04);
    /// I/O command set specific Identify Namespace of NSID and CSI.
    pub const CS_NAMESPACE: Self = Self(0x05);
    /// I/O command set specific Identify Controller of CSI.
    pub const CS_CONTROLLER: Self = Self(0x06);
    /// Active NSIDs of one I/O command set.
    pub const CS_ACTIVE_NSID_LIST: Self = Self(0x07);
    /// I/O command set independent Identify Namespace of NSID.
    pub const NAMESPACE_INDEPENDENT: Self = Self(0x08);
    /// Allocated NSIDs greater than NSID.
    pub const ALLOCATED_NSID_LIST: Self = Self(0x10);
    /// Identify Namespace of an allocated NSID.
    pub const ALLOCATED_NAMESPACE: Self = Self(0x11);
    /// Controllers that a namespace is attached to.
    pub const NS_CONTROLLER_LIST: Self = Self(0x12);
    /// Controllers of the NVM subsystem.
    pub const CONTROLLER_LIST: Self = Self(0x13);
    /// Primary Controller Capabilities.
    pub const PRIMARY_CONTROLLER: Self = Self(0x14);
    /// Secondary Controller list.
    pub const SECONDARY_CONTROLLERS: Self = Self(0x15);
    /// UUID list.
    pub const UUID_LIST: Self = Self(0x17);
    /// Endurance group list.
    pub const ENDURANCE_GROUP_LIST: Self = Self(0x19);
    /// Allocated NSIDs of one I/O command set.
    pub const CS_ALLOCATED_NSID_LIST: Self = Self(0x1a);
    /// I/O command set specific Identify Namespace of an allocated NSID.
    pub const CS_ALLOCATED_NAMESPACE: Self = Self(0x1b);
    /// I/O command set vectors.
    pub const IO_COMMAND_SETS: Self = Self(0x1c);
}

/// Command Set Identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Csi(pub u8);

impl Csi {
    /// NVM command set.
    pub const NVM: Self = Self(0x00);
    /// Key value command set.
    pub const KV: Self = Self(0x01);
    /// Zoned namespace command set.
    pub const ZNS: Self = Self(0x02);
}

/// NSID FFFFFFFFh: all namespaces.
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// Size of every Identify data structure, in bytes.
pub const IDENTIFY_SIZE: usize = 4096;

/// The command dwords of an Identify command; NSID stands in the SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyCommand {
    /// CNS: CDW10 bits 7:0.
    pub cns: Cns,
    /// CNTID: CDW10 bits 31:16. Meaningful for CNS values that name a controller.
    pub cntid: u16,
    /// CNS Specific Identifier: CDW11 bits 15:0.
    pub cnssid: u16,
    /// CSI: CDW11 bits 31:24.
    pub csi: Csi,
    /// UUID Index: CDW14 bits 6:0.
    pub uuid_index: u8,
}

impl IdentifyCommand {
    /// An Identify command with nothing set but its CNS.
    #[must_use]
    pub const fn new(cns: Cns) -> Self {
        Self {
            cns,
            cntid: 0,
            cnssid: 0,
            csi: Csi::NVM,
            uuid_index: 0,
        }
    }

    /// Reads CDW10, CDW11 and CDW14.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [cns, _, c0, c1] = sqe.cdw10().to_le_bytes();
        let [s0, s1, _, csi] = sqe.cdw11().to_le_bytes();
        let [uuid_index, ..] = sqe.cdw14().to_le_bytes();
        Self {
            cns: Cns(cns),
            cntid: u16::from_le_bytes([c0, c1]),
            cnssid: u16::from_le_bytes([s0, s1]),
            csi: Csi(csi),
            uuid_index: uuid_index & 0x7f,
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        let [c0, c1] = self.cntid.to_le_bytes();
        let [s0, s1] = self.cnssid.to_le_bytes();
        sqe.set_cdw10_15([
            u32::from_le_bytes([self.cns.0, 0, c0, c1]),
            u32::from_le_bytes([s0, s1, 0, self.csi.0]),
            0,
            0,
            u32::from(self.uuid_index & 0x7f),
            0,
        ]);
    }
}

/// NSIDs in a Namespace List.
pub const NSID_LIST_LEN: usize = IDENTIFY_SIZE / 4;

/// Writes a Namespace List: the first 1,024 of `nsids` (which ascend), then zeroes.
/// Returns how many were written.
pub fn encode_nsid_list(
    nsids: impl IntoIterator<Item = u32>,
    out: &mut [u8; IDENTIFY_SIZE],
) -> usize {
    out.fill(0);
    let mut count = 0;
    for (slot, nsid) in out.chunks_exact_mut(4).zip(nsids) {
        LittleEndian::write_u32(slot, nsid);
        count += 1;
    }
    count
}

/// The NSIDs of a Namespace List, up to the first zero, in the order they stand.
pub fn decode_nsid_list(bytes: &[u8; IDENTIFY_SIZE]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(LittleEndian::read_u32)
        .take_while(|&nsid| nsid != 0)
}

/// Identifiers in a Controller List.
pub const CONTROLLER_LIST_LEN: usize = IDENTIFY_SIZE / 2 - 1;

/// Writes a Controller List: the count, then the first 2,047 of `cntlids` (which ascend), then
/// zeroes. Returns how many were written.
pub fn encode_controller_list(
    cntlids: impl IntoIterator<Item = u16>,
    out: &mut [u8; IDENTIFY_SIZE],
) -> u16 {
    out.fill(0);
    let mut count = 0;
    for (slot, cntlid) in out.chunks_exact_mut(2).skip(1).zip(cntlids) {
        LittleEndian::write_u16(slot, cntlid);
        count += 1;
    }
    LittleEndian::write_u16(&mut out[..2], count);
    count
}

/// The identifiers of a Controller List, as many as it says and can hold.
pub fn decode_controller_list(bytes: &[u8; IDENTIFY_SIZE]) -> impl Iterator<Item = u16> + '_ {
    let count = usize::from(LittleEndian::read_u16(&bytes[..2]));
    bytes
        .chunks_exact(2)
        .skip(1)
        .take(count)
        .map(LittleEndian::read_u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_round_trip_and_dwords() {
        let command = IdentifyCommand {
            cns: Cns::CS_NAMESPACE,
            cntid: 0x1234,
            cnssid: 0x5678,
            csi: Csi::ZNS,
            uuid_index: 0x7f,
        };
        let mut sqe = Sqe::with_opcode(0x06);
        command.encode(&mut sqe);
        assert_eq!(sqe.cdw10(), 0x1234_0005);
        assert_eq!(sqe.cdw11(), 0x0200_5678);
        assert_eq!(sqe.cdw14(), 0x7f);
        assert_eq!(IdentifyCommand::decode(&sqe), command);
    }

    #[test]
    fn nsid_list_is_cut_at_1024() {
        let mut out = [0xff; 4096];
        assert_eq!(encode_nsid_list([1, 5, 0x0102_0304], &mut out), 3);
        assert_eq!(out[..16], [1, 0, 0, 0, 5, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
        assert!(out[16..].iter().all(|&b| b == 0));
        assert_eq!(
            decode_nsid_list(&out).collect::<Vec<_>>(),
            [1, 5, 0x0102_0304]
        );

        assert_eq!(encode_nsid_list(1..=2000, &mut out), NSID_LIST_LEN);
        assert_eq!(decode_nsid_list(&out).count(), NSID_LIST_LEN);
        assert_eq!(encode_nsid_list([], &mut out), 0);
        assert_eq!(decode_nsid_list(&out).next(), None);
    }

    #[test]
    fn controller_list_counts_itself() {
        let mut out = [0xff; 4096];
        assert_eq!(encode_controller_list([3, 0x0201], &mut out), 2);
        assert_eq!(out[..8], [2, 0, 3, 0, 1, 2, 0, 0]);
        assert_eq!(
            decode_controller_list(&out).collect::<Vec<_>>(),
            [3, 0x0201]
        );
        assert_eq!(
            usize::from(encode_controller_list(0..=u16::MAX, &mut out)),
            CONTROLLER_LIST_LEN
        );
        assert_eq!(out[..2], [0xff, 0x07]);
    }
}

//! Asymmetric Namespace Access log page (LID 0Ch): which namespaces a controller reaches, and how.
//! (NVMe Base 2.1, Asymmetric Namespace Access log page.)

use crate::wire::layout::{newtype_fields, wire_struct};
use bitflags::bitflags;

/// Asymmetric Namespace Access State of a group, as one controller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnaStateCode(pub u8);

impl AnaStateCode {
    /// ANA Optimized state.
    pub const OPTIMIZED: Self = Self(0x1);
    /// ANA Non-Optimized state.
    pub const NON_OPTIMIZED: Self = Self(0x2);
    /// ANA Inaccessible state.
    pub const INACCESSIBLE: Self = Self(0x3);
    /// ANA Persistent Loss state.
    pub const PERSISTENT_LOSS: Self = Self(0x4);
    /// ANA Change state.
    pub const CHANGE: Self = Self(0xf);
}

newtype_fields! {
    AnaStateCode(u8): |bits: u8| Self(bits & 0xf), |state| state.0 & 0xf;
}

bitflags! {
    /// Log Specific Parameter of Get Log Page for LID 0Ch.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AnaLsp: u8 {
        /// RGO: Return Groups Only, descriptors without their NSIDs.
        const GROUPS_ONLY = 1 << 0;
    }
}

wire_struct! {
    /// Header of the ANA log page; the group descriptors follow it.
    pub struct AnaLogHeader[16] {
        /// Change Count: of this page, 0 after a reset of the controller.
        0 => chgcnt: u64,
        /// Number of ANA Group Descriptors.
        8 => descriptors: u16,
    }
}

wire_struct! {
    /// ANA Group Descriptor; `nnsid` NSIDs of 4 bytes follow it.
    pub struct AnaGroupDescriptor[32] {
        /// ANAGRPID: ANA Group Identifier, at least 1.
        0 => anagrpid: u32,
        /// NNSID: Number of NSID Values.
        4 => nnsid: u32,
        /// Change Count: of this descriptor; 0 says that it is not reported.
        8 => chgcnt: u64,
        /// ANA State, in bits 3:0.
        16 => state: AnaStateCode,
    }
}

/// A group in the ANA log page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// ANAGRPID: at least 1.
    pub anagrpid: u32,
    /// Its state for the controller that gives the page.
    pub state: AnaStateCode,
    /// Change Count of the descriptor.
    pub chgcnt: u64,
    /// The NSIDs of the group, ascending; none in a page of groups only.
    pub nsids: Vec<u32>,
}

/// The whole page: the groups ascending by ANAGRPID, each with its NSIDs ascending.
#[must_use]
pub fn encode_ana_log(chgcnt: u64, groups: &[AnaGroup]) -> Vec<u8> {
    let mut header = [0; AnaLogHeader::SIZE];
    AnaLogHeader {
        chgcnt,
        descriptors: u16::try_from(groups.len()).unwrap_or(u16::MAX),
    }
    .encode(&mut header);
    let mut page = header.to_vec();
    for group in groups {
        let mut descriptor = [0; AnaGroupDescriptor::SIZE];
        AnaGroupDescriptor {
            anagrpid: group.anagrpid,
            nnsid: u32::try_from(group.nsids.len()).unwrap_or(u32::MAX),
            chgcnt: group.chgcnt,
            state: group.state,
        }
        .encode(&mut descriptor);
        page.extend_from_slice(&descriptor);
        page.extend(group.nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
    }
    page
}

/// The Change Count and the groups of a page; `None` if it ends before its last group does.
#[must_use]
pub fn decode_ana_log(page: &[u8]) -> Option<(u64, Vec<AnaGroup>)> {
    let (header, mut rest) = page.split_first_chunk()?;
    let header = AnaLogHeader::decode(header);
    let mut groups = Vec::new();
    for _ in 0..header.descriptors {
        let (descriptor, after) = rest.split_first_chunk()?;
        let descriptor = AnaGroupDescriptor::decode(descriptor);
        let bytes = usize::try_from(descriptor.nnsid).ok()?.checked_mul(4)?;
        let (nsids, after) = after.split_at_checked(bytes)?;
        groups.push(AnaGroup {
            anagrpid: descriptor.anagrpid,
            state: descriptor.state,
            chgcnt: descriptor.chgcnt,
            nsids: nsids
                .chunks_exact(4)
                .filter_map(|bytes| bytes.first_chunk().map(|b| u32::from_le_bytes(*b)))
                .collect(),
        });
        rest = after;
    }
    Some((header.chgcnt, groups))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    #[test]
    fn offsets() {
        assert_offsets!(AnaLogHeader {
            chgcnt: u64::MAX => 0..8;
            descriptors: 0xffff => 8..10;
        });
        assert_offsets!(AnaGroupDescriptor {
            anagrpid: u32::MAX => 0..4;
            nnsid: u32::MAX => 4..8;
            chgcnt: u64::MAX => 8..16;
            state: AnaStateCode::CHANGE => 16..17;
        });
    }

    #[test]
    fn pages_survive_the_wire_and_short_ones_are_seen() {
        let group = |anagrpid, state, nsids: &[u32]| AnaGroup {
            anagrpid,
            state,
            chgcnt: 7,
            nsids: nsids.to_vec(),
        };
        let groups = [
            group(1, AnaStateCode::OPTIMIZED, &[1, 4096]),
            group(2, AnaStateCode::INACCESSIBLE, &[]),
            group(9, AnaStateCode::CHANGE, &[0x0102_0304]),
        ];
        let page = encode_ana_log(5, &groups);
        assert_eq!(page.len(), 16 + 3 * 32 + 3 * 4);
        assert_eq!(page[..10], [5, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        assert_eq!(page[32], 1, "the state of the first group");
        assert_eq!(page[48..56], [1, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(decode_ana_log(&page), Some((5, groups.to_vec())));
        for len in 0..page.len() {
            assert_eq!(decode_ana_log(&page[..len]), None, "{len}");
        }
        assert_eq!(decode_ana_log(&encode_ana_log(0, &[])), Some((0, vec![])));
    }
}

//! Get Log Page: the command, the log pages and the asynchronous events that announce them.
//! (NVMe Base 2.1, Get Log Page command and Asynchronous Event Request command.)

mod ana;
mod event;
mod pages;
mod persistent;

pub use ana::{
    AnaGroup, AnaGroupDescriptor, AnaLogHeader, AnaLsp, AnaStateCode, decode_ana_log,
    encode_ana_log,
};
pub use event::{AsyncEvent, AsyncEventType};
pub use pages::{
    CommandEffects, CommandEffectsLog, CriticalWarning, ErrorLogEntry, FirmwareSlotLog, LidSupport,
    ParameterLocation, SmartLog, SupportedLogPages,
};
pub use persistent::{
    NamespaceChange, PersistentEventAction, PersistentEventHeader, PersistentEventLogHeader,
    PersistentEventType, ReportingContext, ResetInformation, TimestampChange, persistent_events,
};

use super::Sqe;
use super::identify::{Csi, IDENTIFY_SIZE, NSID_BROADCAST, NSID_LIST_LEN, encode_nsid_list};

/// Log Page Identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lid(pub u8);

impl Lid {
    /// Supported Log Pages.
    pub const SUPPORTED_LOG_PAGES: Self = Self(0x00);
    /// Error Information.
    pub const ERROR_INFORMATION: Self = Self(0x01);
    /// SMART / Health Information.
    pub const SMART: Self = Self(0x02);
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: Self = Self(0x03);
    /// Changed Attached Namespace List.
    pub const CHANGED_NAMESPACES: Self = Self(0x04);
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: Self = Self(0x05);
    /// Device Self-test.
    pub const SELF_TEST: Self = Self(0x06);
    /// Telemetry Host-Initiated.
    pub const TELEMETRY_HOST: Self = Self(0x07);
    /// Telemetry Controller-Initiated.
    pub const TELEMETRY_CONTROLLER: Self = Self(0x08);
    /// Endurance Group Information.
    pub const ENDURANCE_GROUP: Self = Self(0x09);
    /// Predictable Latency Event Aggregate.
    pub const PREDICTABLE_LATENCY_AGGREGATE: Self = Self(0x0b);
    /// Asymmetric Namespace Access.
    pub const ANA: Self = Self(0x0c);
    /// Persistent Event Log.
    pub const PERSISTENT_EVENT: Self = Self(0x0d);
    /// Endurance Group Event Aggregate.
    pub const ENDURANCE_GROUP_AGGREGATE: Self = Self(0x0f);
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: Self = Self(0x12);
    /// NVMe-MI Commands Supported and Effects.
    pub const NVME_MI_EFFECTS: Self = Self(0x13);
    /// Rotational Media Information.
    pub const ROTATIONAL_MEDIA: Self = Self(0x16);
    /// Discovery.
    pub const DISCOVERY: Self = Self(0x70);
    /// Reservation Notification.
    pub const RESERVATION_NOTIFICATION: Self = Self(0x80);
}

/// The command dwords of a Get Log Page command; NSID stands in the SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// LID: CDW10 bits 7:0.
    pub lid: Lid,
    /// LSP: Log Specific Parameter, CDW10 bits 14:8.
    pub lsp: u8,
    /// RAE: Retain Asynchronous Event, CDW10 bit 15. Cleared means that reading this log allows
    /// the next event of its kind.
    pub rae: bool,
    /// NUMD: dwords to return, 0's based; NUMDU in CDW11 bits 15:0, NUMDL in CDW10 bits 31:16.
    pub numd: u32,
    /// LSI: Log Specific Identifier, CDW11 bits 31:16.
    pub lsi: u16,
    /// LPO: Log Page Offset, CDW13:CDW12. Bytes, or an index if `ot` is set.
    pub lpo: u64,
    /// UUID Index: CDW14 bits 6:0.
    pub uuid_index: u8,
    /// OT: Offset Type, CDW14 bit 23; set means that LPO is an index.
    pub ot: bool,
    /// CSI: CDW14 bits 31:24.
    pub csi: Csi,
}

impl GetLogPage {
    /// A request for the first `length` bytes of a log page. `length` is rounded up to dwords; 0
    /// asks for one dword, which is the least that the command can say.
    #[must_use]
    pub const fn new(lid: Lid, length: u32) -> Self {
        Self {
            lid,
            lsp: 0,
            rae: false,
            numd: length.div_ceil(4).saturating_sub(1),
            lsi: 0,
            lpo: 0,
            uuid_index: 0,
            ot: false,
            csi: Csi::NVM,
        }
    }

    /// Reads CDW10 to CDW14.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [lid, lsp_rae, numd0, numd1] = sqe.cdw10().to_le_bytes();
        let [numd2, numd3, lsi0, lsi1] = sqe.cdw11().to_le_bytes();
        let [uuid_index, _, ot, csi] = sqe.cdw14().to_le_bytes();
        Self {
            lid: Lid(lid),
            lsp: lsp_rae & 0x7f,
            rae: lsp_rae & 0x80 != 0,
            numd: u32::from_le_bytes([numd0, numd1, numd2, numd3]),
            lsi: u16::from_le_bytes([lsi0, lsi1]),
            lpo: u64::from(sqe.cdw13()) << 32 | u64::from(sqe.cdw12()),
            uuid_index: uuid_index & 0x7f,
            ot: ot & 0x80 != 0,
            csi: Csi(csi),
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        let [numd0, numd1, numd2, numd3] = self.numd.to_le_bytes();
        let [lsi0, lsi1] = self.lsi.to_le_bytes();
        let [o0, o1, o2, o3, o4, o5, o6, o7] = self.lpo.to_le_bytes();
        let lsp_rae = self.lsp & 0x7f | u8::from(self.rae) << 7;
        let ot = u8::from(self.ot) << 7;
        sqe.set_cdw10_15([
            u32::from_le_bytes([self.lid.0, lsp_rae, numd0, numd1]),
            u32::from_le_bytes([numd2, numd3, lsi0, lsi1]),
            u32::from_le_bytes([o0, o1, o2, o3]),
            u32::from_le_bytes([o4, o5, o6, o7]),
            u32::from_le_bytes([self.uuid_index & 0x7f, 0, ot, self.csi.0]),
            0,
        ]);
    }

    /// How many bytes the host asks for: 4 up to 16 GiB.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (self.numd as u64 + 1) * 4
    }
}

/// Writes a Changed Attached Namespace List (LID 04h). More than 1,024 NSIDs do not fit: then the
/// first entry is FFFFFFFFh and the rest zero, which tells the host to look at all of them.
pub fn encode_changed_namespaces(
    nsids: impl IntoIterator<Item = u32>,
    out: &mut [u8; IDENTIFY_SIZE],
) {
    let mut nsids = nsids.into_iter();
    let written = encode_nsid_list(nsids.by_ref().take(NSID_LIST_LEN), out);
    if written == NSID_LIST_LEN && nsids.next().is_some() {
        encode_nsid_list([NSID_BROADCAST], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::identify::decode_nsid_list;

    #[test]
    fn command_dwords() {
        let command = GetLogPage {
            lid: Lid::DISCOVERY,
            lsp: 0x05,
            rae: true,
            numd: 0x0102_0304,
            lsi: 0x0506,
            lpo: 0x0708_090a_0b0c_0d0e,
            uuid_index: 0x11,
            ot: true,
            csi: Csi::ZNS,
        };
        let mut sqe = Sqe::with_opcode(0x02);
        command.encode(&mut sqe);
        assert_eq!(sqe.cdw10(), 0x0304_8570);
        assert_eq!(sqe.cdw11(), 0x0506_0102);
        assert_eq!(sqe.cdw12(), 0x0b0c_0d0e);
        assert_eq!(sqe.cdw13(), 0x0708_090a);
        assert_eq!(sqe.cdw14(), 0x0280_0011);
        assert_eq!(GetLogPage::decode(&sqe), command);
    }

    #[test]
    fn lengths() {
        for (length, numd) in [
            (0, 0),
            (1, 0),
            (4, 0),
            (5, 1),
            (512, 127),
            (u32::MAX, 0x3fff_ffff),
        ] {
            assert_eq!(GetLogPage::new(Lid::SMART, length).numd, numd);
        }
        let most = GetLogPage {
            numd: u32::MAX,
            ..GetLogPage::new(Lid::SMART, 0)
        };
        assert_eq!(most.length(), 1 << 34);
        assert_eq!(GetLogPage::new(Lid::SMART, 512).length(), 512);
    }

    #[test]
    fn changed_namespaces_overflow() {
        let mut out = [0xff; 4096];
        encode_changed_namespaces([4, 9], &mut out);
        assert_eq!(decode_nsid_list(&out).collect::<Vec<_>>(), [4, 9]);
        encode_changed_namespaces(1..=1024, &mut out);
        assert_eq!(decode_nsid_list(&out).count(), 1024);
        encode_changed_namespaces(1..=1025, &mut out);
        assert_eq!(decode_nsid_list(&out).collect::<Vec<_>>(), [0xffff_ffff]);
    }
}

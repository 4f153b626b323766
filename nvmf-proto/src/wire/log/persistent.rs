//! The Persistent Event log page (LID 0Dh; NVMe Base 2.1, Persistent Event log page).

use super::Lid;
use crate::wire::feature::Timestamp;
use crate::wire::layout::{newtype_fields, wire_struct};

/// Action: bits 1:0 of LSP (CDW10 bits 9:8) of a Get Log Page command for this page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistentEventAction(pub u8);

impl PersistentEventAction {
    /// 00b: read of the context that was established before.
    pub const READ: Self = Self(0);
    /// 01b: establish a reporting context, and read of it.
    pub const ESTABLISH: Self = Self(1);
    /// 10b: release the reporting context.
    pub const RELEASE: Self = Self(2);
    /// 11b: establish a reporting context, and read the header, whatever length was asked for.
    pub const ESTABLISH_HEADER: Self = Self(3);

    /// From LSP.
    #[must_use]
    pub const fn of(lsp: u8) -> Self {
        Self(lsp & 3)
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PersistentEventType(pub u8);

impl PersistentEventType {
    /// SMART / Health Log Snapshot; its data is a [`super::SmartLog`].
    pub const SMART_SNAPSHOT: Self = Self(0x01);
    /// Timestamp Change; its data is a [`TimestampChange`].
    pub const TIMESTAMP_CHANGE: Self = Self(0x03);
    /// Power-on or Reset; its data is a firmware revision and then [`ResetInformation`]s.
    pub const POWER_ON_OR_RESET: Self = Self(0x04);
    /// Change Namespace; its data is a [`NamespaceChange`].
    pub const CHANGE_NAMESPACE: Self = Self(0x06);
}

newtype_fields! {
    PersistentEventType(u8): Self, |t| t.0;
}

/// Reporting Context Information: bits 15:0 the port, bits 17:16 its type, bit 18 that there was a
/// context already when the command came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportingContext(pub u32);

impl ReportingContext {
    /// A context that exists, established through an NVM subsystem port (type 01b).
    #[must_use]
    pub const fn of_port(port_id: u16) -> Self {
        let [a, b] = port_id.to_le_bytes();
        Self(u32::from_le_bytes([a, b, 0b101, 0]))
    }

    /// RCE: a context existed when the command came.
    #[must_use]
    pub const fn exists(self) -> bool {
        self.0 & 1 << 18 != 0
    }
}

newtype_fields! {
    ReportingContext(u32): Self, |c| c.0;
}

wire_struct! {
    /// The header; the events follow it, the newest first.
    pub struct PersistentEventLogHeader[512] {
        /// LID, 0Dh.
        0 => lid: Lid,
        /// Total Number of Events.
        4 => tnev: u32,
        /// Total Log Length in bytes, with this header.
        8 => tll: u64,
        /// Log Revision.
        16 => revision: u8,
        /// Log Header Length: bytes of the header behind this field.
        18 => header_length: u16,
        /// When the log was reported.
        20 => timestamp: Timestamp,
        /// Power On Hours.
        28 => power_on_hours: u128,
        /// Power Cycle Count.
        44 => power_cycles: u64,
        /// PCI Vendor ID.
        52 => vid: u16,
        /// PCI Subsystem Vendor ID.
        54 => ssvid: u16,
        /// Serial Number.
        56 => sn: [u8; 20],
        /// Model Number.
        76 => mn: [u8; 40],
        /// NVM Subsystem NQN.
        116 => subnqn: [u8; 256],
        /// Generation Number: another one for each reporting context.
        372 => generation: u16,
        /// Reporting Context Information.
        374 => context: ReportingContext,
        /// Supported Events Bitmap, by event type.
        480 => supported: [u8; 32],
    }
}

impl PersistentEventLogHeader {
    /// Log Revision of NVMe Base 2.1.
    pub const REVISION: u8 = 3;
    /// What [`Self::header_length`] is.
    pub const LENGTH: u16 = 512 - 20;

    /// Sets an event type's bit of the Supported Events Bitmap.
    pub fn support(&mut self, event: PersistentEventType) {
        if let Some(byte) = self.supported.get_mut(usize::from(event.0 / 8)) {
            *byte |= 1 << (event.0 % 8);
        }
    }
}

wire_struct! {
    /// The header of one event; its data follows.
    #[derive(Copy)]
    pub struct PersistentEventHeader[24] {
        /// Event Type.
        0 => event: PersistentEventType,
        /// Event Type Revision.
        1 => revision: u8,
        /// Event Header Length: bytes of this header behind this field.
        2 => header_length: u8,
        /// Event Header Additional Information: type of the port identifier in bits 1:0.
        3 => additional: u8,
        /// Controller Identifier.
        4 => cntlid: u16,
        /// When it happened.
        6 => timestamp: Timestamp,
        /// Port Identifier.
        14 => port_id: u16,
        /// Vendor Specific Information Length.
        20 => vendor_length: u16,
        /// Event Length: bytes of vendor specific information and event data.
        22 => length: u16,
    }
}

impl PersistentEventHeader {
    /// What [`Self::header_length`] is.
    pub const LENGTH: u8 = 24 - 3;
    /// Port Identifier Type in [`Self::additional`]: there is none with the event.
    pub const NO_PORT: u8 = 0b01;
}

wire_struct! {
    /// Data of a Timestamp Change event.
    #[derive(Copy)]
    pub struct TimestampChange[16] {
        /// The timestamp before the change.
        0 => previous: Timestamp,
        /// Milliseconds since the controller's last reset.
        8 => since_reset: u64,
    }
}

wire_struct! {
    /// Controller Reset Information: a part of the data of a Power-on or Reset event.
    #[derive(Copy)]
    pub struct ResetInformation[36] {
        /// Controller Identifier.
        0 => cntlid: u16,
        /// Firmware activation with this reset.
        2 => firmware_activation: u8,
        /// Operation in progress.
        3 => in_progress: u8,
        /// Controller power cycle.
        16 => power_cycle: u32,
        /// Power on milliseconds.
        20 => power_on: u64,
        /// The controller's timestamp.
        28 => timestamp: Timestamp,
    }
}

wire_struct! {
    /// Data of a Change Namespace event.
    #[derive(Copy)]
    pub struct NamespaceChange[48] {
        /// CDW10 of the Namespace Management command: SEL, 0 created, 1 deleted.
        0 => management: u32,
        /// Namespace Size in logical blocks.
        8 => nsze: u64,
        /// Namespace Capacity in logical blocks.
        24 => ncap: u64,
        /// Formatted LBA Size.
        32 => flbas: u8,
        /// End-to-end Data Protection Type Settings.
        33 => dps: u8,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
        34 => nmic: u8,
        /// ANA Group Identifier.
        36 => anagrpid: u32,
        /// NVM Set Identifier.
        40 => nvmsetid: u16,
        /// NSID.
        44 => nsid: u32,
    }
}

impl NamespaceChange {
    /// SEL: the namespace came to be.
    pub const CREATED: u32 = 0;
    /// SEL: the namespace is gone.
    pub const DELETED: u32 = 1;
}

/// The events of a log, from the bytes behind its header: each header with its data, up to the
/// first that does not fit.
pub fn persistent_events(mut bytes: &[u8]) -> impl Iterator<Item = (PersistentEventHeader, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_first_chunk()?;
        let header = PersistentEventHeader::decode(header);
        let (data, rest) = rest.split_at_checked(usize::from(header.length))?;
        bytes = rest;
        Some((header, data))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    const W: u16 = 0xfefd;
    const D: u32 = 0xfefd_fcfb;
    const Q: u64 = u64::MAX - 1;
    const O: u128 = u128::MAX - 1;

    #[test]
    fn header_offsets() {
        assert_offsets!(PersistentEventLogHeader {
            lid: Lid::PERSISTENT_EVENT => 0..1;
            tnev: D => 4..8;
            tll: Q => 8..16;
            revision: 3 => 16..17;
            header_length: W => 18..20;
            timestamp: Timestamp(Q) => 20..28;
            power_on_hours: O => 28..44;
            power_cycles: Q => 44..52;
            vid: W => 52..54;
            ssvid: W => 54..56;
            sn: [b's'; 20] => 56..76;
            mn: [b'm'; 40] => 76..116;
            subnqn: [b'n'; 256] => 116..372;
            generation: W => 372..374;
            context: ReportingContext(D) => 374..378;
            supported: [1; 32] => 480..512;
        });
        let mut header = PersistentEventLogHeader::default();
        for event in [
            PersistentEventType::SMART_SNAPSHOT,
            PersistentEventType(0x0d),
        ] {
            header.support(event);
        }
        assert_eq!(header.supported[..2], [1 << 1, 1 << 5]);
        assert_eq!(ReportingContext::of_port(0x1234).0, 0x0005_1234);
        assert!(ReportingContext::of_port(0).exists() && !ReportingContext(0x1_0000).exists());
        assert_eq!(
            PersistentEventAction::of(0x7e),
            PersistentEventAction::RELEASE
        );
    }

    #[test]
    fn event_offsets() {
        assert_offsets!(PersistentEventHeader {
            event: PersistentEventType::CHANGE_NAMESPACE => 0..1;
            revision: 1 => 1..2;
            header_length: 21 => 2..3;
            additional: 1 => 3..4;
            cntlid: W => 4..6;
            timestamp: Timestamp(Q) => 6..14;
            port_id: W => 14..16;
            vendor_length: W => 20..22;
            length: W => 22..24;
        });
        assert_offsets!(TimestampChange {
            previous: Timestamp(Q) => 0..8;
            since_reset: Q => 8..16;
        });
        assert_offsets!(ResetInformation {
            cntlid: W => 0..2;
            firmware_activation: 1 => 2..3;
            in_progress: 1 => 3..4;
            power_cycle: D => 16..20;
            power_on: Q => 20..28;
            timestamp: Timestamp(Q) => 28..36;
        });
        assert_offsets!(NamespaceChange {
            management: D => 0..4;
            nsze: Q => 8..16;
            ncap: Q => 24..32;
            flbas: 1 => 32..33;
            dps: 1 => 33..34;
            nmic: 1 => 34..35;
            anagrpid: D => 36..40;
            nvmsetid: W => 40..42;
            nsid: D => 44..48;
        });
    }

    #[test]
    fn events_end_where_one_does_not_fit() {
        let mut bytes = [0; 24 + 16 + 24 + 8];
        let event = |length| {
            let mut out = [0; 24];
            PersistentEventHeader {
                event: PersistentEventType::TIMESTAMP_CHANGE,
                length,
                ..PersistentEventHeader::default()
            }
            .encode(&mut out);
            out
        };
        bytes[..24].copy_from_slice(&event(16));
        bytes[40..64].copy_from_slice(&event(8));
        let lengths = |bytes| -> Vec<usize> {
            persistent_events(bytes)
                .map(|(_, data)| data.len())
                .collect()
        };
        assert_eq!(lengths(&bytes), [16, 8]);
        assert_eq!(lengths(&bytes[..71]), [16]);
        assert_eq!(lengths(&bytes[..23]), []);
    }
}

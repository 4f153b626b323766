//! Log page data structures.

use super::Lid;
use crate::wire::Status;
use crate::wire::identify::Csi;
use crate::wire::layout::{flag_fields, newtype_fields, wire_struct};
use crate::wire::{AdminOpcode, NvmOpcode};
use bitflags::bitflags;

bitflags! {
    /// Critical Warning of the SMART / Health log page.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CriticalWarning: u8 {
        /// Available spare is below the threshold.
        const SPARE = 1 << 0;
        /// A temperature is beyond a threshold.
        const TEMPERATURE = 1 << 1;
        /// Reliability is degraded.
        const RELIABILITY = 1 << 2;
        /// All media is read only.
        const READ_ONLY = 1 << 3;
        /// The volatile memory backup failed.
        const MEMORY_BACKUP = 1 << 4;
        /// The persistent memory region is read only or unreliable.
        const PERSISTENT_MEMORY = 1 << 5;
    }

    /// LID Supported and Effects: one entry of the Supported Log Pages log page. Bits 31:16 are
    /// specific to the log page.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LidSupport: u32 {
        /// LSUPP: the log page is supported.
        const SUPPORTED = 1 << 0;
        /// IOS: LPO may be an index.
        const INDEX_OFFSET = 1 << 1;
        /// Of the Persistent Event log page: a context can be established by a command that reads
        /// the 512 bytes of the header.
        const ESTABLISH_HEADER = 1 << 16;
        /// PLEOS: of the Discovery log page, the entries of one port can be asked for.
        const PORT_LOCAL_ENTRIES = 1 << 17;
    }

    /// One entry of the Commands Supported and Effects log page. Bits 18:16 (CSE) and 31:20 (CSP)
    /// are numbers; those used here have names.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CommandEffects: u32 {
        /// CSUPP: the command is supported.
        const SUPPORTED = 1 << 0;
        /// LBCC: logical block content may change.
        const LOGICAL_BLOCK_CHANGE = 1 << 1;
        /// NCC: namespace capabilities may change.
        const NAMESPACE_CHANGE = 1 << 2;
        /// NIC: the inventory of namespaces may change.
        const INVENTORY_CHANGE = 1 << 3;
        /// CCC: controller capabilities may change.
        const CONTROLLER_CHANGE = 1 << 4;
        /// CSE 001b: no other command to the same namespace may be outstanding.
        const EXCLUSIVE_NAMESPACE = 1 << 16;
        /// CSE 010b: no other command to any namespace may be outstanding.
        const EXCLUSIVE_ALL = 1 << 17;
        /// USS: UUID Index is honoured.
        const UUID_SELECTION = 1 << 19;
        /// CSP bit 0: the scope is a namespace.
        const SCOPE_NAMESPACE = 1 << 20;
        /// CSP bit 1: the scope is the controller.
        const SCOPE_CONTROLLER = 1 << 21;
    }
}

flag_fields! { CriticalWarning(u8), LidSupport(u32), CommandEffects(u32) }

newtype_fields! {
    Csi(u8): Self, |c| c.0;
    Lid(u8): Self, |l| l.0;
    ParameterLocation(u16): Self, |l| l.0;
}

/// Parameter Error Location: which part of a command is in error. Bits 7:0 are a byte of the SQE,
/// bits 10:8 the lowest bit of the parameter in that byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ParameterLocation(pub u16);

impl ParameterLocation {
    /// The error is not of a parameter.
    pub const NONE: Self = Self(0xffff);

    /// A parameter that begins at a byte of the SQE.
    #[must_use]
    pub const fn byte(byte: u8) -> Self {
        Self(byte as u16)
    }

    /// A parameter that begins at a bit of a little-endian field, which itself begins at `byte`.
    #[must_use]
    pub const fn bit(byte: u8, bit: u8) -> Self {
        Self((byte + bit / 8) as u16 | ((bit % 8) as u16) << 8)
    }

    /// The same parameter for CDW10 to CDW15: `dword` is 10 to 15, `bit` its lowest bit.
    #[must_use]
    pub const fn cdw(dword: u8, bit: u8) -> Self {
        Self::bit(dword * 4, bit)
    }
}

wire_struct! {
    /// SMART / Health Information log page (LID 02h).
    pub struct SmartLog[512] {
        /// Critical Warning.
        0 => critical_warning: CriticalWarning,
        /// Composite Temperature in kelvins.
        1 => temperature: u16,
        /// Available Spare in percent.
        3 => available_spare: u8,
        /// Available Spare Threshold in percent.
        4 => available_spare_threshold: u8,
        /// Percentage Used; may exceed 100, 255 is the most.
        5 => percentage_used: u8,
        /// Endurance Group Critical Warning Summary.
        6 => endurance_group_warning: u8,
        /// Data Units Read, in 1,000 units of 512 bytes, rounded up; see [`SmartLog::data_units`].
        32 => data_units_read: u128,
        /// Data Units Written, in 1,000 units of 512 bytes, rounded up.
        48 => data_units_written: u128,
        /// Host Read Commands.
        64 => host_read_commands: u128,
        /// Host Write Commands.
        80 => host_write_commands: u128,
        /// Controller Busy Time in minutes.
        96 => controller_busy_time: u128,
        /// Power Cycles.
        112 => power_cycles: u128,
        /// Power On Hours.
        128 => power_on_hours: u128,
        /// Unexpected Power Losses.
        144 => unsafe_shutdowns: u128,
        /// Media and Data Integrity Errors.
        160 => media_errors: u128,
        /// Number of Error Information Log Entries over the life of the controller.
        176 => error_log_entries: u128,
        /// Warning Composite Temperature Time in minutes.
        192 => warning_temperature_time: u32,
        /// Critical Composite Temperature Time in minutes.
        196 => critical_temperature_time: u32,
        /// Temperature Sensors 1 to 8 in kelvins; 0 is not implemented.
        200 => temperature_sensors: [u16; 8],
        /// Thermal Management Temperature 1 Transition Count.
        216 => thermal_1_transitions: u32,
        /// Thermal Management Temperature 2 Transition Count.
        220 => thermal_2_transitions: u32,
        /// Total Time For Thermal Management Temperature 1 in seconds.
        224 => thermal_1_time: u32,
        /// Total Time For Thermal Management Temperature 2 in seconds.
        228 => thermal_2_time: u32,
    }
}

impl SmartLog {
    /// Bytes as Data Units: thousands of 512 bytes, rounded up.
    #[must_use]
    pub const fn data_units(bytes: u128) -> u128 {
        bytes.div_ceil(512 * 1000)
    }
}

wire_struct! {
    /// Error Information log entry (LID 01h). The newest entry comes first.
    #[derive(Copy)]
    pub struct ErrorLogEntry[64] {
        /// Error Count: unique, counts from 1; 0 is an invalid entry.
        0 => error_count: u64,
        /// Submission Queue ID; FFFFh if not of a command.
        8 => sqid: u16,
        /// Command ID; FFFFh if not of a command.
        10 => cid: u16,
        /// Status in bits 15:1, phase tag in bit 0.
        12 => status: u16,
        /// Parameter Error Location.
        14 => parameter_location: ParameterLocation,
        /// LBA: the first one with the error.
        16 => lba: u64,
        /// Namespace.
        24 => nsid: u32,
        /// Vendor Specific Information Available: a log page identifier, or 0.
        28 => vendor_log_page: u8,
        /// TRTYPE if the error is of the transport, else 0.
        29 => trtype: u8,
        /// Command Set Indicator; valid if `log_page_version` is 1.
        30 => csi: Csi,
        /// Opcode; valid if `log_page_version` is 1.
        31 => opcode: u8,
        /// Command Specific Information.
        32 => command_specific: u64,
        /// Transport Type Specific Information.
        40 => transport_specific: u16,
        /// Log Page Version; 1.
        63 => log_page_version: u8,
    }
}

impl ErrorLogEntry {
    /// The status of the command.
    #[must_use]
    pub const fn command_status(&self) -> Status {
        Status::from_bits(self.status >> 1)
    }
}

wire_struct! {
    /// Firmware Slot Information log page (LID 03h).
    pub struct FirmwareSlotLog[512] {
        /// AFI: active slot in bits 2:0, slot after the next reset in bits 6:4.
        0 => afi: u8,
        /// FRS1 to FRS7: revision per slot, space-padded ASCII; all zero is an empty slot.
        8 => revisions: [[u8; 8]; 7],
    }
}

wire_struct! {
    /// Commands Supported and Effects log page (LID 05h).
    pub struct CommandEffectsLog[4096] {
        /// Admin commands, by opcode.
        0 => admin: [CommandEffects; 256],
        /// I/O commands of the command set that was asked for, by opcode.
        1024 => io: [CommandEffects; 256],
    }
}

impl CommandEffectsLog {
    /// Sets the effects of an Admin command.
    pub fn set_admin(&mut self, opcode: AdminOpcode, effects: CommandEffects) {
        if let Some(entry) = self.admin.get_mut(usize::from(opcode.0)) {
            *entry = effects;
        }
    }

    /// Sets the effects of an I/O command.
    pub fn set_io(&mut self, opcode: NvmOpcode, effects: CommandEffects) {
        if let Some(entry) = self.io.get_mut(usize::from(opcode.0)) {
            *entry = effects;
        }
    }
}

wire_struct! {
    /// Supported Log Pages log page (LID 00h).
    pub struct SupportedLogPages[1024] {
        /// One entry per LID.
        0 => lids: [LidSupport; 256],
    }
}

impl SupportedLogPages {
    /// Sets the entry of a log page.
    pub fn set(&mut self, lid: Lid, support: LidSupport) {
        if let Some(entry) = self.lids.get_mut(usize::from(lid.0)) {
            *entry = support;
        }
    }

    /// Whether LSUPP of a log page is set.
    #[must_use]
    pub fn supports(&self, lid: Lid) -> bool {
        self.lids
            .get(usize::from(lid.0))
            .is_some_and(|e| e.contains(LidSupport::SUPPORTED))
    }
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
    fn smart_offsets() {
        assert_offsets!(SmartLog {
            critical_warning: CriticalWarning::READ_ONLY => 0..1;
            temperature: W => 1..3;
            available_spare: 100 => 3..4;
            available_spare_threshold: 10 => 4..5;
            percentage_used: 1 => 5..6;
            endurance_group_warning: 1 => 6..7;
            data_units_read: O => 32..48;
            data_units_written: O => 48..64;
            host_read_commands: O => 64..80;
            host_write_commands: O => 80..96;
            controller_busy_time: O => 96..112;
            power_cycles: O => 112..128;
            power_on_hours: O => 128..144;
            unsafe_shutdowns: O => 144..160;
            media_errors: O => 160..176;
            error_log_entries: O => 176..192;
            warning_temperature_time: D => 192..196;
            critical_temperature_time: D => 196..200;
            temperature_sensors: [W; 8] => 200..216;
            thermal_1_transitions: D => 216..220;
            thermal_2_transitions: D => 220..224;
            thermal_1_time: D => 224..228;
            thermal_2_time: D => 228..232;
        });
    }

    #[test]
    fn data_units_round_up() {
        let table = [
            (0, 0),
            (1, 1),
            (512, 1),
            (512_000, 1),
            (512_001, 2),
            (1_024_000, 2),
        ];
        for (bytes, units) in table {
            assert_eq!(SmartLog::data_units(bytes), units, "{bytes}");
        }
    }

    #[test]
    fn error_and_firmware_offsets() {
        assert_offsets!(ErrorLogEntry {
            error_count: Q => 0..8;
            sqid: W => 8..10;
            cid: W => 10..12;
            status: W => 12..14;
            parameter_location: ParameterLocation(W) => 14..16;
            lba: Q => 16..24;
            nsid: D => 24..28;
            vendor_log_page: 0x80 => 28..29;
            trtype: 3 => 29..30;
            csi: Csi::ZNS => 30..31;
            opcode: 2 => 31..32;
            command_specific: Q => 32..40;
            transport_specific: W => 40..42;
            log_page_version: 1 => 63..64;
        });
        assert_offsets!(FirmwareSlotLog {
            afi: 1 => 0..1;
            revisions: [*b"1.0     "; 7] => 8..64;
        });
    }

    #[test]
    fn parameter_locations() {
        assert_eq!(ParameterLocation::byte(4).0, 0x0004);
        // NUMDL of Get Log Page: bits 31:16 of CDW10.
        assert_eq!(ParameterLocation::cdw(10, 16).0, 0x002a);
        // SEL of Get Features: bits 10:8 of CDW10; OT: bit 23 of CDW14.
        assert_eq!(ParameterLocation::cdw(10, 8).0, 0x0029);
        assert_eq!(ParameterLocation::cdw(14, 23).0, 0x073a);
    }

    #[test]
    fn effects_and_supported_pages() {
        assert_offsets!(CommandEffectsLog {
            admin: [CommandEffects::from_bits_retain(D); 256] => 0..1024;
            io: [CommandEffects::from_bits_retain(D); 256] => 1024..2048;
        });
        assert_offsets!(SupportedLogPages {
            lids: [LidSupport::from_bits_retain(D); 256] => 0..1024;
        });
        let mut log = CommandEffectsLog::default();
        let write = CommandEffects::SUPPORTED | CommandEffects::LOGICAL_BLOCK_CHANGE;
        log.set_io(NvmOpcode::WRITE, write);
        log.set_admin(AdminOpcode::KEEP_ALIVE, CommandEffects::SUPPORTED);
        let mut out = [0; 4096];
        log.encode(&mut out);
        assert_eq!(out[1024 + 4..1024 + 8], [3, 0, 0, 0]);
        assert_eq!(out[0x18 * 4..0x18 * 4 + 4], [1, 0, 0, 0]);

        let mut pages = SupportedLogPages::default();
        pages.set(Lid::DISCOVERY, LidSupport::SUPPORTED);
        assert!(pages.supports(Lid::DISCOVERY));
        assert!(!pages.supports(Lid::SMART));
        let mut out = [0; 1024];
        pages.encode(&mut out);
        assert_eq!(out[0x70 * 4], 1);
    }
}

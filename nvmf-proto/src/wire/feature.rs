//! Get Features and Set Features: the commands and the values of the features that matter over
//! Fabrics. (NVMe Base 2.1, Get Features and Set Features commands.)

mod value;

pub use value::{
    HostBehavior, TemperatureThreshold, Timestamp, TimestampOrigin, WRITE_ATOMICITY_DISABLE_NORMAL,
    WriteProtectState,
};

use super::Sqe;
use super::log::CriticalWarning;
use bitflags::bitflags;

/// Feature Identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fid(pub u8);

impl Fid {
    /// Arbitration.
    pub const ARBITRATION: Self = Self(0x01);
    /// Power Management.
    pub const POWER_MANAGEMENT: Self = Self(0x02);
    /// LBA Range Type.
    pub const LBA_RANGE_TYPE: Self = Self(0x03);
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: Self = Self(0x04);
    /// Error Recovery.
    pub const ERROR_RECOVERY: Self = Self(0x05);
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: Self = Self(0x06);
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: Self = Self(0x07);
    /// Interrupt Coalescing.
    pub const INTERRUPT_COALESCING: Self = Self(0x08);
    /// Interrupt Vector Configuration.
    pub const INTERRUPT_VECTOR: Self = Self(0x09);
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: Self = Self(0x0a);
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIG: Self = Self(0x0b);
    /// Autonomous Power State Transition.
    pub const AUTONOMOUS_POWER: Self = Self(0x0c);
    /// Host Memory Buffer.
    pub const HOST_MEMORY_BUFFER: Self = Self(0x0d);
    /// Timestamp.
    pub const TIMESTAMP: Self = Self(0x0e);
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: Self = Self(0x0f);
    /// Host Controlled Thermal Management.
    pub const THERMAL_MANAGEMENT: Self = Self(0x10);
    /// Non-Operational Power State Config.
    pub const NON_OPERATIONAL_POWER: Self = Self(0x11);
    /// Read Recovery Level Config.
    pub const READ_RECOVERY_LEVEL: Self = Self(0x12);
    /// Predictable Latency Mode Config.
    pub const PREDICTABLE_LATENCY_CONFIG: Self = Self(0x13);
    /// Predictable Latency Mode Window.
    pub const PREDICTABLE_LATENCY_WINDOW: Self = Self(0x14);
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: Self = Self(0x16);
    /// Sanitize Config.
    pub const SANITIZE_CONFIG: Self = Self(0x17);
    /// Endurance Group Event Configuration.
    pub const ENDURANCE_GROUP_EVENT: Self = Self(0x18);
    /// I/O Command Set Profile.
    pub const IO_COMMAND_SET_PROFILE: Self = Self(0x19);
    /// Spinup Control.
    pub const SPINUP_CONTROL: Self = Self(0x1a);
    /// Flexible Data Placement.
    pub const FLEXIBLE_DATA_PLACEMENT: Self = Self(0x1d);
    /// Embedded Management Controller Address.
    pub const EMBEDDED_MANAGEMENT_ADDRESS: Self = Self(0x78);
    /// Software Progress Marker.
    pub const SOFTWARE_PROGRESS: Self = Self(0x80);
    /// Host Identifier.
    pub const HOST_IDENTIFIER: Self = Self(0x81);
    /// Reservation Notification Mask.
    pub const RESERVATION_NOTIFICATION_MASK: Self = Self(0x82);
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: Self = Self(0x83);
    /// Namespace Write Protection Config.
    pub const NAMESPACE_WRITE_PROTECTION: Self = Self(0x84);
}

/// SEL of Get Features: which of a feature's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSelect(pub u8);

impl FeatureSelect {
    /// 000b: current.
    pub const CURRENT: Self = Self(0);
    /// 001b: default.
    pub const DEFAULT: Self = Self(1);
    /// 010b: saved.
    pub const SAVED: Self = Self(2);
    /// 011b: supported capabilities, see [`FeatureCapabilities`].
    pub const CAPABILITIES: Self = Self(3);
}

bitflags! {
    /// Dword 0 of Get Features with SEL 011b.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FeatureCapabilities: u32 {
        /// The value can be saved.
        const SAVEABLE = 1 << 0;
        /// The value belongs to a namespace.
        const NAMESPACE_SPECIFIC = 1 << 1;
        /// The value can be changed.
        const CHANGEABLE = 1 << 2;
    }

    /// Asynchronous Event Configuration (FID 0Bh): CDW11. Bits 7:0 are those of
    /// [`CriticalWarning`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AsyncEventConfig: u32 {
        /// SMART / Health critical warnings, all of them.
        const SMART = 0xff;
        /// Attached Namespace Attribute Notices.
        const NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Notices.
        const FIRMWARE_ACTIVATION = 1 << 9;
        /// Telemetry Log Notices.
        const TELEMETRY = 1 << 10;
        /// ANA Change Notices.
        const ANA_CHANGE = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change Notices.
        const PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Alert Notices.
        const LBA_STATUS = 1 << 13;
        /// Endurance Group Event Aggregate Log Change Notices.
        const ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown.
        const NORMAL_SHUTDOWN = 1 << 15;
        /// Zone Descriptor Changed Notices.
        const ZONE_DESCRIPTOR = 1 << 27;
        /// Discovery Log Page Change Notification.
        const DISCOVERY_LOG = 1 << 31;
    }
}

impl AsyncEventConfig {
    /// The critical warnings that may raise an event.
    #[must_use]
    pub const fn critical_warnings(self) -> CriticalWarning {
        let [warnings, ..] = self.bits().to_le_bytes();
        CriticalWarning::from_bits_retain(warnings)
    }
}

/// The command dwords of a Get Features command; NSID stands in the SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetFeatures {
    /// FID: CDW10 bits 7:0.
    pub fid: Fid,
    /// SEL: CDW10 bits 10:8.
    pub sel: FeatureSelect,
    /// Feature specific: CDW11.
    pub cdw11: u32,
    /// UUID Index: CDW14 bits 6:0.
    pub uuid_index: u8,
}

impl GetFeatures {
    /// Get Features of the current value.
    #[must_use]
    pub const fn new(fid: Fid) -> Self {
        Self {
            fid,
            sel: FeatureSelect::CURRENT,
            cdw11: 0,
            uuid_index: 0,
        }
    }

    /// Reads CDW10, CDW11 and CDW14.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [fid, sel, ..] = sqe.cdw10().to_le_bytes();
        let [uuid_index, ..] = sqe.cdw14().to_le_bytes();
        Self {
            fid: Fid(fid),
            sel: FeatureSelect(sel & 7),
            cdw11: sqe.cdw11(),
            uuid_index: uuid_index & 0x7f,
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        let cdw10 = u32::from_le_bytes([self.fid.0, self.sel.0 & 7, 0, 0]);
        sqe.set_cdw10_15([
            cdw10,
            self.cdw11,
            0,
            0,
            u32::from(self.uuid_index & 0x7f),
            0,
        ]);
    }
}

/// The command dwords of a Set Features command; NSID stands in the SQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFeatures {
    /// FID: CDW10 bits 7:0.
    pub fid: Fid,
    /// SV: save, CDW10 bit 31.
    pub sv: bool,
    /// Feature specific: CDW11 to CDW13.
    pub cdw11: u32,
    /// Feature specific.
    pub cdw12: u32,
    /// Feature specific.
    pub cdw13: u32,
    /// UUID Index: CDW14 bits 6:0.
    pub uuid_index: u8,
}

impl SetFeatures {
    /// Set Features of a value that fits CDW11, not saved.
    #[must_use]
    pub const fn new(fid: Fid, cdw11: u32) -> Self {
        Self {
            fid,
            sv: false,
            cdw11,
            cdw12: 0,
            cdw13: 0,
            uuid_index: 0,
        }
    }

    /// Reads CDW10 to CDW14.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let [fid, _, _, sv] = sqe.cdw10().to_le_bytes();
        let [uuid_index, ..] = sqe.cdw14().to_le_bytes();
        Self {
            fid: Fid(fid),
            sv: sv & 0x80 != 0,
            cdw11: sqe.cdw11(),
            cdw12: sqe.cdw12(),
            cdw13: sqe.cdw13(),
            uuid_index: uuid_index & 0x7f,
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        let cdw10 = u32::from_le_bytes([self.fid.0, 0, 0, u8::from(self.sv) << 7]);
        let uuid_index = u32::from(self.uuid_index & 0x7f);
        sqe.set_cdw10_15([cdw10, self.cdw11, self.cdw12, self.cdw13, uuid_index, 0]);
    }
}

/// Number of Queues (FID 07h): CDW11 of Set Features and dword 0 of the responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// NSQR or NSQA: I/O submission queues, bits 15:0, 0's based. FFFFh must not be requested.
    pub nsq: u16,
    /// NCQR or NCQA: I/O completion queues, bits 31:16, 0's based. FFFFh must not be requested.
    pub ncq: u16,
}

impl NumberOfQueues {
    /// As many submission as completion queues. `queues` counts from 1; 0 becomes 1, because the
    /// value cannot say "none".
    #[must_use]
    pub const fn pairs(queues: u16) -> Self {
        let zero_based = queues.saturating_sub(1);
        Self {
            nsq: zero_based,
            ncq: zero_based,
        }
    }

    /// How many queues can be used as pairs, counted from 1.
    #[must_use]
    pub const fn pair_count(self) -> u32 {
        let least = if self.nsq < self.ncq {
            self.nsq
        } else {
            self.ncq
        };
        least as u32 + 1
    }

    /// The value as CDW11 or dword 0.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        let ([a, b], [c, d]) = (self.nsq.to_le_bytes(), self.ncq.to_le_bytes());
        u32::from_le_bytes([a, b, c, d])
    }

    /// From CDW11 or dword 0.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        let [a, b, c, d] = bits.to_le_bytes();
        Self {
            nsq: u16::from_le_bytes([a, b]),
            ncq: u16::from_le_bytes([c, d]),
        }
    }
}

/// Volatile Write Cache (FID 06h): WCE, bit 0 of CDW11 and of dword 0.
pub const VWC_ENABLE: u32 = 1 << 0;

/// Host Identifier (FID 81h): EXHID, bit 0 of CDW11, asks for the 128-bit form. NVMe over Fabrics
/// knows no other.
pub const HOST_ID_EXTENDED: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_features_dwords() {
        let command = GetFeatures {
            fid: Fid::HOST_IDENTIFIER,
            sel: FeatureSelect::CAPABILITIES,
            cdw11: HOST_ID_EXTENDED,
            uuid_index: 5,
        };
        let mut sqe = Sqe::with_opcode(0x0a);
        command.encode(&mut sqe);
        assert_eq!((sqe.cdw10(), sqe.cdw11(), sqe.cdw14()), (0x381, 1, 5));
        assert_eq!(GetFeatures::decode(&sqe), command);
    }

    #[test]
    fn set_features_dwords() {
        let command = SetFeatures {
            sv: true,
            cdw12: 12,
            cdw13: 13,
            uuid_index: 0x7f,
            ..SetFeatures::new(Fid::KEEP_ALIVE_TIMER, 5000)
        };
        let mut sqe = Sqe::with_opcode(0x09);
        command.encode(&mut sqe);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (0x8000_000f, 5000));
        assert_eq!((sqe.cdw12(), sqe.cdw13(), sqe.cdw14()), (12, 13, 0x7f));
        assert_eq!(SetFeatures::decode(&sqe), command);
    }

    #[test]
    fn number_of_queues_is_zero_based() {
        assert_eq!(NumberOfQueues::pairs(8).to_bits(), 0x0007_0007);
        assert_eq!(NumberOfQueues::pairs(0).to_bits(), 0);
        let uneven = NumberOfQueues::from_bits(0x0003_000f);
        assert_eq!((uneven.nsq, uneven.ncq, uneven.pair_count()), (15, 3, 4));
        assert_eq!(NumberOfQueues::from_bits(u32::MAX).pair_count(), 65_536);
    }

    #[test]
    fn async_event_config_bits() {
        let config = AsyncEventConfig::from_bits_retain(0x8000_0901);
        assert_eq!(config.critical_warnings(), CriticalWarning::SPARE);
        let notices = AsyncEventConfig::NAMESPACE_ATTRIBUTE
            | AsyncEventConfig::ANA_CHANGE
            | AsyncEventConfig::DISCOVERY_LOG;
        assert!(config.contains(notices));
        assert_eq!(notices.bits(), 0x8000_0900);
    }
}

//! Values of features that are more than a number.

use crate::wire::layout::{newtype_fields, wire_struct};

/// Write Atomicity Normal (FID 0Ah): DN, bit 0 of CDW11 and of dword 0.
pub const WRITE_ATOMICITY_DISABLE_NORMAL: u32 = 1 << 0;

/// Where a [`Timestamp`] comes from: bits 3:1 of its byte 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampOrigin(pub u8);

impl TimestampOrigin {
    /// 000b: it was cleared at a reset.
    pub const RESET: Self = Self(0);
    /// 001b: a host has set it.
    pub const HOST: Self = Self(1);
}

/// Timestamp data structure (FID 0Eh): milliseconds in bits 47:0, then SYNCH (bit 48) and the
/// origin (bits 51:49), as the 64-bit integer that its eight bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Bytes on the wire.
    pub const SIZE: usize = 8;
    const MILLISECONDS: u64 = (1 << 48) - 1;

    /// `milliseconds` beyond 48 bits are cut; the clock has run all the time (SYNCH clear).
    #[must_use]
    pub const fn new(milliseconds: u64, origin: TimestampOrigin) -> Self {
        Self(milliseconds & Self::MILLISECONDS | ((origin.0 & 7) as u64) << 49)
    }

    /// Milliseconds: since 1970-01-01 UTC if a host has set it, else since the reset.
    #[must_use]
    pub const fn milliseconds(self) -> u64 {
        self.0 & Self::MILLISECONDS
    }

    /// Who has set it.
    #[must_use]
    pub const fn origin(self) -> TimestampOrigin {
        let [.., attributes, _] = self.0.to_le_bytes();
        TimestampOrigin(attributes >> 1 & 7)
    }
}

newtype_fields! {
    Timestamp(u64): Self, |t| t.0;
}

wire_struct! {
    /// Host Behavior Support (FID 16h): what the host knows how to deal with.
    #[derive(Copy)]
    pub struct HostBehavior[512] {
        /// Advanced Command Retry Enable: 1 if the host heeds CRD of a status.
        0 => acre: u8,
        /// Extended Telemetry Data Area 4 Supported.
        1 => etdas: u8,
        /// LBA Format Extension Enable.
        2 => lbafee: u8,
        /// Host Dispersed Namespace Support.
        3 => hdisns: u8,
        /// Copy Descriptor Formats Enable: one bit per format, from 2h on.
        4 => cdfe: u16,
    }
}

/// Temperature Threshold (FID 04h): CDW11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// TMPTH: bits 15:0, in kelvins.
    pub threshold: u16,
    /// TMPSEL: bits 19:16. 0 is the Composite Temperature, Fh all sensors.
    pub sensor: u8,
    /// THSEL: bits 21:20. 0 is over, 1 is under temperature.
    pub kind: u8,
    /// TMPTHH: bits 24:22, hysteresis in kelvins.
    pub hysteresis: u8,
    /// Bits 31:25.
    pub reserved: u8,
}

impl TemperatureThreshold {
    /// TMPSEL of the Composite Temperature.
    pub const COMPOSITE: u8 = 0;
    /// TMPSEL of all sensors that are implemented; for Set Features only.
    pub const ALL_SENSORS: u8 = 0xf;
    /// THSEL of the over temperature threshold.
    pub const OVER: u8 = 0;
    /// THSEL of the under temperature threshold.
    pub const UNDER: u8 = 1;

    /// From CDW11.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        let [t0, t1, select, high] = bits.to_le_bytes();
        Self {
            threshold: u16::from_le_bytes([t0, t1]),
            sensor: select & 0xf,
            kind: select >> 4 & 3,
            hysteresis: select >> 6 | (high & 1) << 2,
            reserved: high >> 1,
        }
    }
}

/// Namespace Write Protection Config (FID 84h): WPS, bits 2:0 of CDW11 and of dword 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteProtectState(pub u8);

impl WriteProtectState {
    /// Not write protected.
    pub const NONE: Self = Self(0);
    /// Write protected.
    pub const PROTECTED: Self = Self(1);
    /// Write protected until the next power cycle.
    pub const UNTIL_POWER_CYCLE: Self = Self(2);
    /// Write protected for ever.
    pub const PERMANENT: Self = Self(3);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    #[test]
    fn timestamps() {
        let stamp = Timestamp::new(0x0102_0304_0506, TimestampOrigin::HOST);
        assert_eq!(stamp.0.to_le_bytes(), [6, 5, 4, 3, 2, 1, 2, 0]);
        assert_eq!(stamp.milliseconds(), 0x0102_0304_0506);
        assert_eq!(stamp.origin(), TimestampOrigin::HOST);
        let cut = Timestamp::new(u64::MAX, TimestampOrigin::RESET);
        assert_eq!(
            (cut.milliseconds(), cut.origin()),
            ((1 << 48) - 1, TimestampOrigin::RESET)
        );
    }

    #[test]
    fn host_behavior_offsets() {
        assert_offsets!(HostBehavior {
            acre: 1 => 0..1;
            etdas: 1 => 1..2;
            lbafee: 1 => 2..3;
            hdisns: 1 => 3..4;
            cdfe: 0xfefd => 4..6;
        });
    }

    #[test]
    fn temperature_threshold_bits() {
        let threshold = TemperatureThreshold::from_bits(0b0000_0011_0101_1111 << 16 | 343);
        assert_eq!(
            threshold,
            TemperatureThreshold {
                threshold: 343,
                sensor: TemperatureThreshold::ALL_SENSORS,
                kind: TemperatureThreshold::UNDER,
                hysteresis: 0b101,
                reserved: 1,
            }
        );
    }
}

//! Controller properties (NVMe Base 2.1, Controller Properties), reached over Fabrics by Property
//! Get and Property Set.

use core::fmt;

/// Offset of a property.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PropertyOffset(pub u32);

impl PropertyOffset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: Self = Self(0x00);
    /// Version, 4 bytes.
    pub const VS: Self = Self(0x08);
    /// Controller Configuration, 4 bytes.
    pub const CC: Self = Self(0x14);
    /// Controller Status, 4 bytes.
    pub const CSTS: Self = Self(0x1c);
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: Self = Self(0x20);
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: Self = Self(0x64);
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: Self = Self(0x68);
}

impl fmt::Debug for PropertyOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PropertyOffset({:#x})", self.0)
    }
}

/// Getters and `with_` builders of bit fields `high:low` of a register.
macro_rules! bit_fields {
    ($name:ident($bits:ty) { $($(#[$doc:meta])* $high:literal:$low:literal $get:ident, $with:ident;)* }) => {
        impl $name {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\nBits ", $high, ":", $low, ".")]
                #[must_use]
                pub const fn $get(self) -> $bits {
                    self.0 >> $low & Self::mask($high, $low)
                }

                #[doc = concat!("The same with [`Self::", stringify!($get), "`] set to `value`; excess bits are cut.")]
                #[must_use]
                pub const fn $with(self, value: $bits) -> Self {
                    let mask = Self::mask($high, $low);
                    Self(self.0 & !(mask << $low) | (value & mask) << $low)
                }
            )*

            const fn mask(high: u32, low: u32) -> $bits {
                <$bits>::MAX >> (<$bits>::BITS - 1 - (high - low))
            }
        }
    };
}

/// Getters and `with_` builders of single bits of a register.
macro_rules! bits {
    ($name:ident { $($(#[$doc:meta])* $bit:literal $get:ident, $with:ident;)* }) => {
        impl $name {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\nBit ", $bit, ".")]
                #[must_use]
                pub const fn $get(self) -> bool {
                    self.0 >> $bit & 1 != 0
                }

                #[doc = concat!("The same with [`Self::", stringify!($get), "`] set to `value`.")]
                #[must_use]
                pub const fn $with(self, value: bool) -> Self {
                    if value { Self(self.0 | 1 << $bit) } else { Self(self.0 & !(1 << $bit)) }
                }
            )*
        }
    };
}

/// Controller Capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Cap(pub u64);

bit_fields!(Cap(u64) {
    /// MQES: Maximum Queue Entries Supported, 0's based, for I/O queues.
    15:0 mqes, with_mqes;
    /// AMS: Arbitration Mechanism Supported; 0 is round robin only.
    18:17 ams, with_ams;
    /// TO: worst time for CSTS.RDY to follow CC.EN, in 500 ms.
    31:24 to, with_to;
    /// DSTRD: Doorbell Stride; 0 over Fabrics.
    35:32 dstrd, with_dstrd;
    /// CSS: Command Sets Supported, see the `CSS_` constants.
    44:37 css, with_css;
    /// MPSMIN: Memory Page Size Minimum, 2^(12 + MPSMIN) bytes: the unit of MDTS.
    51:48 mpsmin, with_mpsmin;
    /// MPSMAX: Memory Page Size Maximum, 2^(12 + MPSMAX) bytes.
    55:52 mpsmax, with_mpsmax;
    /// CRMS: Controller Ready Modes Supported, see the `CRMS_` constants.
    60:59 crms, with_crms;
});

bits!(Cap {
    /// CQR: Contiguous Queues Required; set over Fabrics.
    16 cqr, with_cqr;
    /// NSSRS: NVM Subsystem Reset Supported.
    36 nssrs, with_nssrs;
});

impl Cap {
    /// In CSS: NVM command set.
    pub const CSS_NVM: u64 = 1 << 0;
    /// In CSS: one or more I/O command sets, described by Identify (CNS 1Ch).
    pub const CSS_IO_COMMAND_SETS: u64 = 1 << 6;
    /// In CSS: no I/O command set.
    pub const CSS_NONE: u64 = 1 << 7;
    /// In CRMS: Controller Ready With Media.
    pub const CRMS_WITH_MEDIA: u64 = 1 << 0;
    /// In CRMS: Controller Ready Independent of Media.
    pub const CRMS_INDEPENDENT: u64 = 1 << 1;
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cap({:#018x})", self.0)
    }
}

/// Version: of the specification that the controller follows.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vs(pub u32);

impl Vs {
    /// NVMe 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// NVMe 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// NVMe 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// Major, minor and tertiary version.
    #[must_use]
    pub const fn new(mjr: u16, mnr: u8, ter: u8) -> Self {
        let [a, b] = mjr.to_be_bytes();
        Self(u32::from_be_bytes([a, b, mnr, ter]))
    }
}

impl fmt::Display for Vs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, mnr, ter] = self.0.to_be_bytes();
        write!(f, "{}.{mnr}.{ter}", u16::from_be_bytes([a, b]))
    }
}

impl fmt::Debug for Vs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vs({self})")
    }
}

/// Controller Configuration.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

bit_fields!(Cc(u32) {
    /// CSS: I/O Command Set Selected, see the `CSS_` constants.
    6:4 css, with_css;
    /// MPS: Memory Page Size, 2^(12 + MPS) bytes.
    10:7 mps, with_mps;
    /// AMS: Arbitration Mechanism Selected; 0 is round robin.
    13:11 ams, with_ams;
    /// SHN: Shutdown Notification, see the `SHN_` constants.
    15:14 shn, with_shn;
    /// IOSQES: I/O Submission Queue Entry Size as a power of two; 6 is 64 bytes.
    19:16 iosqes, with_iosqes;
    /// IOCQES: I/O Completion Queue Entry Size as a power of two; 4 is 16 bytes.
    23:20 iocqes, with_iocqes;
});

bits!(Cc {
    /// EN: Enable.
    0 en, with_en;
    /// CRIME: Controller Ready Independent of Media Enable.
    24 crime, with_crime;
});

impl Cc {
    /// CSS 000b: NVM command set.
    pub const CSS_NVM: u32 = 0b000;
    /// CSS 110b: all I/O command sets of the selected profile.
    pub const CSS_ALL: u32 = 0b110;
    /// CSS 111b: admin commands only.
    pub const CSS_ADMIN_ONLY: u32 = 0b111;
    /// SHN 00b: no notification.
    pub const SHN_NONE: u32 = 0b00;
    /// SHN 01b: normal shutdown.
    pub const SHN_NORMAL: u32 = 0b01;
    /// SHN 10b: abrupt shutdown.
    pub const SHN_ABRUPT: u32 = 0b10;
}

impl fmt::Debug for Cc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cc({:#010x})", self.0)
    }
}

/// Controller Status.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Csts(pub u32);

bit_fields!(Csts(u32) {
    /// SHST: Shutdown Status, see the `SHST_` constants.
    3:2 shst, with_shst;
});

bits!(Csts {
    /// RDY: Ready.
    0 rdy, with_rdy;
    /// CFS: Controller Fatal Status.
    1 cfs, with_cfs;
    /// NSSRO: NVM Subsystem Reset Occurred.
    4 nssro, with_nssro;
    /// PP: Processing Paused.
    5 pp, with_pp;
    /// ST: Shutdown Type; set means that the NVM subsystem shuts down.
    6 st, with_st;
});

impl Csts {
    /// SHST 00b: normal operation.
    pub const SHST_NORMAL: u32 = 0b00;
    /// SHST 01b: shutdown processing occurring.
    pub const SHST_OCCURRING: u32 = 0b01;
    /// SHST 10b: shutdown processing complete.
    pub const SHST_COMPLETE: u32 = 0b10;
}

impl fmt::Debug for Csts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Csts({:#010x})", self.0)
    }
}

/// Controller Ready Timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crto(pub u32);

bit_fields!(Crto(u32) {
    /// CRWMT: Controller Ready With Media Timeout, in 500 ms.
    15:0 crwmt, with_crwmt;
    /// CRIMT: Controller Ready Independent of Media Timeout, in 500 ms.
    31:16 crimt, with_crimt;
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_bits() {
        let table: [(Cap, u64); 10] = [
            (Cap(0).with_mqes(u64::MAX), 0xffff),
            (Cap(0).with_cqr(true), 1 << 16),
            (Cap(0).with_ams(u64::MAX), 3 << 17),
            (Cap(0).with_to(u64::MAX), 0xff << 24),
            (Cap(0).with_dstrd(u64::MAX), 0xf << 32),
            (Cap(0).with_nssrs(true), 1 << 36),
            (Cap(0).with_css(u64::MAX), 0xff << 37),
            (Cap(0).with_mpsmin(u64::MAX), 0xf << 48),
            (Cap(0).with_mpsmax(u64::MAX), 0xf << 52),
            (Cap(0).with_crms(u64::MAX), 3 << 59),
        ];
        for (cap, bits) in table {
            assert_eq!(cap, Cap(bits));
        }
        // The capabilities that FreeBSD's nvmfd announces.
        let cap = Cap(0)
            .with_mqes(1023)
            .with_cqr(true)
            .with_to(15)
            .with_css(Cap::CSS_NVM);
        assert_eq!(cap.0, 0x20_0f01_03ff);
        assert_eq!(
            (cap.mqes(), cap.cqr(), cap.to(), cap.css()),
            (1023, true, 15, Cap::CSS_NVM)
        );
        assert_eq!(Cap(u64::MAX).with_to(0).to(), 0);
    }

    #[test]
    fn cc_bits() {
        let table = [
            (Cc(0).with_en(true), 1),
            (Cc(0).with_css(u32::MAX), 7 << 4),
            (Cc(0).with_mps(u32::MAX), 0xf << 7),
            (Cc(0).with_ams(u32::MAX), 7 << 11),
            (Cc(0).with_shn(u32::MAX), 3 << 14),
            (Cc(0).with_iosqes(u32::MAX), 0xf << 16),
            (Cc(0).with_iocqes(u32::MAX), 0xf << 20),
            (Cc(0).with_crime(true), 1 << 24),
        ];
        for (cc, bits) in table {
            assert_eq!(cc, Cc(bits));
        }
        // What a Linux host writes to enable, then to shut down.
        let cc = Cc(0x0046_0001);
        assert_eq!(
            (cc.en(), cc.iosqes(), cc.iocqes(), cc.css(), cc.mps()),
            (true, 6, 4, 0, 0)
        );
        assert_eq!(cc.with_shn(Cc::SHN_NORMAL), Cc(0x0046_4001));
        assert_eq!(cc.with_en(false), Cc(0x0046_0000));
    }

    #[test]
    fn csts_crto_and_version_bits() {
        let table = [
            (Csts(0).with_rdy(true), 1),
            (Csts(0).with_cfs(true), 2),
            (Csts(0).with_shst(Csts::SHST_COMPLETE), 8),
            (Csts(0).with_nssro(true), 16),
            (Csts(0).with_pp(true), 32),
            (Csts(0).with_st(true), 64),
        ];
        for (csts, bits) in table {
            assert_eq!(csts, Csts(bits));
        }
        assert_eq!(Crto(0).with_crwmt(0x12).with_crimt(0x34), Crto(0x0034_0012));
        assert_eq!(Vs::V2_1.0, 0x0002_0100);
        assert_eq!(Vs::new(1, 2, 1).to_string(), "1.2.1");
        assert!(Vs::V1_4 < Vs::V2_0);
    }
}

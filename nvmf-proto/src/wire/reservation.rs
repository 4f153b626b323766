//! Reservations: the four commands, their data, the Reservation Notification log page and the
//! features that belong to them. (NVMe Base 2.1 §8.1.22 and §7.5 to §7.8.)

use super::Sqe;
use super::layout::{flag_fields, newtype_fields, wire_struct};
use bitflags::bitflags;

/// RTYPE: what a reservation excludes, and whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReservationType(pub u8);

impl ReservationType {
    /// 0h in a Reservation Status data structure: there is no reservation. Reserved in commands.
    pub const NONE: Self = Self(0);
    /// Write Exclusive: only the holder writes.
    pub const WRITE_EXCLUSIVE: Self = Self(1);
    /// Exclusive Access: only the holder reads and writes.
    pub const EXCLUSIVE_ACCESS: Self = Self(2);
    /// Write Exclusive - Registrants Only: registrants write; one of them is the holder.
    pub const WRITE_EXCLUSIVE_REGISTRANTS: Self = Self(3);
    /// Exclusive Access - Registrants Only: registrants read and write; one of them is the holder.
    pub const EXCLUSIVE_ACCESS_REGISTRANTS: Self = Self(4);
    /// Write Exclusive - All Registrants: registrants write; every one of them is a holder.
    pub const WRITE_EXCLUSIVE_ALL: Self = Self(5);
    /// Exclusive Access - All Registrants: registrants read and write; every one is a holder.
    pub const EXCLUSIVE_ACCESS_ALL: Self = Self(6);

    /// Whether a reservation can be of this type: 1h to 6h.
    #[must_use]
    pub const fn is_defined(self) -> bool {
        matches!(self.0, 1..=6)
    }

    /// Whether every registrant is a holder.
    #[must_use]
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WRITE_EXCLUSIVE_ALL | Self::EXCLUSIVE_ACCESS_ALL)
    }

    /// Whether registrants have the rights of the holder.
    #[must_use]
    pub const fn admits_registrants(self) -> bool {
        matches!(self.0, 3..=6)
    }

    /// Whether those who have no rights may not even read.
    #[must_use]
    pub const fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::EXCLUSIVE_ACCESS
                | Self::EXCLUSIVE_ACCESS_REGISTRANTS
                | Self::EXCLUSIVE_ACCESS_ALL
        )
    }
}

macro_rules! actions {
    ($($(#[$tdoc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $value:literal;)+ })+) => {$(
        $(#[$tdoc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $type(pub u8);

        impl $type {
            $($(#[$doc])* pub const $name: Self = Self($value);)+
        }
    )+};
}

actions! {
    /// RREGA of Reservation Register: CDW10 bits 2:0.
    RegisterAction {
        /// 000b: register NRKEY.
        REGISTER = 0;
        /// 001b: unregister.
        UNREGISTER = 1;
        /// 010b: replace the key by NRKEY.
        REPLACE = 2;
    }

    /// RACQA of Reservation Acquire: CDW10 bits 2:0.
    AcquireAction {
        /// 000b: acquire.
        ACQUIRE = 0;
        /// 001b: preempt the registrants with PRKEY, and the reservation if its holder is one.
        PREEMPT = 1;
        /// 010b: preempt, and abort what the preempted hosts have under way.
        PREEMPT_AND_ABORT = 2;
    }

    /// RRELA of Reservation Release: CDW10 bits 2:0.
    ReleaseAction {
        /// 000b: release.
        RELEASE = 0;
        /// 001b: release, and unregister all registrants.
        CLEAR = 1;
    }

    /// CPTPL of Reservation Register: CDW10 bits 31:30.
    ChangePtpl {
        /// 00b: no change.
        NONE = 0;
        /// 10b: registrants and reservation are gone after a power loss.
        CLEAR = 2;
        /// 11b: registrants and reservation outlive a power loss.
        SET = 3;
    }

    /// RNLPT: what a Reservation Notification log page tells.
    NotificationType {
        /// 0h: there is no notification.
        EMPTY = 0;
        /// 1h: the registration of this host was preempted.
        REGISTRATION_PREEMPTED = 1;
        /// 2h: the reservation was released.
        RESERVATION_RELEASED = 2;
        /// 3h: the reservation and all registrations were cleared.
        RESERVATION_PREEMPTED = 3;
    }
}

newtype_fields! {
    ReservationType(u8): Self, |t| t.0;
    NotificationType(u8): Self, |t| t.0;
}

/// CDW10, bit 3: Ignore Existing Key.
const IEKEY: u32 = 1 << 3;
/// CDW11 of Reservation Report, bit 0: Extended Data Structure.
const EDS: u32 = 1;

/// The action (bits 2:0), IEKEY (bit 3), bits 15:8 and bits 31:30 of CDW10.
fn fields(sqe: &Sqe) -> (u8, bool, u8, u8) {
    let [low, rtype, _, high] = sqe.cdw10().to_le_bytes();
    (low & 7, sqe.cdw10() & IEKEY != 0, rtype, high >> 6)
}

fn set_fields(sqe: &mut Sqe, action: u8, iekey: bool, rtype: u8, cptpl: u8) {
    let low = action & 7 | u8::from(iekey) << 3;
    let cdw10 = u32::from_le_bytes([low, rtype, 0, cptpl << 6]);
    sqe.set_cdw10_15([cdw10, 0, 0, 0, 0, 0]);
}

/// The command dwords of a Reservation Register command; [`RegisterData`] is its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterCommand {
    /// RREGA.
    pub action: RegisterAction,
    /// IEKEY: CRKEY does not count, nor does it count whether the host is registered.
    pub iekey: bool,
    /// CPTPL.
    pub cptpl: ChangePtpl,
}

impl RegisterCommand {
    /// Reads CDW10.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let (action, iekey, _, cptpl) = fields(sqe);
        Self {
            action: RegisterAction(action),
            iekey,
            cptpl: ChangePtpl(cptpl),
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        set_fields(sqe, self.action.0, self.iekey, 0, self.cptpl.0);
    }
}

/// The command dwords of a Reservation Acquire command; [`AcquireData`] is its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireCommand {
    /// RACQA.
    pub action: AcquireAction,
    /// IEKEY: to be cleared.
    pub iekey: bool,
    /// RTYPE.
    pub rtype: ReservationType,
}

impl AcquireCommand {
    /// Reads CDW10.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let (action, iekey, rtype, _) = fields(sqe);
        Self {
            action: AcquireAction(action),
            iekey,
            rtype: ReservationType(rtype),
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        set_fields(sqe, self.action.0, self.iekey, self.rtype.0, 0);
    }
}

/// The command dwords of a Reservation Release command; [`ReleaseData`] is its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseCommand {
    /// RRELA.
    pub action: ReleaseAction,
    /// IEKEY: to be cleared.
    pub iekey: bool,
    /// RTYPE: of the reservation to be released.
    pub rtype: ReservationType,
}

impl ReleaseCommand {
    /// Reads CDW10.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let (action, iekey, rtype, _) = fields(sqe);
        Self {
            action: ReleaseAction(action),
            iekey,
            rtype: ReservationType(rtype),
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        set_fields(sqe, self.action.0, self.iekey, self.rtype.0, 0);
    }
}

/// The command dwords of a Reservation Report command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportCommand {
    /// NUMD: dwords to return, 0's based. CDW10.
    pub numd: u32,
    /// EDS: Extended Data Structure, the one for Host Identifiers of 128 bits. CDW11 bit 0.
    pub eds: bool,
}

impl ReportCommand {
    /// Reads CDW10 and CDW11.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        Self {
            numd: sqe.cdw10(),
            eds: sqe.cdw11() & EDS != 0,
        }
    }

    /// Sets CDW10 to CDW15.
    pub fn encode(&self, sqe: &mut Sqe) {
        sqe.set_cdw10_15([self.numd, u32::from(self.eds), 0, 0, 0, 0]);
    }

    /// How many bytes the host asks for: 4 up to 16 GiB.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (self.numd as u64 + 1) * 4
    }
}

wire_struct! {
    /// Data of a Reservation Register command.
    pub struct RegisterData[16] {
        /// CRKEY: the key that the host is registered with.
        0 => crkey: u64,
        /// NRKEY: the key to be registered.
        8 => nrkey: u64,
    }
}

wire_struct! {
    /// Data of a Reservation Acquire command.
    pub struct AcquireData[16] {
        /// CRKEY: the key that the host is registered with.
        0 => crkey: u64,
        /// PRKEY: the key of those to be preempted.
        8 => prkey: u64,
    }
}

wire_struct! {
    /// Data of a Reservation Release command.
    pub struct ReleaseData[8] {
        /// CRKEY: the key that the host is registered with.
        0 => crkey: u64,
    }
}

/// CNTLID of a registrant that has no controller at the moment.
pub const CNTLID_NONE: u16 = 0xffff;

bitflags! {
    /// RCSTS of a registrant.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RegistrantStatus: u8 {
        /// AHHR: the registrant holds the reservation.
        const HOLDER = 1 << 0;
    }

    /// Reservation Notification Mask (FID 82h), CDW11: the notifications of a namespace that are
    /// not wanted.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct NotificationMask: u32 {
        /// REGPRE: no Registration Preempted notifications.
        const REGISTRATION_PREEMPTED = 1 << 1;
        /// RESREL: no Reservation Released notifications.
        const RESERVATION_RELEASED = 1 << 2;
        /// RESPRE: no Reservation Preempted notifications.
        const RESERVATION_PREEMPTED = 1 << 3;
    }

    /// Reservation Persistence (FID 83h), CDW11.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReservationPersistence: u32 {
        /// PTPL: registrants and reservation outlive a power loss.
        const PTPL = 1 << 0;
    }
}

impl NotificationMask {
    /// Whether notifications of a type are masked.
    #[must_use]
    pub const fn hides(self, kind: NotificationType) -> bool {
        kind.0 < 32 && self.bits() >> kind.0 & 1 != 0
    }
}

flag_fields!(RegistrantStatus(u8));

wire_struct! {
    /// Header of both Reservation Status data structures. Registrants follow: at byte 24 of the
    /// one for Host Identifiers of 64 bits ([`Registrant`]), at [`ReservationStatus::EXTENDED_SIZE`]
    /// of the extended one ([`RegistrantExtended`]).
    pub struct ReservationStatus[24] {
        /// GEN: moves with every Register, Clear, Preempt, and Preempt and Abort.
        0 => generation: u32,
        /// RTYPE; 0h: there is no reservation.
        4 => rtype: ReservationType,
        /// REGSTRNT: how many registrants there are, also if fewer fit in the data.
        5 => registrants: u16,
        /// PTPLS: 1 if registrants and reservation outlive a power loss.
        9 => ptpls: u8,
    }
}

impl ReservationStatus {
    /// Bytes before the first registrant of the extended data structure.
    pub const EXTENDED_SIZE: usize = 64;
}

wire_struct! {
    /// A registrant with a Host Identifier of 64 bits.
    pub struct Registrant[24] {
        /// CNTLID: a controller of the host, or [`CNTLID_NONE`].
        0 => cntlid: u16,
        /// RCSTS.
        2 => status: RegistrantStatus,
        /// HOSTID.
        8 => hostid: [u8; 8],
        /// RKEY.
        16 => rkey: u64,
    }
}

wire_struct! {
    /// A registrant with a Host Identifier of 128 bits.
    pub struct RegistrantExtended[64] {
        /// CNTLID: a controller of the host, or [`CNTLID_NONE`].
        0 => cntlid: u16,
        /// RCSTS.
        2 => status: RegistrantStatus,
        /// RKEY.
        8 => rkey: u64,
        /// HOSTID.
        16 => hostid: [u8; 16],
    }
}

wire_struct! {
    /// Reservation Notification log page (LID 80h): the oldest notification of the controller, or
    /// all zeroes.
    pub struct ReservationNotificationLog[64] {
        /// LPC: Log Page Count, the notification's number; 0 if there is none.
        0 => count: u64,
        /// RNLPT.
        8 => kind: NotificationType,
        /// NALP: Number of Available Log Pages besides this one; 255 stands for more, too.
        9 => available: u8,
        /// NSID.
        12 => nsid: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    const W: u16 = 0xfefd;
    const D: u32 = 0xfefd_fcfb;
    const Q: u64 = u64::MAX - 1;

    #[test]
    fn types() {
        use ReservationType as T;
        // Type, defined, all registrants, registrants admitted, reads excluded.
        let table = [
            (T::NONE, [false, false, false, false]),
            (T::WRITE_EXCLUSIVE, [true, false, false, false]),
            (T::EXCLUSIVE_ACCESS, [true, false, false, true]),
            (T::WRITE_EXCLUSIVE_REGISTRANTS, [true, false, true, false]),
            (T::EXCLUSIVE_ACCESS_REGISTRANTS, [true, false, true, true]),
            (T::WRITE_EXCLUSIVE_ALL, [true, true, true, false]),
            (T::EXCLUSIVE_ACCESS_ALL, [true, true, true, true]),
            (T(7), [false, false, false, false]),
            (T(0xff), [false, false, false, false]),
        ];
        for (t, want) in table {
            let got = [
                t.is_defined(),
                t.is_all_registrants(),
                t.admits_registrants(),
                t.excludes_reads(),
            ];
            assert_eq!(got, want, "{t:?}");
        }
    }

    #[test]
    fn command_dwords() {
        let mut sqe = Sqe::with_opcode(0x0d);
        let register = RegisterCommand {
            action: RegisterAction::REPLACE,
            iekey: true,
            cptpl: ChangePtpl::SET,
        };
        register.encode(&mut sqe);
        assert_eq!(sqe.cdw10(), 0xc000_000a);
        assert_eq!(RegisterCommand::decode(&sqe), register);

        let acquire = AcquireCommand {
            action: AcquireAction::PREEMPT_AND_ABORT,
            iekey: false,
            rtype: ReservationType::EXCLUSIVE_ACCESS_ALL,
        };
        acquire.encode(&mut sqe);
        assert_eq!(sqe.cdw10(), 0x0602);
        assert_eq!(AcquireCommand::decode(&sqe), acquire);

        let release = ReleaseCommand {
            action: ReleaseAction::CLEAR,
            iekey: true,
            rtype: ReservationType::WRITE_EXCLUSIVE,
        };
        release.encode(&mut sqe);
        assert_eq!(sqe.cdw10(), 0x0109);
        assert_eq!(ReleaseCommand::decode(&sqe), release);

        // Reserved bits do not count, reserved values survive.
        sqe.set_cdw10_15([0x7fff_fff7, u32::MAX, 0, 0, 0, 0]);
        assert_eq!(
            RegisterCommand::decode(&sqe),
            RegisterCommand {
                action: RegisterAction(7),
                iekey: false,
                cptpl: ChangePtpl(1)
            }
        );
        assert_eq!(
            AcquireCommand::decode(&sqe).rtype,
            ReservationType(0xff),
            "all of bits 15:8"
        );

        let report = ReportCommand { numd: D, eds: true };
        report.encode(&mut sqe);
        assert_eq!((sqe.cdw10(), sqe.cdw11()), (D, 1));
        assert_eq!(ReportCommand::decode(&sqe), report);
        let most = ReportCommand {
            numd: u32::MAX,
            eds: false,
        };
        assert_eq!(most.length(), 1 << 34);
    }

    #[test]
    fn command_data_offsets() {
        assert_offsets!(RegisterData {
            crkey: Q => 0..8;
            nrkey: Q => 8..16;
        });
        assert_offsets!(AcquireData {
            crkey: Q => 0..8;
            prkey: Q => 8..16;
        });
        assert_offsets!(ReleaseData {
            crkey: Q => 0..8;
        });
    }

    #[test]
    fn report_offsets() {
        assert_offsets!(ReservationStatus {
            generation: D => 0..4;
            rtype: ReservationType::EXCLUSIVE_ACCESS => 4..5;
            registrants: W => 5..7;
            ptpls: 1 => 9..10;
        });
        assert_offsets!(Registrant {
            cntlid: W => 0..2;
            status: RegistrantStatus::HOLDER => 2..3;
            hostid: [0xa7; 8] => 8..16;
            rkey: Q => 16..24;
        });
        assert_offsets!(RegistrantExtended {
            cntlid: W => 0..2;
            status: RegistrantStatus::HOLDER => 2..3;
            rkey: Q => 8..16;
            hostid: [0xa7; 16] => 16..32;
        });
    }

    #[test]
    fn notification_offsets() {
        assert_offsets!(ReservationNotificationLog {
            count: Q => 0..8;
            kind: NotificationType::RESERVATION_PREEMPTED => 8..9;
            available: 255 => 9..10;
            nsid: D => 12..16;
        });
    }

    #[test]
    fn masks_stand_at_the_bit_of_their_type() {
        use NotificationMask as Mask;
        use NotificationType as Type;
        let table = [
            (Type::REGISTRATION_PREEMPTED, Mask::REGISTRATION_PREEMPTED),
            (Type::RESERVATION_RELEASED, Mask::RESERVATION_RELEASED),
            (Type::RESERVATION_PREEMPTED, Mask::RESERVATION_PREEMPTED),
        ];
        for (kind, mask) in table {
            assert!(mask.hides(kind) && !(Mask::all() - mask).hides(kind));
        }
        assert!(!Mask::all().hides(Type::EMPTY));
        assert!(!Mask::from_bits_retain(u32::MAX).hides(Type(32)));
    }
}

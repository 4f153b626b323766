//! Completion status: status code type, status code, More and Do Not Retry.

use core::fmt;

/// The outcome of one command (NVMe Base 2.1, Completion Queue Entry: Status).
///
/// Laid out as the 15-bit Status field of a CQE without the phase tag: SC in bits 7:0, SCT in
/// bits 10:8, CRD in bits 12:11, M in bit 13, DNR in bit 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Status Code Type: which table a status code belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusCodeType(pub u8);

impl StatusCodeType {
    /// Generic Command Status.
    pub const GENERIC: Self = Self(0);
    /// Command Specific Status.
    pub const COMMAND_SPECIFIC: Self = Self(1);
    /// Media and Data Integrity Errors.
    pub const MEDIA: Self = Self(2);
    /// Path Related Status.
    pub const PATH: Self = Self(3);
    /// Vendor Specific.
    pub const VENDOR: Self = Self(7);
}

const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;
const CRD_SHIFT: u32 = 11;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal / $sc:literal, $text:literal;)+) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self::new($sct, $sc);)+

            /// The specification's name of the status, without regard to DNR, M and CRD.
            #[must_use]
            pub const fn name(self) -> &'static str {
                $(if self.0 & 0x7ff == Self::$name.0 & 0x7ff { return $text; })+
                "unknown status"
            }
        }
    };
}

statuses! {
    /// Successful Completion.
    SUCCESS = 0 / 0x00, "Successful Completion";
    /// Invalid Command Opcode.
    INVALID_OPCODE = 0 / 0x01, "Invalid Command Opcode";
    /// Invalid Field in Command.
    INVALID_FIELD = 0 / 0x02, "Invalid Field in Command";
    /// Command ID Conflict.
    COMMAND_ID_CONFLICT = 0 / 0x03, "Command ID Conflict";
    /// Data Transfer Error.
    DATA_TRANSFER_ERROR = 0 / 0x04, "Data Transfer Error";
    /// Commands Aborted due to Power Loss Notification.
    ABORTED_POWER_LOSS = 0 / 0x05, "Commands Aborted due to Power Loss Notification";
    /// Internal Error.
    INTERNAL_ERROR = 0 / 0x06, "Internal Error";
    /// Command Abort Requested.
    ABORT_REQUESTED = 0 / 0x07, "Command Abort Requested";
    /// Command Aborted due to SQ Deletion.
    ABORTED_SQ_DELETION = 0 / 0x08, "Command Aborted due to SQ Deletion";
    /// Command Aborted due to Failed Fused Command.
    ABORTED_FAILED_FUSED = 0 / 0x09, "Command Aborted due to Failed Fused Command";
    /// Command Aborted due to Missing Fused Command.
    ABORTED_MISSING_FUSED = 0 / 0x0a, "Command Aborted due to Missing Fused Command";
    /// Invalid Namespace or Format.
    INVALID_NAMESPACE = 0 / 0x0b, "Invalid Namespace or Format";
    /// Command Sequence Error.
    COMMAND_SEQUENCE_ERROR = 0 / 0x0c, "Command Sequence Error";
    /// Invalid SGL Segment Descriptor.
    INVALID_SGL_SEGMENT = 0 / 0x0d, "Invalid SGL Segment Descriptor";
    /// Invalid Number of SGL Descriptors.
    INVALID_SGL_COUNT = 0 / 0x0e, "Invalid Number of SGL Descriptors";
    /// Data SGL Length Invalid.
    DATA_SGL_LENGTH_INVALID = 0 / 0x0f, "Data SGL Length Invalid";
    /// Metadata SGL Length Invalid.
    METADATA_SGL_LENGTH_INVALID = 0 / 0x10, "Metadata SGL Length Invalid";
    /// SGL Descriptor Type Invalid.
    SGL_TYPE_INVALID = 0 / 0x11, "SGL Descriptor Type Invalid";
    /// SGL Offset Invalid.
    SGL_OFFSET_INVALID = 0 / 0x16, "SGL Offset Invalid";
    /// Host Identifier Inconsistent Format.
    HOST_ID_INCONSISTENT = 0 / 0x18, "Host Identifier Inconsistent Format";
    /// Keep Alive Timer Expired.
    KEEP_ALIVE_EXPIRED = 0 / 0x19, "Keep Alive Timer Expired";
    /// Keep Alive Timeout Invalid.
    KEEP_ALIVE_TIMEOUT_INVALID = 0 / 0x1a, "Keep Alive Timeout Invalid";
    /// Namespace is Write Protected.
    NAMESPACE_WRITE_PROTECTED = 0 / 0x20, "Namespace is Write Protected";
    /// Command Interrupted.
    COMMAND_INTERRUPTED = 0 / 0x21, "Command Interrupted";
    /// Transient Transport Error.
    TRANSIENT_TRANSPORT_ERROR = 0 / 0x22, "Transient Transport Error";
    /// Host Identifier Not Initialized: it is 0h, and the command needs one.
    HOST_ID_NOT_INITIALIZED = 0 / 0x27, "Host Identifier Not Initialized";
    /// Invalid IO Command Set: the CSI field names a command set that is not supported.
    INVALID_IO_COMMAND_SET = 0 / 0x2c, "Invalid IO Command Set";
    /// LBA Out of Range.
    LBA_OUT_OF_RANGE = 0 / 0x80, "LBA Out of Range";
    /// Capacity Exceeded.
    CAPACITY_EXCEEDED = 0 / 0x81, "Capacity Exceeded";
    /// Namespace Not Ready.
    NAMESPACE_NOT_READY = 0 / 0x82, "Namespace Not Ready";
    /// Reservation Conflict.
    RESERVATION_CONFLICT = 0 / 0x83, "Reservation Conflict";

    /// Invalid Queue Identifier.
    INVALID_QUEUE_ID = 1 / 0x01, "Invalid Queue Identifier";
    /// Abort Command Limit Exceeded.
    ABORT_LIMIT_EXCEEDED = 1 / 0x03, "Abort Command Limit Exceeded";
    /// Asynchronous Event Request Limit Exceeded.
    AER_LIMIT_EXCEEDED = 1 / 0x05, "Asynchronous Event Request Limit Exceeded";
    /// Invalid Log Page.
    INVALID_LOG_PAGE = 1 / 0x09, "Invalid Log Page";
    /// Feature Identifier Not Saveable.
    FEATURE_NOT_SAVEABLE = 1 / 0x0d, "Feature Identifier Not Saveable";
    /// Feature Not Changeable.
    FEATURE_NOT_CHANGEABLE = 1 / 0x0e, "Feature Not Changeable";
    /// Feature Not Namespace Specific.
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1 / 0x0f, "Feature Not Namespace Specific";
    /// Connect Incompatible Format (NVMe over Fabrics, Connect).
    CONNECT_INCOMPATIBLE_FORMAT = 1 / 0x80, "Connect Incompatible Format";
    /// Connect Controller Busy (NVMe over Fabrics, Connect).
    CONNECT_CONTROLLER_BUSY = 1 / 0x81, "Connect Controller Busy";
    /// Connect Invalid Parameters (NVMe over Fabrics, Connect); CDW0 names the parameter.
    ///
    /// As a status of an NVM command the same code is Attempted Write to Read Only Range.
    CONNECT_INVALID_PARAMETERS = 1 / 0x82, "Connect Invalid Parameters";
    /// Connect Restart Discovery (NVMe over Fabrics, Connect).
    ///
    /// As a status of an NVM command the same code is [`Status::COMMAND_SIZE_LIMIT_EXCEEDED`].
    CONNECT_RESTART_DISCOVERY = 1 / 0x83, "Connect Restart Discovery";
    /// Connect Invalid Host (NVMe over Fabrics, Connect).
    CONNECT_INVALID_HOST = 1 / 0x84, "Connect Invalid Host";
    /// Invalid Queue Type (NVMe over Fabrics, Disconnect).
    INVALID_QUEUE_TYPE = 1 / 0x85, "Invalid Queue Type";
    /// Command Size Limit Exceeded (NVM Command Set, Copy).
    COMMAND_SIZE_LIMIT_EXCEEDED = 1 / 0x83, "Command Size Limit Exceeded";
    /// Incompatible Namespace or Format (NVM Command Set, Copy).
    INCOMPATIBLE_NAMESPACE = 1 / 0x85, "Incompatible Namespace or Format";
    /// Fast Copy Not Possible (NVM Command Set, Copy).
    FAST_COPY_NOT_POSSIBLE = 1 / 0x86, "Fast Copy Not Possible";
    /// Overlapping I/O Range (NVM Command Set, Copy).
    OVERLAPPING_RANGE = 1 / 0x87, "Overlapping I/O Range";
    /// Discover Restart (NVMe over Fabrics).
    DISCOVER_RESTART = 1 / 0x90, "Discover Restart";
    /// Authentication Required (NVMe over Fabrics).
    AUTHENTICATION_REQUIRED = 1 / 0x91, "Authentication Required";

    /// Write Fault.
    WRITE_FAULT = 2 / 0x80, "Write Fault";
    /// Unrecovered Read Error.
    UNRECOVERED_READ_ERROR = 2 / 0x81, "Unrecovered Read Error";
    /// Compare Failure.
    COMPARE_FAILURE = 2 / 0x85, "Compare Failure";
    /// Access Denied.
    ACCESS_DENIED = 2 / 0x86, "Access Denied";
    /// Deallocated or Unwritten Logical Block.
    DEALLOCATED_BLOCK = 2 / 0x87, "Deallocated or Unwritten Logical Block";

    /// Internal Path Error.
    INTERNAL_PATH_ERROR = 3 / 0x00, "Internal Path Error";
    /// Asymmetric Access Persistent Loss.
    ANA_PERSISTENT_LOSS = 3 / 0x01, "Asymmetric Access Persistent Loss";
    /// Asymmetric Access Inaccessible.
    ANA_INACCESSIBLE = 3 / 0x02, "Asymmetric Access Inaccessible";
    /// Asymmetric Access Transition.
    ANA_TRANSITION = 3 / 0x03, "Asymmetric Access Transition";
    /// Host Aborted Command.
    HOST_ABORTED_COMMAND = 3 / 0x71, "Host Aborted Command";
}

impl Status {
    /// A status from its code type and code; DNR, M and CRD clear.
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct as u16) & 7) << 8 | sc as u16)
    }

    /// From the Status field of a CQE (bits 31:17 of dword 3), that is without the phase tag.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits of a CQE's Status field, without the phase tag.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status Code Type.
    #[must_use]
    pub const fn sct(self) -> StatusCodeType {
        StatusCodeType((self.0 >> 8) as u8 & 7)
    }

    /// Status Code.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is meant")]
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// The same status with Do Not Retry set: a retry cannot cure it.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// Whether Do Not Retry is set.
    #[must_use]
    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status with More set: the Error Information log has more about it.
    #[must_use]
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// Whether More is set.
    #[must_use]
    pub const fn is_more(self) -> bool {
        self.0 & MORE != 0
    }

    /// The same status with More clear: what the status says of the command itself.
    #[must_use]
    pub const fn without_more(self) -> Self {
        Self(self.0 & !MORE)
    }

    /// The same status with a Command Retry Delay index, of which bits 1:0 count: CRDT1 to CRDT3 of
    /// Identify Controller, or 0 for none.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(3 << CRD_SHIFT) | (crd as u16 & 3) << CRD_SHIFT)
    }

    /// Command Retry Delay index, 0 to 3.
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0 >> CRD_SHIFT) as u8 & 3
    }

    /// Whether both have the same type and code, whatever their DNR, M and CRD.
    #[must_use]
    pub const fn same_code(self, other: Self) -> bool {
        self.0 & 0x7ff == other.0 & 0x7ff
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:x}/{:02x}h", self.name(), self.sct().0, self.sc())?;
        if self.is_dnr() {
            f.write_str(", DNR")?;
        }
        if self.is_more() {
            f.write_str(", More")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_where_the_cqe_has_them() {
        let s = Status::CONNECT_INVALID_PARAMETERS.dnr().more();
        assert_eq!(s.bits(), 0x6182);
        assert_eq!(s.sct(), StatusCodeType::COMMAND_SPECIFIC);
        assert_eq!(s.sc(), 0x82);
        assert!(s.is_dnr() && s.is_more() && !s.is_success());
        assert!(s.same_code(Status::CONNECT_INVALID_PARAMETERS));
        assert_eq!(Status::from_bits(s.bits()), s);
        assert_eq!(Status::from_bits(0x1800).crd(), 3);
        assert_eq!(s.without_more(), Status::CONNECT_INVALID_PARAMETERS.dnr());
        let delayed = Status::NAMESPACE_NOT_READY.with_crd(2);
        assert_eq!(
            (delayed.crd(), delayed.with_crd(0)),
            (2, Status::NAMESPACE_NOT_READY)
        );
    }

    #[test]
    fn display_names_the_status() {
        assert_eq!(
            Status::LBA_OUT_OF_RANGE.dnr().to_string(),
            "LBA Out of Range (0/80h, DNR)"
        );
        assert_eq!(Status::new(7, 1).name(), "unknown status");
    }
}

//! Why a command fails, and which part of it is to blame.

use super::connect::Refusal;
use nvmf_proto::wire::log::ParameterLocation;
use nvmf_proto::wire::status::StatusCodeType;
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};

/// What a check says that a command does not pass: the status of its completion, and what the
/// Error Information log page tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: Status,
    pub(crate) location: ParameterLocation,
    /// Dword 0 of the completion.
    pub(crate) dw0: u32,
}

impl Fault {
    /// A status that does not name the parameter by itself.
    pub(crate) const fn new(status: Status, location: ParameterLocation) -> Self {
        Self {
            status,
            location,
            dw0: 0,
        }
    }

    /// Invalid Field in Command, for good: a parameter that begins at a byte of the SQE.
    pub(crate) const fn field(byte: u8) -> Self {
        Self::new(Status::INVALID_FIELD.dnr(), ParameterLocation::byte(byte))
    }

    /// The same for a parameter of CDW10 to CDW15 that begins at `bit`.
    pub(crate) const fn cdw(dword: u8, bit: u8) -> Self {
        let location = ParameterLocation::cdw(dword, bit);
        Self::new(Status::INVALID_FIELD.dnr(), location)
    }

    /// The same for NSID.
    pub(crate) const fn nsid() -> Self {
        Self::field(4)
    }

    /// The parameter that a status names by itself.
    fn implied(status: Status) -> ParameterLocation {
        let byte = ParameterLocation::byte;
        match code(status) {
            Status::INVALID_OPCODE => byte(0),
            Status::COMMAND_ID_CONFLICT => byte(2),
            Status::INVALID_NAMESPACE
            | Status::NAMESPACE_NOT_READY
            | Status::NAMESPACE_WRITE_PROTECTED
            | Status::FEATURE_NOT_NAMESPACE_SPECIFIC => byte(4),
            // SGL1: address, length, and then type and subtype.
            Status::SGL_OFFSET_INVALID => byte(24),
            Status::DATA_SGL_LENGTH_INVALID => byte(32),
            Status::SGL_TYPE_INVALID => byte(39),
            // LID of Get Log Page, FID of Get and Set Features, SLBA of I/O commands.
            Status::INVALID_LOG_PAGE | Status::FEATURE_NOT_CHANGEABLE => byte(40),
            code if is_of_blocks(code) => byte(40),
            Status::FEATURE_NOT_SAVEABLE => ParameterLocation::cdw(10, 31),
            _ => ParameterLocation::NONE,
        }
    }

    /// Whether the Error Information log takes note of it. Not if it tells of how things stand
    /// rather than of an error (the state of a path, a conflict, a miscompare, a command that was
    /// aborted): a host that polls such a state would wash everything else out of the log.
    pub(crate) fn is_logged(self) -> bool {
        self.status.sct() != StatusCodeType::PATH
            && !matches!(
                code(self.status),
                Status::ABORT_REQUESTED
                    | Status::ABORTED_SQ_DELETION
                    | Status::ABORTED_POWER_LOSS
                    | Status::ABORTED_FAILED_FUSED
                    | Status::COMMAND_INTERRUPTED
                    | Status::RESERVATION_CONFLICT
                    | Status::COMPARE_FAILURE
            )
    }

    /// Whether the same command may succeed a moment later.
    pub(super) fn passes_with_time(self) -> bool {
        let code = code(self.status);
        matches!(
            code,
            Status::COMMAND_INTERRUPTED | Status::NAMESPACE_NOT_READY
        ) && !self.status.is_dnr()
    }

    /// Whether the medium or its data are at fault: NVMe Base 2.1, SMART / Health Information log
    /// page, Media and Data Integrity Errors.
    pub(super) fn is_of_the_medium(self) -> bool {
        matches!(
            code(self.status),
            Status::WRITE_FAULT | Status::UNRECOVERED_READ_ERROR
        )
    }

    /// Whether it came about on the way or with the data pointer, so that the log names the
    /// transport.
    pub(super) fn is_of_the_transport(self) -> bool {
        matches!(
            code(self.status),
            Status::TRANSIENT_TRANSPORT_ERROR
                | Status::DATA_SGL_LENGTH_INVALID
                | Status::SGL_TYPE_INVALID
                | Status::SGL_OFFSET_INVALID
        )
    }

    /// The first logical block that it is about; 0 if it is about none. Dataset Management has
    /// other things where SLBA is, and a Copy may fail for its sources.
    pub(super) fn lba(self, sqe: &Sqe) -> u64 {
        let has_slba = !matches!(
            NvmOpcode(sqe.opcode()),
            NvmOpcode::DATASET_MANAGEMENT | NvmOpcode::COPY
        );
        if has_slba && is_of_blocks(code(self.status)) {
            sqe.slba()
        } else {
            0
        }
    }
}

/// A status without DNR, M and CRD, to be matched.
const fn code(status: Status) -> Status {
    Status::new(status.sct().0, status.sc())
}

fn is_of_blocks(code: Status) -> bool {
    matches!(
        code,
        Status::LBA_OUT_OF_RANGE
            | Status::WRITE_FAULT
            | Status::UNRECOVERED_READ_ERROR
            | Status::DEALLOCATED_BLOCK
    )
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::new(status, Self::implied(status))
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self {
            dw0: refusal.dw0,
            ..Self::from(refusal.status)
        }
    }
}

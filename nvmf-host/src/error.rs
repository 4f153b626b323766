//! What can go wrong, kept apart by whose doing it is.

use nvmf_proto::tcp::Violation;
use nvmf_proto::wire::fabrics::InvalidParameter;
use nvmf_proto::wire::nqn::NqnError;
use nvmf_proto::wire::pdu::TermReq;
use nvmf_proto::wire::{Cqe, Status};
use std::io;
use std::time::Duration;

/// Why an operation of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket failed; `what` is what was being done.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The target broke NVMe/TCP; it was told so by an H2CTermReq. The connection is over.
    #[error("the target broke NVMe/TCP: {0}")]
    Violation(Violation),
    /// The target ended the connection by a C2HTermReq.
    #[error("the target ended the connection: {} (FES {}, FEI {:#x})", .0.fes, .0.fes.0, .0.fei)]
    Terminated(TermReq),
    /// The target closed the connection.
    #[error("the target closed the connection")]
    Closed,
    /// A command completed with an error. The connection lives.
    #[error("{command}: {status}{}", detail(.status, *.result))]
    Status {
        /// Name of the command.
        command: &'static str,
        /// Its status.
        status: Status,
        /// Dwords 0 and 1 of the completion.
        result: u64,
    },
    /// A command succeeded but a data digest was wrong: what was read is not to be trusted.
    #[error("{command}: wrong data digest in what was read")]
    DataDigest {
        /// Name of the command.
        command: &'static str,
    },
    /// Something did not happen in time. What was under way stays so.
    #[error("no {what} within {within:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// A well-formed answer that makes no sense.
    #[error("the target's answer makes no sense: {0}")]
    BadAnswer(&'static str),
    /// The controller reported a fatal error (CSTS.CFS).
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    ControllerFatal,
    /// As many commands are outstanding as the queue takes.
    #[error("the queue is full")]
    QueueFull,
    /// The caller asked for something impossible.
    #[error("{0}")]
    InvalidInput(&'static str),
    /// A name is not an NVMe Qualified Name.
    #[error("{name:?}: {reason}")]
    Nqn {
        /// The name.
        name: String,
        /// The rule that it breaks.
        reason: NqnError,
    },
}

impl Error {
    /// For `map_err` on system calls.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// An error unless the completion is a success.
    pub(crate) const fn check(command: &'static str, cqe: &Cqe) -> Result<(), Self> {
        if cqe.status.is_success() {
            Ok(())
        } else {
            Err(Self::Status {
                command,
                status: cqe.status,
                result: cqe.result,
            })
        }
    }

    /// The status of a command that completed with an error, without More: that it has an entry in
    /// the Error Information log says nothing of the command.
    #[must_use]
    pub const fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(status.without_more()),
            _ => None,
        }
    }
}

/// Names the parameter of a refused Connect (NVMe Base 2.1, Connect response).
fn detail(status: &Status, result: u64) -> String {
    if !status.same_code(Status::CONNECT_INVALID_PARAMETERS) {
        return String::new();
    }
    match InvalidParameter::from_dw0(dword0(result)) {
        InvalidParameter::Command(offset) => format!(", byte {offset} of the SQE"),
        InvalidParameter::Data(offset) => format!(", byte {offset} of the Connect data"),
    }
}

/// Dword 0 of a completion's result.
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
pub(crate) const fn dword0(result: u64) -> u32 {
    result as u32
}

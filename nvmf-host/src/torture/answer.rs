//! What a target answers, what it should have answered, and what that makes of it.

use crate::raw::End;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::pdu::{Fes, TermReq};
use std::fmt;

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An ICResp.
    Ready,
    /// A C2HTermReq, and how the connection ended after it, if it did.
    Term(TermReq, Option<End>),
    /// A completion, and the connection goes on. Bytes of data came before it.
    Completed {
        status: Status,
        dw0: u32,
        data: usize,
    },
    /// A completion, and then the end of the connection.
    CompletedAndEnded(Status, End),
    /// The end of the connection without a word.
    Ended(End),
    /// Nothing at all.
    Silence,
    /// R2Ts for more than the case is willing to send.
    Asked(u64),
    /// Something that a controller of NVMe/TCP does not send.
    Nonsense(String),
    /// A case of many steps went as it should.
    Kept(String),
    /// A case of many steps did not.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ICResp"),
            Self::Term(term, end) => {
                write!(f, "{}, ", TermOf(term.fes, Some(term.fei)))?;
                match end {
                    Some(end) => write!(f, "{end}"),
                    None => f.write_str("left open"),
                }
            }
            Self::Completed { status, dw0, data } => {
                write!(f, "{}", status.without_more())?;
                if status.same_code(Status::CONNECT_INVALID_PARAMETERS) {
                    write!(f, ", dword 0 {dw0:#x}")?;
                }
                if *data > 0 {
                    write!(f, ", {data} bytes")?;
                }
                Ok(())
            }
            Self::CompletedAndEnded(status, end) => write!(f, "{}, {end}", status.without_more()),
            Self::Ended(end) => write!(f, "{end}"),
            Self::Silence => f.write_str("silence"),
            Self::Asked(bytes) => write!(f, "R2Ts for {bytes} bytes and more"),
            Self::Nonsense(what) => write!(f, "nonsense: {what}"),
            Self::Kept(what) | Self::Broken(what) => f.write_str(what),
        }
    }
}

/// A C2HTermReq in words.
struct TermOf(Fes, Option<u32>);

impl fmt::Display for TermOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "C2HTermReq FES {} ({})", self.0.0, self.0)?;
        match self.1 {
            Some(fei) => write!(f, " FEI {fei:#x}"),
            None => Ok(()),
        }
    }
}

/// An answer that would be right, or could be lived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// An ICResp.
    Ready,
    /// A C2HTermReq with this FES and, if it matters, this FEI.
    Term(Fes, Option<u32>),
    /// A success.
    Success,
    /// This status, whatever its DNR.
    Status(Status),
    /// Connect Invalid Parameters with this dword 0.
    Parameter(u32),
    /// Any status but success.
    Error,
    /// The end of the connection, with a C2HTermReq or without.
    End,
    /// What the case describes.
    Kept,
}

impl Want {
    pub(crate) fn is_met(self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Ready, Answer::Ready) | (Self::Kept, Answer::Kept(_)) => true,
            (Self::Term(fes, fei), Answer::Term(term, _)) => {
                term.fes == fes && fei.is_none_or(|fei| term.fei == fei)
            }
            (Self::End, Answer::Term(..) | Answer::Ended(_) | Answer::CompletedAndEnded(..)) => {
                true
            }
            (Self::Success, Answer::Completed { status, .. }) => status.is_success(),
            (Self::Error, Answer::Completed { status, .. }) => !status.is_success(),
            (Self::Status(wanted), Answer::Completed { status, .. }) => status.same_code(wanted),
            (Self::Parameter(wanted), Answer::Completed { status, dw0, .. }) => {
                status.same_code(Status::CONNECT_INVALID_PARAMETERS) && *dw0 == wanted
            }
            _ => false,
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ICResp"),
            Self::Term(fes, fei) => write!(f, "{}", TermOf(*fes, *fei)),
            Self::Success => f.write_str("success"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Parameter(dw0) => {
                let status = Status::CONNECT_INVALID_PARAMETERS;
                write!(f, "{status}, dword 0 {dw0:#x}")
            }
            Self::Error => f.write_str("any error status"),
            Self::End => f.write_str("the end of the connection"),
            Self::Kept => f.write_str("what the case says"),
        }
    }
}

/// What is to be thought of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// What the case cannot be tried without is not offered by the target, or not allowed by the
    /// caller.
    Skipped,
    /// The answer is what the specifications demand.
    Conforms,
    /// It is not quite, but nobody is worse off: an end without a C2HTermReq, another error code,
    /// a lie that was seen through later than it could have been.
    Tolerates,
    /// It is neither: a lie was believed, or something that is due did not come.
    Violates,
    /// The target does not serve any more, or data has changed that nobody may change.
    Harmed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Skipped => "skipped",
            Self::Conforms => "conforms",
            Self::Tolerates => "tolerates",
            Self::Violates => "violates",
            Self::Harmed => "harmed",
        })
    }
}

pub(crate) fn judge(answer: &Answer, conforms: &[Want], tolerates: &[Want]) -> Verdict {
    if conforms.iter().any(|want| want.is_met(answer)) {
        Verdict::Conforms
    } else if tolerates.iter().any(|want| want.is_met(answer)) {
        Verdict::Tolerates
    } else {
        Verdict::Violates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged() {
        let term = |fes, fei| Answer::Term(TermReq { fes, fei }, Some(End::Closed));
        let conforms = [Want::Term(Fes::INVALID_HEADER_FIELD, Some(4))];
        let tolerates = [Want::End];
        for (answer, verdict) in [
            (term(Fes::INVALID_HEADER_FIELD, 4), Verdict::Conforms),
            (term(Fes::INVALID_HEADER_FIELD, 3), Verdict::Tolerates),
            (Answer::Ended(End::Reset), Verdict::Tolerates),
            (Answer::Silence, Verdict::Violates),
            (Answer::Ready, Verdict::Violates),
        ] {
            assert_eq!(judge(&answer, &conforms, &tolerates), verdict, "{answer}");
        }
        let refused = Answer::Completed {
            status: Status::CONNECT_INVALID_PARAMETERS.dnr().more(),
            dw0: 0x1_0010,
            data: 0,
        };
        assert!(Want::Parameter(0x1_0010).is_met(&refused));
        assert!(!Want::Parameter(0x10).is_met(&refused));
        assert!(Want::Error.is_met(&refused) && !Want::Success.is_met(&refused));
        assert_eq!(
            refused.to_string(),
            "Connect Invalid Parameters (1/82h, DNR), dword 0 0x10010"
        );
        assert_eq!(
            conforms[0].to_string(),
            "C2HTermReq FES 1 (invalid PDU header field) FEI 0x4"
        );
    }
}

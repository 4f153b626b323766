//! Fused operations: two commands that follow each other on a queue and are carried out as one
//! (NVMe Base 2.1, Fused Operations).
//!
//! Commands come in the order of submission, for a queue is one connection. The data of the two
//! may come in any order.

use super::{Conn, Queue};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};

/// What the command before says about the one that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    #[default]
    Whole,
    /// It was a first half, which waits for its second.
    First(Slot),
    /// It was a first half, and it has failed.
    FailedFirst,
}

/// What a command has to do with fused operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Half {
    /// Nothing.
    #[default]
    Whole,
    /// It is a first half whose second has not come yet.
    First { ready: bool },
    /// It is half of an operation; `ready`: its data is here.
    Paired { other: Slot, ready: bool },
}

impl Half {
    pub(super) const fn other(self) -> Option<Slot> {
        match self {
            Self::Paired { other, .. } => Some(other),
            Self::Whole | Self::First { .. } => None,
        }
    }
}

impl Conn {
    /// Finds out what a command has to do with the one before it; an error is the command's.
    pub(super) fn fuse(&mut self, cx: &mut Cx, slot: Slot, sqe: &Sqe) -> Result<(), Status> {
        let before = std::mem::take(&mut self.before);
        // Byte 1 of a Fabrics command has no FUSE, and Admin commands have no fused operations.
        let io = matches!(self.queue, Queue::Io(_)) && sqe.opcode() != NvmOpcode::FABRICS.0;
        let fuse = if io { sqe.fuse() } else { Fuse::None };
        if fuse == Fuse::First {
            self.before = Before::First(slot);
            self.command(slot).half = Half::First { ready: false };
        }
        match (before, fuse) {
            (Before::First(first), Fuse::Second) => self.join(cx, first, slot, sqe),
            (Before::First(first), _) => {
                self.end_first(cx, first, Status::ABORTED_MISSING_FUSED);
                Ok(())
            }
            (Before::FailedFirst, Fuse::Second) => Err(Status::ABORTED_FAILED_FUSED),
            (Before::Whole, Fuse::Second) => Err(Status::ABORTED_MISSING_FUSED),
            (Before::Whole | Before::FailedFirst, _) => Ok(()),
        }
    }

    fn join(&mut self, cx: &mut Cx, first: Slot, second: Slot, write: &Sqe) -> Result<(), Status> {
        let command = self.command(first);
        let compare = command.sqe;
        let place = |sqe: &Sqe| (sqe.nsid(), sqe.slba(), sqe.block_count());
        // NVM Command Set 1.1, Fused Operation: both are aborted if their blocks are not the same.
        if write.opcode() == NvmOpcode::WRITE.0 && place(&compare) != place(write) {
            self.end_first(cx, first, Status::INVALID_FIELD.dnr());
            return Err(Status::INVALID_FIELD.dnr());
        }
        let ready = matches!(command.half, Half::First { ready: true });
        command.half = Half::Paired {
            other: second,
            ready,
        };
        self.command(second).half = Half::Paired {
            other: first,
            ready: false,
        };
        Ok(())
    }

    /// Ends a first half that gets no second.
    fn end_first(&mut self, cx: &mut Cx, first: Slot, status: Status) {
        self.command(first).half = Half::Whole;
        self.stop_waiting(cx, first);
        self.complete(cx, first, status, 0);
    }

    /// Whether a command is all that is missing to a half that has its buffer already. It has a
    /// buffer before all others, and whatever its connection's share: if everybody held one half
    /// and waited for room for the other, nobody would ever get on.
    pub(super) fn completes_pair(&self, slot: Slot) -> bool {
        let other = self.commands[slot.index()].half.other();
        other.is_some_and(|other| !self.commands[other.index()].buf.is_empty())
    }

    /// All data of half an operation is here.
    pub(super) fn half_is_ready(&mut self, cx: &mut Cx, slot: Slot) {
        let command = self.command(slot);
        match &mut command.half {
            Half::Whole => {}
            Half::First { ready } => *ready = true,
            Half::Paired { other, ready } => {
                *ready = true;
                let other = *other;
                let is_first = command.sqe.fuse() == Fuse::First;
                if matches!(self.command(other).half, Half::Paired { ready: true, .. }) {
                    let (first, second) = if is_first {
                        (slot, other)
                    } else {
                        (other, slot)
                    };
                    self.execute_pair(cx, first, second);
                }
            }
        }
    }

    /// Half an operation ends; returns how the other one ends.
    pub(super) fn end_half(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        status: Status,
    ) -> Option<(Slot, Status)> {
        self.pair_waits = None;
        match std::mem::take(&mut self.command(slot).half) {
            Half::Whole => None,
            Half::First { .. } => {
                self.before = Before::FailedFirst;
                None
            }
            Half::Paired { other, .. } => {
                self.command(slot).parts = 0;
                let command = self.command(other);
                command.half = Half::Whole;
                command.parts = 0;
                // It may wait for a buffer.
                self.stop_waiting(cx, other);
                let status = if status.is_success() {
                    Status::SUCCESS
                } else {
                    Status::ABORTED_FAILED_FUSED
                };
                Some((other, status))
            }
        }
    }
}

//! Admin commands: what data they move, and what they answer.
//!
//! Each file parses a command into something that is known to be valid and then fills it in:
//! [`transfer`] does the first half, [`execute`] both, because a namespace may have gone in
//! between. Fabrics commands, Abort, Asynchronous Event Request and Keep Alive are the queue's own.

mod ana;
mod discovery;
mod feature;
mod identify;
mod log;
mod persistent;
mod reservation;
#[cfg(test)]
mod tests;

pub(crate) use reservation::{Persistence, persistence};

use super::{Controller, Core, Fault, Kind, NsEntry, Subsystem};
use nvmf_proto::wire::{AdminOpcode, Sqe, Status};
use std::sync::Arc;

/// ACL: Abort Command Limit, 0's based.
pub(crate) const ACL: u8 = 3;

/// What an admin command is carried out with.
#[derive(Debug)]
pub(crate) struct AdminCx<'a> {
    pub(crate) core: &'a Core,
    pub(crate) controller: &'a Controller,
}

impl AdminCx<'_> {
    fn subsystem(&self) -> &Subsystem {
        &self.controller.subsystem
    }

    fn kind(&self) -> Kind {
        self.subsystem().kind
    }

    /// What an NSID stands for; `None` if nothing is attached under it. An NSID that cannot be one
    /// (0, FFFFFFFFh, more than NN) is refused.
    fn namespace(&self, nsid: u32) -> Result<Option<Arc<NsEntry>>, Status> {
        if nsid == 0 || nsid > self.subsystem().max_namespaces {
            return Err(Status::INVALID_NAMESPACE.dnr());
        }
        let view = self.controller.view();
        Ok(view.get(nsid).map(|seen| Arc::clone(&seen.entry)))
    }
}

/// The data that a command moves, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    None,
    ToHost(u32),
    FromHost(u32),
}

impl Transfer {
    /// Bytes, in whichever direction.
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::ToHost(len) | Self::FromHost(len) => len as usize,
        }
    }
}

/// What data a command moves, or why it is refused: before anything is taken for it.
pub(crate) fn transfer(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    match AdminOpcode(sqe.opcode()) {
        AdminOpcode::IDENTIFY => identify::transfer(cx, sqe),
        AdminOpcode::GET_LOG_PAGE => log::transfer(cx, sqe),
        AdminOpcode::GET_FEATURES => feature::transfer_get(cx, sqe),
        AdminOpcode::SET_FEATURES => feature::transfer_set(cx, sqe),
        _ => Err(Status::INVALID_OPCODE.dnr().into()),
    }
}

/// How a command that has been carried out ends.
#[derive(Debug)]
pub(crate) enum Answer {
    /// At once, with this dword 0.
    Done(u32),
    /// With success, once namespaces are settled.
    Settle(Settle),
}

/// Namespaces of which all that was written has to be safe.
#[derive(Debug)]
pub(crate) struct Settle {
    pub(crate) namespaces: Vec<Arc<NsEntry>>,
    /// Writes that are under way count, too.
    pub(crate) fence: bool,
}

/// Carries a command out. `data` has the length that [`transfer`] said: it holds what the host
/// sent, or takes what the host is to get and is filled entirely on success.
pub(crate) fn execute(cx: &AdminCx<'_>, sqe: &Sqe, data: &mut [u8]) -> Result<Answer, Fault> {
    let done = Answer::Done(0);
    match AdminOpcode(sqe.opcode()) {
        AdminOpcode::IDENTIFY => identify::identify(cx, sqe, data).map(|()| done),
        AdminOpcode::GET_LOG_PAGE => log::read(cx, sqe, data).map(|()| done),
        AdminOpcode::GET_FEATURES => feature::get(cx, sqe, data).map(Answer::Done),
        AdminOpcode::SET_FEATURES => feature::set(cx, sqe, data),
        _ => Err(Status::INVALID_OPCODE.dnr().into()),
    }
}

//! Admin commands: what data they move, and what they answer.

use super::{Controller, Core, Listener};
use nvmf_proto::wire::{Sqe, Status};
use std::net::IpAddr;

/// AERL: Asynchronous Event Requests outstanding at a time, 0's based.
pub(crate) const AERL: u8 = 3;

/// What an admin command is carried out with.
#[derive(Debug)]
pub(crate) struct AdminCx<'a> {
    pub(crate) core: &'a Core,
    pub(crate) controller: &'a Controller,
    pub(crate) listener: &'a Listener,
    /// The local address by which the host has reached the target.
    pub(crate) local_ip: Option<IpAddr>,
}

/// The data that a command moves, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    None,
    ToHost(u32),
    FromHost(u32),
}

/// The outcome of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    /// Dwords 1:0 of the completion.
    pub(crate) result: u64,
}

/// What data a command moves, or why it is refused: before anything is taken for it.
pub(crate) fn transfer(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Status> {
    let _ = (cx, sqe);
    Err(Status::INVALID_OPCODE.dnr())
}

/// Carries a command out. `data` has the length that [`transfer`] said: it holds what the host
/// sent, or takes what the host is to get and is filled entirely on success.
pub(crate) fn execute(cx: &AdminCx<'_>, sqe: &Sqe, data: &mut [u8]) -> Reply {
    let _ = (cx, sqe, data);
    Reply { status: Status::INVALID_OPCODE.dnr(), result: 0 }
}

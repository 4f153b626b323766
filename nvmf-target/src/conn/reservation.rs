//! The reservation commands (NVMe Base 2.1 §7.5 to §7.8).

use super::{Conn, Queue};
use crate::buf::IoBuf;
use crate::ctrl::admin::{Persistence, Transfer};
use crate::ctrl::reservation::{Command, HostId, Waiter, set_persistence};
use crate::ctrl::{Fault, Seen};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::tcp::target::Done;
use nvmf_proto::wire::reservation::{
    AcquireCommand, AcquireData, RegisterCommand, RegisterData, ReleaseCommand, ReleaseData,
    ReportCommand,
};
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};
use std::collections::BTreeSet;

/// Data of a command that offers more than belongs to it is taken up to this length: Linux sends
/// 16 bytes with Reservation Release before 6.12.
const DATA_MAX: u32 = 4096;

/// What data a reservation command moves, or why it is refused; `None` for any other command.
pub(super) fn transfer(sqe: &Sqe, max_transfer: u32) -> Option<Result<Transfer, Fault>> {
    #[expect(clippy::cast_possible_truncation, reason = "8 or 16")]
    let data = match NvmOpcode(sqe.opcode()) {
        NvmOpcode::RESERVATION_REGISTER => RegisterData::SIZE as u32,
        NvmOpcode::RESERVATION_ACQUIRE => AcquireData::SIZE as u32,
        NvmOpcode::RESERVATION_RELEASE => ReleaseData::SIZE as u32,
        NvmOpcode::RESERVATION_REPORT => {
            let length = ReportCommand::decode(sqe).length();
            let length = u32::try_from(length).ok().filter(|&l| l <= max_transfer);
            return Some(length.map(Transfer::ToHost).ok_or(Fault::cdw(10, 0)));
        }
        _ => return None,
    };
    let length = sqe.sgl().length.clamp(data, DATA_MAX);
    Some(Ok(Transfer::FromHost(length)))
}

/// The command with its data.
fn decode(sqe: &Sqe, data: &[u8]) -> Option<Command> {
    Some(match NvmOpcode(sqe.opcode()) {
        NvmOpcode::RESERVATION_REGISTER => {
            let data = RegisterData::decode(data.first_chunk()?);
            Command::Register(RegisterCommand::decode(sqe), data)
        }
        NvmOpcode::RESERVATION_ACQUIRE => {
            let data = AcquireData::decode(data.first_chunk()?);
            Command::Acquire(AcquireCommand::decode(sqe), data)
        }
        _ => {
            let data = ReleaseData::decode(data.first_chunk()?);
            Command::Release(ReleaseCommand::decode(sqe), data)
        }
    })
}

impl Conn {
    /// Carries out a reservation command that has passed its checks.
    pub(super) fn execute_reservation(&mut self, cx: &mut Cx, slot: Slot) {
        let sqe = self.command(slot).sqe;
        let mut buf = std::mem::take(&mut self.command(slot).buf);
        let done = if sqe.opcode() == NvmOpcode::RESERVATION_REPORT.0 {
            Some(self.report(&sqe, &mut buf))
        } else {
            self.reserve(cx, slot, &sqe, &buf)
        };
        self.command(slot).buf = buf;
        match done {
            None => {}
            Some(Ok(data_len)) => {
                let (status, result) = (Status::SUCCESS, 0);
                let done = Done {
                    status,
                    result,
                    data_len,
                };
                self.respond(cx, slot, done);
            }
            Some(Err(status)) => self.complete(cx, slot, status, 0),
        }
    }

    /// Reservation Report: how many bytes there are.
    fn report(&self, sqe: &Sqe, out: &mut IoBuf) -> Result<u32, Status> {
        let Queue::Io(queue) = &self.queue else {
            return Err(Status::INTERNAL_ERROR);
        };
        let seen = queue.view.get(sqe.nsid());
        let shared = &seen.ok_or(Status::INVALID_NAMESPACE.dnr())?.entry.shared;
        let controller = &queue.controller;
        if controller.hostid == HostId::default() {
            return Err(Status::HOST_ID_NOT_INITIALIZED.dnr());
        }
        // Over Fabrics Host Identifiers have 128 bits.
        if !ReportCommand::decode(sqe).eds {
            return Err(Status::HOST_ID_INCONSISTENT.dnr());
        }
        let cntlids = controller.subsystem.controllers_by_host();
        shared.reservations.report(&cntlids, out);
        u32::try_from(out.len()).map_err(|_| Status::INTERNAL_ERROR)
    }

    /// Register, Acquire and Release: [`Conn::on_changed`] completes them, unless they fail here.
    fn reserve(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        sqe: &Sqe,
        data: &[u8],
    ) -> Option<Result<u32, Status>> {
        let Queue::Io(queue) = &self.queue else {
            return Some(Err(Status::INTERNAL_ERROR));
        };
        let Some(Seen { entry, .. }) = queue.view.get(sqe.nsid()) else {
            return Some(Err(Status::INVALID_NAMESPACE.dnr()));
        };
        let Some(command) = decode(sqe, data) else {
            return Some(Err(Status::DATA_SGL_LENGTH_INVALID.dnr()));
        };
        let controller = &queue.controller;
        let host = controller.hostid;
        let waiter = Waiter::new(&cx.mailbox, self.id, slot);
        controller
            .subsystem
            .reserve(&cx.core.keeper, entry, host, command, waiter);
        self.in_flight += 1;
        cx.in_flight += 1;
        None
    }

    /// Set Features of Reservation Persistence, once it is known to be right.
    pub(super) fn set_persistence(&mut self, cx: &mut Cx, slot: Slot, change: Persistence) {
        let waiter = Waiter::new(&cx.mailbox, self.id, slot);
        let Persistence {
            host,
            entries,
            ptpl,
        } = change;
        set_persistence(&cx.core.keeper, host, entries, ptpl, waiter);
        self.in_flight += 1;
        cx.in_flight += 1;
    }

    /// A change of reservations that a command has asked for is made, or has failed.
    pub(crate) fn on_changed(&mut self, cx: &mut Cx, slot: Slot, status: Status) {
        if self.came_back(cx.now) {
            self.complete(cx, slot, status, 0);
        }
    }

    /// The host of this queue was preempted, and its commands on a namespace are to end before the
    /// command is completed that did it. They are aborted as far as that is possible; those that
    /// are in a backend are waited for.
    ///
    /// A command that its host owes data is not waited for: it is bound to end as aborted, whenever
    /// the data comes, and the host may never send it.
    pub(crate) fn on_quiesce(&mut self, cx: &mut Cx, nsid: u32, waiter: &Waiter) {
        let on_namespace = |sqe: &Sqe| sqe.nsid() == nsid && !is_change(sqe);
        if self.is_mute() {
            // What a connection that is over has left in backends ends with it, all at once.
            let left = |c: &super::Command| c.parts > 0 && on_namespace(&c.sqe);
            if self.in_flight > 0 && self.commands.iter().any(left) {
                self.holds.push((usize::MAX, waiter.clone()));
            }
            return;
        }
        let commands = self.commands.iter().map(|command| &command.sqe);
        // Slots keep the last command that they had: not every CID is one of a command that lives.
        let cids: BTreeSet<u16> = commands.filter(|s| on_namespace(s)).map(Sqe::cid).collect();
        for cid in cids {
            let Some(slot) = self.tcp.find(cid) else {
                continue;
            };
            if on_namespace(&self.command(slot).sqe)
                && !self.abort(cx, cid)
                && self.command(slot).parts > 0
            {
                self.holds.push((slot.index(), waiter.clone()));
            }
        }
    }
}

/// Whether a command changes reservations: those do not wait for each other.
const fn is_change(sqe: &Sqe) -> bool {
    matches!(
        NvmOpcode(sqe.opcode()),
        NvmOpcode::RESERVATION_REGISTER
            | NvmOpcode::RESERVATION_ACQUIRE
            | NvmOpcode::RESERVATION_RELEASE
    )
}

//! A command from its arrival to its execution: checks, data pointer, buffer.

use super::admin::AdminPlan;
use super::fused::{Before, Half};
use super::io::IoPlan;
use super::{Conn, Fed, Queue};
use crate::buf::BLOCK;
use crate::ctrl::Fault;
use crate::ctrl::admin::Transfer;
use crate::reactor::{Cx, SMALL};
use nvmf_proto::tcp::Slot;
use nvmf_proto::tcp::target::Done;
use nvmf_proto::wire::log::ParameterLocation;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{AdminOpcode, SglDescriptor, Sqe, Status};

/// The namespace was replaced by one of another format while a command waited: what its data
/// pointer describes does not fit any more.
pub(super) const CHANGED: Status = Status::DATA_SGL_LENGTH_INVALID.dnr();

/// A command that has passed its checks.
#[derive(Debug)]
enum Plan {
    Io(IoPlan),
    Admin(AdminPlan),
}

impl Plan {
    fn transfer(&self) -> Transfer {
        match self {
            Self::Io(plan) => plan.transfer(),
            Self::Admin(plan) => plan.transfer(),
        }
    }

    /// Whether what goes to the host, if anything does, is blocks and no structure.
    const fn is_of_blocks(&self) -> bool {
        matches!(self, Self::Io(plan) if !matches!(plan, IoPlan::Reservation(_)))
    }
}

impl Conn {
    pub(super) fn on_command(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        sqe: &Sqe,
        in_capsule: u32,
        cid_conflict: bool,
    ) {
        self.note_activity(cx);
        let command = self.command(slot);
        command.slot = slot;
        command.sqe = *sqe;
        command.status = None;
        command.aborted = false;
        command.result = 0;
        if (sqe.fuse() != Fuse::None || self.before != Before::Whole)
            && let Err(status) = self.fuse(cx, slot, sqe)
        {
            return self.complete(cx, slot, status, 0);
        }
        if cid_conflict {
            self.complete(cx, slot, Status::COMMAND_ID_CONFLICT.dnr(), 0);
            return;
        }
        let plan = match self.admit(cx, sqe) {
            Ok(plan) => plan,
            Err(fault) => return self.fail(cx, slot, fault),
        };
        let transfer = plan.transfer();
        if let Err(fault) = check_pointer(sqe, transfer, in_capsule, plan.is_of_blocks()) {
            return self.fail(cx, slot, fault);
        }
        if let Plan::Io(plan) = &plan
            && (self.read_promised(cx, slot, plan)
                || (in_capsule > 0 && self.expect_in_place(cx, slot, plan)))
        {
            return;
        }
        match transfer {
            Transfer::None => self.carry_out(cx, slot, &plan),
            Transfer::ToHost(len) | Transfer::FromHost(len) => {
                let completes_pair = self.completes_pair(slot);
                let may_take = completes_pair || self.may_take(cx, len);
                if may_take && self.take_buffer(cx, slot, len) {
                    self.with_buffer(cx, slot, &plan);
                } else if in_capsule > 0 {
                    self.blocked = Some((slot, len));
                    cx.blocked.push_back(self.id);
                } else {
                    if self.waiting.is_empty() {
                        cx.starved.push_back(self.id);
                    }
                    if completes_pair {
                        self.waiting.push_front((slot, len));
                    } else {
                        self.waiting.push_back((slot, len));
                    }
                }
            }
        }
    }

    /// Every command keeps the controller alive, on whatever queue.
    pub(super) fn note_activity(&self, cx: &Cx) {
        match &self.queue {
            Queue::None => {}
            Queue::Admin(queue) => queue.stats.active(cx.now),
            Queue::Io(queue) => queue.stats.active(cx.now),
        }
    }

    /// Whether a command may run at all, and what it does.
    #[inline]
    fn admit(&mut self, cx: &Cx, sqe: &Sqe) -> Result<Plan, Fault> {
        let io = matches!(self.queue, Queue::Io(_));
        // NVMe Base 2.1, Submission Queue Entry: byte 1 of a Fabrics command is reserved but for
        // what is here checked for all others. Admin commands have no fused operations.
        if sqe.opcode() != AdminOpcode::FABRICS.0
            && (matches!(sqe.psdt(), 0b00 | 0b11) || (!io && sqe.fuse() != Fuse::None))
        {
            let at = ParameterLocation::byte(1);
            return Err(Fault::new(Status::INVALID_FIELD.dnr(), at));
        }
        match &self.queue {
            Queue::Io(_) => self.plan_io(sqe).map(Plan::Io),
            Queue::Admin(_) | Queue::None => self.plan_admin(cx, sqe).map(Plan::Admin),
        }
    }

    /// Whether a command may have a buffer now: none of its connection waits for one before it.
    pub(super) fn may_take(&self, cx: &mut Cx, len: u32) -> bool {
        self.waiting.is_empty() && self.has_share(cx, len)
    }

    /// A connection may hold half as much as is free. So one alone gets a third of the pool, and
    /// however many there are whose hosts do not take or send what they should, some is left. Where
    /// others wait, it depends on them as well (see [`Line`](crate::reactor::Line)).
    fn has_share(&self, cx: &mut Cx, len: u32) -> bool {
        let (held, footprint) = (self.counted(), footprint(len));
        let fits = held + footprint <= cx.pool.free_bytes() / 2;
        // Its first buffer a connection gets in any case, but a large one only while as much stays
        // free: what many connections hold at least must leave room for small commands of others.
        let first = footprint <= SMALL || footprint > cx.pool.total_bytes() / 4;
        let has_share = fits || (held == 0 && first);
        if cx.line.is_empty() {
            return has_share;
        }
        cx.line
            .admits(&cx.pool, cx.now, self.id, held, footprint, has_share)
    }

    /// Whether a command that has no buffer is one that others should not have overtaken: its
    /// connection holds less than that. (Of what is more than a quarter of all buffers a connection
    /// gets nothing beside what it holds already.)
    fn is_passed_over(&self, cx: &Cx, len: u32) -> bool {
        let (held, footprint) = (self.counted(), footprint(len));
        held == 0 || (held < footprint && footprint <= cx.pool.total_bytes() / 4)
    }

    /// The command has its buffer: host data comes next, or execution.
    fn with_buffer(&mut self, cx: &mut Cx, slot: Slot, plan: &Plan) {
        match plan.transfer() {
            Transfer::FromHost(len) => {
                self.tcp.receive(slot, len);
                // An R2T may have been queued by that.
                self.mark_dirty(cx);
            }
            Transfer::ToHost(_) | Transfer::None => self.carry_out(cx, slot, plan),
        }
    }

    /// Gives the command whose in-capsule data is next its buffer; false if there is none. It does
    /// not have to wait for others of its connection, nor for its share: they may wait for what
    /// stands behind its data.
    pub(crate) fn feed_capsule(&mut self, cx: &mut Cx) -> bool {
        let Some((slot, len)) = self.blocked else {
            return true;
        };
        let regular = self.completes_pair(slot) || self.may_take(cx, len);
        let buf = if regular {
            cx.pool.take(len as usize)
        } else {
            None
        };
        let Some(buf) = buf.or_else(|| cx.reserve.take(len as usize)) else {
            return false;
        };
        self.blocked = None;
        self.hold(slot, buf, cx.now);
        self.prefer_other_half(slot);
        self.enter(cx, slot);
        true
    }

    /// Half a pair has its buffer: if the other half waits for one it waits for nobody else of its
    /// connection.
    fn prefer_other_half(&mut self, slot: Slot) {
        let other = self.commands[slot.index()].half.other();
        let at = other.and_then(|other| self.waiting.iter().position(|&(of, _)| of == other));
        if let Some(other) = at.and_then(|at| self.waiting.remove(at)) {
            self.waiting.push_front(other);
        }
    }

    /// Gives the command that has waited longest its buffer, if there is one.
    pub(crate) fn feed_one(&mut self, cx: &mut Cx) -> Fed {
        let Some(&(slot, len)) = self.waiting.front() else {
            return Fed::Satisfied;
        };
        let may_take = self.completes_pair(slot) || self.has_share(cx, len);
        if !may_take || !self.take_buffer(cx, slot, len) {
            return if self.is_passed_over(cx, len) {
                Fed::Waits
            } else {
                Fed::Full
            };
        }
        self.waiting.pop_front();
        self.enter(cx, slot);
        if self.waiting.is_empty() {
            Fed::Satisfied
        } else {
            Fed::More
        }
    }

    /// A command has its buffer after a wait, in which anything may have changed.
    fn enter(&mut self, cx: &mut Cx, slot: Slot) {
        let sqe = self.command(slot).sqe;
        match self.admit(cx, &sqe) {
            Ok(plan) if plan.transfer().len() == self.command(slot).buf.len() => {
                self.with_buffer(cx, slot, &plan);
            }
            Ok(_) => self.complete(cx, slot, CHANGED, 0),
            Err(fault) => self.fail(cx, slot, fault),
        }
        self.resume(cx);
    }

    /// All data of a command has come.
    pub(super) fn on_received(&mut self, cx: &mut Cx, slot: Slot, digest_ok: bool) {
        if digest_ok {
            self.execute(cx, slot);
        } else {
            // NVMe/TCP 1.1 §3.3.1.1: a data digest error is not fatal to the connection.
            self.complete(cx, slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
        }
    }

    /// Carries out a command whose data has come: meanwhile its namespace may have changed.
    fn execute(&mut self, cx: &mut Cx, slot: Slot) {
        let command = self.command(slot);
        let (sqe, held) = (command.sqe, command.buf.len());
        match self.admit(cx, &sqe) {
            Ok(plan) if plan.transfer().len() == held => self.carry_out(cx, slot, &plan),
            Ok(_) => self.complete(cx, slot, CHANGED, 0),
            Err(fault) => self.fail(cx, slot, fault),
        }
    }

    fn carry_out(&mut self, cx: &mut Cx, slot: Slot, plan: &Plan) {
        match plan {
            Plan::Io(_) if self.command(slot).half != Half::Whole => self.half_is_ready(cx, slot),
            Plan::Io(plan) => self.execute_io(cx, slot, plan),
            Plan::Admin(plan) => self.execute_admin(cx, slot, plan),
        }
    }

    /// Ends a command without data.
    pub(super) fn complete(&mut self, cx: &mut Cx, slot: Slot, status: Status, result: u64) {
        if !status.is_success() {
            return self.fail(cx, slot, status);
        }
        self.respond(
            cx,
            slot,
            Done {
                status,
                result,
                data_len: 0,
            },
        );
    }

    /// Ends a command that fails. Its controller takes note of that.
    pub(super) fn fail(&mut self, cx: &mut Cx, slot: Slot, fault: impl Into<Fault>) {
        let fault = fault.into();
        let sqe = &self.commands[slot.index()].sqe;
        let status = match &self.queue {
            Queue::None => fault.status,
            Queue::Admin(queue) => queue.controller.note_failure(0, sqe, fault),
            Queue::Io(queue) => queue.controller.note_failure(queue.qid, sqe, fault),
        };
        self.respond(
            cx,
            slot,
            Done {
                status,
                result: fault.dw0.into(),
                data_len: 0,
            },
        );
    }

    #[inline]
    pub(super) fn respond(&mut self, cx: &mut Cx, slot: Slot, done: Done) {
        let command = self.command(slot);
        command.exclusive = None;
        if command.half == Half::Whole {
            return self.answer(cx, slot, done);
        }
        let is_first = command.sqe.fuse() == Fuse::First;
        let other = self.end_half(cx, slot, done.status);
        if is_first {
            self.answer(cx, slot, done);
        }
        if let Some((other, status)) = other {
            self.complete(cx, other, status, 0);
        }
        if !is_first {
            self.answer(cx, slot, done);
        }
    }

    #[inline]
    fn answer(&mut self, cx: &mut Cx, slot: Slot, done: Done) {
        // Few commands are ever waited for, and this drops the waiters.
        if !self.holds.is_empty() {
            self.holds.retain(|(index, _)| *index != slot.index());
        }
        if done.data_len == 0 {
            let buf = std::mem::take(&mut self.command(slot).buf);
            self.give_buffer(cx, buf);
        }
        self.tcp.complete(slot, done);
        self.mark_dirty(cx);
        self.resume(cx);
    }
}

impl AdminPlan {
    const fn transfer(&self) -> Transfer {
        match self {
            Self::Connect(_, len) => Transfer::FromHost(*len),
            Self::Command(transfer) => *transfer,
            _ => Transfer::None,
        }
    }
}

/// Bytes that a buffer takes up.
fn footprint(len: u32) -> usize {
    (len as usize).next_power_of_two().max(BLOCK)
}

/// Checks the data pointer against what the command moves and what came in the capsule
/// (NVMe/TCP 1.1 §3.3.2: one SGL descriptor, in the capsule or transport). `blocks`: it reads blocks.
fn check_pointer(
    sqe: &Sqe,
    transfer: Transfer,
    in_capsule: u32,
    blocks: bool,
) -> Result<(), Fault> {
    /// The descriptor's type and subtype.
    const KIND: Fault = Fault::field(39);
    let sgl = sqe.sgl();
    match (transfer, sgl.kind) {
        (Transfer::None, _) if in_capsule == 0 => Ok(()),
        (Transfer::None | Transfer::ToHost(_), SglDescriptor::IN_CAPSULE) => Err(KIND),
        // Hosts are promised no more than exact lengths (SGLS bit 18 is clear), but a reader that
        // offers more room for a structure than there is data does no harm. One that offers more for
        // blocks takes them for larger than they have become, and would take all of it for data.
        (Transfer::ToHost(len), SglDescriptor::TRANSPORT) if in_capsule == 0 => {
            if sgl.length == len || sgl.length > len && !blocks {
                Ok(())
            } else {
                Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into())
            }
        }
        (Transfer::FromHost(_), SglDescriptor::IN_CAPSULE) if sgl.address != 0 => {
            Err(Status::SGL_OFFSET_INVALID.dnr().into())
        }
        (Transfer::FromHost(len), SglDescriptor::IN_CAPSULE) => {
            let fits = sgl.length == len && in_capsule == len;
            if fits {
                Ok(())
            } else {
                Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into())
            }
        }
        (Transfer::FromHost(len), SglDescriptor::TRANSPORT) if in_capsule == 0 => {
            if sgl.length == len {
                Ok(())
            } else {
                Err(Status::DATA_SGL_LENGTH_INVALID.dnr().into())
            }
        }
        // Data in the capsule of a command whose descriptor says otherwise.
        (_, SglDescriptor::TRANSPORT) | (Transfer::None, _) => Err(KIND),
        _ => Err(Status::SGL_TYPE_INVALID.dnr().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_pointers() {
        use Transfer::{FromHost, None, ToHost};
        let (ic, tr) = (SglDescriptor::in_capsule, SglDescriptor::transport);
        let skewed = SglDescriptor {
            address: 8,
            ..ic(512)
        };
        let keyed = SglDescriptor {
            kind: 0x40,
            ..tr(512)
        };
        let cases: &[(Transfer, SglDescriptor, u32, Result<(), Status>)] = &[
            (None, keyed, 0, Ok(())),
            (None, ic(512), 512, Err(Status::INVALID_FIELD)),
            (None, tr(512), 512, Err(Status::INVALID_FIELD)),
            (ToHost(512), tr(512), 0, Ok(())),
            (ToHost(512), tr(4096), 0, Ok(())),
            (
                ToHost(512),
                tr(511),
                0,
                Err(Status::DATA_SGL_LENGTH_INVALID),
            ),
            (ToHost(512), tr(512), 512, Err(Status::INVALID_FIELD)),
            (ToHost(512), ic(512), 0, Err(Status::INVALID_FIELD)),
            (ToHost(512), keyed, 0, Err(Status::SGL_TYPE_INVALID)),
            (FromHost(512), ic(512), 512, Ok(())),
            (FromHost(512), tr(512), 0, Ok(())),
            (FromHost(512), skewed, 512, Err(Status::SGL_OFFSET_INVALID)),
            (
                FromHost(512),
                ic(512),
                511,
                Err(Status::DATA_SGL_LENGTH_INVALID),
            ),
            (
                FromHost(512),
                ic(511),
                511,
                Err(Status::DATA_SGL_LENGTH_INVALID),
            ),
            (
                FromHost(512),
                tr(513),
                0,
                Err(Status::DATA_SGL_LENGTH_INVALID),
            ),
            (FromHost(512), tr(512), 512, Err(Status::INVALID_FIELD)),
            (FromHost(512), keyed, 0, Err(Status::SGL_TYPE_INVALID)),
        ];
        for &(transfer, sgl, in_capsule, want) in cases {
            let mut sqe = Sqe::default();
            sqe.set_sgl(sgl);
            let got = check_pointer(&sqe, transfer, in_capsule, false);
            let got = got.map_err(|fault| fault.status);
            assert_eq!(
                got,
                want.map_err(Status::dnr),
                "{transfer:?} {sgl:?} {in_capsule}"
            );
        }
    }

    #[test]
    fn a_host_that_wants_larger_blocks_than_there_are_gets_none() {
        let mut sqe = Sqe::default();
        for (length, fits) in [(4095, false), (4096, true), (4097, false), (32768, false)] {
            sqe.set_sgl(SglDescriptor::transport(length));
            let got = check_pointer(&sqe, Transfer::ToHost(4096), 0, true);
            assert_eq!(got.is_ok(), fits, "{length}");
        }
    }
}

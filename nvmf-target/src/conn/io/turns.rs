//! Long requests of devices that carry them out on the reactor's thread.
//!
//! A host may have thousands of commands under way each of which keeps such a device busy for
//! seconds. They go in steps, and in each turn of the reactor there are steps for so many bytes
//! only; the others wait for their turn, in which their connections take turns.

use super::{NsRef, STRIDE, Step};
use crate::conn::Conn;
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::collections::VecDeque;

/// What a reactor does of that in its turn.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Connections with steps that wait.
    waiting: VecDeque<u64>,
    /// Bytes of the steps of this turn.
    spent: u64,
    /// A step that has waited is taken: it may.
    serving: bool,
    /// One has been taken in this turn.
    served: bool,
}

impl Turns {
    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A turn of the reactor begins.
    pub(crate) const fn begin(&mut self) {
        self.spent = 0;
        self.served = false;
    }

    /// The connection whose step is next in this turn, if there is to be one.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let may = self.spent < STRIDE || !self.served;
        let next = may.then(|| self.waiting.pop_front()).flatten();
        self.serving = next.is_some();
        self.served |= self.serving;
        next
    }

    /// A connection has further steps.
    pub(crate) fn again(&mut self, conn: u64) {
        self.waiting.push_back(conn);
    }

    fn admit(&self) -> bool {
        self.serving || (self.waiting.is_empty() && self.spent < STRIDE)
    }
}

impl Conn {
    /// The lane for a step of a command that may be taken in this turn. `None`: it will be taken
    /// later, and until then the command counts as being in a backend.
    pub(super) fn has_turn(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        step: Step,
    ) -> Result<Option<usize>, Status> {
        let lane = self.lane(cx, ns)?;
        if !cx.lanes.is_inline(lane) || cx.turns.admit() {
            return Ok(Some(lane));
        }
        if self.later.is_empty() {
            cx.turns.again(self.id);
        }
        self.later.push_back(slot);
        self.in_flight += 1;
        cx.in_flight += 1;
        let command = self.command(slot);
        command.next = step;
        command.parts += 1;
        command.lane = lane;
        Ok(None)
    }

    /// A step for so many bytes is taken.
    pub(super) fn spend(cx: &mut Cx, lane: usize, bytes: u64) {
        if cx.lanes.is_inline(lane) {
            cx.turns.spent += bytes;
        }
    }

    /// Takes a step that waits for its turn; true if there are others.
    pub(crate) fn take_turn(&mut self, cx: &mut Cx) -> bool {
        while let Some(slot) = self.later.pop_front() {
            cx.in_flight -= 1;
            if self.came_back(cx.now) {
                self.command(slot).parts -= 1;
                self.proceed(cx, slot);
                break;
            }
        }
        !self.later.is_empty()
    }

    /// The connection ends: nothing of it waits for a turn any more, behind those of all others.
    pub(in crate::conn) fn forgo_turns(&mut self, cx: &mut Cx) {
        if self.later.is_empty() {
            return;
        }
        let id = self.id;
        cx.turns.waiting.retain(|&conn| conn != id);
        for _ in std::mem::take(&mut self.later) {
            cx.in_flight -= 1;
            self.came_back(cx.now);
        }
    }

    /// Ends a command that waits for its turn; false if it does not.
    pub(in crate::conn) fn forgo_turn(&mut self, cx: &mut Cx, slot: Slot) -> bool {
        let Some(at) = self.later.iter().position(|&of| of == slot) else {
            return false;
        };
        self.later.remove(at);
        if self.later.is_empty() {
            let id = self.id;
            cx.turns.waiting.retain(|&conn| conn != id);
        }
        cx.in_flight -= 1;
        if self.came_back(cx.now) {
            self.command(slot).parts -= 1;
            self.end(cx, slot, Status::ABORT_REQUESTED);
        }
        true
    }
}

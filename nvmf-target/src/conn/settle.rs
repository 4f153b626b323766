//! Admin commands that are over when what was written before is safe.

use super::io::NOWHERE;
use super::{Conn, Queue};
use crate::buf::IoBuf;
use crate::ctrl::NsEntry;
use crate::ctrl::admin::Settle;
use crate::ns::{Op, Route, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::sync::Arc;

/// A command whose namespaces are being seen to, one after the other.
#[derive(Debug)]
pub(super) struct Settling {
    slot: Slot,
    left: Settle,
    /// The one whose write gate is being closed.
    fenced: Option<Arc<NsEntry>>,
}

impl Conn {
    /// Begins to see to a command's namespaces; the command ends when all are done.
    pub(super) fn settle(&mut self, cx: &mut Cx, slot: Slot, left: Settle) {
        if let Queue::Admin(queue) = &mut self.queue {
            queue.settling.push(Settling {
                slot,
                left,
                fenced: None,
            });
            self.settle_next(cx, slot);
        }
    }

    fn settling(&mut self, slot: Slot) -> Option<&mut Settling> {
        match &mut self.queue {
            Queue::Admin(queue) => queue.settling.iter_mut().find(|s| s.slot == slot),
            Queue::None | Queue::Io(_) => None,
        }
    }

    fn settle_next(&mut self, cx: &mut Cx, slot: Slot) {
        loop {
            let Some(settling) = self.settling(slot) else {
                return;
            };
            let Some(entry) = settling.left.namespaces.pop() else {
                return self.end_settling(cx, slot, Status::SUCCESS);
            };
            if settling.left.fence {
                let gate = Arc::clone(&entry.shared.gate);
                settling.fenced = Some(entry);
                return self.close_gate(cx, slot, &gate);
            }
            if self.flush_entry(cx, slot, &entry) {
                return;
            }
        }
    }

    /// The write gate is closed: all that was being written has been. It may open again, for
    /// nothing more passes the checks before it.
    pub(super) fn on_fenced(&mut self, cx: &mut Cx, slot: Slot) {
        let fenced = self.settling(slot).and_then(|s| s.fenced.take());
        let flushing = fenced.is_some_and(|entry| self.flush_entry(cx, slot, &entry));
        if !flushing {
            self.settle_next(cx, slot);
        }
    }

    /// A flush of the admin queue is done: for a command, or else for a shutdown.
    pub(super) fn on_admin_flush(&mut self, cx: &mut Cx, route: Route, status: Status) {
        let slot = route.slot;
        if self.settling(slot).is_none() {
            if let Queue::Admin(admin) = &mut self.queue {
                admin.on_flushed(cx, route.lane, status);
            }
            return;
        }
        if self.is_mute() {
            return;
        }
        let command = self.command(slot);
        command.parts -= 1;
        if !status.is_success() {
            self.end_settling(cx, slot, status);
        } else if command.aborted {
            self.end_settling(cx, slot, Status::ABORT_REQUESTED);
        } else {
            self.settle_next(cx, slot);
        }
    }

    /// Flushes a namespace that needs it and is still there; false if nothing is under way.
    fn flush_entry(&mut self, cx: &mut Cx, slot: Slot, entry: &NsEntry) -> bool {
        let Queue::Admin(queue) = &self.queue else {
            return false;
        };
        let volatile = entry.info.volatile_cache && entry.info.caps.flush == Support::Native;
        let view = queue.controller.view();
        let there = view
            .get(entry.nsid)
            .is_some_and(|seen| seen.entry.uid == entry.uid);
        if !volatile || !there {
            return false;
        }
        let lane = match cx.lanes.get(entry.uid) {
            Some(lane) => Ok(lane),
            None => cx.lanes.open(entry, &cx.poller, &cx.mailbox),
        };
        match lane {
            Ok(lane) => {
                let conn = self.id;
                let route = Route { conn, slot, lane };
                let (shift, none) = (entry.info.lba_shift, IoBuf::empty());
                let request = cx.requests.make(Op::Flush, shift, NOWHERE, none, route);
                self.launch(cx, slot, lane, request);
            }
            Err(status) => self.end_settling(cx, slot, status),
        }
        true
    }

    pub(super) fn end_settling(&mut self, cx: &mut Cx, slot: Slot, status: Status) {
        if let Queue::Admin(queue) = &mut self.queue {
            queue.settling.retain(|settling| settling.slot != slot);
        }
        self.complete(cx, slot, status, 0);
        self.flush_for_shutdown(cx);
    }
}

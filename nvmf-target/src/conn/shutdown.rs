//! Shutdown of a controller (CC.SHN): what its host has written is brought to stable storage before
//! CSTS.SHST says that the shutdown is complete (NVMe Base 2.1 §3.6). Where that fails, CSTS.CFS says
//! so: a Property Set of CC has had its response long ago, and there is no command to fail.

use super::admin::AdminQueue;
use super::{Conn, Queue};
use crate::buf::IoBuf;
use crate::chatter::limited;
use crate::ctrl::NsShared;
use crate::ns::{LbaRange, Op, Route, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::wire::Status;
use std::sync::Arc;

impl Conn {
    /// Flushes the namespaces of a controller whose I/O queues have ended for a shutdown.
    pub(super) fn flush_for_shutdown(&mut self, cx: &mut Cx) {
        let Queue::Admin(admin) = &mut self.queue else {
            return;
        };
        // The requests of a command that waits for flushes, too, could be taken for those of the
        // shutdown, and the other way round: it ends first.
        if !admin.settling.is_empty() || !admin.controller.begin_flush() {
            return;
        }
        let view = admin.controller.view();
        for seen in view.iter() {
            let entry = &seen.entry;
            if !entry.info.volatile_cache || entry.info.caps.flush != Support::Native {
                continue;
            }
            let lane = match cx.lanes.get(entry.uid) {
                Some(lane) => Ok(lane),
                None => cx.lanes.open(entry, &cx.poller, &cx.mailbox),
            };
            let lane = match lane {
                Ok(lane) => lane,
                Err(status) => {
                    admin.not_flushed(cx, &entry.shared, status);
                    continue;
                }
            };
            let route = Route {
                conn: self.id,
                slot: Slot::default(),
                lane,
            };
            let nowhere = LbaRange { slba: 0, blocks: 0 };
            let buf = IoBuf::empty();
            let request = cx
                .requests
                .make(Op::Flush, entry.info.lba_shift, nowhere, buf, route);
            admin.flushing.push((lane, Arc::clone(&entry.shared)));
            self.in_flight += 1;
            cx.in_flight += 1;
            cx.lanes.submit(lane, request);
        }
        admin.end_flush();
    }
}

impl AdminQueue {
    /// A request of [`Conn::flush_for_shutdown`] to a lane is done.
    pub(super) fn on_flushed(&mut self, cx: &Cx, lane: usize, status: Status) {
        if let Some(at) = self.flushing.iter().position(|of| of.0 == lane) {
            let (_, namespace) = self.flushing.swap_remove(at);
            if !status.is_success() {
                self.not_flushed(cx, &namespace, status);
            }
        }
        self.end_flush();
    }

    /// The shutdown is complete if no Flush is left.
    fn end_flush(&mut self) {
        if self.flushing.is_empty() {
            let safe = !std::mem::take(&mut self.unflushed);
            self.controller.flushed(safe);
        }
    }

    fn not_flushed(&mut self, cx: &Cx, namespace: &NsShared, status: Status) {
        self.unflushed = true;
        limited!(
            Warn,
            namespace.flush_chatter,
            cx.now,
            "{}: its cache could not be flushed in the shutdown of controller {}: {status}",
            namespace.name,
            self.controller.cntlid
        );
    }
}

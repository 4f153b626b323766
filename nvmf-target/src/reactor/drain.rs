//! The end of a reactor, and the end of what it has written: caches are flushed in a shutdown of the
//! target, and before the lane of a namespace that is detached goes.

use super::Reactor;
use crate::buf::IoBuf;
use crate::chatter::{debug, error};
use crate::conn::Conn;
use crate::ctrl::NsEntry;
use crate::ns::{LbaRange, Op, Route};
use nvmf_proto::tcp::Slot;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// `Route::conn` of requests that the reactor makes for itself.
pub(super) const NO_CONN: u64 = u64::MAX;
/// In a shutdown: nanoseconds between two looks at hosts that take their time.
pub(super) const DRAIN_STEP: u64 = 100_000_000;

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// Connections finish what they have, and backends flush.
    Draining,
    Done,
}

impl Reactor {
    pub(super) fn begin_shutdown(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Draining;
        self.draining_since = self.cx.now;
        self.cx.draining = true;
        let Self { conns, cx, .. } = self;
        conns.iter_mut().for_each(|conn| conn.start_drain(cx));
    }

    pub(super) fn advance_shutdown(&mut self) {
        if self.phase != Phase::Draining {
            return;
        }
        for id in self.conns.ids() {
            if let Some(conn) = self.conns.get(id) {
                conn.drain(&mut self.cx, self.draining_since);
            }
            self.bury(id);
        }
        if self.cx.in_flight > 0 {
            return;
        }
        if !self.cx.flushed {
            // At once: what is acknowledged must not depend on hosts that take their time.
            debug!("backends flush");
            self.cx.flushed = true;
            self.flush_backends();
        }
        if self.conns.len() == 0 && self.cx.in_flight == 0 {
            self.finish();
        }
    }

    /// There is no time left for the shutdown. Hosts that it still waits for get no answer; what
    /// backends still have is what the target did not do.
    pub(super) fn cut_off(&mut self) {
        if self.phase == Phase::Done {
            return;
        }
        self.finish();
        let Self { conns, cx, .. } = self;
        conns.iter_mut().for_each(|conn| conn.cut_off(cx));
    }

    fn finish(&mut self) {
        self.phase = Phase::Done;
        self.complete = self.cx.in_flight == 0 && self.cx.flushed;
    }

    /// Brings to stable storage what hosts have written through this reactor.
    fn flush_backends(&mut self) {
        let subsystems = self.cx.core.subsystems();
        let tables: Vec<_> = subsystems.iter().map(|s| s.table()).collect();
        let attached = || tables.iter().flat_map(|table| table.iter());
        let is_attached = |uid: &u64| attached().any(|entry| entry.uid == *uid);
        if !self.cx.lanes.given_up().iter().all(is_attached) {
            self.not_flushed();
        }
        for entry in attached().filter(|entry| entry.info.volatile_cache) {
            self.flush_namespace(entry);
        }
        self.cx.lanes.commit(&self.cx.poller);
        self.completions();
    }

    /// Flushes a namespace that has, or had, a lane here.
    fn flush_namespace(&mut self, entry: &Arc<NsEntry>) {
        let cx = &mut self.cx;
        let lane = match cx.lanes.get(entry.uid) {
            Some(lane) => Ok(lane),
            // Its lane has panicked. What was written through that is in the device.
            None if cx.lanes.given_up().contains(&entry.uid) => {
                cx.lanes.open(entry, &cx.poller, &cx.mailbox)
            }
            None => return,
        };
        match lane {
            Ok(lane) => self.flush_lane(lane),
            Err(status) => {
                error!("{}: it cannot be flushed: {status}", entry.shared.name);
                self.not_flushed();
            }
        }
    }

    fn flush_lane(&mut self, lane: usize) {
        let route = Route {
            conn: NO_CONN,
            slot: Slot::default(),
            lane,
        };
        let nowhere = LbaRange { slba: 0, blocks: 0 };
        let buf = IoBuf::empty();
        let request = self.cx.requests.make(Op::Flush, 9, nowhere, buf, route);
        self.cx.in_flight += 1;
        self.cx.lanes.submit(lane, request);
    }

    /// A namespace is detached. `volatile`: it has a volatile cache.
    pub(super) fn detach(&mut self, uid: u64, volatile: bool) {
        let lanes = &mut self.cx.lanes;
        if lanes.detach(uid, volatile, &self.cx.poller) {
            self.not_flushed();
        }
        self.conns.iter_mut().for_each(Conn::forget_detached);
        self.flush_detached();
    }

    /// Flushes what the last commands on lanes have left behind whose namespaces are detached.
    pub(super) fn flush_detached(&mut self) {
        while let Some(lane) = self.cx.lanes.next_to_flush() {
            self.flush_lane(lane);
        }
    }

    /// What hosts have written may not be on stable storage, and no command can tell them.
    pub(super) fn not_flushed(&self) {
        self.cx.core.unflushed.store(true, Ordering::Release);
    }
}

//! The life of a controller: CC and CSTS, its I/O queues, and how they end.

use super::super::connect::{Caller, Refusal};
use super::super::{ConnRef, lock};
use super::Controller;
use super::events::Events;
use super::settings::Settings;
use super::stats::{QueueStats, Totals};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::fabrics::{ConnectCommand, ConnectData, InvalidParameter};
use nvmf_proto::wire::property::{Cc, Csts};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far a shutdown of a controller (CC.SHN) has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ctrl) enum Shutdown {
    /// There is none, or it is complete: see CSTS.SHST.
    #[default]
    None,
    /// The I/O queues end.
    Ending,
    /// The admin queue's reactor brings to stable storage what the namespaces have in caches.
    Flushing,
}

/// What becomes of the Connect of an I/O queue that has passed the other checks.
#[derive(Debug)]
pub(in crate::ctrl) enum Join {
    Now(Arc<QueueStats>),
    /// When the queue that has the QID now is gone.
    Later,
}

#[derive(Debug)]
pub(in crate::ctrl) struct State {
    pub(in crate::ctrl) cc: Cc,
    pub(in crate::ctrl) csts: Csts,
    /// CC.EN was cleared, and there are I/O queues still.
    pub(in crate::ctrl) resetting: bool,
    pub(in crate::ctrl) shutdown: Shutdown,
    /// Since when the controller has not been in use, if it is not.
    pub(in crate::ctrl) unused_since: Time,
    pub(super) kato_ms: u32,
    pub(super) events: Events,
    pub(super) settings: Settings,
    /// What the host reads the persistent event log from.
    pub(super) reporting_context: Option<Arc<[u8]>>,
    /// Number of I/O queues granted by Set Features; none before.
    granted: Option<u16>,
    queues: BTreeMap<u16, (ConnRef, Arc<QueueStats>)>,
    /// By QID: the connection whose Connect waits for the queue that has the QID to be gone.
    held: BTreeMap<u16, ConnRef>,
    /// Counters of queues that are gone.
    past: Totals,
    /// When a command was last seen on a queue that is gone.
    past_active: Time,
    /// The admin queue's connection has ended or is ending: no new queue may join.
    ending: bool,
    admin_gone: bool,
}

impl State {
    pub(super) fn new(kato_ms: u32, csts: Csts, now: Time) -> Self {
        Self {
            cc: Cc::default(),
            csts,
            resetting: false,
            shutdown: Shutdown::None,
            unused_since: now,
            kato_ms,
            events: Events::default(),
            settings: Settings::default(),
            reporting_context: None,
            granted: None,
            queues: BTreeMap::new(),
            held: BTreeMap::new(),
            past: Totals::default(),
            past_active: Time(0),
            ending: false,
            admin_gone: false,
        }
    }

    /// When a command was last seen on an I/O queue.
    pub(super) fn last_active(&self) -> Time {
        let live = self.queues.values().map(|(_, stats)| stats.last_active());
        live.max().unwrap_or(Time(0)).max(self.past_active)
    }

    pub(super) fn totals(&self) -> Totals {
        self.queues
            .values()
            .fold(self.past, |sum, (_, stats)| sum.plus(stats.totals()))
    }

    /// The connections of the I/O queues.
    pub(super) fn queue_connections(&self) -> impl Iterator<Item = &ConnRef> {
        self.queues.values().map(|(conn, _)| conn)
    }

    /// Whether commands other than Fabrics ones may run.
    pub(super) fn in_use(&self) -> bool {
        let up = self.cc.en() && self.csts.rdy() && self.csts.shst() == Csts::SHST_NORMAL;
        up && !self.is_stopping()
    }

    pub(in crate::ctrl) fn is_stopping(&self) -> bool {
        self.resetting || self.shutdown != Shutdown::None
    }

    /// Tells every I/O queue to end, and every Connect that waits for one to look again.
    pub(in crate::ctrl) fn stop_queues(&self) {
        for (conn, _) in self.queues.values() {
            conn.stop();
        }
        for conn in self.held.values() {
            conn.notify();
        }
    }

    /// Completes a reset once no I/O queue is left and no shutdown under way.
    pub(in crate::ctrl) fn finish_reset(&mut self) {
        if !self.queues.is_empty() || self.shutdown != Shutdown::None || !self.resetting {
            return;
        }
        self.resetting = false;
        // NVMe Base 2.1 §3.7.2, Controller Level Reset: features go back to their defaults, events
        // are forgotten. The host may have enabled the controller again meanwhile, or asked for a
        // shutdown on top.
        let shst = if self.cc.shn() == Cc::SHN_NONE {
            Csts::SHST_NORMAL
        } else {
            Csts::SHST_COMPLETE
        };
        self.csts = Csts::default()
            .with_rdy(self.cc.en())
            .with_shst(shst)
            .with_nssro(self.csts.nssro());
        self.events = Events::default();
        self.settings = Settings::default();
        self.reporting_context = None;
        self.granted = None;
    }
}

impl Controller {
    /// Lets an I/O queue join. The queue that has the QID already is ended first: its host has come
    /// back before its old connection was seen to die. There is never more than one queue of a QID,
    /// and of those that wait for it the last one to come gets it.
    pub(in crate::ctrl) fn add_queue(&self, qid: u16, caller: Caller) -> Result<Join, Refusal> {
        let Caller {
            conn, now, again, ..
        } = caller;
        let mut state = lock(&self.state);
        if state.ending {
            return Err(Refusal::data(ConnectData::CNTLID));
        }
        // NVMe Base 2.1 §3.3.1.1: I/O queues are created on an enabled controller, after Set
        // Features Number of Queues has said how many.
        if !state.in_use() {
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR));
        }
        let Some(granted) = state.granted else {
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR.dnr()));
        };
        if qid > granted {
            return Err(InvalidParameter::Command(ConnectCommand::QID).into());
        }
        if again && state.held.get(&qid) != Some(&conn) {
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR));
        }
        let in_use = state.queues.get(&qid).map(|(old, _)| old.stop()).is_some();
        let before = if in_use {
            state.held.insert(qid, conn.clone())
        } else {
            state.held.remove(&qid)
        };
        if let Some(before) = before.filter(|before| *before != conn) {
            before.notify();
        }
        if in_use {
            return Ok(Join::Later);
        }
        let stats = Arc::new(QueueStats::default());
        stats.active(now);
        state.queues.insert(qid, (conn, Arc::clone(&stats)));
        Ok(Join::Now(stats))
    }

    /// A connection waits for a QID no longer.
    pub(crate) fn forget_held(&self, qid: u16, conn: &ConnRef) {
        let mut state = lock(&self.state);
        if state.held.get(&qid) == Some(conn) {
            state.held.remove(&qid);
        }
    }

    /// Whether the admin queue's reactor is to flush now, for a shutdown: said once.
    pub(crate) fn begin_flush(&self) -> bool {
        let mut state = lock(&self.state);
        let now = state.shutdown == Shutdown::Ending && state.queues.is_empty();
        if now {
            state.shutdown = Shutdown::Flushing;
        }
        now
    }

    /// Caches have been flushed, or could not be: the shutdown is complete. `safe`: what was written
    /// is on stable storage.
    pub(crate) fn flushed(&self, safe: bool) {
        let mut state = lock(&self.state);
        state.shutdown = Shutdown::None;
        state.csts = state.csts.with_shst(Csts::SHST_COMPLETE);
        state.finish_reset();
        // As long as the host can see that it is complete, it can see how (NVMe Base 2.1, Controller
        // Fatal Status). A controller that has been reset meanwhile starts anew.
        if !safe && state.csts.shst() == Csts::SHST_COMPLETE {
            state.csts = state.csts.with_cfs(true);
        }
    }

    /// An I/O queue's connection is closed and none of its commands is in a backend any more.
    pub(crate) fn queue_gone(&self, qid: u16) {
        let last = {
            let mut state = lock(&self.state);
            if let Some((_, stats)) = state.queues.remove(&qid) {
                state.past = state.past.plus(stats.totals());
                // What the host did on this queue kept the controller alive, and still does.
                state.past_active = state.past_active.max(stats.last_active());
            }
            if let Some(next) = state.held.get(&qid) {
                next.notify();
            }
            state.finish_reset();
            state.admin_gone && state.queues.is_empty()
        };
        if last {
            self.subsystem.close_controller(self.cntlid);
        } else {
            // Shutdowns of the controller and of the target wait for this.
            self.admin.notify();
        }
    }

    /// Whether the association is ended or ending.
    pub(in crate::ctrl) fn is_ending(&self) -> bool {
        lock(&self.state).ending
    }

    /// Ends the association: every connection is told to close.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ending = true;
        state.stop_queues();
        self.admin.stop();
    }

    /// A fatal error: CSTS.CFS, then the end.
    pub(crate) fn fail(&self) {
        {
            let mut state = lock(&self.state);
            state.csts = state.csts.with_cfs(true);
        }
        self.end();
    }

    /// The admin queue's connection is gone.
    pub(crate) fn admin_gone(&self) {
        let last = {
            let mut state = lock(&self.state);
            state.ending = true;
            state.admin_gone = true;
            state.stop_queues();
            state.queues.is_empty()
        };
        if last {
            self.subsystem.close_controller(self.cntlid);
        }
    }

    /// I/O queues granted by Set Features.
    pub(crate) fn granted_queues(&self) -> Option<u16> {
        lock(&self.state).granted
    }

    /// Grants I/O queues; false if some exist already.
    pub(crate) fn grant_queues(&self, count: u16) -> bool {
        let mut state = lock(&self.state);
        let ok = state.queues.is_empty();
        if ok {
            state.granted = Some(count);
        }
        ok
    }

    /// The connection of an I/O queue.
    pub(crate) fn queue(&self, qid: u16) -> Option<ConnRef> {
        let state = lock(&self.state);
        state.queues.get(&qid).map(|(conn, _)| conn.clone())
    }

    /// How many I/O queues there are.
    pub(crate) fn io_queue_count(&self) -> usize {
        lock(&self.state).queues.len()
    }
}

#[cfg(test)]
mod tests;

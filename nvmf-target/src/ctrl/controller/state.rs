//! The life of a controller: CC and CSTS, its I/O queues, and how they end.

use super::super::connect::Refusal;
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

/// Why a controller is waiting for its I/O queues to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ctrl) enum Stopping {
    Reset,
    Shutdown,
}

#[derive(Debug)]
pub(in crate::ctrl) struct State {
    pub(in crate::ctrl) cc: Cc,
    pub(in crate::ctrl) csts: Csts,
    pub(in crate::ctrl) stopping: Option<Stopping>,
    pub(super) kato_ms: u32,
    pub(super) events: Events,
    pub(super) settings: Settings,
    /// What the host reads the persistent event log from.
    pub(super) reporting_context: Option<Arc<[u8]>>,
    /// Number of I/O queues granted by Set Features; none before.
    granted: Option<u16>,
    queues: BTreeMap<u16, (ConnRef, Arc<QueueStats>)>,
    /// Counters of queues that are gone.
    past: Totals,
    /// When a command was last seen on a queue that is gone.
    past_active: Time,
    /// The admin queue's connection has ended or is ending: no new queue may join.
    ending: bool,
    admin_gone: bool,
}

impl State {
    pub(super) fn new(kato_ms: u32) -> Self {
        Self {
            cc: Cc::default(),
            csts: Csts::default(),
            stopping: None,
            kato_ms,
            events: Events::default(),
            settings: Settings::default(),
            reporting_context: None,
            granted: None,
            queues: BTreeMap::new(),
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

    /// Tells every I/O queue to end.
    pub(in crate::ctrl) fn stop_queues(&self) {
        for (conn, _) in self.queues.values() {
            conn.stop();
        }
    }

    /// Completes a reset or shutdown once no I/O queue is left.
    pub(in crate::ctrl) fn finish_stopping(&mut self) {
        if !self.queues.is_empty() {
            return;
        }
        match self.stopping.take() {
            None => {}
            Some(Stopping::Reset) => {
                // NVMe Base 2.1 §3.7.2, Controller Level Reset: features go back to their
                // defaults, events are forgotten.
                // The host may have enabled the controller again meanwhile, or asked for a
                // shutdown on top.
                let shst = if self.cc.shn() == Cc::SHN_NONE {
                    Csts::SHST_NORMAL
                } else {
                    Csts::SHST_COMPLETE
                };
                self.csts = Csts::default().with_rdy(self.cc.en()).with_shst(shst);
                self.events = Events::default();
                self.settings = Settings::default();
                self.reporting_context = None;
                self.granted = None;
            }
            Some(Stopping::Shutdown) => self.csts = self.csts.with_shst(Csts::SHST_COMPLETE),
        }
    }
}

impl Controller {
    /// Lets an I/O queue join.
    pub(in crate::ctrl) fn add_queue(
        &self,
        qid: u16,
        conn: ConnRef,
        now: Time,
    ) -> Result<Arc<QueueStats>, Refusal> {
        let mut state = lock(&self.state);
        if state.ending {
            return Err(Refusal::data(ConnectData::CNTLID));
        }
        // NVMe Base 2.1 §3.3.1.1: I/O queues are created on an enabled controller, after Set
        // Features Number of Queues has said how many.
        let ready = state.cc.en() && state.csts.rdy() && state.csts.shst() == Csts::SHST_NORMAL;
        if !ready || state.stopping.is_some() {
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR));
        }
        let Some(granted) = state.granted else {
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR.dnr()));
        };
        if qid > granted {
            return Err(InvalidParameter::Command(ConnectCommand::QID).into());
        }
        if let Some((old, _)) = state.queues.get(&qid) {
            // The host may have come back before its old connection was seen to die: end that one,
            // and let the host try again.
            old.stop();
            return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR));
        }
        let stats = Arc::new(QueueStats::default());
        stats.active(now);
        state.queues.insert(qid, (conn, Arc::clone(&stats)));
        Ok(stats)
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
            state.finish_stopping();
            state.admin_gone && state.queues.is_empty()
        };
        if last {
            self.subsystem.close_controller(self.cntlid);
        } else {
            // In a shutdown the admin queue waits for this.
            self.admin.notify();
        }
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
mod tests {
    use super::*;
    use crate::ctrl::testing::{Rig, conn};

    #[test]
    fn traffic_on_a_queue_that_is_gone_still_counts() {
        let rig = Rig::nvm();
        let controller = &rig.controller;
        controller.admin_stats().active(Time(1));
        controller.grant_queues(1);
        rig.enable();
        let stats = controller.add_queue(1, conn(), Time(2)).unwrap();
        let at = Time(9_000_000_000);
        stats.active(at);
        let deadline = Some(at.after(5_000_000_000));
        assert_eq!(controller.keep_alive_deadline(), deadline);
        controller.queue_gone(1);
        assert_eq!(controller.keep_alive_deadline(), deadline);
    }
}

//! A controller: what a host opened with its first Connect, until its last connection is gone.

use super::connect::Refusal;
use super::{ConnRef, Kind, Subsystem, lock};
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::fabrics::{ConnectCommand, ConnectData, InvalidParameter};
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::{AsyncEvent, Lid};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::property::{Cc, Csts};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// NSIDs that the Changed Attached Namespace List can hold.
const CHANGED_MAX: usize = 1024;

/// A discovery controller without Keep Alive Timeout ends when its host has been silent this long.
const SILENT_DISCOVERY_MS: u32 = 120_000;

/// KAS: Keep Alive Timeout granularity, in units of 100 ms.
pub(super) const KAS: u16 = 1;

/// Counters of one queue, written by its reactor only and read by others.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct QueueStats {
    /// When a command was last seen, as a [`Time`].
    last_active: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl QueueStats {
    /// There is one writer, so an addition needs no atomic instruction.
    fn add(counter: &AtomicU64, n: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn active(&self, now: Time) {
        self.last_active.store(now.0, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: u64) {
        Self::add(&self.reads, 1);
        Self::add(&self.bytes_read, bytes);
    }

    pub(crate) fn written(&self, bytes: u64) {
        Self::add(&self.writes, 1);
        Self::add(&self.bytes_written, bytes);
    }

    fn totals(&self) -> Totals {
        Totals {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }
}

/// Sums of [`QueueStats`] over queues: what the SMART log shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

impl Totals {
    const fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads.wrapping_add(other.reads),
            writes: self.writes.wrapping_add(other.writes),
            bytes_read: self.bytes_read.wrapping_add(other.bytes_read),
            bytes_written: self.bytes_written.wrapping_add(other.bytes_written),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) cntlid: u16,
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: [u8; 16],
    /// The connection of the admin queue.
    admin: ConnRef,
    admin_stats: Arc<QueueStats>,
    pub(super) state: Mutex<State>,
}

/// Why a controller is waiting for its I/O queues to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    Reset,
    Shutdown,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) cc: Cc,
    pub(super) csts: Csts,
    pub(super) stopping: Option<Stopping>,
    kato_ms: u32,
    pub(super) events: Events,
    /// Number of I/O queues granted by Set Features; none before.
    pub(super) granted: Option<u16>,
    queues: BTreeMap<u16, (ConnRef, Arc<QueueStats>)>,
    /// Counters of queues that are gone.
    past: Totals,
    /// When a command was last seen on a queue that is gone.
    past_active: u64,
    /// The admin queue's connection has ended or is ending: no new queue may join.
    ending: bool,
    admin_gone: bool,
}

/// Asynchronous events (NVMe Base 2.1 §5.1.2).
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) config: AsyncEventConfig,
    pending: VecDeque<AsyncEvent>,
    /// Log pages whose event was raised and not yet cleared by reading the page: further events
    /// of the same page say nothing new.
    masked: BTreeSet<u8>,
    changed: BTreeSet<u32>,
}

impl Events {
    fn raise(&mut self, event: AsyncEvent) -> bool {
        let new = self.masked.insert(event.log_page.0);
        if new {
            self.pending.push_back(event);
        }
        new
    }

    /// The host has read a log page without Retain Asynchronous Event.
    fn clear(&mut self, page: Lid) {
        self.masked.remove(&page.0);
        self.pending.retain(|event| event.log_page != page);
    }
}

impl Controller {
    pub(super) fn new(
        subsystem: Arc<Subsystem>,
        cntlid: u16,
        hostnqn: Nqn,
        hostid: [u8; 16],
        kato_ms: u32,
        admin: ConnRef,
    ) -> Self {
        let state = State {
            cc: Cc::default(),
            csts: Csts::default(),
            stopping: None,
            kato_ms,
            events: Events::default(),
            granted: None,
            queues: BTreeMap::new(),
            past: Totals::default(),
            past_active: 0,
            ending: false,
            admin_gone: false,
        };
        let admin_stats = Arc::default();
        Self {
            subsystem,
            cntlid,
            hostnqn,
            hostid,
            admin,
            admin_stats,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn admin_stats(&self) -> Arc<QueueStats> {
        Arc::clone(&self.admin_stats)
    }

    /// Whether admin commands other than Fabrics ones may run.
    pub(crate) fn enabled(&self) -> bool {
        let state = lock(&self.state);
        state.cc.en() && state.stopping.is_none() && state.csts.rdy()
    }

    pub(crate) fn kato_ms(&self) -> u32 {
        lock(&self.state).kato_ms
    }

    /// Sets the Keep Alive Timeout; it starts to run at once.
    pub(crate) fn set_kato_ms(&self, kato_ms: u32) {
        lock(&self.state).kato_ms = kato_ms;
        self.admin.notify();
    }

    /// When the controller ends unless a command arrives before: every command on any queue counts
    /// (CTRATT.TBKAS). `None`: never.
    pub(crate) fn keep_alive_deadline(&self) -> Option<Time> {
        let state = lock(&self.state);
        let kato_ms = match (state.kato_ms, self.subsystem.kind) {
            (0, Kind::Nvm) => return None,
            (0, Kind::Discovery) => SILENT_DISCOVERY_MS,
            (ms, _) => ms,
        };
        let last = state
            .queues
            .values()
            .map(|(_, stats)| stats)
            .chain([&self.admin_stats])
            .map(|stats| stats.last_active.load(Ordering::Relaxed))
            .chain([state.past_active])
            .max()?;
        let kato_ms = u64::from(kato_ms).next_multiple_of(u64::from(KAS) * 100);
        Some(Time(last).after(kato_ms * 1_000_000))
    }

    pub(crate) fn totals(&self) -> Totals {
        let state = lock(&self.state);
        state
            .queues
            .values()
            .fold(state.past, |sum, (_, stats)| sum.plus(stats.totals()))
    }

    /// How many I/O queues there are.
    pub(crate) fn io_queue_count(&self) -> usize {
        lock(&self.state).queues.len()
    }

    /// Lets an I/O queue join.
    pub(super) fn add_queue(
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
                let last = stats.last_active.load(Ordering::Relaxed);
                state.past_active = state.past_active.max(last);
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

    /// A namespace was added, removed or changed.
    pub(crate) fn namespace_changed(&self, nsid: u32) {
        let raised = {
            let mut state = lock(&self.state);
            state.events.changed.insert(nsid);
            state
                .events
                .config
                .contains(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
                && state.events.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED)
        };
        if raised {
            self.admin.notify();
        }
    }

    /// The discovery log has changed.
    pub(crate) fn discovery_changed(&self) {
        let raised = {
            let mut state = lock(&self.state);
            state
                .events
                .config
                .contains(AsyncEventConfig::DISCOVERY_LOG)
                && state.events.raise(AsyncEvent::DISCOVERY_LOG_CHANGED)
        };
        if raised {
            self.admin.notify();
        }
    }

    /// The next event for an outstanding Asynchronous Event Request.
    pub(crate) fn next_event(&self) -> Option<AsyncEvent> {
        lock(&self.state).events.pending.pop_front()
    }

    /// The Changed Attached Namespace List: NSIDs in ascending order, one more than the log page
    /// can hold if there are that many. With `release` the host lets go of that many entries of
    /// the page, and the list starts anew if it has no others.
    pub(crate) fn changed_namespaces(&self, release: Option<usize>) -> Vec<u32> {
        let mut state = lock(&self.state);
        let changed = &mut state.events.changed;
        let list: Vec<u32> = changed.iter().copied().take(CHANGED_MAX + 1).collect();
        // More than the page can hold are one entry there: FFFFFFFFh.
        let shown = if list.len() > CHANGED_MAX {
            1
        } else {
            list.len()
        };
        if release.is_some_and(|entries| entries >= shown) {
            changed.clear();
        }
        list
    }

    /// A log page was read without Retain Asynchronous Event.
    pub(crate) fn clear_event(&self, page: Lid) {
        lock(&self.state).events.clear(page);
    }

    /// Asynchronous Event Configuration.
    pub(crate) fn event_config(&self) -> AsyncEventConfig {
        lock(&self.state).events.config
    }

    /// Sets the Asynchronous Event Configuration.
    pub(crate) fn set_event_config(&self, config: AsyncEventConfig) {
        lock(&self.state).events.config = config;
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
}

impl State {
    /// Tells every I/O queue to end.
    pub(super) fn stop_queues(&self) {
        for (conn, _) in self.queues.values() {
            conn.stop();
        }
    }

    /// Completes a reset or shutdown once no I/O queue is left.
    pub(super) fn finish_stopping(&mut self) {
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
                self.granted = None;
            }
            Some(Stopping::Shutdown) => self.csts = self.csts.with_shst(Csts::SHST_COMPLETE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SubsystemConfig;
    use crate::reactor::Mailbox;

    #[test]
    fn traffic_on_a_queue_that_is_gone_still_counts() {
        let mailbox = Mailbox::new().unwrap();
        let conn = |id| ConnRef {
            mailbox: Arc::clone(&mailbox),
            id,
        };
        let name = Nqn::new("nqn.2026-11.org.example:a").unwrap();
        let config = SubsystemConfig::new(name.as_str());
        let subsystem = Subsystem::nvm(name.clone(), &config);
        let controller = subsystem
            .open_controller(name, [1; 16], 5000, conn(1))
            .unwrap();
        controller.admin_stats().active(Time(1));
        controller.grant_queues(1);
        {
            let mut state = lock(&controller.state);
            state.cc = state.cc.with_en(true);
            state.csts = state.csts.with_rdy(true);
        }
        let stats = controller.add_queue(1, conn(2), Time(2)).unwrap();
        let at = Time(9_000_000_000);
        stats.active(at);
        let deadline = Some(at.after(5_000_000_000));
        assert_eq!(controller.keep_alive_deadline(), deadline);
        controller.queue_gone(1);
        assert_eq!(controller.keep_alive_deadline(), deadline);
    }
}

//! A reactor: one thread with its connections, its lanes and its buffers.
//!
//! A turn of the loop: learn what is ready, read and parse it, submit to the lanes as one batch,
//! take completions, and answer each connection with one gather write. Nothing in a turn blocks.

mod accept;
mod clock;
mod conns;
mod drain;
mod feed;
mod gate;
mod lanes;
mod mailbox;
mod poller;
mod share;

#[cfg(feature = "sim")]
pub(crate) use accept::Acceptor;
pub(crate) use accept::{
    AcceptorHandle, Closing, JOIN_STEP, LEAVE_WITHIN, is_current, join, spawn_acceptor,
};
#[cfg(feature = "sim")]
pub(crate) use clock::set_time;
pub(crate) use feed::Line;
pub(crate) use gate::{Exclusive, Gate, Wish};
pub(crate) use lanes::Lanes;
pub(crate) use mailbox::{Mailbox, Message};
pub(crate) use poller::{Poller, Ready};

use crate::Error;
use crate::buf::{BufPool, IoBuf};
use crate::chatter::error;
use crate::conn::{Conn, Turns, Wire};
use crate::ctrl::{Core, Guest, Listener};
use crate::ns::{Completion, Port, REQUEST_BYTES, RequestPool, Route, SPARE_REQUESTS};
pub(crate) use clock::now;
use conns::Conns;
use drain::{DRAIN_STEP, NO_CONN, Phase};
use feed::Shortage;
use lanes::LANE_TOKEN;
use nvmf_proto::tcp::{Time, TxList};
use nvmf_proto::wire::pdu::ADMIN_IN_CAPSULE_MAX;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// Poller token of the mailbox.
const MAILBOX_TOKEN: u64 = u64::MAX;
/// What one read may bring: see `conn::rx`.
const STAGE: usize = 320 << 10;
/// What one read brings at least to a queue, however much others have left behind.
pub(crate) const READ_MIN: usize = 16 << 10;
/// Bytes that connections may have left behind before reads become small.
pub(crate) const CARRY_MAX: usize = 4 << 20;
/// Headers and runs of one gather write.
const TX_HEADS: usize = 16 << 10;
const TX_SEGS: usize = 256;
/// The same for a connection that is no queue yet: an ICResp, a response, or a TermReq.
const EARLY_HEADS: usize = 512;
const EARLY_SEGS: usize = 4;
/// Bytes up to which a command is small, where buffers are short.
pub(crate) const SMALL: usize = 16 << 10;
/// Bytes of a list of the first kind.
pub(crate) const LIST_BYTES: usize = TxList::bytes(TX_HEADS, TX_SEGS);
/// Room on lists that grow with the load, so that early bursts allocate nothing.
const EARLY: usize = 256;
/// Completions that one poll of a lane makes.
const LANE_BUDGET: u32 = 256;
/// How often completions that make new ones are seen to in one turn: a command of many steps on a
/// device that completes at once is not to keep everything else waiting.
const COMPLETION_ROUNDS: usize = 16;
/// Capsules with as much data as they may have, for which [`Cx::reserve`] has room.
const RESERVE: usize = 16;

/// Emptied lists that a reactor keeps.
const SPARE_LISTS: usize = 32;
/// Bytes that a reactor takes at the most, beside buffers, connections and queues: what it has read
/// and connections have left behind, and what it keeps for later use.
pub(crate) const REACTOR_BYTES: usize =
    STAGE + CARRY_MAX + STAGE + SPARE_LISTS * LIST_BYTES + SPARE_REQUESTS * REQUEST_BYTES;

/// Bytes of the buffers that a reactor keeps for in-capsule data.
pub(crate) const fn reserve_bytes(in_capsule: u32) -> usize {
    let largest = if in_capsule > ADMIN_IN_CAPSULE_MAX {
        in_capsule
    } else {
        ADMIN_IN_CAPSULE_MAX
    };
    RESERVE * (largest as usize).next_power_of_two()
}

/// What a reactor's connections share.
pub(crate) struct Cx {
    pub(crate) core: Arc<Core>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) poller: Poller,
    pub(crate) pool: BufPool,
    /// For in-capsule data when `pool` has nothing. Such data stands in front of all other data of
    /// its connection: if it waited for buffers that commands before it hold, and these for their
    /// H2CData behind it, neither would ever come.
    pub(crate) reserve: BufPool,
    pub(crate) requests: RequestPool,
    pub(crate) lanes: Lanes,
    /// Where reads go before it is known what they bring.
    pub(crate) stage: Box<[u8]>,
    /// The time of this turn.
    pub(crate) now: Time,
    /// Connections with something to send.
    pub(crate) dirty: Vec<u64>,
    /// Connections with commands that wait for a buffer, in the order of their waiting.
    pub(crate) starved: VecDeque<u64>,
    pub(crate) line: Line,
    /// Long requests that are carried out on this thread.
    pub(crate) turns: Turns,
    /// Connections whose next bytes are in-capsule data that waits for a buffer.
    pub(crate) blocked: VecDeque<u64>,
    /// Connections that have used up their share of this turn and go on in the next.
    pub(crate) ready: Vec<u64>,
    /// Memory for bytes that connections cannot parse yet.
    pub(crate) carried: usize,
    timers: BinaryHeap<Reverse<(Time, u64)>>,
    #[expect(clippy::vec_box, reason = "a list changes hands without being copied")]
    spare_lists: Vec<Box<TxList>>,
    /// Requests in backends.
    pub(crate) in_flight: usize,
    /// No new commands are taken: the target is shutting down.
    pub(crate) draining: bool,
    /// Backends have flushed since the last command completed; of interest in a shutdown.
    pub(crate) flushed: bool,
}

impl Cx {
    /// An empty list for a connection that has something to send, a small one if it is `early`: no
    /// queue yet.
    pub(crate) fn take_list(&mut self, early: bool) -> Box<TxList> {
        if early {
            return Box::new(TxList::new(EARLY_HEADS, EARLY_SEGS));
        }
        self.spare_lists
            .pop()
            .unwrap_or_else(|| Box::new(TxList::new(TX_HEADS, TX_SEGS)))
    }

    /// Takes an emptied list back.
    pub(crate) fn give_list(&mut self, mut list: Box<TxList>) {
        if list.heads().len() == TX_HEADS && self.spare_lists.len() < SPARE_LISTS {
            list.clear();
            self.spare_lists.push(list);
        }
    }

    /// Takes a buffer back, whichever pool it is from.
    pub(crate) fn give_buffer(&mut self, buf: IoBuf) {
        if self.reserve.owns(&buf) {
            self.reserve.give(buf);
        } else {
            self.pool.give(buf);
        }
    }

    /// Makes the stage anew if a panic has taken it along.
    pub(crate) fn restore_stage(&mut self) {
        if self.stage.is_empty() {
            self.stage = vec![0; STAGE].into_boxed_slice();
        }
    }

    fn free_bytes(&self) -> usize {
        self.pool.free_bytes() + self.reserve.free_bytes()
    }

    /// Takes in what was dropped on other threads; says whether there was anything.
    fn reclaim(&mut self) -> bool {
        let any = self.pool.reclaim();
        self.reserve.reclaim() || any
    }

    /// Calls `Conn::on_timer` at `at` or soon after.
    pub(crate) fn set_timer(&mut self, at: Time, conn: u64) {
        self.timers.push(Reverse((at, conn)));
    }
}

pub(crate) struct Reactor {
    cx: Cx,
    conns: Conns,
    phase: Phase,
    /// When the shutdown began.
    draining_since: Time,
    /// At the end: nothing was left in backends, and they had flushed.
    complete: bool,
    completions: Vec<Completion>,
    messages: Vec<Message>,
    /// The connections to look at in this turn.
    ready: Vec<u64>,
    /// When the last turn that found work ended.
    last_work: Time,
    busy_poll: u64,
    /// There may be completions that this turn had no time for.
    backlog: bool,
    /// Free bytes of buffers when commands that wait were last given some.
    fed_at: usize,
    /// Commands wait for buffers.
    shortage: Option<Shortage>,
    /// Of the connections that wait for more, those that were given a buffer in this turn.
    fed: VecDeque<u64>,
}

/// What a reactor is made of that may fail to be there; made where the error can be told.
pub(crate) struct Parts {
    core: Arc<Core>,
    index: usize,
    mailbox: Arc<Mailbox>,
    poller: Poller,
    pool: BufPool,
    reserve: BufPool,
}

impl Parts {
    pub(crate) fn new(
        core: &Arc<Core>,
        index: usize,
        mailbox: &Arc<Mailbox>,
    ) -> Result<Self, Error> {
        let config = &core.config;
        let failed = |err| cannot_start(index, err);
        let bytes = config.buffer_bytes / config.reactors;
        let max = config.max_transfer.max(config.in_capsule) as usize;
        let pool = BufPool::new(bytes, max, mailbox.waker.clone()).map_err(failed)?;
        let reserve = reserve_bytes(config.in_capsule);
        let reserve = BufPool::new(reserve, reserve / RESERVE, mailbox.waker.clone());
        let reserve = reserve.map_err(failed)?;
        let poller = Poller::new().map_err(failed)?;
        poller
            .add_level(&mailbox.waker, MAILBOX_TOKEN)
            .map_err(failed)?;
        Ok(Self {
            core: Arc::clone(core),
            index,
            mailbox: Arc::clone(mailbox),
            poller,
            pool,
            reserve,
        })
    }
}

fn cannot_start(index: usize, err: io::Error) -> Error {
    Error::io(format!("cannot start reactor {index}"), err)
}

/// Starts a reactor's thread. In the end it says whether everything that backends were given was
/// done and flushed, or the reactor was told to quit before that.
pub(crate) fn spawn(
    core: &Arc<Core>,
    index: usize,
    mailbox: &Arc<Mailbox>,
) -> Result<JoinHandle<bool>, Error> {
    let parts = Parts::new(core, index, mailbox)?;
    let run = move || {
        let mut reactor = Reactor::new(parts);
        Port::bind_to_thread(reactor.port());
        while reactor.phase != Phase::Done {
            reactor.wait();
            reactor.turn();
        }
        let complete = reactor.complete;
        drop(reactor);
        Port::unbind_from_thread();
        complete
    };
    std::thread::Builder::new()
        .name(format!("nvmf-reactor-{index}"))
        .spawn(run)
        .map_err(|err| cannot_start(index, err))
}

impl Reactor {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            core,
            index,
            mailbox,
            poller,
            pool,
            reserve,
        } = parts;
        let line = Line::new(core.config.stall_timeout);
        let busy_poll = u64::try_from(core.config.busy_poll.as_nanos()).unwrap_or(u64::MAX);
        Self {
            cx: Cx {
                requests: RequestPool::new(Arc::clone(&mailbox.port)),
                core,
                mailbox,
                poller,
                lanes: Lanes::new(index, pool.total_bytes()),
                pool,
                reserve,
                stage: vec![0; STAGE].into_boxed_slice(),
                now: now(),
                dirty: Vec::with_capacity(EARLY),
                starved: VecDeque::new(),
                line,
                turns: Turns::default(),
                blocked: VecDeque::new(),
                ready: Vec::with_capacity(EARLY),
                carried: 0,
                timers: BinaryHeap::new(),
                spare_lists: Vec::new(),
                in_flight: 0,
                draining: false,
                flushed: false,
            },
            conns: Conns::default(),
            phase: Phase::Running,
            draining_since: Time(0),
            complete: false,
            completions: Vec::with_capacity(EARLY),
            messages: Vec::new(),
            ready: Vec::with_capacity(EARLY),
            last_work: Time(0),
            busy_poll,
            backlog: false,
            fed_at: 0,
            shortage: None,
            fed: VecDeque::new(),
        }
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.cx.mailbox.port
    }

    /// Does what there is to do; true if there was anything.
    fn turn(&mut self) -> bool {
        self.cx.turns.begin();
        let mut worked = self.messages();
        let mut ready = std::mem::take(&mut self.ready);
        ready.append(&mut self.cx.ready);
        for id in ready.drain(..) {
            worked = true;
            if let Some(conn) = self.conns.get(id) {
                conn.on_ready(&mut self.cx);
            }
            self.bury(id);
        }
        self.ready = ready;
        // Behind the reading, so that no Keep Alive is overlooked that has come in time.
        self.timers();
        worked |= self.long_steps();
        self.cx.lanes.commit_turn(&self.cx.poller);
        worked |= self.completions();
        worked |= self.cx.reclaim();
        self.flush();
        if self.feed() {
            worked = true;
            self.cx.lanes.commit(&self.cx.poller);
            self.completions();
            self.flush();
        }
        self.end_stuck();
        self.advance_shutdown();
        self.publish();
        if worked {
            self.last_work = now();
        }
        worked
    }

    /// Waits for readiness: not at all while there is work or within the spin, else until the next
    /// timer.
    fn wait(&mut self) {
        let spinning =
            self.busy_poll > 0 && self.cx.now.0.saturating_sub(self.last_work.0) < self.busy_poll;
        let idle = !spinning && !self.has_work();
        let timeout = if idle && self.cx.mailbox.waker.prepare_sleep() {
            let left = |at: Time| Duration::from_nanos(at.0.saturating_sub(now().0));
            self.deadline().map(left)
        } else {
            Some(Duration::ZERO)
        };
        self.look(timeout);
        self.cx.mailbox.waker.awake();
    }

    /// Whether there is something to do though nothing comes.
    fn has_work(&self) -> bool {
        // Buffers came back after commands that wait for some had been looked at.
        let owed = !(self.cx.starved.is_empty() && self.cx.blocked.is_empty())
            && (self.cx.free_bytes() != self.fed_at || self.cx.line.has_changed());
        owed || self.cx.turns.has_work()
            || self.cx.lanes.owes()
            || !self.cx.ready.is_empty()
            || self.backlog
    }

    /// When there is something to do though nothing comes.
    fn deadline(&self) -> Option<Time> {
        let timer = self.cx.timers.peek().map(|Reverse((at, _))| *at);
        let drain = (self.phase == Phase::Draining).then(|| self.cx.now.after(DRAIN_STEP));
        let shortage = self.shortage.as_ref().map(Shortage::next_look);
        let line = self.cx.line.next_stage();
        [timer, drain, shortage, line].into_iter().flatten().min()
    }

    /// Learns what is ready, waiting for it if need be.
    fn look(&mut self, timeout: Option<Duration>) {
        let Self {
            cx, conns, ready, ..
        } = self;
        let Cx {
            poller,
            lanes,
            mailbox,
            ..
        } = cx;
        let waited = poller.wait(timeout, |token, readiness| {
            if token == MAILBOX_TOKEN {
                mailbox.waker.drain();
            } else if token & LANE_TOKEN != 0 {
                lanes.poll((token & !LANE_TOKEN) as usize, LANE_BUDGET, poller);
            } else if let Some(conn) = conns.get(token) {
                conn.set_ready(readiness);
                ready.push(token);
            }
        });
        if let Err(err) = waited {
            error!("waiting for events failed: {err}");
        }
        self.cx.now = now();
    }

    fn messages(&mut self) -> bool {
        let mut messages = std::mem::take(&mut self.messages);
        self.cx.mailbox.take(&mut messages);
        let any = !messages.is_empty();
        for message in messages.drain(..) {
            match message {
                Message::Accept(stream, listener, guest) => self.accept(stream, listener, guest),
                Message::Evict(id) => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.make_way(&mut self.cx);
                    }
                    self.bury(id);
                }
                Message::Stop(id) => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.close(&mut self.cx, "ended by its controller");
                    }
                    self.bury(id);
                }
                Message::Notify(id) => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.on_notify(&mut self.cx);
                    }
                    self.bury(id);
                }
                Message::CatchUp(id, inquiry) => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.catch_up(&mut self.cx);
                    }
                    self.bury(id);
                    drop(inquiry);
                }
                Message::Abort {
                    conn: id,
                    cid,
                    asker,
                    slot,
                } => {
                    let aborted = self.abort(id, cid);
                    asker.aborted(slot, aborted);
                }
                Message::Aborted {
                    conn: id,
                    slot,
                    aborted,
                } => {
                    if let Some(conn) = self.conns.get(id) {
                        conn.on_aborted(&mut self.cx, slot, aborted);
                    }
                    self.bury(id);
                }
                Message::Changed { conn, slot, status } => {
                    self.cx.in_flight -= 1;
                    if let Some(conn) = self.conns.get(conn) {
                        conn.on_changed(&mut self.cx, slot, status);
                    }
                    self.bury(conn);
                }
                Message::Quiesce { conn, nsid, waiter } => {
                    if let Some(conn) = self.conns.get(conn) {
                        conn.on_quiesce(&mut self.cx, nsid, &waiter);
                    }
                    self.bury(conn);
                }
                Message::Unlistened(listener) => self.end_all_of(&listener),
                Message::Detached { uid, volatile } => self.detach(uid, volatile),
                Message::Gate {
                    uid,
                    lane,
                    closes_for,
                } => self.cx.lanes.set_gate(uid, lane, closes_for),
                Message::Depth { uid, lane, depth } => self.cx.lanes.set_depth(uid, lane, depth),
                Message::Exclusive(id, slot, exclusive) => match self.conns.get(id) {
                    Some(conn) => {
                        conn.on_exclusive(&mut self.cx, slot, exclusive);
                        self.bury(id);
                    }
                    None => drop(exclusive),
                },
                Message::Drain => self.begin_shutdown(),
                Message::Quit => self.cut_off(),
            }
        }
        messages.shrink_to(mailbox::ROOM);
        self.messages = messages;
        any
    }

    /// Aborts a command. It is answered before anybody is told that it was aborted.
    fn abort(&mut self, id: u64, cid: u16) -> bool {
        let Some(conn) = self.conns.get(id) else {
            return false;
        };
        let aborted = conn.abort(&mut self.cx, cid);
        conn.flush(&mut self.cx);
        self.bury(id);
        aborted
    }

    /// Ends the connections of a listener.
    fn end_all_of(&mut self, listener: &Arc<Listener>) {
        for id in self.conns.ids() {
            if let Some(conn) = self.conns.get(id)
                && Arc::ptr_eq(conn.listener(), listener)
            {
                conn.close(&mut self.cx, "its listener is removed");
                self.bury(id);
            }
        }
    }

    fn accept(&mut self, stream: Wire, listener: Arc<Listener>, guest: Guest) {
        let id = self.conns.next_id();
        if self.phase != Phase::Running || !guest.arrive(id) {
            return;
        }
        let conn = Box::new(Conn::new(id, stream, listener, guest, &self.cx));
        let added = conn.watch(&self.cx.poller);
        self.conns.insert(conn);
        if let Some(conn) = self.conns.get(id) {
            match added {
                Ok(()) => {
                    conn.set_ready(Ready::default());
                    conn.arm(&mut self.cx);
                    self.cx.ready.push(id);
                }
                Err(err) => conn.close(&mut self.cx, &format!("it cannot be watched: {err}")),
            }
        }
        self.bury(id);
    }

    /// Takes steps of long commands that wait for their turn.
    fn long_steps(&mut self) -> bool {
        let mut worked = false;
        while let Some(id) = self.cx.turns.next() {
            worked = true;
            let more = self
                .conns
                .get(id)
                .is_some_and(|conn| conn.take_turn(&mut self.cx));
            if more {
                self.cx.turns.again(id);
            }
            self.bury(id);
        }
        worked
    }

    /// Hands completions to their connections, and repeats if that makes new ones.
    fn completions(&mut self) -> bool {
        for round in 0..COMPLETION_ROUNDS {
            let mut batch = std::mem::take(&mut self.completions);
            self.cx.mailbox.port.collect(&mut batch);
            if batch.is_empty() {
                self.completions = batch;
                self.backlog = false;
                return round > 0;
            }
            for mut completion in batch.drain(..) {
                let Route { conn: id, lane, .. } = completion.route();
                let Cx { lanes, poller, .. } = &mut self.cx;
                lanes.completed(lane, &mut completion, poller);
                self.cx.in_flight -= 1;
                self.cx.flushed &= id == NO_CONN;
                match self.conns.get(id) {
                    Some(conn) => conn.on_completion(&mut self.cx, &mut completion),
                    None => {
                        if id == NO_CONN && !completion.status().is_success() {
                            self.not_flushed();
                        }
                        self.cx.give_buffer(completion.take_buf());
                    }
                }
                self.cx.requests.recycle(completion);
                self.bury(id);
            }
            self.completions = batch;
            self.flush_detached();
            self.cx.lanes.commit(&self.cx.poller);
            // Commands that wait for buffers come before further steps of those that have some.
            if !self.cx.starved.is_empty() {
                break;
            }
        }
        self.backlog = true;
        true
    }

    /// Sends what the turn has finished, one gather write per connection.
    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.cx.dirty);
        for id in dirty.drain(..) {
            if let Some(conn) = self.conns.get(id) {
                conn.flush(&mut self.cx);
            }
            self.bury(id);
        }
        // Nothing becomes dirty while flushing but connections that were told to close.
        dirty.append(&mut self.cx.dirty);
        self.cx.dirty = dirty;
    }

    fn timers(&mut self) {
        while let Some(&Reverse((at, id))) = self.cx.timers.peek()
            && at <= self.cx.now
        {
            self.cx.timers.pop();
            if let Some(conn) = self.conns.get(id) {
                conn.on_timer(&mut self.cx);
            }
            self.bury(id);
        }
        // Timers outlive connections, and what connections set earlier.
        if self.cx.timers.len() > 2 * self.conns.len() + EARLY {
            let Self { cx, conns, .. } = self;
            cx.timers
                .retain(|&Reverse((at, id))| conns.get(id).is_some_and(|conn| conn.waits_for(at)));
        }
    }

    /// Forgets a connection that is closed and has nothing in a backend any more.
    fn bury(&mut self, id: u64) {
        if self.conns.get(id).is_some_and(|conn| conn.is_over()) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(conn) = self.conns.get(id) {
            conn.finish();
            self.conns.remove(id);
        }
    }

    /// Lets others read how much is lent out and in flight.
    fn publish(&self) {
        let Cx {
            mailbox,
            pool,
            reserve,
            in_flight,
            ..
        } = &self.cx;
        let lent = pool.total_bytes() + reserve.total_bytes() - self.cx.free_bytes();
        if mailbox.buffers_lent.load(Ordering::Relaxed) != lent {
            mailbox.buffers_lent.store(lent, Ordering::Relaxed);
        }
        if mailbox.in_flight.load(Ordering::Relaxed) != *in_flight {
            mailbox.in_flight.store(*in_flight, Ordering::Relaxed);
        }
    }
}

#[cfg(feature = "sim")]
impl Reactor {
    /// One turn without waiting; true if there was anything to do. On the thread that has the
    /// reactor's port.
    pub(crate) fn step(&mut self) -> bool {
        self.cx.mailbox.waker.awake();
        self.look(Some(Duration::ZERO));
        self.turn() || self.has_work()
    }

    /// Whether its thread would sleep at the time `now`, as long as no descriptor becomes ready.
    pub(crate) fn would_sleep(&self, now: Time) -> bool {
        let due = self.deadline().is_some_and(|at| at <= now);
        !due && !self.has_work() && !self.cx.mailbox.waker.has_news()
    }

    /// When a turn is due though nothing comes.
    pub(crate) fn due(&self) -> Option<Time> {
        self.deadline()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Done
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let mailbox = &self.cx.mailbox;
        mailbox.port.close();
        mailbox.close();
        mailbox.buffers_lent.store(0, Ordering::Relaxed);
        mailbox.in_flight.store(0, Ordering::Relaxed);
        // Connections that a bounded shutdown or a panic in a lane cuts off.
        for id in self.conns.ids() {
            if let Some(conn) = self.conns.get(id) {
                conn.close(&mut self.cx, "the target has shut down");
            }
            self.forget(id);
        }
    }
}

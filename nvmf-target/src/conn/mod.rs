//! One connection: the NVMe/TCP machine, its stream, and the queue that it carries.
//!
//! The path of a command through these files: [`rx`](self) reads and parses, `command` checks and
//! finds a buffer, `io` or `admin` carries out, `tx` answers.

mod abort;
mod admin;
mod command;
mod cost;
mod drain;
mod dues;
mod fused;
mod held;
mod in_place;
mod io;
mod reservation;
mod rx;
mod settle;
mod shutdown;
mod tx;
mod wire;

pub(crate) use cost::queue_bytes;
pub(crate) use io::{CopyLimits, DMRL, DMRSL, STRIDE, Turns};
pub(crate) use wire::Wire;

use crate::buf::IoBuf;
use crate::chatter::limited;
use crate::chatter::{debug, error};
use crate::contain::{Panic, contain};
use crate::ctrl::reservation::Waiter;
use crate::ctrl::{Controller, Expiry, Guest, Inquired, Listener, QueueStats, View};
use crate::ns::{Completion, Op};
use crate::reactor::{Cx, Exclusive, Gate, Message, Poller, Ready, Wish};
use admin::AdminQueue;
use dues::Dues;
use fused::{Before, Half};
use held::Held;
use in_place::{Expected, Lent};
use io::{Copying, Step};
use nvmf_proto::tcp::target::{CloseReason, Config, Event, TcpTarget};
use nvmf_proto::tcp::{Need, Slot, Time, TxList};
use nvmf_proto::wire::{Sqe, Status};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A timer is set for no longer than this, in nanoseconds: it outlives its connection, and a Keep
/// Alive Timeout may be seven weeks.
const TIMER_MAX: u64 = 60_000_000_000;

/// How a turn of giving buffers to waiting commands went for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// None of its commands waits any more.
    Satisfied,
    /// One got its buffer; others still wait.
    More,
    /// The pool has nothing for it, though it holds less than it waits for.
    Waits,
    /// It holds its share already.
    Full,
}

/// What the connection is, as far as NVMe goes.
#[derive(Debug)]
enum Queue {
    /// Its Connect has not been accepted yet.
    None,
    Admin(AdminQueue),
    Io(IoQueue),
}

#[derive(Debug)]
struct IoQueue {
    controller: Arc<Controller>,
    qid: u16,
    stats: Arc<QueueStats>,
    view: Arc<View>,
    generation: u64,
}

impl IoQueue {
    /// Nothing has changed about the namespaces since `refresh`.
    fn is_fresh(&self) -> bool {
        self.generation == self.controller.subsystem.generation()
    }

    /// Takes note of what has changed about the namespaces.
    fn refresh(&mut self) {
        self.controller
            .refresh(&mut self.view, &mut self.generation);
    }
}

/// One command that is being worked on.
#[derive(Debug, Default)]
struct Command {
    slot: Slot,
    sqe: Sqe,
    buf: IoBuf,
    /// What follows when the backend has done its part.
    next: Step,
    /// Requests that are in a backend.
    parts: u32,
    /// The lane that took the latest of them.
    lane: usize,
    /// Bytes of that one's buffers, until it comes back.
    given: u32,
    /// How many of those are part of [`Conn::lost`].
    lost: u32,
    /// The host wants it aborted: no further step is taken.
    aborted: bool,
    /// The first failure of its parts.
    status: Option<Status>,
    /// Dword 0 of its completion.
    result: u32,
    half: Half,
    /// Its data is to be lent, while it is in [`Conn::lent`].
    lent: Option<Lent>,
    /// What is left of a Copy.
    copying: Option<Box<Copying>>,
    /// It has closed a namespace's write gate.
    exclusive: Option<Exclusive>,
}

pub(crate) struct Conn {
    id: u64,
    /// `None` once closed.
    stream: Option<Wire>,
    listener: Arc<Listener>,
    guest: Guest,
    peer: String,
    tcp: TcpTarget,
    queue: Queue,
    /// By [`Slot::index`].
    commands: Vec<Command>,
    /// Bytes that came but cannot be parsed yet.
    carry: Vec<u8>,
    /// How much of it is counted in [`Cx::carried`].
    carried: usize,
    /// What is being sent; kept while the stream takes no more.
    list: Option<Box<TxList>>,
    readable: bool,
    /// The peer has closed its side: what is still to be read ends with the end of the stream.
    ended: bool,
    /// Our side is closed for writing, after a TermReq.
    half_closed: bool,
    writable: bool,
    /// Reading stopped because the machine waits for a slot or a buffer.
    stalled: bool,
    /// In `Cx::dirty`.
    dirty: bool,
    /// Commands of this turn that are answered with data which is still to be lent.
    lent: Vec<Slot>,
    expected: Option<Expected>,
    /// Commands that wait for a buffer of this many bytes.
    waiting: VecDeque<(Slot, u32)>,
    /// The command whose in-capsule data is next in the stream, while that waits for a buffer.
    blocked: Option<(Slot, u32)>,
    /// Bytes of buffers that its commands hold.
    held: usize,
    /// How many of those are with namespaces that do not answer.
    lost: usize,
    /// When a byte was last moved, a buffer taken, or a request completed.
    moved: Time,
    /// What its host does about the buffers that it is to fill, and those that it is to empty.
    filling: Dues,
    emptying: Dues,
    /// What both had moved when something was owed first.
    first_owed: Option<(u64, u64)>,
    /// In a shortage of buffers: the half of a pair that waits for one though the other has its own,
    /// and since when.
    pair_waits: Option<(Slot, Time)>,
    /// Its requests in backends.
    in_flight: usize,
    /// Commands whose next steps wait for their turn.
    later: VecDeque<Slot>,
    /// What commands, by the index of their slots, wait for that want to be alone with a namespace.
    wishes: BTreeMap<usize, Wish>,
    /// A Connect that waits for another queue to end.
    held_connect: Option<Held>,
    timer: Option<Time>,
    /// Of the command that came last: whether it waits for its second half.
    before: Before,
    /// Commands, by the index of their slots, whose end others wait for.
    holds: Vec<(usize, Waiter)>,
    /// A Disconnect has come: nothing more is read, and the connection ends when everything has been
    /// sent.
    closing: bool,
    /// The Disconnect, while other commands are in backends.
    disconnect: Option<Slot>,
    /// In a shutdown: commands that were waiting for data when it began.
    owed: Vec<Slot>,
    /// The host is to close its side; what it sends is thrown away.
    leaving: bool,
}

impl Conn {
    pub(crate) fn new(
        id: u64,
        stream: Wire,
        listener: Arc<Listener>,
        guest: Guest,
        cx: &Cx,
    ) -> Self {
        let config = &cx.core.config;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let tcp = TcpTarget::new(&Config {
            header_digest: config.header_digest,
            data_digest: config.data_digest,
            maxh2cdata: listener.maxh2cdata,
            ic_timeout: nanos(config.icreq_timeout),
            connect_timeout: nanos(config.connect_timeout),
            ..Config::default()
        });
        Self {
            id,
            peer: stream.peer().to_owned(),
            stream: Some(stream),
            listener,
            guest,
            queue: Queue::None,
            commands: std::iter::repeat_with(Command::default)
                .take(tcp.slots())
                .collect(),
            tcp,
            carry: Vec::new(),
            carried: 0,
            list: None,
            readable: false,
            ended: false,
            half_closed: false,
            writable: true,
            stalled: false,
            dirty: false,
            lent: Vec::new(),
            expected: None,
            waiting: VecDeque::new(),
            blocked: None,
            held: 0,
            lost: 0,
            moved: cx.now,
            filling: Dues::default(),
            emptying: Dues::default(),
            first_owed: None,
            pair_waits: None,
            in_flight: 0,
            later: VecDeque::new(),
            wishes: BTreeMap::new(),
            held_connect: None,
            timer: None,
            before: Before::Whole,
            holds: Vec::new(),
            closing: false,
            disconnect: None,
            owed: Vec::new(),
            leaving: false,
        }
    }

    /// Whether commands of it wait for buffers.
    pub(crate) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) const fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Has the stream watched.
    pub(crate) fn watch(&self, poller: &Poller) -> std::io::Result<()> {
        let stream = self.stream.as_ref();
        stream.map_or(Ok(()), |stream| stream.watch(poller, self.id))
    }

    /// The poller has reported something.
    pub(crate) const fn set_ready(&mut self, ready: Ready) {
        self.readable = true;
        self.writable = true;
        self.ended |= ready.ended;
    }

    pub(crate) fn on_ready(&mut self, cx: &mut Cx) {
        if self.list.is_some() || self.tcp.has_transmit() {
            self.mark_dirty(cx);
        }
        if let Err(panic) = contain(|| self.receive(cx)) {
            self.give_up(cx, &panic);
        }
    }

    /// Reads what has come, whether that has been reported or not.
    pub(crate) fn catch_up(&mut self, cx: &mut Cx) {
        self.readable = true;
        self.on_ready(cx);
    }

    /// Its stream has panicked, or what it sends from: what was being done is lost, and the
    /// connection with it.
    #[cold]
    fn give_up(&mut self, cx: &mut Cx, panic: &Panic) {
        error!("{}: its stream {panic}", self.peer);
        cx.restore_stage();
        self.close(cx, "its stream panicked");
    }

    fn mark_dirty(&mut self, cx: &mut Cx) {
        if !self.dirty {
            self.dirty = true;
            cx.dirty.push(self.id);
        }
    }

    fn on_event(&mut self, cx: &mut Cx, event: Event) {
        match event {
            Event::Command {
                slot,
                sqe,
                in_capsule,
                cid_conflict,
            } => {
                self.on_command(cx, slot, &sqe, in_capsule, cid_conflict);
            }
            Event::Received { slot, digest_ok } => self.on_received(cx, slot, digest_ok),
            Event::Ready(_) => {
                self.guest.greet();
                self.mark_dirty(cx);
                self.arm(cx);
            }
            Event::Terminated(term) => {
                limited!(
                    Warn,
                    cx.core.chatters.protocol,
                    cx.now,
                    "{}: the host ended the connection: {} (FEI {:#x})",
                    self.peer,
                    term.fes,
                    term.fei
                );
            }
            Event::Closed(reason) => self.on_deadline(cx, reason),
        }
    }

    fn on_deadline(&mut self, cx: &mut Cx, reason: CloseReason) {
        let why = match reason {
            CloseReason::IcReqTimeout => "no ICReq in time",
            CloseReason::ConnectTimeout => "no Connect in time",
            CloseReason::LingerTimeout => "the host did not close after a TermReq",
        };
        self.close(cx, why);
    }

    /// The command that a slot stands for.
    fn command(&mut self, slot: Slot) -> &mut Command {
        &mut self.commands[slot.index()]
    }

    fn take_buffer(&mut self, cx: &mut Cx, slot: Slot, len: u32) -> bool {
        let Some(buf) = cx.pool.take(len as usize) else {
            return false;
        };
        self.hold(slot, buf, cx.now);
        true
    }

    fn hold(&mut self, slot: Slot, buf: IoBuf, now: Time) {
        self.moved = now;
        self.held += buf.footprint();
        self.command(slot).buf = buf;
    }

    fn give_buffer(&mut self, cx: &mut Cx, buf: IoBuf) {
        self.held -= buf.footprint();
        cx.give_buffer(buf);
    }

    /// Takes note that what was in a backend, or counted as that, is not any more. False: nobody is
    /// answered.
    fn came_back(&mut self, now: Time) -> bool {
        self.in_flight -= 1;
        // The host's time to take the answer starts here, however long the backend took.
        self.moved = now;
        let answered = !self.is_mute();
        if !answered && self.in_flight == 0 {
            self.holds.clear();
        }
        answered
    }

    /// A backend has finished a request of this connection.
    pub(crate) fn on_completion(&mut self, cx: &mut Cx, completion: &mut Completion) {
        let answered = self.came_back(cx.now);
        let route = completion.route();
        let slot = route.slot;
        let (op, buf, status) = (completion.op(), completion.take_buf(), completion.status());
        let command = self.command(slot);
        command.given = 0;
        let lost = std::mem::take(&mut command.lost);
        self.lost -= lost as usize;
        if matches!(self.queue, Queue::Admin(_)) {
            return self.on_admin_flush(cx, route, status);
        }
        if matches!(op, Op::CompareAndWrite { .. }) {
            let expected = completion.take_expected();
            self.give_buffer(cx, expected);
        }
        if !answered {
            self.command(slot).exclusive = None;
            self.give_buffer(cx, buf);
            return;
        }
        self.on_io_done(cx, slot, op, buf, status);
    }

    /// Nobody is answered any more on a connection that is closed or ends after a violation.
    fn is_mute(&self) -> bool {
        self.stream.is_none() || self.tcp.need() == Need::Drain
    }

    /// Closes a namespace's write gate for a command, which goes on in [`Conn::on_exclusive`].
    /// Meanwhile it counts as being in a backend.
    pub(super) fn close_gate(&mut self, cx: &mut Cx, slot: Slot, gate: &Arc<Gate>) {
        self.command(slot).parts += 1;
        self.in_flight += 1;
        cx.in_flight += 1;
        let (mailbox, id) = (Arc::clone(&cx.mailbox), self.id);
        let wish =
            gate.close(move |exclusive| mailbox.send(Message::Exclusive(id, slot, exclusive)));
        self.wishes.insert(slot.index(), wish);
    }

    /// A command waits no longer for a write gate: a backend may never complete what that waits for,
    /// and all others who write wait with it. False if it does not wait, or has closed it.
    fn stop_closing(&mut self, cx: &mut Cx, slot: Slot) -> bool {
        let wish = self.wishes.remove(&slot.index());
        if !wish.is_some_and(|wish| wish.give_up()) {
            return false;
        }
        cx.in_flight -= 1;
        if self.came_back(cx.now) {
            self.command(slot).parts -= 1;
        }
        true
    }

    /// A write gate is closed, as a command has asked for.
    pub(crate) fn on_exclusive(&mut self, cx: &mut Cx, slot: Slot, exclusive: Exclusive) {
        cx.in_flight -= 1;
        if !self.came_back(cx.now) {
            return;
        }
        self.wishes.remove(&slot.index());
        let command = self.command(slot);
        command.parts -= 1;
        if matches!(self.queue, Queue::Admin(_)) {
            drop(exclusive);
            return self.on_fenced(cx, slot);
        }
        let command = self.command(slot);
        command.exclusive = Some(exclusive);
        match command.half.other() {
            Some(second) => self.execute_pair_alone(cx, slot, second),
            None => self.proceed(cx, slot),
        }
    }

    /// The controller has something for its admin queue, or for a Connect that waits.
    pub(crate) fn on_notify(&mut self, cx: &mut Cx) {
        self.retry_connect(cx);
        self.deliver_events(cx);
        self.answer_lost_aborts(cx);
        self.flush_for_shutdown(cx);
        self.end_inquiry(cx);
        self.arm(cx);
    }

    /// Lets go of namespaces that have been detached: a queue without commands would keep their
    /// devices open.
    pub(crate) fn forget_detached(&mut self) {
        if let Queue::Io(queue) = &mut self.queue {
            queue.refresh();
        }
    }

    /// Sets the timer to the next deadline, if it is earlier than the one set.
    pub(crate) fn arm(&mut self, cx: &mut Cx) {
        let deadline = match &self.queue {
            Queue::Admin(admin) => {
                let is_open = |at| admin.inquired.as_ref().is_some_and(|i| i.was_about(at));
                let deadline = self.deadline(cx).map(|(at, _)| at);
                // The answer comes as a message.
                deadline.filter(|&at| !is_open(at))
            }
            Queue::None => self.held_connect.as_ref().map(Held::until),
            Queue::Io(_) => self.lingers_until(),
        };
        let next = self.tcp.poll_timeout().into_iter().chain(deadline).min();
        if let Some(at) = next.map(|at| at.min(cx.now.after(TIMER_MAX)))
            && self.stream.is_some()
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            cx.set_timer(at, self.id);
        }
    }

    /// Whether the timer is set to this time.
    pub(crate) fn waits_for(&self, at: Time) -> bool {
        self.timer == Some(at)
    }

    /// When the controller of this admin queue ends by itself, and why.
    fn deadline(&self, cx: &Cx) -> Option<(Time, Expiry)> {
        match &self.queue {
            Queue::Admin(admin) => admin
                .controller
                .deadline(cx.core.config.association_timeout),
            Queue::None | Queue::Io(_) => None,
        }
    }

    /// Goes on with [`Conn::expire`] if the other queues have read what had come for them.
    fn end_inquiry(&mut self, cx: &mut Cx) {
        if let Queue::Admin(AdminQueue { inquired, .. }) = &self.queue
            && self.stream.is_some()
            && inquired.as_ref().is_some_and(Inquired::is_answered)
        {
            self.catch_up(cx);
            self.expire(cx);
        }
    }

    /// Ends the controller of this admin queue if its time has come; false if not, or if that
    /// depends on what other queues have to read.
    fn expire(&mut self, cx: &mut Cx) -> bool {
        // What the host has sent may wait here: that is not its silence.
        if self.stalled {
            self.note_activity(cx);
        }
        let passed = self.deadline(cx).filter(|&(at, _)| at <= cx.now);
        let Queue::Admin(admin) = &mut self.queue else {
            return false;
        };
        let Some((at, expiry)) = passed else {
            admin.inquired = None;
            return false;
        };
        if expiry == Expiry::KeepAlive && !admin.was_silent(at) {
            return false;
        }
        let controller = &admin.controller;
        let (cntlid, nqn, host) = (
            controller.cntlid,
            &controller.subsystem.nqn,
            &controller.hostnqn,
        );
        let why = match expiry {
            Expiry::KeepAlive => {
                let kato = controller.kato_ms();
                limited!(
                    Warn,
                    cx.core.chatters.silence,
                    cx.now,
                    "controller {cntlid} of {nqn:?}: Keep Alive Timeout of {kato} ms, {host:?} was silent"
                );
                controller.fail();
                "Keep Alive Timeout"
            }
            Expiry::Unused => "its host does not use it",
        };
        self.close(cx, why);
        true
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx) {
        if self.timer.is_none_or(|at| at > cx.now) {
            return;
        }
        self.timer = None;
        // After a standstill there may be more than one turn has taken notice of.
        self.catch_up(cx);
        if self.tcp.poll_timeout().is_some_and(|at| at <= cx.now)
            && let Some(event) = self.tcp.handle_timeout(cx.now)
        {
            self.on_event(cx, event);
        }
        self.expire_connect(cx);
        if self.lingers_until().is_some_and(|at| at <= cx.now) {
            self.close(cx, "the host did not close it");
        }
        if self.stream.is_none() || self.expire(cx) {
            return;
        }
        self.arm(cx);
    }

    /// Ends the connection, which is no queue yet, for others that have come.
    pub(crate) fn make_way(&mut self, cx: &mut Cx) {
        limited!(
            Warn,
            cx.core.chatters.accept,
            cx.now,
            "{}: too many connections: it is ended, for it has sent no Connect",
            self.peer
        );
        self.close(cx, "too many connections");
    }

    /// Ends the connection. What is in backends is waited for (see [`Conn::is_over`]); everything
    /// else is given back now.
    pub(crate) fn close(&mut self, cx: &mut Cx, why: &str) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        stream.unwatch(&cx.poller);
        drop(stream);
        self.tcp.peer_closed();
        self.forget_connect(cx);
        match &self.queue {
            Queue::None => debug!("{}: closed: {why}", self.peer),
            Queue::Admin(admin) => {
                let controller = &admin.controller;
                limited!(
                    Info,
                    cx.core.chatters.close,
                    cx.now,
                    "controller {} of {:?} closed by {:?}: {why}",
                    controller.cntlid,
                    controller.subsystem.nqn,
                    controller.hostnqn
                );
                controller.end();
            }
            Queue::Io(queue) => {
                debug!("{}: queue {} closed: {why}", self.peer, queue.qid);
            }
        }
        if let Some(list) = self.list.take() {
            cx.give_list(list);
        }
        self.abandon(cx);
    }

    /// Gives back what commands hold or wait for, when none of them will be answered any more. Not
    /// what is in a backend, nor what is being sent.
    fn abandon(&mut self, cx: &mut Cx) {
        self.waiting.clear();
        self.blocked = None;
        cx.line.leave(self.id, cx.now);
        self.forgo_turns(cx);
        for (_, wish) in std::mem::take(&mut self.wishes) {
            if wish.give_up() {
                cx.in_flight -= 1;
                self.came_back(cx.now);
            }
        }
        self.carry = Vec::new();
        self.count_carry(cx);
        self.forget_expected(&mut cx.pool);
        for slot in self.lent.drain(..) {
            if let Some(lent) = self.commands[slot.index()].lent.take() {
                self.held -= lent.end(&mut cx.pool);
            }
        }
        if self.list.is_some() {
            return;
        }
        for index in 0..self.commands.len() {
            let command = &mut self.commands[index];
            let (buf, copying) = (std::mem::take(&mut command.buf), command.copying.take());
            self.give_buffer(cx, buf);
            if let Some(copying) = copying {
                self.give_buffer(cx, copying.gathered);
            }
        }
    }

    /// Closed, and none of its requests is in a backend.
    pub(crate) const fn is_over(&self) -> bool {
        self.stream.is_none() && self.in_flight == 0
    }

    /// The last words of a connection that is over: its controller learns of it.
    pub(crate) fn finish(&mut self) {
        debug_assert_eq!(self.carried, 0, "leftovers stay counted");
        match std::mem::replace(&mut self.queue, Queue::None) {
            Queue::None => {}
            Queue::Admin(admin) => admin.controller.admin_gone(),
            Queue::Io(queue) => queue.controller.queue_gone(queue.qid),
        }
    }

    /// Whether the machine has anything more to do with the stream's input.
    fn at_end(&self) -> bool {
        self.tcp.need() == Need::Closed
    }
}

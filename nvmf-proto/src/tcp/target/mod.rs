//! The controller's end of an NVMe/TCP connection.
//!
//! One [`TcpTarget`] per connection. It splits the host's byte stream into commands and their
//! data, and turns completions into response and data PDUs; what a command means is the business
//! of the caller. The life of a command:
//!
//! ```text
//! Event::Command --- complete() ------------------------------.
//!       |                                                     |
//!   receive() --- in-capsule data: Need::Payload ---.         |
//!       |                                           |         |
//!       '--- R2T, H2CData: Need::Payload -----------+         |
//!                                                   v         v
//!                                         Event::Received -> complete() -> C2HData, CapsuleResp
//!                                                                          -> transmitted(): slot free
//! ```
//!
//! `complete` is legal at every stage: data that is still to come is then discarded.

mod header;
mod rx;
mod slots;
mod tx;

use super::{Negotiated, Slot, Time};
use crate::wire::pdu::{ADMIN_IN_CAPSULE_MAX, MAXH2CDATA_MIN, PDA_MAX, TermReq};
use crate::wire::{Sqe, Status};
use rx::Rx;
use slots::{Slots, State};
use tx::Outbox;

/// [`DIGEST_LEN`](crate::wire::pdu::DIGEST_LEN) where lengths on the wire are added up.
const DIGEST: u32 = 4;

/// What a target offers on a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// Header digests are used if the host asks for them.
    pub header_digest: bool,
    /// Data digests are used if the host asks for them.
    pub data_digest: bool,
    /// CPDA: alignment of the data that the host sends, dwords, 0's based, at most 31.
    pub cpda: u8,
    /// MAXH2CDATA in bytes: the most data one H2CData may carry. At least 4096, a multiple of 4.
    pub maxh2cdata: u32,
    /// Nanoseconds from the first `handle_timeout` to a valid ICReq.
    pub ic_timeout: u64,
    /// Nanoseconds from the ICReq to `open_queue`.
    pub connect_timeout: u64,
    /// Nanoseconds that the host has for closing the connection after a C2HTermReq.
    pub linger: u64,
}

impl Default for Config {
    /// Both digests permitted, no alignment, MAXH2CDATA 1 MiB, 10 s for ICReq and Connect each,
    /// 30 s to linger.
    fn default() -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            header_digest: true,
            data_digest: true,
            cpda: 0,
            maxh2cdata: 1 << 20,
            ic_timeout: 10 * SECOND,
            connect_timeout: 10 * SECOND,
            linger: 30 * SECOND,
        }
    }
}

/// The parameters of an accepted Connect command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries of the submission queue, SQSIZE + 1: 2 to 65,536, the table is sized after it.
    pub entries: u32,
    /// Whether SQ flow control is in use (CATTR of Connect does not disable it).
    pub flow_control: bool,
    /// Bytes of in-capsule data that a command may carry: 8192 on an admin queue, what IOCCSZ says
    /// on an I/O queue.
    pub in_capsule: u32,
}

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Status field of the completion.
    pub status: Status,
    /// Dwords 1:0 of the completion.
    pub result: u64,
    /// Bytes of the slot's buffer to send before the response; none are sent with an error.
    pub data_len: u32,
}

/// What has happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A valid ICReq has come; the ICResp is queued.
    Ready(Negotiated),
    /// A command has come. It is to be answered by `receive` or `complete`; with in-capsule data
    /// the stream stands still until then.
    Command {
        /// The command's place in the table until its response has left.
        slot: Slot,
        /// The command.
        sqe: Sqe,
        /// Bytes of data that follow in the capsule.
        in_capsule: u32,
        /// A command with the same CID has not been completed yet.
        cid_conflict: bool,
    },
    /// All data of a command has come and is in its buffer.
    Received {
        /// The command.
        slot: Slot,
        /// No data digest was wrong.
        digest_ok: bool,
    },
    /// The host has sent an H2CTermReq: the connection is over and nothing is sent any more.
    Terminated(TermReq),
    /// A deadline has passed: the connection is over.
    Closed(CloseReason),
}

/// Which deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No valid ICReq came within [`Config::ic_timeout`].
    IcReqTimeout,
    /// No Connect succeeded within [`Config::connect_timeout`].
    ConnectTimeout,
    /// The host did not close within [`Config::linger`] after a C2HTermReq.
    LingerTimeout,
}

/// What [`TcpTarget::parse`] made of the bytes that it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// How many bytes are done with; 0 if they were too few.
    pub used: usize,
    /// What they meant.
    pub event: Option<Event>,
}

impl Parsed {
    const NOTHING: Self = Self {
        used: 0,
        event: None,
    };
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The ICReq is due.
    IcReq,
    /// Commands flow.
    Open,
    /// The host broke the protocol; all that is left is a C2HTermReq and the host's close.
    Drain,
    /// Nothing is read or sent any more.
    Closed,
}

/// A deadline. It starts to run in the first `handle_timeout` after its cause, for no other call
/// is told the time.
#[derive(Clone, Copy, Debug)]
struct Timer {
    reason: CloseReason,
    due: Option<Time>,
}

impl Timer {
    const fn new(reason: CloseReason) -> Self {
        Self { reason, due: None }
    }
}

/// The submission queue as far as SQHD goes.
#[derive(Clone, Copy, Debug)]
struct SubmissionQueue {
    /// SQSIZE: number of the last entry.
    last: u16,
    /// Entry that the next command is taken from.
    head: u16,
    flow_control: bool,
}

impl SubmissionQueue {
    const fn advance(&mut self) {
        self.head = if self.head == self.last {
            0
        } else {
            self.head + 1
        };
    }

    /// What a response says. SQHD means nothing where SQ flow control is disabled: FFFFh.
    const fn sqhd(&self) -> u16 {
        if self.flow_control {
            self.head
        } else {
            u16::MAX
        }
    }
}

/// The state machine of the controller's end of a connection. See the contract in [`super`].
#[derive(Debug)]
pub struct TcpTarget {
    config: Config,
    phase: Phase,
    /// `terms` are in force.
    ready: bool,
    terms: Negotiated,
    timer: Option<Timer>,
    /// The most in-capsule data that a command may carry, in bytes.
    in_capsule: u32,
    /// None before `open_queue`.
    queue: Option<SubmissionQueue>,
    rx: Rx,
    slots: Slots,
    outbox: Outbox,
}

impl TcpTarget {
    /// A machine for a new connection, with room for one command until [`TcpTarget::open_queue`].
    ///
    /// Values of `config` outside their bounds are moved to the nearest bound.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let config = Config {
            cpda: config.cpda.min(PDA_MAX),
            maxh2cdata: config.maxh2cdata.max(MAXH2CDATA_MIN) & !3,
            ..config.clone()
        };
        Self {
            config,
            phase: Phase::IcReq,
            ready: false,
            terms: Negotiated::default(),
            timer: Some(Timer::new(CloseReason::IcReqTimeout)),
            in_capsule: ADMIN_IN_CAPSULE_MAX,
            queue: None,
            rx: Rx::default(),
            slots: Slots::new(),
            outbox: Outbox::new(),
        }
    }

    /// Sizes the table for the queue that a Connect command has created; the only allocation after
    /// `new`. To be called before that command is completed; its slot stays valid. A second call
    /// and a call before the ICReq are ignored.
    pub fn open_queue(&mut self, queue: &QueueConfig) {
        if self.queue.is_some() || self.phase != Phase::Open {
            return;
        }
        let last = u16::try_from(queue.entries.max(2) - 1).unwrap_or(u16::MAX);
        // The Connect command is the first entry taken from the queue that it creates.
        let head = u16::from(self.slots.live() > 0);
        self.queue = Some(SubmissionQueue {
            last,
            head,
            flow_control: queue.flow_control,
        });
        self.in_capsule = queue.in_capsule;
        self.slots.grow(usize::from(last) + 1);
        self.outbox.grow(self.slots.len());
        self.timer = None;
    }

    /// Bytes on the heap that [`TcpTarget::open_queue`] takes for a queue of so many entries.
    #[must_use]
    pub const fn queue_bytes(entries: usize) -> usize {
        Slots::bytes(entries) + Outbox::bytes(entries)
    }

    /// What was agreed on; nothing before the ICReq.
    #[must_use]
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.ready.then_some(self.terms)
    }

    /// Size of the table of commands: every [`Slot::index`] is less. Changes in `open_queue` only.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Commands in the table: those whose response has not left entirely.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.live()
    }

    /// First answer to [`Event::Command`]: the command is good and its buffer is ready.
    ///
    /// With in-capsule data that data is taken next (the buffer holds at least the `in_capsule`
    /// bytes of the event; `len` says nothing new). Without, one R2T for `len` bytes is queued; a
    /// `len` of 0 is ignored. [`Event::Received`] follows. Ignored in any other state.
    pub fn receive(&mut self, slot: Slot, len: u32) {
        if self.phase != Phase::Open {
            return;
        }
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        if entry.state != State::Decision {
            return;
        }
        if self.rx.take_in_capsule(slot) {
            entry.state = State::InCapsule;
        } else if len > 0 {
            entry.state = State::R2tQueued;
            entry.wanted = len;
            self.outbox.push(slot);
        }
    }

    /// The command is done: its response is queued, preceded by `data_len` bytes of its buffer.
    /// True if it was queued by this call.
    ///
    /// Legal from [`Event::Command`] on. Data of the command that is still to come is discarded; a
    /// response must not overtake H2CData that an R2T has asked for, so then it waits (false). A
    /// second call and a stale slot are ignored, as is everything after the end of the connection.
    #[inline]
    pub fn complete(&mut self, slot: Slot, done: Done) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        let Some(entry) = self.slots.get_mut(slot) else {
            return false;
        };
        match entry.state {
            State::Decision | State::InCapsule | State::Execution => {
                entry.state = State::ResponseQueued;
                self.outbox.push(slot);
            }
            // Already in the queue, for an R2T that need not be sent any more.
            State::R2tQueued => entry.state = State::ResponseQueued,
            State::H2cData => entry.state = State::Abandoned,
            State::Free | State::Abandoned | State::ResponseQueued | State::Leaving => {
                return false;
            }
        }
        entry.done = done;
        let queued = entry.state == State::ResponseQueued;
        self.rx.discard(slot, self.data_digest_len());
        queued
    }

    /// The command with a CID that has not been completed yet: what an Abort means. It looks
    /// through the table.
    #[must_use]
    pub fn find(&self, cid: u16) -> Option<Slot> {
        self.slots.find(cid)
    }

    /// Whether a command has been told to `receive` its data and has not got all of it.
    #[must_use]
    pub fn awaits_data(&self, slot: Slot) -> bool {
        let state = self.slots.get(slot).map(|entry| entry.state);
        matches!(
            state,
            Some(State::InCapsule | State::R2tQueued | State::H2cData)
        )
    }

    /// Whether the host has been asked for data of a command, or sends it in the capsule, and has
    /// not sent all of it.
    #[must_use]
    pub fn is_receiving(&self, slot: Slot) -> bool {
        let state = self.slots.get(slot).map(|entry| entry.state);
        matches!(state, Some(State::InCapsule | State::H2cData))
    }

    /// Whether a command has been completed, and its response is still here.
    #[must_use]
    pub fn is_answered(&self, slot: Slot) -> bool {
        let state = self.slots.get(slot).map(|entry| entry.state);
        matches!(state, Some(State::ResponseQueued | State::Leaving))
    }

    /// The host has closed its side of the connection: `need` is `Closed` from here on.
    pub const fn peer_closed(&mut self) {
        self.close();
    }

    /// Starts and checks deadlines. To be called when the time of [`TcpTarget::poll_timeout`] has
    /// come; any other time does no harm.
    pub fn handle_timeout(&mut self, now: Time) -> Option<Event> {
        let timer = self.timer.as_mut()?;
        let limit = match timer.reason {
            CloseReason::IcReqTimeout => self.config.ic_timeout,
            CloseReason::ConnectTimeout => self.config.connect_timeout,
            CloseReason::LingerTimeout => self.config.linger,
        };
        if now < *timer.due.get_or_insert_with(|| now.after(limit)) {
            return None;
        }
        let reason = timer.reason;
        self.close();
        Some(Event::Closed(reason))
    }

    /// When to call [`TcpTarget::handle_timeout`]: at once (time 0) if a deadline has to start.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timer.map(|timer| timer.due.unwrap_or_default())
    }

    const fn header_digest_len(&self) -> u32 {
        if self.terms.header_digest { DIGEST } else { 0 }
    }

    const fn data_digest_len(&self) -> u32 {
        if self.terms.data_digest { DIGEST } else { 0 }
    }

    const fn close(&mut self) {
        self.phase = Phase::Closed;
        self.timer = None;
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the numbers that tests make up are small"
)]
mod tests;

//! A host machine and a target machine joined by two byte queues: no sockets, no clock, no
//! threads, and every run repeatable from its seed.
//!
//! [`Pair::step`] lets one end do one thing, with amounts drawn from the seed: receive a few bytes,
//! send a few, answer a command that has been answered late. So the streams are cut at arbitrary
//! places and completions overtake each other. [`Pair::drive`] steps until both ends are idle.

use super::host::{self, HostData, TcpHost};
use super::target::{self, Done, QueueConfig, TcpTarget};
use super::{Need, Seg, Slot, Time, TxList, Violation, crc32c};
use crate::wire::{Cqe, Sqe, Status};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A sequence of numbers that looks random and depends on its seed alone (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z.checked_rem(bound as u64).unwrap_or_default()).unwrap_or_default()
    }

    /// True once in `n` times on average; never if `n` is 0.
    fn once_in(&mut self, n: usize) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// An amount of `1..=most`, small ones as likely as large ones; 0 if `most` is 0.
    fn amount(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.leading_zeros() as usize);
        most.min(1 + self.below(2 << bits))
    }
}

/// How often bits flip on their way, in both directions: once in so many runs of bytes sent, never
/// if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// In payload: with data digests a spoiled command, else spoiled data.
    pub payload: usize,
    /// In headers and digests.
    pub headers: usize,
}

/// What the target's handler is told.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// A command has come.
    Command {
        /// The command.
        sqe: &'a Sqe,
        /// Bytes of data in its capsule.
        in_capsule: u32,
        /// A command with the same CID is not complete yet.
        cid_conflict: bool,
    },
    /// All data that the handler has asked for has come.
    Received {
        /// The command.
        sqe: &'a Sqe,
        /// Its data.
        data: &'a [u8],
        /// No data digest was wrong.
        digest_ok: bool,
    },
}

/// What the target's handler makes of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Take that many bytes of data.
    Receive(u32),
    /// Take that many bytes of data, and complete the command with an error some time later,
    /// whether they have come or not.
    Abandon(u32, Status),
    /// Complete the command, with data for the host.
    Complete {
        /// Its status.
        status: Status,
        /// Dwords 1:0 of its completion.
        result: u64,
        /// What a read returns.
        data: Vec<u8>,
    },
}

impl Answer {
    /// Completion without data.
    #[must_use]
    pub const fn status(status: Status) -> Self {
        Self::Complete {
            status,
            result: 0,
            data: Vec::new(),
        }
    }
}

/// A command that is complete, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What `submit` returned for it.
    pub slot: Slot,
    /// Its completion.
    pub cqe: Cqe,
    /// The data of a read, the part that came.
    pub data: Vec<u8>,
    /// No data digest was wrong.
    pub digest_ok: bool,
}

/// What both machines have in common.
trait Machine {
    type Event;
    fn need(&self) -> Need;
    fn parse(&mut self, staged: &[u8]) -> Result<(usize, Option<Self::Event>), Violation>;
    fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Self::Event>;
    fn poll_transmit(&mut self, out: &mut TxList) -> bool;
    fn transmitted(&mut self, bytes: usize, released: impl FnMut(Slot));
}

impl Machine for TcpTarget {
    type Event = target::Event;
    fn need(&self) -> Need {
        self.need()
    }
    fn parse(&mut self, staged: &[u8]) -> Result<(usize, Option<Self::Event>), Violation> {
        self.parse(staged).map(|parsed| (parsed.used, parsed.event))
    }
    fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Self::Event> {
        self.placed(n, crc)
    }
    fn poll_transmit(&mut self, out: &mut TxList) -> bool {
        self.poll_transmit(out)
    }
    fn transmitted(&mut self, bytes: usize, released: impl FnMut(Slot)) {
        self.transmitted(bytes, released);
    }
}

impl Machine for TcpHost {
    type Event = host::Event;
    fn need(&self) -> Need {
        self.need()
    }
    fn parse(&mut self, staged: &[u8]) -> Result<(usize, Option<Self::Event>), Violation> {
        self.parse(staged).map(|parsed| (parsed.used, parsed.event))
    }
    fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Self::Event> {
        self.placed(n, crc)
    }
    fn poll_transmit(&mut self, out: &mut TxList) -> bool {
        self.poll_transmit(out)
    }
    fn transmitted(&mut self, bytes: usize, _released: impl FnMut(Slot)) {
        self.transmitted(bytes);
    }
}

/// A machine, its buffers, and what is on the way to it.
#[derive(Debug)]
struct End<M> {
    machine: M,
    /// By slot index.
    buffers: BTreeMap<usize, Vec<u8>>,
    list: TxList,
    input: VecDeque<u8>,
    violation: Option<Violation>,
}

impl<M: Machine> End<M> {
    fn new(machine: M) -> Self {
        Self {
            machine,
            buffers: BTreeMap::new(),
            list: TxList::new(512, 12),
            input: VecDeque::new(),
            violation: None,
        }
    }

    fn buffer(&mut self, slot: Slot) -> &mut Vec<u8> {
        self.buffers.entry(slot.index()).or_default()
    }

    /// Shows the machine the next bytes, `window` of them at most, for one step. The result says
    /// what happened, or nothing if nothing did.
    fn receive(&mut self, window: usize) -> Option<Option<M::Event>> {
        let need = self.machine.need();
        let window = window.min(self.input.len());
        if window == 0 {
            return None;
        }
        match need {
            Need::Bytes { .. } => {
                let staged = self
                    .input
                    .make_contiguous()
                    .get(..window)
                    .unwrap_or_default();
                match self.machine.parse(staged) {
                    Ok((used, event)) => {
                        self.input.drain(..used);
                        (used > 0 || self.machine.need() != need).then_some(event)
                    }
                    Err(violation) => {
                        self.violation.get_or_insert(violation);
                        Some(None)
                    }
                }
            }
            Need::Payload {
                slot,
                offset,
                len,
                crc,
            } => {
                let n = window.min(len as usize);
                let bytes: Vec<u8> = self.input.drain(..n).collect();
                let start = offset as usize;
                if let Some(to) = self.buffer(slot).get_mut(start..start + n) {
                    to.copy_from_slice(&bytes);
                }
                Some(
                    self.machine
                        .placed(narrow(n), crc.map(|crc| crc32c(crc, &bytes))),
                )
            }
            Need::Discard { len } => {
                let n = window.min(len as usize);
                self.input.drain(..n);
                Some(self.machine.placed(narrow(n), None))
            }
            Need::Drain | Need::Closed => {
                self.input.clear();
                Some(None)
            }
            Need::Wait(_) => None,
        }
    }

    /// Sends some of what is due; `None` if nothing is.
    fn send(&mut self, to: &mut VecDeque<u8>, rng: &mut Rng, faults: Faults) -> Option<()> {
        if self.list.is_empty() || rng.below(2) == 0 {
            self.machine.poll_transmit(&mut self.list);
            let buffers = &self.buffers;
            self.list
                .fill_digests(|d| run(buffers, d.slot, d.offset, d.len));
        }
        let n = rng.amount(self.list.remaining());
        let mut left = n;
        for seg in self.list.segments() {
            let (bytes, odds) = match *seg {
                Seg::Head { start, len } => {
                    let (start, len) = (start as usize, len as usize);
                    (self.list.heads().get(start..start + len), faults.headers)
                }
                Seg::Data { slot, offset, len } => {
                    (Some(run(&self.buffers, slot, offset, len)), faults.payload)
                }
            };
            let bytes = bytes.unwrap_or_default();
            let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
            to.extend(bytes);
            if rng.once_in(odds) && !bytes.is_empty() {
                let flipped = to.len() - 1 - rng.below(bytes.len());
                if let Some(byte) = to.get_mut(flipped) {
                    *byte ^= 1 << rng.below(8);
                }
            }
            left -= bytes.len();
        }
        self.list.advance(n);
        // A buffer is free to be used again: bytes of it that leave after this are wrong.
        let buffers = &mut self.buffers;
        self.machine.transmitted(n, |slot| {
            buffers.entry(slot.index()).or_default().fill(0xdd);
        });
        (n > 0).then_some(())
    }
}

fn run(buffers: &BTreeMap<usize, Vec<u8>>, slot: Slot, offset: u32, len: u32) -> &[u8] {
    let (start, len) = (offset as usize, len as usize);
    buffers
        .get(&slot.index())
        .and_then(|buffer| buffer.get(start..start + len))
        .unwrap_or_default()
}

/// A length that came from a `u32`.
fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The commands that the target works on.
struct Controller {
    handler: Box<dyn FnMut(Request<'_>) -> Answer>,
    queue: QueueConfig,
    open: bool,
    /// By slot index.
    sqes: BTreeMap<usize, Sqe>,
    /// Answers that the target has not been given yet.
    late: Vec<(Slot, Answer)>,
}

/// A host and a target with one connection between them. See the [module](self).
pub struct Pair {
    host: End<TcpHost>,
    target: End<TcpTarget>,
    controller: Controller,
    completions: VecDeque<Completion>,
    rng: Rng,
    faults: Faults,
    now: Time,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("host", &self.host.machine)
            .field("target", &self.target.machine)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// Two ends that have not exchanged a byte. The target opens `queue` when the first command
    /// comes; every command, that one included, goes to `handler`.
    #[must_use]
    pub fn new(
        seed: u64,
        host: &host::Config,
        target: &target::Config,
        queue: QueueConfig,
        handler: impl FnMut(Request<'_>) -> Answer + 'static,
    ) -> Self {
        Self {
            host: End::new(TcpHost::new(host)),
            target: End::new(TcpTarget::new(target)),
            controller: Controller {
                handler: Box::new(handler),
                queue,
                open: false,
                sqes: BTreeMap::new(),
                late: Vec::new(),
            },
            completions: VecDeque::new(),
            rng: Rng::new(seed),
            faults: Faults::default(),
            now: Time::default(),
        }
    }

    /// From here on bits flip.
    pub const fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The host's machine.
    #[must_use]
    pub const fn host(&self) -> &TcpHost {
        &self.host.machine
    }

    /// The target's machine.
    #[must_use]
    pub const fn target(&self) -> &TcpTarget {
        &self.target.machine
    }

    /// What the host had to say against the target, and the target against the host.
    #[must_use]
    pub const fn violations(&self) -> (Option<Violation>, Option<Violation>) {
        (self.host.violation, self.target.violation)
    }

    /// Submits a command without data; `None` if the host has no slot free.
    pub fn submit(&mut self, sqe: Sqe) -> Option<Slot> {
        self.host.machine.submit(sqe, HostData::None)
    }

    /// Submits a command that reads `len` bytes; `None` if the host has no slot free.
    pub fn read(&mut self, sqe: Sqe, len: u32) -> Option<Slot> {
        let slot = self.host.machine.submit(sqe, HostData::Read { len })?;
        *self.host.buffer(slot) = vec![0; len as usize];
        Some(slot)
    }

    /// Submits a command that writes `data`, in its capsule if that is wanted and it fits; `None`
    /// if the host has no slot free.
    pub fn write(&mut self, sqe: Sqe, data: Vec<u8>, in_capsule: bool) -> Option<Slot> {
        let len = narrow(data.len());
        let slot = self
            .host
            .machine
            .submit(sqe, HostData::Write { len, in_capsule })?;
        *self.host.buffer(slot) = data;
        Some(slot)
    }

    /// The next command that has become complete.
    pub fn completed(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Moves the time on.
    pub const fn advance(&mut self, nanos: u64) {
        self.now = self.now.after(nanos);
    }

    /// One thing happens at one of the ends, if there is anything to be done there.
    pub fn step(&mut self) -> bool {
        let what = self.rng.below(5);
        let window = self.rng.amount(8192);
        self.act(what, window)
    }

    /// Steps until there is nothing left to be done but waiting; false if that takes more than
    /// `steps`.
    pub fn drive(&mut self, steps: usize) -> bool {
        let mut idle = 0;
        for _ in 0..steps {
            idle = if self.step() { 0 } else { idle + 1 };
            // Bad luck is no proof: with all bytes in view everyone has to be idle.
            if idle > 10 {
                idle = 0;
                let mut progress = false;
                for what in 0..5 {
                    progress |= self.act(what, usize::MAX);
                }
                if !progress {
                    return true;
                }
            }
        }
        false
    }

    fn act(&mut self, what: usize, window: usize) -> bool {
        let progress = match what {
            0 => self
                .target
                .send(&mut self.host.input, &mut self.rng, self.faults)
                .is_some(),
            1 => self
                .host
                .send(&mut self.target.input, &mut self.rng, self.faults)
                .is_some(),
            2 => self
                .target
                .receive(window)
                .map(|event| self.target_event(event))
                .is_some(),
            3 => self
                .host
                .receive(window)
                .map(|event| self.host_event(event))
                .is_some(),
            _ => self.late_answer(),
        };
        progress | self.close() | self.timeouts()
    }

    fn target_event(&mut self, event: Option<target::Event>) {
        match event {
            Some(target::Event::Command {
                slot,
                sqe,
                in_capsule,
                cid_conflict,
            }) => {
                if !self.controller.open {
                    self.controller.open = true;
                    self.target.machine.open_queue(&self.controller.queue);
                }
                self.controller.sqes.insert(slot.index(), sqe);
                let request = Request::Command {
                    sqe: &sqe,
                    in_capsule,
                    cid_conflict,
                };
                let answer = (self.controller.handler)(request);
                self.controller.late.push((slot, answer));
            }
            Some(target::Event::Received { slot, digest_ok }) => {
                let sqe = self
                    .controller
                    .sqes
                    .get(&slot.index())
                    .copied()
                    .unwrap_or_default();
                let data = self.target.buffer(slot);
                let request = Request::Received {
                    sqe: &sqe,
                    data,
                    digest_ok,
                };
                let answer = (self.controller.handler)(request);
                self.controller.late.push((slot, answer));
            }
            _ => {}
        }
    }

    fn host_event(&mut self, event: Option<host::Event>) {
        let Some(host::Event::Completed {
            slot,
            cqe,
            received,
            digest_ok,
        }) = event
        else {
            return;
        };
        let mut data = self.host.buffer(slot).clone();
        data.truncate(received as usize);
        self.completions.push_back(Completion {
            slot,
            cqe,
            data,
            digest_ok,
        });
    }

    /// Gives the target one of the answers that the handler has made, in any order.
    fn late_answer(&mut self) -> bool {
        let late = &mut self.controller.late;
        if late.is_empty() {
            return false;
        }
        let (slot, answer) = late.swap_remove(self.rng.below(late.len()));
        match answer {
            Answer::Receive(len) | Answer::Abandon(len, _) => {
                *self.target.buffer(slot) = vec![0; len as usize];
                self.target.machine.receive(slot, len);
                if let Answer::Abandon(_, status) = answer {
                    late.push((slot, Answer::status(status)));
                }
            }
            Answer::Complete {
                status,
                result,
                data,
            } => {
                let data_len = narrow(data.len());
                *self.target.buffer(slot) = data;
                self.target.machine.complete(
                    slot,
                    Done {
                        status,
                        result,
                        data_len,
                    },
                );
            }
        }
        true
    }

    /// An end that is done closes, and the other sees the end of the stream behind all bytes.
    fn close(&mut self) -> bool {
        let over = |need| need == Need::Closed;
        let (host, target) = (
            over(self.host.machine.need()),
            over(self.target.machine.need()),
        );
        if host && !target && self.target.input.is_empty() {
            self.target.machine.peer_closed();
            return true;
        }
        if target && !host && self.host.input.is_empty() {
            self.host.machine.peer_closed();
            return true;
        }
        false
    }

    fn timeouts(&mut self) -> bool {
        let mut progress = false;
        if self
            .host
            .machine
            .poll_timeout()
            .is_some_and(|due| due <= self.now)
        {
            let event = self.host.machine.handle_timeout(self.now);
            self.host_event(event);
            progress = true;
        }
        if self
            .target
            .machine
            .poll_timeout()
            .is_some_and(|due| due <= self.now)
        {
            self.target.machine.handle_timeout(self.now);
            progress = true;
        }
        progress
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the numbers that tests make up are small"
)]
mod tests;

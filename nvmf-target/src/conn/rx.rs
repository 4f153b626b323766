//! Receiving: one read brings many PDUs; payload goes to its buffer, large payload directly.

use super::{Conn, Queue};
use crate::chatter::limited;
use crate::reactor::{CARRY_MAX, Cx, READ_MIN};
use nvmf_proto::tcp::{Need, Slot, crc32c};
use std::io::{self, IoSliceMut};

/// Payload that is still missing is read straight into its buffer from this size on; below it, a
/// copy out of the stage is cheaper than the system call.
const DIRECT_MIN: usize = 4096;
/// Bytes that one connection may receive in a turn before the others have theirs.
const TURN_BUDGET: usize = 512 << 10;

/// What one read may bring before the Connect, and so what is kept at most while the connection has
/// to wait. On an admin queue it is [`READ_MIN`].
const UNKNOWN_MAX: usize = 4 << 10;
/// Room for leftovers that is kept.
const CARRY_ROOM: usize = 4 << 10;

/// Where a read may put bytes.
struct Target {
    slot: Slot,
    offset: usize,
    len: usize,
}

impl Conn {
    /// Reads and parses until the stream or this turn's budget is used up, or the machine has to
    /// wait for something else.
    pub(super) fn receive(&mut self, cx: &mut Cx) {
        if self.leaving {
            return self.discard_input(cx);
        }
        let mut budget = TURN_BUDGET;
        if !self.carry.is_empty() {
            let carry = std::mem::take(&mut self.carry);
            let used = self.feed(cx, &carry);
            self.keep(cx, carry, used);
        }
        while self.readable && self.stream.is_some() && !self.closing {
            let direct = match self.tcp.need() {
                // The end of the stream stands behind what cannot be taken yet, perhaps for ever:
                // it is not waited for. What the host wants done it has to stay for.
                Need::Wait(_) if self.ended => {
                    return self.close(cx, "the host closed the connection");
                }
                Need::Wait(_) => {
                    self.stalled = true;
                    return;
                }
                Need::Closed => break,
                // In a shutdown the commands that are here are finished. More are taken only where
                // they stand in front of data for those.
                Need::Bytes { .. } if cx.draining && !self.is_owed_data() => return,
                Need::Payload {
                    slot, offset, len, ..
                } if len as usize >= DIRECT_MIN => Some(Target {
                    slot,
                    offset: offset as usize,
                    len: len as usize,
                }),
                Need::Bytes { .. } | Need::Payload { .. } | Need::Discard { .. } | Need::Drain => {
                    None
                }
            };
            let mut stage = std::mem::take(&mut cx.stage);
            let room = self.read_room(cx, stage.len());
            let more = match self.read(&mut stage[..room], direct.as_ref()) {
                Ok(n) => {
                    budget = budget.saturating_sub(n);
                    self.take_in(cx, &stage, direct.as_ref(), n);
                    n > 0 && budget > 0
                }
                Err(err) => {
                    self.on_read_error(cx, &err);
                    false
                }
            };
            cx.stage = stage;
            if !more {
                break;
            }
        }
        if self.at_end() && self.stream.is_some() {
            self.close(cx, "the host closed the connection");
        } else if self.readable && self.stream.is_some() && budget == 0 {
            cx.ready.push(self.id);
        }
    }

    /// Reads what nobody wants any more, up to the end of the stream.
    fn discard_input(&mut self, cx: &mut Cx) {
        let mut stage = std::mem::take(&mut cx.stage);
        let result = match &mut self.stream {
            Some(stream) => stream.readv(&mut [IoSliceMut::new(&mut stage)]),
            None => Ok(0),
        };
        cx.stage = stage;
        match result {
            Ok(0) => self.close(cx, "both sides are done"),
            Ok(_) => cx.ready.push(self.id),
            Err(err) => self.on_read_error(cx, &err),
        }
    }

    /// Goes on reading in the next turn if what the machine waited for has come.
    pub(super) fn resume(&mut self, cx: &mut Cx) {
        if self.stalled && self.stream.is_some() && !matches!(self.tcp.need(), Need::Wait(_)) {
            self.stalled = false;
            cx.ready.push(self.id);
        }
    }

    /// How much one read may bring: all of it may have to be kept, if the machine has to wait.
    fn read_room(&self, cx: &Cx, stage: usize) -> usize {
        match &self.queue {
            Queue::None => UNKNOWN_MAX,
            Queue::Io(_) if cx.carried < CARRY_MAX => stage,
            Queue::Admin(_) | Queue::Io(_) => READ_MIN,
        }
    }

    /// One read: behind what was carried over, or with the payload's buffer in front.
    fn read(&mut self, stage: &mut [u8], direct: Option<&Target>) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else {
            return Ok(0);
        };
        let mut asked = 0;
        let result = if let Some(&Target { slot, offset, len }) = direct {
            let buf = &mut self.commands[slot.index()].buf;
            let bufs = &mut [
                IoSliceMut::new(&mut buf[offset..offset + len]),
                IoSliceMut::new(stage),
            ];
            asked += bufs[0].len() + bufs[1].len();
            stream.readv(bufs)
        } else {
            let (carried, free) = stage.split_at_mut(self.carry.len());
            carried.copy_from_slice(&self.carry);
            asked += free.len();
            stream.readv(&mut [IoSliceMut::new(free)])
        };
        if let Ok(n) = result {
            // Less than asked for means that nothing is left, and the next bytes make a new event;
            // but the end of the stream made its event already, perhaps together with these bytes.
            self.readable = n == asked || self.ended || stream.has_buffered();
            if n == 0 {
                self.tcp.peer_closed();
            }
        }
        result
    }

    fn on_read_error(&mut self, cx: &mut Cx, err: &io::Error) {
        match err.kind() {
            io::ErrorKind::WouldBlock => self.readable = false,
            io::ErrorKind::Interrupted => cx.ready.push(self.id),
            _ => self.close(cx, &err.to_string()),
        }
    }

    /// Parses `n` bytes that a read has brought.
    fn take_in(&mut self, cx: &mut Cx, stage: &[u8], direct: Option<&Target>, n: usize) {
        if n > 0 {
            self.moved = cx.now;
        }
        if let Some(target) = direct {
            let placed = n.min(target.len);
            self.placed(cx, target.slot, target.offset, placed);
            let used = self.feed(cx, &stage[..n - placed]);
            self.carry.extend_from_slice(&stage[used..n - placed]);
            self.count_carry(cx);
        } else {
            let end = self.carry.len() + n;
            self.carry.clear();
            let used = self.feed(cx, &stage[..end]);
            self.carry.extend_from_slice(&stage[used..end]);
            self.count_carry(cx);
        }
    }

    /// Keeps what `feed` has left of earlier leftovers.
    fn keep(&mut self, cx: &mut Cx, mut carry: Vec<u8>, used: usize) {
        carry.drain(..used);
        if carry.capacity() > CARRY_ROOM.max(2 * carry.len()) {
            carry.shrink_to(CARRY_ROOM);
        }
        self.carry = carry;
        self.count_carry(cx);
    }

    /// The memory of leftovers has changed, perhaps.
    pub(super) fn count_carry(&mut self, cx: &mut Cx) {
        let mut carried = self.carry.capacity();
        if carried != self.carried {
            // Behind a command that has closed the connection more may have come.
            if self.stream.is_none() {
                self.carry = Vec::new();
                carried = 0;
            }
            cx.carried = cx.carried - self.carried + carried;
            self.carried = carried;
        }
    }

    /// Payload has arrived in its buffer.
    fn placed(&mut self, cx: &mut Cx, slot: Slot, offset: usize, n: usize) {
        let Need::Payload { crc, .. } = self.tcp.need() else {
            return;
        };
        self.filling.note(n);
        let bytes = &self.commands[slot.index()].buf[offset..offset + n];
        let crc = crc.map(|crc| crc32c(crc, bytes));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most what `need` asked for, a u32"
        )]
        if let Some(event) = self.tcp.placed(n as u32, crc) {
            self.on_event(cx, event);
        }
    }

    /// Takes as much of `bytes` as the machine can use now; returns how much that was.
    fn feed(&mut self, cx: &mut Cx, bytes: &[u8]) -> usize {
        let mut used = 0;
        // A Disconnect is the last command of its queue.
        while self.stream.is_some() && !self.closing {
            let rest = &bytes[used..];
            match self.tcp.need() {
                Need::Bytes { min } => {
                    if rest.len() < min {
                        break;
                    }
                    match self.tcp.parse(rest) {
                        Ok(parsed) => {
                            used += parsed.used;
                            if let Some(event) = parsed.event {
                                self.on_event(cx, event);
                            }
                        }
                        Err(violation) => {
                            limited!(
                                Warn,
                                cx.core.chatters.protocol,
                                cx.now,
                                "{}: {violation}; the connection ends",
                                self.peer
                            );
                            self.abandon(cx);
                            self.mark_dirty(cx);
                            self.arm(cx);
                        }
                    }
                }
                Need::Payload {
                    slot, offset, len, ..
                } => {
                    if let Some(n) = self.write_in_place(cx, rest) {
                        used += n;
                        continue;
                    }
                    let n = rest.len().min(len as usize);
                    if n == 0 || self.stream.is_none() {
                        break;
                    }
                    let offset = offset as usize;
                    self.commands[slot.index()].buf[offset..offset + n].copy_from_slice(&rest[..n]);
                    used += n;
                    self.placed(cx, slot, offset, n);
                }
                Need::Discard { len } => {
                    let n = rest.len().min(len as usize);
                    if n == 0 {
                        break;
                    }
                    used += n;
                    #[expect(clippy::cast_possible_truncation, reason = "at most `len`, a u32")]
                    if let Some(event) = self.tcp.placed(n as u32, None) {
                        self.on_event(cx, event);
                    }
                    // A command that was over before its data may have waited for the last of it.
                    if self.tcp.has_transmit() {
                        self.mark_dirty(cx);
                    }
                }
                Need::Wait(_) => {
                    self.stalled = true;
                    break;
                }
                Need::Drain | Need::Closed => return bytes.len(),
            }
        }
        used
    }
}

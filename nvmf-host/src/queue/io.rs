//! Moving bytes between a stream and the machine.

use super::{Completion, Failure, Late, Queue};
use crate::error::Error;
use nvmf_proto::tcp::host::Event;
use nvmf_proto::tcp::{Need, Seg, Slot, crc32c};
use nvmf_proto::wire::Cqe;
use std::io::{ErrorKind, IoSlice, IoSliceMut};

/// Read-ahead: one system call takes in many small PDUs. Larger data goes straight to its buffer.
const STAGE: usize = 64 << 10;

/// Bytes that were read and not dealt with yet.
#[derive(Debug)]
pub(super) struct Stage {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; STAGE].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn staged(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
    }

    /// Moves what is left, less than a header, to the front and gives the room behind it.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }
}

impl Queue {
    /// Sends until nothing is left or the stream takes no more.
    pub(super) fn send(&mut self) -> Result<(), Error> {
        loop {
            if self.tx.is_empty() {
                if !self.machine.poll_transmit(&mut self.tx) {
                    return Ok(());
                }
                let commands = &self.commands;
                self.tx.fill_digests(|digest| {
                    let start = digest.offset as usize;
                    &commands[digest.slot.index()].buffer[start..start + digest.len as usize]
                });
            }
            match self.write() {
                Ok(n) => {
                    self.tx.advance(n);
                    self.machine.transmitted(n);
                    self.release_late();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // The target may have said why before it closed: that is worth more.
                    let failure = Failure::Io("sending to the target", error.kind());
                    self.receive()?;
                    return Err(self.fail(failure));
                }
            }
        }
    }

    /// One gather write.
    fn write(&mut self) -> std::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); super::TX_SEGS];
        let mut count = 0;
        for (slice, seg) in slices.iter_mut().zip(self.tx.segments()) {
            let (from, start, len) = match *seg {
                Seg::Head { start, len } => (self.tx.heads(), start, len),
                Seg::Data { slot, offset, len } => {
                    (&self.commands[slot.index()].buffer[..], offset, len)
                }
            };
            *slice = IoSlice::new(&from[start as usize..start as usize + len as usize]);
            count += 1;
        }
        self.stream.writev(&slices[..count])
    }

    /// Receives until the stream has no more.
    pub(super) fn receive(&mut self) -> Result<(), Error> {
        loop {
            let need = self.parse_staged()?;
            let (asked, result) = match need {
                Need::Payload {
                    slot,
                    offset,
                    len,
                    crc,
                } => {
                    // Everything staged was used: data to its place, what follows to the stage.
                    let room = self.stage.room();
                    let start = offset as usize;
                    let place =
                        &mut self.commands[slot.index()].buffer[start..start + len as usize];
                    let asked = place.len() + room.len();
                    let slices = &mut [IoSliceMut::new(place), IoSliceMut::new(room)];
                    let result = self.stream.readv(slices);
                    if let Ok(n) = result {
                        let direct = n.min(len as usize);
                        self.stage.end += n - direct;
                        self.place(slot, offset, direct, crc);
                    }
                    (asked, result)
                }
                Need::Closed | Need::Drain => return Ok(()),
                Need::Bytes { .. } | Need::Discard { .. } | Need::Wait(_) => {
                    let room = self.stage.room();
                    let asked = room.len();
                    let result = self.stream.readv(&mut [IoSliceMut::new(room)]);
                    self.stage.end += result.as_ref().copied().unwrap_or(0);
                    (asked, result)
                }
            };
            match result {
                Ok(0) => {
                    self.machine.peer_closed();
                    return Err(self.fail(Failure::Closed));
                }
                // A short read says that the stream is empty: no need to ask again.
                Ok(n) if n < asked => {
                    self.parse_staged()?;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(self.fail(Failure::Io("receiving from the target", error.kind())));
                }
            }
        }
    }

    /// Deals with what is staged as far as it goes and returns what is needed next.
    fn parse_staged(&mut self) -> Result<Need, Error> {
        loop {
            let need = self.machine.need();
            match need {
                Need::Bytes { min } => {
                    if self.stage.staged().len() < min {
                        return Ok(need);
                    }
                    match self.machine.parse(self.stage.staged()) {
                        Ok(parsed) => {
                            self.stage.consume(parsed.used);
                            self.take_event(parsed.event)?;
                        }
                        Err(violation) => {
                            let error = self.fail(Failure::Violation(violation));
                            self.say_goodbye();
                            return Err(error);
                        }
                    }
                }
                Need::Payload {
                    slot,
                    offset,
                    len,
                    crc,
                } => {
                    let staged = self.stage.staged();
                    let n = staged.len().min(len as usize);
                    if n == 0 {
                        return Ok(need);
                    }
                    let start = offset as usize;
                    self.commands[slot.index()].buffer[start..start + n]
                        .copy_from_slice(&staged[..n]);
                    self.stage.consume(n);
                    self.place(slot, offset, n, crc);
                }
                Need::Discard { .. } | Need::Wait(_) | Need::Drain | Need::Closed => {
                    return Ok(need);
                }
            }
        }
    }

    /// Reports `n` bytes of data that stand in their place.
    fn place(&mut self, slot: Slot, offset: u32, n: usize, crc: Option<u32>) {
        let start = offset as usize;
        let crc = crc.map(|crc| crc32c(crc, &self.commands[slot.index()].buffer[start..start + n]));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most the u32 that was asked for"
        )]
        let event = self.machine.placed(n as u32, crc);
        if let Some(Event::Completed {
            slot,
            cqe,
            received,
            digest_ok,
        }) = event
        {
            self.take_completion(slot, cqe, received, digest_ok);
        }
    }

    fn take_event(&mut self, event: Option<Event>) -> Result<(), Error> {
        match event {
            Some(Event::Completed {
                slot,
                cqe,
                received,
                digest_ok,
            }) => {
                self.take_completion(slot, cqe, received, digest_ok);
                Ok(())
            }
            Some(Event::Terminated(term)) => Err(self.fail(Failure::Terminated(term))),
            Some(Event::Ready(_) | Event::Closed(_)) | None => Ok(()),
        }
    }

    fn take_completion(&mut self, slot: Slot, cqe: Cqe, received: u32, digest_ok: bool) {
        if self.machine.is_sending(slot) {
            self.late.push(Late {
                slot,
                cqe,
                received,
                digest_ok,
            });
            return;
        }
        let command = &mut self.commands[slot.index()];
        let buffer = std::mem::take(&mut command.buffer);
        if !command.abandoned {
            let (token, tag) = (command.token, command.tag);
            self.ready.push_back(Completion {
                token,
                tag,
                cqe,
                buffer,
                received,
                digest_ok,
            });
        }
    }

    /// Gives out completions that waited for their buffer to have left.
    fn release_late(&mut self) {
        let mut at = 0;
        while let Some(late) = self.late.get(at) {
            if self.machine.is_sending(late.slot) {
                at += 1;
            } else {
                let Late {
                    slot,
                    cqe,
                    received,
                    digest_ok,
                } = self.late.remove(at);
                self.take_completion(slot, cqe, received, digest_ok);
            }
        }
    }

    /// Tries once to get the H2CTermReq out; the connection is over either way.
    fn say_goodbye(&mut self) {
        while !self.tx.is_empty() || self.machine.poll_transmit(&mut self.tx) {
            match self.write() {
                Ok(n) => {
                    self.tx.advance(n);
                    self.machine.transmitted(n);
                }
                Err(_) => return,
            }
        }
    }
}

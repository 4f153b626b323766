//! One queue of a host: a connection, the host's machine for it, and the commands that are under
//! way on it.

use crate::command::Command;
use crate::network::{SharedLink, lock};
use crate::{note, trace};
use nvmf_proto::tcp::host::{Config, Event, HostData, TcpHost};
use nvmf_proto::tcp::{Need, Seg, Slot, Time, TxList, Violation, crc32c};
use nvmf_proto::wire::{Cqe, Sqe};
use std::collections::BTreeMap;

/// A command that is complete.
#[derive(Debug)]
pub struct Completion {
    pub command: Command,
    pub cqe: Cqe,
    pub data: Vec<u8>,
    /// The data's digests were right.
    pub digest_ok: bool,
}

/// What a queue has received.
#[derive(Debug)]
pub enum Received {
    Completed(Box<Completion>),
    /// The target said why it ends the connection.
    Terminated(String),
    /// The target broke the protocol.
    Violation(Violation),
    /// The end of the stream.
    Ended,
}

pub struct Queue {
    pub link: SharedLink,
    pub id: usize,
    pub qid: u16,
    tcp: TcpHost,
    buffers: Vec<Vec<u8>>,
    list: TxList,
    input: Vec<u8>,
    /// By slot index.
    commands: BTreeMap<usize, (Slot, Command)>,
    /// The host does not read before this time.
    pub deaf_until: u64,
    /// The host does not write before this time.
    pub mute_until: u64,
    /// The host has closed its end, or the target has.
    pub over: bool,
    /// The Connect of this queue has succeeded.
    pub joined: bool,
    /// Commands that the host lets be outstanding at a time.
    pub depth: usize,
}

impl Queue {
    pub fn new(link: SharedLink, qid: u16, config: &Config, now: u64) -> Self {
        let mut tcp = TcpHost::new(config);
        tcp.handle_timeout(Time(now));
        let id = lock(&link).id;
        Self {
            link,
            id,
            qid,
            buffers: vec![Vec::new(); tcp.slots()],
            depth: tcp.slots(),
            tcp,
            list: TxList::new(2048, 32),
            input: Vec::new(),
            commands: BTreeMap::new(),
            deaf_until: 0,
            mute_until: 0,
            over: false,
            joined: false,
        }
    }

    pub fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    pub fn has_room_for(&self, commands: usize) -> bool {
        !self.over && self.tcp.outstanding() + commands <= self.depth.min(self.tcp.slots())
    }

    /// Submits a command with its data.
    pub fn submit(&mut self, sqe: Sqe, data: Data, mut command: Command) -> Option<u16> {
        let (how, buffer) = match data {
            Data::None => (HostData::None, Vec::new()),
            Data::Read(len) => (HostData::Read { len }, vec![0xdd; len as usize]),
            Data::Write(bytes, in_capsule) => {
                let len = bytes.len() as u32;
                (HostData::Write { len, in_capsule }, bytes)
            }
        };
        let slot = self.tcp.submit(sqe, how)?;
        let cid = self.tcp.cid(slot).unwrap_or_default();
        command.cid = cid;
        note!(
            "queue {} submits {} as {}",
            self.id,
            command.what.name(),
            cid
        );
        self.buffers[slot.index()] = buffer;
        self.commands.insert(slot.index(), (slot, command));
        Some(cid)
    }

    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.values().map(|(_, command)| command)
    }

    pub fn commands_mut(&mut self) -> impl Iterator<Item = &mut Command> {
        self.commands.values_mut().map(|(_, command)| command)
    }

    /// The commands that will never be answered.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
            .into_values()
            .map(|(_, command)| command)
            .collect()
    }

    /// Whether the machine has something to send.
    pub fn wants_to_send(&self) -> bool {
        !self.over && (!self.list.is_empty() || self.tcp.has_transmit())
    }

    /// Sends at most `most` bytes of what is due; returns how many.
    pub fn send(&mut self, most: usize) -> usize {
        self.tcp.poll_transmit(&mut self.list);
        let buffers = &self.buffers;
        let run = |slot: Slot, offset: u32, len: u32| {
            &buffers[slot.index()][offset as usize..(offset + len) as usize]
        };
        self.list.fill_digests(|d| run(d.slot, d.offset, d.len));
        let mut link = lock(&self.link);
        let n = self.list.remaining().min(most).min(link.host_room());
        let mut left = n;
        for seg in self.list.segments() {
            let bytes = match *seg {
                Seg::Head { start, len } => {
                    &self.list.heads()[start as usize..(start + len) as usize]
                }
                Seg::Data { slot, offset, len } => run(slot, offset, len),
            };
            let take = bytes.len().min(left);
            link.host_write(&bytes[..take]);
            left -= take;
            if left == 0 {
                break;
            }
        }
        drop(link);
        if n > 0 {
            note!("queue {} sends {}", self.id, n);
            self.list.advance(n);
            self.tcp.transmitted(n);
        }
        n
    }

    /// Deals with everything that has arrived.
    pub fn receive(&mut self) -> Vec<Received> {
        let mut events = Vec::new();
        let ended = lock(&self.link).host_read(&mut self.input);
        let mut at = 0;
        loop {
            let need = self.tcp.need();
            let rest = &self.input[at..];
            match need {
                Need::Bytes { min } if rest.len() >= min => match self.tcp.parse(rest) {
                    Ok(parsed) => {
                        at += parsed.used;
                        if let Some(event) = parsed.event {
                            self.on_event(event, &mut events);
                        } else if parsed.used == 0 && self.tcp.need() == need {
                            break;
                        }
                    }
                    Err(violation) => {
                        if trace::wants_lines() {
                            let head = &rest[..rest.len().min(24)];
                            trace::line(format_args!("{violation}: {head:02x?}"));
                        }
                        events.push(Received::Violation(violation));
                    }
                },
                Need::Payload {
                    slot,
                    offset,
                    len,
                    crc,
                } if !rest.is_empty() => {
                    let n = rest.len().min(len as usize);
                    let to = offset as usize;
                    self.buffers[slot.index()][to..to + n].copy_from_slice(&rest[..n]);
                    let crc = crc.map(|crc| crc32c(crc, &rest[..n]));
                    at += n;
                    if let Some(event) = self.tcp.placed(n as u32, crc) {
                        self.on_event(event, &mut events);
                    }
                }
                Need::Drain | Need::Closed => {
                    at = self.input.len();
                    break;
                }
                _ => break,
            }
        }
        self.input.drain(..at);
        if ended {
            self.tcp.peer_closed();
            events.push(Received::Ended);
        }
        events
    }

    fn on_event(&mut self, event: Event, events: &mut Vec<Received>) {
        match event {
            Event::Ready(_) => {}
            Event::Completed {
                slot,
                cqe,
                received,
                digest_ok,
            } => {
                let known = self.commands.remove(&slot.index());
                let (_, command) = known.expect("the machine knows no other commands");
                // Data that is still leaving stays where it is.
                let mut data = if self.tcp.is_sending(slot) {
                    Vec::new()
                } else {
                    std::mem::take(&mut self.buffers[slot.index()])
                };
                data.truncate(received as usize);
                note!(
                    "queue {} completes {} as {}: {}",
                    self.id,
                    command.what.name(),
                    command.cid,
                    cqe.status
                );
                events.push(Received::Completed(Box::new(Completion {
                    command,
                    cqe,
                    data,
                    digest_ok,
                })));
            }
            Event::Terminated(term) => {
                events.push(Received::Terminated(format!("{term:?}")));
            }
            Event::Closed(reason) => events.push(Received::Terminated(format!("{reason:?}"))),
        }
    }

    /// The host closes its end.
    pub fn close(&mut self, reset: bool) {
        if !self.over {
            note!("queue {} is closed by its host, reset {}", self.id, reset);
            self.over = true;
            lock(&self.link).host_close(reset);
        }
    }

    pub fn has_input(&self) -> bool {
        !self.over && lock(&self.link).host_has_input()
    }
}

/// The data of a command.
#[derive(Debug)]
pub enum Data {
    None,
    Read(u32),
    /// The bytes, and whether they may go in the capsule.
    Write(Vec<u8>, bool),
}

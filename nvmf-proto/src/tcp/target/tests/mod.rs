//! The machine under test against PDUs built by hand. `contract` and `any_order` have a test for
//! each line of the contract in [`crate::tcp`], `checks` one for each check of a PDU; the rest
//! is in `connection` and `commands`.

mod any_order;
mod checks;
mod commands;
mod connection;
mod contract;

use super::{Config, Done, Event, QueueConfig, TcpTarget};
use crate::tcp::{Need, Seg, Slot, TxList, Violation, WaitFor, crc32c};
use crate::wire::pdu::{
    CommonHeader, DataHeader, InitConnection, PduFlags, PduType, TermReq, capsule_cqe,
    encode_capsule_cmd,
};
use crate::wire::{Cqe, NvmOpcode, SglDescriptor, Sqe, Status};

/// Builds what a host sends.
#[derive(Clone, Copy, Debug, Default)]
struct Wire {
    header_digest: bool,
    data_digest: bool,
    /// Of the controller, so that padding can be right.
    cpda: u8,
}

impl Wire {
    /// Pads, digests and lengths as they should be.
    fn pdu(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut pdu = header.to_vec();
        let digest = if self.header_digest { 4 } else { 0 };
        let end = header.len() + digest;
        let pdo = match data {
            [] => end,
            _ => end.next_multiple_of((usize::from(self.cpda) + 1) * 4),
        };
        let ddgst = self.data_digest && !data.is_empty();
        let plen = pdo + data.len() + if ddgst { 4 } else { 0 };
        pdu[1] |= u8::from(self.header_digest) | u8::from(ddgst) << 1;
        pdu[3] = if data.is_empty() { 0 } else { pdo as u8 };
        pdu[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        if self.header_digest {
            pdu.extend(crc32c(0, &pdu).to_le_bytes());
        }
        pdu.resize(pdo, 0);
        pdu.extend(data);
        if ddgst {
            pdu.extend(crc32c(0, data).to_le_bytes());
        }
        pdu
    }

    fn command(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        self.pdu(
            &encode_capsule_cmd(&common(PduType::CAPSULE_CMD, 72), sqe),
            data,
        )
    }

    fn h2c_data(&self, cccid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut ch = common(PduType::H2C_DATA, 24);
        ch.flags.set(PduFlags::LAST_PDU, last);
        let length = data.len() as u32;
        self.pdu(
            &DataHeader {
                cccid,
                ttag,
                offset,
                length,
            }
            .encode(&ch),
            data,
        )
    }
}

fn common(pdu_type: PduType, hlen: u8) -> CommonHeader {
    CommonHeader {
        pdu_type,
        flags: PduFlags::empty(),
        hlen,
        pdo: 0,
        plen: u32::from(hlen),
    }
}

fn ic_req(hpda: u8, dgst: u8) -> [u8; 128] {
    InitConnection {
        pfv: 0,
        pda: hpda,
        dgst,
        max: 0,
    }
    .encode(PduType::IC_REQ)
}

/// `TermReq` from the host, with `quoted` bytes of data.
fn term_req(fes: u16, fei: u32, quoted: u8) -> Vec<u8> {
    let term = TermReq {
        fes: crate::wire::pdu::Fes(fes),
        fei,
    };
    let mut pdu = term.encode(PduType::H2C_TERM_REQ, quoted).to_vec();
    pdu.resize(24 + usize::from(quoted), 0xee);
    pdu
}

fn sqe(opcode: NvmOpcode, cid: u16, sgl: SglDescriptor) -> Sqe {
    let mut sqe = Sqe::with_opcode(opcode.0);
    sqe.set_cid(cid);
    sqe.set_sgl(sgl);
    sqe
}

fn read(cid: u16, len: u32) -> Sqe {
    sqe(NvmOpcode::READ, cid, SglDescriptor::transport(len))
}

fn write(cid: u16, len: u32) -> Sqe {
    sqe(NvmOpcode::WRITE, cid, SglDescriptor::transport(len))
}

fn flush(cid: u16) -> Sqe {
    sqe(NvmOpcode::FLUSH, cid, SglDescriptor::transport(0))
}

/// Some bytes that differ from each other and from those of another `seed`.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(0x9e37_79b1) ^ seed).to_le_bytes()[2])
        .collect()
}

const OK: Done = Done {
    status: Status::SUCCESS,
    result: 0,
    data_len: 0,
};

const fn failed(status: Status) -> Done {
    Done {
        status,
        result: 0,
        data_len: 0,
    }
}

/// A PDU that the controller has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pdu {
    ch: CommonHeader,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Pdu {
    fn data_header(&self) -> DataHeader {
        DataHeader::decode(self.header.first_chunk().unwrap())
    }

    fn cqe(&self) -> Cqe {
        assert_eq!(self.ch.pdu_type, PduType::CAPSULE_RESP);
        capsule_cqe(self.header.first_chunk().unwrap())
    }

    fn term_req(&self) -> TermReq {
        assert_eq!(self.ch.pdu_type, PduType::C2H_TERM_REQ);
        TermReq::decode(self.header.first_chunk().unwrap())
    }
}

/// Takes a byte stream from the controller apart and checks digests and padding.
fn split(mut bytes: &[u8], wire: Wire) -> Vec<Pdu> {
    let mut pdus = Vec::new();
    while let Some(first) = bytes.first_chunk() {
        let ch = CommonHeader::decode(first);
        let (pdu, rest) = bytes.split_at(ch.plen as usize);
        let hlen = usize::from(ch.hlen);
        let bare = matches!(ch.pdu_type, PduType::IC_RESP | PduType::C2H_TERM_REQ);
        let digest = wire.header_digest && !bare;
        assert_eq!(ch.flags.contains(PduFlags::HDGST), digest, "{ch:?}");
        let mut end = hlen;
        if digest {
            assert_eq!(pdu[hlen..hlen + 4], crc32c(0, &pdu[..hlen]).to_le_bytes());
            end += 4;
        }
        let mut data = &pdu[end..];
        if ch.pdu_type == PduType::C2H_DATA {
            assert!(
                pdu[end..usize::from(ch.pdo)].iter().all(|&b| b == 0),
                "padding is zero"
            );
            data = &pdu[usize::from(ch.pdo)..];
            assert_eq!(ch.flags.contains(PduFlags::DDGST), wire.data_digest);
            if wire.data_digest {
                let (payload, digest) = data.split_at(data.len() - 4);
                assert_eq!(digest, crc32c(0, payload).to_le_bytes());
                data = payload;
            }
        }
        pdus.push(Pdu {
            ch,
            header: pdu[..hlen].to_vec(),
            data: data.to_vec(),
        });
        bytes = rest;
    }
    assert!(bytes.is_empty());
    pdus
}

/// A driver: bytes in, events out, buffers for the commands.
#[derive(Debug)]
struct Driver {
    target: TcpTarget,
    wire: Wire,
    /// Bytes that have come and not been used.
    input: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    violation: Option<Violation>,
}

impl Driver {
    /// A connection before its ICReq.
    fn new(config: &Config) -> Self {
        Self {
            target: TcpTarget::new(config),
            wire: Wire {
                cpda: config.cpda,
                ..Wire::default()
            },
            input: Vec::new(),
            buffers: Vec::new(),
            violation: None,
        }
    }

    /// A connection with an open queue and nothing outstanding.
    fn open(config: &Config, queue: &QueueConfig, hpda: u8, dgst: u8) -> Self {
        let mut driver = Self::new(config);
        let events = driver.feed(&ic_req(hpda, dgst));
        let [Event::Ready(agreed)] = events[..] else {
            panic!("{events:?}")
        };
        driver.wire.header_digest = agreed.header_digest;
        driver.wire.data_digest = agreed.data_digest;
        driver.send();
        driver.target.open_queue(queue);
        driver
    }

    /// Shows the machine as much as it takes.
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.input.extend(bytes);
        let mut events = Vec::new();
        while let Some(event) = self.step(usize::MAX) {
            events.push(event);
        }
        events
    }

    /// Works on what has come until there is an event or nothing more to do.
    fn step(&mut self, most: usize) -> Option<Event> {
        loop {
            if let Some(event) = self.turn(most)? {
                return Some(event);
            }
        }
    }

    /// Calls the machine once, with at most `most` bytes of payload, and says what happened;
    /// nothing if there is nothing to call it for.
    fn turn(&mut self, most: usize) -> Option<Option<Event>> {
        let need = self.target.need();
        match need {
            Need::Bytes { min } => {
                assert!((1..=255).contains(&min), "{min}");
                match self.target.parse(&self.input) {
                    Ok(parsed) => {
                        self.input.drain(..parsed.used);
                        let progress = parsed.used > 0 || self.target.need() != need;
                        progress.then_some(parsed.event)
                    }
                    Err(violation) => {
                        assert_eq!(self.violation.replace(violation), None, "a second one");
                        None
                    }
                }
            }
            Need::Payload {
                slot,
                offset,
                len,
                crc,
            } => {
                let bytes = self.take(len, most)?;
                let (start, end) = (offset as usize, offset as usize + bytes.len());
                let buffer = self.buffer(slot);
                buffer.resize(end.max(buffer.len()), 0);
                buffer[start..end].copy_from_slice(&bytes);
                let crc = crc.map(|crc| crc32c(crc, &bytes));
                Some(self.target.placed(bytes.len() as u32, crc))
            }
            Need::Discard { len } => {
                let n = self.take(len, most)?.len();
                Some(self.target.placed(n as u32, None))
            }
            Need::Drain => {
                self.input.clear();
                None
            }
            Need::Wait(_) | Need::Closed => None,
        }
    }

    /// The next bytes that have come, if any: at most `len`, at most `most`.
    fn take(&mut self, len: u32, most: usize) -> Option<Vec<u8>> {
        let n = self.input.len().min(len as usize).min(most);
        (n > 0).then(|| self.input.drain(..n).collect())
    }

    /// The one command that `bytes` hold.
    fn command(&mut self, bytes: &[u8]) -> Slot {
        let events = self.feed(bytes);
        let [Event::Command { slot, .. }] = events[..] else {
            panic!("{events:?}")
        };
        slot
    }

    fn buffer(&mut self, slot: Slot) -> &mut Vec<u8> {
        if self.buffers.len() <= slot.index() {
            self.buffers.resize(slot.index() + 1, Vec::new());
        }
        &mut self.buffers[slot.index()]
    }

    /// Hands over what is due, as bytes, without reporting that they have left.
    fn poll(&mut self) -> Vec<u8> {
        let mut list = TxList::new(256, 4);
        let mut bytes = Vec::new();
        while self.target.poll_transmit(&mut list) {
            list.fill_digests(|d| slice(&self.buffers, d.slot, d.offset, d.len));
            for seg in list.segments() {
                match *seg {
                    Seg::Head { start, len } => {
                        bytes.extend(&list.heads()[start as usize..(start + len) as usize]);
                    }
                    Seg::Data { slot, offset, len } => {
                        bytes.extend(slice(&self.buffers, slot, offset, len));
                    }
                }
            }
            list.clear();
        }
        assert!(!self.target.has_transmit());
        bytes
    }

    /// Sends all that is due.
    fn send(&mut self) -> Vec<Pdu> {
        let bytes = self.poll();
        self.target.transmitted(bytes.len(), |_| {});
        split(&bytes, self.wire)
    }

    /// The one PDU that is due.
    fn send_one(&mut self) -> Pdu {
        let mut pdus = self.send();
        assert_eq!(pdus.len(), 1, "{pdus:?}");
        pdus.remove(0)
    }

    /// The one R2T that is due.
    fn r2t(&mut self) -> DataHeader {
        let pdu = self.send_one();
        assert_eq!(pdu.ch.pdu_type, PduType::R2T);
        pdu.data_header()
    }

    fn is_wait(&self, wait: WaitFor) -> bool {
        self.target.need() == Need::Wait(wait)
    }
}

fn slice(buffers: &[Vec<u8>], slot: Slot, offset: u32, len: u32) -> &[u8] {
    &buffers[slot.index()][offset as usize..(offset + len) as usize]
}

const QUEUE: QueueConfig = QueueConfig {
    entries: 8,
    flow_control: true,
    in_capsule: 8192,
};

/// An open queue without digests.
fn plain() -> Driver {
    Driver::open(&Config::default(), &QUEUE, 0, 0)
}

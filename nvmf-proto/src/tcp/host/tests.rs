//! A scripted controller, byte by byte, against the machine.

mod flows;
mod negative;
mod properties;

use super::*;
use crate::tcp::{Seg, crc32c};
use crate::wire::Status;
use crate::wire::pdu::{
    CommonHeader, DATA_LEN, DataHeader, InitConnection, PduFlags, PduType, RESP_LEN,
    encode_capsule_resp,
};

/// A machine and what a driver has to keep for it.
struct Rig {
    host: TcpHost,
    tx: TxList,
    /// Buffers by slot index.
    buffers: Vec<Vec<u8>>,
    /// Bytes that came and were not dealt with.
    staged: Vec<u8>,
    events: Vec<Event>,
    violation: Option<Violation>,
    /// Everything that left.
    sent: Vec<u8>,
}

impl Rig {
    fn new(config: &Config) -> Self {
        let host = TcpHost::new(config);
        let buffers = vec![Vec::new(); host.slots()];
        Self {
            host,
            tx: TxList::new(4096, 32),
            buffers,
            staged: Vec::new(),
            events: Vec::new(),
            violation: None,
            sent: Vec::new(),
        }
    }

    /// Past ICReq and ICResp.
    fn ready(config: &Config) -> Self {
        let mut rig = Self::new(config);
        rig.transmit();
        rig.feed(&ic_resp(config));
        assert!(
            matches!(rig.events[..], [Event::Ready(_)]),
            "{:?}",
            rig.events
        );
        rig.events.clear();
        rig.sent.clear();
        rig
    }

    fn submit(&mut self, data: HostData) -> Slot {
        let slot = self
            .host
            .submit(Sqe::with_opcode(1), data)
            .expect("a slot is free");
        let len = match data {
            HostData::Write { len, .. } | HostData::Read { len } => len as usize,
            HostData::None | HostData::AsIs => 0,
        };
        let fill = if matches!(data, HostData::Read { .. }) {
            0
        } else {
            slot.index() + 1
        };
        self.buffers[slot.index()] = vec![u8::try_from(fill % 256).expect("a byte"); len];
        slot
    }

    /// Submits and hands out.
    fn issue(&mut self, data: HostData) -> (Slot, u16) {
        let slot = self.submit(data);
        self.transmit();
        (slot, self.cid(slot))
    }

    fn cid(&self, slot: Slot) -> u16 {
        self.host.table.get(slot).expect("live").sqe.cid()
    }

    /// Sends everything; returns what was sent.
    fn transmit(&mut self) -> Vec<u8> {
        let before = self.sent.len();
        while self.host.poll_transmit(&mut self.tx) {
            let bytes = self.drain_list();
            self.sent.extend_from_slice(&bytes);
            self.host.transmitted(bytes.len());
        }
        self.sent[before..].to_vec()
    }

    /// What the list holds, leaving it empty; the machine is not told.
    fn drain_list(&mut self) -> Vec<u8> {
        let buffers = &self.buffers;
        let run = |slot: Slot, offset: u32, len: u32| {
            &buffers[slot.index()][offset as usize..(offset + len) as usize]
        };
        self.tx.fill_digests(|d| run(d.slot, d.offset, d.len));
        let mut bytes = Vec::new();
        for seg in self.tx.segments() {
            bytes.extend_from_slice(match *seg {
                Seg::Head { start, len } => &self.tx.heads()[start as usize..][..len as usize],
                Seg::Data { slot, offset, len } => run(slot, offset, len),
            });
        }
        self.tx.clear();
        bytes
    }

    /// Lets the machine have these bytes of the stream.
    fn feed(&mut self, bytes: &[u8]) {
        self.staged.extend_from_slice(bytes);
        while self.violation.is_none() {
            match self.host.need() {
                Need::Bytes { min } => {
                    assert!((1..=255).contains(&min), "{min}");
                    match self.host.parse(&self.staged) {
                        Ok(parsed) => {
                            assert!(parsed.used == 0 || parsed.used >= min);
                            self.staged.drain(..parsed.used);
                            self.events.extend(parsed.event);
                            let stuck = parsed.used == 0 && self.host.need() == Need::Bytes { min };
                            if stuck {
                                assert!(self.staged.len() < min, "{min} bytes are there");
                                return;
                            }
                        }
                        Err(violation) => self.violation = Some(violation),
                    }
                }
                Need::Payload {
                    slot,
                    offset,
                    len,
                    crc,
                } => {
                    let n = self.staged.len().min(len as usize);
                    if n == 0 {
                        return;
                    }
                    let data: Vec<u8> = self.staged.drain(..n).collect();
                    let at = offset as usize;
                    self.buffers[slot.index()][at..at + n].copy_from_slice(&data);
                    let crc = crc.map(|crc| crc32c(crc, &data));
                    let n = u32::try_from(n).expect("small");
                    self.events.extend(self.host.placed(n, crc));
                }
                Need::Drain | Need::Closed => return,
                need @ (Need::Discard { .. } | Need::Wait(_)) => panic!("{need:?}"),
            }
        }
    }
}

/// An ICResp that agrees to everything.
fn ic_resp(config: &Config) -> Vec<u8> {
    let dgst = u8::from(config.header_digest) | u8::from(config.data_digest) << 1;
    InitConnection {
        pfv: 0,
        pda: 0,
        dgst,
        max: 4096,
    }
    .encode(PduType::IC_RESP)
    .to_vec()
}

/// The common header of a PDU from a controller that does as `config` asks.
fn header(config: &Config, pdu_type: PduType, data_len: usize) -> CommonHeader {
    let mut flags = PduFlags::empty();
    flags.set(PduFlags::HDGST, config.header_digest);
    let head = DATA_LEN + if config.header_digest { 4 } else { 0 };
    let (mut pdo, mut plen) = (0, head);
    if pdu_type == PduType::C2H_DATA {
        flags.set(PduFlags::DDGST, config.data_digest);
        pdo = head.next_multiple_of((usize::from(config.hpda) + 1) * 4);
        plen = pdo + data_len + if config.data_digest { 4 } else { 0 };
    }
    CommonHeader {
        pdu_type,
        flags,
        hlen: 24,
        pdo: u8::try_from(pdo).expect("small"),
        plen: u32::try_from(plen).expect("small"),
    }
}

/// Header bytes with what follows them: header digest, padding, data, data digest.
fn finish(config: &Config, head: &[u8], data: &[u8]) -> Vec<u8> {
    let mut pdu = head.to_vec();
    if config.header_digest {
        pdu.extend_from_slice(&crc32c(0, head).to_le_bytes());
    }
    if !data.is_empty() {
        pdu.resize(
            pdu.len()
                .next_multiple_of((usize::from(config.hpda) + 1) * 4),
            0,
        );
        pdu.extend_from_slice(data);
        if config.data_digest {
            pdu.extend_from_slice(&crc32c(0, data).to_le_bytes());
        }
    }
    pdu
}

fn resp(config: &Config, cid: u16, sqhd: u16, status: Status) -> Vec<u8> {
    let header = header(config, PduType::CAPSULE_RESP, 0);
    let head: [u8; RESP_LEN] = encode_capsule_resp(
        &header,
        &Cqe {
            result: 7,
            sqhd,
            cid,
            status,
        },
    );
    finish(config, &head, &[])
}

fn c2h_data(config: &Config, cccid: u16, offset: u32, data: &[u8], extra: PduFlags) -> Vec<u8> {
    let mut header = header(config, PduType::C2H_DATA, data.len());
    header.flags |= extra;
    let length = u32::try_from(data.len()).expect("small");
    let head = DataHeader {
        cccid,
        ttag: 0,
        offset,
        length,
    }
    .encode(&header);
    finish(config, &head, data)
}

fn r2t(config: &Config, cccid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
    let header = header(config, PduType::R2T, 0);
    finish(
        config,
        &DataHeader {
            cccid,
            ttag,
            offset,
            length,
        }
        .encode(&header),
        &[],
    )
}

/// The four combinations of digests, with padding where there is a header digest.
fn configs() -> [Config; 4] {
    [(false, false), (false, true), (true, false), (true, true)].map(|(header, data)| Config {
        header_digest: header,
        data_digest: data,
        hpda: if header { 31 } else { 0 },
        entries: 8,
        ..Config::default()
    })
}

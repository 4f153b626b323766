//! Calls to the target's machine in any order: PDUs that are mostly right, answers to commands that
//! are live, stale or not due, and everything in between.

use crate::list::List;
use crate::play::available;
use arbitrary::{Arbitrary, Unstructured};
use nvmf_proto::tcp::target::{Config, Done, Event, QueueConfig, TcpTarget};
use nvmf_proto::tcp::{Need, Seg, Slot, Time, TxList, crc32c};
use nvmf_proto::wire::pdu::{
    COMMON_LEN, CommonHeader, DATA_LEN, DataHeader, Fes, InitConnection, PduFlags, PduType,
    TermReq, encode_capsule_cmd,
};
use nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use std::collections::{BTreeMap, VecDeque};

/// A connection and what happens on it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    no_header_digest: bool,
    no_data_digest: bool,
    cpda: u8,
    /// Headers and runs that a list has room for.
    list: (u8, u8),
    ops: List<Op>,
}

/// One call, or bytes for a later one.
#[derive(Arbitrary, Clone, Debug)]
enum Op {
    /// The host sends a PDU; it waits in the stream until it is delivered.
    Host(Pdu, Lie),
    /// The machine may use so many of the bytes that wait, in as many steps as that takes.
    Deliver(u16),
    Receive(Pick, u16),
    Complete(Pick, u16, u8, u16),
    OpenQueue {
        entries: u8,
        flow_control: bool,
        in_capsule: u16,
    },
    Poll,
    /// So many of the bytes that were handed out have left.
    Transmitted(u16),
    /// Which command has this CID?
    Find(u8),
    /// Is data of it still to come?
    AwaitsData(Pick),
    /// So many seconds later.
    Timeout(u8),
    PeerClosed,
}

/// A PDU whose fields are right, but for what a [`Lie`] makes of it.
#[derive(Arbitrary, Clone, Debug)]
enum Pdu {
    IcReq {
        hpda: u8,
        dgst: u8,
        maxr2t: u8,
    },
    Command {
        opcode: u8,
        cid: u8,
        sgl_len: u16,
        in_capsule: u16,
    },
    /// The next so many bytes of what an R2T asks for.
    H2cData {
        r2t: u8,
        len: u16,
    },
    TermReq {
        fes: u8,
        fei: u16,
    },
    Bytes([u8; 8]),
}

/// Rarely, one byte of a PDU is not what it should be.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    odds: u8,
    at: u8,
    value: u8,
}

/// A slot that is live, or any that ever was.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Pick {
    any: u8,
    index: u8,
}

/// What an R2T has asked for and has not been sent.
#[derive(Clone, Copy, Debug)]
struct R2t {
    cccid: u16,
    ttag: u16,
    next: u32,
    end: u32,
}

/// The longest data of a command.
const MAX_DATA: u16 = 4096;

/// Runs one input of bytes.
///
/// # Panics
///
/// On a finding.
pub fn run_bytes(data: &[u8]) {
    if let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) {
        run(&case);
    }
}

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(case: &Case) {
    let config = Config {
        header_digest: !case.no_header_digest,
        data_digest: !case.no_data_digest,
        cpda: case.cpda,
        maxh2cdata: u32::from(MAX_DATA),
        ..Config::default()
    };
    let mut driver = Driver {
        target: TcpTarget::new(&config),
        list: TxList::new(usize::from(case.list.0) * 8, usize::from(case.list.1)),
        stream: VecDeque::new(),
        live: BTreeMap::new(),
        known: Vec::new(),
        r2ts: Vec::new(),
        past: None,
        sent: Vec::new(),
        failed: false,
        now: 0,
    };
    for op in &case.ops.0 {
        driver.apply(op);
        driver.check();
    }
    driver.finish();
}

/// A command as the driver knows it.
#[derive(Clone, Copy, Debug)]
struct Live {
    slot: Slot,
    /// Size of its buffer.
    buffer: u32,
    done: Option<Done>,
}

#[derive(Debug)]
struct Driver {
    target: TcpTarget,
    list: TxList,
    stream: VecDeque<u8>,
    live: BTreeMap<usize, Live>,
    /// Every slot there ever was, the last few of them.
    known: Vec<Slot>,
    r2ts: Vec<R2t>,
    /// One that has got all its data.
    past: Option<R2t>,
    /// What was handed out and not looked at yet.
    sent: Vec<u8>,
    failed: bool,
    now: u64,
}

impl Driver {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Host(pdu, lie) => self.host(pdu, *lie),
            Op::Deliver(n) => self.deliver(usize::from(*n)),
            Op::Receive(pick, len) => self.receive(*pick, *len),
            Op::Complete(pick, status, result, len) => {
                self.complete(*pick, *status, *result, *len);
            }
            Op::OpenQueue {
                entries,
                flow_control,
                in_capsule,
            } => {
                self.target.open_queue(&QueueConfig {
                    entries: u32::from(*entries),
                    flow_control: *flow_control,
                    in_capsule: u32::from(in_capsule % (2 * MAX_DATA)),
                });
            }
            Op::Poll => self.poll(),
            Op::Transmitted(n) => self.transmitted(usize::from(*n)),
            Op::Timeout(seconds) => {
                self.now = self.now.saturating_add(u64::from(*seconds) * 1_000_000_000);
                self.target.handle_timeout(Time(self.now));
            }
            Op::Find(cid) => {
                // What is completed after the end of the connection is so for nobody.
                let over = matches!(self.target.need(), Need::Drain | Need::Closed);
                if let Some(slot) = self.target.find(u16::from(*cid)) {
                    let live = self.live.get(&slot.index());
                    assert!(
                        live.is_some_and(|live| live.slot == slot && (over || live.done.is_none())),
                        "{slot:?} {live:?}"
                    );
                }
            }
            Op::AwaitsData(pick) => {
                if let Some(slot) = self.pick(*pick)
                    && self.target.awaits_data(slot)
                {
                    let live = self.live.get(&slot.index());
                    assert!(live.is_some_and(|live| live.slot == slot), "{slot:?}");
                }
            }
            Op::PeerClosed => self.target.peer_closed(),
        }
    }

    fn check(&self) {
        assert_eq!(self.target.outstanding(), self.live.len());
        assert!(self.live.len() <= self.target.slots());
        assert_eq!(self.target.need(), self.target.need());
        if let Some(time) = self.target.poll_timeout() {
            assert!(time.0 <= self.now.saturating_add(30_000_000_000));
        }
    }

    fn host(&mut self, pdu: &Pdu, lie: Lie) {
        if self.stream.len() > 1 << 16 {
            return;
        }
        let mut bytes = match *pdu {
            Pdu::IcReq { hpda, dgst, maxr2t } => {
                let ic = InitConnection {
                    pfv: 0,
                    pda: hpda & 31,
                    dgst: dgst & 3,
                    max: maxr2t.into(),
                };
                ic.encode(PduType::IC_REQ).to_vec()
            }
            Pdu::Command {
                opcode,
                cid,
                sgl_len,
                in_capsule,
            } => {
                let mut sqe = Sqe::with_opcode(opcode);
                sqe.set_cid(cid.into());
                sqe.set_sgl(SglDescriptor::transport(u32::from(sgl_len % MAX_DATA)));
                let ch = common(PduType::CAPSULE_CMD, 72);
                // Data in every other capsule.
                let data = if in_capsule & 1 == 0 {
                    0
                } else {
                    in_capsule % MAX_DATA
                };
                self.finish_pdu(&encode_capsule_cmd(&ch, &sqe), data.into())
            }
            Pdu::H2cData { r2t, len } => {
                let count = self.r2ts.len().max(1);
                // Rarely for an R2T that has got all its data.
                let mut past = self.past.filter(|_| r2t > 0xf0);
                let r2t = match &mut past {
                    Some(past) => Some(past),
                    None => self.r2ts.get_mut(usize::from(r2t) % count),
                };
                let Some(r2t) = r2t else { return };
                let (offset, len) = (r2t.next, u32::from(len.max(1)).min(r2t.end - r2t.next));
                r2t.next += len;
                let mut ch = common(PduType::H2C_DATA, 24);
                ch.flags.set(PduFlags::LAST_PDU, r2t.next == r2t.end);
                let header = DataHeader {
                    cccid: r2t.cccid,
                    ttag: r2t.ttag,
                    offset,
                    length: len,
                }
                .encode(&ch);
                if r2t.next == r2t.end {
                    self.past = Some(R2t { next: 0, ..*r2t });
                }
                self.r2ts.retain(|r2t| r2t.next < r2t.end);
                self.finish_pdu(&header, len as usize)
            }
            Pdu::TermReq { fes, fei } => {
                let term = TermReq {
                    fes: Fes(fes.into()),
                    fei: fei.into(),
                };
                term.encode(PduType::H2C_TERM_REQ, 0).to_vec()
            }
            Pdu::Bytes(bytes) => bytes.to_vec(),
        };
        if lie.odds >= 0xf4 {
            let at = usize::from(lie.at) % bytes.len();
            bytes[at] = lie.value;
        }
        self.stream.extend(bytes);
    }

    /// Digests, padding and lengths as they should be.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "PDO below 256, PLEN of a few KiB"
    )]
    fn finish_pdu(&self, header: &[u8], data: usize) -> Vec<u8> {
        let terms = self.target.negotiated().unwrap_or_default();
        let mut pdu = header.to_vec();
        let end = header.len() + if terms.header_digest { 4 } else { 0 };
        let data_digest = terms.data_digest && data > 0;
        let pdo = if data > 0 {
            end.next_multiple_of((usize::from(terms.cpda) + 1) * 4)
        } else {
            end
        };
        let plen = pdo + data + if data_digest { 4 } else { 0 };
        pdu[1] |= u8::from(terms.header_digest) | u8::from(data_digest) << 1;
        pdu[3] = if data > 0 { pdo as u8 } else { 0 };
        pdu[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        if terms.header_digest {
            pdu.extend(crc32c(0, &pdu).to_le_bytes());
        }
        pdu.resize(pdo + data, 0);
        if data_digest {
            pdu.extend(crc32c(0, &vec![0; data]).to_le_bytes());
        }
        pdu
    }

    fn deliver(&mut self, most: usize) {
        let mut left = most.min(self.stream.len());
        loop {
            let need = self.target.need();
            let staged = &self.stream.make_contiguous()[..left];
            let (used, event) = match need {
                Need::Bytes { min } => {
                    assert!((1..=255).contains(&min));
                    match self.target.parse(staged) {
                        Ok(parsed) => {
                            assert!(parsed.used <= staged.len());
                            if parsed.used == 0 && self.target.need() == need {
                                return;
                            }
                            (parsed.used, parsed.event)
                        }
                        Err(_) => {
                            assert!(!self.failed, "a second violation");
                            self.failed = true;
                            assert_eq!(self.target.need(), Need::Drain);
                            assert!(self.target.has_transmit(), "no C2HTermReq");
                            return;
                        }
                    }
                }
                Need::Payload {
                    slot,
                    offset,
                    len,
                    crc,
                } => {
                    let live = self.live[&slot.index()];
                    assert_eq!(live.slot, slot);
                    assert!(
                        len > 0 && offset + len <= live.buffer,
                        "{need:?} of {live:?}"
                    );
                    let n = available(staged, len);
                    let crc = crc.map(|crc| crc32c(crc, &staged[..n as usize]));
                    (n as usize, self.target.placed(n, crc))
                }
                Need::Discard { len } => {
                    assert!(len > 0);
                    let n = available(staged, len);
                    (n as usize, self.target.placed(n, None))
                }
                Need::Drain | Need::Closed => {
                    self.stream.drain(..left);
                    return;
                }
                Need::Wait(_) => {
                    // Legal, and nothing happens.
                    let parsed = self.target.parse(staged);
                    assert_eq!(parsed.map(|p| (p.used, p.event)), Ok((0, None)));
                    assert_eq!(self.target.placed(1, None), None);
                    return;
                }
            };
            self.stream.drain(..used);
            left -= used;
            self.event(event);
            if left == 0 {
                return;
            }
        }
    }

    fn event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Command {
                slot, in_capsule, ..
            }) => {
                let live = Live {
                    slot,
                    buffer: in_capsule,
                    done: None,
                };
                assert!(
                    self.live.insert(slot.index(), live).is_none(),
                    "the slot is not free"
                );
                if self.known.len() == 256 {
                    self.known.remove(0);
                }
                self.known.push(slot);
            }
            Some(Event::Received { slot, .. }) => {
                let live = self.live[&slot.index()];
                assert!(live.slot == slot && live.done.is_none(), "{live:?}");
            }
            _ => {}
        }
    }

    /// A live command three times out of four.
    fn pick(&self, pick: Pick) -> Option<Slot> {
        if pick.any < 0xc0 {
            let count = self.live.len().max(1);
            return self
                .live
                .values()
                .nth(usize::from(pick.index) % count)
                .map(|live| live.slot);
        }
        self.known
            .get(usize::from(pick.index) % self.known.len().max(1))
            .copied()
    }

    fn live_mut(&mut self, slot: Slot) -> Option<&mut Live> {
        self.live
            .get_mut(&slot.index())
            .filter(|live| live.slot == slot)
    }

    fn receive(&mut self, pick: Pick, len: u16) {
        let Some(slot) = self.pick(pick) else { return };
        let len = u32::from(len % MAX_DATA);
        if let Some(live) = self.live_mut(slot) {
            live.buffer = live.buffer.max(len);
        }
        self.target.receive(slot, len);
    }

    fn complete(&mut self, pick: Pick, status: u16, result: u8, data_len: u16) {
        let Some(slot) = self.pick(pick) else { return };
        // Most commands succeed.
        let status = if status & 3 == 3 {
            Status::from_bits(status >> 2)
        } else {
            Status::SUCCESS
        };
        let data_len = u32::from(data_len % MAX_DATA);
        let done = Done {
            status,
            result: result.into(),
            data_len,
        };
        if let Some(live) = self.live_mut(slot) {
            live.done.get_or_insert(done);
        }
        self.target.complete(slot, done);
    }

    fn poll(&mut self) {
        let (had, before) = (self.target.has_transmit(), self.list.remaining());
        let empty = self.list.is_empty();
        let appended = self.target.poll_transmit(&mut self.list);
        assert_eq!(appended, self.list.remaining() > before);
        assert!(!appended || had, "something out of nothing");
        assert!(appended || !had || !empty, "an empty list has no room");
        let zeros = [0; MAX_DATA as usize];
        self.list.fill_digests(|d| &zeros[..d.len as usize]);
        // The runs that are new are those after the bytes that were there before.
        let mut skip = before;
        for seg in self.list.segments() {
            let len = match *seg {
                Seg::Head { len, .. } | Seg::Data { len, .. } => len as usize,
            };
            let skipped = skip.min(len);
            skip -= skipped;
            match *seg {
                Seg::Head { start, len } => {
                    let start = start as usize;
                    self.sent
                        .extend(&self.list.heads()[start + skipped..start + len as usize]);
                }
                Seg::Data { slot, offset, len } => {
                    let live = self.live[&slot.index()];
                    let most = live.done.map_or(0, |done| done.data_len);
                    assert!(
                        live.slot == slot && offset + len <= most,
                        "{seg:?} of {live:?}"
                    );
                    self.sent
                        .resize(self.sent.len() + len as usize - skipped, 0);
                }
            }
        }
        self.look_for_r2ts();
    }

    /// Takes the PDUs that were handed out apart.
    fn look_for_r2ts(&mut self) {
        let mut rest = &self.sent[..];
        while let Some(first) = rest.first_chunk::<COMMON_LEN>() {
            let ch = CommonHeader::decode(first);
            let (pdu, tail) = rest.split_at(ch.plen as usize);
            if ch.pdu_type == PduType::R2T
                && let Some(header) = pdu.first_chunk::<DATA_LEN>()
            {
                let r2t = DataHeader::decode(header);
                self.r2ts.push(R2t {
                    cccid: r2t.cccid,
                    ttag: r2t.ttag,
                    next: r2t.offset,
                    end: r2t.offset + r2t.length,
                });
            }
            rest = tail;
        }
        assert!(rest.is_empty(), "part of a PDU");
        self.sent.clear();
    }

    fn transmitted(&mut self, n: usize) {
        let n = n.min(self.list.remaining());
        self.list.advance(n);
        let live = &mut self.live;
        self.target.transmitted(n, |slot| {
            let gone = live.remove(&slot.index());
            assert!(
                gone.is_some_and(|l| l.slot == slot && l.done.is_some()),
                "{slot:?} {gone:?}"
            );
        });
    }

    /// Whatever has happened, what is completed and sent frees its slot, unless data is owed.
    fn finish(&mut self) {
        while self.target.has_transmit() || !self.list.is_empty() {
            self.poll();
            self.transmitted(usize::MAX);
        }
        self.check();
        let event = self.target.handle_timeout(Time(u64::MAX - 1));
        let event = event.or_else(|| self.target.handle_timeout(Time(u64::MAX)));
        if self.failed || matches!(event, Some(Event::Closed(_))) {
            assert_eq!(self.target.need(), Need::Closed);
        }
    }
}

const fn common(pdu_type: PduType, hlen: u8) -> CommonHeader {
    CommonHeader {
        pdu_type,
        flags: PduFlags::empty(),
        hlen,
        pdo: 0,
        plen: hlen as u32,
    }
}

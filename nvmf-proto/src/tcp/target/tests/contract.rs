//! The contract in [`crate::tcp`], line by line. Line 4 is in `any_order`; line 5, no allocation,
//! is in `tests/no_alloc.rs`.

use super::*;
use crate::tcp::{Time, digest_matches};
use crate::wire::pdu::{CMD_LEN, DATA_LEN};
use proptest::collection::vec;
use proptest::prelude::*;

/// What a scripted host does next. Sizes are bytes of data.
#[derive(Clone, Debug)]
enum Act {
    Flush,
    Read(u16),
    InCapsule(u16),
    /// Cut into H2CData of at most that much.
    R2t(u16, u16),
    /// A write that the controller refuses, in capsule or not.
    Refused(u16),
    /// A write that the controller refuses when its R2T has left.
    Abandoned(u16, u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        Just(Act::Flush),
        (1..3000_u16).prop_map(Act::Read),
        (1..3000_u16).prop_map(Act::InCapsule),
        (1..6000_u16, 1..4000_u16).prop_map(|(len, cut)| Act::R2t(len, cut)),
        (0..3000_u16).prop_map(Act::Refused),
        (1..6000_u16, 1..4000_u16).prop_map(|(len, cut)| Act::Abandoned(len, cut)),
    ]
}

/// How the connection is set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) hpda: u8,
    pub(super) cpda: u8,
    pub(super) dgst: u8,
    pub(super) entries: u32,
    pub(super) flow_control: bool,
}

pub(super) fn setup() -> impl Strategy<Value = Setup> {
    (0..=31_u8, 0..=31_u8, 0..=3_u8, 2..=6_u32, any::<bool>()).prop_map(
        |(hpda, cpda, dgst, entries, flow_control)| Setup {
            hpda,
            cpda,
            dgst,
            entries,
            flow_control,
        },
    )
}

/// NSID of commands that are refused, for [`Session`] to see; the rest succeed.
const REFUSE: u32 = 1;
const REFUSE_AFTER_R2T: u32 = 2;

/// A controller with simple habits: every answer follows from the event alone, and all that is due
/// leaves after each call, so that its timing does not depend on how the input was cut.
struct Session {
    driver: Driver,
    events: Vec<Event>,
    output: Vec<u8>,
    /// What the data of each command was when it had come.
    received: Vec<Vec<u8>>,
    opened: bool,
    queue: QueueConfig,
}

impl Session {
    fn new(setup: Setup) -> Self {
        let config = Config {
            cpda: setup.cpda,
            maxh2cdata: 4096,
            ..Config::default()
        };
        let queue = QueueConfig {
            entries: setup.entries,
            flow_control: setup.flow_control,
            in_capsule: 4096,
        };
        Self {
            driver: Driver::new(&config),
            events: Vec::new(),
            output: Vec::new(),
            received: Vec::new(),
            opened: false,
            queue,
        }
    }

    /// `bytes` come in, shown to the machine as they are, payload moved `most` bytes at a time.
    fn feed(&mut self, bytes: &[u8], most: usize) {
        self.driver.input.extend(bytes);
        loop {
            let turn = self.driver.turn(most);
            if let Some(event) = turn.flatten() {
                self.events.push(event);
                self.answer(event);
            }
            let sent = self.send();
            if turn.is_none() && sent == 0 {
                break;
            }
        }
    }

    fn send(&mut self) -> usize {
        let sent = self.driver.poll();
        self.driver.target.transmitted(sent.len(), |_| {});
        self.output.extend(&sent);
        sent.len()
    }

    fn answer(&mut self, event: Event) {
        match event {
            Event::Command {
                slot,
                sqe,
                in_capsule,
                ..
            } => self.command(slot, sqe, in_capsule),
            Event::Received { slot, digest_ok } => {
                let data = self.driver.buffer(slot).clone();
                self.received.push(data);
                let done = if digest_ok {
                    OK
                } else {
                    failed(Status::TRANSIENT_TRANSPORT_ERROR)
                };
                self.driver.target.complete(slot, done);
            }
            Event::Ready(_) | Event::Terminated(_) | Event::Closed(_) => {}
        }
    }

    fn command(&mut self, slot: Slot, sqe: Sqe, in_capsule: u32) {
        if !self.opened {
            self.opened = true;
            self.driver.target.open_queue(&self.queue);
        }
        let len = sqe.sgl().length;
        let reads = sqe.opcode() == NvmOpcode::READ.0;
        *self.driver.buffer(slot) = pattern(sqe.cid().into(), if reads { len as usize } else { 0 });
        match (sqe.nsid(), NvmOpcode(sqe.opcode())) {
            (REFUSE, _) => {
                self.driver
                    .target
                    .complete(slot, failed(Status::INVALID_FIELD));
            }
            (_, NvmOpcode::READ) => {
                let result = u64::from(sqe.cid() & 1);
                self.driver.target.complete(
                    slot,
                    Done {
                        data_len: len,
                        result,
                        ..OK
                    },
                );
            }
            (_, NvmOpcode::WRITE) if len > 0 || in_capsule > 0 => {
                self.driver.target.receive(slot, len.min(1 << 20));
                if sqe.nsid() == REFUSE_AFTER_R2T {
                    self.send();
                    self.driver
                        .target
                        .complete(slot, failed(Status::WRITE_FAULT));
                }
            }
            _ => {
                self.driver.target.complete(slot, OK);
            }
        }
    }

    fn outcome(&self) -> Outcome<'_> {
        Outcome {
            events: &self.events,
            output: &self.output,
            received: &self.received,
            violation: self.driver.violation,
            need: self.driver.target.need(),
        }
    }
}

/// Everything that an outside observer can tell.
#[derive(Debug, PartialEq)]
struct Outcome<'a> {
    events: &'a [Event],
    output: &'a [u8],
    received: &'a [Vec<u8>],
    violation: Option<Violation>,
    need: Need,
}

/// Plays `acts` against a session and returns all that the host has sent.
fn play(setup: Setup, acts: &[Act]) -> Vec<u8> {
    let mut session = Session::new(setup);
    let mut stream = ic_req(setup.hpda, setup.dgst).to_vec();
    session.feed(&stream, usize::MAX);
    let agreed = session.driver.target.negotiated().unwrap();
    let wire = Wire {
        header_digest: agreed.header_digest,
        data_digest: agreed.data_digest,
        cpda: setup.cpda,
    };
    for (cid, act) in (0_u16..).zip(acts) {
        let mut send = |session: &mut Session, bytes: Vec<u8>| {
            session.feed(&bytes, usize::MAX);
            stream.extend(bytes);
        };
        let data = |len: u16| pattern(!u32::from(cid), len.into());
        let write = |len: u16, nsid| {
            let mut sqe = write(cid, len.into());
            sqe.set_nsid(nsid);
            sqe
        };
        match *act {
            Act::Flush => send(&mut session, wire.command(&flush(cid), &[])),
            Act::Read(len) => send(&mut session, wire.command(&read(cid, len.into()), &[])),
            Act::InCapsule(len) => send(&mut session, wire.command(&write(len, 0), &data(len))),
            Act::Refused(len) => send(&mut session, wire.command(&write(len, REFUSE), &data(len))),
            Act::R2t(len, cut) | Act::Abandoned(len, cut) => {
                let refuse = matches!(act, Act::Abandoned(..));
                let nsid = if refuse { REFUSE_AFTER_R2T } else { 0 };
                let before = session.output.len();
                send(&mut session, wire.command(&write(len, nsid), &[]));
                let r2t = split(&session.output[before..], wire).pop().unwrap();
                assert_eq!(r2t.ch.pdu_type, PduType::R2T);
                let tag = r2t.data_header().ttag;
                let mut at = 0;
                for chunk in data(len).chunks(cut.into()) {
                    let last = at + chunk.len() == usize::from(len);
                    send(
                        &mut session,
                        wire.h2c_data(cid, tag, at as u32, chunk, last),
                    );
                    at += chunk.len();
                }
            }
        }
    }
    assert_eq!(session.driver.violation, None);
    assert_eq!(session.driver.target.outstanding(), 0);
    stream
}

/// Feeds `stream` to a new session in pieces whose sizes `cuts` gives, over and over.
fn replay(setup: Setup, stream: &[u8], cuts: &[usize], most: usize) -> Session {
    let mut session = Session::new(setup);
    let mut rest = stream;
    for &cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, more) = rest.split_at(cut.min(rest.len()));
        session.feed(piece, most);
        rest = more;
    }
    session
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![3 => 1..8_usize, 3 => 1..200_usize, 1 => 1..20_000_usize];
    vec(size, 1..20)
}

proptest! {
    /// Line 1, and line 9 with it: the cut and the whole are two runs on equal input.
    #[test]
    fn line_1_split_invariance(
        setup in setup(),
        acts in vec(act(), 0..12),
        cuts in cuts(),
        most in prop_oneof![Just(usize::MAX), 1..600_usize],
        flips in vec((any::<prop::sample::Index>(), 0..8_u32), 0..3),
    ) {
        let mut stream = play(setup, &acts);
        for (at, bit) in flips {
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
        }
        let whole = replay(setup, &stream, &[usize::MAX], usize::MAX);
        let cut = replay(setup, &stream, &cuts, most);
        prop_assert_eq!(whole.outcome(), cut.outcome());
        let bytewise = replay(setup, &stream, &[1], 1);
        prop_assert_eq!(whole.outcome(), bytewise.outcome());
    }
}

/// Line 9: equal input gives equal output.
#[test]
fn line_9_equal_input_gives_equal_output() {
    let setup = Setup {
        hpda: 3,
        cpda: 5,
        dgst: 3,
        entries: 3,
        flow_control: false,
    };
    let acts = [
        Act::Read(700),
        Act::R2t(5000, 999),
        Act::InCapsule(70),
        Act::Abandoned(50, 20),
    ];
    let stream = play(setup, &acts);
    assert_eq!(stream, play(setup, &acts));
    let [first, second] = [0, 1].map(|_| replay(setup, &stream, &[17, 300, 2], 100));
    assert_eq!(first.outcome(), second.outcome());
}

/// Line 2: `need` asks for no more than the configuration allows.
#[test]
fn line_2_need_is_bounded() {
    let setup = Setup {
        hpda: 0,
        cpda: 31,
        dgst: 3,
        entries: 4,
        flow_control: true,
    };
    let mut session = Session::new(setup);
    session.feed(&ic_req(0, 3), usize::MAX);
    session.driver.wire = Wire {
        header_digest: true,
        data_digest: true,
        cpda: 31,
    };
    let wire = session.driver.wire;
    let mut driver = session.driver;
    driver.target.open_queue(&session.queue);
    let capsule = wire.command(&write(0, 4096), &[0; 4096]);
    assert_eq!(capsule[3], 128);
    driver.feed(&capsule[..8]);
    assert_eq!(driver.target.need(), Need::Bytes { min: 128 });
    let slot = driver.command(&capsule[8..]);
    driver.target.receive(slot, u32::MAX);
    let len = 4096;
    assert_eq!(
        driver.target.need(),
        Need::Payload {
            slot,
            offset: 0,
            len,
            crc: Some(0)
        }
    );
}

/// Line 3: payload is never used by `parse`, and too few bytes are none.
#[test]
fn line_3_parse_takes_headers_only() {
    let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 3);
    let wire = driver.wire;
    let capsule = wire.command(&write(1, 100), &[1; 100]);
    let header = CMD_LEN + 4;
    for n in 0..header {
        assert_eq!(driver.target.parse(&capsule[..n]).unwrap().used, 0, "{n}");
    }
    let parsed = driver.target.parse(&capsule).unwrap();
    assert_eq!(parsed.used, header);
    let Some(Event::Command { slot, .. }) = parsed.event else {
        panic!()
    };
    assert_eq!(
        driver.target.parse(&capsule[header..]).unwrap().used,
        0,
        "undecided"
    );
    driver.target.receive(slot, 100);
    assert_eq!(
        driver.target.parse(&capsule[header..]).unwrap().used,
        0,
        "payload"
    );
    driver.target.placed(100, Some(crc32c(0, &[1; 100])));
    for n in 0..4 {
        assert_eq!(
            driver
                .target
                .parse(&capsule[header + 100..][..n])
                .unwrap()
                .used,
            0,
            "{n}"
        );
    }
    let parsed = driver.target.parse(&capsule[header + 100..]).unwrap();
    assert_eq!(parsed.used, 4);
    assert_eq!(
        parsed.event,
        Some(Event::Received {
            slot,
            digest_ok: true
        })
    );

    let slot = driver.command(&wire.command(&write(2, 100), &[]));
    driver.target.receive(slot, 100);
    let tag = driver.r2t().ttag;
    let data = wire.h2c_data(2, tag, 0, &[1; 100], true);
    for n in 0..DATA_LEN + 4 {
        assert_eq!(driver.target.parse(&data[..n]).unwrap().used, 0, "{n}");
    }
    assert_eq!(driver.target.parse(&data).unwrap().used, DATA_LEN + 4);
}

/// Line 6: the machine has nothing but a number to tell payload by.
#[test]
fn line_6_a_digest_is_a_number() {
    let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 2);
    let wire = driver.wire;
    let capsule = wire.command(&write(1, 512), &[1; 512]);
    let crc = crc32c(0, &[1; 512]);
    for claimed in [crc, !crc] {
        let slot = driver.command(&capsule[..CMD_LEN]);
        driver.target.receive(slot, 512);
        assert_eq!(driver.target.placed(512, Some(claimed)), None);
        let digest_ok = digest_matches(crc, claimed);
        let events = driver.feed(&crc.to_le_bytes());
        assert_eq!(events, [Event::Received { slot, digest_ok }]);
        driver.target.complete(slot, OK);
        driver.send();
    }
}

/// Line 7: one violation, one C2HTermReq, nothing after it, whatever is tried.
#[test]
fn line_7_one_violation_and_then_nothing() {
    let mut driver = plain();
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&write(1, 512), &[]));
    driver.feed(&[0xff; 100]);
    assert!(driver.violation.is_some());
    driver.target.receive(slot, 512);
    driver.target.complete(slot, OK);
    let sent = driver.send();
    assert_eq!(sent.len(), 1);
    sent[0].term_req();
    for bytes in [
        wire.command(&flush(2), &[]),
        vec![0xff; 100],
        ic_req(0, 0).to_vec(),
    ] {
        assert_eq!(driver.target.parse(&bytes).unwrap().used, 0);
        assert_eq!(driver.target.need(), Need::Drain);
        driver.target.complete(slot, OK);
        driver.target.handle_timeout(Time(0));
        assert!(!driver.target.has_transmit() && driver.poll().is_empty());
    }
}

/// Line 8: slots come free at the last byte of their response, however progress is reported.
#[test]
fn line_8_any_split_of_transmitted() {
    let run = |step: usize| {
        let queue = QueueConfig {
            flow_control: false,
            ..QUEUE
        };
        let mut driver = Driver::open(&Config::default(), &queue, 3, 3);
        let wire = driver.wire;
        let mut ends = Vec::new();
        let mut all = 0;
        for cid in 0..6 {
            let slot = driver.command(&wire.command(&read(cid, 300), &[]));
            *driver.buffer(slot) = pattern(cid.into(), 300);
            let data_len = if cid % 2 == 0 { 300 } else { 0 };
            driver.target.complete(
                slot,
                Done {
                    data_len,
                    result: u64::from(cid / 4),
                    ..OK
                },
            );
            // An R2T between the responses frees nothing.
            if cid == 3 {
                let slot = driver.command(&wire.command(&write(9, 300), &[]));
                driver.target.receive(slot, 300);
            }
            all += driver.poll().len();
            if cid != 3 {
                ends.push((all, slot));
            } else {
                ends.push((all - 28, slot));
            }
        }
        let mut sent = 0;
        let mut released = Vec::new();
        while sent < all {
            let n = step.min(all - sent);
            sent += n;
            driver
                .target
                .transmitted(n, |slot| released.push((sent, slot)));
        }
        assert_eq!(driver.target.outstanding(), 1);
        (ends, released)
    };
    let (ends, bytewise) = run(1);
    assert_eq!(ends, bytewise);
    for step in [2, 3, 7, 28, 100, 333, 1000, 10_000] {
        let (_, released) = run(step);
        let up = |end: usize| end.div_ceil(step) * step;
        let slots: Vec<Slot> = released.iter().map(|&(_, slot)| slot).collect();
        assert_eq!(
            slots,
            ends.iter().map(|&(_, slot)| slot).collect::<Vec<_>>()
        );
        for (&(at, _), &(end, _)) in released.iter().zip(&ends) {
            assert!(at >= end && at <= up(end), "step {step}");
        }
    }
}

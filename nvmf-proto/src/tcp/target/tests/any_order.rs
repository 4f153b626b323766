//! Line 4 of the contract in [`crate::tcp`], and with it 2 and 7: any call is legal in any state.

use super::contract::{Setup, setup};
use super::*;
use crate::tcp::Time;
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    /// Lines 2, 4 and 7: any calls in any order.
    #[test]
    fn line_4_any_call_is_legal_in_any_state(
        setup in setup(),
        calls in vec(call(), 1..200),
    ) {
        let mut chaos = Chaos::new(setup);
        for call in calls {
            chaos.call(call);
            chaos.check();
        }
    }
}

/// One call of the public API, with arguments from anywhere.
#[derive(Clone, Debug)]
enum Call {
    /// A PDU that is right, or nearly so: which, and a byte to change.
    Parse(Wrong),
    ParseNoise(Vec<u8>),
    Placed(u32, Option<u32>),
    Receive(prop::sample::Index, u32),
    Complete(prop::sample::Index, u32, bool),
    Poll(usize),
    Transmitted(usize),
    OpenQueue(u32),
    Timeout(u64),
    PeerClosed,
}

#[derive(Clone, Debug)]
struct Wrong {
    kind: u8,
    cid: u16,
    len: u16,
    change: Option<(prop::sample::Index, u8)>,
}

fn call() -> impl Strategy<Value = Call> {
    let index = any::<prop::sample::Index>;
    let wrong = (
        any::<u8>(),
        0..4_u16,
        0..5000_u16,
        prop::option::weighted(0.03, (index(), any::<u8>())),
    )
        .prop_map(|(kind, cid, len, change)| Wrong {
            kind,
            cid,
            len,
            change,
        });
    prop_oneof![
        60 => wrong.prop_map(Call::Parse),
        1 => vec(any::<u8>(), 0..200).prop_map(Call::ParseNoise),
        30 => (any::<u16>(), any::<Option<u32>>()).prop_map(|(n, c)| Call::Placed(n.into(), c)),
        20 => (index(), 0..9000_u32).prop_map(|(s, len)| Call::Receive(s, len)),
        20 => (index(), any::<u32>(), any::<bool>()).prop_map(|(s, n, ok)| Call::Complete(s, n, ok)),
        20 => (0..2000_usize).prop_map(Call::Poll),
        20 => prop_oneof![0..5000_usize, Just(usize::MAX)].prop_map(Call::Transmitted),
        2 => (0..10_u32).prop_map(Call::OpenQueue),
        2 => any::<u64>().prop_map(Call::Timeout),
        1 => Just(Call::PeerClosed),
    ]
}

/// Calls the machine without any order and keeps an eye on it.
struct Chaos {
    target: TcpTarget,
    setup: Setup,
    in_capsule: u32,
    /// Every slot there ever was.
    seen: Vec<Slot>,
    released: Vec<Slot>,
    r2ts: Vec<DataHeader>,
    violations: usize,
    term_reqs: usize,
    over: bool,
}

impl Chaos {
    fn new(setup: Setup) -> Self {
        let config = Config {
            cpda: setup.cpda,
            maxh2cdata: 4096,
            ..Config::default()
        };
        Self {
            target: TcpTarget::new(&config),
            setup,
            in_capsule: 8192,
            seen: vec![Slot::new(3, 9)],
            released: Vec::new(),
            r2ts: Vec::new(),
            violations: 0,
            term_reqs: 0,
            over: false,
        }
    }

    fn call(&mut self, call: Call) {
        let slot = |index: &prop::sample::Index, seen: &[Slot]| {
            // Mostly the newest, which are likely to be live.
            let newest = seen.len().saturating_sub(6);
            if index.index(8) == 0 {
                *index.get(seen)
            } else {
                *index.get(&seen[newest..])
            }
        };
        match call {
            Call::Parse(wrong) => {
                let bytes = self.bytes(&wrong);
                self.parse(&bytes);
            }
            Call::ParseNoise(bytes) => self.parse(&bytes),
            Call::Placed(n, crc) => {
                let event = self.target.placed(n, crc);
                self.event(event);
            }
            Call::Receive(index, len) => self.target.receive(slot(&index, &self.seen), len),
            Call::Complete(index, data_len, ok) => {
                let status = if ok {
                    Status::SUCCESS
                } else {
                    Status::INTERNAL_ERROR
                };
                let done = Done {
                    status,
                    result: 0,
                    data_len,
                };
                let slot = slot(&index, &self.seen);
                let waits = self.target.awaits_data(slot);
                if self.target.complete(slot, done) {
                    assert!(self.target.has_transmit());
                }
                assert!(!self.target.awaits_data(slot) || (waits && self.over()));
            }
            Call::Poll(size) => self.poll(size),
            Call::Transmitted(bytes) => {
                let released = &mut self.released;
                self.target.transmitted(bytes, |slot| released.push(slot));
            }
            Call::OpenQueue(entries) => {
                self.target.open_queue(&QueueConfig {
                    entries,
                    flow_control: self.setup.flow_control,
                    in_capsule: self.in_capsule,
                });
            }
            Call::Timeout(now) => {
                let event = self.target.handle_timeout(Time(now));
                self.event(event);
            }
            Call::PeerClosed => {
                self.target.peer_closed();
                self.over = true;
            }
        }
    }

    /// What fits the state best, or something else.
    fn bytes(&self, wrong: &Wrong) -> Vec<u8> {
        let agreed = self.target.negotiated().unwrap_or_default();
        let wire = Wire {
            header_digest: agreed.header_digest,
            data_digest: agreed.data_digest,
            cpda: self.setup.cpda,
        };
        let data = pattern(1, wrong.len.into());
        let mut bytes = match (self.target.negotiated(), wrong.kind % 8) {
            (None, _) => ic_req(self.setup.hpda, self.setup.dgst).to_vec(),
            (_, 0 | 1) => wire.command(&write(wrong.cid, wrong.len.into()), &data),
            (_, 2..=4) => wire.command(&read(wrong.cid, wrong.len.into()), &[]),
            (_, 5) if wrong.kind < 20 => term_req(1, 2, wrong.kind),
            _ => match self.r2ts.last() {
                Some(r2t) => {
                    let (whole, len) = (r2t.length.min(4096), r2t.length);
                    wire.h2c_data(
                        r2t.cccid,
                        r2t.ttag,
                        0,
                        &pattern(2, whole as usize),
                        whole == len,
                    )
                }
                None => wire.command(&flush(wrong.cid), &[]),
            },
        };
        if self.target.need() == (Need::Bytes { min: 4 }) {
            bytes = wrong.len.to_le_bytes().repeat(2);
        }
        if let Some((at, value)) = &wrong.change {
            *at.get_mut(&mut bytes) = *value;
        }
        bytes
    }

    fn parse(&mut self, bytes: &[u8]) {
        let before = self.target.need();
        match self.target.parse(bytes) {
            Ok(parsed) => {
                assert!(parsed.used <= bytes.len().min(255));
                if !matches!(before, Need::Bytes { .. }) {
                    assert_eq!((parsed.used, parsed.event), (0, None));
                    assert_eq!(self.target.need(), before);
                }
                assert!(parsed.used > 0 || parsed.event.is_none());
                self.event(parsed.event);
            }
            Err(_) => {
                self.violations += 1;
                assert!(matches!(before, Need::Bytes { .. }));
                assert_eq!(self.target.need(), Need::Drain);
            }
        }
    }

    /// No commands are taken or answered any more.
    const fn over(&self) -> bool {
        self.over || self.violations > 0
    }

    fn event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Command { slot, .. }) => {
                assert!(!self.seen.contains(&slot), "a slot of its own");
                assert!(slot.index() < self.target.slots());
                self.seen.push(slot);
            }
            Some(Event::Received { slot, .. }) => assert!(self.seen.contains(&slot)),
            Some(Event::Terminated(_) | Event::Closed(_)) => self.over = true,
            Some(Event::Ready(_)) | None => {}
        }
    }

    fn poll(&mut self, size: usize) {
        let mut list = TxList::new(size, size / 64);
        let due = self.target.has_transmit();
        assert_eq!(
            self.target.poll_transmit(&mut list),
            due,
            "room for one there always is"
        );
        let mut first = 0;
        for seg in list.segments() {
            let Seg::Head { start, len } = *seg else {
                continue;
            };
            let head = &list.heads()[start as usize..(start + len) as usize];
            // Only lists of bare PDUs can be read without the payload.
            let bare = list.segments().len() == 1;
            while let Some(header) = head.get(first..).and_then(<[u8]>::first_chunk::<24>) {
                if !bare {
                    break;
                }
                let ch = CommonHeader::decode(header.first_chunk().unwrap());
                match ch.pdu_type {
                    PduType::R2T => self.r2ts.push(DataHeader::decode(header)),
                    PduType::C2H_TERM_REQ => self.term_reqs += 1,
                    _ => {}
                }
                first += ch.plen as usize;
            }
        }
        if self.violations > 0 {
            assert!(list.segments().len() <= 1 && list.remaining() <= 152);
        }
    }

    fn check(&self) {
        let target = &self.target;
        assert!(self.violations <= 1 && self.term_reqs <= self.violations);
        assert!(target.outstanding() <= target.slots());
        assert_eq!(
            target.outstanding(),
            self.seen.len() - 1 - self.released.len()
        );
        for cid in 0..4 {
            if let Some(slot) = target.find(cid) {
                assert!(self.seen.contains(&slot) && !self.released.contains(&slot));
            }
        }
        let need = target.need();
        assert_eq!(need, target.need());
        match need {
            Need::Bytes { min } => assert!((4..=255).contains(&min)),
            Need::Payload {
                slot,
                offset,
                len,
                crc,
            } => {
                assert!(len > 0 && len <= 8192 && offset.checked_add(len).is_some());
                assert!(self.seen.contains(&slot) && !self.released.contains(&slot));
                assert_eq!(crc.is_some(), target.negotiated().unwrap().data_digest);
            }
            Need::Discard { len } => assert!(len > 0 && len <= 8196),
            Need::Wait(WaitFor::Slot) => assert_eq!(target.outstanding(), target.slots()),
            Need::Wait(WaitFor::Command(slot)) => {
                assert!(self.seen.contains(&slot) && !self.released.contains(&slot));
            }
            Need::Drain => assert_eq!(self.violations, 1),
            Need::Closed => assert!(self.over),
        }
        if self.over {
            assert!(!target.has_transmit() && target.poll_timeout().is_none());
        }
    }
}

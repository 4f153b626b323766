//! Plays a byte stream into a machine, cut at given places, and writes down all that it does.

use nvmf_proto::tcp::host::TcpHost;
use nvmf_proto::tcp::target::TcpTarget;
use nvmf_proto::tcp::{Need, Seg, Slot, Time, TxList, Violation, crc32c, host, target};
use nvmf_proto::wire::pdu::{COMMON_LEN, CommonHeader, PduType};
use std::fmt::Debug;

/// What the machines of both ends have in common.
pub trait Machine {
    /// What happens on it.
    type Event: Clone + PartialEq + Debug;
    /// A TermReq of this end.
    const TERM_REQ: PduType;
    /// See there.
    fn need(&self) -> Need;
    /// See there.
    ///
    /// # Errors
    ///
    /// See there.
    fn parse(&mut self, staged: &[u8]) -> Result<(usize, Option<Self::Event>), Violation>;
    /// See there.
    fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Self::Event>;
    /// See there.
    fn poll_transmit(&mut self, out: &mut TxList) -> bool;
    /// See there.
    fn has_transmit(&self) -> bool;
    /// See there.
    fn transmitted(&mut self, bytes: usize);
    /// See there.
    fn handle_timeout(&mut self, now: Time) -> Option<Self::Event>;
    /// See there.
    fn slots(&self) -> usize;
    /// See there.
    fn outstanding(&self) -> usize;
}

impl Machine for TcpTarget {
    type Event = target::Event;
    const TERM_REQ: PduType = PduType::C2H_TERM_REQ;
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
    fn has_transmit(&self) -> bool {
        self.has_transmit()
    }
    fn transmitted(&mut self, bytes: usize) {
        self.transmitted(bytes, |_| {});
    }
    fn handle_timeout(&mut self, now: Time) -> Option<Self::Event> {
        self.handle_timeout(now)
    }
    fn slots(&self) -> usize {
        self.slots()
    }
    fn outstanding(&self) -> usize {
        self.outstanding()
    }
}

impl Machine for TcpHost {
    type Event = host::Event;
    const TERM_REQ: PduType = PduType::H2C_TERM_REQ;
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
    fn has_transmit(&self) -> bool {
        self.has_transmit()
    }
    fn transmitted(&mut self, bytes: usize) {
        self.transmitted(bytes);
    }
    fn handle_timeout(&mut self, now: Time) -> Option<Self::Event> {
        self.handle_timeout(now)
    }
    fn slots(&self) -> usize {
        self.slots()
    }
    fn outstanding(&self) -> usize {
        self.outstanding()
    }
}

/// What the driver of a machine does about events. What it does may depend on what it was told
/// and on nothing else, or no two runs are the same.
pub trait Script<M: Machine> {
    /// Something has happened.
    fn event(&mut self, machine: &mut M, event: &M::Event);
    /// The machine waits for something.
    fn waiting(&mut self, machine: &mut M, need: Need);
    /// The stream has ended.
    fn end(&mut self, machine: &mut M);
    /// How large the buffer of a live command is.
    fn buffer_len(&self, slot: Slot) -> usize;
}

/// All that a machine did. Equal for equal streams.
#[derive(Debug, PartialEq)]
pub struct Transcript<E> {
    /// What it reported, in order; payload as a checksum.
    pub log: Vec<Entry<E>>,
    /// What it sent.
    pub sent: Vec<u8>,
}

/// One line of a [`Transcript`].
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<E> {
    /// An event.
    Event(E),
    /// The peer's violation.
    Violation(Violation),
    /// A run of payload has come to its end: where it belongs, and its CRC32C.
    Payload(Slot, u32, u32),
}

/// A machine, its buffers and its transcript.
#[derive(Debug)]
struct Player<M: Machine> {
    machine: M,
    list: TxList,
    /// What commands read is the same for all: nothing is to be learnt from it.
    data: Vec<u8>,
    /// End offset and checksum of the run of payload that is coming.
    payload: Option<(Slot, u32, u32)>,
    transcript: Transcript<M::Event>,
}

/// Runs a stream through a machine. `cuts` are lengths of the pieces in which it comes, and of
/// those in which the machine's bytes leave; after the last all the rest comes at once.
///
/// # Panics
///
/// The machine broke its contract.
pub fn play<M: Machine>(
    machine: M,
    script: &mut impl Script<M>,
    list: TxList,
    stream: &[u8],
    cuts: &[u8],
) -> Transcript<M::Event> {
    let mut player = Player {
        machine,
        list,
        data: vec![0x3c; MAX_DATA as usize],
        payload: None,
        transcript: Transcript {
            log: Vec::new(),
            sent: Vec::new(),
        },
    };
    let timeout = player.machine.handle_timeout(Time(0));
    assert!(timeout.is_none(), "{timeout:?} at the start");
    let (mut at, mut end) = (0, 0);
    player.send(cuts);
    for piece in cuts.iter().map(|&cut| usize::from(cut)).chain([usize::MAX]) {
        end = stream.len().min(piece.saturating_add(end));
        while let Some(used) = player.turn(script, &stream[at..end]) {
            at += used;
            player.send(cuts);
        }
    }
    script.end(&mut player.machine);
    player.send(cuts);
    for now in [Time(1), Time(u64::MAX)] {
        let event = player.machine.handle_timeout(now);
        player.transcript.log.extend(event.map(Entry::Event));
        player.send(cuts);
    }
    player.check_sent();
    player.transcript
}

/// The most data that a command of a script may have.
pub const MAX_DATA: u32 = 2048;

/// How many bytes of data, of `len` that are wanted, there are.
pub(crate) fn available(staged: &[u8], len: u32) -> u32 {
    u32::try_from(staged.len()).unwrap_or(u32::MAX).min(len)
}

impl<M: Machine> Player<M> {
    /// Lets the machine take one step and says how many bytes it used; `None` if it can do nothing
    /// with what there is.
    fn turn(&mut self, script: &mut impl Script<M>, staged: &[u8]) -> Option<usize> {
        let need = self.machine.need();
        assert_eq!(need, self.machine.need(), "need changes by itself");
        assert!(self.machine.outstanding() <= self.machine.slots());
        let (used, event) = match need {
            Need::Bytes { min } => {
                assert!((1..=255).contains(&min), "{need:?}");
                match self.machine.parse(staged) {
                    Ok((used, event)) => {
                        assert!(used <= staged.len());
                        assert!(used > 0 || event.is_none(), "an event out of nothing");
                        if used == 0 && self.machine.need() == need {
                            assert!(staged.len() < min, "{min} bytes are not enough");
                            return None;
                        }
                        (used, event)
                    }
                    Err(violation) => {
                        assert_eq!(self.machine.need(), Need::Drain);
                        self.transcript.log.push(Entry::Violation(violation));
                        (0, None)
                    }
                }
            }
            Need::Payload {
                slot,
                offset,
                len,
                crc,
            } => {
                assert!(slot.index() < self.machine.slots());
                let end = offset as usize + len as usize;
                assert!(len > 0 && end <= script.buffer_len(slot), "{need:?}");
                let n = available(staged, len);
                if n == 0 {
                    return None;
                }
                let (_, _, sum) = self.payload.unwrap_or((slot, 0, 0));
                let bytes = &staged[..n as usize];
                self.payload = Some((slot, offset + n, crc32c(sum, bytes)));
                if n == len {
                    let line = self
                        .payload
                        .take()
                        .map(|(slot, end, sum)| Entry::Payload(slot, end, sum));
                    self.transcript.log.extend(line);
                }
                (
                    bytes.len(),
                    self.machine.placed(n, crc.map(|crc| crc32c(crc, bytes))),
                )
            }
            Need::Discard { len } => {
                assert!(len > 0);
                let n = available(staged, len);
                if n == 0 {
                    return None;
                }
                (n as usize, self.machine.placed(n, None))
            }
            Need::Wait(_) => {
                script.waiting(&mut self.machine, need);
                self.flush(&[]);
                assert_ne!(
                    self.machine.need(),
                    need,
                    "the stream stands still for good"
                );
                (0, None)
            }
            Need::Drain | Need::Closed => return None,
        };
        if let Some(event) = event {
            self.transcript.log.push(Entry::Event(event.clone()));
            script.event(&mut self.machine, &event);
        }
        Some(used)
    }

    /// Sends all that is due, and all that this frees, in pieces as long as `cuts` say.
    fn send(&mut self, cuts: &[u8]) {
        self.flush(cuts);
        assert!(!self.machine.has_transmit(), "an empty list has no room");
    }

    fn flush(&mut self, cuts: &[u8]) {
        let mut cuts = cuts
            .iter()
            .map(|&cut| usize::from(cut))
            .filter(|&cut| cut > 0);
        loop {
            let had = self.machine.has_transmit();
            let appended = self.machine.poll_transmit(&mut self.list);
            assert_eq!(appended, had, "has_transmit says something else");
            let data = &self.data;
            self.list
                .fill_digests(|d| &data[d.offset as usize..(d.offset + d.len) as usize]);
            if self.list.is_empty() {
                return;
            }
            for seg in self.list.segments() {
                let (from, start, len) = match *seg {
                    Seg::Head { start, len } => (self.list.heads(), start, len),
                    Seg::Data { slot, offset, len } => {
                        assert!(slot.index() < self.machine.slots());
                        (&self.data[..], offset, len)
                    }
                };
                self.transcript
                    .sent
                    .extend(&from[start as usize..(start + len) as usize]);
            }
            while !self.list.is_empty() {
                let n = cuts.next().unwrap_or(usize::MAX).min(self.list.remaining());
                self.list.advance(n);
                self.machine.transmitted(n);
            }
        }
    }

    /// The machine's bytes are PDUs one after the other, and nothing follows a TermReq.
    fn check_sent(&self) {
        let mut rest = &self.transcript.sent[..];
        while let Some(first) = rest.first_chunk::<COMMON_LEN>() {
            let ch = CommonHeader::decode(first);
            let len = ch.plen as usize;
            assert!(
                len >= usize::from(ch.hlen) && ch.hlen >= 8 && len <= rest.len(),
                "{ch:?}"
            );
            rest = &rest[len..];
            assert!(
                ch.pdu_type != M::TERM_REQ || rest.is_empty(),
                "bytes follow a TermReq"
            );
        }
        assert!(rest.is_empty(), "part of a PDU");
        let violations = self
            .transcript
            .log
            .iter()
            .filter(|e| matches!(e, Entry::Violation(_)));
        assert!(violations.count() <= 1);
    }
}

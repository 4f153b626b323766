//! Any byte stream into the target's machine: it keeps its contract, and does the same however the
//! stream is cut.
//!
//! Input: a byte of options, the number of cuts, the cuts, the stream.

use crate::play::{MAX_DATA, Machine, Script, Transcript, play};
use nvmf_proto::tcp::target::{Config, Done, Event, QueueConfig, TcpTarget};
use nvmf_proto::tcp::{Need, Slot, TxList, WaitFor};
use nvmf_proto::wire::Status;
use std::collections::{BTreeMap, VecDeque};

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(data: &[u8]) {
    let Some((&options, rest)) = data.split_first() else {
        return;
    };
    let Some((&cuts, rest)) = rest.split_first() else {
        return;
    };
    let (cuts, stream) = rest.split_at(usize::from(cuts).min(rest.len()));
    let whole = once(options, TxList::new(1 << 16, 1 << 10), stream, &[]);
    let cut = once(options, TxList::new(0, 0), stream, cuts);
    assert_eq!(whole, cut, "the cuts {cuts:?} make a difference");
    if stream.len() <= 1024 {
        let bytes = once(options, TxList::new(512, 9), stream, &vec![1; stream.len()]);
        assert_eq!(whole, bytes, "cutting everywhere makes a difference");
    }
}

/// What the target sends when it receives this stream.
#[must_use]
pub fn sent(options: u8, stream: &[u8]) -> Vec<u8> {
    once(options, TxList::new(0, 0), stream, &[]).sent
}

fn once(options: u8, list: TxList, stream: &[u8], cuts: &[u8]) -> Transcript<Event> {
    let config = Config {
        header_digest: options & 1 == 0,
        data_digest: options & 2 == 0,
        cpda: options >> 2 & 3,
        maxh2cdata: 4096,
        ..Config::default()
    };
    let target = TcpTarget::new(&config);
    let mut script = Answers {
        flow_control: options & 0x10 == 0,
        entries: 2 << (options >> 5),
        opened: false,
        live: BTreeMap::new(),
        late: VecDeque::new(),
    };
    play(target, &mut script, list, stream, cuts)
}

/// Answers commands as the low bits of their opcodes say.
#[derive(Debug)]
struct Answers {
    flow_control: bool,
    entries: u32,
    opened: bool,
    /// Buffer sizes.
    live: BTreeMap<usize, usize>,
    /// Commands that are answered some events later.
    late: VecDeque<Slot>,
}

const OK: Done = Done {
    status: Status::SUCCESS,
    result: 0,
    data_len: 0,
};
/// As many commands are kept waiting at a time.
const LATE: usize = 2;

impl Answers {
    fn command(
        &mut self,
        target: &mut TcpTarget,
        slot: Slot,
        opcode: u8,
        asked: u32,
        in_capsule: u32,
    ) {
        let len = asked.min(MAX_DATA);
        // In-capsule data is bounded by the queue, and the target has to have room for it.
        self.live
            .insert(slot.index(), MAX_DATA.max(in_capsule) as usize);
        let done = match opcode & 7 {
            0 => OK,
            1 => return target.receive(slot, len.max(1)),
            2 => Done {
                data_len: len,
                ..OK
            },
            3 => Done {
                status: Status::INVALID_FIELD,
                data_len: len,
                result: 1,
            },
            4 => return self.late.push_back(slot),
            5 => {
                target.receive(slot, len.max(1));
                return self.late.push_back(slot);
            }
            6 => Done {
                data_len: len,
                result: 7,
                ..OK
            },
            _ => {
                if !self.opened {
                    self.opened = true;
                    target.open_queue(&QueueConfig {
                        entries: self.entries,
                        flow_control: self.flow_control,
                        in_capsule: 8192,
                    });
                }
                OK
            }
        };
        target.complete(slot, done);
    }
}

impl Script<TcpTarget> for Answers {
    fn event(&mut self, target: &mut TcpTarget, event: &Event) {
        if self.late.len() > LATE
            && let Some(slot) = self.late.pop_front()
        {
            target.complete(slot, OK);
        }
        match *event {
            Event::Command {
                slot,
                sqe,
                in_capsule,
                ..
            } => {
                self.command(target, slot, sqe.opcode(), sqe.sgl().length, in_capsule);
            }
            Event::Received { slot, digest_ok } => {
                let status = if digest_ok {
                    Status::SUCCESS
                } else {
                    Status::TRANSIENT_TRANSPORT_ERROR
                };
                target.complete(slot, Done { status, ..OK });
            }
            Event::Ready(_) | Event::Terminated(_) | Event::Closed(_) => {}
        }
    }

    fn waiting(&mut self, target: &mut TcpTarget, need: Need) {
        if let Need::Wait(WaitFor::Command(slot)) = need {
            target.complete(slot, OK);
            return;
        }
        // A slot comes free with the first that does not have to wait for its data: that may stand
        // behind the command that waits for a slot.
        while let Some(slot) = self.late.pop_front() {
            if target.complete(slot, OK) {
                return;
            }
        }
    }

    fn end(&mut self, target: &mut TcpTarget) {
        for slot in self.late.drain(..) {
            target.complete(slot, OK);
        }
        assert!(Machine::outstanding(target) <= target.slots());
    }

    fn buffer_len(&self, slot: Slot) -> usize {
        self.live.get(&slot.index()).copied().unwrap_or(0)
    }
}

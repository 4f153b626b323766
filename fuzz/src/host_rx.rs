//! Any byte stream into the host's machine: it keeps its contract, and does the same however the
//! stream is cut.
//!
//! Input: a byte of options, the number of commands, three bytes for each (opcode, length), the
//! number of cuts, the cuts, the stream.

use crate::play::{MAX_DATA, Script, Transcript, play};
use nvmf_proto::tcp::host::{Config, Event, HostData, TcpHost};
use nvmf_proto::tcp::{Need, Slot, TxList};
use nvmf_proto::wire::Sqe;
use std::collections::BTreeMap;

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(data: &[u8]) {
    let Some((&options, rest)) = data.split_first() else {
        return;
    };
    let Some((&commands, rest)) = rest.split_first() else {
        return;
    };
    let (commands, rest) = rest.split_at((usize::from(commands & 15) * 3).min(rest.len()));
    let Some((&cuts, rest)) = rest.split_first() else {
        return;
    };
    let (cuts, stream) = rest.split_at(usize::from(cuts).min(rest.len()));
    let whole = once(
        options,
        commands,
        TxList::new(1 << 16, 1 << 10),
        stream,
        &[],
    );
    let cut = once(options, commands, TxList::new(0, 0), stream, cuts);
    assert_eq!(whole, cut, "the cuts {cuts:?} make a difference");
    if stream.len() <= 1024 {
        let bytes = once(
            options,
            commands,
            TxList::new(512, 9),
            stream,
            &vec![1; stream.len()],
        );
        assert_eq!(whole, bytes, "cutting everywhere makes a difference");
    }
}

fn config(options: u8) -> Config {
    Config {
        header_digest: options & 1 != 0,
        data_digest: options & 2 != 0,
        hpda: options >> 2 & 3,
        maxr2t: u32::from(options >> 4 & 1),
        entries: 17,
        flow_control: options & 0x20 == 0,
        in_capsule: 512,
        ..Config::default()
    }
}

/// The data of a command, as `rx` answers its opcode.
fn data_of(opcode: u8, len: u32) -> HostData {
    match opcode & 7 {
        1 => HostData::Write {
            len,
            in_capsule: true,
        },
        2 | 6 => HostData::Read { len },
        5 => HostData::Write {
            len,
            in_capsule: false,
        },
        _ => HostData::None,
    }
}

/// What the host sends when it has these commands (three bytes each) and receives this stream.
#[must_use]
pub fn sent(options: u8, commands: &[u8], stream: &[u8]) -> Vec<u8> {
    once(options, commands, TxList::new(0, 0), stream, &[]).sent
}

fn once(
    options: u8,
    commands: &[u8],
    list: TxList,
    stream: &[u8],
    cuts: &[u8],
) -> Transcript<Event> {
    let mut host = TcpHost::new(&config(options));
    let mut script = Commands {
        live: BTreeMap::new(),
    };
    for command in commands.chunks_exact(3) {
        let [opcode, low, high] = [command[0], command[1], command[2]];
        let data = data_of(
            opcode,
            u32::from(u16::from_le_bytes([low, high])) % (MAX_DATA + 1),
        );
        let Some(slot) = host.submit(Sqe::with_opcode(opcode), data) else {
            break;
        };
        let len = match data {
            HostData::Read { len } => len,
            _ => 0,
        };
        assert!(script.live.insert(slot.index(), (slot, len)).is_none());
    }
    play(host, &mut script, list, stream, cuts)
}

/// The commands that are not complete, with the length of what they read.
#[derive(Debug)]
struct Commands {
    live: BTreeMap<usize, (Slot, u32)>,
}

impl Script<TcpHost> for Commands {
    fn event(&mut self, host: &mut TcpHost, event: &Event) {
        if let Event::Completed {
            slot,
            cqe,
            received,
            ..
        } = *event
        {
            let (submitted, len) = self.live.remove(&slot.index()).unwrap_or((slot, 0));
            assert_eq!(submitted, slot, "not a command of this queue");
            assert!(received <= len);
            if cqe.status.is_success() {
                assert_eq!(received, len, "success without the data");
            }
            assert!(host.outstanding() >= self.live.len());
        }
    }

    fn waiting(&mut self, _: &mut TcpHost, need: Need) {
        panic!("a host does not wait: {need:?}");
    }

    fn end(&mut self, host: &mut TcpHost) {
        assert_eq!(
            host.outstanding(),
            self.live.len(),
            "everything that was due has left"
        );
    }

    fn buffer_len(&self, slot: Slot) -> usize {
        self.live
            .get(&slot.index())
            .map_or(0, |&(_, len)| len as usize)
    }
}

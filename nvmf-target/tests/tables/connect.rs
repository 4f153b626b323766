//! What becomes of a Connect command, field by field (NVMe Base 2.1 §6.3 and NVMe over Fabrics), as
//! data: bytes at offsets, so that no structure of either side has a say in it.

/// Where the bytes of a row stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the submission queue entry.
    Command(usize),
    /// In the 1,024 bytes of data.
    Data(usize),
}

/// A Connect that is good but for some bytes, and the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) place: Place,
    pub(crate) bytes: &'static [u8],
    pub(crate) answer: Answer,
}

/// A response: status code type, status code, DNR, dword 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer(
    pub(crate) u8,
    pub(crate) u8,
    pub(crate) bool,
    pub(crate) u32,
);

/// The queue is created; dword 0 is then another matter.
pub(crate) const CREATED: Answer = Answer(0, 0x00, false, 0);
/// Connect Incompatible Format.
const FORMAT: Answer = Answer(1, 0x80, true, 0);
/// Connect Invalid Host.
const HOST: Answer = Answer(1, 0x84, true, 0);

/// Connect Invalid Parameters, IATTR 0: a field of the command.
const fn command(offset: u32) -> Answer {
    Answer(1, 0x82, true, offset)
}

/// Connect Invalid Parameters, IATTR 1: a field of the data.
const fn data(offset: u32) -> Answer {
    Answer(1, 0x82, true, 1 << 16 | offset)
}

const fn row(what: &'static str, place: Place, bytes: &'static [u8], answer: Answer) -> Row {
    Row {
        what,
        place,
        bytes,
        answer,
    }
}

use Place::{Command as C, Data as D};

/// Subsystems that the tables name: one that another host may use, one that any may, and the
/// discovery subsystem.
pub(crate) const CLOSED: &str = "nqn.2026-11.org.example:closed";
pub(crate) const OTHER: &str = "nqn.2026-11.org.example:other";

/// Connects of an admin queue of 32 entries.
pub(crate) const ADMIN: [Row; 29] = [
    row("RECFMT 1", C(40), &[1, 0], FORMAT),
    row("RECFMT 100h", C(40), &[0, 1], FORMAT),
    row("SQSIZE 0", C(44), &[0, 0], command(44)),
    row("SQSIZE 1", C(44), &[1, 0], CREATED),
    row("SQSIZE 127", C(44), &[127, 0], CREATED),
    row("SQSIZE 128", C(44), &[128, 0], command(44)),
    row("SQSIZE FFFFh", C(44), &[0xff, 0xff], command(44)),
    row("CATTR: priority class", C(46), &[0x03], CREATED),
    row("CATTR: flow control disabled", C(46), &[0x04], CREATED),
    row("CATTR: deletion of queues", C(46), &[0x08], CREATED),
    row("CATTR: reserved", C(46), &[0xf0], CREATED),
    row("KATO 0", C(48), &[0; 4], CREATED),
    row("KATO of 49 days", C(48), &[0xff; 4], CREATED),
    row("CDW13 to CDW15", C(52), &[0xff; 12], CREATED),
    row("HOSTID 0", D(0), &[0; 16], CREATED),
    row("CNTLID 0", D(16), &[0, 0], data(16)),
    row("CNTLID 1", D(16), &[1, 0], data(16)),
    row("CNTLID FFFEh", D(16), &[0xfe, 0xff], data(16)),
    row("reserved data", D(18), &[0xff; 238], CREATED),
    row("SUBNQN empty", D(256), &[0], data(256)),
    row(
        "SUBNQN of nobody",
        D(256),
        b"nqn.2026-11.org.example:nobody\0",
        data(256),
    ),
    row("SUBNQN of 224 bytes", D(256), &[b'n'; 224], data(256)),
    row("SUBNQN without NUL", D(256), &[b'n'; 256], data(256)),
    row("SUBNQN not UTF-8", D(259), &[0xff], data(256)),
    row("SUBNQN of another's", D(256), CLOSED.as_bytes(), HOST),
    row("HOSTNQN empty", D(512), &[0], data(512)),
    row("HOSTNQN without NUL", D(512), &[b'n'; 256], data(512)),
    row("HOSTNQN not UTF-8", D(515), &[0xff], data(512)),
    row("data behind HOSTNQN", D(768), &[0xff; 256], CREATED),
];

/// Connects of I/O queue 1 of 8, of 128 of at most 1,024 entries.
pub(crate) const IO: [Row; 24] = [
    row("RECFMT 1", C(40), &[1, 0], FORMAT),
    row("QID 8", C(42), &[8, 0], CREATED),
    row("QID 9", C(42), &[9, 0], command(42)),
    row("QID FFFFh", C(42), &[0xff, 0xff], command(42)),
    row("SQSIZE 0", C(44), &[0, 0], command(44)),
    row("SQSIZE 1", C(44), &[1, 0], CREATED),
    row("SQSIZE 1023", C(44), &[0xff, 0x03], CREATED),
    row("SQSIZE 1024", C(44), &[0, 0x04], command(44)),
    row("SQSIZE FFFFh", C(44), &[0xff, 0xff], command(44)),
    row("CATTR: all", C(46), &[0xff], CREATED),
    row("KATO", C(48), &[0xff; 4], CREATED),
    row("HOSTID 0", D(0), &[0; 16], data(0)),
    row("HOSTID of another host", D(15), &[0x5b], data(0)),
    row("CNTLID 0", D(16), &[0, 0], data(16)),
    row("CNTLID of nobody", D(16), &[0xef, 0xff], data(16)),
    row("CNTLID FFFEh", D(16), &[0xfe, 0xff], data(16)),
    row("CNTLID FFFFh", D(16), &[0xff, 0xff], data(16)),
    row("SUBNQN of another", D(256), OTHER.as_bytes(), data(16)),
    row("SUBNQN of another's", D(256), CLOSED.as_bytes(), HOST),
    row(
        "SUBNQN of discovery",
        D(256),
        b"nqn.2014-08.org.nvmexpress.discovery\0",
        command(42),
    ),
    row("SUBNQN without NUL", D(256), &[b'n'; 256], data(256)),
    row("HOSTNQN of another host", D(542), b"2", data(512)),
    row("HOSTNQN empty", D(512), &[0], data(512)),
    row("HOSTNQN without NUL", D(512), &[b'n'; 256], data(512)),
];

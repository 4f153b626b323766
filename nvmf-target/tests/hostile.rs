//! Hosts that break NVMe/TCP: each is told so and let go, and nobody else notices.

mod common;

use common::raw::{Digests, Raw, connect_data, read, with_sgl, write_by_r2t, write_in_capsule};
use common::step::Step;
use common::{NQN, Witness, config, pattern, target};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::pdu::{
    CommonHeader, DataHeader, Fes, InitConnection, PduFlags, PduType,
};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use nvmf_target::ns::NsInfo;
use std::io::Read;
use std::net::{Shutdown, SocketAddr};

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
const SEQUENCE: (Fes, u32) = (Fes::PDU_SEQUENCE, 0);

/// A target and a host beside the hostile ones.
fn scene() -> (nvmf_target::Target, SocketAddr, Witness) {
    let (target, address) = target(config());
    let witness = Witness::new(&target, address);
    (target, address, witness)
}

fn header(pdu_type: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> Vec<u8> {
    let mut bytes = [0; 8];
    CommonHeader {
        pdu_type: PduType(pdu_type),
        flags: PduFlags::from_bits_retain(flags),
        hlen,
        pdo,
        plen,
    }
    .encode(&mut bytes);
    bytes.to_vec()
}

fn with_byte(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = value;
    bytes
}

#[test]
fn garbage_is_answered_by_a_term_req_at_most() {
    let (_target, address, mut witness) = scene();
    let mut inputs: Vec<Vec<u8>> = [1, 7, 8, 127, 128, 129, 4096, 300_000]
        .into_iter()
        .map(|len| pattern(len as u64, len))
        .collect();
    inputs.extend([
        b"GET / HTTP/1.1\r\nHost: disks\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a ClientHello".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
    ]);
    for input in inputs {
        let mut raw = Raw::tcp(address);
        raw.send(&input);
        raw.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = raw.stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == PduType::C2H_TERM_REQ.0);
        assert!(answer.len() <= 152);
        witness.is_alone();
    }
}

#[test]
fn the_first_pdu_is_an_icreq() {
    let (_target, address, mut witness) = scene();
    for pdu_type in 1..=255 {
        let mut raw = Raw::tcp(address);
        raw.send(&header(pdu_type, 0, 24, 0, 24));
        let expected = match pdu_type {
            2 | 4 | 6 => SEQUENCE,
            _ => (FIELD, 0),
        };
        assert_eq!(raw.expect_term(), expected, "PDU type {pdu_type}");
    }
    witness.is_alone();
}

#[test]
fn an_icreq_asks_for_what_there_is() {
    let (_target, address, mut witness) = scene();
    let good = Digests::default().ic_req();
    let mut long = InitConnection::default();
    (long.pfv, long.max) = (0x0100, u32::MAX);
    for (bytes, expected) in [
        (with_byte(&good, 1, 1), (FIELD, 1)),
        (with_byte(&good, 2, 127), (FIELD, 2)),
        (with_byte(&good, 3, 128), (FIELD, 3)),
        (with_byte(&good, 4, 127), (FIELD, 4)),
        (with_byte(&good, 7, 0xff), (FIELD, 4)),
        (with_byte(&good, 8, 1), (Fes::UNSUPPORTED_PARAMETER, 8)),
        (
            long.encode(PduType::IC_REQ).to_vec(),
            (Fes::UNSUPPORTED_PARAMETER, 8),
        ),
        (with_byte(&good, 10, 32), (FIELD, 10)),
        (with_byte(&good, 11, 4), (FIELD, 11)),
    ] {
        let mut raw = Raw::tcp(address);
        raw.send(&bytes);
        assert_eq!(raw.expect_term(), expected, "{:?}", &bytes[..16]);
    }
    let mut raw = Raw::open(address, Digests::default());
    raw.send(&good);
    assert_eq!(raw.expect_term(), SEQUENCE, "a second ICReq");
    drop(raw);
    witness.is_alone();
}

#[test]
fn headers_that_lie_end_the_connection() {
    let (target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    let huge = 0xffff_fff0;
    for (digests, bytes, expected) in [
        (false, header(4, 0, 72, 0, 71), (FIELD, 4)),
        (false, header(4, 0, 72, 0, 0), (FIELD, 4)),
        (false, header(4, 0, 72, 72, huge), (FIELD, 4)),
        // In-capsule data is 16 KiB at the most.
        (false, header(4, 0, 72, 72, 72 + 16_385), (FIELD, 4)),
        (false, header(4, 0, 72, 73, 72 + 512), (FIELD, 3)),
        (false, header(4, 0, 72, 68, 72 + 512), (FIELD, 3)),
        (false, header(4, 0, 72, 128, 72 + 8), (FIELD, 3)),
        (false, header(4, 0, 71, 0, 72), (FIELD, 2)),
        (false, header(4, 1, 72, 0, 72), (FIELD, 1)),
        (false, header(4, 2, 72, 72, 600), (FIELD, 1)),
        (true, header(4, 0, 72, 0, 76), (FIELD, 1)),
        (true, header(4, 1, 72, 76, 600), (FIELD, 1)),
        (true, header(4, 1, 72, 0, 72), (FIELD, 4)),
        (
            false,
            header(6, 0, 24, 24, 24 + (1 << 20) + 4),
            (Fes::LIMIT_EXCEEDED, 0),
        ),
        (false, header(6, 0, 24, 24, huge), (Fes::LIMIT_EXCEEDED, 0)),
        (false, header(6, 4, 23, 24, 536), (FIELD, 2)),
        (false, header(2, 0, 24, 0, 153), (FIELD, 4)),
        (false, header(2, 0, 24, 0, 23), (FIELD, 4)),
        // What only controllers send.
        (false, header(1, 0, 128, 0, 128), (FIELD, 0)),
        (false, header(3, 0, 24, 0, 24), (FIELD, 0)),
        (false, header(5, 0, 24, 0, 24), (FIELD, 0)),
        (false, header(7, 0, 24, 24, 536), (FIELD, 0)),
        (false, header(9, 0, 24, 0, 24), (FIELD, 0)),
        (false, header(0xff, 0xff, 0xff, 0xff, u32::MAX), (FIELD, 0)),
    ] {
        let digests = if digests {
            Digests::BOTH
        } else {
            Digests::default()
        };
        let mut raw = Raw::io_with(address, cntlid, 1, digests);
        raw.send(&bytes);
        assert_eq!(raw.expect_term(), expected, "{bytes:?}");
        drop(raw);
        // The QID is free as soon as the host has closed.
        common::eventually("the queue is gone", || target.stats().io_queues == 1);
    }
    let mut raw = Raw::open(address, Digests::default());
    raw.send(&header(4, 0, 72, 72, 72 + 8193));
    assert_eq!(raw.expect_term(), (FIELD, 4), "8 KiB before Connect");
    drop((raw, admin));
    witness.is_alone();
}

#[test]
fn a_wrong_header_digest_ends_the_connection() {
    let (_target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io_with(address, cntlid, 1, Digests::BOTH);
    let mut capsule = Digests::BOTH.capsule(&read(1, 0, 8), &[]);
    capsule[75] ^= 0x80;
    let digest = u32::from_le_bytes(*capsule[72..].first_chunk().unwrap());
    raw.send(&capsule);
    assert_eq!(raw.expect_term(), (Fes::HEADER_DIGEST, digest));
    drop((raw, admin));
    witness.is_alone();
}

#[test]
fn a_term_req_of_the_host_ends_the_connection_without_a_word() {
    let (_target, address, mut witness) = scene();
    for fes in [0, 1, 7, 0xffff] {
        let (mut raw, _) = Raw::admin(address);
        let mut term = header(2, 0, 24, 0, 152);
        term.resize(152, 0xee);
        term[8..10].copy_from_slice(&u16::to_le_bytes(fes));
        raw.send(&term);
        raw.expect_end();
    }
    witness.is_alone();
}

type WrongData = fn(&DataHeader) -> Vec<u8>;

/// What is sent for an R2T of 1024 bytes, and FES and FEI of the answer.
const WRONG_DATA: [(&str, WrongData, (Fes, u32)); 12] = [
    (
        "a TTAG that nobody has",
        |r| {
            data(
                &DataHeader {
                    ttag: !r.ttag,
                    ..*r
                },
                0,
                1024,
                true,
            )
        },
        (FIELD, 10),
    ),
    (
        "another command's CCCID",
        |r| data(&DataHeader { cccid: 9, ..*r }, 0, 1024, true),
        (FIELD, 8),
    ),
    (
        "the second part first",
        |r| data(r, 512, 512, true),
        SEQUENCE,
    ),
    (
        "beyond the end",
        |r| data(r, 0, 1536, true),
        (Fes::DATA_OUT_OF_RANGE, 0),
    ),
    (
        "all of it beyond the end",
        |r| data(r, 1024, 512, true),
        (Fes::DATA_OUT_OF_RANGE, 0),
    ),
    (
        "an offset that wraps",
        |r| data(r, u32::MAX - 511, 512, true),
        (Fes::DATA_OUT_OF_RANGE, 0),
    ),
    ("LAST too early", |r| data(r, 0, 512, true), (FIELD, 1)),
    ("LAST missing", |r| data(r, 0, 1024, false), (FIELD, 1)),
    (
        "a part twice",
        |r| [data(r, 0, 512, false), data(r, 0, 512, false)].concat(),
        SEQUENCE,
    ),
    (
        "DATAL 0",
        |r| with_byte(&data(r, 0, 1024, true), 17, 0),
        (FIELD, 16),
    ),
    (
        "DATAL less than there is",
        |r| with_byte(&data(r, 0, 1024, true), 17, 2),
        (FIELD, 16),
    ),
    (
        "again after the end",
        |r| [data(r, 0, 1024, true), data(r, 0, 1024, true)].concat(),
        (FIELD, 10),
    ),
];

#[test]
fn data_comes_as_it_was_asked_for() {
    let (target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    for (what, wrong, expected) in WRONG_DATA {
        let mut raw = Raw::io(address, cntlid, 1);
        raw.submit(&write_by_r2t(5, 0, 2), &[]);
        let r2t = raw.recv().r2t();
        assert_eq!((r2t.cccid, r2t.offset, r2t.length), (5, 0, 1024));
        raw.send(&wrong(&r2t));
        let pdu = raw.recv();
        let pdu = if pdu.ch.pdu_type == PduType::CAPSULE_RESP {
            raw.recv()
        } else {
            pdu
        };
        let term = pdu.term();
        assert_eq!((term.fes, term.fei), expected, "{what}");
        raw.expect_end();
        drop(raw);
        common::eventually("the queue is gone", || target.stats().io_queues == 1);
    }
    let mut raw = Raw::io(address, cntlid, 1);
    raw.submit(&read(5, 0, 2), &[]);
    let unasked = DataHeader {
        cccid: 5,
        ttag: 0,
        offset: 0,
        length: 0,
    };
    raw.recv().data();
    raw.recv().cqe();
    raw.send(&data(&unasked, 0, 1024, true));
    assert_eq!(raw.expect_term(), (FIELD, 10), "data for a read");
    drop((raw, admin));
    witness.is_alone();
}

fn data(r2t: &DataHeader, offset: u32, len: usize, last: bool) -> Vec<u8> {
    Digests::default().h2c_data(r2t, offset, &vec![1; len], last)
}

#[test]
fn a_wrong_data_digest_fails_the_command_and_writes_nothing() {
    let (_target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io_with(address, cntlid, 1, Digests::BOTH);
    let old = pattern(1, 1024);
    raw.ok(&write_in_capsule(1, 0, 2), &old);
    let spoilt = |mut pdu: Vec<u8>| {
        *pdu.last_mut().unwrap() ^= 1;
        pdu
    };
    raw.send(&spoilt(
        Digests::BOTH.capsule(&write_in_capsule(2, 0, 2), &[9; 1024]),
    ));
    assert_eq!(raw.recv().cqe().status, Status::TRANSIENT_TRANSPORT_ERROR);
    // Either of two H2CData, or both.
    for bad in 1..4 {
        raw.submit(&write_by_r2t(3, 0, 2), &[]);
        let r2t = raw.recv().r2t();
        for part in 0..2 {
            let pdu = Digests::BOTH.h2c_data(&r2t, part * 512, &[9; 512], part == 1);
            raw.send(&if bad & 1 << part != 0 {
                spoilt(pdu)
            } else {
                pdu
            });
        }
        let cqe = raw.recv().cqe();
        assert_eq!(
            (cqe.cid, cqe.status),
            (3, Status::TRANSIENT_TRANSPORT_ERROR)
        );
    }
    // A command that fails for another reason is answered once, for that reason.
    let mut nowhere = write_in_capsule(4, 0, 2);
    nowhere.set_nsid(77);
    raw.send(&spoilt(Digests::BOTH.capsule(&nowhere, &[9; 1024])));
    let cqe = raw.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (4, Status::INVALID_NAMESPACE.dnr()));
    assert_eq!(raw.read(&read(5, 0, 2)), old);
    drop((raw, admin));
    witness.is_alone();
}

#[test]
fn a_cid_in_use_is_refused() {
    let (_target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io(address, cntlid, 1);
    raw.submit(&write_by_r2t(5, 0, 2), &[]);
    let r2t = raw.recv().r2t();
    for sqe in [read(5, 0, 1), write_by_r2t(5, 8, 1)] {
        assert_eq!(
            raw.execute(&sqe, &[]).status,
            Status::COMMAND_ID_CONFLICT.dnr()
        );
    }
    let cqe = raw.execute(&write_in_capsule(5, 8, 1), &[1; 512]);
    assert_eq!(cqe.status, Status::COMMAND_ID_CONFLICT.dnr());
    raw.send(&data(&r2t, 0, 1024, true));
    assert_eq!(raw.recv().cqe().status, Status::SUCCESS);
    assert_eq!(raw.read(&read(5, 0, 2)), [1; 1024], "it is free again");
    drop((raw, admin));
    witness.is_alone();
}

#[test]
fn commands_beyond_the_queue_wait_for_its_entries() {
    let (target, address, mut witness) = scene();
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::open(address, Digests::default());
    let mut connect = common::raw::io_connect(1);
    connect.sqsize = 3;
    let mut data = connect_data();
    data.cntlid = cntlid;
    raw.connect_ok(&connect, &data);
    for cid in 0..12 {
        let mut sqe = read(cid, u64::from(cid), 1);
        sqe.set_nsid(2);
        raw.submit(&sqe, &[]);
    }
    let mut held = step.take(4);
    for cid in 0..12 {
        // Whatever more the target had taken would be here.
        witness.works();
        assert_eq!(step.pending(), 0);
        let mut request = held.remove(0);
        assert_eq!(request.lba_range().slba, u64::from(cid));
        request.data_mut().fill(7);
        request.complete(Ok(()));
        assert_eq!(raw.recv().data(), [7; 512]);
        assert_eq!(raw.recv().cqe().cid, cid);
        if cid < 8 {
            held.push(step.next());
        }
    }
    drop((raw, admin));
    witness.is_alone();
}

#[test]
fn a_session_that_comes_in_crumbs_is_a_session() {
    let (_target, address, mut witness) = scene();
    for (chunk, digests) in [
        (1, Digests::default()),
        (1, Digests::BOTH),
        (13, Digests::BOTH),
    ] {
        let (mut admin, cntlid) = Raw::admin(address);
        admin.chunk = chunk;
        admin.ok(&command::keep_alive(), &[]);
        let mut raw = Raw::tcp(address);
        raw.chunk = chunk;
        raw.send(&digests.ic_req());
        raw.recv();
        raw.digests = digests;
        let mut data = connect_data();
        data.cntlid = cntlid;
        raw.connect_ok(&common::raw::io_connect(1), &data);
        let blocks = pattern(chunk as u64, 1024);
        raw.ok(&write_in_capsule(1, 0, 1), &blocks[..512]);
        raw.submit(&write_by_r2t(2, 1, 1), &[]);
        let r2t = raw.recv().r2t();
        raw.send(&digests.h2c_data(&r2t, 0, &blocks[512..700], false));
        raw.send(&digests.h2c_data(&r2t, 188, &blocks[700..], true));
        assert_eq!(raw.recv().cqe().status, Status::SUCCESS);
        assert_eq!(raw.read(&read(3, 0, 2)), blocks);
    }
    witness.is_alone();
}

/// A command that is wrong fails, and its connection lives.
#[test]
fn data_pointers_and_commands_that_are_wrong() {
    let (_target, address, mut witness) = scene();
    let (admin, cntlid) = Raw::admin(address);
    let mut raw = Raw::io(address, cntlid, 1);
    let sgl = |sqe: Sqe, kind, length, offset| {
        let address = offset;
        with_sgl(
            sqe,
            1,
            SglDescriptor {
                address,
                length,
                kind,
            },
        )
    };
    let (rd, wr) = (command::read(1, 0, 8), command::write(1, 0, 8));
    let (inside, outside) = (SglDescriptor::IN_CAPSULE, SglDescriptor::TRANSPORT);
    let byte = |mut sqe: Sqe, at: usize, value| {
        sqe.0[at] = value;
        sqe
    };
    let length = Status::DATA_SGL_LENGTH_INVALID;
    let good = sgl(rd, outside, 4096, 0);
    for (sqe, data, status) in [
        (sgl(rd, outside, 0, 0), 0, length),
        (sgl(rd, outside, 4095, 0), 0, length),
        (sgl(rd, inside, 4096, 0), 0, Status::INVALID_FIELD),
        (sgl(rd, outside, 4096, 0), 512, Status::INVALID_FIELD),
        (sgl(rd, 0x00, 4096, 0), 0, Status::SGL_TYPE_INVALID),
        (sgl(rd, 0x20, 4096, 0), 0, Status::SGL_TYPE_INVALID),
        (sgl(wr, outside, 4095, 0), 0, length),
        (sgl(wr, outside, u32::MAX, 0), 0, length),
        (sgl(wr, inside, 4096, 0), 0, length),
        (sgl(wr, inside, 4096, 0), 4095, length),
        (sgl(wr, inside, 4096, 0), 4097, length),
        (sgl(wr, inside, 512, 0), 512, length),
        (sgl(wr, inside, 4096, 8), 4096, Status::SGL_OFFSET_INVALID),
        (sgl(wr, outside, 4096, 0), 4096, Status::INVALID_FIELD),
        (sgl(wr, 0x40, 4096, 0), 0, Status::SGL_TYPE_INVALID),
        (byte(good, 1, 0), 0, Status::INVALID_FIELD),
        (byte(good, 1, 0xc0), 0, Status::INVALID_FIELD),
        (byte(good, 1, 0x41), 0, Status::INVALID_FIELD),
        (byte(good, 1, 0x43), 0, Status::INVALID_FIELD),
        (byte(good, 0, 0xff), 0, Status::INVALID_OPCODE),
        (byte(good, 4, 0), 0, Status::INVALID_NAMESPACE),
        (byte(good, 7, 0x80), 0, Status::INVALID_NAMESPACE),
        // MDTS is 1 MiB: 2048 blocks.
        (byte(good, 49, 8), 0, Status::INVALID_FIELD),
        (byte(good, 47, 0xff), 0, Status::LBA_OUT_OF_RANGE),
    ] {
        let cqe = raw.execute(&sqe, &vec![3; data]);
        assert_eq!(cqe.status, status.dnr(), "{sqe:?} with {data} bytes");
    }
    assert_eq!(raw.read(&read(1, 0, 8)), [0; 4096], "nothing was written");
    drop((raw, admin));
    witness.is_alone();
}

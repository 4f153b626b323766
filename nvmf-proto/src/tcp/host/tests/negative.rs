//! Every lie of a controller and what it is told: FES and FEI of the H2CTermReq.

use super::*;
use crate::wire::pdu::{Fes, TERM_LEN};

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
const SEQUENCE: Fes = Fes::PDU_SEQUENCE;
const RANGE: Fes = Fes::DATA_OUT_OF_RANGE;
const LIMIT: Fes = Fes::LIMIT_EXCEEDED;

/// Checks the violation, that nothing else happened, and the one H2CTermReq that follows.
fn assert_rejected(name: &str, rig: &mut Rig, pdu: &[u8], quoted: usize, fes: Fes, fei: u32) {
    let events = rig.events.len();
    // Everything that was submitted and not handed out is dropped.
    rig.host.submit(Sqe::default(), HostData::None);
    rig.feed(pdu);
    assert_eq!(rig.violation, Some(Violation::new(fes, fei)), "{name}");
    assert_eq!(rig.events.len(), events, "{name}: {:?}", rig.events);
    assert_eq!(rig.host.need(), Need::Drain, "{name}");
    assert_eq!(
        rig.host.submit(Sqe::default(), HostData::None),
        None,
        "{name}"
    );
    let sent = rig.transmit();
    let head = sent.first_chunk::<TERM_LEN>().expect("a TermReq");
    assert_eq!(head[..4], [2, 0, 24, 0], "{name}");
    assert_eq!(TermReq::decode(head), TermReq { fes, fei }, "{name}");
    assert_eq!(
        sent[4],
        u8::try_from(sent.len()).expect("short"),
        "{name}: PLEN"
    );
    assert_eq!(sent[TERM_LEN..], pdu[..quoted], "{name}: the quoted header");
    rig.feed(pdu);
    assert_eq!(rig.transmit(), [], "{name}: nothing follows a TermReq");
}

/// `pdu` with other bytes at `at`.
fn with(pdu: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut pdu = pdu.to_vec();
    pdu[at..at + bytes.len()].copy_from_slice(bytes);
    pdu
}

#[test]
fn ic_resp() {
    let config = Config {
        header_digest: true,
        ..Config::default()
    };
    let good = super::ic_resp(&config);
    let unsupported = Fes::UNSUPPORTED_PARAMETER;
    let table: [(&str, Vec<u8>, usize, Fes, u32); 17] = [
        ("flags", with(&good, 1, &[1]), 8, FIELD, 1),
        ("HLEN", with(&good, 2, &[127]), 8, FIELD, 2),
        ("PDO", with(&good, 3, &[128]), 8, FIELD, 3),
        ("PLEN short", with(&good, 4, &[127]), 8, FIELD, 4),
        ("PLEN long", with(&good, 7, &[1]), 8, FIELD, 4),
        ("PFV", with(&good, 8, &[1]), 128, unsupported, 8),
        ("PFV high", with(&good, 9, &[1]), 128, unsupported, 8),
        ("CPDA", with(&good, 10, &[32]), 128, FIELD, 10),
        (
            "data digest not asked for",
            with(&good, 11, &[3]),
            128,
            FIELD,
            11,
        ),
        ("reserved DGST", with(&good, 11, &[5]), 128, FIELD, 11),
        ("MAXH2CDATA 0", with(&good, 12, &[0; 4]), 128, FIELD, 12),
        (
            "MAXH2CDATA 4092",
            with(&good, 12, &[0xfc, 0x0f, 0, 0]),
            128,
            FIELD,
            12,
        ),
        (
            "MAXH2CDATA 4098",
            with(&good, 12, &[2, 0x10, 0, 0]),
            128,
            FIELD,
            12,
        ),
        ("ICReq", with(&good, 0, &[0]), 8, FIELD, 0),
        ("unknown type", with(&good, 0, &[0x0a]), 8, FIELD, 0),
        (
            "CapsuleResp first",
            resp(&config, 0, 0, Status::SUCCESS),
            8,
            SEQUENCE,
            0,
        ),
        ("R2T first", r2t(&config, 0, 0, 0, 1), 8, SEQUENCE, 0),
    ];
    for (name, pdu, quoted, fes, fei) in table {
        let mut rig = Rig::new(&config);
        rig.transmit();
        rig.sent.clear();
        assert_rejected(name, &mut rig, &pdu, quoted, fes, fei);
    }
    assert_rejected(
        "before ICReq",
        &mut Rig::new(&config),
        &good,
        8,
        SEQUENCE,
        0,
    );
    let mut rig = Rig::ready(&config);
    assert_rejected("twice", &mut rig, &good, 8, SEQUENCE, 0);
}

#[test]
fn types_of_the_other_direction_and_unknown_ones() {
    let config = Config::default();
    for pdu_type in [0x00, 0x02, 0x04, 0x06, 0x08, 0x0a, 0x0b, 0x80, 0xff] {
        let pdu = with(&resp(&config, 0, 0, Status::SUCCESS), 0, &[pdu_type]);
        let mut rig = Rig::ready(&config);
        assert_rejected(&format!("type {pdu_type:#x}"), &mut rig, &pdu, 8, FIELD, 0);
    }
}

#[test]
fn common_headers() {
    for config in configs() {
        let digest = if config.header_digest { 4 } else { 0 };
        let good = resp(&config, 0, 1, Status::SUCCESS);
        let data = c2h_data(&config, 0, 0, &[5; 64], PduFlags::LAST_PDU);
        let wrong_digests = |pdu: &[u8], bit: u8| with(pdu, 1, &[pdu[1] ^ bit]);
        let plen = |pdu: &[u8], plen: u32| with(pdu, 4, &plen.to_le_bytes());
        let pdo = u32::from(data[3]);
        let tail = if config.data_digest { 4 } else { 0 };
        let table = [
            ("resp HDGSTF", wrong_digests(&good, 1), 1),
            ("resp DDGSTF", wrong_digests(&good, 2), 1),
            ("resp LAST", wrong_digests(&good, 4), 1),
            ("resp SUCCESS", wrong_digests(&good, 8), 1),
            ("resp reserved flag", wrong_digests(&good, 0x10), 1),
            ("resp HLEN", with(&good, 2, &[20]), 2),
            ("resp PDO", with(&good, 3, &[24]), 3),
            ("resp PLEN short", plen(&good, 23 + digest), 4),
            ("resp PLEN long", plen(&good, 25 + digest), 4),
            ("resp PLEN 0", plen(&good, 0), 4),
            ("resp PLEN huge", plen(&good, u32::MAX), 4),
            ("data HDGSTF", wrong_digests(&data, 1), 1),
            ("data DDGSTF", wrong_digests(&data, 2), 1),
            ("data SUCCESS with flow control", wrong_digests(&data, 8), 1),
            ("data reserved flag", wrong_digests(&data, 0x80), 1),
            ("data HLEN", with(&data, 2, &[28]), 2),
            ("data PDO 0", with(&data, 3, &[0]), 3),
            ("data PDO in the header", with(&data, 3, &[20]), 3),
            ("data PDO unaligned", with(&data, 3, &[data[3] + 2]), 3),
            ("data PLEN without data", plen(&data, pdo + tail), 4),
            ("data PLEN below PDO", plen(&data, 8), 4),
        ];
        for (name, pdu, fei) in table {
            let mut rig = Rig::ready(&config);
            rig.issue(HostData::Read { len: 64 });
            rig.sent.clear();
            assert_rejected(name, &mut rig, &pdu, 8, FIELD, fei);
        }
    }
}

#[test]
fn header_digest() {
    for config in configs().into_iter().filter(|config| config.header_digest) {
        let mut rig = Rig::ready(&config);
        let (_, cid) = rig.issue(HostData::Read { len: 64 });
        let good = c2h_data(&config, cid, 0, &[5; 64], PduFlags::LAST_PDU);
        let pdu = with(&good, 24, &[1, 2, 3, 4]);
        let fei = 0x0403_0201;
        assert_rejected("header digest", &mut rig, &pdu, 24, Fes::HEADER_DIGEST, fei);
    }
}

#[test]
fn responses() {
    for config in configs() {
        let ready = || {
            let mut rig = Rig::ready(&config);
            let (_, read) = rig.issue(HostData::Read { len: 64 });
            let (_, none) = rig.issue(HostData::None);
            (rig, read, none)
        };
        let check = |name: &str, pdu: &dyn Fn(u16, u16) -> Vec<u8>, fes, fei| {
            let (mut rig, read, none) = ready();
            assert_rejected(name, &mut rig, &pdu(read, none), 24, fes, fei);
        };
        let ok = Status::SUCCESS;
        check(
            "CID never used",
            &|_, _| resp(&config, 0x777, 1, ok),
            FIELD,
            20,
        );
        check(
            "CID ffff",
            &|_, _| resp(&config, u16::MAX, 1, ok),
            FIELD,
            20,
        );
        check(
            "CID of another generation",
            &|_, n| resp(&config, n + 8, 1, ok),
            FIELD,
            20,
        );
        check(
            "CID not handed out",
            &|_, n| resp(&config, n + 1, 1, ok),
            FIELD,
            20,
        );
        check(
            "SQHD beyond the queue",
            &|_, n| resp(&config, n, 8, ok),
            FIELD,
            16,
        );
        check(
            "SQHD ffff",
            &|_, n| resp(&config, n, u16::MAX, ok),
            FIELD,
            16,
        );
        check(
            "read without its data",
            &|r, _| resp(&config, r, 1, ok),
            SEQUENCE,
            0,
        );

        let (mut rig, _, none) = ready();
        rig.feed(&resp(&config, none, 1, ok));
        let twice = resp(&config, none, 1, ok);
        assert_rejected("second completion", &mut rig, &twice, 24, FIELD, 20);

        let (mut rig, read, _) = ready();
        rig.feed(&c2h_data(&config, read, 0, &[0; 63], PduFlags::empty()));
        let short = resp(&config, read, 1, ok);
        assert_rejected("read one byte short", &mut rig, &short, 24, SEQUENCE, 0);

        let (mut rig, ..) = ready();
        let (_, write) = rig.issue(HostData::Write {
            len: 64,
            in_capsule: false,
        });
        rig.feed(&r2t(&config, write, 1, 0, 64));
        let early = resp(&config, write, 1, Status::WRITE_FAULT);
        assert_rejected(
            "data asked for still to go",
            &mut rig,
            &early,
            24,
            SEQUENCE,
            0,
        );
    }
}

#[test]
fn c2h_data_pdus() {
    let last = PduFlags::LAST_PDU;
    let more = PduFlags::empty();
    for config in configs() {
        let check = |name: &str, pdu: &dyn Fn(u16, u16) -> Vec<u8>, fes, fei| {
            let mut rig = Rig::ready(&config);
            let (_, read) = rig.issue(HostData::Read { len: 64 });
            let (_, write) = rig.issue(HostData::Write {
                len: 64,
                in_capsule: false,
            });
            rig.feed(&c2h_data(&config, read, 0, &[1; 16], more));
            rig.sent.clear();
            let pdu = pdu(read, write);
            assert_rejected(name, &mut rig, &pdu, 24, fes, fei);
        };
        let data =
            |cid, offset, len: usize, flags| c2h_data(&config, cid, offset, &vec![7; len], flags);
        check("CCCID unknown", &|_, _| data(0x700, 16, 48, last), FIELD, 8);
        check(
            "CCCID of a write",
            &|_, w| data(w, 0, 64, last),
            SEQUENCE,
            0,
        );
        check("beyond the end", &|r, _| data(r, 16, 49, last), RANGE, 0);
        check(
            "offset wraps",
            &|r, _| data(r, u32::MAX, 48, last),
            RANGE,
            0,
        );
        check("gap", &|r, _| data(r, 20, 44, last), SEQUENCE, 0);
        check("repetition", &|r, _| data(r, 0, 16, more), SEQUENCE, 0);
        check("LAST too early", &|r, _| data(r, 16, 16, last), FIELD, 1);
        check(
            "no LAST at the end",
            &|r, _| data(r, 16, 48, more),
            FIELD,
            1,
        );
        // DATAL against PLEN; the header digest has to be right for it to be looked at.
        for datal in [0u32, 47, 49, u32::MAX] {
            let forged = |r, _| {
                let good = data(r, 16, 48, last);
                let head = with(&good[..24], 16, &datal.to_le_bytes());
                let mut pdu = head.clone();
                if config.header_digest {
                    pdu.extend_from_slice(&crc32c(0, &head).to_le_bytes());
                }
                pdu.extend_from_slice(&good[pdu.len()..]);
                pdu
            };
            check(&format!("DATAL {datal}"), &forged, FIELD, 16);
        }
        let mut rig = Rig::ready(&config);
        let (_, read) = rig.issue(HostData::Read { len: 64 });
        rig.feed(&data(read, 0, 64, last));
        let again = data(read, 64, 1, last);
        assert_rejected("after LAST", &mut rig, &again, 24, RANGE, 0);
    }
}

#[test]
fn success_flag() {
    let config = Config {
        flow_control: false,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    let (_, cid) = rig.issue(HostData::Read { len: 64 });
    let flags = PduFlags::LAST_PDU | PduFlags::SUCCESS;
    let pdu = c2h_data(&config, cid, 0, &[0; 64], flags);
    assert_rejected(
        "SUCCESS before Connect was answered",
        &mut rig,
        &pdu,
        8,
        FIELD,
        1,
    );

    let mut rig = Rig::ready(&config);
    let (_, connect) = rig.issue(HostData::None);
    rig.feed(&resp(&config, connect, u16::MAX, Status::SUCCESS));
    let (_, cid) = rig.issue(HostData::Read { len: 64 });
    let pdu = c2h_data(&config, cid, 0, &[0; 32], PduFlags::SUCCESS);
    assert_rejected("SUCCESS without LAST", &mut rig, &pdu, 8, FIELD, 1);
}

#[test]
fn r2ts() {
    for config in configs() {
        let check = |name: &str, pdu: &dyn Fn(u16, u16) -> Vec<u8>, fes, fei| {
            let mut rig = Rig::ready(&config);
            let (_, write) = rig.issue(HostData::Write {
                len: 64,
                in_capsule: false,
            });
            let (_, read) = rig.issue(HostData::Read { len: 64 });
            rig.feed(&r2t(&config, write, 1, 0, 16));
            rig.transmit();
            let pdu = pdu(write, read);
            assert_rejected(name, &mut rig, &pdu, 24, fes, fei);
        };
        check(
            "CCCID unknown",
            &|_, _| r2t(&config, 0x700, 1, 0, 16),
            FIELD,
            8,
        );
        check(
            "CCCID of a read",
            &|_, r| r2t(&config, r, 1, 0, 16),
            SEQUENCE,
            0,
        );
        check("length 0", &|w, _| r2t(&config, w, 1, 16, 0), FIELD, 16);
        check(
            "beyond the end",
            &|w, _| r2t(&config, w, 1, 16, 49),
            RANGE,
            0,
        );
        check(
            "offset wraps",
            &|w, _| r2t(&config, w, 1, u32::MAX, u32::MAX),
            RANGE,
            0,
        );
        check("gap", &|w, _| r2t(&config, w, 1, 20, 16), SEQUENCE, 0);
        check("repetition", &|w, _| r2t(&config, w, 1, 0, 16), SEQUENCE, 0);

        let mut rig = Rig::ready(&config);
        let (_, write) = rig.issue(HostData::Write {
            len: 64,
            in_capsule: true,
        });
        rig.sent.clear();
        let pdu = r2t(&config, write, 1, 0, 64);
        assert_rejected("data was in the capsule", &mut rig, &pdu, 24, SEQUENCE, 0);

        let mut rig = Rig::ready(&config);
        let (_, write) = rig.issue(HostData::Write {
            len: 64,
            in_capsule: false,
        });
        rig.feed(&r2t(&config, write, 1, 0, 16));
        let pdu = r2t(&config, write, 2, 16, 16);
        assert_rejected("more than MAXR2T", &mut rig, &pdu, 24, LIMIT, 0);
    }
}

#[test]
fn term_reqs() {
    let config = Config::default();
    let good = TermReq {
        fes: SEQUENCE,
        fei: 0,
    }
    .encode(PduType::C2H_TERM_REQ, 0)
    .to_vec();
    let table = [
        ("HLEN", with(&good, 2, &[23]), 2),
        ("PLEN short", with(&good, 4, &[23]), 4),
        ("PLEN long", with(&good, 4, &[153]), 4),
    ];
    for (name, pdu, fei) in table {
        assert_rejected(name, &mut Rig::ready(&config), &pdu, 8, FIELD, fei);
    }
}

//! One test, or one line of a table, for each check of a PDU: a host that lies about just this is
//! told so with the right FES and FEI, and about nothing else.

use super::*;
use crate::tcp::Time;
use crate::wire::pdu::Fes;

const FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const HEADER_DIGEST: u16 = 3;
const OUT_OF_RANGE: u16 = 4;
const LIMIT: u16 = 5;
const UNSUPPORTED: u16 = 6;

/// `bytes` with some of them replaced.
fn with(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// The same, and the header digest behind `hlen` bytes made right again.
fn with_digest(bytes: Vec<u8>, at: usize, new: &[u8], hlen: usize) -> Vec<u8> {
    let bytes = with(bytes, at, new);
    let digest = crc32c(0, &bytes[..hlen]).to_le_bytes();
    with(bytes, hlen, &digest)
}

/// `bytes` are refused, and the C2HTermReq quotes `quoted` bytes of them.
fn refused(name: &str, driver: &mut Driver, bytes: &[u8], fes: u16, fei: u32, quoted: usize) {
    let outstanding = driver.target.outstanding();
    assert_eq!(driver.feed(bytes), [], "{name}");
    let want = Violation::new(Fes(fes), fei);
    assert_eq!(driver.violation, Some(want), "{name}");
    assert_eq!(
        driver.target.outstanding(),
        outstanding,
        "{name}: an effect"
    );
    assert_eq!(driver.target.need(), Need::Drain, "{name}");
    assert_eq!(driver.target.poll_timeout(), Some(Time(0)), "{name}");
    let bytes_sent = driver.poll();
    let [term_req] = &split(&bytes_sent, driver.wire)[..] else {
        panic!("{name}: not one PDU")
    };
    assert_eq!(term_req.term_req(), want.0, "{name}");
    assert_eq!(term_req.data, bytes[..quoted], "{name}: quote");
    assert!(
        !driver.target.has_transmit() && driver.poll().is_empty(),
        "{name}"
    );
}

/// Name, which bytes to replace and by what, FES, FEI, how many bytes are quoted.
type IcReqCase<'a> = (&'a str, usize, &'a [u8], u16, u32, usize);

/// Name, PDU, which bytes to replace and by what, FEI.
type CapsuleCase<'a> = (&'a str, &'a [u8], usize, &'a [u8], u32);

#[test]
fn ic_req() {
    let good = ic_req_vec();
    let cases: &[IcReqCase<'_>] = &[
        ("unknown type", 0, &[0x08], FIELD, 0, 8),
        ("type of the other direction", 0, &[0x01], FIELD, 0, 8),
        ("CapsuleCmd first", 0, &[0x04], SEQUENCE, 0, 8),
        ("H2CData first", 0, &[0x06], SEQUENCE, 0, 8),
        ("H2CTermReq first", 0, &[0x02], SEQUENCE, 0, 8),
        ("flags", 1, &[0x01], FIELD, 1, 8),
        ("reserved flag", 1, &[0x80], FIELD, 1, 8),
        ("HLEN low", 2, &[127], FIELD, 2, 8),
        ("HLEN high", 2, &[129], FIELD, 2, 8),
        ("PDO", 3, &[128], FIELD, 3, 8),
        ("PLEN low", 4, &[127], FIELD, 4, 8),
        ("PLEN high", 4, &[129], FIELD, 4, 8),
        ("PLEN huge", 4, &[0xff; 4], FIELD, 4, 8),
        ("PFV", 8, &[1, 0], UNSUPPORTED, 8, 128),
        ("PFV high byte", 8, &[0, 1], UNSUPPORTED, 8, 128),
        ("HPDA", 10, &[32], FIELD, 10, 128),
        ("HPDA highest", 10, &[255], FIELD, 10, 128),
        ("DGST reserved bit", 11, &[0x04], FIELD, 11, 128),
        ("DGST highest bit", 11, &[0x83], FIELD, 11, 128),
        (
            "the lowest wrong field is reported",
            8,
            &[0, 0, 32, 4],
            FIELD,
            10,
            128,
        ),
        (
            "FLAGS and HLEN: FLAGS is reported",
            1,
            &[0x01, 127],
            FIELD,
            1,
            8,
        ),
    ];
    for &(name, at, new, fes, fei, quoted) in cases {
        let mut driver = Driver::new(&Config::default());
        refused(
            name,
            &mut driver,
            &with(good.clone(), at, new),
            fes,
            fei,
            quoted,
        );
        assert_eq!(driver.target.negotiated(), None);
    }
}

fn ic_req_vec() -> Vec<u8> {
    super::ic_req(0, 0).to_vec()
}

#[test]
fn every_type_of_first_pdu() {
    for pdu_type in 1..=u8::MAX {
        let mut driver = Driver::new(&Config::default());
        let fes = if matches!(pdu_type, 2 | 4 | 6) {
            SEQUENCE
        } else {
            FIELD
        };
        refused(
            "type",
            &mut driver,
            &with(ic_req_vec(), 0, &[pdu_type]),
            fes,
            0,
            8,
        );
    }
}

#[test]
fn every_type_of_later_pdu() {
    for pdu_type in (0..=u8::MAX).filter(|t| !matches!(t, 2 | 4 | 6)) {
        let fes = if pdu_type == 0 { SEQUENCE } else { FIELD };
        refused(
            "type",
            &mut plain(),
            &with(ic_req_vec(), 0, &[pdu_type]),
            fes,
            0,
            8,
        );
    }
}

#[test]
fn capsule_common_header() {
    let wire = Wire::default();
    let bare = wire.command(&flush(1), &[]);
    let data = wire.command(&write(1, 512), &[7; 512]);
    let cases: &[CapsuleCase<'_>] = &[
        ("HDGSTF not negotiated", &bare, 1, &[0x01], 1),
        ("DDGSTF not negotiated", &data, 1, &[0x02], 1),
        ("DDGSTF without data", &bare, 1, &[0x02], 1),
        ("LAST_PDU", &data, 1, &[0x04], 1),
        ("SUCCESS", &data, 1, &[0x08], 1),
        ("reserved flag", &bare, 1, &[0x10], 1),
        ("HLEN low", &bare, 2, &[71], 2),
        ("HLEN high", &bare, 2, &[73], 2),
        ("HLEN 0", &data, 2, &[0], 2),
        ("PDO without data", &bare, 3, &[73], 3),
        ("PDO 0 with data", &data, 3, &[0], 3),
        ("PDO in the header", &data, 3, &[71], 3),
        ("PDO not a multiple of 4", &data, 3, &[73], 3),
        (
            "PDO past the end",
            &wire.command(&write(1, 4), &[7; 4]),
            3,
            &[80],
            3,
        ),
        ("PLEN 0", &bare, 4, &[0, 0, 0, 0], 4),
        ("PLEN of the common header", &bare, 4, &[8, 0, 0, 0], 4),
        ("PLEN low", &bare, 4, &[71, 0, 0, 0], 4),
        ("PLEN without PDO", &bare, 4, &[73, 0, 0, 0], 3),
        (
            "only padding",
            &wire.command(&write(1, 4), &[7; 4]),
            3,
            &[76],
            4,
        ),
        (
            "PLEN above the in-capsule limit",
            &data,
            4,
            &(72 + 8193_u32).to_le_bytes(),
            4,
        ),
        ("PLEN highest", &data, 4, &[0xff; 4], 4),
    ];
    for &(name, pdu, at, new, fei) in cases {
        refused(
            name,
            &mut plain(),
            &with(pdu.to_vec(), at, new),
            FIELD,
            fei,
            8,
        );
    }
}

#[test]
fn capsule_with_digests() {
    let open = || Driver::open(&Config::default(), &QUEUE, 0, 3);
    let wire = open().wire;
    let bare = wire.command(&flush(1), &[]);
    let data = wire.command(&write(1, 512), &[7; 512]);
    let cases: &[CapsuleCase<'_>] = &[
        ("HDGSTF missing", &bare, 1, &[0x00], 1),
        ("HDGSTF missing with data", &data, 1, &[0x02], 1),
        ("DDGSTF missing", &data, 1, &[0x01], 1),
        ("DDGSTF without data", &bare, 1, &[0x03], 1),
        ("PDO over the digest", &data, 3, &[72], 3),
        ("PLEN without the digest", &bare, 4, &[72, 0, 0, 0], 4),
        ("data digest only", &data, 4, &[80, 0, 0, 0], 4),
        ("less than a data digest", &data, 4, &[78, 0, 0, 0], 4),
    ];
    for &(name, pdu, at, new, fei) in cases {
        refused(
            name,
            &mut open(),
            &with(pdu.to_vec(), at, new),
            FIELD,
            fei,
            8,
        );
    }
    for pdu in [bare, data] {
        for at in 8..72 {
            let received = u32::from_le_bytes(pdu[72..76].try_into().unwrap());
            let bad = with(pdu.clone(), at, &[!pdu[at]]);
            refused("header", &mut open(), &bad, HEADER_DIGEST, received, 72);
        }
        let bad = with(pdu, 72, &[1, 2, 3, 4]);
        refused(
            "header digest",
            &mut open(),
            &bad,
            HEADER_DIGEST,
            0x0403_0201,
            72,
        );
    }
}

/// 8192 bytes before the queue is open, then what the queue allows.
#[test]
fn in_capsule_limit() {
    let wire = Wire::default();
    let capsule = |len: u32| wire.command(&write(1, len), &vec![7; len as usize]);
    let connecting = || {
        let mut driver = Driver::new(&Config::default());
        driver.feed(&super::ic_req(0, 0));
        driver.send();
        driver
    };
    connecting().command(&capsule(8192));
    let name = "before the queue";
    refused(name, &mut connecting(), &capsule(8193), FIELD, 4, 8);
    for limit in [0, 4096, 16_384] {
        let queue = QueueConfig {
            in_capsule: limit,
            ..QUEUE
        };
        let open = || Driver::open(&Config::default(), &queue, 0, 0);
        open().command(&capsule(limit));
        refused("limit", &mut open(), &capsule(limit + 1), FIELD, 4, 8);
    }
}

#[test]
fn alignment_of_the_data() {
    let config = Config {
        cpda: 3,
        ..Config::default()
    };
    let open = || Driver::open(&config, &QUEUE, 0, 0);
    let good = open().wire.command(&write(1, 512), &[7; 512]);
    assert_eq!(good[3], 80);
    let mut driver = open();
    driver.command(&good);
    for pdo in [72, 76, 84, 88, 92] {
        refused(
            "PDO",
            &mut open(),
            &with(good.clone(), 3, &[pdo]),
            FIELD,
            3,
            8,
        );
    }
}

/// A write of 12,288 bytes whose R2T has left, and the R2T.
fn waiting(config: &Config, dgst: u8) -> (Driver, DataHeader) {
    let mut driver = Driver::open(config, &QUEUE, 0, dgst);
    let wire = driver.wire;
    let slot = driver.command(&wire.command(&write(7, 12_288), &[]));
    driver.target.receive(slot, 12_288);
    let r2t = driver.r2t();
    (driver, r2t)
}

fn small() -> Config {
    Config {
        maxh2cdata: 8192,
        ..Config::default()
    }
}

#[test]
fn h2c_data_common_header() {
    let wire = Wire::default();
    let (_, r2t) = waiting(&small(), 0);
    let good = wire.h2c_data(7, r2t.ttag, 0, &[1; 4096], false);
    let cases: &[(&str, usize, &[u8], u16, u32)] = &[
        ("HDGSTF not negotiated", 1, &[0x01], FIELD, 1),
        ("DDGSTF not negotiated", 1, &[0x02], FIELD, 1),
        ("SUCCESS", 1, &[0x08], FIELD, 1),
        ("reserved flag", 1, &[0x40], FIELD, 1),
        ("HLEN low", 2, &[23], FIELD, 2),
        ("HLEN high", 2, &[28], FIELD, 2),
        ("PDO 0 with data", 3, &[0], FIELD, 3),
        ("PDO in the header", 3, &[20], FIELD, 3),
        ("PDO not a multiple of 4", 3, &[26], FIELD, 3),
        ("PLEN 0", 4, &[0; 4], FIELD, 4),
        (
            "PLEN above MAXH2CDATA",
            4,
            &(24 + 8193_u32).to_le_bytes(),
            LIMIT,
            0,
        ),
        ("PLEN highest", 4, &[0xff; 4], LIMIT, 0),
    ];
    for &(name, at, new, fes, fei) in cases {
        let (mut driver, _) = waiting(&small(), 0);
        refused(name, &mut driver, &with(good.clone(), at, new), fes, fei, 8);
    }
}

#[test]
fn h2c_data_header() {
    let wire = Wire::default();
    let (_, r2t) = waiting(&small(), 0);
    let tag = r2t.ttag;
    let pdu =
        |cid, ttag, offset, len: usize, last| wire.h2c_data(cid, ttag, offset, &vec![1; len], last);
    let good = pdu(7, tag, 0, 4096, false);
    let le = u32::to_le_bytes;
    let cases: &[(&str, Vec<u8>, u16, u32)] = &[
        (
            "TTAG of a free slot",
            pdu(7, tag ^ 1, 0, 4096, false),
            FIELD,
            10,
        ),
        (
            "TTAG of another generation",
            pdu(7, tag ^ 0x100, 0, 4096, false),
            FIELD,
            10,
        ),
        ("TTAG highest", pdu(7, 0xffff, 0, 4096, false), FIELD, 10),
        (
            "TTAG before CCCID",
            pdu(8, tag ^ 1, 0, 4096, false),
            FIELD,
            10,
        ),
        ("CCCID", pdu(8, tag, 0, 4096, false), FIELD, 8),
        (
            "CCCID before DATAL",
            with(pdu(8, tag, 0, 4096, false), 16, &le(9)),
            FIELD,
            8,
        ),
        (
            "DATAL above MAXH2CDATA",
            with(good.clone(), 16, &le(8193)),
            LIMIT,
            0,
        ),
        (
            "DATAL highest",
            with(good.clone(), 16, &le(u32::MAX)),
            LIMIT,
            0,
        ),
        (
            "DATAL below what is there",
            with(good.clone(), 16, &le(4095)),
            FIELD,
            16,
        ),
        (
            "DATAL above what is there",
            with(good.clone(), 16, &le(4097)),
            FIELD,
            16,
        ),
        ("DATAL 0", with(good.clone(), 16, &le(0)), FIELD, 16),
        ("no data", pdu(7, tag, 0, 0, false), FIELD, 16),
        (
            "past the end",
            pdu(7, tag, 12_288 - 4092, 4096, false),
            OUT_OF_RANGE,
            0,
        ),
        (
            "far past the end",
            pdu(7, tag, 1 << 20, 4096, false),
            OUT_OF_RANGE,
            0,
        ),
        (
            "DATAO + DATAL wraps",
            pdu(7, tag, u32::MAX - 4095, 4096, false),
            OUT_OF_RANGE,
            0,
        ),
        ("a gap", pdu(7, tag, 4, 4096, false), SEQUENCE, 0),
        ("the end first", pdu(7, tag, 8192, 4096, true), SEQUENCE, 0),
        ("LAST_PDU early", pdu(7, tag, 0, 4096, true), FIELD, 1),
    ];
    for (name, pdu, fes, fei) in cases {
        let (mut driver, _) = waiting(&small(), 0);
        refused(name, &mut driver, pdu, *fes, *fei, 24);
    }
}

#[test]
fn h2c_data_in_the_middle_of_an_r2t() {
    let wire = Wire::default();
    let pdu = |ttag, offset, len: usize, last| wire.h2c_data(7, ttag, offset, &vec![1; len], last);
    let cases: &[(&str, u32, usize, bool, u16, u32)] = &[
        ("the same data again", 0, 8192, false, SEQUENCE, 0),
        ("overlap", 8188, 4096, false, SEQUENCE, 0),
        ("one byte too many", 8192, 4097, true, OUT_OF_RANGE, 0),
        ("LAST_PDU missing", 8192, 4096, false, FIELD, 1),
        ("LAST_PDU early", 8192, 4092, true, FIELD, 1),
    ];
    for &(name, offset, len, last, fes, fei) in cases {
        let (mut driver, r2t) = waiting(&small(), 0);
        assert_eq!(driver.feed(&pdu(r2t.ttag, 0, 8192, false)), []);
        refused(
            name,
            &mut driver,
            &pdu(r2t.ttag, offset, len, last),
            fes,
            fei,
            24,
        );
    }
    let (mut driver, r2t) = waiting(&small(), 0);
    driver.feed(&pdu(r2t.ttag, 0, 8192, false));
    let events = driver.feed(&pdu(r2t.ttag, 8192, 4096, true));
    assert!(matches!(
        events[..],
        [Event::Received {
            digest_ok: true,
            ..
        }]
    ));
    refused(
        "data after the last",
        &mut driver,
        &pdu(r2t.ttag, 0, 4096, false),
        FIELD,
        10,
        24,
    );
}

#[test]
fn h2c_data_with_header_digest() {
    let (mut driver, r2t) = waiting(&small(), 3);
    let wire = driver.wire;
    let good = wire.h2c_data(7, r2t.ttag, 0, &[1; 4096], false);
    let received = u32::from_le_bytes(good[24..28].try_into().unwrap());
    let bad = with(good.clone(), 10, &[0xff]);
    refused(
        "digest before TTAG",
        &mut driver,
        &bad,
        HEADER_DIGEST,
        received,
        24,
    );

    let (mut driver, _) = waiting(&small(), 3);
    let bad = with_digest(good.clone(), 10, &[0xff, 0xff], 24);
    refused("TTAG", &mut driver, &bad, FIELD, 10, 24);

    let (mut driver, _) = waiting(&small(), 3);
    let bad = with_digest(good, 16, &[0, 8], 24);
    refused("DATAL", &mut driver, &bad, FIELD, 16, 24);
}

/// A TTAG is only good between its R2T and the last byte of its data.
#[test]
fn h2c_data_out_of_season() {
    let wire = Wire::default();
    let data = |ttag| wire.h2c_data(7, ttag, 0, &[1; 4096], true);

    // The tag of a slot is known to the test because a first command has had it.
    let first = |driver: &mut Driver| {
        let slot = driver.command(&wire.command(&write(7, 4096), &[]));
        driver.target.receive(slot, 4096);
        let tag = driver.r2t().ttag;
        driver.feed(&data(tag));
        driver.target.complete(slot, OK);
        driver.send();
        tag
    };

    let mut driver = plain();
    let tag = first(&mut driver);
    refused("after completion", &mut driver, &data(tag), FIELD, 10, 24);

    let mut driver = plain();
    let tag = first(&mut driver);
    driver.command(&wire.command(&write(7, 4096), &[]));
    refused(
        "tag of the slot's earlier command",
        &mut driver,
        &data(tag),
        FIELD,
        10,
        24,
    );

    // The generation stands above the index: this queue has 8 entries, 3 bits.
    let mut driver = plain();
    let tag = first(&mut driver) + (1 << 3);
    driver.command(&wire.command(&write(7, 4096), &[]));
    refused("before receive()", &mut driver, &data(tag), SEQUENCE, 0, 24);

    let mut driver = plain();
    let tag = first(&mut driver) + (1 << 3);
    let slot = driver.command(&wire.command(&write(7, 4096), &[]));
    driver.target.receive(slot, 4096);
    refused(
        "R2T not handed over yet",
        &mut driver,
        &data(tag),
        SEQUENCE,
        0,
        24,
    );

    let mut driver = plain();
    let tag = first(&mut driver) + (1 << 3);
    let slot = driver.command(&wire.command(&read(7, 4096), &[]));
    driver.buffer(slot).resize(4096, 0);
    driver.target.complete(
        slot,
        Done {
            data_len: 4096,
            ..OK
        },
    );
    driver.poll();
    refused("for a read", &mut driver, &data(tag), SEQUENCE, 0, 24);

    let mut driver = plain();
    let tag = first(&mut driver) + (1 << 3);
    let slot = driver.command(&wire.command(&write(7, 4096), &[3; 4096]));
    driver.target.receive(slot, 4096);
    driver.feed(&[]);
    refused(
        "for in-capsule data",
        &mut driver,
        &data(tag),
        SEQUENCE,
        0,
        24,
    );
}

#[test]
fn h2c_term_req() {
    for quoted in [0, 8, 128] {
        for fes in [0, 1, 6, u16::MAX] {
            let mut driver = plain();
            let events = driver.feed(&term_req(fes, 0x0102_0304, quoted));
            let want = TermReq {
                fes: Fes(fes),
                fei: 0x0102_0304,
            };
            assert_eq!(events, [Event::Terminated(want)]);
            assert_eq!(driver.target.need(), Need::Closed);
            assert_eq!(driver.target.poll_timeout(), None);
            assert!(driver.input.is_empty(), "the quote is consumed too");
        }
    }
    let good = term_req(1, 0, 0);
    refused(
        "HLEN",
        &mut plain(),
        &with(good.clone(), 2, &[25]),
        FIELD,
        2,
        8,
    );
    refused(
        "PLEN low",
        &mut plain(),
        &with(good.clone(), 4, &[23]),
        FIELD,
        4,
        8,
    );
    refused(
        "PLEN high",
        &mut plain(),
        &with(good.clone(), 4, &[153]),
        FIELD,
        4,
        8,
    );
    // With digests negotiated a TermReq has none.
    let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 3);
    assert!(matches!(driver.feed(&good)[..], [Event::Terminated(_)]));
    let mut driver = Driver::open(&Config::default(), &QUEUE, 0, 3);
    assert!(matches!(
        driver.feed(&with(good, 1, &[1]))[..],
        [Event::Terminated(_)]
    ));
}

/// Nothing that was due goes out any more, except what has been handed over.
#[test]
fn a_violation_drops_what_is_due() {
    let mut driver = plain();
    let wire = driver.wire;
    let handed_over = driver.command(&wire.command(&flush(1), &[]));
    let due = driver.command(&wire.command(&flush(2), &[]));
    let working = driver.command(&wire.command(&flush(3), &[]));
    driver.target.complete(handed_over, OK);
    let first = driver.poll();
    driver.target.complete(due, OK);
    let bad = with(wire.command(&flush(4), &[]), 2, &[0]);
    refused("HLEN", &mut driver, &bad, FIELD, 2, 8);
    let mut released = Vec::new();
    driver
        .target
        .transmitted(first.len(), |slot| released.push(slot));
    assert_eq!(released, [handed_over]);
    driver.target.complete(working, OK);
    driver.target.receive(working, 512);
    driver
        .target
        .transmitted(usize::MAX, |slot| panic!("{slot:?}"));
    assert!(!driver.target.has_transmit());
    assert_eq!(driver.feed(&wire.command(&flush(5), &[])), []);
}

/// More commands than the queue has entries, and the data that would let one of them end stands
/// behind the one too many.
#[test]
fn deadlock() {
    let queue = QueueConfig {
        entries: 2,
        ..QUEUE
    };
    for r2t_first in [true, false] {
        let mut driver = Driver::open(&Config::default(), &queue, 0, 0);
        let wire = driver.wire;
        let extra = wire.command(&flush(9), &[]);
        for cid in 0..2 {
            let slot = driver.command(&wire.command(&write(cid, 4096), &[]));
            driver.target.receive(slot, 4096);
        }
        if r2t_first {
            driver.send();
            refused("deadlock", &mut driver, &extra, SEQUENCE, 0, 8);
            continue;
        }
        assert_eq!(driver.feed(&extra), []);
        assert!(
            driver.is_wait(WaitFor::Slot),
            "the driver may still refuse the writes"
        );
        assert_eq!(driver.send().len(), 2);
        assert_eq!(
            driver.target.need(),
            Need::Bytes { min: 8 },
            "parse has something to say"
        );
        let (input, _) = (driver.input.clone(), driver.input.clear());
        refused("deadlock", &mut driver, &input, SEQUENCE, 0, 8);
    }
}

//! Headers of PDUs on queues: lengths, offsets, flags, digests, types.

use super::{At, Case, Facts, Play, SEQUENCE, Want, case, field, header};
use crate::raw::{Digest, RawPdu};
use crate::torture::scene::Digests;
use nvmf_proto::wire::pdu::{ADMIN_IN_CAPSULE_MAX, Fes, PduFlags, PduType, TermReq};

const COMMON: &str = "NVMe/TCP 1.1, PDU Common Header";
const CAPSULE: &str = "NVMe/TCP 1.1, CapsuleCmd PDU";
const H2C: &str = "NVMe/TCP 1.1, H2CData PDU";
const TERM: &str = "NVMe/TCP 1.1, H2CTermReq PDU";
const DIGEST: &str = "NVMe/TCP 1.1, PDU header digest";
const END: &[Want] = &[Want::End];
const PLAIN: At = At::Io(Digests::NONE);
const BOTH: At = At::Io(Digests::BOTH);

const CMD: PduType = PduType::CAPSULE_CMD;
const DATA: PduType = PduType::H2C_DATA;
const H2C_TERM: PduType = PduType::H2C_TERM_REQ;

/// Bytes that end the connection.
const fn lie(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    at: At,
    bytes: fn(&Facts) -> Vec<u8>,
    conforms: &'static [Want],
) -> Case {
    case(name, scenarios, sends, at, Play::Bytes(bytes), conforms)
        .source(COMMON)
        .tolerates(END)
}

/// A type of PDU that no host sends.
const fn not_for_hosts(
    name: &'static str,
    sends: &'static str,
    bytes: fn(&Facts) -> Vec<u8>,
) -> Case {
    lie(name, &[14, 22], sends, PLAIN, bytes, NOT_FOR_HOSTS)
}

const TOO_LONG: &[Want] = &[field(4), Want::Term(Fes::LIMIT_EXCEEDED, None)];
const LIMIT: &[Want] = &[Want::Term(Fes::LIMIT_EXCEEDED, None), field(4)];
const NOT_FOR_HOSTS: &[Want] = &[field(0), SEQUENCE];
const HDGST: &[Want] = &[Want::Term(Fes::HEADER_DIGEST, None)];

pub(super) const CASES: &[Case] = &[
    lie(
        "header/capsule-plen-71",
        &[16],
        "CapsuleCmd, PLEN 71",
        PLAIN,
        |_| header(CMD, 0, 72, 0, 71),
        &[field(4)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-plen-0",
        &[16],
        "CapsuleCmd, PLEN 0",
        PLAIN,
        |_| header(CMD, 0, 72, 0, 0),
        &[field(4)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-plen-8",
        &[16],
        "CapsuleCmd, PLEN 8",
        PLAIN,
        |_| header(CMD, 0, 72, 0, 8),
        &[field(4)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-plen-max",
        &[16],
        "CapsuleCmd, PLEN FFFFFFF0h",
        PLAIN,
        |_| header(CMD, 0, 72, 72, 0xffff_fff0),
        TOO_LONG,
    )
    .source(CAPSULE),
    lie(
        "header/capsule-beyond-ioccsz",
        &[16, 30],
        "CapsuleCmd with a byte more than IOCCSZ allows",
        PLAIN,
        |facts| header(CMD, 0, 72, 72, 72 + facts.in_capsule + 1),
        TOO_LONG,
    )
    .source(CAPSULE),
    lie(
        "header/capsule-before-connect",
        &[16, 40],
        "CapsuleCmd of 8 KiB and a byte, before Connect",
        At::Open,
        |_| header(CMD, 0, 72, 72, 72 + ADMIN_IN_CAPSULE_MAX + 1),
        TOO_LONG,
    )
    .source(CAPSULE),
    lie(
        "header/capsule-on-admin",
        &[16, 30],
        "CapsuleCmd of 8 KiB and a byte on an admin queue",
        At::Admin,
        |_| header(CMD, 0, 72, 72, 72 + ADMIN_IN_CAPSULE_MAX + 1),
        TOO_LONG,
    )
    .source(CAPSULE),
    lie(
        "header/capsule-hlen-71",
        &[15],
        "CapsuleCmd, HLEN 71",
        PLAIN,
        |_| header(CMD, 0, 71, 0, 72),
        &[field(2)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-hlen-73",
        &[15],
        "CapsuleCmd, HLEN 73",
        PLAIN,
        |_| header(CMD, 0, 73, 0, 73),
        &[field(2)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-hlen-0",
        &[15],
        "CapsuleCmd, HLEN 0",
        PLAIN,
        |_| header(CMD, 0, 0, 0, 72),
        &[field(2)],
    )
    .source(CAPSULE),
    lie(
        "header/capsule-hlen-255",
        &[15],
        "CapsuleCmd, HLEN 255",
        PLAIN,
        |_| header(CMD, 0, 255, 0, 72),
        &[field(2)],
    )
    .source(CAPSULE),
    lie(
        "header/pdo-0",
        &[17],
        "CapsuleCmd with data, PDO 0",
        PLAIN,
        |_| header(CMD, 0, 72, 0, 72 + 512),
        &[field(3)],
    )
    .source(CAPSULE),
    lie(
        "header/pdo-inside-the-header",
        &[17],
        "CapsuleCmd with data, PDO 68",
        PLAIN,
        |_| header(CMD, 0, 72, 68, 72 + 512),
        &[field(3)],
    )
    .source(CAPSULE),
    lie(
        "header/pdo-unaligned",
        &[17],
        "CapsuleCmd with data, PDO 73",
        PLAIN,
        |_| header(CMD, 0, 72, 73, 72 + 512),
        &[field(3)],
    )
    .source(CAPSULE),
    lie(
        "header/pdo-beyond-the-end",
        &[17],
        "CapsuleCmd with 8 bytes of data, PDO 128",
        PLAIN,
        |_| header(CMD, 0, 72, 128, 72 + 8),
        &[field(3)],
    )
    .source(CAPSULE),
    lie(
        "header/pdo-max",
        &[17],
        "CapsuleCmd with data, PDO 255",
        PLAIN,
        |_| header(CMD, 0, 72, 255, 72 + 512),
        &[field(3)],
    )
    .source(CAPSULE),
    lie(
        "header/hdgst-not-agreed",
        &[18],
        "CapsuleCmd, HDGSTF without header digests",
        PLAIN,
        |_| header(CMD, 1, 72, 0, 76),
        &[field(1)],
    )
    .source(CAPSULE),
    lie(
        "header/ddgst-not-agreed",
        &[18],
        "CapsuleCmd, DDGSTF without data digests",
        PLAIN,
        |_| header(CMD, 2, 72, 72, 600),
        &[field(1)],
    )
    .source(CAPSULE),
    lie(
        "header/hdgst-missing",
        &[18],
        "CapsuleCmd without HDGSTF where digests were agreed on",
        BOTH,
        |_| header(CMD, 0, 72, 0, 76),
        &[field(1)],
    )
    .source(CAPSULE),
    lie(
        "header/ddgst-missing",
        &[18],
        "CapsuleCmd with data, without DDGSTF where digests were agreed on",
        BOTH,
        |_| header(CMD, 1, 72, 76, 600),
        &[field(1)],
    )
    .source(CAPSULE),
    lie(
        "header/plen-without-digest",
        &[16, 18],
        "CapsuleCmd, HDGSTF, PLEN without the digest",
        BOTH,
        |_| header(CMD, 1, 72, 0, 72),
        &[field(4)],
    )
    .source(CAPSULE),
    lie(
        "header/plen-of-digest-alone",
        &[16, 18],
        "CapsuleCmd, DDGSTF, and a digest of no data",
        BOTH,
        |_| header(CMD, 3, 72, 76, 80),
        &[field(4)],
    )
    .source(CAPSULE),
    lie(
        "header/data-plen-max",
        &[16, 27],
        "H2CData, PLEN FFFFFFF0h",
        PLAIN,
        |_| header(DATA, 0, 24, 24, 0xffff_fff0),
        LIMIT,
    )
    .source(H2C),
    lie(
        "header/data-beyond-maxh2cdata",
        &[16, 27],
        "H2CData of MAXH2CDATA and 4 bytes",
        PLAIN,
        |facts| header(DATA, 0, 24, 24, facts.maxh2cdata.saturating_add(28)),
        LIMIT,
    )
    .source(H2C)
    .tolerates(&[Want::End]),
    lie(
        "header/data-hlen-23",
        &[15],
        "H2CData, HLEN 23",
        PLAIN,
        |_| header(DATA, 4, 23, 24, 128),
        &[field(2)],
    )
    .source(H2C),
    lie(
        "header/data-hlen-25",
        &[15],
        "H2CData, HLEN 25",
        PLAIN,
        |_| header(DATA, 4, 25, 28, 128),
        &[field(2)],
    )
    .source(H2C),
    lie(
        "header/data-plen-23",
        &[16],
        "H2CData, PLEN 23",
        PLAIN,
        |_| header(DATA, 4, 24, 24, 23),
        &[field(4)],
    )
    .source(H2C)
    .tolerates(&[Want::End]),
    lie(
        "header/data-pdo-0",
        &[17],
        "H2CData, PDO 0",
        PLAIN,
        |_| header(DATA, 4, 24, 0, 128),
        &[field(3)],
    )
    .source(H2C),
    lie(
        "header/data-pdo-beyond-the-end",
        &[17],
        "H2CData, PDO 132 of 128 bytes",
        PLAIN,
        |_| header(DATA, 4, 24, 132, 128),
        &[field(3)],
    )
    .source(H2C),
    lie(
        "header/data-before-connect",
        &[25],
        "H2CData before Connect",
        At::Open,
        |_| header(DATA, 4, 24, 24, 128),
        &[SEQUENCE, field(10)],
    )
    .source(H2C),
    lie(
        "header/data-on-admin",
        &[25],
        "H2CData on an admin queue that has no command",
        At::Admin,
        |_| header(DATA, 4, 24, 24, 128),
        &[SEQUENCE, field(10)],
    )
    .source(H2C),
    not_for_hosts("header/icresp", "an ICResp", |_| {
        header(PduType::IC_RESP, 0, 128, 0, 128)
    }),
    not_for_hosts("header/c2htermreq", "a C2HTermReq", |_| {
        header(PduType::C2H_TERM_REQ, 0, 24, 0, 24)
    }),
    not_for_hosts("header/capsuleresp", "a CapsuleResp", |_| {
        header(PduType::CAPSULE_RESP, 0, 24, 0, 24)
    }),
    not_for_hosts("header/c2hdata", "a C2HData", |_| {
        header(PduType::C2H_DATA, 4, 24, 24, 128)
    }),
    not_for_hosts("header/r2t", "an R2T", |_| {
        header(PduType::R2T, 0, 24, 0, 24)
    }),
    not_for_hosts("header/type-08h", "a PDU of type 08h", |_| {
        header(PduType(0x08), 0, 24, 0, 24)
    }),
    not_for_hosts("header/type-10h", "a PDU of type 10h", |_| {
        header(PduType(0x10), 0, 24, 0, 24)
    }),
    not_for_hosts("header/type-80h", "a PDU of type 80h", |_| {
        header(PduType(0x80), 0, 24, 0, 24)
    }),
    not_for_hosts("header/all-ones", "a common header of ones", |_| {
        header(PduType(0xff), 0xff, 0xff, 0xff, u32::MAX)
    }),
    not_for_hosts(
        "header/type-unknown-and-long",
        "a PDU of type FEh of 4 GiB",
        |_| header(PduType(0xfe), 0, 8, 0, u32::MAX),
    ),
    case(
        "header/wrong-header-digest",
        &[19],
        "a Read whose header digest is wrong",
        BOTH,
        Play::Capsule(
            |facts| (facts.read(1), Vec::new()),
            |pdu| pdu.header_digest = Digest::Wrong,
        ),
        HDGST,
    )
    .source(DIGEST)
    .tolerates(END),
    case(
        "header/wrong-header-digest-of-data",
        &[19],
        "H2CData whose header digest is wrong",
        BOTH,
        Play::Data(|wanted| wanted.but(|pdu| pdu.header_digest = Digest::Wrong)),
        HDGST,
    )
    .source(DIGEST)
    .tolerates(END)
    .attempts(),
    case(
        "header/capsule-last-pdu",
        &[18],
        "a Read with the reserved bit LAST_PDU of FLAGS",
        PLAIN,
        Play::Capsule(
            |facts| (facts.read(1), Vec::new()),
            |pdu| pdu.common.flags |= PduFlags::LAST_PDU,
        ),
        &[field(1), Want::Success],
    )
    .source(CAPSULE)
    .tolerates(END),
    case(
        "header/padding",
        &[17],
        "a Write with 56 bytes of padding before its data",
        PLAIN,
        Play::Capsule(
            |facts| (facts.write_in_capsule(1), facts.zeroes(1)),
            |pdu| {
                pdu.padding = 56;
                pdu.common.pdo = 128;
                pdu.common.plen += 56;
            },
        ),
        &[Want::Success],
    )
    .source(CAPSULE)
    .tolerates(&[Want::End, Want::Error])
    .overwrites_blocks(),
    case(
        "header/term-req",
        &[21],
        "an H2CTermReq",
        At::Admin,
        Play::Bytes(|_| RawPdu::term_req(TERM_REQ, &[0; 24]).bytes()),
        END,
    )
    .source(TERM),
    case(
        "header/term-req-fes-0",
        &[21],
        "an H2CTermReq with FES 0",
        At::Admin,
        Play::Bytes(|_| {
            RawPdu::term_req(
                TermReq {
                    fes: Fes(0),
                    fei: 0,
                },
                &[],
            )
            .bytes()
        }),
        END,
    )
    .source(TERM),
    case(
        "header/term-req-fes-max",
        &[21],
        "an H2CTermReq with FES FFFFh and 128 bytes of ones",
        At::Admin,
        Play::Bytes(|_| {
            RawPdu::term_req(
                TermReq {
                    fes: Fes(0xffff),
                    fei: u32::MAX,
                },
                &[0xff; 128],
            )
            .bytes()
        }),
        END,
    )
    .source(TERM),
    case(
        "header/term-req-before-connect",
        &[21],
        "an H2CTermReq before Connect",
        At::Open,
        Play::Bytes(|_| RawPdu::term_req(TERM_REQ, &[0; 8]).bytes()),
        END,
    )
    .source(TERM),
    lie(
        "header/term-req-plen-153",
        &[21],
        "H2CTermReq, PLEN 153",
        PLAIN,
        |_| header(H2C_TERM, 0, 24, 0, 153),
        &[field(4)],
    )
    .source(TERM),
    lie(
        "header/term-req-plen-23",
        &[21],
        "H2CTermReq, PLEN 23",
        PLAIN,
        |_| header(H2C_TERM, 0, 24, 0, 23),
        &[field(4)],
    )
    .source(TERM),
    lie(
        "header/term-req-plen-max",
        &[21],
        "H2CTermReq, PLEN FFFFFFFFh",
        PLAIN,
        |_| header(H2C_TERM, 0, 24, 0, u32::MAX),
        &[field(4)],
    )
    .source(TERM),
    lie(
        "header/term-req-hlen-23",
        &[15, 21],
        "H2CTermReq, HLEN 23",
        PLAIN,
        |_| header(H2C_TERM, 0, 23, 0, 24),
        &[field(2)],
    )
    .source(TERM),
];

const TERM_REQ: TermReq = TermReq {
    fes: Fes::PDU_SEQUENCE,
    fei: 0,
};

//! Data that hosts send: H2CData for an R2T that asked for something else, or for none.

use super::{At, Case, Play, SEQUENCE, Want, Wanted, case, field, script};
use crate::command;
use crate::raw::{Digest, RawPdu};
use crate::torture::answer::Answer;
use crate::torture::scene::{CID, Digests, Scene, Setback};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::pdu::{DataHeader, Fes, PduFlags};

const H2C: &str = "NVMe/TCP 1.1, H2CData PDU";
const DIGEST: &str = "NVMe/TCP 1.1, PDU data digest";
/// Nothing may be written; whether the connection or the command ends matters less.
const ENDS: &[Want] = &[Want::End, Want::Error];
const RANGE: &[Want] = &[Want::Term(Fes::DATA_OUT_OF_RANGE, None)];
const FEW: &[Want] = &[field(16)];
const TRANSIENT: &[Want] = &[Want::Status(Status::TRANSIENT_TRANSPORT_ERROR)];
const PLAIN: At = At::Io(Digests::NONE);
const BOTH: At = At::Io(Digests::BOTH);

/// Bytes for an R2T that end the connection.
const fn lie(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    bytes: fn(&Wanted) -> Vec<u8>,
    conforms: &'static [Want],
) -> Case {
    case(name, scenarios, sends, PLAIN, Play::Data(bytes), conforms)
        .source(H2C)
        .tolerates(ENDS)
        .attempts()
}

/// Changes a field of the PDU specific header, bytes 23:8.
fn set(pdu: &mut RawPdu, at: usize, value: &[u8]) {
    pdu.specific[at - 8..at - 8 + value.len()].copy_from_slice(value);
}

pub(super) const CASES: &[Case] = &[
    case(
        "data/good",
        &[],
        "all data in two H2CData",
        PLAIN,
        Play::Data(|w| {
            [
                w.part(0, w.half(), false).bytes(),
                w.part(w.half(), w.half(), true).bytes(),
            ]
            .concat()
        }),
        &[Want::Success],
    )
    .source(H2C)
    .overwrites_blocks(),
    lie(
        "data/ttag-of-nobody",
        &[23],
        "the complement of the TTAG",
        |w| w.but(|pdu| set(pdu, 10, &(!w.r2t.ttag).to_le_bytes())),
        &[field(10)],
    ),
    lie(
        "data/ttag-next",
        &[23],
        "the next TTAG",
        |w| w.but(|pdu| set(pdu, 10, &w.r2t.ttag.wrapping_add(1).to_le_bytes())),
        &[field(10), SEQUENCE],
    ),
    lie(
        "data/ttag-max",
        &[23],
        "TTAG FFFFh",
        |w| w.but(|pdu| set(pdu, 10, &[0xff, 0xff])),
        &[field(10)],
    ),
    lie(
        "data/cccid",
        &[24],
        "another CCCID",
        |w| w.but(|pdu| set(pdu, 8, &9u16.to_le_bytes())),
        &[field(8)],
    ),
    lie(
        "data/second-half-first",
        &[26],
        "the second half first",
        |w| w.part(w.half(), w.half(), true).bytes(),
        &[SEQUENCE],
    ),
    lie(
        "data/half-twice",
        &[26],
        "the first half twice",
        |w| {
            [
                w.part(0, w.half(), false).bytes(),
                w.part(0, w.half(), false).bytes(),
            ]
            .concat()
        },
        &[SEQUENCE],
    ),
    lie(
        "data/overlap",
        &[26],
        "two parts that overlap by 4 bytes",
        |w| {
            [
                w.part(0, w.half(), false).bytes(),
                w.part(w.half() - 4, w.half() + 4, true).bytes(),
            ]
            .concat()
        },
        &[SEQUENCE],
    ),
    lie(
        "data/gap",
        &[26],
        "two parts with 4 bytes missing between them",
        |w| {
            [
                w.part(0, w.half(), false).bytes(),
                w.part(w.half() + 4, w.half() - 4, true).bytes(),
            ]
            .concat()
        },
        &[SEQUENCE],
    ),
    lie(
        "data/beyond-the-end",
        &[26],
        "512 bytes more than was asked for",
        |w| w.part(0, w.r2t.length + 512, true).bytes(),
        RANGE,
    ),
    lie(
        "data/behind-the-end",
        &[26],
        "512 bytes from the end on",
        |w| w.part(w.r2t.length, 512, true).bytes(),
        RANGE,
    ),
    lie(
        "data/offset-wraps",
        &[26],
        "512 bytes from FFFFFE00h on",
        |w| w.part(u32::MAX - 511, 512, true).bytes(),
        RANGE,
    ),
    lie(
        "data/offset-unaligned",
        &[26],
        "DATAO 2",
        |w| w.part(2, w.r2t.length - 4, true).bytes(),
        &[SEQUENCE, field(12)],
    ),
    lie(
        "data/length-0",
        &[27],
        "DATAL 0 with data",
        |w| w.but(|pdu| set(pdu, 16, &[0; 4])),
        FEW,
    ),
    lie(
        "data/length-less",
        &[27],
        "DATAL 4 less than there is",
        |w| w.but(|pdu| set(pdu, 16, &(w.r2t.length - 4).to_le_bytes())),
        FEW,
    ),
    lie(
        "data/length-more",
        &[27],
        "DATAL 4 more than there is",
        |w| w.but(|pdu| set(pdu, 16, &(w.r2t.length + 4).to_le_bytes())),
        &[field(16), Want::Term(Fes::DATA_OUT_OF_RANGE, None)],
    ),
    lie(
        "data/length-max",
        &[27],
        "DATAL FFFFFFFFh",
        |w| w.but(|pdu| set(pdu, 16, &[0xff; 4])),
        &[
            field(16),
            Want::Term(Fes::LIMIT_EXCEEDED, None),
            Want::Term(Fes::DATA_OUT_OF_RANGE, None),
        ],
    ),
    lie(
        "data/nothing",
        &[27],
        "an H2CData without data",
        |w| w.part(0, 0, true).bytes(),
        &[field(16), field(4), field(3)],
    ),
    lie(
        "data/last-early",
        &[28],
        "LAST_PDU on the first half",
        |w| w.part(0, w.half(), true).bytes(),
        &[field(1)],
    )
    .tolerates(&[Want::End, Want::Error]),
    lie(
        "data/last-missing",
        &[28],
        "all data without LAST_PDU",
        |w| w.part(0, w.r2t.length, false).bytes(),
        &[field(1)],
    )
    .tolerates(&[Want::End, Want::Error, Want::Success])
    .overwrites_blocks(),
    lie(
        "data/ddgst-not-agreed",
        &[18],
        "all data, DDGSTF without data digests",
        |w| {
            w.but(|pdu| {
                pdu.common.flags |= PduFlags::DDGST;
                pdu.data_digest = Digest::Right;
                pdu.common.plen += 4;
            })
        },
        &[field(1)],
    ),
    lie(
        "data/again",
        &[25],
        "all data twice",
        |w| [w.whole().bytes(), w.whole().bytes()].concat(),
        &[field(10), SEQUENCE],
    )
    .overwrites_blocks(),
    case(
        "data/for-a-read",
        &[25],
        "data for a Read that has ended",
        PLAIN,
        Play::Script(for_a_read),
        &[field(10), SEQUENCE],
    )
    .source(H2C)
    .tolerates(&[Want::End]),
    case(
        "data/of-another-command",
        &[23, 24],
        "the TTAG of one write with the CCCID of another",
        PLAIN,
        Play::Script(swapped),
        &[field(8), field(10)],
    )
    .source(H2C)
    .tolerates(ENDS)
    .overwrites_blocks(),
    script(
        "data/after-abort",
        &[25, 47],
        "data of a write that is being aborted",
        PLAIN,
        after_abort,
        "the data is taken, the command ends once, the connection lives",
    )
    .source("NVMe Base 2.1, Abort command")
    .tolerates(&[Want::End])
    .overwrites_blocks(),
    case(
        "data/wrong-digest",
        &[20],
        "the only H2CData with a wrong data digest",
        BOTH,
        Play::Data(|w| w.but(|pdu| pdu.data_digest = Digest::Wrong)),
        TRANSIENT,
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    case(
        "data/wrong-digest-first",
        &[20],
        "the first of two H2CData with a wrong data digest",
        BOTH,
        Play::Data(|w| digests(w, [Digest::Wrong, Digest::Right])),
        TRANSIENT,
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    case(
        "data/wrong-digest-last",
        &[20],
        "the last of two H2CData with a wrong data digest",
        BOTH,
        Play::Data(|w| digests(w, [Digest::Right, Digest::Wrong])),
        TRANSIENT,
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    case(
        "data/wrong-digest-both",
        &[20],
        "two H2CData with wrong data digests",
        BOTH,
        Play::Data(|w| digests(w, [Digest::Wrong, Digest::Wrong])),
        TRANSIENT,
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    case(
        "data/wrong-digest-in-capsule",
        &[20],
        "data in the capsule with a wrong data digest",
        BOTH,
        Play::Capsule(
            |facts| (facts.write_in_capsule(1), facts.zeroes(1)),
            |pdu| pdu.data_digest = Digest::Wrong,
        ),
        TRANSIENT,
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    case(
        "data/wrong-digest-of-a-failure",
        &[20],
        "the same for an NSID that there is not",
        BOTH,
        Play::Capsule(
            |facts| {
                let mut sqe = facts.write_in_capsule(1);
                sqe.set_nsid(0xffff_fff0);
                (sqe, facts.zeroes(1))
            },
            |pdu| pdu.data_digest = Digest::Wrong,
        ),
        &[
            Want::Status(Status::INVALID_NAMESPACE),
            Want::Status(Status::TRANSIENT_TRANSPORT_ERROR),
        ],
    )
    .source(DIGEST)
    .tolerates(ENDS)
    .attempts(),
    script(
        "data/no-digest-at-all",
        &[18, 20],
        "data without the digest that PLEN counts, and FIN",
        BOTH,
        |scene| {
            let mut sqe = scene.facts.write_in_capsule(1);
            sqe.set_cid(CID);
            let mut pdu = RawPdu::capsule(&sqe, &scene.facts.zeroes(1), scene.connection.terms);
            pdu.data_digest = Digest::Absent;
            let _ = scene.connection.send(&pdu.bytes());
            scene.connection.half_close();
            Ok(super::icreq::end(scene))
        },
        "the end of the connection",
    )
    .source(DIGEST)
    .attempts(),
];

fn digests(wanted: &Wanted, digests: [Digest; 2]) -> Vec<u8> {
    let mut parts = [
        wanted.part(0, wanted.half(), false),
        wanted.part(wanted.half(), wanted.half(), true),
    ];
    for (part, digest) in parts.iter_mut().zip(digests) {
        part.data_digest = digest;
    }
    parts.map(|part| part.bytes()).concat()
}

fn for_a_read(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let answer = scene.command(&scene.facts.read(1), &[]);
    if !Want::Success.is_met(&answer) {
        return Ok(answer);
    }
    let nobody = DataHeader {
        cccid: CID,
        ttag: 0,
        offset: 0,
        length: 0,
    };
    let zeroes = scene.facts.zeroes(1);
    let pdu = RawPdu::h2c_data(&nobody, 0, &zeroes, true, scene.connection.terms);
    let _ = scene.connection.send(&pdu.bytes());
    Ok(scene.listen())
}

fn swapped(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    scene.submit(CID, &scene.facts.owed(), &[]);
    let first = scene.r2t()?;
    scene.submit(CID + 1, &scene.facts.owed(), &[]);
    let second = scene.r2t()?;
    let mixed = DataHeader {
        ttag: second.ttag,
        ..first
    };
    let zeroes = scene.facts.zeroes(scene.facts.owed_blocks());
    let pdu = RawPdu::h2c_data(&mixed, 0, &zeroes, true, scene.connection.terms);
    let _ = scene.connection.send(&pdu.bytes());
    Ok(scene.listen())
}

fn after_abort(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    scene.submit(CID, &scene.facts.owed(), &[]);
    let r2t = scene.r2t()?;
    let abort = command::abort(scene.qid, CID);
    let facts = scene.facts;
    facts.execute(&mut scene.others[0], abort, &[])?;
    facts.supply(&mut scene.connection, &r2t);
    Ok(match scene.listen() {
        Answer::Completed { status, .. } => Answer::Kept(format!("{}", status.without_more())),
        other => other,
    })
}

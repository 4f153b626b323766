//! The first PDU, what comes in its place, and what it may ask for.

use super::{At, Case, Facts, Play, Want, case, connect, ends, field, header, script};
use crate::raw::{RawPdu, Received};
use crate::torture::answer::Answer;
use crate::torture::scene::{Scene, Setback};
use nvmf_proto::wire::pdu::{Fes, InitConnection, PduType};
use std::time::Duration;

const ICREQ: &str = "NVMe/TCP 1.1, ICReq PDU";
const COMMON: &str = "NVMe/TCP 1.1, PDU Common Header";
const START: &str = "NVMe/TCP 1.1, connection establishment";
const END: &[Want] = &[Want::End];

/// An ICReq that is refused.
const fn refused(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    lie: fn(&mut RawPdu),
    conforms: &'static [Want],
) -> Case {
    let play = Play::IcReq(lie);
    case(name, scenarios, sends, At::Tcp, play, conforms)
        .source(ICREQ)
        .tolerates(END)
}

/// One that is accepted.
const fn accepted(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    lie: fn(&mut RawPdu),
) -> Case {
    let play = Play::IcReq(lie);
    case(name, scenarios, sends, At::Tcp, play, &[Want::Ready]).source(ICREQ)
}

const PFV: &[Want] = &[Want::Term(Fes::UNSUPPORTED_PARAMETER, Some(8))];

pub(super) const CASES: &[Case] = &[
    accepted("icreq/good", &[], "a good ICReq", |_| {}),
    accepted("icreq/maxr2t-max", &[7], "MAXR2T FFFFFFFFh", |pdu| {
        pdu.specific[4..8].fill(0xff);
    }),
    accepted("icreq/hpda-31", &[7], "HPDA 31: data at multiples of 128", |pdu| {
        pdu.specific[2] = 31;
    }),
    accepted("icreq/reserved", &[7], "reserved bytes 127:16 all ones", |pdu| {
        pdu.specific[8..].fill(0xff);
    })
    .tolerates(END),
    refused("icreq/flags", &[7], "FLAGS 01h", |pdu| {
        pdu.common.flags = super::PduFlags::HDGST;
    }, &[field(1)])
    .tolerates(&[Want::End, Want::Ready]),
    refused("icreq/hlen-127", &[8], "HLEN 127", |pdu| pdu.common.hlen = 127, &[field(2)]),
    refused("icreq/hlen-129", &[8], "HLEN 129", |pdu| pdu.common.hlen = 129, &[field(2)]),
    refused("icreq/hlen-0", &[8], "HLEN 0", |pdu| pdu.common.hlen = 0, &[field(2)]),
    refused("icreq/pdo", &[8], "PDO 128", |pdu| pdu.common.pdo = 128, &[field(3)])
        .tolerates(&[Want::End, Want::Ready]),
    refused("icreq/plen-127", &[8], "PLEN 127", |pdu| pdu.common.plen = 127, &[field(4)]),
    refused("icreq/plen-129", &[8], "PLEN 129", |pdu| pdu.common.plen = 129, &[field(4)]),
    refused("icreq/plen-0", &[8], "PLEN 0", |pdu| pdu.common.plen = 0, &[field(4)]),
    refused("icreq/plen-max", &[8, 16], "PLEN FFFFFFFFh", |pdu| {
        pdu.common.plen = u32::MAX;
    }, &[field(4)]),
    refused("icreq/oversize", &[8], "PLEN 4096, and 4096 bytes", |pdu| {
        pdu.common.plen = 4096;
        pdu.data = vec![0; 4096 - 128];
    }, &[field(4)]),
    refused("icreq/pfv-1", &[7], "PFV 1", |pdu| pdu.specific[0] = 1, PFV),
    refused("icreq/pfv-max", &[7], "PFV FFFFh", |pdu| pdu.specific[..2].fill(0xff), PFV),
    refused("icreq/hpda-32", &[7], "HPDA 32", |pdu| pdu.specific[2] = 32, &[field(10)])
        .tolerates(&[Want::End, Want::Term(Fes::UNSUPPORTED_PARAMETER, None)]),
    refused("icreq/hpda-255", &[7], "HPDA 255", |pdu| pdu.specific[2] = 255, &[field(10)])
        .tolerates(&[Want::End, Want::Term(Fes::UNSUPPORTED_PARAMETER, None)]),
    refused("icreq/dgst-reserved", &[7], "DGST bit 2", |pdu| pdu.specific[3] = 4, &[field(11)])
        .tolerates(&[Want::End, Want::Ready]),
    refused("icreq/dgst-all", &[7], "DGST FFh", |pdu| pdu.specific[3] = 0xff, &[field(11)])
        .tolerates(&[Want::End, Want::Ready]),
    case(
        "icreq/twice",
        &[5],
        "a second ICReq after ICResp",
        At::Open,
        Play::IcReq(|_| {}),
        &[super::SEQUENCE],
    )
    .source(START)
    .tolerates(END),
    case(
        "icreq/on-a-queue",
        &[5],
        "an ICReq on an I/O queue",
        At::Io(super::super::scene::Digests::NONE),
        Play::IcReq(|_| {}),
        &[super::SEQUENCE],
    )
    .source(START)
    .tolerates(END),
    script(
        "icreq/missing",
        &[6, 22],
        "PDUs of each type 01h to FFh as the first",
        At::Tcp,
        types,
        "the connection ends each time, with a C2HTermReq",
    )
    .source(START),
    script(
        "icreq/every-hpda",
        &[7],
        "every HPDA",
        At::Tcp,
        every_hpda,
        "0 to 31 give an ICResp, all others the end of the connection",
    )
    .source(ICREQ),
    script(
        "icreq/garbage",
        &[10, 12],
        "12 inputs that are no NVMe/TCP, and FIN: noise of 1 to 300,000 bytes, HTTP, a TLS ClientHello",
        At::Tcp,
        garbage,
        "a C2HTermReq at most, and the end of the connection",
    )
    .source(COMMON),
    script(
        "icreq/bytes",
        &[2, 13],
        "a good ICReq, each byte in a segment of its own",
        At::Tcp,
        |scene| {
            let bytes = RawPdu::ic_req(&InitConnection::default()).bytes();
            let _ = scene.connection.send_pieces(&bytes, 1, Duration::ZERO);
            Ok(match scene.listen() {
                Answer::Ready => Answer::Kept("ICResp".to_owned()),
                other => other,
            })
        },
        "an ICResp",
    )
    .source(START),
    script(
        "icreq/half-and-fin",
        &[3],
        "half an ICReq, and FIN",
        At::Tcp,
        |scene| {
            let bytes = RawPdu::ic_req(&InitConnection::default()).bytes();
            let _ = scene.connection.send(&bytes[..64]);
            scene.connection.half_close();
            Ok(end(scene))
        },
        "the end of the connection",
    )
    .source(START),
    script(
        "icreq/half-and-reset",
        &[3],
        "half an ICReq, and a reset, 100 times",
        At::Tcp,
        |scene| vanish(scene.facts, 100, 64, true),
        "others are served",
    )
    .source(START),
    script(
        "icreq/whole-and-reset",
        &[4],
        "an ICReq, and a reset at once, 1000 times",
        At::Tcp,
        |scene| vanish(scene.facts, 1000, 128, true),
        "others are served",
    )
    .source(START),
    script(
        "icreq/whole-and-close",
        &[4],
        "an ICReq, and FIN at once, 1000 times",
        At::Tcp,
        |scene| vanish(scene.facts, 1000, 128, false),
        "others are served",
    )
    .source(START),
];

fn types(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let mut told = 0;
    for value in 1..=255 {
        let pdu_type = PduType(value);
        let mut connection = connect(scene.facts)?;
        let _ = connection.send(&header(pdu_type, 0, 24, 0, 128));
        match connection.receive() {
            Received::Pdu(pdu) if pdu.term().is_some() && ends(&mut connection) => told += 1,
            Received::End(_) => {}
            other => return Ok(Answer::Broken(format!("type {value}: {other:?}"))),
        }
    }
    Ok(Answer::Kept(format!("255 ended, {told} with C2HTermReq")))
}

fn every_hpda(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    for pda in 0..=255 {
        let ic = InitConnection {
            pda,
            ..InitConnection::default()
        };
        let mut connection = connect(scene.facts)?;
        let _ = connection.send(&RawPdu::ic_req(&ic).bytes());
        let is_ready = match connection.receive() {
            Received::Pdu(pdu) => pdu.ic_resp().is_some(),
            Received::End(_) => false,
            other => return Ok(Answer::Broken(format!("HPDA {pda}: {other:?}"))),
        };
        if is_ready != (pda <= 31) {
            let what = if is_ready { "accepted" } else { "refused" };
            return Ok(Answer::Broken(format!("HPDA {pda} is {what}")));
        }
    }
    Ok(Answer::Kept("32 accepted, 224 refused".to_owned()))
}

fn garbage(scene: &mut Scene<'_>) -> Result<Answer, Setback> {
    let noise = |len: usize| {
        let bytes = (1..=len).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 7).to_le_bytes()[0] | 0x10);
        bytes.collect::<Vec<u8>>()
    };
    let mut inputs: Vec<Vec<u8>> = [1, 7, 8, 127, 128, 129, 4096, 300_000]
        .into_iter()
        .map(noise)
        .collect();
    inputs.extend([
        b"GET / HTTP/1.1\r\nHost: disks\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a ClientHello".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
    ]);
    for input in &inputs {
        let mut connection = connect(scene.facts)?;
        let _ = connection.send(input);
        connection.half_close();
        let mut pdus = 0;
        loop {
            match connection.receive() {
                Received::Pdu(pdu) if pdu.term().is_some() && pdus == 0 => pdus += 1,
                Received::End(_) => break,
                other => {
                    let len = input.len();
                    return Ok(Answer::Broken(format!("{other:?} to {len} bytes")));
                }
            }
        }
    }
    Ok(Answer::Kept(format!("{} ended", inputs.len())))
}

fn vanish(facts: &Facts, times: u32, bytes: usize, reset: bool) -> Result<Answer, Setback> {
    let ic_req = RawPdu::ic_req(&InitConnection::default()).bytes();
    for _ in 0..times {
        let mut connection = connect(facts)?;
        let _ = connection.send(&ic_req[..bytes]);
        if reset {
            connection.reset();
        }
    }
    Ok(Answer::Kept(format!("{times} gone")))
}

/// The end of the connection, however it comes.
pub(super) fn end(scene: &mut Scene<'_>) -> Answer {
    if ends(&mut scene.connection) {
        Answer::Kept("ended".to_owned())
    } else {
        Answer::Broken("left open".to_owned())
    }
}

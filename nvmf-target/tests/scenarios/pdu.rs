//! Scenarios 13 to 22: PDUs whose headers lie.

use crate::common::mortal::{End, Mortal};
use crate::common::raw::{
    Digests, Raw, admin_connect, connect_data, connect_sqe, encode, read, write_in_capsule,
};
use crate::common::{eventually, pattern};
use crate::fixture::{Scene, scenario};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::pdu::{CommonHeader, Fes, PduFlags, PduType};
use std::thread;

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
const CAPSULE: u8 = 4;

fn header(pdu_type: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    CommonHeader {
        pdu_type: PduType(pdu_type),
        flags: PduFlags::from_bits_retain(flags),
        hlen,
        pdo,
        plen,
    }
    .encode(&mut bytes);
    bytes
}

/// What a connection that was opened is ended with by a header.
fn refusal(scene: &Scene, digests: Digests, header: &[u8]) -> (Fes, u32) {
    let mut raw = Raw::open(scene.address, digests);
    raw.send(header);
    raw.expect_term()
}

/// A Connect in two pieces, cut at each of its bytes; and a whole session in pieces of every size
/// that has few of them.
#[test]
fn s13_every_way_of_cutting_a_stream() {
    scenario(|scene| {
        scene.cases(13);
        let mut bytes = Digests::default().ic_req().to_vec();
        let connect = connect_sqe(&admin_connect());
        bytes.extend(Digests::default().capsule(&connect, &encode(&connect_data())));
        for cut in 1..bytes.len() {
            let mut raw = Raw::tcp(scene.address);
            raw.send(&bytes[..cut]);
            thread::yield_now();
            raw.send(&bytes[cut..]);
            assert_eq!(raw.recv().ch.pdu_type, PduType::IC_RESP);
            assert_eq!(raw.recv().cqe().status, Status::SUCCESS, "cut at {cut}");
        }
        for chunk in 2..40 {
            let digests = [Digests::default(), Digests::BOTH][chunk % 2];
            let mut host = Mortal::new(scene.address, digests, End::Reset, usize::MAX);
            host.chunk = chunk;
            host.session().unwrap();
        }
    });
}

#[test]
fn s14_every_unknown_type() {
    scenario(|scene| {
        scene.cases(14);
        let known = |&pdu_type: &u8| ![0, 2, 4, 6].contains(&pdu_type);
        for pdu_type in (0..=255).filter(known) {
            let lie = header(pdu_type, 0, 24, 0, 24);
            let refused = refusal(scene, Digests::default(), &lie);
            assert_eq!(refused, (FIELD, 0), "type {pdu_type:#x}");
        }
    });
}

#[test]
fn s15_every_hlen() {
    scenario(|scene| {
        scene.cases(15);
        for hlen in (0..=255).filter(|&hlen| hlen != 72) {
            let lie = header(CAPSULE, 0, hlen, 0, 72);
            let refused = refusal(scene, Digests::default(), &lie);
            assert_eq!(refused, (FIELD, 2), "HLEN {hlen}");
        }
    });
}

/// Before Connect a capsule has 8 KiB of data at most; whatever is said beyond that is refused by
/// its first eight bytes, for which nobody lends a buffer.
#[test]
fn s16_every_size_of_plen() {
    scenario(|scene| {
        scene.cases(16);
        let sizes = (13..32).flat_map(|bit| [(1 << bit) + 73, (1 << bit) + 8192]);
        for plen in (0..72).chain(sizes).chain([u32::MAX]) {
            let lie = header(CAPSULE, 0, 72, 72, plen);
            let refused = refusal(scene, Digests::default(), &lie);
            assert_eq!(refused, (FIELD, 4), "PLEN {plen}");
            assert_eq!(scene.target.stats().buffers_lent, 0);
        }
    });
}

#[test]
fn s17_every_pdo() {
    scenario(|scene| {
        scene.cases(17);
        // Behind the header and on a dword is where data may stand.
        for pdo in (0..=255).filter(|&pdo| pdo < 72 || pdo % 4 > 0) {
            let lie = header(CAPSULE, 0, 72, pdo, 72 + 1024);
            let refused = refusal(scene, Digests::default(), &lie);
            assert_eq!(refused, (FIELD, 3), "PDO {pdo}");
        }
    });
}

#[test]
fn s18_every_combination_of_flags() {
    scenario(|scene| {
        scene.cases(18);
        for digests in [Digests::default(), Digests::BOTH] {
            let (right, pdo) = if digests.header { (3, 76) } else { (0, 72) };
            // LAST_PDU and SUCCESS, bits 2 and 3, say nothing in a capsule.
            for flags in (0..=3).filter(|&flags| flags != right) {
                let lie = header(CAPSULE, flags, 72, pdo, 72 + 1024);
                let refused = refusal(scene, digests, &lie);
                assert_eq!(refused, (FIELD, 1), "FLAGS {flags:#x}");
            }
        }
    });
}

/// Each byte of a header and of its digest.
#[test]
fn s19_wrong_header_digests() {
    scenario(|scene| {
        scene.cases(19);
        let good = Digests::BOTH.capsule(&read(1, 0, 8), &[]);
        for at in 8..76 {
            let mut raw = Raw::open(scene.address, Digests::BOTH);
            let mut capsule = good.clone();
            capsule[at] ^= 0x10;
            raw.send(&capsule);
            let received = u32::from_le_bytes(*capsule[72..].first_chunk().unwrap());
            assert_eq!(
                raw.expect_term(),
                (Fes::HEADER_DIGEST, received),
                "byte {at}"
            );
        }
    });
}

/// Each fails its command and no other, and writes nothing.
#[test]
fn s20_wrong_data_digests() {
    scenario(|scene| {
        scene.cases(20);
        let (admin, cntlid) = Raw::admin(scene.address);
        let mut io = Raw::io_with(scene.address, cntlid, 1, Digests::BOTH);
        let old = pattern(1, 1024);
        io.ok(&write_in_capsule(1, 0, 2), &old);
        for cid in 0..64 {
            let mut capsule = Digests::BOTH.capsule(&write_in_capsule(cid, 0, 2), &[9; 1024]);
            if cid % 4 > 0 {
                let at = capsule.len() - 1 - usize::from(cid);
                capsule[at] ^= 1;
            } else {
                capsule = Digests::BOTH.capsule(&write_in_capsule(cid, 0, 2), &old);
            }
            io.send(&capsule);
        }
        for cid in 0..64 {
            let cqe = io.recv().cqe();
            let status = match cid % 4 {
                0 => Status::SUCCESS,
                _ => Status::TRANSIENT_TRANSPORT_ERROR,
            };
            assert_eq!((cqe.cid, cqe.status), (cid, status));
        }
        assert_eq!(io.read(&read(1, 0, 2)), old);
        drop((io, admin));
    });
}

#[test]
fn s21_every_kind_of_h2c_term_req() {
    scenario(|scene| {
        scene.cases(21);
        let every_bit = (0..16).map(|bit| 1 << bit);
        for fes in (0..=7).chain(every_bit).chain([0xffff]) {
            for len in [24, 25, 152_u8] {
                let mut raw = Raw::open(scene.address, Digests::default());
                let mut term = header(2, 0, 24, 0, len.into()).to_vec();
                term.resize(len.into(), 0xee);
                term[8..10].copy_from_slice(&u16::to_le_bytes(fes));
                raw.send(&term);
                raw.expect_end();
            }
        }
    });
}

/// On connections, admin queues and I/O queues, idle and at work.
#[test]
fn s22_pdus_that_only_controllers_send() {
    scenario(|scene| {
        scene.cases(22);
        for pdu_type in [1, 3, 5, 7, 9] {
            let lie = header(pdu_type, 0, 24, 0, 24);
            let opened = Raw::open(scene.address, Digests::default());
            let (mut admin, mut io) = scene.queues();
            let mut never = command::async_event_request();
            never.set_cid(7);
            admin.submit(&never, &[]);
            let mut held = read(1, 0, 8);
            held.set_nsid(crate::fixture::STEP);
            io.submit(&held, &[]);
            let request = scene.step.next();
            for mut queue in [opened, io, admin] {
                queue.send(&lie);
                assert_eq!(queue.expect_term(), (FIELD, 0), "type {pdu_type}");
            }
            request.complete(Ok(()));
            eventually("all is given back", || scene.target.stats().in_flight == 0);
        }
    });
}

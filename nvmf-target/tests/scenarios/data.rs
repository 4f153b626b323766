//! Scenarios 23 to 36: data that was not asked for, data pointers that lie, hosts that do not move.

use crate::common::mortal::{End, Mortal};
use crate::common::raw::{
    Digests, Raw, connect_data, io_connect, read, with_sgl, write_by_r2t, write_in_capsule,
};
use crate::common::{Witness, config, eventually, pattern};
use crate::fixture::{STEP, Scene, scenario, scenario_with};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::pdu::{DataHeader, Fes, PduType};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use std::collections::BTreeSet;
use std::time::Duration;

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
const RANGE: (Fes, u32) = (Fes::DATA_OUT_OF_RANGE, 0);
/// Bytes of the writes here.
const LENGTH: u32 = 1024;

fn data(r2t: &DataHeader, offset: u32, len: usize, last: bool) -> Vec<u8> {
    Digests::default().h2c_data(r2t, offset, &vec![1; len], last)
}

/// What ends a connection that answers the R2T for its write in a way that is wrong.
fn refusals<T: Copy>(
    scene: &Scene,
    lies: impl IntoIterator<Item = T>,
    lie: impl Fn(&DataHeader, T) -> Vec<u8>,
    mut check: impl FnMut(T, (Fes, u32)),
) {
    let (admin, cntlid) = Raw::admin(scene.address);
    for what in lies {
        let mut io = Raw::io(scene.address, cntlid, 1);
        io.submit(&write_by_r2t(5, 0, 2), &[]);
        let r2t = io.recv().r2t();
        assert_eq!((r2t.cccid, r2t.offset, r2t.length), (5, 0, LENGTH));
        io.send(&lie(&r2t, what));
        let term = io.recv().term();
        check(what, (term.fes, term.fei));
        io.expect_end();
        drop(io);
        eventually("the QID is free", || scene.target.stats().io_queues == 0);
    }
    drop(admin);
}

/// A command of the namespace that is run by hand.
fn by_hand(mut sqe: Sqe) -> Sqe {
    sqe.set_nsid(STEP);
    sqe
}

#[test]
fn s23_ttags_that_nobody_has() {
    scenario(|scene| {
        scene.cases(23);
        let others = (0..16).map(|bit| 1 << bit).chain([0xffff]);
        refusals(
            scene,
            others,
            |r2t, flip| {
                let ttag = r2t.ttag ^ flip;
                data(&DataHeader { ttag, ..*r2t }, 0, 1024, true)
            },
            |flip, term| assert_eq!(term, (FIELD, 10), "TTAG ^ {flip:#x}"),
        );
    });
}

#[test]
fn s24_cccids_of_other_commands() {
    scenario(|scene| {
        scene.cases(24);
        refusals(
            scene,
            (0..16).map(|bit| 1 << bit),
            |r2t, flip| {
                let cccid = r2t.cccid ^ flip;
                data(&DataHeader { cccid, ..*r2t }, 0, 1024, true)
            },
            |flip, term| assert_eq!(term, (FIELD, 8), "CCCID ^ {flip:#x}"),
        );
    });
}

/// For any TTAG: before anything was asked for, and when everything is over.
#[test]
fn s25_data_that_nobody_has_asked_for() {
    scenario(|scene| {
        scene.cases(25);
        let (admin, cntlid) = Raw::admin(scene.address);
        for ttag in [0, 1, 2, 127, 128, 4095, 0xffff] {
            for after_a_write in [false, true] {
                let mut io = Raw::io(scene.address, cntlid, 1);
                if after_a_write {
                    io.submit(&write_by_r2t(5, 0, 2), &[]);
                    assert_eq!(io.next_end().1, Status::SUCCESS);
                }
                let unasked = DataHeader {
                    cccid: 5,
                    ttag,
                    offset: 0,
                    length: LENGTH,
                };
                io.send(&data(&unasked, 0, 1024, true));
                assert_eq!(io.expect_term(), (FIELD, 10), "TTAG {ttag}");
                drop(io);
                eventually("the QID is free", || scene.target.stats().io_queues == 0);
            }
        }
        drop(admin);
    });
}

#[test]
fn s26_data_out_of_order_and_out_of_range() {
    scenario(|scene| {
        scene.cases(26);
        let beyond = (10..32).map(|bit| 1 << bit);
        let wraps = [u32::MAX - 3, u32::MAX - 511, u32::MAX - 1023];
        refusals(
            scene,
            beyond.chain(wraps),
            |r2t, offset| data(r2t, offset, 512, true),
            |offset, term| assert_eq!(term, RANGE, "DATAO {offset:#x}"),
        );
        refusals(
            scene,
            (4..=512).step_by(4),
            |r2t, offset| data(r2t, offset, 512, true),
            |offset, term| assert_eq!(term, (Fes::PDU_SEQUENCE, 0), "DATAO {offset}"),
        );
    });
}

#[test]
fn s27_data_of_other_lengths_than_they_say() {
    scenario(|scene| {
        scene.cases(27);
        refusals(
            scene,
            (0..32).map(|bit| 1 << bit),
            |r2t, flip: u32| {
                let mut pdu = data(r2t, 0, 1024, true);
                pdu[16..20].copy_from_slice(&(1024 ^ flip).to_le_bytes());
                pdu
            },
            |flip, term| {
                let beyond_maxh2cdata = flip >= 1 << 20;
                let expected = match beyond_maxh2cdata {
                    true => (Fes::LIMIT_EXCEEDED, 0),
                    false => (FIELD, 16),
                };
                assert_eq!(term, expected, "DATAL ^ {flip:#x}");
            },
        );
    });
}

#[test]
fn s28_last_pdu_too_early_or_missing() {
    scenario(|scene| {
        scene.cases(28);
        refusals(
            scene,
            (4..=1024).step_by(60),
            |r2t, len| data(r2t, 0, len, len < 1024),
            |len, term| assert_eq!(term, (FIELD, 1), "{len} bytes"),
        );
    });
}

/// Reads and writes of one block whose SGL says something else: too short is refused, and of what
/// is longer no more than the block is used.
#[test]
fn s29_sgl_lengths_that_lie() {
    scenario(|scene| {
        scene.cases(29);
        let (admin, mut io) = scene.queues();
        let lengths = (0..32).flat_map(|bit| [(1 << bit) - 1, 1 << bit]);
        for length in lengths.chain([u32::MAX]) {
            for sqe in [command::read(1, 0, 1), command::write(1, 0, 1)] {
                io.submit(&with_sgl(sqe, 1, SglDescriptor::transport(length)), &[]);
                let (_, status, moved) = io.next_end();
                if length < 512 {
                    assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr(), "{length}");
                }
                let expected = if status.is_success() { 512 } else { 0 };
                assert_eq!(moved, expected, "SGL of {length} bytes");
            }
        }
        drop((io, admin));
    });
}

/// A queue takes 16 KiB in a capsule: SGLs of every length for data of another.
#[test]
fn s30_in_capsule_data_of_another_length() {
    scenario(|scene| {
        scene.cases(30);
        let (admin, mut io) = scene.queues();
        for length in (0..=15).map(|bit| 1 << bit).filter(|&length| length != 512) {
            let sgl = SglDescriptor::in_capsule(length);
            let sqe = with_sgl(command::write(1, 3000, 1), 1, sgl);
            let status = io.execute(&sqe, &[1; 512]).status;
            assert!(!status.is_success(), "{length}: {status}");
        }
        assert!(
            io.read(&read(1, 3000, 1)) == [0; 512],
            "something was written"
        );
        drop((io, admin));
    });
}

/// Every identifier of an SGL descriptor, and every PSDT.
#[test]
fn s31_every_type_of_sgl() {
    const IDENTIFIER: usize = 39;
    scenario(|scene| {
        scene.cases(31);
        let (admin, mut io) = scene.queues();
        for identifier in 0..=255 {
            for psdt in 0..4 {
                let mut sqe = write_by_r2t(1, 0, 1);
                sqe.0[IDENTIFIER] = identifier;
                sqe.0[1] = psdt << 6;
                // Transport data, which is asked for, or data in the capsule, of which there is
                // none.
                io.submit(&sqe, &[]);
                let (_, status, _) = io.next_end();
                let is_right = identifier == 0x5a && (psdt == 1 || psdt == 2);
                let name = format!("{identifier:#x}, PSDT {psdt}: {status}");
                assert!(is_right || !status.is_success(), "{name}");
            }
        }
        drop((io, admin));
    });
}

/// CVE-2024-46737's neighbours: Reads at full depth that nobody takes.
#[test]
fn s32_hosts_that_stop_reading() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 16 << 20);
    scenario_with(config, |scene| {
        scene.cases(32);
        let mut witness = Witness::new(&scene.target, scene.address);
        let (admin, cntlid) = Raw::admin(scene.address);
        let mut queues: Vec<_> = (1..=4)
            .map(|qid| Raw::io(scene.address, cntlid, qid))
            .collect();
        for queue in &mut queues {
            for cid in 0..100 {
                queue.submit(&read(cid, u64::from(cid) * 256, 256), &[]);
            }
        }
        for _ in 0..100 {
            witness.works();
        }
        scene.serves_beside();
        assert!(scene.target.stats().buffers_lent <= 16 << 20);
        drop((queues, admin));
        witness.is_alone();
    });
}

/// The end of a host while its commands wait for data, for a buffer, in the backend, or for the
/// host to read.
#[test]
fn s33_the_end_in_every_state_of_a_command() {
    scenario(|scene| {
        scene.cases(33);
        for reset in [false, true] {
            for state in 0..6 {
                let (admin, mut io) = scene.queues();
                let mut held = Vec::new();
                match state {
                    // Waits for data of which half has come.
                    0 => {
                        io.submit(&write_by_r2t(1, 0, 2), &[]);
                        let r2t = io.recv().r2t();
                        io.send(&data(&r2t, 0, 512, false));
                    }
                    // Half a capsule.
                    1 => {
                        let sqe = write_in_capsule(1, 0, 2);
                        io.send(&Digests::default().capsule(&sqe, &[1; 1024])[..700]);
                    }
                    // In the backend, to read and to write.
                    2 => {
                        io.submit(&by_hand(read(1, 0, 8)), &[]);
                        io.submit(&by_hand(write_in_capsule(2, 0, 8)), &[2; 4096]);
                        held = scene.step.take(2);
                    }
                    // Nobody reads what is sent.
                    3 => (0..100).for_each(|cid| io.submit(&read(cid, 0, 2048), &[])),
                    // First half of a fused pair.
                    4 => {
                        let [first, _] = command::compare_and_write(1, 0, 1);
                        let sgl = SglDescriptor::in_capsule(512);
                        io.submit(&with_sgl(first, 1, sgl), &[0; 512]);
                    }
                    // Many that wait for their data.
                    _ => (0..100).for_each(|cid| io.submit(&write_by_r2t(cid, 0, 2048), &[])),
                }
                if reset {
                    let socket = socket2::SockRef::from(&io.stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
                drop((io, admin));
                for (n, request) in held.into_iter().enumerate() {
                    eventually("only the backend has anything", || {
                        scene.target.stats().in_flight == 2 - n
                    });
                    request.complete(Ok(()));
                }
                eventually("nothing is left", || {
                    scene.target.stats() == Default::default()
                });
            }
        }
        for cut in (128..6000).step_by(101) {
            let mut host = Mortal::new(scene.address, Digests::BOTH, End::Reset, cut);
            let _ = host.session();
        }
    });
}

#[test]
fn s34_a_cid_that_is_in_use() {
    scenario(|scene| {
        scene.cases(34);
        let (admin, mut io) = scene.queues();
        for cid in [0, 1, 0x7fff, 0xffff] {
            io.submit(&by_hand(read(cid, 0, 1)), &[]);
            let request = scene.step.next();
            for sqe in [read(cid, 0, 1), write_by_r2t(cid, 8, 1)] {
                let status = io.execute(&sqe, &[]).status;
                assert_eq!(status, Status::COMMAND_ID_CONFLICT.dnr());
            }
            request.complete(Ok(()));
            assert_eq!(io.next_end(), (cid, Status::SUCCESS, 512));
            io.read(&read(cid, 0, 1));
        }
        drop((io, admin));
    });
}

/// A queue of two to five entries gets ten times as many commands at once: no more than its entries
/// are in the backend, and each ends once.
#[test]
fn s35_more_commands_than_entries() {
    scenario(|scene| {
        scene.cases(35);
        let (admin, cntlid) = Raw::admin(scene.address);
        for entries in 2..=5_u16 {
            let mut io = Raw::open(scene.address, Digests::default());
            let mut connect = io_connect(1);
            connect.sqsize = entries - 1;
            let data = ConnectData {
                cntlid,
                ..connect_data()
            };
            io.connect_ok(&connect, &data);
            let all = entries * 10;
            for cid in 0..all {
                io.submit(&by_hand(read(cid, u64::from(cid), 1)), &[]);
            }
            let mut held = scene.step.take(entries.into());
            let mut done = BTreeSet::new();
            for n in 0..all {
                assert_eq!(scene.step.pending(), 0);
                held.remove(0).complete(Ok(()));
                let (cid, status, _) = io.next_end();
                assert!(status.is_success() && done.insert(cid), "{cid}");
                if n + entries < all {
                    held.push(scene.step.next());
                }
            }
            drop(io);
            eventually("the QID is free", || scene.target.stats().io_queues == 0);
        }
        drop(admin);
    });
}

#[test]
fn s36_commands_without_data_that_bring_some() {
    scenario(|scene| {
        scene.cases(36);
        let (admin, mut io) = scene.queues();
        let none = [
            command::flush(1),
            command::write_zeroes(1, 0, 1, false),
            command::verify(1, 0, 1),
        ];
        for sqe in none {
            let empty = with_sgl(sqe, 1, SglDescriptor::transport(0));
            io.ok(&empty, &[]);
            for len in [4, 512, 8192_u32] {
                let sgl = SglDescriptor::in_capsule(len);
                let sqe = with_sgl(sqe, 1, sgl);
                io.submit(&sqe, &pattern(1, len as usize));
                let pdu = io.recv();
                assert_eq!(pdu.ch.pdu_type, PduType::CAPSULE_RESP);
            }
            io.ok(&empty, &[]);
        }
        drop((io, admin));
    });
}

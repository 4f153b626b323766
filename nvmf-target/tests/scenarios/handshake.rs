//! Scenarios 1 to 12: connections that do not become queues.

use crate::common::mortal::{End, Mortal};
use crate::common::raw::{Digests, Raw, admin_connect, connect_data};
use crate::common::{Witness, config, eventually, in_memory, pattern};
use crate::fixture::{Scene, scenario, scenario_with};
use nvmf_host::nvmf_proto::wire::pdu::{Fes, InitConnection, PduType};
use nvmf_target::TargetConfig;
use nvmf_target::transport::Stream as _;
use std::io::{IoSlice, IoSliceMut, Read};
use std::net::Shutdown;
use std::time::Duration;

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;

/// Deadlines that a test can wait for.
fn short() -> TargetConfig {
    let mut config = config();
    config.connect_timeout = Duration::from_secs(1);
    config
}

fn reset(raw: &Raw) {
    let socket = socket2::SockRef::from(&raw.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

fn with_byte(at: usize, value: u8) -> [u8; 128] {
    let mut bytes = Digests::default().ic_req();
    bytes[at] = value;
    bytes
}

/// Sends bytes as the first of a connection; the C2HTermReq that they end it with.
fn refusal(scene: &Scene, bytes: &[u8]) -> (Fes, u32) {
    let mut raw = Raw::tcp(scene.address);
    raw.send(bytes);
    raw.expect_term()
}

#[test]
fn s01_a_connection_that_says_nothing() {
    scenario_with(short(), |scene| {
        scene.cases(1);
        let mut silent: Vec<_> = (0..64).map(|_| Raw::tcp(scene.address)).collect();
        scene.serves_beside();
        silent.iter_mut().for_each(Raw::expect_end);
    });
}

#[test]
fn s02_bytes_that_come_one_at_a_time() {
    scenario(|scene| {
        for digests in [Digests::default(), Digests::BOTH] {
            let mut host = Mortal::new(scene.address, digests, End::Close, usize::MAX);
            host.chunk = 1;
            host.session().unwrap();
        }
    });
}

#[test]
fn s02_bytes_that_come_one_a_second() {
    scenario_with(short(), |scene| scene.cases(2));
}

#[test]
fn s03_half_an_icreq_and_then_the_end() {
    scenario(|scene| {
        scene.cases(3);
        for end in [End::Close, End::Reset, End::HalfClose] {
            for cut in 1..128 {
                let mut host = Mortal::new(scene.address, Digests::default(), end, cut);
                host.session().unwrap_err();
            }
        }
    });
}

/// CVE-2026-46135 wants it many thousands of times: over TCP where reset and close race with the
/// ICResp, and over memory, where a connection costs less.
#[test]
fn s04_an_icreq_and_an_immediate_end_many_times() {
    scenario(|scene| {
        scene.cases(4);
        let ic_req = Digests::default().ic_req();
        for i in 0..2000 {
            let mut raw = Raw::tcp(scene.address);
            raw.send(&ic_req[..128 - i % 3]);
            // A close leaves a port of this machine taken for a minute; a reset does not.
            if i % 8 != 0 {
                reset(&raw);
            }
        }
        let connector = in_memory(&scene.target);
        for i in 0..10_000 {
            let mut stream = connector.connect().unwrap();
            let is_whole = i % 32 == 0;
            let sent = if is_whole { 128 } else { 128 - i % 3 };
            stream.writev(&[IoSlice::new(&ic_req[..sent])]).unwrap();
            if is_whole {
                // What came before this one has been accepted when it is answered.
                eventually("an ICResp", || {
                    let mut answer = [0; 128];
                    let answer = &mut [IoSliceMut::new(&mut answer)];
                    stream.readv(answer).is_ok_and(|n| n > 0)
                });
            }
        }
        scene.target.remove_listener("test").unwrap();
    });
}

#[test]
fn s05_an_icreq_twice() {
    scenario(|scene| {
        scene.cases(5);
        let again = Digests::default().ic_req();
        let mut both = again.to_vec();
        both.extend(again);
        let mut raw = Raw::tcp(scene.address);
        raw.send(&both);
        // The ICResp to the first may not have gone out yet; then it does not any more.
        let mut last = raw.recv();
        if last.ch.pdu_type == PduType::IC_RESP {
            last = raw.recv();
        }
        assert_eq!(last.term().fes, Fes::PDU_SEQUENCE);
        raw.expect_end();
        let (admin, io) = scene.queues();
        for mut queue in [io, admin] {
            queue.send(&again);
            assert_eq!(queue.expect_term(), (Fes::PDU_SEQUENCE, 0));
        }
    });
}

#[test]
fn s06_a_first_pdu_of_every_other_type() {
    scenario(|scene| {
        scene.cases(6);
        for pdu_type in 1..=255 {
            let expected = match pdu_type {
                2 | 4 | 6 => (Fes::PDU_SEQUENCE, 0),
                _ => (FIELD, 0),
            };
            let header = [pdu_type, 0, 24, 0, 24, 0, 0, 0];
            assert_eq!(refusal(scene, &header), expected, "type {pdu_type:#x}");
        }
    });
}

#[test]
fn s07_every_value_of_every_field_of_icreq() {
    scenario(|scene| {
        scene.cases(7);
        for value in 0..=255 {
            for (at, valid) in [(10, value < 32), (11, value < 4)] {
                let bytes = with_byte(at, value);
                if valid {
                    let mut raw = Raw::tcp(scene.address);
                    raw.send(&bytes);
                    assert_eq!(raw.recv().ch.pdu_type, PduType::IC_RESP);
                } else {
                    let at = u32::try_from(at).unwrap();
                    assert_eq!(refusal(scene, &bytes), (FIELD, at), "byte {at}: {value}");
                }
            }
            if value > 0 {
                for at in [8, 9] {
                    let refused = refusal(scene, &with_byte(at, value));
                    assert_eq!(refused, (Fes::UNSUPPORTED_PARAMETER, 8), "PFV");
                }
            }
        }
        for max in [0, 1, 15, u32::MAX] {
            let mut raw = Raw::tcp(scene.address);
            let ic = InitConnection {
                max,
                ..InitConnection::default()
            };
            raw.send(&ic.encode(PduType::IC_REQ));
            assert_eq!(raw.recv().ch.pdu_type, PduType::IC_RESP);
            raw.connect_ok(&admin_connect(), &connect_data());
        }
    });
}

#[test]
fn s08_every_hlen_and_plen_of_icreq() {
    scenario(|scene| {
        scene.cases(8);
        for value in (0..=255).filter(|&value| value != 128) {
            assert_eq!(
                refusal(scene, &with_byte(2, value)),
                (FIELD, 2),
                "HLEN {value}"
            );
            assert_eq!(
                refusal(scene, &with_byte(4, value)),
                (FIELD, 4),
                "PLEN {value}"
            );
        }
        for at in 5..8 {
            for value in [1, 0x80, 0xff] {
                assert_eq!(
                    refusal(scene, &with_byte(at, value)),
                    (FIELD, 4),
                    "byte {at}"
                );
            }
        }
    });
}

/// As many as may be, and as many again, while another works.
#[test]
fn s09_idle_connections_up_to_the_limit_and_beyond() {
    let mut config = config();
    config.max_connections = 256;
    scenario_with(config, |scene| {
        scene.cases(9);
        let mut witness = Witness::new(&scene.target, scene.address);
        let mut idle = Vec::new();
        for i in 0..512 {
            let mut raw = Raw::tcp(scene.address);
            if i % 2 == 0 {
                // One that has been closed already may be reset at this.
                let _ = std::io::Write::write(&mut raw.stream, &Digests::default().ic_req());
            }
            idle.push(raw);
            if i % 64 == 0 {
                witness.works();
            }
        }
        witness.works();
        // Those that are being ended are counted until they are.
        eventually("there are no more than may be", || {
            scene.target.stats().connections <= 256
        });
        drop(idle);
        witness.is_alone();
    });
}

/// SPDK #3842: noise and a FIN, which is to be seen although the noise has not been read.
#[test]
fn s10_noise() {
    scenario(|scene| {
        scene.cases(10);
        for seed in 0..200 {
            let mut raw = Raw::tcp(scene.address);
            raw.send(&pattern(seed, 128 << (seed % 8)));
            raw.stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            // A reset is as good as an end.
            let _ = raw.stream.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[0] == PduType::C2H_TERM_REQ.0);
            assert!(answer.len() <= 152);
        }
    });
}

#[test]
fn s11_an_icreq_and_never_a_connect() {
    scenario_with(short(), |scene| {
        scene.cases(11);
        let open = |_| Raw::open(scene.address, Digests::BOTH);
        let mut silent: Vec<_> = (0..64).map(open).collect();
        scene.serves_beside();
        silent.iter_mut().for_each(Raw::expect_end);
    });
}

/// There is no TLS here: records of every type are refused as the first bytes of a connection, and
/// an alert in the middle of a session ends it.
#[test]
fn s12_tls_records_where_there_is_no_tls() {
    const CHANGE_CIPHER_SPEC: u8 = 20;
    const HEARTBEAT: u8 = 24;
    scenario(|scene| {
        scene.cases(12);
        for content_type in CHANGE_CIPHER_SPEC..=HEARTBEAT {
            for version in [[3, 1], [3, 3], [3, 4]] {
                for len in [3, 252, 16_384_u16] {
                    let mut record = vec![content_type];
                    record.extend(version);
                    record.extend(len.to_be_bytes());
                    record.extend(pattern(len.into(), len.into()));
                    assert_eq!(refusal(scene, &record), (FIELD, 0));
                }
            }
        }
        // close_notify as plain text.
        let alert = [21, 3, 3, 0, 2, 1, 0, 0];
        let (admin, io) = scene.queues();
        for mut queue in [io, admin] {
            queue.send(&alert);
            assert_eq!(queue.expect_term(), (FIELD, 0));
        }
    });
}

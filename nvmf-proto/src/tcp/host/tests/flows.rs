//! What a controller that follows the specification sees and causes.

use super::*;
use crate::wire::SglDescriptor;
use crate::wire::pdu::{CMD_LEN, Fes, IC_LEN, capsule_sqe};

#[test]
fn ic_req_says_what_was_configured() {
    let config = Config {
        header_digest: true,
        data_digest: true,
        hpda: 3,
        maxr2t: 2,
        ..Config::default()
    };
    let mut rig = Rig::new(&config);
    assert!(rig.host.has_transmit());
    let sent = rig.transmit();
    let pdu = sent.first_chunk::<IC_LEN>().expect("128 bytes");
    assert_eq!((sent.len(), pdu[0]), (IC_LEN, 0));
    let request = InitConnection::decode(pdu);
    assert_eq!(
        request,
        InitConnection {
            pfv: 0,
            pda: 3,
            dgst: 3,
            max: 2
        }
    );
    assert!(!rig.host.has_transmit());
    assert_eq!(rig.host.negotiated(), None);
}

#[test]
fn commands_before_the_ic_resp_wait_for_it() {
    let config = Config::default();
    let mut rig = Rig::new(&config);
    rig.submit(HostData::None);
    assert_eq!(rig.transmit().len(), IC_LEN);
    assert!(!rig.host.has_transmit());
    rig.feed(&ic_resp(&config));
    assert_eq!(rig.transmit().len(), CMD_LEN);
}

#[test]
fn read_in_several_pdus() {
    for config in configs() {
        let mut rig = Rig::ready(&config);
        let (slot, cid) = rig.issue(HostData::Read { len: 1000 });
        let sent = rig.sent.clone();
        let sqe = capsule_sqe(sent.first_chunk().expect("a capsule"));
        assert_eq!(sqe.sgl(), SglDescriptor::transport(1000));
        assert_eq!(sqe.cid(), cid);
        rig.feed(&c2h_data(&config, cid, 0, &[1; 600], PduFlags::empty()));
        rig.feed(&c2h_data(&config, cid, 600, &[2; 400], PduFlags::LAST_PDU));
        assert_eq!(rig.events, []);
        rig.feed(&resp(&config, cid, 1, Status::SUCCESS));
        let [
            Event::Completed {
                slot: done,
                cqe,
                received: 1000,
                digest_ok: true,
            },
        ] = rig.events[..]
        else {
            panic!("{:?} {:?}", rig.events, rig.violation)
        };
        assert_eq!((done, cqe.cid, cqe.result, cqe.sqhd), (slot, cid, 7, 1));
        assert_eq!(rig.host.sqhd(), Some(1));
        assert_eq!(
            rig.buffers[slot.index()],
            [vec![1; 600], vec![2; 400]].concat()
        );
        assert_eq!(rig.host.outstanding(), 0);
    }
}

#[test]
fn success_flag_completes_where_flow_control_is_disabled() {
    for config in configs() {
        let config = Config {
            flow_control: false,
            ..config
        };
        let mut rig = Rig::ready(&config);
        let (_, cid) = rig.issue(HostData::None);
        assert!(!rig.host.flow_control_disabled());
        rig.feed(&resp(&config, cid, u16::MAX, Status::SUCCESS));
        assert!(rig.host.flow_control_disabled());
        let (slot, cid) = rig.issue(HostData::Read { len: 8 });
        let flags = PduFlags::LAST_PDU | PduFlags::SUCCESS;
        rig.feed(&c2h_data(&config, cid, 0, &[9; 8], flags));
        let cqe = Cqe {
            result: 0,
            sqhd: u16::MAX,
            cid,
            status: Status::SUCCESS,
        };
        let want = Event::Completed {
            slot,
            cqe,
            received: 8,
            digest_ok: true,
        };
        assert_eq!(rig.events[1..], [want], "{:?}", rig.violation);
        assert_eq!(rig.host.sqhd(), None);
    }
}

#[test]
fn a_controller_may_keep_flow_control() {
    let config = Config {
        flow_control: false,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    let (_, cid) = rig.issue(HostData::None);
    rig.feed(&resp(&config, cid, 1, Status::SUCCESS));
    assert!(!rig.host.flow_control_disabled());
    assert_eq!(rig.host.sqhd(), Some(1));
}

#[test]
fn a_failed_read_may_have_no_data() {
    let config = Config::default();
    let mut rig = Rig::ready(&config);
    let (slot, cid) = rig.issue(HostData::Read { len: 512 });
    rig.feed(&resp(&config, cid, 1, Status::LBA_OUT_OF_RANGE));
    assert!(
        matches!(rig.events[..], [Event::Completed { slot: s, received: 0, .. }] if s == slot),
        "{:?}",
        rig.events
    );
}

#[test]
fn in_capsule_write() {
    for config in configs() {
        let mut rig = Rig::ready(&config);
        rig.issue(HostData::Write {
            len: 512,
            in_capsule: true,
        });
        let sqe = capsule_sqe(rig.sent.first_chunk().expect("a capsule"));
        assert_eq!(sqe.sgl(), SglDescriptor::in_capsule(512));
        let ch = CommonHeader::decode(rig.sent.first_chunk().expect("a header"));
        let data = usize::from(ch.pdo)..usize::from(ch.pdo) + 512;
        assert_eq!(rig.sent[data.clone()], [1; 512]);
        assert_eq!(ch.plen as usize, rig.sent.len());
        let mut tail = rig.sent.len();
        if config.data_digest {
            tail -= 4;
            assert_eq!(rig.sent[tail..], crc32c(0, &[1; 512]).to_le_bytes());
        }
        assert_eq!(data.end, tail);
        if config.header_digest {
            assert_eq!(rig.sent[72..76], crc32c(0, &rig.sent[..72]).to_le_bytes());
        }
    }
}

#[test]
fn data_beyond_the_capsule_or_not_wanted_there_waits_for_an_r2t() {
    let config = Config {
        in_capsule: 512,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    for data in [
        HostData::Write {
            len: 513,
            in_capsule: true,
        },
        HostData::Write {
            len: 512,
            in_capsule: false,
        },
    ] {
        rig.sent.clear();
        rig.issue(data);
        assert_eq!(rig.sent.len(), CMD_LEN);
        let sqe = capsule_sqe(rig.sent.first_chunk().expect("a capsule"));
        assert_eq!(sqe.sgl().kind, SglDescriptor::TRANSPORT);
    }
    rig.host.set_in_capsule(1024);
    rig.sent.clear();
    rig.issue(HostData::Write {
        len: 513,
        in_capsule: true,
    });
    assert_eq!(rig.sent.len(), CMD_LEN + 513);
}

#[test]
fn as_is_keeps_the_sgl() {
    let mut rig = Rig::ready(&Config::default());
    let odd = SglDescriptor {
        address: 1,
        length: 2,
        kind: 0x33,
    };
    let mut sqe = Sqe::with_opcode(2);
    sqe.set_sgl(odd);
    assert!(rig.host.submit(sqe, HostData::AsIs).is_some());
    rig.transmit();
    assert_eq!(
        capsule_sqe(rig.sent.first_chunk().expect("a capsule")).sgl(),
        odd
    );
}

/// Header and data of each H2CData PDU in `bytes`.
fn h2c_data(config: &Config, mut bytes: &[u8]) -> Vec<(bool, DataHeader, Vec<u8>)> {
    let mut pdus = Vec::new();
    while let Some(head) = bytes.first_chunk::<DATA_LEN>() {
        let ch = CommonHeader::decode(head.first_chunk().expect("8 bytes"));
        assert_eq!(ch.pdu_type, PduType::H2C_DATA);
        assert_eq!(ch.flags.contains(PduFlags::DDGST), config.data_digest);
        let data = DataHeader::decode(head);
        let at = usize::from(ch.pdo);
        let last = ch.flags.contains(PduFlags::LAST_PDU);
        pdus.push((last, data, bytes[at..at + data.length as usize].to_vec()));
        bytes = &bytes[ch.plen as usize..];
    }
    pdus
}

#[test]
fn r2t_is_answered_in_pdus_of_maxh2cdata() {
    for config in configs() {
        let mut rig = Rig::ready(&config);
        let (slot, cid) = rig.issue(HostData::Write {
            len: 10_000,
            in_capsule: true,
        });
        rig.buffers[slot.index()] = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
        rig.feed(&r2t(&config, cid, 0xabcd, 0, 9000));
        let pdus = h2c_data(&config, &rig.transmit());
        let shape: Vec<_> = pdus.iter().map(|p| (p.0, p.1.offset, p.1.length)).collect();
        assert_eq!(
            shape,
            [(false, 0, 4096), (false, 4096, 4096), (true, 8192, 808)]
        );
        assert!(pdus.iter().all(|p| (p.1.ttag, p.1.cccid) == (0xabcd, cid)));
        rig.feed(&r2t(&config, cid, 5, 9000, 1000));
        let rest = h2c_data(&config, &rig.transmit());
        let moved: Vec<u8> = pdus.into_iter().chain(rest).flat_map(|p| p.2).collect();
        assert_eq!(moved, rig.buffers[slot.index()]);
        rig.feed(&resp(&config, cid, 1, Status::SUCCESS));
        assert!(matches!(
            rig.events[..],
            [Event::Completed { received: 0, .. }]
        ));
    }
}

#[test]
fn several_r2ts_at_once_where_maxr2t_allows() {
    let config = Config {
        maxr2t: 1,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    let (_, cid) = rig.issue(HostData::Write {
        len: 3000,
        in_capsule: false,
    });
    rig.feed(&r2t(&config, cid, 1, 0, 1000));
    rig.feed(&r2t(&config, cid, 2, 1000, 1000));
    assert_eq!(h2c_data(&config, &rig.transmit()).len(), 2);
    rig.feed(&r2t(&config, cid, 3, 2000, 1000));
    assert_eq!(h2c_data(&config, &rig.transmit()).len(), 1);
    assert_eq!(rig.violation, None);
}

#[test]
fn a_wrong_data_digest_marks_the_command_only() {
    let config = Config {
        data_digest: true,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    let (_, cid) = rig.issue(HostData::Read { len: 16 });
    let mut pdu = c2h_data(&config, cid, 0, &[1; 16], PduFlags::LAST_PDU);
    *pdu.last_mut().expect("a digest") ^= 1;
    rig.feed(&pdu);
    rig.feed(&resp(&config, cid, 1, Status::SUCCESS));
    assert!(matches!(
        rig.events[..],
        [Event::Completed {
            digest_ok: false,
            ..
        }]
    ));
    let (_, cid) = rig.issue(HostData::Read { len: 16 });
    rig.feed(&c2h_data(&config, cid, 0, &[1; 16], PduFlags::LAST_PDU));
    rig.feed(&resp(&config, cid, 1, Status::SUCCESS));
    assert!(matches!(
        rig.events[..],
        [
            _,
            Event::Completed {
                digest_ok: true,
                ..
            }
        ]
    ));
}

#[test]
fn a_completion_may_overtake_the_data_of_its_capsule() {
    let config = Config {
        entries: 2,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    let slot = rig.submit(HostData::Write {
        len: 100,
        in_capsule: true,
    });
    let cid = rig.cid(slot);
    assert!(!rig.host.is_sending(slot));
    assert!(rig.host.poll_transmit(&mut rig.tx));
    let len = rig.drain_list().len();
    assert!(rig.host.is_sending(slot));
    rig.feed(&resp(&config, cid, 1, Status::INVALID_FIELD));
    assert!(matches!(rig.events[..], [Event::Completed { .. }]));
    assert!(
        rig.host.is_sending(slot),
        "the list still refers to the buffer"
    );
    assert_eq!(rig.host.submit(Sqe::default(), HostData::None), None);
    rig.host.transmitted(len - 1);
    assert!(rig.host.is_sending(slot));
    rig.host.transmitted(1);
    assert!(!rig.host.is_sending(slot));
    assert!(rig.host.submit(Sqe::default(), HostData::None).is_some());
}

#[test]
fn as_many_commands_as_entries_less_one() {
    let config = Config {
        entries: 4,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    assert_eq!(rig.host.slots(), 3);
    let issued: Vec<_> = (0..3).map(|_| rig.issue(HostData::None)).collect();
    assert_eq!(rig.host.submit(Sqe::default(), HostData::None), None);
    rig.feed(&resp(&config, issued[1].1, 3, Status::SUCCESS));
    assert_eq!(rig.host.outstanding(), 2);
    assert!(rig.host.submit(Sqe::default(), HostData::None).is_some());
}

#[test]
fn c2h_term_req_ends_it_whenever_it_comes() {
    let config = Config::default();
    let term = TermReq {
        fes: Fes::PDU_SEQUENCE,
        fei: 3,
    };
    for quoted in [0, 128] {
        let mut pdu = term.encode(PduType::C2H_TERM_REQ, quoted).to_vec();
        pdu.resize(pdu.len() + usize::from(quoted), 0xee);
        let mut early = Rig::new(&config);
        early.transmit();
        for mut rig in [Rig::ready(&config), early] {
            rig.submit(HostData::None);
            rig.feed(&pdu);
            assert_eq!(rig.events, [Event::Terminated(term)]);
            assert_eq!(rig.host.need(), Need::Closed);
            assert!(!rig.host.has_transmit());
            assert_eq!(rig.host.submit(Sqe::default(), HostData::None), None);
            assert_eq!(rig.transmit(), []);
        }
    }
}

#[test]
fn deadlines() {
    let config = Config {
        ic_timeout: 100,
        linger: 50,
        ..Config::default()
    };
    let mut rig = Rig::new(&config);
    assert_eq!(rig.host.poll_timeout(), Some(Time(0)));
    assert_eq!(rig.host.handle_timeout(Time(1000)), None);
    assert_eq!(rig.host.poll_timeout(), Some(Time(1100)));
    assert_eq!(rig.host.handle_timeout(Time(1099)), None);
    let closed = Event::Closed(CloseReason::IcRespTimeout);
    assert_eq!(rig.host.handle_timeout(Time(1100)), Some(closed));
    assert_eq!(
        (rig.host.need(), rig.host.poll_timeout()),
        (Need::Closed, None)
    );
    assert_eq!(rig.host.handle_timeout(Time(1200)), None);

    let mut rig = Rig::ready(&config);
    assert_eq!(rig.host.poll_timeout(), None);
    rig.feed(&[0xff; 8]);
    assert_eq!(
        (rig.host.need(), rig.host.poll_timeout()),
        (Need::Drain, Some(Time(0)))
    );
    assert_eq!(rig.host.handle_timeout(Time(7)), None);
    assert_eq!(rig.host.poll_timeout(), Some(Time(57)));
    let closed = Event::Closed(CloseReason::LingerTimeout);
    assert_eq!(rig.host.handle_timeout(Time(57)), Some(closed));
}

#[test]
fn a_small_list_is_filled_again_and_again() {
    let config = Config {
        entries: 64,
        ..Config::default()
    };
    let mut rig = Rig::ready(&config);
    rig.tx = TxList::new(0, 0);
    for _ in 0..63 {
        rig.submit(HostData::Write {
            len: 64,
            in_capsule: true,
        });
    }
    let sent = rig.transmit();
    assert_eq!(sent.len(), 63 * (CMD_LEN + 64));
    assert!(!rig.host.has_transmit());
}

#[test]
fn a_controller_without_limits_does_not_overflow_plen() {
    let config = Config {
        in_capsule: u32::MAX,
        ..Config::default()
    };
    let mut rig = Rig::new(&config);
    rig.transmit();
    let max = !3;
    rig.feed(
        &InitConnection {
            max,
            ..InitConnection::default()
        }
        .encode(PduType::IC_RESP),
    );
    // No buffers behind these: only lengths are looked at.
    let data = HostData::Write {
        len: u32::MAX,
        in_capsule: true,
    };
    let slot = rig
        .host
        .submit(Sqe::default(), data)
        .expect("a slot is free");
    assert!(rig.host.poll_transmit(&mut rig.tx));
    assert_eq!(rig.tx.remaining(), CMD_LEN, "not in the capsule");
    rig.tx.clear();
    rig.feed(&r2t(&config, rig.cid(slot), 1, 0, u32::MAX));
    let mut moved = 0;
    while rig.host.poll_transmit(&mut rig.tx) {
        for seg in rig.tx.segments() {
            if let Seg::Data { offset, len, .. } = *seg {
                assert_eq!(offset, moved);
                moved += len;
            }
        }
        rig.tx.clear();
    }
    assert_eq!(moved, u32::MAX);
}

//! Contract 5 of `nvmf_proto::tcp`: the host's machine allocates in `new` and nowhere else.

use nvmf_proto::tcp::host::{Config, Event, HostData, TcpHost};
use nvmf_proto::tcp::{Need, Seg, Slot, TxList};
use nvmf_proto::wire::pdu::{
    CommonHeader, DataHeader, InitConnection, PduFlags, PduType, encode_capsule_resp,
};
use nvmf_proto::wire::{Cqe, Sqe, Status};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting per thread.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CH: CommonHeader = CommonHeader {
    pdu_type: PduType::R2T,
    flags: PduFlags::empty(),
    hlen: 24,
    pdo: 0,
    plen: 24,
};

/// Sends everything; the bytes go nowhere.
fn transmit(host: &mut TcpHost, tx: &mut TxList) {
    while host.poll_transmit(tx) {
        tx.fill_digests(|_| &[]);
        let sent = tx.remaining();
        tx.advance(sent);
        host.transmitted(sent);
    }
}

/// Feeds one PDU; payload goes nowhere.
fn feed(host: &mut TcpHost, mut bytes: &[u8]) -> Option<Event> {
    let mut event = None;
    while !bytes.is_empty() {
        match host.need() {
            Need::Bytes { .. } => {
                let parsed = host.parse(bytes).expect("a valid PDU");
                event = event.or(parsed.event);
                bytes = &bytes[parsed.used..];
            }
            Need::Payload { len, .. } => {
                let done = host.placed(len, None);
                event = event.or(done);
                bytes = &bytes[len as usize..];
            }
            need => panic!("{need:?}"),
        }
    }
    event
}

#[test]
fn nothing_is_allocated_after_new() {
    let config = Config {
        entries: 128,
        maxr2t: 1,
        ..Config::default()
    };
    let mut tx = TxList::new(4096, 64);
    let mut host = TcpHost::new(&config);
    let mut issued: Vec<(Slot, u16)> = Vec::with_capacity(127);
    let mut data = [0u8; 24 + 512];

    let before = ALLOCATIONS.get();
    transmit(&mut host, &mut tx);
    let ic = InitConnection {
        pfv: 0,
        pda: 0,
        dgst: 0,
        max: 4096,
    };
    feed(&mut host, &ic.encode(PduType::IC_RESP)).expect("ready");
    for round in 0..100 {
        issued.clear();
        let slots = u32::try_from(host.slots()).expect("small");
        for i in 0..slots {
            let kind = match (i + round) % 4 {
                0 => HostData::Read { len: 512 },
                1 => HostData::Write {
                    len: 512,
                    in_capsule: true,
                },
                2 => HostData::Write {
                    len: 5000,
                    in_capsule: false,
                },
                _ => HostData::None,
            };
            let slot = host
                .submit(Sqe::with_opcode(1), kind)
                .expect("a slot is free");
            issued.push((slot, 0));
        }
        // CIDs are read from the capsules as they leave.
        let mut at = 0;
        while host.poll_transmit(&mut tx) {
            for seg in tx.segments() {
                if let Seg::Head { start, len } = *seg {
                    let run = &tx.heads()[start as usize..(start + len) as usize];
                    for capsule in run.chunks_exact(72) {
                        issued[at].1 = u16::from_le_bytes([capsule[10], capsule[11]]);
                        at += 1;
                    }
                }
            }
            let sent = tx.remaining();
            tx.advance(sent);
            host.transmitted(sent);
        }
        for (i, &(slot, cid)) in (0u32..).zip(&issued) {
            match (i + round) % 4 {
                0 => {
                    let header = CommonHeader {
                        pdu_type: PduType::C2H_DATA,
                        flags: PduFlags::LAST_PDU,
                        pdo: 24,
                        plen: 24 + 512,
                        ..CH
                    };
                    let head = DataHeader {
                        cccid: cid,
                        ttag: 0,
                        offset: 0,
                        length: 512,
                    };
                    data[..24].copy_from_slice(&head.encode(&header));
                    assert_eq!(feed(&mut host, &data), None);
                }
                2 => {
                    for offset in [0, 2500] {
                        let r2t = DataHeader {
                            cccid: cid,
                            ttag: 1,
                            offset,
                            length: 2500,
                        };
                        assert_eq!(feed(&mut host, &r2t.encode(&CH)), None);
                    }
                    transmit(&mut host, &mut tx);
                }
                _ => {}
            }
            let header = CommonHeader {
                pdu_type: PduType::CAPSULE_RESP,
                ..CH
            };
            let cqe = Cqe {
                result: 0,
                sqhd: 1,
                cid,
                status: Status::SUCCESS,
            };
            let event = feed(&mut host, &encode_capsule_resp(&header, &cqe));
            assert!(matches!(event, Some(Event::Completed { slot: s, .. }) if s == slot));
        }
    }
    // A violation and its TermReq.
    host.parse(&[0xff; 8]).expect_err("no such type");
    transmit(&mut host, &mut tx);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

//! What a command costs in the target's state machine, and the digests:
//! `cargo bench -p nvmf-benches --bench proto`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvmf_proto::tcp::target::{Config, Done, Event, QueueConfig, TcpTarget};
use nvmf_proto::tcp::{Need, Slot, TxList, crc32c};
use nvmf_proto::wire::pdu::{
    CMD_LEN, CommonHeader, InitConnection, PduFlags, PduType, capsule_sqe, encode_capsule_cmd,
};
use nvmf_proto::wire::{NvmOpcode, SglDescriptor, Sqe, Status};
use std::hint::black_box;

const DATA: u32 = 4096;
/// Commands per turn of the loop, as a busy connection has them.
const BATCH: u16 = 32;

/// A connection without digests whose queue is open.
fn open(flow_control: bool) -> TcpTarget {
    let mut target = TcpTarget::new(&Config::default());
    let ic = InitConnection::default().encode(PduType::IC_REQ);
    target.parse(&ic).expect("a valid ICReq");
    target.open_queue(&QueueConfig {
        entries: 128,
        flow_control,
        in_capsule: 16 << 10,
    });
    target
}

fn capsule(opcode: NvmOpcode, cid: u16, sgl: SglDescriptor, data: u32) -> [u8; CMD_LEN] {
    let mut sqe = Sqe::with_opcode(opcode.0);
    sqe.set_cid(cid);
    sqe.set_sgl(sgl);
    let ch = CommonHeader {
        pdu_type: PduType::CAPSULE_CMD,
        flags: PduFlags::empty(),
        hlen: 72,
        pdo: if data > 0 { 72 } else { 0 },
        plen: 72 + data,
    };
    encode_capsule_cmd(&ch, &sqe)
}

/// Shows the machine one capsule; its slot.
fn parse(target: &mut TcpTarget, pdu: &[u8]) -> Slot {
    match target.parse(pdu).expect("a valid capsule").event {
        Some(Event::Command { slot, .. }) => slot,
        event => panic!("{event:?}"),
    }
}

/// Sends everything; the bytes go nowhere.
fn transmit(target: &mut TcpTarget, list: &mut TxList) {
    while target.poll_transmit(list) {
        let sent = black_box(&*list).remaining();
        list.advance(sent);
        target.transmitted(sent, |slot| {
            black_box(slot);
        });
    }
}

fn commands(c: &mut Criterion) {
    let mut group = c.benchmark_group("32 commands, parse to transmitted");
    group.throughput(Throughput::Elements(BATCH.into()));
    let mut list = TxList::new(16 << 10, 512);
    for (name, flow_control) in [("4 KiB reads", true), ("4 KiB reads, SUCCESS", false)] {
        let sgl = SglDescriptor::transport(DATA);
        let pdus: Vec<_> = (0..BATCH)
            .map(|cid| capsule(NvmOpcode::READ, cid, sgl, 0))
            .collect();
        let mut target = open(flow_control);
        let done = Done {
            status: Status::SUCCESS,
            result: 0,
            data_len: DATA,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                for pdu in &pdus {
                    let slot = parse(&mut target, black_box(pdu));
                    target.complete(slot, done);
                }
                transmit(&mut target, &mut list);
            });
        });
    }
    let sgl = SglDescriptor::in_capsule(DATA);
    let pdus: Vec<_> = (0..BATCH)
        .map(|cid| capsule(NvmOpcode::WRITE, cid, sgl, DATA))
        .collect();
    let mut target = open(true);
    let done = Done {
        status: Status::SUCCESS,
        result: 0,
        data_len: 0,
    };
    group.bench_function("4 KiB in-capsule writes", |b| {
        b.iter(|| {
            for pdu in &pdus {
                let slot = parse(&mut target, black_box(pdu));
                target.receive(slot, DATA);
                let Need::Payload { len, .. } = target.need() else {
                    panic!("no payload")
                };
                let event = target.placed(len, None);
                assert!(matches!(event, Some(Event::Received { .. })));
                target.complete(slot, done);
            }
            transmit(&mut target, &mut list);
        });
    });
    group.finish();
}

fn decode(c: &mut Criterion) {
    let pdu = capsule(NvmOpcode::READ, 7, SglDescriptor::transport(DATA), 0);
    c.bench_function("decode: common header, SQE, SGL, SLBA", |b| {
        b.iter(|| {
            let pdu = black_box(&pdu);
            let ch = pdu.first_chunk().map(CommonHeader::decode);
            let sqe = capsule_sqe(pdu);
            (
                ch,
                sqe.cid(),
                sqe.nsid(),
                sqe.sgl(),
                sqe.slba(),
                sqe.block_count(),
            )
        });
    });
}

fn digests(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    for bytes in [72, 4096, 128 << 10] {
        let data = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(bytes.to_string(), |b| {
            b.iter(|| crc32c(0, black_box(&data)))
        });
    }
    group.finish();
}

criterion_group!(benches, commands, decode, digests);
criterion_main!(benches);

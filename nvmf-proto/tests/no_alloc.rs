//! Line 5 of the contract in `nvmf_proto::tcp`, for the target: nothing is allocated outside `new`
//! and `open_queue`, whatever happens on the connection.

use nvmf_proto::tcp::target::{Config, Done, Event, QueueConfig, TcpTarget};
use nvmf_proto::tcp::{Need, Slot, Time, TxList, crc32c};
use nvmf_proto::wire::pdu::{
    CMD_LEN, CommonHeader, DATA_LEN, DataHeader, InitConnection, PduFlags, PduType,
    encode_capsule_cmd,
};
use nvmf_proto::wire::{NvmOpcode, SglDescriptor, Sqe, Status};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a count of calls per thread.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain cell
// that neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many allocations `f` makes.
fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

const ENTRIES: u16 = 64;
const LEN: u32 = 512;
const OK: Done = Done {
    status: Status::SUCCESS,
    result: 0,
    data_len: 0,
};

/// A PDU with both digests and without padding, in an array.
fn pdu(header: &[u8], data: &[u8]) -> ([u8; 1024], usize) {
    let mut bytes = [0; 1024];
    let end = header.len() + 4;
    let plen = end + data.len() + if data.is_empty() { 0 } else { 4 };
    bytes[..header.len()].copy_from_slice(header);
    bytes[1] |= 1;
    if !data.is_empty() {
        bytes[1] |= 2;
        bytes[3] = u8::try_from(end).unwrap();
        bytes[end..end + data.len()].copy_from_slice(data);
        bytes[plen - 4..plen].copy_from_slice(&crc32c(0, data).to_le_bytes());
    }
    bytes[4..8].copy_from_slice(&u32::try_from(plen).unwrap().to_le_bytes());
    let digest = crc32c(0, &bytes[..header.len()]).to_le_bytes();
    bytes[header.len()..end].copy_from_slice(&digest);
    (bytes, plen)
}

fn common(pdu_type: PduType, hlen: usize) -> CommonHeader {
    let hlen = u8::try_from(hlen).unwrap();
    CommonHeader {
        pdu_type,
        flags: PduFlags::empty(),
        hlen,
        pdo: 0,
        plen: 0,
    }
}

fn command(opcode: NvmOpcode, cid: u16, data: &[u8]) -> ([u8; 1024], usize) {
    let mut sqe = Sqe::with_opcode(opcode.0);
    sqe.set_cid(cid);
    sqe.set_sgl(SglDescriptor::transport(LEN));
    pdu(
        &encode_capsule_cmd(&common(PduType::CAPSULE_CMD, CMD_LEN), &sqe),
        data,
    )
}

fn h2c_data(cccid: u16, ttag: u16, data: &[u8]) -> ([u8; 1024], usize) {
    let mut ch = common(PduType::H2C_DATA, DATA_LEN);
    ch.flags = PduFlags::LAST_PDU;
    let header = DataHeader {
        cccid,
        ttag,
        offset: 0,
        length: LEN,
    };
    pdu(&header.encode(&ch), data)
}

/// Feeds a whole PDU; commands with data are received, others are left for the caller.
fn feed(target: &mut TcpTarget, (bytes, len): &([u8; 1024], usize)) -> Option<Event> {
    let mut rest = &bytes[..*len];
    let mut last = None;
    while !rest.is_empty() {
        let (used, event) = match target.need() {
            Need::Bytes { .. } => {
                let parsed = target.parse(rest).unwrap();
                (parsed.used, parsed.event)
            }
            Need::Payload { len, crc, .. } => {
                let crc = crc.map(|crc| crc32c(crc, &rest[..len as usize]));
                (len as usize, target.placed(len, crc))
            }
            Need::Discard { len } => (len as usize, target.placed(len, None)),
            other => panic!("{other:?}"),
        };
        rest = &rest[used..];
        if let Some(Event::Command {
            slot,
            in_capsule: 1..,
            ..
        }) = event
        {
            target.receive(slot, LEN);
        }
        last = event.or(last);
    }
    last
}

/// Sends all that is due; the TTAG of the R2T if there was just one.
fn send(target: &mut TcpTarget, list: &mut TxList) -> Option<u16> {
    let mut ttag = None;
    while target.poll_transmit(list) {
        list.fill_digests(|_| &[0; LEN as usize]);
        let header = list.heads().first_chunk().unwrap();
        ttag = Some(DataHeader::decode(header).ttag);
        let n = list.remaining();
        list.advance(n);
        target.transmitted(n, |_| {});
    }
    ttag
}

fn new_slot(event: Option<Event>) -> Slot {
    match event {
        Some(Event::Command { slot, .. } | Event::Received { slot, .. }) => slot,
        other => panic!("{other:?}"),
    }
}

/// Reads, in-capsule writes, writes by R2T and such as are completed before their data has come,
/// until the queue is full.
fn round(target: &mut TcpTarget, list: &mut TxList) {
    let data = [7; LEN as usize];
    let mut slots = [None; ENTRIES as usize];
    let mut cids = 0..;
    while target.outstanding() < usize::from(ENTRIES) {
        let cid = cids.next().unwrap();
        let slot = match cid % 4 {
            0 => new_slot(feed(target, &command(NvmOpcode::READ, cid, &[]))),
            1 => new_slot(feed(target, &command(NvmOpcode::WRITE, cid, &data))),
            2 => {
                let slot = new_slot(feed(target, &command(NvmOpcode::WRITE, cid, &[])));
                target.receive(slot, LEN);
                let ttag = send(target, list).unwrap();
                assert_eq!(new_slot(feed(target, &h2c_data(cid, ttag, &data))), slot);
                slot
            }
            _ => {
                let slot = new_slot(feed(target, &command(NvmOpcode::WRITE, cid, &[])));
                target.receive(slot, LEN);
                let ttag = send(target, list).unwrap();
                target.complete(slot, OK);
                assert_eq!(feed(target, &h2c_data(cid, ttag, &data)), None);
                send(target, list);
                continue;
            }
        };
        slots[slot.index()] = Some(slot);
    }
    let (bytes, len) = command(NvmOpcode::FLUSH, ENTRIES, &[]);
    assert_eq!(
        target.parse(&bytes[..len]).unwrap().used,
        0,
        "no slot is free"
    );
    for slot in slots.into_iter().flatten() {
        target.complete(
            slot,
            Done {
                data_len: LEN,
                ..OK
            },
        );
    }
    send(target, list);
    assert_eq!(target.outstanding(), 0);
}

#[test]
fn line_5_nothing_is_allocated() {
    let mut list = TxList::new(4096, 64);
    let mut target = TcpTarget::new(&Config::default());
    let ic = InitConnection {
        pfv: 0,
        pda: 3,
        dgst: 3,
        max: 0,
    }
    .encode(PduType::IC_REQ);
    let mut connect = None;
    let count = allocations(|| {
        target.handle_timeout(Time(1));
        target.parse(&ic).unwrap();
        send(&mut target, &mut list);
        target.handle_timeout(Time(2));
        let data = [1; LEN as usize];
        connect = Some(new_slot(feed(
            &mut target,
            &command(NvmOpcode::WRITE, 0, &data),
        )));
    });
    assert_eq!(count, 0, "before the queue");
    let queue = QueueConfig {
        entries: u32::from(ENTRIES),
        flow_control: true,
        in_capsule: 8192,
    };
    let count = allocations(|| target.open_queue(&queue));
    assert!(count > 0, "the counter counts");
    let count = allocations(|| {
        target.complete(connect.unwrap(), OK);
        send(&mut target, &mut list);
        for _ in 0..100 {
            round(&mut target, &mut list);
        }
        let slot = new_slot(feed(&mut target, &command(NvmOpcode::FLUSH, 1, &[])));
        target.parse(&[0xff; 200]).unwrap_err();
        target.complete(slot, OK);
        send(&mut target, &mut list);
        target.handle_timeout(Time(3));
        target.handle_timeout(Time(u64::MAX));
        assert_eq!(target.need(), Need::Closed);
    });
    assert_eq!(count, 0, "after the queue");
}

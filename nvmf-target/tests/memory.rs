//! What connections and queues take of the heap, counted: one test, for nothing else may allocate
//! meanwhile.

mod common;

use common::raw::{self, Digests, Raw, admin_connect, connect_data, connect_sqe, encode};
use common::{NQN, assert_idle, config, eventually, target};
use nvmf_host::nvmf_proto::wire::Sqe;
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectCommand, ConnectData};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::{Target, TargetStats};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of bytes.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is; the counter is an atomic that
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LIVE.fetch_add(new_size, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of the heap that each connection may take before its Connect.
const BEFORE_CONNECT: usize = 8 << 10;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Opens so many connections, each as `open` does it, and returns what each has added to the heap
/// once all have come to their reactors and `settled` holds.
fn each(
    count: usize,
    mut open: impl FnMut() -> TcpStream,
    mut settled: impl FnMut() -> bool,
) -> (usize, Vec<TcpStream>) {
    let mut streams = Vec::with_capacity(count);
    let before = live();
    streams.extend(std::iter::repeat_with(&mut open).take(count));
    eventually("they are there", &mut settled);
    (live().saturating_sub(before) / count, streams)
}

/// Sends all that the target takes of ever the same commands, without reading.
fn stuff(stream: &mut TcpStream, sqe: &Sqe) {
    let capsules = Digests::default().capsule(sqe, &[]).repeat(100);
    stream.set_nonblocking(true).unwrap();
    let mut refused = 0;
    while refused < 20 {
        match stream.write(&capsules) {
            // A part of a capsule left out would make nonsense of what follows.
            Ok(n) if n < capsules.len() => break,
            Ok(_) => refused = 0,
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                std::thread::yield_now();
            }
            Err(err) => panic!("{err}"),
        }
    }
}

fn before_connect(target: &Target, address: SocketAddr) {
    let icreq = Digests::default().ic_req();
    let capsule =
        Digests::default().capsule(&connect_sqe(&admin_connect()), &encode(&connect_data()));
    let idle = || target.stats() == TargetStats::default();
    let came = |n: usize| move || target.stats().unconnected == n;
    let tcp = || TcpStream::connect(address).unwrap();
    let silent = each(1000, tcp, came(1000));
    drop(silent.1);
    eventually("idle", idle);
    let half = || {
        let mut stream = tcp();
        stream.write_all(&icreq).unwrap();
        stream.write_all(&capsule[..600]).unwrap();
        stream
    };
    let half = each(500, half, came(500));
    drop(half.1);
    eventually("idle", idle);
    // A first PDU that cannot be judged yet.
    let crumbs = || {
        let mut stream = tcp();
        stream.write_all(&icreq[..127]).unwrap();
        stream
    };
    let crumbs = each(500, crumbs, came(500));
    drop(crumbs.1);
    eventually("idle", idle);
    // Commands that fail, whose responses are not read.
    let mut get = raw::enable();
    get.set_cid(7);
    let deaf = || {
        let mut stream = tcp();
        stream.write_all(&icreq).unwrap();
        stuff(&mut stream, &get);
        stream
    };
    let deaf = each(10, deaf, came(10));
    drop(deaf.1);
    eventually("idle", idle);
    let sizes = [silent.0, half.0, crumbs.0, deaf.0];
    println!("bytes before Connect: silent, half a Connect, half an ICReq, deaf: {sizes:?}");
    assert!(sizes.iter().all(|&size| size < BEFORE_CONNECT), "{sizes:?}");
}

/// Connections that come and go leave nothing: not even the timers that were set for them.
fn churn(target: &Target, address: SocketAddr) {
    const COUNT: usize = 30_000;
    let before = live();
    for number in 0..COUNT {
        if number % 500 == 0 {
            eventually("idle", || target.stats() == TargetStats::default());
        }
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&Digests::default().ic_req()).unwrap();
    }
    eventually("idle", || target.stats() == TargetStats::default());
    let more = live().saturating_sub(before);
    println!("{COUNT} connections that came and went: {more} bytes");
    // Lists have grown with how many there were at one moment.
    assert!(more < 512 << 10, "{more} bytes");
}

/// Queues with everything that their hosts can make grow: at most what they are charged with.
fn queues(target: &Target, address: SocketAddr) {
    const CONTROLLERS: usize = 20;
    let before = live();
    let admin = ConnectCommand {
        sqsize: 127,
        ..admin_connect()
    };
    let mut queues = Vec::with_capacity(3 * CONTROLLERS);
    for _ in 0..CONTROLLERS {
        let mut raw = Raw::open(address, Digests::default());
        let cntlid = raw.connect_ok(&admin, &connect_data());
        raw.ok(&raw::enable(), &[]);
        raw.ok(&raw::set_queues(8), &[]);
        // An error log that is full.
        for cid in 0..200 {
            let mut sqe = Sqe::with_opcode(0xff);
            sqe.set_cid(cid);
            raw.execute(&sqe, &[]);
        }
        for qid in 1..3 {
            let command = ConnectCommand {
                sqsize: 1023,
                ..raw::io_connect(qid)
            };
            let data = ConnectData {
                cntlid,
                ..connect_data()
            };
            let mut queue = Raw::open(address, Digests::default());
            queue.connect_ok(&command, &data);
            queues.push(queue);
        }
        queues.push(raw);
    }
    let charged = target.stats().queue_bytes;
    let taken = live() - before;
    println!("idle queues: {taken} of {charged} bytes");
    assert!(taken <= charged, "{taken} of {charged}");
    for queue in &mut queues {
        // Reads and errors, until nothing is taken any more.
        let mut sqe = raw::read(1, 0, 8);
        sqe.set_cid(1);
        stuff(&mut queue.stream, &sqe);
    }
    let taken = live() - before;
    println!("stuffed queues: {taken} of {charged} bytes");
    assert!(taken <= charged, "{taken} of {charged}");
}

#[test]
fn connections_and_queues_take_no_more_than_they_may() {
    let mut config = config();
    config.buffer_bytes = 16 << 20;
    let (target, address) = target(config);
    let other = Nqn::new(NQN).unwrap();
    target
        .add_namespace(
            other.as_str(),
            2,
            Inline::new(RamDisk::new(1 << 20, 4096).unwrap()),
        )
        .unwrap();
    // What is there from the first use on.
    common::verified_io(address, 1);
    assert_idle(&target);
    before_connect(&target, address);
    churn(&target, address);
    queues(&target, address);
    assert_idle(&target);
}

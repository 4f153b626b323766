//! A queue in steady state allocates nothing: buffers go round.

mod fake;

use fake::{BLOCK, BLOCKS, Behavior, serve};
use nvmf_host::{ConnectOptions, Controller, Data, command};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

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

#[test]
fn reads_and_writes_allocate_nothing() {
    let address = serve(Behavior::default());
    let options = ConnectOptions::new(address, "nqn.2024-01.org.example:disks").unwrap();
    let mut controller = Controller::connect(&options).unwrap();
    let mut queue = controller.io_queue(1).unwrap().into_queue();
    // In the capsule, and by R2T.
    let sizes = [BLOCK, 16 * BLOCK];
    let submit = |queue: &mut nvmf_host::Queue, buffer: Vec<u8>, tag: u64| {
        let blocks = u32::try_from(buffer.len() / BLOCK).unwrap();
        let lba = tag * 97 % (BLOCKS as u64 - 16);
        let (sqe, data) = if tag.is_multiple_of(2) {
            (command::read(1, lba, blocks), Data::Read(buffer))
        } else {
            (command::write(1, lba, blocks), Data::Write(buffer))
        };
        queue.submit_tagged(sqe, data, tag).unwrap();
    };
    for tag in 0..32 {
        submit(&mut queue, vec![0; sizes[usize::from(tag % 4 < 2)]], tag);
    }
    let mut before = 0;
    for tag in 32..4000 {
        if tag == 1000 {
            before = ALLOCATIONS.get();
        }
        let done = queue.poll(Duration::from_secs(10)).unwrap().next().unwrap();
        submit(
            &mut queue,
            done.success("Read or Write").unwrap().buffer,
            tag,
        );
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

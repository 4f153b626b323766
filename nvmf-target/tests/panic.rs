//! Backends that panic.

mod common;

use common::{NQN, assert_idle, config, connect, verified_io};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_target::Error;
use nvmf_target::ns::{
    BlockDevice, Inline, Lane, LaneCx, Namespace, NsError, NsInfo, Request, Threaded,
};

fn info() -> NsInfo {
    NsInfo::new(512, 4096)
}

/// Panics wherever it can, but reads block 0.
struct Bomb;

impl BlockDevice for Bomb {
    fn info(&self) -> NsInfo {
        info().with_volatile_cache()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        assert_eq!(offset, 0, "read");
        buf.fill(7);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        panic!("write")
    }

    fn flush(&self) -> Result<(), NsError> {
        panic!("flush")
    }
}

#[test]
fn a_device_that_panics_fails_its_command_and_nothing_else() {
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, Inline::new(Bomb)).unwrap();
    target
        .add_namespace(NQN, 3, Threaded::new(Bomb, 1))
        .unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    for nsid in [2, 3] {
        let ns = controller.namespace(nsid).unwrap();
        let mut block = [0; 512];
        for outcome in [
            queue.write(&ns, 0, &block),
            queue.read(&ns, 1, &mut block),
            queue.flush(&ns),
        ] {
            let err = outcome.unwrap_err();
            assert_eq!(err.status(), Some(Status::INTERNAL_ERROR), "{err}");
        }
        queue.read(&ns, 0, &mut block).unwrap();
        assert_eq!(block, [7; 512]);
    }
    drop((controller, queue));
    assert_idle(&target);
}

/// A lane that panics takes its reactor along: connections there end, and no new ones go there.
struct Fuse;

impl Namespace for Fuse {
    fn info(&self) -> NsInfo {
        info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(Self))
    }
}

impl Lane for Fuse {
    fn submit(&mut self, _: Request) {
        panic!("a lane");
    }
}

#[test]
fn a_lane_that_panics_leaves_the_target_to_other_reactors() {
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, Fuse).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let ns = controller.namespace(2).unwrap();
    queue.read(&ns, 0, &mut [0; 512]).unwrap_err();
    drop((controller, queue));
    assert_idle(&target);
    for seed in 0..10 {
        verified_io(address, seed);
    }
    assert_idle(&target);
}

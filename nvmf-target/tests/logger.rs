//! A logger that panics, as those do that print to a standard error which is gone. In a process of
//! its own, for there is one logger in each.

mod common;

use common::{NQN, assert_idle, config, connect, verified_io};
use log::{LevelFilter, Log, Metadata, Record};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Broken(AtomicUsize);

impl Log for Broken {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("nvmf_target") {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("no line can be written");
        }
    }

    fn flush(&self) {}
}

/// What it fails is told in the log.
struct Bad;

impl BlockDevice for Bad {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 8)
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
        panic!("a device")
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Err(io_error())
    }
}

fn io_error() -> NsError {
    NsError::Io(std::io::ErrorKind::Other.into())
}

#[test]
fn no_thread_of_the_target_ends_by_a_logger_that_panics() {
    static LOGGER: Broken = Broken(AtomicUsize::new(0));
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, Inline::new(Bad)).unwrap();
    for round in 0..8 {
        let mut controller = connect(address);
        let ns = controller.namespace(2).unwrap();
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        let mut block = [0; 512];
        let err = queue.write(&ns, 0, &block).unwrap_err();
        assert_eq!(err.status(), Some(Status::WRITE_FAULT), "{err}");
        let err = queue.read(&ns, 0, &mut block).unwrap_err();
        assert_eq!(err.status(), Some(Status::INTERNAL_ERROR), "{err}");
        verified_io(address, round);
    }
    assert_idle(&target);
    target.remove_namespace(NQN, 2).unwrap();
    assert!(target.shutdown(common::PATIENCE));
    assert!(LOGGER.0.load(Ordering::Relaxed) > 0);
}

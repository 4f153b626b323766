//! What an embedder's code may call on the threads that call it, and what it may not say.

mod common;

use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, verified_io};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, Threaded};
use nvmf_target::transport::{MemConnector, MemTransport, Stream, Transport, TransportAddress};
use nvmf_target::{ListenerConfig, Target};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Calls something, once, when it is to accept.
struct Calling {
    inner: MemTransport,
    call: Option<Box<dyn FnOnce() + Send>>,
    _gone: Sender<()>,
}

impl Transport for Calling {
    fn address(&self) -> TransportAddress {
        self.inner.address()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.inner.readiness()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        if let Some(call) = self.call.take() {
            call();
        }
        self.inner.accept()
    }
}

/// Has a listener call something on the accepting thread; the receiver hears of the end of its
/// transport.
fn call_in_accept(
    target: &Target,
    call: impl FnOnce() + Send + 'static,
) -> (MemConnector, Receiver<()>) {
    let (inner, connector) = MemTransport::new("calling").unwrap();
    let (sender, gone) = channel();
    let transport = Calling {
        inner,
        call: Some(Box::new(call)),
        _gone: sender,
    };
    let mut listener = ListenerConfig::on(Box::new(transport));
    listener.name = Some("calling".to_owned());
    target.listen_with(listener).unwrap();
    let _ = connector.connect().unwrap();
    (connector, gone)
}

fn expect_gone(gone: &Receiver<()>) {
    let end = gone.recv_timeout(PATIENCE);
    assert_eq!(end, Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_transport_may_remove_its_listener() {
    let (target, address) = common::target(config());
    let own = target.clone();
    let (_connector, gone) = call_in_accept(&target, move || {
        own.remove_listener("calling").unwrap();
    });
    expect_gone(&gone);
    assert_eq!(target.listeners().len(), 1);
    verified_io(address, 1);
    assert_idle(&target);
}

#[test]
fn a_transport_may_change_the_target_while_another_thread_removes_it() {
    let (target, address) = common::target(config());
    let own = target.clone();
    let (sender, entered) = channel();
    let (_connector, gone) = call_in_accept(&target, move || {
        sender.send(()).unwrap();
        // From here on the other thread waits for this one.
        eventually("it is removed", || own.listeners().len() == 1);
        own.allow_any_host(NQN, true).unwrap();
    });
    entered.recv().unwrap();
    target.remove_listener("calling").unwrap();
    expect_gone(&gone);
    verified_io(address, 1);
    assert_idle(&target);
}

#[test]
fn a_transport_may_shut_the_target_down() {
    let (target, _) = common::target(config());
    let own = target.clone();
    let (_connector, gone) = call_in_accept(&target, move || {
        assert!(own.shutdown(PATIENCE));
    });
    target.wait();
    assert!(target.shutdown(PATIENCE));
    expect_gone(&gone);
}

#[test]
fn a_transport_may_drop_the_target() {
    let (target, _) = common::target(config());
    let step = Step::new(NsInfo::new(512, 8));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let (own, (go, wait)) = (target.clone(), channel::<()>());
    let (_connector, gone) = call_in_accept(&target, move || {
        let _ = wait.recv();
        drop(own);
    });
    drop(target);
    drop(go);
    expect_gone(&gone);
    eventually("all of it is gone", || !step.is_held());
}

#[test]
fn a_transport_that_does_not_return_is_left_behind() {
    let (target, _) = common::target(config());
    let ((sender, entered), (_go, wait)) = (channel(), channel::<()>());
    let (_connector, _gone) = call_in_accept(&target, move || {
        sender.send(()).unwrap();
        let _ = wait.recv();
    });
    entered.recv().unwrap();
    assert!(target.shutdown(PATIENCE), "backends were given nothing");
}

/// Has the target shut down when it is written to.
struct Last(Mutex<Option<(Target, Sender<bool>)>>);

impl BlockDevice for Last {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 8)
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        if let Some((target, said)) = self.0.lock().unwrap().take() {
            let _ = said.send(target.shutdown(Duration::MAX));
        }
        Ok(())
    }
}

#[test]
fn a_backend_that_shuts_the_target_down_does_not_wait_for_itself() {
    let (target, address) = common::target(config());
    let (sender, said) = channel();
    let last = Last(Mutex::new(Some((target.clone(), sender))));
    target.add_namespace(NQN, 2, Inline::new(last)).unwrap();
    let host = thread::spawn(move || {
        let mut controller = connect(address);
        let ns = controller.namespace(2).unwrap();
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        let _ = queue.write(&ns, 0, &[0; 512]);
    });
    assert_eq!(said.recv_timeout(PATIENCE), Ok(false), "it was cut off");
    assert!(!target.shutdown(Duration::MAX));
    host.join().unwrap();
}

#[test]
fn a_host_that_does_not_know_of_smaller_blocks_yet_reads_none() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(4096, 64));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut controller = connect(address);
    let ns = controller.namespace(2).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    step.change(|info| *info = NsInfo::new(512, 512));
    let mut block = [0; 4096];
    let wrong = Some(Status::DATA_SGL_LENGTH_INVALID.dnr());
    let err = queue.read(&ns, 1, &mut block).unwrap_err();
    assert_eq!(err.status(), wrong, "{err}");
    let err = queue.write(&ns, 1, &block).unwrap_err();
    assert_eq!(err.status(), wrong, "{err}");
    assert_eq!(step.pending(), 0);
    drop((queue, controller));
    assert_idle(&target);
}

#[test]
fn a_namespace_keeps_its_identifiers_while_it_is_attached() {
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 8).with_uuid([1; 16]));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let other = Step::new(NsInfo::new(512, 8).with_uuid([2; 16]));
    target.add_namespace(NQN, 3, other).unwrap();
    let mut controller = connect(address);
    let before = controller.namespace_descriptors(2).unwrap();
    step.change(|info| *info = NsInfo::new(512, 16).with_uuid([2; 16]));
    assert_eq!(controller.namespace_descriptors(2).unwrap(), before);
    assert_eq!(controller.namespace(2).unwrap().blocks, 8, "all of it");
    step.change(|info| *info = NsInfo::new(512, 16).with_uuid([1; 16]));
    assert_eq!(controller.namespace_descriptors(2).unwrap(), before);
    assert_eq!(controller.namespace(2).unwrap().blocks, 16);
}

/// Fails with a status that is none.
struct Vague;

impl BlockDevice for Vague {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, 8)
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
        Err(NsError::Status(Status::SUCCESS))
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Err(NsError::Status(Status::SUCCESS))
    }
}

#[test]
fn an_error_with_a_status_of_success_is_an_error() {
    let (target, address) = common::target(config());
    target.add_namespace(NQN, 2, Inline::new(Vague)).unwrap();
    target
        .add_namespace(NQN, 3, Threaded::new(Vague, 1))
        .unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    for nsid in [2, 3] {
        let ns = controller.namespace(nsid).unwrap();
        let mut block = [0; 512];
        let err = queue.write(&ns, 0, &block).unwrap_err();
        assert_eq!(err.status(), Some(Status::INTERNAL_ERROR), "{err}");
        let err = queue.read(&ns, 0, &mut block).unwrap_err();
        assert_eq!(err.status(), Some(Status::INTERNAL_ERROR), "{err}");
    }
}

//! Code of the embedder's that panics, wherever it is called. What it was called for fails; the
//! target serves everybody else, and mostly the same host on the same connection.

mod common;

use common::raw::{self, Raw};
use common::{NQN, Witness, assert_idle, config, connect, eventually, options, verified_io};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::{Data, command};
use nvmf_target::ns::{
    BlockDevice, Inline, Lane, LaneCx, Loan, Namespace, NsError, NsInfo, NsSink, RamDisk, Request,
    RequestId, Threaded,
};
use nvmf_target::transport::{MemConnector, MemTransport, Stream, Transport, TransportAddress};
use nvmf_target::{Change, Error, ListenerConfig, SubsystemConfig, Target};
use rustix::event::{EventfdFlags, eventfd};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

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

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the end of a device");
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
        target.remove_namespace(NQN, nsid).unwrap();
    }
    drop((controller, queue));
    assert_idle(&target);
    verified_io(address, 1);
}

/// Where a [`Fuse`] panics, once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Open,
    InlineDevice,
    Lends,
    WakeFd,
    Submit,
    Commit,
    Poll,
    Abort,
    Drop,
}

/// A namespace that completes in `poll` what it got in `submit`, and panics at one place, once.
#[derive(Clone)]
struct Fuse(Arc<Mutex<Option<Place>>>);

impl Fuse {
    fn new(place: Place) -> Self {
        Self(Arc::new(Mutex::new(Some(place))))
    }

    fn burn(&self, place: Place) {
        let burns = self.0.lock().unwrap().take_if(|at| *at == place).is_some();
        assert!(!burns, "{place:?}, as it should in this test");
    }

    fn has_burnt(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }
}

impl Namespace for Fuse {
    fn info(&self) -> NsInfo {
        info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        self.burn(Place::Open);
        Ok(Box::new(FuseLane {
            fuse: self.clone(),
            ready: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            requests: Vec::new(),
        }))
    }
}

struct FuseLane {
    fuse: Fuse,
    ready: OwnedFd,
    requests: Vec<Request>,
}

/// Only asked whether it lends.
struct Lender(Fuse);

impl BlockDevice for Lender {
    fn info(&self) -> NsInfo {
        info()
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), NsError> {
        unreachable!("reads go to the lane");
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn lends(&self) -> bool {
        self.0.burn(Place::Lends);
        false
    }
}

impl Lane for FuseLane {
    fn submit(&mut self, request: Request) {
        self.fuse.burn(Place::Submit);
        self.requests.push(request);
    }

    fn commit(&mut self) {
        self.fuse.burn(Place::Commit);
        rustix::io::write(&self.ready, &1u64.to_ne_bytes()).unwrap();
    }

    fn abort(&mut self, _: RequestId) -> Option<Request> {
        self.fuse.burn(Place::Abort);
        None
    }

    fn poll(&mut self, _: u32) -> u32 {
        self.fuse.burn(Place::Poll);
        rustix::io::read(&self.ready, &mut [0; 8]).unwrap();
        // What is to be aborted stays.
        if *self.fuse.0.lock().unwrap() == Some(Place::Abort) {
            return 0;
        }
        let done = self.requests.drain(..).map(|mut request| {
            request.data_mut().fill(7);
            request.complete(Ok(()));
        });
        u32::try_from(done.count()).unwrap()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fuse.burn(Place::WakeFd);
        Some(self.ready.as_fd())
    }

    fn inline_device(&self) -> Option<Arc<dyn BlockDevice>> {
        self.fuse.burn(Place::InlineDevice);
        Some(Arc::new(Lender(self.fuse.clone())))
    }
}

impl Drop for FuseLane {
    fn drop(&mut self) {
        self.fuse.burn(Place::Drop);
    }
}

/// The lane is given up and what it had fails; the next command opens another. The connection, and
/// other namespaces on it, notice nothing.
#[test]
fn a_lane_that_panics_is_replaced_and_only_its_commands_fail() {
    let (target, address) = common::target(config());
    let mut witness = Witness::new(&target, address);
    for (place, status) in [
        (Place::Open, Status::NAMESPACE_NOT_READY),
        (Place::InlineDevice, Status::NAMESPACE_NOT_READY),
        (Place::Lends, Status::NAMESPACE_NOT_READY),
        (Place::WakeFd, Status::NAMESPACE_NOT_READY),
        (Place::Submit, Status::INTERNAL_ERROR),
        (Place::Commit, Status::INTERNAL_ERROR),
        (Place::Poll, Status::INTERNAL_ERROR),
    ] {
        let fuse = Fuse::new(place);
        target.add_namespace(NQN, 2, fuse.clone()).unwrap();
        let mut controller = connect(address);
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        let (other, ns) = (
            controller.namespace(1).unwrap(),
            controller.namespace(2).unwrap(),
        );
        let mut block = [0; 512];
        queue.write(&other, 0, &block).unwrap();
        let err = queue.read(&ns, 0, &mut block).unwrap_err();
        assert_eq!(err.status(), Some(status), "{place:?}: {err}");
        assert!(fuse.has_burnt(), "{place:?}");
        queue.read(&ns, 0, &mut block).unwrap();
        assert_eq!(block, [7; 512], "{place:?}");
        queue.read(&other, 0, &mut block).unwrap();
        assert_eq!(block, [0; 512], "{place:?}");
        target.remove_namespace(NQN, 2).unwrap();
        drop((controller, queue));
        witness.is_alone();
    }
}

/// Of several requests of one batch the one that it panicked at fails, and those behind it may be
/// tried again; writes and closed gates go on afterwards.
#[test]
fn what_a_lane_that_panics_has_not_been_given_may_be_tried_again() {
    let (target, address) = common::target(config());
    let fuse = Fuse::new(Place::Submit);
    target.add_namespace(NQN, 2, Deviceless(fuse)).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut io = controller.io_queue(1).unwrap();
    let queue = io.queue();
    let tokens = [0; 4].map(|_| {
        let sqe = command::read(2, 0, 1);
        queue.submit(sqe, Data::Read(vec![0; 512])).unwrap()
    });
    assert!(queue.flush().unwrap());
    let statuses = tokens.map(|token| queue.wait_for("read", token).unwrap().status());
    let failed = statuses.iter().filter(|s| **s == Status::INTERNAL_ERROR);
    assert_eq!(failed.count(), 1, "{statuses:?}");
    // A turn may have brought fewer than all four.
    for status in statuses {
        assert!(
            [
                Status::INTERNAL_ERROR,
                Status::NAMESPACE_NOT_READY,
                Status::SUCCESS
            ]
            .contains(&status),
            "{statuses:?}"
        );
    }
    // Compare and Write closes the gate of the namespace: for the lane that is no more as well.
    let [compare, write] = command::compare_and_write(2, 0, 1);
    let compare = queue.submit(compare, Data::Write(vec![7; 512])).unwrap();
    let write = queue.submit(write, Data::Write(vec![8; 512])).unwrap();
    assert!(queue.flush().unwrap());
    for token in [compare, write] {
        let done = queue.wait_for("pair", token).unwrap();
        assert_eq!(done.status(), Status::SUCCESS);
    }
    drop((controller, io));
    assert_idle(&target);
}

/// A lane that panics over an Abort drops what it has: that ends the command, too.
#[test]
fn a_lane_that_panics_over_an_abort_fails_the_command() {
    let (target, address) = common::target(config());
    let fuse = Fuse::new(Place::Abort);
    target.add_namespace(NQN, 2, fuse.clone()).unwrap();
    let (mut admin, cntlid) = Raw::admin(address);
    let mut io = Raw::io(address, cntlid, 1);
    let mut sqe = raw::read(7, 0, 1);
    sqe.set_nsid(2);
    io.submit(&sqe, &[]);
    // The command is with the lane when one behind it has been answered.
    io.read(&raw::read(8, 0, 1));
    let mut abort = command::abort(1, 7);
    abort.set_cid(9);
    admin.ok(&abort, &[]);
    let cqe = io.recv().cqe();
    assert_eq!((cqe.cid, cqe.status), (7, Status::INTERNAL_ERROR));
    assert!(fuse.has_burnt());
    assert_eq!(io.read(&sqe), [7; 512]);
    drop((admin, io));
    assert_idle(&target);
}

/// The drop of a lane, on its reactor, when its namespace is removed.
#[test]
fn a_lane_may_panic_as_it_is_dropped() {
    let (target, address) = common::target(config());
    let mut witness = Witness::new(&target, address);
    let fuse = Fuse::new(Place::Drop);
    target.add_namespace(NQN, 2, fuse.clone()).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let ns = controller.namespace(2).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    queue.read(&ns, 0, &mut [0; 512]).unwrap();
    target.remove_namespace(NQN, 2).unwrap();
    eventually("the lane is dropped", || fuse.has_burnt());
    drop((controller, queue));
    witness.is_alone();
}

/// A [`Fuse`] without [`Lane::inline_device`].
struct Deviceless(Fuse);

struct DevicelessLane(Box<dyn Lane>);

impl Namespace for Deviceless {
    fn info(&self) -> NsInfo {
        self.0.info()
    }

    fn open_lane(&self, cx: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(DevicelessLane(self.0.open_lane(cx)?)))
    }
}

impl Lane for DevicelessLane {
    fn submit(&mut self, request: Request) {
        self.0.submit(request);
    }

    fn commit(&mut self) {
        self.0.commit();
    }

    fn poll(&mut self, budget: u32) -> u32 {
        self.0.poll(budget)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.wake_fd()
    }
}

/// Panics when it is asked what it is, from the `good`th time on, or when it is given its sink.
struct Riddle {
    good: Mutex<u32>,
    sink: Mutex<Option<NsSink>>,
    takes_sink: bool,
}

impl Riddle {
    fn new(good: u32, takes_sink: bool) -> Arc<Self> {
        Arc::new(Self {
            good: Mutex::new(good),
            sink: Mutex::default(),
            takes_sink,
        })
    }
}

impl Namespace for Riddle {
    fn info(&self) -> NsInfo {
        let mut good = self.good.lock().unwrap_or_else(|good| good.into_inner());
        assert!(*good > 0, "as it should in this test");
        *good -= 1;
        info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Err(Error::ShutDown)
    }

    fn subscribe(&self, sink: NsSink) {
        assert!(self.takes_sink, "as it should in this test");
        *self.sink.lock().unwrap() = Some(sink);
    }
}

#[test]
fn a_namespace_that_panics_about_itself_is_not_added_or_keeps_what_it_said() {
    let (target, address) = common::target(config());
    let err = target
        .add_namespace(NQN, 2, Riddle::new(0, true))
        .unwrap_err();
    assert!(err.to_string().contains("panicked: as it should"), "{err}");
    // Once when it is added, and once more behind `subscribe`.
    let late = Riddle::new(2, true);
    target.add_namespace(NQN, 2, Arc::clone(&late)).unwrap();
    late.sink.lock().unwrap().clone().unwrap().changed();
    target.add_namespace(NQN, 3, Riddle::new(2, false)).unwrap();
    let mut controller = connect(address);
    for nsid in [2, 3] {
        assert_eq!(controller.namespace(nsid).unwrap().blocks, 4096);
    }
    verified_io(address, 1);
}

/// Panics at the `fuse`th call of a kind of method of a stream.
struct Frail {
    stream: Box<dyn Stream>,
    call: Call,
    left: Mutex<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Readiness,
    Readv,
    Writev,
    ShutdownWrite,
    HasBuffered,
    Peer,
    LocalIp,
    Drop,
}

impl Frail {
    fn burn(&self, call: Call) {
        if call == self.call {
            let mut left = self.left.lock().unwrap_or_else(|left| left.into_inner());
            *left = left.saturating_sub(1);
            assert!(*left > 0, "{call:?}, as it should in this test");
        }
    }
}

impl Stream for Frail {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.burn(Call::Readiness);
        self.stream.readiness()
    }

    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.burn(Call::Readv);
        self.stream.readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.burn(Call::Writev);
        self.stream.writev(bufs)
    }

    fn shutdown_write(&mut self) {
        self.burn(Call::ShutdownWrite);
        self.stream.shutdown_write();
    }

    fn has_buffered(&self) -> bool {
        self.burn(Call::HasBuffered);
        self.stream.has_buffered()
    }

    fn peer(&self) -> String {
        self.burn(Call::Peer);
        self.stream.peer()
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.burn(Call::LocalIp);
        self.stream.local_ip()
    }
}

impl Drop for Frail {
    fn drop(&mut self) {
        self.burn(Call::Drop);
    }
}

/// Makes every stream frail.
struct FrailTransport(MemTransport, Call, u32);

impl Transport for FrailTransport {
    fn address(&self) -> TransportAddress {
        self.0.address()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.readiness()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        let &mut Self(ref mut transport, call, left) = self;
        let accepted = transport.accept()?;
        Ok(accepted.map(|stream| {
            let left = Mutex::new(left);
            Box::new(Frail { stream, call, left }) as Box<dyn Stream>
        }))
    }
}

/// A host comes by a stream that panics sooner or later, and does what it can.
fn suffer(connector: &MemConnector, address: std::net::SocketAddr) -> Result<(), nvmf_host::Error> {
    let connector = connector.clone();
    let open = move || {
        let stream = common::HostStream::new(connector.connect()?);
        Ok(Box::new(stream) as Box<dyn nvmf_host::Stream>)
    };
    let mut controller = nvmf_host::Controller::connect_over(Box::new(open), &options(address))?;
    controller.set_queue_count(1)?;
    let ns = controller.namespace(1)?;
    let mut queue = controller.io_queue(1)?;
    let mut data = vec![1; 64 << 10];
    for slba in [0, 64, 8192] {
        queue.write(&ns, slba, &data)?;
        queue.write(&ns, slba, &data[..512])?;
        queue.read(&ns, slba, &mut data)?;
        queue.read(&ns, slba, &mut data[..512])?;
    }
    drop(queue);
    controller.disconnect()
}

#[test]
fn a_stream_that_panics_ends_its_connection_and_no_other() {
    let (target, address) = common::target(config());
    let mut witness = Witness::new(&target, address);
    for (call, survived) in [
        (Call::Readiness, false),
        (Call::Readv, false),
        (Call::Writev, false),
        (Call::HasBuffered, false),
        (Call::ShutdownWrite, true),
        (Call::Peer, true),
        (Call::LocalIp, true),
        (Call::Drop, true),
    ] {
        for left in 1..30 {
            let (transport, connector) = MemTransport::new("frail").unwrap();
            let transport = FrailTransport(transport, call, left);
            let mut listener = ListenerConfig::on(Box::new(transport));
            listener.name = Some("frail".to_owned());
            target.listen_with(listener).unwrap();
            let served = suffer(&connector, address);
            if left == 1 {
                assert_eq!(served.is_ok(), survived, "{call:?}: {served:?}");
            }
            target.remove_listener("frail").unwrap();
            witness.is_alone();
        }
    }
}

/// Panics in one of its methods, and says when it is gone.
struct Trap {
    ready: OwnedFd,
    place: TrapPlace,
    _gone: Sender<()>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TrapPlace {
    Address,
    Readiness,
    Accept,
    Drop,
}

impl Trap {
    fn new(place: TrapPlace) -> (Box<Self>, Receiver<()>) {
        let (sender, gone) = channel();
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let trap = Self {
            ready,
            place,
            _gone: sender,
        };
        (Box::new(trap), gone)
    }

    fn burn(&self, place: TrapPlace) {
        assert!(place != self.place, "{place:?}, as it should in this test");
    }
}

impl Transport for Trap {
    fn address(&self) -> TransportAddress {
        self.burn(TrapPlace::Address);
        TransportAddress::tcp(([192, 0, 2, 9], 1).into())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.burn(TrapPlace::Readiness);
        self.ready.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        self.burn(TrapPlace::Accept);
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        Ok(None)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.burn(TrapPlace::Drop);
    }
}

#[test]
fn a_transport_that_panics_is_closed_and_others_go_on() {
    let (target, address) = common::target(config());
    for place in [
        TrapPlace::Address,
        TrapPlace::Readiness,
        TrapPlace::Accept,
        TrapPlace::Drop,
    ] {
        let (trap, gone) = Trap::new(place);
        let mut listener = ListenerConfig::on(trap);
        listener.name = Some("trap".to_owned());
        let added = target.listen_with(listener);
        match place {
            TrapPlace::Address => {
                let err = added.unwrap_err();
                assert!(err.to_string().contains("panicked"), "{err}");
            }
            // It is closed by itself, and still there to be removed.
            TrapPlace::Accept => {
                gone.recv().unwrap_err();
                target.remove_listener("trap").unwrap();
            }
            TrapPlace::Readiness | TrapPlace::Drop => target.remove_listener("trap").unwrap(),
        }
        gone.recv().unwrap_err();
        verified_io(address, 1);
    }
    assert_idle(&target);
}

/// Has the target changed while it is dropped, which must find no lock held.
struct Caller(Target);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.allow_any_host(NQN, true).unwrap();
        let other = SubsystemConfig::new("nqn.2026-11.org.example:other");
        self.0.add_subsystem(other).unwrap();
        let (transport, _) = MemTransport::new("another").unwrap();
        let mut listener = ListenerConfig::on(Box::new(transport));
        listener.name = Some("another".to_owned());
        self.0.listen_with(listener).unwrap();
        self.0.remove_listener("another").unwrap();
        self.0
            .remove_subsystem("nqn.2026-11.org.example:other")
            .unwrap();
    }
}

struct CallingNamespace(#[expect(dead_code, reason = "dropped")] Caller);

impl Namespace for CallingNamespace {
    fn info(&self) -> NsInfo {
        info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Err(Error::ShutDown)
    }
}

struct CallingTransport(
    MemTransport,
    #[expect(dead_code, reason = "dropped")] Caller,
);

impl Transport for CallingTransport {
    fn address(&self) -> TransportAddress {
        self.0.address()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.readiness()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        self.0.accept()
    }
}

#[test]
fn what_is_dropped_may_call_the_target() {
    let (target, address) = common::target(config());
    let namespace = |nsid| Change::AddNamespace {
        nqn: NQN.to_owned(),
        config: nvmf_target::NamespaceConfig::new(nsid),
        namespace: Arc::new(CallingNamespace(Caller(target.clone()))),
    };
    let listener = |name: &str| {
        let (transport, _) = MemTransport::new("calling").unwrap();
        let transport = CallingTransport(transport, Caller(target.clone()));
        let mut listener = ListenerConfig::on(Box::new(transport));
        listener.name = Some(name.to_owned());
        Change::AddListener(listener)
    };
    let gone = || Change::RemoveNamespace {
        nqn: NQN.to_owned(),
        nsid: 77,
    };
    // Refused at itself, before itself, and behind itself.
    target.apply(vec![namespace(1)]).unwrap_err();
    target.apply(vec![gone(), namespace(2)]).unwrap_err();
    target.apply(vec![namespace(2), gone()]).unwrap_err();
    target
        .apply(vec![listener(&"x".repeat(9)), gone()])
        .unwrap_err();
    target.apply(vec![gone(), listener("calling")]).unwrap_err();
    // Opened and removed at once, and one after the other.
    let remove = || Change::RemoveListener {
        listener: "calling".to_owned(),
    };
    target.apply(vec![listener("calling"), remove()]).unwrap();
    target.apply(vec![listener("calling")]).unwrap();
    target
        .apply(vec![listener("calling")])
        .expect_err("the name is taken");
    target.apply(vec![remove()]).unwrap();
    target.apply(vec![namespace(2)]).unwrap();
    target.remove_namespace(NQN, 2).unwrap();
    verified_io(address, 1);
}

/// Its loans panic.
struct LoanShark(RamDisk);

impl BlockDevice for LoanShark {
    fn info(&self) -> NsInfo {
        self.0.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        self.0.write_at(offset, buf, fua)
    }

    fn lends(&self) -> bool {
        true
    }

    fn lend(&self, offset: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        assert_ne!(offset, 512, "as it should in this test");
        self.0.lend(offset, len, alone)
    }
}

/// The answer has begun to leave when the data is lent: nothing but the end of the connection says
/// that it is not coming.
#[test]
fn a_loan_that_panics_ends_its_connection_and_no_other() {
    let (target, address) = common::target(config());
    let disk = LoanShark(RamDisk::new(1 << 20, 512).unwrap());
    target.add_namespace(NQN, 2, Inline::new(disk)).unwrap();
    let mut witness = Witness::new(&target, address);
    for blocks in [1, 8, 100] {
        let mut controller = connect(address);
        controller.set_queue_count(1).unwrap();
        let ns = controller.namespace(2).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        // The first opens the lane.
        for slba in [0, 0, 2] {
            queue.read(&ns, slba, &mut vec![0; blocks * 512]).unwrap();
        }
        let err = queue.read(&ns, 1, &mut vec![0; blocks * 512]).unwrap_err();
        assert_eq!(err.status(), None, "{err}");
        drop((controller, queue));
        witness.is_alone();
    }
}

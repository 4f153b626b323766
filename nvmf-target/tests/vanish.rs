//! A host may vanish at any moment: the target then has the sockets, buffers and controllers that
//! it had before, and others are served as ever.

mod common;

use common::raw::{self, Digests, Raw, connect_data, with_sgl};
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, pattern, verified_io};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, PropertyGet, PropertySize};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::pdu::DataHeader;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe};
use nvmf_target::Target;
use nvmf_target::ns::NsInfo;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Descriptors are counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes between two of the points at which a session is cut.
const STRIDE: usize = 8;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How a host ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its process ends: FIN, and RST for what comes after.
    Close,
    /// Its connections are reset.
    Reset,
    /// It says that it sends nothing more, and stays.
    HalfClose,
}

#[derive(Debug)]
struct Dead;

const ADMIN: usize = 0;
const IO: usize = 1;

/// A host that ends after so many bytes, wherever in its session that is.
struct Mortal {
    address: SocketAddr,
    digests: Digests,
    end: End,
    left: usize,
    sent: usize,
    /// Where in the bytes sent PDUs end.
    boundaries: Vec<usize>,
    queues: Vec<Raw>,
}

impl Mortal {
    fn new(address: SocketAddr, digests: Digests, end: End, left: usize) -> Self {
        Self {
            address,
            digests,
            end,
            left,
            sent: 0,
            boundaries: Vec::new(),
            queues: Vec::new(),
        }
    }

    fn send(&mut self, queue: usize, bytes: &[u8]) -> Result<(), Dead> {
        let n = bytes.len().min(self.left);
        self.queues[queue].send(&bytes[..n]);
        self.left -= n;
        self.sent += n;
        if self.left == 0 {
            self.die();
            return Err(Dead);
        }
        self.boundaries.push(self.sent);
        Ok(())
    }

    fn die(&mut self) {
        if self.sent.is_multiple_of(2) {
            self.queues.reverse();
        }
        match self.end {
            End::Close => self.queues.clear(),
            End::Reset => {
                for queue in self.queues.drain(..) {
                    socket2::SockRef::from(&queue.stream)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
            }
            End::HalfClose => {
                for queue in &self.queues {
                    // The target may have closed it already, after a Disconnect.
                    let _ = queue.stream.shutdown(Shutdown::Write);
                }
            }
        }
    }

    fn open(&mut self) -> Result<(), Dead> {
        let queue = self.queues.len();
        self.queues.push(Raw::tcp(self.address));
        self.send(queue, &self.digests.ic_req())?;
        self.queues[queue].recv();
        self.queues[queue].digests = self.digests;
        Ok(())
    }

    fn submit(&mut self, queue: usize, sqe: &Sqe, data: &[u8]) -> Result<(), Dead> {
        self.send(queue, &self.digests.capsule(sqe, data))
    }

    fn execute(&mut self, queue: usize, sqe: &Sqe, data: &[u8]) -> Result<u64, Dead> {
        self.submit(queue, sqe, data)?;
        Ok(self.queues[queue].recv().cqe().result)
    }

    fn r2t(&mut self) -> DataHeader {
        self.queues[IO].recv().r2t()
    }

    fn h2c_data(&mut self, r2t: &DataHeader, at: u32, data: &[u8; 512]) -> Result<(), Dead> {
        let last = at + 512 == r2t.length;
        let pdu = self.digests.h2c_data(r2t, at, data, last);
        self.send(IO, &pdu)
    }

    /// What a host does from its first byte to its last.
    fn session(&mut self) -> Result<(), Dead> {
        self.open()?;
        let data = raw::encode(&connect_data());
        let result = self.execute(ADMIN, &raw::connect_sqe(&raw::admin_connect()), &data)?;
        let cntlid = u16::try_from(result).unwrap();
        let cap = PropertyGet {
            size: PropertySize::BYTES_8,
            offset: PropertyOffset::CAP,
        };
        self.execute(ADMIN, &cap.to_sqe(), &[])?;
        self.execute(ADMIN, &raw::enable(), &[])?;
        for cid in 10..12 {
            let mut request = command::async_event_request();
            request.set_cid(cid);
            self.submit(ADMIN, &request, &[])?;
        }
        let identify = IdentifyCommand::new(Cns::CONTROLLER);
        let identify = command::identify(0, &identify);
        self.submit(
            ADMIN,
            &with_sgl(identify, 1, SglDescriptor::transport(4096)),
            &[],
        )?;
        assert_eq!(self.queues[ADMIN].recv().data().len(), 4096);
        self.queues[ADMIN].recv().cqe();
        self.execute(ADMIN, &raw::set_queues(4), &[])?;

        self.open()?;
        let data = raw::encode(&ConnectData {
            cntlid,
            ..connect_data()
        });
        self.execute(IO, &raw::connect_sqe(&raw::io_connect(1)), &data)?;
        self.execute(IO, &raw::write_in_capsule(1, 0, 1), &pattern(1, 512))?;
        // Two writes whose data is asked for, both under way at once.
        self.submit(IO, &raw::write_by_r2t(2, 1, 2), &[])?;
        self.submit(IO, &raw::write_by_r2t(3, 3, 1), &[])?;
        let (first, second) = (self.r2t(), self.r2t());
        self.h2c_data(&first, 0, &[2; 512])?;
        self.h2c_data(&second, 0, &[3; 512])?;
        self.h2c_data(&first, 512, &[4; 512])?;
        // Nobody reads the answers to these.
        for cid in 4..8 {
            self.submit(IO, &raw::read(cid, 0, 64), &[])?;
        }
        self.execute(ADMIN, &command::keep_alive(), &[])?;
        self.submit(IO, &raw::disconnect(), &[])?;
        let shutdown = Cc::default().with_en(true).with_shn(Cc::SHN_NORMAL);
        self.submit(ADMIN, &raw::set_cc(shutdown), &[])?;
        self.die();
        Ok(())
    }
}

/// A target that has served a host, and the descriptors of the process with it.
fn warm() -> (Target, SocketAddr, usize) {
    let (target, address) = common::target(config());
    verified_io(address, 1);
    assert_idle(&target);
    (target, address, descriptors())
}

fn assert_as_before(target: &Target, address: SocketAddr, before: usize) {
    assert_idle(target);
    eventually("the descriptors are closed", || descriptors() == before);
    verified_io(address, 7);
    assert_idle(target);
}

#[test]
fn at_any_byte_of_its_session() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    for (variant, (end, digests)) in [
        (End::Close, Digests::default()),
        (End::Reset, Digests::BOTH),
        (End::HalfClose, Digests::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut whole = Mortal::new(address, digests, end, usize::MAX);
        whole.session().unwrap();
        let total = whole.sent;
        let mut cuts: Vec<usize> = whole.boundaries.iter().flat_map(|&b| [b, b + 1]).collect();
        cuts.extend((variant + 1..total).step_by(STRIDE));
        cuts.retain(|&cut| cut < total);
        drop(whole);
        assert_idle(&target);
        for (i, &cut) in cuts.iter().enumerate() {
            let mut host = Mortal::new(address, digests, end, cut);
            assert!(host.session().is_err(), "cut at {cut}");
            eventually(&format!("{end:?} after {cut} of {total} bytes"), || {
                target.stats() == Default::default()
            });
            drop(host);
            if i % 100 == 0 {
                verified_io(address, i as u64);
            }
        }
    }
    assert_as_before(&target, address, before);
}

#[test]
fn many_at_once_while_another_works() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    thread::scope(|scope| {
        for worker in 0..4usize {
            scope.spawn(move || {
                for round in 0..60 {
                    let end = [End::Close, End::Reset, End::HalfClose][(worker + round) % 3];
                    let cut = 1 + (worker * 7919 + round * 104_729) % 6000;
                    let mut host = Mortal::new(address, Digests::default(), end, cut);
                    let _ = host.session();
                }
            });
        }
        scope.spawn(move || (0..20).for_each(|seed| verified_io(address, seed)));
    });
    assert_as_before(&target, address, before);
}

#[test]
fn right_after_its_icreq_a_thousand_times() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    for i in 0..1000 {
        let mut raw = Raw::tcp(address);
        raw.send(&Digests::default().ic_req()[..128 - i % 3]);
        if i % 2 == 0 {
            socket2::SockRef::from(&raw.stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    }
    assert_as_before(&target, address, before);
}

/// A target that was cut off leaves nothing either, and neither do requests that its backend ends
/// later.
#[test]
fn a_target_that_is_cut_off_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors();
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap().into_queue();
    let data = nvmf_host::Data::Write(pattern(1, 4096));
    queue.submit(command::write(2, 0, 8), data).unwrap();
    queue.flush().unwrap();
    let request = step.next();
    assert!(!target.shutdown(Duration::from_millis(1)), "cut off");
    queue.poll(PATIENCE).unwrap_err();
    drop((controller, queue, target));
    eventually("the namespace is let go of", || !step.is_held());
    assert_eq!(request.data()[..], pattern(1, 4096), "still the backend's");
    request.complete(Ok(()));
    eventually("the descriptors are closed", || descriptors() == before);
}

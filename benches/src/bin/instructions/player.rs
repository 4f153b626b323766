//! A host that lives inside the stream of the connection that it loads.
//!
//! The target's reactor calls the stream; what it sends is answered by an NVMe/TCP host within
//! that very call. So there is one thread, no socket, no clock, and the same batches in every run.

use nvmf_host::{ConnectOptions, Controller, Data, Queue, command};
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use nvmf_target::ns::{BlockDevice, Inline, RamDisk};
use nvmf_target::transport::{Stream, Transport, TransportAddress};
use nvmf_target::{Role, SubsystemConfig, Target, TargetConfig};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name on command lines and in the file of what is expected.
    pub(crate) name: &'static str,
    write: bool,
    /// Bytes per I/O.
    size: u32,
    /// I/Os that arrive together; the next ones come when all of them are answered.
    pub(crate) depth: u32,
    digests: bool,
}

const fn case(name: &'static str, write: bool, size: u32, depth: u32, digests: bool) -> Case {
    Case {
        name,
        write,
        size,
        depth,
        digests,
    }
}

/// What is counted.
pub(crate) const CASES: &[Case] = &[
    case("read-4k-32", false, 4096, 32, false),
    case("read-4k-1", false, 4096, 1, false),
    case("write-4k-32", true, 4096, 32, false),
    case("write-4k-1", true, 4096, 1, false),
    case("read-4k-32-digests", false, 4096, 32, true),
    case("write-4k-32-digests", true, 4096, 32, true),
    case("read-128k-8", false, 128 << 10, 8, false),
    // By R2T: it does not fit in the capsule.
    case("write-128k-8", true, 128 << 10, 8, false),
    case("read-128k-8-digests", false, 128 << 10, 8, true),
    case("write-128k-8-digests", true, 128 << 10, 8, true),
];

const NQN: &str = "nqn.2026-11.org.example:instructions";
const NSID: u32 = 1;
const BLOCK: u32 = 4096;
/// Blocks of the RAM disk: the count depends little on how many there are, and each is filled first.
const BLOCKS: u32 = 2048;

/// Where callgrind hands out what it has counted so far: see `callgrind.rs`.
#[inline(never)]
fn mark() {
    black_box(());
}

/// What the player does for itself, which callgrind does not count: see `callgrind.rs`.
#[inline(never)]
fn off_the_record<R>(work: impl FnOnce() -> R) -> R {
    black_box(work())
}

/// Plays `warm_up` batches, then `batches` between two calls of [`mark`].
pub(crate) fn play(case: &Case, warm_up: u64, batches: u64) -> Result<(), Error> {
    let (transport, connect) = Backlog::new()?;
    let mut config = TargetConfig::default();
    config.reactors = 1;
    let target = Target::new(config)?;
    target.add_subsystem(SubsystemConfig::new(NQN))?;
    target.add_namespace(NQN, NSID, Inline::new(disk()?))?;
    target.listen_on(Box::new(transport), Role::Io)?;

    let mut options = ConnectOptions::new(([127, 0, 0, 1], 4420).into(), NQN)?;
    options.io_entries = case.depth + 1;
    options.header_digest = case.digests;
    options.data_digest = case.digests;
    options.disable_sq_flow_control = true;
    let last = Arc::clone(&connect);
    let connector = move || -> io::Result<Box<dyn nvmf_host::Stream>> {
        Ok(Box::new(HostEnd(connect.connect()?)))
    };
    let mut controller = Controller::connect_over(Box::new(connector), &options)?;
    controller.set_queue_count(1)?;
    let queue = controller.io_queue(1)?.into_queue();
    let wire = last.last_wire().ok_or("no connection was made")?;

    let (done, end) = mpsc::channel();
    let mut player = Player {
        case: *case,
        queue,
        buffers: vec![vec![0x5a; case.size as usize]; case.depth as usize],
        random: 1,
        batch: 0,
        warm_up,
        end: warm_up + batches,
        done,
    };
    // The player is in its place before the first bytes leave.
    let mut place = lock(&wire.player);
    player.submit()?;
    *place = Some(player);
    drop(place);
    end.recv_timeout(Duration::from_secs(120))??;
    drop(controller);
    if !target.shutdown(Duration::from_secs(10)) {
        return Err("the target does not come to rest".into());
    }
    Ok(())
}

/// A RAM disk of which every block has its own memory.
fn disk() -> Result<RamDisk, Error> {
    let disk = RamDisk::new(u64::from(BLOCKS) * u64::from(BLOCK), BLOCK)?;
    let block = vec![0xa5; BLOCK as usize];
    for index in 0..u64::from(BLOCKS) {
        disk.write_at(index * u64::from(BLOCK), &block, false)
            .map_err(|error| format!("cannot fill the disk: {error:?}"))?;
    }
    Ok(disk)
}

/// The host's side of the I/O queue.
struct Player {
    case: Case,
    queue: Queue,
    buffers: Vec<Vec<u8>>,
    random: u32,
    /// Batches that are complete.
    batch: u64,
    warm_up: u64,
    end: u64,
    done: mpsc::Sender<Result<(), Error>>,
}

impl Player {
    /// Submits a batch, which leaves in one piece.
    fn submit(&mut self) -> Result<(), Error> {
        let blocks = self.case.size / BLOCK;
        for buffer in self.buffers.drain(..) {
            // The upper bits of a product are a number below its factor.
            self.random = self
                .random
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            let place = (u64::from(self.random) * u64::from(BLOCKS / blocks)) >> 32;
            let lba = place * u64::from(blocks);
            let (sqe, data) = if self.case.write {
                (command::write(NSID, lba, blocks), Data::Write(buffer))
            } else {
                (command::read(NSID, lba, blocks), Data::Read(buffer))
            };
            self.queue
                .submit(sqe, data)
                .map_err(|refused| refused.error)?;
        }
        self.queue.flush()?;
        Ok(())
    }

    /// Takes in what the target has sent; true if that was the rest of a batch.
    fn step(&mut self) -> Result<bool, Error> {
        self.queue.progress()?;
        while let Some(done) = self.queue.next_completion() {
            self.buffers.push(done.success("I/O")?.buffer);
        }
        if self.buffers.len() < self.case.depth as usize {
            return Ok(false);
        }
        self.batch += 1;
        if self.batch < self.end {
            self.submit()?;
        }
        Ok(true)
    }

    const fn is_at_mark(&self) -> bool {
        self.batch == self.warm_up || self.batch == self.end
    }
}

/// A connection: bytes on the way in both directions.
struct Wire {
    bytes: Mutex<Bytes>,
    /// Something came for the host.
    to_host: Condvar,
    /// Signalled when something came for the target.
    to_target: OwnedFd,
    /// The host, once it has moved into the stream.
    player: Mutex<Option<Player>>,
}

#[derive(Default)]
struct Bytes {
    to_target: VecDeque<u8>,
    to_host: VecDeque<u8>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

fn signal(event: &OwnedFd) {
    // It fails only by overflow of the counter, and then the descriptor is readable.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Takes what has come out of a queue, as much as there is room for: less than that means that
/// nothing is left. Nothing at its end if the other side has closed it.
fn take(from: &mut VecDeque<u8>, closed: bool, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    if from.is_empty() && !closed {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut taken = 0;
    for buf in bufs {
        let mut filled = 0;
        // A read takes one of the two pieces that the queue's memory is in.
        while filled < buf.len() && !from.is_empty() {
            filled += from.read(&mut buf[filled..])?;
        }
        taken += filled;
    }
    Ok(taken)
}

fn put(to: &mut VecDeque<u8>, bufs: &[IoSlice<'_>]) -> usize {
    let before = to.len();
    for buf in bufs {
        to.extend(&buf[..]);
    }
    to.len() - before
}

/// The end that the reactor has.
struct TargetEnd(Arc<Wire>);

impl Wire {
    /// Takes what the target sends and lets the player act on it. Returns the bytes taken and
    /// whether a batch has ended at which counting begins or ends.
    fn take_answer(&self, bufs: &[IoSlice<'_>]) -> (usize, bool) {
        let n = put(&mut lock(&self.bytes).to_host, bufs);
        let mut place = lock(&self.player);
        let Some(player) = &mut *place else {
            self.to_host.notify_all();
            return (n, false);
        };
        let result = player.step();
        let is_at_mark = result
            .as_ref()
            .is_ok_and(|&complete| complete && player.is_at_mark());
        match result {
            Ok(true) if player.batch == player.end => {
                // Nobody waits for it only where the run has failed already.
                let _ = player.done.send(Ok(()));
                *place = None;
            }
            Ok(_) => {}
            Err(error) => {
                let _ = player.done.send(Err(error));
                *place = None;
            }
        }
        (n, is_at_mark)
    }
}

impl Stream for TargetEnd {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.to_target.as_fd()
    }

    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        off_the_record(|| {
            let bytes = &mut *lock(&self.0.bytes);
            take(&mut bytes.to_target, bytes.closed, bufs)
        })
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let (n, is_at_mark) = off_the_record(|| self.0.take_answer(bufs));
        if is_at_mark {
            mark();
        }
        Ok(n)
    }

    fn shutdown_write(&mut self) {
        lock(&self.0.bytes).closed = true;
        self.0.to_host.notify_all();
    }

    fn peer(&self) -> String {
        "player".to_owned()
    }
}

impl Drop for TargetEnd {
    fn drop(&mut self) {
        self.shutdown_write();
    }
}

/// The end that the host has.
struct HostEnd(Arc<Wire>);

impl std::fmt::Debug for HostEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostEnd")
    }
}

impl nvmf_host::Stream for HostEnd {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let bytes = &mut *lock(&self.0.bytes);
        take(&mut bytes.to_host, bytes.closed, bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = put(&mut lock(&self.0.bytes).to_target, bufs);
        signal(&self.0.to_target);
        Ok(n)
    }

    fn wait(&mut self, _or_write: bool, timeout: Duration) -> io::Result<()> {
        let nothing = |bytes: &mut Bytes| bytes.to_host.is_empty() && !bytes.closed;
        let bytes = lock(&self.0.bytes);
        drop(self.0.to_host.wait_timeout_while(bytes, timeout, nothing));
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for HostEnd {
    fn drop(&mut self) {
        lock(&self.0.bytes).closed = true;
        signal(&self.0.to_target);
    }
}

/// Connections that wait to be accepted, and the last that was made.
struct Backlog {
    wires: Mutex<VecDeque<Arc<Wire>>>,
    last: Mutex<Option<Arc<Wire>>>,
    event: OwnedFd,
}

impl Backlog {
    fn new() -> io::Result<(Listener, Arc<Self>)> {
        let backlog = Arc::new(Self {
            wires: Mutex::default(),
            last: Mutex::default(),
            event: new_event()?,
        });
        Ok((Listener(Arc::clone(&backlog)), backlog))
    }

    fn connect(&self) -> io::Result<Arc<Wire>> {
        let wire = Arc::new(Wire {
            bytes: Mutex::default(),
            to_host: Condvar::new(),
            to_target: new_event()?,
            player: Mutex::new(None),
        });
        lock(&self.wires).push_back(Arc::clone(&wire));
        *lock(&self.last) = Some(Arc::clone(&wire));
        signal(&self.event);
        Ok(wire)
    }

    fn last_wire(&self) -> Option<Arc<Wire>> {
        lock(&self.last).take()
    }
}

/// The target's side of a [`Backlog`].
struct Listener(Arc<Backlog>);

impl Transport for Listener {
    fn address(&self) -> TransportAddress {
        TransportAddress {
            trtype: TransportType::LOOPBACK,
            adrfam: AddressFamily::LOOPBACK,
            traddr: "player".to_owned(),
            trsvcid: String::new(),
            wildcard: false,
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        let mut wires = lock(&self.0.wires);
        let next = wires.pop_front();
        if next.is_none() {
            let _ = rustix::io::read(&self.0.event, &mut [0; 8]);
        }
        Ok(next.map(|wire| Box::new(TargetEnd(wire)) as Box<dyn Stream>))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_plays() {
        for case in CASES {
            play(case, 1, 3).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
    }
}

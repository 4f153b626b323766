//! Connections between hosts and the target: two queues of bytes each, which the simulation moves
//! on as it likes, and breaks as it likes.

use crate::rng::Rng;
use crate::{note, trace};
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use nvmf_target::transport::{Stream, Transport, TransportAddress};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// ICReq and ICResp, which no digest covers: nothing of them is spoiled.
const UNCOVERED: u64 = 128;

thread_local! {
    /// Turns of reactors so far.
    static TURNS: Cell<u64> = const { Cell::new(0) };
    /// The reactor that had the last one.
    static REACTOR: Cell<usize> = const { Cell::new(0) };
    /// Reactors that may find a connection ready, a bit each.
    static READY: Cell<u64> = const { Cell::new(0) };
}

/// A reactor's turn begins.
pub fn begin_turn(reactor: usize) {
    TURNS.set(TURNS.get() + 1);
    REACTOR.set(reactor);
    READY.set(READY.get() & !(1 << reactor));
}

/// Whether a connection of a reactor may have become ready since its last turn.
pub fn has_ready(reactor: usize) -> bool {
    READY.get() >> reactor & 1 == 1
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd")
}

fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Pipe {
    bytes: VecDeque<u8>,
    /// So many of `bytes` have arrived, the rest is on its way.
    arrived: usize,
    /// Bytes that have arrived since the beginning.
    total: u64,
    /// The writer has written its last byte.
    ended: bool,
    /// The reader may know.
    end_arrived: bool,
    /// Nothing moves before this time.
    pub held_until: u64,
    /// Once in so many deliveries a bit flips.
    pub flips: u64,
    pub flipped: u64,
}

impl Pipe {
    /// Whether something is on its way.
    pub fn is_moving(&self) -> bool {
        self.bytes.len() > self.arrived || (self.ended && !self.end_arrived)
    }

    /// Lets some of what is on its way arrive.
    fn deliver(&mut self, most: usize, rng: &mut Rng) -> usize {
        let moving = self.bytes.len() - self.arrived;
        let n = moving.min(most);
        if n > 0 && self.total >= UNCOVERED && rng.once_in(self.flips) {
            let at = self.arrived + rng.index(n);
            self.bytes[at] ^= 1 << rng.below(8);
            self.flipped += 1;
            note!("a bit flips at {}", self.total + at as u64);
        }
        // A delivery that begins in what no digest covers stays inside it.
        let n = if self.total < UNCOVERED {
            n.min((UNCOVERED - self.total) as usize)
        } else {
            n
        };
        self.arrived += n;
        self.total += n as u64;
        self.end_arrived = self.ended && self.arrived == self.bytes.len();
        n
    }

    fn take(&mut self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.arrived);
        let taken = self.bytes.read_exact(&mut out[..n]);
        taken.expect("they have arrived");
        self.arrived -= n;
        n
    }

    fn take_all(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.arrived, 0);
        self.take(&mut out[start..]);
    }
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    pub id: usize,
    from: IpAddr,
    /// From the host.
    pub up: Pipe,
    /// To the host.
    pub down: Pipe,
    /// Signalled whenever the target could read or write more.
    event: Arc<OwnedFd>,
    /// The turn after which it was signalled last.
    signalled: u64,
    /// The reactor that has read or written last.
    reactor: Option<usize>,
    /// Bytes on the way to the host at which the target has to wait.
    window: usize,
    /// The target waits.
    blocked: bool,
    pub opened_at: u64,
    /// When the target wrote last.
    pub wrote_at: u64,
    /// When the target closed its end, if it has.
    pub closed_at: Option<u64>,
    /// The host has.
    pub host_closed: bool,
    /// One of them has reset the connection.
    pub reset: bool,
    /// If the target closes with bytes unread, what is on its way to the host is lost.
    harsh: bool,
}

pub type SharedLink = Arc<Mutex<Link>>;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody has panicked while he held it")
}

impl Link {
    pub fn new(id: usize, from: IpAddr, window: usize, harsh: bool) -> SharedLink {
        Arc::new(Mutex::new(Self {
            id,
            from,
            up: Pipe::default(),
            down: Pipe::default(),
            event: Arc::new(event()),
            signalled: 0,
            reactor: None,
            window,
            blocked: false,
            opened_at: trace::now(),
            wrote_at: 0,
            closed_at: None,
            host_closed: false,
            reset: false,
            harsh,
        }))
    }

    /// The host writes.
    pub fn host_write(&mut self, bytes: &[u8]) {
        if !self.reset && self.closed_at.is_none() {
            self.up.bytes.extend(bytes);
        }
    }

    /// Room for bytes of the host.
    pub fn host_room(&self) -> usize {
        (256usize << 10).saturating_sub(self.up.bytes.len())
    }

    /// Everything that has arrived for the host, and whether that was the end.
    pub fn host_read(&mut self, out: &mut Vec<u8>) -> bool {
        self.down.take_all(out);
        self.make_room();
        self.reset || self.down.end_arrived
    }

    pub fn host_has_input(&self) -> bool {
        self.down.arrived > 0 || ((self.reset || self.down.end_arrived) && !self.host_closed)
    }

    /// The host writes no more.
    pub fn host_half_close(&mut self) {
        self.up.ended = true;
    }

    /// The host is gone; `reset`: with a bang, and what was on its way is lost.
    pub fn host_close(&mut self, reset: bool) {
        if self.host_closed {
            return;
        }
        self.host_closed = true;
        self.up.ended = true;
        if reset {
            self.reset = true;
            self.up.bytes.clear();
            self.up.arrived = 0;
        }
        self.down.bytes.clear();
        self.down.arrived = 0;
        self.signal();
    }

    /// The target could read or write more. Once is enough until a reactor has looked.
    fn signal(&mut self) {
        let turn = TURNS.get() + 1;
        if self.signalled != turn {
            self.signalled = turn;
            signal(&self.event);
        }
        let bits = self.reactor.map_or(u64::MAX, |reactor| 1 << reactor);
        READY.set(READY.get() | bits);
    }

    /// Whether a bit of it flipped.
    pub const fn is_spoiled(&self) -> bool {
        self.up.flipped + self.down.flipped > 0
    }

    pub fn deliver_up(&mut self, most: usize, rng: &mut Rng) -> usize {
        let n = self.up.deliver(most, rng);
        self.signal();
        n
    }

    pub fn deliver_down(&mut self, most: usize, rng: &mut Rng) -> usize {
        self.down.deliver(most, rng)
    }

    fn make_room(&mut self) {
        if self.blocked && self.down.bytes.len() < self.window {
            self.blocked = false;
            self.signal();
        }
    }
}

/// The target's end of a connection.
pub struct SimStream {
    link: SharedLink,
    /// The link's event, which can be lent without the lock.
    event: Arc<OwnedFd>,
    /// Cuts what the target writes.
    cuts: Rng,
    cut: u64,
}

impl Stream for SimStream {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut link = lock(&self.link);
        link.reactor = Some(REACTOR.get());
        if link.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut n = 0;
        for buf in bufs.iter_mut() {
            n += link.up.take(buf);
        }
        if n == 0 && !link.up.end_arrived {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if n > 0 && link.up.end_arrived {
            // A read that fills less than it could says that nothing is left but this.
            link.signal();
        }
        note!("link {} read {}", link.id, n);
        Ok(n)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut link = lock(&self.link);
        link.reactor = Some(REACTOR.get());
        if link.reset || link.host_closed {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let wanted = bufs.iter().map(|b| b.len()).sum();
        let mut room = link.window.saturating_sub(link.down.bytes.len());
        if room == 0 {
            link.blocked = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.cuts.once_in(self.cut) {
            room = self.cuts.amount(room);
        }
        link.wrote_at = trace::now();
        let mut n = 0;
        for buf in bufs {
            let take = buf.len().min(room);
            link.down.bytes.extend(&buf[..take]);
            n += take;
            room -= take;
        }
        if n < wanted {
            link.blocked = true;
            // Cut short for no reason: it may go on at once.
            link.make_room();
        }
        note!("link {} wrote {} of {}", link.id, n, wanted);
        Ok(n)
    }

    fn shutdown_write(&mut self) {
        lock(&self.link).down.ended = true;
    }

    fn peer(&self) -> String {
        format!("link {}", lock(&self.link).id)
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        Some(lock(&self.link).from)
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        note!("link {} closed by the target", link.id);
        link.closed_at = Some(trace::now());
        link.down.ended = true;
        if link.harsh && !link.up.bytes.is_empty() {
            link.reset = true;
            let arrived = link.down.arrived;
            link.down.bytes.truncate(arrived);
        }
        link.up.bytes.clear();
        link.up.arrived = 0;
    }
}

struct Backlog {
    /// `None` once the listener is closed.
    streams: Mutex<Option<VecDeque<SimStream>>>,
    event: OwnedFd,
}

/// A listener.
pub struct SimTransport {
    name: String,
    backlog: Arc<Backlog>,
}

/// The hosts' way to a listener.
#[derive(Clone)]
pub struct Door {
    name: String,
    backlog: Arc<Backlog>,
}

impl SimTransport {
    pub fn new(name: &str) -> (Self, Door) {
        let backlog = Arc::new(Backlog {
            streams: Mutex::new(Some(VecDeque::new())),
            event: event(),
        });
        let name = name.to_owned();
        let door = Door {
            name: name.clone(),
            backlog: Arc::clone(&backlog),
        };
        (Self { name, backlog }, door)
    }
}

impl Door {
    /// Connects a link; `cut`: once in so many writes of the target only a part is taken.
    pub fn connect(&self, link: &SharedLink, cuts: Rng, cut: u64) {
        let event = Arc::clone(&lock(link).event);
        let link = Arc::clone(link);
        let stream = SimStream {
            link,
            event,
            cuts,
            cut,
        };
        // Who knocks at a closed door is turned away.
        let refused = match &mut *lock(&self.backlog.streams) {
            Some(streams) => {
                streams.push_back(stream);
                None
            }
            None => Some(stream),
        };
        drop(refused);
        signal(&self.backlog.event);
    }

    /// TRADDR.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_open(&self) -> bool {
        lock(&self.backlog.streams).is_some()
    }

    /// Whether connections wait to be accepted.
    pub fn is_waiting(&self) -> bool {
        lock(&self.backlog.streams)
            .as_ref()
            .is_some_and(|s| !s.is_empty())
    }
}

impl Transport for SimTransport {
    fn address(&self) -> TransportAddress {
        TransportAddress {
            trtype: TransportType::LOOPBACK,
            adrfam: AddressFamily::LOOPBACK,
            traddr: self.name.clone(),
            trsvcid: String::new(),
            wildcard: false,
        }
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.backlog.event.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        let mut streams = lock(&self.backlog.streams);
        let next = streams.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            let _ = rustix::io::read(&self.backlog.event, &mut [0; 8]);
        }
        Ok(next.map(|stream| Box::new(stream) as Box<dyn Stream>))
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        let waiting = lock(&self.backlog.streams).take();
        drop(waiting);
    }
}

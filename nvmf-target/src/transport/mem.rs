//! Connections inside one process: two bounded byte queues with an eventfd at each end.

use super::{Stream, Transport, TransportAddress};
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that one direction holds before the writer has to wait.
const CAPACITY: usize = 256 << 10;

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
    /// The writer found the pipe full and wants to be woken.
    blocked: bool,
}

/// One end's view: its descriptor is signalled whenever its reader or writer could go on.
struct End {
    /// What this end reads.
    incoming: Mutex<Pipe>,
    /// Signalled when `incoming` has gained something, or when the peer has made room for a
    /// blocked writer at this end.
    event: OwnedFd,
}

impl End {
    fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            incoming: Mutex::default(),
            event,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        // It can fail only by overflow of the counter, and then the descriptor is readable.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// One end of an in-process connection. Reading and writing do not block; [`MemStream::readiness`]
/// becomes readable whenever either could go on.
pub struct MemStream {
    mine: Arc<End>,
    theirs: Arc<End>,
}

impl MemStream {
    /// Two connected ends.
    ///
    /// # Errors
    /// If the system gives no descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = (End::new()?, End::new()?);
        Ok((
            Self {
                mine: Arc::clone(&a),
                theirs: Arc::clone(&b),
            },
            Self { mine: b, theirs: a },
        ))
    }

    fn close(&self) {
        self.theirs.lock().closed = true;
        self.theirs.signal();
    }
}

impl Stream for MemStream {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.mine.event.as_fd()
    }

    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut count = [0; 8];
        // The event is taken back first: what comes later signals again.
        let _ = rustix::io::read(&self.mine.event, &mut count);
        let mut pipe = self.mine.lock();
        let n = pipe.bytes.read_vectored(bufs)?;
        if n == 0 && !pipe.closed && bufs.iter().any(|b| !b.is_empty()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let unblock = n > 0 && std::mem::take(&mut pipe.blocked);
        let more = !pipe.bytes.is_empty() || pipe.closed;
        drop(pipe);
        if unblock {
            self.theirs.signal();
        }
        if more {
            self.mine.signal();
        }
        Ok(n)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.theirs.lock();
        if pipe.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut room = CAPACITY.saturating_sub(pipe.bytes.len());
        let mut n = 0;
        for buf in bufs {
            let take = buf.len().min(room);
            pipe.bytes.extend(&buf[..take]);
            n += take;
            room -= take;
        }
        if n < bufs.iter().map(|b| b.len()).sum() {
            pipe.blocked = true;
        }
        drop(pipe);
        if n == 0 && bufs.iter().any(|b| !b.is_empty()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.theirs.signal();
        Ok(n)
    }

    fn shutdown_write(&mut self) {
        self.close();
    }

    fn peer(&self) -> String {
        "memory".to_owned()
    }
}

impl Drop for MemStream {
    fn drop(&mut self) {
        self.close();
        // The peer's writer learns of it too.
        self.mine.lock().closed = true;
    }
}

impl fmt::Debug for MemStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemStream")
    }
}

struct Backlog {
    queue: Mutex<VecDeque<MemStream>>,
    event: OwnedFd,
}

/// A listener for connections from the same process, made by its [`MemConnector`].
pub struct MemTransport {
    backlog: Arc<Backlog>,
    name: String,
}

/// Connects to a [`MemTransport`]; clone it freely.
#[derive(Clone)]
pub struct MemConnector(Arc<Backlog>);

impl MemTransport {
    /// A listener under a name (TRADDR of its discovery entry), and the way to reach it.
    ///
    /// # Errors
    /// If the system gives no descriptor.
    pub fn new(name: impl Into<String>) -> io::Result<(Self, MemConnector)> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let backlog = Arc::new(Backlog {
            queue: Mutex::default(),
            event,
        });
        Ok((
            Self {
                backlog: Arc::clone(&backlog),
                name: name.into(),
            },
            MemConnector(backlog),
        ))
    }
}

impl MemConnector {
    /// A new connection to the target.
    ///
    /// # Errors
    /// If the system gives no descriptors.
    pub fn connect(&self) -> io::Result<MemStream> {
        let (ours, theirs) = MemStream::pair()?;
        self.0
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(theirs);
        rustix::io::write(&self.0.event, &1u64.to_ne_bytes())?;
        Ok(ours)
    }
}

impl Transport for MemTransport {
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
        let next = self
            .backlog
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        if next.is_none() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.backlog.event, &mut count);
            // One may have come between the look and the reset.
            let next = self
                .backlog
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            return Ok(next.map(|s| Box::new(s) as Box<dyn Stream>));
        }
        Ok(next.map(|s| Box::new(s) as Box<dyn Stream>))
    }
}

impl fmt::Debug for MemTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemTransport")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MemConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemConnector")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(s: &mut MemStream, bytes: &[u8]) -> io::Result<usize> {
        s.writev(&[IoSlice::new(bytes)])
    }

    fn read(s: &mut MemStream, max: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; max];
        let n = s.readv(&mut [IoSliceMut::new(&mut buf)])?;
        buf.truncate(n);
        Ok(buf)
    }

    #[test]
    fn bytes_arrive_in_order_and_the_end_is_seen() {
        let (mut a, mut b) = MemStream::pair().unwrap();
        assert_eq!(
            read(&mut b, 4).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(write(&mut a, b"hello").unwrap(), 5);
        assert_eq!(read(&mut b, 3).unwrap(), b"hel");
        drop(a);
        assert_eq!(read(&mut b, 9).unwrap(), b"lo");
        assert_eq!(read(&mut b, 9).unwrap(), b"");
        assert_eq!(
            write(&mut b, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_full_pipe_takes_no_more() {
        let (mut a, mut b) = MemStream::pair().unwrap();
        assert_eq!(write(&mut a, &vec![1; CAPACITY + 5]).unwrap(), CAPACITY);
        assert_eq!(
            write(&mut a, b"x").unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(read(&mut b, 10).unwrap().len(), 10);
        assert_eq!(write(&mut a, &[2; 20]).unwrap(), 10);
    }
}

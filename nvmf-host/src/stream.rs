//! The byte stream under a queue.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A non-blocking, ordered, reliable byte stream in both directions.
///
/// Implemented for [`TcpStream`]; implement it for anything else that a target can be reached
/// through, such as a pair of in-memory pipes in a test.
pub trait Stream: Send + fmt::Debug {
    /// Fills the buffers in order with what has come.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if nothing has. 0 bytes are the end of the stream.
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Takes bytes from the buffers in order, as many as there is room for.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if there is no room.
    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Blocks until the stream can be read or, with `or_write`, written, or for `timeout`.
    /// Returning early is allowed.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn wait(&mut self, or_write: bool, timeout: Duration) -> io::Result<()>;

    /// The descriptor to wait for in an event loop of one's own, if there is one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

impl Stream for TcpStream {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        // recv is cheaper than readv.
        match bufs {
            [one] => self.read(one),
            many => self.read_vectored(many),
        }
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match bufs {
            [one] => self.write(one),
            // Not `writev`: a target that is gone must not raise SIGPIPE, whatever the program does
            // about signals.
            many => {
                let mut nothing = SendAncillaryBuffer::default();
                Ok(sendmsg(&*self, many, &mut nothing, SendFlags::NOSIGNAL)?)
            }
        }
    }

    fn wait(&mut self, or_write: bool, timeout: Duration) -> io::Result<()> {
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, or_write);
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&*self, events)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Stream for Box<dyn Stream> {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (**self).readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (**self).writev(bufs)
    }

    fn wait(&mut self, or_write: bool, timeout: Duration) -> io::Result<()> {
        (**self).wait(or_write, timeout)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
}

/// A TCP connection as a queue wants it: non-blocking and without Nagle's delay.
///
/// # Errors
///
/// What the system says, or that it took longer than `timeout`.
pub fn connect_tcp(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

//! Connections that end at some byte.

use nvmf_host::{Stream, connect_tcp};
use rustix::net::sockopt::set_socket_linger;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

/// How many bytes all connections of an association may move until they end.
#[derive(Debug)]
pub(crate) struct Fuse {
    left: AtomicI64,
    /// By a reset instead of in order.
    reset: bool,
    blown: AtomicBool,
}

impl Fuse {
    pub(crate) fn new(bytes: i64, reset: bool) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(bytes),
            reset,
            blown: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_blown(&self) -> bool {
        self.blown.load(Ordering::Relaxed)
    }
}

/// A connection with a fuse.
#[derive(Debug)]
pub(crate) struct FusedStream {
    stream: Option<TcpStream>,
    fuse: Arc<Fuse>,
}

impl FusedStream {
    pub(crate) fn connect(
        address: SocketAddr,
        timeout: Duration,
        fuse: &Arc<Fuse>,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: Some(connect_tcp(address, timeout)?),
            fuse: Arc::clone(fuse),
        })
    }

    /// The connection, unless it has ended.
    fn stream(&mut self) -> io::Result<&mut TcpStream> {
        if self.fuse.is_blown() {
            self.end();
        }
        self.stream
            .as_mut()
            .ok_or_else(|| ErrorKind::ConnectionAborted.into())
    }

    fn end(&mut self) {
        if let Some(stream) = self.stream.take()
            && self.fuse.reset
        {
            // Without it the end is a FIN; that does as well.
            let _ = set_socket_linger(&stream, Some(Duration::ZERO));
        }
    }

    fn moved(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.fuse.left.fetch_sub(bytes, Ordering::Relaxed) <= bytes {
            self.fuse.blown.store(true, Ordering::Relaxed);
            self.end();
        }
    }
}

impl Stream for FusedStream {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let read = self.stream()?.readv(bufs)?;
        self.moved(read);
        Ok(read)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let left = usize::try_from(self.fuse.left.load(Ordering::Relaxed)).unwrap_or(0);
        let all: usize = bufs.iter().map(|buf| buf.len()).sum();
        let stream = self.stream()?;
        let written = if all <= left {
            stream.writev(bufs)?
        } else {
            // The end is in one of them: the first suffices to come nearer.
            let first = bufs.iter().find(|buf| !buf.is_empty());
            let first = first.map_or(&[][..], |buf| buf);
            stream.writev(&[IoSlice::new(&first[..first.len().min(left.max(1))])])?
        };
        self.moved(written);
        Ok(written)
    }

    fn wait(&mut self, or_write: bool, timeout: Duration) -> io::Result<()> {
        match self.stream() {
            Ok(stream) => stream.wait(or_write, timeout),
            // What comes next says so.
            Err(_) => Ok(()),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().and_then(Stream::fd)
    }
}

//! A connection's stream: code of the embedder's.

use crate::chatter::error;
use crate::contain::{Guarded, contain};
use crate::reactor::Poller;
use crate::transport::Stream;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;

/// A stream whose panics go no further, but for those in the methods that move data: these are
/// contained by [`Conn::on_ready`](super::Conn::on_ready) and [`Conn::flush`](super::Conn::flush),
/// once for all that they do.
pub(crate) struct Wire {
    stream: Guarded<Box<dyn Stream>>,
    peer: String,
}

impl Wire {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        let stream = Guarded::new("a stream", stream);
        let peer = contain(|| stream.peer());
        Self {
            peer: peer.unwrap_or_else(|panic| format!("a peer whose name {panic}")),
            stream,
        }
    }

    /// The peer, for logs.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Calls something that may be done without.
    fn ask<'a, T>(&'a self, call: impl FnOnce(&'a dyn Stream) -> T) -> Option<T> {
        let answer = contain(|| call(&**self.stream));
        answer
            .inspect_err(|panic| error!("{}: its stream {panic}", self.peer))
            .ok()
    }

    /// See [`Stream::peer_ip`].
    pub(crate) fn peer_ip(&self) -> Option<IpAddr> {
        self.ask(|stream| stream.peer_ip()).flatten()
    }

    /// See [`Stream::local_ip`].
    pub(super) fn local_ip(&self) -> Option<IpAddr> {
        self.ask(|stream| stream.local_ip()).flatten()
    }

    /// Watches the stream.
    pub(super) fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        let watched = self.ask(|stream| poller.add(stream.readiness(), token));
        watched.unwrap_or_else(|| Err(io::Error::other("it panicked")))
    }

    /// Watches it no more.
    pub(super) fn unwatch(&self, poller: &Poller) {
        self.ask(|stream| poller.remove(stream.readiness()));
    }

    /// See [`Stream::shutdown_write`].
    pub(super) fn shutdown_write(&mut self) {
        if let Err(panic) = contain(|| self.stream.shutdown_write()) {
            error!("{}: its stream {panic}", self.peer);
        }
    }

    /// See [`Stream::readv`]. May panic.
    pub(super) fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.readv(bufs)
    }

    /// See [`Stream::writev`]. May panic.
    pub(super) fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.writev(bufs)
    }

    /// See [`Stream::has_buffered`]. May panic.
    pub(super) fn has_buffered(&self) -> bool {
        self.stream.has_buffered()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wire").field(&self.peer).finish()
    }
}

//! TCP listeners and connections.

use super::{Stream, Transport, TransportAddress};
use crate::Error;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpTransport {
    listener: TcpListener,
    address: SocketAddr,
}

impl TcpTransport {
    /// Binds and listens. An IPv6 wildcard address takes IPv6 only, so that an IPv4 one can stand
    /// beside it.
    ///
    /// # Errors
    /// [`Error::Io`] with the address if it cannot be bound.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bind = || -> io::Result<Self> {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            // The largest backlog that the system allows: hosts reconnect all at once.
            socket.listen(i32::from(u16::MAX))?;
            socket.set_nonblocking(true)?;
            let listener = TcpListener::from(socket);
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|err| Error::io(format!("cannot listen on {address}"), err))
    }

    /// The address that was bound, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Transport for TcpTransport {
    fn address(&self) -> TransportAddress {
        TransportAddress::tcp(self.address)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        match self.listener.accept() {
            Ok((stream, peer)) => Ok(Some(Box::new(TcpConnection::new(stream, peer)?))),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(err) => Err(err),
        }
    }
}

struct TcpConnection {
    stream: TcpStream,
    peer: SocketAddr,
}

impl TcpConnection {
    fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Responses are gathered by the reactor; Nagle's algorithm would only hold them back.
        stream.set_nodelay(true)?;
        // The second net under Keep Alive: a host that vanished before its Connect.
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15));
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, peer })
    }
}

impl Stream for TcpConnection {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.read_vectored(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        // Not `writev`: a peer that is gone must not raise SIGPIPE, whatever the embedder's process
        // does about signals.
        let mut nothing = SendAncillaryBuffer::default();
        Ok(sendmsg(
            &self.stream,
            bufs,
            &mut nothing,
            SendFlags::NOSIGNAL,
        )?)
    }

    fn shutdown_write(&mut self) {
        // A peer that is gone already makes this fail, and then there is nothing to shut.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        Some(self.peer.ip())
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|a| a.ip())
    }
}

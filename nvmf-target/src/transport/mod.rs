//! Where connections come from and how their bytes move.
//!
//! A [`Transport`] yields [`Stream`]s; NVMe/TCP runs on any reliable byte stream. TCP
//! ([`TcpTransport`]) and an in-process pipe ([`MemTransport`]) come with the crate; TLS, Unix or
//! vsock streams are implementations of the same two traits.

mod mem;
mod tcp;

pub use nvmf_proto::wire::discovery::{AddressFamily, TransportType};

pub use mem::{MemConnector, MemStream, MemTransport};
pub use tcp::TcpTransport;

use crate::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// The address of a listener as the discovery log shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportAddress {
    /// TRTYPE.
    pub trtype: TransportType,
    /// ADRFAM.
    pub adrfam: AddressFamily,
    /// TRADDR: the address in text, at most 256 printable ASCII characters.
    pub traddr: String,
    /// TRSVCID: the service (port) in text, at most 32 printable ASCII characters.
    pub trsvcid: String,
    /// The listener accepts on every address of its family: the discovery log names the one by
    /// which the host has reached the target.
    pub wildcard: bool,
}

impl TransportAddress {
    /// The address of an NVMe/TCP listener.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        let ip = address.ip();
        Self {
            trtype: TransportType::TCP,
            adrfam: if ip.is_ipv4() {
                AddressFamily::IPV4
            } else {
                AddressFamily::IPV6
            },
            traddr: ip.to_string(),
            trsvcid: address.port().to_string(),
            wildcard: ip.is_unspecified(),
        }
    }
}

impl TransportAddress {
    /// What the discovery log can say: ASCII, as long as its fields.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for (name, value, max) in [
            ("TRADDR", &self.traddr, 256),
            ("TRSVCID", &self.trsvcid, 32),
        ] {
            if value.len() > max || !value.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
                return Err(Error::config(format!(
                    "{name} {value:?}: at most {max} printable ASCII characters are wanted"
                )));
            }
        }
        Ok(())
    }
}

/// As `192.0.2.7:4420` or `[2001:db8::7]:4420`; TRADDR alone if there is no service.
impl fmt::Display for TransportAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            traddr, trsvcid, ..
        } = self;
        match (trsvcid.as_str(), self.adrfam) {
            ("", _) => f.write_str(traddr),
            (_, AddressFamily::IPV6) => write!(f, "[{traddr}]:{trsvcid}"),
            _ => write!(f, "{traddr}:{trsvcid}"),
        }
    }
}

/// A listener. Called on the target's accepting thread, but for [`Transport::address`].
pub trait Transport: Send + 'static {
    /// What the discovery log says about this listener. Asked by whoever adds it, under locks of the
    /// target: it must not call a method of the target, which would wait for itself.
    fn address(&self) -> TransportAddress;

    /// A descriptor that is readable when [`Transport::accept`] has something.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// The next connection; `None` when there is none at the moment. Must not block: no other
    /// listener accepts meanwhile. May call the target; a listener that it removes here is closed
    /// when this has returned.
    ///
    /// # Errors
    /// An error is logged, and the target tries again after a pause of 100 ms. If the system has too
    /// few descriptors or too little memory (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`), all listeners
    /// pause, and connections that are no queues yet make way.
    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>>;
}

/// One connection: a reliable byte stream that does not block. Lives on one reactor's thread.
pub trait Stream: Send + 'static {
    /// A descriptor for epoll: readable when `readv` has something, writable when `writev` takes
    /// something. It is watched edge-triggered.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// Reads into the buffers in order; 0 at the end of the stream. Less than the buffers hold means
    /// that nothing more is there until [`Stream::readiness`] says so again, unless
    /// [`Stream::has_buffered`] is true.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; any other error ends the connection.
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Writes the buffers in order, as much as is taken.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is taken; any other error ends the connection.
    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that nothing more will be written; reading goes on.
    fn shutdown_write(&mut self);

    /// Whether bytes are waiting inside the stream itself (decrypted records, say), which the
    /// descriptor does not show.
    fn has_buffered(&self) -> bool {
        false
    }

    /// The peer, for logs.
    fn peer(&self) -> String;

    /// The peer's address, where it has one.
    fn peer_ip(&self) -> Option<IpAddr> {
        None
    }

    /// The local address by which the peer reached the target, where it has one.
    fn local_ip(&self) -> Option<IpAddr> {
        None
    }
}

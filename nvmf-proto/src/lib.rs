//! Sans-IO NVMe over Fabrics: wire formats, and the NVMe/TCP state machines of both ends.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or starts a thread, and no
//! input from a peer can make it panic. Payload bytes never enter this crate: the state machines
//! say where the next bytes of the stream belong ([`tcp::Need`]) and the caller moves them.
//!
//! * [`wire`]: the structures of NVMe Base, the NVM Command Set, NVMe over Fabrics and NVMe/TCP.
//! * [`tcp`]: one state machine per connection, [`tcp::target::TcpTarget`] and
//!   [`tcp::host::TcpHost`].
//!
//! Three families of failure are kept apart: a [`tcp::Violation`] is a peer that broke NVMe/TCP
//! (it is told so by a TermReq PDU and the connection ends), a [`wire::Status`] is the outcome of
//! one command (the connection lives), and errors of one's own have no place in this crate.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod tcp;
pub mod wire;

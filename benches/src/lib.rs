//! What the measuring programs of this workspace share.
//!
//! * [`stub`]: a server and a client that move the same bytes as NVMe/TCP and do nothing else: the
//!   limit that the TCP of a machine sets.
//! * [`load`]: the load generator, on `nvmf-host`.
//! * [`report`] and [`histogram`]: what both print.
//!
//! The programs are `stub`, `loadgen` and `compare`; each says with `--help` what it does.

pub mod histogram;
pub mod load;
pub mod poll;
pub mod report;
pub mod stub;
pub mod system;

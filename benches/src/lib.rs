//! What the measuring and soaking programs of this workspace share.
//!
//! * [`stub`]: a server and a client that move the same bytes as NVMe/TCP and do nothing else: the
//!   limit that the TCP of a machine sets.
//! * [`load`]: the load generator, on `nvmf-host`.
//! * [`report`] and [`histogram`]: what both print.
//!
//! The programs are `stub`, `loadgen`, `compare`, `instructions` and `soak`; each says with `--help`
//! what it does.

pub mod histogram;
pub mod load;
pub mod poll;
pub mod report;
pub mod stub;
pub mod system;

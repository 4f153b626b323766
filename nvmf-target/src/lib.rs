//! An embeddable NVMe over Fabrics target.

#![deny(unsafe_code)]

#[expect(
    unsafe_code,
    reason = "the memory of I/O buffers is mapped and lent by hand"
)]
pub mod buf;
mod config;
mod conn;
mod ctrl;
mod error;
pub mod ns;
mod reactor;
mod target;
pub mod transport;
mod wake;

pub use config::{SubsystemConfig, TargetConfig};
pub use ctrl::Role;
pub use error::Error;
pub use target::{Target, TargetStats};

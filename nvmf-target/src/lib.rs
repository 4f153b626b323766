//! An embeddable NVMe over Fabrics target.

#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "the memory of I/O buffers is mapped and lent by hand")]
pub mod buf;
mod error;
pub mod ns;
mod wake;

pub use error::Error;

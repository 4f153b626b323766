//! Structures as they stand on the wire, little endian, with the specifications' names.
//!
//! Values that a specification may extend are newtypes over their integer with associated
//! constants, so that an unknown value survives; sets of one-bit flags are `bitflags`.
//! Encoding takes a fixed-size array, so that no length can be wrong.

pub mod abort;
pub mod copy;
pub mod cqe;
pub mod discovery;
pub mod dsm;
pub mod fabrics;
pub mod feature;
pub mod identify;
mod layout;
pub mod log;
pub mod nqn;
pub mod opcode;
pub mod pdu;
pub mod property;
pub mod reservation;
pub mod sgl;
pub mod sqe;
pub mod status;

pub use cqe::Cqe;
pub use layout::{padded_ascii, trimmed_text};
pub use opcode::{AdminOpcode, NvmOpcode};
pub use sgl::SglDescriptor;
pub use sqe::Sqe;
pub use status::Status;

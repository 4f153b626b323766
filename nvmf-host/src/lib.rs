//! A small NVMe/TCP host (initiator) that needs no kernel module.
//!
//! * [`discover`] asks a discovery service what there is.
//! * [`Controller`] is an association with a controller: Connect, enable, Identify, log pages,
//!   features, events, reset and shutdown, all blocking and bounded by a timeout.
//! * [`IoQueue`] is an I/O queue with blocking reads and writes.
//! * [`Queue`] under both is one connection: non-blocking, pipelined, one gather write for
//!   everything submitted, no allocation per command.
//! * [`raw`] is a connection that keeps to nothing, for tests of targets; `torture` (feature
//!   `torture`) is a catalogue of lies for it.
//!
//! Everything that a target sends is checked in full ([`nvmf_proto::tcp::host`]); a target that
//! breaks NVMe/TCP is told so and left, with [`Error::Violation`]. The crate starts no threads:
//! whoever asks for a keep alive timeout has to call [`Controller::keep_alive`] in time.
//!
//! ```no_run
//! use nvmf_host::{ConnectOptions, Controller, discover};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), nvmf_host::Error> {
//! for entry in discover(([127, 0, 0, 1], 8009).into())? {
//!     println!("{}:{}", entry.address(), entry.service());
//! }
//!
//! let address = ([127, 0, 0, 1], 4420).into();
//! let options = ConnectOptions::new(address, "nqn.2024-01.org.example:disks")?;
//! let mut controller = Controller::connect(&options)?;
//! controller.set_queue_count(1)?;
//! let mut queue = controller.io_queue(1)?;
//! let nsids = controller.active_namespaces()?;
//! let disk = controller.namespace(nsids[0])?;
//!
//! // Blocking.
//! let mut block = vec![0; disk.block_size as usize];
//! queue.read(&disk, 0, &mut block)?;
//! queue.write(&disk, 1, &block)?;
//! queue.flush(&disk)?;
//!
//! // Pipelined: 32 reads leave in one system call; buffers come back with their completions.
//! for lba in 0..32 {
//!     queue.submit_read(&disk, lba, vec![0; disk.block_size as usize], lba)?;
//! }
//! let mut left = 32;
//! while left > 0 {
//!     for done in queue.poll(Duration::from_secs(1))? {
//!         let done = done.success("Read")?;
//!         println!("LBA {}: {} bytes", done.tag, done.received);
//!         left -= 1;
//!     }
//! }
//! controller.disconnect()
//! # }
//! ```

pub mod command;
mod controller;
mod error;
mod io_queue;
mod options;
mod queue;
pub mod raw;
mod reservation;
mod stream;
#[cfg(feature = "torture")]
pub mod torture;

pub use controller::{Connector, Controller, discover};
pub use error::Error;
pub use io_queue::{IoQueue, Namespace};
pub use nvmf_proto;
pub use options::ConnectOptions;
pub use queue::{Completion, Completions, Data, Queue, Refused, Token};
pub use reservation::ReservationReport;
pub use stream::{Stream, connect_tcp};

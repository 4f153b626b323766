//! An embeddable NVMe over Fabrics target: it serves storage of yours to NVMe/TCP hosts.
//!
//! A [`Target`] has subsystems, a subsystem has namespaces, and a namespace is whatever implements
//! [`ns::BlockDevice`] (blocking methods, the short way) or [`ns::Namespace`] and [`ns::Lane`]
//! (owned requests and completions, the fast way). A [`ns::RamDisk`] and a [`ns::FileBackend`] for
//! files and block devices are here already. Nothing is global: a process may run several targets.
//!
//! ```no_run
//! use nvmf_target::ns::{BlockDevice, NsError, NsInfo, Threaded};
//! use nvmf_target::{SubsystemConfig, Target, TargetConfig};
//! use std::{fs::File, os::unix::fs::FileExt, time::Duration};
//!
//! struct Image(File);
//!
//! impl BlockDevice for Image {
//!     fn info(&self) -> NsInfo {
//!         NsInfo::new(4096, 262_144).with_volatile_cache()
//!     }
//!     fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
//!         Ok(self.0.read_exact_at(buf, offset)?)
//!     }
//!     fn write_at(&self, offset: u64, buf: &[u8], _fua: bool) -> Result<(), NsError> {
//!         Ok(self.0.write_all_at(buf, offset)?)
//!     }
//!     fn flush(&self) -> Result<(), NsError> {
//!         Ok(self.0.sync_data()?)
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let nqn = "nqn.2026-11.org.example:images";
//!     let file = File::options().read(true).write(true).open("disk.img")?;
//!     let target = Target::new(TargetConfig::default())?;
//!     target.add_subsystem(SubsystemConfig::new(nqn))?;
//!     target.add_namespace(nqn, 1, Threaded::new(Image(file), 8))?;
//!     println!("listening on {}", target.listen("0.0.0.0:4420".parse()?)?);
//!     std::io::stdin().read_line(&mut String::new())?;
//!     println!("all done: {}", target.shutdown(Duration::from_secs(10)));
//!     Ok(())
//! }
//! ```
//!
//! # Modules
//!
//! * this one: [`Target`] and its configuration, [`Error`], the [`Role`] of a listener;
//! * [`ns`]: what is served: the traits, their adapters, RAM, files and block devices;
//! * [`transport`]: where connections come from: TCP, memory, or a [`transport::Transport`] of
//!   your own.
//!
//! # Which calls come on which thread
//!
//! A target starts [`TargetConfig::reactors`] reactor threads (`nvmf-reactor-N`) and one that
//! accepts connections (`nvmf-accept`), with a [`ReservationStore`] one that saves what hosts want
//! to be saved (`nvmf-reserve`); a [`ns::WorkerPool`] starts its own (`nvmf-worker`).
//!
//! | call | thread |
//! |---|---|
//! | methods of [`Target`] | any |
//! | [`ns::BlockDevice`], I/O methods, in [`ns::Threaded`] | a worker of its pool, several at once |
//! | [`ns::BlockDevice`], I/O methods, in [`ns::Inline`] | a reactor, several at once |
//! | reads, writes and flushes of a [`ns::FileNamespace`] with io_uring | a reactor, without blocking |
//! | `info` of either trait | the caller of [`Target::add_namespace`] or [`ns::NsSink::changed`] |
//! | `subscribe` of either trait | the caller of [`Target::add_namespace`] |
//! | [`ns::Namespace::open_lane`], all of [`ns::Lane`], its drop | the reactor that uses the lane |
//! | [`ns::Request::complete`], dropping a request | any |
//! | [`ns::Interceptor`], what a [`ns::Trace`] calls | whichever completes the request, a reactor perhaps |
//! | [`ReservationStore`], `load` and `set_aside` | the caller of [`Target::add_namespace`] |
//! | [`ReservationStore`], `save` and `remove` | `nvmf-reserve`, one at a time |
//! | [`transport::Transport`] | `nvmf-accept` |
//! | [`transport::Stream`] | one reactor, after `nvmf-accept` has handed it over |
//! | dropping a namespace | whichever thread lets go of it last, a reactor perhaps |
//!
//! What runs on a reactor must not block: all connections of that reactor wait meanwhile.
//!
//! `docs/embedding.md` in the repository explains durability, errors, limits and memory;
//! `docs/conformance.md` what hosts may expect.

#![deny(unsafe_code)]

#[expect(
    unsafe_code,
    reason = "the memory of I/O buffers is mapped and lent by hand"
)]
mod buf;
mod change;
mod chatter;
mod config;
mod conn;
mod contain;
mod ctrl;
mod error;
#[cfg(all(loom, test))]
mod loom_models;
mod manage;
pub mod ns;
mod reactor;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;
mod target;
pub mod transport;
mod wake;

pub use change::Change;
pub use config::{
    ListenerConfig, ListenerInfo, NamespaceConfig, Referral, Role, SubsystemConfig, TargetConfig,
};
pub use ctrl::AnaState;
pub use ctrl::reservation::{FileReservationStore, ReservationScope, ReservationStore};
pub use error::Error;
pub use nvmf_proto::wire::Status;
pub use target::{Target, TargetStats};

/// Compiles the examples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embedding.md")]
struct EmbeddingGuide;

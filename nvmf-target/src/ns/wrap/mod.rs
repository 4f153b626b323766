//! Namespaces around namespaces: for tests ([`Faulty`], [`Delayed`]), for observation ([`Stats`],
//! [`Trace`]), for protection ([`ReadOnly`]).
//!
//! Each takes any [`Namespace`], an `Arc<dyn Namespace>` as well, and is one, so that they stack.
//! What is changed or read while the namespace is in use is a handle that is taken before.
//!
//! ```
//! use nvmf_target::ns::{Fault, Faulty, Inline, OpKind, RamDisk, Rule, Stats};
//! use nvmf_target::{Status, SubsystemConfig, Target, TargetConfig};
//!
//! # fn main() -> Result<(), nvmf_target::Error> {
//! let disk = Inline::new(RamDisk::new(1 << 20, 512)?);
//! let faulty = Faulty::new(disk);
//! let faults = faulty.faults();
//! let stats = Stats::new(faulty);
//! let counters = stats.counters();
//!
//! let target = Target::new(TargetConfig::default())?;
//! target.add_subsystem(SubsystemConfig::new("nqn.2026-11.org.example:disks"))?;
//! target.add_namespace("nqn.2026-11.org.example:disks", 1, stats)?;
//!
//! // From now on every third write to the first hundred blocks fails.
//! let fault = Fault::Status(Status::WRITE_FAULT);
//! let rule = faults.add(Rule::new(fault).on([OpKind::Write]).blocks(0..100).every(3));
//! // Later:
//! let failed = counters.read().op(OpKind::Write).failed;
//! assert_eq!(failed, faults.hits(rule));
//! faults.clear();
//! # Ok(())
//! # }
//! ```

mod delayed;
mod faulty;
mod read_only;
mod stats;
mod trace;

pub use delayed::{Delay, Delayed, Pace};
pub use faulty::{Fault, Faults, Faulty, Held, Rule, RuleId};
pub use read_only::{ReadOnly, ReadOnlySwitch};
pub use stats::{Counters, Histogram, OpStats, Snapshot, Stats};
pub use trace::{Trace, TraceEvent};

use super::{BlockDevice, Lane, Op, Request, RequestId};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What a request asks for, without the particulars of [`Op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpKind {
    /// [`Op::Read`].
    Read,
    /// [`Op::Write`].
    Write,
    /// [`Op::Flush`].
    Flush,
    /// [`Op::WriteZeroes`].
    WriteZeroes,
    /// [`Op::Deallocate`].
    Deallocate,
    /// [`Op::Compare`].
    Compare,
    /// [`Op::CompareAndWrite`].
    CompareAndWrite,
    /// [`Op::Verify`].
    Verify,
}

impl OpKind {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::WriteZeroes,
        Self::Deallocate,
        Self::Compare,
        Self::CompareAndWrite,
        Self::Verify,
    ];

    /// Its place in [`OpKind::ALL`].
    const fn index(self) -> usize {
        self as usize
    }
}

impl From<Op> for OpKind {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write { .. } => Self::Write,
            Op::Flush => Self::Flush,
            Op::WriteZeroes { .. } => Self::WriteZeroes,
            Op::Deallocate => Self::Deallocate,
            Op::Compare => Self::Compare,
            Op::CompareAndWrite { .. } => Self::CompareAndWrite,
            Op::Verify => Self::Verify,
        }
    }
}

/// Operations, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ops(u8);

impl Ops {
    const ALL: Self = Self(u8::MAX);

    fn of(kinds: impl IntoIterator<Item = OpKind>) -> Self {
        let bits = kinds.into_iter().map(|kind| 1 << kind.index());
        Self(bits.fold(0, |all, bit: u8| all | bit))
    }

    const fn has(self, kind: OpKind) -> bool {
        self.0 & 1 << kind.index() != 0
    }
}

/// Numbers that look random, the same ones for the same seed (SplitMix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `n`, which is not 0.
    fn below(&mut self, n: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(n);
        (product >> 64) as u64
    }
}

/// What a wrapper does with the requests of a lane.
trait Enter {
    /// A request on its way in. `None`: it goes no further.
    fn enter(&mut self, request: Request) -> Option<Request>;

    /// The host wants a request aborted that the lane has begun, or has finished.
    fn cut_short(&mut self, id: RequestId) {
        let _ = id;
    }

    /// What may be called in place of a device that works on the reactor's thread.
    fn device(&self, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        let _ = device;
        None
    }
}

/// A lane around a lane.
struct Around<E> {
    lane: Box<dyn Lane>,
    enter: E,
}

impl<E: Enter> Lane for Around<E> {
    fn submit(&mut self, request: Request) {
        if let Some(request) = self.enter.enter(request) {
            self.lane.submit(request);
        }
    }

    fn commit(&mut self) {
        self.lane.commit();
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        let request = self.lane.abort(id);
        if request.is_none() {
            self.enter.cut_short(id);
        }
        request
    }

    fn poll(&mut self, budget: u32) -> u32 {
        self.lane.poll(budget)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lane.wake_fd()
    }

    fn inline_device(&self) -> Option<Arc<dyn BlockDevice>> {
        self.enter.device(self.lane.inline_device()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_place() {
        for (i, kind) in OpKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), i);
            let others = OpKind::ALL.into_iter().filter(|&other| other != kind);
            assert!(Ops::of([kind]).has(kind) && !Ops::of(others).has(kind));
        }
    }

    #[test]
    fn random_numbers_depend_on_the_seed_alone_and_reach_all_values() {
        let numbers = |seed| {
            let mut random = Random(seed);
            [0; 200].map(|_| random.below(7))
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert!((0..7).all(|n| numbers(3).contains(&n)));
        assert_eq!(Random(5).below(1), 0);
    }
}

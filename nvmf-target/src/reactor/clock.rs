//! The time that a reactor goes by: the monotonic clock, or what a simulation says.

use nvmf_proto::tcp::Time;
use rustix::time::{ClockId, clock_gettime};
#[cfg(feature = "sim")]
use std::cell::Cell;

#[cfg(feature = "sim")]
thread_local! {
    static SIMULATED: Cell<Option<Time>> = const { Cell::new(None) };
}

/// From now on it is `time` on this thread, until it is told otherwise; `None`: what the monotonic
/// clock says.
#[cfg(feature = "sim")]
pub(crate) fn set_time(time: Option<Time>) {
    SIMULATED.set(time);
}

/// Nanoseconds of the monotonic clock, the same for all threads.
pub(crate) fn now() -> Time {
    #[cfg(feature = "sim")]
    if let Some(time) = SIMULATED.get() {
        return time;
    }
    let t = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    Time(seconds * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0))
}

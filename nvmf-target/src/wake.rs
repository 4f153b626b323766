//! Waking a reactor from another thread: an eventfd, written only when the reactor sleeps.

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Arc, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

#[derive(Debug)]
struct Inner {
    event: EventFd,
    state: AtomicU8,
}

/// A handle that wakes one reactor. Cheap to clone; usable from any thread.
///
/// The protocol: whoever has something for the reactor makes it visible, then calls [`wake`]. The
/// reactor calls [`prepare_sleep`], blocks only if that says so, calls [`awake`], and looks for
/// news after that. So news that it has not seen either keep it from blocking or see it asleep.
///
/// [`wake`]: Waker::wake
/// [`prepare_sleep`]: Waker::prepare_sleep
/// [`awake`]: Waker::awake
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Inner>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            event: EventFd::new()?,
            state: AtomicU8::new(AWAKE),
        })))
    }

    /// Makes the reactor's next or present wait end. A system call only if it is asleep and nobody
    /// has woken it yet.
    pub(crate) fn wake(&self) {
        if self.0.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            self.0.event.raise();
        }
    }

    /// Announces that the reactor is about to block. False: there is news, do not.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.0
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// The reactor runs again. True if it was woken since the last call.
    pub(crate) fn awake(&self) -> bool {
        // Written at every turn of the loop only if it changes: the line stays unshared.
        if self.0.state.load(Ordering::SeqCst) == AWAKE {
            return false;
        }
        self.0.state.swap(AWAKE, Ordering::SeqCst) == NOTIFIED
    }

    /// Whether there is news that the reactor has not looked for since.
    #[cfg(feature = "sim")]
    pub(crate) fn has_news(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == NOTIFIED
    }

    /// Takes the eventfd's readiness back, after the poller reported it.
    pub(crate) fn drain(&self) {
        self.0.event.lower();
    }

    /// What waiting for the eventfd does, in a model.
    #[cfg(all(loom, test))]
    pub(crate) fn wait(&self) {
        self.0.event.wait();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_per_sleep() {
        let w = Waker::new().unwrap();
        w.wake();
        assert!(!w.prepare_sleep(), "news before sleeping");
        assert!(w.awake());
        assert!(!w.awake());
        assert!(w.prepare_sleep());
        w.wake();
        w.wake();
        let mut count = [0; 8];
        rustix::io::read(&w, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        assert!(w.awake());
    }
}

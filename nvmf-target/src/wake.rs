//! Waking a reactor from another thread: an eventfd, written only when the reactor sleeps.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    state: AtomicU8,
}

/// A handle that wakes one reactor. Cheap to clone; usable from any thread.
///
/// The protocol: whoever has something for the reactor makes it visible, then calls [`wake`]. The
/// reactor calls [`prepare_sleep`], looks once more, and only then blocks. So either the reactor
/// sees the news or the waker sees the sleeper.
///
/// [`wake`]: Waker::wake
/// [`prepare_sleep`]: Waker::prepare_sleep
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<Inner>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Inner {
            fd,
            state: AtomicU8::new(AWAKE),
        })))
    }

    /// Makes the reactor's next or present wait end. A system call only if it is asleep and nobody
    /// has woken it yet.
    pub(crate) fn wake(&self) {
        if self.0.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            // It can fail only by overflow of the counter, and then the descriptor is readable.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
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

    /// Takes the eventfd's readiness back, after the poller reported it.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.fd, &mut count);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
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

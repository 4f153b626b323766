//! What threads share memory by: the standard library's types, or loom's where its models run this
//! code in every order that the memory model allows ([`crate::loom_models`]).

#[cfg(not(all(loom, test)))]
mod real {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};
    pub(crate) use std::thread::yield_now;
    pub(crate) use std::thread_local;

    use rustix::event::{EventfdFlags, eventfd};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    /// A descriptor that is readable from [`EventFd::raise`] to [`EventFd::lower`].
    #[derive(Debug)]
    pub(crate) struct EventFd(OwnedFd);

    impl EventFd {
        pub(crate) fn new() -> io::Result<Self> {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            Ok(Self(eventfd(0, flags)?))
        }

        pub(crate) fn raise(&self) {
            // It can fail only by overflow of the counter, and then the descriptor is readable.
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }

        pub(crate) fn lower(&self) {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.0, &mut count);
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(all(loom, test)))]
pub(crate) use real::*;

#[cfg(all(loom, test))]
mod model {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};

    use loom::sync::Condvar;
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    /// For one who waits and has looked before. What waits looks as often as it likes: from here on
    /// the run goes to its end in one order only.
    pub(crate) fn yield_now() {
        loom::skip_branch();
        loom::thread::yield_now();
    }

    /// loom's does not know `const`.
    macro_rules! model_local {
        ($(#[$doc:meta])* static $name:ident: $type:ty = const { $init:expr };) => {
            loom::thread_local! { $(#[$doc])* static $name: $type = $init; }
        };
    }
    pub(crate) use model_local as thread_local;

    /// What stands for an eventfd in a model, where nothing else watches descriptors. It orders no
    /// more than the lock in the kernel does that an eventfd has.
    #[derive(Debug)]
    pub(crate) struct EventFd {
        raised: Mutex<bool>,
        changed: Condvar,
        descriptor: File,
    }

    impl EventFd {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self {
                raised: Mutex::new(false),
                changed: Condvar::new(),
                descriptor: File::open("/dev/null")?,
            })
        }

        pub(crate) fn raise(&self) {
            *self.raised.lock().unwrap() = true;
            self.changed.notify_all();
        }

        pub(crate) fn lower(&self) {
            *self.raised.lock().unwrap() = false;
        }

        /// Blocks until it is raised.
        pub(crate) fn wait(&self) {
            let mut raised = self.raised.lock().unwrap();
            while !*raised {
                raised = self.changed.wait(raised).unwrap();
            }
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }
    }
}

#[cfg(all(loom, test))]
pub(crate) use model::*;

//! Waiting for many sockets in one thread, asleep or spinning.

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// An epoll instance; each descriptor has a number of the caller's choice.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
    timeout: Timespec,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

impl Poller {
    /// With `spin`, [`Poller::wait`] never sleeps.
    ///
    /// # Errors
    ///
    /// The process has no descriptors left.
    pub fn new(spin: bool) -> io::Result<Self> {
        let mut poller = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(256),
            timeout: Timespec::default(),
        };
        poller.set_spin(spin);
        Ok(poller)
    }

    /// Whether [`Poller::wait`] spins from now on.
    pub const fn set_spin(&mut self, spin: bool) {
        // Bounded, so that a loop around it can look at the clock.
        self.timeout.tv_nsec = if spin { 0 } else { 100_000_000 };
    }

    /// Waits for input on a descriptor from now on.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn add(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(number), EventFlags::IN)?;
        Ok(())
    }

    /// Waits for room for output too, or no longer.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn want_output(&self, fd: impl AsFd, number: u64, wanted: bool) -> io::Result<()> {
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, wanted);
        epoll::modify(&self.epoll, fd, EventData::new_u64(number), flags)?;
        Ok(())
    }

    /// Stops waiting for a descriptor.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, fd)?;
        Ok(())
    }

    /// The numbers of the descriptors that are ready for something.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn wait(&mut self) -> io::Result<impl Iterator<Item = u64>> {
        self.events.clear();
        let ready = spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, ready, Some(&self.timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64()))
    }
}

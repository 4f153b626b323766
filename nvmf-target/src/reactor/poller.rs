//! Readiness: what the operating system offers for watching many descriptors. Linux epoll here;
//! another system's mechanism would replace this file.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Descriptors that one wait reports.
const BATCH: usize = 256;

/// What has become of a descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    /// The peer has closed its side, or the connection is broken.
    pub(crate) ended: bool,
}

/// Watches descriptors, each under a token.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Watches a descriptor, edge-triggered: for reading, for writing and for the peer's end.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }

    /// Watches a descriptor for reading, level-triggered.
    pub(crate) fn add_level(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            EventFlags::IN,
        )?)
    }

    /// Stops watching a descriptor.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It fails only for a descriptor that is not watched, which is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for readiness, at most `timeout` (`None`: for ever), and hands over what is ready.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        mut ready: impl FnMut(u64, Ready),
    ) -> io::Result<()> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    let (data, flags) = (event.data, event.flags);
                    let over = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                    ready(
                        data.u64(),
                        Ready {
                            ended: flags.intersects(over),
                        },
                    );
                }
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

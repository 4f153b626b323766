//! Files and block devices by io_uring: one ring per reactor, shared by its lanes.
//!
//! The ring does what I/O mostly consists of: Read, Write and Flush. Everything else goes to the
//! worker threads, which have the code for it, with its ways around file systems that lack an
//! operation; and the kernel would use a thread of its own for it anyway.

#[expect(
    unsafe_code,
    reason = "the kernel is given pointers to memory that it fills later"
)]
mod ring;
#[cfg(test)]
mod tests;

use super::super::block::{self, Failure};
use super::{FileBackend, NsError};
use crate::ns::{Lane, Op, Request, RequestId};
use nvmf_proto::wire::Status;
use ring::{OpenFile, Outcome, Ring};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

/// Finds out whether there is io_uring for this process.
///
/// # Errors
/// Why not.
pub(super) fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

/// Whether a ring that could not be made never will be: there is none, or not for this process.
/// Anything else, such as a limit that is reached while very many hosts come at once, may be over
/// soon.
pub(super) fn is_lasting(err: &io::Error) -> bool {
    let never = [Errno::NOSYS, Errno::PERM, Errno::ACCESS, Errno::INVAL];
    match Errno::from_io_error(err) {
        Some(errno) => never.contains(&errno),
        None => err.kind() == io::ErrorKind::Unsupported,
    }
}

/// The ring of a reactor, made when the first lane wants it. Stays on the reactor's thread.
#[derive(Clone, Default)]
pub(crate) struct ReactorRing(Rc<RefCell<State>>);

#[derive(Default)]
enum State {
    #[default]
    Unwanted,
    Made(Rc<RefCell<Ring>>),
    /// Why it cannot be had, and never will be.
    Refused(String),
}

impl ReactorRing {
    /// Whether a lane uses it.
    pub(crate) fn is_used(&self) -> bool {
        matches!(*self.0.borrow(), State::Made(_))
    }

    /// Calls `f` with what becomes readable, and again without having been read, when
    /// [`ReactorRing::turn`] has something to do; `None` without a ring.
    pub(crate) fn with_fd<R>(&self, f: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> R) -> Option<R> {
        match &*self.0.borrow() {
            State::Made(ring) => Some(f(ring.borrow().as_fd())),
            State::Unwanted | State::Refused(_) => None,
        }
    }

    /// Submits what the lanes have taken and completes some of what is finished: once per turn of
    /// the reactor.
    pub(crate) fn turn(&self) {
        if let State::Made(ring) = &*self.0.borrow() {
            ring.borrow_mut().turn(settle);
        }
    }

    /// Submits what the lanes have taken since then.
    pub(crate) fn submit(&self) {
        if let State::Made(ring) = &*self.0.borrow() {
            ring.borrow_mut().submit(settle);
        }
    }

    /// Whether [`ReactorRing::turn`] is to be called again even if nothing happens.
    pub(crate) fn owes(&self) -> bool {
        match &*self.0.borrow() {
            State::Made(ring) => ring.borrow().owes(),
            State::Unwanted | State::Refused(_) => false,
        }
    }

    /// The ring, made by `make` if there is none yet and it was not refused for good.
    fn get(&self, make: impl FnOnce() -> io::Result<Ring>) -> Result<Rc<RefCell<Ring>>, String> {
        let state = &mut *self.0.borrow_mut();
        match state {
            State::Made(ring) => return Ok(Rc::clone(ring)),
            State::Refused(why) => return Err(why.clone()),
            State::Unwanted => {}
        }
        match make() {
            Ok(ring) => {
                let ring = Rc::new(RefCell::new(ring));
                *state = State::Made(Rc::clone(&ring));
                Ok(ring)
            }
            Err(err) => {
                if is_lasting(&err) {
                    *state = State::Refused(err.to_string());
                }
                Err(err.to_string())
            }
        }
    }
}

impl fmt::Debug for ReactorRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReactorRing")
    }
}

/// Answers a request that the ring is done with.
fn settle(request: Request, file: &Rc<OpenFile>, outcome: Outcome) {
    let done = match outcome {
        Outcome::Done => Ok(()),
        Outcome::Cancelled => return request.complete(Err(Status::ABORT_REQUESTED)),
        Outcome::Failed(err) => Err(err),
        Outcome::Nothing(offset) => Err(match request.op() {
            Op::Read => file.backend.ended(offset),
            _ => io::ErrorKind::WriteZero.into(),
        }),
        Outcome::WouldBlock => {
            let mut threads = file.threads.borrow_mut();
            threads.submit(request);
            return threads.commit();
        }
    };
    match file.backend.promised(request.op(), done) {
        Ok(()) => request.complete(Ok(())),
        Err(err) => fail(request, err),
    }
}

fn fail(request: Request, err: io::Error) {
    let failure = Failure::new(request.op(), NsError::Io(err));
    block::finish(request, Err(failure));
}

/// A lane that gives its requests to the reactor's ring.
pub(super) struct UringLane {
    ring: Rc<RefCell<Ring>>,
    file: Rc<OpenFile>,
}

impl UringLane {
    /// A lane for a file; `threads` does for it what the ring does not.
    ///
    /// # Errors
    /// Why there is no ring.
    pub(super) fn new(
        ring: &ReactorRing,
        backend: &Arc<FileBackend>,
        threads: Box<dyn Lane>,
    ) -> Result<Self, String> {
        let ring = ring.get(Ring::new)?;
        let file = OpenFile {
            backend: Arc::clone(backend),
            threads: RefCell::new(threads),
        };
        Ok(Self {
            ring,
            file: Rc::new(file),
        })
    }
}

impl Lane for UringLane {
    fn submit(&mut self, request: Request) {
        let backend = &self.file.backend;
        let by_ring = match request.op() {
            Op::Read | Op::Write { .. } => {
                let at = request.byte_range();
                if let Err(err) = backend.covers(at.start, at.end - at.start) {
                    return fail(request, err);
                }
                let fua = request.op() == Op::Write { fua: true };
                backend.raw.is_aligned(request.data())
                    && !backend.raw.takes_turns(fua)
                    && !backend.blocks_submitter()
            }
            Op::Flush => true,
            _ => false,
        };
        if by_ring {
            self.ring.borrow_mut().start(request, &self.file);
        } else {
            self.file.threads.borrow_mut().submit(request);
        }
    }

    fn commit(&mut self) {
        self.file.threads.borrow_mut().commit();
    }

    fn abort(&mut self, id: RequestId) -> Option<Request> {
        let in_ring = self.ring.borrow_mut().abort(id, &self.file);
        in_ring.or_else(|| self.file.threads.borrow_mut().abort(id))
    }
}

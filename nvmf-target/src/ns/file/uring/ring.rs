//! A ring of the kernel's, and the requests that it works on: all that has to be believed rather
//! than checked.
//!
//! What the kernel is given pointers into is owned by this module until the kernel has said that it
//! is done, and nobody else gets at it meanwhile.

use super::super::FileBackend;
use crate::ns::{Lane, Op, Request, RequestId};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the submission queue: what one system call submits.
const SUBMIT: u32 = 256;
/// Entries of the completion queue: the most that the kernel works on for one reactor.
const COMPLETE: u32 = 4096;
/// Past the page cache: what one system call submits, and the completions that one turn hands over.
/// A device is told of a batch, and tells of one, at its end; with small ones it has something to do
/// while the answers of the last are on their way.
const DIRECT_BATCH: usize = 8;
/// Through the page cache: what one turn submits. Most of it is complete then, copied by this
/// thread, and answered before the next is begun, so that the host works meanwhile.
const CACHED_BATCH: usize = 16;
/// In the user data of what is to cut one of the `flights` short, with its index.
const CANCEL: u64 = 1 << 63;
/// How often in a row the kernel is asked for what it says it has, and has not: it may work on some
/// twenty at a time that all hand over nothing, but may also have forgotten to take back its word.
const ASK: u32 = COMPLETE / 16;
/// How long a ring that ends waits for what the kernel still works on.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file as one lane uses it.
pub(super) struct OpenFile {
    pub(super) backend: Arc<FileBackend>,
    /// For what the ring does not do.
    pub(super) threads: RefCell<Box<dyn Lane>>,
}

/// How far a request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The kernel knows nothing of it.
    New,
    /// The kernel has to go on with the rest.
    Resumed,
    /// The kernel works on it: its memory is not to be touched.
    Kernel,
}

/// A request on its way through the kernel.
struct Flight {
    request: Request,
    file: Rc<OpenFile>,
    /// Bytes that are read or written.
    done: usize,
    stage: Stage,
    /// Somebody wants it cut short.
    cancelled: bool,
    /// The kernel was told so, and has not said that it could not.
    told: bool,
}

/// What has become of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    /// It was cut short before it had any effect.
    Cancelled,
    /// The kernel cannot do it without blocking.
    WouldBlock,
    /// Nothing was read or written at this offset.
    Nothing(u64),
    Failed(io::Error),
}

/// A ring of one thread.
pub(super) struct Ring {
    io: IoUring,
    /// Signalled when there is something for [`Ring::turn`]. The ring's own descriptor does not
    /// wake anybody while completions wait to be worked on.
    event: OwnedFd,
    /// The requests; their index is the user data of their entries.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// What is to be submitted, in this order.
    waiting: VecDeque<usize>,
    /// What is to be cancelled.
    unwanted: Vec<usize>,
    /// Flights that the kernel works on; never more than fit into its completion queue.
    in_kernel: usize,
    limit: usize,
    /// The kernel did not take what it was given, or has more to hand over.
    owes: bool,
    /// How often in a row the kernel had nothing although it said so.
    in_vain: u32,
    /// Completions of direct I/O that may still be handed over in this turn.
    direct_left: usize,
    /// What may still be submitted in this turn through the page cache.
    cached_left: usize,
    patience: Duration,
}

impl Ring {
    /// A ring for the calling thread, with what the kernel has to make it fast.
    ///
    /// # Errors
    /// The kernel has none, refuses it, or it is too old.
    pub(super) fn new() -> io::Result<Self> {
        // Completions are worked on when this thread asks for them, instead of interrupting it:
        // since Linux 6.1.
        Self::set_up((SUBMIT, COMPLETE), |builder| {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
        })
        .or_else(|err| match Errno::from_io_error(&err) {
            Some(Errno::INVAL) => Self::plain(),
            _ => Err(err),
        })
    }

    /// A ring of an older kernel.
    pub(super) fn plain() -> io::Result<Self> {
        Self::set_up((SUBMIT, COMPLETE), |builder| builder)
    }

    /// A ring that holds 4 of either kind.
    #[cfg(test)]
    pub(super) fn small() -> Self {
        Self::set_up((4, 4), |builder| builder).unwrap()
    }

    fn set_up(
        (submit, complete): (u32, u32),
        flags: impl FnOnce(&mut io_uring::Builder) -> &mut io_uring::Builder,
    ) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(complete);
        let io = flags(&mut builder).build(submit)?;
        let mut probe = Probe::new();
        io.submitter().register_probe(&mut probe)?;
        let wanted = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::AsyncCancel::CODE,
        ];
        if !io.params().is_feature_nodrop() || !wanted.iter().all(|&op| probe.is_supported(op)) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "Linux 5.6 or later is wanted",
            ));
        }
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        io.submitter().register_eventfd(event.as_raw_fd())?;
        let limit = io.params().cq_entries() as usize;
        Ok(Self {
            io,
            event,
            flights: Vec::with_capacity(SUBMIT as usize),
            free: Vec::with_capacity(SUBMIT as usize),
            waiting: VecDeque::with_capacity(SUBMIT as usize),
            unwanted: Vec::new(),
            in_kernel: 0,
            limit,
            owes: false,
            in_vain: 0,
            direct_left: 0,
            cached_left: 0,
            patience: PATIENCE,
        })
    }

    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Takes a Read, Write or Flush, to be submitted with the next [`Ring::turn`].
    pub(super) fn start(&mut self, request: Request, file: &Rc<OpenFile>) {
        let flight = Some(Flight {
            request,
            file: Rc::clone(file),
            done: 0,
            stage: Stage::New,
            cancelled: false,
            told: false,
        });
        let index = match self.free.pop() {
            Some(index) => {
                self.flights[index] = flight;
                index
            }
            None => {
                self.flights.push(flight);
                self.flights.len() - 1
            }
        };
        self.waiting.push_back(index);
    }

    /// Gives a request of a file back that the kernel has not seen. One that it works on it is told
    /// to cut short.
    pub(super) fn abort(&mut self, id: RequestId, file: &Rc<OpenFile>) -> Option<Request> {
        let index = self.flights.iter().position(|flight| {
            let same = |f: &Flight| Rc::ptr_eq(&f.file, file) && f.request.id() == id;
            flight.as_ref().is_some_and(same)
        })?;
        let flight = self.flights[index].as_mut()?;
        match flight.stage {
            Stage::New => {
                self.waiting.retain(|&i| i != index);
                self.free.push(index);
                self.flights[index].take().map(|flight| flight.request)
            }
            Stage::Kernel if !flight.told => {
                (flight.cancelled, flight.told) = (true, true);
                self.unwanted.push(index);
                None
            }
            Stage::Kernel | Stage::Resumed => None,
        }
    }

    /// Submits what there is and hands over what is finished, of either as much as is good for one
    /// turn of a reactor.
    pub(super) fn turn(&mut self, finished: impl FnMut(Request, &Rc<OpenFile>, Outcome)) {
        (self.direct_left, self.cached_left) = (DIRECT_BATCH, CACHED_BATCH);
        let queue = self.io.submission();
        let news = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        self.work(news, finished);
    }

    /// Submits what has come since the last [`Ring::turn`].
    pub(super) fn submit(&mut self, finished: impl FnMut(Request, &Rc<OpenFile>, Outcome)) {
        if !self.waiting.is_empty() {
            self.work(false, finished);
        }
    }

    /// `news`: the kernel has something to hand over that is not in the completion queue yet.
    fn work(&mut self, mut news: bool, mut finished: impl FnMut(Request, &Rc<OpenFile>, Outcome)) {
        self.owes = false;
        let (asked, mut reaped) = (news, 0);
        loop {
            self.fill();
            let entries = self.io.submission().len();
            if entries > 0 || mem::take(&mut news) {
                match self.io.submit() {
                    Ok(n) => self.owes = n == 0 && entries > 0,
                    Err(err) if Errno::from_io_error(&err) == Some(Errno::INTR) => {}
                    // It has no memory at the moment.
                    Err(_) => self.owes = true,
                }
            }
            reaped += self.reap(&mut finished);
            let room = self.in_kernel < self.limit;
            let done = self.waiting.is_empty() || !room || self.cached_left == 0;
            if self.owes || done && self.io.submission().is_empty() {
                break;
            }
        }
        self.owes |= self.cached_left == 0 && !self.waiting.is_empty();
        self.owes |= !self.io.completion().is_empty();
        let queue = self.io.submission();
        let more = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if reaped > 0 || !more {
            self.in_vain = 0;
        } else if asked {
            self.in_vain = self.in_vain.saturating_add(1);
        }
        // The kernel may say it when what is new has just been handed over, and then for as long as
        // nothing else comes; whatever comes signals the descriptor.
        self.owes |= more && self.in_vain < ASK;
    }

    /// Whether there is something to do although [`Ring::turn`] has just been called.
    pub(super) const fn owes(&self) -> bool {
        self.owes || !self.unwanted.is_empty()
    }

    /// Makes entries of what waits, as many as are submitted at once.
    fn fill(&mut self) {
        let mut queue = self.io.submission();
        while let Some(&index) = self.unwanted.last() {
            // It may be finished by now, and its index another's.
            if self.flights[index].as_ref().is_some_and(|f| f.cancelled) {
                let entry = opcode::AsyncCancel::new(index as u64).build();
                let name = CANCEL | index as u64;
                // SAFETY: the operation takes a number and no memory.
                if unsafe { queue.push(&entry.user_data(name)) }.is_err() {
                    return;
                }
            }
            self.unwanted.pop();
        }
        let mut direct = 0;
        while self.in_kernel < self.limit
            && direct < DIRECT_BATCH
            && self.cached_left > 0
            && let Some(&index) = self.waiting.front()
        {
            if let Some(flight) = &mut self.flights[index] {
                let entry = flight.entry().user_data(index as u64);
                // SAFETY: the entry points into the buffer of the flight's request, from `done`
                // on and no further than its end (see `entry`). The buffer stays where it is while
                // the request lives, whatever becomes of the vector that the request is kept in. As
                // the stage is `Kernel` from here on, nothing reads, changes, hands out or drops
                // the request before `reap` has seen the entry's completion; `drop` leaks the
                // request rather than end it earlier. The file stays open as long: the flight holds
                // it.
                if unsafe { queue.push(&entry) }.is_err() {
                    return;
                }
                flight.stage = Stage::Kernel;
                match flight.file.backend.is_direct() {
                    true => direct += 1,
                    false => self.cached_left -= 1,
                }
                self.in_kernel += 1;
            }
            self.waiting.pop_front();
        }
    }

    /// Hands over what the kernel has finished; what it has begun only goes on waiting. Returns how
    /// much the kernel has said.
    fn reap(&mut self, finished: &mut impl FnMut(Request, &Rc<OpenFile>, Outcome)) -> usize {
        let mut completion = self.io.completion();
        let mut reaped = 0;
        while self.direct_left > 0 {
            let Some(entry) = completion.next() else {
                break;
            };
            reaped += 1;
            let name = entry.user_data();
            let index = usize::try_from(name & !CANCEL).unwrap_or(usize::MAX);
            let Some(slot) = self.flights.get_mut(index) else {
                continue;
            };
            let Some(flight) = slot else { continue };
            if name & CANCEL != 0 {
                // It was under way on a thread of the kernel's, or between two places where it is
                // looked for. The next Abort tells the kernel again; if the index is another's by
                // now, once too often at worst.
                flight.told &= entry.result() >= 0;
                continue;
            }
            self.in_kernel -= 1;
            self.direct_left -= usize::from(flight.file.backend.is_direct());
            match flight.outcome(entry.result()) {
                None => {
                    flight.stage = Stage::Resumed;
                    self.waiting.push_back(index);
                }
                Some(outcome) => {
                    if let Some(Flight { request, file, .. }) = slot.take() {
                        self.free.push(index);
                        finished(request, &file, outcome);
                    }
                }
            }
        }
        reaped
    }
}

impl Flight {
    /// The entry that does what is left of the request.
    fn entry(&mut self) -> squeue::Entry {
        let raw = &self.file.backend.raw;
        let fd = Fd(raw.file.as_raw_fd());
        let offset = self.request.byte_range().start + self.done as u64;
        match self.request.op() {
            Op::Read => {
                let rest = self.request.data_mut().get_mut(self.done..);
                let rest = rest.unwrap_or_default();
                opcode::Read::new(fd, rest.as_mut_ptr(), length(rest))
                    .offset(offset)
                    .build()
            }
            Op::Write { fua } => {
                let rest = self.request.data().get(self.done..).unwrap_or_default();
                let flags = if fua { ReadWriteFlags::DSYNC.bits() } else { 0 };
                let fd = Fd(raw.written(fua).as_raw_fd());
                opcode::Write::new(fd, rest.as_ptr(), length(rest))
                    .offset(offset)
                    .rw_flags(flags.cast_signed())
                    .build()
            }
            _ => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// What the result of an entry makes of the request; `None`: it is to go on.
    fn outcome(&mut self, result: i32) -> Option<Outcome> {
        let Ok(n) = usize::try_from(result) else {
            let cancelled = self.cancelled;
            return match Errno::from_raw_os_error(-result) {
                // What a thread of the kernel's is at is interrupted.
                Errno::CANCELED | Errno::INTR if cancelled && self.done == 0 => {
                    Some(Outcome::Cancelled)
                }
                Errno::CANCELED if cancelled => None,
                Errno::INTR => None,
                Errno::AGAIN => Some(Outcome::WouldBlock),
                errno => Some(Outcome::Failed(errno.into())),
            };
        };
        if self.request.op() == Op::Flush {
            return Some(Outcome::Done);
        }
        self.done += n;
        if self.done >= self.request.data().len() {
            Some(Outcome::Done)
        } else if n == 0 {
            let start = self.request.byte_range().start;
            Some(Outcome::Nothing(start + self.done as u64))
        } else {
            None
        }
    }
}

/// The length of what one entry transfers; the rest of a larger buffer is the next one's.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(1 << 30)
}

impl AsFd for Ring {
    /// Becomes readable, over and over, when [`Ring::turn`] has something to hand over: to be
    /// watched edge-triggered.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Ring {
    /// Waits for what the kernel works on. What a device has not finished by then is leaked, with
    /// its memory and its file: the kernel may still read or write it.
    fn drop(&mut self) {
        let deadline = Instant::now() + self.patience;
        self.waiting.clear();
        while self.in_kernel > 0 {
            // Taken back before looking, so that what comes after that is waited for.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
            let _ = self.io.submit();
            self.direct_left = usize::MAX;
            self.reap(&mut |request, _, _| drop(request));
            let left = deadline.saturating_duration_since(Instant::now());
            if self.in_kernel == 0 || left.is_zero() {
                break;
            }
            let left = Timespec::try_from(left).ok();
            // Whatever ends the wait, it is looked again.
            let _ = poll(
                &mut [PollFd::new(&self.event, PollFlags::IN)],
                left.as_ref(),
            );
        }
        for flight in self.flights.drain(..).flatten() {
            if flight.stage == Stage::Kernel {
                mem::forget(flight);
            }
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_kernel", &self.in_kernel)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::file::rig::Rig;
    use crate::ns::file::{FileOptions, ReactorRing};

    struct Nowhere;

    impl Lane for Nowhere {
        fn submit(&mut self, _: Request) {}
    }

    fn file() -> Rc<OpenFile> {
        let temp = tempfile::NamedTempFile::new().unwrap();
        temp.as_file().set_len(1 << 20).unwrap();
        let backend = FileBackend::open(temp.path(), &FileOptions::default()).unwrap();
        Rc::new(OpenFile {
            backend: Arc::new(backend),
            threads: RefCell::new(Box::new(Nowhere)),
        })
    }

    #[test]
    fn a_refused_abort_may_be_tried_again() {
        let mut rig = Rig::new(ReactorRing::default(), |_| Box::new(Nowhere));
        let (mut ring, file) = (Ring::plain().unwrap(), file());
        let request = rig.request(Op::Read, 0, 4096);
        let id = request.id();
        ring.start(request, &file);
        // The kernel, which does not have it, does not find it.
        ring.waiting.clear();
        ring.in_kernel = 1;
        ring.flights[0].as_mut().unwrap().stage = Stage::Kernel;
        for _ in 0..2 {
            assert!(ring.abort(id, &file).is_none());
            assert_eq!(ring.unwanted, [0]);
            while ring.owes() || ring.flights[0].as_ref().unwrap().told {
                ring.turn(|_, _, outcome| panic!("{outcome:?}"));
            }
        }
        ring.in_kernel = 0;
        ring.flights.clear();
    }

    #[test]
    fn what_is_interrupted_goes_on_unless_it_was_to_end() {
        let file = file();
        let mut rig = Rig::new(ReactorRing::default(), |_| Box::new(Nowhere));
        let mut flight = |cancelled, done| Flight {
            request: rig.request(Op::Read, 0, 4096),
            file: Rc::clone(&file),
            done,
            stage: Stage::Kernel,
            cancelled,
            told: cancelled,
        };
        for errno in [Errno::INTR, Errno::CANCELED] {
            let result = -errno.raw_os_error();
            let outcome = flight(true, 0).outcome(result);
            assert!(matches!(outcome, Some(Outcome::Cancelled)), "{outcome:?}");
            assert!(flight(true, 512).outcome(result).is_none());
        }
        let interrupted = -Errno::INTR.raw_os_error();
        assert!(flight(false, 0).outcome(interrupted).is_none());
        // What went on once is still to end.
        let mut wanted = flight(true, 0);
        let outcome = wanted.outcome(-Errno::AGAIN.raw_os_error());
        assert!(matches!(outcome, Some(Outcome::WouldBlock)), "{outcome:?}");
        let outcome = wanted.outcome(interrupted);
        assert!(matches!(outcome, Some(Outcome::Cancelled)), "{outcome:?}");
    }
}

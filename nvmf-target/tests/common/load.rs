//! A host at work that checks every block it reads, whatever becomes of its connections.

use super::{eventually, pattern};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of one write.
const PIECE: usize = 4096;
/// Pieces that a host uses.
const PIECES: usize = 32;
/// Between two attempts of a host to connect.
const PAUSE: Duration = Duration::from_millis(1);

/// Which bytes may be found in a piece, by the numbers of the writes that have put them there.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// The last write that was acknowledged; 0: none, zeroes.
    certain: u64,
    /// A later one of which that is not known.
    maybe: Option<u64>,
}

fn bytes(write: u64, piece: usize) -> Vec<u8> {
    if write == 0 {
        return vec![0; PIECE];
    }
    pattern(write * PIECES as u64 + piece as u64, PIECE)
}

#[derive(Default)]
struct Counts {
    is_over: AtomicBool,
    verified: AtomicU64,
    connects: AtomicU64,
}

/// A thread that writes and reads pieces of a namespace of its own, on whichever of its paths is
/// good, and comes back when a connection has ended. It panics when it reads what it did not write,
/// when a write that was acknowledged is not there, and at a status that says no path is at fault.
pub struct Load {
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts one at namespace `nsid`, from block `slba` on, and waits until it works. It takes
    /// the statuses `but` for a matter of time, too.
    pub fn start(paths: Vec<ConnectOptions>, nsid: u32, slba: u64, but: &'static [Status]) -> Self {
        let counts = Arc::<Counts>::default();
        let worker = Worker {
            counts: Arc::clone(&counts),
            paths,
            path: 0,
            nsid,
            slba,
            but,
            pieces: [Piece::default(); PIECES],
            writes: 0,
        };
        let thread = thread::spawn(|| worker.run());
        let load = Self { counts, thread };
        load.goes_on(1);
        load
    }

    /// Waits until so many more pieces have been read and were right.
    pub fn goes_on(&self, count: u64) {
        let verified = || self.counts.verified.load(Ordering::SeqCst);
        let wanted = verified() + count;
        eventually("a host at work goes on", || {
            assert!(!self.thread.is_finished(), "it has failed");
            verified() >= wanted
        });
    }

    /// Associations that it has made up to now.
    pub fn connects(&self) -> u64 {
        self.counts.connects.load(Ordering::SeqCst)
    }

    /// Reads all that is left to be read, and ends.
    pub fn end(self) {
        self.counts.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

struct Worker {
    counts: Arc<Counts>,
    paths: Vec<ConnectOptions>,
    path: usize,
    nsid: u32,
    slba: u64,
    but: &'static [Status],
    pieces: [Piece; PIECES],
    writes: u64,
}

/// One association.
struct Session {
    queue: IoQueue,
    ns: Namespace,
    _controller: Controller,
}

impl Worker {
    fn run(mut self) {
        let mut session = None;
        let mut turn = 0;
        // When it is over, every piece is looked at once more.
        let mut left = PIECES;
        while left > 0 {
            let Some(at) = &mut session else {
                session = self.connect();
                continue;
            };
            let is_over = self.counts.is_over.load(Ordering::SeqCst);
            let done = if is_over {
                self.read(at, left - 1)
            } else {
                turn += 1;
                self.write(at, turn * 7 % PIECES)
                    .and_then(|()| self.read(at, turn * 5 % PIECES))
            };
            match done {
                Ok(()) => left -= usize::from(is_over),
                Err(err) => {
                    self.excuses(&err);
                    session = None;
                    self.path = (self.path + 1) % self.paths.len();
                }
            }
        }
    }

    fn connect(&mut self) -> Option<Session> {
        let open = |options| {
            let mut controller = Controller::connect(options)?;
            controller.set_queue_count(1)?;
            Ok::<_, Error>(Session {
                ns: controller.namespace(self.nsid)?,
                queue: controller.io_queue(1)?,
                _controller: controller,
            })
        };
        match open(&self.paths[self.path]) {
            Ok(session) => {
                self.counts.connects.fetch_add(1, Ordering::SeqCst);
                Some(session)
            }
            Err(err) => {
                self.excuses(&err);
                self.path = (self.path + 1) % self.paths.len();
                thread::sleep(PAUSE);
                None
            }
        }
    }

    /// An end of the connection, or a status that passes.
    fn excuses(&self, err: &Error) {
        let passes = match err {
            Error::Closed | Error::Io { .. } => true,
            // What the host library says of a namespace that is not there.
            Error::InvalidInput(_) | Error::BadAnswer(_) => !self.but.is_empty(),
            Error::Status { status, .. } => {
                let of_path = status.sct().0 == 3;
                of_path || self.but.iter().any(|but| but.same_code(*status))
            }
            _ => false,
        };
        assert!(passes, "{err}");
    }

    fn slba(&self, ns: &Namespace, piece: usize) -> u64 {
        self.slba + piece as u64 * (PIECE as u64 / u64::from(ns.block_size))
    }

    fn write(&mut self, at: &mut Session, piece: usize) -> Result<(), Error> {
        self.writes += 1;
        let slot = &mut self.pieces[piece];
        if slot.maybe.is_some() {
            // Only a read can tell what is there.
            return Ok(());
        }
        slot.maybe = Some(self.writes);
        let data = bytes(self.writes, piece);
        at.queue.write(&at.ns, self.slba(&at.ns, piece), &data)?;
        self.pieces[piece] = Piece {
            certain: self.writes,
            maybe: None,
        };
        Ok(())
    }

    fn read(&mut self, at: &mut Session, piece: usize) -> Result<(), Error> {
        let mut back = vec![0; PIECE];
        at.queue.read(&at.ns, self.slba(&at.ns, piece), &mut back)?;
        let slot = &mut self.pieces[piece];
        let found = [Some(slot.certain), slot.maybe]
            .into_iter()
            .flatten()
            .find(|&write| back == bytes(write, piece));
        slot.certain = found.unwrap_or_else(|| {
            panic!(
                "piece {piece} is neither as write {} nor as {:?} left it",
                slot.certain, slot.maybe
            )
        });
        slot.maybe = None;
        self.counts.verified.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

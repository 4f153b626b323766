//! One queue pair on one connection.

mod io;

use crate::error::Error;
use crate::stream::Stream;
use nvmf_proto::tcp::host::{Config, Event, HostData, TcpHost};
use nvmf_proto::tcp::{Negotiated, Slot, Time, TxList};
use nvmf_proto::wire::pdu::TermReq;
use nvmf_proto::wire::{Cqe, Sqe, Status};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Room for the headers of one gather write: over 200 commands.
const TX_HEADS: usize = 16 << 10;
/// Room for the runs of one gather write.
const TX_SEGS: usize = 128;

/// What a command moves. The queue owns the buffer until it hands it back with the completion.
#[derive(Debug)]
pub enum Data {
    /// Nothing.
    None,
    /// The whole buffer is sent: in the capsule if it fits, else as the controller asks by R2T.
    Write(Vec<u8>),
    /// The same, but never in the capsule.
    WriteByR2t(Vec<u8>),
    /// The whole buffer is filled.
    Read(Vec<u8>),
    /// Nothing, and the SGL descriptor of the SQE goes out as it stands. For commands that the
    /// controller is expected to refuse.
    AsIs,
}

impl Data {
    fn describe(&self) -> Result<HostData, Error> {
        let len = |data: &Vec<u8>| {
            u32::try_from(data.len())
                .map_err(|_| Error::InvalidInput("the data of one command is below 4 GiB"))
        };
        Ok(match self {
            Self::None => HostData::None,
            Self::AsIs => HostData::AsIs,
            Self::Write(data) => HostData::Write {
                len: len(data)?,
                in_capsule: true,
            },
            Self::WriteByR2t(data) => HostData::Write {
                len: len(data)?,
                in_capsule: false,
            },
            Self::Read(data) => HostData::Read { len: len(data)? },
        })
    }

    /// The buffer; empty if there is none.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::None | Self::AsIs => Vec::new(),
            Self::Write(data) | Self::WriteByR2t(data) | Self::Read(data) => data,
        }
    }
}

/// Names one submitted command of a queue; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

/// A command that was not submitted, with its buffer.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// What was to be submitted.
    pub data: Data,
    /// Why it was not: [`Error::QueueFull`], or the connection is over.
    pub error: Error,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// The end of one command.
#[derive(Debug)]
pub struct Completion {
    /// As returned by [`Queue::submit`].
    pub token: Token,
    /// As given to [`Queue::submit_tagged`].
    pub tag: u64,
    /// The completion queue entry.
    pub cqe: Cqe,
    /// The buffer that was given; empty if none was.
    pub buffer: Vec<u8>,
    /// How many bytes of it were received: all of them if a command that reads succeeded.
    pub received: u32,
    /// `false`: a data digest of what was received was wrong.
    pub digest_ok: bool,
}

impl Completion {
    /// The status without More: that it has an entry in the Error Information log says nothing of
    /// the command.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.cqe.status.without_more()
    }

    /// The completion, if it is a success and what was read is right.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] or [`Error::DataDigest`] under the name of `command`.
    pub fn success(self, command: &'static str) -> Result<Self, Error> {
        Error::check(command, &self.cqe)?;
        if self.digest_ok {
            Ok(self)
        } else {
            Err(Error::DataDigest { command })
        }
    }
}

/// Completions that have come, oldest first, from [`Queue::poll`].
#[derive(Debug)]
pub struct Completions<'a>(&'a mut VecDeque<Completion>);

impl Iterator for Completions<'_> {
    type Item = Completion;

    fn next(&mut self) -> Option<Completion> {
        self.0.pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl ExactSizeIterator for Completions<'_> {}

/// What the queue keeps of a command beside the machine.
#[derive(Debug)]
struct Command {
    token: Token,
    tag: u64,
    buffer: Vec<u8>,
    /// Nobody waits for it any more.
    abandoned: bool,
}

/// A completion whose buffer is still being sent.
#[derive(Debug)]
struct Late {
    slot: Slot,
    cqe: Cqe,
    received: u32,
    digest_ok: bool,
}

/// Why a connection is over; an [`Error`] that can be given again and again.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Io(&'static str, std::io::ErrorKind),
    Violation(nvmf_proto::tcp::Violation),
    Terminated(TermReq),
    Closed,
    NoIcResp(Duration),
}

impl Failure {
    fn error(self) -> Error {
        match self {
            Self::Io(what, kind) => Error::Io {
                what,
                source: kind.into(),
            },
            Self::Violation(violation) => Error::Violation(violation),
            Self::Terminated(term) => Error::Terminated(term),
            Self::Closed => Error::Closed,
            Self::NoIcResp(within) => Error::Timeout {
                what: "ICResp",
                within,
            },
        }
    }
}

/// One queue pair on one connection: submit commands, collect completions.
///
/// Nothing blocks but [`Queue::open`], [`Queue::poll`] with a timeout and [`Queue::execute`].
/// Commands are collected and leave in one gather write at the next [`Queue::flush`],
/// [`Queue::progress`] or [`Queue::poll`]. In steady state no call allocates: buffers are the
/// caller's, given with a command and handed back with its completion.
///
/// The first failure of the connection is returned once by the call that meets it and again by
/// every later one; completions that came before can still be taken.
pub struct Queue {
    stream: Box<dyn Stream>,
    machine: TcpHost,
    tx: TxList,
    stage: io::Stage,
    commands: Box<[Command]>,
    ready: VecDeque<Completion>,
    late: Vec<Late>,
    failure: Option<Failure>,
    next_token: u64,
    opened: Instant,
    timeout: Duration,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("stream", &self.stream)
            .field("negotiated", &self.machine.negotiated())
            .field("outstanding", &self.machine.outstanding())
            .field("ready", &self.ready.len())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Exchanges ICReq and ICResp over a fresh connection.
    ///
    /// The queue has [`Config::entries`] entries, so at most `entries - 1` commands are outstanding
    /// at once. `timeout` bounds this call and, until [`Queue::set_timeout`], what [`Queue::execute`] waits.
    ///
    /// # Errors
    ///
    /// The connection failed, the target broke the protocol, or no answer came in time.
    pub fn open(
        stream: impl Stream + 'static,
        config: &Config,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let machine = TcpHost::new(&Config {
            ic_timeout: nanos,
            ..config.clone()
        });
        let slots = machine.slots();
        let idle = |_| Command {
            token: Token(0),
            tag: 0,
            buffer: Vec::new(),
            abandoned: false,
        };
        let mut queue = Self {
            stream: Box::new(stream),
            machine,
            tx: TxList::new(TX_HEADS, TX_SEGS),
            stage: io::Stage::new(),
            commands: (0..slots).map(idle).collect(),
            ready: VecDeque::with_capacity(slots),
            late: Vec::new(),
            failure: None,
            next_token: 1,
            opened: Instant::now(),
            timeout,
        };
        while queue.machine.negotiated().is_none() {
            queue.progress()?;
            if queue.machine.negotiated().is_none() {
                queue.wait(timeout)?;
            }
        }
        Ok(queue)
    }

    /// What was agreed on in ICReq and ICResp.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.machine.negotiated().unwrap_or_default()
    }

    /// Sets how many bytes of data a command capsule may carry from now on (IOCCSZ).
    pub fn set_in_capsule(&mut self, bytes: u32) {
        self.machine.set_in_capsule(bytes);
    }

    /// Whether the controller agreed to do without SQ flow control.
    #[must_use]
    pub fn flow_control_disabled(&self) -> bool {
        self.machine.flow_control_disabled()
    }

    /// How many commands can be outstanding at once.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.machine.slots()
    }

    /// How many commands are outstanding. Completions that were not taken yet do not count.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.machine.outstanding()
    }

    /// The descriptor to wait for in an event loop: for input always, for output as well while
    /// [`Queue::flush`] returns `false`. `None` if the stream has none.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.fd()
    }

    /// How long blocking calls wait at most.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sets how long blocking calls wait at most.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// [`Queue::submit_tagged`] with tag 0.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn submit(&mut self, sqe: Sqe, data: Data) -> Result<Token, Refused> {
        self.submit_tagged(sqe, data, 0)
    }

    /// Queues a command; it leaves with the next [`Queue::flush`], [`Queue::progress`] or
    /// [`Queue::poll`]. CID and SGL of the SQE are set by the queue; `tag` is the caller's and comes
    /// back with the completion.
    ///
    /// # Errors
    ///
    /// The buffer comes back: the queue is full, or the connection is over.
    pub fn submit_tagged(&mut self, sqe: Sqe, data: Data, tag: u64) -> Result<Token, Refused> {
        if let Some(failure) = self.failure {
            return Err(Refused {
                data,
                error: failure.error(),
            });
        }
        let description = match data.describe() {
            Ok(description) => description,
            Err(error) => return Err(Refused { data, error }),
        };
        let Some(slot) = self.machine.submit(sqe, description) else {
            return Err(Refused {
                data,
                error: Error::QueueFull,
            });
        };
        let token = Token(self.next_token);
        self.next_token += 1;
        self.commands[slot.index()] = Command {
            token,
            tag,
            buffer: data.into_buffer(),
            abandoned: false,
        };
        Ok(token)
    }

    /// Sends what is queued, as far as the stream takes it. `false`: some is left.
    ///
    /// # Errors
    ///
    /// The connection is over.
    pub fn flush(&mut self) -> Result<bool, Error> {
        self.check()?;
        self.send()?;
        Ok(self.tx.is_empty() && !self.machine.has_transmit())
    }

    /// One turn without blocking: sends what is queued, receives what has come, answers what the
    /// target asked for. Returns the number of completions that can be taken.
    ///
    /// # Errors
    ///
    /// The connection is over.
    pub fn progress(&mut self) -> Result<usize, Error> {
        self.check()?;
        self.send()?;
        self.receive()?;
        if self.machine.has_transmit() {
            self.send()?;
        }
        if self.machine.poll_timeout().is_some() {
            self.tick()?;
        }
        Ok(self.ready.len())
    }

    /// Takes the oldest completion that has not been taken; does no I/O.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    /// Makes progress until there are completions or `timeout` has passed, and gives them out as
    /// an iterator; those that it is dropped with are kept. With a zero timeout, one turn.
    ///
    /// # Errors
    ///
    /// The connection is over and no completion is left.
    pub fn poll(&mut self, timeout: Duration) -> Result<Completions<'_>, Error> {
        self.poll_until(timeout, |queue| !queue.ready.is_empty())?;
        Ok(Completions(&mut self.ready))
    }

    /// Runs one command and waits for it, at most for [`Queue::timeout`]. Other completions that
    /// come meanwhile are kept. `command` names it in errors.
    ///
    /// # Errors
    ///
    /// The queue is full, the connection is over, or no completion came in time; a status is not
    /// an error here but in [`Completion::success`].
    pub fn execute(
        &mut self,
        command: &'static str,
        sqe: Sqe,
        data: Data,
    ) -> Result<Completion, Error> {
        let token = self.submit(sqe, data)?;
        self.wait_for(command, token)
    }

    /// Waits for one command that was submitted, at most for [`Queue::timeout`].
    ///
    /// # Errors
    ///
    /// The connection is over, or no completion came in time: then it is dropped when it comes.
    pub fn wait_for(&mut self, command: &'static str, token: Token) -> Result<Completion, Error> {
        let timeout = self.timeout;
        let is_it = |completion: &Completion| completion.token == token;
        self.poll_until(timeout, |queue| queue.ready.iter().any(is_it))?;
        if let Some(at) = self.ready.iter().position(is_it)
            && let Some(completion) = self.ready.remove(at)
        {
            return Ok(completion);
        }
        if let Some(command) = self.commands.iter_mut().find(|c| c.token == token) {
            command.abandoned = true;
        }
        Err(Error::Timeout {
            what: command,
            within: timeout,
        })
    }

    /// Takes the oldest completion with this tag, waiting for one at most for `timeout`; `None` if
    /// none came.
    ///
    /// # Errors
    ///
    /// The connection is over and none is left.
    pub fn poll_tagged(
        &mut self,
        tag: u64,
        timeout: Duration,
    ) -> Result<Option<Completion>, Error> {
        let is_it = |completion: &Completion| completion.tag == tag;
        self.poll_until(timeout, |queue| queue.ready.iter().any(is_it))?;
        Ok(self
            .ready
            .iter()
            .position(is_it)
            .and_then(|at| self.ready.remove(at)))
    }

    /// Makes progress until `done` or the time is up. A failure counts only if not `done`.
    fn poll_until(&mut self, timeout: Duration, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let mut deadline = None;
        loop {
            let progress = self.progress();
            if done(self) {
                return Ok(());
            }
            progress?;
            if timeout.is_zero() {
                return Ok(());
            }
            // The clock is not read where the first turn is enough.
            let now = Instant::now();
            // A time that no clock reaches is no deadline.
            let left = match *deadline.get_or_insert_with(|| now.checked_add(timeout)) {
                Some(deadline) => deadline.saturating_duration_since(now),
                None => timeout,
            };
            if left.is_zero() {
                return Ok(());
            }
            self.wait(left)?;
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let more_to_send = !self.tx.is_empty() || self.machine.has_transmit();
        let result = self.stream.wait(more_to_send, timeout);
        // A signal ends the wait early, as any wait may end.
        let result = result.or_else(|error| match error.kind() {
            std::io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        });
        result.map_err(|error| self.fail(Failure::Io("waiting for the target", error.kind())))
    }

    /// Tells the machine the time.
    fn tick(&mut self) -> Result<(), Error> {
        let nanos = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match self.machine.handle_timeout(Time(nanos)) {
            Some(Event::Closed(_)) => Err(self.fail(Failure::NoIcResp(self.timeout))),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        self.failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    fn fail(&mut self, failure: Failure) -> Error {
        self.failure = Some(failure);
        failure.error()
    }
}

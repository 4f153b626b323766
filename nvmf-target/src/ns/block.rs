//! The short way to a namespace: blocking reads and writes.

use super::{Lane, LaneCx, LbaRange, Loan, Namespace, NsInfo, NsSink, Op, Request};
use crate::Error;
use crate::contain::contain;
use nvmf_proto::wire::Status;
use std::io;
use std::sync::Arc;

/// Storage with blocking methods. Offsets and lengths are bytes, multiples of the logical block
/// size and inside the namespace.
///
/// Wrap it in [`Inline`] if every call returns at memory speed, in [`Threaded`](super::Threaded) otherwise. Methods
/// are called from several threads at once.
pub trait BlockDevice: Send + Sync + 'static {
    /// Geometry, identity and capabilities; see [`Namespace::info`].
    fn info(&self) -> NsInfo;

    /// Fills `buf` from `offset`. All of `buf` must be filled: it holds other hosts' old data.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError>;

    /// Writes `buf`, which may lie at any address, at `offset`; with `fua` to stable storage. `fua`
    /// is set only if [`super::Caps::fua`] is `Native`.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError>;

    /// Brings everything written before to stable storage. Called only if there is a volatile
    /// cache ([`NsInfo::volatile_cache`]).
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn flush(&self) -> Result<(), NsError> {
        Ok(())
    }

    /// Makes `len` bytes from `offset` read as zeroes; they may be deallocated if `deallocate`.
    /// Called only if [`super::Caps::write_zeroes`] is `Native`.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        deallocate: bool,
        fua: bool,
    ) -> Result<(), NsError> {
        let _ = (offset, len, deallocate, fua);
        Err(NsError::Status(Status::INVALID_OPCODE.dnr()))
    }

    /// The host has no use for `len` bytes from `offset` any more. Called only if
    /// [`super::Caps::deallocate`] is `Native`.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        let _ = (offset, len);
        Ok(())
    }

    /// Whether the blocks from `offset` on hold `data`. Called only if [`super::Caps::compare`] is
    /// `Native`.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn compare(&self, offset: u64, data: &[u8]) -> Result<bool, NsError> {
        let _ = (offset, data);
        Err(NsError::Status(Status::INVALID_OPCODE.dnr()))
    }

    /// Writes `data` at `offset` if the blocks there hold `expected`, which is as long, and says
    /// whether they did. Nothing else may write to them in between. Called only if
    /// [`super::Caps::compare_and_write`] is `Native`, `fua` as in [`BlockDevice::write_at`].
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        data: &[u8],
        fua: bool,
    ) -> Result<bool, NsError> {
        let _ = (offset, expected, data, fua);
        Err(NsError::Status(Status::INVALID_OPCODE.dnr()))
    }

    /// Finds out whether `len` bytes from `offset` can be read. Called only if
    /// [`super::Caps::verify`] is `Native`.
    ///
    /// # Errors
    /// An I/O error becomes the status that [`NsError`] describes.
    fn verify(&self, offset: u64, len: u64) -> Result<(), NsError> {
        let _ = (offset, len);
        Err(NsError::Status(Status::INVALID_OPCODE.dnr()))
    }

    /// Whether [`BlockDevice::lend`] ever lends anything; always the same.
    fn lends(&self) -> bool {
        false
    }

    /// Lends `len` bytes from `offset` on, instead of reading them. A device that
    /// [lends](BlockDevice::lends) may refuse while somebody writes there, but not if the caller
    /// is `alone`: if it holds no other loan. Then it waits, for no longer than a write takes; to
    /// refuse all the same, or to panic, ends the connection of the command. Succeeds once for each
    /// read.
    fn lend(&self, offset: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        let _ = (offset, len, alone);
        None
    }

    /// See [`Namespace::subscribe`].
    fn subscribe(&self, sink: NsSink) {
        let _ = sink;
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn info(&self) -> NsInfo {
        (**self).info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        (**self).read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        (**self).write_at(offset, buf, fua)
    }

    fn flush(&self) -> Result<(), NsError> {
        (**self).flush()
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        deallocate: bool,
        fua: bool,
    ) -> Result<(), NsError> {
        (**self).write_zeroes(offset, len, deallocate, fua)
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        (**self).deallocate(offset, len)
    }

    fn compare(&self, offset: u64, data: &[u8]) -> Result<bool, NsError> {
        (**self).compare(offset, data)
    }

    fn compare_and_write(
        &self,
        offset: u64,
        expected: &[u8],
        data: &[u8],
        fua: bool,
    ) -> Result<bool, NsError> {
        (**self).compare_and_write(offset, expected, data, fua)
    }

    fn verify(&self, offset: u64, len: u64) -> Result<(), NsError> {
        (**self).verify(offset, len)
    }

    fn lends(&self) -> bool {
        (**self).lends()
    }

    fn lend(&self, offset: u64, len: usize, alone: bool) -> Option<Loan<'_>> {
        (**self).lend(offset, len, alone)
    }

    fn subscribe(&self, sink: NsSink) {
        (**self).subscribe(sink);
    }
}

/// Why a backend could not do what was asked: an NVMe status, or an I/O error that is translated.
///
/// | I/O error | status |
/// |---|---|
/// | `ENOSPC`, `EDQUOT`, `EFBIG` | Capacity Exceeded |
/// | `EROFS`, `EPERM`, `EACCES`, `EBADF` on a write | Namespace is Write Protected |
/// | `ESTALE`, `ENODEV`, `ENXIO`, `ENOMEDIUM`, `ETIMEDOUT`, and what says that a network or peer is gone | Namespace Not Ready, retryable |
/// | `EAGAIN`, `EINTR`, `ENOMEM`, `ENOBUFS`, `EBUSY`, `EMFILE`, `ENFILE` | Command Interrupted, retryable |
/// | `EOPNOTSUPP`, `ENOSYS`, on neither a read, a write nor a flush | Invalid Command Opcode |
/// | any other on a read, so `EIO`, and `EBADMSG`, `EILSEQ`, `EUCLEAN`: a checksum is wrong | Unrecovered Read Error, retryable |
/// | any other on a write | Write Fault, retryable |
///
/// What has no number is translated by its [kind](io::ErrorKind) in the same way.
#[derive(Debug, thiserror::Error)]
pub enum NsError {
    /// An NVMe status, passed to the host as it is.
    #[error("{0}")]
    Status(Status),
    /// An I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Status> for NsError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl NsError {
    /// The status that the host is given.
    #[must_use]
    pub fn status(&self, op: Op) -> Status {
        let err = match self {
            // As in `Request::complete`.
            Self::Status(status) if status.is_success() => return Status::INTERNAL_ERROR,
            Self::Status(status) => return *status,
            Self::Io(err) => err,
        };
        let reads = matches!(op, Op::Read | Op::Compare | Op::Verify);
        // NVMe Base 2.1, Figure "Status Code – Generic Command Status Values"; NVM Command Set 1.1
        // for the media errors.
        match Cause::of(err) {
            Cause::Full => Status::CAPACITY_EXCEEDED.dnr(),
            Cause::Protected if !reads => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
            Cause::Away => Status::NAMESPACE_NOT_READY,
            Cause::Busy => Status::COMMAND_INTERRUPTED,
            Cause::Unknown if !reads && !matches!(op, Op::Write { .. } | Op::Flush) => {
                Status::INVALID_OPCODE.dnr()
            }
            Cause::Protected | Cause::Unknown | Cause::Medium if reads => {
                Status::UNRECOVERED_READ_ERROR
            }
            Cause::Protected | Cause::Unknown | Cause::Medium => Status::WRITE_FAULT,
        }
    }
}

/// What an I/O error is about, as far as a host can make use of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// There is no room.
    Full,
    /// It must not be changed.
    Protected,
    /// The storage is not there, or does not answer.
    Away,
    /// The storage has no time, or the system no memory.
    Busy,
    /// The operation is none that it has.
    Unknown,
    /// The rest.
    Medium,
}

impl Cause {
    fn of(err: &io::Error) -> Self {
        use rustix::io::Errno as E;
        let Some(number) = E::from_io_error(err) else {
            return Self::of_kind(err.kind());
        };
        match number {
            E::NOSPC | E::DQUOT | E::FBIG => Self::Full,
            E::ROFS | E::PERM | E::ACCESS | E::BADF => Self::Protected,
            E::STALE | E::NODEV | E::NXIO | E::NOMEDIUM | E::TIMEDOUT => Self::Away,
            E::NOLINK | E::NOTCONN | E::PIPE | E::SHUTDOWN | E::HOSTDOWN => Self::Away,
            E::CONNRESET | E::CONNREFUSED | E::CONNABORTED => Self::Away,
            E::HOSTUNREACH | E::NETUNREACH | E::NETDOWN | E::NETRESET => Self::Away,
            E::AGAIN | E::INTR | E::NOMEM | E::NOBUFS | E::BUSY | E::MFILE | E::NFILE => Self::Busy,
            E::OPNOTSUPP | E::NOSYS => Self::Unknown,
            _ => Self::Medium,
        }
    }

    const fn of_kind(kind: io::ErrorKind) -> Self {
        use io::ErrorKind as K;
        match kind {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::Full,
            K::ReadOnlyFilesystem | K::PermissionDenied => Self::Protected,
            K::StaleNetworkFileHandle | K::TimedOut | K::NotConnected | K::BrokenPipe => Self::Away,
            K::ConnectionReset | K::ConnectionRefused | K::ConnectionAborted => Self::Away,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Self::Away,
            K::WouldBlock | K::Interrupted | K::OutOfMemory | K::ResourceBusy => Self::Busy,
            K::Unsupported => Self::Unknown,
            _ => Self::Medium,
        }
    }
}

/// Carries out one request with a blocking device.
pub(super) fn run(dev: &dyn BlockDevice, mut request: Request) {
    let op = request.op();
    let result = contained(op, || perform(dev, &mut request));
    finish(request, result);
}

/// Completes a request with what has become of it.
pub(super) fn finish(mut request: Request, result: Result<(), Failure>) {
    let result = result.map_err(|failure| {
        failure.note.into_iter().for_each(|note| request.note(note));
        failure.status
    });
    request.complete(result);
}

/// What a device's failure means to the host, and what the log is to say of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) note: Option<String>,
}

impl Failure {
    pub(super) fn new(op: Op, err: NsError) -> Self {
        Self {
            status: err.status(op),
            note: match err {
                NsError::Status(_) => None,
                NsError::Io(err) => Some(err.to_string()),
            },
        }
    }
}

/// Calls a device. A panic in it fails the command.
pub(crate) fn contained(op: Op, call: impl FnOnce() -> Result<(), NsError>) -> Result<(), Failure> {
    match contain(call) {
        Ok(result) => result.map_err(|err| Failure::new(op, err)),
        Err(panic) => Err(Failure {
            status: Status::INTERNAL_ERROR,
            note: Some(format!("the backend {panic}; the command fails")),
        }),
    }
}

fn perform(dev: &dyn BlockDevice, request: &mut Request) -> Result<(), NsError> {
    let at = request.byte_range();
    match request.op() {
        Op::Read => dev.read_at(at.start, request.data_mut()),
        Op::Write { fua } => dev.write_at(at.start, request.data(), fua),
        Op::Flush => dev.flush(),
        Op::WriteZeroes { deallocate, fua } => {
            dev.write_zeroes(at.start, at.end - at.start, deallocate, fua)
        }
        Op::Deallocate => {
            let shift = request.lba_shift();
            request
                .ranges()
                .iter()
                .filter(|r| r.blocks != 0)
                .try_for_each(|&LbaRange { slba, blocks }| {
                    dev.deallocate(slba << shift, blocks << shift)
                })
        }
        Op::Compare => same(dev.compare(at.start, request.data())?),
        Op::CompareAndWrite { fua } => {
            let (expected, data) = (request.compare_data(), request.data());
            same(dev.compare_and_write(at.start, expected, data, fua)?)
        }
        Op::Verify => dev.verify(at.start, at.end - at.start),
    }
}

const fn same(same: bool) -> Result<(), NsError> {
    if same {
        Ok(())
    } else {
        Err(NsError::Status(Status::COMPARE_FAILURE.dnr()))
    }
}

/// Runs a [`BlockDevice`] on the reactor thread itself, for devices at memory speed: nothing else
/// on that reactor moves while a method runs.
#[derive(Debug)]
pub struct Inline<D>(Arc<D>);

impl<D: BlockDevice> Inline<D> {
    /// Wraps a device.
    #[must_use]
    pub fn new(device: D) -> Self {
        Self(Arc::new(device))
    }
}

struct InlineLane<D>(Arc<D>);

impl<D: BlockDevice> Lane for InlineLane<D> {
    fn submit(&mut self, request: Request) {
        run(&*self.0, request);
    }

    fn inline_device(&self) -> Option<Arc<dyn BlockDevice>> {
        Some(Arc::<D>::clone(&self.0))
    }
}

impl<D: BlockDevice> Namespace for Inline<D> {
    fn info(&self) -> NsInfo {
        self.0.info()
    }

    fn open_lane(&self, _: &LaneCx) -> Result<Box<dyn Lane>, Error> {
        Ok(Box::new(InlineLane(Arc::clone(&self.0))))
    }

    fn subscribe(&self, sink: NsSink) {
        self.0.subscribe(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    const ZEROES: Op = Op::WriteZeroes {
        deallocate: false,
        fua: false,
    };
    const FULL: Status = Status::CAPACITY_EXCEEDED.dnr();
    const PROTECTED: Status = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    const AWAY: Status = Status::NAMESPACE_NOT_READY;
    const BUSY: Status = Status::COMMAND_INTERRUPTED;
    const UNKNOWN: Status = Status::INVALID_OPCODE.dnr();
    const READ: Status = Status::UNRECOVERED_READ_ERROR;
    const WRITE: Status = Status::WRITE_FAULT;

    /// Statuses of a Read, a Write and a Write Zeroes by errors.
    const TABLE: [(&[Errno], &[io::ErrorKind], [Status; 3]); 6] = [
        (
            &[Errno::NOSPC, Errno::DQUOT, Errno::FBIG],
            &[
                io::ErrorKind::StorageFull,
                io::ErrorKind::QuotaExceeded,
                io::ErrorKind::FileTooLarge,
            ],
            [FULL; 3],
        ),
        (
            &[Errno::ROFS, Errno::PERM, Errno::ACCESS, Errno::BADF],
            &[
                io::ErrorKind::ReadOnlyFilesystem,
                io::ErrorKind::PermissionDenied,
            ],
            [READ, PROTECTED, PROTECTED],
        ),
        (
            &[
                Errno::STALE,
                Errno::NODEV,
                Errno::NXIO,
                Errno::NOMEDIUM,
                Errno::TIMEDOUT,
                Errno::NOLINK,
                Errno::CONNRESET,
                Errno::NOTCONN,
                Errno::PIPE,
                Errno::HOSTUNREACH,
                Errno::NETDOWN,
            ],
            &[
                io::ErrorKind::TimedOut,
                io::ErrorKind::NotConnected,
                io::ErrorKind::ConnectionReset,
                io::ErrorKind::StaleNetworkFileHandle,
            ],
            [AWAY; 3],
        ),
        (
            &[
                Errno::AGAIN,
                Errno::INTR,
                Errno::NOMEM,
                Errno::NOBUFS,
                Errno::BUSY,
                Errno::MFILE,
            ],
            &[
                io::ErrorKind::WouldBlock,
                io::ErrorKind::Interrupted,
                io::ErrorKind::OutOfMemory,
                io::ErrorKind::ResourceBusy,
            ],
            [BUSY; 3],
        ),
        (
            &[Errno::OPNOTSUPP, Errno::NOSYS],
            &[io::ErrorKind::Unsupported],
            [READ, WRITE, UNKNOWN],
        ),
        (
            &[
                Errno::IO,
                Errno::BADMSG,
                Errno::ILSEQ,
                Errno::UCLEAN,
                Errno::INVAL,
                Errno::REMOTEIO,
            ],
            &[
                io::ErrorKind::Other,
                io::ErrorKind::InvalidData,
                io::ErrorKind::UnexpectedEof,
                io::ErrorKind::WriteZero,
            ],
            [READ, WRITE, WRITE],
        ),
    ];

    #[test]
    fn io_errors_become_statuses() {
        for (numbers, kinds, statuses) in TABLE {
            let numbered = numbers.iter().map(|&number| io::Error::from(number));
            let others = kinds.iter().map(|&kind| io::Error::from(kind));
            for err in numbered.chain(others) {
                let err = NsError::Io(err);
                let ops = [Op::Read, Op::Write { fua: false }, ZEROES];
                assert_eq!(ops.map(|op| err.status(op)), statuses, "{err:?}");
                // As a write, and as reads.
                assert_eq!(err.status(Op::Flush), statuses[1], "{err:?}");
                assert_eq!(err.status(Op::Verify), statuses[0], "{err:?}");
            }
        }
        let own = NsError::Status(Status::LBA_OUT_OF_RANGE.dnr());
        assert_eq!(own.status(Op::Read), Status::LBA_OUT_OF_RANGE.dnr());
    }
}

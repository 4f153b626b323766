//! I/O commands.

use crate::command;
use crate::error::Error;
use crate::queue::{Completion, Completions, Data, Queue, Refused, Token};
use nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_proto::wire::fabrics::FabricsType;
use nvmf_proto::wire::{Sqe, Status};
use std::time::Duration;

/// What I/O needs to know of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NSID.
    pub nsid: u32,
    /// NSZE: size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
}

impl Namespace {
    /// How many logical blocks `bytes` bytes are.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`]: none, more than one command can move, or not a whole number.
    pub fn blocks_in(&self, bytes: usize) -> Result<u32, Error> {
        let size = self.block_size.max(1) as usize;
        let blocks = u32::try_from(bytes / size).unwrap_or(u32::MAX);
        if bytes.is_multiple_of(size) && (1..=1 << 16).contains(&blocks) {
            Ok(blocks)
        } else {
            Err(Error::InvalidInput(
                "a command moves 1 to 65,536 whole logical blocks",
            ))
        }
    }
}

/// An I/O queue: blocking helpers, and the pipelined [`Queue`] under them.
#[derive(Debug)]
pub struct IoQueue {
    queue: Queue,
    qid: u16,
    /// Bytes that one command of the helpers moves at most.
    chunk: u32,
    scratch: Vec<u8>,
}

impl IoQueue {
    pub(crate) const fn new(queue: Queue, qid: u16, chunk: u32) -> Self {
        Self {
            queue,
            qid,
            chunk,
            scratch: Vec::new(),
        }
    }

    /// QID.
    #[must_use]
    pub const fn qid(&self) -> u16 {
        self.qid
    }

    /// The queue, for pipelined use.
    pub const fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The queue alone.
    #[must_use]
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// Queues a read of as many blocks as `buffer` has room for. See [`Queue::submit_tagged`].
    ///
    /// # Errors
    ///
    /// As there, or [`Namespace::blocks_in`]. The buffer comes back.
    pub fn submit_read(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        buffer: Vec<u8>,
        tag: u64,
    ) -> Result<Token, Refused> {
        match namespace.blocks_in(buffer.len()) {
            Ok(blocks) => {
                let sqe = command::read(namespace.nsid, slba, blocks);
                self.queue.submit_tagged(sqe, Data::Read(buffer), tag)
            }
            Err(error) => Err(Refused {
                data: Data::Read(buffer),
                error,
            }),
        }
    }

    /// Queues a write of the blocks in `buffer`. See [`Queue::submit_tagged`].
    ///
    /// # Errors
    ///
    /// As [`IoQueue::submit_read`].
    pub fn submit_write(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        buffer: Vec<u8>,
        tag: u64,
    ) -> Result<Token, Refused> {
        match namespace.blocks_in(buffer.len()) {
            Ok(blocks) => {
                let sqe = command::write(namespace.nsid, slba, blocks);
                self.queue.submit_tagged(sqe, Data::Write(buffer), tag)
            }
            Err(error) => Err(Refused {
                data: Data::Write(buffer),
                error,
            }),
        }
    }

    /// [`Queue::poll`] of the queue.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll(&mut self, timeout: Duration) -> Result<Completions<'_>, Error> {
        self.queue.poll(timeout)
    }

    /// Runs any I/O command and waits for it. A status is not an error here.
    ///
    /// # Errors
    ///
    /// The connection is over, the queue is full, or no completion came in time.
    pub fn raw(&mut self, sqe: Sqe, data: Data) -> Result<Completion, Error> {
        self.queue.execute("I/O command", sqe, data)
    }

    /// Reads whole blocks, in several commands where the data is more than one can move.
    ///
    /// # Errors
    ///
    /// A command failed, a data digest was wrong, the connection is over, or it took too long.
    pub fn read(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        const NAME: &str = "Read";
        let mut lba = slba;
        for part in buffer.chunks_mut(self.part(namespace)) {
            let blocks = namespace.blocks_in(part.len())?;
            let mut data = std::mem::take(&mut self.scratch);
            data.resize(part.len(), 0);
            let sqe = command::read(namespace.nsid, lba, blocks);
            let done = self
                .queue
                .execute(NAME, sqe, Data::Read(data))?
                .success(NAME)?;
            part.copy_from_slice(&done.buffer);
            self.scratch = done.buffer;
            lba = lba.wrapping_add(u64::from(blocks));
        }
        Ok(())
    }

    /// Writes whole blocks, in several commands where the data is more than one can move.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`].
    pub fn write(&mut self, namespace: &Namespace, slba: u64, data: &[u8]) -> Result<(), Error> {
        const NAME: &str = "Write";
        let mut lba = slba;
        for part in data.chunks(self.part(namespace)) {
            let blocks = namespace.blocks_in(part.len())?;
            let mut data = std::mem::take(&mut self.scratch);
            data.clear();
            data.extend_from_slice(part);
            let sqe = command::write(namespace.nsid, lba, blocks);
            let done = self
                .queue
                .execute(NAME, sqe, Data::Write(data))?
                .success(NAME)?;
            self.scratch = done.buffer;
            lba = lba.wrapping_add(u64::from(blocks));
        }
        Ok(())
    }

    /// Flush.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`].
    pub fn flush(&mut self, namespace: &Namespace) -> Result<(), Error> {
        self.no_data("Flush", command::flush(namespace.nsid))
    }

    /// Write Zeroes of `blocks` blocks, 1 to 65,536; with `deallocate` they may be given back.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`].
    pub fn write_zeroes(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        blocks: u32,
        deallocate: bool,
    ) -> Result<(), Error> {
        let sqe = command::write_zeroes(namespace.nsid, slba, blocks, deallocate);
        self.no_data("Write Zeroes", sqe)
    }

    /// The fused operation Compare and Write: writes `data` if the blocks hold `expected`, which is
    /// as long. Returns the statuses of its Compare and its Write; a status is not an error here.
    ///
    /// # Errors
    ///
    /// The lengths differ or are no number of blocks, the connection is over, the queue is full, or
    /// no completion came in time.
    pub fn compare_and_write(
        &mut self,
        namespace: &Namespace,
        slba: u64,
        expected: Vec<u8>,
        data: Vec<u8>,
    ) -> Result<[Status; 2], Error> {
        if expected.len() != data.len() {
            return Err(Error::InvalidInput(
                "Compare and Write have data of the same length",
            ));
        }
        let blocks = namespace.blocks_in(data.len())?;
        let [first, second] = command::compare_and_write(namespace.nsid, slba, blocks);
        let first = self.queue.submit(first, Data::Write(expected))?;
        let second = self.queue.submit(second, Data::Write(data))?;
        let first = self.queue.wait_for("Compare", first)?;
        let second = self.queue.wait_for("Write", second)?;
        Ok([first.cqe.status, second.cqe.status])
    }

    /// Copies 1 to 256 ranges of the namespace to one place in it.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`].
    pub fn copy(
        &mut self,
        namespace: &Namespace,
        sdlba: u64,
        ranges: &[CopyRange],
    ) -> Result<(), Error> {
        const NAME: &str = "Copy";
        let range_count = u16::try_from(ranges.len()).unwrap_or(u16::MAX);
        if !(1..=256).contains(&range_count) {
            return Err(Error::InvalidInput("Copy takes 1 to 256 ranges"));
        }
        let command = CopyCommand {
            sdlba,
            range_count,
            format: CopyFormat::SAME_NAMESPACE,
        };
        let data = ranges.iter().flat_map(CopyRange::encode).collect();
        let sqe = command::copy(namespace.nsid, &command);
        self.queue
            .execute(NAME, sqe, Data::Write(data))?
            .success(NAME)?;
        Ok(())
    }

    /// Dataset Management of 1 to 256 ranges.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`].
    pub fn dsm(
        &mut self,
        namespace: &Namespace,
        ranges: &[DsmRange],
        attributes: DsmAttributes,
    ) -> Result<(), Error> {
        const NAME: &str = "Dataset Management";
        let count = u16::try_from(ranges.len()).unwrap_or(u16::MAX);
        if !(1..=256).contains(&count) {
            return Err(Error::InvalidInput(
                "Dataset Management takes 1 to 256 ranges",
            ));
        }
        let data = ranges.iter().flat_map(DsmRange::encode).collect();
        let sqe = command::dataset_management(namespace.nsid, count, attributes);
        self.queue
            .execute(NAME, sqe, Data::Write(data))?
            .success(NAME)?;
        Ok(())
    }

    /// Fabrics Disconnect: the controller ends this queue and closes its connection. Optional for
    /// a controller (OFCS); dropping the queue always works.
    ///
    /// # Errors
    ///
    /// The controller refused, or the connection is over.
    pub fn disconnect(mut self) -> Result<(), Error> {
        self.no_data("Disconnect", FabricsType::DISCONNECT.sqe())
    }

    fn no_data(&mut self, name: &'static str, sqe: Sqe) -> Result<(), Error> {
        self.queue.execute(name, sqe, Data::None)?.success(name)?;
        Ok(())
    }

    /// Bytes of the largest command: whole blocks within MDTS, at least one.
    fn part(&self, namespace: &Namespace) -> usize {
        let size = namespace.block_size.max(1);
        (self.chunk / size).clamp(1, 1 << 16) as usize * size as usize
    }
}

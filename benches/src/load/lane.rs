//! One connection under load.

use super::verify::Contents;
use super::{Error, LoadOptions};
use crate::poll::Poller;
use crate::report::Tally;
use nvmf_host::{Completion, Data, Namespace, Queue, command};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How long a whole queue may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection, its part of the namespace and its outstanding I/Os. Buffers go round: in steady
/// state nothing is allocated.
#[derive(Debug)]
pub(super) struct Lane {
    queue: Queue,
    namespace: Namespace,
    /// Logical blocks per I/O.
    blocks: u32,
    size: u32,
    /// In units of I/Os: where this connection's part begins, and its length.
    first: u64,
    share: u64,
    /// I/Os that fit in a namespace.
    each: u64,
    /// I/Os that counted.
    ios: u64,
    read_percent: u64,
    sequential: bool,
    next: u64,
    random: u64,
    contents: Option<Contents>,
    /// Outstanding I/Os; the tag of a command is the index.
    outstanding: Vec<Io>,
    buffers: Vec<Vec<u8>>,
    /// The socket was full; the poller waits for room.
    blocked: bool,
}

/// An outstanding I/O.
#[derive(Clone, Copy, Debug, Default)]
struct Io {
    started: u64,
    block: u64,
    write: bool,
}

impl Lane {
    pub(super) fn new(
        queue: Queue,
        namespace: Namespace,
        options: &LoadOptions,
        first: u64,
        share: u64,
        each: u64,
    ) -> Self {
        let table = usize::try_from(share).unwrap_or(usize::MAX);
        // Not zeros, which a target could recognize.
        let buffer = (0..=u8::MAX).cycle().take(options.size as usize).collect();
        Self {
            queue,
            namespace,
            blocks: options.size / namespace.block_size,
            size: options.size,
            first,
            share,
            each,
            ios: 0,
            read_percent: options.read_percent.into(),
            sequential: options.sequential,
            next: 0,
            random: first ^ 0x5851_f42d_4c95_7f2d,
            contents: options.verify.then(|| Contents::new(table)),
            outstanding: vec![Io::default(); options.depth as usize],
            buffers: vec![buffer; options.depth as usize],
            blocked: false,
        }
    }

    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        Ok(self.queue.fd().ok_or("a stream without descriptor")?)
    }

    /// I/Os that have counted so far.
    pub(super) const fn ios(&self) -> u64 {
        self.ios
    }

    /// Submits as many I/Os as are to be outstanding.
    pub(super) fn start(&mut self, tally: &Tally) -> Result<(), Error> {
        let now = tally.now();
        for index in 0..self.outstanding.len() {
            let Some(buffer) = self.buffers.pop() else {
                break;
            };
            self.submit(index, buffer, now)?;
        }
        Ok(())
    }

    /// Takes in what has come and submits one I/O for each that is complete.
    pub(super) fn turn(&mut self, tally: &mut Tally) -> Result<(), Error> {
        if self.queue.progress()? == 0 {
            return Ok(());
        }
        let now = tally.now();
        while let Some(done) = self.queue.next_completion() {
            let (index, buffer) = self.finish(done)?;
            self.ios += u64::from(tally.record(self.outstanding[index].started, now, self.size));
            self.submit(index, buffer, now)?;
        }
        Ok(())
    }

    /// Sends what is submitted; where the socket is full, the poller is asked to wait for room.
    pub(super) fn flush(&mut self, poller: &Poller, number: u64) -> Result<(), Error> {
        let blocked = !self.queue.flush()?;
        if blocked != self.blocked {
            self.blocked = blocked;
            poller.want_output(self.fd()?, number, blocked)?;
        }
        Ok(())
    }

    /// Waits for what is outstanding.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        while self.queue.outstanding() > 0 {
            let before = self.queue.outstanding();
            let _ = self.queue.poll(PATIENCE)?;
            while let Some(done) = self.queue.next_completion() {
                let (_, buffer) = self.finish(done)?;
                self.buffers.push(buffer);
            }
            if self.queue.outstanding() == before {
                return Err("the target does not answer".into());
            }
        }
        Ok(())
    }

    /// Writes every block of this connection's part once.
    pub(super) fn fill(&mut self) -> Result<(), Error> {
        let mut block = 0;
        while block < self.share {
            for index in 0..self.outstanding.len() {
                if block == self.share {
                    break;
                }
                let Some(buffer) = self.buffers.pop() else {
                    break;
                };
                if let Some(contents) = &mut self.contents {
                    contents.claim(usize::try_from(block)?);
                }
                self.send(
                    index,
                    buffer,
                    Io {
                        started: 0,
                        block,
                        write: true,
                    },
                )?;
                block += 1;
            }
            self.drain()?;
        }
        Ok(())
    }

    /// Chooses the next I/O.
    fn submit(&mut self, index: usize, buffer: Vec<u8>, now: u64) -> Result<(), Error> {
        let mut block = if self.sequential {
            self.next = (self.next + 1) % self.share;
            self.next
        } else {
            self.draw(self.share)
        };
        if let Some(contents) = &mut self.contents {
            block = contents.claim(usize::try_from(block)?) as u64;
        }
        let write = match self.read_percent {
            0 => true,
            100 => false,
            percent => self.draw(100) >= percent,
        };
        self.send(
            index,
            buffer,
            Io {
                started: now,
                block,
                write,
            },
        )
    }

    fn send(&mut self, index: usize, mut buffer: Vec<u8>, io: Io) -> Result<(), Error> {
        self.outstanding[index] = io;
        let (nsid, lba) = self.place(io.block)?;
        let (sqe, data) = if io.write {
            if let Some(contents) = &mut self.contents {
                contents.write(usize::try_from(io.block)?, &mut buffer);
            }
            (command::write(nsid, lba, self.blocks), Data::Write(buffer))
        } else {
            (command::read(nsid, lba, self.blocks), Data::Read(buffer))
        };
        self.queue
            .submit_tagged(sqe, data, index as u64)
            .map_err(|refused| refused.error)?;
        Ok(())
    }

    /// NSID and SLBA of an I/O on a block of this connection's part.
    fn place(&self, block: u64) -> Result<(u32, u64), Error> {
        let block = self.first + block;
        let nsid = self.namespace.nsid + u32::try_from(block / self.each)?;
        Ok((nsid, block % self.each * u64::from(self.blocks)))
    }

    /// Judges a completion; the buffer comes back.
    fn finish(&mut self, done: Completion) -> Result<(usize, Vec<u8>), Error> {
        let index = usize::try_from(done.tag)?;
        let Io { block, write, .. } = self.outstanding[index];
        let done = done.success(if write { "Write" } else { "Read" })?;
        if let Some(contents) = &mut self.contents {
            let table = usize::try_from(block)?;
            contents.release(table);
            if !write && let Some(at) = contents.check(table, &done.buffer) {
                let (nsid, lba) = self.place(block)?;
                let size = self.size;
                return Err(format!(
                    "wrong data: read at LBA {lba} of NSID {nsid}, byte {at} of {size}"
                )
                .into());
            }
        }
        Ok((index, done.buffer))
    }

    /// A random number below `bound` (xorshift; the upper bits of a product are a number below).
    fn draw(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if bound <= 1 << 32 {
            ((self.random >> 32) * bound) >> 32
        } else {
            self.random % bound
        }
    }
}

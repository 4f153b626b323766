//! Hosts that write, and note down what they have done.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use super::ledger::{Clock, Content, Deed, Journal, Rng, SECTOR, Stamp, data};
use nvmf_host::nvmf_proto::wire::Sqe;
use nvmf_host::nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::{Completion, Data, Error, IoQueue, Namespace, command};
use std::ops::Range;
use std::time::Duration;

/// How long an answer may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A host at work on some of a namespace's blocks.
pub struct Writer<'a> {
    pub queue: IoQueue,
    pub ns: Namespace,
    pub clock: Clock,
    pub rng: Rng,
    /// Where it writes, in blocks.
    pub parts: Vec<Range<u64>>,
    /// The volatile write cache is off for it.
    pub write_through: bool,
    /// Called after each acknowledgement.
    pub acknowledged: &'a (dyn Fn() + Sync),
    pub journal: Journal,
}

/// The target has gone, or its backend.
#[derive(Debug)]
pub struct Gone;

/// What a command does when it is acknowledged.
enum Effect {
    Deed(usize),
    Flush(u64),
}

impl Writer<'_> {
    fn sectors(&self) -> u64 {
        u64::from(self.ns.block_size) / SECTOR as u64
    }

    /// A range of 1 to `most` blocks in one of the parts.
    fn range(&mut self, most: u64) -> Range<u64> {
        let count = self.parts.len() as u64;
        let part = self.parts[usize::try_from(self.rng.below(count)).unwrap()].clone();
        let start = part.start + self.rng.below(part.end - part.start);
        let most = most.min(part.end - start);
        // Mostly short ones.
        let blocks = 1 + self.rng.below(most);
        let blocks = if self.rng.one_in(3) {
            blocks
        } else {
            blocks.min(9)
        };
        start..start + blocks
    }

    /// Notes that a command is about to be sent.
    fn begin(&mut self, blocks: &Range<u64>, content: Content, durable: bool) -> usize {
        let per = self.sectors();
        self.journal.deeds.push(Deed {
            sectors: blocks.start * per..blocks.end * per,
            content,
            durable: durable || self.write_through,
            begun: self.clock.tick(),
            ended: None,
        });
        self.journal.deeds.len() - 1
    }

    /// What a deed writes.
    fn data(&self, deed: usize) -> Vec<u8> {
        let Deed { sectors, begun, .. } = &self.journal.deeds[deed];
        data(sectors.start, sectors.end - sectors.start, *begun)
    }

    fn end(&mut self, effect: &Effect) {
        match *effect {
            Effect::Deed(index) => self.journal.deeds[index].ended = Some(self.clock.tick()),
            Effect::Flush(begun) => self.journal.flushes.push(begun),
        }
        (self.acknowledged)();
    }

    /// Keeps up to `depth` commands outstanding, until `count` were sent or the target is gone.
    /// Writes of many sizes, with FUA and without, Write Zeroes and Flush, in no order.
    pub fn stream(&mut self, depth: usize, count: usize) {
        let mut effects = Vec::new();
        let mut failed = false;
        loop {
            while !failed && effects.len() < count && self.queue.queue().outstanding() < depth {
                let (sqe, data, effect) = self.any();
                let tag = effects.len() as u64;
                effects.push(effect);
                match self.queue.queue().submit_tagged(sqe, data, tag) {
                    Ok(_) => {}
                    Err(refused) => return end_of_target(&refused.error),
                }
            }
            if self.queue.queue().outstanding() == 0 {
                return;
            }
            let done: Vec<Completion> = match self.queue.poll(PATIENCE) {
                Ok(completions) => completions.collect(),
                Err(error) => return end_of_target(&error),
            };
            assert!(!done.is_empty(), "no answer within {PATIENCE:?}");
            for done in done {
                if done.status().is_success() {
                    self.end(&effects[usize::try_from(done.tag).unwrap()]);
                } else {
                    // The backend does not work any more.
                    failed = true;
                }
            }
        }
    }

    fn any(&mut self) -> (Sqe, Data, Effect) {
        if self.rng.one_in(16) {
            let begun = self.clock.tick();
            let flush = command::flush(self.ns.nsid);
            return (flush, Data::None, Effect::Flush(begun));
        }
        let fua = self.rng.one_in(3);
        let with_fua = |sqe| if fua { command::with_fua(sqe) } else { sqe };
        // Up to 192 KiB: in capsules, by R2T, and in several transfers.
        let range = self.range(384 / self.sectors());
        let blocks = u32::try_from(range.end - range.start).unwrap();
        if self.rng.one_in(12) {
            let deallocate = self.rng.one_in(2);
            let zeroes = command::write_zeroes(self.ns.nsid, range.start, blocks, deallocate);
            let deed = self.begin(&range, Content::Zeroes, fua);
            return (with_fua(zeroes), Data::None, Effect::Deed(deed));
        }
        let deed = self.begin(&range, Content::Fresh, fua);
        let write = command::write(self.ns.nsid, range.start, blocks);
        (
            with_fua(write),
            Data::Write(self.data(deed)),
            Effect::Deed(deed),
        )
    }

    /// One command after the other, of all that write, until `count` were sent or the target is
    /// gone. Nobody else writes to its parts.
    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            let done = match self.rng.below(8) {
                0 => self.copy(),
                1 | 2 => self.compare_and_write(),
                3 => self.deallocate(),
                _ => {
                    let (sqe, data, effect) = self.any();
                    self.run(sqe, data, &effect)
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn run(&mut self, sqe: Sqe, data: Data, effect: &Effect) -> Result<(), Gone> {
        self.send(sqe, data)?;
        self.end(effect);
        Ok(())
    }

    fn send(&mut self, sqe: Sqe, data: Data) -> Result<Completion, Gone> {
        match self.queue.raw(sqe, data) {
            Ok(done) if done.status().is_success() => Ok(done),
            // It fails if the backend does.
            Ok(_) => Err(Gone),
            Err(error) => {
                end_of_target(&error);
                Err(Gone)
            }
        }
    }

    /// What blocks hold. That a command may have them is for the ledger to judge.
    fn read(&mut self, range: &Range<u64>) -> Result<Vec<u8>, Gone> {
        let blocks = u32::try_from(range.end - range.start).unwrap();
        let buffer = vec![0; (blocks * self.ns.block_size) as usize];
        let sqe = command::read(self.ns.nsid, range.start, blocks);
        Ok(self.send(sqe, Data::Read(buffer))?.buffer)
    }

    fn copy(&mut self) -> Result<(), Gone> {
        let (from, to) = (self.range(16), self.range(16));
        let blocks = (from.end - from.start).min(to.end - to.start);
        let (from, to) = (from.start..from.start + blocks, to.start..to.start + blocks);
        if from.start < to.end && to.start < from.end {
            return Ok(());
        }
        let data = self.read(&from)?;
        let stamps = data.chunks_exact(SECTOR).map(Stamp::read);
        let stamps = stamps.collect::<Option<_>>().expect("a torn sector");
        let deed = self.begin(&to, Content::Copied(stamps), false);
        let range = CopyRange {
            slba: from.start,
            blocks: u32::try_from(blocks).unwrap(),
            ..CopyRange::default()
        };
        let command = CopyCommand {
            sdlba: to.start,
            range_count: 1,
            format: CopyFormat::SAME_NAMESPACE,
        };
        let sqe = command::copy(self.ns.nsid, &command);
        let ranges = Data::Write(range.encode().to_vec());
        self.run(sqe, ranges, &Effect::Deed(deed))
    }

    fn compare_and_write(&mut self) -> Result<(), Gone> {
        let range = self.range(8);
        let blocks = u32::try_from(range.end - range.start).unwrap();
        let expected = self.read(&range)?;
        let fua = self.rng.one_in(3);
        let deed = self.begin(&range, Content::Fresh, fua);
        let data = self.data(deed);
        let [first, mut second] = command::compare_and_write(self.ns.nsid, range.start, blocks);
        if fua {
            second = command::with_fua(second);
        }
        let halves = [(first, expected), (second, data)];
        let queue = self.queue.queue();
        let mut tokens = Vec::new();
        for (sqe, data) in halves {
            match queue.submit(sqe, Data::Write(data)) {
                Ok(token) => tokens.push(token),
                Err(refused) => {
                    end_of_target(&refused.error);
                    return Err(Gone);
                }
            }
        }
        for token in tokens {
            match queue.wait_for("Compare and Write", token) {
                Ok(done) if done.status().is_success() => {}
                Ok(_) => return Err(Gone),
                Err(error) => {
                    end_of_target(&error);
                    return Err(Gone);
                }
            }
        }
        self.end(&Effect::Deed(deed));
        Ok(())
    }

    fn deallocate(&mut self) -> Result<(), Gone> {
        let range = self.range(64);
        let deed = self.begin(&range, Content::MaybeZeroes, false);
        let dsm = DsmRange {
            context: 0,
            length: u32::try_from(range.end - range.start).unwrap(),
            slba: range.start,
        };
        let sqe = command::dataset_management(self.ns.nsid, 1, DsmAttributes::DEALLOCATE);
        let ranges = Data::Write(dsm.encode().to_vec());
        self.run(sqe, ranges, &Effect::Deed(deed))
    }
}

/// How a connection may end when the target does: not by breaking the rules, and not by silence.
pub fn end_of_target(error: &Error) {
    assert!(
        matches!(error, Error::Closed | Error::Io { .. }),
        "the connection ended so: {error}"
    );
}

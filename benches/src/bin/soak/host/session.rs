//! An association of a load host: many commands under way on several queues.

use super::command::{Chosen, Limits};
use super::{Host, Kind, Trouble};
use crate::board::{Moment, Word};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::{Completion, Data, Queue};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a queue without completions is looked at before the next.
const TURN: Duration = Duration::from_millis(2);

/// A command that is under way, or a pair.
#[derive(Debug)]
struct Op {
    kind: Kind,
    range: Range<usize>,
    sources: Vec<Range<usize>>,
    statuses: [Option<Status>; 2],
    /// How many commands have not completed.
    left: usize,
    since: Moment,
    started: Instant,
}

/// An association.
pub(super) struct Session<'a> {
    host: &'a mut Host,
    queues: Vec<Queue>,
    limits: Limits,
    /// The tag of a command is twice its number here, and 1 more for the second of a pair.
    ops: Vec<Option<Op>>,
    /// Most commands of a queue.
    depth: usize,
    end: Instant,
    began: Instant,
    submitted: u64,
}

impl<'a> Session<'a> {
    pub(super) fn new(host: &'a mut Host, queues: Vec<Queue>, limits: Limits) -> Self {
        let most = queues.iter().map(Queue::depth).min().unwrap_or(1);
        let depth = 1 + host.random.index(most);
        let millis = host.random.within(50, 8000);
        let began = Instant::now();
        Self {
            host,
            queues,
            limits,
            ops: Vec::new(),
            depth,
            end: began + Duration::from_millis(millis),
            began,
            submitted: 0,
        }
    }

    /// The connections, with what is under way on them.
    pub(super) fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    /// Whether no command is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.ops.iter().all(Option::is_none)
    }

    /// Works until its time is over, and then waits for what is under way, or not.
    pub(super) fn work(&mut self) -> Result<(), Trouble> {
        let abandon = self.host.random.percent(20);
        loop {
            let board = &self.host.board;
            let over =
                Instant::now() >= self.end || board.is_set(Word::Pause) || board.is_set(Word::Stop);
            if over && (abandon || self.is_idle()) {
                return Ok(());
            }
            for index in 0..self.queues.len() {
                if !over {
                    self.submit(index)?;
                }
                self.collect(index)?;
            }
            self.look_for_late_ones()?;
            self.host.tell_now_and_then();
        }
    }

    /// Puts commands on a queue, as many as depth and rate allow.
    fn submit(&mut self, index: usize) -> Result<(), Trouble> {
        let since = self.host.board.moment();
        while self.queues[index].outstanding() < self.depth && self.is_due() {
            let room = self.queues[index].depth() - self.queues[index].outstanding();
            let Some(chosen) = self.host.choose(&self.limits, room)? else {
                return Ok(());
            };
            self.start(index, chosen, since)?;
        }
        Ok(())
    }

    fn is_due(&self) -> bool {
        let due = self.began.elapsed().as_secs_f64() * f64::from(self.host.args.rate);
        self.host.args.rate == 0 || (self.submitted as f64) < due
    }

    fn start(&mut self, index: usize, chosen: Chosen, since: Moment) -> Result<(), Trouble> {
        let free = self.ops.iter().position(Option::is_none);
        let number = free.unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        self.ops[number] = Some(Op {
            kind: chosen.kind,
            range: chosen.range,
            sources: chosen.sources,
            statuses: [None; 2],
            left: chosen.commands.len(),
            since,
            started: Instant::now(),
        });
        for (half, (sqe, data)) in (0..).zip(chosen.commands) {
            let moved = match &data {
                Data::Write(data) | Data::WriteByR2t(data) => data.len() as u64,
                _ => 0,
            };
            let tag = number as u64 * 2 + half;
            let submitted = self.queues[index].submit_tagged(sqe, data, tag);
            submitted.map_err(|refused| refused.error)?;
            self.host.tally.count("bytes-sent", moved);
            self.host.tally.count("commands", 1);
            self.submitted += 1;
        }
        Ok(())
    }

    /// Takes what has come on a queue.
    fn collect(&mut self, index: usize) -> Result<(), Trouble> {
        let queue = &mut self.queues[index];
        if queue.outstanding() == 0 {
            if self.is_idle() {
                std::thread::sleep(TURN);
            }
            return Ok(());
        }
        // The iterator would keep the queue from being used.
        let _ = queue.poll(TURN)?;
        while let Some(done) = self.queues[index].next_completion() {
            self.complete(done)?;
        }
        Ok(())
    }

    fn complete(&mut self, done: Completion) -> Result<(), Trouble> {
        let number = usize::try_from(done.tag / 2).unwrap_or(usize::MAX);
        let Some(Some(op)) = self.ops.get_mut(number) else {
            return Err(Trouble::Wrong(format!("nobody waits for {done:?}")));
        };
        op.statuses[usize::from(done.tag % 2 == 1)] = Some(done.status());
        op.left -= 1;
        if !done.digest_ok {
            return Err(Trouble::Wrong(format!("wrong data digest: {op:?}")));
        }
        if op.left > 0 {
            return Ok(());
        }
        let Some(op) = self.ops[number].take() else {
            return Ok(());
        };
        let took = u64::try_from(op.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.host.tally.slowest = self.host.tally.slowest.max(took);
        self.finish(op, &done.buffer)
    }

    /// Judges a command that is complete.
    fn finish(&mut self, op: Op, data: &[u8]) -> Result<(), Trouble> {
        let host = &mut *self.host;
        for range in op.sources.iter().chain([&op.range]) {
            host.model.release(range.clone());
        }
        let expected = op.kind.expected();
        let is_expected = |(status, expected): (&Option<Status>, Status)| {
            status.is_none_or(|status| status.same_code(expected))
        };
        if !op.statuses.iter().zip(expected).all(is_expected) {
            if host.is_disturbed(op.since) {
                host.tally.count("failed-by-churn", 1);
                return Ok(());
            }
            let statuses = op.statuses.iter().flatten();
            let statuses: Vec<String> = statuses.map(ToString::to_string).collect();
            let statuses = statuses.join(" and ");
            return Err(Trouble::Wrong(format!(
                "undisturbed, but {statuses}: {op:?}"
            )));
        }
        host.tally.count(op.kind.name(), 1);
        if op.kind == Kind::Read {
            host.tally.count("bytes-verified", data.len() as u64);
            let block_size = self.limits.block_size();
            let seen = host.model.observe(op.range.clone(), data, block_size)?;
            return seen.map_err(|mismatch| {
                let lba = self.limits.first + mismatch.block as u64;
                Trouble::Wrong(format!(
                    "WRONG DATA at LBA {lba} of NSID {}: {mismatch:x?} in {op:?}",
                    self.limits.namespace.nsid
                ))
            });
        }
        if op.kind.settles() {
            host.model.settle(op.range)?;
        }
        Ok(())
    }

    /// A command that takes as long as this has been lost.
    fn look_for_late_ones(&self) -> Result<(), Trouble> {
        let patience = Duration::from_secs(self.host.args.patience);
        let late = |op: &&Op| op.started.elapsed() > patience;
        let Some(op) = self.ops.iter().flatten().find(late) else {
            return Ok(());
        };
        let (since, text) = (op.since, format!("no answer within {patience:?}: {op:?}"));
        if self.host.board.moment().same_run(since) {
            return Err(Trouble::Wrong(text));
        }
        Ok(())
    }
}

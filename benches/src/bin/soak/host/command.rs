//! The commands of a load host: what is chosen, and what has to come back.

use super::{Host, Trouble};
use crate::model::{Stamp, ZEROES, fill};
use nvmf_host::nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Data, Namespace, command};
use std::ops::Range;

/// Blocks of a Compare or of a half of a fused operation.
const COMPARED_MAX: usize = 16;

/// Bytes of a read that is part of one of the whole region; less than any MDTS.
const AUDITED: usize = 128 << 10;

/// What a session may do where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) namespace: Namespace,
    /// First logical block of the region.
    pub(super) first: u64,
    /// MDTS.
    pub(super) max_bytes: u64,
}

impl Limits {
    pub(super) const fn block_size(&self) -> usize {
        self.namespace.block_size as usize
    }

    fn lba(&self, block: usize) -> u64 {
        self.first + block as u64
    }
}

/// Kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    WriteZeroes,
    Deallocate,
    /// With data that is there, or not.
    Compare(bool),
    /// Compare and Write with data that is there, or not.
    Fused(bool),
    Copy,
    Verify,
    Flush,
}

impl Kind {
    /// Out of 100.
    fn choose(host: &mut Host) -> Self {
        match host.random.below(100) {
            0..40 => Self::Read,
            40..74 => Self::Write,
            74..79 => Self::WriteZeroes,
            79..83 => Self::Deallocate,
            83..86 => Self::Compare(true),
            86..88 => Self::Compare(false),
            88..91 => Self::Fused(true),
            91..92 => Self::Fused(false),
            92..95 => Self::Copy,
            95..97 => Self::Verify,
            _ => Self::Flush,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Deallocate => "deallocate",
            Self::Compare(_) => "compare",
            Self::Fused(_) => "compare-and-write",
            Self::Copy => "copy",
            Self::Verify => "verify",
            Self::Flush => "flush",
        }
    }

    /// What its commands complete with.
    pub(super) const fn expected(self) -> [Status; 2] {
        match self {
            Self::Compare(false) => [Status::COMPARE_FAILURE, Status::SUCCESS],
            Self::Fused(false) => [Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED],
            _ => [Status::SUCCESS; 2],
        }
    }

    /// Whether its end says what the blocks hold.
    pub(super) const fn settles(self) -> bool {
        matches!(
            self,
            Self::Write | Self::WriteZeroes | Self::Fused(true) | Self::Copy
        )
    }
}

/// A command, or a fused pair, with the blocks that it has to itself.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
    /// Of a Copy.
    pub(super) sources: Vec<Range<usize>>,
    pub(super) commands: Vec<(Sqe, Data)>,
}

impl Host {
    /// The next command, with what it changes noted in the model. `room` is how many a queue takes.
    pub(super) fn choose(
        &mut self,
        limits: &Limits,
        room: usize,
    ) -> Result<Option<Chosen>, Trouble> {
        if let Some(range) = self.next_of_audit(limits) {
            return self.build_chosen(limits, Kind::Read, range).map(Some);
        }
        let mut kind = Kind::choose(self);
        if kind == Kind::Flush {
            let sqe = command::flush(limits.namespace.nsid);
            return Ok(Some(Chosen {
                kind,
                range: 0..0,
                sources: Vec::new(),
                commands: vec![(sqe, Data::None)],
            }));
        }
        let most = self.length(limits, kind);
        let Some(range) = self.claim(most) else {
            return Ok(None);
        };
        let too_wide = matches!(kind, Kind::Fused(_)) && room < 2;
        if too_wide || !self.model.is_certain(range.clone()) {
            // What is not known is found out first.
            kind = Kind::Read;
        }
        self.build_chosen(limits, kind, range).map(Some)
    }

    /// The next blocks of the read of the whole region, unless something is under way on them.
    fn next_of_audit(&mut self, limits: &Limits) -> Option<Range<usize>> {
        let start = self.audit?;
        let most = AUDITED / limits.block_size();
        let end = (start + most).min(self.model.len());
        let range = self.model.claim(start..end)?;
        self.audit = Some(range.end);
        if range.end == self.model.len() {
            self.audit = None;
            self.tally.count("regions-read", 1);
        }
        Some(range)
    }

    fn build_chosen(
        &mut self,
        limits: &Limits,
        kind: Kind,
        range: Range<usize>,
    ) -> Result<Chosen, Trouble> {
        let mut chosen = Chosen {
            kind,
            range,
            sources: Vec::new(),
            commands: Vec::new(),
        };
        if kind == Kind::Copy {
            self.choose_sources(&mut chosen);
        }
        self.build(limits, &mut chosen)?;
        Ok(chosen)
    }

    /// Blocks of a command: mostly few.
    fn length(&mut self, limits: &Limits, kind: Kind) -> usize {
        let most = match kind {
            Kind::Compare(_) | Kind::Fused(_) => COMPARED_MAX,
            _ => usize::try_from(limits.max_bytes).unwrap_or(usize::MAX) / limits.block_size(),
        };
        let most = most.min(self.model.len());
        let most = match self.random.below(100) {
            0..60 => most.min(8),
            60..90 => most.min((64 << 10) / limits.block_size()),
            90..99 => most.min((256 << 10) / limits.block_size()),
            _ => most,
        };
        1 + self.random.index(most)
    }

    fn claim(&mut self, len: usize) -> Option<Range<usize>> {
        let blocks = self.model.len();
        (0..4).find_map(|_| {
            let start = self.random.index(blocks);
            self.model.claim(start..(start + len).min(blocks))
        })
    }

    /// Divides the blocks of a Copy among sources whose contents are known. If there are none it
    /// becomes a Read.
    fn choose_sources(&mut self, chosen: &mut Chosen) {
        let mut left = chosen.range.len();
        for _ in 0..4 {
            let Some(source) = self.claim(left) else {
                break;
            };
            if self.model.is_certain(source.clone()) {
                left -= source.len();
                chosen.sources.push(source);
            } else {
                self.model.release(source);
            }
            if left == 0 {
                break;
            }
        }
        let copied = chosen.range.len() - left;
        if copied == 0 {
            chosen.kind = Kind::Read;
            return;
        }
        let end = chosen.range.start + copied;
        self.model.release(end..chosen.range.end);
        chosen.range.end = end;
    }

    /// Stamps that no block has had yet.
    fn new_stamps(&mut self, blocks: usize) -> Range<Stamp> {
        let first = self.stamps;
        self.stamps += blocks as u64;
        first..self.stamps
    }

    fn build(&mut self, limits: &Limits, chosen: &mut Chosen) -> Result<(), Trouble> {
        let range = chosen.range.clone();
        let nsid = limits.namespace.nsid;
        let lba = limits.lba(range.start);
        let blocks = u32::try_from(range.len()).unwrap_or(u32::MAX);
        let bytes = range.len() * limits.block_size();
        match chosen.kind {
            Kind::Read => {
                let data = Data::Read(vec![0xa5; bytes]);
                chosen
                    .commands
                    .push((command::read(nsid, lba, blocks), data));
            }
            Kind::Write => {
                let stamps = self.new_stamps(range.len());
                self.model.intend(range, stamps.clone())?;
                let data = contents(stamps, limits.block_size());
                let data = self.transport(data);
                let sqe = self.maybe_fua(command::write(nsid, lba, blocks));
                chosen.commands.push((sqe, data));
            }
            Kind::WriteZeroes => {
                self.model.intend(range, std::iter::repeat(ZEROES))?;
                let deallocate = self.random.percent(50);
                let sqe = command::write_zeroes(nsid, lba, blocks, deallocate);
                chosen.commands.push((self.maybe_fua(sqe), Data::None));
            }
            Kind::Deallocate => {
                self.model
                    .intend(range.clone(), std::iter::repeat(ZEROES))?;
                chosen.commands.push(self.deallocate(limits, range));
            }
            Kind::Compare(equal) => {
                let data = self.compared(limits, range, equal);
                chosen
                    .commands
                    .push((command::compare(nsid, lba, blocks), data));
            }
            Kind::Fused(equal) => {
                let compared = self.compared(limits, range.clone(), equal);
                let stamps = self.new_stamps(range.len());
                if equal {
                    self.model.intend(range, stamps.clone())?;
                }
                let written = contents(stamps, limits.block_size());
                let written = self.transport(written);
                let [first, second] = command::compare_and_write(nsid, lba, blocks);
                chosen.commands.push((first, compared));
                chosen.commands.push((self.maybe_fua(second), written));
            }
            Kind::Copy => {
                let stamps = |source| self.model.stamps(source);
                let stamps: Vec<Stamp> = chosen.sources.iter().cloned().flat_map(stamps).collect();
                self.model.intend(range, stamps)?;
                chosen.commands.push(copy(limits, lba, &chosen.sources));
            }
            Kind::Verify => {
                chosen
                    .commands
                    .push((command::verify(nsid, lba, blocks), Data::None));
            }
            Kind::Flush => {}
        }
        Ok(())
    }

    /// In the capsule where it fits, or never.
    fn transport(&mut self, data: Vec<u8>) -> Data {
        if self.random.percent(30) {
            Data::WriteByR2t(data)
        } else {
            Data::Write(data)
        }
    }

    fn maybe_fua(&mut self, sqe: Sqe) -> Sqe {
        if self.random.percent(10) {
            command::with_fua(sqe)
        } else {
            sqe
        }
    }

    /// What the blocks hold, or something else in one of them.
    fn compared(&mut self, limits: &Limits, range: Range<usize>, equal: bool) -> Data {
        let stamps: Vec<Stamp> = self.model.stamps(range).collect();
        let mut data = contents(stamps, limits.block_size());
        if !equal {
            let at = self.random.index(data.len());
            data[at] ^= 1 << self.random.below(8);
        }
        self.transport(data)
    }

    /// Dataset Management of the blocks, in one to three ranges.
    fn deallocate(&mut self, limits: &Limits, range: Range<usize>) -> (Sqe, Data) {
        let mut ranges = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let left = range.end - start;
            let len = if ranges.len() == 2 {
                left
            } else {
                1 + self.random.index(left)
            };
            let part = DsmRange {
                context: 0,
                length: u32::try_from(len).unwrap_or(u32::MAX),
                slba: limits.lba(start),
            };
            ranges.push(part);
            start += len;
        }
        let count = u16::try_from(ranges.len()).unwrap_or(1);
        let nsid = limits.namespace.nsid;
        let sqe = command::dataset_management(nsid, count, DsmAttributes::DEALLOCATE);
        let data = ranges.iter().flat_map(DsmRange::encode).collect();
        (sqe, Data::Write(data))
    }
}

fn copy(limits: &Limits, sdlba: u64, sources: &[Range<usize>]) -> (Sqe, Data) {
    let range = |source: &Range<usize>| CopyRange {
        slba: limits.lba(source.start),
        blocks: u32::try_from(source.len()).unwrap_or(u32::MAX),
        ..CopyRange::default()
    };
    let data = sources.iter().flat_map(|source| range(source).encode());
    let command = CopyCommand {
        sdlba,
        range_count: u16::try_from(sources.len()).unwrap_or(1),
        format: CopyFormat::SAME_NAMESPACE,
    };
    let sqe = command::copy(limits.namespace.nsid, &command);
    (sqe, Data::Write(data.collect()))
}

fn contents(stamps: impl IntoIterator<Item = Stamp>, block_size: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for stamp in stamps {
        let start = data.len();
        data.resize(start + block_size, 0);
        fill(&mut data[start..], stamp);
    }
    data
}

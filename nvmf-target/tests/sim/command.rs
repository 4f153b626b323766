//! A host's command, as the model needs it.

use crate::content::SECTOR;
use crate::queries::Query;
use crate::reservations::{Action, Reserve};
use std::ops::Range;

/// What a command is, with what it takes to judge its completion.
#[derive(Clone, Debug)]
pub enum What {
    /// Of a queue, with Set Property and others the way up of an association.
    Connect,
    Enable,
    Ready,
    QueueCount,
    /// A discovery controller is to tell of changes.
    Watch,
    KeepAlive,
    Event,
    /// `crowded`: there are as many of them as the target takes already.
    Abort {
        crowded: bool,
        /// The start of the command that it is to end.
        victim: u64,
    },
    Disable,
    /// Shut down, to enable the controller again.
    Halt,
    /// Whether the controller is shut down yet.
    IsHalted,
    /// Disable, to enable the controller again.
    Restart,
    /// Whether the controller is disabled yet.
    IsOff,
    Shutdown,
    Disconnect,
    Query(Query),
    Io(Io),
}

impl What {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::Enable => "Property Set (enable)",
            Self::Ready | Self::IsOff | Self::IsHalted => "Property Get (CSTS)",
            Self::QueueCount => "Set Features (queues)",
            Self::Watch => "Set Features (events)",
            Self::KeepAlive => "Keep Alive",
            Self::Event => "Asynchronous Event Request",
            Self::Abort { .. } => "Abort",
            Self::Disable | Self::Restart => "Property Set (disable)",
            Self::Shutdown | Self::Halt => "Property Set (shutdown)",
            Self::Disconnect => "Disconnect",
            Self::Query(query) => query.name(),
            Self::Io(io) => io.op.name(),
        }
    }
}

/// An I/O command.
#[derive(Clone, Debug)]
pub struct Io {
    pub op: IoOp,
    pub nsid: u32,
    pub slba: u64,
    pub blocks: u64,
    pub fua: bool,
    /// What the blocks were written or marked as, for commands that write.
    pub write: Option<u32>,
    /// The block size that the host believes in.
    pub block_size: u64,
}

/// What it takes for a command under a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    None,
    Read,
    Write,
}

#[derive(Clone, Debug)]
pub enum IoOp {
    Read,
    Write,
    WriteZeroes,
    /// The first write of what it compares with, by sector.
    Compare(Vec<u64>),
    Verify,
    Uncorrectable,
    Flush,
    /// Ranges: first block and number of blocks.
    Deallocate(Vec<(u64, u64)>),
    /// Source ranges.
    Copy(Vec<(u64, u64)>),
    /// The halves of Compare and Write, both with what the first one compares with.
    FusedCompare(Vec<u64>),
    FusedWrite(Vec<u64>),
    Reservation(Reserve),
    ReservationReport,
}

impl IoOp {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::WriteZeroes => "Write Zeroes",
            Self::Compare(_) => "Compare",
            Self::Verify => "Verify",
            Self::Uncorrectable => "Write Uncorrectable",
            Self::Flush => "Flush",
            Self::Deallocate(_) => "Deallocate",
            Self::Copy(_) => "Copy",
            Self::FusedCompare(_) => "fused Compare",
            Self::FusedWrite(_) => "fused Write",
            Self::Reservation(_) => "a reservation command",
            Self::ReservationReport => "Reservation Report",
        }
    }

    /// What a reservation decides about it.
    pub const fn right(&self) -> Right {
        match self {
            Self::Read | Self::Compare(_) | Self::Verify | Self::FusedCompare(_) => Right::Read,
            Self::Reservation(_) | Self::ReservationReport => Right::None,
            _ => Right::Write,
        }
    }

    /// Whether it is no I/O command, but sets a feature of a namespace.
    pub fn is_feature(&self) -> bool {
        matches!(self, Self::Reservation(reserve) if reserve.action == Action::Persist)
    }

    /// Whether no blocks' data moves between host and target: it means something else where blocks
    /// have another size.
    pub const fn is_without_data(&self) -> bool {
        matches!(
            self,
            Self::WriteZeroes
                | Self::Verify
                | Self::Uncorrectable
                | Self::Flush
                | Self::Deallocate(_)
                | Self::Copy(_)
                | Self::Reservation(_)
                | Self::ReservationReport
        )
    }
}

impl Io {
    /// The sectors that it is about.
    pub fn sectors(&self) -> Range<u64> {
        sectors((self.slba, self.blocks), self.block_size)
    }

    /// The sectors that it writes where blocks have a certain size, in the order of its data.
    pub fn written(&self, block_size: u64) -> Vec<u64> {
        match &self.op {
            IoOp::Deallocate(ranges) => all(ranges, block_size),
            _ => sectors((self.slba, self.blocks), block_size).collect(),
        }
    }

    /// The sectors that a Copy reads, in the order of what it writes.
    pub fn copied(&self, block_size: u64) -> Vec<u64> {
        match &self.op {
            IoOp::Copy(ranges) => all(ranges, block_size),
            _ => Vec::new(),
        }
    }

    /// Whether it matters if it was carried out.
    pub const fn changes_something(&self) -> bool {
        self.write.is_some() || matches!(self.op, IoOp::Reservation(_))
    }

    /// The first block behind everything that it is about.
    pub fn end(&self) -> u64 {
        let ranges: &[(u64, u64)] = match &self.op {
            IoOp::Copy(ranges) | IoOp::Deallocate(ranges) => ranges,
            IoOp::Flush | IoOp::Reservation(_) | IoOp::ReservationReport => return 0,
            _ => &[],
        };
        let own = matches!(self.op, IoOp::Deallocate(_));
        let own = if own { 0 } else { self.slba + self.blocks };
        let ends = ranges.iter().map(|(slba, blocks)| slba + blocks);
        ends.max().unwrap_or_default().max(own)
    }
}

fn sectors((slba, blocks): (u64, u64), block_size: u64) -> Range<u64> {
    let per_block = block_size / SECTOR as u64;
    slba * per_block..(slba + blocks) * per_block
}

fn all(ranges: &[(u64, u64)], block_size: u64) -> Vec<u64> {
    let each = ranges.iter().map(|range| sectors(*range, block_size));
    each.flatten().collect()
}

/// A command that was submitted.
#[derive(Clone, Debug)]
pub struct Command {
    pub what: What,
    pub cid: u16,
    /// When, in the order of events.
    pub start: u64,
    /// When, in virtual time.
    pub at: u64,
    /// Somebody has asked for its end: an Abort, or a Preempt and Abort.
    pub unwanted: bool,
    /// The target says that it has ended it.
    pub doomed: bool,
}

impl Command {
    pub const fn new(what: What, start: u64, at: u64) -> Self {
        Self {
            what,
            cid: 0,
            start,
            at,
            unwanted: false,
            doomed: false,
        }
    }
}

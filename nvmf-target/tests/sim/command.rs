//! A host's command, as the model needs it.

/// What a command is, with what it takes to judge its completion.
#[derive(Clone, Debug)]
pub enum What {
    /// Of a queue, with Set Property and others the way up of an association.
    Connect,
    Enable,
    Ready,
    QueueCount,
    KeepAlive,
    Event,
    /// Of the command with this CID on a queue.
    Abort { qid: u16, cid: u16 },
    Disable,
    Shutdown,
    Disconnect,
    Io(Io),
}

impl What {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::Enable => "Property Set (enable)",
            Self::Ready => "Property Get (CSTS)",
            Self::QueueCount => "Set Features (queues)",
            Self::KeepAlive => "Keep Alive",
            Self::Event => "Asynchronous Event Request",
            Self::Abort { .. } => "Abort",
            Self::Disable => "Property Set (disable)",
            Self::Shutdown => "Property Set (shutdown)",
            Self::Disconnect => "Disconnect",
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
    /// What the blocks were written as, for commands that write.
    pub write: Option<u32>,
    /// The block size that the host believes in.
    pub block_size: u64,
}

#[derive(Clone, Debug)]
pub enum IoOp {
    Read,
    Write,
    WriteZeroes,
    /// The first write of what it compares with, by sector.
    Compare(Vec<u64>),
    Verify,
    Flush,
}

impl IoOp {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::WriteZeroes => "Write Zeroes",
            Self::Compare(_) => "Compare",
            Self::Verify => "Verify",
            Self::Flush => "Flush",
        }
    }
}

impl Io {
    /// The sectors that it is about.
    pub fn sectors(&self) -> std::ops::Range<u64> {
        let per_block = self.block_size / 512;
        self.slba * per_block..(self.slba + self.blocks) * per_block
    }
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
}

impl Command {
    pub const fn new(what: What, start: u64, at: u64) -> Self {
        Self {
            what,
            cid: 0,
            start,
            at,
            unwanted: false,
        }
    }
}

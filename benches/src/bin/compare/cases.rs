//! The kinds of load in the table of throughput and latency.

use crate::Setup;
use crate::servers::Goal;
use nvmf_benches::load::LoadOptions;
use nvmf_benches::stub::Shape;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    size: u32,
    pub(crate) depth: u32,
    pub(crate) connections: u32,
    digests: bool,
    sq_flow_control: bool,
    /// nvmfd sleeps whenever it has nothing to do.
    pub(crate) no_busy_poll: bool,
}

const fn read(name: &'static str, depth: u32) -> Case {
    Case {
        name,
        write: false,
        size: 4096,
        depth,
        connections: 1,
        digests: false,
        sq_flow_control: false,
        no_busy_poll: false,
    }
}

const fn write(name: &'static str, depth: u32) -> Case {
    Case {
        write: true,
        ..read(name, depth)
    }
}

impl Case {
    const fn large(self) -> Self {
        Self {
            size: 128 << 10,
            ..self
        }
    }

    const fn over(self, connections: u32) -> Self {
        Self {
            connections,
            ..self
        }
    }

    const fn digests(self) -> Self {
        Self {
            digests: true,
            ..self
        }
    }

    const fn no_busy_poll(self) -> Self {
        Self {
            no_busy_poll: true,
            ..self
        }
    }

    const fn sq_flow_control(self) -> Self {
        Self {
            sq_flow_control: true,
            ..self
        }
    }
}

/// The one that system calls are counted for, too.
pub(crate) const READ_32: Case = read("4 KiB random read, depth 32", 32);
/// The same with writes.
pub(crate) const WRITE_32: Case = write("4 KiB random write, depth 32", 32);

/// The rows of the table.
pub(crate) const CASES: &[Case] = &[
    read("4 KiB random read, depth 1", 1),
    read("4 KiB random read, depth 1, no busy poll", 1).no_busy_poll(),
    READ_32,
    read("4 KiB random read, depth 32, SQ flow control", 32).sq_flow_control(),
    read("4 KiB random read, depth 128", 128),
    write("4 KiB random write, depth 1", 1),
    write("4 KiB random write, depth 1, no busy poll", 1).no_busy_poll(),
    WRITE_32,
    write("4 KiB random write, depth 128", 128),
    read("128 KiB read, depth 8", 8).large(),
    write("128 KiB write, depth 8", 8).large(),
    read("4 KiB random read, depth 32, both digests", 32).digests(),
    write("4 KiB random write, depth 32, both digests", 32).digests(),
    read("128 KiB read, depth 8, both digests", 8)
        .large()
        .digests(),
    write("128 KiB write, depth 8, both digests", 8)
        .large()
        .digests(),
    read("4 KiB random read, 8 connections of depth 16", 16).over(8),
    write("4 KiB random write, 8 connections of depth 16", 16).over(8),
    read("4 KiB random read, 64 connections of depth 2", 2).over(64),
    write("4 KiB random write, 64 connections of depth 2", 2).over(64),
];

impl Case {
    /// The load that a case means.
    pub(crate) fn load(&self, setup: &Setup, goal: &Goal) -> LoadOptions {
        LoadOptions {
            read_percent: if self.write { 0 } else { 100 },
            size: self.size,
            depth: self.depth,
            connections: self.connections,
            header_digest: self.digests,
            data_digest: self.digests,
            sq_flow_control: self.sq_flow_control,
            ..goal.load(setup)
        }
    }

    /// What its messages look like to the stub, which copies what is written if told to.
    pub(crate) const fn shape(&self, place: bool) -> Shape {
        Shape {
            write: self.write,
            size: self.size,
            digests: self.digests,
            success: !self.sq_flow_control,
            place,
        }
    }
}

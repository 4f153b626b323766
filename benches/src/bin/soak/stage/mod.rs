//! Who plays which part where: the namespaces of a run and its hosts.

mod foreign;
mod own;

use crate::churn::Churned;
use crate::daemon::{LoopDevice, Recipe};
use crate::herd::Member;
use crate::run::Place;
pub(crate) use foreign::foreign;
pub(crate) use own::own;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Bytes of a load host's region.
const REGION: u64 = 8 * MIB;
/// `--buffers` of our own daemon, in bytes.
pub(crate) const BUFFERS: u64 = 32 * MIB;
/// `--io-threads` of our own daemon.
pub(crate) const IO_THREADS: usize = 4;
/// Bytes of the RAM disks of our own daemon, those that come and go included.
pub(crate) const RAM: u64 = (16 + 8 + 1 + 4 + 10) * MIB;

/// Everything that a run needs to know before it begins.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) place: Place,
    /// `None`: the target is somebody else's.
    pub(crate) recipe: Option<Recipe>,
    pub(crate) churned: Option<Churned>,
    pub(crate) namespaces: BTreeSet<u32>,
    /// Those that nothing ever happens to.
    pub(crate) stable: Vec<u32>,
    pub(crate) herd: Vec<Member>,
    pub(crate) probed: Blocks,
    pub(crate) reserved: Option<u32>,
    pub(crate) scratch: Option<Blocks>,
    pub(crate) block_size: u32,
    /// What the report says of the namespaces.
    pub(crate) devices: Vec<String>,
    /// Kept until the run is over.
    _loop_device: Option<LoopDevice>,
}

/// Blocks of a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    pub(crate) nsid: u32,
    pub(crate) range: Range<u64>,
}

/// What the command line says of all load hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner<'a> {
    /// Folder of the run.
    pub(crate) dir: &'a Path,
    /// Most commands a second; 0: as many as there can be.
    pub(crate) rate: u32,
    /// Seconds that anything may take.
    pub(crate) patience: u64,
}

/// A region of a load host.
struct Region {
    number: u16,
    nsid: u32,
    first: u64,
    blocks: u64,
    volatile: bool,
    churned: bool,
}

impl Manner<'_> {
    fn member(&self, nqn: &str, address: SocketAddr, region: &Region) -> Member {
        let model = self.dir.join(format!("model-{}", region.number));
        let mut arguments: Vec<String> = [
            ("--board", self.dir.join("board").display().to_string()),
            ("--model", model.display().to_string()),
            ("--address", address.to_string()),
            ("--nqn", nqn.to_owned()),
            ("--number", region.number.to_string()),
            ("--nsid", region.nsid.to_string()),
            ("--first", region.first.to_string()),
            ("--blocks", region.blocks.to_string()),
            ("--rate", self.rate.to_string()),
            ("--patience", self.patience.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        if region.volatile {
            arguments.push("--volatile".to_owned());
        }
        if region.churned {
            arguments.push("--churned".to_owned());
        }
        let name = format!("load host {} of NSID {}", region.number, region.nsid);
        Member::new(name, arguments)
    }
}

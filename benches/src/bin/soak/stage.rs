//! Who plays which part where: the namespaces of a run and its hosts.

use crate::churn::Churned;
use crate::daemon::{LoopDevice, Recipe};
use crate::guests::{IDLER, PROBE, READER, RIVAL, WATCHER};
use crate::herd::Member;
use crate::host::host_names;
use crate::hostile::{DEAF, TORTURER};
use crate::random::Random;
use crate::run::Place;
use nvmf_host::{ConnectOptions, Controller};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the subsystem of our own daemon.
const NQN: &str = "nqn.2014-08.org.example:soak";
const MIB: u64 = 1 << 20;
/// Bytes of a load host's region.
const REGION: u64 = 8 * MIB;
/// `--buffers` of our own daemon, in bytes.
pub(crate) const BUFFERS: u64 = 32 * MIB;
/// `--io-threads` of our own daemon.
pub(crate) const IO_THREADS: usize = 4;
/// Bytes of the RAM disks of our own daemon, those that come and go included.
pub(crate) const RAM: u64 = (16 + 8 + 1 + 4 + 10) * MIB;

/// NSIDs of our own daemon, in the order of its devices.
const RAM_LOAD: u32 = 1;
const FILE_LOAD: u32 = 2;
const LOOP_LOAD: u32 = 3;
const TORTURED: u32 = 4;
const CHURNED: u32 = 5;
const RESERVED: u32 = 6;
const PROBED: u32 = 7;

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

/// What all load hosts are told.
struct Common<'a> {
    dir: &'a Path,
    nqn: &'a str,
    rate: u32,
    patience: u64,
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

impl Common<'_> {
    fn member(&self, address: SocketAddr, region: &Region) -> Member {
        let model = self.dir.join(format!("model-{}", region.number));
        let mut arguments: Vec<String> = [
            ("--board", self.dir.join("board").display().to_string()),
            ("--model", model.display().to_string()),
            ("--address", address.to_string()),
            ("--nqn", self.nqn.to_owned()),
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
        Member::new(arguments)
    }
}

/// A port that nobody has at the moment.
fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn file_of(path: &Path, bytes: u64) -> std::io::Result<()> {
    File::create(path)?.set_len(bytes)
}

/// A daemon of our own with everything: RAM disks, a file, a loop device if there can be one, a
/// namespace that is churned.
pub(crate) fn own(
    dir: &Path,
    program: PathBuf,
    random: &mut Random,
    rate: u32,
    patience: u64,
) -> std::io::Result<Stage> {
    let place = Place {
        address: free_port()?,
        churned: free_port()?,
        discovery: free_port()?,
        nqn: NQN.to_owned(),
    };
    let block_size = [512, 4096][random.index(2)];
    let [file, looped, churned] =
        ["file.img", "loop.img", "churned.img"].map(|name| dir.join(name));
    for path in [&file, &looped, &churned] {
        file_of(path, 2 * REGION)?;
    }
    std::fs::create_dir_all(dir.join("state"))?;
    let loop_device = LoopDevice::over(&looped);
    let third = loop_device.as_ref().map_or(&*looped, LoopDevice::path);
    let devices = [
        "ramdisk:16m".to_owned(),
        file.display().to_string(),
        third.display().to_string(),
        "ramdisk:8m".to_owned(),
        churned.display().to_string(),
        "ramdisk:1m".to_owned(),
        "ramdisk:4m".to_owned(),
    ];
    let mut arguments: Vec<String> = [
        ("--nqn", NQN.to_owned()),
        ("--bind", "127.0.0.1".to_owned()),
        ("--port", place.address.port().to_string()),
        ("--discovery-port", place.discovery.port().to_string()),
        ("--state-dir", dir.join("state").display().to_string()),
        ("--block-size", block_size.to_string()),
        ("--buffers", BUFFERS.to_string()),
        ("--io-threads", IO_THREADS.to_string()),
        ("--command", format!("listen {}", place.churned)),
        ("--command", format!("group {CHURNED} 2")),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect();
    let stable_load = 1..=5;
    let guests = [
        PROBE,
        READER,
        WATCHER,
        IDLER,
        RIVAL,
        RIVAL + 1,
        TORTURER,
        DEAF,
    ];
    for number in stable_load.chain(guests) {
        let (nqn, _) = host_names(number);
        arguments.extend(["--command".to_owned(), format!("allow {nqn}")]);
    }
    arguments.push("--stdin-control".to_owned());
    arguments.extend(devices.iter().cloned());

    let common = Common {
        dir,
        nqn: NQN,
        rate,
        patience,
    };
    let blocks = REGION / u64::from(block_size);
    let region = |number: u16, nsid, half| Region {
        number,
        nsid,
        first: half * blocks,
        blocks,
        volatile: nsid == RAM_LOAD,
        churned: nsid == CHURNED,
    };
    let herd = [
        region(1, RAM_LOAD, 0),
        region(2, RAM_LOAD, 1),
        region(3, FILE_LOAD, 0),
        region(4, FILE_LOAD, 1),
        region(5, LOOP_LOAD, 0),
        region(6, CHURNED, 0),
        region(7, CHURNED, 1),
    ];
    let herd = herd.iter().map(|region| {
        let address = if region.churned {
            place.churned
        } else {
            place.address
        };
        common.member(address, region)
    });
    let mut described: Vec<String> = devices.to_vec();
    if loop_device.is_some() {
        described[2] += " (a loop device)";
    }
    Ok(Stage {
        herd: herd.collect(),
        place,
        recipe: Some(Recipe {
            program,
            arguments,
            log: dir.join("daemon.log"),
        }),
        churned: Some(Churned {
            nsid: CHURNED,
            file: churned,
            hosts: vec![host_names(6).0],
        }),
        namespaces: (1..=PROBED).collect(),
        stable: vec![RAM_LOAD, FILE_LOAD, LOOP_LOAD, TORTURED, RESERVED, PROBED],
        probed: Blocks {
            nsid: PROBED,
            range: 0..4 * MIB / u64::from(block_size),
        },
        reserved: Some(RESERVED),
        scratch: Some(Blocks {
            nsid: TORTURED,
            range: 0..1024,
        }),
        block_size,
        devices: described,
        _loop_device: loop_device,
    })
}

/// Somebody else's target, whose first namespace is divided among all and erased.
pub(crate) fn foreign(
    dir: &Path,
    address: SocketAddr,
    nqn: String,
    rate: u32,
    patience: u64,
) -> Result<Stage, String> {
    /// Blocks for the probe, and for the catalogue.
    const OWN: u64 = 1024;
    const HOSTS: u16 = 4;
    let said = |err: nvmf_host::Error| err.to_string();
    let options = ConnectOptions::new(address, &nqn).map_err(said)?;
    let mut controller = Controller::connect(&options).map_err(said)?;
    let nsids = controller.active_namespaces().map_err(said)?;
    let &nsid = nsids.first().ok_or("there is no namespace")?;
    let namespace = controller.namespace(nsid).map_err(said)?;
    let most = REGION / u64::from(namespace.block_size);
    let blocks = most.min(namespace.blocks.saturating_sub(2 * OWN) / u64::from(HOSTS));
    if blocks < OWN {
        return Err(format!("{namespace:?} is too small"));
    }
    controller.set_queue_count(1).map_err(said)?;
    let mut queue = controller.io_queue(1).map_err(said)?;
    let zeroes = vec![0; 128 << 10];
    let regions = blocks * u64::from(HOSTS);
    for slba in (0..regions).step_by(zeroes.len() / namespace.block_size as usize) {
        let left = (regions - slba) * u64::from(namespace.block_size);
        let len = zeroes
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        queue
            .write(&namespace, slba, &zeroes[..len])
            .map_err(said)?;
    }
    drop(queue);
    controller.disconnect().map_err(said)?;
    let place = Place {
        address,
        churned: address,
        discovery: address,
        nqn,
    };
    let common = Common {
        dir,
        nqn: &place.nqn,
        rate,
        patience,
    };
    let herd = (1..=HOSTS).map(|number| {
        let region = Region {
            number,
            nsid,
            first: u64::from(number - 1) * blocks,
            blocks,
            volatile: false,
            churned: false,
        };
        common.member(address, &region)
    });
    Ok(Stage {
        herd: herd.collect(),
        recipe: None,
        churned: None,
        namespaces: nsids.iter().copied().collect(),
        stable: vec![nsid],
        probed: Blocks {
            nsid,
            range: regions..regions + OWN,
        },
        reserved: None,
        scratch: Some(Blocks {
            nsid,
            range: regions + OWN..regions + 2 * OWN,
        }),
        block_size: namespace.block_size,
        devices: vec![format!("namespace {nsid} of {}", place.nqn)],
        place,
        _loop_device: None,
    })
}

//! A daemon of our own with everything.

use super::{BUFFERS, Blocks, IO_THREADS, MIB, Manner, REGION, Region, Stage};
use crate::churn::Churned;
use crate::daemon::{LoopDevice, Recipe};
use crate::guests::{IDLER, PROBE, READER, RIVAL, WATCHER};
use crate::herd::Member;
use crate::host::host_names;
use crate::hostile::{DEAF, TORTURER};
use crate::random::Random;
use crate::run::Place;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Name of the subsystem.
const NQN: &str = "nqn.2014-08.org.example:soak";

/// NSIDs, in the order of the devices.
const RAM_LOAD: u32 = 1;
const FILE_LOAD: u32 = 2;
const LOOP_LOAD: u32 = 3;
const TORTURED: u32 = 4;
const CHURNED: u32 = 5;
const RESERVED: u32 = 6;
const PROBED: u32 = 7;

/// Number of the first load host of the churned namespace; those before it are never disturbed.
const FIRST_CHURNED: u16 = 6;

/// RAM disks, a file, a loop device if there can be one, and a file that is churned.
pub(crate) fn own(manner: Manner<'_>, program: PathBuf, random: &mut Random) -> io::Result<Stage> {
    let dir = manner.dir;
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
        File::create(path)?.set_len(2 * REGION)?;
    }
    std::fs::create_dir_all(dir.join("state"))?;
    let loop_device = LoopDevice::over(&looped);
    let third = loop_device.as_ref().map_or(&*looped, LoopDevice::path);
    let mut devices = [
        "ramdisk:16m".to_owned(),
        file.display().to_string(),
        third.display().to_string(),
        "ramdisk:8m".to_owned(),
        churned.display().to_string(),
        "ramdisk:1m".to_owned(),
        "ramdisk:4m".to_owned(),
    ];
    let mut arguments = arguments(dir, &place, block_size);
    arguments.extend(devices.iter().cloned());
    if loop_device.is_some() {
        devices[2] += " (a loop device)";
    }
    Ok(Stage {
        herd: herd(manner, &place, block_size),
        place,
        recipe: Some(Recipe {
            program,
            arguments,
            log: dir.join("daemon.log"),
        }),
        churned: Some(Churned {
            nsid: CHURNED,
            file: churned,
            host: host_names(FIRST_CHURNED).0,
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
        devices: devices.to_vec(),
        _loop_device: loop_device,
    })
}

/// A port that nobody has at the moment.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// The arguments of every daemon of the run, but for its devices.
fn arguments(dir: &Path, place: &Place, block_size: u32) -> Vec<String> {
    let options = [
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
    ];
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
    // Whoever may not be disturbed when hosts are forbidden.
    let listed = (1..FIRST_CHURNED).chain(guests);
    let listed = listed.map(|number| ("--command", format!("allow {}", host_names(number).0)));
    let mut arguments: Vec<String> = options
        .into_iter()
        .chain(listed)
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
    arguments.push("--stdin-control".to_owned());
    arguments
}

fn herd(manner: Manner<'_>, place: &Place, block_size: u32) -> Vec<Member> {
    let blocks = REGION / u64::from(block_size);
    let parts = [
        (RAM_LOAD, 0),
        (RAM_LOAD, 1),
        (FILE_LOAD, 0),
        (FILE_LOAD, 1),
        (LOOP_LOAD, 0),
        (CHURNED, 0),
        (CHURNED, 1),
    ];
    let member = |(number, (nsid, part))| {
        let churned = nsid == CHURNED;
        let region = Region {
            number,
            nsid,
            first: part * blocks,
            blocks,
            volatile: nsid == RAM_LOAD,
            churned,
        };
        let address = if churned {
            place.churned
        } else {
            place.address
        };
        manner.member(NQN, address, &region)
    };
    (1..).zip(parts).map(member).collect()
}

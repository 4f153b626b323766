//! The daemon as a process: what it prints, serves, refuses, and how it ends.

mod common;
mod control;
mod crash;
mod rss;
mod storm;
mod torture;

use common::*;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::identify::NsIdDescriptors;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller};
use rustix::process::Signal;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use tempfile::TempDir;

#[test]
fn it_serves_ram_disks_and_files_as_it_says() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "disk", 8 * MIB);
    let daemon = Daemon::start(&["-n", NQN, "ramdisk:64m", &file]);
    assert!(daemon.banner[0].contains(NQN));
    assert!(
        daemon.banner[1].starts_with("namespace 1: ramdisk:"),
        "{:?}",
        daemon.banner
    );
    assert!(daemon.banner[1].contains("67108864 bytes, block size 512, uuid "));
    assert!(daemon.banner[2].contains(&file));

    let entries = nvmf_host::discover(daemon.address("nvme discover")).unwrap();
    let port = daemon.address("nvme connect").port().to_string();
    let found = entries.iter().any(|entry| {
        let nqn = Nqn::from_field(&entry.subnqn).unwrap();
        nqn.as_str() == NQN && entry.trsvcid.starts_with(port.as_bytes())
    });
    assert!(found, "{entries:?}");
    let mut controller = daemon.connect(|options| options.data_digest = true);
    assert_eq!(controller.active_namespaces().unwrap(), [1, 2]);
    let namespaces = [1, 2].map(|nsid| controller.namespace(nsid).unwrap());
    assert_eq!(
        namespaces.map(|ns| ns.blocks * u64::from(ns.block_size)),
        [64 * MIB, 8 * MIB]
    );
    let mut queue = io_queue(&mut controller);
    for namespace in &namespaces {
        write_and_read_back(&mut queue, namespace, 1, 3);
        write_and_read_back(&mut queue, namespace, namespace.blocks - 4096, 4096);
    }
    let mut head = [0; 1024];
    File::open(&file).unwrap().read_exact(&mut head).unwrap();
    assert_eq!((head[511], head[513]), (0, 1));
}

#[test]
fn files_are_read_and_written_by_the_engine_that_is_named() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "disk", 8 * MIB);
    // What the daemon says where there is no io_uring is that it is not to be had.
    let uring = has_uring();
    for engine in ["auto", "uring", "threads"] {
        let arguments = ["--io-engine", engine, "-n", NQN, &file];
        if engine == "uring" && !uring {
            let (code, text) = refused(&arguments);
            assert!(code == Some(1) && text.contains("no io_uring"), "{text}");
            continue;
        }
        let daemon = Daemon::start(&arguments);
        let mut controller = daemon.connect(|_| {});
        let namespace = controller.namespace(1).unwrap();
        let mut queue = io_queue(&mut controller);
        write_and_read_back(&mut queue, &namespace, 5, 700);
        queue.flush(&namespace).unwrap();
    }
}

#[test]
fn options_change_what_is_served() {
    let daemon = Daemon::start(&[
        "-n",
        NQN,
        "--block-size",
        "4k",
        "--read-only",
        "--mdts",
        "64k",
        "--threads",
        "1",
        "--no-data-digest",
        "ramdisk:1m",
    ]);
    assert!(
        daemon.banner[1].ends_with(", read-only"),
        "{:?}",
        daemon.banner
    );
    let mut options = ConnectOptions::new(daemon.address("nvme connect"), NQN).unwrap();
    options.data_digest = true;
    Controller::connect(&options).unwrap_err();
    let mut controller = daemon.connect(|options| options.header_digest = true);
    assert!(controller.admin_queue().negotiated().header_digest);
    assert_eq!(controller.max_transfer(), Some(65536));
    let namespace = controller.namespace(1).unwrap();
    assert_eq!((namespace.block_size, namespace.blocks), (4096, 256));
    let mut queue = io_queue(&mut controller);
    let err = queue.write(&namespace, 0, &[0; 4096]).unwrap_err();
    assert_eq!(err.status(), Some(Status::NAMESPACE_WRITE_PROTECTED.dnr()));
}

#[test]
fn the_subsystem_is_who_it_is_told_to_be() {
    let daemon = Daemon::start(&["--serial", "S 1", "--model", "Model X", "ramdisk:1m"]);
    let controller = daemon.connect(|_| {});
    let identity = controller.identity();
    assert_eq!(identity.sn, *b"S 1                 ");
    assert_eq!(identity.mn[..8], *b"Model X ");
}

#[test]
fn the_queues_of_a_host_are_limited() {
    let daemon = Daemon::start(&["--io-queues", "2", "--queue-entries", "16", "ramdisk:1m"]);
    let mut controller = daemon.connect(|_| {});
    assert_eq!(controller.set_queue_count(7).unwrap(), 2);
    assert_eq!(controller.cap().mqes(), 15);
}

/// Two ports of one address: what a host's multipath needs to be tried on one machine.
#[test]
fn an_address_may_have_several_io_ports() {
    let dir = TempDir::new().unwrap();
    let path = file_of(&dir, "with\na newline", MIB);
    let daemon = Daemon::start(&["--bind", "127.0.0.1:0", "-n", NQN, &path]);
    let io: Vec<_> = daemon
        .banner
        .iter()
        .filter(|line| line.ends_with("for I/O and discovery"))
        .collect();
    assert_eq!(io.len(), 2, "{:?}", daemon.banner);
    assert!(daemon.banner[1].contains("with\\na newline, "));
    let entries = nvmf_host::discover(daemon.address("nvme discover")).unwrap();
    let ports = entries
        .iter()
        .filter(|entry| Nqn::from_field(&entry.subnqn).unwrap().as_str() == NQN);
    assert_eq!(ports.count(), 2, "{entries:?}");
}

#[test]
fn the_io_port_serves_discovery_alone_if_so_wished() {
    let daemon = Daemon::start(&["-P", "none", "-n", NQN, "ramdisk:1m"]);
    let io = daemon.address("nvme connect");
    assert_eq!(daemon.address("nvme discover"), io);
    let listening = daemon
        .banner
        .iter()
        .filter(|line| line.starts_with("listening"));
    assert_eq!(listening.count(), 1, "{:?}", daemon.banner);
    assert!(!nvmf_host::discover(io).unwrap().is_empty());
}

/// NQN, serial number and the namespaces' descriptors.
fn identity(arguments: &[&str]) -> (String, String, Vec<NsIdDescriptors>) {
    let daemon = Daemon::start(arguments);
    let mut controller = daemon.connect(|_| {});
    let serial = String::from_utf8(controller.identity().sn.to_vec()).unwrap();
    let nsids = controller.active_namespaces().unwrap();
    let descriptors = nsids
        .iter()
        .map(|&nsid| controller.namespace_descriptors(nsid).unwrap())
        .collect();
    (
        daemon.word("nvme connect", "-n").to_owned(),
        serial,
        descriptors,
    )
}

#[test]
fn identities_outlive_the_process() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "disk", MIB);
    let link = dir.path().join("link");
    symlink(&file, &link).unwrap();
    let first = identity(&["ramdisk:1m", "ramdisk:1m", &file]);
    assert_eq!(
        first,
        identity(&["ramdisk:1m", "ramdisk:1m", link.to_str().unwrap()])
    );
    assert_ne!(first.2[0], first.2[1]);
    assert_ne!(first.2[1], first.2[2]);
    // The file keeps its identity in another place of the list, and has another in another subsystem.
    assert_eq!(identity(&[&file]).2[0], first.2[2]);
    assert_ne!(identity(&["-n", NQN, &file]).2[0], first.2[2]);
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_served() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "disk", MIB);
    let odd = file_of(&dir, "odd", 1000);
    let none = dir.path().join("none");
    let link = dir.path().join("link");
    symlink(&file, &link).unwrap();
    let (folder, none, link) = (
        dir.path().to_str().unwrap(),
        none.to_str().unwrap(),
        link.to_str().unwrap(),
    );
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap();
    let port = &taken.port().to_string();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[], 2, &["DEVICE"]),
        (&["--no-such", "x"], 2, &["--no-such"]),
        (&["-K"], 2, &["-K", "nvmet"]),
        (&["-t", "rdma", &file], 2, &["rdma", "tcp"]),
        (&["-n", "disk", &file], 2, &["--nqn", "disk"]),
        (
            &["--block-size", "1000", &file],
            2,
            &["--block-size", "power of two"],
        ),
        (&["ramdisk:1x"], 2, &["ramdisk:1x", "64k"]),
        (&["ramdisk:1000"], 2, &["1000 bytes", "512"]),
        (&[&file, &file], 2, &[&file, "twice"]),
        (&[&file, link], 2, &[&file, link, "is the same as"]),
        (&[none], 1, &[none, "No such file"]),
        (&[folder], 1, &[folder, "is a directory", "block device"]),
        (&["/dev/null"], 1, &["/dev/null", "is a character device"]),
        (&[&odd], 1, &[&odd, "1000 bytes", "512"]),
        (
            &["-p", port, "--bind", "127.0.0.1", &file],
            1,
            &[&taken.to_string(), "in use", "--port"],
        ),
        (
            &["-p", "0", "-P", port, "--bind", "127.0.0.1", &file],
            1,
            &[&taken.to_string(), "in use", "--discovery-port"],
        ),
        (&["--bind", "192.0.2.77", &file], 1, &["192.0.2.77"]),
        (
            &["--bind", "::1", "--bind", "::1", &file],
            2,
            &["[::1]:4420", "twice"],
        ),
        (
            &["-n", "nqn.2014-08.org.example:a b", &file],
            2,
            &["--nqn", "without blanks"],
        ),
        (
            &["-p", "-1", &file],
            2,
            &["--port", "'-1'", "from 0 to 65535"],
        ),
        (&["/no\nsuch"], 1, &["/no\\nsuch: No such file"]),
        (
            &["--state-dir", &file, "ramdisk:1m"],
            1,
            &["--state-dir", &file, "no directory"],
        ),
    ];
    for (arguments, status, says) in cases {
        let (code, text) = refused(arguments);
        assert_eq!(code, Some(*status), "{arguments:?}: {text}");
        assert!(
            text.starts_with("nvmfd: ") && text.lines().count() == 1,
            "{arguments:?}: {text}"
        );
        for words in *says {
            assert!(text.contains(words), "{arguments:?}: {text}");
        }
    }
}

/// What it says in the end is in nobody's way, also where nobody hears it.
#[test]
fn errors_need_no_reader() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command(&["--nonsense"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn help_and_version_are_no_errors() {
    for (option, says) in [
        ("--help", "ramdisk:SIZE"),
        ("-h", "--stdin-control"),
        ("-V", "nvmfd "),
    ] {
        let output = command(&[option]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(says), "{text}");
    }
}

#[test]
fn a_file_is_served_by_one_daemon_at_a_time() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "disk", MIB);
    let first = Daemon::start(&[&file]);
    let (code, text) = refused(&[&ANY_PORT, &[&*file][..]].concat());
    assert_eq!(code, Some(1));
    assert!(text.contains("in use"), "{text}");
    first.signal(Signal::KILL);
    drop(first);
    Daemon::start(&[&file]);
}

#[test]
fn sigint_and_sigterm_end_it_with_hosts_connected() {
    for signal in [Signal::INT, Signal::TERM] {
        let daemon = Daemon::start(&["ramdisk:1m"]);
        let mut controller = daemon.connect(|_| {});
        let mut queue = io_queue(&mut controller);
        let namespace = controller.namespace(1).unwrap();
        write_and_read_back(&mut queue, &namespace, 0, 1);
        daemon.signal(signal);
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn sighup_and_the_end_of_its_input_do_not_end_it() {
    let mut daemon = Daemon::start(&["--stdin-control", "ramdisk:1m"]);
    daemon.signal(Signal::HUP);
    assert!(daemon.tell("add 2 ramdisk:1m").starts_with("ok "));
    daemon.input = None;
    let mut controller = daemon.connect(|_| {});
    assert_eq!(controller.active_namespaces().unwrap(), [1, 2]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
}

/// Whatever a host provokes, there are 256 lines of a kind and then one per second.
/// Nobody reads the log, and a pipe takes no more than 64 KiB: hosts are served all the same, and the
/// daemon ends when it is told to. What there was room for is read later.
#[test]
fn a_log_that_nobody_reads_is_in_nobodys_way() {
    let all = [&ANY_PORT[..], &["--debug", "-n", NQN, "ramdisk:1m"]].concat();
    let mut child = command(&all).env_remove("RUST_LOG").spawn().unwrap();
    let mut log = child.stderr.take().unwrap();
    let mut daemon = Daemon::of(child);
    for _ in 0..1000 {
        let mut controller = daemon.connect(|_| {});
        let mut queue = io_queue(&mut controller);
        let namespace = controller.namespace(1).unwrap();
        write_and_read_back(&mut queue, &namespace, 0, 1);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let bytes = text.len();
    assert!((60 << 10..70 << 10).contains(&bytes), "{bytes} bytes");
}

#[test]
fn a_host_cannot_fill_the_log() {
    const LIES: usize = 2000;
    let all = [&ANY_PORT[..], &["-n", NQN, "ramdisk:1m"]].concat();
    let start = std::time::Instant::now();
    let mut child = command(&all).env_remove("RUST_LOG").spawn().unwrap();
    let mut log = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    let mut daemon = Daemon::of(child);
    let address = daemon.address("nvme connect");
    for _ in 0..LIES {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        // Not an ICReq: answered by a C2HTermReq and the end.
        std::io::Write::write_all(&mut stream, &[9; 128]).unwrap();
        let mut end = Vec::new();
        stream.read_to_end(&mut end).unwrap();
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    let text = reader.join().unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("the connection ends"))
        .count();
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    assert!(
        (256..=257 + seconds).contains(&lines),
        "{lines} in {seconds} s"
    );
    assert!(text.contains("lines like this one are left out for a while"));
}

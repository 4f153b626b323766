//! The daemon as a process: what it prints, serves, refuses, and how it ends.

use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::identify::NsIdDescriptors;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller, IoQueue, Namespace};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const NQN: &str = "nqn.2014-08.org.example:daemon-test";
const MIB: u64 = 1 << 20;

/// A running daemon on ports of its own; killed when dropped.
struct Daemon {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    banner: Vec<String>,
}

/// Ports of the loopback address that nobody else has.
const ANY_PORT: [&str; 6] = ["--bind", "127.0.0.1", "-p", "0", "-P", "0"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmfd"));
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Daemon {
    /// Started, and serving.
    fn start(arguments: &[&str]) -> Self {
        let all = [&ANY_PORT, arguments].concat();
        let mut child = command(&all).stderr(Stdio::inherit()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut daemon = Self {
            child,
            input,
            output: BufReader::new(output),
            banner: Vec::new(),
        };
        loop {
            let line = daemon.line();
            assert_ne!(line, "", "nvmfd has ended: {:?}", daemon.banner);
            if line == "nvmfd: serving" {
                return daemon;
            }
            daemon.banner.push(line);
        }
    }

    /// The next line of standard output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Gives a command on standard input and returns the answer.
    fn tell(&mut self, line: &str) -> String {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
        self.line()
    }

    /// What follows `flag` in the line of the banner that begins with `start`.
    fn word(&self, start: &str, flag: &str) -> &str {
        let line = self
            .banner
            .iter()
            .find(|line| line.starts_with(start))
            .unwrap();
        let mut words = line.split(' ').skip_while(|word| *word != flag);
        words.nth(1).unwrap()
    }

    fn address(&self, start: &str) -> SocketAddr {
        let (ip, port) = (self.word(start, "-a"), self.word(start, "-s"));
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    }

    /// Connects as the printed line says.
    fn connect(&self, change: impl FnOnce(&mut ConnectOptions)) -> Controller {
        let nqn = self.word("nvme connect", "-n");
        let mut options = ConnectOptions::new(self.address("nvme connect"), nqn).unwrap();
        change(&mut options);
        Controller::connect(&options).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; returns the exit status.
    fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn io_queue(controller: &mut Controller) -> IoQueue {
    controller.set_queue_count(1).unwrap();
    controller.io_queue(1).unwrap()
}

fn write_and_read_back(queue: &mut IoQueue, namespace: &Namespace, slba: u64, blocks: usize) {
    let data: Vec<u8> = (0..blocks * namespace.block_size as usize)
        .map(|i| u8::try_from((i + i / 512) % 251).unwrap())
        .collect();
    queue.write(namespace, slba, &data).unwrap();
    queue.flush(namespace).unwrap();
    let mut back = vec![0; data.len()];
    queue.read(namespace, slba, &mut back).unwrap();
    assert!(back == data, "{namespace:?} {slba}");
}

/// Runs it to its end, which must come before it serves: exit status and standard error.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.stdout, b"", "{arguments:?}");
    (output.status.code(), text)
}

fn file_of(dir: &TempDir, name: &str, bytes: u64) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

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
        (&[&file, link], 2, &[&file, link]),
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

#[test]
fn namespaces_come_and_go_by_command() {
    let dir = TempDir::new().unwrap();
    let file = file_of(&dir, "a disk", MIB);
    let mut daemon = Daemon::start(&["--stdin-control", "-n", NQN, "ramdisk:1m"]);
    let mut controller = daemon.connect(|_| {});
    let mut queue = io_queue(&mut controller);

    let added = daemon.tell(&format!("add 7 {file}"));
    assert!(
        added.starts_with("ok namespace 7: ") && added.contains(&file),
        "{added}"
    );
    assert_eq!(controller.active_namespaces().unwrap(), [1, 7]);
    let namespace = controller.namespace(7).unwrap();
    write_and_read_back(&mut queue, &namespace, 0, 8);

    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 * MIB)
        .unwrap();
    let resized = daemon.tell("resize 7");
    assert!(
        resized.starts_with("ok namespace 7: ") && resized.contains("2097152 bytes"),
        "{resized}"
    );
    assert_eq!(controller.namespace(7).unwrap().blocks, 4096);

    for (line, says) in [
        ("resize 1", "RAM disk"),
        ("resize 3", "no namespace 3"),
        ("remove 3", "no namespace 3"),
        ("add 1 ramdisk:1m", "namespace 1 is there already"),
        ("add 2 /none", "/none: No such file"),
        ("add 2 ramdisk:1000", "512"),
        ("add 1000000 ramdisk:1m", "1000000"),
        ("nonsense", "add NSID DEVICE"),
    ] {
        let answer = daemon.tell(line);
        assert!(
            answer.starts_with("error ") && answer.contains(says),
            "{line}: {answer}"
        );
    }
    assert!(daemon.tell(&format!("add 8 {file}")).contains("twice"));

    // After the answer the file is closed: it can be had again at once.
    for _ in 0..10 {
        assert_eq!(daemon.tell("remove 7"), "ok namespace 7 removed");
        assert!(daemon.tell(&format!("add 7 {file}")).starts_with("ok "));
        let namespace = controller.namespace(7).unwrap();
        write_and_read_back(&mut queue, &namespace, 9, 1);
    }
    assert_eq!(daemon.tell("remove 1"), "ok namespace 1 removed");
    assert_eq!(controller.active_namespaces().unwrap(), [7]);
    assert_eq!(daemon.tell("quit"), "ok quitting");
    assert_eq!(daemon.end(), Some(0));
}

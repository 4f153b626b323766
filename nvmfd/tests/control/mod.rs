//! Commands on standard input.

use crate::common::*;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::{ConnectOptions, Controller};
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use tempfile::TempDir;
use uuid::Uuid;

#[test]
fn what_hosts_take_up_is_told() {
    let mut daemon = Daemon::start(&["--stdin-control", "-n", NQN, "ramdisk:1m"]);
    let nothing = "ok connections 0 controllers 0 io-queues 0 buffer-bytes 0 in-flight 0 \
                   unconnected 0 queue-bytes 0";
    assert_eq!(daemon.tell("stats"), nothing);
    let mut controller = daemon.connect(|_| {});
    let queue = io_queue(&mut controller);
    let some = "ok connections 2 controllers 1 io-queues 1 buffer-bytes 0 in-flight 0 \
                unconnected 0 queue-bytes ";
    let bytes = loop {
        if let Some(bytes) = daemon.tell("stats").strip_prefix(some) {
            break bytes.parse::<u64>().unwrap();
        }
    };
    assert!(bytes > 100_000, "{bytes}");
    drop(queue);
    controller.disconnect().unwrap();
    while daemon.tell("stats") != nothing {}
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
        ("nonsense", "one of add, remove, resize"),
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

/// Whoever was writing it may have been about to write `remove 12`.
#[test]
fn a_line_without_an_end_is_not_carried_out() {
    let mut daemon = Daemon::start(&["--stdin-control", "ramdisk:1m"]);
    let mut input = daemon.input.take().unwrap();
    input.write_all(b"remove 1").unwrap();
    drop(input);
    let answer = daemon.line();
    assert!(
        answer.starts_with("error \"remove 1\" ") && answer.contains("newline"),
        "{answer}"
    );
    let mut controller = daemon.connect(|_| {});
    assert_eq!(controller.active_namespaces().unwrap(), [1]);
}

#[test]
fn long_lines_are_refused_and_not_repeated() {
    let mut daemon = Daemon::start(&["--stdin-control", "ramdisk:1m"]);
    let digits = "1".repeat(5_000_000);
    let name = "x".repeat(60_000);
    for (line, says) in [
        (format!("remove {digits}"), "at most 65536 bytes"),
        (format!("add 2 /{name}"), ": File name too long"),
        (format!("allow {name}"), "longer than 223 bytes"),
    ] {
        let answer = daemon.tell(&line);
        assert!(
            answer.starts_with("error ") && answer.contains(says) && answer.len() < 1200,
            "{answer}"
        );
    }
    // Nothing of them is left.
    assert!(daemon.tell("stats").starts_with("ok "));
}

#[test]
fn errors_name_the_value_and_what_is_wanted() {
    let mut daemon = Daemon::start(&["--stdin-control", "ramdisk:1m"]);
    for (line, says) in [
        ("add 2 ramdisk:1x", "\"ramdisk:1x\": a size such as"),
        ("add 5 ramdisk:1m\0", "\"ramdisk:1m\\0\": a size such as"),
        ("refer 127.0.0.1:0", "\"127.0.0.1:0\""),
    ] {
        let answer = daemon.tell(line);
        assert!(
            answer.starts_with("error ") && answer.contains(says),
            "{line}: {answer}"
        );
    }
}

/// A command that was refused has changed nothing: who comes next is who it would be without it.
#[test]
fn a_ram_disk_that_is_refused_takes_no_identity() {
    let start = || Daemon::start(&["--stdin-control", "-n", NQN, "ramdisk:1m"]);
    let add = "add 2 ramdisk:1m";
    let mut daemon = start();
    assert!(daemon.tell("add 1000000 ramdisk:1m").starts_with("error "));
    assert_eq!(daemon.tell(add), start().tell(add));
}

/// A host with an NQN that lists may name.
fn as_host<'a>(name: &'a str, port: Option<SocketAddr>) -> impl FnOnce(&mut ConnectOptions) + 'a {
    move |options| {
        options.host = Nqn::new(name).unwrap();
        options.host_id = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes();
        if let Some(port) = port {
            options.address = port;
        }
    }
}

const HOST: &str = "nqn.2014-08.org.example:host-a";
const OTHER: &str = "nqn.2014-08.org.example:host-b";

#[test]
fn hosts_are_allowed_and_forbidden() {
    let mut daemon = Daemon::start(&["--stdin-control", "--host", HOST, "ramdisk:1m"]);
    let mut first = daemon.connect(as_host(HOST, None));
    assert_eq!(
        refusal(&daemon, OTHER),
        Some(Status::CONNECT_INVALID_HOST.dnr())
    );
    assert_eq!(
        daemon.tell(&format!("allow {OTHER}")),
        format!("ok {OTHER} may connect")
    );
    let mut second = daemon.connect(as_host(OTHER, None));
    assert_eq!(second.active_namespaces().unwrap(), [1]);
    assert_eq!(
        daemon.tell(&format!("forbid {OTHER}")),
        format!("ok {OTHER} is not listed any more")
    );
    second.active_namespaces().unwrap_err();
    assert_eq!(first.active_namespaces().unwrap(), [1]);
    assert!(
        daemon
            .tell(&format!("forbid {OTHER}"))
            .starts_with("error ")
    );
    assert_eq!(daemon.tell("allow any"), "ok any host may connect");
    assert_eq!(refusal(&daemon, OTHER), None);
    assert!(daemon.tell("allow not-an-nqn").contains("not-an-nqn"));
    let unknown = daemon.tell("permit all");
    assert!(unknown.starts_with("error \"permit all\": "), "{unknown}");
}

/// The status with which a host's Connect is refused, if it is.
fn refusal(daemon: &Daemon, host: &str) -> Option<Status> {
    let nqn = daemon.word("nvme connect", "-n");
    let mut options = ConnectOptions::new(daemon.address("nvme connect"), nqn).unwrap();
    as_host(host, None)(&mut options);
    Controller::connect(&options)
        .err()
        .map(|err| err.status().unwrap())
}

#[test]
fn namespaces_are_shown_to_some_hosts_only() {
    let masked = format!("visible 2 {HOST}");
    let mut daemon = Daemon::start(&[
        "--stdin-control",
        "--command",
        &masked,
        "ramdisk:1m",
        "ramdisk:1m",
    ]);
    let mut host = daemon.connect(as_host(HOST, None));
    let mut other = daemon.connect(as_host(OTHER, None));
    assert_eq!(host.active_namespaces().unwrap(), [1, 2]);
    assert_eq!(other.active_namespaces().unwrap(), [1]);
    assert_eq!(
        daemon.tell("visible 2 none"),
        "ok namespace 2 is visible to no host"
    );
    assert_eq!(host.active_namespaces().unwrap(), [1]);
    assert!(daemon.tell("visible 2 all").starts_with("ok "));
    assert_eq!(other.active_namespaces().unwrap(), [1, 2]);
    assert!(daemon.tell("visible 3 all").starts_with("error "));
}

#[test]
fn namespaces_become_read_only_and_writable() {
    let mut daemon = Daemon::start(&["--stdin-control", "ramdisk:1m"]);
    let mut controller = daemon.connect(|_| {});
    let mut queue = io_queue(&mut controller);
    let namespace = controller.namespace(1).unwrap();
    assert!(daemon.tell("read-only 1 on").ends_with(", read-only"));
    let err = queue.write(&namespace, 0, &[0; 512]).unwrap_err();
    assert_eq!(err.status(), Some(Status::NAMESPACE_WRITE_PROTECTED.dnr()));
    assert!(!daemon.tell("read-only 1 off").contains("read-only"));
    write_and_read_back(&mut queue, &namespace, 0, 1);
    assert!(daemon.tell("read-only 2 on").contains("no namespace 2"));

    let mut daemon = Daemon::start(&["--stdin-control", "--read-only", "ramdisk:1m"]);
    let answer = daemon.tell("read-only 1 off");
    assert!(answer.contains("opened read-only"), "{answer}");
}

#[test]
fn ports_come_and_go_and_have_states_of_their_own() {
    let mut daemon = Daemon::start(&[
        "--stdin-control",
        "--command",
        "ana all 1 non-optimized",
        "-n",
        NQN,
        "ramdisk:1m",
    ]);
    let first = daemon.address("nvme connect");
    let second = free_address();
    assert!(daemon.tell(&format!("listen {second}")).starts_with("ok "));
    assert!(
        daemon
            .tell(&format!("listen {second}"))
            .starts_with("error ")
    );
    let mut one = daemon.connect(|_| {});
    let mut two = daemon.connect(as_host(HOST, Some(second)));
    let namespace = one.namespace(1).unwrap();
    let (mut queue_one, mut queue_two) = (io_queue(&mut one), io_queue(&mut two));
    write_and_read_back(&mut queue_one, &namespace, 0, 1);
    assert_eq!(
        daemon.tell(&format!("ana {first} 1 inaccessible")),
        format!("ok ANA group 1 is inaccessible at {first}")
    );
    let err = queue_one.read(&namespace, 0, &mut [0; 512]).unwrap_err();
    assert_eq!(err.status(), Some(Status::ANA_INACCESSIBLE));
    write_and_read_back(&mut queue_two, &namespace, 0, 1);
    // All ports or none: one of the two is not there.
    assert!(
        daemon
            .tell("ana 127.0.0.1:1 1 change")
            .starts_with("error ")
    );
    assert!(daemon.tell("group 1 2").starts_with("ok "));
    write_and_read_back(&mut queue_one, &namespace, 0, 1);
    assert!(daemon.tell("ana all 2 persistent-loss").starts_with("ok "));
    let err = queue_two.read(&namespace, 0, &mut [0; 512]).unwrap_err();
    assert_eq!(err.status(), Some(Status::ANA_PERSISTENT_LOSS));
    assert!(
        daemon
            .tell(&format!("unlisten {second}"))
            .starts_with("ok ")
    );
    two.active_namespaces().unwrap_err();
    one.active_namespaces().unwrap();
    assert!(
        daemon
            .tell(&format!("unlisten {second}"))
            .starts_with("error ")
    );
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

#[test]
fn hosts_are_referred_elsewhere() {
    let own = "nqn.2014-08.org.example:discovery";
    let mut daemon = Daemon::start(&[
        "--stdin-control",
        "--discovery-nqn",
        own,
        "--command",
        "refer 192.0.2.9:8009",
        "ramdisk:1m",
    ]);
    let address = daemon.address("nvme discover");
    let shown = |what: &str| {
        let entries = nvmf_host::discover(address).unwrap();
        entries.iter().any(|entry| {
            entry.traddr.starts_with(what.as_bytes()) || entry.subnqn.starts_with(what.as_bytes())
        })
    };
    assert!(shown("192.0.2.9") && shown(own));
    assert!(daemon.tell("refer 192.0.2.10:8009").starts_with("ok "));
    assert!(daemon.tell("unrefer 192.0.2.9:8009").starts_with("ok "));
    assert!(shown("192.0.2.10:8009") || shown("192.0.2.10"));
    assert!(!shown("192.0.2.9"));
    assert!(daemon.tell("unrefer 192.0.2.9:8009").starts_with("error "));
}

#[test]
fn commands_at_the_start_are_all_done_or_nothing_is_served() {
    for (command, status, says) in [
        ("group 2 1", 2, "namespace 2"),
        ("add 4097 ramdisk:1m", 2, "NSID 4097"),
        ("add 2 /no/such", 1, "/no/such"),
        ("ana 127.0.0.1:1 1 change", 2, "127.0.0.1:1"),
        ("unrefer 127.0.0.1:1", 2, "127.0.0.1:1"),
        ("listen 192.0.2.77:0", 1, "192.0.2.77"),
        ("allow disk", 2, "\"disk\""),
        ("quit", 2, "no sense before anything is served"),
        (
            "nonsense",
            2,
            "forbid, listen, unlisten, refer, unrefer is wanted",
        ),
        ("visible", 2, "visible"),
        ("resize 1", 2, "RAM disk"),
    ] {
        let arguments = ["--command", "group 1 2", "--command", command, "ramdisk:1m"];
        let (code, text) = refused(&[&ANY_PORT[..], &arguments].concat());
        assert_eq!(code, Some(status), "{text}");
        assert!(text.contains(says) && text.contains("--command"), "{text}");
        assert!(text.contains(command), "{text}");
    }
}

#[test]
fn commands_at_the_start_are_done_in_their_order() {
    // What comes before the namespace that it is about is refused, what goes after it is not.
    let add = ["--command", "add 2 ramdisk:1m"];
    let hide = ["--command", "visible 2 none"];
    let (code, text) = refused(&[&ANY_PORT[..], &hide, &add, &["ramdisk:1m"]].concat());
    assert_eq!(code, Some(2), "{text}");
    let remove = ["--command", "remove 2"];
    let port = free_address();
    let listen = format!("listen {port}");
    let last = [
        "--command",
        "listen 127.0.0.1:0",
        "--command",
        &listen,
        "--command",
        "ana all 1 inaccessible",
        "--command",
        "listen 127.0.0.1:0",
    ];
    let daemon = Daemon::start(&[&add[..], &hide, &remove, &last, &["ramdisk:1m"]].concat());
    // Ports are told of however they came, and "all" are those of that moment.
    let ports: Vec<SocketAddr> = daemon
        .banner
        .iter()
        .filter(|line| line.ends_with(" for I/O and discovery"))
        .map(|line| line.split(' ').nth(2).unwrap().parse().unwrap())
        .collect();
    assert_eq!(ports.len(), 4);
    assert_eq!(ports[2], port);
    for (index, port) in ports.iter().enumerate() {
        let mut controller = daemon.connect(as_host(HOST, Some(*port)));
        let disk = controller.namespace(1).unwrap();
        let mut queue = io_queue(&mut controller);
        let read = queue.read(&disk, 0, &mut [0; 512]);
        assert_eq!(read.is_ok(), index == 3, "{index}: {read:?}");
    }
}

#[test]
fn a_port_that_is_closed_before_the_start_is_not_told_of() {
    let port = free_address();
    let (listen, unlisten) = (format!("listen {port}"), format!("unlisten {port}"));
    let commands = ["--command", &listen, "--command", &unlisten];
    let ana = ["--command", "ana all 1 inaccessible", "ramdisk:1m"];
    let daemon = Daemon::start(&[&commands[..], &ana].concat());
    let told = daemon.banner.iter().any(|l| l.contains(&port.to_string()));
    assert!(!told, "{:?}", daemon.banner);
}

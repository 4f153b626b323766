//! Commands on standard input.

use crate::common::*;
use std::fs::File;
use tempfile::TempDir;

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

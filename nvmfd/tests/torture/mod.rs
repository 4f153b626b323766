//! The catalogue of malformed traffic against the daemon: it serves on, and nothing is left behind.

use crate::common::{Daemon, NQN};
use nvmf_host::torture::{Options, Torture, Verdict};
use std::fs;
use std::time::{Duration, Instant};

/// How long a state that must come about may take on a busy machine; also the patience of the
/// client, for which nothing but what is due is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many descriptors and threads a process has.
fn held(pid: u32) -> [usize; 2] {
    ["fd", "task"].map(|folder| {
        fs::read_dir(format!("/proc/{pid}/{folder}"))
            .unwrap()
            .count()
    })
}

/// Resident memory in KiB.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let word = line.unwrap().split_whitespace().nth(1);
    word.unwrap().parse().unwrap()
}

#[test]
fn the_daemon_conforms_and_is_afterwards_as_it_was() {
    let daemon = Daemon::start(&["-n", NQN, "--threads", "2", "ramdisk:16m"]);
    let pid = daemon.child.id();
    let mut options = Options::new(daemon.address("nvme connect"));
    options.scratch = Some(0..16);
    options.patience = PATIENCE;
    let mut residents = Vec::new();
    let before = held(pid);
    for _ in 0..3 {
        let mut played = 0;
        for outcome in Torture::begin(&options).unwrap() {
            assert_eq!(outcome.verdict, Verdict::Conforms, "{outcome:?}");
            played += 1;
        }
        assert!(played > 300);
        let end = Instant::now() + PATIENCE;
        while held(pid) != before {
            assert!(Instant::now() < end, "{:?}, {before:?} before", held(pid));
            std::thread::sleep(Duration::from_millis(1));
        }
        residents.push(resident(pid));
    }
    // The first run touches what is kept for use. A leak of 1 KiB per connection would be 5 MiB.
    assert!(residents[2] <= residents[1] + 4096, "{residents:?} KiB");
}

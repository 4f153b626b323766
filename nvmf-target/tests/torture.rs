//! The catalogue of malformed traffic against a target of our own: what it answers to each case is
//! in `tables/torture.txt`, and nothing of it all is left behind.

#![cfg(target_os = "linux")]

mod common;

use common::{NQN, assert_idle, config, eventually, target};
use nvmf_host::torture::{Options, Outcome, Torture, Verdict};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Descriptors and threads are counted, so there is one target at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options(address: SocketAddr) -> Options {
    let mut options = Options::new(address);
    options.scratch = Some(0..64);
    // Silence is not expected: what has to be waited for comes, however busy the machine is.
    options.patience = common::PATIENCE;
    options
}

/// Descriptors of this process, and threads of the target: the test runner starts and ends its own.
fn descriptors_and_threads() -> (usize, usize) {
    let entries = |folder: &str| fs::read_dir(folder).unwrap().flatten();
    let of_target = entries("/proc/self/task").filter(|task| {
        let name = fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("nvmf"))
    });
    (entries("/proc/self/fd").count(), of_target.count())
}

fn lines(outcomes: &[Outcome]) -> Vec<String> {
    let line = |outcome: &Outcome| {
        let Outcome {
            case,
            answer,
            verdict,
        } = outcome;
        format!("{}: {verdict}: {answer}", case.name)
    };
    outcomes.iter().map(line).collect()
}

/// Run with `TORTURE_TABLE=write` to make the table anew, and read what has changed in it.
#[test]
fn every_case_is_answered_as_the_table_says_and_leaves_nothing() {
    let _alone = alone();
    let (target, address) = target(config());
    // A thread has its name when it has begun to run.
    let threads = config().reactors + 1;
    eventually("all threads run", || descriptors_and_threads().1 == threads);
    let before = descriptors_and_threads();
    let outcomes: Vec<_> = Torture::begin(&options(address)).unwrap().collect();
    let lines = lines(&outcomes);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables/torture.txt");
    if std::env::var_os("TORTURE_TABLE").is_some() {
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }
    let table = fs::read_to_string(path).unwrap();
    for (line, expected) in lines.iter().zip(table.lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(lines.len(), table.lines().count());
    let wrong = outcomes
        .iter()
        .find(|outcome| outcome.verdict != Verdict::Conforms);
    assert_eq!(wrong, None);
    assert_idle(&target);
    eventually("descriptors and threads are as many as before", || {
        descriptors_and_threads() == before
    });
}

/// docs/reliability.md says how many cases each scenario has, slow ones included.
#[test]
fn the_document_counts_the_cases_of_each_scenario() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reliability.md");
    let text = fs::read_to_string(path).unwrap();
    let cases = nvmf_host::torture::cases();
    let mut scenarios = 0;
    for line in text.lines() {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let number = cells.next().and_then(|cell| cell.parse::<u8>().ok());
        let (Some(number), Some(said)) = (number, cells.nth(1)) else {
            continue;
        };
        scenarios += 1;
        assert_eq!(number, scenarios, "{line}");
        let count = cases
            .iter()
            .filter(|case| case.scenarios.contains(&number))
            .count();
        let right = match count {
            0 => String::new(),
            1 => "1 case".to_owned(),
            count => format!("{count} cases"),
        };
        assert_eq!(said, right, "scenario {number}");
    }
    assert_eq!(scenarios, 68);
}

/// What waits for deadlines of the target, which are short here.
#[test]
fn hosts_that_do_not_move_are_given_up() {
    let _alone = alone();
    let mut config = config();
    config.icreq_timeout = Duration::from_millis(200);
    config.connect_timeout = Duration::from_millis(200);
    let (target, address) = target(config);
    let mut options = options(address);
    options.only = Some("slow/".to_owned());
    options.slow = true;
    let outcomes: Vec<_> = Torture::begin(&options).unwrap().collect();
    let answers: BTreeMap<_, _> = outcomes
        .iter()
        .map(|outcome| (outcome.case.name, outcome.answer.as_str()))
        .collect();
    assert_eq!(answers["slow/says-nothing"], "closed");
    assert_eq!(answers["slow/never-connects"], "closed");
    assert_eq!(answers["slow/byte-a-second"], "ended");
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.verdict == Verdict::Conforms),
        "{answers:?}"
    );
    assert_idle(&target);
}

/// Blocks of another size than everybody tests with.
#[test]
fn blocks_of_4_kib() {
    let _alone = alone();
    let (target, address) = target(config());
    let disk = nvmf_target::ns::RamDisk::new(64 << 20, 4096).unwrap();
    target
        .add_namespace(NQN, 2, nvmf_target::ns::Inline::new(disk))
        .unwrap();
    let mut options = options(address);
    options.nsid = Some(2);
    for only in ["data/", "sgl/", "io/"] {
        options.only = Some(only.to_owned());
        for outcome in Torture::begin(&options).unwrap() {
            assert_eq!(outcome.verdict, Verdict::Conforms, "{outcome:?}");
        }
    }
    assert_idle(&target);
}

#[test]
fn nothing_is_written_without_leave() {
    let _alone = alone();
    let (target, address) = target(config());
    let mut controller = common::connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let data = common::pattern(7, 64 << 10);
    queue.write(&ns, 0, &data).unwrap();
    let mut options = options(address);
    options.scratch = None;
    for outcome in Torture::begin(&options).unwrap() {
        assert!(outcome.verdict <= Verdict::Conforms, "{outcome:?}");
    }
    let mut back = vec![0; data.len()];
    queue.read(&ns, 0, &mut back).unwrap();
    assert!(back == data);
    drop((queue, controller));
    assert_idle(&target);
}

/// The client sees it when data changes that must not, and when a target does not serve any more.
#[test]
fn harm_is_noticed() {
    let _alone = alone();
    let (target, address) = target(config());
    let mut options = options(address);
    options.only = Some("icreq/plen".to_owned());
    let mut torture = Torture::begin(&options).unwrap();
    assert_eq!(torture.next().unwrap().verdict, Verdict::Conforms);
    let mut controller = common::connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    queue.write(&ns, 3, &[7; 512]).unwrap();
    drop((queue, controller));
    let outcome = torture.next().unwrap();
    assert_eq!(outcome.verdict, Verdict::Harmed);
    assert!(outcome.answer.contains("has changed"), "{outcome:?}");
    assert_eq!(torture.next().unwrap().verdict, Verdict::Conforms);
    target.remove_namespace(NQN, 1).unwrap();
    assert_eq!(torture.next().unwrap().verdict, Verdict::Harmed);
    assert_eq!(torture.next(), None, "nobody is there any more");
    assert_idle(&target);
}

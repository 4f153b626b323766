//! Well-behaved hosts beside the load: the probe whose latencies are bounded, readers of discovery
//! and log pages, hosts that do nothing but live, and some that quarrel by reservations.

use crate::board::Moment;
use crate::model::{fill, stamp_of};
use crate::quarrel;
use crate::random::Random;
use crate::run::{Run, lock};
use crate::stage::Blocks;
use nvmf_host::nvmf_proto::wire::discovery::DiscoveryLogEntry;
use nvmf_host::nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_host::nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_host::nvmf_proto::wire::log::{GetLogPage, Lid};
use nvmf_host::{ConnectOptions, Controller, Error, IoQueue, Namespace};
use std::time::{Duration, Instant};

/// Numbers of the hosts, beyond those of load hosts.
pub(crate) const PROBE: u16 = 100;
pub(crate) const READER: u16 = 101;
pub(crate) const WATCHER: u16 = 102;
pub(crate) const IDLER: u16 = 103;
/// And the one after it.
pub(crate) const RIVAL: u16 = 104;

/// KATO of hosts that have one.
const KATO: u32 = 20_000;
/// Between two rounds of the probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) type Outcome = Result<(), String>;

/// Adds what was being done.
pub(crate) fn doing(what: &'static str) -> impl Fn(Error) -> String {
    move |err| format!("{what}: {err}")
}

fn one_queue(controller: &mut Controller) -> Result<IoQueue, String> {
    controller
        .set_queue_count(1)
        .map_err(doing("Number of Queues"))?;
    controller.io_queue(1).map_err(doing("Connect of a queue"))
}

/// Writes, reads, verifies and keeps alive, ten times a second, and notes how long each took.
pub(crate) fn probe(run: &Run, blocks: &Blocks) {
    let mut random = Random::new(run.seed, PROBE.into());
    run.repeat("the probe", |since| {
        let mut options = run.options(PROBE).map_err(doing("probe"))?;
        options.kato = KATO;
        let began = Instant::now();
        let mut controller = Controller::connect(&options).map_err(doing("Connect"))?;
        let mut queue = one_queue(&mut controller)?;
        run.took("connect", began.elapsed());
        let namespace = controller
            .namespace(blocks.nsid)
            .map_err(doing("Identify"))?;
        let until = Instant::now() + Duration::from_secs(random.within(5, 60));
        while Instant::now() < until && !run.is_paused() {
            probe_once(run, &mut queue, &namespace, blocks, &mut random)?;
            let began = Instant::now();
            controller.keep_alive().map_err(doing("Keep Alive"))?;
            run.took("keep alive", began.elapsed());
            if !run.board.moment().same_run(since) {
                return Ok(());
            }
            std::thread::sleep(PROBE_INTERVAL);
        }
        drop(queue);
        controller.disconnect().map_err(doing("disconnect"))
    });
}

fn probe_once(
    run: &Run,
    queue: &mut IoQueue,
    namespace: &Namespace,
    place: &Blocks,
    random: &mut Random,
) -> Outcome {
    let size = namespace.block_size as usize;
    let blocks = (4096 / size).max(1);
    let last = place.range.end - blocks as u64;
    let slba = random.within(place.range.start, last);
    let stamp = random.next() | 1;
    let mut data = vec![0; blocks * size];
    for block in data.chunks_exact_mut(size) {
        fill(block, stamp);
    }
    let began = Instant::now();
    queue
        .write(namespace, slba, &data)
        .map_err(doing("Write"))?;
    run.took("write of 4 KiB", began.elapsed());
    let began = Instant::now();
    queue
        .read(namespace, slba, &mut data)
        .map_err(doing("Read"))?;
    run.took("read of 4 KiB", began.elapsed());
    run.count("bytes verified by the probe", data.len() as u64);
    let seen = data.chunks_exact(size).map(stamp_of);
    if seen.into_iter().any(|seen| seen != Some(stamp)) {
        return Err(format!("WRONG DATA at LBA {slba} of {namespace:?}"));
    }
    Ok(())
}

/// Reads discovery, log pages and identification, as managing tools do all the time.
pub(crate) fn reader(run: &Run, stable: &[u32]) {
    let mut random = Random::new(run.seed, READER.into());
    run.repeat("the reader of logs", |since| {
        discovery(run, since, &mut random)?;
        let options = run.options(READER).map_err(doing("reader"))?;
        let mut controller = Controller::connect(&options).map_err(doing("Connect"))?;
        for _ in 0..20 {
            if run.is_paused() {
                break;
            }
            read_something(&mut controller, &mut random, stable)?;
            run.count("log pages and structures read", 1);
        }
        controller.disconnect().map_err(doing("disconnect"))?;
        run.sleep(Duration::from_millis(random.within(10, 500)));
        Ok::<_, String>(())
    });
}

fn discovery(run: &Run, since: Moment, random: &mut Random) -> Outcome {
    let place = &run.place;
    let address = if random.percent(50) {
        place.discovery
    } else {
        place.address
    };
    let mut options = run.options(READER).map_err(doing("reader"))?;
    options.subsystem = ConnectOptions::discovery(address).subsystem;
    options.address = address;
    let mut controller = Controller::connect(&options).map_err(doing("discovery"))?;
    let log = controller.discovery_log();
    let calm = run.board.moment().is_calm_since(since);
    match log {
        Ok(log) => {
            let ours = |entry: &DiscoveryLogEntry| {
                entry
                    .subsystem_nqn()
                    .is_ok_and(|nqn| nqn.as_str() == place.nqn)
            };
            if !log.iter().any(ours) {
                return Err("the discovery log does not name the subsystem".to_owned());
            }
            run.count("discovery logs read", 1);
        }
        // It may have changed whenever it was read.
        Err(Error::BadAnswer(_)) if !calm => {}
        Err(err) => return Err(format!("discovery log: {err}")),
    }
    controller.disconnect().map_err(doing("discovery"))
}

fn read_something(controller: &mut Controller, random: &mut Random, stable: &[u32]) -> Outcome {
    let nsid = stable[random.index(stable.len())];
    match random.below(8) {
        0 => controller.smart_log().map(drop),
        1 => controller.identify_controller().map(drop),
        2 => controller.active_namespaces().map(drop),
        3 => controller.namespace_descriptors(nsid).map(drop),
        4 => controller.namespace(nsid).map(drop),
        5 => {
            let request = GetLogPage::new(Lid::ERROR_INFORMATION, 0);
            controller
                .log_page(NSID_BROADCAST, &request, 64 * 4)
                .map(drop)
        }
        6 => {
            let request = GetLogPage::new(Lid::ANA, 0);
            controller.log_page(0, &request, 16 + 40).map(drop)
        }
        _ => controller.changed_namespaces().map(drop),
    }
    .map_err(doing("reading logs"))
}

/// Waits for events as a Linux host does, and looks at what there is then.
pub(crate) fn watcher(run: &Run) {
    run.repeat("the watcher of events", |since| {
        let mut options = run.options(WATCHER).map_err(doing("watcher"))?;
        options.kato = KATO;
        let mut controller = Controller::connect(&options).map_err(doing("Connect"))?;
        controller
            .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE | AsyncEventConfig::ANA_CHANGE)
            .map_err(doing("Asynchronous Event Configuration"))?;
        controller
            .submit_event_request()
            .map_err(doing("Asynchronous Event Request"))?;
        let mut alive = Instant::now();
        while !run.is_paused() && run.board.moment().same_run(since) {
            let event = controller.poll_event(Duration::from_millis(200));
            if let Some(event) = event.map_err(doing("Asynchronous Event Request"))? {
                run.count("events", 1);
                if event.log_page == Lid::CHANGED_NAMESPACES {
                    controller
                        .changed_namespaces()
                        .map_err(doing("Changed Attached Namespace List"))?;
                } else {
                    let request = GetLogPage::new(event.log_page, 0);
                    controller
                        .log_page(0, &request, 16)
                        .map_err(doing("log of an event"))?;
                }
                controller
                    .submit_event_request()
                    .map_err(doing("Asynchronous Event Request"))?;
            }
            compare_namespaces(run, &mut controller)?;
            if alive.elapsed() > Duration::from_millis(u64::from(KATO) / 4) {
                alive = Instant::now();
                controller.keep_alive().map_err(doing("Keep Alive"))?;
            }
        }
        Ok::<_, String>(())
    });
}

/// While nothing changes, hosts see what the daemon was told.
fn compare_namespaces(run: &Run, controller: &mut Controller) -> Outcome {
    let before = run.board.moment();
    let seen = controller
        .active_namespaces()
        .map_err(doing("active namespaces"))?;
    let expected: Vec<u32> = lock(&run.namespaces).iter().copied().collect();
    if run.board.moment().is_calm_since(before) && seen != expected {
        return Err(format!(
            "namespaces {seen:?} are active, {expected:?} should be"
        ));
    }
    Ok(())
}

/// Hosts with many queues that do nothing but keep alive, and now and then a read.
pub(crate) fn idlers(run: &Run, nsid: u32) {
    const CONTROLLERS: u16 = 4;
    const QUEUES: u16 = 8;
    run.repeat("the idle hosts", |since| {
        let mut idle = Vec::new();
        for _ in 0..CONTROLLERS {
            let mut options = run.options(IDLER).map_err(doing("idler"))?;
            options.kato = KATO;
            let mut controller = Controller::connect(&options).map_err(doing("Connect"))?;
            controller
                .set_queue_count(QUEUES)
                .map_err(doing("Number of Queues"))?;
            let queues: Result<Vec<_>, _> =
                (1..=QUEUES).map(|qid| controller.io_queue(qid)).collect();
            idle.push((controller, queues.map_err(doing("Connect of a queue"))?));
        }
        let until = Instant::now() + Duration::from_secs(120);
        while Instant::now() < until && !run.is_paused() && run.board.moment().same_run(since) {
            for (controller, queues) in &mut idle {
                let began = Instant::now();
                controller.keep_alive().map_err(doing("Keep Alive"))?;
                run.took("keep alive of an idle host", began.elapsed());
                let namespace = controller.namespace(nsid).map_err(doing("Identify"))?;
                let mut block = vec![0; namespace.block_size as usize];
                for queue in queues {
                    queue
                        .read(&namespace, 0, &mut block)
                        .map_err(doing("Read"))?;
                }
            }
            run.sleep(Duration::from_secs(2));
        }
        Ok::<_, String>(())
    });
}

/// Two hosts that exclude each other, and are.
pub(crate) fn rivals(run: &Run, nsid: u32) {
    let mut random = Random::new(run.seed, RIVAL.into());
    run.repeat("the rivals for a reservation", |_| {
        let rival = |number| {
            let options = run.options(number).map_err(doing("rival"))?;
            let mut controller = Controller::connect(&options).map_err(doing("Connect"))?;
            let queue = one_queue(&mut controller)?;
            Ok::<_, String>((controller, queue))
        };
        let (mut one, queue) = rival(RIVAL)?;
        let (other, others_queue) = rival(RIVAL + 1)?;
        let mut queues = [queue, others_queue];
        let namespace = one.namespace(nsid).map_err(doing("Identify"))?;
        let mut rounds = random.within(1, 5);
        while rounds > 0 && !run.is_paused() {
            rounds -= 1;
            let holder = random.index(2);
            quarrel::round(&mut queues, holder, &namespace, &mut random)?;
            run.count("quarrels about a reservation", 1);
        }
        drop(queues);
        for controller in [one, other] {
            controller.disconnect().map_err(doing("disconnect"))?;
        }
        run.sleep(Duration::from_millis(random.within(10, 1000)));
        Ok::<_, String>(())
    });
}

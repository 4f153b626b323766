//! Hosts that break the rules, while others work: the catalogue of malformed traffic in random
//! order, and crowds that are noise, too slow, half open or deaf.

use crate::board::Moment;
use crate::random::Random;
use crate::run::Run;
use crate::stage::Blocks;
use nvmf_host::nvmf_proto::wire::pdu::InitConnection;
use nvmf_host::raw::{RawConnection, RawPdu};
use nvmf_host::torture::{Options, Torture, Verdict, cases};
use nvmf_host::{Controller, Data, command};
use std::time::{Duration, Instant};

/// Host of the catalogue.
pub(crate) const TORTURER: u16 = 110;
/// Host that does not read.
pub(crate) const DEAF: u16 = 111;

/// How often a case is played again that something else may have disturbed.
const ATTEMPTS: u32 = 5;
/// Connections that are held half open.
const CROWD: u64 = 48;
/// How long a raw connection waits for anything.
const PATIENCE: Duration = Duration::from_millis(500);

/// Plays the catalogue in random order, again and again.
pub(crate) fn torture(run: &Run, scratch: &Blocks) {
    let mut random = Random::new(run.seed, TORTURER.into());
    let cases = cases();
    let quick: Vec<_> = cases
        .iter()
        .filter(|case| !case.name.starts_with("slow/"))
        .collect();
    while run.ready().is_some() {
        let case = quick[random.index(quick.len())];
        for attempt in 1..=ATTEMPTS {
            let Some(since) = run.ready() else { return };
            match play(run, case.name, scratch) {
                Ok(()) => {
                    run.count("hostile cases", 1);
                    break;
                }
                // Events, restarts and hosts that are forbidden change what is right.
                Err(_) if !run.board.moment().is_calm_since(since) => {
                    run.count("hostile cases played anew, as something else went on", 1);
                }
                Err(why) => {
                    run.fail(&format!("hostile case {}: {why}", case.name));
                    break;
                }
            }
            run.sleep(Duration::from_millis(200 * u64::from(attempt)));
        }
        run.sleep(Duration::from_millis(random.within(0, 100)));
    }
}

fn play(run: &Run, name: &str, scratch: &Blocks) -> Result<(), String> {
    let host = run.options(TORTURER).map_err(|err| err.to_string())?;
    let mut options = Options::new(run.place.address);
    options.subsystem = Some(host.subsystem);
    options.host = Some(host.host);
    options.nsid = Some(scratch.nsid);
    options.scratch = Some(scratch.range.clone());
    options.patience = run.slow * 2;
    options.only = Some(name.to_owned());
    let began = Instant::now();
    let torture = Torture::begin(&options).map_err(|err| err.to_string())?;
    for outcome in torture.filter(|outcome| outcome.case.name == name) {
        // Of somebody else's target no more is wanted than that it harms nobody.
        let fine = match outcome.verdict {
            Verdict::Conforms | Verdict::Skipped => true,
            Verdict::Harmed => false,
            _ => run.is_foreign,
        };
        if !fine {
            return Err(format!("{}: {}", outcome.verdict, outcome.answer));
        }
    }
    run.note_slowest(
        "longest hostile case, ns",
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
    );
    Ok(())
}

/// Crowds of connections that never become hosts, and hosts that do not read. What becomes of them
/// is the target's business; what becomes of others is looked at elsewhere.
pub(crate) fn crowds(run: &Run, nsid: u32) {
    let mut random = Random::new(run.seed, DEAF.into());
    while let Some(since) = run.ready() {
        match random.below(4) {
            0 => noise(run, &mut random),
            1 => half_open(run, &mut random),
            2 => drip(run, &mut random),
            _ => deaf(run, &mut random, nsid, since),
        }
        run.sleep(Duration::from_millis(random.within(10, 300)));
    }
}

/// The connection, unless the target is away.
fn connect(run: &Run) -> Option<RawConnection> {
    RawConnection::connect(run.place.address, PATIENCE).ok()
}

/// Ends it in one of two ways.
fn end(connection: RawConnection, random: &mut Random) {
    if random.percent(50) {
        connection.reset();
    }
}

/// Noise from the first byte on, or behind a good ICReq, or a good PDU with a few wrong bits.
fn noise(run: &Run, random: &mut Random) {
    for _ in 0..random.within(1, 16) {
        let Some(mut connection) = connect(run) else {
            return;
        };
        let mut bytes = match random.below(3) {
            0 => Vec::new(),
            _ => RawPdu::ic_req(&InitConnection::default()).bytes(),
        };
        if random.percent(50) {
            let len = random.within(1, 32 << 10);
            bytes.extend(random.bytes(usize::try_from(len).unwrap_or(1)));
        } else {
            let sqe = command::read(1, 0, 8);
            let pdu = RawPdu::capsule(&sqe, &[], connection.terms);
            bytes.extend(pdu.bytes());
            for _ in 0..random.within(1, 4) {
                let at = random.index(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        let _ = connection.send(&bytes);
        if random.percent(30) {
            let _ = connection.receive_within(Duration::from_millis(50));
        }
        end(connection, random);
        run.count("connections of noise", 1);
    }
}

/// Connections that say nothing, or stop behind ICReq, until they are dropped or the target has
/// enough of them.
fn half_open(run: &Run, random: &mut Random) {
    let mut crowd = Vec::new();
    for _ in 0..random.within(1, CROWD) {
        let Some(mut connection) = connect(run) else {
            return;
        };
        let pdu = RawPdu::ic_req(&InitConnection::default()).bytes();
        let _ = connection.send(&pdu[..random.index(pdu.len() + 1)]);
        crowd.push(connection);
    }
    run.count("half-open connections", crowd.len() as u64);
    run.sleep(Duration::from_millis(random.within(0, 8000)));
    for connection in crowd {
        end(connection, random);
    }
}

/// A session of which a byte comes now and then.
fn drip(run: &Run, random: &mut Random) {
    let mut drops = Vec::new();
    for _ in 0..random.within(1, 8) {
        drops.extend(connect(run));
    }
    let bytes = RawPdu::ic_req(&InitConnection::default()).bytes();
    for byte in bytes.chunks(1).take(random.index(60)) {
        // Those that the target has closed fail.
        drops.retain_mut(|connection| connection.send_at_once(byte).is_ok());
        run.sleep(Duration::from_millis(random.within(20, 200)));
        if run.is_paused() {
            break;
        }
    }
    run.count("slow drips", drops.len() as u64);
}

/// A host with as many reads and writes under way as its queue takes, that takes none of the
/// answers and sends none of the data.
fn deaf(run: &Run, random: &mut Random, nsid: u32, since: Moment) {
    let heard = (|| -> Result<(), nvmf_host::Error> {
        let options = run.options(DEAF)?;
        let mut controller = Controller::connect(&options)?;
        controller.set_queue_count(1)?;
        let namespace = controller.namespace(nsid)?;
        let mut queue = controller.io_queue(1)?.into_queue();
        let blocks = (256 << 10) / namespace.block_size;
        while queue.outstanding() < queue.depth() {
            let data = Data::Read(vec![0; 256 << 10]);
            queue.submit(command::read(nsid, 0, blocks), data)?;
        }
        queue.flush()?;
        run.sleep(Duration::from_millis(random.within(100, 10_000)));
        Ok(())
    })();
    match heard {
        Ok(()) => run.count("deaf hosts", 1),
        Err(_) if !run.board.moment().same_run(since) => {}
        Err(err) => run.fail(&format!("the deaf host: {err}")),
    }
}

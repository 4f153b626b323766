//! A host may vanish at any moment: the target then has the sockets, buffers and controllers that
//! it had before, and others are served as ever.

mod common;

use common::mortal::{End, Mortal};
use common::raw::{Digests, Raw};
use common::step::Step;
use common::{NQN, PATIENCE, assert_idle, config, connect, eventually, pattern, verified_io};
use nvmf_host::command;
use nvmf_target::Target;
use nvmf_target::ns::NsInfo;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Descriptors are counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes between two of the points at which a session is cut.
const STRIDE: usize = 8;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A target that has served a host, and the descriptors of the process with it.
fn warm() -> (Target, SocketAddr, usize) {
    let (target, address) = common::target(config());
    verified_io(address, 1);
    assert_idle(&target);
    (target, address, descriptors())
}

fn assert_as_before(target: &Target, address: SocketAddr, before: usize) {
    assert_idle(target);
    eventually("the descriptors are closed", || descriptors() == before);
    verified_io(address, 7);
    assert_idle(target);
}

#[test]
fn at_any_byte_of_its_session() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    for (variant, (end, digests)) in [
        (End::Close, Digests::default()),
        (End::Reset, Digests::BOTH),
        (End::HalfClose, Digests::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut whole = Mortal::new(address, digests, end, usize::MAX);
        whole.session().unwrap();
        let total = whole.sent;
        let mut cuts: Vec<usize> = whole.boundaries.iter().flat_map(|&b| [b, b + 1]).collect();
        cuts.extend((variant + 1..total).step_by(STRIDE));
        cuts.retain(|&cut| cut < total);
        drop(whole);
        assert_idle(&target);
        for (i, &cut) in cuts.iter().enumerate() {
            let mut host = Mortal::new(address, digests, end, cut);
            assert!(host.session().is_err(), "cut at {cut}");
            eventually(&format!("{end:?} after {cut} of {total} bytes"), || {
                target.stats() == Default::default()
            });
            drop(host);
            if i % 100 == 0 {
                verified_io(address, i as u64);
            }
        }
    }
    assert_as_before(&target, address, before);
}

#[test]
fn many_at_once_while_another_works() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    thread::scope(|scope| {
        for worker in 0..4usize {
            scope.spawn(move || {
                for round in 0..60 {
                    let end = [End::Close, End::Reset, End::HalfClose][(worker + round) % 3];
                    let cut = 1 + (worker * 7919 + round * 104_729) % 6000;
                    let mut host = Mortal::new(address, Digests::default(), end, cut);
                    let _ = host.session();
                }
            });
        }
        scope.spawn(move || (0..20).for_each(|seed| verified_io(address, seed)));
    });
    assert_as_before(&target, address, before);
}

#[test]
fn right_after_its_icreq_a_thousand_times() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (target, address, before) = warm();
    for i in 0..1000 {
        let mut raw = Raw::tcp(address);
        raw.send(&Digests::default().ic_req()[..128 - i % 3]);
        if i % 2 == 0 {
            socket2::SockRef::from(&raw.stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    }
    assert_as_before(&target, address, before);
}

/// A target that was cut off leaves nothing either, and neither do requests that its backend ends
/// later.
#[test]
fn a_target_that_is_cut_off_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors();
    let (target, address) = common::target(config());
    let step = Step::new(NsInfo::new(512, 4096));
    target.add_namespace(NQN, 2, step.clone()).unwrap();
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap().into_queue();
    let data = nvmf_host::Data::Write(pattern(1, 4096));
    queue.submit(command::write(2, 0, 8), data).unwrap();
    queue.flush().unwrap();
    let request = step.next();
    assert!(!target.shutdown(Duration::from_millis(1)), "cut off");
    queue.poll(PATIENCE).unwrap_err();
    drop((controller, queue, target));
    eventually("the namespace is let go of", || !step.is_held());
    assert_eq!(request.data()[..], pattern(1, 4096), "still the backend's");
    request.complete(Ok(()));
    eventually("the descriptors are closed", || descriptors() == before);
}

//! Long commands: what a turn of a reactor does of them.

use super::{Host, stepped_with};
use crate::common::raw::read;
use crate::common::step::Step;
use crate::common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::pdu::capsule_cqe;
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Status};
use nvmf_target::ns::{BlockDevice, Inline, NsError, NsInfo, Support};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device on the reactor's thread that counts what it deallocates.
struct Counting(Arc<AtomicU64>);

impl BlockDevice for Counting {
    fn info(&self) -> NsInfo {
        let mut info = NsInfo::new(512, 1 << 31);
        info.caps.deallocate = Support::Native;
        info
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn deallocate(&self, _: u64, len: u64) -> Result<(), NsError> {
        self.0.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

/// However many commands keep a device of the reactor's thread busy for however long: in one turn it
/// does so many bytes of them, and answers everything else.
#[test]
fn s65_long_commands_have_a_share_of_a_turn() {
    const STRIDE: u64 = 32 << 20;
    let mut config = config();
    config.reactors = 1;
    let done = Arc::new(AtomicU64::new(0));
    let device = Inline::new(Counting(Arc::clone(&done)));
    let (mut sim, connector) = stepped_with(config, device);
    let (mut admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut other = Host::io(&mut sim, &connector, cntlid);
    // 128 GiB each.
    let range = DsmRange {
        length: 1 << 23,
        ..DsmRange::default()
    };
    let ranges = range.encode().repeat(32);
    let mut hosts: Vec<_> = (0..4)
        .map(|_| {
            let (admin, cntlid) = Host::admin(&mut sim, &connector, 0);
            (admin, Host::io(&mut sim, &connector, cntlid))
        })
        .collect();
    for (_, io) in &mut hosts {
        for cid in 0..60 {
            let mut sqe = command::dataset_management(1, 32, DsmAttributes::DEALLOCATE);
            sqe.set_cid(cid);
            sqe.set_sgl(SglDescriptor::in_capsule(512));
            io.submit(&sqe, &ranges);
        }
    }
    for cid in 0..200 {
        let before = done.load(Ordering::Relaxed);
        admin.submit(&command::keep_alive(), &[]);
        other.submit(&read(cid, 0, 8), &[]);
        sim.turn(0);
        let bytes = done.load(Ordering::Relaxed) - before;
        assert!(bytes <= 2 * STRIDE, "{bytes} in turn {cid}");
        assert!(admin.next().is_some() && other.next().is_some());
    }
    assert!(done.load(Ordering::Relaxed) >= 199 * STRIDE);
    // One that waits for its turn can be aborted at once; then all of them go.
    let (first, io) = &mut hosts[0];
    first.submit(&command::abort(1, 59), &[]);
    (0..3).for_each(|_| _ = sim.turn(0));
    let aborted = capsule_cqe(first.next().expect("an answer").first_chunk().unwrap());
    assert_eq!((aborted.status, aborted.result & 1), (Status::SUCCESS, 0));
    let ended = capsule_cqe(io.next().expect("its end").first_chunk().unwrap());
    assert_eq!((ended.cid, ended.status), (59, Status::ABORT_REQUESTED));
    drop((hosts, other, admin));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// Commands of a device that works elsewhere take no turns from those of one that does here.
#[test]
fn s65_long_commands_elsewhere_take_no_turns() {
    let mut config = config();
    config.reactors = 1;
    let done = Arc::new(AtomicU64::new(0));
    let device = Inline::new(Counting(Arc::clone(&done)));
    let (mut sim, connector) = stepped_with(config, device);
    let mut info = NsInfo::new(512, 1 << 20);
    info.caps.write_zeroes = Support::Native;
    let step = Step::new(info);
    sim.target().add_namespace(NQN, 2, step.clone()).unwrap();
    let (_admin, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut io = Host::io(&mut sim, &connector, cntlid);
    let (_other, cntlid) = Host::admin(&mut sim, &connector, 0);
    let mut elsewhere = Host::io(&mut sim, &connector, cntlid);
    let range = DsmRange {
        length: 1 << 23,
        ..DsmRange::default()
    };
    for cid in 0..2 {
        let mut sqe = command::dataset_management(1, 32, DsmAttributes::DEALLOCATE);
        sqe.set_cid(cid);
        sqe.set_sgl(SglDescriptor::in_capsule(512));
        io.submit(&sqe, &range.encode().repeat(32));
    }
    (0..3).for_each(|_| _ = sim.turn(0));
    let before = done.load(Ordering::Relaxed);
    for cid in 0..50 {
        let mut sqe = command::write_zeroes(2, 0, 65536, false);
        sqe.set_cid(cid);
        elsewhere.submit(&sqe, &[]);
        sim.turn(0);
    }
    let bytes = done.load(Ordering::Relaxed) - before;
    assert!(bytes >= 50 * (32 << 20), "{bytes} in 50 turns");
}

//! Too little memory for what hosts ask: everything gets done all the same, and nobody is stuck.

mod common;

use common::raw::{Digests, Raw, write_by_r2t, write_in_capsule};
use common::{assert_idle, config, connect, pattern, target};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_target::TargetConfig;
use std::time::Duration;

const MIB: u32 = 1 << 20;

/// One reactor whose buffers are enough for two of the largest commands.
fn tight() -> TargetConfig {
    let mut config = config();
    config.reactors = 1;
    config.buffer_bytes = 2 << 20;
    config
}

/// Data in a capsule stands in front of the H2CData of earlier commands: it must be taken even
/// though they have all the buffers.
#[test]
fn in_capsule_data_is_taken_while_writes_that_wait_for_data_have_all_buffers() {
    let (target, address) = target(tight());
    let (admin, cntlid) = Raw::admin(address);
    let mut queue = Raw::io(address, cntlid, 1);
    let (large, small) = (pattern(1, MIB as usize), pattern(2, 4096));
    for cid in 0..3 {
        queue.submit(&write_by_r2t(cid, u64::from(cid) * 2048, 2048), &[]);
    }
    for cid in 3..60 {
        queue.submit(&write_in_capsule(cid, 8192 + u64::from(cid) * 8, 8), &small);
    }
    let mut done = Vec::new();
    while done.len() < 60 {
        let pdu = queue.recv();
        if pdu.ch.plen == 24 && pdu.ch.pdu_type.0 == 9 {
            let data = Digests::default().h2c_data(&pdu.r2t(), 0, &large, true);
            queue.send(&data);
        } else {
            let cqe = pdu.cqe();
            assert_eq!(cqe.status, Status::SUCCESS);
            done.push(cqe.cid);
        }
    }
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..60));
    drop((admin, queue));
    assert_idle(&target);
}

/// A reactor that does not spin sleeps only when it has nothing more to give.
#[test]
fn commands_that_wait_for_buffers_need_no_spinning_reactor() {
    let mut config = tight();
    config.busy_poll = Duration::ZERO;
    let (target, address) = target(config);
    let mut controller = connect(address);
    controller.set_queue_count(1).unwrap();
    let ns = controller.namespace(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    for _ in 0..20 {
        for tag in 0..64 {
            queue
                .submit_read(&ns, tag * 2048 % ns.blocks, vec![0; 128 << 10], tag)
                .unwrap();
        }
        let mut left = 64;
        while left > 0 {
            let done = queue.poll(common::PATIENCE).unwrap();
            assert!(done.len() > 0, "{left} reads are stuck");
            for done in done {
                done.success("Read").unwrap();
                left -= 1;
            }
        }
    }
    drop((controller, queue));
    assert_idle(&target);
}

/// The end of a host is seen although the target does not read from it at the moment.
#[test]
fn a_host_that_ends_while_the_target_does_not_read_is_let_go() {
    let (target, address) = target(tight());
    let mut raw = Raw::open(address, Digests::default());
    let mut connect = common::raw::admin_connect();
    connect.sqsize = 1;
    raw.connect_ok(&connect, &common::raw::connect_data());
    raw.ok(&common::raw::enable(), &[]);
    // Two commands that never end fill the queue of two entries; the third cannot be taken.
    for cid in 0..3 {
        let mut sqe = command::async_event_request();
        sqe.set_cid(cid);
        raw.submit(&sqe, &[]);
    }
    drop(raw);
    assert_idle(&target);
}

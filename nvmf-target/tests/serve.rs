//! A target and hosts in one process: the main path over TCP and over memory.

mod common;

use common::{
    NQN, assert_idle, config, connect, connect_in_memory, eventually, in_memory, options, pattern,
    target,
};
use nvmf_host::{Controller, IoQueue, Namespace};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::AsyncEvent;
use nvmf_target::ns::{Inline, RamDisk};
use std::time::Duration;

/// Writes and reads ranges of many sizes, and checks that their neighbours stay as they were.
fn exercise(queue: &mut IoQueue, ns: &Namespace) {
    for (i, blocks) in [
        1u32, 7, 8, 16, 31, 32, 33, 64, 128, 255, 256, 257, 1024, 2048,
    ]
    .into_iter()
    .enumerate()
    {
        let slba = 3 + 4096 * i as u64;
        let len = blocks as usize * 512;
        let blocks = u64::from(blocks);
        let data = pattern(i as u64 + 1, len);
        queue.write(ns, slba, &data).unwrap();
        let mut back = vec![0xee; len + 1024];
        let first = back.len() - 512;
        queue.read(ns, slba - 1, &mut back[..512]).unwrap();
        queue.read(ns, slba + blocks, &mut back[first..]).unwrap();
        assert!(
            back[..512].iter().chain(&back[first..]).all(|&b| b == 0),
            "neighbours of {blocks}"
        );
        queue.read(ns, slba, &mut back[512..512 + len]).unwrap();
        assert_eq!(back[512..512 + len], data, "{blocks} blocks");
    }
}

fn serve(controller: &mut Controller) {
    let ns = controller.namespace(1).unwrap();
    assert_eq!((ns.blocks, ns.block_size), (131_072, 512));
    assert_eq!(controller.set_queue_count(2).unwrap(), 2);
    let mut queues = [
        controller.io_queue(1).unwrap(),
        controller.io_queue(2).unwrap(),
    ];
    for queue in &mut queues {
        exercise(queue, &ns);
        queue.flush(&ns).unwrap();
        queue.write_zeroes(&ns, 0, 65_536, true).unwrap();
        queue.write_zeroes(&ns, 65_536, 65_536, false).unwrap();
    }
    let [a, b] = &mut queues;
    a.write(&ns, 8, &pattern(9, 4096)).unwrap();
    let mut back = vec![0; 4096];
    b.read(&ns, 8, &mut back).unwrap();
    assert_eq!(
        back,
        pattern(9, 4096),
        "what one queue wrote, the other reads"
    );
    let range = DsmRange {
        slba: 8,
        length: 8,
        ..DsmRange::default()
    };
    b.dsm(&ns, &[range], DsmAttributes::DEALLOCATE).unwrap();
    a.read(&ns, 8, &mut back).unwrap();
    assert!(back.iter().all(|&b| b == 0));
}

#[test]
fn every_combination_of_digests_and_flow_control() {
    let (target, address) = target(config());
    let connector = in_memory(&target);
    for bits in 0..8 {
        let mut options = options(address);
        options.header_digest = bits & 1 != 0;
        options.data_digest = bits & 2 != 0;
        options.disable_sq_flow_control = bits & 4 != 0;
        let mut controller = Controller::connect(&options).unwrap();
        serve(&mut controller);
        drop(controller);
        serve(&mut connect_in_memory(&connector, &options));
    }
    assert_idle(&target);
}

#[test]
fn hosts_do_not_disturb_each_other() {
    let (target, address) = target(config());
    let mut hosts: Vec<_> = (0..5).map(|_| connect(address)).collect();
    let mut ids: Vec<_> = hosts.iter().map(Controller::cntlid).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "a controller of its own for each");
    let ns = hosts[0].namespace(1).unwrap();
    hosts
        .iter_mut()
        .for_each(|h| assert_eq!(h.set_queue_count(1).unwrap(), 1));
    let mut queues: Vec<_> = hosts.iter_mut().map(|h| h.io_queue(1).unwrap()).collect();
    for (i, queue) in queues.iter_mut().enumerate() {
        queue
            .write(&ns, i as u64 * 64, &pattern(i as u64, 32 << 10))
            .unwrap();
    }
    drop(hosts.remove(2));
    queues.remove(2);
    for (i, queue) in [0, 1, 3, 4].into_iter().zip(&mut queues) {
        let mut back = vec![0; 32 << 10];
        queue.read(&ns, i * 64, &mut back).unwrap();
        assert_eq!(back, pattern(i, 32 << 10));
    }
    drop((hosts, queues));
    assert_idle(&target);
}

#[test]
fn errors_fail_the_command_and_nothing_else() {
    let (target, address) = target(config());
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let mut buf = vec![0; 1024];
    let beyond = queue.read(&ns, ns.blocks - 1, &mut buf).unwrap_err();
    assert!(
        beyond.status().unwrap().same_code(Status::LBA_OUT_OF_RANGE),
        "{beyond}"
    );
    let wrapped = queue.read(&ns, u64::MAX, &mut buf).unwrap_err();
    assert!(
        wrapped
            .status()
            .unwrap()
            .same_code(Status::LBA_OUT_OF_RANGE),
        "{wrapped}"
    );
    let nowhere = Namespace { nsid: 2, ..ns };
    let missing = queue.write(&nowhere, 0, &buf).unwrap_err();
    assert!(
        missing
            .status()
            .unwrap()
            .same_code(Status::INVALID_NAMESPACE),
        "{missing}"
    );
    queue.write(&ns, 0, &pattern(1, 1024)).unwrap();
    queue.read(&ns, 0, &mut buf).unwrap();
    assert_eq!(buf, pattern(1, 1024));
    drop((controller, queue));
    assert_idle(&target);
}

#[test]
fn namespaces_come_and_go_under_a_connected_host() {
    let (target, address) = target(config());
    let mut controller = connect(address);
    controller
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
        .unwrap();
    controller.submit_event_request().unwrap();
    target
        .add_namespace(NQN, 7, Inline::new(RamDisk::new(1 << 20, 4096).unwrap()))
        .unwrap();
    let event = controller.poll_event(common::PATIENCE).unwrap();
    assert_eq!(event, Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED));
    assert_eq!(controller.changed_namespaces().unwrap(), [7]);
    assert_eq!(controller.active_namespaces().unwrap(), [1, 7]);
    let ns = controller.namespace(7).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    queue.write(&ns, 0, &pattern(1, 8192)).unwrap();
    controller.submit_event_request().unwrap();
    target.remove_namespace(NQN, 7).unwrap();
    assert!(controller.poll_event(common::PATIENCE).unwrap().is_some());
    assert_eq!(controller.changed_namespaces().unwrap(), [7]);
    let gone = queue.write(&ns, 0, &pattern(1, 8192)).unwrap_err();
    assert!(
        gone.status().unwrap().same_code(Status::INVALID_NAMESPACE),
        "{gone}"
    );
    assert!(target.remove_namespace(NQN, 7).is_err());
    drop((controller, queue));
    assert_idle(&target);
}

#[test]
fn a_reset_ends_the_io_queues_and_the_controller_can_be_enabled_again() {
    let (target, address) = target(config());
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    queue.write(&ns, 0, &pattern(1, 4096)).unwrap();
    controller.reset().unwrap();
    eventually("I/O queues end", || target.stats().io_queues == 0);
    assert!(
        queue.read(&ns, 0, &mut [0; 512]).is_err(),
        "the queue is gone"
    );
    controller.enable().unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let mut back = vec![0; 4096];
    queue.read(&ns, 0, &mut back).unwrap();
    assert_eq!(back, pattern(1, 4096));
    drop((controller, queue));
    assert_idle(&target);
}

#[test]
fn a_silent_host_is_let_go_after_its_keep_alive_timeout() {
    let (target, address) = target(config());
    let mut options = options(address);
    options.kato = 100;
    let controller = Controller::connect(&options).unwrap();
    assert_eq!(target.stats().controllers, 1);
    assert_idle(&target);
    drop(controller);
}

#[test]
fn much_io_with_few_buffers_gets_done() {
    let mut config = config();
    config.buffer_bytes = 2 << 20;
    let (target, address) = target(config);
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let (len, count) = (1 << 20, 48);
    for i in 0..count {
        queue
            .submit_write(&ns, i * 2048 % ns.blocks, pattern(i, len), i)
            .unwrap();
    }
    let mut done = 0;
    while done < count {
        for completion in queue.poll(common::PATIENCE).unwrap() {
            completion.success("Write").unwrap();
            done += 1;
        }
    }
    for i in 0..count {
        queue
            .submit_read(&ns, i * 2048 % ns.blocks, vec![0; len], i)
            .unwrap();
    }
    let mut done = 0;
    while done < count {
        for completion in queue.poll(common::PATIENCE).unwrap() {
            let completion = completion.success("Read").unwrap();
            assert!(
                completion.buffer == pattern(completion.tag, len),
                "write {}",
                completion.tag
            );
            done += 1;
        }
    }
    drop((controller, queue));
    assert_idle(&target);
}

#[test]
fn a_shutdown_finishes_and_says_so() {
    let (target, address) = target(config());
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    queue.write(&ns, 0, &pattern(1, 4096)).unwrap();
    assert!(target.shutdown(Duration::from_secs(20)));
    assert!(queue.read(&ns, 0, &mut [0; 512]).is_err());
    target.listen("127.0.0.1:0".parse().unwrap()).unwrap_err();
    assert!(
        target.shutdown(Duration::ZERO),
        "a second time there is nothing to do"
    );
}
